//! Carrying out a session's packets, in order.
//!
//! Belongs here: what each event of the `rooms` product leads to; what waits for what.
//! Stays out: reading events (`product::rooms`).
//! Order: joins in a row go together; anything else waits until they are in force at the edge, so that
//! "join, then publish" reaches the joiner. Publishes do not wait for each other: the room's owner
//! takes them in order (`Publish::after`), and each is done when that has answered.
//! Repeats: what an edge has not seen done it repeats, and it is carried out again. A publish is known
//! to its room by its id; joins and leaves up to `ops_upto` are in the state; a publish to a room left
//! since is judged as it was when it was first sent.

use super::{Effect, LEFT_MAX, Open, Session, Sessions, Wait};
use crate::id::{Cursor, NodeRef, PublishId, RoomKey, SocketSid};
use crate::limits::Limits;
use crate::product::rooms::{self, Request};
use crate::product::{ErrorCode, RequestError, ack_ok, ack_rooms};
use crate::shard::Ctx;
use crate::wire::{
    AskedBy, Body, Command, DedupeKey, DisconnectCode, Done, Inbound, OwnEntry, Payload, Publish,
    PublishRefused, RoomEvent, ToRoom,
};

/// Packets of one session begun and not done.
const OPEN_MAX: usize = 256;

impl Sessions {
    /// Begins as many packets as may begin.
    pub(super) fn run(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        let Some(session) = self.sessions.get_mut(&sid) else { return };
        while session.may_begin(&self.limits)
            && let Some(packet) = session.program.pop_front()
        {
            let number = session.begun();
            session.begin(ctx, &self.limits, number, packet);
        }
        if session.open.is_empty() {
            self.busy.remove(&sid);
        } else {
            self.busy.insert(sid);
        }
        if session.has_held() {
            self.bounced.insert(sid);
        }
        if !session.effects.is_empty() || session.is_over() {
            self.dirty.insert(sid);
        }
    }

    /// What a backend asks of one session. Returns whether it could be taken.
    pub(super) fn command(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid, command: &Command) -> bool {
        let Some(session) = self.sessions.get_mut(&sid).filter(|s| !s.detached) else { return false };
        let taken = match command {
            Command::Emit { payload, except_rooms, except_sids, .. } => {
                let excepted = except_sids.contains(&sid)
                    || session.rooms.iter().any(|(room, _)| except_rooms.iter().any(|e| **e == *room.room()));
                // A full own log: the client has stopped taking what it is owed.
                let taken = !excepted && !session.own.is_full(&self.limits);
                if taken {
                    session.push_own(OwnEntry::Emit { payload: payload.clone(), volatile: false });
                }
                taken
            }
            Command::Join(_) | Command::Leave(_) if session.own.is_full(&self.limits) => false,
            Command::Join(room) => session.add_room(&self.limits, room, AskedBy::Backend).is_ok(),
            // It comes between the packets begun and those that are not.
            Command::Leave(room) => {
                let number = session.begun().max(session.begun_before) + 1;
                session.remove_room(room, AskedBy::Backend, number)
            }
            Command::Disconnect { close } => {
                self.end(sid, DisconnectCode::Requested, *close);
                true
            }
        };
        self.run(ctx, sid);
        taken
    }
}

impl Session {
    fn may_begin(&self, limits: &Limits) -> bool {
        let Some(next) = self.program.front() else { return false };
        if *next == Inbound::Done {
            return true;
        }
        let joining = self.open.iter().any(|open| matches!(open.waits_for, Wait::Join { .. }));
        // The transport is gone: nobody takes from the own log any more, so its bound stops nothing.
        let room = self.detached || !self.own.is_full(limits);
        // What a leave does shows at the edge at once, so everything before it is told to be done first:
        // a new owner may learn from there which rooms the session is in.
        let undone = !self.open.is_empty();
        self.open.len() < OPEN_MAX && room && (!joining || is_join(next)) && !(undone && is_leave(next))
    }

    /// The last packet begun.
    fn begun(&self) -> u64 {
        self.received - self.program.len() as u64
    }

    fn begin(&mut self, ctx: &mut Ctx<'_>, limits: &Limits, number: u64, packet: Inbound) {
        match packet {
            Inbound::Event { ack, payload } => match self.event(ctx, limits, number, ack, &payload) {
                Ok(()) => {}
                Err(refused) => self.done(number, ack, refused.to_ack(), None),
            },
            // No handler of the built-in product asks clients for acks.
            Inbound::Ack { .. } => self.finished(number),
            Inbound::Done => {}
            Inbound::Disconnect => {
                self.finished(number);
                self.detach();
            }
        }
    }

    fn event(
        &mut self,
        ctx: &mut Ctx<'_>,
        limits: &Limits,
        number: u64,
        ack: Option<u64>,
        payload: &Payload,
    ) -> Result<(), RequestError> {
        match rooms::parse(payload, limits)? {
            Request::Join { room } => {
                rooms::check_join(&self.rules, &self.identity.uid, &room)?;
                match self.join(limits, &room, number)? {
                    Some(own_seq) if !self.detached => {
                        self.open.push_back(Open { number, ack, waits_for: Wait::Join { own_seq } });
                    }
                    _ => self.done(number, ack, ack_ok(&[]), None),
                }
            }
            Request::Leave { room } => {
                self.leave(&room, number);
                self.done(number, ack, ack_ok(&[]), None);
            }
            Request::Rooms => {
                let names = ack_rooms(self.rooms.iter().map(|(room, _)| room.room()));
                self.done(number, ack, names, None);
            }
            Request::Publish(publish) => self.publish(ctx, number, ack, publish)?,
        }
        Ok(())
    }

    fn publish(
        &mut self,
        ctx: &mut Ctx<'_>,
        number: u64,
        ack: Option<u64>,
        request: rooms::Publish,
    ) -> Result<(), RequestError> {
        let room = self.room_key(&request.room);
        rooms::check_publish(&self.rules, self.was_member(&room, number))?;
        let sid = self.identity.sid;
        let mut except_sids = request.except_sids;
        if !request.self_too {
            except_sids.push(sid);
        }
        let publish = Publish {
            id: PublishId::Session { sid, number, index: 0 },
            dedupe: request.id.map(|key| DedupeKey { uid: Some(self.identity.uid.clone()), key }),
            event: RoomEvent {
                payload: request.payload,
                except_sids,
                except_rooms: request.except_rooms,
                volatile: false,
            },
            after: None,
            room,
        };
        let waits_for = Wait::Publish { publish: Box::new(publish), sent_to: None };
        self.open.push_back(Open { number, ack, waits_for });
        self.send_held(ctx);
        Ok(())
    }

    /// Sends publishes that are not under way, unless one before them to the same room has to wait as
    /// well. Returns whether all are under way.
    pub(super) fn send_held(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut waiting: Vec<RoomKey> = Vec::new();
        for at in 0..self.open.len() {
            let Wait::Publish { publish, sent_to: None } = &self.open[at].waits_for else { continue };
            let room = publish.room.clone();
            let owner = ctx.view.owner(room.placement()).filter(|_| !waiting.contains(&room));
            let Some(owner) = owner else {
                waiting.push(room);
                continue;
            };
            let after = self.open.iter().take(at).rev().find_map(|open| match &open.waits_for {
                Wait::Publish { publish, .. } if publish.room == room => Some((open.number, 0)),
                _ => None,
            });
            if let Wait::Publish { publish, sent_to } = &mut self.open[at].waits_for {
                *sent_to = Some(owner);
                publish.after = after;
                let message = ToRoom::Publish(Publish::clone(publish));
                ctx.out.send_to_host(owner, room.placement(), Body::ToRoom(message));
            }
        }
        waiting.is_empty()
    }

    fn has_held(&self) -> bool {
        self.open.iter().any(|open| matches!(open.waits_for, Wait::Publish { sent_to: None, .. }))
    }

    /// Takes back publishes under way for which `lost` holds. Returns whether there were any.
    pub(super) fn hold(&mut self, lost: impl Fn(&Publish, NodeRef) -> bool) -> bool {
        let mut any = false;
        for open in &mut self.open {
            if let Wait::Publish { publish, sent_to } = &mut open.waits_for
                && sent_to.is_some_and(|node| lost(publish, node))
            {
                *sent_to = None;
                any = true;
            }
        }
        any
    }

    /// The answer of a room's owner to the publish of packet `number`.
    pub(super) fn published(&mut self, number: u64, room: &RoomKey, outcome: Result<Cursor, PublishRefused>) {
        let place = self.open.iter().position(|open| {
            open.number == number
                && matches!(&open.waits_for, Wait::Publish { publish, .. } if publish.room == *room)
        });
        let Some(open) = place.and_then(|place| self.open.remove(place)) else { return };
        match outcome {
            Ok(at) => {
                let after = self.is_member(room).then(|| (room.clone(), at));
                self.done(number, open.ack, rooms::ack_published(at), after);
            }
            Err(PublishRefused::RoomsPerNode) => {
                let full = RequestError::new(ErrorCode::RoomLimit, "the node owns as many rooms as it may");
                self.done(number, open.ack, full.to_ack(), None);
            }
        }
    }

    /// The edge has put a join in force.
    pub(super) fn joined(&mut self, own_seq: u64, at: Cursor) {
        if let Some(joined) = self.rooms.iter_mut().find(|(_, c)| *c == pending(own_seq)) {
            joined.1 = at;
        }
        let in_force =
            |open: &Open| matches!(open.waits_for, Wait::Join { own_seq: waits } if waits == own_seq);
        // A repeat within the same join waits as well.
        while let Some(place) = self.open.iter().position(in_force)
            && let Some(open) = self.open.remove(place)
        {
            self.done(open.number, open.ack, ack_ok(&[]), None);
        }
    }

    /// The edge's shadow has the room: its join is in force, whether its word has reached us or not.
    pub(super) fn joined_in(&mut self, room: &RoomKey, at: Cursor, own_seq_received: u64) {
        let pending_seq = self.rooms.iter().find(|(r, _)| r == room).and_then(|(_, c)| pending_seq(*c));
        if let Some(own_seq) = pending_seq.filter(|seq| *seq <= own_seq_received) {
            self.joined(own_seq, at);
        }
    }

    /// The transport is gone for good: joins under way have nobody to be put in force for.
    pub(super) fn detach(&mut self) {
        self.detached = true;
        self.open.retain(|open| !matches!(open.waits_for, Wait::Join { .. }));
    }

    /// Packet `number` joins a room. The own-log entry that is not in force yet, if any.
    fn join(&mut self, limits: &Limits, name: &str, number: u64) -> Result<Option<u64>, RequestError> {
        let room = self.room_key(name);
        // Carried out before, and left since.
        let over = !self.is_member(&room) && self.was_member(&room, number);
        if number <= self.ops_upto && (over || self.has_forgotten(number)) {
            return Ok(None);
        }
        let own_before = self.own.last();
        let own_seq = self.add_room(limits, name, AskedBy::Client)?;
        if self.own.last() > own_before {
            self.ops_upto = self.ops_upto.max(number);
        }
        Ok(own_seq)
    }

    /// Packet `number` leaves a room; once: there may have been a join since.
    fn leave(&mut self, name: &str, number: u64) {
        if number > self.ops_upto && self.remove_room(name, AskedBy::Client, number) {
            self.ops_upto = number;
        }
    }

    /// The own-log entry of the join as long as it is not in force; `None` if it is.
    pub(super) fn add_room(
        &mut self,
        limits: &Limits,
        name: &str,
        by: AskedBy,
    ) -> Result<Option<u64>, RequestError> {
        rooms::check_room_name(name, limits)?;
        let room = self.room_key(name);
        if let Some((_, at)) = self.rooms.iter().find(|(r, _)| *r == room) {
            return Ok(pending_seq(*at));
        }
        if self.rooms.len() >= limits.rooms_per_session_max {
            let message = format!("a session is in at most {} rooms", limits.rooms_per_session_max);
            return Err(RequestError::new(ErrorCode::RoomLimit, message));
        }
        let own_seq = self.push_own(OwnEntry::Join(room.clone(), by));
        self.rooms.push((room, pending(own_seq)));
        Ok(Some(own_seq))
    }

    /// Leaves a room; packets below `number` were sent as a member. Whether it was in the room.
    pub(super) fn remove_room(&mut self, name: &str, by: AskedBy, number: u64) -> bool {
        let room = self.room_key(name);
        let before = self.rooms.len();
        self.rooms.retain(|(r, _)| *r != room);
        let was_in = self.rooms.len() < before;
        if was_in {
            if self.left.len() == LEFT_MAX {
                self.left.pop_front();
            }
            self.left.push_back((room.clone(), number));
            self.push_own(OwnEntry::Leave(room, by));
        }
        was_in
    }

    fn room_key(&self, name: &str) -> RoomKey {
        RoomKey::new(&self.identity.product, &self.identity.namespace, name)
    }

    fn is_member(&self, room: &RoomKey) -> bool {
        self.rooms.iter().any(|(r, _)| r == room)
    }

    /// Whether packet `number` is of a member, though it may have left since.
    fn was_member(&self, room: &RoomKey, number: u64) -> bool {
        self.is_member(room) || self.left.iter().any(|(left, by)| left == room && *by > number)
    }

    /// Whether a leave after packet `number` may not be remembered any more.
    fn has_forgotten(&self, number: u64) -> bool {
        self.left.len() == LEFT_MAX && self.left.front().is_some_and(|(_, by)| *by > number)
    }

    fn done(&mut self, number: u64, ack: Option<u64>, payload: Payload, after: Option<(RoomKey, Cursor)>) {
        let after = after.filter(|_| ack.is_some());
        self.effects.push(Effect::Done(Done { number, ack: ack.map(|id| (id, payload)), after }));
    }

    fn finished(&mut self, number: u64) {
        self.effects.push(Effect::Done(Done { number, ack: None, after: None }));
    }
}

/// Stands for the position of a join that is not in force yet: which own-log entry asks for it.
fn pending(own_seq: u64) -> Cursor {
    Cursor { seq: own_seq, ..Cursor::NONE }
}

fn pending_seq(cursor: Cursor) -> Option<u64> {
    (cursor.term == crate::id::Term::NONE).then_some(cursor.seq)
}

fn is_join(packet: &Inbound) -> bool {
    matches!(packet, Inbound::Event { payload, .. } if payload.json.starts_with(b"[\"join\""))
}

fn is_leave(packet: &Inbound) -> bool {
    matches!(packet, Inbound::Event { payload, .. } if payload.json.starts_with(b"[\"leave\""))
}
