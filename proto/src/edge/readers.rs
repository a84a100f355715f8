//! Clients that are behind: served by their cursors, from the tail or from what is fetched before it.
//!
//! Belongs here: who reads on and when, what is fetched from a room's owner for whom, what a cursor that
//! the log does not hold means.
//! Stays out: clients that keep up (`deliver`), chunks (`older`), where a cursor is (`Tail::place`).
//! Units: cursors are places in the room's log. A fetch brings 64 KiB or one entry.
//! Invariants: a client that is behind gets nothing but by its cursors, in order, nothing twice and
//! nothing left out; one fetch is under way per tail, shared by all who wait at its place; what a queue
//! does not take is neither encoded nor fetched for it.
//! When it breaks: an owner that moves or dies is asked again, by the cursors, once it serves the tail; a
//! fetch without a useful answer is repeated at the next sweep; a cursor that no log holds closes the
//! transport as too slow, and the client resumes or begins anew.

use std::sync::Arc;

use super::deliver::{frames_len, is_excepted};
use super::older::Chunk;
use super::session::Form;
use super::tail::{Place, Tail, TailEntry};
use super::{CHUNK_MARKS_MAX, Edge};
use crate::id::{Address, ClientIx, Cursor, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Budget, CloseCode, Ctx, Packet};
use crate::wire::{Action, Ask, AskRef, Body, DetachReason, NotResumed, RoomEntry, ToRoom};

/// What a reader gets next.
enum Next {
    /// Nothing: it is excepted, or has had it.
    Nothing,
    /// An event.
    Event(Arc<[Packet]>),
    /// An event that it is to answer under this id.
    Asking(Arc<[Packet]>, AskRef, u64),
    /// Something that is to be done to it.
    Act(Action, AskRef),
}

/// How far a client got in a room.
enum Caught {
    Up,
    Full,
    /// What it gets next is fetched, or its tail is not there yet.
    Waits,
    /// What it should have got next is not kept any more.
    Lost,
}

impl Edge {
    /// From here on the client gets what its cursors show it, from `first` in that tail and from what
    /// comes next in the others, as soon as its queue takes it.
    pub(super) fn fall_behind(&mut self, ctx: &mut Ctx<'_>, session: u32, first: Option<(u32, u64)>) {
        if !self.client_of(session).behind {
            ctx.stats.behind_total += 1;
            self.goes_by_cursors(session, first);
        }
    }

    /// The same for a client that takes what it is sent.
    pub(super) fn goes_by_cursors(&mut self, session: u32, first: Option<(u32, u64)>) {
        let client = self.client_of(session);
        if std::mem::replace(&mut client.behind, true) {
            return;
        }
        client.waits = false;
        let ix = client.ix;
        self.behind.insert(ix);
        self.note_places(ix, first);
    }

    /// Notes how far a client that keeps up has been served in its rooms: to the end of each tail, but in
    /// the tail of `first` only to before that entry.
    pub(super) fn note_places(&mut self, ix: ClientIx, first: Option<(u32, u64)>) {
        let tails = &self.tails;
        let Some(client) = self.clients[ix.0 as usize].as_deref() else { return };
        for &session in &client.sessions {
            for m in self.sessions[session as usize].rooms.iter_mut().filter(|m| m.verified) {
                let index = first.filter(|(tail, _)| *tail == m.tail).map(|(_, index)| index);
                let index = index.map(|index| index + u64::from(is_planted(Mutant::BehindByOne)));
                let tail = &tails[m.tail as usize];
                m.at = index.map_or(tail.last, |index| tail.before(index));
            }
        }
    }

    /// Puts a member of a tail at `cursor`, a place in the room's log wherever it was learned: what
    /// follows is served to it in order, paced by its queue, and live events follow in the same stream.
    /// For a session that resumes, after [`Edge::join_tail`]; before its welcome, which waits until the
    /// owner of every room has found its cursor. The membership's `joined` is the caller's to set.
    ///
    /// The tail need not be live, nor `cursor` be in it or before it. A cursor that the log does not
    /// hold, or not with everything that follows, closes the transport as too slow.
    pub(super) fn read_from(&mut self, ctx: &mut Ctx<'_>, session: u32, tail: u32, cursor: Cursor) {
        let Some(m) = self.sessions[session as usize].membership(tail) else { return };
        let before = std::mem::replace(&mut m.at, cursor);
        m.verified = false;
        let in_force = m.slot.is_some();
        if let Some(older) = &mut self.tails[tail as usize].older {
            older.forget(before, session);
        }
        if in_force {
            self.fall_behind(ctx, session, None);
            self.client_of(session).waits = false;
        }
    }

    #[cfg(test)]
    pub(crate) fn holes_told(&self, room: &crate::id::RoomKey) -> u64 {
        self.by_room.get(room).map_or(0, |tail| u64::from(self.tails[*tail as usize].history()) - 1)
    }

    #[cfg(test)]
    pub(crate) fn client_reads_from(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        room: &crate::id::RoomKey,
        cursor: Cursor,
    ) {
        let session = *self.sessions_of(ix).first().expect("it is connected");
        self.read_from(ctx, session, self.by_room[room], cursor);
    }

    /// Serves a client that is behind from its cursors, as far as its queue takes it.
    pub(super) fn catch_up(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let (mut waits, mut owed_now) = (false, false);
        let mut nth = 0;
        while let Some(&index) = self.client(ix).and_then(|c| c.sessions.get(nth)) {
            self.process_own(ctx, index);
            // What it was owed may have ended the session.
            if self.sessions_of(ix).get(nth) != Some(&index) {
                continue;
            }
            if self.client(ix).is_some_and(|client| client.behind) {
                match self.catch_up_session(ctx, ix, index) {
                    Caught::Up => {}
                    Caught::Waits => waits = true,
                    Caught::Full => return,
                    Caught::Lost => {
                        // It begins anew, or the client is closed: either way the list is another.
                        self.lose(ctx, index);
                        continue;
                    }
                }
                // What it is owed and is not held back did not fit: that is for the next turn.
                let session = &self.sessions[index as usize];
                owed_now |= session.welcomed && !session.owed.is_empty() && !session.is_held;
            }
            nth += 1;
        }
        let Some(client) = self.client(ix).filter(|client| client.behind) else { return };
        client.waits = waits && !owed_now;
        if !waits {
            client.behind = false;
            self.behind.remove(&ix);
            for nth in 0.. {
                let Some(&index) = self.client(ix).and_then(|c| c.sessions.get(nth)) else { break };
                self.process_own(ctx, index);
            }
        }
    }

    /// Serves the rooms of one session; welcomes it when all its cursors have been found.
    fn catch_up_session(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, index: u32) -> Caught {
        let mut waits = false;
        for place in 0..self.sessions[index as usize].rooms.len() {
            match self.catch_up_room(ctx, ix, index, place) {
                Caught::Up => {}
                Caught::Waits => waits = true,
                stopped => return stopped,
            }
        }
        if self.sessions[index as usize].welcomed {
            return if waits { Caught::Waits } else { Caught::Up };
        }
        // All its cursors may be found now; what follows them comes after the welcome.
        self.welcome(ctx, index);
        let welcomed = self.sessions.get(index as usize).is_some_and(|session| session.welcomed);
        if welcomed { self.catch_up_session(ctx, ix, index) } else { Caught::Waits }
    }

    /// What a session should get next is gone: its client has to come back.
    fn lose(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        if self.sessions[index as usize].resumes {
            return self.give_up_resume(ctx, index, NotResumed::RoomLog);
        }
        ctx.stats.too_slow_total += 1;
        self.close_with(ctx, index, CloseCode::TooSlow, DetachReason::TransportClose);
    }

    fn catch_up_room(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, index: u32, place: usize) -> Caught {
        loop {
            let session = &self.sessions[index as usize];
            let m = session.rooms[place];
            let t = &mut self.tails[m.tail as usize];
            if let Some(older) = &mut t.older {
                older.forget(m.at, index);
            }
            if m.slot.is_none() {
                return if m.verified { Caught::Up } else { Caught::Waits };
            }
            let found = t.place(&m);
            let history = t.history();
            match found {
                Place::Gone => return Caught::Lost,
                Place::Away(_) => {
                    t.older().waiting.insert((m.at, index));
                    self.with_older.insert(m.tail);
                    self.fetch(ctx, m.tail);
                    return Caught::Waits;
                }
                Place::Live(_) | Place::Older(..) if !m.verified => {
                    let m = &mut self.sessions[index as usize].rooms[place];
                    (m.verified, m.history) = (true, history);
                    continue;
                }
                Place::Live(_) | Place::Older(..)
                    if !session.welcomed && !is_planted(Mutant::ReplayedBeforeConnect) =>
                {
                    return Caught::Waits;
                }
                Place::Live(next) if next >= t.end() => {
                    return if m.at > t.last { Caught::Waits } else { Caught::Up };
                }
                Place::Live(_) | Place::Older(..) => {}
            }
            let (at, next) = match self.next_of(ctx, index, place, found) {
                Ok(next) => next,
                Err(end) => {
                    self.sessions[index as usize].rooms[place].at = end;
                    continue;
                }
            };
            let (frames, asked) = match next {
                Next::Act(action, name) => {
                    self.act(index, m.tail, at, action, name);
                    return Caught::Waits;
                }
                Next::Nothing => (None, None),
                Next::Event(frames) => (Some(frames), None),
                Next::Asking(frames, name, id) => (Some(frames), Some((name, id))),
            };
            if let Some(frames) = frames {
                let carries = self.sessions[index as usize].offset_key.is_some() && asked.is_none();
                let frames = if carries {
                    // What it carries afterwards says that it has this one.
                    let told = if is_planted(Mutant::OffsetWithoutItsEvent) { m.at } else { at };
                    self.sessions[index as usize].rooms[place].at = told;
                    let frames = self.with_tail(&frames, index);
                    self.sessions[index as usize].rooms[place].at = m.at;
                    frames
                } else {
                    frames
                };
                let (turn, len) = (self.turn, frames_len(&frames));
                let client = self.clients[ix.0 as usize].as_deref_mut().expect("checked by the caller");
                if !client.fits(turn, len, &self.limits) {
                    if matches!(found, Place::Older(..)) {
                        self.tails[m.tail as usize].older().reading.insert((m.at, index));
                        self.with_older.insert(m.tail);
                    }
                    return Caught::Full;
                }
                client.count_queued(turn, len);
                ctx.stats.deliveries_total += 1;
                if let Some((name, id)) = asked {
                    self.asks.was_put(name, self.sessions[index as usize].identity.sid, id);
                }
                self.hand(ctx, ix, &frames);
            }
            self.sessions[index as usize].rooms[place].at = at;
        }
    }

    /// What the reader gets next, and its place. `Err`: nothing more in this chunk, which ends here.
    fn next_of(
        &mut self,
        ctx: &Ctx<'_>,
        index: u32,
        place: usize,
        found: Place,
    ) -> Result<(Cursor, Next), Cursor> {
        let session = &self.sessions[index as usize];
        let m = session.rooms[place];
        if let (Place::Older(chunk, _), Some(older)) = (found, &mut self.tails[m.tail as usize].older) {
            older.touch(chunk, ctx.now);
        }
        let t = &self.tails[m.tail as usize];
        let entry = match (found, &t.older) {
            (Place::Live(next), _) => t.get(next).ok_or(t.last)?,
            (Place::Older(chunk, entry), Some(older)) => older.get(chunk, entry)?,
            _ => return Err(m.at),
        };
        let excepted =
            is_excepted(&entry.event, session.identity.sid, |except| self.is_in_any(index, except));
        let excepted = excepted || self.has_had(index, m.tail, entry);
        let excepted = t.is_repeat_for(&m, entry) || excepted && !is_planted(Mutant::ExceptIgnoredInReplay);
        let (sid, form) = (session.identity.sid, session.form());
        let frames = |form| entry.frames(form, &t.key).clone();
        let next = match entry.event.asks.as_deref() {
            _ if excepted => Next::Nothing,
            Some(Ask { name, action: Some(action), .. }) => Next::Act(action.clone(), *name),
            // Who was not asked when it came is not asked later: it may have been, elsewhere.
            Some(ask) if matches!(form, Form::SocketIo | Form::Carrying) => {
                match self.asks.id_for(ask.name, sid) {
                    Some(id) => Next::Asking(frames(Form::Asking(id)), ask.name, id),
                    None => Next::Nothing,
                }
            }
            _ => Next::Event(frames(form)),
        };
        Ok((entry.at, next))
    }

    /// Asks the owner of a tail for what the reader that is furthest behind gets next, unless a fetch is
    /// under way or nobody waits for one.
    pub(super) fn fetch(&mut self, ctx: &mut Ctx<'_>, tail: u32) {
        let t = &self.tails[tail as usize];
        let (Some(owner), Some(older)) = (t.owner.filter(|_| t.live), &t.older) else { return };
        let Some(&(after, session)) = older.waiting.first().filter(|_| older.pending.is_none()) else {
            return;
        };
        let m = self.sessions[session as usize].rooms.iter().find(|m| m.tail == tail);
        let Some(Place::Away(upto)) = m.map(|m| t.place(m)) else {
            // It has a place by now, or none any more. Who waits behind it asks by the next sweep.
            self.client_of(session).waits = false;
            return;
        };
        let fetch = ToRoom::Fetch { room: t.key.clone(), after, upto };
        ctx.stats.fetches_total += 1;
        ctx.out.send_to_host(owner, t.key.placement(), Body::ToRoom(fetch));
        self.tails[tail as usize].older().pending = Some((after, upto));
        self.with_older.insert(tail);
    }

    /// The owner's answer to a fetch: all who wait for it read on.
    pub(super) fn fetched(
        &mut self,
        ctx: &mut Ctx<'_>,
        tail: u32,
        from: Address,
        term: Term,
        after: Cursor,
        entries: Option<Vec<RoomEntry>>,
    ) {
        let t = &mut self.tails[tail as usize];
        let asked = t.older.as_ref().and_then(|older| older.pending);
        let Some((_, upto)) = asked.filter(|(place, _)| *place == after) else { return };
        if !t.live || t.owner != Some(from.node) || term < t.term {
            return;
        }
        let history = t.history();
        let older = t.older();
        older.pending = None;
        let chunk = entries.and_then(|entries| chunk_of(ctx, after, upto, entries));
        if chunk.as_ref().is_some_and(|chunk| chunk.last == after && after < upto) {
            // Not safe to serve yet: asked again by the next sweep.
            return;
        }
        let is_lost = chunk.is_none();
        let end = chunk.as_ref().map_or(after, |chunk| chunk.last);
        let mut woken = Vec::new();
        while let Some(&(at, session)) =
            older.waiting.range((after, 0)..).next().filter(|(at, _)| *at == after || *at < end)
        {
            older.waiting.remove(&(at, session));
            woken.push((at, session));
        }
        if let Some(mut chunk) = chunk.filter(|chunk| chunk.last > after) {
            self.chunks += 1;
            chunk.number = self.chunks;
            self.chunk_ages.push_back((tail, chunk.number));
            chunk.entries().for_each(|entry| t.remember_served(entry.id));
            self.tail_bytes += t.older().push(chunk);
        }
        let key = t.key.clone();
        for (at, index) in woken {
            let still = self.tails.get(tail as usize).is_some_and(|t| t.key == key);
            let session = self.sessions.get_mut(index as usize).filter(|_| still);
            let Some(session) = session else { continue };
            let ix = session.client;
            let Some(m) = session.membership(tail).filter(|m| m.at == at) else { continue };
            if at == after {
                if is_lost && is_planted(Mutant::GapUntoldOnResume) && !m.verified {
                    m.at = self.tails[tail as usize].last;
                } else if is_lost {
                    self.lose(ctx, index);
                    continue;
                }
                if !m.verified {
                    (m.verified, m.history) = (true, history);
                }
            }
            self.read_on(ctx, ix, (at, index), tail);
        }
        self.bound_older(tail);
        self.bound_tails();
        if self.tails.get(tail as usize).is_some_and(|t| t.key == key) {
            self.fetch(ctx, tail);
        }
    }

    /// Serves a reader that has waited, now or when its queue has drained.
    fn read_on(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, reader: (Cursor, u32), tail: u32) {
        let Some(client) = self.client(ix) else { return };
        client.waits = false;
        if client.has_left_over() {
            self.tails[tail as usize].older().reading.insert(reader);
            self.with_older.insert(tail);
        } else {
            self.catch_up(ctx, ix);
        }
    }

    /// Older entries of one tail keep to the bound of a tail.
    fn bound_older(&mut self, tail: u32) {
        if let Some(older) = self.tails.get_mut(tail as usize).and_then(|t| t.older.as_mut()) {
            self.tail_bytes -= older.shrink(self.limits.tail_bytes_max);
        }
    }

    /// All tails together are over their bound: older entries go first, then the oldest of all tails.
    pub(super) fn bound_tails(&mut self) {
        while self.tail_bytes > self.limits.tails_bytes_max {
            if let Some((tail, number)) = self.chunk_ages.pop_front() {
                // A mark may be of a chunk that is gone already, like those of entries below.
                if let Some(older) = self.tails.get_mut(tail as usize).and_then(|t| t.older.as_mut()) {
                    self.tail_bytes -= older.drop_chunk(number);
                }
                continue;
            }
            let Some((since, tail)) = self.by_age.first() else { return };
            self.trim_marked(tail, since);
        }
    }

    /// Drops older entries that nobody needs, and asks again where an answer brought nothing. Whether there
    /// are more tails with such than one step may look at.
    pub(super) fn sweep_older(&mut self, ctx: &mut Ctx<'_>, budget: &mut Budget) -> bool {
        let (now, age_max) = (ctx.now, self.limits.room_log_age_max);
        let due = self.with_older.range(self.older_from..);
        let with_older: Vec<u32> = due.take_while(|_| budget.spend()).copied().collect();
        let more = budget.is_spent();
        self.older_from = with_older.last().filter(|_| more).map_or(0, |last| last + 1);
        for &tail in &with_older {
            let Some(older) = &mut self.tails[tail as usize].older else { continue };
            self.tail_bytes -= older.expire(now, age_max);
            let waiting = older.waiting.iter().filter(|_| older.pending.is_none());
            let waiting: Vec<u32> = waiting.map(|(_, session)| *session).collect();
            if older.is_unused() {
                self.tails[tail as usize].older = None;
                self.with_older.remove(&tail);
            }
            for session in waiting {
                // Each looks again where it is: nearly always nobody is here.
                if self.sessions.contains(session as usize) {
                    self.client_of(session).waits = false;
                }
            }
        }
        let held = |(tail, number): &(u32, u64)| {
            self.tails.get(*tail as usize).and_then(|t| t.older.as_ref()).is_some_and(|o| o.holds(*number))
        };
        if self.chunk_ages.len() > CHUNK_MARKS_MAX {
            self.chunk_ages.retain(held);
        }
        more
    }

    /// Asserts what is promised of readers before a tail.
    pub(super) fn check_readers(&self, index: usize, tail: &Tail) {
        let Some(older) = &tail.older else { return };
        older.check_invariants(self.limits.tail_bytes_max);
        assert!(older.pending.is_none() || tail.live, "{:?}: fetched from nobody", tail.key);
        for (at, session) in older.waiting.iter().chain(&older.reading) {
            let m = self.sessions[*session as usize].rooms.iter().find(|m| m.tail as usize == index);
            assert_eq!(m.map(|m| m.at), Some(*at), "{:?}: a reader is elsewhere", tail.key);
            let client = self.sessions[*session as usize].client;
            assert!(self.behind.contains(&client), "{:?}: a reader is not behind", tail.key);
        }
    }
}

/// What was fetched: `None` if the owner has it not, or says what cannot be.
fn chunk_of(ctx: &Ctx<'_>, after: Cursor, upto: Cursor, entries: Vec<RoomEntry>) -> Option<Chunk> {
    let mut last = after;
    let mut taken = Vec::with_capacity(entries.len());
    for entry in entries {
        // The place before the first entry may carry the term of that entry, or a higher one of an owner
        // that has not appended anything.
        let at = Cursor { term: entry.term, seq: after.seq.checked_add(1 + taken.len() as u64)? };
        if at <= last || at > upto {
            return None;
        }
        last = at;
        taken.push(TailEntry::new(ctx.now, at, entry, false));
    }
    if last.seq == upto.seq {
        // The same place, where a later term began.
        last = upto;
    }
    Some(Chunk::new(ctx.now, after, last, taken))
}
