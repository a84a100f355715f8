//! The channels between the threads of a node.
//!
//! Belongs here: what one thread may ask of another, and what a full channel means.
//! Stays out: the threads themselves (`shard`, `mesh`, `api`, `admin`).
//!
//! | owner | state | asked by |
//! |---|---|---|
//! | shard thread | clients, sessions and rooms of the shard | [`ShardHandle`] |
//! | gossip thread | membership, ring | publishes `watch<Arc<View>>` |
//! | link task | one link | `mesh::MeshHandle` |

use std::sync::Arc;

use bytes::Bytes;
use mesh_proto::id::{ClientIx, EngineSid, NodeRef, ShardIx, SocketSid};
use mesh_proto::shard::{AppOutcome, NewClient, ProductRules, Refusal, RequestIx, ShardStats};
use mesh_proto::view::View;
use mesh_proto::wire::{Answer, CommandFailed, EngineRequest, EngineResponse, Envelope, Query, To};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::ClientPlace;
use crate::shard::DriverStats;
use crate::transport::stream::DetachedStream;

/// Inputs waiting for one shard. Full: link tasks wait (QUIC's flow control then slows the peer),
/// the acceptor refuses with 503, the HTTP API answers 503; another shard keeps its own backlog.
pub const SHARD_QUEUE_LEN: usize = 4_096;

/// Newest view of the cluster; a slow reader skips views.
pub type ViewWatch = watch::Receiver<Arc<View>>;

/// What a shard's thread is told.
#[derive(Debug)]
pub enum ToShard {
    /// A client whose handshake is done.
    Client(OpenedClient),
    /// A client that begins with long-polling.
    Polling(OpenedPolling),
    /// A request of a polling client, of whatever edge.
    Request(EngineAsked),
    /// The connection of a request broke before its answer.
    RequestGone(RequestIx),
    /// Who a client is, by what it has sent when it connected to a namespace.
    Identified(ClientIx, u64, Result<Option<Arc<str>>, Refusal>),
    /// The answer of a product's code about a session.
    App(SocketSid, u64, AppOutcome),
    /// From another shard or a peer, in order.
    Envelopes(Vec<Envelope>),
    /// The link to a peer has lost what was under way.
    LinkReset(NodeRef),
    /// From the HTTP API or the admin listener.
    Query(Query, oneshot::Sender<Result<Answer, CommandFailed>>),
    /// New products, or new rules of known ones.
    Products(Vec<Arc<ProductRules>>),
    /// Close so many clients now (drain, shutdown).
    CloseClients(usize),
    /// Counts, for metrics and status.
    Stats(oneshot::Sender<ShardReport>),
}

/// A client handed over by the acceptor.
#[derive(Debug)]
pub struct OpenedClient {
    /// Its stream, not registered with any runtime.
    pub stream: DetachedStream,
    /// The `101`: written by the shard, in one call with the first message.
    pub greeting: Bytes,
    /// Bytes that came with the request head: the first frames.
    pub read_ahead: Vec<u8>,
    /// What the machine needs to know.
    pub client: NewClient,
    /// Held while the client lives; dropping it frees its place in the admission counts.
    pub place: ClientPlace,
}

/// A polling client handed over by the client port.
#[derive(Debug)]
pub struct OpenedPolling {
    /// What the machine needs to know; its transport names the request that is answered.
    pub client: NewClient,
    /// Where the answer to that request goes.
    pub answer: oneshot::Sender<EngineResponse>,
    /// Held while the client lives.
    pub place: ClientPlace,
}

/// A request of a polling client.
#[derive(Debug)]
pub struct EngineAsked {
    /// Its name.
    pub ix: RequestIx,
    /// Whose it is.
    pub sid: EngineSid,
    /// What is asked.
    pub request: EngineRequest,
    /// Where the answer goes.
    pub answer: oneshot::Sender<EngineResponse>,
}

/// What one shard has to tell about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// The machine's counts.
    pub machine: ShardStats,
    /// Its driver's counts.
    pub driver: DriverStats,
}

/// Sends to one shard's thread.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    /// Which shard.
    pub shard: ShardIx,
    /// Its inputs.
    pub tx: mpsc::Sender<ToShard>,
}

/// All shards of this node.
#[derive(Clone, Debug)]
pub struct Shards(pub Arc<[ShardHandle]>);

impl Shards {
    /// The shards that `to` names on this node; none for [`To::Node`].
    pub fn named(&self, to: To) -> impl Iterator<Item = &ShardHandle> {
        let count = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        let mask = match to {
            To::Host(placement) => 1 << placement.shard(count).0,
            To::Shard(shard) => 1_u64.checked_shl(u32::from(shard.0)).unwrap_or(0),
            To::Shards(mask) => mask,
            To::Node => 0,
        };
        self.0.iter().filter(move |shard| mask >> shard.shard.0 & 1 == 1)
    }

    /// Asks the shard that a query belongs to and waits for its answer.
    ///
    /// # Errors
    /// [`CommandFailed::Overloaded`] when its queue is full, [`CommandFailed::Timeout`] when it is gone.
    pub async fn ask(&self, shard: ShardIx, query: Query) -> Result<Answer, CommandFailed> {
        let (tx, rx) = oneshot::channel();
        let handle = self.0.get(usize::from(shard.0)).ok_or(CommandFailed::NotFound)?;
        handle.tx.try_send(ToShard::Query(query, tx)).map_err(|_| CommandFailed::Overloaded)?;
        rx.await.unwrap_or(Err(CommandFailed::Timeout))
    }
}
