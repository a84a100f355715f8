//! Nodes that come and go: crashes, restarts, joins, drains, and how close together they may be.
//!
//! Belongs here: which node, when, what follows by itself. Stays out: cuts, pauses, weather (`trouble`).
//! Under `Regime::OneAtATime` a crash waits until the cluster has had time to hold everything twice again.

use std::time::Duration;

use mesh_proto::membership;
use mesh_proto::shard::Input;
use mesh_proto::view::NodeState;

use super::mesh::LEAVE_TIMEOUT;
use super::trouble::Relief;
use super::{Cluster, Event, NodeEvent};
use crate::faults::{Kind, Regime};
use crate::node::Life;
use crate::plot::Mark;

/// Clients closed per step of a drain.
const CLOSED_PER_STEP: usize = 3;

/// After the last change that anybody noticed, everything has a second copy again within this time.
const REPLICATED_WITHIN: Duration = Duration::from_secs(2);

/// A death is noticed within this time.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// A crash that has to wait looks again after this time.
const LOOKS_AGAIN: Duration = Duration::from_millis(200);

/// What follows from a crash or a restart, without another draw of the plan.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// This life is killed as well, if it still stands.
    Kill(usize, u64),
    /// This node is killed and started so many times more.
    Flap(usize, u32),
    /// These nodes are restarted one after the other, by drains or by kill -9.
    Roll(Vec<usize>, bool),
}

impl Cluster {
    /// Whether a crash has to wait for the last change to be over.
    pub(super) fn must_wait(&self, kind: Kind) -> bool {
        let crash = matches!(kind, Kind::Crash | Kind::QuickRestart | Kind::Flap | Kind::DrainCrash);
        crash && self.regime == Regime::OneAtATime && !self.is_steady()
    }

    /// All agree who is there, and have for long enough; and two are there to hold everything twice, for a
    /// node that drains is given nothing any more.
    fn is_steady(&self) -> bool {
        let now = self.clock.now();
        let is_active = |life: &Life| !life.draining && life.state() == NodeState::Active;
        let settled = |life: &Life| life.draining || is_active(life);
        self.living(is_active).len() >= 2
            && now.since(self.unsteady_at) >= REPLICATED_WITHIN
            && !self.checks.split
            && self.slots.iter().filter_map(|slot| slot.life.as_ref()).all(settled)
    }

    /// Whether a second kill, which does not wait for the drain it belongs to, would follow another fault's
    /// crash too closely.
    fn is_crash_too_near(&self) -> bool {
        let since = self.clock.now().since(self.crashed_at);
        let is_soon = since < NOTICED_WITHIN + REPLICATED_WITHIN;
        let active = self.living(|life| !life.draining && life.state() == NodeState::Active);
        self.regime == Regime::OneAtATime && (is_soon || active.len() < 2)
    }

    pub(super) fn strike_later(&mut self, kind: Kind) {
        self.clock.after(LOOKS_AGAIN, Event::Strike(kind));
    }

    pub(super) fn living(&self, wanted: impl Fn(&Life) -> bool) -> Vec<usize> {
        let is = |slot: &usize| self.slots[*slot].life.as_ref().is_some_and(&wanted);
        (0..self.slots.len()).filter(is).collect()
    }

    fn number_of(&self, slot: usize) -> u64 {
        self.slots[slot].life.as_ref().map_or(0, |life| life.number)
    }

    pub(super) fn follow(&mut self, next: Next) {
        if self.calm {
            return;
        }
        match next {
            Next::Kill(..) if self.is_crash_too_near() => {
                self.clock.after(LOOKS_AGAIN, Event::Next(next));
            }
            Next::Kill(slot, life) => {
                if self.number_of(slot) == life {
                    self.end_life(slot, false);
                    self.perhaps_back(slot);
                }
            }
            Next::Flap(slot, left) => self.flap_on(slot, left),
            Next::Roll(slots, drains) => self.roll_on(slots, drains),
        }
    }

    pub(super) fn perhaps_back(&mut self, slot: usize) {
        if self.random.per_mille(800) {
            let delay = self.random.millis(200, 6_000);
            self.clock.after(delay, Event::Relief(Relief::Start(slot)));
        }
    }

    pub(super) fn crash(&mut self, kind: Kind) -> bool {
        let living = self.living(|_| true);
        let least = if kind == Kind::DoubleCrash { 2 } else { 1 };
        let Some(slot) = self.random.pick(&living).filter(|_| living.len() > least) else { return false };
        self.end_life(slot, false);
        if kind == Kind::QuickRestart {
            let delay = self.random.millis(1, 100);
            self.clock.after(delay, Event::Relief(Relief::Start(slot)));
        } else {
            self.perhaps_back(slot);
        }
        if kind == Kind::DoubleCrash {
            let others = self.living(|_| true);
            if let Some(other) = self.random.pick(&others) {
                let next = Next::Kill(other, self.number_of(other));
                let delay = self.random.millis(0, 500);
                self.clock.after(delay, Event::Next(next));
            }
        }
        true
    }

    pub(super) fn flap(&mut self) -> bool {
        let living = self.living(|_| true);
        let Some(slot) = self.random.pick(&living).filter(|_| living.len() > 1) else { return false };
        let times = 2 + u32::try_from(self.random.below(3)).unwrap_or(0);
        self.flap_on(slot, times);
        true
    }

    fn flap_on(&mut self, slot: usize, left: u32) {
        if left == 0 || self.slots[slot].life.is_none() {
            return;
        }
        self.end_life(slot, false);
        let down = self.random.millis(1, 300);
        let up = self.random.millis(20, 900);
        self.clock.after(down, Event::Relief(Relief::Start(slot)));
        self.clock.after(down + up, Event::Next(Next::Flap(slot, left - 1)));
    }

    pub(super) fn rolling_restart(&mut self) -> bool {
        let living = self.living(|life| !life.draining);
        let drains = self.random.per_mille(500);
        if living.len() > 2 {
            self.clock.after(Duration::ZERO, Event::Next(Next::Roll(living, drains)));
        }
        true
    }

    fn roll_on(&mut self, mut slots: Vec<usize>, drains: bool) {
        let Some(&slot) = slots.first() else { return };
        // A node that another fault has taken away comes back by itself, or is left out.
        if self.slots[slot].life.as_ref().is_none_or(|life| life.paused || life.draining) {
            slots.remove(0);
        } else if self.is_steady() && self.living(|_| true).len() > 2 {
            slots.remove(0);
            if drains {
                self.begin_drain(slot, true);
            } else {
                self.end_life(slot, false);
                let delay = self.random.millis(10, 1_500);
                self.clock.after(delay, Event::Relief(Relief::Start(slot)));
            }
        }
        self.clock.after(LOOKS_AGAIN, Event::Next(Next::Roll(slots, drains)));
    }

    pub(super) fn join(&mut self, all: bool) -> bool {
        let mut free: Vec<usize> =
            (0..self.slots.len()).filter(|slot| self.slots[*slot].life.is_none()).collect();
        if !all {
            free = self.random.pick(&free).into_iter().collect();
        }
        for slot in &free {
            let delay = self.random.micros(0, 5_000);
            self.clock.after(delay, Event::Relief(Relief::Start(*slot)));
        }
        !free.is_empty()
    }

    pub(super) fn drain(&mut self, kind: Kind) -> bool {
        let active = self.living(|life| !life.draining && !life.paused && life.state() == NodeState::Active);
        let Some(slot) = self.random.pick(&active).filter(|_| active.len() > 2) else { return false };
        let returns = self.random.per_mille(600);
        self.begin_drain(slot, returns);
        if kind == Kind::DrainCrash {
            let victim = if self.random.per_mille(400) { Some(slot) } else { self.random.pick(&active) };
            if let Some(victim) = victim {
                let next = Next::Kill(victim, self.number_of(victim));
                let delay = self.random.millis(0, 2_500);
                self.clock.after(delay, Event::Next(next));
            }
        }
        true
    }

    fn begin_drain(&mut self, slot: usize, returns: bool) {
        let now = self.clock.now();
        self.trace.note(now, &[28, slot as u64], || format!("n{slot} drains"));
        self.timeline.mark(now, slot, Mark::Drains);
        let Some(life) = &mut self.slots[slot].life else { return };
        life.draining = true;
        life.returns = returns;
        self.membership(slot, membership::Input::Drain);
        let delay = self.random.millis(200, 3_000);
        self.node_after(slot, delay, NodeEvent::DrainStep { closing: true });
    }

    /// Closes a few clients; when none is left and others own what it owned, leaves.
    pub(super) fn drain_step(&mut self, slot: usize, closing: bool) {
        let Some(life) = &self.slots[slot].life else { return };
        let (number, shards, returns) = (life.number, life.shards.len(), life.returns);
        let clients: usize = life.shards.iter().map(|shard| shard.clients.len()).sum();
        let to_hand_over: u64 = life.shards.iter().map(|shard| shard.shard.stats().to_hand_over).sum();
        if closing && clients > 0 {
            for shard in 0..shards {
                self.feed(slot, shard, Input::CloseClients(CLOSED_PER_STEP));
            }
            self.node_after(slot, Duration::from_millis(100), NodeEvent::DrainStep { closing });
            return;
        }
        if to_hand_over > 0 && !self.calm {
            self.node_after(slot, Duration::from_millis(100), NodeEvent::DrainStep { closing });
            return;
        }
        self.membership(slot, membership::Input::Leave);
        self.clock.after(LEAVE_TIMEOUT, Event::Relief(Relief::End(slot, number)));
        if returns {
            let delay = LEAVE_TIMEOUT + self.random.millis(200, 5_000);
            self.clock.after(delay, Event::Relief(Relief::Start(slot)));
        }
    }
}
