//! Questions and commands from the HTTP API, from operators and between owners on their behalf, and the answers.
//!
//! Most go to an owner, which follows from [`Query::placement`]; others to one node, or to one shard.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ask::{Action, Gathered};
use super::binding::{BindingFacts, Wish};
use super::messages::{DedupeKey, Payload, Publish, RoomEvent};
use super::status::{DrainCommand, DrainStatus, NodeStatus, OwnershipFacts, Reloaded};
use crate::binding::BindingKey;
use crate::id::{Address, Cursor, NodeRef, Placement, RoomKey, SocketSid, Term};

/// A question or command from the HTTP API or an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Query {
    /// Publish to a room (to its owner).
    Publish(Publish),
    /// Do this with all sessions of a user (to their owner).
    User {
        /// The product.
        product: Arc<str>,
        /// The user.
        uid: Arc<str>,
        /// What to do.
        command: Command,
    },
    /// Do this with one session (to its owner).
    Session {
        /// The product it must belong to.
        product: Arc<str>,
        /// Which.
        sid: SocketSid,
        /// What to do.
        command: Command,
    },
    /// Who is in a room (to its owner, which asks the edges).
    Members {
        /// The room.
        room: RoomKey,
        /// Names too, or counts only.
        list: bool,
    },
    /// Who of any of these rooms is at this edge shard.
    LocalMembers {
        /// The rooms.
        rooms: Vec<RoomKey>,
        /// Sessions that are left out.
        except_sids: Vec<SocketSid>,
        /// Rooms whose members are left out.
        except_rooms: Vec<Arc<str>>,
        /// Names too, or counts only.
        list: bool,
    },
    /// The recent entries of a room's log (to its owner).
    History {
        /// The room.
        room: RoomKey,
        /// At most so many, newest last.
        count: u32,
    },
    /// What the owner knows of a user (for `meshctl explain`).
    ExplainUser {
        /// The product.
        product: Arc<str>,
        /// The user.
        uid: Arc<str>,
    },
    /// What the owner knows of a room (for `meshctl explain`).
    ExplainRoom(RoomKey),
    /// Counts of one node ([`To::Node`](super::To::Node)).
    NodeStatus,
    /// Drain the node, stop doing so, or say how far it is ([`To::Node`](super::To::Node)).
    Drain(DrainCommand),
    /// Where a user or a session of a proxied product is to go (to the binding's owner). May be repeated.
    Bind {
        /// Of whom.
        key: BindingKey,
        /// What is wanted.
        wish: Wish,
        /// The binding ends when it has not been asked for so long; `Duration::MAX`: it stays until it is
        /// forgotten. Zero, for `Find`: this only looks, and keeps nothing.
        keep: Duration,
    },
    /// What the owner knows of a binding (for `meshctl explain`).
    ExplainBinding(BindingKey),
    /// Who is in any of these rooms. Carried out by the shard that is told, which asks all edges; no node asks
    /// another for it.
    MembersOf {
        /// The rooms.
        rooms: Vec<RoomKey>,
        /// Sessions that are left out.
        except_sids: Vec<SocketSid>,
        /// Rooms whose members are left out.
        except_rooms: Vec<Arc<str>>,
    },
    /// Publish to several rooms, or ask their members. Carried out by the shard that is told, by a `Publish`
    /// to each room; no node asks another for it.
    Broadcast(Box<Broadcast>),
    /// Take over the settings as they are now ([`To::Node`](super::To::Node)).
    Reload,
}

/// An event to rooms, or something done to their members; who is in several of them has it once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broadcast {
    /// To which; none twice.
    pub rooms: Vec<RoomKey>,
    /// What; [`RoomEvent::also`] and [`RoomEvent::asks`] are filled in on the way.
    pub event: RoomEvent,
    /// Something done to the members, in place of an event.
    pub action: Option<Action>,
    /// Milliseconds to wait for what the members answer; `None`: nobody waits.
    pub within_ms: Option<u32>,
}

impl Query {
    /// Where its owner is, for those that go to an owner. `ids` opens a socket id.
    #[must_use]
    pub fn placement(&self, ids: &crate::keys::IdKey) -> Option<Placement> {
        match self {
            Self::Publish(publish) => Some(publish.room.placement()),
            Self::User { product, uid, .. } | Self::ExplainUser { product, uid } => {
                Some(Placement::of_user(product, uid))
            }
            Self::Session { sid, .. } => Some(ids.placement_of(*sid)),
            Self::Members { room, .. } | Self::History { room, .. } | Self::ExplainRoom(room) => {
                Some(room.placement())
            }
            Self::Bind { key, .. } | Self::ExplainBinding(key) => Some(key.placement()),
            Self::LocalMembers { .. }
            | Self::NodeStatus
            | Self::Drain(_)
            | Self::Reload
            | Self::MembersOf { .. }
            | Self::Broadcast(_) => None,
        }
    }
}

/// What a backend can have done to a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Send it an event.
    Emit {
        /// Name and arguments.
        payload: Payload,
        /// Rooms whose members do not get it.
        except_rooms: Vec<Arc<str>>,
        /// Sessions that do not get it.
        except_sids: Vec<SocketSid>,
        /// The same (origin, key) acts once.
        dedupe: Option<DedupeKey>,
    },
    /// Put it into a room.
    Join(Arc<str>),
    /// Take it out of a room.
    Leave(Arc<str>),
    /// End it.
    Disconnect {
        /// Close the transport as well.
        close: bool,
    },
}

/// An answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Publish`.
    Published {
        /// The position.
        at: Cursor,
        /// Whether this key had been published before.
        duplicate: bool,
    },
    /// To `User` and `Session`: sessions reached.
    Done {
        /// How many.
        sessions: u32,
    },
    /// To `Members` and `LocalMembers`.
    Members(Members),
    /// To `History`.
    History(Vec<(Cursor, Payload)>),
    /// To `ExplainUser`.
    User(Vec<SessionFacts>),
    /// To `ExplainRoom`.
    Room(RoomFacts),
    /// To `NodeStatus`.
    NodeStatus(NodeStatus),
    /// To `Drain`.
    Drain(DrainStatus),
    /// To `Bind`: it is bound to this upstream.
    Bound(Arc<str>),
    /// To `Bind`: it is not bound.
    NotBound,
    /// To `ExplainBinding`.
    Binding(BindingFacts),
    /// To a `Broadcast` whose answers are waited for.
    Gathered(Gathered),
    /// To `Reload`.
    Reloaded(Reloaded),
}

/// Who is in a room.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// Sessions in it.
    pub sessions: u64,
    /// Who, as far as asked for and within `members_listed_max`.
    pub listed: Vec<Member>,
    /// Nodes that did not answer in time: the answer is without their members.
    pub silent: Vec<NodeRef>,
}

/// One member of a room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The user.
    pub uid: Arc<str>,
    /// The session.
    pub sid: SocketSid,
}

/// What an owner knows of a session, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Its public id.
    pub sid: SocketSid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The term it is owned under.
    pub term: Term,
    /// Where its transport ends.
    pub edge: Option<Address>,
    /// Rooms it is in.
    pub rooms: u32,
    /// Inbound packets processed.
    pub inbound: u64,
    /// Entries of its own log so far.
    pub own_seq: u64,
    /// How its owner came to it, and who holds its copy.
    pub ownership: OwnershipFacts,
}

/// What an owner knows of a room, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomFacts {
    /// The term and position of the newest entry; the term alone when the log is empty.
    pub head: Cursor,
    /// Entries kept.
    pub entries: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Seconds since the oldest entry kept.
    pub seconds_kept: u64,
    /// Edge shards subscribed, and how far each is.
    pub subscribers: Vec<(Address, Cursor)>,
    /// How its owner came to it, and who holds its copy.
    pub ownership: OwnershipFacts,
}

/// A query that got no answer of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CommandFailed {
    /// No session of that uid or sid, or nothing known of that room.
    #[error("no such session or room")]
    NotFound,
    /// Nobody answered in time.
    #[error("no answer from the owner in time")]
    Timeout,
    /// No node is active.
    #[error("no node owns this key yet")]
    NoOwner,
    /// More calls under way than allowed; come back.
    #[error("too many calls under way")]
    Overloaded,
    /// The owner refuses it, and would again.
    #[error("refused: {0}")]
    Refused(String),
}
