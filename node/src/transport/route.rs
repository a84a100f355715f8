//! What a request asks for: a client transport, a page, or nothing we have.
//!
//! Belongs here: the paths of the client port; the checks of a WebSocket handshake and of Origin;
//! the answers of Engine.IO's reference server to what it refuses.
//! Stays out: who the client is; reading and writing bytes.
//! Source: RFC 6455 §4.2; Engine.IO v4 "Handshake"; answers as the reference server 4.8 gives them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_proto::id::EngineSid;
use mesh_proto::shard::ClientProtocol;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::head::RequestHead;
use super::proxies::TrustedProxies;
use super::{Response, query_values};

/// Where Socket.IO clients connect.
pub const SOCKET_IO_PATH: &str = "/socket.io/";

/// Where clients of Engine.IO alone connect, if a product has code for them.
pub const ENGINE_IO_PATH: &str = "/engine.io/";

/// Where plain WebSocket clients connect.
pub const PLAIN_PATH: &str = "/ws";

/// What an operator decides about handshakes.
#[derive(Clone, Debug, Default)]
pub struct RoutePolicy {
    /// Who may connect from a browser.
    pub origins: Origins,
    /// Headers in lower case by which a proxy says who a user is: whoever else sends one is not believed.
    pub identity_headers: Vec<String>,
    /// Whether [`ENGINE_IO_PATH`] is served.
    pub engine_io: bool,
    /// Who may say for whom a request is.
    pub proxies: TrustedProxies,
}

/// Which `Origin` a handshake may carry. One without `Origin` comes from no browser and passes:
/// nothing here authenticates by cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// Any page may connect.
    #[default]
    Any,
    /// Only these, as `scheme://host[:port]`, compared without regard to case.
    Listed(Vec<String>),
}

impl Origins {
    /// Reads the configured list; `*` anywhere in it means any.
    #[must_use]
    pub fn from_list(list: &[String]) -> Self {
        if list.iter().any(|origin| origin == "*") { Self::Any } else { Self::Listed(list.to_vec()) }
    }

    fn allow(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => head
                .values("origin")
                .all(|origin| listed.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))),
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A WebSocket handshake in order.
    WebSocket {
        /// What is spoken over it.
        protocol: ClientProtocol,
        /// `Sec-WebSocket-Accept`.
        accept_key: String,
        /// The polling session it wants to take over.
        upgrades: Option<EngineSid>,
    },
    /// A request of Engine.IO long-polling, and what is spoken over it.
    Polling(PollingRequest, ClientProtocol),
    /// Not for a client transport: the site's, else 404.
    Site,
    /// Refused.
    Refused(Response),
}

/// What a request of a polling client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollingRequest {
    /// The handshake.
    Open,
    /// GET of an open session.
    Poll(EngineSid),
    /// POST of an open session.
    Post(EngineSid),
    /// POST of a binary body, which version 4 has not: refused, and the session ends.
    PostBinary(EngineSid),
}

/// Engine.IO's handshake errors, with its codes and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineError {
    TransportUnknown,
    SessionUnknown,
    BadMethod,
    BadRequest,
    Forbidden,
    UnsupportedVersion,
}

impl EngineError {
    pub(crate) fn response(self) -> Response {
        let (status, body) = match self {
            Self::TransportUnknown => (400, r#"{"code":0,"message":"Transport unknown"}"#),
            Self::SessionUnknown => (400, r#"{"code":1,"message":"Session ID unknown"}"#),
            Self::BadMethod => (400, r#"{"code":2,"message":"Bad handshake method"}"#),
            Self::BadRequest => (400, r#"{"code":3,"message":"Bad request"}"#),
            Self::Forbidden => (403, r#"{"code":4,"message":"Forbidden"}"#),
            Self::UnsupportedVersion => (400, r#"{"code":5,"message":"Unsupported protocol version"}"#),
        };
        Response::json(status, body)
    }
}

/// The answer to a path we do not have.
#[must_use]
pub fn not_found() -> Response {
    Response::json(404, r#"{"error":{"code":"not_found","message":"clients connect at /socket.io/ or /ws"}}"#)
}

/// Decides what a request is for.
#[must_use]
pub fn route(head: &RequestHead<'_>, policy: &RoutePolicy) -> Route {
    match head.path {
        SOCKET_IO_PATH | "/socket.io" => {
            engine(head, policy, ClientProtocol::SocketIo).unwrap_or_else(Route::Refused)
        }
        ENGINE_IO_PATH | "/engine.io" if policy.engine_io => {
            engine(head, policy, ClientProtocol::EngineIo).unwrap_or_else(Route::Refused)
        }
        PLAIN_PATH => plain(head, policy).unwrap_or_else(Route::Refused),
        _ => Route::Site,
    }
}

/// The checks in the order of the reference server, so that a request wrong in two ways gets its answer.
fn engine(head: &RequestHead<'_>, policy: &RoutePolicy, protocol: ClientProtocol) -> Result<Route, Response> {
    if head.method == "OPTIONS" {
        return Err(Response { status: 204, content_type: "", body: (&[][..]).into(), headers: Vec::new() });
    }
    if query_values(head.query, "j").next().is_some() {
        return Err(EngineError::BadRequest.response());
    }
    let refuse = |error: EngineError| Err(error.response());
    let mut transports = query_values(head.query, "transport");
    let websocket = match (transports.next(), transports.next()) {
        (Some("websocket"), None) => true,
        (Some("polling"), None) => false,
        _ => return refuse(EngineError::TransportUnknown),
    };
    if !policy.origins.allow(head) {
        return refuse(EngineError::Forbidden);
    }
    let is_version_4 = {
        let mut versions = query_values(head.query, "EIO");
        (versions.next(), versions.next()) == (Some("4"), None)
    };
    let upgrades = match session(head)? {
        Some(_) if !is_version_4 => return refuse(EngineError::BadRequest),
        Some(sid) if !websocket => return polling(head, sid, protocol),
        upgrades => upgrades,
    };
    if head.method != "GET" {
        return refuse(EngineError::BadMethod);
    }
    if websocket && !asks_for_upgrade(head) {
        return refuse(EngineError::BadRequest);
    }
    if !is_version_4 {
        return refuse(EngineError::UnsupportedVersion);
    }
    if !websocket {
        return Ok(Route::Polling(PollingRequest::Open, protocol));
    }
    let accept_key = accept_key(head)?;
    Ok(Route::WebSocket { protocol, accept_key, upgrades })
}

/// The session that a request names. What cannot be one is unknown.
fn session(head: &RequestHead<'_>) -> Result<Option<EngineSid>, Response> {
    let mut sids = query_values(head.query, "sid");
    let unknown = || EngineError::SessionUnknown.response();
    match (sids.next(), sids.next()) {
        (None, _) => Ok(None),
        (Some(text), None) => EngineSid::from_text(text).map(Some).ok_or_else(unknown),
        (Some(_), Some(_)) => Err(unknown()),
    }
}

fn polling(head: &RequestHead<'_>, sid: EngineSid, protocol: ClientProtocol) -> Result<Route, Response> {
    let is_binary = || {
        let content_type = head.header_text("content-type").unwrap_or_default();
        content_type.split(';').next().is_some_and(|kind| kind.trim() == "application/octet-stream")
    };
    match head.method {
        "GET" => Ok(Route::Polling(PollingRequest::Poll(sid), protocol)),
        "POST" if is_binary() => Ok(Route::Polling(PollingRequest::PostBinary(sid), protocol)),
        "POST" => Ok(Route::Polling(PollingRequest::Post(sid), protocol)),
        _ => {
            let answer = Response::json(405, r#"{"error":{"code":"method","message":"GET or POST"}}"#);
            Err(answer.with_header("Allow", "GET, POST"))
        }
    }
}

/// What a browser is told so that a page of another origin may read the answer.
#[must_use]
pub fn cors(head: &RequestHead<'_>, policy: &RoutePolicy) -> Vec<(&'static str, String)> {
    let Some(origin) = head.header_text("origin") else { return Vec::new() };
    let mut headers = match &policy.origins {
        // Never together with credentials (Fetch, "CORS protocol and credentials").
        Origins::Any => vec![("Access-Control-Allow-Origin", "*".to_owned())],
        Origins::Listed(_) if !policy.origins.allow(head) => return vec![("Vary", "Origin".to_owned())],
        Origins::Listed(_) => vec![
            ("Access-Control-Allow-Origin", origin.to_owned()),
            ("Access-Control-Allow-Credentials", "true".to_owned()),
            ("Vary", "Origin".to_owned()),
        ],
    };
    if head.method == "OPTIONS" {
        headers.push(("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE".to_owned()));
        if let Some(asked) = head.header_text("access-control-request-headers") {
            headers.push(("Access-Control-Allow-Headers", asked.to_owned()));
        }
    }
    headers
}

fn plain(head: &RequestHead<'_>, policy: &RoutePolicy) -> Result<Route, Response> {
    let error = |status, code: &str, message: &str| {
        Response::json(status, format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#))
    };
    if head.method != "GET" {
        return Err(error(405, "method", "open a WebSocket here with GET").with_header("Allow", "GET"));
    }
    if !asks_for_upgrade(head) {
        let answer = error(426, "upgrade_required", "open a WebSocket here");
        return Err(answer.with_header("Upgrade", "websocket"));
    }
    if !policy.origins.allow(head) {
        return Err(error(403, "origin", "this page's origin is not on the list"));
    }
    let accept_key = accept_key(head)?;
    Ok(Route::WebSocket { protocol: ClientProtocol::Plain, accept_key, upgrades: None })
}

/// RFC 6455 §4.2.1, items 1, 3 and 4.
fn asks_for_upgrade(head: &RequestHead<'_>) -> bool {
    head.http11 && head.has_token("upgrade", "websocket") && head.has_token("connection", "upgrade")
}

/// RFC 6455 §4.2.1, items 5 and 6: one key of 16 bytes, version 13. Subprotocols and extensions are
/// declined by saying nothing of them.
fn accept_key(head: &RequestHead<'_>) -> Result<String, Response> {
    if head.header("sec-websocket-version") != Some(b"13") {
        return Err(EngineError::BadRequest.response().with_header("Sec-WebSocket-Version", "13"));
    }
    let mut keys = head.values("sec-websocket-key");
    match (keys.next(), keys.next()) {
        (Some(key), None) if STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) => {
            Ok(derive_accept_key(key))
        }
        _ => Err(EngineError::BadRequest.response()),
    }
}

/// The `101` that opens a WebSocket, with a cookie that it sets, if any.
#[must_use]
pub fn switching_protocols(accept_key: &str, set_cookie: Option<&str>) -> String {
    let cookie = set_cookie.map(|cookie| format!("Set-Cookie: {cookie}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept_key}\r\n{cookie}\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn routed(request_line: &str, headers: &str, policy: &RoutePolicy) -> Route {
        let text = format!("{request_line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        route(&RequestHead::parse(text.as_bytes()).unwrap(), policy)
    }

    fn told(request_line: &str, headers: &str) -> (u16, String) {
        match routed(request_line, headers, &RoutePolicy::default()) {
            Route::Refused(response) => {
                (response.status, String::from_utf8_lossy(&response.body).into_owned())
            }
            Route::WebSocket { protocol, .. } => (101, format!("{protocol:?}")),
            Route::Polling(request, _) => (0, format!("polling {request:?}")),
            Route::Site => (0, "site".into()),
        }
    }

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        let expected = Route::WebSocket {
            protocol: ClientProtocol::Plain,
            accept_key: "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into(),
            upgrades: None,
        };
        assert_eq!(routed("GET /ws", UPGRADE, &RoutePolicy::default()), expected);
    }

    #[test]
    fn handshakes_are_routed_or_refused_as_the_reference_server_does() {
        let good = "GET /socket.io/?EIO=4&transport=websocket";
        let long = format!("{UPGRADE}Sec-WebSocket-Extensions: {}\r\n", "a;,".repeat(3_000));
        let cases: &[(&str, &str, u16, &str)] = &[
            (good, UPGRADE, 101, "SocketIo"),
            ("GET /ws?token=x", UPGRADE, 101, "Plain"),
            ("GET /socket.io/?EIO=4&transport=polling", "", 0, "polling"),
            // FAULTS row 1.
            ("GET /socket.io/?EIO=4", "", 400, "Transport unknown"),
            ("GET /socket.io/?EIO=4&transport=flash", "", 400, "Transport unknown"),
            (
                "GET /socket.io/?EIO=4&transport=websocket&transport=polling",
                UPGRADE,
                400,
                "Transport unknown",
            ),
            // Row 2.
            ("GET /socket.io/?EIO=4&transport=websocket&sid=__proto__", UPGRADE, 400, "Session ID unknown"),
            // Row 3.
            ("POST /socket.io/?EIO=4&transport=polling", "", 400, "Bad handshake method"),
            ("DELETE /socket.io/?EIO=4&transport=websocket", UPGRADE, 400, "Bad handshake method"),
            // Row 4.
            (good, "", 400, "Bad request"),
            // Row 5.
            ("GET /socket.io/?transport=websocket", UPGRADE, 400, "Unsupported protocol version"),
            ("GET /socket.io/?EIO=3&transport=websocket", UPGRADE, 400, "Unsupported protocol version"),
            ("GET /socket.io/?EIO=4&EIO=4&transport=websocket", UPGRADE, 400, "Unsupported protocol version"),
            // Row 7.
            ("OPTIONS /socket.io/", "", 204, ""),
            // Row 21.
            ("GET /ws", "Upgrade: h2c\r\nConnection: Upgrade\r\n", 426, "upgrade_required"),
            ("GET /ws", "Upgrade: websocket\r\nConnection: close\r\n", 426, "upgrade_required"),
            ("POST /ws", UPGRADE, 405, "method"),
            // Row 22.
            ("GET /ws", &UPGRADE.replace("13", "8"), 400, "Bad request"),
            ("GET /ws", &UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400, "Bad request"),
            ("GET /ws", &UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "***"), 400, "Bad request"),
            (
                "GET /ws",
                &format!("{UPGRADE}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
                400,
                "Bad request",
            ),
            // Row 23.
            ("GET /ws", &long, 101, "Plain"),
            // Rows 25 and 26.
            ("GET /../etc/passwd", "", 0, "site"),
            ("GET /metrics", "", 0, "site"),
            ("GET //ws", UPGRADE, 0, "site"),
        ];
        for (line, headers, status, words) in cases {
            let answer = told(line, headers);
            assert_eq!(answer.0, *status, "{line}: {answer:?}");
            assert!(answer.1.contains(words), "{line}: {answer:?}");
        }
    }

    #[test]
    fn the_wrong_version_is_told_the_right_one() {
        let Route::Refused(response) =
            routed("GET /ws", &UPGRADE.replace("13", "8"), &RoutePolicy::default())
        else {
            panic!("not refused")
        };
        assert!(response.headers.contains(&("Sec-WebSocket-Version", "13".into())));
    }

    #[test]
    fn foreign_origins_are_refused_and_absent_ones_pass() {
        let listed = Origins::from_list(&["https://App.example".into()]);
        let policy = RoutePolicy { origins: listed, ..RoutePolicy::default() };
        let line = "GET /socket.io/?EIO=4&transport=websocket";
        let passes = |origin: &str| {
            matches!(routed(line, &format!("{UPGRADE}{origin}"), &policy), Route::WebSocket { .. })
        };
        assert!(passes(""));
        assert!(passes("Origin: https://app.example\r\n"));
        for foreign in ["https://app.example.evil", "null", "http://app.example"] {
            assert!(!passes(&format!("Origin: {foreign}\r\n")), "{foreign}");
        }
        assert!(!passes("Origin: https://app.example\r\nOrigin: https://evil.example\r\n"));
        assert_eq!(Origins::from_list(&["a".into(), "*".into()]), Origins::Any);
    }
}
