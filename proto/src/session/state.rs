//! What of a session survives its owner.
//!
//! Belongs here: the replicated state, and every change of it. Owner and backup run the same code.
//! Stays out: packets under way, effects, the wire of clients (all of the owner alone: [`super::SessionLive`]).
//! Invariants: the state depends on its ops only, in their order: no clock, no limits, nothing of the node.
//! A session is in a room once; at most [`LEFT_MAX`] leaves are remembered.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Attach;
use super::live::SessionLive;
use super::own_log::OwnLog;
use crate::host::{Entity, MessageOf};
use crate::id::{Cursor, Placement, RoomKey, SocketSid, Term};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::time::Instant;
use crate::wire::{AskedBy, Body, EdgeRef, NEXT_PACKET, OwnEntry, SessionIdentity, SessionOp};

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
    /// Its client has been told that it is over.
    pub(super) ended: bool,
    pub(super) rooms: Vec<Membership>,
    /// The last leaves, oldest first: of which room; packets below that number were sent by a member.
    left: VecDeque<(RoomKey, u64)>,
    /// The last packet whose join or leave is in here.
    pub(super) ops_upto: u64,
    pub(super) own: OwnLog,
}

/// A room of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) room: RoomKey,
    pub(super) join: Join,
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
            ended: false,
            rooms: Vec::new(),
            left: VecDeque::new(),
            ops_upto: 0,
            own: OwnLog::default(),
        }
    }

    /// Carries out one change. Any op may be given to any state: what makes no sense changes nothing.
    fn carry_out(&mut self, op: &SessionOp) {
        match op {
            SessionOp::Replace(other) => *self = SessionState::clone(other),
            SessionOp::Attach { edge, own_seq, inbound_sent } => {
                self.edge = Some(*edge);
                self.attachment = edge.attachment;
                self.own.attached(*own_seq);
                for (_, number) in self.left.iter_mut().filter(|(_, number)| *number == NEXT_PACKET) {
                    *number = inbound_sent.saturating_add(1);
                }
            }
            SessionOp::Rooms(rooms) => {
                let in_force =
                    |(room, at): &(RoomKey, Cursor)| Membership { room: room.clone(), join: Join::At(*at) };
                self.rooms = rooms.iter().map(in_force).collect();
                self.own.clear();
            }
            SessionOp::Park => self.edge = None,
            SessionOp::Join { room, by, number } => {
                if !self.is_member(room) {
                    let own_seq = self.own.push(OwnEntry::Join(room.clone(), *by));
                    self.rooms.push(Membership { room: room.clone(), join: Join::Asked(own_seq) });
                    self.counts(*by, *number);
                }
            }
            SessionOp::JoinedAt { room, at } => {
                if let Some(membership) = self.rooms.iter_mut().find(|m| m.room == *room) {
                    membership.join = Join::At(*at);
                }
            }
            SessionOp::Leave { room, by, number } => {
                if self.is_member(room) {
                    self.rooms.retain(|m| m.room != *room);
                    if self.left.len() == LEFT_MAX {
                        self.left.pop_front();
                    }
                    self.left.push_back((room.clone(), *number));
                    self.own.push(OwnEntry::Leave(room.clone(), *by));
                    self.counts(*by, *number);
                }
            }
            SessionOp::Emit { payload, volatile } => {
                self.own.push(OwnEntry::Emit { payload: payload.clone(), volatile: *volatile });
            }
            SessionOp::OwnReceived(seq) => self.own.received(*seq),
            SessionOp::End { close, code } => {
                self.ended = true;
                self.own.push(OwnEntry::Disconnect { close: *close, code: *code });
            }
        }
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
        let forgotten = self.left.len() == LEFT_MAX && self.left.front().is_some_and(|(_, by)| *by > number);
        number <= self.ops_upto && !self.is_member(room) && (forgotten || self.has_left_since(room, number))
    }

    fn has_left_since(&self, room: &RoomKey, number: u64) -> bool {
        self.left.iter().any(|(left, by)| left == room && *by > number)
    }

    pub(super) fn check_invariants(&self, limits: &Limits) {
        assert!(self.rooms.len() <= limits.rooms_per_session_max);
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
    pub(super) volatile_products: BTreeSet<Arc<str>>,
}

/// Bytes of a session without rooms and own log, roughly.
const COPY_BYTES: usize = 256;

impl Entity for SessionState {
    type Key = SocketSid;
    type Op = SessionOp;
    type Copy = Box<SessionState>;
    type Live = SessionLive;
    type Input = Box<Attach>;
    type Shared = SessionsShared;

    fn placement(shared: &SessionsShared, key: &SocketSid) -> Placement {
        shared.ids.placement_of(*key)
    }

    fn is_durable(&self, shared: &SessionsShared) -> bool {
        !shared.volatile_products.contains(&self.identity.product)
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

    fn released(self, _: &mut SessionsShared) {}

    /// The transports it has had, then its own log, stand in for the terms and places of a log.
    fn last(&self) -> Cursor {
        let attachment = Term { number: self.attachment, ..Term::NONE };
        Cursor { term: attachment, seq: self.own.last() }
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
        COPY_BYTES + 64 * self.rooms.len() + self.own.bytes()
    }

    fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&crate::wire::encode(self))
    }

    fn body(message: MessageOf<Self>) -> Body {
        Body::Sessions(message)
    }
}
