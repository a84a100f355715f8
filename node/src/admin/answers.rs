//! What the admin listener answers, and `meshctl` reads: one set of types for both.
//!
//! Belongs here: facts, with their units in their names. Stays out: how they are found (`admin`),
//! how they are shown (`meshctl`).
//! Units: hashes and digests as 16 hex digits (JSON's numbers do not hold them); shares and places on
//! the ring as fractions of the circle.
//! Invariants: fields are only ever added, so that `meshctl` and nodes of neighbouring versions agree.

use serde::{Deserialize, Serialize};

/// To `/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What is wrong by the word of any node, oldest first; empty when nothing is.
    pub problems: Vec<Problem>,
    /// Problems that nodes have only counted, having more than they told.
    pub problems_untold: u64,
    /// The node that answers.
    pub node: String,
    /// Its program's version.
    pub software: String,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Digest of its ring.
    pub ring_digest: String,
    /// Whether every node that answered has the same ring; `None` when nobody else did.
    pub ring_agreed: Option<bool>,
    /// Every node that is up, ordered by name.
    pub nodes: Vec<NodeLine>,
}

/// Something that needs a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// What is the case.
    pub what: String,
    /// For how long it has been, in seconds.
    pub since_secs: u64,
    /// Whom it hurts, and how.
    pub hurts: String,
    /// What to do.
    pub advice: String,
    /// The nodes that say so, ordered by name.
    pub said_by: Vec<String>,
}

/// One node in [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeLine {
    /// Its name.
    pub name: String,
    /// Its id: the hash of its name.
    pub id: String,
    /// Which life of it.
    pub incarnation: u64,
    /// `active`, `joining`, `draining` or `suspect`.
    pub state: String,
    /// Its mesh address.
    pub mesh_addr: String,
    /// Where clients connect.
    pub client_addr: String,
    /// Where `meshctl` connects.
    pub admin_addr: String,
    /// Where backends publish.
    pub api_addr: String,
    /// Its part of the ring, 0 to 1.
    pub share: f64,
    /// Its weight.
    pub weight: u16,
    /// Its failure domain.
    pub zone: u16,
    /// Its threads.
    pub shards: u16,
    /// Its program's version.
    pub software: String,
    /// Whether it is the node that answers.
    pub is_me: bool,
    /// What it says of itself; `None` when it did not answer in time.
    pub counts: Option<Counts>,
    /// How far its drain is; `None` while it does not drain.
    pub drain: Option<DrainLine>,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Clients whose transport ends there.
    pub clients: u64,
    /// Sessions it owns.
    pub sessions: u64,
    /// Rooms it owns.
    pub rooms: u64,
    /// Digest of its ring.
    pub ring_digest: String,
    /// Whether that is the ring of the node that answers.
    pub agrees: bool,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Entities whose backup does not have all of them yet: re-replication under way.
    pub copies_pending: u64,
    /// Ops that backups have not confirmed.
    pub replication_lag_ops: u64,
    /// Entities it holds as owner that the ring gives to others.
    pub to_hand_over: u64,
    /// Copies it holds for other owners.
    pub copies: u64,
    /// Backups that have owed it an answer for 250 ms or more: what waits for them is held back.
    pub backups_silent: u64,
    /// Sessions without a transport, kept for their clients to come back.
    pub parked_sessions: u64,
    /// Bytes in the logs of rooms it owns: the history kept.
    pub history_bytes: u64,
}

/// A drain, in [`NodeLine`] and as the answer to `/v1/drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainLine {
    /// The node.
    pub node: String,
    /// Which life of it.
    pub incarnation: u64,
    /// Whether it is the node that answers: then it stops answering in the end.
    pub is_me: bool,
    /// `serving`, `announce`, `hand-over`, `closing`, `leaving`; `gone` once it is not in the cluster.
    pub phase: String,
    /// Clients whose transport still ends there.
    pub clients: u64,
    /// Entities still to be handed over.
    pub to_hand_over: u64,
    /// Milliseconds since the drain began.
    pub elapsed_ms: u64,
}

/// The answer to `/v1/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadAnswer {
    /// What became of it at each node that was asked.
    pub nodes: Vec<ReloadLine>,
}

/// What one node has made of its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadLine {
    /// The node.
    pub node: String,
    /// Settings that have other values now.
    pub changed: Vec<String>,
    /// Settings that are other in their sources, and take effect at the next start.
    pub restart: Vec<String>,
    /// Why nothing was taken over; empty when all is well.
    pub problems: Vec<String>,
}

/// One line of `/v1/watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When it was seen, in milliseconds since 1970 by the clock of the node that answers.
    pub at_ms: u64,
    /// What kind it is: `hello`, `up`, `down`, `left`, `restarted`, `suspect`, `trusted`, `state`,
    /// `ring`, `drain`, `moves`, `takeovers`, `fences`, `gaps`, `missed`.
    pub kind: String,
    /// The node it is about; empty when it is about all of them.
    pub node: String,
    /// How many, where something is counted.
    pub count: u64,
    /// The same in words.
    pub text: String,
}

/// To `/v1/ring`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RingAnswer {
    /// The node that answers.
    pub node: String,
    /// Digest of its ring.
    pub ring_digest: String,
    /// The nodes on it, ordered by name.
    pub nodes: Vec<RingNodeLine>,
    /// The circle clockwise from 0.
    pub arcs: Vec<Arc>,
}

/// One node on the ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RingNodeLine {
    /// Its name.
    pub name: String,
    /// Which life of it.
    pub incarnation: u64,
    /// Its part of the circle, 0 to 1.
    pub share: f64,
    /// Its weight.
    pub weight: u16,
    /// Its failure domain.
    pub zone: u16,
    /// Its arcs.
    pub arcs: u32,
}

/// A stretch of the circle with one owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arc {
    /// Where it begins, 0 to 1.
    pub from: f64,
    /// Where it ends, `from` to 1.
    pub to: f64,
    /// Index of its owner in [`RingAnswer::nodes`].
    pub node: usize,
}

/// To `/v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explained {
    /// The node that answers.
    pub node: String,
    /// The key in words: product and uid, or product, namespace and room.
    pub key: String,
    /// Its hash, the place on the ring.
    pub hash: String,
    /// Digest of the ring asked.
    pub ring_digest: String,
    /// Who owns it; `None` while no node is active.
    pub owner: Option<String>,
    /// The owner's shard.
    pub shard: Option<u16>,
    /// Who is its backup: next on the ring.
    pub backup: Option<String>,
    /// Who follows after that.
    pub next: Vec<String>,
    /// What the owner says of it.
    pub facts: Facts,
}

/// What an owner says of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Facts {
    /// It has no session of that user, no log or subscriber of that room, or no such binding.
    #[default]
    Nothing,
    /// It did not say; why.
    Unknown(String),
    /// Sessions of the user.
    User(Vec<SessionLine>),
    /// The room.
    Room(RoomLine),
    /// Where a user or a session of a proxied product is bound to, or a word about an upstream.
    Binding(BindingLine),
}

/// One session in [`Facts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionLine {
    /// Its public id.
    pub sid: String,
    /// Its namespace.
    pub namespace: String,
    /// The owner's term.
    pub term: String,
    /// Node and shard of its transport; `None` while it has none.
    pub edge: Option<String>,
    /// Rooms it is in.
    pub rooms: u32,
    /// Packets of the client processed.
    pub inbound: u64,
    /// Entries of its own log so far.
    pub own_seq: u64,
    /// How its owner came to it, and who holds its copy.
    pub ownership: OwnershipLine,
}

/// The room in [`Facts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomLine {
    /// The owner's term.
    pub term: String,
    /// Number of the newest entry.
    pub seq: u64,
    /// Entries kept.
    pub entries: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Seconds since the oldest entry kept.
    pub seconds_kept: u64,
    /// Shards with members, and how far each has taken the log.
    pub subscribers: Vec<SubscriberLine>,
    /// How its owner came to it, and who holds its copy.
    pub ownership: OwnershipLine,
}

/// The binding in [`Facts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BindingLine {
    /// To which upstream; of an upstream, the word about it.
    pub upstream: String,
    /// The term under which it was decided.
    pub term: String,
    /// Which decision about this binding it was.
    pub decision: u64,
    /// Seconds until it ends, unless it is used; `None`: it stays until it is lifted.
    pub ends_in_secs: Option<u64>,
    /// How its owner came to it, and who holds its copy.
    pub ownership: OwnershipLine,
}

/// How an owner came to a session, a room or a binding, the last move and why; and who holds its copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnershipLine {
    /// The node that holds its copy; `None` without one.
    pub backup: Option<String>,
    /// Ops that the backup has not confirmed.
    pub lag_ops: u64,
    /// `new`, `take-over` or `hand-over`.
    pub began: String,
    /// The owner before, after a take-over or a hand-over.
    pub from: Option<String>,
    /// Seconds since then.
    pub since_secs: u64,
}

/// One subscriber of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscriberLine {
    /// Node and shard.
    pub edge: String,
    /// Number of the last entry it has taken.
    pub seq: u64,
}

/// To `/v1/config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigAnswer {
    /// The node that answers.
    pub node: String,
    /// Every setting.
    pub values: Vec<ConfigValue>,
}

/// One setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigValue {
    /// Its full name.
    pub key: String,
    /// Its value; `***` for a secret that is set.
    pub value: String,
    /// What set it.
    pub origin: String,
    /// Whether a change needs a restart.
    pub restart: bool,
}

/// To `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// Whether clients should be sent here.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

/// An answer that is none: `{"error":{…}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorAnswer {
    /// What went wrong.
    pub error: ErrorBody,
}

/// In [`ErrorAnswer`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    /// A stable word.
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// To `/v1/upstreams`: the servers behind proxied products, as the node that answers sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamsAnswer {
    /// The node that answers.
    pub node: String,
    /// Every upstream, by product and name.
    pub upstreams: Vec<UpstreamLine>,
}

/// One upstream in [`UpstreamsAnswer`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamLine {
    /// Whose it is.
    pub product: String,
    /// Its name: `HOST:PORT`, or a node's.
    pub upstream: String,
    /// `unknown`, `up`, `draining`, `ejected` or `down`.
    pub state: String,
    /// Why it is not up; empty when it is.
    pub why: String,
    /// Requests and WebSockets that are open there, from this node.
    pub open: u32,
    /// Requests that it answered.
    pub answered_total: u64,
    /// Requests that failed by its fault.
    pub failed_total: u64,
    /// Checks that failed.
    pub checks_failed_total: u64,
    /// Whether nothing new goes there.
    pub drains: bool,
    /// When what is open there is closed, if it drains with a deadline.
    pub closed_in_secs: Option<u64>,
    /// When a request tries it, if it is ejected.
    pub tried_in_secs: Option<u64>,
}
