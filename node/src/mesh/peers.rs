//! Who can be written to: one entry per peer of the view, and the only way to its link task.
//!
//! Belongs here: the table, its upkeep from the view, the bounded queue in front of each link.
//! Stays out: the link task (`link`), membership (`gossip`).
//! Invariants: the view that shards see is published after its links exist, so a shard never writes
//! to a peer of its view that has no queue; a peer that left the view has its link ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::NodeRef;
use mesh_proto::link::LinkStats;
use mesh_proto::view::View;
use mesh_proto::wire::Lane;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hello::Greeted;

/// Envelopes between the shards and one link task, which moves them into the link's own bounded
/// memory whenever it runs. Full: the mesh thread has not run for a while; the shards keep what they
/// have and come back.
pub(crate) const PEER_QUEUE_LEN: usize = 16_384;

/// Bytes of the same.
pub(crate) const PEER_QUEUE_BYTES: usize = 16 << 20;

/// Connections greeted by the acceptor and not yet taken by the link task. Full: the connection is
/// dropped; its dialler tries again.
pub(crate) const GREETED_LEN: usize = 4;

/// An envelope was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The queue of the link is full: keep it and come back.
    #[error("the queue of the peer's link is full")]
    Full,
    /// The view has no such life of a node: it is down, and what is for it has no receiver.
    #[error("no such peer")]
    NoSuchPeer,
}

/// What is known of one link, for status and metrics.
#[derive(Clone, Debug)]
pub struct LinkFacts {
    /// The peer.
    pub peer: NodeRef,
    /// Its mesh address.
    pub addr: SocketAddr,
    /// How long the present connection has stood; `None` while there is none.
    pub connected_for: Option<Duration>,
    /// Round trip of the present connection.
    pub rtt: Option<Duration>,
    /// Times a connection stood.
    pub connections_total: u64,
    /// Datagrams lost on the present connection.
    pub lost_packets: u64,
    /// Bytes of the datagrams sent on the present connection, UDP/IP headers left out.
    pub sent_bytes: u64,
    /// Bytes of the datagrams received on it.
    pub received_bytes: u64,
    /// Datagrams sent on it.
    pub sent_datagrams: u64,
    /// Black holes quinn believes to have met on the present connection: should be 0.
    pub black_holes: u64,
    /// Counts of the link machine.
    pub stats: LinkStats,
}

/// Written by the link task after each of its turns, read for status. Locked for a copy only.
#[derive(Debug, Default)]
pub(crate) struct LinkReport {
    pub(crate) connection: Option<(Instant, quinn::Connection)>,
    pub(crate) connections_total: u64,
    pub(crate) stats: LinkStats,
}

/// What the link task and the writers to it share.
#[derive(Debug, Default)]
pub(crate) struct PeerShared {
    /// Bytes in the queue.
    queued_bytes: AtomicUsize,
    report: Mutex<LinkReport>,
}

impl PeerShared {
    /// The link task has taken so many bytes out of the queue.
    pub(crate) fn taken(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Changes the report.
    pub(crate) fn report(&self, change: impl FnOnce(&mut LinkReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The writing end to one link task.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeRef,
    pub(crate) addr: SocketAddr,
    pub(crate) shared: Arc<PeerShared>,
    pub(crate) greeted: mpsc::Sender<Greeted>,
    pub(crate) stop: CancellationToken,
    queue: mpsc::Sender<(Lane, Bytes)>,
}

/// The link task's ends of a [`Peer`].
#[derive(Debug)]
pub(crate) struct PeerEnds {
    pub(crate) queue: mpsc::Receiver<(Lane, Bytes)>,
    pub(crate) greeted: mpsc::Receiver<Greeted>,
}

impl Peer {
    pub(crate) fn new(node: NodeRef, addr: SocketAddr, stop: CancellationToken) -> (Self, PeerEnds) {
        let (queue_tx, queue) = mpsc::channel(PEER_QUEUE_LEN);
        let (greeted_tx, greeted) = mpsc::channel(GREETED_LEN);
        let peer = Self { node, addr, shared: Arc::default(), greeted: greeted_tx, stop, queue: queue_tx };
        (peer, PeerEnds { queue, greeted })
    }

    fn try_send(&self, lane: Lane, envelope: Bytes) -> Result<(), NotSent> {
        let len = envelope.len();
        let queued = self.shared.queued_bytes.fetch_add(len, Ordering::Relaxed);
        if queued + len <= PEER_QUEUE_BYTES && self.queue.try_send((lane, envelope)).is_ok() {
            return Ok(());
        }
        self.shared.queued_bytes.fetch_sub(len, Ordering::Relaxed);
        Err(NotSent::Full)
    }

    fn facts(&self) -> LinkFacts {
        let report = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = report.connection.as_ref();
        let stats = connection.map(|(_, connection)| connection.stats());
        let path = stats.map(|stats| stats.path);
        LinkFacts {
            peer: self.node,
            addr: self.addr,
            connected_for: connection.map(|(since, _)| since.elapsed()),
            rtt: path.map(|path| path.rtt),
            connections_total: report.connections_total,
            sent_bytes: stats.map_or(0, |stats| stats.udp_tx.bytes),
            received_bytes: stats.map_or(0, |stats| stats.udp_rx.bytes),
            sent_datagrams: stats.map_or(0, |stats| stats.udp_tx.datagrams),
            lost_packets: path.map_or(0, |path| path.lost_packets),
            black_holes: path.map_or(0, |path| path.black_holes_detected),
            stats: report.stats,
        }
    }
}

/// All peers of one view, ordered by node.
#[derive(Debug, Default)]
pub(crate) struct Peers(Vec<Peer>);

impl Peers {
    /// The entry of that life of a node.
    pub(crate) fn find(&self, node: NodeRef) -> Option<&Peer> {
        let at = self.0.binary_search_by_key(&node, |peer| peer.node).ok()?;
        Some(&self.0[at])
    }

    /// Whether a peer has this mesh address.
    pub(crate) fn has_addr(&self, addr: SocketAddr) -> bool {
        self.0.iter().any(|peer| peer.addr == addr)
    }

    /// Queues an encoded envelope for a peer.
    pub(crate) fn try_send(&self, to: NodeRef, lane: Lane, envelope: Bytes) -> Result<(), NotSent> {
        self.find(to).ok_or(NotSent::NoSuchPeer)?.try_send(lane, envelope)
    }

    /// What is known of each link.
    pub(crate) fn facts(&self) -> Vec<LinkFacts> {
        self.0.iter().map(Peer::facts).collect()
    }
}

/// Keeps the table equal to the view, then shows the view to everyone else. `start` begins the link
/// of a new peer. Ends when the source of views is gone.
pub(crate) async fn keep(
    mut views: watch::Receiver<Arc<View>>,
    shown: watch::Sender<Arc<View>>,
    table: watch::Sender<Arc<Peers>>,
    mut start: impl FnMut(NodeRef, SocketAddr) -> Peer,
) {
    let mut me = views.borrow().me;
    loop {
        let view = views.borrow_and_update().clone();
        let old = table.borrow().clone();
        // Another life of this node has no link in common with the last one.
        let kept = |node| if me == view.me { old.find(node).cloned() } else { None };
        let mut peers: Vec<Peer> = Vec::with_capacity(view.nodes.len());
        for info in view.nodes.iter().filter(|info| info.node.id != view.me.id) {
            peers.push(kept(info.node).unwrap_or_else(|| start(info.node, info.mesh_addr)));
        }
        let ended: Vec<&Peer> =
            old.0.iter().filter(|peer| me != view.me || view.node(peer.node).is_none()).collect();
        table.send_replace(Arc::new(Peers(peers)));
        for peer in ended {
            peer.stop.cancel();
        }
        me = view.me;
        shown.send_replace(view);
        if views.changed().await.is_err() {
            return;
        }
    }
}
