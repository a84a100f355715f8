//! What this node knows of the cluster, as one value.
//!
//! Belongs here: nodes with what they announce, and the ring built from those that count.
//! Stays out: how it is learnt (`membership`).
//! Invariants: immutable once built; on the ring are only nodes that are up *and* active.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{NodeRef, Placement};
use crate::ring::{Ring, RingNode};

/// Where a node is in its life. Only `Active` ones are on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// Up, but not yet in possession of the whole membership.
    Joining,
    /// Owns its share.
    Active,
    /// Leaving: owns nothing any more, hands over.
    Draining,
}

/// What a node announces of itself: a versioned record, spread by gossip beside the membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Which life of which node this is about.
    pub node: NodeRef,
    /// Rises with each change; the highest wins.
    pub version: u64,
    /// The configured name.
    pub name: String,
    /// Joining, active or draining.
    pub state: NodeState,
    /// Where clients connect, as announced (for people and for the demo page).
    pub client_addr: String,
    /// Where `meshctl` connects.
    pub admin_addr: String,
    /// Where backends publish.
    pub api_addr: String,
    /// Threads, each with its part of sessions and rooms.
    pub shards: u16,
    /// The program's version.
    pub software: String,
}

/// One node of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its identity.
    pub node: NodeRef,
    /// Its mesh address: UDP, gossip and QUIC.
    pub mesh_addr: SocketAddr,
    /// Failure domain.
    pub zone: u16,
    /// Share of the ring.
    pub weight: u16,
    /// Whether SWIM suspects it at present.
    pub suspect: bool,
    /// What it announced; `None` until its record has arrived. Shared by all views that show it:
    /// under heavy loss suspicions come and go, and each is another view.
    pub record: Option<Arc<NodeRecord>>,
}

impl NodeInfo {
    /// Its state as announced; joining until the record has arrived.
    #[must_use]
    pub fn state(&self) -> NodeState {
        self.record.as_ref().map_or(NodeState::Joining, |r| r.state)
    }

    /// Its name as announced, else its id.
    #[must_use]
    pub fn name(&self) -> String {
        self.record.as_ref().map_or_else(|| format!("{:?}", self.node.id), |r| r.name.clone())
    }
}

/// The cluster as this node sees it at one moment. Shared by `Arc`, replaced as a whole.
#[derive(Clone, Debug)]
pub struct View {
    /// Rises with each view of this node.
    pub version: u64,
    /// This node.
    pub me: NodeRef,
    /// Every node that is up, this one included, ordered by id.
    pub nodes: Vec<NodeInfo>,
    /// The circle of those that are active; shared between views that differ in other things.
    pub ring: Arc<Ring>,
}

impl View {
    /// Builds the view and its ring. `nodes` must include this node.
    #[must_use]
    pub fn new(version: u64, me: NodeRef, mut nodes: Vec<NodeInfo>, vnodes: u32) -> Self {
        nodes.sort_by_key(|n| n.node);
        let ring = Arc::new(Ring::new(on_ring(&nodes), vnodes));
        Self { version, me, nodes, ring }
    }

    /// The view after this one. The ring is built anew only if other nodes are on it.
    #[must_use]
    pub fn next(&self, me: NodeRef, mut nodes: Vec<NodeInfo>, vnodes: u32) -> Self {
        nodes.sort_by_key(|n| n.node);
        let version = self.version + 1;
        if on_ring(&nodes).eq(self.ring.nodes().iter().copied()) {
            Self { version, me, nodes, ring: self.ring.clone() }
        } else {
            Self::new(version, me, nodes, vnodes)
        }
    }

    /// Whether the same lives of the same nodes are up in `other`, and own the same.
    #[must_use]
    pub fn is_same_mesh(&self, other: &Self) -> bool {
        let state = |n: &NodeInfo| (n.node, n.state());
        self.me == other.me
            && self.ring.digest() == other.ring.digest()
            && self.nodes.iter().map(state).eq(other.nodes.iter().map(state))
    }

    /// The node that owns `placement`; `None` while nobody is active.
    #[must_use]
    pub fn owner(&self, placement: Placement) -> Option<NodeRef> {
        self.ring.owner(placement)
    }

    /// The node `node`, if that very life of it is up.
    #[must_use]
    pub fn node(&self, node: NodeRef) -> Option<&NodeInfo> {
        let at = self.nodes.binary_search_by_key(&node, |n| n.node).ok()?;
        Some(&self.nodes[at])
    }

    /// Whether that life of a node is up.
    #[must_use]
    pub fn is_up(&self, node: NodeRef) -> bool {
        self.node(node).is_some()
    }

    /// Whether this node owns `placement`.
    #[must_use]
    pub fn owns(&self, placement: Placement) -> bool {
        self.owner(placement) == Some(self.me)
    }
}

/// Those of `nodes` that count, in their order.
fn on_ring(nodes: &[NodeInfo]) -> impl Iterator<Item = RingNode> {
    let active = nodes.iter().filter(|n| n.state() == NodeState::Active);
    active.map(|n| RingNode { node: n.node, zone: n.zone, weight: n.weight })
}
