//! Actions on the members of a room: where they stand in its log.
//!
//! Belongs here: stopping a member at an action, asking the owner of its session for it, going on.
//! Stays out: what an action means for a session (`session`), who is told of it (`asks`).
//! Invariants: a member at an action is served nothing more of that room until the owner of its session has
//! carried it out; one action of a room at a time.
//! When it breaks: the request is a numbered packet of the session, kept and repeated as all are. A client
//! that comes back meets the action again where it stands; its owner knows by its place what it has done.

use super::Edge;
use super::session::EdgeSession;
use crate::id::{Cursor, RoomKey};
use crate::plain;
use crate::shard::{ClientProtocol, Ctx};
use crate::wire::{Action, AskRef, DisconnectCode, Inbound};

/// An action that the owner of the session has been asked for.
#[derive(Debug)]
pub(super) struct Acting {
    /// The packet that asks.
    number: u64,
    room: RoomKey,
    at: Cursor,
    action: Action,
    name: AskRef,
}

/// A join by an action that is to be told as done when it is in force.
#[derive(Debug)]
pub(super) struct Joining {
    name: AskRef,
    rooms: Vec<RoomKey>,
    /// The own log has come up to here with the word that the action is done.
    own_seq: u64,
}

impl Edge {
    /// The session has come to an action in the log of a room: it stays there until its owner has carried
    /// it out.
    pub(super) fn act(&mut self, index: u32, tail: u32, at: Cursor, action: Action, name: AskRef) {
        let room = self.tails[tail as usize].key.clone();
        let session = &mut self.sessions[index as usize];
        if session.acting.iter().any(|acting| acting.room == room && acting.at == at) {
            return;
        }
        session.push_inbound(Inbound::Act { room: room.clone(), at, action: action.clone() });
        let number = session.last_inbound();
        session.acting.push(Acting { number, room, at, action, name });
        self.dirty.insert(index);
    }

    /// Packet `number` is done. If it is an action, the session goes on after it; `false`: it is over.
    pub(super) fn action_done(&mut self, ctx: &mut Ctx<'_>, index: u32, number: u64) -> bool {
        let session = &mut self.sessions[index as usize];
        let Some(place) = session.acting.iter().position(|acting| acting.number == number) else {
            return true;
        };
        let Acting { room, at, action, name, .. } = session.acting.remove(place);
        let sid = session.identity.sid;
        match action {
            Action::Disconnect { close } => {
                self.asks.done(name, sid);
                self.disconnect(ctx, index, close, DisconnectCode::Requested);
                return false;
            }
            Action::Leave(rooms) => {
                for left in &rooms {
                    let left = RoomKey::new(room.product(), room.namespace(), left);
                    if !left.is_everyone() {
                        self.leave_and_tell(ctx, index, &left);
                    }
                }
                self.asks.done(name, sid);
            }
            Action::Join(rooms) => {
                let key = |name: &std::sync::Arc<str>| RoomKey::new(room.product(), room.namespace(), name);
                let rooms = rooms.iter().map(key).collect();
                let session = &mut self.sessions[index as usize];
                let own_seq = session.own_seq;
                session.joining.push(Joining { name, rooms, own_seq });
                self.look_at_joining(index);
            }
        }
        if let Some(&tail) = self.by_room.get(&room)
            && let Some(m) = self.sessions[index as usize].membership(tail)
            && m.at < at
        {
            let before = std::mem::replace(&mut m.at, at);
            if let Some(older) = &mut self.tails[tail as usize].older {
                older.forget(before, index);
            }
        }
        self.client_of(index).waits = false;
        true
    }

    /// Tells of joins that are in force by now, or will not be.
    pub(super) fn look_at_joining(&mut self, index: u32) {
        let session = &mut self.sessions[index as usize];
        if session.joining.is_empty() {
            return;
        }
        let sid = session.identity.sid;
        for joining in std::mem::take(&mut session.joining) {
            let session = &self.sessions[index as usize];
            if session.own_done < joining.own_seq {
                self.sessions[index as usize].joining.push(joining);
                continue;
            }
            let in_force = |room: &RoomKey| {
                let tail = self.by_room.get(room)?;
                session.rooms.iter().find(|m| m.tail == *tail).map(|m| m.slot.is_some())
            };
            let states: Vec<Option<bool>> = joining.rooms.iter().map(in_force).collect();
            if states.contains(&None) {
                self.asks.refused(joining.name, sid);
            } else if states.contains(&Some(false)) {
                self.sessions[index as usize].joining.push(joining);
            } else {
                self.asks.done(joining.name, sid);
            }
        }
    }

    /// A session leaves a room that its client did not ask to leave. Plain clients are told.
    pub(super) fn leave_and_tell(&mut self, ctx: &mut Ctx<'_>, index: u32, room: &RoomKey) {
        let tail = self.by_room.get(room).copied();
        let was_in = tail.is_some_and(|tail| self.leave_tail(ctx, index, tail));
        let session = &self.sessions[index as usize];
        if was_in && session.protocol == ClientProtocol::Plain {
            let ix = session.client;
            self.write(ctx, ix, plain::encode_left(room.room()));
        }
    }

    /// A session goes: what it was to do is done only if that was to go.
    pub(super) fn asked_is_gone(&mut self, session: &EdgeSession) {
        let sid = session.identity.sid;
        for acting in &session.acting {
            if matches!(acting.action, Action::Disconnect { .. }) {
                self.asks.done(acting.name, sid);
            }
        }
        self.asks.gone(sid);
    }
}
