//! Upgrades: a polling session goes on over a WebSocket, at whatever node that came in by.
//!
//! Belongs here: the probe, and the session on its way from one edge to another. Both edges may be one.
//! Stays out: polling itself (`polling`), how a reader is put at its places (`readers`).
//! Steps: the WebSocket says `2probe`; the edge of the session is asked, ends the held GET and marks the
//! way as taken; the client gets `3probe` and polls no more; at its `5` the edge hands over everything
//! it has of the client, and the node of the WebSocket attaches to the owners as its edge.
//! Invariants: a session has one edge; nothing the client sends over the WebSocket is handled before what
//! it sent by polling; what no GET has taken is the first thing written to the WebSocket.
//! When it breaks: a WebSocket that is lost before `5` changes nothing. Lost after it, or with the edge, its
//! sessions are without a transport and wait for their client, which comes back by its offset.
//! Source: Engine.IO protocol 4, "Upgrade"; FAULTS §3 rows 44–47.

use std::collections::VecDeque;
use std::time::Duration;

use super::Edge;
use super::client::Carrier;
use super::polling::Probe;
use super::requests::{edge_of, lane_of};
use super::session::EdgeSession;
use crate::engineio::{self, EnginePacket};
use crate::id::{Address, ClientIx, EngineSid, NodeRef, SocketSid};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Admission, CloseCode, Ctx, Output, Packet, Refusal};
use crate::time::Instant;
use crate::wire::{
    AskedBy, Body, DetachReason, FromEngine, MovedClient, MovedResume, MovedRoom, MovedSession, ToEngine,
    ToSession,
};

/// Messages kept of a WebSocket that is about to take over: what one read may hold.
const BACKLOG_MAX: usize = 1_024;

/// Sessions handed to another edge are remembered this long: it attaches them within a round trip.
const HANDED_FOR: Duration = Duration::from_secs(30);

/// More are forgotten, the oldest first; their owners notice by themselves when they have something to say.
const HANDED_MAX: usize = 65_536;

/// Ids of polling sessions that have gone on over a WebSocket, remembered as long, for requests that are
/// late.
const UPGRADED_MAX: usize = 1_024;

/// A WebSocket on its way to be a polling client's transport.
#[derive(Debug)]
pub(super) struct Upgrading {
    sid: EngineSid,
    /// Where the session is.
    edge: Address,
    step: Step,
    /// What came while the edge was asked, or after `5`.
    backlog: VecDeque<Packet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `2probe` is awaited.
    Open,
    /// The edge is asked.
    Probing,
    /// `5` is awaited.
    Probed,
    /// The session is awaited.
    Moving,
}

/// A session that another edge was given.
#[derive(Debug)]
pub(super) struct Handed {
    since: Instant,
    to: Address,
    sid: SocketSid,
    attachment: u64,
}

impl Edge {
    /// The transport of a WebSocket for the session `sid`; `None` if there can be none.
    pub(super) fn upgrading(ctx: &Ctx<'_>, sid: EngineSid) -> Option<Upgrading> {
        let edge = edge_of(ctx.view, &sid)?;
        Some(Upgrading { sid, edge, step: Step::Open, backlog: VecDeque::new() })
    }

    /// A message of a WebSocket that is not the session's transport yet.
    pub(super) fn upgrade_packet(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, packet: Packet) {
        let Some(client) = self.client(ix) else { return };
        let Carrier::Upgrading(upgrading) = &mut client.carrier else { return };
        if matches!(upgrading.step, Step::Probing | Step::Moving) {
            upgrading.backlog.push_back(packet);
            if upgrading.backlog.len() > BACKLOG_MAX {
                self.close(ctx, ix, CloseCode::Policy, DetachReason::TransportClose);
            }
            return;
        }
        let read = match &packet {
            Packet::Text(text) => engineio::decode_text(text).ok(),
            Packet::Binary(_) => None,
        };
        let (sid, edge) = (upgrading.sid, upgrading.edge);
        let message = match (upgrading.step, read) {
            (Step::Open, Some(EnginePacket::Ping(data))) if data == "probe" => {
                upgrading.step = Step::Probing;
                ctx.out.push(Output::PauseReading(ix));
                ToEngine::Probe { sid, client: ix }
            }
            (Step::Probed, Some(EnginePacket::Upgrade)) => {
                upgrading.step = Step::Moving;
                ctx.out.push(Output::PauseReading(ix));
                ToEngine::Upgrade { sid, client: ix }
            }
            _ => return self.close(ctx, ix, CloseCode::ProtocolError, DetachReason::ParseError),
        };
        ctx.out.send_to_address(edge, lane_of(&sid), Body::ToEngine(message));
    }

    /// What the edge of a session says.
    pub(crate) fn take_from_engine(&mut self, ctx: &mut Ctx<'_>, from: Address, message: FromEngine) {
        match message {
            FromEngine::Answer { call, response } => self.answered_request(ctx, from, call, response),
            FromEngine::Probed { sid, client, accepted } => {
                let Some(upgrading) = self.upgrading_of(client, &sid) else { return };
                if upgrading.step != Step::Probing {
                    return;
                }
                if accepted {
                    upgrading.step = Step::Probed;
                    let early = std::mem::take(&mut upgrading.backlog);
                    self.write(ctx, client, engineio::PONG_PROBE);
                    ctx.out.push(Output::ResumeReading(client));
                    // Who does not wait for the answer is as right as who does.
                    for packet in early {
                        self.packet(ctx, client, packet);
                    }
                } else {
                    self.close(ctx, client, CloseCode::ProtocolError, DetachReason::TransportClose);
                }
            }
            FromEngine::Moved { sid, client, state } => {
                if self.upgrading_of(client, &sid).is_some_and(|upgrading| upgrading.step == Step::Moving) {
                    return self.moved_here(ctx, client, *state);
                }
                let sids = state.sessions.iter().map(|session| session.identity.sid).collect();
                let abandoned = ToEngine::Abandoned(sids);
                ctx.out.send_to_address(from, lane_of(&sid), Body::ToEngine(abandoned));
            }
        }
    }

    fn upgrading_of(&mut self, ix: ClientIx, sid: &EngineSid) -> Option<&mut Upgrading> {
        match &mut self.client(ix)?.carrier {
            Carrier::Upgrading(upgrading) if upgrading.sid == *sid => Some(upgrading),
            _ => None,
        }
    }

    /// A WebSocket is gone before it was the session's transport.
    pub(super) fn upgrade_ends(&self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let client = self.clients.get(ix.0 as usize).and_then(|client| client.as_deref());
        if let Some(Carrier::Upgrading(upgrading)) = client.map(|client| &client.carrier) {
            let gone = ToEngine::ProbeGone { sid: upgrading.sid, client: ix };
            ctx.out.send_to_address(upgrading.edge, lane_of(&upgrading.sid), Body::ToEngine(gone));
        }
    }

    /// The edges of these sessions are gone, or what they said is lost.
    pub(super) fn upgrades_lost(&mut self, ctx: &mut Ctx<'_>, lost: impl Fn(NodeRef) -> bool) {
        let is_lost = |carrier: &Carrier| match carrier {
            Carrier::Upgrading(upgrading) => lost(upgrading.edge.node),
            _ => false,
        };
        let clients = self.clients.iter().flatten().filter(|client| is_lost(&client.carrier));
        let broken: Vec<ClientIx> = clients.map(|client| client.ix).collect();
        for ix in broken {
            self.close(ctx, ix, CloseCode::Normal, DetachReason::TransportClose);
        }
        self.handed_back(ctx, |handed| lost(handed.to.node));
    }

    pub(super) fn probed(&mut self, ctx: &mut Ctx<'_>, from: Address, sid: EngineSid, client: ClientIx) {
        let polling = self.polling_client(&sid).and_then(|ix| Some((ix, self.client(ix)?.polling_mut()?)));
        let accepted = match polling {
            Some((ix, polling)) if polling.probe.is_none() => {
                polling.probe = Some(Probe { edge: from, client, takes_over: false });
                polling.reserved = None;
                // The client stops when this GET has come back; a later one has its own time.
                if polling.holds_older_get() {
                    self.end_poll(ctx, ix);
                }
                true
            }
            _ => false,
        };
        let probed = FromEngine::Probed { sid, client, accepted };
        ctx.out.send_to_address(from, lane_of(&sid), Body::FromEngine(probed));
    }

    fn probe_of(
        &mut self,
        from: Address,
        sid: &EngineSid,
        client: ClientIx,
    ) -> Option<(ClientIx, &mut Option<Probe>)> {
        let ix = self.polling_client(sid)?;
        let probe = &mut self.client(ix)?.polling_mut()?.probe;
        let is_it = probe.is_some_and(|probe| probe.edge == from && probe.client == client);
        is_it.then_some((ix, probe))
    }

    pub(super) fn probe_gone(&mut self, from: Address, sid: &EngineSid, client: ClientIx) {
        if let Some(ix) = self.polling_client(sid)
            && let Some(polling) = self.client(ix).and_then(|client| client.polling_mut())
        {
            polling.reserved = None;
        }
        if let Some((ix, probe)) = self.probe_of(from, sid, client) {
            *probe = None;
            self.upgrades_due.remove(&ix);
        }
    }

    pub(super) fn upgrade_asked(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        sid: &EngineSid,
        client: ClientIx,
    ) {
        if let Some((ix, Some(probe))) = self.probe_of(from, sid, client) {
            probe.takes_over = true;
            self.upgrades_due.insert(ix);
            return;
        }
        let probed = FromEngine::Probed { sid: *sid, client, accepted: false };
        ctx.out.send_to_address(from, lane_of(sid), Body::FromEngine(probed));
    }

    /// Hands over what is to be and can be: a client whose sessions are all in place. Those that it asks for
    /// are asked for by the receiver: while it is on its way nothing that it is told here reaches it.
    pub(super) fn flush_upgrades(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let ready = |ix: &ClientIx| {
            let client = self.clients[ix.0 as usize].as_deref().filter(|client| !client.closing);
            client.is_none_or(|client| {
                let welcomed = |index: &u32| self.sessions[*index as usize].welcomed;
                client.sessions.iter().all(welcomed) && client.identifying.is_empty()
            })
        };
        let ready: Vec<ClientIx> = self.upgrades_due.iter().copied().filter(ready).collect();
        for &ix in &ready {
            self.upgrades_due.remove(&ix);
            self.move_away(ctx, ix);
        }
        !ready.is_empty()
    }

    /// Everything of a client to the edge of its WebSocket. Here nothing of it is left.
    fn move_away(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let Some(probe) = self.client(ix).and_then(|c| c.polling()).and_then(|polling| polling.probe) else {
            return;
        };
        if self.client(ix).is_some_and(|client| !client.behind) {
            self.note_places(ix, None);
        }
        // A client that goes polls no more: such a GET is of nobody who would take what it got.
        self.refuse_poll(ctx, ix);
        self.end_post(ctx, ix);
        let mut sessions = Vec::new();
        while let Some(&index) = self.sessions_of(ix).first() {
            sessions.push(self.moved_session(ctx, index, probe.edge));
        }
        let resuming = self.take_resumes(ix);
        let Some(client) = self.client(ix) else { return };
        client.closing = true;
        let admission = match &client.admission {
            Ok(Admission { product, uid }) => Ok((product.name.clone(), uid.clone())),
            Err(refusal) => Err(refusal.clone()),
        };
        let identified = std::mem::take(&mut client.identified);
        let (offsets, partial) = (client.offsets, std::mem::take(&mut client.reassembly).into_messages());
        let Some(polling) = client.polling_mut() else { return };
        let (sid, mut queued) = (polling.sid, polling.take_queue());
        if is_planted(Mutant::UnsentForgottenInMove) {
            queued.clear();
        }
        self.by_engine.remove(&sid.spread());
        self.upgraded.push_back((ctx.now, sid));
        if self.upgraded.len() > UPGRADED_MAX {
            self.upgraded.pop_front();
        }
        self.behind.remove(&ix);
        let state =
            Box::new(MovedClient { admission, identified, offsets, queued, partial, sessions, resuming });
        let moved = FromEngine::Moved { sid, client: probe.client, state };
        ctx.out.send_to_address(probe.edge, lane_of(&sid), Body::FromEngine(moved));
        ctx.out.push(Output::Close(ix, CloseCode::Normal));
    }

    fn moved_session(&mut self, ctx: &mut Ctx<'_>, index: u32, to: Address) -> MovedSession {
        let session = &self.sessions[index as usize];
        let rooms = session.rooms.iter().map(|m| MovedRoom {
            room: self.tails[m.tail as usize].key.clone(),
            own_seq: m.own_seq,
            tell: m.tell,
            place: m.slot.map(|_| (m.joined, m.at)),
            has_hole: self.has_hole(m),
        });
        let rooms: Vec<MovedRoom> = rooms.collect();
        let asked = self.asks.take(ctx.now, session.identity.sid);
        let session = self.take_session(ctx, index);
        let handed = Handed { since: ctx.now, to, sid: session.identity.sid, attachment: session.attachment };
        self.handed.push_back(handed);
        if self.handed.len() > HANDED_MAX {
            self.handed.pop_front();
        }
        let mut moved = session.into_moved(rooms, asked);
        if is_planted(Mutant::UnconfirmedForgottenInMove) {
            moved.unconfirmed.clear();
        }
        moved
    }

    /// The receiver has no use for them: they have no transport. An owner that has heard from a later
    /// edge pays no heed.
    pub(super) fn abandoned(&mut self, ctx: &mut Ctx<'_>, from: Address, sids: &[SocketSid]) {
        self.handed_back(ctx, |handed| handed.to == from && sids.contains(&handed.sid));
    }

    fn handed_back(&mut self, ctx: &mut Ctx<'_>, which: impl Fn(&Handed) -> bool) {
        let (back, kept): (VecDeque<_>, _) = std::mem::take(&mut self.handed).into_iter().partition(which);
        self.handed = kept;
        for Handed { sid, attachment, .. } in back {
            let placement = self.ids.placement_of(sid);
            let reason = DetachReason::TransportClose;
            let detach = ToSession::Detach { sid, attachment, clean: false, reason };
            if let Some(owner) = ctx.view.owner(placement) {
                ctx.out.send_to_host(owner, placement, Body::ToSession(detach));
            }
        }
    }

    /// Whether this session has lately gone on over a WebSocket.
    pub(super) fn has_upgraded(&self, sid: &EngineSid) -> bool {
        self.upgraded.iter().any(|(_, upgraded)| upgraded == sid)
    }

    pub(super) fn handed_expire(&mut self, now: Instant) {
        while self.upgraded.front().is_some_and(|(since, _)| now.since(*since) >= HANDED_FOR) {
            self.upgraded.pop_front();
        }
        while self.handed.front().is_some_and(|handed| now.since(handed.since) >= HANDED_FOR) {
            self.handed.pop_front();
        }
    }

    /// The session is here: what no GET has taken goes out first, then everything goes on.
    fn moved_here(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, state: MovedClient) {
        let limits = self.limits.clone();
        let MovedClient { admission, identified, offsets, queued, partial, sessions, resuming } = state;
        let admission = admission.and_then(|(name, uid)| {
            let product = self.products.get(&name).cloned();
            let product = product.ok_or_else(|| Refusal {
                code: "product_unknown".into(),
                message: "this node does not have the product".into(),
            })?;
            Ok(Admission { product, uid })
        });
        let now = ctx.now;
        let Some(client) = self.client(ix) else { return };
        let Carrier::Upgrading(upgrading) = std::mem::replace(&mut client.carrier, Carrier::WebSocket) else {
            return;
        };
        (client.admission, client.identified, client.offsets) = (admission, identified, offsets);
        client.took_over(now, !(sessions.is_empty() && resuming.is_empty()), &limits);
        for packet in queued {
            self.write(ctx, ix, packet);
        }
        for session in sessions {
            self.session_here(ctx, ix, session);
        }
        for MovedResume { namespace, pid, offset } in resuming {
            self.ask_resume(ctx, ix, namespace, pid, offset);
        }
        ctx.out.push(Output::ResumeReading(ix));
        for packet in partial.into_iter().chain(upgrading.backlog) {
            self.packet(ctx, ix, packet);
        }
        self.catch_up(ctx, ix);
        self.arm(ctx, ix);
    }

    fn session_here(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, mut moved: MovedSession) {
        let Some(client) = self.client(ix) else { return };
        let protocol = client.protocol;
        let sid = moved.identity.sid;
        if let Some(&former) = self.by_sid.get(&sid) {
            // An edge may be handed a session once only; what a peer says again is of no use.
            return self.close_with(ctx, former, CloseCode::Ended, DetachReason::TransportClose);
        }
        let rooms = std::mem::take(&mut moved.rooms);
        self.asks.give(ctx.now, sid, std::mem::take(&mut moved.asked));
        let placement = self.ids.placement_of(sid);
        let key = moved.identity.resumable.then(|| self.ids.offset_key(&moved.identity.pid));
        let session = EdgeSession::from_moved(ctx.now, moved, placement, protocol, ix, key);
        let index = self.keep_session(session);
        for MovedRoom { room, own_seq, tell, place, has_hole } in rooms {
            match place {
                Some((joined, at)) => {
                    self.go_on_in(ctx, index, &room, own_seq, joined, at);
                    if let Some(&tail) = self.by_room.get(&room)
                        && let Some(m) = self.sessions[index as usize].membership(tail)
                    {
                        m.has_hole = has_hole;
                    }
                }
                None if tell => self.join_tail(ctx, index, &room, own_seq, AskedBy::Backend),
                None => self.join_tail(ctx, index, &room, own_seq, AskedBy::Client),
            }
        }
        self.attach(ctx, index);
    }
}
