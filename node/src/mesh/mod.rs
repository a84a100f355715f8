//! The mesh port of a node: gossip and links on one UDP socket, on threads of their own.
//!
//! Belongs here: starting and stopping both, the handle by which the rest of the node uses them.
//! Stays out: what envelopes say, what the membership decides (`mesh_proto`).
//!
//! | thread | owns | driven by |
//! |---|---|---|
//! | `gossip` | the membership machine | its datagrams and timers, nothing else |
//! | `mesh` | the QUIC endpoint, one task per link | the socket, the shards' queues |
//!
//! Invariants: there is no plaintext and no unauthenticated mode; the loss of a connection is never a
//! verdict on a peer, only membership's view is.

mod accept;
mod calls;
mod congestion;
mod endpoint;
mod gossip;
mod hello;
mod link;
mod links;
mod peers;
mod priority;
mod readable;
mod reader;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::NodeRef;
use mesh_proto::link::LinkLimits;
use mesh_proto::membership::MembershipConfig;
use mesh_proto::view::{NodeInfo, NodeRecord, NodeState, View};
use mesh_proto::wire::{Answer, CommandFailed, ENVELOPE_BYTES_MAX, Lane, ProtocolRange, Query};
use tokio::sync::{oneshot, watch};

pub use calls::NodeStatusSource;
pub use endpoint::{EndpointConfig, MTU_MAX};
pub use gossip::{GossipFacts, Standing};
pub use peers::{LinkFacts, NotSent};
pub use tls::TlsError;

use crate::clock::Clock;
use crate::handles::{Shards, ViewWatch};
use crate::shard::{Full, Outbound};
use crate::tasks::{self, OnPanic, Tasks};
use endpoint::DatagramCounts;
use gossip::{GOSSIP_QUEUE_LEN, GossipThread, ToGossip};
use links::{Links, LinksConfig};
use reader::Reader;
use tls::Tls;
pub(crate) use tunnel::Tunnels;

/// How often the names of seeds are resolved again: they may move while the cluster lives.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// The same while none of them has ever resolved.
const RESOLVE_FIRST_EVERY: Duration = Duration::from_secs(1);
/// How long [`MeshHandle::leave`] waits for the others to be told.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long closing waits for what the links still have to send.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);
/// How often it looks.
const FLUSH_LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the mesh is built from.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The port.
    pub endpoint: EndpointConfig,
    /// `host:port` of nodes to join by. Names are resolved again and again. None: begin a cluster.
    pub seeds: Vec<String>,
    /// Who this node is. `seeds` is filled in from the names above; `mesh_addr` is what peers are
    /// told, its port, when 0, the one that was bound.
    pub membership: MembershipConfig,
    /// What a link may keep for its peer.
    pub limits: LinkLimits,
}

/// The mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The address cannot be bound: in use, not of this host, not permitted.
    #[error("cannot bind the mesh port {addr}")]
    Bind {
        /// Which.
        addr: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// Peers cannot be told 0.0.0.0.
    #[error("the mesh address {0} names no host: say which address peers are to use")]
    Unspecified(SocketAddr),
    /// No certificates.
    #[error("no certificate for the mesh")]
    Tls(#[from] TlsError),
    /// No thread, runtime or endpoint.
    #[error("cannot start the mesh")]
    Start(#[source] io::Error),
}

/// The running mesh. Dropping it without [`Mesh::stop`] leaves its threads to the process's end.
#[derive(Debug)]
pub struct Mesh {
    handle: MeshHandle,
    tasks: Tasks,
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl Mesh {
    /// Binds the port and starts both threads. `shards` receive envelopes from then on; `status`
    /// answers peers that ask for this node's counts.
    ///
    /// # Errors
    /// [`MeshError`], above all when the port is taken.
    pub fn start(
        mut config: MeshConfig,
        shards: Shards,
        status: NodeStatusSource,
    ) -> Result<Self, MeshError> {
        let listen = config.endpoint.listen;
        let bind_error = |source| MeshError::Bind { addr: listen, source };
        let socket = endpoint::bind(listen).map_err(bind_error)?;
        let bound = socket.local_addr().map_err(bind_error)?;
        let announced = &mut config.membership.mesh_addr;
        if announced.ip().is_unspecified() {
            announced.set_ip(bound.ip());
        }
        if announced.port() == 0 {
            announced.set_port(bound.port());
        }
        if announced.ip().is_unspecified() {
            return Err(MeshError::Unspecified(*announced));
        }
        let tls = Tls::new(&config.membership.cluster_key, &config.membership.name)?;

        let tasks = Tasks::new();
        let (stop, stopped) = oneshot::channel();
        let (started_tx, started) = sync_channel(1);
        let runner = Runner { config, socket, bound, tls, shards, status, tasks: tasks.clone() };
        let thread = std::thread::Builder::new()
            .name("mesh".into())
            .spawn(move || runner.run(stopped, &started_tx))
            .map_err(MeshError::Start)?;
        let handle = started.recv().unwrap_or_else(|_| Err(io::Error::other("the mesh thread ended")));
        Ok(Self { handle: handle.map_err(MeshError::Start)?, tasks, stop, thread })
    }

    /// The way to use it; cheap to clone.
    #[must_use]
    pub fn handle(&self) -> &MeshHandle {
        &self.handle
    }

    /// Completes when a part of the mesh has panicked without which the node cannot go on.
    pub async fn failed(&self) {
        self.tasks.failed().cancelled().await;
    }

    /// Sends what waits, closes all links with a reason and ends both threads within `deadline`.
    /// Call [`MeshHandle::leave`] first, so that the peers do not have to find out.
    pub async fn stop(self, deadline: Duration) {
        let _ = self.stop.send(deadline);
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        let _ = tokio::time::timeout(deadline + deadline, joined).await;
    }
}

/// How the rest of the node uses the mesh.
#[derive(Clone)]
pub struct MeshHandle {
    links: Links,
    tunnels: Tunnels,
    gossip: SyncSender<ToGossip>,
    standing: watch::Receiver<Standing>,
    datagrams: Arc<DatagramCounts>,
    bound: SocketAddr,
    announced: SocketAddr,
}

impl std::fmt::Debug for MeshHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshHandle").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl MeshHandle {
    /// Queues an encoded envelope for a peer of the view. Cheap; never waits. Envelopes to this
    /// node itself do not belong here.
    ///
    /// # Errors
    /// [`NotSent`]; nothing was taken.
    ///
    /// # Panics
    /// For an envelope over [`ENVELOPE_BYTES_MAX`].
    pub fn try_send(&self, to: NodeRef, lane: Lane, envelope: Bytes) -> Result<(), NotSent> {
        assert!(envelope.len() <= ENVELOPE_BYTES_MAX, "an envelope of {} bytes", envelope.len());
        self.links.peers.borrow().try_send(to, lane, envelope)
    }

    /// Asks a node, this one included, about itself and waits for its answer.
    ///
    /// # Errors
    /// [`CommandFailed::NotFound`] when it is not in the view, [`CommandFailed::Timeout`] after two
    /// seconds, [`CommandFailed::Overloaded`] when too many calls are under way on either side.
    pub async fn ask_node(&self, node: NodeRef, query: Query) -> Result<Answer, CommandFailed> {
        self.links.calls.ask(node, query).await
    }

    /// Byte streams to the servers beside other nodes.
    pub(crate) fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// The newest view. It is shown only when the links to its peers exist.
    #[must_use]
    pub fn view(&self) -> ViewWatch {
        self.links.view.clone()
    }

    /// Each link as it stands, ordered by peer.
    #[must_use]
    pub fn links(&self) -> Vec<LinkFacts> {
        self.links.peers.borrow().facts()
    }

    /// What the membership knows; `None` before the first seed's name has resolved, or when the
    /// gossip thread has no room for the question.
    pub async fn gossip(&self) -> Option<GossipFacts> {
        let (tx, rx) = oneshot::channel();
        self.gossip.try_send(ToGossip::Facts(tx)).ok()?;
        tokio::time::timeout(Duration::from_secs(1), rx).await.ok()?.ok()
    }

    /// Gossip datagrams taken from the socket, and those of them dropped because the gossip thread
    /// was behind.
    #[must_use]
    pub fn datagrams(&self) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.datagrams.received.load(Relaxed), self.datagrams.dropped.load(Relaxed))
    }

    /// What the node must act on: its name being taken, having left.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The address the port is bound to.
    #[must_use]
    pub fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// The address peers are told.
    #[must_use]
    pub fn announced(&self) -> SocketAddr {
        self.announced
    }

    /// Announces that this node drains (the ring stops naming it), or takes that back. Whether the
    /// gossip thread had room for it.
    pub fn drain(&self, draining: bool) -> bool {
        self.gossip.try_send(ToGossip::Drain(draining)).is_ok()
    }

    /// Waits until the peers have confirmed everything sent to them, for half a second at most.
    pub async fn flush(&self) {
        flushed(&self.links).await;
    }

    /// Tells the others that this node leaves; whether they were told within two seconds.
    pub async fn leave(&self) -> bool {
        if self.gossip.try_send(ToGossip::Leave).is_err() {
            return false;
        }
        let mut standing = self.standing.clone();
        let left = standing.wait_for(|standing| standing.left);
        matches!(tokio::time::timeout(LEAVE_WITHIN, left).await, Ok(Ok(_)))
    }
}

impl Outbound for MeshHandle {
    fn try_send(&self, to: NodeRef, lane: Lane, envelope: Bytes) -> Result<(), Full> {
        match self.try_send(to, lane, envelope) {
            Err(NotSent::Full) => Err(Full),
            Ok(()) | Err(NotSent::NoSuchPeer) => Ok(()),
        }
    }
}

/// What the mesh thread runs.
struct Runner {
    config: MeshConfig,
    socket: UdpSocket,
    bound: SocketAddr,
    tls: Tls,
    shards: Shards,
    status: NodeStatusSource,
    tasks: Tasks,
}

impl Runner {
    fn run(self, stop: oneshot::Receiver<Duration>, started: &SyncSender<io::Result<MeshHandle>>) {
        let runtime = match tasks::thread_runtime() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        runtime.block_on(async {
            match self.start() {
                Ok(handle) => {
                    let (links, gossip) = (handle.links.clone(), handle.gossip.clone());
                    let _ = started.send(Ok(handle));
                    // Dropped without a word: the node is gone, so is the mesh.
                    let deadline = stop.await.unwrap_or(FLUSH_WITHIN);
                    flushed(&links).await;
                    links.stop(deadline).await;
                    let _ = gossip.try_send(ToGossip::Stop);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
    }

    fn start(self) -> io::Result<MeshHandle> {
        let Self { config, socket, bound, tls, shards, status, tasks } = self;
        let clock = Clock::start();
        let (gossip, inputs) = sync_channel(GOSSIP_QUEUE_LEN);
        let gossip_socket = socket.try_clone()?;
        let membership = config.membership;
        let sink = gossip.clone();
        let sink = Box::new(move |from, bytes| gossip::offer(&sink, from, bytes));
        let (endpoint, datagrams) =
            endpoint::quic(socket, &config.endpoint, &membership.cluster_key, &tls, sink)?;

        let (views, view) = watch::channel(Arc::new(alone(&membership)));
        let (standing_tx, standing) = watch::channel(Standing::default());
        let announced = membership.mesh_addr;
        let tunnel_client = tunnel::client(&tls, &config.endpoint);
        let tunnels = Tunnels::new(endpoint.clone(), tunnel_client, membership.cluster_id, view.clone());
        let links = LinksConfig {
            endpoint,
            name: membership.name.clone(),
            cluster_id: membership.cluster_id,
            protocol: ProtocolRange::OURS,
            limits: config.limits,
            shards,
            status,
            tunnels: tunnels.sink(),
            clock,
            tasks: tasks.clone(),
        };
        let links = Links::start(links, view);
        let reader = Reader::new(gossip_socket.try_clone()?, datagrams.clone());
        let thread =
            GossipThread { socket: gossip_socket, reader, inputs, views, standing: standing_tx, clock };
        let (seeds, inbox, stopping) = (config.seeds, gossip.clone(), tasks.stopping());
        tasks.spawn("mesh-seeds", OnPanic::EndNode, async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = join_by(seeds, thread, membership, inbox) => {}
            }
        });
        Ok(MeshHandle { links, tunnels, gossip, standing, datagrams, bound, announced })
    }
}

/// The view before the membership speaks: this node alone, not active.
fn alone(config: &MembershipConfig) -> View {
    let record = NodeRecord {
        node: config.me,
        version: 0,
        name: config.name.clone(),
        state: NodeState::Joining,
        client_addr: config.client_addr.clone(),
        admin_addr: config.admin_addr.clone(),
        api_addr: config.api_addr.clone(),
        shards: config.shards,
        software: config.software.clone(),
    };
    let me = NodeInfo {
        node: config.me,
        mesh_addr: config.mesh_addr,
        zone: config.zone,
        weight: config.weight,
        suspect: false,
        record: Some(record.into()),
    };
    View::new(0, config.me, vec![me], config.vnodes)
}

/// Starts the gossip thread as soon as one seed's name resolves (a node whose seeds cannot be found
/// must not begin a cluster of its own), then keeps the addresses fresh.
async fn join_by(
    seeds: Vec<String>,
    thread: GossipThread,
    mut config: MembershipConfig,
    inbox: SyncSender<ToGossip>,
) {
    let mut resolved = resolve(&seeds).await;
    while resolved.is_empty() && !seeds.is_empty() {
        tracing::warn!(?seeds, "no seed's name resolves; owning nothing until one does");
        tokio::time::sleep(RESOLVE_FIRST_EVERY).await;
        resolved = resolve(&seeds).await;
    }
    config.seeds = resolved.clone();
    if let Err(error) = thread.start(config) {
        panic!("the operating system gives no thread for gossip: {error}");
    }
    while !seeds.is_empty() {
        tokio::time::sleep(RESOLVE_EVERY).await;
        let again = resolve(&seeds).await;
        if again != resolved && inbox.try_send(ToGossip::Seeds(again.clone())).is_ok() {
            resolved = again;
        }
    }
}

/// Every address of every name that resolves, sorted.
async fn resolve(seeds: &[String]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for seed in seeds {
        match tokio::net::lookup_host(seed).await {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!(seed, %error, "seed does not resolve"),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Waits until the links have nothing left to send, for a short while.
async fn flushed(links: &Links) {
    let waiting = async {
        let unconfirmed = || {
            let facts = links.peers.borrow().facts();
            facts.iter().any(|link| link.connected_for.is_some() && link.stats.unconfirmed_len > 0)
        };
        while unconfirmed() {
            tokio::time::sleep(FLUSH_LOOK_EVERY).await;
        }
    };
    let _ = tokio::time::timeout(FLUSH_WITHIN, waiting).await;
}
