//! Questions from node to node, beside the shards: status.
//!
//! Belongs here: matching answers to questions, answering those of peers.
//! Stays out: questions to owners (they go through shards).
//! Invariants: at most [`CALLS_MAX`] questions wait, and at most [`ANSWERS_MAX`] are being answered.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::collections::FixedMap;
use mesh_proto::id::{Address, NodeRef, ShardIx};
use mesh_proto::wire::{self, Answer, Body, CommandFailed, Envelope, Lane, Query, To};
use tokio::sync::{Semaphore, oneshot, watch};

use super::peers::{NotSent, Peers};
use crate::handles::ViewWatch;
use crate::tasks::{OnPanic, Tasks};

/// Questions of this node without an answer yet; more are refused as overloaded.
const CALLS_MAX: usize = 1_024;

/// Questions of peers being answered at once; more are refused as overloaded.
const ANSWERS_MAX: usize = 64;

/// An answer that takes longer is not waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The answer to a question, in time.
type Answering = Pin<Box<dyn Future<Output = Result<Answer, CommandFailed>> + Send>>;

/// Answers questions to this node itself: [`Query::NodeStatus`], [`Query::Drain`], [`Query::Reload`].
pub type NodeStatusSource = Arc<dyn Fn(Query) -> Answering + Send + Sync>;

type Waiting = FixedMap<u64, (NodeRef, oneshot::Sender<Result<Answer, CommandFailed>>)>;

/// Calls of this node and of its peers.
pub(crate) struct NodeCalls {
    status: NodeStatusSource,
    view: ViewWatch,
    peers: watch::Receiver<Arc<Peers>>,
    tasks: Tasks,
    next: AtomicU64,
    /// Locked for one operation on the map only.
    waiting: Mutex<Waiting>,
    answering: Arc<Semaphore>,
}

impl NodeCalls {
    pub(crate) fn new(
        status: NodeStatusSource,
        view: ViewWatch,
        peers: watch::Receiver<Arc<Peers>>,
        tasks: Tasks,
    ) -> Self {
        let answering = Arc::new(Semaphore::new(ANSWERS_MAX));
        Self { status, view, peers, tasks, next: AtomicU64::new(1), waiting: Mutex::default(), answering }
    }

    /// Asks a node, this one included, and waits for its answer.
    pub(crate) async fn ask(&self, node: NodeRef, query: Query) -> Result<Answer, CommandFailed> {
        if node == self.view.borrow().me {
            return self.answer(query)?.await;
        }
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        if self.waiting().len() >= CALLS_MAX {
            return Err(CommandFailed::Overloaded);
        }
        self.waiting().insert(call, (node, tx));
        let answer = match self.send(node, Body::Query { call, query }) {
            Ok(()) => tokio::time::timeout(ANSWER_WITHIN, rx).await,
            Err(NotSent::Full) => Ok(Ok(Err(CommandFailed::Overloaded))),
            Err(NotSent::NoSuchPeer) => Ok(Ok(Err(CommandFailed::NotFound))),
        };
        self.waiting().remove(&call);
        answer.ok().and_then(Result::ok).unwrap_or(Err(CommandFailed::Timeout))
    }

    /// Takes what a peer addressed to the node itself.
    pub(crate) fn take(self: Arc<Self>, peer: NodeRef, envelope: Envelope) {
        match envelope.body {
            Body::Answer { call, answer } => {
                let mut waiting = self.waiting();
                if waiting.get(&call).is_some_and(|(asked, _)| *asked == peer)
                    && let Some((_, asker)) = waiting.remove(&call)
                {
                    let _ = asker.send(answer);
                }
            }
            Body::Query { call, query } => self.answer_peer(peer, call, query),
            _ => tracing::debug!(?peer, "envelope to the node that is no question"),
        }
    }

    fn answer_peer(self: Arc<Self>, peer: NodeRef, call: u64, query: Query) {
        let place = self.answering.clone().try_acquire_owned();
        let answer =
            place.map_err(|_| CommandFailed::Overloaded).and_then(|place| Ok((self.answer(query)?, place)));
        match answer {
            Ok((answer, place)) => {
                let calls = self.clone();
                self.tasks.spawn("node-answer", OnPanic::EndTask, async move {
                    let answer = answer.await;
                    // An answer that does not fit is one that does not come.
                    let _ = calls.send(peer, Body::Answer { call, answer });
                    drop(place);
                });
            }
            Err(failed) => drop(self.send(peer, Body::Answer { call, answer: Err(failed) })),
        }
    }

    /// The answer to come, or why there is none.
    fn answer(&self, query: Query) -> Result<Answering, CommandFailed> {
        match query {
            Query::NodeStatus | Query::Drain(_) | Query::Reload => Ok((self.status)(query)),
            _ => Err(CommandFailed::Refused("not a question to a node".into())),
        }
    }

    fn send(&self, to: NodeRef, body: Body) -> Result<(), NotSent> {
        let from = Address { node: self.view.borrow().me, shard: ShardIx(0) };
        let envelope = wire::encode(&Envelope { from, to: To::Node, body });
        self.peers.borrow().try_send(to, Lane::CONTROL, envelope)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
