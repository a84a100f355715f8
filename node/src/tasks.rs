//! Where tasks are started: with a name, a span, a place to be waited for, and a word on panics.
//!
//! Belongs here: the one call of `tokio::spawn` in this crate.
//! Stays out: what tasks do; operating system threads (shards, gossip).
//! Invariants: no task outlives [`Tasks::stop`]'s deadline unseen; no panic goes unnoticed.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// What a panic in a task means. The panic itself is always logged with the task's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// The task's state is only its own (one request, one connection): the node goes on without it.
    EndTask,
    /// The node cannot keep its promises without the task: it stops, and its peers take over.
    EndNode,
}

/// A group of tasks that end together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    failed: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            failed: CancellationToken::new(),
        }
    }

    /// A group that stops with this one, or before it. A failure in it is a failure of this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stopping: self.stopping.child_token(),
            failed: self.failed.clone(),
        }
    }

    /// Starts a task on the current runtime. `name` says what it owns: `link/<peer>`, `acceptor`.
    ///
    /// A panic ends the task and is logged as an error; with [`OnPanic::EndNode`] it also completes
    /// [`Tasks::failed`], on which the node stops with a failure.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        on_panic: OnPanic,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_on(&Handle::current(), name, on_panic, task);
    }

    /// The same for tasks of which there are as many as clients: without a span, and with one allocation. A
    /// panic ends the task and is logged.
    pub fn spawn_small(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(async move {
            // What a panic leaves of the task's state goes with it.
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(name, "task panicked");
            }
        });
    }

    /// The same on another runtime.
    pub fn spawn_on(
        &self,
        runtime: &Handle,
        name: impl Into<String>,
        on_panic: OnPanic,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let name = name.into();
        let span = tracing::info_span!("task", %name);
        let failed = self.failed.clone();
        let inner = runtime.spawn(task.instrument(span.clone()));
        let watch = async move {
            let Err(error) = inner.await else { return };
            if error.is_panic() {
                tracing::error!(ends_node = on_panic == OnPanic::EndNode, "task panicked");
                if on_panic == OnPanic::EndNode {
                    failed.cancel();
                }
            }
        };
        self.tracker.spawn_on(watch.instrument(span), runtime);
    }

    /// Starts an operating system thread, for state that must not share one (`shard/<n>`). It is
    /// waited for like a task and should end soon after [`Tasks::stopping`].
    ///
    /// A panic is handled as in [`Tasks::spawn`]. Shards use [`OnPanic::EndNode`]: what a panic leaves
    /// of their state is in doubt, and everybody on the shard shares it (FAULTS F30 would keep the
    /// process; a crash, which peers mend within seconds, is the safer end).
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_thread(
        &self,
        name: impl Into<String>,
        on_panic: OnPanic,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let name = name.into();
        let (failed, token) = (self.failed.clone(), self.tracker.token());
        let span = tracing::info_span!("task", %name);
        let run = move || {
            let _entered = span.entered();
            // The state goes with the panic: nothing is looked at afterwards.
            if std::panic::catch_unwind(AssertUnwindSafe(body)).is_err() {
                tracing::error!(ends_node = on_panic == OnPanic::EndNode, "thread panicked");
                if on_panic == OnPanic::EndNode {
                    failed.cancel();
                }
            }
            drop(token);
        };
        std::thread::Builder::new().name(name).spawn(run).map(drop)
    }

    /// Completes when the group is told to stop; tasks select on it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Completes when a task that the node cannot do without has panicked.
    #[must_use]
    pub fn failed(&self) -> CancellationToken {
        self.failed.clone()
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether all have ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Tells all tasks to stop and waits for them, at most so long; how many were still running.
    pub async fn stop(&self, deadline: Duration) -> usize {
        self.stopping.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.tracker.len()
    }
}

/// A runtime for a thread with one owner (a shard, the mesh).
///
/// Before such a thread sleeps it lets the others run once. Whoever is about to hand it something does
/// so now, and it goes on without a sleep and a wake-up, which cost more than the work between them:
/// with several busy threads on a core a quarter of the CPU per message was seen to go. An idle core
/// returns from the call at once.
///
/// # Errors
/// When the operating system gives no reactor.
pub(crate) fn thread_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(std::thread::yield_now).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_node_only_where_it_must() {
        let tasks = Tasks::new();
        tasks.spawn("minor", OnPanic::EndTask, async { panic!("minor") });
        assert_eq!(tasks.stop(Duration::from_secs(5)).await, 0);
        assert!(!tasks.failed().is_cancelled());
        tasks.child().spawn("major", OnPanic::EndNode, async { panic!("major") });
        tasks.failed().cancelled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn stop_waits_until_its_deadline_and_counts_what_is_left() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn("obeys", OnPanic::EndTask, async move { stopping.cancelled().await });
        tasks.spawn("hangs", OnPanic::EndTask, std::future::pending());
        assert_eq!(tasks.stop(Duration::from_secs(5)).await, 1);
    }
}
