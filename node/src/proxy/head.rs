//! What of a request's head an upstream is sent, and what of its answer's head the client.
//!
//! Belongs here: fields that are for one connection only, fields that say who the client is, the target.
//! Stays out: bodies and their framing on the wire (`body`), who the client is (`identity`).
//! Invariants: pure functions of the head and the facts. Nothing of `X-Mesh-Uid`, the forwarding fields or the
//! configured parameter is taken from a client that is not trusted, under no spelling that a server could
//! take for the same name. No field for one connection passes to the other side.
//! Source: RFC 9110 §7.6 (forwarding); `X-Forwarded-*` as nginx and haproxy write them; CVE-2016-5385 (`Proxy`).

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri};

use crate::transport::body::BodyLength;
use crate::transport::head::RequestHead;
use crate::transport::percent_decoded;

/// The field by which upstreams are told the uid.
pub const UID_HEADER: &str = "x-mesh-uid";

/// How we call ourselves in `Via`.
const VIA_NAME: &str = "meshd";

/// Times that a request may have passed a node of ours: an upstream that leads back to us ends here.
const PASSES_MAX: usize = 5;

/// Bytes of a request id that is taken over from a trusted peer.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Fields for one connection only (RFC 9110 §7.6.1), `Expect` and framing among them: those are written anew.
const HOP_BY_HOP: [&str; 12] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "expect",
    "proxy-authenticate",
    "proxy-authorization",
    "http2-settings",
    // No field of HTTP, but some servers make an environment variable of it that redirects their own requests.
    "proxy",
];

/// Fields that `Connection` cannot take off: what identifies the request.
const NOT_BY_CONNECTION: [&str; 3] = ["host", "content-type", "via"];

/// Fields about who the client is, which only trusted peers may send; in the spelling of [`canonical`].
const ABOUT_THE_CLIENT: [&str; 3] = ["forwarded", "x-real-ip", "x-request-id"];

/// What is known of a request beside its head.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// The other end of the client's connection.
    pub peer: IpAddr,
    /// Whether `peer` is a trusted proxy.
    pub trusted: bool,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
    /// The user, if known.
    pub uid: Option<&'f str>,
    /// The query parameter that tells the uid too, if configured.
    pub uid_query: Option<&'f str>,
    /// Fields that are taken from trusted peers only, because `identity` reads them; in lower case.
    pub identity_headers: &'f [String],
    /// The upstream's `Host`, where the client's is not kept.
    pub host: Option<&'f str>,
    /// The id of this request, unless a trusted peer has given it one.
    pub request_id: &'f str,
    /// Whether the answer is to be looked into, so that it should not be compressed.
    pub plain_answer: bool,
}

/// Why a head cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A target or method that no upstream should see.
    #[error("the request target has characters that must be percent-encoded")]
    Target,
    /// It has been here too often: an upstream leads back to us.
    #[error("the request has passed here more than {PASSES_MAX} times")]
    Loop,
}

/// A head for the upstream.
#[derive(Clone, Debug)]
pub struct UpstreamHead {
    /// The method, as it came.
    pub method: Method,
    /// The target: path and query.
    pub uri: Uri,
    /// The fields.
    pub headers: HeaderMap,
}

/// What a request becomes for an upstream. `upgrade` keeps `Upgrade` and its `Connection`.
///
/// # Errors
/// [`Unusable`].
pub fn for_upstream(
    head: &RequestHead<'_>,
    facts: &Facts<'_>,
    length: BodyLength,
    upgrade: bool,
) -> Result<UpstreamHead, Unusable> {
    let method = Method::from_bytes(head.method.as_bytes()).map_err(|_| Unusable::Target)?;
    let uri = target(head, facts)?;
    let mut headers = end_to_end(head, facts);
    forwarded(&mut headers, head, facts)?;
    match length {
        BodyLength::None => {}
        BodyLength::Exact(len) => drop(headers.insert(header::CONTENT_LENGTH, len.into())),
        BodyLength::Chunked => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    if head.http11 && head.has_token("expect", "100-continue") && length != BodyLength::None {
        headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    let trailers = head.has_token("te", "trailers");
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if upgrade {
        let kinds = head.values("upgrade").filter_map(|value| HeaderValue::from_bytes(value).ok());
        for kind in kinds {
            headers.append(header::UPGRADE, kind);
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if trailers {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    if facts.plain_answer {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    Ok(UpstreamHead { method, uri, headers })
}

/// The client's fields that are for the upstream.
fn end_to_end(head: &RequestHead<'_>, facts: &Facts<'_>) -> HeaderMap {
    let named = named_by_connection(head.values("connection"));
    let mut headers = HeaderMap::with_capacity(16);
    for (name, value) in head.headers() {
        let lower = name.to_ascii_lowercase();
        let for_us = HOP_BY_HOP.contains(&lower.as_str())
            || (named.contains(&lower) && !NOT_BY_CONNECTION.contains(&lower.as_str()));
        if for_us || is_reserved(&lower, facts) {
            continue;
        }
        // The reader has refused what these two would refuse, but for names over 64 KiB.
        let parsed = HeaderName::from_bytes(lower.as_bytes()).ok().zip(HeaderValue::from_bytes(value).ok());
        if let Some((name, value)) = parsed {
            headers.append(name, value);
        }
    }
    headers
}

/// Whether a field is ours to write, or not this client's to send. Servers that hand fields on as environment
/// variables (CGI, WSGI, Rack, PHP) take `X_Mesh_Uid` and `X.Mesh.Uid` for `X-Mesh-Uid`.
fn is_reserved(name: &str, facts: &Facts<'_>) -> bool {
    let canonical = canonical(name);
    let exact = canonical == name;
    if canonical == UID_HEADER {
        return true;
    }
    let about = canonical.starts_with("x-forwarded-") || ABOUT_THE_CLIENT.contains(&canonical.as_str());
    let identity = facts.identity_headers.iter().any(|header| self::canonical(header) == canonical);
    (about || identity) && !(facts.trusted && exact)
}

fn canonical(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

fn named_by_connection<'v>(values: impl Iterator<Item = &'v [u8]>) -> Vec<String> {
    let tokens = values.flat_map(|value| value.split(|&byte| byte == b','));
    let token = |token: &[u8]| std::str::from_utf8(token).map(|token| token.trim().to_ascii_lowercase()).ok();
    tokens.filter_map(token).filter(|token| !token.is_empty()).collect()
}

/// Who the client is, by our word and that of trusted peers.
fn forwarded(headers: &mut HeaderMap, head: &RequestHead<'_>, facts: &Facts<'_>) -> Result<(), Unusable> {
    let peer = facts.peer.to_canonical();
    appended(headers, HeaderName::from_static("x-forwarded-for"), &peer.to_string());
    if headers.contains_key("forwarded") {
        let node = if peer.is_ipv6() { format!("for=\"[{peer}]\"") } else { format!("for={peer}") };
        appended(headers, HeaderName::from_static("forwarded"), &node);
    }
    let proto = HeaderName::from_static("x-forwarded-proto");
    let kept = headers.get_all(&proto).iter().next_back().map(HeaderValue::as_bytes);
    let secure = match kept {
        Some(b"https") => true,
        Some(b"http") => false,
        _ => facts.secure,
    };
    headers.insert(proto, HeaderValue::from_static(if secure { "https" } else { "http" }));
    let host = HeaderName::from_static("x-forwarded-host");
    if !headers.contains_key(&host)
        && let Some(own) = headers.get(header::HOST).cloned()
    {
        headers.insert(host, own);
    }
    if let Some(host) = facts.host.and_then(|host| HeaderValue::from_str(host).ok()) {
        headers.insert(header::HOST, host);
    }
    let passes =
        headers.get_all(header::VIA).iter().map(|value| occurrences(value.as_bytes())).sum::<usize>();
    if passes >= PASSES_MAX {
        return Err(Unusable::Loop);
    }
    let version = if head.http11 { "1.1" } else { "1.0" };
    appended(headers, header::VIA, &format!("{version} {VIA_NAME}"));
    let id = HeaderName::from_static("x-request-id");
    let good = |id: &HeaderValue| id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok() && !id.is_empty();
    if !headers.get(&id).is_some_and(good)
        && let Ok(own) = HeaderValue::from_str(facts.request_id)
    {
        headers.insert(id, own);
    }
    if let Some(uid) = facts.uid
        && let Ok(uid) = HeaderValue::from_str(&header_text(uid))
    {
        headers.insert(HeaderName::from_static(UID_HEADER), uid);
    }
    Ok(())
}

fn occurrences(via: &[u8]) -> usize {
    let ours = |hop: &&[u8]| hop.trim_ascii().ends_with(VIA_NAME.as_bytes());
    via.split(|&byte| byte == b',').filter(ours).count()
}

/// One line in place of however many there were, with `item` at its end.
fn appended(headers: &mut HeaderMap, name: HeaderName, item: &str) {
    let mut line = Vec::new();
    for value in headers.get_all(&name) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&line) {
        headers.insert(name, value);
    }
}

/// A uid as a field's value: visible ASCII as it is, everything else and `%` percent-encoded, for fields have no
/// agreed encoding and lose spaces at their ends.
#[must_use]
pub fn header_text(uid: &str) -> String {
    escaped(uid, |byte| byte.is_ascii_graphic() && byte != b'%')
}

/// A uid as a parameter's value.
fn query_text(uid: &str) -> String {
    escaped(uid, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

fn escaped(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn target(head: &RequestHead<'_>, facts: &Facts<'_>) -> Result<Uri, Unusable> {
    let query = match facts.uid_query {
        None => head.query.to_owned(),
        Some(name) => {
            let mut query = without_param(head.query, name);
            if let Some(uid) = facts.uid {
                let separator = if query.is_empty() { "" } else { "&" };
                let _ = write!(query, "{separator}{name}={}", query_text(uid));
            }
            query
        }
    };
    let target = if query.is_empty() { head.path.to_owned() } else { format!("{}?{query}", head.path) };
    let target = PathAndQuery::try_from(target).map_err(|_| Unusable::Target)?;
    Ok(Uri::from(target))
}

/// A query without the parameter `name`, under any spelling that a server could read as it: escaped, as an array
/// (`uid[]`), or behind a `;`.
fn without_param(query: &str, name: &str) -> String {
    let is_it = |pair: &str| {
        let key = pair.split('=').next().unwrap_or(pair);
        percent_decoded(key).is_none_or(|key| {
            let key = key.trim();
            key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with(['[', '.', '\0']))
        })
    };
    let mut kept = String::with_capacity(query.len());
    for pair in query.split_inclusive(['&', ';']) {
        if !is_it(pair.trim_end_matches(['&', ';'])) {
            kept.push_str(pair);
        }
    }
    kept.trim_end_matches(['&', ';']).to_owned()
}

/// How the client learns where an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, whatever the fields say (HEAD, 204, 304).
    None,
    /// By its length.
    Exact(u64),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// How the body of an answer is framed for the client; `length` if the upstream told it.
#[must_use]
pub fn framing(to_head: bool, status: StatusCode, length: Option<u64>, http11: bool) -> Framing {
    match (to_head, status, length) {
        (true, ..) | (_, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => Framing::None,
        (.., Some(length)) => Framing::Exact(length),
        _ if http11 => Framing::Chunked,
        _ => Framing::Close,
    }
}

/// An answer's head in bytes. `more` are field lines of ours; `closes` says that the connection ends after it.
#[must_use]
pub fn for_client(
    status: StatusCode,
    reason: Option<&[u8]>,
    headers: &HeaderMap,
    framing: Framing,
    more: &[(&str, &str)],
    closes: bool,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(
        reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes()),
    );
    bytes.extend_from_slice(b"\r\n");
    end_to_end_of_answer(&mut bytes, headers);
    let mut line = |name: &str, value: &str| {
        for part in [name, ": ", value, "\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
    };
    match framing {
        Framing::Exact(len) => line("content-length", &len.to_string()),
        Framing::Chunked => line("transfer-encoding", "chunked"),
        // To HEAD and in 304 it tells what there would be; 204 has none (RFC 9110 §8.6).
        Framing::None if status != StatusCode::NO_CONTENT => {
            if let Some(len) = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()) {
                line("content-length", len);
            }
        }
        Framing::None | Framing::Close => {}
    }
    more.iter().for_each(|(name, value)| line(name, value));
    if closes {
        line("connection", "close");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The head of an answer that changes the protocol, in bytes: `Upgrade` stays.
#[must_use]
pub fn switching(headers: &HeaderMap, more: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n".to_vec();
    for value in headers.get_all(header::UPGRADE) {
        push_field(&mut bytes, "upgrade", value.as_bytes());
    }
    end_to_end_of_answer(&mut bytes, headers);
    more.iter().for_each(|(name, value)| push_field(&mut bytes, name, value.as_bytes()));
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// An interim answer in bytes (RFC 9110 §15.2).
#[must_use]
pub fn interim(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    end_to_end_of_answer(&mut bytes, headers);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The fields after the last chunk, without those that must not stand there (RFC 9110 §6.5.1).
pub fn push_trailers(bytes: &mut Vec<u8>, trailers: &HeaderMap) {
    const NOT_BEHIND: [&str; 8] = [
        "host",
        "content-encoding",
        "content-type",
        "content-range",
        "trailer",
        "set-cookie",
        "authorization",
        "cache-control",
    ];
    for (name, value) in trailers {
        if !HOP_BY_HOP.contains(&name.as_str()) && !NOT_BEHIND.contains(&name.as_str()) {
            push_field(bytes, name.as_str(), value.as_bytes());
        }
    }
}

fn end_to_end_of_answer(bytes: &mut Vec<u8>, headers: &HeaderMap) {
    let named = named_by_connection(headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes));
    for (name, value) in headers {
        let name = name.as_str();
        if !HOP_BY_HOP.contains(&name) && !named.iter().any(|named| named == name) {
            push_field(bytes, name, value.as_bytes());
        }
    }
    push_field(bytes, "via", format!("1.1 {VIA_NAME}").as_bytes());
}

fn push_field(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
