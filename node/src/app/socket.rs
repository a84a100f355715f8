//! One client, as its handlers see it.
//!
//! Belongs here: what a handler does, collected in order until it takes effect.
//! Stays out: when that is (`runtime`), clients of others (`io`).
//! Invariants: commands of one handler take effect in their order; those of a socket that outlives its
//! handler go the way of everybody else's (`io`), one by one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use mesh_proto::limits::Limits;
use mesh_proto::product::rooms::check_room_name;
use mesh_proto::shard::{AppCommand, AppOutcome, AppThen};
use mesh_proto::wire::{Action, Command, Gathered, Payload, SessionIdentity};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::audience::{Audience, Whom, answers_of, check_timeout};
use super::event::{Answers, Args, read_answer};
use super::io::{self, Io};
use super::runtime::Questions;
use super::{Error, EventRefused};

/// A client that wants to connect.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(super) identity: SessionIdentity,
    pub(super) auth: Bytes,
}

impl Asked {
    /// Its user.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.identity.uid
    }

    /// The namespace it asks for.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.identity.namespace
    }

    /// The auth payload of its CONNECT; an empty object if it sent none.
    ///
    /// # Errors
    /// When it is not what was asked for.
    pub fn auth<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read_auth(&self.auth)
    }
}

fn read_auth<T: DeserializeOwned>(auth: &Bytes) -> Result<T, Error> {
    let text: &[u8] = if auth.is_empty() { b"{}" } else { auth };
    Ok(serde_json::from_slice(text)?)
}

pub(super) fn check_room(room: &str, limits: &Limits) -> Result<(), Error> {
    check_room_name(room, limits).map_err(|error| EventRefused(error.message.into_owned()).into())
}

/// One client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Socket {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) identity: SessionIdentity,
    /// What its CONNECT carried; only in `on_connect`.
    pub(super) auth: Bytes,
    pub(super) rooms: Vec<Arc<str>>,
    pub(super) io: Io,
    pub(super) questions: Arc<Questions>,
    pub(super) turn: Mutex<Turn>,
    pub(super) data: Mutex<Bytes>,
}

/// What a handler has done so far.
#[derive(Debug)]
pub(super) struct Turn {
    /// Not handed over yet.
    pub(super) commands: Vec<AppCommand>,
    /// How commands get to the session; `None` once the handler has returned.
    pub(super) way: Option<super::runtime::Way>,
}

impl Socket {
    /// Its public id.
    #[must_use]
    pub fn id(&self) -> String {
        self.inner.identity.sid.to_text()
    }

    /// Its user.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.identity.uid
    }

    /// Its product.
    #[must_use]
    pub fn product(&self) -> &str {
        &self.inner.identity.product
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.inner.identity.namespace
    }

    /// The rooms it was in when the handler began.
    pub fn rooms(&self) -> impl Iterator<Item = &str> {
        self.inner.rooms.iter().map(|room| &**room)
    }

    /// The auth payload of its CONNECT; an empty object outside `on_connect`.
    ///
    /// # Errors
    /// When it is not what was asked for.
    pub fn auth<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read_auth(&self.inner.auth)
    }

    /// The other clients of the product.
    #[must_use]
    pub fn io(&self) -> &Io {
        &self.inner.io
    }

    /// What is kept with the session.
    ///
    /// # Errors
    /// When it is not what was asked for; `null` until something is set.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_slice(&lock(&self.inner.data))?)
    }

    /// Keeps `value` with the session, at most 4 KiB of JSON. It survives the session's owner.
    ///
    /// # Errors
    /// When it does not serialise or is too large.
    pub fn set_data(&self, value: &impl Serialize) -> Result<(), Error> {
        const DATA_BYTES_MAX: usize = 4 << 10;
        let json = serde_json::to_vec(value)?;
        if json.len() > DATA_BYTES_MAX {
            return Err(EventRefused(format!("data of a session has at most {DATA_BYTES_MAX} bytes")).into());
        }
        let json = Bytes::from(json);
        *lock(&self.inner.data) = json.clone();
        self.push(AppCommand::SetData(json));
        Ok(())
    }

    /// Sends its client an event.
    ///
    /// # Errors
    /// When an argument does not serialise, or the event may not be sent.
    pub fn emit(&self, event: &str, args: impl Args) -> Result<(), Error> {
        let payload = self.event(event, &args)?;
        self.push(AppCommand::Emit { payload, volatile: false, asks: None });
        Ok(())
    }

    /// The same, if the client can take it at once; else nothing.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub fn emit_volatile(&self, event: &str, args: impl Args) -> Result<(), Error> {
        let payload = self.event(event, &args)?;
        self.push(AppCommand::Emit { payload, volatile: true, asks: None });
        Ok(())
    }

    /// Sends its client an event and waits for the answer. All that the handler has done so far takes
    /// effect before.
    ///
    /// # Errors
    /// As [`Self::emit`]; when the client does not answer within `timeout`, or has lost its transport; when
    /// the handler has returned.
    pub async fn emit_with_ack<T: DeserializeOwned>(
        &self,
        event: &str,
        args: impl Args,
        timeout: Duration,
    ) -> Result<T, Error> {
        let payload = self.event(event, &args)?;
        let (name, answer) = self.inner.questions.ask();
        let _forget = Forget(&self.inner.questions, name);
        self.push(AppCommand::Emit { payload, volatile: false, asks: Some(name) });
        if !self.flush(AppThen::More) {
            return Err("only a handler can wait for its client".into());
        }
        let answer = tokio::time::timeout(timeout, answer).await;
        let answer = answer.map_err(|_| "the client did not answer in time")?;
        let answer: Option<Payload> = answer.unwrap_or(None);
        read_answer(&answer.ok_or("the client is not connected any more")?)
    }

    /// Puts it into a room. What the handler does after that comes after the join.
    pub fn join(&self, room: &str) {
        if let Err(error) = check_room(room, self.limits()) {
            return tracing::warn!(%error, room, "a handler joins no room");
        }
        self.push(AppCommand::Join(room.into()));
    }

    /// Takes it out of a room.
    pub fn leave(&self, room: &str) {
        self.push(AppCommand::Leave(room.into()));
    }

    /// Ends it; its transport too, with all other sessions over it, if `close`.
    pub fn disconnect(&self, close: bool) {
        self.push(AppCommand::Disconnect { close });
    }

    /// Everyone in a room but this socket.
    pub fn to(&self, room: &str) -> Target<'_> {
        Target::new(self, true).and(room)
    }

    /// Everyone in a room, this socket too.
    pub fn within(&self, room: &str) -> Target<'_> {
        Target::new(self, false).and(room)
    }

    /// Everyone of the namespace but this socket.
    pub fn broadcast(&self) -> Target<'_> {
        Target::new(self, true)
    }

    fn limits(&self) -> &Limits {
        &self.inner.io.shared.limits
    }

    fn event(&self, name: &str, args: &impl Args) -> Result<Payload, Error> {
        args.arguments()?.into_event(name, self.limits())
    }

    fn push(&self, command: AppCommand) {
        let mut turn = lock(&self.inner.turn);
        if turn.way.is_some() {
            turn.commands.push(command);
            return;
        }
        drop(turn);
        self.push_late(command);
    }

    /// The handler has returned: as from outside.
    fn push_late(&self, command: AppCommand) {
        let (io, sid) = (self.inner.io.clone(), self.id());
        let shared = io.shared.clone();
        let done = async move {
            let sent = match command {
                AppCommand::Emit { payload, .. } => io.command(&sid, io::emission(payload)).await.map(drop),
                AppCommand::Join(room) => io.command(&sid, Command::Join(room)).await.map(drop),
                AppCommand::Leave(room) => io.command(&sid, Command::Leave(room)).await.map(drop),
                AppCommand::Disconnect { close } => io.disconnect(&sid, close).await.map(drop),
                AppCommand::SetData(_) => Err("only a handler sets its session's data".into()),
                AppCommand::Publish { rooms, payload, except_sids, except_rooms, volatile, .. } => {
                    let whom = Whom { rooms, except_rooms, except_sids, volatile };
                    Audience::new(io, whom).publish(payload, None, None).await.map(drop)
                }
                AppCommand::Act { rooms, action, except_sids, except_rooms } => {
                    let whom = Whom { rooms, except_rooms, except_sids, volatile: false };
                    let none = Payload::json("[]");
                    Audience::new(io, whom).publish(none, Some(action), None).await.map(drop)
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "what a socket did after its handler had no effect");
            }
        };
        shared.spawn("handler-late", done);
    }

    /// Hands over what has been done; `false` if the handler has returned.
    pub(super) fn flush(&self, then: AppThen) -> bool {
        let mut turn = lock(&self.inner.turn);
        let commands = std::mem::take(&mut turn.commands);
        let is_over = then != AppThen::More;
        let Some(way) = &turn.way else { return false };
        way.answer(AppOutcome { commands, then });
        if is_over {
            turn.way = None;
        }
        true
    }
}

/// Gives up a question that nobody waits for.
struct Forget<'a>(&'a Questions, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

/// Whom an event of a socket is for.
#[derive(Clone, Debug)]
#[must_use]
pub struct Target<'s> {
    socket: &'s Socket,
    whom: Whom,
}

impl<'s> Target<'s> {
    fn new(socket: &'s Socket, except_self: bool) -> Self {
        let own = except_self.then_some(socket.inner.identity.sid);
        Self { socket, whom: Whom { except_sids: own.into_iter().collect(), ..Whom::default() } }
    }

    /// And those in this room; who is in several gets it once.
    pub fn and(mut self, room: &str) -> Self {
        self.whom = self.whom.and(room);
        self
    }

    /// But not those in this room, nor the session of this public id.
    pub fn except(mut self, room_or_id: &str) -> Self {
        self.whom = self.whom.except(room_or_id);
        self
    }

    /// Beside the room's log: only to who can take it at once.
    pub fn volatile(mut self) -> Self {
        self.whom.volatile = true;
        self
    }

    /// Sends the event.
    ///
    /// # Errors
    /// When an argument does not serialise, the event may not be sent, or a room cannot have such a name.
    pub fn emit(self, event: &str, args: impl Args) -> Result<(), Error> {
        let payload = self.socket.event(event, &args)?;
        self.publish(payload, None)
    }

    fn publish(self, payload: Payload, asks: Option<(u64, Duration)>) -> Result<(), Error> {
        self.whom.check(&self.socket.inner.io.shared)?;
        let Self { socket, whom: Whom { rooms, except_rooms, except_sids, volatile } } = self;
        socket.push(AppCommand::Publish { rooms, payload, except_sids, except_rooms, volatile, asks });
        Ok(())
    }

    /// Sends the event and waits until all members have answered, `timeout` at most. All that the handler has
    /// done so far takes effect before. Answers that are missing are told by [`Answers`], not as an error.
    ///
    /// # Errors
    /// As [`Self::emit`]; a timeout of more than 60 s; too many questions under way.
    pub async fn emit_with_ack(
        self,
        event: &str,
        args: impl Args,
        timeout: Duration,
    ) -> Result<Answers, Error> {
        check_timeout(timeout)?;
        let inner = self.socket.inner.clone();
        if lock(&inner.turn).way.is_none() {
            // The handler has returned: as from outside.
            return Audience::new(inner.io.clone(), self.whom).emit_with_ack(event, args, timeout).await;
        }
        let payload = self.socket.event(event, &args)?;
        let (name, gathered) = inner.questions.ask_rooms();
        let _forget = Forget(&inner.questions, name);
        let socket = self.socket;
        self.publish(payload, Some((name, timeout)))?;
        socket.flush(AppThen::More);
        let gathered = gathered.await.map_err(|_| "the node stops")?;
        Ok(answers_of(gathered, &inner.io.shared))
    }

    /// Puts the members into a room. It has its place among the events of the rooms they are in, and is under
    /// way when the handler goes on; [`Audience::join`] waits for it.
    ///
    /// # Errors
    /// When a room's name cannot be one.
    pub fn join(self, room: &str) -> Result<(), Error> {
        check_room(room, self.socket.limits())?;
        self.act(Action::Join(vec![room.into()]))
    }

    /// Takes the members out of a room, as [`Self::join`].
    ///
    /// # Errors
    /// When a room's name cannot be one.
    pub fn leave(self, room: &str) -> Result<(), Error> {
        check_room(room, self.socket.limits())?;
        self.act(Action::Leave(vec![room.into()]))
    }

    /// Ends the members' sessions, with their transports if `close`, as [`Self::join`].
    ///
    /// # Errors
    /// When a room's name cannot be one.
    pub fn disconnect(self, close: bool) -> Result<(), Error> {
        self.act(Action::Disconnect { close })
    }

    fn act(self, action: Action) -> Result<(), Error> {
        self.whom.check(&self.socket.inner.io.shared)?;
        let Self { socket, whom: Whom { rooms, except_rooms, except_sids, .. } } = self;
        socket.push(AppCommand::Act { rooms, action, except_sids, except_rooms });
        Ok(())
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind is whole after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Questions {
    fn ask(&self) -> (u64, oneshot::Receiver<Option<Payload>>) {
        let name = self.named.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        lock(&self.open).insert(name, tx);
        (name, rx)
    }

    /// The same of the members of rooms.
    fn ask_rooms(&self) -> (u64, oneshot::Receiver<Gathered>) {
        let name = self.named.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        lock(&self.rooms).insert(name, tx);
        (name, rx)
    }

    fn forget(&self, name: u64) {
        lock(&self.open).remove(&name);
        lock(&self.rooms).remove(&name);
    }
}
