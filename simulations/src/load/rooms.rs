//! Rooms under load: flat out, paced, and counted to the last message.
//!
//! Belongs here: publishers and receivers, the measured span, the account at the end.
//! Method: all clients are in their rooms before the first publish; CPU and deliveries are taken
//! over the measured span; loss and order over the whole run, after everything under way has come.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use hdrhistogram::Histogram;
use tokio::task::{JoinHandle, spawn_local};

use super::baseline::Child;
use super::client::{Client, Message, SCRATCH_BYTES};
use super::process::{CpuNanos, Servers};
use super::report::{Faults, Outcome, histogram};
use super::stamp::Stamp;
use super::tally::Tally;
use super::{Fanout, Nodes, Paced, Rooms, Soak, Span, fleet};

/// After the last publish, the run ends when nothing has come for this long.
const QUIET_AFTER: Duration = Duration::from_secs(3);

/// One run.
#[derive(Clone, Debug)]
struct Plan {
    rooms: usize,
    members: usize,
    /// Of each room.
    publishers: usize,
    pace: Pace,
    payload: usize,
    warmup: Duration,
    /// Ignored when [`Pace::Count`] ends the run.
    measured: Duration,
}

impl Plan {
    fn new(rooms: &Rooms, span: &Span, publishers: usize, pace: Pace) -> Self {
        Self {
            rooms: rooms.rooms,
            members: rooms.members,
            publishers,
            pace,
            payload: rooms.payload,
            warmup: span.warmup(),
            measured: span.measured(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Pace {
    /// So many unanswered publishes of each publisher.
    Window(usize),
    /// One publish of each publisher every so often, answered or not.
    Every(Duration),
    /// As `Window`, and so many publishes of each publisher in all.
    Count(usize, u32),
}

/// What all clients of a run share.
struct Shared {
    started: Instant,
    publishing: Cell<bool>,
    measuring: Cell<bool>,
    published: Cell<u64>,
    answered: Cell<u64>,
    refused: Cell<u64>,
    delivered: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
    scratch: RefCell<Vec<u8>>,
    closed: RefCell<Vec<String>>,
}

/// One client of a room.
struct Seat {
    tally: RefCell<Tally>,
    /// Its number among the publishers of its room.
    publisher: Option<u16>,
    published: Cell<u32>,
}

/// `load fanout`.
pub(super) async fn fanout(command: Fanout) -> anyhow::Result<()> {
    let Fanout { nodes, span, rooms, publishers, window } = command;
    compare(nodes, &rooms, &Plan::new(&rooms, &span, publishers, Pace::Window(window))).await
}

/// `load paced`.
pub(super) async fn paced(command: Paced) -> anyhow::Result<()> {
    let Paced { nodes, span, rooms, deliveries } = command;
    let deliveries_per_publisher = f64::from(deliveries) / rooms.rooms.max(1) as f64;
    let interval = Duration::from_secs_f64(rooms.members as f64 / deliveries_per_publisher);
    compare(nodes, &rooms, &Plan::new(&rooms, &span, 1, Pace::Every(interval))).await
}

/// `load soak20`.
pub(super) async fn soak(command: Soak) -> anyhow::Result<()> {
    let plan = Plan {
        rooms: 1,
        members: command.members,
        publishers: command.publishers,
        pace: Pace::Count(8, command.messages),
        payload: 64,
        warmup: Duration::ZERO,
        measured: Duration::MAX,
    };
    Outcome::print_head();
    let (nodes, _own) = command.nodes.or_own().await?;
    let outcome = run("soak", &nodes, &plan).await?;
    outcome.print();
    if outcome.faults != Faults::default() {
        bail!("not every message reached every member once and in one order: {:?}", outcome.faults);
    }
    Ok(())
}

async fn compare(nodes: Nodes, rooms: &Rooms, plan: &Plan) -> anyhow::Result<()> {
    Outcome::print_head();
    if rooms.beside_baseline {
        for (name, coalesce) in [("bare loop", false), ("bare loop, coalescing", true)] {
            let child = Child::start(coalesce).await?;
            let bare = Nodes { targets: vec![child.target()], pids: vec![child.pid()], ..nodes.clone() };
            run(name, &bare, plan).await?.print();
            child.stop().await?;
        }
    }
    let (nodes, _own) = nodes.or_own().await?;
    run(&format!("{} node(s)", nodes.targets.len()), &nodes, plan).await?.print();
    Ok(())
}

async fn run(name: &str, nodes: &Nodes, plan: &Plan) -> anyhow::Result<Outcome> {
    let servers = Servers::new(&nodes.pids)?;
    let (rooms, seats) = seats(plan);
    let fleet = fleet::open(nodes, &servers, rooms.iter().map(|room| vec![room.clone()]).collect()).await?;
    let shared = Rc::new(Shared {
        started: Instant::now(),
        publishing: Cell::new(true),
        measuring: Cell::new(false),
        published: Cell::new(0),
        answered: Cell::new(0),
        refused: Cell::new(0),
        delivered: Cell::new(0),
        latency: RefCell::new(histogram()),
        scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
        closed: RefCell::new(Vec::new()),
    });
    let publishers_in_all = plan.rooms * plan.publishers;
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for (client, (seat, room)) in fleet.clients.into_iter().zip(seats.iter().zip(rooms)) {
        let (shared, seat, plan) = (shared.clone(), seat.clone(), plan.clone());
        tasks.push(spawn_local(async move {
            let end = match seat.publisher {
                None => receive(client, &seat, &shared).await,
                Some(publisher) => {
                    publish(client, &seat, publisher, &room, &plan, publishers_in_all, &shared).await
                }
            };
            if let Err(error) = end {
                shared.closed.borrow_mut().push(format!("{error:#}"));
            }
        }));
    }
    let measured = measure(plan, &servers, &shared).await?;
    settle(&shared).await;
    for task in &tasks {
        task.abort();
    }
    for error in shared.closed.borrow().iter().take(3) {
        eprintln!("a client ended: {error}");
    }
    let latency = shared.latency.borrow().clone();
    Ok(Outcome { name: name.to_owned(), latency, faults: account(plan, &seats, &shared), ..measured })
}

/// The room and the account of each client: first the publishers of each room, then its members, so
/// that dealing them over the nodes mixes both.
fn seats(plan: &Plan) -> (Vec<String>, Vec<Rc<Seat>>) {
    let mut rooms = Vec::new();
    let mut seats = Vec::new();
    for room in 0..plan.rooms {
        for place in 0..plan.publishers + plan.members {
            rooms.push(format!("load-{room}"));
            seats.push(Rc::new(Seat {
                tally: RefCell::new(Tally::new(plan.publishers)),
                publisher: u16::try_from(place).ok().filter(|_| place < plan.publishers),
                published: Cell::new(0),
            }));
        }
    }
    (rooms, seats)
}

async fn receive(mut client: Client, seat: &Seat, shared: &Shared) -> anyhow::Result<()> {
    loop {
        client.ready().await?;
        take(&mut client, seat, shared)?;
    }
}

/// Reads what has come; how many answers were among it.
fn take(client: &mut Client, seat: &Seat, shared: &Shared) -> anyhow::Result<usize> {
    let mut scratch = shared.scratch.borrow_mut();
    let mut tally = seat.tally.borrow_mut();
    let mut latency = shared.latency.borrow_mut();
    let measuring = shared.measuring.get();
    let now = micros_since(shared.started);
    let (mut delivered, mut answers) = (0, 0);
    let drained = client.drain(&mut scratch, |message| match message {
        Message::Event(payload) => {
            if let Some(stamp) = Stamp::read(payload) {
                delivered += 1;
                tally.take(stamp);
                if measuring {
                    latency.saturating_record(now.saturating_sub(stamp.micros).max(1));
                }
            }
        }
        Message::Ack(_, ok) => {
            answers += 1;
            shared.refused.set(shared.refused.get() + u64::from(!ok));
        }
        Message::Other(_) => {}
    });
    shared.delivered.set(shared.delivered.get() + delivered);
    shared.answered.set(shared.answered.get() + answers as u64);
    drained.map(|()| answers)
}

async fn publish(
    mut client: Client,
    seat: &Seat,
    publisher: u16,
    room: &str,
    plan: &Plan,
    publishers_in_all: usize,
    shared: &Shared,
) -> anyhow::Result<()> {
    let (window, count_max) = match plan.pace {
        Pace::Window(window) => (window, u32::MAX),
        Pace::Count(window, count) => (window, count),
        Pace::Every(_) => (usize::MAX, u32::MAX),
    };
    let mut under_way = 0;
    let mut next = match plan.pace {
        // Spread over the interval, so that paced publishers do not beat together.
        Pace::Every(interval) => {
            let place = usize::from(publisher) + room_number(room);
            tokio::time::Instant::now() + interval.mul_f64(place as f64 / publishers_in_all.max(1) as f64)
        }
        _ => tokio::time::Instant::now(),
    };
    loop {
        while shared.publishing.get() && under_way < window && seat.published.get() < count_max {
            if let Pace::Every(interval) = plan.pace {
                if tokio::time::Instant::now() < next {
                    break;
                }
                next += interval;
            }
            let number = seat.published.get();
            let stamp = Stamp { publisher, number, micros: micros_since(shared.started) };
            client.publish(room, false, stamp, plan.payload);
            seat.published.set(number + 1);
            shared.published.set(shared.published.get() + 1);
            under_way += 1;
        }
        tokio::select! {
            ready = client.ready() => ready?,
            () = tokio::time::sleep_until(next), if matches!(plan.pace, Pace::Every(_)) && shared.publishing.get() => {}
        }
        under_way -= take(&mut client, seat, shared)?.min(under_way);
    }
}

fn room_number(room: &str) -> usize {
    room.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Warms up, then takes CPU and counts over the measured span and stops the publishers.
async fn measure(plan: &Plan, servers: &Servers, shared: &Shared) -> anyhow::Result<Outcome> {
    tokio::time::sleep(plan.warmup).await;
    shared.measuring.set(true);
    let from = (Instant::now(), servers.cpu()?, servers.cpu_by_thread());
    let (published, delivered) = (shared.published.get(), shared.delivered.get());
    if let Pace::Count(_, count) = plan.pace {
        let wanted = u64::from(count) * (plan.rooms * plan.publishers) as u64;
        let mut last = (0, Instant::now());
        while shared.answered.get() < wanted && last.1.elapsed() < QUIET_AFTER * 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if shared.answered.get() != last.0 {
                last = (shared.answered.get(), Instant::now());
            }
        }
    } else {
        tokio::time::sleep(plan.measured).await;
    }
    let cpu = CpuNanos(servers.cpu()?.0.saturating_sub(from.1.0));
    let mut by_thread = servers.cpu_by_thread();
    for (name, nanos) in &mut by_thread {
        let before = from.2.iter().find(|(other, _)| other == name).map_or(0, |(_, before)| before.0);
        nanos.0 = nanos.0.saturating_sub(before);
    }
    let outcome = Outcome {
        name: String::new(),
        took: from.0.elapsed(),
        messages: shared.published.get() - published,
        deliveries: shared.delivered.get() - delivered,
        cpu: (!servers.is_empty()).then_some(cpu),
        by_thread,
        latency: histogram(),
        faults: Faults::default(),
    };
    shared.measuring.set(false);
    shared.publishing.set(false);
    Ok(outcome)
}

/// Waits until nothing has come for a while.
async fn settle(shared: &Shared) {
    let mut last = (shared.delivered.get(), shared.answered.get());
    let mut since = Instant::now();
    while since.elapsed() < QUIET_AFTER {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = (shared.delivered.get(), shared.answered.get());
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

fn account(plan: &Plan, seats: &[Rc<Seat>], shared: &Shared) -> Faults {
    let mut faults = Faults {
        refused: shared.refused.get(),
        unanswered: shared.published.get() - shared.answered.get().min(shared.published.get()),
        closed: shared.closed.borrow().len() as u64,
        ..Faults::default()
    };
    for room in seats.chunks(plan.publishers + plan.members) {
        let published: Vec<u32> = room[..plan.publishers].iter().map(|seat| seat.published.get()).collect();
        let order = room.get(plan.publishers).map(|seat| seat.tally.borrow().order);
        for seat in room {
            let tally = seat.tally.borrow();
            faults.lost += tally.lost(&published, seat.publisher.map(usize::from));
            faults.doubled += tally.doubled;
            faults.reordered += tally.reordered;
            faults.other_orders += u64::from(seat.publisher.is_none() && Some(tally.order) != order);
        }
    }
    faults
}

fn micros_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}
