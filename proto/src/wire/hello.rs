//! The first words on a QUIC connection between two nodes, accepting side first.
//!
//! Belongs here: the hello, and why one is refused. Stays out: resume points of lanes (`link`).

use serde::{Deserialize, Serialize};

use crate::id::NodeRef;

/// The oldest protocol this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol this build speaks.
pub const PROTOCOL_MAX: u16 = 1;

/// Protocol versions a build speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl ProtocolRange {
    /// This build's.
    pub const OURS: Self = Self { min: PROTOCOL_MIN, max: PROTOCOL_MAX };

    /// The newest version both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// Who speaks, and which protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions the sender speaks.
    pub protocol: ProtocolRange,
    /// Hash of the configured cluster name.
    pub cluster_id: u64,
    /// The sender.
    pub node: NodeRef,
    /// Its configured name; its certificate must carry the same.
    pub name: String,
    /// Its ring at this moment.
    pub ring_digest: u64,
}

/// Why two nodes do not talk. Both log it; neither retries within a minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// No protocol in common.
    #[error("no common protocol: we speak {}..={}, they speak {}..={}", ours.min, ours.max, theirs.min, theirs.max)]
    Protocol {
        /// The refusing side's.
        ours: ProtocolRange,
        /// The refused side's.
        theirs: ProtocolRange,
    },
    /// Same key, other cluster name.
    #[error("another cluster id (theirs {theirs:016x}, ours {ours:016x})")]
    Cluster {
        /// The refusing side's.
        ours: u64,
        /// The refused side's.
        theirs: u64,
    },
    /// The certificate names another node than the hello.
    #[error("the certificate is for another node than the hello")]
    Identity,
    /// Another life of the node was expected at this address.
    #[error("not the node that was dialled")]
    NotWhomDialled,
}
