//! One shard: the edge for its clients and the host of its part of sessions and rooms.
//!
//! Belongs here: the interface a driver sees, routing between the machines of a shard, to other shards
//! and to peers, and questions from outside.
//! Stays out: what edges, sessions and rooms do (`edge`, `session`, `room`); sockets, timers, threads.
//! How to drive it: call [`Shard::handle`] for each input, then [`Shard::poll`] until `None`, and
//! wake it with [`Input::Timer`] at [`Shard::next_deadline`]. Inputs may be batched before polling:
//! what belongs together then leaves in one envelope and one write.

use crate::id::{Address, NodeRef, Placement};
use crate::wire::{Body, NotOwner, Subject, To};

mod app;
mod asks;
mod calls;
mod interface;
/// What every machine of a shard is handed, borrowed from the shard's own fields.
macro_rules! context {
    ($shard:ident) => {
        crate::shard::Ctx {
            now: $shard.now,
            view: &$shard.view,
            out: &mut $shard.out,
            timers: &mut $shard.timers,
            stats: &mut $shard.stats,
            pace: $shard.pace,
            asks: &mut $shard.asks,
        }
    };
}
mod machine;
mod out;
mod sweep;
#[cfg(test)]
mod tests;
mod timers;

pub use app::*;
pub(crate) use asks::Asker;
pub(crate) use calls::asks_of;
pub use interface::*;
pub use machine::Shard;
pub(crate) use out::Out;
pub(crate) use sweep::{Budget, Round};
pub(crate) use timers::{TimerKey, Timers};

/// What every machine of a shard is handed: the moment, the cluster, and where its words go.
pub(crate) struct Ctx<'a> {
    pub(crate) now: crate::time::Instant,
    pub(crate) view: &'a crate::view::View,
    pub(crate) out: &'a mut Out,
    pub(crate) timers: &'a mut Timers,
    pub(crate) stats: &'a mut ShardStats,
    pub(crate) pace: Pace,
    pub(crate) asks: &'a mut asks::Asks,
}

impl Ctx<'_> {
    /// The shard of a peer that hosts `placement`: by number once its record has told how many it has, so
    /// that what is for one shard can share an envelope.
    pub(crate) fn host_of(&self, peer: NodeRef, placement: Placement) -> To {
        let shards = self.view.node(peer).and_then(|n| n.record.as_ref()).map(|r| r.shards);
        shards.map_or(To::Host(placement), |shards| To::Shard(placement.shard(shards)))
    }

    /// What `from` sent is not for this node: it asks again by its own ring.
    pub(crate) fn not_owner(&mut self, from: Address, placement: Placement, subject: Subject) {
        self.stats.not_owner_total += 1;
        self.ask_again(from, placement, subject);
    }

    /// What `from` sent cannot be answered here yet: it asks again soon.
    pub(crate) fn ask_again(&mut self, from: Address, placement: Placement, subject: Subject) {
        let owner = self.view.owner(placement);
        let bounce = NotOwner { subject, owner, ring_digest: self.view.ring.digest() };
        self.out.send_to_address(from, placement, Body::NotOwner(bounce));
    }
}

/// Hand-overs after a change of the ring are mostly done within this time.
const MOVING: std::time::Duration = std::time::Duration::from_secs(2);

/// Since when the ring has been as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    settle: std::time::Duration,
    /// This node is on the ring since then.
    active: Option<crate::time::Instant>,
    changed: crate::time::Instant,
    digest: u64,
}

impl Pace {
    fn new(settle: std::time::Duration) -> Self {
        Self { settle, active: None, changed: crate::time::Instant::ZERO, digest: 0 }
    }

    fn on_view(&mut self, now: crate::time::Instant, view: &crate::view::View) {
        let active = view.ring.nodes().iter().any(|n| n.node == view.me);
        self.active = if active { self.active.or(Some(now)) } else { None };
        if self.digest != view.ring.digest() {
            self.digest = view.ring.digest();
            self.changed = now;
        }
    }

    /// Whether this node has been on the ring for the settle time: what it should hold it has been given.
    pub(crate) fn is_settled(&self, now: crate::time::Instant) -> bool {
        self.active.is_some_and(|since| now.since(since) >= self.settle)
    }

    /// Whether the ring has changed so lately that what this node owns may not have been given to it.
    pub(crate) fn is_moving(&self, now: crate::time::Instant) -> bool {
        now.since(self.changed) < MOVING && self.changed > crate::time::Instant::ZERO
    }

    /// Whether the ring has been the same for the settle time.
    pub(crate) fn is_calm(&self, now: crate::time::Instant) -> bool {
        now.since(self.changed) >= self.settle
    }
}
