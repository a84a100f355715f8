//! Towards clients: entries of rooms to their members, answers and own-log entries in the order they came.
//!
//! Belongs here: who gets an entry now, what waits for what.
//! Stays out: encoding (`tail::Frames`), the driver's queues, who reads later by a cursor (`readers`).
//! Invariants: a client that is not behind has been handed everything its tails hold; an answer waits
//! at most `HELD_MAX` for a room.

use std::sync::Arc;
use std::time::Duration;

use super::Edge;
use super::asks::{own_id, tell_reached};
use super::carried::with_tail;
use super::session::{Form, Owed};
use super::tail::{Begins, Frames, Place, TailEntry};
use crate::engineio;
use crate::id::{Address, ClientIx, Cursor, RoomKey, SocketSid, Term};
use crate::mutant::{Mutant, is_planted};
use crate::plain;
use crate::shard::{ClientProtocol, CloseCode, Ctx, FanoutEach, Output, Packet, TimerKey};
use crate::socketio;
use crate::time::Instant;
use crate::wire::{
    AskedBy, Body, DetachReason, DisconnectCode, Done, OwnEntry, Payload, RoomEntry, RoomEvent, RoomToEdge,
    SessionToEdge, ToRoom,
};

/// An answer waits this long for a room to get where it should be.
const HELD_MAX: Duration = Duration::from_secs(1);

impl Edge {
    pub(crate) fn take_from_room(&mut self, ctx: &mut Ctx<'_>, from: Address, message: RoomToEdge) {
        match message {
            RoomToEdge::Subscribed { room, term, from: cursor, gap, births, asked } => {
                let Some(tail) = self.tail_of(ctx, from, &room) else { return };
                // What was asked before the last member left, and answered after another had come, would
                // put the tail where this subscription is not.
                if self.tails[tail as usize].asked != asked && !is_planted(Mutant::OlderAnswerTaken) {
                    return;
                }
                self.subscribed(ctx, tail, from, term, Begins { from: cursor, gap, births });
            }
            RoomToEdge::Entries { room, term, first, entries } => {
                let Some(tail) = self.tail_of(ctx, from, &room) else {
                    for ask in entries.iter().filter_map(|entry| entry.event.asks.as_deref()) {
                        tell_reached(ctx, ask, &room, 0);
                    }
                    return;
                };
                let t = &self.tails[tail as usize];
                if !t.live || t.owner != Some(from.node) || term < t.term {
                    return;
                }
                for (seq, entry) in (first..).zip(entries) {
                    self.take_entry(ctx, tail, seq, entry);
                }
                let t = &mut self.tails[tail as usize];
                if let Some(cursor) = t.report_taken() {
                    let taken = ToRoom::Taken { room: t.key.clone(), cursor };
                    ctx.out.send_to_address(from, t.key.placement(), Body::ToRoom(taken));
                }
                self.wake_waiting(ctx, tail);
            }
            RoomToEdge::Volatile { room, event } => {
                let Some(tail) = self.tail_of(ctx, from, &room) else { return };
                self.deliver_volatile(ctx, tail, &event);
            }
            RoomToEdge::Fetched { room, term, after, entries } => {
                let Some(tail) = self.tail_of(ctx, from, &room) else { return };
                self.fetched(ctx, tail, from, term, after, entries);
            }
        }
    }

    /// The tail of a room; an owner that serves one we do not have is told so.
    fn tail_of(&self, ctx: &mut Ctx<'_>, from: Address, room: &RoomKey) -> Option<u32> {
        let tail = self.by_room.get(room).copied();
        if tail.is_none() {
            let unsubscribe = ToRoom::Unsubscribe(vec![room.clone()]);
            ctx.out.send_to_address(from, room.placement(), Body::ToRoom(unsubscribe));
        }
        tail
    }

    fn subscribed(&mut self, ctx: &mut Ctx<'_>, tail: u32, from: Address, term: Term, begins: Begins) {
        let t = &mut self.tails[tail as usize];
        let gap = begins.gap;
        if !t.subscribed(ctx.now, from.node, term, begins) {
            if t.owner == Some(from.node) && !t.live {
                // A term below one we have seen: the owner is to begin above it.
                self.bounced_rooms.insert(t.key.clone());
                ctx.timers.set(ctx.now + crate::session::RETRY_AFTER, TimerKey::Retry);
            }
            return;
        }
        if gap {
            tracing::debug!(room = ?t.key, "a hole in the log of a room");
        }
        self.bounced_rooms.remove(&t.key);
        // Readers before the tail ask the new owner by their cursors.
        self.fetch(ctx, tail);
        self.wake_waiting(ctx, tail);
    }

    /// Those who wait for this room look again: joins, and answers held back.
    fn wake_waiting(&mut self, ctx: &mut Ctx<'_>, tail: u32) {
        let Some((key, count)) = self.tails.get(tail as usize).map(|t| (t.key.clone(), t.waiting.len()))
        else {
            return;
        };
        for _ in 0..count {
            // Those who still wait keep the tail; the last one out may have taken it along.
            let Some(t) = self.tails.get_mut(tail as usize).filter(|t| t.live && t.key == key) else {
                return;
            };
            let Some(session) = t.waiting.pop_front() else { return };
            if self.sessions.contains(session as usize) {
                self.put_in_force(ctx, session, tail);
                self.process_own(ctx, session);
            }
        }
    }

    /// Takes one entry and serves it to every member that keeps up.
    fn take_entry(&mut self, ctx: &mut Ctx<'_>, tail: u32, seq: u64, entry: RoomEntry) {
        let t = &mut self.tails[tail as usize];
        let before = t.bytes;
        let Some(index) = t.take(ctx.now, seq, entry) else { return };
        self.by_age.set(&mut t.mark, &tail, Some(ctx.now));
        self.tail_bytes += t.bytes - before;
        while t.bytes > self.limits.tail_bytes_max && t.len() > 1 {
            self.tail_bytes -= t.trim_first();
        }
        let t = &mut self.tails[tail as usize];
        let members = std::mem::take(&mut t.members);
        let mut served = Served::default();
        for &session in &members {
            self.serve_member(ctx, tail, index, session, &mut served);
        }
        let t = &mut self.tails[tail as usize];
        t.members = members;
        let key = t.key.clone();
        if let Some(entry) = t.get(index) {
            if let Some(ask) = entry.event.asks.as_deref() {
                tell_reached(ctx, ask, &key, served.asked);
            }
            let polling = served.send(ctx, |form| entry.frames(form, &key));
            self.write_all_polling(polling);
        }
        self.bound_tails();
    }

    /// Puts one member on the list of those who get entry `index` now, unless it is excepted or behind.
    fn serve_member(&mut self, ctx: &mut Ctx<'_>, tail: u32, index: u64, session: u32, served: &mut Served) {
        let turn = self.turn;
        let t = &self.tails[tail as usize];
        let Some(entry) = t.get(index) else { return };
        let s = &self.sessions[session as usize];
        if is_excepted(&entry.event, s.identity.sid, |except| self.is_in_any(session, except)) {
            return;
        }
        if self.has_had(session, tail, entry) {
            return;
        }
        let (sid, form, ix) = (s.identity.sid, s.form(), s.client);
        let is_repeat = entry.repeat && !s.rooms.iter().any(|m| m.tail == tail && t.is_exact(m));
        let mut id = None;
        if let Some(ask) = entry.event.asks.as_deref().filter(|_| !is_repeat) {
            // Clients without Socket.IO get the event and cannot answer.
            if ask.action.is_some() || matches!(form, Form::SocketIo | Form::Carrying) {
                served.asked += usize::from(self.asks.expect(ctx.now, ask, sid));
                id = self.asks.id_for(ask.name, sid).map(|id| (ask.name, id));
            }
        }
        let client = self.clients[ix.0 as usize].as_deref_mut().expect("a session never outlives its client");
        if entry.event.action().is_some() && !client.behind {
            return self.goes_by_cursors(session, Some((tail, index)));
        }
        if client.behind {
            // It reads on by its cursors, as soon as they lead here.
            if client.waits {
                let m = s.rooms.iter().find(|m| m.tail == tail);
                client.waits = !m.is_some_and(|m| matches!(t.place(m), Place::Live(_)));
            }
            return;
        }
        if is_repeat {
            return;
        }
        let form = match (entry.event.asks.is_some(), id) {
            (true, Some((_, id))) => Form::Asking(id),
            // It is not to be asked any more.
            (true, None) if matches!(form, Form::SocketIo | Form::Carrying) => return,
            _ => form,
        };
        let shared = frames_len(entry.frames(form, &t.key));
        let own = if id.is_some() { 0 } else { self.append_tail_of(session, served) };
        let client = self.clients[ix.0 as usize].as_deref_mut().expect("just seen");
        if client.fits(turn, shared + own, &self.limits) {
            client.count_queued(turn, shared + own);
            served.push(form, ix, client.polling().is_some());
            if let Some((name, id)) = id {
                self.asks.was_put(name, sid, id);
            }
            return;
        }
        served.take_back(own);
        self.fall_behind(ctx, session, Some((tail, index)));
    }

    /// Appends what this session carries; its bytes.
    fn append_tail_of(&mut self, session: u32, served: &mut Served) -> usize {
        let before = served.tails.len();
        self.append_tail(&mut served.tails, session);
        served.tails.len() - before
    }

    /// Whether a session has been served an event that went to several rooms by another one of them.
    pub(super) fn has_had(&self, session: u32, tail: u32, entry: &TailEntry) -> bool {
        if entry.event.also.is_empty() {
            return false;
        }
        let s = &self.sessions[session as usize];
        let behind = self.clients[s.client.0 as usize].as_ref().is_some_and(|client| client.behind);
        s.rooms.iter().filter(|m| m.tail != tail && m.slot.is_some()).any(|m| {
            let t = &self.tails[m.tail as usize];
            let served = m.handed_up_to(behind, t);
            let is_one = entry.event.also.iter().any(|room| **room == *t.key.room());
            is_one && t.place_of(entry.id).is_some_and(|at| m.joined < at && at <= served)
        })
    }

    pub(super) fn is_in_any(&self, session: u32, rooms: &[Arc<str>]) -> bool {
        self.sessions[session as usize].is_excepted(|tail| &self.tails[tail as usize].key, rooms)
    }

    fn deliver_volatile(&mut self, ctx: &mut Ctx<'_>, tail: u32, event: &RoomEvent) {
        let (members, key) = {
            let t = &self.tails[tail as usize];
            (t.members.clone(), t.key.clone())
        };
        let (frames, limits) = (Frames::default(), self.limits.clone());
        let mut served = Served::default();
        for session in members {
            let s = &self.sessions[session as usize];
            if is_excepted(event, s.identity.sid, |except| self.is_in_any(session, except)) {
                continue;
            }
            let (form, ix) = (s.form(), s.client);
            let turn = self.turn;
            let tail = self.append_tail_of(session, &mut served);
            let client = self.client_of(session);
            let len = frames_len(frames.of(form, &key, None, event)) + tail;
            if client.is_idle() && client.fits(turn, len, &limits) {
                client.count_queued(turn, len);
                served.push(form, ix, client.polling().is_some());
            } else {
                served.take_back(tail);
                ctx.stats.volatile_dropped_total += 1;
            }
        }
        let polling = served.send(ctx, |form| frames.of(form, &key, None, event));
        self.write_all_polling(polling);
    }

    fn write_all_polling(&mut self, writes: Vec<(ClientIx, Arc<[Packet]>)>) {
        for (ix, packets) in writes {
            for packet in packets.iter().cloned() {
                self.write_polling(ix, packet);
            }
        }
    }

    pub(crate) fn take_from_session(&mut self, ctx: &mut Ctx<'_>, from: Address, message: SessionToEdge) {
        let Some(message) = self.take_resume_answer(ctx, from, message) else { return };
        let sid = match &message {
            SessionToEdge::Resumed(_) | SessionToEdge::NotResumed { .. } => return,
            SessionToEdge::Attached { sid, .. }
            | SessionToEdge::StillThere { sid, .. }
            | SessionToEdge::Done { sid, .. }
            | SessionToEdge::Own { sid, .. }
            | SessionToEdge::Reattach { sid }
            | SessionToEdge::Refused { sid, .. }
            | SessionToEdge::Unknown { sid, .. } => *sid,
        };
        let Some(&index) = self.by_sid.get(&sid) else {
            if !matches!(message, SessionToEdge::Unknown { .. }) && !self.is_resuming(sid) {
                self.disown(ctx, from, sid);
            }
            return;
        };
        if self.sessions[index as usize].owner != Some(from.node) {
            // It may speak for the owner that the ring names by now.
            return self.place_session(ctx, index);
        }
        let session = &mut self.sessions[index as usize];
        match message {
            SessionToEdge::Resumed(_) | SessionToEdge::NotResumed { .. } => {}
            SessionToEdge::StillThere { attachment, .. } => self.meet_rival(ctx, index, attachment),
            SessionToEdge::Attached { term, inbound_confirmed, attached, .. } => {
                if term < session.term {
                    return;
                }
                session.term = term;
                session.attached = true;
                session.attaches[1] = session.attaches[1].max(attached);
                (session.rival, session.instead_of) = (None, None);
                session.repeat_after(inbound_confirmed, &self.limits);
                self.dirty.insert(index);
                self.welcome(ctx, index);
            }
            // Its owner may go on under a higher term without a new beginning.
            SessionToEdge::Done { term, packets, .. } => {
                if term >= session.term {
                    session.term = term;
                    self.take_done(ctx, index, packets);
                }
            }
            SessionToEdge::Reattach { .. } => self.attach(ctx, index),
            SessionToEdge::Refused { attachment, message, data, .. } => {
                if attachment == session.attachment {
                    self.refused(ctx, index, &message, data.as_deref());
                }
            }
            SessionToEdge::Own { term, first, entries, .. } => {
                if term >= session.term {
                    session.term = term;
                    self.take_own(ctx, index, first, entries);
                }
            }
            SessionToEdge::Unknown { attachment, .. } => {
                if attachment == session.attachment {
                    self.close_with(ctx, index, CloseCode::Ended, DetachReason::ServerDisconnect);
                }
            }
        }
    }

    /// Less is under way: the client may be read from again.
    fn read_again(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        if !self.sessions[index as usize].is_under_half_of_bound(&self.limits) {
            return;
        }
        let client = self.client_of(index);
        if client.owner_confirmed() {
            let ix = client.ix;
            self.resume_reading(ctx, ix);
        }
    }

    fn take_own(&mut self, ctx: &mut Ctx<'_>, index: u32, first: u64, entries: Vec<OwnEntry>) {
        let limits = &self.limits;
        let session = &mut self.sessions[index as usize];
        for (seq, entry) in (first..).zip(entries) {
            if seq == session.own_seq + 1 {
                session.take_own(entry, ctx.now);
            }
        }
        let (ix, waiting) = (session.client, session.own_waiting());
        if waiting > 2 * limits.own_log_entries_max {
            // Owners came and went while this client took nothing.
            ctx.stats.too_slow_total += 1;
            return self.close(ctx, ix, CloseCode::TooSlow, DetachReason::TransportClose);
        }
        self.process_own(ctx, index);
    }

    fn take_done(&mut self, ctx: &mut Ctx<'_>, index: u32, packets: Vec<Done>) {
        let session = &mut self.sessions[index as usize];
        let numbers: Vec<u64> =
            if session.acting.is_empty() { Vec::new() } else { packets.iter().map(|p| p.number).collect() };
        for packet in packets {
            session.done(ctx.now, packet);
        }
        if session.number_anew() {
            self.attach(ctx, index);
        }
        self.read_again(ctx, index);
        let ix = self.sessions[index as usize].client;
        self.look_at_poll(ix);
        let was_acting = !numbers.is_empty();
        for number in numbers {
            if !self.action_done(ctx, index, number) {
                return;
            }
        }
        if was_acting {
            // Entries after the actions, in this turn.
            self.catch_up(ctx, ix);
        }
        if !self.sessions.contains(index as usize) {
            return;
        }
        self.process_own(ctx, index);
        let Some(session) = self.sessions.get(index as usize) else { return };
        if session.is_over_answer_bound(&self.limits) {
            // It asks on and takes no answers.
            let ix = session.client;
            ctx.stats.too_slow_total += 1;
            self.close(ctx, ix, CloseCode::TooSlow, DetachReason::TransportClose);
        }
    }

    /// Carries out what the client is owed, in order, as far as it may go.
    pub(super) fn process_own(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        while self.sessions.get(index as usize).is_some_and(|s| s.welcomed) {
            let session = &self.sessions[index as usize];
            let Some(owed) = session.owed.front() else { break };
            let held = owed.after().and_then(|(room, at, came)| {
                let held_too_long = ctx.now.since(came) >= HELD_MAX || is_planted(Mutant::HoldIgnored);
                let tail = self.not_yet_served(index, room, at).filter(|_| !held_too_long)?;
                Some((tail, came))
            });
            if let Some((tail, came)) = held {
                return self.hold_own(ctx, index, tail, came);
            }
            if !self.own_fits(index) {
                // Nobody says so when the queue drains within the turn: it is served like all who are behind.
                self.fall_behind(ctx, index, None);
                self.client_of(index).waits = false;
                return;
            }
            let session = &mut self.sessions[index as usize];
            session.is_held = false;
            let Some(owed) = session.pop_owed() else { break };
            self.dirty.insert(index);
            match owed {
                Owed::Entry(entry, _) => self.carry_out(ctx, index, entry),
                Owed::Ack { id, payload, .. } => {
                    self.write_ack(ctx, index, id, &payload);
                    self.read_again(ctx, index);
                }
            }
        }
        if self.sessions.contains(index as usize) {
            self.look_at_joining(index);
        }
    }

    /// The tail that has not brought this session as far as `at`, if it is in that room.
    fn not_yet_served(&self, index: u32, room: &RoomKey, at: Cursor) -> Option<u32> {
        let &tail = self.by_room.get(room)?;
        let session = &self.sessions[index as usize];
        let m = session.rooms.iter().find(|m| m.tail == tail && m.is_placed())?;
        let t = &self.tails[tail as usize];
        let behind = self.clients[session.client.0 as usize].as_ref().is_some_and(|c| c.behind);
        let served = t.has_served(at) && !(behind && t.leads_to(m.at, at));
        (!served).then_some(tail)
    }

    /// Holds what is owed next, which came at `came`: a row of answers that came together waits for
    /// `HELD_MAX` together.
    fn hold_own(&mut self, ctx: &mut Ctx<'_>, index: u32, tail: u32, came: Instant) {
        let session = &mut self.sessions[index as usize];
        if !session.is_held {
            session.is_held = true;
            ctx.timers.set(came + HELD_MAX, TimerKey::Held(session.identity.sid));
        }
        let waiting = &mut self.tails[tail as usize].waiting;
        if !waiting.contains(&index) {
            waiting.push_back(index);
        }
        self.place_tail(ctx, tail);
    }

    pub(crate) fn held_long_enough(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        if let Some(&index) = self.by_sid.get(&sid) {
            self.process_own(ctx, index);
        }
    }

    /// Whether the next of what is owed fits the client's queue.
    fn own_fits(&mut self, index: u32) -> bool {
        let (turn, limits) = (self.turn, self.limits.clone());
        // What writes nothing takes no room.
        let len = self.sessions[index as usize].owed.front().map_or(0, Owed::len);
        len == 0 || self.client_of(index).fits(turn, len, &limits)
    }

    fn write_ack(&mut self, ctx: &mut Ctx<'_>, index: u32, id: u64, payload: &Payload) {
        let session = &self.sessions[index as usize];
        let frames = match session.protocol {
            ClientProtocol::SocketIo => socketio::encode_ack(&session.identity.namespace, id, payload),
            ClientProtocol::Plain => Arc::new([plain::encode_ack(id, payload)]),
            // Its messages cannot ask for answers.
            ClientProtocol::EngineIo => return,
        };
        let ix = session.client;
        self.write_frames(ctx, ix, &frames);
    }

    fn carry_out(&mut self, ctx: &mut Ctx<'_>, index: u32, entry: OwnEntry) {
        let session = &self.sessions[index as usize];
        let (ix, form) = (session.client, session.form());
        let namespace = session.identity.namespace.clone();
        match entry {
            OwnEntry::Emit { volatile: true, .. } if !self.client_of(index).is_idle() => {
                ctx.stats.volatile_dropped_total += 1;
            }
            OwnEntry::Emit { payload, asks, .. } => {
                let number = self.sessions[index as usize].own_done;
                let frames = match form {
                    Form::SocketIo | Form::Carrying | Form::Asking(_) if asks => {
                        socketio::encode_asking_event(&namespace, own_id(number), &payload)
                    }
                    Form::SocketIo | Form::Asking(_) => socketio::encode_event(&namespace, &payload),
                    Form::Carrying => {
                        let open = socketio::encode_open_event(&namespace, &payload);
                        self.with_tail(&open, index)
                    }
                    Form::Plain => Arc::new([plain::encode_event(None, &payload)]),
                    Form::Engine => engineio::encode_message_event(&payload),
                };
                ctx.stats.deliveries_total += 1;
                self.write_frames(ctx, ix, &frames);
            }
            OwnEntry::Join(room, by) => {
                let own_seq = self.sessions[index as usize].own_done;
                self.join_tail(ctx, index, &room, own_seq, by);
            }
            OwnEntry::Leave(room, by) => {
                if by == AskedBy::Backend {
                    self.leave_and_tell(ctx, index, &room);
                } else if let Some(&tail) = self.by_room.get(&room) {
                    self.leave_tail(ctx, index, tail);
                }
            }
            OwnEntry::Disconnect { close, code } => self.disconnect(ctx, index, close, code),
        }
    }

    /// The product's code does not let the session in.
    fn refused(&mut self, ctx: &mut Ctx<'_>, index: u32, message: &str, data: Option<&[u8]>) {
        let session = &self.sessions[index as usize];
        let (ix, protocol) = (session.client, session.protocol);
        let namespace = session.identity.namespace.clone();
        match protocol {
            ClientProtocol::SocketIo => {
                let data = data.and_then(|data| std::str::from_utf8(data).ok());
                self.write(ctx, ix, socketio::encode_connect_error(&namespace, message, data));
                self.end_namespace(ctx, index, DetachReason::ServerDisconnect);
            }
            ClientProtocol::EngineIo => {
                self.close(ctx, ix, CloseCode::Refused, DetachReason::ServerDisconnect);
            }
            ClientProtocol::Plain => {
                self.write(ctx, ix, plain::encode_error("refused", message));
                self.close(ctx, ix, CloseCode::Refused, DetachReason::ServerDisconnect);
            }
        }
    }

    pub(super) fn disconnect(&mut self, ctx: &mut Ctx<'_>, index: u32, close: bool, code: DisconnectCode) {
        let ix = self.sessions[index as usize].client;
        let Some(client) = self.client(ix) else { return };
        tracing::debug!(client = ix.0, ?code, "session ended by its owner");
        if client.protocol == ClientProtocol::SocketIo {
            // With the transport go all sessions over it: each is told, so that none comes back.
            let ending = if close { client.sessions.clone() } else { vec![index] };
            for session in ending {
                let namespace = self.sessions[session as usize].identity.namespace.clone();
                self.write(ctx, ix, socketio::encode_disconnect(&namespace));
            }
            if !close {
                return self.end_namespace(ctx, index, DetachReason::ServerDisconnect);
            }
        }
        self.close(ctx, ix, CloseCode::Ended, DetachReason::ServerDisconnect);
    }

    fn write_frames(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, frames: &Arc<[Packet]>) {
        let turn = self.turn;
        let Some(client) = self.client(ix) else { return };
        client.count_queued(turn, frames_len(frames));
        self.hand(ctx, ix, frames);
    }
}

/// Clients that get an entry now, by protocol.
#[derive(Default)]
struct Served {
    socket_io: Vec<ClientIx>,
    plain: Vec<ClientIx>,
    engine: Vec<ClientIx>,
    /// With the id they are to answer under.
    asking: (u64, Vec<ClientIx>),
    /// Sessions that are to answer.
    asked: usize,
    /// Each with the end of its tail among `tails`.
    carrying: Vec<(ClientIx, usize)>,
    tails: Vec<u8>,
    /// Polling clients, each with its tail.
    polling: Vec<(ClientIx, Form, Vec<u8>)>,
}

impl Served {
    /// The tail of the client is the last one.
    fn push(&mut self, form: Form, ix: ClientIx, is_polling: bool) {
        match form {
            _ if is_polling => {
                let start = self.carrying.last().map_or(0, |(_, end)| *end);
                self.polling.push((ix, form, self.tails.split_off(start)));
            }
            Form::SocketIo => self.socket_io.push(ix),
            Form::Carrying => self.carrying.push((ix, self.tails.len())),
            Form::Plain => self.plain.push(ix),
            Form::Engine => self.engine.push(ix),
            Form::Asking(id) => {
                self.asking.0 = id;
                self.asking.1.push(ix);
            }
        }
    }

    /// The last tail is for nobody.
    fn take_back(&mut self, bytes: usize) {
        self.tails.truncate(self.tails.len() - bytes);
    }

    /// Returns what is for polling clients.
    fn send<'a>(
        self,
        ctx: &mut Ctx<'_>,
        frames: impl Fn(Form) -> &'a Arc<[Packet]>,
    ) -> Vec<(ClientIx, Arc<[Packet]>)> {
        ctx.stats.deliveries_total += self.polling.len() as u64;
        let polling = self.polling.into_iter().map(|(ix, form, tail)| match form {
            Form::Carrying => (ix, with_tail(frames(form), &tail)),
            Form::SocketIo | Form::Plain | Form::Engine | Form::Asking(_) => (ix, frames(form).clone()),
        });
        let polling = polling.collect();
        let groups = [
            (Form::SocketIo, self.socket_io),
            (Form::Plain, self.plain),
            (Form::Engine, self.engine),
            (Form::Asking(self.asking.0), self.asking.1),
        ];
        for (form, clients) in groups.into_iter().filter(|(_, clients)| !clients.is_empty()) {
            ctx.stats.deliveries_total += clients.len() as u64;
            ctx.out.push(Output::Fanout(frames(form).clone(), clients));
        }
        if !self.carrying.is_empty() {
            ctx.stats.deliveries_total += self.carrying.len() as u64;
            let open = frames(Form::Carrying).clone();
            let each = FanoutEach { open, clients: self.carrying, tails: self.tails };
            ctx.out.push(Output::FanoutEach(each));
        }
        polling
    }
}

pub(super) fn is_excepted(
    event: &RoomEvent,
    sid: SocketSid,
    in_any: impl FnOnce(&[Arc<str>]) -> bool,
) -> bool {
    let named = event.except_sids.contains(&sid) && !is_planted(Mutant::ExceptIgnored);
    named || (!event.except_rooms.is_empty() && in_any(&event.except_rooms))
}

pub(super) fn frames_len(frames: &[Packet]) -> usize {
    frames.iter().map(Packet::len).sum()
}
