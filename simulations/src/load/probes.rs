//! Rooms that are watched closely: each has one publisher and one member, and every message is kept.
//!
//! Belongs here: pausing and losing, told per room and span of time. Stays out: what happens to nodes
//! meanwhile; throughput (`rooms`).
//! Method: a publisher sends one message every so often, answered or not; the longest wait of a span is
//! that of its slowest message. A pause is longer than that by one interval at most.
//! Units: microseconds since the probes started. Memory: 24 bytes a message.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::{JoinHandle, spawn_local};

use super::client::{Client, Door, Message, SCRATCH_BYTES};
use super::report::Faults;
use super::stamp::Stamp;
use super::table::{Table, percentiles};
use crate::times::Times;

/// Bytes of a message.
const PAYLOAD_BYTES: usize = 64;

/// What is under way at the end is waited for this long.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks at what is under way.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Columns of [`Probes::rows`], in milliseconds.
pub(super) const COLUMNS: [&str; 10] = [
    "publishes",
    "answer p50",
    "p99",
    "max",
    "delivery p50",
    "p99 ",
    "max ",
    "longest of a room p50",
    "p99  ",
    "max  ",
];

/// Who publishes where.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Which row of the report it counts for.
    pub(super) group: usize,
    pub(super) uid: String,
    pub(super) room: String,
    /// Of the publisher.
    pub(super) door: Door,
    /// Of the member.
    pub(super) member: Door,
}

/// One watched room.
pub(super) struct Probe {
    pub(super) wanted: Wanted,
    log: RefCell<Log>,
}

/// Every message of a room; its place is its number.
#[derive(Default)]
struct Log {
    messages: Vec<Life>,
    doubled: u64,
    reordered: u64,
    refused: u64,
    last_delivered: Option<u32>,
}

#[derive(Clone, Copy)]
struct Life {
    sent: u64,
    answered: Option<u64>,
    delivered: Option<u64>,
}

/// All watched rooms.
pub(super) struct Probes {
    pub(super) all: Vec<Rc<Probe>>,
    shared: Rc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    started: Instant,
    publishing: Cell<bool>,
    scratch: RefCell<Vec<u8>>,
    ended: RefCell<Vec<String>>,
}

impl Probes {
    /// Connects and joins all; publishing begins when the last is in.
    ///
    /// # Errors
    /// When a node refuses.
    pub(super) async fn start(wanted: Vec<Wanted>, every: Duration) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for wanted in &wanted {
            let rooms = [wanted.room.clone()];
            let mut publisher = Client::connect(&wanted.door, &wanted.uid).await?;
            publisher.join(&rooms).await?;
            let mut member = Client::connect(&wanted.member, &format!("of-{}", wanted.room)).await?;
            member.join(&rooms).await?;
            clients.push((publisher, member));
        }
        let shared = Rc::new(Shared {
            started: Instant::now(),
            publishing: Cell::new(true),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            ended: RefCell::default(),
        });
        let (mut all, mut tasks) = (Vec::new(), Vec::new());
        let count = u32::try_from(wanted.len().max(1)).unwrap_or(u32::MAX);
        for (index, (wanted, (publisher, member))) in (0..).zip(wanted.into_iter().zip(clients)) {
            let probe = Rc::new(Probe { wanted, log: RefCell::default() });
            // Spread over the interval, so that they do not beat together.
            let first = tokio::time::Instant::now() + every * index / count;
            tasks.push(watched(
                shared.clone(),
                publish(publisher, probe.clone(), shared.clone(), first, every),
            ));
            tasks.push(watched(shared.clone(), receive(member, probe.clone(), shared.clone())));
            all.push(probe);
        }
        Ok(Self { all, shared, tasks })
    }

    /// One row for each group over some spans: each message's wait for its answer and its delivery, and the
    /// longest of each room in each span. The table has [`COLUMNS`].
    pub(super) fn rows(&self, table: &mut Table, groups: &[&str], spans: &[(u64, u64)]) {
        for (group, name) in groups.iter().enumerate() {
            let (mut answers, mut deliveries, mut longest) = <(Times, Times, Times)>::default();
            for probe in self.all.iter().filter(|probe| probe.wanted.group == group) {
                for &(from, until) in spans {
                    probe.collect(from, until, &mut answers, &mut deliveries);
                    if let Some((answer, delivery)) = probe.longest(from, until) {
                        longest.add(Some(answer.max(delivery)));
                    }
                }
            }
            let mut cells = vec![json!(answers.count() + answers.missed)];
            for times in [&answers, &deliveries, &longest] {
                cells.extend(percentiles(times));
            }
            table.row(*name, cells);
        }
        table.note(format!("{:?}", self.faults()));
        for why in self.shared.ended.borrow().iter().take(3) {
            table.note(format!("a client ended: {why}"));
        }
    }

    /// The present moment.
    pub(super) fn now(&self) -> u64 {
        self.shared.now()
    }

    /// Publishes no more, and waits for what is under way.
    pub(super) async fn stop(&mut self) {
        self.shared.publishing.set(false);
        let give_up = Instant::now() + SETTLED_WITHIN;
        let open = |probe: &Rc<Probe>| probe.log.borrow().messages.iter().any(Life::is_open);
        while Instant::now() < give_up && self.all.iter().any(open) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    /// What should not have happened so far. Ask after [`Self::stop`].
    pub(super) fn faults(&self) -> Faults {
        let closed = self.shared.ended.borrow().len() as u64;
        let mut faults = Faults { closed, ..Faults::default() };
        for probe in &self.all {
            let log = probe.log.borrow();
            for life in &log.messages {
                faults.unanswered += u64::from(life.answered.is_none());
                faults.lost += u64::from(life.answered.is_some() && life.delivered.is_none());
            }
            faults.doubled += log.doubled;
            faults.reordered += log.reordered;
            faults.refused += log.refused;
        }
        faults
    }

    /// When the clock of [`Self::now`] and of the stamps began.
    pub(super) fn started(&self) -> Instant {
        self.shared.started
    }
}

impl Probe {
    /// Messages sent so far.
    pub(super) fn sent(&self) -> u32 {
        u32::try_from(self.log.borrow().messages.len()).unwrap_or(u32::MAX)
    }

    /// The longest wait for an answer, and for a delivery, of the messages sent in this span; `None`
    /// without any.
    fn longest(&self, from: u64, until: u64) -> Option<(Duration, Duration)> {
        let log = self.log.borrow();
        let sent = log.messages.iter().filter(|life| (from..until).contains(&life.sent));
        let waits = sent.map(|life| (life.wait(life.answered), life.wait(life.delivered)));
        waits.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
    }

    /// Adds each message sent in this span to the waits for answers and for deliveries.
    pub(super) fn collect(&self, from: u64, until: u64, answers: &mut Times, deliveries: &mut Times) {
        for life in self.log.borrow().messages.iter().filter(|life| (from..until).contains(&life.sent)) {
            answers.add(life.answered.map(|_| life.wait(life.answered)));
            deliveries.add(life.delivered.map(|_| life.wait(life.delivered)));
        }
    }
}

impl Life {
    fn is_open(&self) -> bool {
        self.answered.is_none() || self.delivered.is_none()
    }

    fn wait(&self, until: Option<u64>) -> Duration {
        until.map_or(Duration::MAX, |until| Duration::from_micros(until.saturating_sub(self.sent)))
    }
}

impl Log {
    fn delivered(&mut self, number: u32, now: u64) {
        let Some(life) = self.messages.get_mut(number as usize) else { return };
        if life.delivered.is_some() {
            self.doubled += 1;
            return;
        }
        life.delivered = Some(now);
        self.reordered += u64::from(self.last_delivered > Some(number));
        self.last_delivered = self.last_delivered.max(Some(number));
    }

    /// Answers are numbered from that of the join on.
    fn answered(&mut self, id: u64, ok: bool, now: u64) {
        let number = id.checked_sub(1).and_then(|number| usize::try_from(number).ok());
        if let Some(life) = number.and_then(|number| self.messages.get_mut(number)) {
            life.answered = Some(now);
            self.refused += u64::from(!ok);
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn watched(shared: Rc<Shared>, client: impl Future<Output = anyhow::Result<()>> + 'static) -> JoinHandle<()> {
    spawn_local(async move {
        if let Err(error) = client.await {
            shared.ended.borrow_mut().push(format!("{error:#}"));
        }
    })
}

async fn receive(mut client: Client, probe: Rc<Probe>, shared: Rc<Shared>) -> anyhow::Result<()> {
    loop {
        client.ready().await?;
        let now = shared.now();
        client.drain(&mut shared.scratch.borrow_mut(), |message| {
            if let Message::Event(payload) = message
                && let Some(stamp) = Stamp::read(payload)
            {
                probe.log.borrow_mut().delivered(stamp.number, now);
            }
        })?;
    }
}

async fn publish(
    mut client: Client,
    probe: Rc<Probe>,
    shared: Rc<Shared>,
    first: tokio::time::Instant,
    every: Duration,
) -> anyhow::Result<()> {
    let mut next = first;
    loop {
        if shared.publishing.get() && tokio::time::Instant::now() >= next {
            // Turns missed while this process did not run are not made up for.
            next = (next + every).max(tokio::time::Instant::now());
            let (number, micros) = (probe.log.borrow().messages.len(), shared.now());
            let number = u32::try_from(number)?;
            client.publish(&probe.wanted.room, false, Stamp { publisher: 0, number, micros }, PAYLOAD_BYTES);
            let life = Life { sent: micros, answered: None, delivered: None };
            probe.log.borrow_mut().messages.push(life);
        }
        tokio::select! {
            ready = client.ready() => ready?,
            () = tokio::time::sleep_until(next), if shared.publishing.get() => {}
        }
        let now = shared.now();
        client.drain(&mut shared.scratch.borrow_mut(), |message| {
            if let Message::Ack(id, ok) = message {
                probe.log.borrow_mut().answered(id, ok, now);
            }
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_repeats_and_order_are_told() {
        let mut log = Log::default();
        let life = |sent| Life { sent, answered: None, delivered: None };
        log.messages = vec![life(0), life(100), life(200)];
        log.answered(1, true, 50);
        log.answered(2, false, 350);
        log.delivered(1, 300);
        log.delivered(0, 310);
        log.delivered(0, 320);
        assert_eq!((log.doubled, log.reordered, log.refused), (1, 1, 1));
        let door = Door { addr: ([127, 0, 0, 1], 1).into(), host: String::new(), product: String::new() };
        let wanted =
            Wanted { group: 0, uid: String::new(), room: String::new(), door: door.clone(), member: door };
        let probe = Probe { wanted, log: RefCell::new(log) };
        let longest = probe.longest(0, 200).unwrap();
        assert_eq!(longest, (Duration::from_micros(250), Duration::from_micros(310)));
        assert_eq!(probe.longest(0, 300).unwrap().0, Duration::MAX, "one has no answer");
        assert_eq!(probe.longest(300, 400), None);
    }
}
