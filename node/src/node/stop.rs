//! The end of a node, in phases.
//!
//! Belongs here: their order, their deadlines, what is logged of each.
//! Stays out: what the parts do when told.
//! Phases: new clients refused → draining: not ready, the ring stops naming this node → time for
//! balancers to notice → clients closed at a bearable pace, to come back elsewhere → membership left
//! → links closed, tasks ended.
//! (Handing over sessions and rooms comes between draining and closing once entities have backups:
//! until then what this node owns is rebuilt by its edges, and room history ends with it.)
//! Invariants: `node.stop_within` bounds the whole; a phase that does not end in time is logged and
//! the next one begins.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Ended;
use super::parts::Parts;
use crate::handles::ToShard;

/// Clients closed per second at least: what others can take on without noticing (DESIGN §14).
const CLOSES_PER_SECOND: usize = 500;

/// How often a batch of clients is closed.
const CLOSE_EVERY: Duration = Duration::from_millis(20);

/// For the ring to go on without this node: a few gossip rounds.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// Kept of `node.stop_within` for leaving and for closing links.
const LEAVE_RESERVE: Duration = Duration::from_secs(3);

/// For links to send what waits, and for tasks to end.
const CLOSE_LINKS_WITHIN: Duration = Duration::from_secs(1);

/// Stops everything. Ends within `node.stop_within`, give or take the last tasks.
pub(super) async fn stop(parts: Parts, cause: &Ended) {
    let started = Instant::now();
    let end = started + parts.config.node.stop_within;
    let clients_end = end.checked_sub(LEAVE_RESERVE).unwrap_or(started).max(started + CLOSE_EVERY);

    parts.admission.set_draining(true);
    let clients = parts.admission.open();
    tracing::info!(phase = "refuse", clients, "stopping");
    drain(&parts, clients_end).await;
    if *cause == Ended::Stopped && clients > 0 {
        let notice = started + parts.config.node.stop_notice;
        tokio::time::sleep_until(notice.min(clients_end)).await;
    }
    close_clients(&parts, clients_end).await;

    let told = parts.mesh.handle().leave().await;
    tracing::info!(phase = "leave", told, "stopping");
    let handshakes = parts.client_tasks.stop(CLOSE_LINKS_WITHIN).await;
    parts.mesh.stop(CLOSE_LINKS_WITHIN).await;
    let unfinished = parts.tasks.stop(CLOSE_LINKS_WITHIN).await;
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(phase = "end", handshakes, unfinished, took_ms, "stopped");
}

/// Until the ring as seen from here no longer names this node.
async fn drain(parts: &Parts, end: Instant) {
    let handle = parts.mesh.handle();
    let announced = handle.drain(true);
    let mut view = parts.view.clone();
    let off_ring = view.wait_for(|view| !view.ring.nodes().iter().any(|node| node.node == view.me));
    let within = end.min(Instant::now() + DRAIN_WITHIN);
    let drained = announced && timeout_at(within, off_ring).await.is_ok();
    tracing::info!(phase = "drain", drained, "stopping");
}

/// Closes what is open, evenly over the time there is but not slower than [`CLOSES_PER_SECOND`].
async fn close_clients(parts: &Parts, end: Instant) {
    let at_start = parts.admission.open();
    let ticks_per_second = usize::try_from(1_000 / CLOSE_EVERY.as_millis()).unwrap_or(1);
    let mut open = at_start;
    while open > 0 && Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        let ticks = usize::try_from(left.as_millis() / CLOSE_EVERY.as_millis()).unwrap_or(1).max(1);
        let batch = open.div_ceil(ticks).max(CLOSES_PER_SECOND / ticks_per_second);
        let each = batch.div_ceil(parts.shards.0.len().max(1));
        for shard in parts.shards.0.iter() {
            // A shard that is too busy to be told is told in the next round.
            let _ = shard.tx.try_send(ToShard::CloseClients(each));
        }
        sleep(CLOSE_EVERY).await;
        open = parts.admission.open();
    }
    tracing::info!(phase = "close_clients", closed = at_start.saturating_sub(open), left = open, "stopping");
}
