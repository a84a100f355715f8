//! What of a room survives its owner: the log, and what it has seen already.
//!
//! Belongs here: ops, the same at owner and backup; copies; what two logs have of each other.
//! Stays out: subscribers and effects (`Rooms`), who owns it (`host`).
//! Invariants: an entry is appended once; a copy built from a copy is equal to it.

use std::collections::BTreeMap;

use super::dedupe::Dedupe;
use super::log::{RoomLog, entry_bytes};
use super::{RoomInput, RoomLive};
use crate::births::{Births, Has};
use crate::collections::FixedSet;
use crate::host::{Entity, MessageOf, SingleCopy};
use crate::id::{Cursor, Placement, PublishId, PublishNumber, Publisher, RoomKey, Term};
use crate::limits::Limits;
use crate::marks::{Mark, Marks};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{Body, RoomCopy, RoomEntry, RoomOp};

/// The replicated part of a room.
#[derive(Debug)]
pub(crate) struct RoomState {
    pub(super) log: RoomLog,
    pub(super) dedupe: Dedupe,
    /// Everything that was ever in the log, or is not to come into it any more.
    births: Births,
    /// Of that, what is not in the log (any more).
    gone: Births,
    log_mark: Mark,
    dedupe_mark: Mark,
}

/// Bookkeeping over all rooms of a shard, owned and backed up.
#[derive(Debug)]
pub(crate) struct RoomsShared {
    pub(super) limits: Limits,
    /// Products whose rooms are held in one copy.
    pub(super) single_copy: SingleCopy,
    /// Rooms by their oldest entry, and by what they remember longest: the oldest of all rooms go first.
    pub(super) by_log: Marks<RoomKey>,
    pub(super) by_dedupe: Marks<RoomKey>,
    pub(super) log_bytes: usize,
    /// Publishers and keys that all rooms remember, and how many they may.
    pub(super) dedupe_entries: usize,
    pub(super) dedupe_entries_max: usize,
}

impl RoomsShared {
    pub(super) fn new(limits: &Limits, shards: u16, single_copy: SingleCopy) -> Self {
        Self {
            limits: limits.clone(),
            single_copy,
            by_log: Marks::default(),
            by_dedupe: Marks::default(),
            log_bytes: 0,
            dedupe_entries: 0,
            dedupe_entries_max: (limits.dedupe_entries_per_node_max / usize::from(shards.max(1))).max(1),
        }
    }
}

impl RoomState {
    fn empty(log: RoomLog) -> Self {
        Self {
            log,
            dedupe: Dedupe::default(),
            births: Births::default(),
            gone: Births::default(),
            log_mark: Mark::default(),
            dedupe_mark: Mark::default(),
        }
    }

    /// The room's mark has come up: drops the oldest entry, if it is as old as `upto`, and marks it anew.
    pub(super) fn trim_marked(&mut self, shared: &mut RoomsShared, key: &RoomKey, upto: Instant) {
        shared.by_log.remove(&mut self.log_mark, key);
        if self.log.oldest_since().is_some_and(|since| since <= upto) {
            self.trim_first(shared);
        }
        shared.by_log.set(&mut self.log_mark, key, self.log.oldest_since());
    }

    /// The room's mark has come up: changes what it remembers, and marks it anew.
    pub(super) fn forget_marked(
        &mut self,
        shared: &mut RoomsShared,
        key: &RoomKey,
        forget: impl FnOnce(&mut Dedupe, &Limits),
    ) {
        shared.by_dedupe.remove(&mut self.dedupe_mark, key);
        self.change_dedupe(shared, key, forget);
    }

    fn change_dedupe(
        &mut self,
        shared: &mut RoomsShared,
        key: &RoomKey,
        change: impl FnOnce(&mut Dedupe, &Limits),
    ) {
        shared.dedupe_entries -= self.dedupe.entries();
        change(&mut self.dedupe, &shared.limits);
        shared.dedupe_entries += self.dedupe.entries();
        shared.by_dedupe.set(&mut self.dedupe_mark, key, self.dedupe.oldest());
    }

    /// Drops the oldest entry.
    fn trim_first(&mut self, shared: &mut RoomsShared) {
        if let Some(entry) = self.log.get(self.log.first()) {
            self.gone.add(entry.born(self.log.first()));
        }
        shared.log_bytes -= self.log.trim_first();
    }

    fn trim_to_bounds(&mut self, shared: &mut RoomsShared) {
        while self.log.len() > shared.limits.room_log_entries_max
            || (self.log.bytes() > shared.limits.room_log_bytes_max && self.log.len() > 1)
        {
            self.trim_first(shared);
        }
    }

    fn append(&mut self, shared: &mut RoomsShared, key: &RoomKey, now: Instant, entry: RoomEntry) {
        shared.log_bytes += entry_bytes(&entry);
        self.births.add(entry.born(self.log.head() + 1));
        self.log.append(now, entry);
        shared.by_log.set(&mut self.log_mark, key, Some(now));
    }
}

impl RoomState {
    /// Everything that lies at entry `seq` or before it, and what will not come after it either.
    pub(super) fn births_upto(&self, seq: u64) -> Births {
        let mut births = self.births.clone();
        for (at, entry) in (self.log.first()..).zip(self.log.iter()).filter(|(at, _)| *at > seq) {
            births.cut(entry.born(at));
        }
        births
    }

    /// What is gone of `other` and never was here.
    fn lost_with(&self, other: &RoomCopy) -> Births {
        let mut lost = Births::default();
        other.gone.each().filter(|born| self.births.has(*born) != Has::Yes).for_each(|born| lost.add(born));
        lost
    }
}

impl Entity for RoomState {
    type Key = RoomKey;
    type Op = RoomOp;
    type Copy = RoomCopy;
    type Live = RoomLive;
    type Input = RoomInput;
    type Shared = RoomsShared;

    fn placement(_: &RoomsShared, key: &RoomKey) -> Placement {
        key.placement()
    }

    /// Nobody takes what is sent to a dead subscriber.
    fn on_view(&self, live: &mut RoomLive, view: &View) -> bool {
        live.subscribers.retain(|address| view.is_up(address.node));
        false
    }

    fn is_durable(&self, shared: &RoomsShared, key: &RoomKey) -> bool {
        !shared.single_copy.contains(key.product())
    }

    fn new(_: &mut RoomsShared, _: &RoomKey, _: Instant, term: Term) -> Option<Self> {
        Some(Self::empty(RoomLog::new(Cursor { term, seq: 0 })))
    }

    fn apply(&mut self, shared: &mut RoomsShared, key: &RoomKey, now: Instant, op: &RoomOp) {
        match op {
            RoomOp::Append { entry, dedupe } => {
                let id = entry.id;
                self.append(shared, key, now, entry.clone());
                let at = self.log.last();
                let seen = |table: &mut Dedupe, limits: &Limits| {
                    table.remember(now, limits, id, dedupe.clone(), at);
                };
                self.change_dedupe(shared, key, seen);
                self.trim_to_bounds(shared);
            }
            RoomOp::Hole => self.log.has_hole_before(self.log.head() + 1),
            RoomOp::Merged { births, gone } => {
                self.births.join(births);
                self.gone.join(gone);
            }
            RoomOp::Remember { id, at } => {
                self.change_dedupe(shared, key, |table, limits| table.remember(now, limits, *id, None, *at));
            }
        }
    }

    fn to_copy(&self) -> RoomCopy {
        RoomCopy {
            before_first: self.log.before_first(),
            first: self.log.first(),
            hole: self.log.hole(),
            entries: self.log.iter().cloned().collect(),
            births: self.births.clone(),
            gone: self.gone.clone(),
            publishers: self.dedupe.publishers(),
            keys: self.dedupe.keys(),
        }
    }

    fn from_copy(shared: &mut RoomsShared, key: &RoomKey, now: Instant, copy: RoomCopy) -> Self {
        let RoomCopy { before_first, first, hole, entries, births, gone, publishers, keys } = copy;
        let mut state = Self::empty(RoomLog::after(before_first, first));
        (state.births, state.gone) = (births, gone);
        state.log.has_hole_before(hole);
        for entry in entries {
            state.append(shared, key, now, entry);
        }
        state.change_dedupe(shared, key, |table, limits| table.restore(now, limits, publishers, keys));
        state.trim_to_bounds(shared);
        state
    }

    fn released(mut self, shared: &mut RoomsShared, key: &RoomKey) {
        shared.log_bytes -= self.log.bytes();
        shared.dedupe_entries -= self.dedupe.entries();
        shared.by_log.remove(&mut self.log_mark, key);
        shared.by_dedupe.remove(&mut self.dedupe_mark, key);
    }

    fn last(&self) -> Cursor {
        // The place where an empty log began is not of an entry.
        Some(self.log.last()).filter(|last| last.seq > 0).unwrap_or(Cursor::NONE)
    }

    fn last_of(copy: &RoomCopy) -> Cursor {
        let newest = copy.entries.last().map(|entry| entry.term);
        let seq = copy.first.saturating_add(copy.entries.len() as u64).saturating_sub(1);
        match newest {
            Some(term) => Cursor { term, seq },
            None if copy.before_first.seq > 0 => copy.before_first,
            None => Cursor::NONE,
        }
    }

    fn covers(&self, last: Cursor) -> bool {
        last.seq == 0 || self.log.contains(last)
    }

    fn missing(&self, term: Term, other: &RoomCopy) -> (Vec<RoomOp>, bool) {
        let here: FixedSet<PublishId> = self.log.iter().map(|entry| entry.id).collect();
        let mut highest: BTreeMap<Publisher, PublishNumber> = BTreeMap::new();
        let mut ops = Vec::new();
        let mut gone = self.lost_with(other);
        let mut is_partial = gone != Births::default() || other.births.has_forgotten_more(&self.births);
        for (seq, entry) in (other.first..).zip(&other.entries) {
            let born = entry.born(seq);
            match self.births.has(born) {
                _ if here.contains(&entry.id) => continue,
                Has::Yes => continue,
                Has::Unknown => {
                    is_partial = true;
                    continue;
                }
                Has::No => {}
            }
            let (publisher, number) = entry.id.split();
            // A session's events keep their order: what it sent later is here already. Requests of backends
            // have none.
            let known = self.dedupe.highest(publisher).filter(|_| matches!(publisher, Publisher::Session(_)));
            if known.is_some_and(|known| number <= known) {
                // The last that was here may be this very one, published here as well.
                if known != Some(number) {
                    gone.add(born);
                    is_partial = true;
                }
                continue;
            }
            let known = highest.entry(publisher).or_insert(number);
            *known = number.max(*known);
            let at = Cursor { term: entry.term, seq };
            let dedupe = other.keys.iter().find(|(_, place)| *place == at).map(|(key, _)| key.clone());
            let RoomEntry { id, event, .. } = entry.clone();
            let entry = RoomEntry { term, first: Some(Box::new(born)), id, event };
            ops.push(RoomOp::Append { entry, dedupe });
        }
        // What the other had appended and trimmed again is not to be appended here if it is repeated.
        for (publisher, number, at) in &other.publishers {
            let known = highest.get(publisher).copied().max(self.dedupe.highest(*publisher));
            if known.is_none_or(|known| *number > known) {
                ops.push(RoomOp::Remember { id: PublishId::join(*publisher, *number), at: *at });
            }
        }
        if is_partial || !self.births.has_all(&other.births) {
            ops.push(RoomOp::Merged { births: other.births.clone(), gone });
        }
        if is_partial {
            ops.insert(0, RoomOp::Hole);
        }
        (ops, is_partial)
    }

    fn is_more_than(&self, copy: &RoomCopy) -> bool {
        let mut theirs: BTreeMap<Publisher, PublishNumber> =
            copy.publishers.iter().map(|(publisher, number, _)| (*publisher, *number)).collect();
        for (publisher, number) in copy.entries.iter().map(|entry| entry.id.split()) {
            let known = theirs.entry(publisher).or_insert(number);
            *known = number.max(*known);
        }
        let knows = |publisher: &Publisher, number| theirs.get(publisher).is_some_and(|n| *n >= number);
        !copy.births.has_all(&self.births)
            || self.dedupe.publishers().iter().any(|(who, number, _)| !knows(who, *number))
    }

    fn copy_bytes(&self) -> usize {
        self.log.bytes() + 64 * self.dedupe.len() + 256
    }

    fn digest(&self) -> u64 {
        let mut bytes = Vec::new();
        for (seq, entry) in (self.log.first()..).zip(self.log.iter()).skip(self.log.len().saturating_sub(16))
        {
            bytes.extend_from_slice(&seq.to_le_bytes());
            bytes.extend_from_slice(&crate::wire::encode(&(entry.term, entry.id)));
        }
        bytes.extend_from_slice(&self.log.head().to_le_bytes());
        bytes.extend_from_slice(&self.log.hole().to_le_bytes());
        bytes.extend_from_slice(&crate::wire::encode(&self.births));
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    fn body(message: MessageOf<Self>) -> Body {
        Body::Rooms(message)
    }
}
