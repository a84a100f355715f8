//! What a driver tells a shard, and what a shard tells its driver.
//!
//! Belongs here: inputs, outputs, close codes and counts. Stays out: behaviour (`machine`).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::app::{AppCall, AppOutcome};
use crate::id::{ClientIx, EngineSid, NodeRef, SocketSid};
use crate::limits::Limits;
use crate::view::View;
use crate::wire::{
    Answer, CommandFailed, EngineRequest, EngineResponse, Envelope, Gathered, Lane, Payload, Query,
};

/// What a client's transport speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientProtocol {
    /// Engine.IO v4 over WebSocket, Socket.IO v5 inside.
    SocketIo,
    /// Our JSON messages over a plain WebSocket (`docs/protocol.md`).
    Plain,
    /// Engine.IO v4 with messages of no protocol of ours, for products with code of their own: each is an
    /// event `message` with the text or the bytes as its argument, and so is what the code sends.
    EngineIo,
}

/// A client whose WebSocket handshake is done and whose product and user are known.
#[derive(Clone, Debug)]
pub struct NewClient {
    /// Its protocol.
    pub protocol: ClientProtocol,
    /// The product it asked for, known to exist; or why it is refused.
    pub admission: Result<Admission, Refusal>,
    /// Events are to carry how far it has got, so that it may come back to its session. Socket.IO only.
    pub offsets: bool,
    /// How it comes in.
    pub transport: Transport,
}

/// How a client comes in.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A WebSocket of its own.
    WebSocket,
    /// Long-polling: this request is its handshake. Socket.IO only.
    Polling(RequestIx),
    /// A WebSocket over which a polling client wants to go on, at whatever edge that is. Who it is, is
    /// known there. Socket.IO only.
    Upgrade(EngineSid),
}

/// An HTTP request of a polling client, named by the driver and never again after its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestIx(pub u64);

/// A client that may connect.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Its product.
    pub product: Arc<ProductRules>,
    /// Its user.
    pub uid: Uid,
}

impl Admission {
    /// For a client that says nothing more of itself.
    pub(crate) fn without_auth(self) -> Result<Self, Refusal> {
        let uid = match self.uid {
            Uid::ByAuth(otherwise) => Uid::Known(otherwise?),
            known @ Uid::Known(_) => known,
        };
        Ok(Self { uid, ..self })
    }
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Uid {
    /// Its handshake has said so.
    Known(Arc<str>),
    /// What it says when it connects to a namespace decides, asked by [`Output::Identify`]; where that
    /// names nobody it is this one, or refused. Socket.IO only.
    ByAuth(Result<Arc<str>, Refusal>),
}

impl From<&str> for Uid {
    fn from(uid: &str) -> Self {
        Self::Known(uid.into())
    }
}

impl From<String> for Uid {
    fn from(uid: String) -> Self {
        Self::Known(uid.into())
    }
}

/// Whom does what a client said when it connected to a namespace speak for?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthQuestion {
    /// Whose question it is.
    pub client: ClientIx,
    /// Its name: never given twice.
    pub number: u64,
    /// The client's product.
    pub product: Arc<str>,
    /// A whole JSON object; empty where the client sent none.
    pub auth: Bytes,
}

/// Why a client may not connect; told in its own protocol (DESIGN §10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable word: `uid_required`, `uid_invalid`, `product_unknown`.
    pub code: Cow<'static, str>,
    /// One sentence saying what to do.
    pub message: String,
}

/// The rules of one product, as far as the machines need them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProductRules {
    /// Its name.
    pub name: Arc<str>,
    /// Who may publish into a room.
    pub publish: PublishRule,
    /// Who may join a room.
    pub join: JoinRule,
    /// Whether rooms and sessions are backed up; else an owner's crash loses them.
    pub durable: bool,
    /// Which clients are to carry how far they have got.
    pub recovery: RecoveryRule,
    /// Its Socket.IO namespaces.
    pub namespaces: Namespaces,
    /// Its events are for code of its own ([`AppCall`]); else it is the built-in product `rooms`.
    pub is_app: bool,
}

impl ProductRules {
    /// The defaults: anyone with a uid joins, members publish.
    #[must_use]
    pub fn open(name: &str) -> Self {
        Self {
            name: name.into(),
            publish: PublishRule::Members,
            join: JoinRule::Anyone,
            durable: true,
            recovery: RecoveryRule::Browser,
            namespaces: Namespaces::default(),
            is_app: false,
        }
    }
}

/// The namespaces of a product: names, and beginnings of names. Each connection to one is a session of
/// its own, with rooms of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces(Vec<Arc<str>>);

impl Namespaces {
    /// Names such as `/chat`; one that ends with `*` stands for all that begin with what is before it.
    pub fn new<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Self {
        Self(names.into_iter().map(|name| name.as_ref().into()).collect())
    }

    /// The namespace called `name`, if the product has it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<str>> {
        self.0.iter().find_map(|known| match known.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning).then(|| name.into()),
            None => (**known == *name).then(|| known.clone()),
        })
    }
}

impl Default for Namespaces {
    /// The main one only.
    fn default() -> Self {
        Self::new(["/"])
    }
}

/// Whose events end with one argument more: how far the client has got. The stock JavaScript client hands
/// it back when it reconnects; others may trip over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryRule {
    /// All Socket.IO clients.
    On,
    /// Those that look like a browser, or ask for it.
    Browser,
    /// None.
    Off,
}

/// Who may publish into a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishRule {
    /// Sessions that are in it.
    Members,
    /// Any session of the product.
    Anyone,
    /// Backends only, by the HTTP API.
    Nobody,
}

/// Who may join a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRule {
    /// Any session of the product.
    Anyone,
    /// Only rooms named `{uid}…` after the session's own user; backends may put anyone anywhere.
    OwnTag,
    /// Only by a backend.
    Nobody,
}

/// One message of a client's transport: a WebSocket message, or a packet of a polling payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packet {
    /// Text, valid UTF-8.
    Text(Bytes),
    /// Binary.
    Binary(Bytes),
}

impl Packet {
    /// Bytes of content.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it has no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A client's transport is open.
    ClientOpened(ClientIx, NewClient),
    /// A client sent a message.
    ClientPacket(ClientIx, Packet),
    /// A client's transport is gone (also after our own [`Output::Close`]: exactly once per client).
    ClientClosed(ClientIx, ClientGone),
    /// The driver has tried to write all that was polled for this client; so many bytes did not go
    /// out yet. Sent once per turn for each client with output *left over*, and once with 0 when
    /// the rest has drained.
    ClientQueue(ClientIx, usize),
    /// A request of a polling client, whose Engine.IO session may be anywhere in the mesh. Exactly one
    /// [`Output::Respond`] follows, unless [`Input::RequestGone`] comes first.
    Request(RequestIx, EngineSid, EngineRequest),
    /// The connection of a request broke before its answer.
    RequestGone(RequestIx),
    /// An envelope from another shard or a peer.
    Envelope(Envelope),
    /// The cluster has changed.
    View(Arc<View>),
    /// The link to this life of a peer has lost what was under way: repeat what is unconfirmed.
    LinkReset(NodeRef),
    /// The HTTP API, or `meshctl explain`, asks; answered by [`Output::Answer`] with the same token.
    Query(u64, Query),
    /// The application's answer about a session.
    App(SocketSid, u64, AppOutcome),
    /// The answer to [`Output::Identify`]: the user, nobody, or why it is not believed.
    Identified(ClientIx, u64, Result<Option<Arc<str>>, Refusal>),
    /// Close all clients (their transports only: they may come back), at most so many now.
    CloseClients(usize),
    /// New products, or new rules of known ones; whether one is durable, or has code, does not change. Those
    /// that are not named stay for the sessions that they have.
    Products(Vec<Arc<ProductRules>>),
    /// A deadline may have passed.
    Timer,
}

/// How a transport ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientGone {
    /// The peer closed it, or we did.
    Closed,
    /// It broke.
    Error,
}

/// An event for many clients: the first message is a text that is open at its end, to be closed for each
/// client by its own tail; further ones (attachments) are the same for all.
#[derive(Debug)]
pub struct FanoutEach {
    /// The messages.
    pub open: Arc<[Packet]>,
    /// Who gets it, and where in `tails` its tail ends; it begins where the one before it ends.
    pub clients: Vec<(ClientIx, usize)>,
    /// All tails.
    pub tails: Vec<u8>,
}

impl FanoutEach {
    /// Each client with its tail.
    pub fn tails(&self) -> impl Iterator<Item = (ClientIx, &[u8])> {
        let mut start = 0;
        self.clients.iter().map(move |&(ix, end)| {
            let tail = &self.tails[start..end];
            start = end;
            (ix, tail)
        })
    }

    /// The messages for one client, for drivers that write whole messages.
    #[must_use]
    pub fn whole(&self, tail: &[u8]) -> Arc<[Packet]> {
        let (first, rest) = self.open.split_first().expect("an event is at least a text");
        let (Packet::Text(open) | Packet::Binary(open)) = first;
        let text = Packet::Text([&open[..], tail].concat().into());
        std::iter::once(text).chain(rest.iter().cloned()).collect()
    }
}

/// What to do.
#[derive(Debug)]
pub enum Output {
    /// Queue one message for a client.
    Write(ClientIx, Packet),
    /// Queue the same messages for each of these clients (more than one where there are attachments).
    Fanout(Arc<[Packet]>, Vec<ClientIx>),
    /// Queue an event for each of these clients, with an end of its own.
    FanoutEach(FanoutEach),
    /// Close the transport after what is queued for it, with this code.
    Close(ClientIx, CloseCode),
    /// Stop reading from a client: it has sent more than its owner has confirmed, or too fast.
    PauseReading(ClientIx),
    /// Read from it again.
    ResumeReading(ClientIx),
    /// Ask the application of a product; answered by [`Input::App`] if it has a `call`.
    App(Box<AppCall>),
    /// A client has answered the event under this name; `None`: it cannot any more.
    AppAnswered(u64, Option<Payload>),
    /// What has come of a question of an application to the members of rooms.
    AppGathered(u64, Gathered),
    /// Find out who a client is, by what it has sent; answered by [`Input::Identified`], sooner or later.
    Identify(AuthQuestion),
    /// Answer a request.
    Respond(RequestIx, EngineResponse),
    /// Send to another node, or to another shard of this one (`to == me`).
    Send {
        /// The receiving life of a node.
        to: NodeRef,
        /// The ordered stream it belongs on.
        lane: Lane,
        /// What.
        envelope: Envelope,
    },
    /// The answer to [`Input::Query`].
    Answer(u64, Result<Answer, CommandFailed>),
}

/// Why we close a client's transport. One table for all protocols; `docs/protocol.md` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// 1000: the client asked for it.
    Normal,
    /// 1002: the client broke its protocol.
    ProtocolError,
    /// 1008: a limit that a well-behaved client does not meet.
    Policy,
    /// 1009: a message over the limit.
    TooBig,
    /// 1012: the node stops; come back anywhere.
    Restart,
    /// 1013: nothing drained, or the client fell behind what is kept; come back.
    TooSlow,
    /// 4408: no CONNECT, or no heartbeat, in time; come back.
    Timeout,
    /// 4409: the session was ended by a backend or by a limit; do not come back.
    Ended,
    /// 4430: no or no valid uid, or an unknown product; do not come back.
    Refused,
}

impl CloseCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Normal,
        Self::ProtocolError,
        Self::Policy,
        Self::TooBig,
        Self::Restart,
        Self::TooSlow,
        Self::Timeout,
        Self::Ended,
        Self::Refused,
    ];

    /// Whether a client that comes back, after a pause that grows, can be let in. After the others it
    /// would be closed the same way again.
    #[must_use]
    pub fn may_reconnect(self) -> bool {
        !matches!(self, Self::Ended | Self::Refused)
    }

    /// The WebSocket close code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ProtocolError => 1002,
            Self::Policy => 1008,
            Self::TooBig => 1009,
            Self::Restart => 1012,
            Self::TooSlow => 1013,
            Self::Timeout => 4408,
            Self::Ended => 4409,
            Self::Refused => 4430,
        }
    }

    /// The reason sent with it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "bye",
            Self::ProtocolError => "protocol error",
            Self::Policy => "limit exceeded",
            Self::TooBig => "message too big",
            Self::Restart => "node stops, reconnect",
            Self::TooSlow => "too slow, reconnect",
            Self::Timeout => "timeout",
            Self::Ended => "session ended",
            Self::Refused => "refused",
        }
    }
}

/// Counts for metrics and status; cheap to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Clients whose transport ends here.
    pub clients: u64,
    /// Sessions owned.
    pub sessions: u64,
    /// Rooms owned.
    pub rooms: u64,
    /// Bindings owned.
    pub bindings: u64,
    /// Bindings forgotten because there were too many.
    pub bindings_evicted_total: u64,
    /// Rooms with local members.
    pub tails: u64,
    /// Packets received from clients.
    pub packets_received_total: u64,
    /// Messages handed to clients' transports.
    pub deliveries_total: u64,
    /// Entries appended to rooms owned.
    pub publishes_total: u64,
    /// Publishes dropped as repeats.
    pub duplicates_total: u64,
    /// Clients that fell behind.
    pub behind_total: u64,
    /// Fetches of entries older than a tail, each shared by all clients that wait for it.
    pub fetches_total: u64,
    /// Clients closed because they were too slow.
    pub too_slow_total: u64,
    /// Clients closed for breaking their protocol.
    pub protocol_errors_total: u64,
    /// Volatile events dropped.
    pub volatile_dropped_total: u64,
    /// Holes in a room's log told to an edge.
    pub gaps_total: u64,
    /// Envelopes bounced because this node does not own what they are about.
    pub not_owner_total: u64,
    /// Clients that came back to their sessions.
    pub resumed_total: u64,
    /// Clients that came back and had to begin anew.
    pub not_resumed_total: u64,
    /// Sessions attached anew after their owner changed.
    pub reattached_total: u64,
    /// Entities handed over to this node.
    pub moves_total: u64,
    /// Entities taken over from an owner that is gone.
    pub takeovers_total: u64,
    /// Ops refused because of a higher term, here or by a backup.
    pub fences_total: u64,
    /// Copies held for other owners.
    pub copies: u64,
    /// Entities whose backup is still to get a whole copy.
    pub copies_pending: u64,
    /// Entities owned that the ring gives to another node.
    pub to_hand_over: u64,
    /// Backups that have owed an answer for 250 ms or more.
    pub backups_silent: u64,
    /// Bytes in room logs.
    pub log_bytes: u64,
    /// Bytes in tails.
    pub tail_bytes: u64,
    /// Ops applied that backups have not confirmed.
    pub replication_lag_ops: u64,
    /// Sessions owned without a transport, kept for their clients to come back.
    pub parked_sessions: u64,
}

/// One copy of an entity, for tests and simulations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// Which.
    pub name: String,
    /// Where it lives.
    pub placement: crate::id::Placement,
    /// Whether this shard owns it, or backs it up.
    pub owned: bool,
    /// How far it is.
    pub version: crate::wire::Version,
    /// A number over its replicated state, the same for equal copies.
    pub digest: u64,
}

/// Everything a shard is built from.
#[derive(Debug)]
pub struct ShardConfig {
    /// This shard and this life of the node.
    pub me: crate::id::Address,
    /// Shards of this node.
    pub shards: u16,
    /// The node's name, for people.
    pub node_name: Arc<str>,
    /// Every product of the configuration. The same on all nodes.
    pub products: Vec<Arc<ProductRules>>,
    /// Bounds.
    pub limits: Limits,
    /// Opens and seals socket ids.
    pub ids: crate::keys::IdKey,
    /// Seed of its random numbers. From the operating system in production.
    pub seed: u64,
}
