//! What of a session survives its owner.
//!
//! Belongs here: the replicated state, and every change of it. Owner and backup run the same code.
//! Stays out: packets under way, effects, the wire of clients (all of the owner alone: [`super::live::SessionLive`]).
//! Invariants: the state depends on its ops only, in their order: no clock, no limits, nothing of the node.
//! A session is in a room once; at most [`LEFT_MAX`] leaves and [`KEYS_MAX`] keys are remembered.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Word;
use super::emitted::{EmitKeys, KEYS_MAX};
use super::live::SessionLive;
use super::own_log::OwnLog;
use crate::host::{Entity, MessageOf, SingleCopy};
use crate::id::{Cursor, Placement, RoomKey, SocketSid, Term};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::mutant::{Mutant, is_planted};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{
    AskedBy, Body, EdgeRef, NEXT_PACKET, OwnEntry, SessionIdentity, SessionOp, ShadowRoom,
    before_first_packet, is_same_transport,
};

/// Transports remembered that a session has had.
const DEPARTED_MAX: usize = 8;

/// Leaves remembered, so that a repeated publish is judged by what was so when it was sent.
const LEFT_MAX: usize = 16;

/// A session as owner and backup hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionState {
    pub(super) identity: SessionIdentity,
    /// Where the transport ends; `None`: parked.
    pub(super) edge: Option<EdgeRef>,
    /// The last transport, counted from 1; 0: none yet.
    pub(super) attachment: u64,
    /// How often that has been attached.
    pub(super) attached: u64,
    /// The last transports that its client has come back from, oldest first, each with how often it had been
    /// attached.
    departed: VecDeque<(u64, u64)>,
    /// Its client has been told that it is over, or has left for good.
    pub(super) ended: bool,
    /// Since when it is served what is for everyone, if it can be resumed.
    pub(super) everyone: Option<Cursor>,
    /// The last action on everyone that it has carried out.
    everyone_acted: Cursor,
    /// In the order of their joins.
    pub(super) rooms: Vec<Membership>,
    /// The last leaves, oldest first.
    pub(super) left: VecDeque<Left>,
    /// The last own-log entry of a leave that is not remembered.
    pub(super) forgotten: u64,
    /// The last packet whose join or leave is in here.
    pub(super) ops_upto: u64,
    /// The product's code has let it in.
    pub(super) admitted: bool,
    /// What that keeps with it: JSON.
    pub(super) data: Bytes,
    /// The last command of the product's code whose op is in here: packet, and command of it.
    did: Option<(u64, u32)>,
    pub(super) own: OwnLog,
    /// What backends have emitted to it under keys.
    pub(super) emitted: EmitKeys,
}

/// A room of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) room: RoomKey,
    pub(super) join: Join,
    /// The own-log entry that asked for the join; offsets with a lower number do not know of the room.
    pub(super) since: u64,
    /// The last action on the room's members that it has carried out.
    acted: Cursor,
}

impl Membership {
    /// Where the join took effect, if it is in force.
    pub(super) fn joined(&self) -> Option<Cursor> {
        match self.join {
            Join::At(at) => Some(at),
            Join::Asked(_) => None,
        }
    }
}

/// A room that a session was in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) room: RoomKey,
    /// Packets below this one were sent by a member.
    number: u64,
    /// As of the membership.
    pub(super) since: u64,
    pub(super) joined: Option<Cursor>,
    /// The own-log entry of the leave; offsets from there on do not know of the room.
    pub(super) until: u64,
}

/// How far a join is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Join {
    /// The edge is asked to put it in force, by this own-log entry.
    Asked(u64),
    /// In force: the edge serves the room from here on.
    At(Cursor),
}

impl SessionState {
    /// One that no edge has attached to yet.
    pub(super) fn new(identity: SessionIdentity) -> Self {
        Self {
            identity,
            edge: None,
            attachment: 0,
            attached: 0,
            departed: VecDeque::new(),
            ended: false,
            everyone: None,
            everyone_acted: Cursor::NONE,
            rooms: Vec::new(),
            left: VecDeque::new(),
            forgotten: 0,
            ops_upto: 0,
            admitted: false,
            data: Bytes::from_static(b"null"),
            did: None,
            own: OwnLog::default(),
            emitted: EmitKeys::default(),
        }
    }

    /// Carries out one change. Any op may be given to any state: what makes no sense changes nothing.
    fn carry_out(&mut self, op: &SessionOp) {
        match op {
            SessionOp::Replace(other) => *self = SessionState::clone(other),
            SessionOp::Attach { edge, own_seq, inbound_sent, attached } => {
                self.edge = Some(*edge);
                (self.attachment, self.attached) = (edge.attachment, *attached);
                self.own.attached(*own_seq);
                self.leaves_end_at(inbound_sent.saturating_add(1));
            }
            SessionOp::Shadow { rooms, own_seq, inbound_confirmed } => {
                let in_force = |ShadowRoom { room, own_seq, joined }: &ShadowRoom| Membership {
                    room: room.clone(),
                    join: Join::At(*joined),
                    since: *own_seq,
                    acted: self.membership(room).map_or(Cursor::NONE, |m| m.acted),
                };
                let rooms = rooms.iter().map(in_force).collect();
                self.rooms = rooms;
                // Numbers of packets and entries are the edge's from here on.
                self.own.begin_after(*own_seq);
                self.left.clear();
                (self.forgotten, self.ops_upto, self.did) = (0, *inbound_confirmed, None);
            }
            SessionOp::Resume { edge, own_seq } => self.resume(*edge, *own_seq),
            SessionOp::Park { over } => {
                self.edge = None;
                self.ended |= over;
            }
            SessionOp::Join { room, by, number } => {
                if !self.is_member(room) {
                    self.ask_to_join(room.clone(), *by);
                    self.counts(*by, *number);
                }
            }
            SessionOp::JoinedAt { room, at } if room.is_everyone() => self.everyone = Some(*at),
            SessionOp::JoinedAt { room, at } => {
                if let Some(membership) = self.rooms.iter_mut().find(|m| m.room == *room) {
                    membership.join = Join::At(*at);
                }
            }
            SessionOp::Leave { room, by, number } => {
                if let Some(place) = self.rooms.iter().position(|m| m.room == *room) {
                    let membership = self.rooms.remove(place);
                    if self.left.len() == LEFT_MAX
                        && let Some(oldest) = self.left.pop_front()
                    {
                        self.forgotten = self.forgotten.max(oldest.until);
                    }
                    let until = self.own.push(OwnEntry::Leave(room.clone(), *by));
                    let (since, joined) = (membership.since, membership.joined());
                    let (room, number) = (membership.room, *number);
                    self.left.push_back(Left { room, number, since, joined, until });
                    self.counts(*by, number);
                }
            }
            SessionOp::Emit { payload, volatile, key, asks, after } => {
                let (payload, after) = (payload.clone(), after.clone());
                self.own.push(OwnEntry::Emit { payload, volatile: *volatile, asks: *asks, after });
                if let Some((key, forgotten)) = key {
                    self.emitted.remember(*key, usize::try_from(*forgotten).unwrap_or(usize::MAX));
                }
            }
            SessionOp::Admit => self.admitted = true,
            SessionOp::SetData(data) => self.data = data.clone(),
            SessionOp::Did { number, index, op } => {
                if !self.has_done(*number, *index) {
                    self.did = Some((*number, *index));
                    self.carry_out(op);
                }
            }
            SessionOp::Act { room, at, ops } => {
                if !self.has_acted(room, *at) {
                    match self.rooms.iter_mut().find(|m| m.room == *room) {
                        Some(membership) => membership.acted = *at,
                        None => self.everyone_acted = *at,
                    }
                    ops.iter().for_each(|op| self.carry_out(op));
                }
            }
            SessionOp::OwnReceived { own_seq, shown } => {
                self.own.received(*own_seq);
                // Nobody comes back to it: what the edge has is enough.
                let kept = self.identity.resumable && !is_planted(Mutant::ShownTooEarly);
                self.own.shown(if kept { *shown } else { *own_seq });
            }
            SessionOp::End { close, code } => {
                self.ended = true;
                self.own.push(OwnEntry::Disconnect { close: *close, code: *code });
            }
        }
    }

    fn ask_to_join(&mut self, room: RoomKey, by: AskedBy) {
        let own_seq = self.own.push(OwnEntry::Join(room.clone(), by));
        // Most sessions are in one room.
        if self.rooms.is_empty() {
            self.rooms.reserve_exact(1);
        }
        let (join, acted) = (Join::Asked(own_seq), Cursor::NONE);
        self.rooms.push(Membership { room, join, since: own_seq, acted });
    }

    /// The edge of before has sent its last packet.
    fn leaves_end_at(&mut self, next: u64) {
        for left in self.left.iter_mut().filter(|left| left.number == NEXT_PACKET) {
            left.number = next;
        }
    }

    /// Another edge goes on after own-log entry `own_seq`. Offsets that were written before this moment
    /// go on meaning what they meant; those written after it know the rooms that are in force now.
    fn resume(&mut self, edge: EdgeRef, own_seq: u64) {
        self.edge = Some(edge);
        if self.departed.len() == DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back((self.attachment, self.attached));
        (self.attachment, self.attached) = (edge.attachment, 0);
        self.leaves_end_at(before_first_packet(edge.attachment));
        let first = self.own.last() + 1;
        self.own.renumber(own_seq, self.rooms.len() + 1);
        for left in self.left.iter_mut().filter(|left| left.until > own_seq) {
            left.until = first;
        }
        let (in_force, asked): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rooms).into_iter().partition(|m| m.joined().is_some());
        self.rooms = in_force;
        for (number, membership) in (first..).zip(self.rooms.iter_mut().filter(|m| m.since > own_seq)) {
            membership.since = number;
        }
        // Nobody has seen these in force: they begin with this edge.
        for membership in asked {
            self.ask_to_join(membership.room, AskedBy::Backend);
        }
    }

    /// Whether the client has come back from this transport, of which an edge knows that it was attached so
    /// often: nobody is there any more. A transport of another history is not known here.
    pub(super) fn has_left(&self, attachment: u64, answered: u64) -> bool {
        let mut departed = self.departed.iter();
        departed.any(|(left, attached)| is_same_transport(*left, attachment) && answered <= *attached)
    }

    /// Whether the op of command `index` of packet `number` is in here.
    pub(super) fn has_done(&self, number: u64, index: u32) -> bool {
        self.did.is_some_and(|did| (number, index) <= did)
    }

    /// Whether an action on the members of a room is none for it, or has been carried out.
    pub(super) fn has_acted(&self, room: &RoomKey, at: Cursor) -> bool {
        if room.is_everyone() {
            return at <= self.everyone_acted.max(self.everyone.unwrap_or(Cursor::NONE));
        }
        let membership = self.membership(room);
        membership.is_none_or(|m| at <= m.acted.max(m.joined().unwrap_or(Cursor::NONE)))
    }

    fn counts(&mut self, by: AskedBy, number: u64) {
        if by == AskedBy::Client {
            self.ops_upto = self.ops_upto.max(number);
        }
    }

    pub(super) fn room_key(&self, name: &str) -> RoomKey {
        RoomKey::new(&self.identity.product, &self.identity.namespace, name)
    }

    pub(super) fn membership(&self, room: &RoomKey) -> Option<&Membership> {
        self.rooms.iter().find(|m| m.room == *room)
    }

    pub(super) fn is_member(&self, room: &RoomKey) -> bool {
        self.membership(room).is_some()
    }

    /// Whether packet `number` is of a member, though it may have left since.
    pub(super) fn was_member(&self, room: &RoomKey, number: u64) -> bool {
        self.is_member(room) || self.has_left_since(room, number)
    }

    /// Whether the join of packet `number` is in here, and over.
    pub(super) fn has_joined_and_left(&self, room: &RoomKey, number: u64) -> bool {
        // A leave that is not remembered any more may have been of this room.
        let forgotten =
            self.left.len() == LEFT_MAX && self.left.front().is_some_and(|left| left.number > number);
        number <= self.ops_upto && !self.is_member(room) && (forgotten || self.has_left_since(room, number))
    }

    fn has_left_since(&self, room: &RoomKey, number: u64) -> bool {
        self.left.iter().any(|left| left.room == *room && left.number > number)
    }

    pub(super) fn check_invariants(&self, limits: &Limits) {
        assert!(self.rooms.len() <= limits.rooms_per_session_max);
        assert!(self.emitted.len() <= KEYS_MAX, "{} keys are remembered", self.emitted.len());
        assert!(self.departed.len() <= DEPARTED_MAX);
        assert!(self.left.len() <= LEFT_MAX, "{} leaves are remembered", self.left.len());
        assert!(self.edge.is_none_or(|edge| edge.attachment == self.attachment));
        for membership in &self.rooms {
            if let Join::Asked(own_seq) = membership.join {
                assert!(own_seq <= self.own.last(), "a join is asked for by an entry that is not there");
            }
        }
        self.own.check_invariants(limits);
    }
}

/// Bookkeeping over all sessions of a shard.
#[derive(Debug)]
pub(crate) struct SessionsShared {
    pub(super) ids: IdKey,
    /// Products whose sessions are held in one copy.
    pub(super) single_copy: SingleCopy,
}

/// Bytes of a session without rooms and own log, roughly.
const COPY_BYTES: usize = 256;

impl Entity for SessionState {
    type Key = SocketSid;
    type Op = SessionOp;
    type Copy = Box<SessionState>;
    type Live = SessionLive;
    type Input = Box<Word>;
    type Shared = SessionsShared;

    fn placement(shared: &SessionsShared, key: &SocketSid) -> Placement {
        shared.ids.placement_of(*key)
    }

    /// It may have lost its edge.
    fn on_view(&self, _: &mut SessionLive, view: &View) -> bool {
        self.edge.is_some_and(|edge| !view.is_up(edge.edge.node))
    }

    fn is_durable(&self, shared: &SessionsShared, _: &SocketSid) -> bool {
        !shared.single_copy.contains(&self.identity.product)
    }

    /// A session begins with its edge's word for it.
    fn new(_: &mut SessionsShared, _: &SocketSid, _: Instant, _: Term) -> Option<Self> {
        None
    }

    fn apply(&mut self, _: &mut SessionsShared, _: &SocketSid, _: Instant, op: &SessionOp) {
        self.carry_out(op);
    }

    fn to_copy(&self) -> Box<SessionState> {
        Box::new(self.clone())
    }

    fn from_copy(_: &mut SessionsShared, _: &SocketSid, _: Instant, copy: Box<SessionState>) -> Self {
        *copy
    }

    fn released(self, _: &mut SessionsShared, _: &SocketSid) {}

    /// The transports it has had, then its own log, stand in for the terms and places of a log.
    fn last(&self) -> Cursor {
        let attachment = Term { number: self.attachment, ..Term::NONE };
        Cursor { term: attachment, seq: self.own.last() }
    }

    fn last_of(copy: &Box<SessionState>) -> Cursor {
        copy.last()
    }

    fn covers(&self, last: Cursor) -> bool {
        self.last() >= last
    }

    fn missing(&self, _: Term, other: &Box<SessionState>) -> (Vec<SessionOp>, bool) {
        let replace = (!self.covers(other.last())).then(|| SessionOp::Replace(other.clone()));
        (replace.into_iter().collect(), false)
    }

    fn is_more_than(&self, copy: &Box<SessionState>) -> bool {
        !copy.covers(self.last())
    }

    fn copy_bytes(&self) -> usize {
        let keys = 16 * self.emitted.len();
        COPY_BYTES + 64 * self.rooms.len() + keys + self.own.bytes() + self.data.len()
    }

    fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&crate::wire::encode(self))
    }

    fn body(message: MessageOf<Self>) -> Body {
        Body::Sessions(message)
    }
}
