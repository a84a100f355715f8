//! What is for one client alone, until its edge has handed it over and the client has shown it.
//!
//! Belongs here: numbering, bounds, from where it can be taken up. Stays out: what the entries are for.
//! Invariants: at most `own_log_entries_max` entries and `own_log_bytes_max` bytes wait for the edge, one
//! large entry excepted; what it has handed over is kept for a resume within the same bounds, all told.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::mutant::{Mutant, is_planted};
use crate::small::give_back;
use crate::wire::OwnEntry;

/// Bookkeeping of an entry beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// What a resume may need is kept up to these. Not settings: owner and backup must agree (DESIGN §15).
const KEPT_ENTRIES_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Entries", into = "Entries")]
pub(super) struct OwnLog {
    /// Number of the last entry before those kept.
    before: u64,
    entries: VecDeque<OwnEntry>,
    bytes: usize,
    /// The last entry that the edge has.
    handed: u64,
    waiting_bytes: usize,
    /// The last event that is not kept any more: whoever has not seen it cannot go on.
    dropped: u64,
    /// Whoever has seen less has not seen anything over the present transport.
    begins: u64,
}

/// How it travels: what it is before, what is handed over, what is dropped, where the present transport
/// begins, and the entries.
type Entries = (u64, u64, u64, u64, VecDeque<OwnEntry>);

impl From<Entries> for OwnLog {
    fn from((before, handed, dropped, begins, entries): Entries) -> Self {
        let bytes = entries.iter().map(entry_bytes).sum();
        let mut log = Self { before, entries, bytes, handed, waiting_bytes: 0, dropped, begins };
        log.count_waiting();
        log
    }
}

impl From<OwnLog> for Entries {
    fn from(log: OwnLog) -> Self {
        (log.before, log.handed, log.dropped, log.begins, log.entries)
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
        self.waiting_bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
        self.bound_kept();
        self.last()
    }

    /// Number of the last entry before those kept.
    pub(super) fn base(&self) -> u64 {
        self.before
    }

    /// Whether more waits for the edge than may.
    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.waiting() >= limits.own_log_entries_max || self.waiting_bytes >= limits.own_log_bytes_max
    }

    fn waiting(&self) -> usize {
        usize::try_from(self.last().saturating_sub(self.handed)).unwrap_or(usize::MAX)
    }

    fn count_waiting(&mut self) {
        let waiting = self.waiting().min(self.entries.len());
        self.waiting_bytes = self.entries.iter().rev().take(waiting).map(entry_bytes).sum();
    }

    /// The edge has everything up to `seq`.
    pub(super) fn received(&mut self, seq: u64) {
        self.handed = self.handed.max(seq.min(self.last()));
        self.count_waiting();
        self.bound_kept();
    }

    /// The client has everything up to `seq`.
    pub(super) fn shown(&mut self, seq: u64) {
        self.drop_upto(seq.min(self.handed));
    }

    /// The oldest of what is handed over goes at the bound.
    fn bound_kept(&mut self) {
        while (self.entries.len() > KEPT_ENTRIES_MAX || self.bytes > KEPT_BYTES_MAX)
            && self.before < self.handed
        {
            self.drop_upto(self.before + 1);
        }
    }

    fn drop_upto(&mut self, seq: u64) {
        while self.before < seq
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&entry);
            self.before += 1;
            if matches!(entry, OwnEntry::Emit { volatile: false, asks: false, .. }) {
                self.dropped = self.before;
            }
        }
        give_back(&mut self.entries);
    }

    /// An edge that has everything up to `seq` attaches. If that is more than there is here, it is the
    /// edge that knows: the log goes on after it.
    pub(super) fn attached(&mut self, seq: u64) {
        self.received(seq);
        if seq > self.last() {
            self.drop_upto(self.last());
            (self.before, self.handed, self.dropped) = (seq, seq, seq);
            // Transports may have come and gone in what is not known here.
            self.begins = seq;
        }
    }

    /// Goes on after `seq`, which is what the edge has. What is kept is the past, or another history's.
    pub(super) fn begin_after(&mut self, seq: u64) {
        *self = Self { before: seq, handed: seq, dropped: seq, begins: seq, ..Self::default() };
    }

    /// Whether a client that has been shown everything up to `seq` has missed nothing that is not here.
    pub(super) fn can_resume_after(&self, seq: u64) -> bool {
        (self.dropped..=self.last()).contains(&seq)
    }

    /// Whether an offset that says `seq` is of the present transport: nobody has come back since it was written.
    pub(super) fn is_of_present(&self, seq: u64) -> bool {
        seq >= self.begins
    }

    /// A client that has been shown everything up to `seq` goes on: its joins and leaves are known by other
    /// means, and the events it has not seen get numbers above all that were used, so that an offset says
    /// on which side of this moment it was written; `spare` numbers before them name something else. Returns
    /// the last number before them; the edge has as much.
    pub(super) fn renumber(&mut self, seq: u64, spare: usize) -> u64 {
        self.drop_upto(if is_planted(Mutant::OwnLogNotReplayed) { self.last() } else { seq });
        let spare = if is_planted(Mutant::OwnNumbersReused) { 0 } else { spare };
        let base = self.last() + spare as u64;
        self.entries.retain(|entry| matches!(entry, OwnEntry::Emit { asks: false, .. }));
        (self.before, self.handed, self.begins) = (base, base, base);
        self.bytes = self.entries.iter().map(entry_bytes).sum();
        self.count_waiting();
        base
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
        let (waiting, kept) = (self.waiting(), self.entries.len());
        assert!(waiting <= limits.own_log_entries_max + slack, "own log of {waiting} entries");
        assert!(kept <= KEPT_ENTRIES_MAX.max(waiting), "own log keeps {kept} entries");
        assert!(self.before <= self.handed && self.handed <= self.last(), "own log is miscounted");
        assert!(self.dropped <= self.before && self.begins <= self.last());
        assert_eq!(self.bytes, self.entries.iter().map(entry_bytes).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Payload;

    fn emit() -> OwnEntry {
        OwnEntry::Emit { payload: Payload::json("[\"e\"]"), volatile: false, asks: false, after: None }
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
        log.shown(1);
        assert_eq!(log.between(0, 9).map(count), Some((2, 2)));
        assert_eq!(log.between(3, 1), None);
    }

    #[test]
    fn what_the_client_has_not_shown_is_kept_and_taken_up_under_new_numbers() {
        let mut log = OwnLog::default();
        (0..4).for_each(|_| {
            log.push(emit());
        });
        log.received(3);
        log.shown(9);
        assert_eq!(log.between(0, 9).map(count), Some((4, 1)), "shown is what was handed over");
        log.push(OwnEntry::Leave(
            crate::id::RoomKey::new(&"p".into(), &"/".into(), "r"),
            crate::wire::AskedBy::Client,
        ));
        log.push(emit());
        log.received(6);
        assert!(!log.can_resume_after(2) && log.can_resume_after(3) && !log.can_resume_after(7));
        let base = log.renumber(4, 1);
        assert_eq!((base, log.between(base, 99).map(count)), (7, Some((8, 1))));
        assert!(log.can_resume_after(4), "an offset from before is as good");
        assert!(log.can_resume_after(8));
        log.check_invariants(&Limits::default());
    }

    #[test]
    fn an_event_dropped_at_the_bound_ends_what_can_be_resumed() {
        let mut log = OwnLog::default();
        for seq in 1..=300 {
            log.push(emit());
            log.received(seq);
        }
        log.check_invariants(&Limits::default());
        assert!(!log.can_resume_after(43) && log.can_resume_after(44));
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
