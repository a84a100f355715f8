//! The link task: one per peer, owner of the link machine and of the connection under it.
//!
//! Belongs here: moving bytes between the queue, the machine, the lanes and the shards; when to dial.
//! Stays out: sequence numbers and resets (`mesh_proto::link`), what is said at first (`hello`).
//! Invariants: everything queued leaves in batches (the machine builds frames from what waits);
//! while a shard is full nothing more is read from the peer, except on the control lane: QUIC's flow
//! control then slows the peer, and what we send goes on. No timer runs on an idle link.
//!
//! The task is one hand-written future: all its sources are polled in turns by one owner, without
//! locks or channels between them. What it may do in one turn is bounded.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::NodeRef;
use mesh_proto::link::{Input, Link, LinkLimits, Output};
use mesh_proto::wire::{self, Envelope, Lane, To};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::calls::NodeCalls;
use super::hello::{self, CloseReason, Greeted, HelloError, Joined, Local};
use super::peers::{PeerEnds, PeerShared};
use super::readable::Readable;
use super::tls;
use crate::clock::Clock;
use crate::handles::{ShardHandle, Shards, ToShard};

/// Envelopes taken from the queue in one go.
const QUEUE_BATCH: usize = 1_024;
/// Chunks read from a lane in one go; each is at most a datagram.
const READ_CHUNKS: usize = 32;
/// Reads from one lane before the next one has its turn; the last is the one that finds nothing.
const READS_PER_TURN: usize = 2;
/// Batches taken from the queue in one turn; the last is the one that finds nothing.
const BATCHES_PER_TURN: usize = 2;
/// Turns before the task lets others of its thread run: some two milliseconds at full speed.
const TURNS_PER_POLL: usize = 2;
/// Batches that may wait for full shards before the control lane is not read either.
const STALLED_MAX: usize = 1_024;

/// Time for a connection, hello, resume points and lanes.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// First pause after a connection that did not last; doubles up to the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause. No jitter: one side of each pair dials, and a handshake costs 0.3 ms.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Pause after a refusal that only an operator can mend.
const BACKOFF_REFUSED: Duration = Duration::from_secs(60);
/// A connection that stood so long starts the pauses anew.
const LASTING: Duration = Duration::from_secs(1);

/// What all link tasks of a node share.
pub(crate) struct LinkContext {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) local: Local,
    pub(crate) shards: Shards,
    pub(crate) calls: Arc<NodeCalls>,
    pub(crate) clock: Clock,
    pub(crate) limits: LinkLimits,
}

type Establishing<T> = Pin<Box<dyn Future<Output = Result<T, HelloError>> + Send>>;

/// Where the link stands with its connection.
enum Phase {
    /// None. The dialling side dials at `dial_at`.
    Waiting,
    /// Dialling, up to the hello.
    Greeting(Establishing<Greeted>),
    /// Exchanging resume points and opening lanes.
    Joining(Establishing<Joined>),
    /// Carrying frames.
    Open(Box<Open>),
}

/// A connection that carries frames.
struct Open {
    connection: Connection,
    since: mesh_proto::time::Instant,
    outgoing: [SendStream; Lane::COUNT],
    incoming: [RecvStream; Lane::COUNT],
    /// The rest of a frame that the lane did not take; while there is one the lane is blocked.
    unwritten: [Bytes; Lane::COUNT],
}

/// One shard of this node, with what it could not take yet.
struct Target {
    shard: ShardHandle,
    batch: Vec<Envelope>,
    /// The length of the last batch: what to make room for at once.
    batch_len_usual: usize,
    stalled: VecDeque<ToShard>,
    permit: Option<Permit>,
}

impl Target {
    fn push(&mut self, envelope: Envelope) {
        if self.batch.is_empty() {
            self.batch.reserve_exact(self.batch_len_usual);
        }
        self.batch.push(envelope);
    }
}

type Permit =
    Pin<Box<dyn Future<Output = Result<mpsc::OwnedPermit<ToShard>, mpsc::error::SendError<()>>> + Send>>;

/// One link and everything it moves. Run it as a task of its own.
pub(crate) struct LinkTask {
    peer: NodeRef,
    addr: SocketAddr,
    context: Arc<LinkContext>,
    shared: Arc<PeerShared>,
    ends: PeerEnds,
    /// This side dials: its node id is the lower one.
    dials: bool,
    link: Link,
    phase: Phase,
    readable: Readable,
    /// Where reads put their chunks; empty in between.
    chunks: Vec<Bytes>,
    targets: Vec<Target>,
    stalled_len: usize,
    queued: Vec<(Lane, Bytes)>,
    /// Connections in a row that did not come to stand, or not for long.
    failures: u32,
    dial_at: Option<mesh_proto::time::Instant>,
    sleep: Pin<Box<Sleep>>,
    /// What `sleep` is set to.
    sleep_until: Option<mesh_proto::time::Instant>,
    now: mesh_proto::time::Instant,
}

impl LinkTask {
    /// A link to `peer`, not connected. `instance` rises with each link of this node's life.
    pub(crate) fn new(
        context: Arc<LinkContext>,
        (peer, addr): (NodeRef, SocketAddr),
        instance: u64,
        shared: Arc<PeerShared>,
        ends: PeerEnds,
    ) -> Self {
        let me = context.local.view.borrow().me;
        let targets = context.shards.0.iter().map(|shard| Target {
            shard: shard.clone(),
            batch: Vec::new(),
            batch_len_usual: 0,
            stalled: VecDeque::new(),
            permit: None,
        });
        let now = context.clock.now();
        let dials = me.id < peer.id;
        Self {
            peer,
            addr,
            shared,
            ends,
            dials,
            link: Link::new(instance, context.limits),
            phase: Phase::Waiting,
            readable: Readable::default(),
            chunks: vec![Bytes::new(); READ_CHUNKS],
            targets: targets.collect(),
            stalled_len: 0,
            queued: Vec::new(),
            failures: 0,
            dial_at: dials.then_some(now),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            sleep_until: None,
            now,
            context,
        }
    }

    /// Runs until `stop`, then closes the connection.
    pub(crate) async fn run(mut self, stop: CancellationToken, stopping: CancellationToken) {
        let reason = tokio::select! {
            biased;
            () = stopping.cancelled() => CloseReason::Stopping,
            () = stop.cancelled() => CloseReason::PeerDown,
            () = poll_fn(|cx| self.poll(cx)) => CloseReason::Stopping,
        };
        if let Phase::Open(open) = &self.phase {
            reason.close(&open.connection);
            tracing::info!(peer = ?self.peer, ?reason, "link ended");
        }
        self.shared.report(|report| report.connection = None);
    }

    /// Takes turns over all sources until none has anything left. Ready only when the node has let
    /// go of the queue.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.readable.register(cx);
        for _ in 0..TURNS_PER_POLL {
            self.now = self.context.clock.now();
            let mut busy = self.poll_phase(cx);
            match self.poll_queue(cx) {
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Ready(Some(())) => busy = true,
                Poll::Pending => {}
            }
            busy |= self.poll_stalled(cx);
            let stalled_len = self.stalled_len;
            busy |= self.poll_incoming(cx);
            busy |= self.poll_outgoing(cx);
            self.drain(cx);
            // One message per shard and turn: waking a shard costs more than its envelopes.
            self.flush();
            busy |= self.poll_timer(cx);
            // Nobody waits yet for the room that these need.
            busy |= self.stalled_len > stalled_len;
            if !busy {
                let stats = self.link.stats();
                self.shared.report(|report| report.stats = stats);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Connections coming to stand, from our dialling or from the acceptor.
    fn poll_phase(&mut self, cx: &mut Context<'_>) -> bool {
        if let Poll::Ready(Some(greeted)) = self.ends.greeted.poll_recv(cx) {
            self.join(greeted);
            return true;
        }
        match &mut self.phase {
            Phase::Waiting if self.dial_at.is_some_and(|at| at <= self.now) => {
                self.dial();
                true
            }
            Phase::Waiting | Phase::Open(_) => false,
            Phase::Greeting(establishing) => match establishing.as_mut().poll(cx) {
                Poll::Ready(Ok(greeted)) => {
                    self.join(greeted);
                    true
                }
                Poll::Ready(Err(error)) => self.failed(&error),
                Poll::Pending => false,
            },
            Phase::Joining(establishing) => match establishing.as_mut().poll(cx) {
                Poll::Ready(Ok(joined)) => {
                    self.open(joined);
                    true
                }
                Poll::Ready(Err(error)) => self.failed(&error),
                Poll::Pending => false,
            },
        }
    }

    fn dial(&mut self) {
        self.dial_at = None;
        let (context, whom, addr) = (self.context.clone(), self.peer, self.addr);
        self.phase = Phase::Greeting(within(async move {
            let connection = context.endpoint.connect(addr, tls::SERVER_NAME)?.await?;
            hello::greet_dialling(connection, &context.local, whom).await
        }));
    }

    /// Goes on with a greeted connection; it takes the place of any earlier one.
    fn join(&mut self, greeted: Greeted) {
        if let Phase::Open(open) = &self.phase {
            CloseReason::Replaced.close(&open.connection);
            self.disconnected();
        }
        self.phase = Phase::Joining(within(hello::join(greeted, self.link.resume())));
    }

    fn open(&mut self, joined: Joined) {
        let Joined { connection, peer, resume, outgoing, incoming } = joined;
        tracing::info!(peer = ?self.peer, name = peer.name, addr = %self.addr, "link connected");
        let since = tokio::time::Instant::now();
        self.shared.report(|report| {
            report.connection = Some((since, connection.clone()));
            report.connections_total += 1;
        });
        let unwritten = [const { Bytes::new() }; Lane::COUNT];
        let open = Open { connection, since: self.now, outgoing, incoming, unwritten };
        self.phase = Phase::Open(Box::new(open));
        self.readable.mark_all();
        self.link.handle(self.now, Input::Connected(resume));
    }

    /// A connection did not come to stand. Always progress: the phase has changed.
    fn failed(&mut self, error: &HelloError) -> bool {
        self.phase = Phase::Waiting;
        let pause = if error.is_final() { BACKOFF_REFUSED } else { self.backoff() };
        self.failures += 1;
        let (peer, addr, dials) = (self.peer, self.addr, self.dials);
        if self.failures == 1 || error.is_final() {
            tracing::warn!(?peer, %addr, %error, dials, "link not connected");
        } else {
            tracing::debug!(?peer, %addr, %error, dials, failures = self.failures, "link not connected");
        }
        self.dial_at = self.dials.then(|| self.now + pause);
        true
    }

    fn backoff(&self) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8));
        doubled.min(BACKOFF_MAX)
    }

    /// The connection is gone; what is unconfirmed waits for the next.
    fn lost(&mut self, reason: &str) {
        let Phase::Open(open) = &self.phase else { return };
        let told = open.connection.close_reason().and_then(|closed| CloseReason::told(&closed));
        let stopping = told == Some(CloseReason::Stopping);
        if told.is_some_and(CloseReason::is_orderly) {
            tracing::info!(peer = ?self.peer, addr = %self.addr, reason, "link closed by the peer");
        } else {
            tracing::warn!(peer = ?self.peer, addr = %self.addr, reason, "link lost its connection");
        }
        let lasted = self.now - open.since >= LASTING;
        self.disconnected();
        let pause = match lasted {
            // This life of it will not answer again; membership says so in a moment.
            _ if stopping => BACKOFF_MAX,
            true => Duration::ZERO,
            false => self.backoff(),
        };
        self.failures = if lasted { 0 } else { self.failures + 1 };
        self.dial_at = self.dials.then(|| self.now + pause);
    }

    fn disconnected(&mut self) {
        self.phase = Phase::Waiting;
        self.link.handle(self.now, Input::Disconnected);
        self.shared.report(|report| report.connection = None);
    }

    /// Closes a connection on which the peer broke the protocol.
    fn misbehaved(&mut self, how: &str) {
        if let Phase::Open(open) = &self.phase {
            CloseReason::Misbehaved.close(&open.connection);
            self.lost(how);
        }
    }

    /// Takes what is queued. Ready while there may be more.
    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        for _ in 0..BATCHES_PER_TURN {
            let Poll::Ready(count) = self.ends.queue.poll_recv_many(cx, &mut self.queued, QUEUE_BATCH) else {
                return Poll::Pending;
            };
            if count == 0 {
                return Poll::Ready(None);
            }
            let mut bytes = 0;
            for (lane, envelope) in self.queued.drain(..) {
                bytes += envelope.len();
                self.link.handle(self.now, Input::Send { lane, envelope });
            }
            self.shared.taken(bytes);
        }
        Poll::Ready(Some(()))
    }

    /// Reads what the lanes have, unless shards are full; whether there may be more.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        let mut chunks = std::mem::take(&mut self.chunks);
        // Control first.
        for lane in (0..Lane::COUNT).rev() {
            busy |= self.readable.has(lane) && self.read_lane(cx, lane, &mut chunks);
        }
        self.chunks = chunks;
        busy
    }

    /// Reads from one lane; whether it may have more.
    fn read_lane(&mut self, cx: &mut Context<'_>, lane: usize, chunks: &mut [Bytes]) -> bool {
        let control = lane == usize::from(Lane::CONTROL.0);
        for _ in 0..READS_PER_TURN {
            // It stays marked, and is read when the shards have room.
            if self.stalled_len > if control { STALLED_MAX } else { 0 } {
                return false;
            }
            let Phase::Open(open) = &mut self.phase else { return false };
            self.readable.unmark(lane);
            let mut context = Context::from_waker(self.readable.waker(lane));
            let read = pin!(open.incoming[lane].read_chunks(chunks)).poll(&mut context);
            match read {
                Poll::Pending => return false,
                Poll::Ready(Ok(Some(count))) => {
                    self.readable.mark(lane);
                    self.received(cx, Lane(lane as u8), &mut chunks[..count]);
                }
                Poll::Ready(Ok(None)) => self.lost("lane finished"),
                Poll::Ready(Err(error)) => self.lost(&error.to_string()),
            }
        }
        true
    }

    fn received(&mut self, cx: &mut Context<'_>, lane: Lane, chunks: &mut [Bytes]) {
        for bytes in chunks.iter_mut().map(std::mem::take) {
            self.link.handle(self.now, Input::Received { lane, bytes });
        }
        self.drain(cx);
    }

    /// Does what the machine says.
    fn drain(&mut self, cx: &mut Context<'_>) {
        // After an envelope that cannot be read, nothing from its frame may follow.
        let mut undecodable = false;
        while let Some(output) = self.link.poll() {
            match output {
                Output::Transmit { lane, bytes } => self.transmit(cx, lane, bytes),
                Output::Deliver { .. } if undecodable => {}
                Output::Deliver { envelope, .. } => undecodable = !self.deliver(&envelope),
                Output::Reset => self.reset(),
                Output::Misbehaved(how) => self.misbehaved(&how.to_string()),
            }
        }
    }

    /// Writes a frame, or as much of it as the lane takes.
    fn transmit(&mut self, cx: &mut Context<'_>, lane: Lane, bytes: Bytes) {
        let Phase::Open(open) = &mut self.phase else { return };
        open.unwritten[usize::from(lane.0)] = bytes;
        if !self.write(cx, lane) {
            self.link.handle(self.now, Input::Blocked(lane));
        }
    }

    /// Whether the lane has taken all that was unwritten.
    fn write(&mut self, cx: &mut Context<'_>, lane: Lane) -> bool {
        let at = usize::from(lane.0);
        loop {
            let Phase::Open(open) = &mut self.phase else { return true };
            let unwritten = std::slice::from_mut(&mut open.unwritten[at]);
            if unwritten[0].is_empty() {
                return true;
            }
            let written = pin!(open.outgoing[at].write_chunks(unwritten)).poll(cx);
            match written {
                Poll::Pending => return false,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => self.lost(&error.to_string()),
            }
        }
    }

    /// Goes on with lanes that were full.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> bool {
        let mut busy = false;
        for lane in (0..Lane::COUNT as u8).map(Lane) {
            let Phase::Open(open) = &self.phase else { return busy };
            if !open.unwritten[usize::from(lane.0)].is_empty() && self.write(cx, lane) {
                self.link.handle(self.now, Input::Writable(lane));
                busy = true;
            }
        }
        busy
    }

    /// Puts an envelope into the batches of the shards it is for; whether it could be read.
    fn deliver(&mut self, bytes: &Bytes) -> bool {
        let envelope: Envelope = match wire::decode(bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                // Half a stream is no stream: start over rather than go on with a hole.
                self.link.handle(self.now, Input::Lost);
                self.misbehaved(&error.to_string());
                return false;
            }
        };
        if envelope.to == To::Node {
            self.context.calls.clone().take(self.peer, envelope);
            return true;
        }
        let mut named = self.context.shards.named(envelope.to).map(|shard| usize::from(shard.shard.0));
        let Some(mut at) = named.next() else { return true };
        for next in named {
            self.targets[at].push(envelope.clone());
            at = next;
        }
        self.targets[at].push(envelope);
        true
    }

    /// Hands the batches to their shards.
    fn flush(&mut self) {
        for at in 0..self.targets.len() {
            let target = &mut self.targets[at];
            let batch = std::mem::take(&mut target.batch);
            if !batch.is_empty() {
                target.batch_len_usual = batch.len();
                self.tell(at, ToShard::Envelopes(batch));
            }
        }
    }

    /// Tells every shard that what was under way is lost, after what came before.
    fn reset(&mut self) {
        tracing::warn!(peer = ?self.peer, "link reset");
        self.flush();
        for at in 0..self.targets.len() {
            self.tell(at, ToShard::LinkReset(self.peer));
        }
    }

    fn tell(&mut self, at: usize, message: ToShard) {
        let target = &mut self.targets[at];
        let rejected = if target.stalled.is_empty() {
            match target.shard.tx.try_send(message) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
                Err(mpsc::error::TrySendError::Full(message)) => message,
            }
        } else {
            message
        };
        target.stalled.push_back(rejected);
        self.stalled_len += 1;
    }

    /// Waits for room in full shards.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stalled_len == 0 {
            return false;
        }
        let mut busy = false;
        for target in &mut self.targets {
            while !target.stalled.is_empty() {
                let permit =
                    target.permit.get_or_insert_with(|| Box::pin(target.shard.tx.clone().reserve_owned()));
                let Poll::Ready(permit) = permit.as_mut().poll(cx) else { break };
                target.permit = None;
                let message = target.stalled.pop_front();
                self.stalled_len -= 1;
                // A closed channel: the shard has stopped, and the node with it.
                if let (Ok(permit), Some(message)) = (permit, message) {
                    permit.send(message);
                }
                busy = true;
            }
        }
        busy
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let dial_at = self.dial_at.filter(|_| matches!(self.phase, Phase::Waiting));
        let next = [dial_at, self.link.next_deadline()].into_iter().flatten().min();
        let Some(next) = next else {
            self.sleep_until = None;
            return false;
        };
        if self.sleep_until != Some(next) {
            self.sleep.as_mut().reset(self.context.clock.at(next));
            self.sleep_until = Some(next);
        }
        if self.sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.sleep_until = None;
        // Tokio's timers have a granularity of 1 ms, ours of 1 µs: never wake for nothing.
        self.now = self.context.clock.now().max(next);
        self.link.handle(self.now, Input::Timer);
        self.drain(cx);
        true
    }
}

/// Puts the deadline of an establishment around it.
fn within<T: 'static>(
    establishing: impl Future<Output = Result<T, HelloError>> + Send + 'static,
) -> Establishing<T> {
    Box::pin(async {
        tokio::time::timeout(DIAL_WITHIN, establishing).await.unwrap_or(Err(HelloError::TimedOut))
    })
}
