//! One client transport: its queue, its heartbeat, its pace.
//!
//! Belongs here: what is known of a transport without knowing its sessions.
//! Stays out: packets and sessions (`Edge`).
//! Units: `queued` are bytes handed to the driver in this turn, or reported by it as left over.

use std::sync::Arc;
use std::time::Duration;

use super::identify::Identifying;
use super::polling::Polling;
use super::upgrade::Upgrading;
use crate::id::ClientIx;
use crate::limits::Limits;
use crate::shard::{Admission, ClientProtocol, NewClient, Refusal, TimerKey, Timers, Uid};
use crate::socketio::Reassembly;
use crate::time::Instant;

/// What framing adds to a message at most: WebSocket's header.
const FRAME_OVERHEAD_BYTES: usize = 10;
/// A client whose owner does not answer is not timed out for this long: the silence is ours.
const OUR_SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Client {
    pub(super) ix: ClientIx,
    pub(super) protocol: ClientProtocol,
    pub(super) admission: Result<Admission, Refusal>,
    pub(super) carrier: Carrier,
    pub(super) reassembly: Reassembly,
    /// Namespaces that it may enter once it is known who it is there.
    pub(super) identifying: Vec<Identifying>,
    /// Who it is in each namespace, where that was found out there.
    pub(super) identified: Vec<(Arc<str>, Arc<str>)>,
    /// Its sessions (indices into the edge's sessions), one for each namespace, in the order they began.
    pub(super) sessions: Vec<u32>,
    /// It carries its cursors.
    pub(super) offsets: bool,
    /// It has come back: the questions for its sessions, and when it has waited long enough.
    pub(super) resuming: Vec<u64>,
    pub(super) resume_due: Option<Instant>,
    /// Told to the driver; only its farewell is awaited.
    pub(super) closing: bool,
    /// It is served from tails, by cursors, until it has caught up.
    pub(super) behind: bool,
    /// Nothing can be served to it now: what it is to get next is fetched, or its tail is not there yet.
    pub(super) waits: bool,
    queue: Queue,
    next_ping: Instant,
    /// How often it was pinged, and how often it has answered.
    pings: u64,
    pongs: u64,
    pong_due: Option<Instant>,
    /// The present `pong_due` has been put off because the ping may have waited in the queue.
    pong_put_off: bool,
    connect_due: Option<Instant>,
    attachments_due: Option<Instant>,
    /// When its next event is due at the allowed rate (GCRA's theoretical arrival time).
    arrival: Instant,
    /// Reading is stopped until then, for sending too fast.
    slowed_until: Option<Instant>,
    /// Reading is stopped because the owner has not confirmed enough, since then.
    unconfirmed_since: Option<Instant>,
    timer_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Queue {
    turn: u64,
    queued: usize,
    left: usize,
    stalled_since: Option<Instant>,
}

/// What a client's timer has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Ping,
    /// No CONNECT, no answer to a ping, or attachments missing for too long.
    TimedOut(Silence),
    /// Nothing drains.
    Stalled,
    /// It may be read from again.
    Resume,
    /// It has come back, and its session cannot be found.
    ResumeIsLate,
}

/// What did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Connect,
    Pong,
    Attachments,
}

/// What the client's packets come and go by.
#[derive(Debug)]
pub(super) enum Carrier {
    WebSocket,
    Polling(Box<Polling>),
    /// A WebSocket for the session of another client.
    Upgrading(Box<Upgrading>),
}

impl Client {
    pub(super) fn new(now: Instant, ix: ClientIx, new: NewClient, carrier: Carrier, limits: &Limits) -> Self {
        // A WebSocket that is still to take over is pinged by nobody.
        let (connect_timeout, first_ping) = match carrier {
            Carrier::Upgrading(_) => (limits.upgrade_timeout, 2 * limits.upgrade_timeout),
            Carrier::WebSocket | Carrier::Polling(_) => (limits.connect_timeout, limits.ping_interval),
        };
        Self {
            ix,
            protocol: new.protocol,
            admission: new.admission,
            carrier,
            reassembly: Reassembly::new(),
            identifying: Vec::new(),
            identified: Vec::new(),
            sessions: Vec::new(),
            offsets: new.offsets && new.protocol == ClientProtocol::SocketIo,
            resuming: Vec::new(),
            resume_due: None,
            closing: false,
            behind: false,
            waits: false,
            queue: Queue::default(),
            next_ping: now + first_ping,
            pings: 0,
            pongs: 0,
            pong_due: None,
            pong_put_off: false,
            connect_due: Some(now + connect_timeout),
            attachments_due: None,
            arrival: now,
            slowed_until: None,
            unconfirmed_since: None,
            timer_at: None,
        }
    }

    /// Who it is in a namespace that it has been let into.
    pub(super) fn uid_in(&self, namespace: &str) -> Option<Arc<str>> {
        match &self.admission.as_ref().ok()?.uid {
            Uid::Known(uid) => Some(uid.clone()),
            Uid::ByAuth(_) => {
                let known = self.identified.iter().find(|(name, _)| **name == *namespace);
                known.map(|(_, uid)| uid.clone())
            }
        }
    }

    pub(super) fn polling(&self) -> Option<&Polling> {
        match &self.carrier {
            Carrier::Polling(polling) => Some(polling),
            Carrier::WebSocket | Carrier::Upgrading(_) => None,
        }
    }

    pub(super) fn polling_mut(&mut self) -> Option<&mut Polling> {
        match &mut self.carrier {
            Carrier::Polling(polling) => Some(polling),
            Carrier::WebSocket | Carrier::Upgrading(_) => None,
        }
    }

    /// The WebSocket is the transport of a polling client from now on, connected or not.
    pub(super) fn took_over(&mut self, now: Instant, connected: bool, limits: &Limits) {
        self.next_ping = now + limits.ping_interval;
        self.connect_due = (!connected).then_some(now + limits.connect_timeout);
    }

    /// Anything from the client: it lives.
    pub(super) fn heard(&mut self) {
        self.pong_due = None;
        self.pong_put_off = false;
    }

    /// A ping leaves. Its number.
    pub(super) fn pinged(&mut self, now: Instant, limits: &Limits) -> u64 {
        self.pong_due.get_or_insert(now + limits.ping_timeout);
        self.pings += 1;
        self.pings
    }

    /// An answer to a ping: to the first that has none.
    pub(super) fn ponged(&mut self) {
        self.pongs = self.pings.min(self.pongs + 1);
    }

    /// Whether it was there after ping `number` had left: it has answered that one.
    pub(super) fn has_answered(&self, number: u64) -> bool {
        self.pongs >= number
    }

    /// Whether it has what was written before the last ping.
    pub(super) fn has_answered_all(&self) -> bool {
        self.pongs == self.pings
    }

    pub(super) fn connected(&mut self) {
        self.connect_due = None;
    }

    pub(super) fn awaits_attachments(&mut self, now: Instant, awaits: bool, limits: &Limits) {
        self.attachments_due = awaits.then_some(now + limits.attachment_timeout);
    }

    /// Counts an event; `true` if reading is to stop for a while.
    pub(super) fn count_event(&mut self, now: Instant, limits: &Limits) -> bool {
        let interval = Duration::from_secs(1) / limits.events_per_second.max(1);
        self.arrival = self.arrival.max(now) + interval;
        let ahead = self.arrival.since(now);
        let burst = interval * limits.events_burst;
        if ahead <= burst || self.slowed_until.is_some() {
            return false;
        }
        let was_reading = self.may_read();
        self.slowed_until = Some(now + (ahead - burst).max(Duration::from_millis(10)));
        was_reading
    }

    /// The owner has too much unconfirmed; `true` if reading is to stop.
    pub(super) fn wait_for_owner(&mut self, now: Instant) -> bool {
        let was_reading = self.may_read();
        self.unconfirmed_since.get_or_insert(now);
        was_reading
    }

    /// The owner has confirmed enough; `true` if reading is to go on.
    pub(super) fn owner_confirmed(&mut self) -> bool {
        self.unconfirmed_since.take().is_some() && self.may_read()
    }

    /// Whether more may be taken of it.
    pub(super) fn may_read(&self) -> bool {
        self.slowed_until.is_none() && self.unconfirmed_since.is_none()
    }

    /// Whether a message of `len` bytes fits its queue, an empty one taking any.
    pub(super) fn fits(&mut self, turn: u64, len: usize, limits: &Limits) -> bool {
        let queued = self.queued(turn);
        queued == 0 || queued + len <= limits.client_queue_bytes_max
    }

    /// Whether nothing is left over from earlier turns and it has caught up: volatile events are for it.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.left == 0 && !self.behind && self.polling().is_none_or(Polling::is_open)
    }

    pub(super) fn count_queued(&mut self, turn: u64, len: usize) {
        self.queued(turn);
        self.queue.queued += len + FRAME_OVERHEAD_BYTES;
    }

    fn queued(&mut self, turn: u64) -> usize {
        if self.queue.turn != turn {
            self.queue.turn = turn;
            self.queue.queued = self.queue.left;
        }
        self.queue.queued
    }

    /// The driver reports what did not go out.
    pub(super) fn left_over(&mut self, now: Instant, turn: u64, left: usize, limits: &Limits) {
        let drained = left < self.queue.left || self.queue.left == 0;
        if left == 0 && self.queue.left > 0 && !self.pong_put_off {
            // The ping may have left only now. Once per ping: who reads but never answers is not spared.
            self.pong_due = self.pong_due.map(|due| due.max(now + limits.ping_timeout));
            self.pong_put_off = self.pong_due.is_some();
        }
        self.queue = Queue {
            turn,
            queued: left,
            left,
            stalled_since: match self.queue.stalled_since {
                _ if left == 0 => None,
                Some(since) if !drained => Some(since),
                _ => Some(now),
            },
        };
    }

    pub(super) fn has_left_over(&self) -> bool {
        self.queue.left > 0
    }

    /// Whether one that is behind could be served right away.
    pub(super) fn could_be_served(&self) -> bool {
        !self.closing && !self.waits && !self.has_left_over()
    }

    /// When a missing pong is judged. While bytes wait in its queue the client may not have come to our
    /// ping yet: then the stall limit judges it, and this one only who drains but slowly.
    fn pong_judged_at(&self, limits: &Limits) -> Option<Instant> {
        // A polling client has only to come for it.
        let may_be_slow = self.queue.left > 0 && self.polling().is_none();
        let patience = if may_be_slow { limits.client_stall_max } else { Duration::ZERO };
        self.pong_due.map(|due| due + patience)
    }

    /// Finds one thing that is due, and notes it as done.
    pub(super) fn due(&mut self, now: Instant, limits: &Limits) -> Option<Due> {
        let reached = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if reached(self.slowed_until) {
            self.slowed_until = None;
            if self.may_read() {
                return Some(Due::Resume);
            }
        }
        if reached(self.connect_due) {
            return Some(Due::TimedOut(Silence::Connect));
        }
        if reached(self.resume_due) {
            self.resume_due = None;
            return Some(Due::ResumeIsLate);
        }
        if reached(self.attachments_due) {
            return Some(Due::TimedOut(Silence::Attachments));
        }
        if reached(self.pong_judged_at(limits)) {
            let our_silence = self.unconfirmed_since.is_some_and(|since| now.since(since) < OUR_SILENCE_MAX);
            if !our_silence && self.slowed_until.is_none() {
                return Some(Due::TimedOut(Silence::Pong));
            }
            self.pong_due = Some(now + limits.ping_timeout);
        }
        if self.queue.stalled_since.is_some_and(|since| now.since(since) >= limits.client_stall_max) {
            return Some(Due::Stalled);
        }
        if self.next_ping <= now {
            // By the plan, not by when we got to it: an answer that is late is late by the client's clock.
            self.pong_due.get_or_insert((self.next_ping + limits.ping_timeout).max(now));
            self.next_ping = now + limits.ping_interval;
            return Some(Due::Ping);
        }
        None
    }

    /// Sees to it that the shard wakes when something is due: one entry in the heap, unless an earlier
    /// need comes up.
    pub(super) fn arm(&mut self, timers: &mut Timers, limits: &Limits) {
        let stall = self.queue.stalled_since.map(|since| since + limits.client_stall_max);
        let needs =
            [self.pong_judged_at(limits), self.connect_due, self.attachments_due, self.slowed_until, stall];
        let needs = needs.into_iter().chain([self.resume_due, self.polling().and_then(Polling::due)]);
        let at = needs.flatten().fold(self.next_ping, Instant::min);
        if self.timer_at.is_none_or(|armed| at < armed) {
            self.timer_at = Some(at);
            timers.set(at, TimerKey::Client(self.ix));
        }
    }

    /// The heap has woken us at `now`; an entry set for an earlier need that has passed is stale.
    pub(super) fn woken(&mut self, now: Instant) {
        if self.timer_at.is_some_and(|at| at <= now) {
            self.timer_at = None;
        }
    }
}
