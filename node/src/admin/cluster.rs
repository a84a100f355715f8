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
use mesh_proto::shard::ShardStats;
use mesh_proto::wire::{
    Answer, CommandFailed, DrainCommand, DrainStatus, NodeStatus, Query, Reloaded, Safety,
};
use tokio::sync::oneshot;

use super::board::Board;
use crate::drain::DrainControl;
use crate::handles::{ShardReport, Shards, ToShard, ViewWatch};
use crate::mesh::MeshHandle;
use crate::reload::ReloadControl;

/// A shard, or a peer, that has not answered by then is reported as silent.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A future in a box.
pub type Answering<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The mesh, as far as operators ask about it.
pub trait Cluster: Send + Sync {
    /// The counts of a node, this one included; `None` when it does not answer.
    fn node_status(&self, node: NodeRef) -> Answering<'_, Option<NodeStatus>>;
    /// Has a node, this one included, do something about its drain, or say how far it is.
    fn drain(
        &self,
        node: NodeRef,
        command: DrainCommand,
    ) -> Answering<'_, Result<DrainStatus, CommandFailed>>;
    /// Has a node, this one included, take over its settings.
    fn reload(&self, node: NodeRef) -> Answering<'_, Result<Reloaded, CommandFailed>>;
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
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Bytes of datagrams received.
    pub received_bytes: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
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

    fn drain(
        &self,
        node: NodeRef,
        command: DrainCommand,
    ) -> Answering<'_, Result<DrainStatus, CommandFailed>> {
        Box::pin(async move {
            match self.ask_node(node, Query::Drain(command)).await? {
                Answer::Drain(status) => Ok(status),
                _ => Err(CommandFailed::Refused("an answer of the wrong kind".into())),
            }
        })
    }

    fn reload(&self, node: NodeRef) -> Answering<'_, Result<Reloaded, CommandFailed>> {
        Box::pin(async move {
            match self.ask_node(node, Query::Reload).await? {
                Answer::Reloaded(reloaded) => Ok(reloaded),
                _ => Err(CommandFailed::Refused("an answer of the wrong kind".into())),
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
                sent_bytes: link.sent_bytes,
                received_bytes: link.received_bytes,
                sent_datagrams: link.sent_datagrams,
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

/// Entities that this node holds as owner and the ring gives to others; `None` when a shard does not
/// say.
pub(crate) async fn to_hand_over(shards: &Shards) -> Option<u64> {
    let reports = shard_reports(shards).await;
    reports.iter().map(|(_, report)| report.as_ref().map(|report| report.machine.to_hand_over)).sum()
}

/// Answers questions to this node itself: from operators, by way of any node of the mesh.
#[derive(Clone, Debug)]
pub struct OwnAnswers {
    /// The shards.
    pub shards: Shards,
    /// The newest view.
    pub view: ViewWatch,
    /// Its problems.
    pub board: Board,
    /// Its drain.
    pub drain: DrainControl,
    /// Its settings.
    pub settings: ReloadControl,
}

impl OwnAnswers {
    /// Answers one question, of a node that has been up for `uptime`.
    ///
    /// # Errors
    /// [`CommandFailed::Refused`] for what is no question to a node, or may not be done.
    pub async fn answer(self, query: Query, uptime: Duration) -> Result<Answer, CommandFailed> {
        match query {
            Query::NodeStatus => Ok(Answer::NodeStatus(self.status(uptime).await)),
            Query::Drain(command) => {
                let view = self.view.borrow().clone();
                self.drain.command(command, &view).await.map(Answer::Drain)
            }
            Query::Reload => self.settings.reload().await.map(Answer::Reloaded),
            _ => Err(CommandFailed::Refused("not a question to a node".into())),
        }
    }

    /// The counts of this node, as it tells them its peers.
    pub async fn status(&self, uptime: Duration) -> NodeStatus {
        let reports = shard_reports(&self.shards).await;
        let sum = |count: fn(&ShardStats) -> u64| {
            reports
                .iter()
                .filter_map(|(_, report)| report.as_ref())
                .map(|report| count(&report.machine))
                .sum()
        };
        let (problem_count, problems) = self.board.told();
        NodeStatus {
            clients: sum(|s| s.clients),
            sessions: sum(|s| s.sessions),
            rooms: sum(|s| s.rooms),
            ring_digest: self.view.borrow().ring.digest(),
            uptime_secs: uptime.as_secs(),
            problem_count,
            problems,
            drain: self.drain.status(),
            safety: Safety {
                copies_pending: sum(|s| s.copies_pending),
                replication_lag_ops: sum(|s| s.replication_lag_ops),
                to_hand_over: sum(|s| s.to_hand_over),
                copies: sum(|s| s.copies),
                backups_silent: sum(|s| s.backups_silent),
                parked_sessions: sum(|s| s.parked_sessions),
                history_bytes: sum(|s| s.log_bytes),
                moves_total: sum(|s| s.moves_total),
                takeovers_total: sum(|s| s.takeovers_total),
                fences_total: sum(|s| s.fences_total),
                gaps_total: sum(|s| s.gaps_total),
            },
        }
    }
}
