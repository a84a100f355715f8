//! This node's own counts, for its peers and itself.
//!
//! Belongs here: asking each shard and adding up. Stays out: what is done with the counts.

use mesh_proto::wire::NodeStatus;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::handles::{ShardReport, Shards, ToShard, ViewWatch};

/// Asks every shard; one whose queue is full, or that is gone, is left out.
pub(super) async fn reports(shards: &Shards) -> Vec<ShardReport> {
    let asked: Vec<_> = shards
        .0
        .iter()
        .filter_map(|shard| {
            let (tx, rx) = oneshot::channel();
            shard.tx.try_send(ToShard::Stats(tx)).is_ok().then_some(rx)
        })
        .collect();
    let mut reports = Vec::with_capacity(asked.len());
    for answer in asked {
        reports.extend(answer.await);
    }
    reports
}

/// The node's counts.
pub(super) async fn status(shards: &Shards, view: Option<&ViewWatch>, clock: Clock) -> NodeStatus {
    let reports = reports(shards).await;
    let sum = |count: fn(&ShardReport) -> u64| reports.iter().map(count).sum();
    let ring_digest = view.map_or(0, |view| view.borrow().ring.digest());
    NodeStatus {
        clients: sum(|r| r.machine.clients),
        sessions: sum(|r| r.machine.sessions),
        rooms: sum(|r| r.machine.rooms),
        ring_digest,
        uptime_secs: clock.now().as_micros() / 1_000_000,
    }
}
