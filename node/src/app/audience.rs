//! The members of rooms, from outside handlers.
//!
//! Belongs here: whom an event or an action is for, and what comes back. Stays out: single sessions and users
//! (`io`), what a handler does in the order of its own commands (`socket`).
//! Order: what one caller awaits comes before what it does next.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{RoomKey, SocketSid};
use mesh_proto::wire::{self, Action, Broadcast, Gathered, Payload, Query, RoomEvent};

use super::event::{Acted, Answer, Answers, Args};
use super::io::{Io, Members, Shared};
use super::{Error, socket};

/// Whoever asks waits no longer: what is asked is kept for so long at every edge.
const ANSWERS_WITHIN_MAX: Duration = Duration::from_secs(60);

/// Whom an event or an action is for: members of rooms, wherever they are.
#[derive(Clone, Debug)]
#[must_use]
pub struct Audience {
    io: Io,
    pub(super) whom: Whom,
}

/// Rooms, and who in them is left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Whom {
    /// None: everyone of the namespace.
    pub(super) rooms: Vec<Arc<str>>,
    pub(super) except_rooms: Vec<Arc<str>>,
    pub(super) except_sids: Vec<SocketSid>,
    pub(super) volatile: bool,
}

impl Whom {
    /// And those in this room.
    pub(super) fn and(mut self, room: &str) -> Self {
        if !self.rooms.iter().any(|known| **known == *room) {
            self.rooms.push(room.into());
        }
        self
    }

    pub(super) fn except(mut self, room_or_id: &str) -> Self {
        self.except_sids.extend(SocketSid::from_text(room_or_id));
        self.except_rooms.push(room_or_id.into());
        self
    }

    pub(super) fn check(&self, shared: &Shared) -> Result<(), Error> {
        self.rooms.iter().try_for_each(|room| socket::check_room(room, &shared.limits))
    }
}

/// How long members may take for their answers.
pub(super) fn check_timeout(timeout: Duration) -> Result<u32, Error> {
    match u32::try_from(timeout.as_millis()) {
        Ok(within_ms) if timeout <= ANSWERS_WITHIN_MAX => Ok(within_ms),
        _ => Err(format!("answers are waited for {} s at most", ANSWERS_WITHIN_MAX.as_secs()).into()),
    }
}

impl Audience {
    pub(super) fn new(io: Io, whom: Whom) -> Self {
        Self { io, whom }
    }

    /// And those in this room; who is in several is there once.
    pub fn and(mut self, room: &str) -> Self {
        self.whom = self.whom.and(room);
        self
    }

    /// But not those in this room, nor the session of this public id.
    pub fn except(mut self, room_or_id: &str) -> Self {
        self.whom = self.whom.except(room_or_id);
        self
    }

    /// Beside the rooms' logs: only to who can take it at once.
    pub fn volatile(mut self) -> Self {
        self.whom.volatile = true;
        self
    }

    /// Sends an event.
    ///
    /// # Errors
    /// When an argument does not serialise, the event may not be sent, or an owner did not answer in time.
    pub async fn emit(self, event: &str, args: impl Args) -> Result<(), Error> {
        let payload = args.arguments()?.into_event(event, &self.io.shared.limits)?;
        self.publish(payload, None, None).await.map(drop)
    }

    /// Sends an event and waits until all members have answered, `timeout` at most. Answers that are missing
    /// are told by [`Answers`], not as an error.
    ///
    /// # Errors
    /// As [`Self::emit`]; a timeout of more than 60 s; too many questions under way.
    pub async fn emit_with_ack(
        self,
        event: &str,
        args: impl Args,
        timeout: Duration,
    ) -> Result<Answers, Error> {
        let within_ms = check_timeout(timeout)?;
        let payload = args.arguments()?.into_event(event, &self.io.shared.limits)?;
        let shared = self.io.shared.clone();
        let gathered = self.publish(payload, None, Some(within_ms)).await?;
        Ok(answers_of(gathered, &shared))
    }

    /// Puts the members into a room, and waits until that is in force.
    ///
    /// # Errors
    /// When a room's name cannot be one, or too many questions are under way.
    pub async fn join(self, room: &str) -> Result<Acted, Error> {
        socket::check_room(room, &self.io.shared.limits)?;
        self.act(Action::Join(vec![room.into()])).await
    }

    /// Takes the members out of a room: they get none of its events after this one's place among them.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn leave(self, room: &str) -> Result<Acted, Error> {
        socket::check_room(room, &self.io.shared.limits)?;
        self.act(Action::Leave(vec![room.into()])).await
    }

    /// Ends the members' sessions, with their transports if `close`.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn disconnect(self, close: bool) -> Result<Acted, Error> {
        self.act(Action::Disconnect { close }).await
    }

    async fn act(self, action: Action) -> Result<Acted, Error> {
        let shared = self.io.shared.clone();
        let within_ms = check_timeout(shared.limits.api_timeout)?;
        let gathered = self.publish(Payload::json("[]"), Some(action), Some(within_ms)).await?;
        Ok(Acted {
            sessions: gathered.answers.len() as u64,
            missing: gathered.missing + gathered.dropped,
            silent: shared.names(&gathered.silent),
            unserved: gathered.unserved,
        })
    }

    /// Who they are, across all nodes; nodes that do not answer in time are named.
    ///
    /// # Errors
    /// When a room's name cannot be one, or too many questions are under way.
    pub async fn members(self) -> Result<Members, Error> {
        self.whom.check(&self.io.shared)?;
        let Self { io, whom } = self;
        let rooms = io.room_keys(&whom.rooms);
        let Whom { except_sids, except_rooms, .. } = whom;
        io.ask_members(Query::MembersOf { rooms, except_sids, except_rooms }).await
    }

    /// Publishes to all rooms under one id, and gives what the members answer, if that is waited for.
    pub(super) async fn publish(
        self,
        payload: Payload,
        action: Option<Action>,
        within_ms: Option<u32>,
    ) -> Result<Gathered, Error> {
        self.whom.check(&self.io.shared)?;
        let Self { io, whom } = self;
        let rooms = io.room_keys(&whom.rooms);
        let Whom { except_sids, except_rooms, volatile, .. } = whom;
        let event = RoomEvent { except_sids, except_rooms, volatile, ..RoomEvent::new(payload) };
        // One shard for each first room: what is asked first comes first.
        let spread = rooms.first().map_or(0, |room| room.placement().0);
        let broadcast = Broadcast { rooms, event, action, within_ms };
        let query = Query::Broadcast(Box::new(broadcast));
        let within = Duration::from_millis(within_ms.unwrap_or(0).into());
        match io.ask_within(spread, query, within).await? {
            wire::Answer::Gathered(gathered) => Ok(gathered),
            _ => Ok(Gathered::default()),
        }
    }
}

/// What was gathered, for whoever asked.
pub(super) fn answers_of(gathered: Gathered, shared: &Shared) -> Answers {
    let answer = |(sid, payload): (SocketSid, Option<Payload>)| Answer {
        socket: sid.to_text(),
        payload: payload.unwrap_or_else(|| Payload::json("[]")),
    };
    Answers {
        answers: gathered.answers.into_iter().map(answer).collect(),
        missing: gathered.missing + gathered.dropped,
        silent: shared.names(&gathered.silent),
        unserved: gathered.unserved,
    }
}

impl Io {
    /// The keys of these rooms; of everyone, if there are none.
    pub(super) fn room_keys(&self, rooms: &[Arc<str>]) -> Vec<RoomKey> {
        let key = |room: &str| RoomKey::new(&self.product, &self.namespace, room);
        if rooms.is_empty() { vec![key("")] } else { rooms.iter().map(|room| key(room)).collect() }
    }
}
