//! What of a room survives its owner: the log, and what it has seen already.
//!
//! Belongs here: ops, the same at owner and backup; copies; what two logs have of each other.
//! Stays out: subscribers and effects (`Rooms`), who owns it (`host`).
//! Invariants: an entry is appended once; a copy built from a copy is equal to it.

use std::collections::BTreeMap;

use super::dedupe::Dedupe;
use super::log::{RoomLog, entry_bytes};
use super::{RoomInput, RoomLive};
use crate::collections::FixedSet;
use crate::host::{Entity, MessageOf, SingleCopy};
use crate::id::{Cursor, Placement, PublishId, PublishNumber, Publisher, RoomKey, Term};
use crate::limits::Limits;
use crate::marks::{Mark, Marks};
use crate::time::Instant;
use crate::wire::{Body, RoomCopy, RoomEntry, RoomOp};

/// The replicated part of a room.
#[derive(Debug)]
pub(crate) struct RoomState {
    pub(super) log: RoomLog,
    pub(super) dedupe: Dedupe,
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
        Self { log, dedupe: Dedupe::default(), log_mark: Mark::default(), dedupe_mark: Mark::default() }
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
        self.log.append(now, entry);
        shared.by_log.set(&mut self.log_mark, key, Some(now));
    }
}

impl RoomState {
    /// Entries of a copy that this log does not have, with their places there. Up to the last place that
    /// both logs have they are the same (Raft's log matching); see [`is_past`] for where there is none.
    /// Second: whether the other has a hole that is not known here.
    fn only_in<'a>(&self, other: &'a RoomCopy) -> (Vec<(Cursor, &'a RoomEntry)>, bool) {
        let here: FixedSet<PublishId> = self.log.iter().map(|entry| entry.id).collect();
        let places = (other.first..).zip(&other.entries);
        let places = places.map(|(seq, entry)| (Cursor { term: entry.term, seq }, entry));
        let common = places.clone().map(|(at, _)| at).filter(|at| self.log.contains(*at)).last();
        let common = common.or(Some(other.before_first).filter(|at| self.log.contains(*at)));
        let begin = self.log.before_first();
        let was_here = |entry: &RoomEntry| {
            let (publisher, number) = entry.id.split();
            self.dedupe.highest(publisher).is_some_and(|known| number <= known)
        };
        let is_past = |at: Cursor, entry: &RoomEntry| is_past(common, begin, at, || was_here(entry));
        let has_hole = match common {
            Some(common) => other.hole > common.seq.max(self.log.hole()),
            None => other.hole > 0 && Self::last_of(other) > begin,
        };
        let only = places.filter(|(at, entry)| !is_past(*at, entry) && !here.contains(&entry.id));
        (only.collect(), has_hole)
    }
}

/// Whether the entry at `at` of another log was in a log that begins at `begin`. Two logs without a common
/// place may be one, of which the other has trimmed the older part: there a publisher's highest number tells
/// what was here. What is later than that place cannot have been trimmed: it is of another history, and its
/// publisher may have gone on here before that has come.
fn is_past(common: Option<Cursor>, begin: Cursor, at: Cursor, was_here: impl FnOnce() -> bool) -> bool {
    match common {
        Some(common) => at.seq <= common.seq,
        None => at <= begin && was_here(),
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
            publishers: self.dedupe.publishers(),
            keys: self.dedupe.keys(),
        }
    }

    fn from_copy(shared: &mut RoomsShared, key: &RoomKey, now: Instant, copy: RoomCopy) -> Self {
        let RoomCopy { before_first, first, hole, entries, publishers, keys } = copy;
        let mut state = Self::empty(RoomLog::after(before_first, first));
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
        let mut highest: BTreeMap<Publisher, PublishNumber> = BTreeMap::new();
        let mut ops = Vec::new();
        let (only_there, mut is_partial) = self.only_in(other);
        for (at, entry) in only_there {
            let (publisher, number) = entry.id.split();
            // A session's events keep their order: what it sent later is here already. Requests of backends
            // have none.
            let later = self.dedupe.highest(publisher).is_some_and(|known| number <= known);
            if later && matches!(publisher, Publisher::Session(_)) {
                is_partial = true;
                continue;
            }
            let known = highest.entry(publisher).or_insert(number);
            *known = number.max(*known);
            let dedupe = other.keys.iter().find(|(_, place)| *place == at).map(|(key, _)| key.clone());
            let mut entry = entry.clone();
            entry.term = term;
            ops.push(RoomOp::Append { entry, dedupe });
        }
        // What the other had appended and trimmed again is not to be appended here if it is repeated.
        for (publisher, number, at) in &other.publishers {
            let known = highest.get(publisher).copied().max(self.dedupe.highest(*publisher));
            if known.is_none_or(|known| *number > known) {
                ops.push(RoomOp::Remember { id: PublishId::join(*publisher, *number), at: *at });
            }
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
        let lacks_publisher = self.dedupe.publishers().iter().any(|(who, number, _)| !knows(who, *number));
        lacks_publisher || {
            let copy_has = |at: Cursor| {
                let index = at.seq.checked_sub(copy.first).and_then(|index| usize::try_from(index).ok());
                let entry = index.and_then(|index| copy.entries.get(index));
                entry.is_some_and(|entry| entry.term == at.term) || at == copy.before_first
            };
            let ids: FixedSet<PublishId> = copy.entries.iter().map(|entry| entry.id).collect();
            let common = self.log.places().filter(|at| copy_has(*at)).last();
            let common = common.or(Some(self.log.before_first()).filter(|at| copy_has(*at)));
            self.log.places().zip(self.log.iter()).any(|(at, entry)| {
                let (publisher, number) = entry.id.split();
                let is_past = is_past(common, copy.before_first, at, || knows(&publisher, number));
                !is_past && !ids.contains(&entry.id)
            })
        }
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
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    fn body(message: MessageOf<Self>) -> Body {
        Body::Rooms(message)
    }
}
