//! The thread of one shard: waits for whatever comes first, then lets the driver take a turn.
//!
//! Belongs here: the runtime, the one timer, the tasks that wait for sockets.
//! Stays out: what a turn does (`driver`).
//! Panics: the state of a shard is shared by all its clients, rooms and sessions, so a panic
//! anywhere in it ends the node; its peers take over within the time of any crash.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_proto::id::ClientIx;
use mesh_proto::shard::{Shard, ShardConfig};
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::client::AbortOnDrop;
use super::driver::{Driver, Machine, Progress, Wanted};
use super::outgoing::{Outbound, Outgoing};
use crate::app::runtime::Apps;
use crate::clock::Clock;
use crate::handles::{Shards, ToShard, ViewWatch};
use crate::identity::Identities;
use crate::tasks::{self, OnPanic, Tasks};

/// Messages of other threads taken in one turn.
const TURN_MESSAGES_MAX: usize = 1_024;

/// What a shard's thread is built from.
pub struct ShardParts {
    /// For its machine.
    pub config: ShardConfig,
    /// The node's clock.
    pub clock: Clock,
    /// What other threads tell it.
    pub inbox: mpsc::Receiver<ToShard>,
    /// The cluster.
    pub view: ViewWatch,
    /// All shards of this node, this one among them.
    pub shards: Shards,
    /// The way to peers.
    pub outbound: Box<dyn Outbound>,
    /// The code of products.
    pub(crate) apps: Arc<Apps>,
    /// Who clients are that say so when they connect to a namespace.
    pub(crate) identities: Arc<Identities>,
}

/// Starts the thread `shard/<n>`. It ends, closing what is open without a word, when the tasks are
/// told to stop: close clients first ([`ToShard::CloseClients`]).
///
/// # Errors
/// When the operating system gives no thread or no reactor.
pub fn start(parts: ShardParts, tasks: &Tasks) -> io::Result<()> {
    let runtime = tasks::thread_runtime()?;
    let name = format!("shard/{}", parts.config.me.shard.0);
    let stopping = tasks.stopping();
    tasks.spawn_thread(name, OnPanic::EndNode, move || {
        let ShardParts { config, clock, inbox, view, shards, outbound, apps, identities } = parts;
        let message_bytes_max = config.limits.message_bytes_max;
        let outgoing = Outgoing::new(config.me, shards, outbound);
        let driver = Driver::new(Shard::new(config), clock, message_bytes_max, outgoing, apps, identities);
        let shared = Rc::new(Shared::new(driver, clock));
        LocalSet::new().block_on(&runtime, drive(shared, inbox, view, stopping));
    })
}

/// What the tasks of one shard share, all on its thread.
pub(super) struct Shared<M> {
    driver: RefCell<Driver<M>>,
    clock: Clock,
    /// A turn is due.
    turn_due: Notify,
    /// A task of a client has panicked; its state and that of the machine are in doubt.
    broken: Cell<bool>,
}

impl<M: Machine + 'static> Shared<M> {
    pub(super) fn new(driver: Driver<M>, clock: Clock) -> Self {
        Self { driver: RefCell::new(driver), clock, turn_due: Notify::new(), broken: Cell::new(false) }
    }

    /// Starts the tasks that the driver wants. They wait for sockets and nothing else.
    fn start_wanted(self: &Rc<Self>) {
        let mut driver = self.driver.borrow_mut();
        while let Some(wanted) = driver.next_wanted() {
            let shared = self.clone();
            let task = match wanted {
                Wanted::Reading(ix) => tokio::task::spawn_local(shared.client_task(ix, Driver::read)),
                Wanted::Flushing(ix) => tokio::task::spawn_local(shared.client_task(ix, Driver::flush)),
            };
            driver.started(wanted, AbortOnDrop(task.abort_handle()));
        }
    }

    /// A task that takes a step whenever its client's socket is ready, until there is none to take.
    fn client_task(
        self: Rc<Self>,
        ix: ClientIx,
        step: fn(&mut Driver<M>, ClientIx, &mut Context<'_>) -> Progress,
    ) -> impl Future<Output = ()> {
        poll_fn(move |context| {
            let panics = BreakOnPanic(&self);
            let mut driver = self.driver.borrow_mut();
            let progress = step(&mut driver, ix, context);
            if progress == Progress::AfterTurn || driver.has_work() {
                self.turn_due.notify_one();
            }
            drop(driver);
            drop(panics);
            match progress {
                Progress::Waits => Poll::Pending,
                Progress::Ended => Poll::Ready(()),
                Progress::AfterTurn => {
                    // Behind the turn, which was queued first.
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
    }
}

/// tokio catches panics of tasks; a shard must not go on after one.
struct BreakOnPanic<'a, M>(&'a Shared<M>);

impl<M> Drop for BreakOnPanic<'_, M> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.set(true);
            self.0.turn_due.notify_one();
        }
    }
}

/// Runs a shard until it is told to stop or nobody can tell it anything any more.
///
/// # Panics
/// When anything in the shard has panicked.
pub(super) async fn drive<M: Machine + 'static>(
    shared: Rc<Shared<M>>,
    inbox: mpsc::Receiver<ToShard>,
    view: ViewWatch,
    stopping: CancellationToken,
) {
    // As a task of its own it is queued in order with the clients' tasks: all that were woken
    // before it are read first, and what they caused is written in one go.
    let turns = tokio::task::spawn_local(turns(shared, inbox, view, stopping));
    if let Err(error) = turns.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn turns<M: Machine + 'static>(
    shared: Rc<Shared<M>>,
    mut inbox: mpsc::Receiver<ToShard>,
    mut view: ViewWatch,
    stopping: CancellationToken,
) {
    let mut messages = Vec::with_capacity(TURN_MESSAGES_MAX);
    let timer = tokio::time::sleep_until(shared.clock.far());
    tokio::pin!(timer);
    let stopped = stopping.cancelled();
    tokio::pin!(stopped);
    view.mark_changed();
    loop {
        let deadline = shared.driver.borrow().next_deadline();
        let deadline = deadline.map_or_else(|| shared.clock.far(), |at| shared.clock.at(at));
        // A timer that is early costs a turn; setting it anew each time would cost more.
        if timer.is_elapsed() || deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        let mut new_view = None;
        tokio::select! {
            biased;
            () = &mut stopped => return,
            changed = view.changed() => match changed {
                Ok(()) => new_view = Some(view.borrow_and_update().clone()),
                Err(_) => return,
            },
            count = inbox.recv_many(&mut messages, TURN_MESSAGES_MAX) => if count == 0 { return },
            () = shared.turn_due.notified() => {}
            () = &mut timer => {}
        }
        assert!(!shared.broken.get(), "a client's task panicked: the shard's state is in doubt");
        while messages.len() < TURN_MESSAGES_MAX
            && let Ok(message) = inbox.try_recv()
        {
            messages.push(message);
        }
        // What a peer says to this node's next life comes after the view of that life has been published:
        // it must not be answered in the name of the last one.
        if view.has_changed().unwrap_or(false) {
            new_view = Some(view.borrow_and_update().clone());
        }
        shared.driver.borrow_mut().turn(messages.drain(..), new_view);
        shared.start_wanted();
        if shared.driver.borrow().has_work() {
            shared.turn_due.notify_one();
            tokio::task::yield_now().await;
        }
    }
}
