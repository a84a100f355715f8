//! The deadlines of one shard, in one heap.
//!
//! Belongs here: ordering. Stays out: what is due when.
//! Units: an entry is 40 bytes; a client has one, whatever it waits for.
//! Invariants: entries of one moment come out in the order they went in. An entry may be stale: whoever
//! is woken looks at its own state.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::id::{ClientIx, SocketSid};
use crate::time::Instant;

/// Who wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerKey {
    /// A client: heartbeat, handshake, attachments, a queue that does not drain.
    Client(ClientIx),
    /// A session at its edge: an own-log entry held back long enough.
    Held(SocketSid),
    /// Everything that was bounced: ask again.
    Retry,
    /// Room logs and tails: drop what is too old.
    Sweep,
    /// Calls from outside, and questions to edges.
    Calls,
    /// Questions to the members of rooms.
    Asks,
}

/// The heap.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, TimerKey)>>,
    inserted: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, key: TimerKey) {
        self.inserted += 1;
        self.heap.push(Reverse((at, self.inserted, key)));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next one due at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<TimerKey> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((.., key))| key)
    }
}
