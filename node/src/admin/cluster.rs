//! What the admin listener asks of the mesh and of the shards.
//!
//! Belongs here: the seam, so that answers can be tested without a network.
//! Stays out: what is made of it (`problems`, `status`).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_proto::id::{NodeId, NodeRef, ShardIx};
use mesh_proto::membership::Stats;
use mesh_proto::wire::{Answer, NodeStatus, Query};
use tokio::sync::oneshot;

use crate::handles::{ShardReport, Shards, ToShard, ViewWatch};
use crate::mesh::MeshHandle;

/// A shard, or a peer, that has not answered by then is reported as silent.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A future in a box.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The mesh, as far as operators ask about it.
pub trait Cluster: Send + Sync {
    /// The counts of a node, this one included; `None` when it does not answer.
    fn node_status(&self, node: NodeRef) -> Answering<'_, Option<NodeStatus>>;
    /// What gossip and links know; `None` before gossip has started.
    fn facts(&self) -> Answering<'_, Option<MeshFacts>>;
}

/// What gossip and links know.
#[derive(Clone, Debug, Default)]
pub struct MeshFacts {
    /// Ring digests as last heard.
    pub digests: BTreeMap<NodeId, u64>,
    /// Counts of the membership.
    pub gossip: Stats,
    /// The links.
    pub links: Vec<LinkFact>,
}

/// One link.
#[derive(Clone, Copy, Debug)]
pub struct LinkFact {
    /// The peer.
    pub peer: NodeRef,
    /// Whether a connection stands.
    pub connected: bool,
    /// Times full-sized datagrams vanished on the way.
    pub black_holes: u64,
    /// Datagrams lost.
    pub lost_packets: u64,
    /// Connections so far.
    pub connections_total: u64,
    /// Envelopes sent, repeats included.
    pub sent_total: u64,
    /// Envelopes sent again.
    pub resent_total: u64,
    /// Envelopes received.
    pub received_total: u64,
    /// Times everything under way was given up.
    pub resets_total: u64,
    /// Bytes the peer has not confirmed.
    pub unconfirmed_bytes: usize,
}

impl Cluster for MeshHandle {
    fn node_status(&self, node: NodeRef) -> Answering<'_, Option<NodeStatus>> {
        Box::pin(async move {
            match self.ask_node(node, Query::NodeStatus).await {
                Ok(Answer::NodeStatus(status)) => Some(status),
                _ => None,
            }
        })
    }

    fn facts(&self) -> Answering<'_, Option<MeshFacts>> {
        Box::pin(async move {
            let gossip = self.gossip().await?;
            let links = self.links().into_iter().map(|link| LinkFact {
                peer: link.peer,
                connected: link.connected_for.is_some(),
                black_holes: link.black_holes,
                lost_packets: link.lost_packets,
                connections_total: link.connections_total,
                sent_total: link.stats.sent_total,
                resent_total: link.stats.resent_total,
                received_total: link.stats.received_total,
                resets_total: link.stats.resets_total,
                unconfirmed_bytes: link.stats.unconfirmed_bytes,
            });
            let digests = gossip.digests.iter().map(|(node, heard)| (*node, heard.digest)).collect();
            Some(MeshFacts { digests, gossip: gossip.stats, links: links.collect() })
        })
    }
}

/// Each shard with its report; `None` for one that did not answer in time.
pub(super) async fn shard_reports(shards: &Shards) -> Vec<(ShardIx, Option<ShardReport>)> {
    let asked = shards.0.iter().map(|shard| async move {
        let (tx, rx) = oneshot::channel();
        let report = async {
            shard.tx.send(ToShard::Stats(tx)).await.ok()?;
            rx.await.ok()
        };
        (shard.shard, tokio::time::timeout(ANSWER_WITHIN, report).await.ok().flatten())
    });
    join_all(asked).await
}

/// The counts of this node, as it tells them its peers.
pub async fn own_status(shards: &Shards, view: &ViewWatch, uptime: Duration) -> NodeStatus {
    let reports = shard_reports(shards).await;
    let sum =
        |count: fn(&ShardReport) -> u64| reports.iter().filter_map(|(_, r)| r.as_ref()).map(count).sum();
    NodeStatus {
        clients: sum(|r| r.machine.clients),
        sessions: sum(|r| r.machine.sessions),
        rooms: sum(|r| r.machine.rooms),
        ring_digest: view.borrow().ring.digest(),
        uptime_secs: uptime.as_secs(),
    }
}
