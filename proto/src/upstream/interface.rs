//! What a driver tells the upstreams of a product, and what they tell it.
//!
//! Belongs here: settings, states, outcomes, outputs and facts. Stays out: behaviour (`Upstreams`).

use std::sync::Arc;
use std::time::Duration;

use crate::time::Instant;

/// Upstreams of one product at most; further names are left out.
pub const UPSTREAMS_MAX: usize = 1_024;

/// How upstreams are judged and chosen. `node::config` fills it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Their names (`host:port`, or a node's name), each once.
    pub names: Vec<Arc<str>>,
    /// A check begins so long after the last one of that upstream began; zero: no checks are made.
    pub interval: Duration,
    /// A check without an answer has failed after this time.
    pub timeout: Duration,
    /// Checks in a row that bring a down upstream up again.
    pub rise: u32,
    /// Failed checks in a row that bring an upstream down.
    pub fall: u32,
    /// Failed requests in a row that eject an upstream; 0: none do.
    pub eject_after: u32,
    /// How long the first ejection lasts; each that follows soon lasts twice as long as the one before.
    pub eject_for: Duration,
    /// The longest ejection.
    pub eject_max: Duration,
    /// What hashing lets one upstream have, in percent of the mean load.
    pub load_percent: u32,
    /// Below so much at one upstream nothing goes elsewhere because of its load: a few requests at once are
    /// chance, and a user's belong together.
    pub load_floor: u32,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            eject_after: 5,
            eject_for: Duration::from_secs(5),
            eject_max: Duration::from_secs(60),
            load_percent: 125,
            load_floor: 32,
        }
    }
}

/// Names an upstream as long as it is on the list, and until what is open there has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamIx(pub(super) u32);

/// How an upstream is. The first that applies, from the last one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpstreamState {
    /// Nothing is known of it yet: it is used.
    Unknown,
    /// It answers.
    Up,
    /// Nothing new goes there; what is bound to it stays.
    Draining,
    /// Its requests failed: nothing goes there but, when the time is over, one that tries it.
    Ejected,
    /// Its checks failed.
    Down,
}

impl UpstreamState {
    /// Every state, for closed sets of labels.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Up, Self::Draining, Self::Ejected, Self::Down];

    /// Its word, for people and labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Ejected => "ejected",
            Self::Down => "down",
        }
    }
}

/// Something is open at an upstream; given back to [`Upstreams::ended`](super::Upstreams::ended).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is open there stays counted until it is given back"]
pub struct Ticket {
    pub(super) ix: UpstreamIx,
    /// It tries an ejected upstream.
    pub(super) tries: bool,
    /// Its answer has begun.
    pub(super) answered: bool,
}

impl Ticket {
    /// Where.
    #[must_use]
    pub fn upstream(&self) -> UpstreamIx {
        self.ix
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a whole answer, whatever it says: an application's errors are its own.
    Answered,
    /// No connection.
    ConnectFailed,
    /// The connection ended before the answer did.
    Reset,
    /// No answer in time.
    TimedOut,
    /// The client is gone, or broke its own request: nothing is known of the upstream.
    ClientGone,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamOutput {
    /// Ask it how it is, and tell [`Upstreams::checked`](super::Upstreams::checked). After the timeout nobody listens any more.
    Check(Check),
    /// It is in another state now, to be told to people.
    Changed {
        /// Which.
        upstream: UpstreamIx,
        /// Its name.
        name: Arc<str>,
        /// What was told of it last.
        before: UpstreamState,
        /// How it is now.
        now: UpstreamState,
    },
    /// The time of its drain is over: what is still open there is to be closed.
    DrainOver(UpstreamIx),
}

/// A check to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which upstream.
    pub upstream: UpstreamIx,
    /// Its name.
    pub name: Arc<str>,
    /// Tells this check from others.
    pub number: u64,
}

/// What is known of an upstream, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamFacts {
    /// Its name.
    pub name: Arc<str>,
    /// How it is.
    pub state: UpstreamState,
    /// What this node has open there.
    pub open: u32,
    /// Requests that it answered.
    pub answered_total: u64,
    /// Requests that failed by its fault.
    pub failed_total: u64,
    /// The same, in a row until now.
    pub failures: u32,
    /// Checks that failed.
    pub checks_failed_total: u64,
    /// Until when nothing goes there because of its requests.
    pub ejected_until: Option<Instant>,
    /// Whether nothing new is to go there.
    pub drains: bool,
    /// When what is open there is to be closed.
    pub drained_at: Option<Instant>,
}
