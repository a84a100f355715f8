//! Changes of a session, as its owner sends them to its backup.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{AskedBy, DisconnectCode, EdgeRef, Payload, SessionState, ShadowRoom};
use crate::id::{Cursor, RoomKey};

/// Stands for the next packet of an edge that has not said yet how far it is.
pub const NEXT_PACKET: u64 = u64::MAX;

/// An idempotency key as a session remembers it: XXH3 (128 bits) over `uid length + 1, or 0 ‖ uid ‖ key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmitKey(u128);

impl EmitKey {
    /// Of the key that `uid` has chosen; `None`: a backend.
    #[must_use]
    pub fn new(uid: Option<&str>, key: &str) -> Self {
        let len = uid.map_or(0, |uid| uid.len() as u64 + 1);
        let bytes = [&len.to_le_bytes()[..], uid.unwrap_or_default().as_bytes(), key.as_bytes()].concat();
        Self(xxhash_rust::xxh3::xxh3_128(&bytes))
    }
}

/// One change of a session's replicated state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionOp {
    /// An edge holds the transport.
    Attach {
        /// Where.
        edge: EdgeRef,
        /// The last own-log entry that has reached it.
        own_seq: u64,
        /// The last packet it has sent to any owner.
        inbound_sent: u64,
        /// How often this transport has been attached.
        attached: u64,
    },
    /// What the edge knows better than its owner, which has the past or another history of the session: its
    /// rooms, how far it is. What its own log held for the edge is not for it.
    Shadow {
        /// All rooms it is in.
        rooms: Vec<ShadowRoom>,
        /// The last own-log entry that has reached it.
        own_seq: u64,
        /// The last packet that is done, with all before it.
        inbound_confirmed: u64,
    },
    /// Another copy has a later transport: it takes the place of this one.
    Replace(Box<SessionState>),
    /// The client is back on another transport, and goes on after what it has shown.
    Resume {
        /// Where.
        edge: EdgeRef,
        /// The last own-log entry it has shown.
        own_seq: u64,
    },
    /// The transport is gone.
    Park {
        /// For good: nobody may come back to it.
        over: bool,
    },
    /// It is in a room; the edge is asked to put that in force.
    Join {
        /// Which.
        room: RoomKey,
        /// Who wants it.
        by: AskedBy,
        /// The client's packet, if it is the client.
        number: u64,
    },
    /// The edge has put a join in force.
    JoinedAt {
        /// Of which room.
        room: RoomKey,
        /// From here on it serves.
        at: Cursor,
    },
    /// It is not in a room any more.
    Leave {
        /// Which.
        room: RoomKey,
        /// Who wants it.
        by: AskedBy,
        /// Packets below this one were sent by a member; [`NEXT_PACKET`] where nobody knows yet.
        number: u64,
    },
    /// The client is owed an event.
    Emit {
        /// Name and arguments.
        payload: Payload,
        /// Written only if it can be written at once.
        volatile: bool,
        /// It is not owed again what a backend repeats under this key; so many of the oldest keys are past
        /// their time.
        key: Option<(EmitKey, u32)>,
        /// The client is to answer.
        asks: bool,
        /// After this place of a room.
        after: Option<(RoomKey, Cursor)>,
    },
    /// How far the own log is.
    OwnReceived {
        /// The last entry that has reached the edge.
        own_seq: u64,
        /// The last one that the client has shown to have.
        shown: u64,
    },
    /// The product's code has let it in.
    Admit,
    /// What the product's code keeps with it.
    SetData(Bytes),
    /// An op of the product's code: command `index` of what packet `number` led to.
    Did {
        /// Of which packet.
        number: u64,
        /// Which of its commands.
        index: u32,
        /// What.
        op: Box<SessionOp>,
    },
    /// It has come to an action on the members of one of its rooms: that has its effect once.
    Act {
        /// Which room.
        room: RoomKey,
        /// Where the action stands in its log.
        at: Cursor,
        /// What it leads to.
        ops: Vec<SessionOp>,
    },
    /// The session ends; the client is told.
    End {
        /// Close the transport as well.
        close: bool,
        /// Why.
        code: DisconnectCode,
    },
}
