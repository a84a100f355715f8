//! The tail of one room at this edge: recent entries, and which clients are served from it.
//!
//! Belongs here: taking entries in order from the room's owner, encoding each once per protocol, where a
//! reader finds what follows its cursor.
//! Stays out: who the members are (`Edge`), queues of clients (`client`), entries older than the tail
//! (`older`).
//! Units: `index` counts entries of this tail from 0; bytes as in the room's log.
//! Invariants: positions strictly rise whatever owners come and go; a publish that was served under an
//! earlier owner is not served again under a later one; after `floor` nothing is missing.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::departed::Memory;
use super::older::Older;
use super::session::{Form, Membership};
use crate::births::{Births, Has};
use crate::collections::FixedMap;
use crate::engineio;
use crate::id::{Cursor, NodeRef, PublishId, PublishNumber, Publisher, RoomKey, Term};
use crate::marks::Mark;
use crate::mutant::{Mutant, is_planted};
use crate::plain;
use crate::room::{REPORT_BYTES, entry_bytes};
use crate::shard::Packet;
use crate::socketio;
use crate::time::Instant;
use crate::wire::{RoomEntry, RoomEvent};

/// Publishers remembered across owners; more, within one window, are taken for a new beginning.
const CARRIED_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Tail {
    pub(super) key: RoomKey,
    /// Whom we asked, the number of the question, and whether it has answered.
    pub(super) owner: Option<NodeRef>,
    pub(super) asked: u64,
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
    /// The place before it: of what follows, nothing is missing here.
    floor: Cursor,
    /// Counts the histories this tail has been in: a hole begins another.
    history: u32,
    /// Where the present one begins.
    history_start: Cursor,
    /// The last entry here whose publish was served in an earlier one.
    last_repeat: Cursor,
    pub(super) bytes: usize,
    /// Among all tails, by its oldest entry.
    pub(super) mark: Mark,
    /// What readers before `floor` are served from, if there are any.
    pub(super) older: Option<Box<Older>>,
    taken_bytes: usize,
    /// Everything served here, and what is not to be served any more: it lies before where this tail began,
    /// or before where it went on after a hole.
    births: Births,
    /// The same when the present history began: what comes of that comes again.
    born_before: Births,
    /// The last publish of each publisher served in earlier histories: another owner may have taken the same
    /// publish as its own.
    carried: FixedMap<Publisher, PublishNumber>,
    carried_since: Instant,
    /// The last publish of each publisher among the entries trimmed, or fetched for readers before the tail,
    /// since `trimmed_since`, and in the window before that.
    trimmed: [FixedMap<Publisher, PublishNumber>; 2],
    trimmed_since: Instant,
    /// Sessions that are served (index into the edge's sessions).
    pub(super) members: Vec<u32>,
    /// Sessions whose own stream waits for this room to get somewhere, or for the tail to be live.
    pub(super) waiting: VecDeque<u32>,
}

/// One entry with its frames, made when first needed.
#[derive(Debug)]
pub(super) struct TailEntry {
    pub(super) at: Cursor,
    born: Cursor,
    pub(super) id: PublishId,
    pub(super) event: RoomEvent,
    pub(super) bytes: usize,
    pub(super) since: Instant,
    /// Served in an earlier history at another place: only for who was not there.
    pub(super) repeat: bool,
    frames: Frames,
}

/// Where an owner's answer puts a tail.
#[derive(Debug)]
pub(super) struct Begins {
    /// What follows this comes.
    pub(super) from: Cursor,
    /// What lay between is gone.
    pub(super) gap: bool,
    /// What lies before `from`.
    pub(super) births: Births,
}

/// Where a reader finds what follows its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the tail, from this index on.
    Live(u64),
    /// In what was fetched: chunk, and entry of it. After the chunk's last entry: at its end.
    Older(usize, usize),
    /// At the owner only: to be fetched up to here.
    Away(Cursor),
    /// Nowhere: a hole lies between.
    Gone,
}

/// An event encoded once for each form, whoever many get it.
#[derive(Debug, Default)]
pub(super) struct Frames {
    socket_io: OnceCell<Arc<[Packet]>>,
    carrying: OnceCell<Arc<[Packet]>>,
    plain: OnceCell<Arc<[Packet]>>,
    engine: OnceCell<Arc<[Packet]>>,
    /// A tail asks all its members under one id.
    asking: OnceCell<Arc<[Packet]>>,
}

impl Frames {
    pub(super) fn of(
        &self,
        form: Form,
        key: &RoomKey,
        at: Option<Cursor>,
        event: &RoomEvent,
    ) -> &Arc<[Packet]> {
        match form {
            Form::SocketIo => {
                self.socket_io.get_or_init(|| socketio::encode_event(key.namespace(), &event.payload))
            }
            Form::Carrying => {
                self.carrying.get_or_init(|| socketio::encode_open_event(key.namespace(), &event.payload))
            }
            Form::Asking(id) => {
                self.asking.get_or_init(|| socketio::encode_asking_event(key.namespace(), id, &event.payload))
            }
            Form::Engine => self.engine.get_or_init(|| engineio::encode_message_event(&event.payload)),
            Form::Plain => self.plain.get_or_init(|| {
                let room = at.filter(|_| !key.is_everyone()).map(|at| (key.room(), at));
                Arc::new([plain::encode_event(room, &event.payload)])
            }),
        }
    }
}

impl TailEntry {
    pub(super) fn new(now: Instant, at: Cursor, entry: RoomEntry, repeat: bool) -> Self {
        let bytes = entry_bytes(&entry);
        let born = entry.born(at.seq);
        let RoomEntry { id, event, .. } = entry;
        Self { at, born, id, event, bytes, since: now, repeat, frames: Frames::default() }
    }

    /// Whether `at` is the place before this entry, under the term of this entry.
    pub(super) fn follows(&self, at: Cursor) -> bool {
        at.term == self.at.term && at.seq.checked_add(1) == Some(self.at.seq)
    }

    pub(super) fn frames(&self, form: Form, key: &RoomKey) -> &Arc<[Packet]> {
        self.frames.of(form, key, Some(self.at), &self.event)
    }
}

impl Tail {
    /// A tail for the first member; `memory` is of members before it.
    pub(super) fn new(now: Instant, key: RoomKey, memory: Memory) -> Self {
        Self {
            key,
            owner: None,
            asked: 0,
            live: false,
            fresh: true,
            term: memory.term,
            next_seq: 0,
            last: memory.last,
            before_gap: Cursor::NONE,
            entries: VecDeque::new(),
            base: 0,
            floor: memory.last,
            history: 1,
            history_start: Cursor::NONE,
            last_repeat: Cursor::NONE,
            bytes: 0,
            mark: Mark::default(),
            older: None,
            taken_bytes: 0,
            births: memory.births.clone(),
            born_before: memory.births,
            carried: memory.served,
            carried_since: now,
            trimmed: Default::default(),
            trimmed_since: now,
            members: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Index after the newest entry.
    pub(super) fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Where a publish that went to several rooms is in this one, if it is kept here.
    pub(super) fn place_of(&self, id: PublishId) -> Option<Cursor> {
        let mut several = self.entries.iter().rev().filter(|entry| !entry.event.also.is_empty());
        several.find(|entry| entry.id == id).map(|entry| entry.at)
    }

    pub(super) fn get(&self, index: u64) -> Option<&TailEntry> {
        self.entries.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Asks anew: nothing of the former owner counts until `owner` has answered.
    pub(super) fn asks(&mut self, owner: Option<NodeRef>) {
        self.owner = owner;
        self.live = false;
        if let Some(older) = &mut self.older {
            older.pending = None;
        }
    }

    /// The owner's answer; `false` if it is not the one asked or its term is past.
    pub(super) fn subscribed(&mut self, now: Instant, owner: NodeRef, term: Term, begins: Begins) -> bool {
        if self.owner != Some(owner) || term < self.term {
            return false;
        }
        let Begins { from, gap, births } = begins;
        self.births.join(&births);
        self.term = term;
        self.next_seq = from.seq + 1;
        let before = self.last;
        self.last = self.last.max(from);
        if gap {
            self.begin_history(now, before);
        }
        if std::mem::take(&mut self.fresh) {
            self.floor = self.last;
            self.born_before = self.births.clone();
        }
        self.live = true;
        true
    }

    /// There is a hole after `before`.
    fn begin_history(&mut self, now: Instant, before: Cursor) {
        self.carry(now);
        self.before_gap = before;
        self.history += 1;
        self.history_start = self.last;
        self.born_before = self.births.clone();
    }

    /// Whether this tail has been at `at`: it keeps that very entry, or has got past it. Sequence numbers
    /// are those of one owner's log, and that owner keeps them when it begins a higher term; past entries of
    /// another owner's log this tail knows only how far it had got when it left: the rest may come again
    /// under the new owner, or never.
    pub(super) fn has_served(&self, at: Cursor) -> bool {
        let is_past =
            |place: Cursor| place.term.owner == at.term.owner && place.term >= at.term && place.seq >= at.seq;
        at.seq == 0
            || is_past(self.last)
            || is_past(self.before_gap)
            || self
                .index_after(at)
                .checked_sub(1)
                .and_then(|index| self.get(index))
                .is_some_and(|e| e.at == at)
    }

    /// Whether an entry after `reader` is one that leads up to `at`.
    pub(super) fn leads_to(&self, reader: Cursor, at: Cursor) -> bool {
        let leads = |place: Cursor| {
            place > reader
                && place.term.owner == at.term.owner
                && (place.term < at.term || place.seq <= at.seq)
        };
        // What was before the tail is not known here; if the way leads over its floor, it leads on to `at`.
        let behind = reader < self.floor && self.floor.term.owner == at.term.owner && reader < at;
        behind || self.entries.iter().any(|entry| leads(entry.at))
    }

    /// Where the reader of `m` finds what follows its cursor. A reader that was put at a cursor has seen
    /// only what the present log holds: the part of the tail before the present history is not for it.
    pub(super) fn place(&self, m: &Membership) -> Place {
        let exact = self.is_exact(m);
        let begin = if exact { self.floor.max(self.history_start) } else { self.floor };
        // A reader at the very place where a hole was told may have been there before the hole: the owner knows.
        let may_miss = !m.verified && m.at == self.history_start && m.at != Cursor::NONE;
        if (m.at >= begin && !may_miss) || is_planted(Mutant::OlderSkipped) {
            let index = self.index_after(m.at);
            if m.verified || self.is_here(m.at, index) {
                return Place::Live(index);
            }
        } else if !exact && m.at < self.history_start && self.floor >= self.history_start {
            return Place::Gone;
        }
        if let Some((chunk, entry)) = self.older.as_ref().and_then(|older| older.find(m.at)) {
            return Place::Older(chunk, entry);
        }
        Place::Away(match m.at > self.last {
            true => m.at,
            false if m.at < begin && begin == self.floor => self.floor,
            false => self.last,
        })
    }

    /// Whether the reader of `m` has seen nothing but what the present log holds up to its cursor.
    pub(super) fn is_exact(&self, m: &Membership) -> bool {
        !m.verified || m.history == self.history
    }

    /// The history a reader is in that was just found in the present log.
    pub(super) fn history(&self) -> u32 {
        self.history
    }

    /// Whether a publish that was fetched has been served to the reader of `m` at another place.
    pub(super) fn is_repeat_for(&self, m: &Membership, entry: &TailEntry) -> bool {
        let repeat = entry.repeat || (entry.at > self.history_start && self.is_repeat(entry.born, entry.id));
        repeat && !self.is_exact(m)
    }

    /// Whether an entry of the present history was served, or passed over, in an earlier one.
    fn is_repeat(&self, born: Cursor, id: PublishId) -> bool {
        let was_here = self.born_before.has(born) != Has::No && !is_planted(Mutant::BirthsIgnored);
        was_here || (self.is_carried(id) && !is_planted(Mutant::CarriesNothing))
    }

    fn is_carried(&self, id: PublishId) -> bool {
        let (publisher, number) = id.split();
        self.carried.get(&publisher).is_some_and(|served| number <= *served)
    }

    /// Index of the first entry after `at`.
    fn index_after(&self, at: Cursor) -> u64 {
        self.base + self.entries.partition_point(|entry| entry.at <= at) as u64
    }

    /// Whether `at` is the very place before entry `index`.
    fn is_here(&self, at: Cursor, index: u64) -> bool {
        let before = index.checked_sub(1).and_then(|before| self.get(before));
        at == before.map_or(self.floor, |entry| entry.at)
            || at == self.last
            || self.get(index).is_some_and(|entry| entry.follows(at))
    }

    /// The place before entry `index`; the end if there is none.
    pub(super) fn before(&self, index: u64) -> Cursor {
        self.get(index).map_or(self.last, |e| Cursor { term: e.at.term, seq: e.at.seq.saturating_sub(1) })
    }

    pub(super) fn older(&mut self) -> &mut Older {
        self.older.get_or_insert_with(Box::default)
    }

    /// Bytes of fetched entries.
    pub(super) fn older_bytes(&self) -> usize {
        self.older.as_ref().map_or(0, |older| older.bytes)
    }

    /// What is worth knowing when a member comes back.
    pub(super) fn into_memory(mut self, now: Instant) -> Memory {
        self.carry(now);
        Memory { last: self.last, term: self.term, births: self.births, served: self.carried }
    }

    /// Another history begins: what was served of this one is not served again, nor anything of a
    /// publisher that came before it.
    fn carry(&mut self, now: Instant) {
        if self.carried.len() > CARRIED_MAX {
            self.carried.clear();
        }
        let trimmed = self.trimmed.iter_mut().flat_map(std::mem::take);
        for (publisher, number) in trimmed.chain(self.entries.iter().map(|entry| entry.id.split())) {
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
        let born = entry.born(seq);
        if self.born_before.has(born) == Has::Unknown {
            // Had or missed, nobody can tell: it is not served, and that is a hole.
            self.begin_history(now, self.last);
        }
        self.last = at;
        let repeat = self.is_repeat(born, entry.id);
        self.births.add(born);
        if repeat {
            self.last_repeat = at;
        }
        self.bytes += bytes;
        self.entries.push_back(TailEntry::new(now, at, entry, repeat));
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
        self.remember_served(entry.id);
        self.base += 1;
        self.floor = entry.at;
        self.bytes -= entry.bytes;
        entry.bytes
    }

    /// A reader is served this one, which is not among the entries kept: it was before them.
    pub(super) fn remember_served(&mut self, id: PublishId) {
        if self.trimmed[0].len() >= CARRIED_MAX {
            self.trimmed[1] = std::mem::take(&mut self.trimmed[0]);
        }
        let (publisher, number) = id.split();
        let served = self.trimmed[0].entry(publisher).or_insert(number);
        *served = number.max(*served);
    }

    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.since)
    }

    /// Publishers of earlier owners' time are forgotten once nobody repeats what they sent then, and those
    /// of trimmed entries likewise.
    pub(super) fn expire_carried(&mut self, now: Instant, window: Duration) {
        if now.since(self.trimmed_since) >= window {
            self.trimmed[1] = std::mem::take(&mut self.trimmed[0]);
            self.trimmed_since = now;
        }
        if !self.carried.is_empty() && now.since(self.carried_since) >= window {
            self.carried = FixedMap::default();
            // Nobody can tell any more which of these a reader before them has had.
            self.history_start = self.history_start.max(self.last_repeat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Address, NodeId, ShardIx};
    use crate::wire::Payload;

    fn node(id: u64) -> NodeRef {
        NodeRef { id: NodeId(id), incarnation: 1 }
    }

    fn entry(term: Term, number: u64) -> RoomEntry {
        let via = Address { node: node(9), shard: ShardIx(0) };
        let event = RoomEvent::new(Payload::json("[\"m\"]"));
        RoomEntry::new(term, PublishId::Api { via, number }, event)
    }

    #[test]
    fn an_answer_to_what_a_dead_owner_had_appended_waits_for_that_entry_only() {
        let key = RoomKey::new(&"p".into(), &"/".into(), "r");
        let mut tail = Tail::new(Instant::ZERO, key, Memory::default());
        let (dead, next) = (Term { number: 1, owner: node(1) }, Term { number: 2, owner: node(2) });
        let at = |term, seq| Cursor { term, seq };
        tail.asks(Some(dead.owner));
        let begins = |from| Begins { from, gap: false, births: Births::default() };
        assert!(tail.subscribed(Instant::ZERO, dead.owner, dead, begins(at(dead, 4))));
        assert!(tail.take(Instant::ZERO, 5, entry(dead, 5)).is_some());
        assert!(tail.has_served(at(dead, 5)) && !tail.has_served(at(dead, 6)));
        // Its owner dies; the next one's log has one entry more of it, then its own.
        tail.asks(Some(next.owner));
        assert!(tail.subscribed(Instant::ZERO, next.owner, next, begins(at(dead, 5))));
        assert!(tail.take(Instant::ZERO, 6, entry(dead, 6)).is_some());
        assert!(tail.take(Instant::ZERO, 7, entry(next, 7)).is_some());
        assert!(tail.has_served(at(dead, 5)) && tail.has_served(at(dead, 6)) && tail.has_served(at(next, 7)));
        assert!(!tail.has_served(at(dead, 7)), "that one never came");
    }
}
