//! The driver of one shard: sockets on one side, the machine on the other, one turn at a time.
//!
//! Belongs here: clients of the shard, reading, gathering, writing, closing, deadlines; feeding the
//! machine and carrying out what it says.
//! Stays out: threads and waiting (`thread`); protocol decisions, all of which are the machine's.
//! A turn: inputs first (messages of other threads, then whatever was read since the last turn, is
//! already in the machine), then all outputs into the outbox, then one write per client that has any.
//! Bounds per turn: [`TURN_READ_BYTES_MAX`], [`TURN_OWN_ENVELOPES_MAX`], [`TURN_WRITES_MAX`],
//! [`OUTBOX_BYTES_MAX`]; what is left over is done in the next, after everybody else had one.
//! Invariants: exactly one `ClientClosed` per client, nothing of it after; a `ClientIx` is not used
//! again before the machine has been polled dry after its `ClientClosed`; one writer per socket.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_proto::id::{ClientIx, NodeRef};
use mesh_proto::shard::{ClientGone, CloseCode, Input, Output, Packet, Shard, ShardStats};
use mesh_proto::time::Instant;
use mesh_proto::view::View;
use mesh_proto::wire::{Answer, CommandFailed};
use slab::Slab;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::DriverStats;
use super::client::{AbortOnDrop, Client, Phase};
use super::outbox::Outbox;
use super::outgoing::Outgoing;
use crate::clock::Clock;
use crate::handles::{OpenedClient, ShardReport, ToShard};
use crate::transport::websocket::{self, Event, ReadContext, Violation};

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

/// Bytes waiting for one client's socket. The machine stops far below (its `client_queue_bytes_max`
/// and one message); this bound holds even if it did not.
const REST_BYTES_MAX: usize = 8 << 20;

/// How long a peer may take to answer our close frame, and to take what was queued before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A frame or message must be whole within this time of its first byte.
const FRAME_TIMEOUT: Duration = Duration::from_secs(20);

/// How soon a blocked receiver is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// What a driver drives: [`Shard`], or a stand-in in tests.
pub(super) trait Machine {
    fn handle(&mut self, now: Instant, input: Input);
    fn poll(&mut self) -> Option<Output>;
    fn next_deadline(&self) -> Option<Instant>;
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

/// One shard's clients and machine.
pub(super) struct Driver<M> {
    machine: M,
    clock: Clock,
    message_bytes_max: usize,
    /// A slot without client is about to be freed: the machine may still name it.
    clients: Slab<Option<Client>>,
    freed: Vec<ClientIx>,
    deadlines: BTreeSet<(Instant, ClientIx)>,
    read_buffer: Box<[u8]>,
    outbox: Outbox,
    /// Clients with something in the outbox.
    to_write: VecDeque<ClientIx>,
    outgoing: Outgoing,
    answers: HashMap<u64, oneshot::Sender<Result<Answer, CommandFailed>>>,
    queries: u64,
    wanted: Vec<Wanted>,
    /// Whether the machine has been given something since it was polled dry.
    fed: bool,
    turn: u32,
    read_this_turn: usize,
    stats: DriverStats,
}

impl<M: Machine> Driver<M> {
    pub(super) fn new(machine: M, clock: Clock, message_bytes_max: usize, outgoing: Outgoing) -> Self {
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
            answers: HashMap::new(),
            queries: 0,
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
        self.fed || !self.to_write.is_empty() || !self.wanted.is_empty() || self.outgoing.has_own()
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
            ToShard::CloseClients(count) => self.feed(now, Input::CloseClients(count)),
            ToShard::Stats(answer) => {
                let driver = DriverStats { queries_open: self.answers.len() as u64, ..self.stats };
                // Whoever asked may have gone.
                let _ = answer.send(ShardReport { machine: self.machine.stats(), driver });
            }
        }
    }

    fn open(&mut self, now: Instant, opened: OpenedClient) {
        let stream = match TcpStream::from_std(opened.stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "a client's stream cannot be registered"),
        };
        let entry = self.clients.vacant_entry();
        let ix = ClientIx(u32::try_from(entry.key()).expect("fewer clients than file descriptors"));
        entry.insert(Some(Client::new(stream, opened.place)));
        let greeting = self.outbox.encode(|arena| arena.extend_from_slice(&opened.greeting));
        self.queue(ix, &greeting);
        self.feed(now, Input::ClientOpened(ix, opened.client));
        self.wanted.push(Wanted::Reading(ix));
        let mut read_ahead = opened.read_ahead;
        self.read_frames(now, ix, &mut read_ahead);
    }

    /// Reads once from a client whose socket has something.
    pub(super) fn read(&mut self, ix: ClientIx, context: &mut Context<'_>) -> Progress {
        let Some(client) = client_mut(&mut self.clients, ix) else { return Progress::Ended };
        if client.paused {
            client.reading = None;
            return Progress::Ended;
        }
        if client.read_in == self.turn || self.read_this_turn >= TURN_READ_BYTES_MAX {
            return Progress::AfterTurn;
        }
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut into = ReadBuf::new(&mut buffer);
        let outcome = Pin::new(&mut client.stream).poll_read(context, &mut into);
        let len = into.filled().len();
        let now = self.clock.now();
        let progress = match outcome {
            Poll::Pending => Progress::Waits,
            Poll::Ready(Err(_)) => self.remove(now, ix, ClientGone::Error),
            Poll::Ready(Ok(())) if len == 0 => self.remove(now, ix, ClientGone::Closed),
            Poll::Ready(Ok(())) => {
                client.read_in = self.turn;
                self.read_this_turn += len;
                self.stats.reads_total += 1;
                self.stats.read_bytes_total += len as u64;
                self.read_frames(now, ix, &mut buffer[..len]);
                // A read that did not fill the buffer has emptied the socket; tokio knows.
                match client_mut(&mut self.clients, ix).map(|c| c.stream.poll_read_ready(context)) {
                    None => Progress::Ended,
                    Some(Poll::Pending) => Progress::Waits,
                    Some(Poll::Ready(_)) => Progress::AfterTurn,
                }
            }
        };
        self.read_buffer = buffer;
        progress
    }

    fn read_frames(&mut self, now: Instant, ix: ClientIx, bytes: &mut [u8]) {
        let context = ReadContext { now, message_bytes_max: self.message_bytes_max };
        let mut at = 0;
        while let Some(client) = client_mut(&mut self.clients, ix) {
            let open = client.phase == Phase::Open;
            match client.reader.next(context, bytes, &mut at) {
                Ok(None) => break,
                Ok(Some(Event::Message(packet))) if open => {
                    self.feed(now, Input::ClientPacket(ix, packet));
                }
                Ok(Some(Event::Ping(payload))) if open && !client.pong_queued => {
                    client.pong_queued = true;
                    let pong = self.outbox.encode(|arena| websocket::append_pong(arena, &payload));
                    self.queue(ix, &pong);
                }
                Ok(Some(Event::Close(code))) => self.closed_by_peer(now, ix, code),
                Ok(Some(_)) => {}
                Err(violation) => self.violated(now, ix, violation),
            }
        }
        self.watch_frame(ix);
    }

    /// An unfinished frame has a deadline; a whole one ends it.
    fn watch_frame(&mut self, ix: ClientIx) {
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        if client.phase == Phase::Open {
            let deadline = client.reader.unfinished_since().map(|since| since + FRAME_TIMEOUT);
            set_deadline(&mut self.deadlines, ix, client, deadline);
        }
    }

    fn violated(&mut self, now: Instant, ix: ClientIx, violation: Violation) {
        self.stats.violations_total += 1;
        tracing::debug!(client = ix.0, %violation, "client broke the WebSocket protocol");
        self.close(now, ix, Some(violation.close_code()), violation.reason(), ClientGone::Error);
    }

    fn closed_by_peer(&mut self, now: Instant, ix: ClientIx, code: Option<u16>) {
        self.close(now, ix, code, "", ClientGone::Closed);
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        if let Phase::Closing { answered, .. } = &mut client.phase {
            *answered = true;
        }
        self.remove_if_done(now, ix);
    }

    /// Queues our close frame, once.
    fn close(&mut self, now: Instant, ix: ClientIx, code: Option<u16>, reason: &str, gone: ClientGone) {
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        if client.phase != Phase::Open {
            return;
        }
        client.phase = Phase::Closing { answered: false, gone };
        set_deadline(&mut self.deadlines, ix, client, Some(now + CLOSE_TIMEOUT));
        let frame = self.outbox.encode(|arena| websocket::append_close(arena, code, reason));
        // Its answer must be read.
        client.paused = false;
        if client.reading.is_none() {
            self.wanted.push(Wanted::Reading(ix));
        }
        if self.outbox.push(&mut client.pending, &frame) {
            self.to_write.push_back(ix);
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(at, ix)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            let Some(client) = client_mut(&mut self.clients, ix) else { continue };
            client.deadline = None;
            match client.phase {
                Phase::Open => self.violated(now, ix, Violation::Flood("unfinished frame")),
                Phase::Closing { gone, .. } => {
                    self.remove(now, ix, gone);
                }
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
            Output::Close(ix, code) => {
                self.close(now, ix, Some(code.code()), code.reason(), ClientGone::Closed);
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

    fn queue_packets(&mut self, clients: &[ClientIx], packets: &[Packet]) {
        let frames = self.outbox.encode_packets(packets);
        for &ix in clients {
            if client_mut(&mut self.clients, ix).is_some_and(|client| client.phase == Phase::Open) {
                self.queue(ix, &frames);
            }
        }
    }

    fn queue(&mut self, ix: ClientIx, frames: &std::ops::Range<usize>) {
        if let Some(client) = client_mut(&mut self.clients, ix)
            && self.outbox.push(&mut client.pending, frames)
        {
            self.to_write.push_back(ix);
        }
    }

    /// Writes to the clients that have waited longest, at most so many.
    fn write_some(&mut self, now: Instant, count: usize) {
        for _ in 0..count {
            let Some(ix) = self.to_write.pop_front() else { break };
            self.write(now, ix);
        }
        if self.to_write.is_empty() {
            self.outbox.clear(OUTBOX_KEEP_BYTES);
        }
    }

    /// All that a client has in the outbox, in one call.
    fn write(&mut self, now: Instant, ix: ClientIx) {
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        let bytes = self.outbox.gather(std::mem::take(&mut client.pending));
        if bytes.is_empty() {
            return;
        }
        let written = if client.rest.is_some() {
            0
        } else {
            self.stats.writes_total += 1;
            match client.write_now(bytes) {
                Ok(written) => written,
                Err(error) => return self.broken(now, ix, &error),
            }
        };
        self.stats.written_bytes_total += written as u64;
        if written == bytes.len() {
            return self.drained(now, ix);
        }
        if client.keep(&bytes[written..]) {
            self.stats.blocked_total += 1;
            self.wanted.push(Wanted::Flushing(ix));
        }
        let left = client.rest_len();
        self.feed(now, Input::ClientQueue(ix, left));
        if left > REST_BYTES_MAX {
            self.close(
                now,
                ix,
                Some(CloseCode::TooSlow.code()),
                CloseCode::TooSlow.reason(),
                ClientGone::Closed,
            );
            self.remove(now, ix, ClientGone::Closed);
        }
    }

    /// Writes more of what waits for a client, once its socket takes some.
    pub(super) fn flush(&mut self, ix: ClientIx, context: &mut Context<'_>) -> Progress {
        let now = self.clock.now();
        let Some(client) = client_mut(&mut self.clients, ix) else { return Progress::Ended };
        match client.stream.poll_write_ready(context) {
            Poll::Pending => return Progress::Waits,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.broken(now, ix, &error);
                return Progress::Ended;
            }
        }
        self.stats.writes_total += 1;
        match client.write_rest() {
            Ok(written) => {
                self.stats.written_bytes_total += written as u64;
                let left = client.rest_len();
                let open = client.phase == Phase::Open;
                if written > 0 && open {
                    self.feed(now, Input::ClientQueue(ix, left));
                }
                if left > 0 {
                    return Progress::AfterTurn;
                }
                self.drained(now, ix);
            }
            Err(error) => self.broken(now, ix, &error),
        }
        Progress::Ended
    }

    fn drained(&mut self, now: Instant, ix: ClientIx) {
        if let Some(client) = client_mut(&mut self.clients, ix) {
            client.pong_queued = false;
            if client.phase != Phase::Open {
                self.remove_if_done(now, ix);
            }
        }
    }

    fn broken(&mut self, now: Instant, ix: ClientIx, error: &io::Error) {
        tracing::debug!(client = ix.0, %error, "client's stream broke");
        self.remove(now, ix, ClientGone::Error);
    }

    fn remove_if_done(&mut self, now: Instant, ix: ClientIx) {
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        if let Phase::Closing { answered: true, gone } = client.phase
            && client.is_drained()
        {
            self.remove(now, ix, gone);
        }
    }

    /// Ends a client: its stream, its tasks, its place, and one word to the machine.
    fn remove(&mut self, now: Instant, ix: ClientIx, gone: ClientGone) -> Progress {
        let slot = self.clients.get_mut(ix.0 as usize).and_then(Option::take);
        let Some(mut client) = slot else { return Progress::Ended };
        set_deadline(&mut self.deadlines, ix, &mut client, None);
        self.freed.push(ix);
        // A close of ours that the peer has answered by hanging up ended as it should.
        let gone = match client.phase {
            Phase::Open => gone,
            Phase::Closing { gone, .. } => gone,
        };
        self.feed(now, Input::ClientClosed(ix, gone));
        Progress::Ended
    }
}

fn client_mut(clients: &mut Slab<Option<Client>>, ix: ClientIx) -> Option<&mut Client> {
    clients.get_mut(ix.0 as usize).and_then(Option::as_mut)
}

fn set_deadline(
    deadlines: &mut BTreeSet<(Instant, ClientIx)>,
    ix: ClientIx,
    client: &mut Client,
    deadline: Option<Instant>,
) {
    if client.deadline == deadline {
        return;
    }
    if let Some(old) = std::mem::replace(&mut client.deadline, deadline) {
        deadlines.remove(&(old, ix));
    }
    if let Some(new) = deadline {
        deadlines.insert((new, ix));
    }
}

#[cfg(test)]
mod tests;
