//! What goes into the membership and what comes out.
//!
//! Belongs here: the types its driver sees. Stays out: behaviour (`machine`).

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::{Notice, Timing};
use crate::id::{NodeId, NodeRef};
use crate::keys::ClusterKey;
use crate::time::Instant;
use crate::view::View;

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
    /// Share of the ring, 1 to [`super::WEIGHT_MAX`].
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

impl MembershipConfig {
    /// A node in its first life with LAN timings, one shard and 256 vnodes, that begins a cluster and
    /// announces no addresses. `boot_id` must be another one at each start; it is also the seed.
    #[must_use]
    pub fn new(name: &str, mesh_addr: SocketAddr, cluster_key: ClusterKey, boot_id: u64) -> Self {
        Self {
            me: NodeRef { id: NodeId::of_name(name), incarnation: 1 },
            name: name.to_owned(),
            mesh_addr,
            zone: 0,
            weight: 1,
            client_addr: String::new(),
            admin_addr: String::new(),
            api_addr: String::new(),
            shards: 1,
            software: String::new(),
            seeds: Vec::new(),
            vnodes: 256,
            timing: Timing::lan(),
            cluster_key,
            cluster_id: 1,
            boot_id,
            seed: boot_id,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram for which [`super::is_gossip`] holds. Opened in place.
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
    /// The time of [`super::Membership::next_deadline`] has come. Hand in waiting datagrams first.
    Timer,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send it; if the socket is full, drop it.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// At most [`super::PACKET_BYTES_MAX`].
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
    /// Not a count: how many times `Timing::suspect_for` this node's suspicions last at present; 1
    /// unless it has reason to doubt itself.
    pub stretch: u32,
    /// Views published.
    pub views: u64,
}
