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

use super::Sessions;
use super::live::{Effect, Open, Session, Wait};
use super::state::Join;
use crate::id::{Cursor, NodeRef, PublishId, RoomKey, SocketSid};
use crate::limits::Limits;
use crate::product::rooms::{self, Request};
use crate::product::{ErrorCode, RequestError, ack_ok, ack_rooms};
use crate::shard::{AppEvent, Ctx, ProductRules};
use crate::small::give_back;
use crate::wire::{
    Action, AskedBy, Body, Command, DedupeKey, DisconnectCode, Done, EmitKey, Inbound, Payload, Publish,
    PublishRefused, RoomEvent, SessionOp, ToRoom,
};

/// Packets of one session begun and not done.
const OPEN_MAX: usize = 256;

impl Sessions {
    /// Begins as many packets as may begin.
    pub(super) fn run(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        let Some(mut session) = self.host.owned(&sid) else { return };
        let was_ended = session.state.ended;
        let mut ends = None;
        if let Some(rules) = self.products.get(&session.state.identity.product) {
            ends = session.step_app(ctx, &self.limits);
            while let Some((number, packet)) = session.next_packet_to_begin(&self.limits) {
                self.calls += u64::from(rules.is_app);
                session.begin(ctx, &self.limits, rules, self.calls, (number, packet));
            }
        }
        if session.state.ended && !was_ended {
            self.unindex(&sid);
            self.dirty.insert(sid);
        }
        let Some(session) = self.host.owned(&sid) else { return };
        give_back(&mut session.live.program);
        give_back(&mut session.live.open);
        if session.live.open.is_empty() {
            self.busy.remove(&sid);
        } else {
            self.busy.insert(sid);
        }
        if session.has_held() {
            self.bounced.insert(sid);
        }
        if !session.live.effects.is_empty() || session.is_over() {
            self.dirty.insert(sid);
        }
        if let Some(close) = ends {
            self.end(sid, DisconnectCode::Requested, close);
        }
    }

    /// What a backend asks of one session. Returns whether it could be taken.
    pub(super) fn command(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid, command: &Command) -> bool {
        let may = |s: &Session<'_>| !s.state.ended && (!s.is_parked() || s.state.identity.resumable);
        let Some(mut session) = self.host.owned(&sid).filter(may) else { return false };
        let (is_parked, is_full) = (session.is_parked(), session.state.own.is_full(&self.limits));
        if is_parked && is_full {
            // It cannot be owed more: its client begins anew.
            session.op(SessionOp::Park { over: true });
            self.unindex(&sid);
            self.dirty.insert(sid);
            return false;
        }
        let taken = match command {
            Command::Emit { payload, except_rooms, except_sids, dedupe } => {
                let mut rooms = session.state.rooms.iter();
                let excepted = except_sids.contains(&sid)
                    || rooms.any(|m| except_rooms.iter().any(|except| **except == *m.room.room()));
                // A full own log: the client has stopped taking what it is owed.
                let taken = !excepted && !is_full;
                if taken {
                    let key = dedupe.as_ref().map(|d| EmitKey::new(d.uid.as_deref(), &d.key));
                    session.emit(ctx.now, self.limits.dedupe_window, payload, key);
                }
                taken
            }
            Command::Join(_) | Command::Leave(_) if is_full => false,
            Command::Join(room) => session.add_room(&self.limits, room, AskedBy::Backend, 0).is_ok(),
            // It comes between the packets begun and those that are not.
            Command::Leave(room) => session.remove_room(room, AskedBy::Backend, session.next_packet()),
            Command::Disconnect { close } => {
                self.end(sid, DisconnectCode::Requested, *close);
                true
            }
        };
        self.run(ctx, sid);
        taken
    }
}

/// Which packet asks, and under which of the client's ids.
#[derive(Clone, Copy)]
struct Asked {
    number: u64,
    ack: Option<u64>,
}

impl Session<'_> {
    /// The next packet, with its number, if it may begin.
    fn next_packet_to_begin(&mut self, limits: &Limits) -> Option<(u64, Inbound)> {
        if self.is_asking() {
            return self.next_out_of_turn(limits);
        }
        if !self.may_begin(limits) {
            return None;
        }
        let packet = self.live.program.pop_front()?;
        Some((self.begun(), packet))
    }

    /// What the product's code may be waiting for overtakes the events behind the one it is at: the client's
    /// answers, and actions on rooms.
    fn next_out_of_turn(&mut self, limits: &Limits) -> Option<(u64, Inbound)> {
        let may_act = self.is_parked() || !self.state.own.is_full(limits);
        let place = self.live.program.iter().position(|packet| match packet {
            Inbound::Ack { .. } => true,
            Inbound::Act { .. } => may_act,
            _ => false,
        })?;
        let number = self.begun() + 1 + place as u64;
        Some((number, std::mem::replace(&mut self.live.program[place], Inbound::Done)))
    }

    fn may_begin(&self, limits: &Limits) -> bool {
        let Some(next) = self.live.program.front() else { return false };
        if *next == Inbound::Done {
            return true;
        }
        let joining = self.live.open.iter().any(|open| matches!(open.waits_for, Wait::Join { .. }));
        // The transport is gone: nobody takes from the own log any more, so its bound stops nothing.
        let room = self.is_parked() || !self.state.own.is_full(limits);
        // What a leave does shows at the edge at once, so everything before it is told to be done first:
        // a new owner may learn from there which rooms the session is in.
        let undone = !self.live.open.is_empty();
        self.live.open.len() < OPEN_MAX && room && (!joining || is_join(next)) && !(undone && is_leave(next))
    }

    /// Begins a packet just taken off the program.
    fn begin(
        &mut self,
        ctx: &mut Ctx<'_>,
        limits: &Limits,
        rules: &ProductRules,
        call: u64,
        (number, packet): (u64, Inbound),
    ) {
        match packet {
            Inbound::Event { ack, payload } if rules.is_app => {
                let event = AppEvent::Event { payload, wants_ack: ack.is_some() };
                self.ask(ctx, call, number, ack, None, event);
            }
            Inbound::Event { ack, payload } => {
                if let Err(refused) = self.event(ctx, limits, rules, Asked { number, ack }, &payload) {
                    self.done(number, ack, refused.to_ack(), None);
                }
            }
            Inbound::Ack { id, payload } => {
                self.client_answered(ctx, id, payload);
                self.finished(number);
            }
            Inbound::Done => {}
            Inbound::Act { room, at, action } => {
                self.act(limits, room, at, &action);
                self.finished(number);
            }
            Inbound::Disconnect => {
                self.finished(number);
                self.park(ctx.now, true);
            }
        }
    }

    /// The session has come to an action on the members of a room.
    fn act(&mut self, limits: &Limits, room: RoomKey, at: Cursor, action: &Action) {
        if self.state.has_acted(&room, at) || self.state.ended {
            return;
        }
        let by = AskedBy::Backend;
        let ops = match action {
            Action::Join(names) => {
                let names = names.iter().filter(|name| rooms::check_room_name(name, limits).is_ok());
                let new = names.map(|name| self.state.room_key(name)).filter(|r| !self.state.is_member(r));
                let left = limits.rooms_per_session_max.saturating_sub(self.state.rooms.len());
                new.take(left).map(|room| SessionOp::Join { room, by, number: 0 }).collect()
            }
            Action::Leave(names) => {
                let left = names.iter().map(|name| self.state.room_key(name));
                let number = self.next_packet();
                let left = left.filter(|room| self.state.is_member(room));
                left.map(|room| SessionOp::Leave { room, by, number }).collect()
            }
            Action::Disconnect { close } => {
                vec![SessionOp::End { close: *close, code: DisconnectCode::Requested }]
            }
        };
        self.op(SessionOp::Act { room, at, ops });
    }

    fn event(
        &mut self,
        ctx: &mut Ctx<'_>,
        limits: &Limits,
        rules: &ProductRules,
        asked: Asked,
        payload: &Payload,
    ) -> Result<(), RequestError> {
        let Asked { number, ack } = asked;
        match rooms::parse(payload, limits)? {
            Request::Join { room } => {
                rooms::check_join(rules, &self.state.identity.uid, &room)?;
                match self.join(limits, &room, number)? {
                    Some(own_seq) if !self.is_parked() => {
                        self.live.open.push_back(Open { number, ack, waits_for: Wait::Join { own_seq } });
                    }
                    _ => self.done(number, ack, ack_ok(&[]), None),
                }
            }
            Request::Leave { room } => {
                self.leave(&room, number);
                self.done(number, ack, ack_ok(&[]), None);
            }
            Request::Rooms => {
                let names = ack_rooms(self.state.rooms.iter().map(|m| m.room.room()));
                self.done(number, ack, names, None);
            }
            Request::Publish(publish) => self.publish(ctx, rules, asked, publish)?,
        }
        Ok(())
    }

    fn publish(
        &mut self,
        ctx: &mut Ctx<'_>,
        rules: &ProductRules,
        Asked { number, ack }: Asked,
        request: rooms::Publish,
    ) -> Result<(), RequestError> {
        let room = self.state.room_key(&request.room);
        rooms::check_publish(rules, self.state.was_member(&room, number))?;
        let sid = self.state.identity.sid;
        let mut except_sids = request.except_sids;
        if !request.self_too {
            except_sids.push(sid);
        }
        let publish = Publish {
            id: PublishId::Session { sid, number, index: 0 },
            dedupe: request.id.map(|key| DedupeKey { uid: Some(self.state.identity.uid.clone()), key }),
            event: RoomEvent {
                except_sids,
                except_rooms: request.except_rooms,
                ..RoomEvent::new(request.payload)
            },
            after: None,
            room,
        };
        let waits_for = Wait::Publish { publish: Box::new(publish), sent_to: None, needs: 0 };
        self.live.open.push_back(Open { number, ack, waits_for });
        self.send_held(ctx);
        Ok(())
    }

    /// Sends publishes that are not under way, unless one before them to the same room has to wait as
    /// well. Returns whether all are under way.
    pub(super) fn send_held(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut waiting: Vec<RoomKey> = Vec::new();
        for at in 0..self.live.open.len() {
            let Wait::Publish { publish, sent_to: None, needs } = &self.live.open[at].waits_for else {
                continue;
            };
            let room = publish.room.clone();
            let may_go = *needs <= self.confirmed && !waiting.contains(&room);
            let owner = ctx.view.owner(room.placement()).filter(|_| may_go);
            let Some(owner) = owner else {
                waiting.push(room);
                continue;
            };
            let after = self.live.open.iter().take(at).rev().find_map(|open| match &open.waits_for {
                Wait::Publish { publish, .. } if publish.room == room => publish.id.place(),
                _ => None,
            });
            if let Wait::Publish { publish, sent_to, .. } = &mut self.live.open[at].waits_for {
                *sent_to = Some(owner);
                publish.after = after;
                let message = ToRoom::Publish(Publish::clone(publish));
                ctx.out.send_to_host(owner, room.placement(), Body::ToRoom(message));
            }
        }
        waiting.is_empty()
    }

    /// The rooms of publishes that are not under way.
    pub(super) fn held_rooms(&self) -> impl Iterator<Item = RoomKey> {
        self.live.open.iter().filter_map(|open| match &open.waits_for {
            Wait::Publish { publish, sent_to: None, .. } => Some(publish.room.clone()),
            _ => None,
        })
    }

    pub(super) fn has_held(&self) -> bool {
        self.live.open.iter().any(|open| matches!(open.waits_for, Wait::Publish { sent_to: None, .. }))
    }

    /// Takes back publishes under way for which `lost` holds. Returns whether there were any.
    pub(super) fn hold(&mut self, lost: impl Fn(&Publish, NodeRef) -> bool) -> bool {
        let mut any = false;
        for open in &mut self.live.open {
            if let Wait::Publish { publish, sent_to, .. } = &mut open.waits_for
                && sent_to.is_some_and(|node| lost(publish, node))
            {
                *sent_to = None;
                any = true;
            }
        }
        any
    }

    /// The answer of a room's owner to the publish of packet `number`.
    pub(super) fn published(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: PublishId,
        room: &RoomKey,
        outcome: Result<Cursor, PublishRefused>,
    ) {
        let place = self.live.open.iter().position(|open| {
            matches!(&open.waits_for, Wait::Publish { publish, .. } if publish.room == *room && publish.id == id)
        });
        let Some(open) = place.and_then(|place| self.live.open.remove(place)) else { return };
        let number = open.number;
        if let (Wait::Publish { publish, .. }, Err(_)) = (&open.waits_for, outcome)
            && let Some(ask) = &publish.event.asks
        {
            ctx.ask_refused(ask.name, room);
        }
        if self.number_asked() == Some(number) {
            return self.published_for_app(number, room, outcome.ok());
        }
        match outcome {
            Ok(at) => {
                let after = self.state.is_member(room).then(|| (room.clone(), at));
                self.done(number, open.ack, rooms::ack_published(at), after);
            }
            Err(PublishRefused::RoomsPerNode) => {
                let full = RequestError::new(ErrorCode::RoomLimit, "the node owns as many rooms as it may");
                self.done(number, open.ack, full.to_ack(), None);
            }
        }
    }

    /// The edge has put the join of this own-log entry in force.
    pub(super) fn joined(&mut self, own_seq: u64, at: Cursor) {
        if let Some(asked) = self.state.rooms.iter().find(|m| m.join == Join::Asked(own_seq)) {
            let room = asked.room.clone();
            self.op(SessionOp::JoinedAt { room, at });
        }
        let in_force =
            |open: &Open| matches!(open.waits_for, Wait::Join { own_seq: waits } if waits == own_seq);
        // Another join of the same room waits for the same entry.
        while let Some(place) = self.live.open.iter().position(in_force)
            && let Some(open) = self.live.open.remove(place)
        {
            self.done(open.number, open.ack, ack_ok(&[]), None);
        }
        self.live.open.retain(|open| !matches!(open.waits_for, Wait::AppJoin { own_seq: w } if w == own_seq));
    }

    /// Packet `number` joins a room. The own-log entry that is not in force yet, if any.
    fn join(&mut self, limits: &Limits, name: &str, number: u64) -> Result<Option<u64>, RequestError> {
        if self.state.has_joined_and_left(&self.state.room_key(name), number) {
            return Ok(None);
        }
        self.add_room(limits, name, AskedBy::Client, number)
    }

    /// Packet `number` leaves a room; once: there may have been a join since.
    fn leave(&mut self, name: &str, number: u64) {
        if number > self.state.ops_upto {
            self.remove_room(name, AskedBy::Client, number);
        }
    }

    /// The own-log entry of the join as long as it is not in force; `None` if it is.
    fn add_room(
        &mut self,
        limits: &Limits,
        name: &str,
        by: AskedBy,
        number: u64,
    ) -> Result<Option<u64>, RequestError> {
        rooms::check_room_name(name, limits)?;
        let room = self.state.room_key(name);
        if !self.state.is_member(&room) {
            if self.state.rooms.len() >= limits.rooms_per_session_max {
                let message = format!("a session is in at most {} rooms", limits.rooms_per_session_max);
                return Err(RequestError::new(ErrorCode::RoomLimit, message));
            }
            self.op(SessionOp::Join { room: room.clone(), by, number });
        }
        match self.state.membership(&room).map(|m| m.join) {
            Some(Join::Asked(own_seq)) => Ok(Some(own_seq)),
            _ => Ok(None),
        }
    }

    /// Leaves a room; packets below `number` were sent by a member. Whether it was in the room.
    fn remove_room(&mut self, name: &str, by: AskedBy, number: u64) -> bool {
        let room = self.state.room_key(name);
        let was_in = self.state.is_member(&room);
        if was_in {
            self.op(SessionOp::Leave { room, by, number });
        }
        was_in
    }

    pub(super) fn done(
        &mut self,
        number: u64,
        ack: Option<u64>,
        payload: Payload,
        after: Option<(RoomKey, Cursor)>,
    ) {
        let after = after.filter(|_| ack.is_some());
        let done = Done { number, ack: ack.map(|id| (id, payload)), after };
        self.live.effects.push(self.applied(), Effect::Done(done));
    }

    pub(super) fn finished(&mut self, number: u64) {
        self.live.effects.push(self.applied(), Effect::Done(Done { number, ack: None, after: None }));
    }
}

fn is_join(packet: &Inbound) -> bool {
    matches!(packet, Inbound::Event { payload, .. } if payload.json.starts_with(b"[\"join\""))
}

fn is_leave(packet: &Inbound) -> bool {
    matches!(packet, Inbound::Event { payload, .. } if payload.json.starts_with(b"[\"leave\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Address, ClientIx, NodeId, Placement, ShardIx, Term};
    use crate::keys::{ClusterKey, IdKey};
    use crate::session::state::{SessionState, SessionsShared};
    use crate::wire::{self, EdgeRef, SessionIdentity, Shadow, ShadowRoom};

    fn shadow(inbound_confirmed: u64, inbound_sent: u64, own_seq: u64) -> Shadow {
        Shadow {
            term: Term::NONE,
            attached: [1, 0],
            inbound_confirmed,
            inbound_sent,
            own_seq,
            rooms: Vec::new(),
            everyone: None,
        }
    }

    type Alone = crate::host::Alone<SessionState>;

    fn attach(session: &mut Alone, shadow: &Shadow) {
        let edge = Address { node: NodeRef { id: NodeId(1), incarnation: 1 }, shard: ShardIx(0) };
        let edge = EdgeRef { attachment: 1, edge, client: ClientIx(0) };
        session.owned().attach(edge, shadow, false, true, &Limits::default(), None);
    }

    fn alone(state: SessionState) -> Alone {
        let shared = SessionsShared { ids: ids(), single_copy: Default::default() };
        Alone::new(state.identity.sid, state, shared)
    }

    fn ids() -> IdKey {
        IdKey::new(&ClusterKey::new([7; 32]))
    }

    fn session() -> Alone {
        let placement = Placement::of_user("chat", "alice");
        let ids = ids();
        let identity = SessionIdentity {
            sid: ids.seal_sid(placement, 1),
            pid: ids.seal_pid(placement, 1, [0; 16]),
            product: "chat".into(),
            uid: "alice".into(),
            namespace: "/".into(),
            resumable: false,
        };
        let mut session = alone(SessionState::new(identity));
        attach(&mut session, &shadow(0, 0, 0));
        session
    }

    /// The backup's copy, taken over.
    fn taken_over(session: &Alone) -> Alone {
        let copy: SessionState = wire::decode(&wire::encode(&session.state)).unwrap();
        assert_eq!(copy, session.state);
        alone(copy)
    }

    #[test]
    fn a_leave_and_a_join_repeated_to_a_backup_are_known() {
        let (mut owner, limits) = (session(), Limits::default());
        let own_seq = owner.owned().join(&limits, "r", 5).unwrap().unwrap();
        let at = Cursor { term: Term::NONE, seq: 3 };
        owner.owned().joined(own_seq, at);
        owner.owned().leave("r", 6);
        let again = owner.owned().join(&limits, "r", 7).unwrap();
        assert_eq!(again, Some(3));
        // The edge has seen the first join and nothing since.
        let mut backup = taken_over(&owner);
        attach(&mut backup, &shadow(5, 7, 1));
        let before = backup.state.clone();
        backup.owned().leave("r", 6);
        assert_eq!(backup.owned().join(&limits, "r", 7).unwrap(), again, "it waits for the same entry");
        assert_eq!(backup.state, before);
        let room = backup.state.room_key("r");
        assert_eq!(
            backup.state.own.between(1, 9).map(|(first, entries)| (first, entries.len())),
            Some((2, 2))
        );
        // What the client asks for now is done.
        backup.owned().leave("r", 8);
        assert!(!backup.state.is_member(&room));
        assert_eq!(backup.owned().join(&limits, "r", 7).unwrap(), None, "a join that is over");
        assert!(!backup.state.is_member(&room));
        backup.state.check_invariants(&limits);
    }

    #[test]
    fn a_backends_leave_before_the_edge_has_attached_is_after_all_it_has_sent() {
        let (mut owner, limits) = (session(), Limits::default());
        owner.owned().join(&limits, "r", 1).unwrap();
        let mut backup = taken_over(&owner);
        let number = backup.owned().next_packet();
        assert!(backup.owned().remove_room("r", AskedBy::Backend, number));
        attach(&mut backup, &shadow(1, 9, 1));
        let room = backup.state.room_key("r");
        assert!(backup.state.was_member(&room, 9), "it may have been carried out");
        assert!(!backup.state.was_member(&room, 10));
        assert_eq!(backup.owned().next_packet(), 10);
    }

    #[test]
    fn an_edge_that_has_carried_out_more_says_what_rooms_there_are() {
        let (mut owner, limits) = (session(), Limits::default());
        owner.owned().join(&limits, "r", 1).unwrap();
        let room = owner.state.room_key("other");
        let at = Cursor { term: Term::NONE, seq: 3 };
        attach(
            &mut owner,
            &Shadow {
                rooms: vec![ShadowRoom { room: room.clone(), own_seq: 1, joined: at }],
                ..shadow(4, 4, 6)
            },
        );
        assert!(owner.state.is_member(&room) && owner.state.rooms.len() == 1);
        assert_eq!(owner.owned().join(&limits, "r", 5).unwrap(), Some(7));
        owner.state.check_invariants(&limits);
    }

    #[test]
    fn only_so_many_leaves_are_remembered_and_what_is_forgotten_does_not_join_again() {
        let (mut owner, limits) = (session(), Limits::default());
        for number in 1..=40 {
            owner.owned().join(&limits, &format!("r{number}"), number).unwrap();
        }
        for number in 1..=40 {
            owner.owned().leave(&format!("r{number}"), 40 + number);
        }
        assert_eq!(owner.owned().join(&limits, "r1", 1).unwrap(), None);
        assert!(owner.state.rooms.is_empty());
        owner.state.check_invariants(&limits);
    }
}
