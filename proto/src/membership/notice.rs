//! What people are told about the membership.
//!
//! Belongs here: one enum, one line of text each. Stays out: deciding when (the machine), log levels
//! (`node`).
//! Invariants: no secrets; a key shows only as its fingerprint.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::id::NodeRef;
use crate::wire::ProtocolRange;

/// Something worth a log line. Only [`Notice::NameTaken`], [`Notice::Rejoined`] and
/// [`Notice::Left`] ask the driver for more than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A node came up.
    PeerUp(Peer),
    /// A node does not answer; it has `suspect_for` to speak up.
    PeerSuspect(Peer),
    /// A suspect spoke up.
    PeerRefuted(Peer),
    /// A node is down: it did not answer, and did not say that it would go.
    PeerDown(Peer),
    /// A node left in good order: it had announced so.
    PeerLeft(Peer),
    /// A node restarted, or was down and is back: another life under the same name. Down of the
    /// old one and up of the new one at once.
    PeerRenamed {
        /// The life that ended.
        old: NodeRef,
        /// The life that is up.
        new: Peer,
    },
    /// This node has the whole membership from a peer and is active.
    Joined {
        /// From whom.
        via: SocketAddr,
        /// Nodes up, this one included.
        nodes: usize,
    },
    /// This node began a cluster: it has no seeds, or all its seeds were starting and it is the
    /// one to begin.
    Began,
    /// Not joined yet, nothing owned; still trying. Once a minute.
    NoSeedAnswers {
        /// Whom it asks.
        seeds: Vec<SocketAddr>,
        /// For how long by now.
        since: Duration,
        /// How many of them answer, but are waiting for others themselves.
        waiting: usize,
    },
    /// A peer speaks another key, cluster or protocol; its datagrams are dropped here and it was
    /// told so. Once a minute per peer.
    Refusing {
        /// Where from.
        peer: SocketAddr,
        /// What differs.
        why: Mismatch,
    },
    /// A peer says that it drops our datagrams, and why. Not authenticated: a hint for a person,
    /// never acted on. Once a minute per peer.
    Refused {
        /// Who says so.
        peer: SocketAddr,
        /// What differs.
        why: Mismatch,
    },
    /// Another live node has this node's name. This node has stopped and must exit (status 3).
    NameTaken {
        /// The name.
        name: String,
        /// Where the other one answers.
        holder: SocketAddr,
    },
    /// This node was declared down (a pause, a partition) and goes on as another life. Everything
    /// the old life owned is no longer its own.
    Rejoined {
        /// The life the others declared down.
        old: NodeRef,
        /// The life they know now.
        new: NodeRef,
    },
    /// This node's timers came late: it is short of CPU or was stopped. It did not blame its peers
    /// for that time. Once a minute; each is counted.
    Late {
        /// How late.
        by: Duration,
    },
    /// More nodes than [`super::NODES_MAX`], or new ones faster than they can be true. Once a
    /// minute.
    TooManyNodes {
        /// Who told of them.
        from: SocketAddr,
        /// Nodes known.
        known: usize,
    },
    /// This node was declared down again and again although it answers. Once a minute.
    DeclaredDownOften {
        /// Who told so last.
        by: SocketAddr,
        /// How many times within a minute.
        times: u32,
    },
    /// A node of this cluster sends what no node would (absurd incarnation, weight or address).
    /// Dropped. Once a minute per peer.
    Nonsense {
        /// Where from.
        peer: SocketAddr,
        /// What.
        what: &'static str,
    },
    /// The others were told that this node leaves. The driver may exit.
    Left,
}

/// A node as notices show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which life of which node.
    pub node: NodeRef,
    /// Its name, or its id until its record has arrived.
    pub name: String,
    /// Its mesh address.
    pub addr: SocketAddr,
}

/// What keeps two nodes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Other cluster keys; fingerprints, not keys.
    Key {
        /// Here.
        ours: [u8; 4],
        /// There.
        theirs: [u8; 4],
    },
    /// One key, other cluster names.
    Cluster {
        /// Here.
        ours: u64,
        /// There.
        theirs: u64,
    },
    /// No protocol version in common.
    Protocol {
        /// Here.
        ours: ProtocolRange,
        /// There.
        theirs: ProtocolRange,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, life {})", self.name, self.addr, self.node.incarnation)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { ours, theirs } => {
                write!(f, "another cluster key (fingerprint here {}, there {})", hex(*ours), hex(*theirs))
            }
            Self::Cluster { ours, theirs } => {
                write!(f, "another cluster id (here {ours:016x}, there {theirs:016x})")
            }
            Self::Protocol { ours, theirs } => write!(
                f,
                "no protocol in common (here {} to {}, there {} to {})",
                ours.min, ours.max, theirs.min, theirs.max
            ),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerUp(peer) => write!(f, "node up: {peer}"),
            Self::PeerSuspect(peer) => write!(f, "node does not answer: {peer}"),
            Self::PeerRefuted(peer) => write!(f, "node answers again: {peer}"),
            Self::PeerDown(peer) => write!(f, "node down: {peer}"),
            Self::PeerLeft(peer) => write!(f, "node left: {peer}"),
            Self::PeerRenamed { old, new } => {
                write!(f, "node restarted: {new}, was life {}", old.incarnation)
            }
            Self::Joined { via, nodes } => write!(f, "joined through {via}: {nodes} nodes"),
            Self::Began => f.write_str("began a cluster"),
            Self::NoSeedAnswers { seeds, since, waiting: 0 } => {
                write!(f, "no seed answers for {} s, still trying: {}", since.as_secs(), list(seeds))
            }
            Self::NoSeedAnswers { seeds, since, waiting } => write!(
                f,
                "not joined for {} s: {waiting} of the seeds answer but wait for others themselves: {}",
                since.as_secs(),
                list(seeds)
            ),
            Self::Refusing { peer, why } => write!(f, "refused {peer}: {why}"),
            Self::Refused { peer, why } => write!(f, "{peer} refuses this node: {why}"),
            Self::NameTaken { name, holder } => {
                write!(f, "the node name {name:?} is taken by the live node at {holder}")
            }
            Self::Rejoined { old, new } => write!(
                f,
                "this node was declared down (life {}) and is back as life {}",
                old.incarnation, new.incarnation
            ),
            Self::Late { by } => {
                write!(f, "this node was stopped or short of CPU for {} ms", by.as_millis())
            }
            Self::TooManyNodes { from, known } => {
                write!(f, "too many new nodes told by {from}, not taken in ({known} known)")
            }
            Self::DeclaredDownOften { by, times } => {
                write!(f, "this node was declared down {times} times in a minute, last told by {by}")
            }
            Self::Nonsense { peer, what } => write!(f, "dropped nonsense from {peer}: {what}"),
            Self::Left => f.write_str("left the cluster"),
        }
    }
}

fn hex(bytes: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(bytes))
}

fn list(addrs: &[SocketAddr]) -> String {
    addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
