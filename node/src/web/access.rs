//! Who may ask.
//!
//! Belongs here: keys, the requests of web pages that must not reach a loopback port, guessing.
//! Stays out: what each may do (one key may do everything its listener offers).
//! Invariants: keys are kept and compared as hashes, in constant time; a listener without keys
//! answers only on loopback and never to a web page of another origin.
//! Source: DNS rebinding (the attacker's name resolves to 127.0.0.1: the Host header tells).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::reply::Failure;
use crate::identity::bearer_token;

/// Bytes of a key, at least. `meshctl keygen` makes longer ones.
pub const BEARER_KEY_BYTES_MIN: usize = 32;

/// Wrong keys of one address within [`FAILURES_WINDOW`]; after that it must wait.
const FAILURES_MAX: u32 = 5;

/// See [`FAILURES_MAX`].
const FAILURES_WINDOW: Duration = Duration::from_secs(60);

/// Addresses with failures that are remembered. Full: the oldest is forgotten.
const FAILING_ADDRESSES_MAX: usize = 4_096;

/// A key short enough to be guessed. Refuse to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key has {len} bytes, at least {BEARER_KEY_BYTES_MIN} are needed: make one with `meshctl keygen`"
)]
pub struct WeakKey {
    /// Its length.
    pub len: usize,
}

/// An address that others can reach, and no key. Refuse to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is no loopback address: a key is needed there (make one with `meshctl keygen`)")]
pub struct OpenElsewhere {
    /// The address.
    pub address: SocketAddr,
}

/// Keys that a request may carry as `Authorization: Bearer`. Several, so that one can be replaced
/// while both are good.
#[derive(Clone)]
pub struct BearerKeys(Vec<[u8; 32]>);

impl BearerKeys {
    /// Takes the keys; only their hashes are kept.
    ///
    /// # Errors
    /// [`WeakKey`] when one is too short.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, WeakKey> {
        let digests = keys.into_iter().map(str::trim).map(|key| {
            if key.len() < BEARER_KEY_BYTES_MIN { Err(WeakKey { len: key.len() }) } else { Ok(digest(key)) }
        });
        digests.collect::<Result<_, _>>().map(Self)
    }

    /// Whether `key` is one of them. Takes as long for a wrong one as for a right one.
    fn accept(&self, key: &str) -> bool {
        let given = digest(key);
        let any = self.0.iter().fold(subtle::Choice::from(0), |any, known| any | known.ct_eq(&given));
        any.into()
    }
}

fn digest(key: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, key.as_bytes()).as_ref());
    bytes
}

impl fmt::Debug for BearerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerKeys({})", self.0.len())
    }
}

/// Whether a listener asks for a key.
#[derive(Clone, Debug)]
pub enum Access {
    /// Whoever can connect, that is, processes of this host.
    Loopback,
    /// Whoever has a key.
    Keys(BearerKeys),
}

impl Access {
    /// The access to a listener at `address`: by these keys, or open on loopback if there are none.
    ///
    /// # Errors
    /// [`OpenElsewhere`] when it would be open to others.
    pub fn at(address: SocketAddr, keys: Option<BearerKeys>) -> Result<Self, OpenElsewhere> {
        match keys {
            Some(keys) => Ok(Self::Keys(keys)),
            None if address.ip().is_loopback() => Ok(Self::Loopback),
            None => Err(OpenElsewhere { address }),
        }
    }
}

/// Lets requests in, or says why not.
#[derive(Debug)]
pub struct Guard {
    access: Access,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Guard {
    /// A guard that has seen no failures.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self { access, failures: Mutex::default() }
    }

    /// Whether this request may be answered.
    ///
    /// # Errors
    /// 403 for web pages, 401 without a good key, 429 after too many bad ones.
    pub fn check(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Failure> {
        self.check_page(headers)?;
        let Access::Keys(keys) = &self.access else { return Ok(()) };
        // A request without a key guesses nothing, so it does not count.
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Err(unauthorized("send the key as 'Authorization: Bearer KEY'"));
        };
        if self.too_many_failures(peer.ip()) {
            let failure = Failure::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_failures",
                "too many wrong keys from this address: wait a minute",
            );
            return Err(failure.retry_after(u32::try_from(FAILURES_WINDOW.as_secs()).unwrap_or(60)));
        }
        match given.to_str().ok().and_then(bearer_token) {
            Some(key) if keys.accept(key) => Ok(()),
            _ => {
                self.note_failure(peer.ip());
                Err(unauthorized("the key is wrong"))
            }
        }
    }

    /// Whether this request may see what is no secret (`/healthz`): no key is needed, but a page
    /// is kept out all the same.
    ///
    /// # Errors
    /// 403.
    pub fn check_page(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().ok().zip(host).is_some_and(|(origin, host)| same_origin(origin, host))
        {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "origin",
                "web pages of other origins may not ask",
            ));
        }
        // With a key the name does not matter: a page that rebinds a name has no key to send.
        if matches!(self.access, Access::Loopback) && !host.is_some_and(is_local_host) {
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "host",
                "ask by IP address or as localhost: this listener is for its own host",
            ));
        }
        Ok(())
    }

    fn too_many_failures(&self, ip: IpAddr) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(&ip).is_some_and(|f| f.since.elapsed() < FAILURES_WINDOW && f.count >= FAILURES_MAX)
    }

    fn note_failure(&self, ip: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= FAILING_ADDRESSES_MAX
            && !failures.contains_key(&ip)
            && let Some(oldest) = failures.iter().min_by_key(|(_, f)| f.since).map(|(ip, _)| *ip)
        {
            failures.remove(&oldest);
        }
        let entry = failures.entry(ip).or_insert_with(|| Failures { since: Instant::now(), count: 0 });
        if entry.since.elapsed() >= FAILURES_WINDOW {
            *entry = Failures { since: Instant::now(), count: 0 };
        }
        entry.count += 1;
    }
}

fn unauthorized(message: &str) -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

fn same_origin(origin: &str, host: &str) -> bool {
    origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host)
}

/// An IP address cannot be rebound, and `localhost` is not resolved by outsiders.
fn is_local_host(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost") || bracketed.is_some_and(|ip| ip.parse::<IpAddr>().is_ok())
}
