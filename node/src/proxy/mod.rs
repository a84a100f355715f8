//! Products whose requests are answered by servers of their owner's: HTTP and WebSocket, passed on.
//!
//! Belongs here: what a proxied product is at this node: its settings, its upstreams, links to them.
//! Stays out: which product a request is for and who sends it (`identity`), which upstream is fit
//! (`mesh_proto::upstream`), where a user is bound (`mesh_proto::binding`), reading requests (`transport`).
//! Owner: each request's task drives its own link; the upstreams' machine and the kept links are shared, each
//! behind a lock that is held for a look-up.
//! Invariants: every request ends; nothing is held of a body but what `client` and `link` say; no request
//! that may have been carried out is sent twice, unless repeating it changes nothing (RFC 9110 §9.2.2).
//!
//! | module | answers |
//! |---|---|
//! | [`head`] | the fields each side is sent |
//! | [`body`] | a request's body on its way |
//! | [`client`] | the client's side of a request |
//! | [`link`], [`pool`] | connections to upstreams |
//! | [`local`] | the servers beside the nodes |
//! | [`marks`] | what operators say of upstreams, to all nodes |
//! | [`exchange`] | one request on one link |
//! | [`forward`] | one request: to whom, again, and what its client is told |
//! | [`pipe`] | bytes both ways after a `101` |
//! | [`bindings`] | where a user or a session is, by the mesh |
//! | [`sid`] | sessions of Engine.IO servers, read out of their answers |
//! | [`serve`] | every proxied product of a node, and the client port's requests for them |
//! | [`checks`] | asking upstreams how they are |
//! | [`answers`] | what a client is told without an upstream's answer |

mod answers;
mod bindings;
mod body;
mod checks;
mod client;
mod counters;
mod exchange;
mod forward;
pub mod head;
mod link;
mod local;
mod marks;
mod pipe;
mod pool;
mod serve;
mod settings;
mod sid;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::binding::BindingKey;
use mesh_proto::time::Instant;
use mesh_proto::upstream::{
    Outcome, Ticket, UpstreamConfig, UpstreamFacts, UpstreamIx, UpstreamState, Upstreams,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use counters::Counters;
pub(crate) use forward::{Asking, Served};
pub(crate) use local::{Local, follow};
pub use marks::NotSaid;
pub use pool::{ByTcp, Dial, Dialling, Stream};
pub use serve::Proxies;
pub use settings::{CheckRequest, Settings};

use crate::clock::Clock;
use crate::handles::Shards;
use crate::tasks::{OnPanic, Tasks};
use bindings::{Bindings, Held};
use pipe::Pipe;
use pool::Pool;

/// One proxied product at this node.
pub struct Proxy {
    name: Arc<str>,
    settings: Settings,
    clock: Clock,
    pool: Pool,
    bindings: Arc<Bindings>,
    near: Option<Arc<str>>,
    state: Mutex<State>,
    /// The machine has something to say.
    moved: Notify,
    /// Ends everything that is open.
    stopping: CancellationToken,
    /// Another has taken its place: nothing new comes, and its upstreams are asked no more.
    retired: CancellationToken,
    counters: Counters,
}

struct State {
    upstreams: Upstreams,
    /// Ends what is open at an upstream whose drain is over.
    ends: HashMap<UpstreamIx, CancellationToken>,
}

/// What a product needs of its node.
pub struct ProxyParts<'n> {
    /// Its settings.
    pub settings: Settings,
    /// How its upstreams are reached.
    pub dial: Box<dyn Dial>,
    /// The upstream for what belongs nowhere yet, if it is fit: the server beside this node.
    pub near: Option<Arc<str>>,
    /// Who knows where users and sessions are bound; `None` in tests of one node without a mesh.
    pub shards: Option<Shards>,
    /// The node's clock.
    pub clock: Clock,
    /// Where its tasks run.
    pub tasks: &'n Tasks,
}

impl Proxy {
    /// Its upstreams are asked how they are from then on, until its tasks are told to stop.
    #[must_use]
    pub fn start(name: Arc<str>, parts: ProxyParts<'_>) -> Arc<Self> {
        let ProxyParts { settings, dial, near, shards, clock, tasks } = parts;
        let upstreams = Upstreams::new(settings.upstreams.clone(), clock.now(), rand::random());
        let stopping = tasks.stopping();
        let proxy = Arc::new(Self {
            name,
            clock,
            pool: Pool::new(dial, settings.connect_timeout, settings.idle_max),
            bindings: Bindings::new(shards, settings.keep),
            settings,
            near,
            state: Mutex::new(State { upstreams, ends: HashMap::new() }),
            moved: Notify::new(),
            retired: stopping.child_token(),
            stopping,
            counters: Counters::default(),
        });
        let (checked, told, group) = (proxy.clone(), proxy.clone(), tasks.clone());
        let ends = proxy.retired.clone();
        tasks.spawn(format!("upstreams/{}", proxy.name), OnPanic::EndNode, async move {
            tokio::select! {
                () = checks::run(checked, group) => {}
                () = marks::follow(told) => {}
                () = ends.cancelled() => {}
            }
        });
        proxy
    }

    /// The product's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The time by which its upstreams count.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Its upstreams as this node sees them.
    #[must_use]
    pub fn facts(&self) -> Vec<UpstreamFacts> {
        self.lock().upstreams.facts()
    }

    /// Another list of upstreams. Those that stay on it keep their state.
    pub fn set_upstreams(&self, names: &[Arc<str>]) {
        self.lock().upstreams.set_names(names, self.clock.now());
        self.moved.notify_one();
    }

    /// Cancelled when nothing new comes any more.
    pub(crate) fn retired(&self) -> CancellationToken {
        self.retired.clone()
    }

    /// The port of the server beside this node, if that is one of the upstreams.
    pub(crate) fn local_port(&self) -> Option<u16> {
        self.settings.local
    }

    /// Nothing new comes: what is open goes on.
    pub(crate) fn retire(&self) {
        self.retired.cancel();
    }

    /// Whether it has these settings, its list of upstreams left out of account.
    pub(crate) fn has(&self, settings: &Settings) -> bool {
        let named_as_here = Settings {
            upstreams: UpstreamConfig {
                names: self.settings.upstreams.names.clone(),
                ..settings.upstreams.clone()
            },
            ..settings.clone()
        };
        named_as_here == self.settings
    }

    /// Nothing new goes to that upstream; after `within`, if it is told, what is open there is closed. Whether
    /// there is such an upstream.
    pub fn drain(&self, upstream: &str, within: Option<Duration>) -> bool {
        let until = within.map(|within| self.clock.now() + within);
        let known = self.lock().upstreams.drain(upstream, until);
        self.moved.notify_one();
        known
    }

    /// It takes what is new again. Whether there is such an upstream.
    pub fn resume(&self, upstream: &str) -> bool {
        let known = self.lock().upstreams.resume(upstream);
        self.moved.notify_one();
        known
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The machine is not left half-way by anything that can panic under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens something at the upstream that `choose` names.
    fn open(
        self: &Arc<Self>,
        choose: impl FnOnce(&mut Upstreams, Instant) -> Option<UpstreamIx>,
    ) -> Option<Open> {
        let now = self.clock.now();
        let mut state = self.lock();
        let ix = choose(&mut state.upstreams, now)?;
        let name = state.upstreams.name(ix)?.clone();
        let ticket = state.upstreams.began(now, ix);
        let ends = state.ends.entry(ix).or_insert_with(|| self.stopping.child_token()).clone();
        drop(state);
        Some(Open { proxy: self.clone(), name, ticket: Some(ticket), ends, _held: None })
    }

    fn is_draining(&self, name: &str) -> bool {
        let state = self.lock().upstreams.by_name(name);
        state.is_some_and(|(_, state)| state == UpstreamState::Draining)
    }

    /// Opens something where it is bound to be, unless that is unfit or `not_there`.
    fn open_bound(self: &Arc<Self>, name: &str, not_there: Option<UpstreamIx>) -> Option<Open> {
        self.open(|upstreams, now| {
            let (ix, _) = upstreams.by_name(name)?;
            (upstreams.takes_bound(now, ix) && Some(ix) != not_there).then_some(ix)
        })
    }
}

/// Moves bytes between two streams until both have ended, or one has broken.
pub(crate) async fn piped<A, B>(a: A, b: B) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    Pipe::new(a, b, Vec::new(), Vec::new()).await
}

/// Something is open at an upstream. Dropped, it has ended without a word about the upstream.
pub(crate) struct Open {
    proxy: Arc<Proxy>,
    name: Arc<str>,
    ticket: Option<Ticket>,
    /// Cancelled when it must end.
    ends: CancellationToken,
    _held: Option<Held>,
}

impl Open {
    fn upstream(&self) -> Option<UpstreamIx> {
        self.ticket.as_ref().map(Ticket::upstream)
    }

    /// It keeps a binding alive.
    fn holding(mut self, key: &BindingKey) -> Self {
        self._held = Some(self.proxy.bindings.hold(key.clone(), &self.name));
        self
    }

    /// Its answer has begun.
    fn answered(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            self.proxy.lock().upstreams.answered(self.proxy.clock.now(), ticket);
        }
    }

    /// It has ended so.
    fn end(mut self, outcome: Outcome) {
        self.end_as(outcome);
    }

    fn end_as(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.proxy.lock().upstreams.ended(self.proxy.clock.now(), ticket, outcome);
            if outcome != Outcome::Answered && outcome != Outcome::ClientGone {
                self.proxy.moved.notify_one();
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end_as(Outcome::ClientGone);
    }
}
