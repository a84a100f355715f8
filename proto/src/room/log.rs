//! A room's log: recent entries in order, trimmed at the old end.
//!
//! Belongs here: positions, what a cursor means in this log, bytes.
//! Stays out: when to trim by age and over all rooms (`Rooms`).
//! Units: `seq` counts from 1; offsets are bytes since the log began.
//! Invariants: positions strictly rise; `first` is the seq of the oldest entry kept.

use std::collections::VecDeque;

use crate::id::Cursor;
use crate::small::give_back;
use crate::time::Instant;
use crate::wire::{Action, RoomEntry};

/// Bookkeeping of an entry beside its payload, counted into the log's bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct RoomLog {
    /// Seq of the oldest entry kept; head + 1 when empty.
    first: u64,
    /// Position before `first`.
    before_first: Cursor,
    entries: VecDeque<Kept>,
    /// Offset of the start of the oldest entry.
    start_offset: u64,
    /// Seq of the first entry after the last hole; 0 if there is none.
    hole: u64,
}

#[derive(Debug)]
struct Kept {
    entry: RoomEntry,
    end_offset: u64,
    since: Instant,
}

/// What an entry weighs in a log or a tail.
pub(crate) fn entry_bytes(entry: &RoomEntry) -> usize {
    let named = match entry.event.action() {
        Some(Action::Join(rooms) | Action::Leave(rooms)) => rooms.iter().map(|room| room.len()).sum(),
        _ => 0,
    };
    ENTRY_OVERHEAD_BYTES + entry.event.payload.len() + named
}

impl RoomLog {
    /// An empty log that begins at `place`: nothing at or before it will ever be in it.
    pub(super) fn new(place: Cursor) -> Self {
        Self::after(place, place.seq + 1)
    }

    /// An empty log whose first entry will be `first`.
    pub(super) fn after(before_first: Cursor, first: u64) -> Self {
        Self { first, before_first, entries: VecDeque::new(), start_offset: 0, hole: 0 }
    }

    pub(super) fn hole(&self) -> u64 {
        self.hole
    }

    /// Who is before entry `seq` misses something.
    pub(super) fn has_hole_before(&mut self, seq: u64) {
        self.hole = self.hole.max(seq);
    }

    pub(super) fn before_first(&self) -> Cursor {
        self.before_first
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RoomEntry> {
        self.entries.iter().map(|kept| &kept.entry)
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Seq of the newest entry; 0 before the first.
    pub(super) fn head(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.end_offset() - self.start_offset).unwrap_or(usize::MAX)
    }

    fn end_offset(&self) -> u64 {
        self.entries.back().map_or(self.start_offset, |k| k.end_offset)
    }

    /// Position of the newest entry that was ever in this log.
    pub(super) fn last(&self) -> Cursor {
        self.entries.back().map_or(self.before_first, |k| Cursor { term: k.entry.term, seq: self.head() })
    }

    /// Since when the oldest entry is kept.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.entries.front().map(|kept| kept.since)
    }

    pub(super) fn append(&mut self, now: Instant, entry: RoomEntry) -> Cursor {
        let term = entry.term;
        let end_offset = self.end_offset() + entry_bytes(&entry) as u64;
        self.entries.push_back(Kept { entry, end_offset, since: now });
        Cursor { term, seq: self.head() }
    }

    /// Drops the oldest entry; returns the bytes freed.
    pub(super) fn trim_first(&mut self) -> usize {
        let Some(kept) = self.entries.pop_front() else { return 0 };
        give_back(&mut self.entries);
        self.before_first = Cursor { term: kept.entry.term, seq: self.first };
        self.first += 1;
        let freed = kept.end_offset - self.start_offset;
        self.start_offset = kept.end_offset;
        usize::try_from(freed).unwrap_or(usize::MAX)
    }

    pub(super) fn get(&self, seq: u64) -> Option<&RoomEntry> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.entries.get(at).map(|k| &k.entry)
    }

    /// Position of entry `seq`, or of the last one trimmed.
    pub(super) fn position(&self, seq: u64) -> Cursor {
        self.get(seq).map_or(self.before_first, |e| Cursor { term: e.term, seq })
    }

    /// Offset of the end of entry `seq`: of the oldest end kept where it is trimmed already.
    pub(super) fn offset_after(&self, seq: u64) -> u64 {
        match seq.checked_sub(self.first) {
            None => self.start_offset,
            Some(at) => usize::try_from(at)
                .ok()
                .and_then(|at| self.entries.get(at))
                .map_or(self.end_offset(), |k| k.end_offset),
        }
    }

    /// Whether `cursor` is a place in this log: it has an entry `seq` with that term (Raft's log
    /// matching), or is the end of what was trimmed.
    pub(super) fn contains(&self, cursor: Cursor) -> bool {
        self.get(cursor.seq).is_some_and(|e| e.term == cursor.term) || cursor == self.before_first
    }

    /// Whether everything that follows `seq` is here.
    pub(super) fn is_whole_after(&self, seq: u64) -> bool {
        seq >= self.hole
    }
}
