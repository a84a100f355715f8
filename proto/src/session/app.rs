//! Sessions of products with code of their own: asking it, and carrying out what it wants.
//!
//! Belongs here: the question under way, its commands one by one, when it is done.
//! Stays out: running the code (drivers), what a command means for rooms and own log (`run`, `state`).
//! Order: a join is in force at the edge before the next command; publishes do not wait for each other;
//! the event is done, and its answer leaves, when all of them are safe.
//! Repeats: each command has a number within its packet. What a former owner has done of it is in the state
//! (`SessionState::did`) and not done again; a publish is known to its room by the same numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Sessions;
use super::live::{Effect, Open, Session, Wait};
use super::state::{Join, SessionState};
use crate::id::{Cursor, PublishId, RoomKey, SocketSid};
use crate::limits::Limits;
use crate::product::rooms::check_room_name;
use crate::room;
use crate::shard::{AppCall, AppCommand, AppEvent, AppOutcome, AppThen, Asker, Ctx, Output, asks_of};
use crate::wire::{AskedBy, DetachReason, Gathered, Payload, Publish, RoomEvent, SessionOp, SessionToEdge};

/// Answers of one client awaited at once; the oldest is given up beyond it.
const ASKED_MAX: usize = 10_000;

/// A question under way.
#[derive(Debug)]
pub(super) struct Asking {
    call: u64,
    /// It is about letting the session in.
    admission: bool,
    /// The session is not in yet; the edge's packets up to here are done.
    admits: Option<u64>,
    commands: VecDeque<AppCommand>,
    /// Number of the next command.
    next: u32,
    /// Nothing more will come, and this is the answer.
    answer: Option<Option<Payload>>,
    /// The last of its publishes that its own client gets.
    after: Option<(RoomKey, Cursor)>,
}

impl Sessions {
    /// Asks the application about a session that wants to connect.
    pub(super) fn ask_to_admit(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid, confirmed: u64, auth: Bytes) {
        let call = self.next_call();
        if let Some(mut session) = self.host.owned(&sid) {
            session.ask(ctx, call, confirmed, None, Some(confirmed), AppEvent::Connect { auth });
        }
    }

    pub(super) fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    /// Its transport is gone: nobody answers it any more, and its client may come back.
    pub(super) fn lost_transport(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid, reason: DetachReason) {
        let Some(mut session) = self.host.owned(&sid) else { return };
        session.give_up_asked(ctx);
        if !session.state.ended && session.state.identity.resumable {
            self.tell_app(ctx, &sid, AppEvent::Detach(reason));
        }
    }

    /// Tells the application what has become of a session that it has let in.
    pub(super) fn tell_app(&self, ctx: &mut Ctx<'_>, sid: &SocketSid, event: AppEvent) {
        let Some(state) = self.host.copy(sid) else { return };
        if state.admitted {
            ctx.out.push(Output::App(Box::new(app_call(state, None, event))));
        }
    }

    /// The application answers. A session that is not here any more is asked about elsewhere.
    pub(crate) fn on_app(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid, call: u64, outcome: AppOutcome) {
        let placement = self.ids.placement_of(sid);
        let Some(mut session) = self.host.owned(&sid) else { return };
        let Some(asking) = session.asking().filter(|asking| asking.call == call) else { return };
        asking.commands.extend(outcome.commands);
        let mut admits = asking.admits;
        match outcome.then {
            AppThen::More => {}
            AppThen::Done(answer) => asking.answer = Some(answer),
            AppThen::Refuse(message, data) => {
                let attachment = session.state.attachment;
                let refused = SessionToEdge::Refused { sid, attachment, message, data };
                session.send(placement, refused, ctx.out);
                session.live.open.clear();
                session.op(SessionOp::Park { over: true });
                self.unindex(&sid);
                self.dirty.insert(sid);
                admits = None;
            }
        }
        if let Some(mut session) = self.host.owned(&sid)
            && let Some(confirmed) = admits
        {
            session.admit(confirmed);
        }
        self.run(ctx, sid);
    }
}

/// What the application is told of a session with an event; with `call`, it is to answer.
fn app_call(state: &SessionState, call: Option<u64>, event: AppEvent) -> AppCall {
    AppCall {
        call,
        identity: state.identity.clone(),
        data: state.data.clone(),
        rooms: state.rooms.iter().map(|m| m.room.room().into()).collect(),
        event,
    }
}

impl Session<'_> {
    fn asking(&mut self) -> Option<&mut Asking> {
        self.live.open.iter_mut().find_map(|open| match &mut open.waits_for {
            Wait::App(asking) => Some(&mut **asking),
            _ => None,
        })
    }

    /// Whether the application is at work for this session.
    pub(super) fn is_asking(&self) -> bool {
        self.live.open.iter().any(|open| matches!(open.waits_for, Wait::App(_)))
    }

    pub(super) fn ask(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: u64,
        number: u64,
        ack: Option<u64>,
        admits: Option<u64>,
        event: AppEvent,
    ) {
        ctx.out.push(Output::App(Box::new(app_call(self.state, Some(call), event))));
        let asking = Asking {
            call,
            admission: admits.is_some(),
            admits,
            commands: VecDeque::new(),
            next: 0,
            answer: None,
            after: None,
        };
        self.live.open.push_back(Open { number, ack, waits_for: Wait::App(Box::new(asking)) });
    }

    /// Carries out commands as far as they may go. Whether the session is to end.
    pub(super) fn step_app(&mut self, ctx: &mut Ctx<'_>, limits: &Limits) -> Option<bool> {
        let mut ends = None;
        while let Some(number) = self.number_asked()
            && !self.live.open.iter().any(|open| matches!(open.waits_for, Wait::AppJoin { .. }))
            && !self.waits_for_its_publish(number)
            && let Some(asking) = self.asking()
            && let Some(command) = asking.commands.pop_front()
        {
            let index = asking.next;
            asking.next += 1;
            match command {
                AppCommand::Emit { payload, volatile, asks } => {
                    self.emit_for_app(ctx, (number, index), payload, volatile, asks);
                }
                AppCommand::Publish { rooms, payload, except_sids, except_rooms, volatile, asks } => {
                    // Who is to answer has to be known: a volatile event is in no log.
                    let volatile = volatile && asks.is_none();
                    let event = RoomEvent { except_sids, except_rooms, volatile, ..RoomEvent::new(payload) };
                    self.publish_to_rooms(ctx, (number, index), rooms, event, asks);
                }
                AppCommand::Act { rooms, action, except_sids, except_rooms } => {
                    let asks = asks_of(ctx.out.me, None, 0, Some(action));
                    let none = RoomEvent::new(Payload::json("[]"));
                    let event = RoomEvent { except_sids, except_rooms, asks, ..none };
                    self.publish_to_rooms(ctx, (number, index), rooms, event, None);
                }
                AppCommand::Join(name) => self.join_for_app(limits, (number, index), &name),
                AppCommand::Leave(name) => {
                    let room = self.state.room_key(&name);
                    let (by, next) = (AskedBy::Backend, self.next_packet());
                    self.op_of(number, index, SessionOp::Leave { room, by, number: next });
                }
                AppCommand::SetData(data) => self.op_of(number, index, SessionOp::SetData(data)),
                AppCommand::Disconnect { close } => ends = Some(close),
            }
        }
        self.send_held(ctx);
        self.finish_app();
        ends
    }

    pub(super) fn number_asked(&self) -> Option<u64> {
        self.live.open.iter().find(|open| matches!(open.waits_for, Wait::App(_))).map(|open| open.number)
    }

    /// Whether the next command is for the client alone and follows a publish of the same code that the
    /// client gets as well: where that is, is to be known first.
    fn waits_for_its_publish(&mut self, number: u64) -> bool {
        let next = self.asking().and_then(|asking| asking.commands.front());
        if !matches!(next, Some(AppCommand::Emit { .. })) {
            return false;
        }
        self.live.open.iter().any(|open| match &open.waits_for {
            Wait::Publish { publish, .. } => {
                let gets = publish.room.is_everyone() || self.state.is_member(&publish.room);
                open.number == number && gets && !publish.event.volatile
            }
            _ => false,
        })
    }

    /// An op of command `index` of packet `number`: it takes effect once.
    fn op_of(&mut self, number: u64, index: u32, op: SessionOp) {
        if !self.state.has_done(number, index) {
            self.op(SessionOp::Did { number, index, op: Box::new(op) });
        }
    }

    fn emit_for_app(
        &mut self,
        ctx: &mut Ctx<'_>,
        (number, index): (u64, u32),
        payload: Payload,
        volatile: bool,
        asks: Option<u64>,
    ) {
        let is_new = !self.state.has_done(number, index);
        let after = self.asking().and_then(|asking| asking.after.clone());
        self.op_of(
            number,
            index,
            SessionOp::Emit { payload, volatile, key: None, asks: asks.is_some(), after },
        );
        let Some(name) = asks else { return };
        if is_new && !self.is_parked() {
            self.live.asked.insert(self.state.own.last(), name);
            if self.live.asked.len() > ASKED_MAX
                && let Some((_, oldest)) = self.live.asked.pop_first()
            {
                ctx.out.push(Output::AppAnswered(oldest, None));
            }
        } else {
            // A former owner has sent it, or there is nobody to answer.
            ctx.out.push(Output::AppAnswered(name, None));
        }
    }

    /// The client's answer to the event that is own-log entry `id`.
    pub(super) fn client_answered(&mut self, ctx: &mut Ctx<'_>, id: u64, payload: Payload) {
        if let Some(name) = self.live.asked.remove(&id) {
            ctx.out.push(Output::AppAnswered(name, Some(payload)));
        }
    }

    /// Nobody is there to answer any more.
    pub(super) fn give_up_asked(&mut self, ctx: &mut Ctx<'_>) {
        for (_, name) in std::mem::take(&mut self.live.asked) {
            ctx.out.push(Output::AppAnswered(name, None));
        }
    }

    fn publish_to_rooms(
        &mut self,
        ctx: &mut Ctx<'_>,
        (number, index): (u64, u32),
        rooms: Vec<Arc<str>>,
        mut event: RoomEvent,
        asks: Option<(u64, Duration)>,
    ) {
        let keys: Vec<RoomKey> = if rooms.is_empty() {
            vec![room::everyone(&self.state.identity.product, &self.state.identity.namespace)]
        } else {
            rooms.iter().map(|name| self.state.room_key(name)).collect()
        };
        if keys.len() > 1 {
            event.also = rooms;
        }
        if let Some((asker, within)) = asks {
            let Some(name) = ctx.ask(Asker::App(asker), keys.iter().cloned(), within) else {
                let unserved = u32::try_from(keys.len()).unwrap_or(u32::MAX);
                let none = Gathered { unserved, ..Gathered::default() };
                return ctx.out.push(Output::AppGathered(asker, none));
            };
            let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
            event.asks = asks_of(name.by, Some(name), within_ms, None);
        }
        let id = PublishId::Session { sid: self.state.identity.sid, number, index };
        for room in keys {
            let publish = Publish { room, id, dedupe: None, event: event.clone(), after: None };
            let needs = self.applied();
            let waits_for = Wait::Publish { publish: Box::new(publish), sent_to: None, needs };
            self.live.open.push_back(Open { number, ack: None, waits_for });
        }
    }

    fn join_for_app(&mut self, limits: &Limits, (number, index): (u64, u32), name: &str) {
        let room = self.state.room_key(name);
        let fits = self.state.rooms.len() < limits.rooms_per_session_max;
        if check_room_name(name, limits).is_err() || (!fits && !self.state.is_member(&room)) {
            // The application was told when it asked for it.
            return;
        }
        let by = AskedBy::Backend;
        self.op_of(number, index, SessionOp::Join { room: room.clone(), by, number: 0 });
        if let Some(Join::Asked(own_seq)) = self.state.membership(&room).map(|m| m.join)
            && self.live.attached
            && !self.is_parked()
        {
            self.live.open.push_back(Open { number, ack: None, waits_for: Wait::AppJoin { own_seq } });
        }
    }

    /// A publish of packet `number` is safe.
    pub(super) fn published_for_app(&mut self, number: u64, room: &RoomKey, at: Option<Cursor>) {
        let is_member = self.state.is_member(room);
        if self.number_asked() == Some(number)
            && let Some(asking) = self.asking()
            && let Some(at) = at.filter(|_| is_member)
        {
            asking.after = Some((room.clone(), at));
        }
    }

    /// The question is over when nothing of it is under way.
    fn finish_app(&mut self) {
        let Some(number) = self.number_asked() else { return };
        let under_way = self.live.open.iter().filter(|open| open.number == number).count();
        let is_over = self.asking().is_some_and(|a| a.answer.is_some() && a.commands.is_empty());
        if !is_over || under_way > 1 {
            return;
        }
        let place = self.live.open.iter().position(|open| matches!(open.waits_for, Wait::App(_)));
        let Some(Open { ack, waits_for: Wait::App(asking), .. }) =
            place.and_then(|place| self.live.open.remove(place))
        else {
            return;
        };
        match asking.answer.flatten() {
            _ if asking.admission => {}
            Some(answer) => self.done(number, ack, answer, asking.after),
            // The code answered nothing: the client's wait ends by its own timeout, as in Socket.IO.
            None => self.finished(number),
        }
    }

    /// The session is let in, and its client told: joins of the code need an edge to put them in force.
    fn admit(&mut self, inbound_confirmed: u64) {
        if let Some(asking) = self.asking() {
            asking.admits = None;
        }
        self.op(SessionOp::Admit);
        let (applied, own) = (self.applied(), self.state.own.last());
        let attached = self.state.attached;
        self.live.effects.push(applied, Effect::Attached { inbound_confirmed, attached });
        self.live.effects.push(applied, Effect::Own(own));
    }
}
