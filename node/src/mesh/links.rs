//! All links of a node: wiring of the table, the acceptor and the link tasks.
//!
//! Belongs here: starting and stopping them. Stays out: what they do; gossip (views come from outside).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_proto::link::LinkLimits;
use mesh_proto::view::View;
use mesh_proto::wire::ProtocolRange;
use quinn::VarInt;
use tokio::sync::watch;

use super::accept;
use super::calls::{NodeCalls, NodeStatusSource};
use super::hello::{CloseReason, Local};
use super::link::{LinkContext, LinkTask};
use super::peers::{self, Peer, Peers};
use super::tunnel::TunnelSink;
use crate::clock::Clock;
use crate::handles::{Shards, ViewWatch};
use crate::tasks::{OnPanic, Tasks};

/// What links are built from.
pub(crate) struct LinksConfig {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) name: String,
    pub(crate) cluster_id: u64,
    pub(crate) protocol: ProtocolRange,
    pub(crate) limits: LinkLimits,
    pub(crate) shards: Shards,
    pub(crate) status: NodeStatusSource,
    pub(crate) tunnels: TunnelSink,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
}

/// The running links.
#[derive(Clone)]
pub(crate) struct Links {
    /// The view, shown once the links of its peers exist.
    pub(crate) view: ViewWatch,
    pub(crate) peers: watch::Receiver<Arc<Peers>>,
    pub(crate) calls: Arc<NodeCalls>,
    endpoint: quinn::Endpoint,
    tasks: Tasks,
}

impl Links {
    /// Starts links to the peers of `views`, now and as it changes.
    pub(crate) fn start(config: LinksConfig, views: watch::Receiver<Arc<View>>) -> Self {
        let LinksConfig {
            endpoint,
            name,
            cluster_id,
            protocol,
            limits,
            shards,
            status,
            tunnels,
            clock,
            tasks,
        } = config;
        let (shown, view) = watch::channel(views.borrow().clone());
        let (table, peers) = watch::channel(Arc::<Peers>::default());
        // Hellos carry the newest view of ourselves, also before it is shown to the shards.
        let local = Local { name, cluster_id, protocol, view: views.clone() };
        let calls = Arc::new(NodeCalls::new(status, view.clone(), peers.clone(), tasks.clone()));
        let context = Arc::new(LinkContext {
            endpoint: endpoint.clone(),
            local: local.clone(),
            shards,
            calls: calls.clone(),
            clock,
            limits,
        });
        let accepting = accept::run(endpoint.clone(), local, peers.clone(), tunnels, tasks.clone());
        tasks.spawn("mesh-acceptor", OnPanic::EndNode, accepting);

        let instances = AtomicU64::new(1);
        let (links, stopping) = (tasks.clone(), tasks.stopping());
        let start = move |node, addr| {
            let (peer, ends) = Peer::new(node, addr, stopping.child_token());
            let instance = instances.fetch_add(1, Ordering::Relaxed);
            let task = LinkTask::new(context.clone(), (node, addr), instance, peer.shared.clone(), ends);
            let run = task.run(peer.stop.clone(), stopping.clone());
            links.spawn(format!("link/{node:?}"), OnPanic::EndNode, run);
            peer
        };
        let stopping = tasks.stopping();
        let keeping = peers::keep(views, shown, table, start);
        tasks.spawn("mesh-peers", OnPanic::EndNode, async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = keeping => {}
            }
        });
        Self { view, peers, calls, endpoint, tasks }
    }

    /// Closes all connections, each with a reason, and ends the tasks.
    pub(crate) async fn stop(self, deadline: Duration) {
        let (stopping, within) = (self.tasks.stopping(), deadline / 2);
        stopping.cancel();
        self.endpoint.set_server_config(None);
        let _ = tokio::time::timeout(within, self.tasks.stop(within)).await;
        self.endpoint.close(VarInt::from_u32(CloseReason::Stopping as u32), b"Stopping");
        let _ = tokio::time::timeout(within, self.endpoint.wait_idle()).await;
    }
}
