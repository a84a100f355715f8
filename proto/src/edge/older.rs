//! Entries before a room's tail, fetched from its owner for readers that are that far behind.
//!
//! Belongs here: chunks of them, who reads there, what is dropped first.
//! Stays out: asking for more and serving (`readers`), where a reader belongs (`Tail::place`).
//! Units: bytes as in the room's log; at most `CHUNKS_MAX` chunks.
//! Invariants: a chunk holds all that the log holds after one place up to another; a reader is served
//! from a chunk only at a place that this chunk knows.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use super::tail::TailEntry;
use crate::id::Cursor;
use crate::time::Instant;

/// Chunks of one tail, however small.
const CHUNKS_MAX: usize = 64;

/// A chunk that no reader needs is kept this long after its last use, for readers that come in a herd.
const KEPT_UNREAD: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Older {
    /// In the order they came.
    chunks: Vec<Chunk>,
    pub(super) bytes: usize,
    /// The fetch under way: after which place, and up to where.
    pub(super) pending: Option<(Cursor, Cursor)>,
    /// Readers whose next entries are nowhere here (cursor, index of the session).
    pub(super) waiting: BTreeSet<(Cursor, u32)>,
    /// Readers whose next entries are in a chunk, as far as their queues allow.
    pub(super) reading: BTreeSet<(Cursor, u32)>,
}

#[derive(Debug)]
pub(super) struct Chunk {
    /// Given by the edge.
    pub(super) number: u64,
    /// It holds what follows this place,
    after: Cursor,
    /// up to this one.
    pub(super) last: Cursor,
    entries: Vec<TailEntry>,
    used: Instant,
}

impl Chunk {
    pub(super) fn new(now: Instant, after: Cursor, last: Cursor, entries: Vec<TailEntry>) -> Self {
        Self { number: 0, after, last, entries, used: now }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &TailEntry> {
        self.entries.iter()
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Index of the entry that follows `at`, if `at` is a place of this chunk before its end.
    fn find(&self, at: Cursor) -> Option<usize> {
        if at < self.after || at >= self.last {
            return None;
        }
        let index = self.entries.partition_point(|entry| entry.at <= at);
        let before = index.checked_sub(1).map_or(self.after, |before| self.entries[before].at);
        let known = at == before || self.entries.get(index).is_some_and(|entry| entry.follows(at));
        known.then_some(index)
    }
}

impl Older {
    /// Chunk and entry that follow `at`.
    pub(super) fn find(&self, at: Cursor) -> Option<(usize, usize)> {
        (self.chunks.iter().enumerate()).find_map(|(chunk, c)| c.find(at).map(|entry| (chunk, entry)))
    }

    /// A chunk is read from at `now`.
    pub(super) fn touch(&mut self, chunk: usize, now: Instant) {
        self.chunks[chunk].used = now;
    }

    /// An entry of a chunk; where the chunk ends if there is none.
    pub(super) fn get(&self, chunk: usize, entry: usize) -> Result<&TailEntry, Cursor> {
        self.chunks[chunk].entries.get(entry).ok_or(self.chunks[chunk].last)
    }

    /// Takes a chunk; returns its bytes.
    pub(super) fn push(&mut self, chunk: Chunk) -> usize {
        let bytes = chunk.bytes();
        self.bytes += bytes;
        self.chunks.push(chunk);
        bytes
    }

    /// The reader is at `at` no more.
    pub(super) fn forget(&mut self, at: Cursor, session: u32) {
        self.waiting.remove(&(at, session));
        self.reading.remove(&(at, session));
    }

    fn is_needed(&self, chunk: &Chunk) -> bool {
        let span = (Bound::Included((chunk.after, 0)), Bound::Excluded((chunk.last, 0)));
        self.reading.range(span).next().is_some()
    }

    /// Drops chunks until they are within `bytes_max`, or one: first those that nobody needs, of these
    /// the one whose last use is longest ago. Returns the bytes freed.
    pub(super) fn shrink(&mut self, bytes_max: usize) -> usize {
        let before = self.bytes;
        while self.chunks.len() > CHUNKS_MAX || (self.bytes > bytes_max && self.chunks.len() > 1) {
            let first = self.chunks.iter().min_by_key(|c| (self.is_needed(c), c.used, c.number));
            let Some(number) = first.map(|chunk| chunk.number) else { break };
            self.drop_chunk(number);
        }
        before - self.bytes
    }

    /// Returns the bytes freed.
    pub(super) fn drop_chunk(&mut self, number: u64) -> usize {
        let at = self.chunks.iter().position(|chunk| chunk.number == number);
        let bytes = at.map_or(0, |at| self.chunks.remove(at).bytes());
        self.bytes -= bytes;
        bytes
    }

    /// Drops what nobody has needed for a while, and what is older than the log. Returns the bytes freed.
    pub(super) fn expire(&mut self, now: Instant, age_max: Duration) -> usize {
        let before = self.bytes;
        let old = |chunk: &&Chunk| {
            let unused = now.since(chunk.used);
            unused >= age_max || (unused >= KEPT_UNREAD && !self.is_needed(chunk))
        };
        let dropped: Vec<u64> = self.chunks.iter().filter(old).map(|chunk| chunk.number).collect();
        for number in dropped {
            self.drop_chunk(number);
        }
        before - self.bytes
    }

    /// Whether it can be let go.
    pub(super) fn is_unused(&self) -> bool {
        self.chunks.is_empty() && self.pending.is_none() && self.waiting.is_empty() && self.reading.is_empty()
    }

    pub(super) fn holds(&self, number: u64) -> bool {
        self.chunks.iter().any(|chunk| chunk.number == number)
    }

    pub(super) fn check_invariants(&self, bytes_max: usize) {
        assert_eq!(self.bytes, self.chunks.iter().map(Chunk::bytes).sum::<usize>());
        assert!(self.bytes <= bytes_max || self.chunks.len() <= 1, "{} bytes of older entries", self.bytes);
        assert!(self.chunks.len() <= CHUNKS_MAX);
        for chunk in &self.chunks {
            let mut before = chunk.after;
            for entry in &chunk.entries {
                assert!(before < entry.at && entry.at <= chunk.last, "a chunk out of order");
                before = entry.at;
            }
        }
    }
}
