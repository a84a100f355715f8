//! The sockets of a shard's clients: what is read, written and closed within a turn.
//!
//! Belongs here: from bytes to the machine's inputs, from the outbox to one write per client, the
//! end of a client, and its deadlines.
//! Stays out: when a turn is and what the machine wants (`driver`); frames (`transport::websocket`).
//! Invariants: one `ClientClosed` per client, as the last thing said of it; one writer per socket:
//! while something waits for a socket, everything else queues behind it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_proto::id::ClientIx;
use mesh_proto::shard::{ClientGone, FanoutEach, Input, Packet, Transport};
use mesh_proto::time::Instant;
use slab::Slab;

use super::super::client::{Client, Phase};
use super::{Driver, Machine, OUTBOX_KEEP_BYTES, Progress, Slot, TURN_READ_BYTES_MAX, Wanted};
use crate::handles::{OpenedClient, OpenedPolling};
use crate::transport::websocket::{self, Event, ReadContext, Violation};

/// Bytes waiting for one client's socket. The machine stops far below (its `client_queue_bytes_max`
/// and one message); this bound holds even if it did not.
const REST_BYTES_MAX: usize = 8 << 20;

/// How long a peer may take to answer our close frame, and to take what was queued before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A frame or message must be whole within this time of its first byte.
const FRAME_TIMEOUT: Duration = Duration::from_secs(20);

impl<M: Machine> Driver<M> {
    pub(super) fn open(&mut self, now: Instant, opened: OpenedClient) {
        let stream = match opened.stream.attach() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "a client's stream cannot be registered"),
        };
        let entry = self.clients.vacant_entry();
        let ix = ClientIx(u32::try_from(entry.key()).expect("fewer clients than file descriptors"));
        entry.insert(Slot::Socket(Client::new(stream, opened.place)));
        let greeting = self.outbox.encode(|arena| arena.extend_from_slice(&opened.greeting));
        self.queue(ix, &greeting);
        self.feed(now, Input::ClientOpened(ix, opened.client));
        self.wanted.push(Wanted::Reading(ix));
        let mut read_ahead = opened.read_ahead;
        self.read_frames(now, ix, &mut read_ahead);
    }

    /// A client without a socket: its requests come and go.
    pub(super) fn open_polling(&mut self, now: Instant, opened: OpenedPolling) {
        let OpenedPolling { client, answer, place } = opened;
        let Transport::Polling(request) = client.transport else { return };
        self.requests.insert(request, answer);
        let ix = self.clients.insert(Slot::Polling(place));
        let ix = ClientIx(u32::try_from(ix).expect("fewer clients than handshakes in a lifetime"));
        self.feed(now, Input::ClientOpened(ix, client));
    }

    /// Whether this was a polling client: then nothing of it is left.
    pub(super) fn polling_ends(&mut self, ix: ClientIx) -> bool {
        match self.clients.get_mut(ix.0 as usize) {
            Some(slot @ Slot::Polling(_)) => {
                *slot = Slot::Gone;
                self.freed.push(ix);
                true
            }
            _ => false,
        }
    }

    /// Reads once from a client whose socket has something.
    pub(in crate::shard) fn read(&mut self, ix: ClientIx, context: &mut Context<'_>) -> Progress {
        let Some(client) = client_mut(&mut self.clients, ix) else { return Progress::Ended };
        if client.paused {
            client.reading = None;
            return Progress::Ended;
        }
        if client.read_in == self.turn || self.read_this_turn >= TURN_READ_BYTES_MAX {
            return Progress::AfterTurn;
        }
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let outcome = client.stream.poll_read_some(context, &mut buffer);
        let now = self.clock.now();
        let progress = match outcome {
            Poll::Pending => Progress::Waits,
            Poll::Ready(Err(_)) => self.remove(now, ix, ClientGone::Error),
            Poll::Ready(Ok(0)) => self.remove(now, ix, ClientGone::Closed),
            Poll::Ready(Ok(len)) => {
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
    pub(super) fn close(
        &mut self,
        now: Instant,
        ix: ClientIx,
        code: Option<u16>,
        reason: &str,
        gone: ClientGone,
    ) {
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

    pub(super) fn expire(&mut self, now: Instant) {
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

    pub(super) fn queue_packets(&mut self, clients: &[ClientIx], packets: &[Packet]) {
        let frames = self.outbox.encode_packets(packets);
        for &ix in clients {
            if client_mut(&mut self.clients, ix).is_some_and(|client| client.phase == Phase::Open) {
                self.queue(ix, &frames);
            }
        }
    }

    /// The shared part is encoded once for each length of the ends.
    pub(super) fn queue_each(&mut self, each: &FanoutEach) {
        let Some((first, rest)) = each.open.split_first() else { return };
        let (Packet::Text(open) | Packet::Binary(open)) = first;
        let rest = self.outbox.encode_packets(rest);
        let mut heads: Vec<(usize, Range<usize>)> = Vec::new();
        for (ix, tail) in each.tails() {
            if client_mut(&mut self.clients, ix).is_none_or(|client| client.phase != Phase::Open) {
                continue;
            }
            let known = heads.iter().find(|(len, _)| *len == tail.len()).map(|(_, head)| head.clone());
            let head = known.unwrap_or_else(|| {
                let len = open.len() + tail.len();
                let head = self.outbox.encode(|arena| websocket::append_text_head(arena, open, len));
                heads.push((tail.len(), head.clone()));
                head
            });
            let tail = self.outbox.encode(|arena| arena.extend_from_slice(tail));
            self.queue(ix, &head);
            self.queue(ix, &tail);
            if !rest.is_empty() {
                self.queue(ix, &rest);
            }
        }
    }

    fn queue(&mut self, ix: ClientIx, frames: &Range<usize>) {
        if let Some(client) = client_mut(&mut self.clients, ix)
            && self.outbox.push(&mut client.pending, frames)
        {
            self.to_write.push_back(ix);
        }
    }

    /// Writes to the clients that have waited longest, at most so many.
    pub(super) fn write_some(&mut self, now: Instant, count: usize) {
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
        if written == bytes.len() && client.stream.unsent() == 0 {
            return self.drained(now, ix);
        }
        if client.keep(&bytes[written..]) {
            self.stats.blocked_total += 1;
            self.wanted.push(Wanted::Flushing(ix));
        }
        let left = client.rest_len();
        self.feed(now, Input::ClientQueue(ix, left));
        if left > REST_BYTES_MAX {
            tracing::warn!(client = ix.0, left, "client's queue passed every bound");
            self.remove(now, ix, ClientGone::Error);
        }
    }

    /// Writes more of what waits for a client, once its socket takes some.
    pub(in crate::shard) fn flush(&mut self, ix: ClientIx, context: &mut Context<'_>) -> Progress {
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
        let had = client.rest_len();
        match client.write_rest() {
            Ok(written) => {
                self.stats.written_bytes_total += written as u64;
                let left = client.rest_len();
                let open = client.phase == Phase::Open;
                if left < had && open {
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
        let Some(client) = client_mut(&mut self.clients, ix) else { return };
        client.pong_queued = false;
        if client.phase == Phase::Open {
            return;
        }
        // After a violation nothing more is understood of the peer, not even its close frame: our
        // end of the stream closes, and its end is awaited.
        if client.reader.has_ended() && !client.is_answered() {
            client.stream.close_write();
        }
        self.remove_if_done(now, ix);
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
        let Some(slot @ Slot::Socket(_)) = self.clients.get_mut(ix.0 as usize) else {
            return Progress::Ended;
        };
        let Slot::Socket(mut client) = std::mem::replace(slot, Slot::Gone) else { return Progress::Ended };
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

pub(super) fn client_mut(clients: &mut Slab<Slot>, ix: ClientIx) -> Option<&mut Client> {
    match clients.get_mut(ix.0 as usize) {
        Some(Slot::Socket(client)) => Some(client),
        _ => None,
    }
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
