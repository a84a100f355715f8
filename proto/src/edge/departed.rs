//! What this edge remembers of rooms that its last member has left.
//!
//! Belongs here: how far a tail was, and whose publishes it had served, for a member that comes back.
//! Stays out: entries: who was not in the room does not get them.
//! Units: kept for the dedupe window, at most `DEPARTED_MAX` rooms; the oldest go first.
//! Why: without it, a client that leaves and joins again could be shown a lower position, or a publish
//! twice, by an owner that took over meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use crate::births::Births;
use crate::collections::FixedMap;
use crate::id::{Cursor, PublishNumber, Publisher, RoomKey, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::Budget;
use crate::time::Instant;

/// Rooms remembered.
const DEPARTED_MAX: usize = 4_096;

/// How far a tail was.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) last: Cursor,
    pub(super) term: Term,
    pub(super) births: Births,
    pub(super) served: FixedMap<Publisher, PublishNumber>,
}

#[derive(Debug, Default)]
pub(super) struct Departed {
    rooms: FixedMap<RoomKey, (Memory, Instant)>,
    ages: VecDeque<(Instant, RoomKey)>,
}

impl Departed {
    pub(super) fn remember(&mut self, now: Instant, room: RoomKey, memory: Memory) {
        self.ages.push_back((now, room.clone()));
        self.rooms.insert(room, (memory, now));
        while self.ages.len() > DEPARTED_MAX {
            self.forget_oldest();
        }
    }

    pub(super) fn recall(&mut self, room: &RoomKey) -> Memory {
        let known = self.rooms.remove(room).filter(|_| !is_planted(Mutant::DepartedForgotten));
        known.map_or_else(Memory::default, |(memory, _)| memory)
    }

    pub(super) fn expire(&mut self, now: Instant, window: Duration, budget: &mut Budget) {
        while self.ages.front().is_some_and(|(since, _)| now.since(*since) >= window) && budget.spend() {
            self.forget_oldest();
        }
    }

    /// A room remembered again since then has a later mark of its own.
    fn forget_oldest(&mut self) {
        if let Some((since, room)) = self.ages.pop_front()
            && self.rooms.get(&room).is_some_and(|(_, at)| *at == since)
        {
            self.rooms.remove(&room);
        }
    }

    pub(super) fn is_within_bound(&self) -> bool {
        self.rooms.len() <= DEPARTED_MAX && self.ages.len() <= DEPARTED_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ages.is_empty()
    }
}
