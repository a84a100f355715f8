//! What rooms give up by themselves: what is too old, what is too much of all rooms together.
//!
//! Belongs here: the bounds over all rooms, rooms that nobody uses.
//! Stays out: the bounds of one room (`state`, `dedupe`).
//! Units: nothing is searched: the oldest of all rooms comes first ([`crate::marks`]), and a room in use is
//! looked at once in `room_log_age_max`.
//! Invariants: after each turn all rooms together keep to their bounds; one step of a sweep touches no more
//! entries than its budget.

use super::Rooms;
use crate::shard::{Budget, Ctx};
use crate::time::Instant;

impl Rooms {
    /// All rooms together are over a bound: the oldest of all goes.
    pub(super) fn keep_to_bounds(&mut self) {
        while self.host.shared.log_bytes > self.host.shared.limits.room_logs_bytes_max
            && let Some((since, key)) = self.host.shared.by_log.first()
        {
            if let Some((room, shared)) = self.host.copy_mut(&key) {
                room.trim_marked(shared, &key, since);
            }
        }
        while self.host.shared.dedupe_entries > self.host.shared.dedupe_entries_max
            && let Some((since, key)) = self.host.shared.by_dedupe.first()
        {
            if let Some((room, shared)) = self.host.copy_mut(&key) {
                room.forget_marked(shared, &key, |table, _| {
                    // A mark may be older than what is left.
                    if table.oldest().is_some_and(|oldest| oldest <= since) {
                        table.forget_oldest();
                    }
                });
            }
        }
    }

    /// Drops what is too old, and rooms that nobody uses. Whether more is due than one step may look at.
    pub(crate) fn sweep(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut budget = Budget::step();
        self.trim_old(ctx.now, &mut budget);
        self.forget_old(ctx.now, &mut budget);
        self.end_unused(ctx, &mut budget);
        self.host.sweep();
        self.react(ctx);
        budget.is_spent()
    }

    fn trim_old(&mut self, now: Instant, budget: &mut Budget) {
        let age_max = self.limits.room_log_age_max;
        while let Some((since, key)) = self.host.shared.by_log.first()
            && now.since(since) >= age_max
            && budget.spend()
        {
            if let Some((room, shared)) = self.host.copy_mut(&key) {
                room.trim_marked(shared, &key, since);
            }
        }
    }

    fn forget_old(&mut self, now: Instant, budget: &mut Budget) {
        let window = self.limits.dedupe_window;
        while let Some((since, key)) = self.host.shared.by_dedupe.first()
            && now.since(since) >= window
            && budget.spend()
        {
            if let Some((room, shared)) = self.host.copy_mut(&key) {
                room.forget_marked(shared, &key, |table, limits| table.expire(now, limits, budget));
            }
        }
    }

    fn end_unused(&mut self, ctx: &mut Ctx<'_>, budget: &mut Budget) {
        let now = ctx.now;
        let age_max = self.limits.room_log_age_max;
        while let Some((since, key)) = self.unused.front().cloned()
            && now.since(since) >= age_max
            && budget.spend()
        {
            self.unused.pop_front();
            self.host.place(ctx, &key);
            let Some(room) = self.host.owned(&key).filter(|room| room.live.looked_at == since) else {
                continue;
            };
            let is_used = !room.live.subscribers.is_empty()
                || !room.live.effects.is_empty()
                || !room.state.dedupe.is_empty()
                || now.since(room.live.used) < age_max;
            if is_used {
                room.live.looked_at = now;
                self.unused.push_back((now, key));
            } else {
                self.host.end(&key);
            }
        }
    }

    /// Whether there is anything to look through now and then.
    pub(crate) fn has_to_sweep(&self) -> bool {
        self.len() > 0 || self.host.copy_count() > 0 || self.host.has_to_sweep()
    }
}
