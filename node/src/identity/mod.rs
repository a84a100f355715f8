//! Who a client is: its product and its user.
//!
//! Belongs here: which products there are, where a uid may come from, what a uid may look like.
//! Stays out: reading request heads (`transport`), what a user may do (`mesh_proto::product`),
//! reading config files and secrets (`config`).
//! Invariants: nothing a client says of itself is believed unless it is signed, or the operator has said
//! so; the first source that finds something decides; a token is never logged, printed or put into a refusal.
//!
//! | module | answers |
//! |---|---|
//! | [`products`] | which product a request is for |
//! | [`sources`] | what a request says of its user |
//! | [`desk`] | what Socket.IO clients say of themselves when they connect |
//! | [`hook`] | what a web application says of it |
//! | [`jwt`] | whether a token is believed |
//! | [`keys`] | under which key |
//! | [`uid`] | what a uid may look like |

mod desk;
mod hook;
mod jwt;
mod keys;
mod products;
mod sources;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod uid;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::shard::{Admission, ClientProtocol, NewClient, RecoveryRule, Refusal, Transport, Uid};

pub(crate) use desk::Identities;
pub use hook::{Hook, HookSettings, HookUrl};
pub use jwt::{JwtPolicy, JwtSettings};
pub use keys::{JWT_SECRET_BYTES_MIN, NoKey, TokenKeys};
pub use products::{Chosen, Product, ProductKind, Products, ProductsWatch};
pub(crate) use sources::bearer_token;
pub use sources::{TokenPlace, UidPolicy, UidSource};
pub use uid::{check_uid, normal_uid};

use crate::metrics::Exposition;
use crate::transport::head::RequestHead;
use crate::transport::{Response, percent_decoded, query_values};
use sources::Claim;

/// Refused for want of any credential this node takes.
pub const UID_REQUIRED: &str = "uid_required";
/// Refused because the credential or the uid in it is not acceptable.
pub const UID_INVALID: &str = "uid_invalid";
/// Refused because there is no such product.
pub const PRODUCT_UNKNOWN: &str = "product_unknown";

/// The status of a refusal for want of a uid. No standard has it, so that no client, cache or balancer
/// takes it for something else.
pub const UID_REQUIRED_STATUS: u16 = 430;

/// What is known of a request beside its head.
#[derive(Clone, Copy)]
pub struct RequestFacts<'r> {
    /// Its head.
    pub head: &'r RequestHead<'r>,
    /// The client: the other end of the connection, or whom a trusted proxy names (then port 0).
    pub remote: SocketAddr,
    /// Whether the other end of the connection is a trusted proxy.
    pub is_from_proxy: bool,
    /// Whether it came by TLS, to this node or to a trusted proxy.
    pub is_secure: bool,
}

/// Who sent a request, as far as its product asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identified {
    /// Its user; `None` where the product does without.
    pub uid: Option<Arc<str>>,
    /// A `Set-Cookie` that goes with the answer.
    pub set_cookie: Option<String>,
}

/// Why a request goes no further. Nothing of what it carried is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Of the HTTP answer. 503 and 429 are for the moment, others stand.
    pub status: u16,
    /// Stable word: `uid_required`, `uid_invalid`, `product_unknown`, …
    pub code: Cow<'static, str>,
    /// One sentence saying what to do.
    pub message: String,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

impl Denied {
    /// For want of a uid that is believed.
    #[must_use]
    pub fn uid(code: &'static str, message: &str) -> Self {
        let (code, message) = (Cow::Borrowed(code), message.to_owned());
        Self { status: UID_REQUIRED_STATUS, code, message, retry_after: None }
    }

    /// Whether another try may do.
    #[must_use]
    pub fn is_for_the_moment(&self) -> bool {
        matches!(self.status, 429 | 503)
    }

    /// As it is told over HTTP.
    #[must_use]
    pub fn response(&self) -> Response {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}});
        let response = Response::json(self.status, body.to_string());
        match self.retry_after {
            Some(after) => response.with_header("Retry-After", after.as_secs().max(1).to_string()),
            None => response,
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self { code: denied.code, message: denied.message }
    }
}

/// A client of this node's machines that may come in.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// As the machines know it; its admission may be a refusal, told in its own protocol.
    pub client: NewClient,
    /// A `Set-Cookie` that goes with the answer to its handshake.
    pub set_cookie: Option<String>,
}

/// The answer about one request, which borrows nothing of it.
pub type Deciding<T> = Pin<Box<dyn Future<Output = Result<T, Denied>> + Send>>;

/// Decides who sent a request. Called on the runtime of the client port, never in a shard's thread.
pub trait Doorkeeper: Send + Sync {
    /// Who sent a request of `product`.
    fn identify(&self, product: &Product, facts: &RequestFacts<'_>) -> Deciding<Identified>;

    /// A client of this node's machines; `product` is what it chose. What stands is a refusal within
    /// [`Admitted`], which the client is told in its own protocol; what is for the moment an error.
    fn admit(
        &self,
        product: Result<&Product, Denied>,
        protocol: ClientProtocol,
        facts: &RequestFacts<'_>,
    ) -> Deciding<Admitted>;
}

/// Decides who each client is.
#[derive(Debug)]
pub struct Identity {
    policies: BTreeMap<Arc<str>, Arc<UidPolicy>>,
    uid_bytes_max: usize,
}

/// What a request's head has made of it.
struct Decided {
    who: Result<Identified, Denied>,
    /// What a Socket.IO client says in its CONNECT packet comes before it.
    by_auth: bool,
}

impl Identity {
    /// `policies` by product; clients of a product without one are refused.
    #[must_use]
    pub fn new(policies: impl IntoIterator<Item = (Arc<str>, UidPolicy)>, uid_bytes_max: usize) -> Self {
        let policies = policies.into_iter().map(|(name, policy)| (name, Arc::new(policy))).collect();
        Self { policies, uid_bytes_max }
    }

    /// Who sent a request of `product`. What has to be read of the request is read at once.
    pub fn of_request(
        &self,
        product: &Product,
        facts: &RequestFacts<'_>,
    ) -> impl Future<Output = Result<Identified, Denied>> + Send + use<> {
        let deciding = self.decide(product, facts);
        async move { deciding.await.who }
    }

    fn decide(
        &self,
        product: &Product,
        facts: &RequestFacts<'_>,
    ) -> impl Future<Output = Decided> + Send + use<> {
        let policy = self.policies.get(&product.name).cloned().unwrap_or_default();
        let claims = policy.claims(facts);
        let bytes_max = self.uid_bytes_max;
        async move {
            let (mut said, mut by_auth) = (Ok(None), claims.auth_after_hook);
            if let Some((hook, question)) = claims.hook {
                said = hook.ask(question).await;
                by_auth &= said == Ok(None);
            }
            let who = match said {
                Ok(Some(uid)) => known(&uid, bytes_max),
                Ok(None) => claims.then.and_then(|claim| settle(&policy, claim, bytes_max)),
                Err(denied) => Err(denied),
            };
            Decided { who, by_auth: by_auth || claims.auth_before_hook }
        }
    }

    /// Whom a Socket.IO client's CONNECT packet speaks for; `None` where it speaks for nobody. Its payload
    /// is a whole JSON object, or empty. Checks signatures: not for a thread that others wait for.
    ///
    /// # Errors
    /// What is found is not believed.
    pub fn of_auth(&self, product: &str, auth: &[u8]) -> Result<Option<Arc<str>>, Refusal> {
        let Some(policy) = self.policies.get(product) else { return Ok(None) };
        let uid = policy.claim_of_auth(auth).and_then(|claim| match claim {
            Claim::Nothing => Ok(None),
            claim => settle(policy, claim, self.uid_bytes_max).map(|who| who.uid),
        });
        uid.map_err(Refusal::from)
    }

    /// Writes the numbers of hooks.
    pub fn write_numbers(&self, out: &mut Exposition) {
        let hooks = self.policies.values().flat_map(|policy| policy.hooks());
        if hooks.clone().next().is_some() {
            Hook::write_all(hooks, out);
        }
    }
}

fn known(uid: &str, bytes_max: usize) -> Result<Identified, Denied> {
    Ok(Identified { uid: Some(check_uid(uid, bytes_max)?), set_cookie: None })
}

fn settle(policy: &UidPolicy, claim: Claim, bytes_max: usize) -> Result<Identified, Denied> {
    match claim {
        Claim::Nothing if policy.required => Err(Denied::uid(UID_REQUIRED, &policy.advice())),
        Claim::Nothing => Ok(Identified::default()),
        Claim::Anonymous { uid, set_cookie } => Ok(Identified { uid: Some(uid), set_cookie }),
        Claim::Uid(uid) => known(&uid, bytes_max),
        Claim::Token(policy, token) => {
            let uid = policy.uid(&token).map_err(|why| Denied::uid(UID_INVALID, why.advice()))?;
            known(&uid, bytes_max)
        }
    }
}

impl Doorkeeper for Identity {
    fn identify(&self, product: &Product, facts: &RequestFacts<'_>) -> Deciding<Identified> {
        Box::pin(self.of_request(product, facts))
    }

    fn admit(
        &self,
        product: Result<&Product, Denied>,
        protocol: ClientProtocol,
        facts: &RequestFacts<'_>,
    ) -> Deciding<Admitted> {
        let chosen = product.and_then(|product| match product.rules() {
            Some(rules) => Ok((rules.clone(), self.decide(product, facts))),
            None => Err(Denied::uid(UID_INVALID, "this product has no clients of its own here")),
        });
        let offsets =
            chosen.as_ref().is_ok_and(|(rules, _)| carries_offsets(rules.recovery, protocol, facts.head));
        Box::pin(async move {
            let decided = match chosen {
                Ok((product, deciding)) => Ok((product, deciding.await)),
                Err(denied) => Err(denied),
            };
            let (admission, set_cookie) = match decided {
                Ok((_, Decided { who: Err(denied), .. })) | Err(denied) if denied.is_for_the_moment() => {
                    return Err(denied);
                }
                Ok((product, Decided { who, by_auth })) => {
                    let set_cookie = who.as_ref().ok().and_then(|who| who.set_cookie.clone());
                    let needed = || Denied::uid(UID_REQUIRED, "rooms are for users: say who you are");
                    let uid = who.and_then(|who| who.uid.ok_or_else(needed)).map_err(Refusal::from);
                    let admission = match by_auth && protocol == ClientProtocol::SocketIo {
                        true => Ok(Admission { product, uid: Uid::ByAuth(uid) }),
                        false => uid.map(|uid| Admission { product, uid: Uid::Known(uid) }),
                    };
                    (admission, set_cookie)
                }
                Err(denied) => (Err(denied.into()), None),
            };
            let offsets = offsets && admission.is_ok();
            let client = NewClient { protocol, admission, offsets, transport: Transport::WebSocket };
            Ok(Admitted { client, set_cookie })
        })
    }
}

/// Whether this client's events are to carry how far it has got.
fn carries_offsets(rule: RecoveryRule, protocol: ClientProtocol, head: &RequestHead<'_>) -> bool {
    let asked = query_values(head.query, "recovery").next().and_then(percent_decoded);
    let allowed = match (rule, asked.as_deref()) {
        (RecoveryRule::Off, _) | (_, Some("0")) => false,
        (RecoveryRule::On, _) | (RecoveryRule::Browser, Some("1")) => true,
        // Every browser calls itself that, in every handshake. An `Origin` says nothing: Python's WebSocket client
        // sends one, and the handlers behind it take no argument more.
        (RecoveryRule::Browser, _) => {
            head.header_text("user-agent").is_some_and(|agent| agent.starts_with("Mozilla/"))
        }
    };
    allowed && protocol == ClientProtocol::SocketIo
}
