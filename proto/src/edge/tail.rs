//! The tail of one room at this edge: recent entries, and which clients are served from it.
//!
//! Belongs here: taking entries in order from the room's owner, encoding each once per protocol.
//! Stays out: who the members are (`Edge`), queues of clients (`client`).
//! Units: `index` counts entries of this tail from 0; bytes as in the room's log.
//! Invariants: positions strictly rise whatever owners come and go; a publish that was served under an
//! earlier owner is not served again under a later one.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::departed::Memory;
use crate::collections::FixedMap;
use crate::id::{Cursor, NodeRef, PublishId, PublishNumber, Publisher, RoomKey, Term};
use crate::mutant::{Mutant, is_planted};
use crate::plain;
use crate::room::{REPORT_BYTES, entry_bytes};
use crate::shard::{ClientProtocol, Packet};
use crate::socketio;
use crate::time::Instant;
use crate::wire::{RoomEntry, RoomEvent};

/// Publishers remembered across owners; more, within one window, are taken for a new beginning.
const CARRIED_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Tail {
    pub(super) key: RoomKey,
    /// Whom we asked, and whether it has answered.
    pub(super) owner: Option<NodeRef>,
    pub(super) live: bool,
    /// No owner has answered yet: nothing was missed.
    pub(super) fresh: bool,
    /// Highest term heard.
    pub(super) term: Term,
    /// Seq expected next from the present owner.
    next_seq: u64,
    /// The last position served; never goes back.
    pub(super) last: Cursor,
    /// The last position served before the last hole.
    before_gap: Cursor,
    entries: VecDeque<TailEntry>,
    /// Index of the oldest entry kept.
    base: u64,
    pub(super) bytes: usize,
    taken_bytes: usize,
    /// The last publish of each publisher served under earlier owners.
    carried: FixedMap<Publisher, PublishNumber>,
    carried_since: Instant,
    /// Sessions that are served (index into the edge's sessions).
    pub(super) members: Vec<u32>,
    /// Sessions whose own stream waits for this room to get somewhere, or for the tail to be live.
    pub(super) waiting: VecDeque<u32>,
}

/// One entry with its frames, made when first needed.
#[derive(Debug)]
pub(super) struct TailEntry {
    pub(super) at: Cursor,
    id: PublishId,
    pub(super) event: RoomEvent,
    bytes: usize,
    pub(super) since: Instant,
    frames: Frames,
}

/// An event encoded once for each protocol, whoever many get it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    socket_io: OnceCell<Arc<[Packet]>>,
    plain: OnceCell<Arc<[Packet]>>,
}

impl Frames {
    pub(super) fn of(
        &self,
        protocol: ClientProtocol,
        key: &RoomKey,
        at: Option<Cursor>,
        event: &RoomEvent,
    ) -> &Arc<[Packet]> {
        match protocol {
            ClientProtocol::SocketIo => {
                self.socket_io.get_or_init(|| socketio::encode_event(key.namespace(), &event.payload))
            }
            ClientProtocol::Plain => self.plain.get_or_init(|| {
                let room = at.filter(|_| !key.is_everyone()).map(|at| (key.room(), at));
                Arc::new([plain::encode_event(room, &event.payload)])
            }),
        }
    }
}

impl TailEntry {
    pub(super) fn frames(&self, protocol: ClientProtocol, key: &RoomKey) -> &Arc<[Packet]> {
        self.frames.of(protocol, key, Some(self.at), &self.event)
    }
}

impl Tail {
    /// A tail for the first member; `memory` is of members before it.
    pub(super) fn new(now: Instant, key: RoomKey, memory: Memory) -> Self {
        Self {
            key,
            owner: None,
            live: false,
            fresh: true,
            term: memory.term,
            next_seq: 0,
            last: memory.last,
            before_gap: Cursor::NONE,
            entries: VecDeque::new(),
            base: 0,
            bytes: 0,
            taken_bytes: 0,
            carried: memory.served,
            carried_since: now,
            members: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Index after the newest entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Index of the oldest entry kept.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn get(&self, index: u64) -> Option<&TailEntry> {
        self.entries.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Asks anew: nothing of the former owner counts until `owner` has answered.
    pub(super) fn asked(&mut self, owner: Option<NodeRef>) {
        self.owner = owner;
        self.live = false;
    }

    /// The owner's answer; `false` if it is not the one asked or its term is past.
    pub(super) fn subscribed(
        &mut self,
        now: Instant,
        owner: NodeRef,
        term: Term,
        from: Cursor,
        gap: bool,
    ) -> bool {
        if self.owner != Some(owner) || term < self.term {
            return false;
        }
        if gap {
            self.carry(now);
            self.before_gap = self.last;
        }
        self.term = term;
        self.next_seq = from.seq + 1;
        self.last = self.last.max(from);
        self.live = true;
        self.fresh = false;
        true
    }

    /// Whether this tail has been at `at`. Sequence numbers are those of one owner's log, and that owner
    /// keeps them when it begins a higher term; of another owner's log this tail knows only how far it
    /// had got when it left: the rest may come again under the new owner, or never.
    pub(super) fn has_served(&self, at: Cursor) -> bool {
        let is_past =
            |place: Cursor| place.term.owner == at.term.owner && place.term >= at.term && place.seq >= at.seq;
        at.seq == 0 || is_past(self.last) || is_past(self.before_gap)
    }

    /// Whether an entry from `index` on is one that leads up to `at`.
    pub(super) fn leads_to(&self, index: u64, at: Cursor) -> bool {
        let skip = usize::try_from(index.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut ahead = self.entries.iter().skip(skip);
        ahead.any(|entry| {
            entry.at.term.owner == at.term.owner && (entry.at.term < at.term || entry.at.seq <= at.seq)
        })
    }

    /// What is worth knowing when a member comes back.
    pub(super) fn into_memory(mut self, now: Instant) -> Memory {
        self.carry(now);
        Memory { last: self.last, term: self.term, served: self.carried }
    }

    /// Another history begins: what was served of this one is not served again, nor anything of a
    /// publisher that came before it.
    fn carry(&mut self, now: Instant) {
        if self.carried.len() > CARRIED_MAX {
            self.carried.clear();
        }
        for entry in &self.entries {
            let (publisher, number) = entry.id.split();
            let served = self.carried.entry(publisher).or_insert(number);
            *served = number.max(*served);
        }
        self.carried_since = now;
    }

    /// Takes an entry of the owner; the index it got, or `None` if it is not for us (any more).
    pub(super) fn take(&mut self, now: Instant, seq: u64, entry: RoomEntry) -> Option<u64> {
        let at = Cursor { term: entry.term, seq };
        if seq != self.next_seq {
            return None;
        }
        self.next_seq += 1;
        let bytes = entry_bytes(&entry);
        self.taken_bytes += bytes;
        if at <= self.last {
            return None;
        }
        self.last = at;
        let (publisher, number) = entry.id.split();
        let carried = self.carried.get(&publisher).filter(|_| !is_planted(Mutant::CarriesNothing));
        if carried.is_some_and(|served| number <= *served) {
            return None;
        }
        self.bytes += bytes;
        let RoomEntry { id, event, .. } = entry;
        self.entries.push_back(TailEntry { at, id, event, bytes, since: now, frames: Frames::default() });
        Some(self.end() - 1)
    }

    /// Position to report to the owner, if it is time.
    pub(super) fn report_taken(&mut self) -> Option<Cursor> {
        if self.taken_bytes < REPORT_BYTES {
            return None;
        }
        self.taken_bytes = 0;
        Some(Cursor { term: self.term, seq: self.next_seq - 1 })
    }

    /// Drops the oldest entry; returns the bytes freed.
    pub(super) fn trim_first(&mut self) -> usize {
        let Some(entry) = self.entries.pop_front() else { return 0 };
        self.base += 1;
        self.bytes -= entry.bytes;
        entry.bytes
    }

    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.since)
    }

    /// Publishers of earlier owners' time are forgotten once nobody repeats what they sent then.
    pub(super) fn expire_carried(&mut self, now: Instant, window: Duration) {
        if !self.carried.is_empty() && now.since(self.carried_since) >= window {
            self.carried = FixedMap::default();
        }
    }
}
