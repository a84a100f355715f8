//! The end of a node, in phases: by `meshctl drain`, by a signal, or because it cannot go on.
//!
//! Belongs here: the phases' order, their deadlines, what is logged of each; the way back.
//! Stays out: what the parts do when told; what operators may want (`drain`).
//!
//! | phase | what happens | ends |
//! |---|---|---|
//! | announce | not ready, new clients refused, the rest goes on | after `drain.announce`; at once without clients |
//! | hand-over | off the ring; what is owned goes to the others | when nothing is left, or after half of `drain.deadline` |
//! | closing | clients closed, to come back elsewhere | when none is left, or when `drain.deadline` is nearly over |
//! | leaving | links flushed, membership left, tasks ended | |
//!
//! Invariants: `drain.deadline` bounds everything after the announcement; a phase that does not end in
//! time is logged and the next one begins; until *leaving* an operator's drain can be taken back.

use std::time::Duration;

use mesh_proto::view::NodeInfo;
use mesh_proto::wire::DrainPhase;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Ended;
use super::parts::Parts;
use crate::admin::to_hand_over;
use crate::drain::{LAST_NODE, Wanted, is_last};
use crate::handles::ToShard;

/// Clients closed per second at least: what others can take on without noticing (DESIGN §14).
const CLOSES_PER_SECOND: usize = 500;

/// How often a batch of clients is closed.
const CLOSE_EVERY: Duration = Duration::from_millis(20);

/// How often what is left to hand over is counted.
const COUNT_EVERY: Duration = Duration::from_millis(50);

/// For the ring to go on without this node: a few gossip rounds.
const OFF_RING_WITHIN: Duration = Duration::from_secs(2);

/// Kept of `drain.deadline` for leaving and for closing links; at most a quarter of it.
const LEAVE_RESERVE: Duration = Duration::from_secs(3);

/// For links to send what waits, and for tasks to end.
const CLOSE_LINKS_WITHIN: Duration = Duration::from_secs(1);

/// How often gossip is told that a drain was taken back, should it have no room to listen.
const TELL_AGAIN_EVERY: Duration = Duration::from_millis(20);

/// Serves, drains and serves again as operators want, until a drain is through or `stopper` is
/// cancelled and the drain that follows is through. What is left is [`leave`].
pub(super) async fn until_drained(parts: &Parts, stopper: &CancellationToken) {
    let told = async {
        stopper.cancelled().await;
        parts.drain.stop();
        std::future::pending().await
    };
    let drains = async {
        let mut wanted = parts.drain.wanted();
        loop {
            // The sender lives in `parts`: the wait does not fail.
            let _ = wanted.wait_for(|wanted| *wanted != Wanted::Serve).await;
            let through = tokio::select! {
                through = drain(parts) => through,
                _ = wanted.wait_for(|wanted| *wanted == Wanted::Serve) => false,
            };
            if through {
                return;
            }
            serve_again(parts).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = drains => {}
    }
}

/// Announce, hand-over, closing. `false` when it may not go on; cancelled by dropping it.
async fn drain(parts: &Parts) -> bool {
    let announced = Instant::now();
    refuse_clients(parts);
    if parts.admission.open() > 0 {
        sleep_until(announced + parts.config.drain.announce).await;
    }
    if *parts.drain.wanted().borrow() == (Wanted::Drain { force: false }) && is_last(&parts.view.borrow()) {
        tracing::warn!("not drained: {LAST_NODE}");
        parts.drain.give_up();
        return false;
    }
    let times = Times::from_now(parts.config.drain.deadline);
    hand_over(parts, times).await;
    close_clients(parts, times.close_until).await;
    parts.drain.commit()
}

/// The way back: ready and on the ring again. Clients that were closed come back by themselves.
async fn serve_again(parts: &Parts) {
    while !parts.mesh.handle().drain(false) {
        sleep(TELL_AGAIN_EVERY).await;
    }
    parts.admission.set_draining(false);
    parts.drain.enter(DrainPhase::Serving);
    tracing::info!("drain taken back: serving again");
}

/// Ends a node that cannot go on: as much of a drain as still makes sense, without waiting for
/// balancers or for entities.
pub(super) async fn give_up(parts: &Parts) {
    parts.drain.stop();
    refuse_clients(parts);
    let times = Times::from_now(parts.config.drain.deadline);
    leave_ring(parts, times.close_until).await;
    close_clients(parts, times.close_until).await;
}

/// The last phase, whatever the cause: the others are told, everything ends.
pub(super) async fn leave(parts: Parts, cause: &Ended) {
    let began = Instant::now();
    parts.drain.enter(DrainPhase::Leaving);
    // What waits for peers goes out while they still listen: they drop the links of one who has left.
    parts.mesh.handle().flush().await;
    let told = parts.mesh.handle().leave().await;
    tracing::info!(phase = "leave", told, "stopping");
    let handshakes = parts.client_tasks.stop(CLOSE_LINKS_WITHIN).await;
    parts.mesh.stop(CLOSE_LINKS_WITHIN).await;
    let unfinished = parts.tasks.stop(CLOSE_LINKS_WITHIN).await;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(phase = "end", ?cause, handshakes, unfinished, took_ms, "stopped");
}

/// When what must be over.
#[derive(Clone, Copy)]
struct Times {
    hand_over_until: Instant,
    close_until: Instant,
}

impl Times {
    fn from_now(deadline: Duration) -> Self {
        let now = Instant::now();
        let reserve = LEAVE_RESERVE.min(deadline / 4);
        Self { hand_over_until: now + deadline / 2, close_until: now + (deadline - reserve) }
    }
}

fn refuse_clients(parts: &Parts) {
    parts.admission.set_draining(true);
    parts.drain.enter(DrainPhase::Announce);
    tracing::info!(phase = "announce", clients = parts.admission.open(), "stopping");
}

/// Off the ring, then until nothing is left that it gives to others.
async fn hand_over(parts: &Parts, times: Times) {
    parts.drain.enter(DrainPhase::HandOver);
    let off_ring = leave_ring(parts, times.hand_over_until).await;
    let handed_over = async {
        loop {
            let left = to_hand_over(&parts.shards).await;
            if let Some(left) = left {
                parts.drain.set_to_hand_over(left);
            }
            if left == Some(0) {
                return;
            }
            sleep(COUNT_EVERY).await;
        }
    };
    let all = timeout_at(times.hand_over_until, handed_over).await.is_ok();
    tracing::info!(phase = "hand_over", off_ring, all, "stopping");
}

/// Until no ring names this node any more, its own and those of the peers; whether it came to that.
///
/// Who leaves before its peers have heard that it drains looks to them like one that died.
async fn leave_ring(parts: &Parts, end: Instant) -> bool {
    let handle = parts.mesh.handle();
    let announced = handle.drain(true);
    let off_ring = async {
        let mut view = parts.view.clone();
        // The sender lives as long as the mesh.
        let _ = view.wait_for(|view| !view.ring.nodes().iter().any(|node| node.node == view.me)).await;
        loop {
            let heard = handle.gossip().await;
            let view = parts.view.borrow().clone();
            let digest_of =
                |node: &NodeInfo| heard.as_ref()?.digests.get(&node.node.id).map(|heard| heard.digest);
            let mut peers = view.nodes.iter().filter(|node| node.node != view.me && !node.suspect);
            if peers.all(|peer| digest_of(peer) == Some(view.ring.digest())) {
                return;
            }
            sleep(COUNT_EVERY).await;
        }
    };
    let within = end.min(Instant::now() + OFF_RING_WITHIN);
    announced && timeout_at(within, off_ring).await.is_ok()
}

/// Closes what is open, evenly over the time there is but not slower than [`CLOSES_PER_SECOND`].
async fn close_clients(parts: &Parts, end: Instant) {
    parts.drain.enter(DrainPhase::Closing);
    let at_start = parts.admission.open();
    let mut open = at_start;
    while open > 0 && Instant::now() < end {
        let batch = closed_per_tick(open, end.saturating_duration_since(Instant::now()));
        let each = batch.div_ceil(parts.shards.0.len().max(1));
        for shard in parts.shards.0.iter() {
            // A shard that is too busy to be told is told in the next round.
            let _ = shard.tx.try_send(ToShard::CloseClients(each));
        }
        parts.proxies.close(batch);
        sleep(CLOSE_EVERY).await;
        open = parts.admission.open();
    }
    tracing::info!(phase = "close_clients", closed = at_start.saturating_sub(open), left = open, "stopping");
}

/// Clients to close every [`CLOSE_EVERY`], with `open` left and this much time.
fn closed_per_tick(open: usize, left: Duration) -> usize {
    let ticks_per_second = usize::try_from(1_000 / CLOSE_EVERY.as_millis()).unwrap_or(1);
    let ticks = usize::try_from(left.as_millis() / CLOSE_EVERY.as_millis()).unwrap_or(1).max(1);
    open.div_ceil(ticks).max(CLOSES_PER_SECOND / ticks_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_closed_at_500_a_second_or_faster_where_time_is_short() {
        let ticks = |secs: u64| Duration::from_secs(secs);
        assert_eq!(closed_per_tick(10, ticks(20)), 10);
        assert_eq!(closed_per_tick(10_000, ticks(20)), 10);
        assert_eq!(closed_per_tick(50_000, ticks(20)), 50);
        assert_eq!(closed_per_tick(50_000, Duration::ZERO), 50_000);
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_part_of_the_deadline() {
        let now = Instant::now();
        for (deadline, hand_over, close) in [(25, 12_500, 22_000), (4, 2_000, 3_000), (1, 500, 750)] {
            let times = Times::from_now(Duration::from_secs(deadline));
            let millis = |at: Instant| at.duration_since(now).as_millis();
            assert_eq!((millis(times.hand_over_until), millis(times.close_until)), (hand_over, close));
        }
    }
}
