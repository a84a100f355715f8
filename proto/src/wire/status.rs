//! What nodes tell operators of themselves: counts, problems, drains, and how an owner came to own.
//!
//! Belongs here: answers for people, carried between nodes so that any one of them can be asked.
//! Stays out: anything a machine decides by.
//! Invariants: bounded: at most [`PROBLEMS_TOLD_MAX`] problems of [`PROBLEM_TEXT_BYTES_MAX`] a text.

use serde::{Deserialize, Serialize};

use crate::id::NodeRef;

/// Problems told in one [`NodeStatus`]; the rest is counted.
pub const PROBLEMS_TOLD_MAX: usize = 8;

/// Bytes of each text of a [`ProblemTold`].
pub const PROBLEM_TEXT_BYTES_MAX: usize = 512;

/// Counts of one node, for `meshctl status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Clients whose transport ends there.
    pub clients: u64,
    /// Sessions owned.
    pub sessions: u64,
    /// Rooms owned.
    pub rooms: u64,
    /// Ring digest.
    pub ring_digest: u64,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Problems it sees.
    pub problem_count: u32,
    /// The most severe of them, at most [`PROBLEMS_TOLD_MAX`].
    pub problems: Vec<ProblemTold>,
    /// How far its drain is.
    pub drain: DrainStatus,
    /// How its entities are kept safe.
    pub safety: Safety,
}

/// One problem, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemTold {
    /// What is the case.
    pub what: String,
    /// For how long it has been, in seconds.
    pub since_secs: u64,
    /// Whom it hurts, and how.
    pub hurts: String,
    /// What to do.
    pub advice: String,
}

/// How a node's entities are kept safe: sums over its shards, as in `ShardStats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safety {
    /// Entities whose backup does not have all of them yet.
    pub copies_pending: u64,
    /// Ops that backups have not confirmed.
    pub replication_lag_ops: u64,
    /// Entities held as owner that the ring gives to others.
    pub to_hand_over: u64,
    /// Copies held for other owners.
    pub copies: u64,
    /// Backups that have owed an answer for 250 ms or more.
    pub backups_silent: u64,
    /// Sessions without a transport, kept for their clients to come back.
    pub parked_sessions: u64,
    /// Bytes in the logs of rooms owned.
    pub history_bytes: u64,
    /// Entities taken over from their owner by hand-over, since the start.
    pub moves_total: u64,
    /// Entities carried on from a copy after their owner's death, since the start.
    pub takeovers_total: u64,
    /// Terms refused because a higher one was known, since the start.
    pub fences_total: u64,
    /// Holes in rooms' logs told to clients, since the start.
    pub gaps_total: u64,
}

/// How far a node's drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// What it is doing.
    pub phase: DrainPhase,
    /// Clients whose transport still ends there, half-open handshakes included.
    pub clients: u64,
    /// Entities still to be handed over.
    pub to_hand_over: u64,
    /// Milliseconds since the drain began.
    pub elapsed_ms: u64,
}

/// The phases of a drain, in order (DESIGN §14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DrainPhase {
    /// Does not drain.
    #[default]
    Serving,
    /// Not ready, and new clients are refused; the rest goes on.
    Announce,
    /// Off the ring; what it owned goes to the others.
    HandOver,
    /// Clients are closed, to come back elsewhere.
    Closing,
    /// Links are flushed, the membership is left. There is no way back.
    Leaving,
}

impl DrainPhase {
    /// Its word for people and scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Announce => "announce",
            Self::HandOver => "hand-over",
            Self::Closing => "closing",
            Self::Leaving => "leaving",
        }
    }
}

/// What an operator wants of a node's drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainCommand {
    /// Say how far it is.
    Show,
    /// Drain and end. With `force` also the last active node.
    Begin {
        /// Although nobody is left to take over.
        force: bool,
    },
    /// Serve again.
    Cancel,
}

/// What an owner knows of its ownership of an entity, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnershipFacts {
    /// The node that holds its copy; `None` without one.
    pub backup: Option<NodeRef>,
    /// Ops that the backup has not confirmed.
    pub lag_ops: u64,
    /// How this owner came to it.
    pub began: Began,
    /// Seconds since then.
    pub since_secs: u64,
}

/// How an ownership began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Began {
    /// Nobody had held it.
    New,
    /// Its owner was gone; this node was the backup.
    TakeOver {
        /// That owner.
        from: NodeRef,
    },
    /// Handed over, or found at another node.
    HandOver {
        /// That node.
        from: NodeRef,
    },
}

/// What became of a node's settings when it was told to take them over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Settings that have other values now.
    pub changed: Vec<String>,
    /// Settings that have other values in their sources, and keep the old ones until the node is restarted.
    pub restart: Vec<String>,
    /// Why nothing was taken over, a line each; empty when all is well.
    pub problems: Vec<String>,
}
