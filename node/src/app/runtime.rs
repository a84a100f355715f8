//! Questions of shards to the code of products, run as tasks away from the shards.
//!
//! Belongs here: which handler a question is for, its time, what its end means.
//! Stays out: what handlers may do (`socket`).
//! Owner: each question is a task of its own on the runtime for handlers; one that blocks its thread holds
//! up others of that runtime, never a shard.
//! When it breaks: a handler that fails, panics or takes longer than [`HANDLER_TIMEOUT`] ends its event with
//! an error for whoever waits for the answer; what it has done until then takes effect.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use mesh_proto::id::{ShardIx, SocketSid};
use mesh_proto::limits::Limits;
use mesh_proto::product::{ErrorCode, ack_error};
use mesh_proto::shard::{AppCall, AppEvent, AppOutcome, AppThen};
use mesh_proto::wire::{Gathered, Payload, SessionIdentity};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::event::Event;
use super::io::{Io, Shared};
use super::socket::{Asked, Inner, Socket, Turn, lock};
use super::{App, Error, EventRefused, Namespace};
use crate::handles::{Shards, ToShard, ViewWatch};
use crate::tasks::Tasks;

/// A handler that waits for nothing of its client has this long (DESIGN §11).
const HANDLER_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients' answers that handlers wait for.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    pub(super) named: AtomicU64,
    pub(super) open: Mutex<HashMap<u64, oneshot::Sender<Option<Payload>>>>,
    /// And of the members of rooms.
    pub(super) rooms: Mutex<HashMap<u64, oneshot::Sender<Gathered>>>,
}

/// The way back to the session that a question is about.
#[derive(Clone, Debug)]
pub(super) struct Way {
    tx: mpsc::Sender<ToShard>,
    shared: Arc<Shared>,
    sid: SocketSid,
    call: u64,
}

impl Way {
    pub(super) fn answer(&self, outcome: AppOutcome) {
        let message = ToShard::App(self.sid, self.call, outcome);
        // A full queue is waited for: the session would wait for ever for an answer that is dropped.
        if let Err(mpsc::error::TrySendError::Full(message)) = self.tx.try_send(message) {
            let tx = self.tx.clone();
            self.shared.spawn("handler-answer", async move {
                // A shard that is gone takes the node with it.
                let _ = tx.send(message).await;
            });
        }
    }
}

/// The code of all products of a node.
#[derive(Debug)]
pub(crate) struct Apps {
    apps: BTreeMap<String, App>,
    shared: Arc<Shared>,
    questions: Arc<Questions>,
}

impl Apps {
    pub(crate) fn new(
        apps: BTreeMap<String, App>,
        shards: Shards,
        view: ViewWatch,
        limits: Limits,
        tasks: Tasks,
        handle: Handle,
    ) -> Self {
        let shared = Arc::new(Shared::new(shards, view, limits, tasks, handle));
        Self { apps, shared, questions: Arc::default() }
    }

    /// The clients of a product, from outside handlers.
    pub(crate) fn io(&self, product: &str, namespace: &str) -> Io {
        Io { shared: self.shared.clone(), product: product.into(), namespace: namespace.into() }
    }

    /// A client has answered, or cannot any more.
    pub(crate) fn answered(&self, name: u64, answer: Option<Payload>) {
        if let Some(asker) = lock(&self.questions.open).remove(&name) {
            // Whoever asked may have given up.
            let _ = asker.send(answer);
        }
    }

    /// What has come of a question to the members of rooms.
    pub(crate) fn gathered(&self, name: u64, gathered: Gathered) {
        if let Some(asker) = lock(&self.questions.rooms).remove(&name) {
            // Whoever asked may have given up.
            let _ = asker.send(gathered);
        }
    }

    /// A question of a shard.
    pub(crate) fn ask(&self, shard: ShardIx, call: AppCall) {
        let Some(shard) = self.shared.shards.0.get(usize::from(shard.0)) else { return };
        let AppCall { call, identity, data, rooms, event } = call;
        let way = call.map(|call| Way {
            tx: shard.tx.clone(),
            shared: self.shared.clone(),
            sid: identity.sid,
            call,
        });
        let namespace = self.apps.get(&*identity.product).and_then(|app| app.find(&identity.namespace));
        let Some(namespace) = namespace.cloned() else {
            if let Some(way) = way {
                let then = AppThen::Refuse("Invalid namespace".into(), None);
                way.answer(AppOutcome { commands: Vec::new(), then });
            }
            return;
        };
        let auth = match &event {
            AppEvent::Connect { auth } => auth.clone(),
            _ => Bytes::new(),
        };
        let socket = self.socket(&identity, auth, rooms, data, way);
        self.shared.spawn("handler", async move {
            // What it has left behind is the socket's commands, whole ones.
            let work = AssertUnwindSafe(run(namespace, socket.clone(), identity, event)).catch_unwind();
            let then = work.await.unwrap_or_else(|_| {
                tracing::error!("a handler panicked");
                AppThen::Done(Some(ack_error(ErrorCode::Internal, "the handler failed")))
            });
            socket.flush(then);
        });
    }

    fn socket(
        &self,
        identity: &SessionIdentity,
        auth: Bytes,
        rooms: Vec<Arc<str>>,
        data: Bytes,
        way: Option<Way>,
    ) -> Socket {
        let inner = Inner {
            identity: identity.clone(),
            auth,
            rooms,
            io: self.io(&identity.product, &identity.namespace),
            questions: self.questions.clone(),
            turn: Mutex::new(Turn { commands: Vec::new(), way }),
            data: Mutex::new(data),
        };
        Socket { inner: Arc::new(inner) }
    }
}

/// Runs what an event is for; what the session is answered.
async fn run(
    namespace: Arc<Namespace>,
    socket: Socket,
    identity: SessionIdentity,
    event: AppEvent,
) -> AppThen {
    match event {
        AppEvent::Connect { auth } => {
            for authorizer in &namespace.authorizers {
                let asked = Asked { identity: identity.clone(), auth: auth.clone() };
                if let Err(refused) = authorizer(asked).await {
                    return AppThen::Refuse(refused.message, refused.data.map(Bytes::from));
                }
            }
            if let Some(hook) = &namespace.connect {
                log(within(hook(socket)).await.err(), "connect");
            }
        }
        AppEvent::Event { payload, wants_ack } => {
            let Some(event) = Event::new(payload, wants_ack) else { return AppThen::Done(None) };
            let outcome = handle(&namespace, socket, &event).await;
            let failed = outcome.err().map(|error| answer_of(&error));
            return AppThen::Done(failed.or_else(|| event.take_reply()).filter(|_| wants_ack));
        }
        AppEvent::Detach(reason) => {
            if let Some(hook) = &namespace.detach {
                log(within(hook(socket, reason)).await.err(), "detach");
            }
        }
        AppEvent::Attach => {
            if let Some(hook) = &namespace.attach {
                log(within(hook(socket)).await.err(), "attach");
            }
        }
        AppEvent::Disconnect(reason) => {
            if let Some(hook) = &namespace.disconnect {
                log(within(hook(socket, reason)).await.err(), "disconnect");
            }
        }
    }
    AppThen::Done(None)
}

async fn handle(namespace: &Namespace, socket: Socket, event: &Event) -> Result<(), Error> {
    for filter in &namespace.filters {
        filter(&socket, event)?;
    }
    match namespace.handler(event.name()) {
        Some(handler) => within(handler(socket, event.clone())).await,
        // As in Socket.IO: nobody listens, nobody answers.
        None => Ok(()),
    }
}

/// A handler within its time.
async fn within(done: super::Done) -> Result<(), Error> {
    tokio::time::timeout(HANDLER_TIMEOUT, done).await.unwrap_or_else(|_| Err(Box::new(TookTooLong)))
}

#[derive(Debug, thiserror::Error)]
#[error("the handler took too long")]
struct TookTooLong;

/// What a client is told of a handler's failure.
fn answer_of(error: &Error) -> Payload {
    if let Some(refused) = error.downcast_ref::<EventRefused>() {
        return ack_error(ErrorCode::Forbidden, &refused.0);
    }
    if error.downcast_ref::<TookTooLong>().is_some() {
        return ack_error(ErrorCode::Timeout, "the handler took too long");
    }
    tracing::warn!(%error, "a handler failed");
    ack_error(ErrorCode::Internal, "the handler failed")
}

fn log(error: Option<Error>, hook: &str) {
    if let Some(error) = error {
        tracing::warn!(%error, hook, "a handler failed");
    }
}
