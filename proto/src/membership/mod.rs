//! Who is in the cluster.
//!
//! Belongs here: SWIM (by the crate `foca`), joining, the sealing of its datagrams, records of what
//! nodes announce, and the [`View`] made of all that.
//! Stays out: sockets and clocks (`node::mesh`), placement (`ring`), links.
//! Units: datagrams are at most [`PACKET_BYTES_MAX`] bytes, sealed.
//! Invariants: [`Membership::check_invariants`]; I11 of DESIGN §13 (no node is declared down that was
//! up, reachable and unpaused for the whole suspicion time).

mod identity;
mod notice;
mod timing;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

pub use identity::{Identity, WEIGHT_MAX};
pub use notice::{Mismatch, Notice, Peer};
pub use timing::Timing;

use crate::id::{NodeId, NodeRef};
use crate::keys::ClusterKey;
use crate::time::Instant;
use crate::view::{NodeInfo, NodeRecord, NodeState, View};

/// The largest datagram, sealed: fits any path that QUIC fits.
pub const PACKET_BYTES_MAX: usize = 1_200;

/// Nodes of one cluster. More are not taken in.
pub const NODES_MAX: usize = 1_000;

/// Whether a datagram with this first byte is this module's. QUIC sets bit 0x40 of each packet
/// (RFC 9000 §17.2, §17.3; nobody may grease it here), gossip never does (after RFC 9443).
#[must_use]
pub fn is_gossip(first_byte: u8) -> bool {
    first_byte & 0x40 == 0
}

/// What one node's membership starts from.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    /// This node and the least incarnation it will take: milliseconds since 1970 do well, but
    /// nothing depends on them. If the cluster remembers a later life, it takes that one's
    /// incarnation + 1.
    pub me: NodeRef,
    /// The node's name; `me.id` is its hash.
    pub name: String,
    /// Where peers reach this node's mesh port.
    pub mesh_addr: SocketAddr,
    /// Failure domain.
    pub zone: u16,
    /// Share of the ring, 1 to [`WEIGHT_MAX`].
    pub weight: u16,
    /// Where clients connect, as announced.
    pub client_addr: String,
    /// Where `meshctl` connects, as announced.
    pub admin_addr: String,
    /// Where backends publish, as announced.
    pub api_addr: String,
    /// Threads of this node.
    pub shards: u16,
    /// The program's version.
    pub software: String,
    /// Mesh addresses to join by; this node's own among them does no harm. None: begin a cluster.
    pub seeds: Vec<SocketAddr>,
    /// Vnodes per unit of weight; the same on all nodes.
    pub vnodes: u32,
    /// The clockwork.
    pub timing: Timing,
    /// The cluster's secret.
    pub cluster_key: ClusterKey,
    /// Hash of the cluster's name.
    pub cluster_id: u64,
    /// 64 random bits of the operating system, drawn at each start. Nonces depend on it.
    pub boot_id: u64,
    /// Seed of this node's random choices.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram for which [`is_gossip`] holds. Opened in place.
    Datagram {
        /// Its source address.
        from: SocketAddr,
        /// Its bytes.
        bytes: &'a mut [u8],
    },
    /// The seeds' names were resolved again. An empty list is ignored: the last one stays.
    Seeds(Vec<SocketAddr>),
    /// Announce draining: the ring stops naming this node.
    Drain,
    /// Take that back.
    CancelDrain,
    /// Leave for good; [`Notice::Left`] follows when the others have been told.
    Leave,
    /// The time of [`Membership::next_deadline`] has come. Hand in waiting datagrams first.
    Timer,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send it; if the socket is full, drop it.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// At most [`PACKET_BYTES_MAX`].
        bytes: Bytes,
    },
    /// The cluster looks different from now on.
    View(Arc<View>),
    /// Tell people.
    Notice(Notice),
}

/// A ring digest that a peer sent with its datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardDigest {
    /// The digest of its ring.
    pub digest: u64,
    /// When it came last.
    pub at: Instant,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams in, all.
    pub received: u64,
    /// Datagrams out, all.
    pub sent: u64,
    /// Bytes in, sealed.
    pub received_bytes: u64,
    /// Bytes out, sealed.
    pub sent_bytes: u64,
    /// Dropped: no packet of ours, or not opened by our key although it claims to be.
    pub junk: u64,
    /// Dropped: seen before, or older than the replay window.
    pub replayed: u64,
    /// Dropped: other key, cluster or protocol.
    pub mismatched: u64,
    /// Dropped after opening: malformed, impossible or over a bound.
    pub refused: u64,
    /// Suspicions seen (raised here or elsewhere).
    pub suspicions: u64,
    /// Nodes that went down, restarts not counted.
    pub downs: u64,
    /// Times this node was declared down and came back as another life.
    pub rejoins: u64,
    /// Full exchanges completed.
    pub exchanges: u64,
    /// Timers that came later than `Timing::lateness_forgiven`.
    pub late: u64,
    /// The worst lateness of a timer, in microseconds.
    pub lateness_max_micros: u64,
    /// Views published.
    pub views: u64,
}

/// The membership of one node. Call [`Self::handle`], then [`Self::poll`] until `None`, then sleep
/// until [`Self::next_deadline`].
#[derive(Debug)]
pub struct Membership {
    outputs: VecDeque<Output>,
    digests: BTreeMap<NodeId, HeardDigest>,
    view: Arc<View>,
    stats: Stats,
}

impl Membership {
    /// A node that has just started.
    #[must_use]
    pub fn new(_now: Instant, config: MembershipConfig) -> Self {
        let alone = config.seeds.iter().all(|seed| *seed == config.mesh_addr);
        let state = if alone { NodeState::Active } else { NodeState::Joining };
        let record = NodeRecord {
            node: config.me,
            version: 1,
            name: config.name,
            state,
            client_addr: config.client_addr,
            admin_addr: config.admin_addr,
            api_addr: config.api_addr,
            shards: config.shards,
            software: config.software,
        };
        let me = NodeInfo {
            node: config.me,
            mesh_addr: config.mesh_addr,
            zone: config.zone,
            weight: config.weight,
            suspect: false,
            record: Some(record),
        };
        let view = Arc::new(View::new(1, config.me, vec![me], config.vnodes));
        let outputs = VecDeque::from([Output::View(view.clone())]);
        Self { outputs, digests: BTreeMap::new(), view, stats: Stats::default() }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, _now: Instant, input: Input<'_>) {
        if let Input::Datagram { bytes, .. } = input {
            self.stats.received += 1;
            self.stats.received_bytes += bytes.len() as u64;
        }
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with [`Input::Timer`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The cluster as of now.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Ring digests as last heard from each node that is up.
    #[must_use]
    pub fn digests(&self) -> &BTreeMap<NodeId, HeardDigest> {
        &self.digests
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        assert!(self.view.node(self.view.me).is_some(), "this node is in its own view");
    }
}
