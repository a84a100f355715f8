//! Questions to the members of rooms, actions on them, and what comes back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Payload;
use crate::id::{Address, NodeRef, RoomKey, SocketSid};

/// Names a question: whoever asks, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AskRef {
    /// The shard that waits for the answers.
    pub by: Address,
    /// Its number for the question.
    pub number: u64,
}

/// What the members of a room are to do with an entry of its log, beside taking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Where the answers go.
    pub name: AskRef,
    /// Milliseconds after which nobody waits any more.
    pub within_ms: u32,
    /// Not an event for the clients, but this for their sessions.
    pub action: Option<Action>,
}

/// Something done to each member of a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Put it into these rooms.
    Join(Vec<Arc<str>>),
    /// Take it out of these.
    Leave(Vec<Arc<str>>),
    /// End it.
    Disconnect {
        /// Close the transport as well.
        close: bool,
    },
}

/// To the shard that asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAsker {
    /// From a room's owner: the entry is safe.
    Served {
        /// Which question.
        number: u64,
        /// The room.
        room: RoomKey,
        /// Edge shards that get it; `None`: it was published before, for another asker.
        edges: Option<Vec<Address>>,
        /// The room is new here: more edge shards may come.
        may_be_more: bool,
    },
    /// From an edge shard: it has taken the entry.
    Reached {
        /// Which question.
        number: u64,
        /// The room.
        room: RoomKey,
        /// Members that are asked there, each counted in the room that reached it first.
        clients: u32,
    },
    /// From an edge shard.
    Answers {
        /// Which question.
        number: u64,
        /// Who has answered, and what; to an action nothing.
        answers: Vec<(SocketSid, Option<Payload>)>,
        /// Who will not any more.
        gone: Vec<SocketSid>,
    },
}

/// What has come of a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gathered {
    /// Sessions that have answered, each with its answer: the JSON array of its arguments. To an action `None`.
    pub answers: Vec<(SocketSid, Option<Payload>)>,
    /// Sessions that were asked and have not answered.
    pub missing: u64,
    /// Sessions whose answers were too much to be kept.
    pub dropped: u64,
    /// Rooms whose owner has not taken it, or had taken it before for another asker.
    pub unserved: u32,
    /// Nodes that have not said whom they ask, or are gone with members that have not answered.
    pub silent: Vec<NodeRef>,
}

impl Gathered {
    /// Whether everybody who was asked has answered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.dropped == 0 && self.unserved == 0 && self.silent.is_empty()
    }
}
