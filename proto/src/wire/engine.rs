//! Between a node that a request of a polling client comes in by, and the edge of its Engine.IO session.
//!
//! One question and one answer for each request, whatever the cluster's size: the edge is named in the
//! Engine.IO session id. An upgrade hands the whole session to the node its WebSocket came in by.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{AskRef, Done, Inbound, OwnEntry, SessionIdentity};
use crate::id::{Address, ClientIx, Cursor, EngineSid, Pid, RoomKey, SocketSid, Term};
use crate::shard::{Packet, Refusal, Uid};

/// What an HTTP request of a polling client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineRequest {
    /// GET: what there is for the client, held until there is something.
    Poll,
    /// POST: packets of the client, as they came ([`crate::engineio::decode_payload`]).
    Post(Bytes),
    /// A WebSocket wants to take the session over: whether it may try.
    MayUpgrade,
}

/// What an HTTP request of a polling client is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineResponse {
    /// To a GET: a payload of at least one packet.
    Packets(Bytes),
    /// To a POST: its packets are numbered and kept. To `MayUpgrade`: yes.
    Taken,
    /// Nothing was done.
    Refused(EngineRefusal),
}

/// Why a request gets the reference server's 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineRefusal {
    /// Nobody has this session (any more), or its edge is gone.
    UnknownSid,
    /// It has such a request under way already.
    BadRequest,
    /// It has gone on over a WebSocket, or another one is about to take it over.
    Upgraded,
}

/// To the edge of an Engine.IO session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToEngine {
    /// A request of its client; answered by [`FromEngine::Answer`].
    Request {
        /// The asker's name for it.
        call: u64,
        /// Whose.
        sid: EngineSid,
        /// What.
        request: EngineRequest,
        /// Asked of another life of this edge before, by the asker as it was then: what became of that is not
        /// known to it.
        again: Option<Address>,
    },
    /// Nobody waits for the answer to a request any more: its connection broke.
    Gone {
        /// The asker's name for it.
        call: u64,
        /// Whose.
        sid: EngineSid,
    },
    /// The asker stops: a held GET is to be ended, for the client to come back by another node.
    Release {
        /// The asker's name for it.
        call: u64,
        /// Whose.
        sid: EngineSid,
    },
    /// A WebSocket of this client tries the way; answered by [`FromEngine::Probed`].
    Probe {
        /// Whose.
        sid: EngineSid,
        /// The WebSocket, at the sender.
        client: ClientIx,
    },
    /// It takes the session over; answered by [`FromEngine::Moved`].
    Upgrade {
        /// Whose.
        sid: EngineSid,
        /// The WebSocket, at the sender.
        client: ClientIx,
    },
    /// It is gone again.
    ProbeGone {
        /// Whose.
        sid: EngineSid,
        /// The WebSocket, at the sender.
        client: ClientIx,
    },
    /// It was gone before the session came: these have no transport.
    Abandoned(Vec<SocketSid>),
}

/// From the edge of an Engine.IO session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromEngine {
    /// To a request.
    Answer {
        /// The asker's name for it.
        call: u64,
        /// What.
        response: EngineResponse,
    },
    /// Whether the WebSocket may go on.
    Probed {
        /// Whose.
        sid: EngineSid,
        /// The WebSocket.
        client: ClientIx,
        /// No: it is to be closed.
        accepted: bool,
    },
    /// The session is the WebSocket's: its edge is the receiver now.
    Moved {
        /// Whose.
        sid: EngineSid,
        /// The WebSocket.
        client: ClientIx,
        /// Everything.
        state: Box<MovedClient>,
    },
}

/// An Engine.IO session on its way to another edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedClient {
    /// Product and user, or why it may not connect.
    pub admission: Result<(Arc<str>, Uid), Refusal>,
    /// Namespaces in which it has said who it is, and who.
    pub identified: Vec<(Arc<str>, Arc<str>)>,
    /// Its events carry how far it has got.
    pub offsets: bool,
    /// What no poll has taken.
    pub queued: Vec<Packet>,
    /// The messages of a binary packet that is not whole yet.
    pub partial: Vec<Packet>,
    /// One for each namespace, in the order they began.
    pub sessions: Vec<MovedSession>,
    /// What it has asked for as one that came back, and was not answered: asked again by the receiver.
    pub resuming: Vec<MovedResume>,
}

/// A question for a session, on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedResume {
    /// Where.
    pub namespace: Arc<str>,
    /// Which.
    pub pid: Pid,
    /// How far the client had got.
    pub offset: Option<Arc<str>>,
}

/// A session on its way to another edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedSession {
    /// Whose.
    pub identity: SessionIdentity,
    /// Its transport so far; the next one has the number after it.
    pub attachment: u64,
    /// How often its transport has been attached, and the last such time that was answered.
    pub attached: [u64; 2],
    /// The highest term heard.
    pub term: Term,
    /// Packets up to here are done and safe.
    pub confirmed: u64,
    /// The last packet sent to any owner.
    pub sent_ever: u64,
    /// Packets after `confirmed`.
    pub unconfirmed: Vec<Inbound>,
    /// The last own-log entry taken, the last one carried out, and the last one the client has shown.
    pub own: [u64; 3],
    /// What the client is owed, in the order it came.
    pub owed: Vec<MovedOwed>,
    /// The room of everyone, then the others in the order of their joins.
    pub rooms: Vec<MovedRoom>,
    /// What it is to answer as a member of rooms.
    pub asked: Vec<MovedAsk>,
}

/// A question to the members of a room that a session on its way has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedAsk {
    /// Whose question.
    pub name: AskRef,
    /// Milliseconds for which somebody waits.
    pub within_ms: u32,
    /// The id the client was asked under, if it was.
    pub put: Option<u64>,
}

/// Something a client is owed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MovedOwed {
    /// An own-log entry.
    Entry(OwnEntry),
    /// The answer to one of its packets.
    Ack(Done),
}

/// A room of a session on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovedRoom {
    /// Which.
    pub room: RoomKey,
    /// The own-log entry that asked for the join.
    pub own_seq: u64,
    /// The client is to be told when the join is in force.
    pub tell: bool,
    /// Where the join took effect, and how far the client has been served; `None`: it is not in force.
    pub place: Option<(Cursor, Cursor)>,
    /// Something before that place has not been served: the room's history was lost.
    pub has_hole: bool,
}
