//! What only the owner of a session has, and every owner makes anew: packets under way, effects.
//!
//! Belongs here: the one way to change a session ([`Session::op`]), what leaves when it is safe.
//! Stays out: what survives the owner (`state`), what each packet leads to (`run`).
//! Invariants: an effect leaves after every op before it is safe, and only to an edge that has attached
//! to this owner.

use std::collections::{BTreeMap, VecDeque};

use super::app::Asking;
use super::emitted::KeyAges;
use super::resume::ResumePoint;
use super::state::{Join, SessionState};
use crate::entity::{CommitQueue, Committed};
use crate::host::Owned;
use crate::id::{Address, Cursor, NodeRef, Placement, RoomKey};
use crate::limits::Limits;
use crate::room;
use crate::shard::Out;
use crate::time::Instant;
use crate::wire::{
    Body, DetachReason, Done, EdgeRef, Inbound, NEXT_PACKET, Publish, Resumed, SessionOp, SessionToEdge,
    Shadow, ShadowRoom, before_first_packet, is_same_transport,
};

/// Packets in one read of a socket (4 KiB), at most.
const READ_PACKETS: usize = 512;

/// A session at its owner.
pub(super) type Session<'a> = Owned<'a, SessionState>;

#[derive(Debug, Default)]
pub(crate) struct SessionLive {
    /// The edge of the state has attached to this owner.
    pub(super) attached: bool,
    /// The last edge that has.
    pub(super) edge: Option<EdgeRef>,
    /// What it was answered when its client came back, until it says something: the same question is answered
    /// the same.
    pub(super) resumed: Option<Box<Resumed>>,
    /// The last packet taken from the edge.
    pub(super) received: u64,
    /// Packets up to this one may have been begun, here or by an owner before.
    begun_before: u64,
    /// Packets taken but not yet begun: something before them waits.
    pub(super) program: VecDeque<Inbound>,
    /// Packets begun whose outcome is open, in order.
    pub(super) open: VecDeque<Open>,
    /// The last own-log entry handed to the present edge.
    own_sent: u64,
    /// It has no transport, since then.
    pub(super) parked_since: Option<Instant>,
    /// Why it lost it.
    pub(super) detached: Option<DetachReason>,
    /// Events that its client is to answer: own-log entry, and the name for whoever asked.
    pub(super) asked: BTreeMap<u64, u64>,
    /// Its edge has not attached to this owner; when that was last asked for.
    pub(super) expected: Option<Instant>,
    pub(super) effects: CommitQueue<Effect>,
    /// Since when the keys of the state are known.
    pub(super) key_ages: KeyAges,
}

/// A packet under way.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) number: u64,
    pub(super) ack: Option<u64>,
    pub(super) waits_for: Wait,
}

#[derive(Debug)]
pub(super) enum Wait {
    /// The edge, to put the join in force: the own-log entry that asks for it.
    Join { own_seq: u64 },
    /// The product's code.
    App(Box<Asking>),
    /// The edge, to put a join of the product's code in force.
    AppJoin { own_seq: u64 },
    /// The room's owner; `sent_to` is `None` while it is to be sent again.
    /// It leaves when the ops up to `needs` are safe: what the same code has said to its client before.
    Publish { publish: Box<Publish>, sent_to: Option<NodeRef>, needs: u64 },
}

impl Wait {
    /// Only the present edge can end it.
    fn is_of_edge(&self) -> bool {
        matches!(self, Self::Join { .. } | Self::AppJoin { .. })
    }
}

/// What an op of a session leads to, once it is safe.
#[derive(Debug)]
pub(super) enum Effect {
    /// The edge is told that its session is owned.
    Attached { inbound_confirmed: u64, attached: u64 },
    /// The former edge is told that its client has given it up, whether it has noticed or not.
    GivenUp(EdgeRef),
    /// The edge is told that its client goes on.
    Resumed(Box<Resumed>),
    /// Own-log entries up to this one may go to the edge.
    Own(u64),
    /// A packet is carried out.
    Done(Done),
    /// A backend's command is carried out: the answer to this call may count it.
    Told(u64),
}

impl Session<'_> {
    /// Changes the session: nothing else does. What is new in its own log leaves once this is safe.
    pub(super) fn op(&mut self, op: SessionOp) {
        let before = self.state.own.last();
        let number = self.apply(op);
        if self.state.own.last() > before {
            self.live.effects.push(number, Effect::Own(self.state.own.last()));
        }
    }

    /// An edge attaches: what was under way is begun again when it repeats it, and it gets what it has
    /// not of the own log. Another that is given up for it is told so.
    pub(super) fn attach(
        &mut self,
        edge: EdgeRef,
        shadow: &Shadow,
        is_past: bool,
        admitted: bool,
        limits: &Limits,
        given_up: Option<EdgeRef>,
    ) {
        let state = &*self.state;
        let Shadow { own_seq, inbound_sent, inbound_confirmed, attached: [attached, answered], .. } = *shadow;
        // The edge has attached to an owner of whom this one has not heard: it had another history.
        let is_other = !is_same_transport(state.attachment, edge.attachment) || state.attached < answered;
        // Another owner has had the session since, or the edge has carried out more than this one knows
        // of, or this is the first one.
        let knows_better = is_past || is_other || own_seq > state.own.last() || state.attachment == 0;
        self.op(SessionOp::Attach { edge, own_seq, inbound_sent, attached });
        if knows_better {
            let rooms = shadow.rooms.iter().take(limits.rooms_per_session_max).cloned().collect();
            self.op(SessionOp::Shadow { rooms, own_seq, inbound_confirmed });
        }
        if self.state.everyone.is_none()
            && let Some(at) = shadow.everyone
        {
            self.joined_everyone(at);
        }
        *self.live = SessionLive {
            attached: true,
            edge: Some(edge),
            received: inbound_confirmed,
            begun_before: inbound_sent,
            own_sent: own_seq,
            effects: std::mem::take(&mut self.live.effects),
            key_ages: std::mem::take(&mut self.live.key_ages),
            asked: std::mem::take(&mut self.live.asked),
            ..SessionLive::default()
        };
        for ShadowRoom { room, joined, .. } in &shadow.rooms {
            self.joined_in(room, *joined, own_seq);
        }
        let applied = self.applied();
        if let Some(given_up) = given_up {
            self.live.effects.push(applied, Effect::GivenUp(given_up));
        }
        if admitted {
            let own = self.state.own.last();
            self.live.effects.push(applied, Effect::Attached { inbound_confirmed, attached });
            self.live.effects.push(applied, Effect::Own(own));
        }
    }

    /// From there on it is served what is for everyone: where that may be asked for again.
    pub(super) fn joined_everyone(&mut self, at: Cursor) {
        if self.state.identity.resumable && self.state.everyone.is_none() {
            let room = room::everyone(&self.state.identity.product, &self.state.identity.namespace);
            self.op(SessionOp::JoinedAt { room, at });
        }
    }

    /// Another edge goes on with the session: `point` is what its client has shown. What the former one
    /// has sent and is under way is carried out; nobody waits for its answers.
    pub(super) fn resume(&mut self, edge: EdgeRef, id: u64, point: &ResumePoint) {
        let given_up = self.state.edge;
        self.op(SessionOp::Resume { edge, own_seq: point.own_seq });
        let confirmed = before_first_packet(edge.attachment);
        let resumed = Resumed {
            id,
            identity: self.state.identity.clone(),
            term: self.term,
            attachment: edge.attachment,
            own_seq: self.state.own.base(),
            rooms: point.rooms(self.state),
        };
        let mut former = std::mem::take(self.live);
        // What was for the former edge is void; backends are answered all the same, and edges given up told.
        let mut kept = Vec::new();
        former.effects.drain(|effect| {
            if matches!(effect, Effect::Told(_) | Effect::GivenUp(_)) {
                kept.push(effect);
            }
        });
        former.open.retain(|open| !open.waits_for.is_of_edge());
        *self.live = SessionLive {
            attached: true,
            edge: Some(edge),
            resumed: Some(Box::new(resumed)),
            received: confirmed,
            begun_before: confirmed,
            open: former.open,
            effects: former.effects,
            key_ages: former.key_ages,
            ..SessionLive::default()
        };
        let applied = self.applied();
        kept.extend(given_up.map(Effect::GivenUp));
        kept.into_iter().for_each(|effect| self.live.effects.push(applied, effect));
        self.answer_resume();
    }

    /// The edge of a client that came back is told that it goes on, and gets what is in the own log since.
    pub(super) fn answer_resume(&mut self) {
        let Some(resumed) = self.live.resumed.clone() else { return };
        self.live.own_sent = resumed.own_seq;
        let (applied, own) = (self.applied(), self.state.own.last());
        self.live.effects.push(applied, Effect::Resumed(resumed));
        self.live.effects.push(applied, Effect::Own(own));
    }

    /// Whether this question is the one that its present edge has asked, and heard no answer to.
    pub(super) fn has_resumed(&self, from: Address, id: u64) -> bool {
        let resumed = self.live.resumed.as_ref().is_some_and(|resumed| resumed.id == id);
        resumed && self.live.attached && self.state.edge.is_some_and(|edge| edge.edge == from)
    }

    /// The edge's shadow has the room: its join is in force, whether its word has reached us or not.
    fn joined_in(&mut self, room: &RoomKey, at: Cursor, own_seq_received: u64) {
        if let Some(Join::Asked(own_seq)) = self.state.membership(room).map(|m| m.join)
            && own_seq <= own_seq_received
        {
            self.joined(own_seq, at);
        }
    }

    /// The transport is gone. What it has sent is still carried out, but joins have nobody to be put in
    /// force for. `over`: nobody may come back to it.
    pub(super) fn park(&mut self, now: Instant, over: bool) {
        self.op(SessionOp::Park { over });
        self.live.attached = false;
        self.live.parked_since.get_or_insert(now);
        self.live.open.retain(|open| !open.waits_for.is_of_edge());
    }

    pub(super) fn is_parked(&self) -> bool {
        self.state.edge.is_none()
    }

    /// A parked session that nobody may come back to ends when nothing of it is under way.
    pub(super) fn is_over(&self) -> bool {
        self.is_parked()
            && (self.state.ended || !self.state.identity.resumable)
            && self.live.open.is_empty()
            && self.live.program.is_empty()
    }

    /// The last packet begun.
    pub(super) fn begun(&self) -> u64 {
        self.live.received - self.live.program.len() as u64
    }

    /// The first packet that nobody can have begun.
    pub(super) fn next_packet(&self) -> u64 {
        if self.live.attached { self.begun().max(self.live.begun_before) + 1 } else { NEXT_PACKET }
    }

    /// Sends what is safe, in order; packets done in a row as one message.
    /// Returns the answers to backends that may count this session now.
    pub(super) fn release(&mut self, placement: Placement, out: &mut Out) -> Vec<u64> {
        let mut told = Vec::new();
        let mut packets = Vec::new();
        while let Some(effect) = self.live.effects.release().map(Committed::into_inner) {
            match effect {
                Effect::Told(answer) => told.push(answer),
                Effect::GivenUp(EdgeRef { edge, attachment, .. }) => {
                    let unknown = SessionToEdge::Unknown { sid: self.state.identity.sid, attachment };
                    out.send_to_address(edge, placement, Body::SessionToEdge(unknown));
                }
                // The next edge to attach gets all of it, or repeats what asked for it.
                _ if !self.live.attached => {}
                Effect::Done(done) => packets.push(done),
                Effect::Attached { inbound_confirmed, attached } => {
                    // What was done before is repeated to this owner.
                    packets.clear();
                    let (sid, term) = (self.state.identity.sid, self.term);
                    let attached = SessionToEdge::Attached { sid, term, inbound_confirmed, attached };
                    self.send(placement, attached, out);
                }
                Effect::Resumed(mut resumed) => {
                    packets.clear();
                    resumed.term = self.term;
                    self.send(placement, SessionToEdge::Resumed(resumed), out);
                }
                Effect::Own(upto) => {
                    if let Some((first, entries)) = self.state.own.between(self.live.own_sent, upto) {
                        self.live.own_sent = first + entries.len() as u64 - 1;
                        self.send_done(placement, &mut packets, out);
                        let (sid, term) = (self.state.identity.sid, self.term);
                        let own = SessionToEdge::Own { sid, term, first, entries };
                        self.send(placement, own, out);
                    }
                }
            }
        }
        self.send_done(placement, &mut packets, out);
        told
    }

    fn send_done(&self, placement: Placement, packets: &mut Vec<Done>, out: &mut Out) {
        if !packets.is_empty() {
            let packets = std::mem::take(packets);
            let done = SessionToEdge::Done { sid: self.state.identity.sid, term: self.term, packets };
            self.send(placement, done, out);
        }
    }

    /// To the edge, if there is one.
    pub(super) fn send(&self, placement: Placement, message: SessionToEdge, out: &mut Out) {
        if let Some(edge) = self.state.edge {
            out.send_to_address(edge.edge, placement, Body::SessionToEdge(message));
        }
    }
}

impl SessionLive {
    pub(super) fn check_invariants(&self, state: &SessionState, limits: &Limits) {
        // What the product's code does for one packet is several.
        assert!(self.open.iter().zip(self.open.iter().skip(1)).all(|(a, b)| a.number <= b.number));
        // What one read of a socket holds comes on top of the bound at which reading stops.
        let bound = limits.inbound_packets_max + READ_PACKETS;
        assert!(self.program.len() <= bound, "{} packets wait", self.program.len());
        assert!(self.program.len() as u64 <= self.received);
        assert!(!self.attached || state.edge.is_some(), "attached, yet parked");
    }
}
