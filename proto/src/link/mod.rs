//! A link: an ordered, lossless stream of envelopes to one incarnation of a peer.
//!
//! Belongs here: sequence numbers, confirmations, resending after a reconnect, the bound and its fate.
//! Stays out: sockets and handshakes (`node::mesh`), what envelopes say (`wire`), who is up (`membership`).
//! Units: sequence numbers count envelopes per lane, from 1; bounds in bytes and envelopes.
//! Invariants: within an epoch each lane delivers every envelope once and in order, whatever happens
//! to the connections under it. What was accepted is delivered, or followed by [`Output::Reset`], or
//! the link is dropped because the peer is down. Never more is kept than [`LinkLimits`] allow.
//!
//! How to drive it: one link per pair of incarnations. Send [`Link::resume`] on each new connection,
//! then feed [`Input::Connected`] with the peer's, then all bytes of its lanes; drain [`Link::poll`]
//! after each input or batch of inputs; wake it at [`Link::next_deadline`]. Drop it when membership
//! says that the peer's incarnation is down.
//!
//! **Epochs.** A link whose peer takes nothing for too long is full. It then forgets everything under
//! way, in both directions, and starts over in the next epoch: both ends output [`Output::Reset`], and
//! the layer above repeats what it has no answer to. The epoch is in every frame, so a reset needs no
//! new connection, and frames of an earlier epoch that are still in flight are dropped.

pub(crate) mod frame;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::mutant::{Mutant, is_planted};
use crate::time::Instant;
use crate::wire::{ENVELOPE_BYTES_MAX, Lane};
pub use frame::{FRAME_BYTES_MAX, FrameError, PerLane, Resume};
use frame::{Frame, FrameBuilder, FrameReader};

/// What a batch of envelopes grows to before it becomes a frame. One write per envelope costs forty
/// times the CPU; more than this gains nothing.
pub const BATCH_BYTES: usize = 32 << 10;

/// Envelopes received are confirmed at the latest after this time, on the back of a frame if one
/// leaves sooner. Only the sender's memory waits for it.
pub const CONFIRM_DELAY: Duration = Duration::from_millis(20);

/// Envelopes received are confirmed at once when there are this many of them.
pub const CONFIRM_ENVELOPES: u64 = 1_024;

/// The same in bytes.
pub const CONFIRM_BYTES: usize = 256 << 10;

/// How long a link that overflowed stays empty before it starts over: so a flood that does not fit
/// is not repeated in a tight loop.
pub const RESET_PAUSE: Duration = Duration::from_millis(250);

/// Places that the queue of an idle lane keeps.
const IDLE_QUEUE_CAPACITY: usize = 256;

/// What a link may keep for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Bytes of envelopes that the peer has not confirmed, those waiting to be sent included.
    pub unconfirmed_bytes_max: usize,
    /// The same as a count.
    pub unconfirmed_len_max: usize,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { unconfirmed_bytes_max: 16 << 20, unconfirmed_len_max: 65_536 }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Send one encoded envelope.
    Send {
        /// The stream it belongs on.
        lane: Lane,
        /// Its bytes, at most [`ENVELOPE_BYTES_MAX`].
        envelope: Bytes,
    },
    /// The driver had to drop an envelope before it got here: same fate as an overflow.
    Lost,
    /// A connection stands, hellos and resume points are exchanged; this is the peer's.
    Connected(Resume),
    /// The connection is gone. Everything unconfirmed waits for the next.
    Disconnected,
    /// The next bytes of a lane of the present connection, cut anywhere.
    Received {
        /// Which.
        lane: Lane,
        /// Bytes.
        bytes: Bytes,
    },
    /// The connection does not take more on this lane: no [`Output::Transmit`] for it until
    /// [`Input::Writable`]. Drivers that can always write need neither.
    Blocked(Lane),
    /// The lane takes bytes again.
    Writable(Lane),
    /// A deadline may have passed.
    Timer,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Write these bytes to a lane of the present connection, after all earlier ones.
    Transmit {
        /// Which.
        lane: Lane,
        /// One frame.
        bytes: Bytes,
    },
    /// An envelope from the peer.
    Deliver {
        /// The lane it came on.
        lane: Lane,
        /// Its bytes.
        envelope: Bytes,
    },
    /// What was under way, in both directions, is lost: repeat what has no answer.
    Reset,
    /// The peer broke the protocol. Close the connection; the link has taken it as disconnected
    /// and starts over in a new epoch on the next one.
    Misbehaved(Misbehaviour),
}

/// How a peer broke the protocol of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// Bytes that are no frames.
    #[error("lane {}: {error}", lane.0)]
    Frame {
        /// Where.
        lane: Lane,
        /// What is wrong with them.
        error: FrameError,
    },
    /// An envelope was left out.
    #[error("lane {}: envelope {got} where {expected} was next", lane.0)]
    Hole {
        /// Where.
        lane: Lane,
        /// The next one by our count.
        expected: u64,
        /// The one that came.
        got: u64,
    },
    /// It confirms what was never sent, or takes a confirmation back.
    #[error("lane {}: confirms {got}, sent were {sent}, confirmed {confirmed}", lane.0)]
    Confirmation {
        /// Where.
        lane: Lane,
        /// What it says.
        got: u64,
        /// The last envelope it can have.
        sent: u64,
        /// What it had said before.
        confirmed: u64,
    },
}

/// Counts of one link, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Envelopes the peer has not confirmed.
    pub unconfirmed_len: usize,
    /// Bytes of them.
    pub unconfirmed_bytes: usize,
    /// Envelopes put on a lane, repeats included.
    pub sent_total: u64,
    /// Envelopes sent again after a reconnect.
    pub resent_total: u64,
    /// Envelopes delivered.
    pub received_total: u64,
    /// Envelopes dropped because they had come before.
    pub duplicates_total: u64,
    /// Times everything under way was given up.
    pub resets_total: u64,
    /// Envelopes given up, as far as this end knew of them.
    pub dropped_total: u64,
}

/// One lane's two directions.
#[derive(Debug, Default)]
struct LaneState {
    /// Envelopes `confirmed + 1 ..`, oldest first.
    unconfirmed: VecDeque<Bytes>,
    /// The peer has everything up to here.
    confirmed: u64,
    /// Put on the present connection up to here; at least `confirmed`.
    sent: u64,
    /// Put on any connection up to here; what lies below `sent_ever` and is sent is a repeat.
    sent_ever: u64,
    /// The connection does not take more.
    blocked: bool,
    /// Delivered up to here.
    received: u64,
    /// The peer was told that we have everything up to here.
    told: u64,
    reader: FrameReader,
}

impl LaneState {
    fn last(&self) -> u64 {
        self.confirmed + self.unconfirmed.len() as u64
    }

    /// Envelopes waiting to be put on the connection.
    fn unsent(&self) -> bool {
        self.sent < self.last()
    }
}

/// One end of a link. See the module's head for how to drive it.
#[derive(Debug)]
pub struct Link {
    limits: LinkLimits,
    instance: u64,
    /// The peer's link object, once met.
    peer_instance: Option<u64>,
    epoch: u64,
    connected: bool,
    lanes: [LaneState; Lane::COUNT],
    /// Everything was given up at this moment and the new epoch has not begun: sends are dropped.
    lost_at: Option<Instant>,
    /// When what was received is confirmed at the latest.
    confirm_at: Option<Instant>,
    /// Received since the last confirmation.
    unconfirmed_in: u64,
    unconfirmed_in_bytes: usize,
    /// A frame must leave now, if only to tell of an epoch or of what was received.
    frame_due: bool,
    /// The lane that may send next.
    turn: usize,
    outputs: VecDeque<Output>,
    stats: LinkStats,
}

impl Link {
    /// A link that has never been connected. `instance` is above 0 and differs from that of any
    /// earlier link object of this node's life.
    #[must_use]
    pub fn new(instance: u64, limits: LinkLimits) -> Self {
        assert!(instance > 0, "instance 0 says that ends have never met");
        Self {
            limits,
            instance,
            peer_instance: None,
            epoch: 1,
            connected: false,
            lanes: Default::default(),
            lost_at: None,
            confirm_at: None,
            unconfirmed_in: 0,
            unconfirmed_in_bytes: 0,
            frame_due: false,
            turn: 0,
            outputs: VecDeque::new(),
            stats: LinkStats::default(),
        }
    }

    /// Where this end stands, for the peer, on a new connection.
    #[must_use]
    pub fn resume(&self) -> Resume {
        Resume {
            instance: self.instance,
            peer_instance: self.peer_instance.unwrap_or(0),
            epoch: self.epoch,
            received: std::array::from_fn(|lane| self.lanes[lane].received),
        }
    }

    /// Whether a connection stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Counts so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// Takes one input at `now`. Outputs wait in [`Link::poll`].
    ///
    /// # Panics
    /// For an envelope over [`ENVELOPE_BYTES_MAX`]: whoever built it broke the bound.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Send { lane, envelope } => self.send(now, lane, envelope),
            Input::Lost => self.give_up(now),
            Input::Connected(resume) => self.connect(now, resume),
            Input::Disconnected => self.disconnect(),
            Input::Received { lane, bytes } => self.receive(now, lane, bytes),
            Input::Blocked(lane) => self.lane(lane).blocked = true,
            Input::Writable(lane) => self.lane(lane).blocked = false,
            Input::Timer => self.timer(now),
        }
    }

    /// The next thing to do; `None` when there is nothing left.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.next_frame())
    }

    /// When to call [`Link::handle`] with [`Input::Timer`] at the latest. An idle link has none.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.connected {
            return None;
        }
        let restart_at = self.lost_at.map(|lost_at| lost_at + RESET_PAUSE);
        [self.confirm_at, restart_at].into_iter().flatten().min()
    }

    /// Asserts what this machine promises.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn check_invariants(&self) {
        let queues = self.lanes.iter().map(|lane| &lane.unconfirmed);
        let len: usize = queues.clone().map(VecDeque::len).sum();
        let bytes: usize = queues.flatten().map(Bytes::len).sum();
        assert_eq!((len, bytes), (self.stats.unconfirmed_len, self.stats.unconfirmed_bytes), "{self:?}");
        assert!(len <= self.limits.unconfirmed_len_max, "{self:?}");
        assert!(bytes <= self.limits.unconfirmed_bytes_max, "{self:?}");
        assert!(self.lost_at.is_none() || len == 0, "a link that gave up keeps nothing: {self:?}");
        for lane in &self.lanes {
            assert!(lane.confirmed <= lane.sent && lane.sent <= lane.last(), "{self:?}");
            assert!(lane.told <= lane.received, "{self:?}");
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.lanes[usize::from(lane.0)]
    }

    fn send(&mut self, now: Instant, lane: Lane, envelope: Bytes) {
        assert!(envelope.len() <= ENVELOPE_BYTES_MAX, "an envelope of {} bytes", envelope.len());
        let full = self.stats.unconfirmed_len >= self.limits.unconfirmed_len_max
            || self.stats.unconfirmed_bytes + envelope.len() > self.limits.unconfirmed_bytes_max;
        if full {
            self.give_up(now);
        }
        if self.lost_at.is_some() {
            self.stats.dropped_total += 1;
            return;
        }
        self.stats.unconfirmed_len += 1;
        self.stats.unconfirmed_bytes += envelope.len();
        self.lane(lane).unconfirmed.push_back(envelope);
    }

    /// Forgets what is unconfirmed and takes no more until the new epoch begins: when the pause is
    /// over and there is a connection on which repeats have a chance.
    fn give_up(&mut self, now: Instant) {
        if self.lost_at.is_none() {
            self.lost_at = Some(now);
            self.forget_unconfirmed();
        }
    }

    fn forget_unconfirmed(&mut self) {
        self.stats.dropped_total += self.stats.unconfirmed_len as u64;
        (self.stats.unconfirmed_len, self.stats.unconfirmed_bytes) = (0, 0);
        for lane in &mut self.lanes {
            // Numbers given out stay given out in this epoch: the peer may still confirm them.
            lane.confirmed = lane.last();
            lane.sent = lane.confirmed;
            lane.unconfirmed = VecDeque::new();
        }
    }

    /// Starts over: both directions from 1, in `epoch`.
    fn reset(&mut self, epoch: u64) {
        self.forget_unconfirmed();
        self.epoch = epoch;
        self.lost_at = None;
        for lane in &mut self.lanes {
            (lane.confirmed, lane.sent, lane.sent_ever) = (0, 0, 0);
            (lane.received, lane.told) = (0, 0);
        }
        self.nothing_to_confirm();
        self.stats.resets_total += 1;
        if !is_planted(Mutant::LinkResetUntold) {
            self.outputs.push_back(Output::Reset);
        }
    }

    /// Begins the next epoch if everything was given up and it is time.
    fn restart_if_due(&mut self, now: Instant) {
        if self.connected && self.lost_at.is_some_and(|lost_at| now >= lost_at + RESET_PAUSE) {
            self.reset(self.epoch + 1);
            self.frame_due = true;
        }
    }

    fn connect(&mut self, now: Instant, peer: Resume) {
        self.disconnect();
        self.connected = true;
        let known = self.peer_instance.replace(peer.instance);
        if known.is_some_and(|known| known != peer.instance) {
            // The peer forgot this link and made another: what was under way is lost.
            self.reset(self.epoch.max(peer.epoch));
        } else if known.is_none() || peer.peer_instance != self.instance {
            // These two link objects have exchanged nothing yet.
            self.epoch = self.epoch.max(peer.epoch);
        } else if peer.epoch > self.epoch {
            self.reset(peer.epoch);
        } else if peer.epoch == self.epoch {
            self.confirm_all(now, peer.received.map(Some));
        }
        // A peer in an earlier epoch starts over when it reads of ours.
        if self.connected {
            for lane in &mut self.lanes {
                lane.sent = lane.confirmed;
            }
        }
        self.restart_if_due(now);
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.frame_due = false;
        // The resume point of the next connection confirms.
        self.nothing_to_confirm();
        for lane in &mut self.lanes {
            lane.blocked = false;
            lane.reader = FrameReader::default();
            lane.sent = lane.confirmed;
            lane.told = lane.received;
        }
    }

    fn nothing_to_confirm(&mut self) {
        self.confirm_at = None;
        (self.unconfirmed_in, self.unconfirmed_in_bytes) = (0, 0);
    }

    fn misbehaved(&mut self, now: Instant, how: Misbehaviour) {
        self.disconnect();
        self.give_up(now);
        self.outputs.push_back(Output::Misbehaved(how));
    }

    fn receive(&mut self, now: Instant, lane: Lane, bytes: Bytes) {
        if !self.connected {
            return;
        }
        self.lane(lane).reader.push(bytes);
        while self.connected {
            match self.lane(lane).reader.next() {
                Ok(Some(frame)) => self.take_frame(now, lane, frame),
                Ok(None) => break,
                Err(error) => self.misbehaved(now, Misbehaviour::Frame { lane, error }),
            }
        }
    }

    fn take_frame(&mut self, now: Instant, lane: Lane, frame: Frame) {
        if frame.epoch < self.epoch {
            return;
        }
        if frame.epoch > self.epoch {
            self.reset(frame.epoch);
        }
        // Lanes overtake each other, so an older confirmation may come later.
        let newest = |at: usize| frame.confirmed[at].map(|number| number.max(self.lanes[at].confirmed));
        self.confirm_all(now, std::array::from_fn(newest));
        if !self.connected {
            return;
        }
        let mut next = frame.first;
        for envelope in frame.into_envelopes() {
            let expected = self.lane(lane).received + 1;
            if next > expected {
                return self.misbehaved(now, Misbehaviour::Hole { lane, expected, got: next });
            }
            if next == expected {
                self.lane(lane).received = next;
                self.stats.received_total += 1;
                self.unconfirmed_in += 1;
                self.unconfirmed_in_bytes += envelope.len();
                self.outputs.push_back(Output::Deliver { lane, envelope });
            } else {
                self.stats.duplicates_total += 1;
            }
            next = next.saturating_add(1);
        }
        if self.unconfirmed_in >= CONFIRM_ENVELOPES || self.unconfirmed_in_bytes >= CONFIRM_BYTES {
            self.frame_due = true;
        } else if self.unconfirmed_in > 0 && !self.frame_due {
            self.confirm_at.get_or_insert(now + CONFIRM_DELAY);
        }
    }

    fn confirm_all(&mut self, now: Instant, received: [Option<u64>; Lane::COUNT]) {
        for (at, number) in received.into_iter().enumerate() {
            if let Some(number) = number.filter(|_| self.connected) {
                self.confirm(now, Lane(at as u8), number);
            }
        }
    }

    /// The peer has everything on `lane` up to `number`.
    fn confirm(&mut self, now: Instant, lane: Lane, number: u64) {
        let state = &mut self.lanes[usize::from(lane.0)];
        let sent = state.sent_ever.max(state.sent);
        if number < state.confirmed && self.lost_at.is_none() || number > sent.max(state.confirmed) {
            let confirmed = state.confirmed;
            return self.misbehaved(now, Misbehaviour::Confirmation { lane, got: number, sent, confirmed });
        }
        while state.confirmed < number {
            let Some(envelope) = state.unconfirmed.pop_front() else { break };
            state.confirmed += 1;
            self.stats.unconfirmed_len -= 1;
            self.stats.unconfirmed_bytes -= envelope.len();
        }
        state.sent = state.sent.max(state.confirmed);
        if state.unconfirmed.is_empty() {
            // An idle link keeps no memory of its busiest moment.
            state.unconfirmed.shrink_to(IDLE_QUEUE_CAPACITY);
        }
    }

    fn timer(&mut self, now: Instant) {
        if self.confirm_at.take_if(|at| now >= *at).is_some() {
            self.frame_due = true;
        }
        self.restart_if_due(now);
    }

    /// The next frame that can leave: lanes take turns; one without envelopes only when something
    /// must be told.
    fn next_frame(&mut self) -> Option<Output> {
        if !self.connected {
            return None;
        }
        for step in 0..Lane::COUNT {
            let at = (self.turn + step) % Lane::COUNT;
            if self.lanes[at].unsent() && !self.lanes[at].blocked {
                self.turn = (at + 1) % Lane::COUNT;
                return Some(self.frame_on(at));
            }
        }
        let control = usize::from(Lane::CONTROL.0);
        (self.frame_due && !self.lanes[control].blocked).then(|| self.frame_on(control))
    }

    fn frame_on(&mut self, at: usize) -> Output {
        let confirmed = std::array::from_fn(|lane| {
            let lane = &mut self.lanes[lane];
            (lane.received > lane.told).then(|| {
                lane.told = lane.received;
                lane.received
            })
        });
        self.nothing_to_confirm();
        self.frame_due = false;
        let lane = &mut self.lanes[at];
        let start = usize::try_from(lane.sent - lane.confirmed).unwrap_or(usize::MAX);
        let batch = || lane.unconfirmed.range(start..);
        let (count, bytes) = batch_size(batch());
        let mut builder = FrameBuilder::new(self.epoch, confirmed, lane.sent + 1, bytes);
        batch().take(count).for_each(|envelope| builder.push(envelope));
        let repeats = lane.sent_ever.saturating_sub(lane.sent).min(count as u64);
        lane.sent += count as u64;
        lane.sent_ever = lane.sent_ever.max(lane.sent);
        self.stats.sent_total += count as u64;
        self.stats.resent_total += repeats;
        Output::Transmit { lane: Lane(at as u8), bytes: builder.finish() }
    }
}

/// How many envelopes the next frame takes, at least one if there is one, and their bytes with
/// lengths.
fn batch_size<'a>(envelopes: impl Iterator<Item = &'a Bytes>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for envelope in envelopes {
        let more = envelope.len() + frame::LENGTH_BYTES_MAX;
        if count > 0 && bytes + more > BATCH_BYTES {
            break;
        }
        count += 1;
        bytes += more;
    }
    (count, bytes)
}
