//! What a request says of its user, source by source.
//!
//! Belongs here: finding tokens, cookies, headers and parameters in a request head; anonymous users.
//! Stays out: whether a token is believed (`jwt`), what a uid may look like (`identity`).
//! Invariants: what stands twice in one place is refused, because somebody behind us might read the
//! other one; a header speaks only for a trusted proxy.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use mesh_proto::id::ANONYMOUS;
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value};

use super::{Denied, Hook, JwtPolicy, RequestFacts, UID_INVALID};
use crate::transport::head::RequestHead;
use crate::transport::{percent_decoded, query_values};

/// Random bytes in the cookie of an anonymous user, and bytes of the hash that is its uid.
const ANONYMOUS_BYTES: usize = 16;

/// How long a browser keeps that cookie, in seconds: a year.
const ANONYMOUS_COOKIE_SECS: u32 = 365 * 24 * 3_600;

/// How the clients of a product say who they are.
#[derive(Debug, Default)]
pub struct UidPolicy {
    /// In order: the first that finds something decides.
    pub sources: Vec<UidSource>,
    /// Whether a request without a uid is refused.
    pub required: bool,
    /// Believe what clients say of themselves: no other host reaches the client port, or the operator wants
    /// it so.
    pub believes_clients: bool,
}

/// Where the uid of a product's clients comes from.
#[derive(Debug)]
pub enum UidSource {
    /// A signed token, in the first of these places that has one.
    Jwt(Arc<JwtPolicy>, Vec<TokenPlace>),
    /// This query parameter, believed as it is.
    Query(String),
    /// This cookie, believed as it is.
    Cookie(String),
    /// This header of a trusted proxy.
    Header(String),
    /// This field of what a Socket.IO client sends when it connects to a namespace, believed as it is.
    Auth(String),
    /// A web application is asked.
    Hook(Arc<Hook>),
    /// A user of its own; the cookie by which it is the same again, if any.
    Anonymous(Option<String>),
}

/// Where a token may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// `Authorization: Bearer TOKEN`.
    Bearer,
    /// This query parameter.
    Query(String),
    /// This cookie.
    Cookie(String),
    /// This field of what a Socket.IO client sends when it connects to a namespace.
    Auth(String),
}

/// What a request's head has, up to the first source that decides.
#[derive(Debug)]
pub(super) struct Claims {
    /// Asked first; what it does not know is for `then`.
    pub(super) hook: Option<(Arc<Hook>, Bytes)>,
    pub(super) then: Result<Claim, Denied>,
    /// Whether a source that reads CONNECT packets stands before the hook, or behind it (where there is
    /// no hook: before what `then` was found in).
    pub(super) auth_before_hook: bool,
    pub(super) auth_after_hook: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Claim {
    /// Nothing, in any source.
    Nothing,
    /// A uid, still to be checked for its form.
    Uid(String),
    /// A token, still to be checked.
    Token(Arc<JwtPolicy>, String),
    /// Nobody in particular.
    Anonymous { uid: Arc<str>, set_cookie: Option<String> },
}

impl UidPolicy {
    /// What the head of a request has.
    pub(super) fn claims(&self, facts: &RequestFacts<'_>) -> Claims {
        let (mut hook, mut before, mut after) = (None, false, false);
        let mut then = Ok(Claim::Nothing);
        for source in &self.sources {
            let reads_auth = source.reads_auth();
            match source {
                UidSource::Hook(asked) if hook.is_none() => {
                    before = std::mem::take(&mut after);
                    hook = Some((asked.clone(), asked.question(facts)));
                    continue;
                }
                _ => {}
            }
            match self.claim(source, facts) {
                Ok(None) => after |= reads_auth,
                Ok(Some(found)) => {
                    then = Ok(found);
                    break;
                }
                Err(denied) => {
                    then = Err(denied);
                    break;
                }
            }
        }
        Claims { hook, then, auth_before_hook: before, auth_after_hook: after }
    }

    fn claim(&self, source: &UidSource, facts: &RequestFacts<'_>) -> Result<Option<Claim>, Denied> {
        let head = facts.head;
        Ok(match source {
            UidSource::Jwt(policy, places) => {
                token(head, places)?.map(|token| Claim::Token(policy.clone(), token.into_owned()))
            }
            UidSource::Query(name) if self.believes_clients => {
                query(head, name)?.map(|uid| Claim::Uid(uid.into_owned()))
            }
            UidSource::Cookie(name) if self.believes_clients => {
                cookie(head, name)?.map(|uid| Claim::Uid(uid.into_owned()))
            }
            UidSource::Header(name) if facts.is_from_proxy => {
                header(head, name)?.map(|uid| Claim::Uid(uid.to_owned()))
            }
            UidSource::Anonymous(cookie) => Some(anonymous(facts, cookie.as_deref())?),
            UidSource::Query(_)
            | UidSource::Cookie(_)
            | UidSource::Header(_)
            | UidSource::Auth(_)
            | UidSource::Hook(_) => None,
        })
    }

    /// What a CONNECT packet's payload has, in the first source that reads such.
    pub(super) fn claim_of_auth(&self, auth: &[u8]) -> Result<Claim, Denied> {
        let fields = || serde_json::from_slice::<Map<String, Value>>(auth).ok();
        let Some(fields) = fields().filter(|_| self.sources.iter().any(UidSource::reads_auth)) else {
            return Ok(Claim::Nothing);
        };
        for source in &self.sources {
            match source {
                UidSource::Auth(name) if self.believes_clients => match fields.get(name) {
                    Some(Value::String(uid)) => return Ok(Claim::Uid(uid.clone())),
                    Some(Value::Number(uid)) if !uid.is_f64() => return Ok(Claim::Uid(uid.to_string())),
                    None | Some(Value::Null) => {}
                    Some(_) => return Err(invalid(&format!("auth.{name} is no text"))),
                },
                UidSource::Jwt(policy, places) => {
                    for place in places {
                        let TokenPlace::Auth(name) = place else { continue };
                        match fields.get(name) {
                            Some(Value::String(token)) if !token.is_empty() => {
                                return Ok(Claim::Token(policy.clone(), token.clone()));
                            }
                            None | Some(Value::Null | Value::String(_)) => {}
                            Some(_) => return Err(invalid(&format!("auth.{name} is no text"))),
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Claim::Nothing)
    }

    /// Its hooks.
    pub(super) fn hooks(&self) -> impl Iterator<Item = &Hook> + Clone {
        self.sources.iter().filter_map(|source| match source {
            UidSource::Hook(hook) => Some(&**hook),
            _ => None,
        })
    }

    /// What a client without a uid can do.
    pub(super) fn advice(&self) -> String {
        let mut ways = Vec::new();
        for source in &self.sources {
            match source {
                UidSource::Jwt(_, places) => ways.extend(places.iter().map(|place| match place {
                    TokenPlace::Bearer => "a JWT as 'Authorization: Bearer'".to_owned(),
                    TokenPlace::Query(name) => format!("a JWT as ?{name}= in the URL"),
                    TokenPlace::Cookie(name) => format!("a JWT in the cookie {name}"),
                    TokenPlace::Auth(name) => format!("a JWT as auth.{name} of Socket.IO"),
                })),
                UidSource::Query(name) => ways.push(format!("?{name}=NAME in the URL")),
                UidSource::Cookie(name) => ways.push(format!("the cookie {name}")),
                UidSource::Header(name) => ways.push(format!("the header {name}, by a proxy trusted here")),
                UidSource::Auth(name) => ways.push(format!("auth.{name} of Socket.IO")),
                UidSource::Hook(_) => ways.push("what your application knows you by".to_owned()),
                UidSource::Anonymous(_) => {}
            }
        }
        match ways.is_empty() {
            true => "this listener has no identity configured: ask its operator to set one".into(),
            false => format!("send {}", ways.join(", or ")),
        }
    }
}

impl UidSource {
    /// Whether it reads what Socket.IO clients send when they connect to a namespace.
    fn reads_auth(&self) -> bool {
        match self {
            Self::Auth(_) => true,
            Self::Jwt(_, places) => places.iter().any(|place| matches!(place, TokenPlace::Auth(_))),
            _ => false,
        }
    }
}

fn invalid(what: &str) -> Denied {
    Denied::uid(UID_INVALID, what)
}

/// A parameter of the query, once; an empty one is there too.
fn query<'h>(head: &RequestHead<'h>, name: &str) -> Result<Option<Cow<'h, str>>, Denied> {
    let mut values = query_values(head.query, name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let decoded = percent_decoded(value);
            decoded.map(Some).ok_or_else(|| invalid(&format!("?{name}= is not UTF-8: percent-encode it")))
        }
        (Some(_), Some(_)) => Err(invalid(&format!("?{name}= is there twice: send it once"))),
    }
}

/// A cookie, percent-decoded, once (RFC 6265 §5.4).
fn cookie<'h>(head: &'h RequestHead<'_>, name: &str) -> Result<Option<Cow<'h, str>>, Denied> {
    let mut found = None;
    for line in head.values("cookie") {
        for pair in line.split(|&b| b == b';') {
            let pair = pair.trim_ascii();
            let Some(value) = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
            else {
                continue;
            };
            let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            if found.replace(value).is_some() {
                return Err(invalid(&format!("the cookie {name} is there twice: send it once")));
            }
        }
    }
    let Some(value) = found else { return Ok(None) };
    let decoded = std::str::from_utf8(value).ok().and_then(cookie_decoded);
    decoded.map(Some).ok_or_else(|| invalid(&format!("the cookie {name} is not UTF-8: percent-encode it")))
}

/// `+` is itself in a cookie.
fn cookie_decoded(text: &str) -> Option<Cow<'_, str>> {
    match text.contains('+') {
        false => percent_decoded(text),
        true => percent_decoded(&text.replace('+', "%2B")).map(|decoded| Cow::Owned(decoded.into_owned())),
    }
}

/// A header, once.
fn header<'h>(head: &'h RequestHead<'_>, name: &str) -> Result<Option<&'h str>, Denied> {
    let mut values = head.values(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = std::str::from_utf8(value);
            text.map(Some).map_err(|_| invalid(&format!("the header {name} is not UTF-8")))
        }
        (Some(_), Some(_)) => Err(invalid(&format!("the header {name} is there twice: send it once"))),
    }
}

/// The token of the first place that has one.
fn token<'h>(head: &'h RequestHead<'_>, places: &[TokenPlace]) -> Result<Option<Cow<'h, str>>, Denied> {
    for place in places {
        let found = match place {
            TokenPlace::Bearer => header(head, "authorization")?.and_then(bearer_token).map(Cow::Borrowed),
            TokenPlace::Query(name) => query(head, name)?,
            TokenPlace::Cookie(name) => cookie(head, name)?,
            TokenPlace::Auth(_) => None,
        };
        if let Some(token) = found.filter(|token| !token.is_empty()) {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

/// The token of an `Authorization: Bearer …` value; the scheme's case does not matter (RFC 9110 §11.1).
pub(crate) fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user of the cookie's secret, or a new one. A cookie that we did not make is as none.
fn anonymous(facts: &RequestFacts<'_>, name: Option<&str>) -> Result<Claim, Denied> {
    let known = match name {
        Some(name) => cookie(facts.head, name)?,
        None => None,
    };
    let known = known.and_then(|text| URL_SAFE_NO_PAD.decode(text.as_bytes()).ok());
    if let Some(secret) = known.and_then(|bytes| <[u8; ANONYMOUS_BYTES]>::try_from(bytes).ok()) {
        return Ok(Claim::Anonymous { uid: anonymous_uid(&secret), set_cookie: None });
    }
    let secret: [u8; ANONYMOUS_BYTES] = rand::random();
    // `Lax` keeps it from requests and WebSockets that pages of other sites open.
    let set_cookie = name.map(|name| {
        let value = URL_SAFE_NO_PAD.encode(secret);
        let secure = if facts.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={ANONYMOUS_COOKIE_SECS}; HttpOnly; SameSite=Lax{secure}")
    });
    Ok(Claim::Anonymous { uid: anonymous_uid(&secret), set_cookie })
}

/// A uid that others may see: the secret does not follow from it.
fn anonymous_uid(secret: &[u8]) -> Arc<str> {
    let mut hash = Context::new(&SHA256);
    hash.update(b"meshd anonymous user");
    hash.update(secret);
    let hash = hash.finish();
    format!("{ANONYMOUS}{}", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..ANONYMOUS_BYTES])).into()
}
