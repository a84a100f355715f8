//! Older entries for an edge whose readers are before its tail.
//!
//! Belongs here: which part of a log answers a fetch. Stays out: who asks and who owns (`host`).
//! Units: entries weigh what they weigh in the log.
//! Invariants: an answer is exactly what the log holds after one place and up to another, or a part of it
//! from the beginning; a log that does not hold both places, or has a hole between them, has nothing to
//! answer, because then the asker has seen another history than this one (Raft's log matching).

use super::Rooms;
use super::log::RoomLog;
use crate::id::{Address, Cursor, RoomKey};
use crate::shard::Ctx;
use crate::wire::{Body, RoomEntry, RoomToEdge};

/// Entries of one answer weigh this much at most, or it is a single one.
const FETCH_BYTES_MAX: u64 = 64 << 10;

impl Rooms {
    pub(super) fn on_fetch(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        key: &RoomKey,
        after: Cursor,
        upto: Cursor,
    ) {
        let Some(room) = self.host.owned(key) else { return };
        let entries = entries(&room.state.log, room.live.committed, after, upto);
        let fetched = RoomToEdge::Fetched { room: key.clone(), term: room.term, after, entries };
        ctx.out.send_to_address(from, key.placement(), Body::RoomToEdge(fetched));
    }
}

/// Entries after `after` up to `upto`, at most [`FETCH_BYTES_MAX`] of them or one, and only committed
/// ones. `None` if the log does not hold all of that.
pub(super) fn entries(log: &RoomLog, committed: u64, after: Cursor, upto: Cursor) -> Option<Vec<RoomEntry>> {
    if !holds(log, after)
        || !holds(log, upto)
        || (!log.is_whole_after(after.seq) && upto.seq + 1 >= log.hole())
    {
        return None;
    }
    let start = log.offset_after(after.seq);
    let mut entries = Vec::new();
    for seq in after.seq + 1..=upto.seq.min(committed) {
        if !entries.is_empty() && log.offset_after(seq) - start > FETCH_BYTES_MAX {
            break;
        }
        entries.push(log.get(seq)?.clone());
    }
    Some(entries)
}

/// Whether `cursor` is a place in this log from which everything later is still here. A place may carry
/// the term of the entry that follows it: where that term begins.
fn holds(log: &RoomLog, cursor: Cursor) -> bool {
    if cursor.seq > log.head() || cursor.seq + 1 < log.first() {
        return false;
    }
    log.contains(cursor) || log.get(cursor.seq + 1).is_some_and(|next| next.term == cursor.term)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::{NodeId, NodeRef, PublishId, ShardIx, Term};
    use crate::wire::{Payload, RoomEvent};

    fn term(number: u64) -> Term {
        Term { number, owner: NodeRef { id: NodeId(number), incarnation: 1 } }
    }

    fn at(number: u64, seq: u64) -> Cursor {
        Cursor { term: term(number), seq }
    }

    /// A log whose entries have these terms and weigh about `bytes` each.
    fn log(terms: &[u64], bytes: usize) -> RoomLog {
        let mut log = RoomLog::new(Cursor::NONE);
        let via = Address { node: term(1).owner, shard: ShardIx(0) };
        for (number, of) in (1..).zip(terms) {
            let payload = Payload::json(Bytes::from(vec![b' '; bytes]));
            let event = RoomEvent::new(payload);
            log.append(
                crate::time::Instant::ZERO,
                RoomEntry::new(term(*of), PublishId::Api { via, number }, event),
            );
        }
        log
    }

    fn count(log: &RoomLog, after: Cursor, upto: Cursor) -> Option<usize> {
        entries(log, log.head(), after, upto).map(|entries| entries.len())
    }

    #[test]
    fn what_lies_between_two_places_is_answered() {
        let log = log(&[1, 1, 1, 2, 2], 10);
        assert_eq!(count(&log, at(1, 1), at(2, 4)), Some(3));
        assert_eq!(count(&log, Cursor::NONE, at(2, 5)), Some(5));
        assert_eq!(count(&log, at(2, 5), at(2, 5)), Some(0));
        assert_eq!(count(&log, at(2, 3), at(2, 5)), Some(2), "where term 2 begins");
    }

    #[test]
    fn places_of_another_history_have_no_answer() {
        let log = log(&[1, 1, 2, 2], 10);
        assert_eq!(count(&log, at(1, 3), at(2, 4)), None);
        assert_eq!(count(&log, at(1, 1), at(3, 4)), None);
        assert_eq!(count(&log, at(1, 1), at(2, 5)), None);
        assert_eq!(count(&log, at(2, u64::MAX), at(2, u64::MAX)), None);
    }

    #[test]
    fn what_is_trimmed_has_no_answer() {
        let mut log = log(&[1; 5], 10);
        log.trim_first();
        log.trim_first();
        assert_eq!(count(&log, at(1, 1), at(1, 5)), None);
        assert_eq!(count(&log, at(1, 2), at(1, 5)), Some(3));
    }

    #[test]
    fn an_answer_is_bounded_and_never_empty_where_there_is_something() {
        assert_eq!(count(&log(&[1; 50], 10_000), at(1, 3), at(1, 50)), Some(6));
        assert_eq!(count(&log(&[1; 5], 200_000), at(1, 3), at(1, 5)), Some(1));
    }

    #[test]
    fn what_is_not_committed_is_not_answered() {
        let log = log(&[1; 5], 10);
        assert_eq!(entries(&log, 3, at(1, 1), at(1, 5)).map(|entries| entries.len()), Some(2));
    }
}
