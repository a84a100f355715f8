//! The edge: where clients' transports end.
//!
//! Belongs here: Engine.IO and plain clients, what they send numbered and repeated until confirmed, what
//! they are owed in order, the tails of rooms with local members.
//! Stays out: what an event means (`session`), order within a room (`room`), sockets.
//! Units: client queues in bytes; tails in entries and bytes.
//! Invariants: a client is written to by one path and in order; positions per (client, room) rise; a
//! move or crash of an owner closes no transport.
//! When it breaks: an owner that moves or dies is attached to and subscribed at anew, with what it needs
//! to go on (shadow, cursors), and what it had not confirmed is repeated before anything new.

mod actions;
mod asks;
mod attach;
mod carried;
mod client;
mod deliver;
mod departed;
mod identify;
mod inbound;
mod moving;
mod older;
mod polling;
mod readers;
mod requests;
mod resume;
mod session;
mod tail;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::Rng as _;
use rand::rngs::StdRng;
use slab::Slab;

use crate::collections::FixedMap;
use crate::engineio;
use crate::id::{Address, ClientIx, EngineSid, RoomKey, SocketSid};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::marks::Marks;
use crate::plain;
use crate::shard::{
    Admission, Budget, ClientGone, ClientProtocol, CloseCode, Ctx, NewClient, Output, Packet, ProductRules,
    RequestIx, Transport,
};
use crate::time::Instant;
use crate::wire::{Body, DetachReason, EngineResponse, Member, Members, ToSession};
use asks::Asks;
use client::{Carrier, Client, Due, Silence};
use departed::Departed;
use moving::Moving;
use polling::Polling;
use requests::Requests;
use resume::Resuming;
use session::EdgeSession;
use tail::Tail;
use upgrade::Handed;

/// The namespace of plain clients, and of Socket.IO clients that name none.
const MAIN_NAMESPACE: &str = "/";

/// Marks of chunks kept before they are looked through.
const CHUNK_MARKS_MAX: usize = 1_024;

/// The edge of one shard.
#[derive(Debug)]
pub(crate) struct Edge {
    me: Address,
    node_name: Arc<str>,
    limits: Arc<Limits>,
    ids: IdKey,
    rng: StdRng,
    clients: Vec<Option<Box<Client>>>,
    client_count: usize,
    sessions: Slab<Box<EdgeSession>>,
    by_sid: FixedMap<SocketSid, u32>,
    tails: Slab<Box<Tail>>,
    by_room: FixedMap<RoomKey, u32>,
    tail_bytes: usize,
    departed: Departed,
    /// Tails by their oldest entry: the oldest of all go first at the bound.
    by_age: Marks<u32>,
    /// Tails with older entries, or readers of them.
    with_older: BTreeSet<u32>,
    /// Where the next step of a sweep goes on: among the tails, and among those with older entries.
    sweep_from: usize,
    older_from: u32,
    /// Chunks of older entries in the order they came (tail, chunk): they go before any of the above.
    chunk_ages: VecDeque<(u32, u64)>,
    /// Chunks so far.
    chunks: u64,
    /// Turns of the driver: within one, nothing has drained.
    turn: u64,
    /// Clients that are served by their cursors.
    behind: BTreeSet<ClientIx>,
    /// Sessions with something for their owner at the end of this turn.
    dirty: BTreeSet<u32>,
    /// Sessions whose owner is told at the next sweep what the client has been handed.
    unreported: BTreeSet<u32>,
    /// Sessions and rooms whose owner bounced us: asked again at the next retry.
    bounced_sessions: BTreeSet<SocketSid>,
    bounced_rooms: BTreeSet<RoomKey>,
    /// Sessions asked for on behalf of clients that come back, by question.
    resuming: BTreeMap<u64, Resuming>,
    /// Questions who a client is, so far: the last one's name.
    identities_asked: u64,
    resumes_asked: u64,
    /// Subscriptions asked for.
    asked: u64,
    /// What members of rooms are to answer.
    asks: Asks,
    /// What follows the ring to another owner.
    moving: Moving,
    /// Where offsets are put together.
    scratch: Vec<u8>,
    products: FixedMap<Arc<str>, Arc<ProductRules>>,
    /// Requests of polling clients that came in here.
    requests: Requests,
    /// Polling clients of this shard by a part of their session's id.
    by_engine: FixedMap<u64, ClientIx>,
    /// Those that this turn has written to.
    polls_written: BTreeSet<ClientIx>,
    /// Those to be handed to another edge as soon as they can be.
    upgrades_due: BTreeSet<ClientIx>,
    /// Sessions handed to other edges lately.
    handed: VecDeque<Handed>,
    /// Polling sessions that have lately gone on over WebSockets.
    upgraded: VecDeque<(Instant, EngineSid)>,
    /// Clients to be closed for a restart go in this order.
    close_from: usize,
}

fn by_name(products: &[Arc<ProductRules>]) -> FixedMap<Arc<str>, Arc<ProductRules>> {
    products.iter().map(|rules| (rules.name.clone(), rules.clone())).collect()
}

impl Edge {
    pub(crate) fn new(
        me: Address,
        node_name: Arc<str>,
        limits: &Limits,
        ids: IdKey,
        products: &[Arc<ProductRules>],
        mut rng: StdRng,
    ) -> Self {
        let asks = Asks::new(rng.next_u32());
        Self {
            me,
            node_name,
            limits: Arc::new(limits.clone()),
            ids,
            rng,
            clients: Vec::new(),
            client_count: 0,
            sessions: Slab::new(),
            by_sid: FixedMap::default(),
            tails: Slab::new(),
            by_room: FixedMap::default(),
            tail_bytes: 0,
            departed: Departed::default(),
            by_age: Marks::default(),
            with_older: BTreeSet::new(),
            sweep_from: 0,
            older_from: 0,
            chunk_ages: VecDeque::new(),
            chunks: 0,
            turn: 1,
            behind: BTreeSet::new(),
            dirty: BTreeSet::new(),
            unreported: BTreeSet::new(),
            bounced_sessions: BTreeSet::new(),
            bounced_rooms: BTreeSet::new(),
            resuming: BTreeMap::new(),
            identities_asked: 0,
            resumes_asked: 0,
            asked: 0,
            asks,
            moving: Moving::default(),
            scratch: Vec::new(),
            products: by_name(products),
            requests: Requests::default(),
            by_engine: FixedMap::default(),
            polls_written: BTreeSet::new(),
            upgrades_due: BTreeSet::new(),
            handed: VecDeque::new(),
            upgraded: VecDeque::new(),
            close_from: 0,
        }
    }

    /// New rules, or new products; those that are not named stay.
    pub(crate) fn learn_products(&mut self, products: &[Arc<ProductRules>]) {
        self.products.extend(by_name(products));
    }

    pub(crate) fn client_count(&self) -> usize {
        self.client_count
    }

    pub(crate) fn tail_count(&self) -> usize {
        self.tails.len()
    }

    /// Whether there is anything to look through now and then.
    pub(crate) fn has_to_sweep(&self) -> bool {
        !self.tails.is_empty()
            || !self.departed.is_empty()
            || !self.asks.is_empty()
            || self.has_requests()
            || !self.handed.is_empty()
            || !self.upgraded.is_empty()
    }

    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    fn client(&mut self, ix: ClientIx) -> Option<&mut Client> {
        self.clients.get_mut(ix.0 as usize)?.as_deref_mut().filter(|c| !c.closing)
    }

    /// The client of a session; a session never outlives its client.
    fn client_of(&mut self, session: u32) -> &mut Client {
        let ix = self.sessions[session as usize].client;
        self.clients[ix.0 as usize].as_deref_mut().expect("a session never outlives its client")
    }

    pub(crate) fn opened(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, mut new: NewClient) {
        // Only Socket.IO has something to ask.
        if new.protocol != ClientProtocol::SocketIo {
            new.admission = new.admission.and_then(Admission::without_auth);
        }
        let at = ix.0 as usize;
        if self.clients.len() <= at {
            self.clients.resize_with(at + 1, || None);
        }
        assert!(self.clients[at].is_none(), "client {ix:?} was given out twice");
        let protocol = new.protocol;
        let refused = new.admission.as_ref().err().cloned();
        let sid = EngineSid::new(self.me.node.id, self.me.shard, self.random());
        let carrier = match new.transport {
            Transport::WebSocket => Some(Carrier::WebSocket),
            Transport::Polling(_) => Some(Carrier::Polling(Box::new(Polling::new(sid)))),
            Transport::Upgrade(of) => Self::upgrading(ctx, of).map(|it| Carrier::Upgrading(Box::new(it))),
        };
        let (request, is_upgrade) = match new.transport {
            Transport::Polling(request) => (Some(request), false),
            Transport::WebSocket => (None, false),
            Transport::Upgrade(_) => (None, true),
        };
        let is_nowhere = carrier.is_none();
        let carrier = carrier.unwrap_or(Carrier::WebSocket);
        self.clients[at] = Some(Box::new(Client::new(ctx.now, ix, new, carrier, &self.limits)));
        self.client_count += 1;
        if is_nowhere {
            return self.close(ctx, ix, CloseCode::ProtocolError, DetachReason::TransportClose);
        }
        match (protocol, refused) {
            (ClientProtocol::SocketIo | ClientProtocol::EngineIo, _) if is_upgrade => {}
            // Whom it refuses is told when they ask for a namespace.
            (ClientProtocol::SocketIo, _) => self.open_engine(ctx, ix, &sid, request),
            (ClientProtocol::EngineIo, Some(_)) => {
                self.open_engine(ctx, ix, &sid, request);
                self.close(ctx, ix, CloseCode::Refused, DetachReason::ServerDisconnect);
            }
            (ClientProtocol::EngineIo, None) => {
                self.open_engine(ctx, ix, &sid, request);
                self.connect(ctx, ix, &engineio::BARE_NAMESPACE.into());
            }
            (ClientProtocol::Plain, Some(refusal)) => {
                self.write(ctx, ix, plain::encode_error(&refusal.code, &refusal.message));
                self.close(ctx, ix, CloseCode::Refused, DetachReason::ServerDisconnect);
            }
            (ClientProtocol::Plain, None) => self.connect(ctx, ix, &MAIN_NAMESPACE.into()),
        }
        self.arm(ctx, ix);
    }

    /// Sends the open packet: as the answer to `request`, if the client polls.
    fn open_engine(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, sid: &EngineSid, request: Option<RequestIx>) {
        let limits = &self.limits;
        let upgrades: &[&str] = if request.is_some() { &["websocket"] } else { &[] };
        let open = Packet::Text(engineio::open_packet(
            &sid.expose_text(),
            limits.ping_interval,
            limits.ping_timeout,
            limits.message_bytes_max,
            upgrades,
        ));
        match request {
            None => self.write(ctx, ix, open),
            Some(request) => {
                self.by_engine.insert(sid.spread(), ix);
                let open = engineio::encode_payload(&[open]);
                ctx.out.push(Output::Respond(request, EngineResponse::Packets(open)));
            }
        }
    }

    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn gone(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, gone: ClientGone) {
        let reason = match gone {
            ClientGone::Closed => DetachReason::TransportClose,
            ClientGone::Error => DetachReason::TransportError,
        };
        self.end_sessions(ctx, ix, reason);
        self.forget_resumes(ix);
        self.upgrade_ends(ctx, ix);
        if let Some(client) = self.clients.get_mut(ix.0 as usize).and_then(Option::take) {
            self.client_count -= 1;
            if let Some(polling) = client.polling() {
                self.by_engine.remove(&polling.sid.spread());
            }
        }
        self.polls_written.remove(&ix);
        self.upgrades_due.remove(&ix);
        self.behind.remove(&ix);
    }

    /// The driver has written what it could.
    pub(crate) fn queue_left(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, left: usize) {
        let (turn, limits) = (self.turn, self.limits.clone());
        let Some(client) = self.client(ix) else { return };
        client.left_over(ctx.now, turn, left, &limits);
        if left == 0 {
            self.catch_up(ctx, ix);
        }
        self.arm(ctx, ix);
    }

    /// The driver begins to write: what comes after is another turn.
    pub(crate) fn turn_ends(&mut self) {
        self.turn += 1;
        self.moving_turn_ends();
    }

    /// Whether some client that is behind could be served right away.
    pub(crate) fn has_ready_behind(&self) -> bool {
        self.behind
            .iter()
            .any(|ix| self.clients[ix.0 as usize].as_deref().is_some_and(Client::could_be_served))
    }

    /// Serves those who are behind and whose queue has drained.
    pub(crate) fn catch_up_all(&mut self, ctx: &mut Ctx<'_>) {
        let behind: Vec<ClientIx> = self.behind.iter().copied().collect();
        for ix in behind {
            if self.client(ix).is_some_and(|c| c.could_be_served()) {
                self.catch_up(ctx, ix);
            }
        }
    }

    pub(crate) fn client_due(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        self.polling_due(ctx, ix);
        let limits = self.limits.clone();
        let Some(client) = self.client(ix) else { return };
        client.woken(ctx.now);
        while let Some(due) = self.client(ix).and_then(|c| c.due(ctx.now, &limits)) {
            match due {
                Due::Ping => {
                    self.ping(ctx, ix);
                }
                Due::Resume => self.resume_reading(ctx, ix),
                Due::ResumeIsLate => self.resume_is_late(ctx, ix),
                Due::Stalled => {
                    ctx.stats.too_slow_total += 1;
                    self.close(ctx, ix, CloseCode::TooSlow, DetachReason::TransportClose);
                }
                Due::TimedOut(silence) => {
                    let reason = match silence {
                        Silence::Pong => DetachReason::PingTimeout,
                        Silence::Connect => DetachReason::TransportClose,
                        Silence::Attachments => DetachReason::ParseError,
                    };
                    self.close(ctx, ix, CloseCode::Timeout, reason);
                }
            }
        }
        self.arm(ctx, ix);
    }

    fn arm(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let limits = self.limits.clone();
        if let Some(client) = self.client(ix) {
            client.arm(ctx.timers, &limits);
        }
    }

    /// Answers a packet that no owner sees. It counts as an event, so that asking is bounded as well; a
    /// client that asks on and takes no answers is closed.
    fn reply(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, packet: Packet) {
        let (turn, limits) = (self.turn, self.limits.clone());
        let Some(client) = self.client(ix) else { return };
        if !client.fits(turn, packet.len(), &limits) {
            ctx.stats.too_slow_total += 1;
            return self.close(ctx, ix, CloseCode::TooSlow, DetachReason::TransportClose);
        }
        if client.count_event(ctx.now, &limits) {
            self.pause_reading(ctx, ix);
        }
        self.write(ctx, ix, packet);
    }

    /// Nothing more is taken of a client for now. A polling client notices when its POST is not answered.
    fn pause_reading(&self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let client = self.clients[ix.0 as usize].as_deref();
        if client.is_some_and(|client| client.polling().is_none()) {
            ctx.out.push(Output::PauseReading(ix));
        }
    }

    fn resume_reading(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let client = self.clients[ix.0 as usize].as_deref();
        if client.is_some_and(|client| client.polling().is_some()) {
            self.end_post(ctx, ix);
        } else {
            ctx.out.push(Output::ResumeReading(ix));
        }
    }

    /// Queues one message, whatever the client's queue holds: for what is small and rare.
    fn write(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, packet: Packet) {
        let turn = self.turn;
        let Some(client) = self.client(ix) else { return };
        client.count_queued(turn, packet.len());
        if client.polling().is_some() {
            self.write_polling(ix, packet);
        } else {
            ctx.out.push(Output::Write(ix, packet));
        }
    }

    /// Hands over messages that are counted as queued already.
    fn hand(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, frames: &[Packet]) {
        let is_polling = self.client(ix).is_some_and(|client| client.polling().is_some());
        for packet in frames.iter().cloned() {
            if is_polling {
                self.write_polling(ix, packet);
            } else {
                ctx.out.push(Output::Write(ix, packet));
            }
        }
    }

    /// Closes a transport from our side; its session ends.
    fn close(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, code: CloseCode, reason: DetachReason) {
        if self.client(ix).is_none() {
            return;
        }
        self.end_sessions(ctx, ix, reason);
        self.forget_resumes(ix);
        // Its own end may take the client as long as it likes; the next one may try now.
        self.upgrade_ends(ctx, ix);
        if let Some(client) = self.client(ix) {
            client.closing = true;
            if client.protocol == ClientProtocol::Plain && !code.may_reconnect() {
                ctx.out.push(Output::Write(ix, plain::encode_closed(code)));
            }
        }
        self.behind.remove(&ix);
        let is_polling = self.clients[ix.0 as usize].as_deref().is_some_and(|c| c.polling().is_some());
        if is_polling {
            self.say_farewell(ctx, ix, code);
        } else {
            ctx.out.push(Output::Close(ix, code));
        }
    }

    /// Closes up to `count` clients so that they come back elsewhere.
    pub(crate) fn close_some(&mut self, ctx: &mut Ctx<'_>, count: usize) {
        self.release_requests(ctx);
        let mut closed = 0;
        if self.close_from >= self.clients.len() {
            self.close_from = 0;
        }
        while closed < count && self.close_from < self.clients.len() {
            let ix = ClientIx(u32::try_from(self.close_from).unwrap_or(u32::MAX));
            self.close_from += 1;
            if self.client(ix).is_some() {
                self.close(ctx, ix, CloseCode::Restart, DetachReason::ServerShuttingDown);
                closed += 1;
            }
        }
    }

    /// Closes a transport of ours from the side of one of its sessions.
    fn close_with(&mut self, ctx: &mut Ctx<'_>, index: u32, code: CloseCode, reason: DetachReason) {
        let ix = self.sessions[index as usize].client;
        self.close(ctx, ix, code, reason);
    }

    /// The sessions of a client, whether it is being closed or not.
    fn sessions_of(&self, ix: ClientIx) -> &[u32] {
        self.clients.get(ix.0 as usize).and_then(|c| c.as_deref()).map_or(&[], |client| &client.sessions)
    }

    /// Its session in a namespace.
    fn session_in(&self, ix: ClientIx, namespace: &str) -> Option<u32> {
        let is_here = |index: &u32| *self.sessions[*index as usize].identity.namespace == *namespace;
        self.sessions_of(ix).iter().copied().find(is_here)
    }

    /// Pings a client. The number of the ping, for [`client::Client::has_answered`].
    fn ping(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) -> Option<u64> {
        let limits = self.limits.clone();
        let client = self.client(ix)?;
        let number = client.pinged(ctx.now, &limits);
        let ping = match client.protocol {
            ClientProtocol::Plain => plain::PING,
            ClientProtocol::SocketIo | ClientProtocol::EngineIo => engineio::PING,
        };
        // What is written to a polling client leaves with an answer to a GET.
        if client.polling().is_none() {
            self.pinged(ix);
        }
        self.write(ctx, ix, ping);
        Some(number)
    }

    /// A ping goes out behind everything written so far.
    fn pinged(&mut self, ix: ClientIx) {
        let client = self.clients.get(ix.0 as usize).and_then(|c| c.as_deref());
        for &index in client.map_or(&[][..], |client| &client.sessions) {
            self.sessions[index as usize].pinged();
        }
    }

    /// The sessions of a client are over at this edge.
    fn end_sessions(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, reason: DetachReason) {
        while let Some(&index) = self.sessions_of(ix).last() {
            self.end_session(ctx, index, false, reason);
        }
    }

    /// A session is over at this edge: its rooms are left, its owner is told.
    fn end_session(&mut self, ctx: &mut Ctx<'_>, index: u32, clean: bool, reason: DetachReason) {
        // What the client sent before it went is still carried out.
        self.send_inbound(ctx, index);
        let session = self.take_session(ctx, index);
        if let Some(owner) = session.owner {
            let detach = ToSession::Detach {
                sid: session.identity.sid,
                attachment: session.attachment,
                clean,
                reason,
            };
            ctx.out.send_to_host(owner, session.placement, Body::ToSession(detach));
        }
    }

    /// A session is not of this edge any more; its owner is not told.
    fn take_session(&mut self, ctx: &mut Ctx<'_>, index: u32) -> EdgeSession {
        let ix = self.sessions[index as usize].client;
        if let Some(client) = self.clients.get_mut(ix.0 as usize).and_then(|c| c.as_deref_mut()) {
            client.sessions.retain(|session| *session != index);
            if client.sessions.is_empty() {
                client.behind = false;
                self.behind.remove(&ix);
            }
        }
        let memberships: Vec<u32> = self.sessions[index as usize].rooms.iter().map(|m| m.tail).collect();
        for tail in memberships {
            self.leave_tail(ctx, index, tail);
        }
        self.dirty.remove(&index);
        let session = self.sessions.remove(index as usize);
        self.asked_is_gone(&session);
        self.by_sid.remove(&session.identity.sid);
        self.bounced_sessions.remove(&session.identity.sid);
        *session
    }

    /// The session of a client is over, its transport stays: it may connect again over it.
    fn end_namespace(&mut self, ctx: &mut Ctx<'_>, index: u32, reason: DetachReason) {
        let ix = self.sessions[index as usize].client;
        self.end_session(ctx, index, true, reason);
        // Nobody is left to confirm what reading was stopped for; if it was another session, it says so again.
        if self.client(ix).is_some_and(Client::owner_confirmed) {
            self.resume_reading(ctx, ix);
        }
    }

    /// Who of any of these rooms is here.
    pub(crate) fn local_members(
        &self,
        rooms: &[RoomKey],
        except_sids: &[SocketSid],
        except_rooms: &[Arc<str>],
        list: bool,
    ) -> Members {
        let tails = rooms.iter().filter_map(|room| self.by_room.get(room));
        let members = tails.flat_map(|tail| &self.tails[*tail as usize].members);
        let is_left_out = |session: u32| {
            let sid = self.sessions[session as usize].identity.sid;
            except_sids.contains(&sid) || self.is_in_any(session, except_rooms)
        };
        let members: Vec<u32> = if rooms.len() == 1 {
            members.copied().filter(|session| !is_left_out(*session)).collect()
        } else {
            let once: BTreeSet<u32> = members.copied().collect();
            once.into_iter().filter(|session| !is_left_out(*session)).collect()
        };
        let member = |&session: &u32| {
            let identity = &self.sessions[session as usize].identity;
            Member { uid: identity.uid.clone(), sid: identity.sid }
        };
        let listed = if list { self.limits.members_listed_max } else { 0 };
        Members {
            sessions: members.len() as u64,
            listed: members.iter().take(listed).map(member).collect(),
            silent: Vec::new(),
        }
    }

    /// Sends owners what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        self.ask_moved(ctx);
        let dirty = std::mem::take(&mut self.dirty);
        for &session in &dirty {
            self.place_session(ctx, session);
            if !self.sessions[session as usize].has_answers_enough(&self.limits) {
                self.send_inbound(ctx, session);
            }
            let s = &self.sessions[session as usize];
            if s.own_report_is_due(&self.limits) {
                self.report_own(ctx, session);
            } else if s.own_done > s.own_reported {
                self.unreported.insert(session);
            }
        }
        let any = self.flush_polls(ctx) | self.flush_upgrades(ctx) | self.asks.flush(ctx);
        any || !dirty.is_empty()
    }

    fn send_inbound(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        let session = &mut self.sessions[index as usize];
        if !session.attached {
            return;
        }
        let (Some(owner), Some((first, packets))) = (session.owner, session.take_unsent()) else { return };
        let message = ToSession::Inbound { sid: session.identity.sid, first, packets };
        ctx.out.send_to_host(owner, session.placement, Body::ToSession(message));
    }

    fn report_own(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        let session = &mut self.sessions[index as usize];
        let Some(owner) = session.owner.filter(|_| session.attached && session.has_own_to_report()) else {
            return;
        };
        session.own_was_reported();
        let (sid, own_seq, shown) = (session.identity.sid, session.own_done, session.shown());
        let message = ToSession::OwnReceived { sid, own_seq, shown };
        ctx.out.send_to_host(owner, session.placement, Body::ToSession(message));
    }

    /// Tells owners what their clients have been handed, and drops what is too old of all tails. Whether more
    /// is due than one step may look at.
    pub(crate) fn sweep(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut budget = Budget::step();
        while !self.unreported.is_empty() && budget.spend() {
            if let Some(session) = self.unreported.pop_first()
                && self.sessions.contains(session as usize)
            {
                self.report_own(ctx, session);
            }
        }
        let now = ctx.now;
        self.departed.expire(now, self.limits.dedupe_window, &mut budget);
        self.requests_expire(ctx);
        self.handed_expire(now);
        self.asks.expire(now);
        while let Some((since, tail)) = self.by_age.first()
            && now.since(since) >= self.limits.room_log_age_max
            && budget.spend()
        {
            self.trim_marked(tail, since);
        }
        let more_older = self.sweep_older(ctx, &mut budget);
        while self.sweep_from < self.tails.capacity() && budget.spend() {
            if let Some(tail) = self.tails.get_mut(self.sweep_from) {
                tail.expire_carried(now, self.limits.dedupe_window);
            }
            self.sweep_from += 1;
        }
        if self.sweep_from >= self.tails.capacity() {
            self.sweep_from = 0;
        }
        budget.is_spent() || more_older
    }

    /// The mark of a tail has come up: drops its oldest entry, if it is as old as `upto`.
    fn trim_marked(&mut self, tail: u32, upto: Instant) {
        let Some(t) = self.tails.get_mut(tail as usize) else { return };
        self.by_age.remove(&mut t.mark, &tail);
        if t.oldest_since().is_some_and(|since| since <= upto) {
            self.tail_bytes -= t.trim_first();
        }
        let oldest = t.oldest_since();
        self.by_age.set(&mut t.mark, &tail, oldest);
    }

    /// Asserts bounds and cross references.
    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.clients.iter().flatten().count(), self.client_count);
        assert_eq!(self.by_sid.len(), self.sessions.len());
        assert_eq!(self.by_room.len(), self.tails.len());
        let mut bytes = 0;
        for (index, tail) in &self.tails {
            bytes += tail.bytes + tail.older_bytes();
            self.check_readers(index, tail);
            let has_older = tail.older.is_some();
            let is_filed = u32::try_from(index).is_ok_and(|index| self.with_older.contains(&index));
            assert!(!has_older || is_filed, "{:?}: older entries that no sweep sees", tail.key);
            let (max, one) = (self.limits.tail_bytes_max, tail.len() <= 1);
            assert!(tail.bytes <= max || one, "{:?}: tail of {} bytes", tail.key, tail.bytes);
            for (slot, &session) in tail.members.iter().enumerate() {
                let held = self.sessions[session as usize]
                    .rooms
                    .iter()
                    .any(|m| m.tail as usize == index && m.slot.map(|s| s as usize) == Some(slot));
                assert!(held, "{:?}: member {slot} does not know of it", tail.key);
            }
            assert!(!tail.members.is_empty() || !tail.waiting.is_empty(), "{:?}: an orphan", tail.key);
        }
        assert_eq!(bytes, self.tail_bytes, "bytes of tails are miscounted");
        self.asks.check_invariants();
        let kept = self.tails.iter().filter(|(_, tail)| tail.len() > 0).count();
        assert_eq!(kept, self.by_age.len(), "tails without a mark");
        assert!(self.departed.is_within_bound(), "rooms left long ago are remembered");
        for (index, session) in &self.sessions {
            session.check_invariants(&self.limits);
            let client = self.clients[session.client.0 as usize].as_ref().expect("its client is here");
            assert!(client.sessions.iter().any(|s| *s as usize == index), "a client without its session");
            assert_eq!(client.behind, self.behind.contains(&client.ix));
        }
        self.check_requests();
        for client in self.clients.iter().flatten() {
            assert!(client.sessions.iter().all(|s| self.sessions[*s as usize].client == client.ix));
            assert!(client.sessions.len() + client.resuming.len() <= self.limits.namespaces_max);
            self.check_polling(client);
        }
        for (id, resuming) in &self.resuming {
            assert!(
                self.clients[resuming.client().0 as usize].as_ref().is_some_and(|c| c.resuming.contains(id))
            );
        }
    }
}
