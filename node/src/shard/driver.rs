//! The driver of one shard: sockets on one side, the machine on the other, one turn at a time.
//!
//! Belongs here: the order of a turn; feeding the machine and carrying out what it says.
//! Stays out: the sockets (`driver::clients`); threads and waiting (`thread`); protocol decisions, all
//! of which are the machine's.
//! A turn: inputs first (messages of other threads, then whatever was read since the last turn, is
//! already in the machine), then all outputs into the outbox, then one write per client that has any.
//! Bounds per turn: [`TURN_READ_BYTES_MAX`], [`TURN_OWN_ENVELOPES_MAX`], [`TURN_WRITES_MAX`],
//! [`OUTBOX_BYTES_MAX`]; what is left over is done in the next, after everybody else had one.
//! Invariants: exactly one `ClientClosed` per client, nothing of it after; a `ClientIx` is not used
//! again before the machine has been polled dry after its `ClientClosed`; one writer per socket.

mod clients;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{ClientIx, NodeRef};
use mesh_proto::shard::{ClientGone, Input, Output, RequestIx, Shard, ShardStats};
use mesh_proto::time::Instant;
use mesh_proto::view::View;
use mesh_proto::wire::{Answer, CommandFailed, EngineResponse};
use slab::Slab;
use tokio::sync::oneshot;

use super::DriverStats;
use super::client::{AbortOnDrop, Client, Phase};
use super::outbox::Outbox;
use super::outgoing::Outgoing;
use crate::admission::ClientPlace;
use crate::app::runtime::Apps;
use crate::clock::Clock;
use crate::handles::{EngineAsked, ShardReport, ToShard};
use crate::identity::Identities;
use clients::client_mut;

/// One read, shared by all clients of the shard.
const READ_BYTES: usize = 64 << 10;

/// Bytes read from all clients before the machine's outputs are carried out.
const TURN_READ_BYTES_MAX: usize = 4 << 20;

/// Envelopes from this shard to itself handled in one turn.
const TURN_OWN_ENVELOPES_MAX: usize = 4_096;

/// Clients written to before others are read again.
const TURN_WRITES_MAX: usize = 2_048;

/// Frames held at once; then they are written before more is polled.
const OUTBOX_BYTES_MAX: usize = 2 << 20;

/// Memory the outbox keeps between turns.
const OUTBOX_KEEP_BYTES: usize = 256 << 10;

/// How soon a blocked receiver is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// What a driver drives: [`Shard`], or a stand-in in tests.
pub(super) trait Machine {
    fn handle(&mut self, now: Instant, input: Input);
    fn poll(&mut self) -> Option<Output>;
    fn next_deadline(&self) -> Option<Instant>;
    /// The machine has left something for the next turn that waits for nothing.
    fn has_more(&self) -> bool;
    fn stats(&self) -> ShardStats;
}

impl Machine for Shard {
    fn handle(&mut self, now: Instant, input: Input) {
        Self::handle(self, now, input);
    }

    fn poll(&mut self) -> Option<Output> {
        Self::poll(self)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Self::next_deadline(self)
    }

    fn has_more(&self) -> bool {
        Self::has_more(self)
    }

    fn stats(&self) -> ShardStats {
        Self::stats(self)
    }
}

/// A task to be started for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One that waits for its bytes.
    Reading(ClientIx),
    /// One that waits for its socket to take more.
    Flushing(ClientIx),
}

/// How far a client's task got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It will be woken by its socket.
    Waits,
    /// There is more, after the next turn.
    AfterTurn,
    /// Its work is done.
    Ended,
}

/// What the machine knows by one index.
pub(super) enum Slot {
    Socket(Client),
    /// Nothing of a polling client is kept here between its requests but its place in the counts.
    Polling(#[expect(dead_code, reason = "held, and given back by dropping it")] ClientPlace),
    /// About to be freed: the machine may still name it.
    Gone,
}

/// One shard's clients and machine.
pub(super) struct Driver<M> {
    machine: M,
    clock: Clock,
    message_bytes_max: usize,
    clients: Slab<Slot>,
    freed: Vec<ClientIx>,
    deadlines: BTreeSet<(Instant, ClientIx)>,
    read_buffer: Box<[u8]>,
    outbox: Outbox,
    /// Clients with something in the outbox.
    to_write: VecDeque<ClientIx>,
    outgoing: Outgoing,
    apps: Arc<Apps>,
    identities: Arc<Identities>,
    answers: HashMap<u64, oneshot::Sender<Result<Answer, CommandFailed>>>,
    queries: u64,
    /// Requests of polling clients that came in by this shard.
    requests: HashMap<RequestIx, oneshot::Sender<EngineResponse>>,
    wanted: Vec<Wanted>,
    /// Whether the machine has been given something since it was polled dry.
    fed: bool,
    turn: u32,
    read_this_turn: usize,
    stats: DriverStats,
}

impl<M: Machine> Driver<M> {
    pub(super) fn new(
        machine: M,
        clock: Clock,
        message_bytes_max: usize,
        outgoing: Outgoing,
        apps: Arc<Apps>,
        identities: Arc<Identities>,
    ) -> Self {
        Self {
            machine,
            clock,
            message_bytes_max,
            clients: Slab::new(),
            freed: Vec::new(),
            deadlines: BTreeSet::new(),
            read_buffer: vec![0; READ_BYTES].into(),
            outbox: Outbox::default(),
            to_write: VecDeque::new(),
            outgoing,
            apps,
            identities,
            answers: HashMap::new(),
            queries: 0,
            requests: HashMap::new(),
            wanted: Vec::new(),
            fed: false,
            turn: 1,
            read_this_turn: 0,
            stats: DriverStats::default(),
        }
    }

    /// When the next turn is due at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let clients = self.deadlines.first().map(|&(at, _)| at);
        let retry = self.outgoing.is_blocked().then(|| self.clock.now() + RETRY_AFTER);
        [self.machine.next_deadline(), clients, retry].into_iter().flatten().min()
    }

    /// One turn.
    pub(super) fn turn(&mut self, inbox: impl Iterator<Item = ToShard>, view: Option<Arc<View>>) {
        let now = self.clock.now();
        self.stats.turns_total += 1;
        self.turn = self.turn.wrapping_add(1);
        self.read_this_turn = 0;
        if let Some(view) = view {
            self.outgoing.set_view(&view);
            self.feed(now, Input::View(view));
        }
        for message in inbox {
            self.take(now, message);
        }
        if self.machine.next_deadline().is_some_and(|at| at <= now) {
            self.feed(now, Input::Timer);
        }
        self.expire(now);
        self.carry_out(now);
        self.write_some(now, TURN_WRITES_MAX);
        self.outgoing.flush();
    }

    /// Whether a turn would find something to do.
    pub(super) fn has_work(&self) -> bool {
        let own = self.fed || !self.to_write.is_empty() || !self.wanted.is_empty() || self.outgoing.has_own();
        own || self.machine.has_more()
    }

    /// Tasks to start, each to be given back by [`Self::started`].
    pub(super) fn next_wanted(&mut self) -> Option<Wanted> {
        self.wanted.pop()
    }

    /// Keeps a started task for as long as its client lives.
    pub(super) fn started(&mut self, wanted: Wanted, task: AbortOnDrop) {
        match wanted {
            Wanted::Reading(ix) => {
                if let Some(client) = client_mut(&mut self.clients, ix) {
                    client.reading = Some(task);
                }
            }
            Wanted::Flushing(ix) => {
                if let Some(rest) = client_mut(&mut self.clients, ix).and_then(|client| client.rest.as_mut())
                {
                    rest.flushing = Some(task);
                }
            }
        }
    }

    fn feed(&mut self, now: Instant, input: Input) {
        self.fed = true;
        self.machine.handle(now, input);
    }

    fn take(&mut self, now: Instant, message: ToShard) {
        match message {
            ToShard::Client(opened) => self.open(now, opened),
            ToShard::Polling(opened) => self.open_polling(now, opened),
            ToShard::Request(EngineAsked { ix, sid, request, answer }) => {
                self.requests.insert(ix, answer);
                self.feed(now, Input::Request(ix, sid, request));
            }
            ToShard::Identified(ix, number, said) => self.feed(now, Input::Identified(ix, number, said)),
            ToShard::App(sid, call, outcome) => self.feed(now, Input::App(sid, call, outcome)),
            ToShard::RequestGone(ix) => {
                if self.requests.remove(&ix).is_some() {
                    self.feed(now, Input::RequestGone(ix));
                }
            }
            ToShard::Envelopes(envelopes) => {
                for envelope in envelopes {
                    self.feed(now, Input::Envelope(envelope));
                }
            }
            ToShard::LinkReset(peer) => self.feed(now, Input::LinkReset(peer)),
            ToShard::Query(query, answer) => {
                self.queries += 1;
                self.answers.insert(self.queries, answer);
                self.feed(now, Input::Query(self.queries, query));
            }
            ToShard::Products(products) => self.feed(now, Input::Products(products)),
            ToShard::CloseClients(count) => self.feed(now, Input::CloseClients(count)),
            ToShard::Stats(answer) => {
                let driver = DriverStats { queries_open: self.answers.len() as u64, ..self.stats };
                // Whoever asked may have gone.
                let _ = answer.send(ShardReport { machine: self.machine.stats(), driver });
            }
        }
    }

    /// Feeds what this shard says to itself and puts outputs into the outbox until there are none.
    fn carry_out(&mut self, now: Instant) {
        let mut own_left = TURN_OWN_ENVELOPES_MAX;
        loop {
            while let Some(output) = self.machine.poll() {
                self.output(now, output);
                if self.outbox.weight() > OUTBOX_BYTES_MAX {
                    self.write_some(now, usize::MAX);
                }
            }
            self.fed = false;
            match self.outgoing.next_own() {
                Some(envelope) => self.feed(now, Input::Envelope(envelope)),
                None => break,
            }
            own_left -= 1;
            if own_left == 0 {
                return;
            }
        }
        // Polled dry: the machine names no client that is gone.
        for ix in self.freed.drain(..) {
            self.clients.remove(ix.0 as usize);
        }
    }

    fn output(&mut self, now: Instant, output: Output) {
        match output {
            Output::Write(ix, packet) => self.queue_packets(&[ix], std::slice::from_ref(&packet)),
            Output::Fanout(packets, clients) => self.queue_packets(&clients, &packets),
            Output::FanoutEach(each) => self.queue_each(&each),
            Output::Close(ix, _) if self.polling_ends(ix) => {
                self.feed(now, Input::ClientClosed(ix, ClientGone::Closed));
            }
            Output::Close(ix, code) => {
                self.close(now, ix, Some(code.code()), code.reason(), ClientGone::Closed);
            }
            Output::Identify(question) => self.identities.ask(self.outgoing.shard(), question),
            Output::App(call) => self.apps.ask(self.outgoing.shard(), *call),
            Output::AppAnswered(name, answer) => self.apps.answered(name, answer),
            Output::AppGathered(name, gathered) => self.apps.gathered(name, gathered),
            Output::Respond(ix, response) => {
                if let Some(asker) = self.requests.remove(&ix) {
                    // Whoever asked may have gone.
                    let _ = asker.send(response);
                }
            }
            Output::PauseReading(ix) => {
                if let Some(client) = client_mut(&mut self.clients, ix) {
                    client.paused = client.phase == Phase::Open;
                }
            }
            Output::ResumeReading(ix) => {
                if let Some(client) = client_mut(&mut self.clients, ix)
                    && std::mem::take(&mut client.paused)
                    && client.reading.is_none()
                {
                    self.wanted.push(Wanted::Reading(ix));
                }
            }
            Output::Send { to, lane, envelope } => {
                if let Some(peer) = self.outgoing.send(to, lane, envelope) {
                    self.reset(now, peer);
                }
            }
            Output::Answer(token, answer) => {
                if let Some(asker) = self.answers.remove(&token) {
                    // Whoever asked may have gone.
                    let _ = asker.send(answer);
                }
            }
        }
    }

    fn reset(&mut self, now: Instant, peer: NodeRef) {
        self.stats.backlogs_dropped_total += 1;
        tracing::warn!(?peer, "a peer takes too little: its backlog is dropped and will be repeated");
        self.feed(now, Input::LinkReset(peer));
    }
}

#[cfg(test)]
mod tests;
