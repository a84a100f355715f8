//! What is for one client alone, until its edge has it.
//!
//! Belongs here: numbering, bounds. Stays out: what the entries are for.
//! Invariants: at most `own_log_entries_max` entries and `own_log_bytes_max` bytes, one large entry
//! excepted.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::wire::OwnEntry;

/// Bookkeeping of an entry beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Entries", into = "Entries")]
pub(super) struct OwnLog {
    /// Number of the last entry before those kept.
    before: u64,
    entries: VecDeque<OwnEntry>,
    bytes: usize,
}

/// How it travels: what it is before, and the entries.
type Entries = (u64, VecDeque<OwnEntry>);

impl From<Entries> for OwnLog {
    fn from((before, entries): Entries) -> Self {
        let bytes = entries.iter().map(entry_bytes).sum();
        Self { before, entries, bytes }
    }
}

impl From<OwnLog> for Entries {
    fn from(log: OwnLog) -> Self {
        (log.before, log.entries)
    }
}

fn entry_bytes(entry: &OwnEntry) -> usize {
    ENTRY_OVERHEAD_BYTES
        + match entry {
            OwnEntry::Emit { payload, .. } => payload.len(),
            OwnEntry::Join(..) | OwnEntry::Leave(..) | OwnEntry::Disconnect { .. } => 0,
        }
}

impl OwnLog {
    /// Number of the newest entry.
    pub(super) fn last(&self) -> u64 {
        self.before.saturating_add(self.entries.len() as u64)
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
        while self.before < seq
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&entry);
            self.before += 1;
        }
    }

    /// An edge that has everything up to `seq` attaches. If that is more than there is here, it is the
    /// edge that knows: the log goes on after it.
    pub(super) fn attached(&mut self, seq: u64) {
        self.received(seq);
        self.before = self.before.max(seq);
    }

    /// Drops what is kept: it is another history's.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entries after `sent` up to `upto`: number of the first, and the entries.
    pub(super) fn between(&self, sent: u64, upto: u64) -> Option<(u64, Vec<OwnEntry>)> {
        let skip = usize::try_from(sent.saturating_sub(self.before)).ok()?;
        let end = usize::try_from(upto.min(self.last()).checked_sub(self.before)?).ok()?;
        let entries: Vec<OwnEntry> = self.entries.range(skip.min(end)..end).cloned().collect();
        (!entries.is_empty()).then_some((self.before + skip as u64 + 1, entries))
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

    fn count((first, entries): (u64, Vec<OwnEntry>)) -> (u64, usize) {
        (first, entries.len())
    }

    #[test]
    fn what_an_edge_has_not_goes_out_and_nothing_else() {
        let mut log = OwnLog::default();
        (0..3).for_each(|_| {
            log.push(emit());
        });
        assert_eq!(log.between(0, 2).map(count), Some((1, 2)));
        assert_eq!(log.between(2, 2), None);
        log.attached(1);
        assert_eq!(log.between(1, 3).map(count), Some((2, 2)));
        assert_eq!(log.between(0, 9).map(count), Some((2, 2)));
        assert_eq!(log.between(3, 1), None);
    }

    #[test]
    fn an_edge_that_has_more_than_there_is_gets_what_follows() {
        let mut log = OwnLog::default();
        log.push(emit());
        log.attached(7);
        assert_eq!(log.push(emit()), 8);
        assert_eq!(log.between(7, 8).map(count), Some((8, 1)));
        log.check_invariants(&Limits::default());
        let copy: OwnLog = crate::wire::decode(&crate::wire::encode(&log)).unwrap();
        assert_eq!(copy, log);
    }
}
