//! What the owner of an entity, its backup and those who were either say to each other.
//!
//! One set of messages for sessions and rooms: `K` names an entity, `O` is an op on it, `C` a copy of
//! its replicated state. How they are used: `host`.

use serde::{Deserialize, Serialize};

use super::{DedupeKey, RoomEntry, SessionOp};
use crate::births::Births;
use crate::id::{Cursor, NodeRef, PublishId, PublishNumber, Publisher, RoomKey, SocketSid, Term};
pub use crate::session::SessionState;

/// How far a copy of an entity is: ops applied to it since it began, the last of them under this term.
/// Two copies of one version are equal: a term has one owner, which numbers its ops once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The term of whoever applied last.
    pub term: Term,
    /// Ops so far.
    pub op: u64,
}

/// Replication of one kind of entity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Replication<K, O, C> {
    /// Owner to backup. Answered by `Replicated` with the same batch.
    Replicate {
        /// The owner shard's running number.
        batch: u64,
        /// Each on its own: one that is refused does not hold up the others.
        items: Vec<Item<K, O, C>>,
    },
    /// Backup to owner: everything of the batch is in its copies but what is refused.
    Replicated {
        /// Which.
        batch: u64,
        /// Index into its items, and why.
        refused: Vec<(u32, Refusal<C>)>,
    },
    /// To the node that owns these by the sender's ring: the sender holds copies of them that it should
    /// not, or not alone. Answered by `Ask`, `Drop` or, by one that sees another ring, nothing.
    Offer(Vec<Offered<K>>),
    /// To whoever may hold a copy: the sender owns it and wants it. Answered by `Have` or `NotYours`.
    Ask {
        /// Which.
        key: K,
    },
    /// Answer to `Ask`. Who gives a copy takes no more ops for it from anyone but the asker.
    Have {
        /// Which.
        key: K,
        /// Whether the sender has been on the ring long enough for its "nothing" to count.
        settled: bool,
        /// Whether the sender was its owner until now.
        owned: bool,
        /// What it holds.
        copy: Option<(Version, C)>,
    },
    /// Answer to `Ask`: by the sender's ring it is not the asker's. The asker asks again.
    NotYours {
        /// Which.
        key: K,
    },
    /// Answer to `Offer`: the owner and its backup hold all of what was offered, in this version.
    Drop(Vec<(K, Version)>),
}

/// News of one entity for its backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item<K, O, C> {
    /// Which.
    pub key: K,
    /// The sender's term; one below the copy's is refused.
    pub term: Term,
    /// What is new.
    pub news: News<O, C>,
}

/// What an [`Item`] brings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum News<O, C> {
    /// These ops follow on a copy of this version.
    Ops {
        /// The copy they belong on.
        base: Version,
        /// In order.
        ops: Vec<O>,
    },
    /// All of it, in place of whatever the backup holds.
    Copy {
        /// Ops in it.
        op: u64,
        /// The state.
        copy: C,
        /// The version of the backup's former copy that is merged into this one, if it was refused so.
        absorbed: Option<Version>,
    },
    /// It is over: there is nothing to back up any more.
    Ended,
}

/// Why a backup does not take an [`Item`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Refusal<C> {
    /// Its copy is not the base of the ops: it needs all of it.
    Missing,
    /// It has heard of a higher term: the sender is not the owner any more, or has to begin above.
    Higher(Term),
    /// It has given its copy to this node, which is to own the entity.
    Promised(NodeRef),
    /// Its own copy holds what the sender's does not.
    Lacks(Version, C),
}

/// A copy that somebody else should have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offered<K> {
    /// Of which entity.
    pub key: K,
    /// How far it is.
    pub version: Version,
    /// The last place in it, where it is a log: a log that has this place has all before it.
    pub last: Cursor,
}

/// A change of a room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RoomOp {
    /// Append to the log, and remember whose it is.
    Append {
        /// The entry, under the owner's term.
        entry: RoomEntry,
        /// Its idempotency key.
        dedupe: Option<DedupeKey>,
    },
    /// Something that was served from another history is not in this log and never will be: who is at the
    /// present end of it or before has missed it.
    Hole,
    /// Another history has been merged: what is not to come from it any more, and what of that is lost here.
    Merged {
        /// Everything that was in it.
        births: Births,
        /// Of that, what this log has not and never had.
        gone: Births,
    },
    /// Remember a publish that is in the log under another id, or was: at this place.
    Remember {
        /// Which.
        id: PublishId,
        /// Where.
        at: Cursor,
    },
}

/// A whole room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomCopy {
    /// The place before the first entry.
    pub before_first: Cursor,
    /// Number of the first entry.
    pub first: u64,
    /// Number of the first entry after the last hole; 0 if there is none.
    pub hole: u64,
    /// Every entry kept.
    pub entries: Vec<RoomEntry>,
    /// Everything that was ever in this log, or is not to come into it any more.
    pub births: Births,
    /// Of that, what is not among its entries (any more).
    pub gone: Births,
    /// The highest publish of each publisher, and where it is; oldest first.
    pub publishers: Vec<(Publisher, PublishNumber, Cursor)>,
    /// Idempotency keys, and where their events are; oldest first.
    pub keys: Vec<(DedupeKey, Cursor)>,
}

/// Replication of sessions.
pub type SessionReplication = Replication<SocketSid, SessionOp, Box<SessionState>>;

/// Replication of rooms.
pub type RoomReplication = Replication<RoomKey, RoomOp, RoomCopy>;
