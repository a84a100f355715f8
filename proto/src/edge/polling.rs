//! Engine.IO sessions over long-polling.
//!
//! Belongs here: what is kept between two requests, GETs held and answered, POSTs taken, the last word.
//! Stays out: who forwards a request (`requests`), moving to a WebSocket (`upgrade`), HTTP (`node`).
//! Units: what no GET has taken counts as the client's queue; beyond its bound the client is behind.
//! Invariants: one GET and one POST at a time; a GET is answered with at least one packet; what a GET was
//! answered has reached the client when the next one comes.
//! Source: Engine.IO protocol 4, "HTTP long-polling"; FAULTS §3 rows 14–18.

use std::time::Duration;

use super::Edge;
use super::client::Client;
use super::requests::lane_of;
use crate::engineio;
use crate::id::{Address, ClientIx, EngineSid, NodeRef};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{CloseCode, Ctx, Output, Packet};
use crate::time::Instant;
use crate::wire::{Body, DetachReason, EngineRefusal, EngineRequest, EngineResponse, FromEngine, ToEngine};

/// A closed session waits this long for a GET that fetches the last word.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// A session that its client has closed waits this long for the GET that the client has sent beside its
/// goodbye, and that may have taken another way.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// What a client has just sent may be answered by several packets: they are waited for this long, to leave
/// together.
const GATHER_MAX: Duration = Duration::from_millis(20);

/// A GET that comes while a WebSocket tries the way is ended after this long, for the client to stop.
const NOOP_AFTER: Duration = Duration::from_millis(100);

/// What a polling session has between two requests.
#[derive(Debug)]
pub(super) struct Polling {
    pub(super) sid: EngineSid,
    /// What the next GET gets.
    queue: Vec<Packet>,
    bytes: usize,
    /// The GET that is held.
    poll: Option<Asker>,
    /// The POST that is answered when the client may send more.
    post: Option<Asker>,
    /// The last of each that was taken, as it was asked for first.
    last_poll: Option<Asker>,
    last_post: Option<Asker>,
    /// A WebSocket that tries the way, or is to take over.
    pub(super) probe: Option<Probe>,
    /// A WebSocket has been let in and may try the way until then.
    pub(super) reserved: Option<Instant>,
    /// When the held GET is to be ended.
    noop_due: Option<Instant>,
    /// When it is to be answered with what there is.
    answer_due: Option<Instant>,
    /// Closed: until when a GET may fetch the last word, and what the driver is told then.
    farewell: Option<(Instant, CloseCode)>,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asker {
    by: Address,
    call: u64,
}

/// A WebSocket of a polling client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Where it ends.
    pub(super) edge: Address,
    /// Which it is there.
    pub(super) client: ClientIx,
    /// It is to take over.
    pub(super) takes_over: bool,
}

impl Polling {
    pub(super) fn new(sid: EngineSid) -> Self {
        Self {
            sid,
            queue: Vec::new(),
            bytes: 0,
            poll: None,
            post: None,
            last_poll: None,
            last_post: None,
            probe: None,
            reserved: None,
            noop_due: None,
            answer_due: None,
            farewell: None,
        }
    }

    pub(super) fn push(&mut self, packet: Packet) {
        self.bytes += packet.len();
        self.queue.push(packet);
    }

    pub(super) fn take_queue(&mut self) -> Vec<Packet> {
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }

    /// Whether a WebSocket tries the way, or is about to.
    fn is_probed(&self, now: Instant) -> bool {
        self.probe.is_some() || self.reserved.is_some_and(|until| until > now)
    }

    /// Whether the held GET came before the WebSocket.
    pub(super) fn holds_older_get(&self) -> bool {
        self.noop_due.is_none()
    }

    /// Whether what is written now leaves at once.
    pub(super) fn is_open(&self) -> bool {
        self.poll.is_some()
    }

    /// When it is to be looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        let farewell = self.farewell.map(|(until, _)| until);
        [self.noop_due, self.answer_due, farewell].into_iter().flatten().min()
    }
}

impl Edge {
    /// The client of an Engine.IO session, also one that is closed and has not got the last word.
    pub(super) fn polling_client(&self, sid: &EngineSid) -> Option<ClientIx> {
        let &ix = self.by_engine.get(&sid.spread())?;
        let polling = self.clients[ix.0 as usize].as_deref()?.polling()?;
        (polling.sid == *sid).then_some(ix)
    }

    fn polling(&mut self, ix: ClientIx) -> Option<&mut Polling> {
        self.clients.get_mut(ix.0 as usize)?.as_deref_mut()?.polling_mut()
    }

    pub(crate) fn take_from_asker(&mut self, ctx: &mut Ctx<'_>, from: Address, message: ToEngine) {
        match message {
            ToEngine::Request { call, sid, request, again } => {
                let asker = Asker { by: from, call };
                let first = Asker { by: again.unwrap_or(from), call };
                if let Some(ix) = self.polling_client(&sid) {
                    // What is due comes before what has only just come.
                    self.client_due(ctx, ix);
                }
                match self.polling_client(&sid) {
                    Some(ix) if again.is_some() && self.has_come_again(ctx, ix, asker, first, &request) => {}
                    Some(ix) => self.engine_request(ctx, ix, asker, first, request),
                    None if self.has_upgraded(&sid) => refuse(ctx, &sid, asker, EngineRefusal::Upgraded),
                    None => refuse(ctx, &sid, asker, EngineRefusal::UnknownSid),
                }
            }
            ToEngine::Gone { call, sid } => self.asker_gone(ctx, &sid, Asker { by: from, call }),
            ToEngine::Release { call, sid } => {
                let asker = Asker { by: from, call };
                if let Some(ix) = self.polling_client(&sid)
                    && self.polling(ix).is_some_and(|polling| polling.poll == Some(asker))
                {
                    self.end_poll(ctx, ix);
                }
            }
            ToEngine::Probe { sid, client } => self.probed(ctx, from, sid, client),
            ToEngine::Upgrade { sid, client } => self.upgrade_asked(ctx, from, &sid, client),
            ToEngine::ProbeGone { sid, client } => self.probe_gone(from, &sid, client),
            ToEngine::Abandoned(sids) => self.abandoned(ctx, from, &sids),
        }
    }

    /// A request that an earlier life of this edge was asked as well, as `first`: whether it was taken then.
    /// A POST is not taken twice. A GET that has been answered may have reached nobody, and another one would
    /// say that it has.
    fn has_come_again(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        asker: Asker,
        first: Asker,
        request: &EngineRequest,
    ) -> bool {
        let Some(polling) = self.polling(ix).filter(|_| !is_planted(Mutant::PostTakenAgain)) else {
            return false;
        };
        let sid = polling.sid;
        match request {
            EngineRequest::Post(_) if polling.last_post == Some(first) => {
                self.answer_post(ctx, ix, &sid, asker);
            }
            EngineRequest::Poll if polling.last_poll == Some(first) => {
                refuse(ctx, &sid, asker, EngineRefusal::UnknownSid);
                self.close(ctx, ix, CloseCode::Normal, DetachReason::TransportClose);
            }
            _ => return false,
        }
        true
    }

    fn engine_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        asker: Asker,
        first: Asker,
        request: EngineRequest,
    ) {
        let upgrade_timeout = self.limits.upgrade_timeout;
        let Some(polling) = self.polling(ix) else { return };
        let sid = polling.sid;
        if polling.farewell.is_some() && request != EngineRequest::Poll {
            return refuse(ctx, &sid, asker, EngineRefusal::UnknownSid);
        }
        match request {
            EngineRequest::Poll if polling.poll.is_some() => self.overlap(ctx, ix, asker),
            EngineRequest::Post(_) if polling.post.is_some() => self.overlap(ctx, ix, asker),
            EngineRequest::Poll => {
                polling.last_poll = Some(first);
                self.poll(ctx, ix, asker);
            }
            EngineRequest::Post(body) => {
                polling.last_post = Some(first);
                self.post(ctx, ix, asker, &body);
            }
            EngineRequest::MayUpgrade if polling.is_probed(ctx.now) => {
                refuse(ctx, &sid, asker, EngineRefusal::Upgraded);
            }
            EngineRequest::MayUpgrade => {
                polling.reserved = Some(ctx.now + upgrade_timeout);
                answer(ctx, &sid, asker, EngineResponse::Taken);
            }
        }
    }

    /// Two requests of one kind at once: no client that follows the protocol does that.
    fn overlap(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, asker: Asker) {
        let Some(polling) = self.polling(ix) else { return };
        let sid = polling.sid;
        refuse(ctx, &sid, asker, EngineRefusal::BadRequest);
        ctx.stats.protocol_errors_total += 1;
        self.close(ctx, ix, CloseCode::ProtocolError, DetachReason::TransportError);
    }

    fn poll(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, asker: Asker) {
        // What the last one was answered has arrived.
        self.shown(ix);
        let now = ctx.now;
        let Some(polling) = self.polling(ix) else { return };
        polling.poll = Some(asker);
        if polling.is_probed(now) {
            polling.noop_due = Some(now + NOOP_AFTER);
        }
        let is_over = polling.farewell.is_some();
        if is_over {
            self.answer_poll(ctx, ix);
            return self.finish(ctx, ix);
        }
        self.answer_soon(ctx, ix);
        self.catch_up(ctx, ix);
        self.arm(ctx, ix);
    }

    fn post(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, asker: Asker, body: &bytes::Bytes) {
        let Some(polling) = self.polling(ix) else { return };
        let sid = polling.sid;
        let Ok(packets) = engineio::decode_payload(body) else {
            refuse(ctx, &sid, asker, EngineRefusal::BadRequest);
            ctx.stats.protocol_errors_total += 1;
            return self.close(ctx, ix, CloseCode::ProtocolError, DetachReason::ParseError);
        };
        for packet in packets {
            // One that ends the session ends the payload as well.
            self.packet(ctx, ix, packet);
        }
        self.answer_post(ctx, ix, &sid, asker);
    }

    /// Answers a POST that has been taken, now or when the client may send more.
    fn answer_post(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, sid: &EngineSid, asker: Asker) {
        if self.client(ix).is_some_and(|client| !client.may_read())
            && let Some(polling) = self.polling(ix)
        {
            polling.post = Some(asker);
            return;
        }
        answer(ctx, sid, asker, EngineResponse::Taken);
    }

    /// The client may send more: the POST that waited for that is answered.
    pub(super) fn end_post(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        if let Some(polling) = self.polling(ix)
            && let Some(asker) = polling.post.take()
        {
            let sid = polling.sid;
            answer(ctx, &sid, asker, EngineResponse::Taken);
        }
    }

    fn asker_gone(&mut self, ctx: &mut Ctx<'_>, sid: &EngineSid, asker: Asker) {
        let Some(ix) = self.polling_client(sid) else { return };
        let Some(polling) = self.polling(ix) else { return };
        if polling.post == Some(asker) {
            polling.post = None;
        } else if polling.poll == Some(asker) {
            polling.poll = None;
            // It may have been answered on its way: the client's offset knows.
            self.close(ctx, ix, CloseCode::Normal, DetachReason::TransportClose);
        }
    }

    /// Ends a held GET with what there is, at least with nothing in so many words.
    pub(super) fn end_poll(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let Some(polling) = self.polling(ix).filter(|polling| polling.is_open()) else { return };
        if polling.queue.is_empty() {
            polling.push(engineio::NOOP);
        }
        self.answer_poll(ctx, ix);
    }

    /// Ends a held GET with nothing.
    pub(super) fn refuse_poll(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        if let Some(polling) = self.polling(ix)
            && let Some(asker) = polling.poll.take()
        {
            let sid = polling.sid;
            refuse(ctx, &sid, asker, EngineRefusal::Upgraded);
        }
    }

    /// Answers the held GET with all there is.
    fn answer_poll(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let Some(polling) = self.polling(ix).filter(|polling| !polling.queue.is_empty()) else { return };
        let Some(asker) = polling.poll.take() else { return };
        let payload = engineio::encode_payload(&polling.take_queue());
        (polling.noop_due, polling.answer_due) = (None, None);
        let sid = polling.sid;
        answer(ctx, &sid, asker, EngineResponse::Packets(payload));
        self.pinged(ix);
        if is_planted(Mutant::AnswerTakenForArrived) {
            self.shown(ix);
        }
        self.left_over(ctx, ix, 0);
    }

    /// Queues one message for a polling client.
    pub(super) fn write_polling(&mut self, ix: ClientIx, packet: Packet) {
        if let Some(polling) = self.polling(ix) {
            polling.push(packet);
            self.polls_written.insert(ix);
        }
    }

    /// What this turn has written leaves where a GET is held. Returns whether there was anything.
    pub(super) fn flush_polls(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let written = std::mem::take(&mut self.polls_written);
        for &ix in &written {
            let Some(polling) = self.polling(ix) else { continue };
            if polling.is_open() {
                self.answer_soon(ctx, ix);
            } else {
                let bytes = polling.bytes;
                self.left_over(ctx, ix, bytes);
            }
            self.arm(ctx, ix);
        }
        !written.is_empty()
    }

    /// Answers the held GET, if there is something: now, or when what the client has just sent is done.
    fn answer_soon(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let is_busy = self.sessions_of(ix).iter().any(|index| self.sessions[*index as usize].is_busy());
        let now = ctx.now;
        let Some(polling) = self.polling(ix).filter(|polling| polling.is_open()) else { return };
        if polling.queue.is_empty() {
            return;
        }
        let due = *polling.answer_due.get_or_insert(if is_busy { now + GATHER_MAX } else { now });
        if !is_busy || due <= now {
            self.answer_poll(ctx, ix);
            self.catch_up(ctx, ix);
        }
    }

    /// Something that a polling client has sent is done.
    pub(super) fn look_at_poll(&mut self, ix: ClientIx) {
        if self.polling(ix).is_some_and(|polling| polling.answer_due.is_some()) {
            self.polls_written.insert(ix);
        }
    }

    fn left_over(&mut self, ctx: &Ctx<'_>, ix: ClientIx, left: usize) {
        let (turn, limits) = (self.turn, self.limits.clone());
        if let Some(client) = self.client(ix) {
            client.left_over(ctx.now, turn, left, &limits);
        }
    }

    /// What is due for a polling client besides what is due for all.
    pub(super) fn polling_due(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let now = ctx.now;
        let Some(polling) = self.polling(ix) else { return };
        if polling.noop_due.is_some_and(|due| due <= now) {
            polling.noop_due = None;
            self.end_poll(ctx, ix);
        }
        if self.polling(ix).and_then(|polling| polling.answer_due).is_some_and(|due| due <= now) {
            self.answer_soon(ctx, ix);
        }
        let farewell = self.polling(ix).and_then(|polling| polling.farewell);
        if farewell.is_some_and(|(until, _)| until <= now) {
            self.finish(ctx, ix);
        }
    }

    /// A polling client is closed. The last word leaves by the held GET. If there is none, it waits for one
    /// only if the client would come back without it; else the session is unknown from now on.
    pub(super) fn say_farewell(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, code: CloseCode) {
        let said_by_client = code == CloseCode::Normal;
        let until = ctx.now + if said_by_client { GOODBYE_MAX } else { FAREWELL_MAX };
        self.end_post(ctx, ix);
        let Some(polling) = self.polling(ix) else { return };
        // A client that has said goodbye itself waits only for its GET to end.
        polling.push(if said_by_client { engineio::NOOP } else { engineio::CLOSE });
        polling.farewell = Some((until, code));
        let is_open = polling.is_open();
        if is_open {
            self.answer_poll(ctx, ix);
        }
        if is_open || (code.may_reconnect() && !said_by_client) {
            return self.finish(ctx, ix);
        }
        ctx.timers.set(until, crate::shard::TimerKey::Client(ix));
    }

    /// Nobody comes for it any more: the driver may forget it.
    fn finish(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        if let Some(polling) = self.polling(ix)
            && let Some((_, code)) = polling.farewell
        {
            let spread = polling.sid.spread();
            self.by_engine.remove(&spread);
            ctx.out.push(Output::Close(ix, code));
        }
    }

    /// Answers under way to nodes for which `lost` holds reach nobody.
    pub(super) fn askers_lost(&mut self, ctx: &mut Ctx<'_>, lost: impl Fn(NodeRef) -> bool) {
        let waits = |client: &&mut Box<Client>| {
            let polling = client.polling();
            polling.and_then(|p| p.poll).is_some_and(|asker| lost(asker.by.node))
        };
        let clients = self.clients.iter_mut().flatten().filter(waits);
        let broken: Vec<ClientIx> = clients.map(|client| client.ix).collect();
        for ix in broken {
            if let Some(polling) = self.polling(ix) {
                polling.poll = None;
            }
            self.close(ctx, ix, CloseCode::Normal, DetachReason::TransportClose);
        }
        for client in self.clients.iter_mut().flatten() {
            if let Some(polling) = client.polling_mut() {
                polling.post.take_if(|asker| lost(asker.by.node));
                polling.probe.take_if(|probe| lost(probe.edge.node));
            }
        }
    }

    pub(super) fn check_polling(&self, client: &Client) {
        let Some(polling) = client.polling() else { return };
        assert_eq!(polling.bytes, polling.queue.iter().map(Packet::len).sum::<usize>());
        assert!(client.closing || polling.farewell.is_none(), "open after the last word");
        let is_quiet = polling.queue.is_empty() || polling.answer_due.is_some();
        assert!(polling.poll.is_none() || is_quiet, "a held GET, and something to say");
    }
}

fn answer(ctx: &mut Ctx<'_>, sid: &EngineSid, to: Asker, response: EngineResponse) {
    let answer = FromEngine::Answer { call: to.call, response };
    ctx.out.send_to_address(to.by, lane_of(sid), Body::FromEngine(answer));
}

fn refuse(ctx: &mut Ctx<'_>, sid: &EngineSid, to: Asker, why: EngineRefusal) {
    answer(ctx, sid, to, EngineResponse::Refused(why));
}
