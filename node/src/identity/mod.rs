//! Who a client is: its product and its user.
//!
//! Belongs here: where a uid may come from, what a uid may look like, which products there are.
//! Stays out: reading the handshake (`transport`), what a user may do (`mesh_proto::product`),
//! reading config files and secrets (`config`).
//! Invariants: nothing a client sends is believed unless it is signed, or came in by a loopback
//! listener with `?uid=` allowed; a token is never logged, printed or put into a refusal.

mod jwt;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_proto::id::ANONYMOUS;
use mesh_proto::shard::{
    Admission, ClientProtocol, NewClient, ProductRules, RecoveryRule, Refusal, Transport,
};

pub use jwt::{JWT_SECRET_BYTES_MIN, JwtPolicy, JwtSettings, WeakSecret};

use crate::transport::{Doorkeeper, Handshake};

/// Refused for want of any credential this node takes.
pub const UID_REQUIRED: &str = "uid_required";
/// Refused because the credential or the uid in it is not acceptable.
pub const UID_INVALID: &str = "uid_invalid";
/// Refused because there is no such product.
pub const PRODUCT_UNKNOWN: &str = "product_unknown";

/// Headers of a handshake that [`Identity`] reads; the client port keeps no others for it.
pub const HEADERS_READ: [&str; 2] = ["authorization", "user-agent"];

/// The products of this node, by name.
#[derive(Clone, Debug)]
pub struct Products {
    by_name: BTreeMap<Arc<str>, Arc<ProductRules>>,
    default: Arc<ProductRules>,
    unknown_is_default: bool,
}

impl Products {
    /// `default` serves clients that name no product; with `unknown_is_default` also those that
    /// name one that is not in `others`, else they are refused.
    #[must_use]
    pub fn new(
        default: ProductRules,
        others: impl IntoIterator<Item = ProductRules>,
        unknown_is_default: bool,
    ) -> Self {
        let default = Arc::new(default);
        let mut by_name: BTreeMap<_, _> =
            others.into_iter().map(|rules| (rules.name.clone(), Arc::new(rules))).collect();
        by_name.insert(default.name.clone(), default.clone());
        Self { by_name, default, unknown_is_default }
    }

    /// Every product.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ProductRules>> {
        self.by_name.values()
    }

    /// The product called `name`, exactly.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<ProductRules>> {
        self.by_name.get(name)
    }

    /// What a client that names no product gets.
    #[must_use]
    pub fn default_product(&self) -> &Arc<ProductRules> {
        &self.default
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    fn chosen(&self, asked: Option<&str>) -> Result<Arc<ProductRules>, Refusal> {
        match asked {
            None | Some("") => Ok(self.default.clone()),
            Some(name) => match self.by_name.get(name) {
                Some(rules) => Ok(rules.clone()),
                None if self.unknown_is_default => Ok(self.default.clone()),
                None => Err(refusal(PRODUCT_UNKNOWN, "no such product here: check ?product= in the URL")),
            },
        }
    }
}

/// Where the uid of a product's clients comes from.
#[derive(Debug)]
pub enum UidSource {
    /// A signed token, as `Authorization: Bearer` or `?token=`. Nothing else speaks for a user.
    Jwt(Box<JwtPolicy>),
    /// `?uid=`, believed as it is: only on loopback listeners.
    Query,
    /// Nobody is asked: each connection is a user of its own.
    Anonymous,
}

/// Decides who each client is.
///
/// Socket.IO's auth payload comes in its CONNECT packet, after the handshake, and is not a source
/// yet: browsers, which cannot set headers on a WebSocket, send `?token=`.
#[derive(Debug)]
pub struct Identity {
    products: Arc<Products>,
    sources: BTreeMap<Arc<str>, UidSource>,
    uid_bytes_max: usize,
}

impl Identity {
    /// `sources` by product; clients of a product without one are refused.
    #[must_use]
    pub fn new(
        products: Arc<Products>,
        sources: impl IntoIterator<Item = (Arc<str>, UidSource)>,
        uid_bytes_max: usize,
    ) -> Self {
        Self { products, sources: sources.into_iter().collect(), uid_bytes_max }
    }

    fn admission(&self, handshake: &Handshake) -> Result<Admission, Refusal> {
        let product = match handshake.query_value("product") {
            None if has_param(&handshake.query, "product") => self.products.chosen(Some("\u{fffd}"))?,
            asked => self.products.chosen(asked.as_deref())?,
        };
        let uid = match self.sources.get(&product.name) {
            Some(UidSource::Jwt(policy)) => uid_of_token(policy, handshake)?,
            Some(UidSource::Query) if handshake.loopback_listener => uid_of_query(handshake)?,
            Some(UidSource::Anonymous) => return Ok(Admission { product, uid: anonymous_uid() }),
            _ => {
                let message = "this listener has no identity configured: ask its operator to set one";
                return Err(refusal(UID_REQUIRED, message));
            }
        };
        check_uid(&uid, self.uid_bytes_max)?;
        Ok(Admission { product, uid: uid.into() })
    }
}

/// A uid that nobody else has and nobody can ask for.
fn anonymous_uid() -> Arc<str> {
    let random: [u8; 16] = rand::random();
    format!("{ANONYMOUS}{}", URL_SAFE_NO_PAD.encode(random)).into()
}

fn uid_of_token(policy: &JwtPolicy, handshake: &Handshake) -> Result<String, Refusal> {
    let bearer = handshake.header("authorization").and_then(bearer_token);
    let param = handshake.query_value("token");
    match bearer.or(param.as_deref()) {
        None | Some("") => {
            Err(refusal(UID_REQUIRED, "send a JWT as 'Authorization: Bearer' or as ?token= in the URL"))
        }
        Some(token) => policy.uid(token).map_err(|why| refusal(UID_INVALID, why.advice())),
    }
}

fn uid_of_query(handshake: &Handshake) -> Result<String, Refusal> {
    match handshake.query_value("uid") {
        Some(uid) => Ok(uid.into_owned()),
        None if has_param(&handshake.query, "uid") => {
            Err(refusal(UID_INVALID, "?uid= is not UTF-8: percent-encode it"))
        }
        None => Err(refusal(UID_REQUIRED, "add ?uid=NAME to the URL")),
    }
}

impl Doorkeeper for Identity {
    fn admit(&self, handshake: &Handshake) -> NewClient {
        let admission = self.admission(handshake);
        let offsets = admission.as_ref().is_ok_and(|a| carries_offsets(a.product.recovery, handshake));
        let transport = Transport::WebSocket;
        NewClient { protocol: handshake.protocol, admission, offsets, transport }
    }
}

/// Whether this client's events are to carry how far it has got.
fn carries_offsets(rule: RecoveryRule, handshake: &Handshake) -> bool {
    let asked = handshake.query_value("recovery");
    let allowed = match (rule, asked.as_deref()) {
        (RecoveryRule::Off, _) | (_, Some("0")) => false,
        (RecoveryRule::On, _) | (RecoveryRule::Browser, Some("1")) => true,
        // Every browser calls itself that, in every handshake. An `Origin` says nothing: Python's WebSocket client
        // sends one, and the handlers behind it take no argument more.
        (RecoveryRule::Browser, _) => {
            handshake.header("user-agent").is_some_and(|agent| agent.starts_with("Mozilla/"))
        }
    };
    allowed && handshake.protocol == ClientProtocol::SocketIo
}

/// Whether a uid may name a user: 1 to `bytes_max` bytes, no control characters.
///
/// # Errors
/// `uid_required` for an empty one, `uid_invalid` else.
pub fn check_uid(uid: &str, bytes_max: usize) -> Result<(), Refusal> {
    if uid.is_empty() {
        return Err(refusal(UID_REQUIRED, "the uid is empty: send one"));
    }
    if uid.len() > bytes_max {
        return Err(Refusal {
            code: UID_INVALID.into(),
            message: format!("the uid is over {bytes_max} bytes: send a shorter one"),
        });
    }
    if uid.starts_with(ANONYMOUS) {
        return Err(refusal(UID_INVALID, "uids that begin with ~ are for anonymous clients"));
    }
    if uid.chars().any(char::is_control) {
        return Err(refusal(UID_INVALID, "the uid has control characters: send one without"));
    }
    Ok(())
}

/// The token of an `Authorization: Bearer …` value; the scheme's case does not matter (RFC 9110 §11.1).
pub(crate) fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn has_param(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some(name))
}

fn refusal(code: &'static str, message: &str) -> Refusal {
    Refusal { code: code.into(), message: message.to_owned() }
}

#[cfg(test)]
mod tests;
