//! What edges, session owners and room owners say to each other.
//!
//! Each enum is one direction between two machines. Every message of an owner carries its term, so
//! that a receiver can refuse a lower one (DESIGN §4).

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ask::{Action, Ask};
use crate::births::Births;
use crate::id::{Address, ClientIx, Cursor, NodeRef, Pid, PublishId, RoomKey, SocketSid, Term};

/// An event or ack argument list as it came from a client: raw JSON array text (already checked by
/// the ingest gate), and the binary attachments its placeholders name. Never decoded on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// JSON text of one array, e.g. `["hello",{"n":1}]`.
    pub json: Bytes,
    /// Attachment `i` belongs to the placeholder with `"num":i`.
    pub attachments: Vec<Bytes>,
}

impl Payload {
    /// JSON without attachments.
    #[must_use]
    pub fn json(json: impl Into<Bytes>) -> Self {
        Self { json: json.into(), attachments: Vec::new() }
    }

    /// Bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.json.len() + self.attachments.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether it holds nothing at all; a checked payload holds at least `[]`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.json.is_empty() && self.attachments.is_empty()
    }
}

/// Who a session belongs to, fixed at CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionIdentity {
    /// Its public id.
    pub sid: SocketSid,
    /// Its secret for resuming.
    pub pid: Pid,
    /// The product it uses.
    pub product: Arc<str>,
    /// The user it belongs to.
    pub uid: Arc<str>,
    /// Its namespace, `/` for the main one and for plain WebSocket.
    pub namespace: Arc<str>,
    /// Whether its client carries its cursors, so that it may come back after its transport is gone.
    pub resumable: bool,
}

/// Where the transport of a session ends. A newer one beats an older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EdgeRef {
    /// Counts the transports of this session ([`next_transport`]) and, in between, the lives of the edge's node.
    pub attachment: u64,
    /// The edge's node and shard.
    pub edge: Address,
    /// The client there.
    pub client: ClientIx,
}

/// What an edge knows of a live session: enough to rebuild it when owner and backup are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// The highest term this edge has heard an owner of this session speak under.
    pub term: Term,
    /// How often this transport has been attached, this time included, and the last of these times that an
    /// owner has answered: one that knows of less has another history of the session than this edge.
    pub attached: [u64; 2],
    /// Every packet up to this one is done; the edge repeats those that follow.
    pub inbound_confirmed: u64,
    /// The last packet that any owner has been sent: none after it has been begun anywhere.
    pub inbound_sent: u64,
    /// The last entry of the own log that has reached this edge.
    pub own_seq: u64,
    /// Rooms joined, in the order of the joins.
    pub rooms: Vec<ShadowRoom>,
    /// Since when it is served what is for everyone; not told of sessions that cannot be resumed.
    pub everyone: Option<Cursor>,
}

/// A room of a session as its edge has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRoom {
    /// Which.
    pub room: RoomKey,
    /// The own-log entry that asked for the join.
    pub own_seq: u64,
    /// Where the join took effect.
    pub joined: Cursor,
}

impl Shadow {
    /// Whether its counters leave room to go on counting: no life reaches 2⁶² of anything.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        [self.term.number, self.inbound_confirmed, self.inbound_sent, self.own_seq]
            .iter()
            .all(|n| *n < COUNTER_END)
    }
}

/// Counters of peers at or above this are nonsense.
pub const COUNTER_END: u64 = 1 << 62;

/// The lower bits of an attachment's number count lives of the edge's node under one transport, the others
/// are the transport's: a transport of a node in its next life is still older than the next transport.
const ATTACHMENT_LIVES_BITS: u32 = 6;

/// The upper bits of an attachment's number count transports. Those between name who counted: owners that
/// do not know of each other count apart, and no two transports should have one number.
const ATTACHMENT_BY_BITS: u32 = 10;

/// The number of the transport after that of `attachment`, given by the node `by`; `None`: all are used up.
#[must_use]
pub fn next_transport(attachment: u64, by: NodeRef) -> Option<u64> {
    let counted = (attachment >> ATTACHMENT_LIVES_BITS >> ATTACHMENT_BY_BITS) + 1;
    let mixed = (by.id.0 ^ by.incarnation).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next =
        (counted << ATTACHMENT_BY_BITS | mixed >> (u64::BITS - ATTACHMENT_BY_BITS)) << ATTACHMENT_LIVES_BITS;
    (next < COUNTER_END >> ATTACHMENT_SHIFT).then_some(next)
}

/// Whether two attachments are of one transport, by lives of one node or handed from edge to edge.
#[must_use]
pub fn is_same_transport(a: u64, b: u64) -> bool {
    a >> ATTACHMENT_LIVES_BITS == b >> ATTACHMENT_LIVES_BITS
}

/// Packets of one attachment are counted by the lower 32 bits of their numbers.
pub const ATTACHMENT_SHIFT: u32 = 32;

/// The last number before the first packet of an attachment. No later transport of a session uses a
/// number again, however far its owner's backup had got.
#[must_use]
pub fn before_first_packet(attachment: u64) -> u64 {
    attachment << ATTACHMENT_SHIFT
}

/// One packet from a client, numbered by its edge: see [`before_first_packet`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inbound {
    /// An event; `ack` is the client's id when it wants an answer.
    Event {
        /// The id to answer under.
        ack: Option<u64>,
        /// Name and arguments.
        payload: Payload,
    },
    /// The client's answer to an event of ours.
    Ack {
        /// The id the event was sent under.
        id: u64,
        /// The arguments.
        payload: Payload,
    },
    /// The client leaves this namespace for good.
    Disconnect,
    /// A packet that an owner has carried out: it keeps its number, nothing is to be done.
    Done,
    /// Not of the client: it has come to an action on the members of a room, in that room's log.
    Act {
        /// The room.
        room: RoomKey,
        /// Where.
        at: Cursor,
        /// What.
        action: Action,
    },
}

/// Edge to session owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSession {
    /// This edge holds the session's transport: a new session, or one whose owner has changed. The owner
    /// begins anew: it takes up after `inbound_confirmed` of the shadow, and the edge repeats the rest.
    Attach {
        /// Whose.
        identity: SessionIdentity,
        /// Where.
        edge: EdgeRef,
        /// What to rebuild it from where the owner knows nothing.
        shadow: Box<Shadow>,
        /// The auth payload of a client that is not in yet, for products with code of their own.
        hello: Option<Bytes>,
        /// The number of another transport, as [`SessionToEdge::StillThere`] named it: the client has been
        /// heard at this one since.
        instead_of: Option<u64>,
    },
    /// Packets of the client, `first` and those that follow it.
    Inbound {
        /// Whose.
        sid: SocketSid,
        /// Number of the first.
        first: u64,
        /// In order.
        packets: Vec<Inbound>,
    },
    /// The client of this edge says that it had a session: it is to go on over this transport, whatever
    /// other there was. Answered by [`SessionToEdge::Resumed`] or [`SessionToEdge::NotResumed`]; or first by
    /// [`SessionToEdge::StillThere`], where the question may be an old one.
    Resume(Box<Resume>),
    /// The own log has reached the edge up to here.
    OwnReceived {
        /// Whose.
        sid: SocketSid,
        /// The last entry.
        own_seq: u64,
        /// The last one written to the client before something that it has answered.
        shown: u64,
    },
    /// A join is in force at the edge: from `at` on the client is served.
    Joined {
        /// Whose.
        sid: SocketSid,
        /// The own-log entry that asked for it; 0 for the room of everyone.
        own_seq: u64,
        /// The position.
        at: Cursor,
    },
    /// The transport is gone.
    Detach {
        /// Whose.
        sid: SocketSid,
        /// Which transport; a later one is not touched.
        attachment: u64,
        /// Whether the client said goodbye: no resume.
        clean: bool,
        /// Socket.IO's word for why.
        reason: DetachReason,
    },
}

/// What a client says that comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The edge's name for this question.
    pub id: u64,
    /// The session's secret: it leads to the session as well.
    pub pid: Pid,
    /// The product it uses now.
    pub product: Arc<str>,
    /// Who it is now.
    pub uid: Arc<str>,
    /// The namespace it asks for.
    pub namespace: Arc<str>,
    /// Where it is.
    pub client: ClientIx,
    /// What it has carried ([`crate::recovery`]), as it came.
    pub offset: Option<Arc<str>>,
    /// The number of the session's last transport, as [`SessionToEdge::StillThere`] named it: the client has
    /// been heard since.
    pub instead_of: Option<u64>,
}

/// A session that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Which question this answers.
    pub id: u64,
    /// Whose it is.
    pub identity: SessionIdentity,
    /// Under which term.
    pub term: Term,
    /// The number of the new transport.
    pub attachment: u64,
    /// Own-log entries after this one follow.
    pub own_seq: u64,
    /// The room of everyone, then the others in the order of their joins.
    pub rooms: Vec<ResumedRoom>,
}

/// A room of a session that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumedRoom {
    /// Which.
    pub room: RoomKey,
    /// The own-log entry that asked for the join; 0 for the room of everyone.
    pub own_seq: u64,
    /// Where the join took effect.
    pub joined: Cursor,
    /// What follows this place the client has not seen.
    pub after: Cursor,
}

/// Why a transport ended, in Socket.IO's strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetachReason {
    /// "client namespace disconnect"
    ClientDisconnect,
    /// "server namespace disconnect"
    ServerDisconnect,
    /// "ping timeout"
    PingTimeout,
    /// "transport close"
    TransportClose,
    /// "transport error"
    TransportError,
    /// "parse error"
    ParseError,
    /// "server shutting down"
    ServerShuttingDown,
}

impl DetachReason {
    /// Whether the client may come back to its session: it did not mean to leave, nor was it sent away.
    #[must_use]
    pub fn may_resume(self) -> bool {
        !matches!(self, Self::ClientDisconnect | Self::ServerDisconnect | Self::ParseError)
    }

    /// Socket.IO's string.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientDisconnect => "client namespace disconnect",
            Self::ServerDisconnect => "server namespace disconnect",
            Self::PingTimeout => "ping timeout",
            Self::TransportClose => "transport close",
            Self::TransportError => "transport error",
            Self::ParseError => "parse error",
            Self::ServerShuttingDown => "server shutting down",
        }
    }
}
/// Why a client that came back begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotResumed {
    /// Nobody has the session: its window is over, it has ended, or owner and backup died together.
    Gone,
    /// The secret, the product, the uid or the namespace is not its own, or it was never to be resumed.
    NotTheirs,
    /// Its former edge knew that it had missed something.
    Hole,
    /// Its own log does not reach back to what it has seen.
    OwnLog,
    /// Which rooms it was in at that moment is not known any more.
    Rooms,
    /// It has seen another history of a room.
    History,
    /// The log of a room does not hold its place. Found by its edge.
    RoomLog,
    /// No answer in time. Found by its edge.
    Late,
}

/// Session owner to edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SessionToEdge {
    /// The owner has taken the session on (answer to `Attach`).
    Attached {
        /// Whose.
        sid: SocketSid,
        /// Under which term.
        term: Term,
        /// What the `Attach` said: the owner waits for the packet after it.
        inbound_confirmed: u64,
        /// Which `Attach` of this transport it was.
        attached: u64,
    },
    /// Packets that are carried out and safe, in the order they became so: an edge forgets them, and
    /// answers the client once. One that is lost with its owner is made again by the next, from the
    /// repeated packet.
    Done {
        /// Whose.
        sid: SocketSid,
        /// Under which term.
        term: Term,
        /// Which.
        packets: Vec<Done>,
    },
    /// Entries of the own log, `first` and those that follow it.
    Own {
        /// Whose.
        sid: SocketSid,
        /// Under which term.
        term: Term,
        /// Number of the first.
        first: u64,
        /// In order.
        entries: Vec<OwnEntry>,
    },
    /// The session goes on at this edge (answer to `Resume`); its rooms are to be found before the client
    /// is told.
    Resumed(Box<Resumed>),
    /// The session has another transport, or has had one, and which of the two is the later one is not known:
    /// of a `Resume` because the client's offset does not know of it, of an `Attach` because two owners have
    /// counted. It is to be said again, naming that transport, if the client answers a ping from now on.
    StillThere {
        /// Whose.
        sid: SocketSid,
        /// Which question this answers; `None`: an `Attach`.
        id: Option<u64>,
        /// The number of that transport.
        attachment: u64,
    },
    /// It does not, or not without a hole (answer to `Resume`): the client begins anew.
    NotResumed {
        /// Whose.
        sid: SocketSid,
        /// Which question this answers.
        id: u64,
        /// For logs; clients are not told.
        why: NotResumed,
    },
    /// The product's code does not let the session in; it is over.
    Refused {
        /// Whose.
        sid: SocketSid,
        /// Which transport was meant.
        attachment: u64,
        /// For people.
        message: String,
        /// Further JSON for the client.
        data: Option<Bytes>,
    },
    /// Something of what the owner sent is lost: attach anew, or say that the session is gone.
    Reattach {
        /// Whose.
        sid: SocketSid,
    },
    /// The owner does not know this session (it has ended); the edge closes the client's namespace.
    Unknown {
        /// Whose.
        sid: SocketSid,
        /// Which transport was meant.
        attachment: u64,
    },
}

/// A packet carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Its number.
    pub number: u64,
    /// The answer, if the client wants one: its id, and the arguments.
    pub ack: Option<(u64, Payload)>,
    /// The answer is held at the edge until the client has been served this far in that room (its own
    /// publish comes before its ack), for 1 s at most and only while it is in the room.
    pub after: Option<(RoomKey, Cursor)>,
}

/// An entry of a session's own log: what is for this client alone and answers none of its packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OwnEntry {
    /// An event for this client.
    Emit {
        /// Name and arguments.
        payload: Payload,
        /// Written only if it can be written at once.
        volatile: bool,
        /// The client is to answer, under the number of this entry. Such an event is not kept for a client
        /// that comes back.
        asks: bool,
        /// Held at the edge until the client has been served this far in that room (as in [`Done`]).
        after: Option<(RoomKey, Cursor)>,
    },
    /// The session is in this room from here on.
    Join(RoomKey, AskedBy),
    /// The session is not in this room any more.
    Leave(RoomKey, AskedBy),
    /// The session ends; the client is told (`41`), and its transport closed if asked.
    Disconnect {
        /// Close the transport as well.
        close: bool,
        /// For the plain protocol and the log.
        code: DisconnectCode,
    },
}

/// Who wants a session in a room or out of it. A client that did not ask is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AskedBy {
    /// The client itself: it gets an ack.
    Client,
    /// A backend.
    Backend,
}

/// Why an owner ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DisconnectCode {
    /// A backend or an operator asked for it.
    Requested,
    /// One session more of this uid than is allowed; this was the oldest.
    SessionsPerUid,
}

/// To a room's owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToRoom {
    /// Append to the log, once per id; answered by `RoomToPublisher`.
    Publish(Publish),
    /// The sending edge shard wants these rooms from its cursors on.
    Subscribe(Vec<Subscription>),
    /// The sending edge shard has no member any more.
    Unsubscribe(Vec<RoomKey>),
    /// The sending edge shard has taken entries up to here: the window opens.
    Taken {
        /// Which room.
        room: RoomKey,
        /// The last entry.
        cursor: Cursor,
    },
    /// The sending edge shard has readers before its tail: it wants the entries after one place of the
    /// log up to another. Answered by [`RoomToEdge::Fetched`].
    Fetch {
        /// The room.
        room: RoomKey,
        /// Where the readers are.
        after: Cursor,
        /// Where what the edge has begins.
        upto: Cursor,
    },
}

/// What an edge shard asks of a room's owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// The room.
    pub room: RoomKey,
    /// The last position served here.
    pub after: Cursor,
    /// The highest term heard here; the owner's must not be below it.
    pub term: Term,
    /// Start with what comes next, not with what follows `after`: nobody here was in the room.
    pub at_head: bool,
    /// Counts what this edge shard has asked: repeated in the answer.
    pub asked: u64,
}

/// One publish to one room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// The room.
    pub room: RoomKey,
    /// By whom, kept through retries.
    pub id: PublishId,
    /// An id the client or backend chose: the same (origin, key) is appended once.
    pub dedupe: Option<DedupeKey>,
    /// What the members get.
    pub event: RoomEvent,
    /// The publish of the same session to the same room that was unconfirmed when this one was sent
    /// (number, index): the room takes this one only after that one.
    pub after: Option<(u64, u32)>,
}

/// An idempotency key with whoever chose it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DedupeKey {
    /// The uid; `None` for the HTTP API.
    pub uid: Option<Arc<str>>,
    /// Chosen by the client or backend.
    pub key: Arc<str>,
}

/// An event for a room's members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEvent {
    /// Name and arguments.
    pub payload: Payload,
    /// Sessions that do not get it.
    pub except_sids: Vec<SocketSid>,
    /// Rooms whose members do not get it.
    pub except_rooms: Vec<Arc<str>>,
    /// Written only to clients whose queue is empty; not in the log.
    pub volatile: bool,
    /// Every room it was sent to, if there are several: who is in more than one of them gets it once.
    pub also: Vec<Arc<str>>,
    /// The members are to answer, or something is done to them.
    pub asks: Option<Box<Ask>>,
}

impl RoomEvent {
    /// For all members of one room, kept in its log.
    #[must_use]
    pub fn new(payload: Payload) -> Self {
        Self {
            payload,
            except_sids: Vec::new(),
            except_rooms: Vec::new(),
            volatile: false,
            also: Vec::new(),
            asks: None,
        }
    }

    /// Not an event but an action on the members.
    #[must_use]
    pub fn action(&self) -> Option<&Action> {
        self.asks.as_ref()?.action.as_ref()
    }
}

/// Room owner to publisher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RoomToPublisher {
    /// Appended (or seen before): the publish is safe.
    Published {
        /// The room.
        room: RoomKey,
        /// Which publish.
        id: PublishId,
        /// Its position. For a repeat of an entry the log no longer has: the last known one.
        at: Cursor,
    },
    /// Not appended, and a repeat would not be.
    Refused {
        /// The room.
        room: RoomKey,
        /// Which publish.
        id: PublishId,
        /// Why.
        why: PublishRefused,
    },
}

/// Why a room's owner refuses a publish for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublishRefused {
    /// The node owns as many rooms as it may.
    RoomsPerNode,
}

/// Room owner to edge shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RoomToEdge {
    /// In force (answer to `Subscribe`): entries follow after `from`.
    Subscribed {
        /// The room.
        room: RoomKey,
        /// Under which term.
        term: Term,
        /// Where this subscription starts. Below it nothing will come.
        from: Cursor,
        /// Whether entries between the asked cursor and `from` are gone: a hole, to be told.
        gap: bool,
        /// Everything that lies before `from`, where the edge does not know that already: where it begins,
        /// and after a hole. None of these is news to anybody, should another history bring it back.
        births: Births,
        /// That of the subscription.
        asked: u64,
    },
    /// Entries of the log, `first` and those that follow it.
    Entries {
        /// The room.
        room: RoomKey,
        /// Under which term they are sent.
        term: Term,
        /// Number of the first.
        first: u64,
        /// In order.
        entries: Vec<RoomEntry>,
    },
    /// A volatile event, beside the log.
    Volatile {
        /// The room.
        room: RoomKey,
        /// What.
        event: RoomEvent,
    },
    /// Older entries (answer to [`ToRoom::Fetch`]).
    Fetched {
        /// The room.
        room: RoomKey,
        /// Under which term they are sent.
        term: Term,
        /// The place that was asked for: the first entry is `after.seq + 1`.
        after: Cursor,
        /// In order, as many as fit one answer, none beyond what was asked for. `None`: the log does not
        /// hold both places and all that lies between them (any more).
        entries: Option<Vec<RoomEntry>>,
    },
}

/// An entry of a room's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEntry {
    /// The term it was appended under.
    pub term: Term,
    /// The place it had first, if that is another: a merge has appended it again.
    pub first: Option<Box<Cursor>>,
    /// By whom.
    pub id: PublishId,
    /// What.
    pub event: RoomEvent,
}

impl RoomEntry {
    /// An entry that has not been in any log.
    #[must_use]
    pub fn new(term: Term, id: PublishId, event: RoomEvent) -> Self {
        Self { term, first: None, id, event }
    }

    /// The place it had first. Its own is `seq`.
    #[must_use]
    pub fn born(&self, seq: u64) -> Cursor {
        self.first.as_deref().copied().unwrap_or(Cursor { term: self.term, seq })
    }
}

/// The receiver does not own what it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotOwner {
    /// What was meant.
    pub subject: Subject,
    /// Who owns it by the receiver's ring.
    pub owner: Option<NodeRef>,
    /// The receiver's ring.
    pub ring_digest: u64,
}

/// What a `NotOwner` is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Subject {
    /// A session.
    Session(SocketSid),
    /// A room.
    Room(RoomKey),
    /// A query.
    Call(u64),
}
