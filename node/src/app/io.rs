//! Reaching clients from outside handlers, or from a handler those of others.
//!
//! Belongs here: the commands that any node takes for any client. Stays out: what a handler does for its own
//! socket and to rooms in order (`socket`).
//! Order: what one caller awaits comes before what it does next.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_proto::id::{Address, NodeRef, PublishId, RoomKey, ShardIx, SocketSid};
use mesh_proto::limits::Limits;
use mesh_proto::view::NodeInfo;
use mesh_proto::wire::{self, Answer, Command, CommandFailed, Payload, Query, RoomEvent};
use tokio::runtime::Handle;

use super::audience::{Audience, Whom};
use super::event::Args;
use super::{Error, socket};
use crate::handles::{Shards, ViewWatch};
use crate::tasks::{OnPanic, Tasks};

/// Publishes from here are numbered apart from those of the HTTP API, which are of shard 0.
const VIA: ShardIx = ShardIx(1);

/// The clients of one product in one namespace, wherever they are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Io {
    pub(super) shared: Arc<Shared>,
    pub(super) product: Arc<str>,
    pub(super) namespace: Arc<str>,
}

/// What all handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) shards: Shards,
    pub(super) view: ViewWatch,
    pub(super) limits: Limits,
    tasks: Tasks,
    handle: Handle,
    numbers: AtomicU64,
}

impl Shared {
    pub(super) fn new(shards: Shards, view: ViewWatch, limits: Limits, tasks: Tasks, handle: Handle) -> Self {
        Self { shards, view, limits, tasks, handle, numbers: AtomicU64::new(0) }
    }

    /// What people call these nodes.
    pub(super) fn names(&self, nodes: &[NodeRef]) -> Vec<String> {
        let view = self.view.borrow();
        let name = |node: &NodeRef| view.node(*node).map_or_else(|| format!("{node:?}"), NodeInfo::name);
        nodes.iter().map(name).collect()
    }

    /// Starts a task on the threads for handlers.
    pub(super) fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(&self.handle, name, OnPanic::EndTask, task);
    }
}

/// Who is in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// How many.
    pub count: u64,
    /// uid and socket id of each, as far as `limits.members_listed_max` goes.
    pub listed: Vec<(Arc<str>, String)>,
    /// Names of nodes that did not answer: their members are missing here.
    pub silent: Vec<String>,
}

impl Io {
    /// The same product's other namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self { namespace: name.into(), ..self.clone() }
    }

    /// Sends an event to everyone of the namespace.
    ///
    /// # Errors
    /// When an argument does not serialise, the event may not be sent, or no owner answered in time.
    pub async fn emit(&self, event: &str, args: impl Args) -> Result<(), Error> {
        self.publish("", event, args).await
    }

    /// Sends an event to a room.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub async fn emit_to(&self, room: &str, event: &str, args: impl Args) -> Result<(), Error> {
        socket::check_room(room, &self.shared.limits)?;
        self.publish(room, event, args).await
    }

    /// The members of a room: what is sent to them, asked of them or done to them.
    pub fn to(&self, room: &str) -> Audience {
        Audience::new(self.clone(), Whom::default().and(room))
    }

    /// Everyone of the namespace.
    pub fn everyone(&self) -> Audience {
        Audience::new(self.clone(), Whom::default())
    }

    async fn publish(&self, room: &str, event: &str, args: impl Args) -> Result<(), Error> {
        let payload = args.arguments()?.into_event(event, &self.shared.limits)?;
        let room = RoomKey::new(&self.product, &self.namespace, room);
        self.publish_event(room, RoomEvent::new(payload)).await
    }

    async fn publish_event(&self, room: RoomKey, event: RoomEvent) -> Result<(), Error> {
        let via = Address { node: self.shared.view.borrow().me, shard: VIA };
        let id = PublishId::Api { via, number: self.shared.numbers.fetch_add(1, Ordering::Relaxed) };
        let spread = room.placement().0;
        let publish = wire::Publish { room, id, dedupe: None, event, after: None };
        self.ask(spread, Query::Publish(publish)).await?;
        Ok(())
    }

    /// Sends an event to all sessions of a user; how many there are.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub async fn emit_to_user(&self, uid: &str, event: &str, args: impl Args) -> Result<u32, Error> {
        let payload = args.arguments()?.into_event(event, &self.shared.limits)?;
        let query =
            Query::User { product: self.product.clone(), uid: uid.into(), command: emission(payload) };
        self.count(query).await
    }

    /// Sends an event to one session, by its public id; whether it is there.
    ///
    /// # Errors
    /// As [`Self::emit`].
    pub async fn emit_to_socket(&self, sid: &str, event: &str, args: impl Args) -> Result<bool, Error> {
        let payload = args.arguments()?.into_event(event, &self.shared.limits)?;
        self.command(sid, emission(payload)).await
    }

    /// Puts one session into a room; whether it is there.
    ///
    /// # Errors
    /// When the room's name cannot be one, or no owner answered in time.
    pub async fn join(&self, sid: &str, room: &str) -> Result<bool, Error> {
        socket::check_room(room, &self.shared.limits)?;
        self.command(sid, Command::Join(room.into())).await
    }

    /// Takes one session out of a room; whether it is there.
    ///
    /// # Errors
    /// When no owner answered in time.
    pub async fn leave(&self, sid: &str, room: &str) -> Result<bool, Error> {
        self.command(sid, Command::Leave(room.into())).await
    }

    /// Ends one session, with its transport if `close`; whether it was there.
    ///
    /// # Errors
    /// When no owner answered in time.
    pub async fn disconnect(&self, sid: &str, close: bool) -> Result<bool, Error> {
        self.command(sid, Command::Disconnect { close }).await
    }

    pub(super) async fn command(&self, sid: &str, command: Command) -> Result<bool, Error> {
        let Some(sid) = SocketSid::from_text(sid) else { return Ok(false) };
        let query = Query::Session { product: self.product.clone(), sid, command };
        Ok(self.count(query).await? > 0)
    }

    /// Who is in a room, across all nodes. A node that does not answer in time is named in the answer.
    ///
    /// # Errors
    /// When the room's owner did not answer in time.
    pub async fn members(&self, room: &str) -> Result<Members, Error> {
        let room = RoomKey::new(&self.product, &self.namespace, room);
        self.ask_members(Query::Members { room, list: true }).await
    }

    pub(super) async fn ask_members(&self, query: Query) -> Result<Members, Error> {
        let answer = match self.ask(0, query).await {
            Ok(answer) => answer,
            // Nobody has ever been in it.
            Err(CommandFailed::NotFound) => return Ok(Members::default()),
            Err(failed) => return Err(failed.into()),
        };
        let Answer::Members(members) = answer else { return Ok(Members::default()) };
        Ok(Members {
            count: members.sessions,
            listed: members.listed.into_iter().map(|m| (m.uid, m.sid.to_text())).collect(),
            silent: self.shared.names(&members.silent),
        })
    }

    async fn count(&self, query: Query) -> Result<u32, Error> {
        match self.ask(0, query).await {
            Ok(Answer::Done { sessions }) => Ok(sessions),
            Ok(_) | Err(CommandFailed::NotFound) => Ok(0),
            Err(failed) => Err(failed.into()),
        }
    }

    /// By one shard for each room, and one for all else, so that what is asked first comes first.
    async fn ask(&self, spread: u64, query: Query) -> Result<Answer, CommandFailed> {
        self.ask_within(spread, query, Duration::ZERO).await
    }

    /// The same, where the answer takes `more` than an owner's.
    pub(super) async fn ask_within(
        &self,
        spread: u64,
        query: Query,
        more: Duration,
    ) -> Result<Answer, CommandFailed> {
        let shards = self.shared.shards.0.len().max(1) as u64;
        let shard = ShardIx(u16::try_from(spread % shards).unwrap_or(0));
        let asked = self.shared.shards.ask(shard, query);
        let limit = 2 * self.shared.limits.api_timeout + more;
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(CommandFailed::Timeout))
    }
}

/// An event for every session that the query names.
pub(super) fn emission(payload: Payload) -> Command {
    Command::Emit { payload, except_rooms: Vec::new(), except_sids: Vec::new(), dedupe: None }
}
