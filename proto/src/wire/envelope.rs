//! The envelope: what one shard says to another, on this node or on a peer.

use serde::{Deserialize, Serialize};

use super::{
    Answer, BindingReplication, CommandFailed, FromEngine, NotOwner, Query, RoomReplication, RoomToEdge,
    RoomToPublisher, SessionReplication, SessionToEdge, ToAsker, ToEngine, ToRoom, ToSession,
};
use crate::id::{Address, Placement, ShardIx};

/// One message with where it comes from and where on the receiving node it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender: where answers go.
    pub from: Address,
    /// The machine addressed on the receiving node.
    pub to: To,
    /// What is said.
    pub body: Body,
}

/// Which shard of the receiving node an envelope is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum To {
    /// The shard that hosts this placement (`placement mod shards` of the receiver).
    Host(Placement),
    /// One shard.
    Shard(ShardIx),
    /// Each shard whose bit is set: one copy crosses the wire, the receiver hands it to all of them.
    Shards(u64),
    /// The node itself, not a shard: status queries.
    Node,
}

/// What one machine says to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Edge to session owner.
    ToSession(ToSession),
    /// Session owner to edge.
    SessionToEdge(SessionToEdge),
    /// Edge or publisher to room owner.
    ToRoom(ToRoom),
    /// Room owner to edge shards.
    RoomToEdge(RoomToEdge),
    /// Room owner to whoever published.
    RoomToPublisher(RoomToPublisher),
    /// The receiver does not own what it was sent; the sender repeats by its own ring.
    NotOwner(NotOwner),
    /// A question or command with one answer, matched by `call`.
    Query {
        /// The asker's running number.
        call: u64,
        /// The question.
        query: Query,
    },
    /// Its answer.
    Answer {
        /// The number asked under.
        call: u64,
        /// The answer.
        answer: Result<Answer, CommandFailed>,
    },
    /// Between holders of rooms.
    Rooms(RoomReplication),
    /// Between holders of sessions.
    Sessions(SessionReplication),
    /// From where a request of a polling client came in, to its edge.
    ToEngine(ToEngine),
    /// Back.
    FromEngine(FromEngine),
    /// Between holders of bindings.
    Bindings(BindingReplication),
    /// From owners of rooms and from edges, to whoever asks a room's members.
    ToAsker(ToAsker),
}

/// The ordered stream of a link an envelope travels on. Everything of one placement is on one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane(pub u8);

impl Lane {
    /// Lanes for data, by placement.
    pub const DATA_LANES: u8 = 4;
    /// All lanes: the data lanes, then control.
    pub const COUNT: usize = Self::DATA_LANES as usize + 1;
    /// Queries and answers: not behind the data.
    pub const CONTROL: Self = Self(Self::DATA_LANES);

    /// The data lane of `placement`. High bits: the low ones choose the shard.
    #[must_use]
    pub fn of(placement: Placement) -> Self {
        Self((placement.0 >> 48) as u8 % Self::DATA_LANES)
    }
}
