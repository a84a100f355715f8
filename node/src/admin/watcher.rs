//! Looks at the node once a second, so that problems have an age.
//!
//! Belongs here: gathering what `problems` judges; when the ring first agreed.
//! Stays out: judging. Owner: one task; others read its newest snapshot from the `Board`.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::view::{NodeInfo, NodeState, View};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::AdminState;
use super::board::Snapshot;
use super::cluster::{MeshFacts, shard_reports};
use super::problems::{Looked, Problems};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Until the node is ready.
const LOOK_FIRST_EVERY: Duration = Duration::from_millis(100);

/// An active node that cannot agree with all others by then is ready all the same: one bad node
/// must not take the whole cluster out of a balancer.
const AGREEMENT_WITHIN: Duration = Duration::from_secs(10);

/// Looks until the listener stops.
pub(super) async fn watch_node(state: Arc<AdminState>) {
    let mut problems = Problems::default();
    let mut active_since = None;
    let mut settled = false;
    let mut pace = paced(LOOK_FIRST_EVERY);
    let mut views = state.view.clone();
    loop {
        // A change is looked at when it happens; the channel outlives the node only while it stops.
        tokio::select! {
            _ = pace.tick() => {}
            Ok(()) = views.changed() => {}
        }
        let reports = shard_reports(&state.shards).await;
        let mesh = state.cluster.facts().await;
        let view = views.borrow_and_update().clone();
        let now = Instant::now();
        let shards: Vec<_> = state
            .shards
            .0
            .iter()
            .zip(&reports)
            .map(|(handle, (shard, report))| {
                (*shard, handle.tx.max_capacity() - handle.tx.capacity(), report.is_some())
            })
            .collect();
        let descriptors = state.descriptors();
        let answered = reports.iter().filter_map(|(_, report)| report.as_ref());
        let backups_silent = answered.map(|report| report.machine.backups_silent).max().unwrap_or(0);
        let mesh_facts = mesh.as_ref();
        let settings = state.settings.known().problems;
        let looked = Looked {
            view: &view,
            mesh: mesh_facts,
            shards: &shards,
            descriptors,
            backups_silent,
            settings: &settings,
        };
        problems.look(now, &looked);

        let active = view.node(view.me).map(NodeInfo::state) == Some(NodeState::Active);
        active_since = if active { active_since.or(Some(now)) } else { None };
        let disagreeing = disagreeing(&view, mesh.as_ref());
        let in_time = |since: Instant| now.duration_since(since) < AGREEMENT_WITHIN;
        settled = match active_since {
            None => false,
            Some(since) => settled || disagreeing.is_empty() || !in_time(since),
        };
        if settled && pace.period() != LOOK_EVERY {
            pace = paced(LOOK_EVERY);
        }
        let problems = problems.shown().to_vec();
        state.board.post(Snapshot { problems, ring_settled: settled, disagreeing });
    }
}

fn paced(period: Duration) -> tokio::time::Interval {
    let mut pace = interval(period);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// Names of the peers whose ring is not this node's, as far as gossip has told.
fn disagreeing(view: &View, mesh: Option<&MeshFacts>) -> Vec<String> {
    let ours = view.ring.digest();
    let peers = view.nodes.iter().filter(|node| node.node != view.me);
    let differ = peers.filter(|node| {
        let heard = mesh.and_then(|mesh| mesh.digests.get(&node.node.id));
        heard != Some(&ours)
    });
    differ.map(NodeInfo::name).collect()
}
