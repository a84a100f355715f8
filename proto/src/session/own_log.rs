//! What is for one client alone, until its edge has it.
//!
//! Belongs here: numbering, bounds. Stays out: what the entries are for.
//! Invariants: at most `own_log_entries_max` entries and `own_log_bytes_max` bytes, one large entry
//! excepted.

use std::collections::VecDeque;

use crate::limits::Limits;
use crate::wire::OwnEntry;

/// Bookkeeping of an entry beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct OwnLog {
    /// Number of the oldest entry kept.
    first: u64,
    entries: VecDeque<OwnEntry>,
    bytes: usize,
    /// Number of the last entry handed to the present edge.
    sent: u64,
}

fn entry_bytes(entry: &OwnEntry) -> usize {
    ENTRY_OVERHEAD_BYTES
        + match entry {
            OwnEntry::Emit { payload, .. } => payload.len(),
            OwnEntry::Join(..) | OwnEntry::Leave(..) | OwnEntry::Disconnect { .. } => 0,
        }
}

impl OwnLog {
    /// Empty, after entry `last`.
    pub(super) fn after(last: u64) -> Self {
        Self { first: last + 1, entries: VecDeque::new(), bytes: 0, sent: last }
    }

    /// Number of the newest entry.
    pub(super) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(super) fn push(&mut self, entry: OwnEntry) -> u64 {
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
        self.last()
    }

    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.entries.len() >= limits.own_log_entries_max || self.bytes >= limits.own_log_bytes_max
    }

    /// The edge has everything up to `seq`.
    pub(super) fn received(&mut self, seq: u64) {
        while self.first <= seq
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&entry);
            self.first += 1;
        }
        self.sent = self.sent.max(self.first - 1);
    }

    /// Another edge, or the same again: it has everything up to `seq`, the rest goes out anew. An edge
    /// that has more than there is here is the one that knows: the log goes on after it.
    pub(super) fn rewind(&mut self, seq: u64) {
        if seq > self.last() {
            *self = Self::after(seq);
        }
        self.received(seq);
        self.sent = self.first - 1;
    }

    /// What the edge has not been sent, up to entry `upto`: number of the first, and the entries.
    pub(super) fn take_unsent(&mut self, upto: u64) -> Option<(u64, Vec<OwnEntry>)> {
        let first = self.sent + 1;
        let from = usize::try_from(first - self.first).ok()?;
        let count = usize::try_from(upto.checked_sub(self.sent)?).ok()?;
        let unsent: Vec<OwnEntry> = self.entries.iter().skip(from).take(count).cloned().collect();
        self.sent += unsent.len() as u64;
        (!unsent.is_empty()).then_some((first, unsent))
    }

    pub(super) fn check_invariants(&self, limits: &Limits) {
        // A session that ends is told so; leaves of one without a transport wait for nobody.
        let slack = limits.inbound_packets_max + 1;
        assert!(
            self.entries.len() <= limits.own_log_entries_max + slack,
            "own log of {} entries",
            self.entries.len()
        );
        assert_eq!(self.bytes, self.entries.iter().map(entry_bytes).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Payload;

    fn emit() -> OwnEntry {
        OwnEntry::Emit { payload: Payload::json("[\"e\"]"), volatile: false }
    }

    #[test]
    fn what_an_edge_has_not_goes_out_again_and_nothing_else() {
        let mut log = OwnLog::after(0);
        (0..3).for_each(|_| {
            log.push(emit());
        });
        assert_eq!(log.take_unsent(2).map(|(first, entries)| (first, entries.len())), Some((1, 2)));
        log.rewind(1);
        assert_eq!(log.take_unsent(3).map(|(first, entries)| (first, entries.len())), Some((2, 2)));
        assert_eq!(log.take_unsent(3), None);
    }

    #[test]
    fn an_edge_that_has_more_than_there_is_gets_what_follows() {
        let mut log = OwnLog::after(0);
        log.push(emit());
        log.rewind(7);
        assert_eq!(log.push(emit()), 8);
        assert_eq!(log.take_unsent(8).map(|(first, entries)| (first, entries.len())), Some((8, 1)));
        log.check_invariants(&Limits::default());
    }
}
