//! One product's settings: how it is chosen, how its users are found, what handles their requests.
//!
//! Belongs here: `[products.NAME]`, and what its words mean to the rest of the node.
//! Stays out: rules between them (`check`), keys in files (`secrets`), what the settings do (`identity`,
//! `mesh_proto::product`).

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::setting::Kind;
use super::table::section;
use crate::identity::{HookSettings, HookUrl, TokenPlace};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

section! {
    /// One product: an application on the mesh. A request belongs to the product that it names by
    /// `?product=NAME`, else to that of its host name (`hosts`), else to that of its path (`paths`), else to
    /// `client.default_product`. Where no product is configured there is one named `rooms`, with the
    /// defaults below.
    pub struct ProductConfig {
        /// What handles its requests. Default `rooms`: built in, no code: rooms for Socket.IO and plain
        /// WebSocket clients. `proxy`: your own HTTP servers (`upstreams`), behind this port.
        kind: String = "rooms".into(), Kind::ProductKind;
        /// Host names that choose this product: `app.example.com`, or `*.example.com` for all names that
        /// end so. Compared without regard to case and port. Default none.
        hosts: Vec<String> = Vec::new(), Kind::Hosts;
        /// Beginnings of paths that choose this product: `/chat` is `/chat` and everything in `/chat/`.
        /// The longest wins; compared byte by byte as they come. With `kind = "rooms"` the beginning is
        /// taken off: clients connect at `/chat/socket.io/` and `/chat/ws`. Default none.
        paths: Vec<String> = Vec::new(), Kind::Paths;
        /// Who may join a room: `anyone` with a uid (default), `own-tag`: only rooms named
        /// `{uid}…` after the client's own uid, `nobody`: only a backend puts clients into rooms.
        join: String = "anyone".into(), Kind::Choice(&["anyone", "own-tag", "nobody"]);
        /// Who may publish into a room: its `members` (default), `anyone` of the product, `nobody`
        /// but backends.
        publish: String = "members".into(), Kind::Choice(&["members", "anyone", "nobody"]);
        /// What an acknowledged event survives. `backup` (default): any single crash, for a second
        /// node has it before anybody sees it. `none`: it is seen at once, and lost with its owner.
        /// The same on all nodes.
        durability: String = "backup".into(), Kind::Choice(&["backup", "none"]);
        /// Which Socket.IO clients may come back to their session after their node died: their events
        /// end with one string argument more, which the stock JavaScript client hands back by itself.
        /// `browser` (default): those with a browser's `User-Agent`, or `?recovery=1`.
        /// `on`: all but those with `?recovery=0`, `off`: none.
        recovery: String = "browser".into(), Kind::Choice(&["on", "browser", "off"]);
        /// Its Socket.IO namespaces. Default `["/"]`, the main one. Each connection to one is a session
        /// of its own, with rooms of its own; a client that asks for another gets a connect error.
        namespaces: Vec<String> = vec!["/".into()], Kind::Namespaces;
        /// Where a client's uid comes from: one source, or several in order. The first that finds something
        /// decides; what it finds and cannot believe is refused, whatever stands behind it. `jwt`: a
        /// signed token (see `jwt_from`). `query:NAME` (`query` is `query:uid`), `cookie:NAME`: what the client
        /// says there, believed as it is: only on loopback, or with `insecure_identity`. `header:NAME`: what a
        /// proxy of `client.trusted_proxies` says; from others it is dropped and counted. `auth:NAME`: what a
        /// Socket.IO client says in this field of its `auth`, believed as it is. `hook`: a web application is
        /// asked (see `hook_url`); of whom it knows nothing the next source is asked. `anonymous`: whoever
        /// is left is a user of its own, with a random uid (see `anonymous_cookie`). Default `auto`: `jwt`
        /// where there is a key for tokens, else `hook` where there is one, else `query` for rooms and nothing for a
        /// proxy.
        identity: Vec<String> = vec!["auto".into()], Kind::UidSources;
        /// Whether a request without a uid is refused: by `uid_required`, over HTTP with status 430. Default
        /// `auto`: `required` where there is an identity. `optional`, for a proxy only: it is passed on without.
        uid: String = "auto".into(), Kind::Choice(&["auto", "required", "optional"]);
        /// Believe what clients say of themselves (`query:`, `cookie:`, `auth:`) although `client.listen` can be
        /// reached from other hosts: anyone can be anyone then. Default false.
        insecure_identity: bool = false, Kind::Bool;
        /// The cookie by which an `anonymous` client is the same user again. It holds a random secret, of
        /// which the uid is a hash. Default `mesh_uid`; `""`: none is set or read, and each connection is a
        /// user of its own.
        anonymous_cookie: String = "mesh_uid".into(), Kind::TokenOrNone;
        /// Where a token may stand: `header` is `Authorization: Bearer TOKEN`; `query:NAME`, `cookie:NAME`,
        /// and for Socket.IO clients `auth:NAME`, a field of their `auth`. The first place that has one decides;
        /// `auth` comes last, for it comes with the CONNECT packet. Default `header,query:token,auth:token`.
        /// Browsers cannot set headers on a WebSocket; what stands in a URL may stand in somebody's log.
        jwt_from: Vec<String> =
            ["header", "query:token", "auth:token"].map(str::to_owned).into(), Kind::TokenPlaces;
        /// File with a shared key that signs the tokens (HS256): at least 32 bytes, readable by its owner
        /// only. Default `""`.
        jwt_key_file: Option<PathBuf> = None, Kind::Path;
        /// File with a public key in PEM (`BEGIN PUBLIC KEY`): tokens are signed by RS256 (RSA of 2,048 bits or
        /// more), ES256 (P-256) or EdDSA (Ed25519), as the key is. Default `""`.
        jwt_public_key_file: Option<PathBuf> = None, Kind::Path;
        /// File with a JWK set (RFC 7517), as identity providers publish it: the key of a token is the one of its
        /// `kid`. Keys for other algorithms are passed over. Default `""`.
        jwt_jwks_file: Option<PathBuf> = None, Kind::Path;
        /// The claim that holds the uid. Default `sub`, the standard one.
        jwt_claim: String = "sub".into(), Kind::Name;
        /// Tokens must name this issuer (`iss`). Default `""`: any.
        jwt_issuer: String = String::new(), Kind::Text;
        /// Tokens must name this audience (`aud`). Default `""`: tokens that name any are refused
        /// (RFC 7519 §4.1.3). Set it where one key signs for several products: a token for one is
        /// then no token for another.
        jwt_audience: String = String::new(), Kind::Text;
        /// A web application that is asked who sent a request, as `http://HOST:PORT/PATH`: docs/identity.md.
        /// Default `""`: none.
        hook_url: String = String::new(), Kind::Text;
        /// Headers that it is told. What is not told cannot matter: it is the key of the cache. Default
        /// `authorization,cookie`.
        hook_headers: Vec<String> = ["authorization", "cookie"].map(str::to_owned).into(), Kind::Tokens;
        /// Query parameters that it is told. Default `token`.
        hook_query: Vec<String> = vec!["token".into()], Kind::Tokens;
        /// It must answer within this time, else the request is refused with 503. Default 2s.
        hook_timeout: Duration = 2 * SECOND, Kind::Time(10 * MILLISECOND..=30 * SECOND);
        /// Its answer counts so long for the same question. Default 5s; 0s asks each time.
        hook_cache: Duration = 5 * SECOND, Kind::Time(Duration::ZERO..=HOUR);
        /// After so many failures in a row it is left alone, and requests are refused with 503 at once.
        /// Default 5.
        hook_break_after: u32 = 5, Kind::Count(1..=1_000);
        /// For as long; then one request tries. Default 5s.
        hook_break_for: Duration = 5 * SECOND, Kind::Time(100 * MILLISECOND..=HOUR);
        /// Proxy: your servers, as `HOST:PORT`; names are looked up again and again. Or `local:PORT` alone:
        /// the server beside each node, on this port of its loopback address. Default none.
        upstreams: Vec<String> = Vec::new(), Kind::Peers;
        /// Proxy: what keeps requests together at one upstream. `uid`: all of one user. `sid`: all of one
        /// Engine.IO session, read from the first answer. Default `auto`: `uid` where there is an
        /// identity, else `sid`.
        balance: String = "auto".into(), Kind::Choice(&["auto", "uid", "sid"]);
        /// Proxy: users with an upstream of their own, as `UID=HOST:PORT` (`UID=NODE` with `local:PORT`).
        /// Default none.
        pins: Vec<String> = Vec::new(), Kind::List;
        /// Proxy: the `Host` that upstreams are sent. Default `keep`: the client's. `upstream`: their own,
        /// `HOST:PORT`.
        host: String = "keep".into(), Kind::Choice(&["keep", "upstream"]);
        /// Proxy: a cookie that keeps a client without a uid at its upstream, set by meshd. Default `""`: none.
        sticky_cookie: String = String::new(), Kind::TokenOrNone;
        /// Proxy: the query parameter by which upstreams are told the uid, beside the header `X-Mesh-Uid`.
        /// One of the client's own is replaced. Default `""`: none.
        uid_query: String = String::new(), Kind::TokenOrNone;
        /// Proxy: an answer must begin within this time. Default 60s, answered 504 then.
        upstream_timeout: Duration = 60 * SECOND, Kind::Time(100 * MILLISECOND..=HOUR);
        /// Proxy: an upstream must accept a connection within this time. Default 5s, then another is tried
        /// once where the request allows it, else 502.
        connect_timeout: Duration = 5 * SECOND, Kind::Time(10 * MILLISECOND..=60 * SECOND);
        /// Proxy: connections to one upstream that are kept without a request. Default 64.
        idle_max: usize = 64, Kind::Count(0..=10_000);
        /// Proxy: the method of the health check.
        check_method: String = "GET".into(), Kind::Choice(&["GET", "HEAD", "OPTIONS"]);
        /// Proxy: the path of the health check, as `/health`. Default `""`: no request is made; an upstream
        /// is up when it accepts a connection.
        check_path: String = String::new(), Kind::Text;
        /// Proxy: the statuses that are good answers to a health check, as `200` or `200-399`.
        check_status: Vec<String> = vec!["200-399".into()], Kind::List;
        /// Proxy: an upstream is checked this often. Default 5s. At least `check_timeout`.
        check_interval: Duration = 5 * SECOND, Kind::Time(100 * MILLISECOND..=HOUR);
        /// Proxy: a check without an answer within this time has failed. Default 2s.
        check_timeout: Duration = 2 * SECOND, Kind::Time(10 * MILLISECOND..=60 * SECOND);
        /// Proxy: so many good checks in a row bring an upstream back. Default 2.
        check_rise: u32 = 2, Kind::Count(1..=100);
        /// Proxy: so many failures in a row, of checks or of requests, take an upstream out. Default 3.
        check_fall: u32 = 3, Kind::Count(1..=100);
        /// Proxy: how long a user or a session stays with its upstream after its last request or connection.
        /// Default 30s: longer than a client takes to come back.
        keep: Duration = 30 * SECOND, Kind::Time(SECOND..=24 * HOUR);
        /// Proxy: the largest body of a request. Default 0B: any.
        body_bytes_max: u64 = 0, Kind::Size(0..=1 << 50);
        /// Proxy: a response header with the name of the upstream that answered, for diagnosis. Default `""`:
        /// none.
        owner_header: String = String::new(), Kind::TokenOrNone;
        /// Proxy: a cookie with the same. Default `""`: none.
        owner_cookie: String = String::new(), Kind::TokenOrNone;
    }
}

/// The settings that only a product of kind `rooms` has.
pub(super) const OF_ROOMS: [&str; 5] = ["join", "publish", "durability", "recovery", "namespaces"];

/// The settings that only a product of kind `proxy` has.
pub(super) const OF_PROXIES: [&str; 21] = [
    "upstreams",
    "balance",
    "pins",
    "host",
    "sticky_cookie",
    "uid_query",
    "upstream_timeout",
    "connect_timeout",
    "idle_max",
    "check_method",
    "check_path",
    "check_status",
    "check_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
    "keep",
    "body_bytes_max",
    "owner_header",
    "owner_cookie",
    "uid",
];

/// One place where a uid may be found: an item of `identity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UidSource {
    /// A signed token.
    Jwt,
    /// What the client says in this query parameter.
    Query(String),
    /// What the client says in this cookie.
    Cookie(String),
    /// What a trusted proxy says in this header.
    Header(String),
    /// What a Socket.IO client says in this field of its `auth`.
    Auth(String),
    /// What a web application says.
    Hook,
    /// A user of its own.
    Anonymous,
}

impl UidSource {
    /// Reads an item of `identity`; `None` for `auto` and for what is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (word, name) = match text.split_once(':') {
            Some((word, name)) if is_token(name) => (word, Some(name.to_owned())),
            Some(_) => return None,
            None => (text, None),
        };
        match (word, name) {
            ("jwt", None) => Some(Self::Jwt),
            ("query", name) => Some(Self::Query(name.unwrap_or_else(|| "uid".into()))),
            ("cookie", Some(name)) => Some(Self::Cookie(name)),
            ("header", Some(name)) => Some(Self::Header(name)),
            ("auth", Some(name)) => Some(Self::Auth(name)),
            ("hook", None) => Some(Self::Hook),
            ("anonymous", None) => Some(Self::Anonymous),
            _ => None,
        }
    }

    /// Whether it believes the client's own word.
    #[must_use]
    pub fn is_hearsay(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Cookie(_) | Self::Auth(_))
    }
}

/// Which upstreams a proxy has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams<'c> {
    /// These, as `HOST:PORT`; perhaps none.
    Listed(&'c [String]),
    /// The server beside each node, at this port of its loopback address.
    Local(u16),
}

impl ProductConfig {
    /// Whether it passes requests on to servers.
    #[must_use]
    pub fn is_proxy(&self) -> bool {
        self.kind == "proxy"
    }

    /// Where uids come from, in order; what `auto` comes to.
    #[must_use]
    pub fn uid_sources(&self) -> Vec<UidSource> {
        if !self.identity.iter().any(|item| item == "auto") {
            return self.identity.iter().filter_map(|item| UidSource::parse(item)).collect();
        }
        if self.has_jwt_key() {
            vec![UidSource::Jwt]
        } else if !self.hook_url.is_empty() {
            vec![UidSource::Hook]
        } else if self.is_proxy() {
            Vec::new()
        } else {
            vec![UidSource::Query("uid".into())]
        }
    }

    /// Whether there is a key for tokens.
    #[must_use]
    pub fn has_jwt_key(&self) -> bool {
        [&self.jwt_key_file, &self.jwt_public_key_file, &self.jwt_jwks_file].into_iter().any(Option::is_some)
    }

    /// The web application that is asked who sent a request, if there is one.
    #[must_use]
    pub fn hook(&self) -> Option<HookSettings> {
        Some(HookSettings {
            url: HookUrl::parse(&self.hook_url)?,
            headers: self.hook_headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
            query: self.hook_query.clone(),
            timeout: self.hook_timeout,
            cache: self.hook_cache,
            break_after: self.hook_break_after,
            break_for: self.hook_break_for,
        })
    }

    /// Where a token may stand, in order.
    #[must_use]
    pub fn token_places(&self) -> Vec<TokenPlace> {
        self.jwt_from.iter().filter_map(|item| token_place(item)).collect()
    }

    /// Whether who has no uid is refused.
    #[must_use]
    pub fn requires_uid(&self) -> bool {
        match self.uid.as_str() {
            "optional" => false,
            "required" => true,
            _ => !self.uid_sources().is_empty(),
        }
    }

    /// Whether a proxy keeps the requests of one uid together (else those of one Engine.IO session).
    #[must_use]
    pub fn balances_by_uid(&self) -> bool {
        match self.balance.as_str() {
            "uid" => true,
            "sid" => false,
            _ => !self.uid_sources().is_empty(),
        }
    }

    /// Its upstreams.
    #[must_use]
    pub fn upstreams(&self) -> Upstreams<'_> {
        match self.upstreams.as_slice() {
            [only] => match only.strip_prefix("local:").map(str::parse) {
                Some(Ok(port)) => Upstreams::Local(port),
                _ => Upstreams::Listed(&self.upstreams),
            },
            listed => Upstreams::Listed(listed),
        }
    }

    /// Which upstream each pinned uid has. What is no pin is left out: the settings' check has told.
    pub fn pinned(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pins.iter().filter_map(|pin| pin.rsplit_once('='))
    }

    /// The statuses of a good answer to a health check.
    #[must_use]
    pub fn good_statuses(&self) -> Vec<RangeInclusive<u16>> {
        self.check_status.iter().filter_map(|text| statuses(text)).collect()
    }

    /// Its rules, as the machines know them.
    #[must_use]
    pub fn rules(&self, name: &str) -> mesh_proto::shard::ProductRules {
        use mesh_proto::shard::{JoinRule, Namespaces, ProductRules, PublishRule, RecoveryRule};
        ProductRules {
            name: name.into(),
            publish: match self.publish.as_str() {
                "anyone" => PublishRule::Anyone,
                "nobody" => PublishRule::Nobody,
                _ => PublishRule::Members,
            },
            join: match self.join.as_str() {
                "own-tag" => JoinRule::OwnTag,
                "nobody" => JoinRule::Nobody,
                _ => JoinRule::Anyone,
            },
            durable: self.durability != "none",
            recovery: match self.recovery.as_str() {
                "on" => RecoveryRule::On,
                "off" => RecoveryRule::Off,
                _ => RecoveryRule::Browser,
            },
            namespaces: Namespaces::new(&self.namespaces),
            is_app: false,
        }
    }
}

/// An item of `jwt_from`.
pub(super) fn token_place(text: &str) -> Option<TokenPlace> {
    match text.split_once(':') {
        None if text == "header" => Some(TokenPlace::Bearer),
        Some(("query", name)) if is_token(name) => Some(TokenPlace::Query(name.into())),
        Some(("cookie", name)) if is_token(name) => Some(TokenPlace::Cookie(name.into())),
        Some(("auth", name)) if is_token(name) => Some(TokenPlace::Auth(name.into())),
        _ => None,
    }
}

/// `200` or `200-399`.
pub(super) fn statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let range = status(first)?..=status(last)?;
    (!range.is_empty()).then_some(range)
}

/// RFC 9110 §5.6.2: what a header or a cookie may be called.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A host name that chooses a product: a name, or `*.` and one.
pub(super) fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

/// The beginning of a path that chooses a product: whole segments, no slash at the end but `/` itself.
pub(super) fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\');
    text == "/"
        || (text.starts_with('/')
            && text.len() <= 256
            && text.bytes().all(plain)
            && text[1..].split('/').all(|segment| !matches!(segment, "" | "." | "..")))
}
