//! What SWIM knows a node by.
//!
//! Belongs here: the identity, its bytes, its order among lives of one node.
//! Stays out: everything that may change during a life or is large (`NodeRecord`).
//! Shape: id 8 B ‖ IP 1 + 4 or 16 B ‖ port 2 B ‖ incarnation, zone, weight, protocol as varints: 25 B
//! with IPv4 and a start time as incarnation, 37 B with IPv6. It is in every SWIM header twice or
//! three times and in every update, so a byte here costs.
//! Invariants: of two lives of one node exactly one wins, and `renew` wins over what it renews.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeRef};
use crate::wire::ProtocolRange;

/// Incarnations above this are no node's: they leave no room to rise. (FAULTS 78.)
pub(crate) const INCARNATION_MAX: u64 = 1 << 62;

/// Weights above this are no node's: a ring of them would not fit in memory.
pub const WEIGHT_MAX: u16 = 64;

/// One life of one node, as SWIM gossips it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Compact", from = "Compact")]
pub struct Identity {
    /// Which life of which node.
    pub node: NodeRef,
    /// Where its mesh port is.
    pub addr: SocketAddr,
    /// Failure domain.
    pub zone: u16,
    /// Share of the ring.
    pub weight: u16,
    /// What it speaks.
    pub protocol_min: u16,
    /// What it speaks.
    pub protocol_max: u16,
}

impl Identity {
    /// Protocol versions it speaks.
    #[must_use]
    pub fn protocol(&self) -> ProtocolRange {
        ProtocolRange { min: self.protocol_min, max: self.protocol_max }
    }

    /// The same node in a life called `incarnation`.
    #[must_use]
    pub(crate) fn in_life(self, incarnation: u64) -> Self {
        Self { node: NodeRef { id: self.node.id, incarnation }, ..self }
    }

    /// Why no honest node has this identity; `None` if one may.
    pub(crate) fn nonsense(&self) -> Option<&'static str> {
        if self.node.incarnation >= INCARNATION_MAX {
            Some("incarnation out of range")
        } else if self.weight > WEIGHT_MAX {
            Some("weight out of range")
        } else if self.addr.port() == 0 || self.addr.ip().is_unspecified() || self.addr.ip().is_multicast() {
            Some("address nobody can be reached at")
        } else if self.protocol_min > self.protocol_max {
            Some("empty protocol range")
        } else {
            None
        }
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(self.in_life(self.node.incarnation + 1))
    }

    fn addr(&self) -> NodeId {
        self.node.id
    }

    /// The later life wins. Two nodes under one name and incarnation (an operator's mistake) are
    /// ordered by what else differs, so that all nodes choose alike.
    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self > adversary
    }
}

/// The identity's bytes: no varint for the hash, which has all its bits.
#[derive(Serialize, Deserialize)]
struct Compact {
    id: [u8; 8],
    ip: IpAddr,
    port: [u8; 2],
    incarnation: u64,
    zone: u16,
    weight: u16,
    protocol_min: u16,
    protocol_max: u16,
}

impl From<Identity> for Compact {
    fn from(identity: Identity) -> Self {
        Self {
            id: identity.node.id.0.to_le_bytes(),
            ip: identity.addr.ip(),
            port: identity.addr.port().to_le_bytes(),
            incarnation: identity.node.incarnation,
            zone: identity.zone,
            weight: identity.weight,
            protocol_min: identity.protocol_min,
            protocol_max: identity.protocol_max,
        }
    }
}

impl From<Compact> for Identity {
    fn from(compact: Compact) -> Self {
        Self {
            node: NodeRef { id: NodeId(u64::from_le_bytes(compact.id)), incarnation: compact.incarnation },
            addr: SocketAddr::new(compact.ip, u16::from_le_bytes(compact.port)),
            zone: compact.zone,
            weight: compact.weight,
            protocol_min: compact.protocol_min,
            protocol_max: compact.protocol_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    fn identity(incarnation: u64, addr: &str) -> Identity {
        Identity {
            node: NodeRef { id: NodeId::of_name("a"), incarnation },
            addr: addr.parse().unwrap(),
            zone: 1,
            weight: 1,
            protocol_min: 1,
            protocol_max: 1,
        }
    }

    #[test]
    fn it_is_small_and_comes_back_whole() {
        let started_2026 = 1_790_000_000_000;
        for (addr, len) in [("10.0.0.1:7400", 25), ("[2001:db8::1]:7400", 37)] {
            let identity = identity(started_2026, addr);
            let bytes = postcard::to_stdvec(&identity).unwrap();
            assert_eq!(bytes.len(), len);
            assert_eq!(postcard::from_bytes::<Identity>(&bytes).unwrap(), identity);
        }
    }

    #[test]
    fn the_later_life_wins_and_exactly_one_does() {
        let old = identity(5, "10.0.0.1:7400");
        let new = old.renew().unwrap();
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        let elsewhere = identity(5, "10.0.0.2:7400");
        assert!(old.win_addr_conflict(&elsewhere) != elsewhere.win_addr_conflict(&old));
    }
}
