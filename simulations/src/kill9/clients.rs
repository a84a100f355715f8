//! A process of clients: members of rooms, or publishers.
//!
//! Belongs here: the `kill9-clients` command; when a client connects, where, what it does then, and
//! that it writes everything down. Stays out: judging (`checker`), the protocols (`session`).
//! Method: a client connects as behind a balancer that knows no more than which nodes exist: it takes the
//! first node, from a random one on, that answers. After a lost transport it waits as the stock client
//! does (0.5 to 1.5 s, doubling up to 5 s). Client `i` starts at node `i mod N`.
//! Standard input: `doors ADDRESS,-,…` says where each node listens, `-` for one that does not;
//! `leave NODE` has its clients leave their transports as they are, as when a cable is pulled and only the
//! client notices: nothing is closed, nothing is answered, each connects anew. Its end ends the process.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};

use super::journal::{Fact, Resumed, Writer};
use super::session::{Heard, Memory, Protocol, Session};
use crate::load::client::{Door, SCRATCH_BYTES};
use crate::load::stamp::Stamp;

/// The stock client's `reconnectionDelay` and `reconnectionDelayMax`; its `randomizationFactor` is ½.
pub(crate) const RECONNECT_DELAY: Duration = Duration::from_secs(1);
pub(crate) const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

/// Between the first connections of two clients.
const STAGGER: Duration = Duration::from_millis(5);

/// How often the journal goes to its file.
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// Lines of standard input that may wait.
const ORDERS_MAX: usize = 16;

/// Publishes without an answer that a publisher keeps under way.
const UNANSWERED_MAX: usize = 128;

/// Be the clients of a `kill9` run (started by it).
#[derive(Clone, Debug, Args)]
pub struct Clients {
    /// What they do.
    #[arg(long)]
    role: Role,
    /// How many there are in all.
    #[arg(long)]
    count: usize,
    /// How many of them a room has: client `i` is in room `i / per_room`.
    #[arg(long)]
    per_room: usize,
    /// Microseconds between two messages of a publisher.
    #[arg(long, default_value_t = 1_000_000)]
    interval_micros: u64,
    /// Where the journal goes.
    #[arg(long)]
    journal: PathBuf,
    /// Of delays and choices.
    #[arg(long)]
    seed: u64,
}

/// What the clients of a process do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Receive.
    Members,
    /// Publish numbered messages, and read what others publish.
    Publishers,
}

/// What all clients of the process share.
struct Shared {
    clients: Clients,
    doors: RefCell<Vec<Option<Door>>>,
    journal: RefCell<Writer>,
    scratch: RefCell<Vec<u8>>,
    /// The node whose clients are to leave. News for those that are connected then.
    leave: watch::Sender<usize>,
}

/// Runs `kill9-clients`.
///
/// # Errors
/// When the journal cannot be written.
pub fn run(clients: &Clients) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let shared = Rc::new(Shared {
            clients: clients.clone(),
            doors: RefCell::default(),
            journal: RefCell::new(Writer::create(&clients.journal)?),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            leave: watch::Sender::new(usize::MAX),
        });
        println!("ready");
        for index in 0..clients.count {
            let client = Client::new(index, shared.clone());
            spawn_local(client.live());
        }
        let mut orders = orders();
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => shared.take_order(&order)?,
                    None => return Ok(()),
                },
                _ = flush.tick() => shared.journal.borrow_mut().flush()?,
            }
        }
    })
}

/// The lines of standard input, until its end. A full channel makes whoever writes them wait.
fn orders() -> mpsc::Receiver<String> {
    let (orders, taken) = mpsc::channel(ORDERS_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if orders.blocking_send(line).is_err() {
                return;
            }
        }
    });
    taken
}

impl Shared {
    fn take_order(&self, line: &str) -> anyhow::Result<()> {
        if let Some(node) = line.strip_prefix("leave ") {
            self.leave.send_replace(node.parse()?);
            return Ok(());
        }
        let addresses = line.strip_prefix("doors ").unwrap_or_default().split(',');
        let door = |at: &str| if at == "-" { Ok(None) } else { Door::parse(at, "rooms").map(Some) };
        *self.doors.borrow_mut() = addresses.map(door).collect::<anyhow::Result<_>>()?;
        Ok(())
    }
}

/// A client through all its connections.
struct Client {
    index: usize,
    uid: String,
    room: String,
    protocol: Protocol,
    shared: Rc<Shared>,
    memory: Memory,
    random: StdRng,
    /// Of requests, through all connections: a late answer finds its request.
    next_id: u64,
    /// Whether its session is in its room.
    in_room: bool,
    publishing: Publishing,
}

/// What a publisher has under way.
#[derive(Default)]
struct Publishing {
    /// Whether its messages carry keys and are repeated when a connection was lost.
    keyed: bool,
    next_number: u32,
    /// Number of the message of each unanswered request.
    unanswered: BTreeMap<u64, u32>,
    /// When the next message is due.
    next_at: Option<Instant>,
}

impl Client {
    fn new(index: usize, shared: Rc<Shared>) -> Self {
        let Clients { role, per_room, seed, .. } = shared.clients;
        let (letter, salt) = match role {
            Role::Members => ('m', 1),
            Role::Publishers => ('p', 2),
        };
        // Of two publishers of a room one repeats, of four members one is plain: all mixtures occur.
        let plain = match role {
            Role::Members => index % 4 == 3,
            Role::Publishers => index % 3 == 2,
        };
        Self {
            index,
            uid: format!("{letter}{index}"),
            room: format!("room-{}", index / per_room),
            protocol: if plain { Protocol::Plain } else { Protocol::SocketIo },
            shared,
            memory: Memory::default(),
            random: StdRng::seed_from_u64(seed << 20 ^ salt << 16 ^ index as u64),
            next_id: 0,
            in_room: false,
            publishing: Publishing { keyed: index.is_multiple_of(2), ..Publishing::default() },
        }
    }

    /// Connects again and again.
    async fn live(mut self) {
        sleep(STAGGER * u32::try_from(self.index).unwrap_or(0)).await;
        let mut home = Some(self.index);
        let mut delay = RECONNECT_DELAY;
        loop {
            if let Some((node, mut session, resumed)) = self.connect(home.take()).await {
                delay = RECONNECT_DELAY;
                self.note(Fact::Connected { node, resumed });
                match self.serve(&mut session, node, resumed).await {
                    Ok(()) => self.leave(session),
                    Err(error) => {
                        let words = format!("{error:#}");
                        self.shared.journal.borrow_mut().note(self.index, Fact::Disconnected, &words);
                    }
                }
            }
            sleep(delay.mul_f64(self.random.random_range(0.5..1.5))).await;
            delay = (delay * 2).min(RECONNECT_DELAY_MAX);
        }
    }

    /// Keeps a transport open that it uses no more. Only a session that goes on over another one lets the
    /// server know: where the protocol has no recovery, heartbeats end it in their time.
    fn leave(&self, session: Session) {
        let awaited = self.protocol == Protocol::SocketIo;
        if awaited {
            self.note(Fact::Left);
        } else {
            self.shared.journal.borrow_mut().note(self.index, Fact::Disconnected, "left");
        }
        let (index, shared) = (self.index, self.shared.clone());
        spawn_local(async move {
            session.closed(&shared.scratch).await;
            if awaited {
                shared.journal.borrow_mut().note(index, Fact::LeftClosed, "");
            }
        });
    }

    /// Tries every node once.
    async fn connect(&mut self, home: Option<usize>) -> Option<(usize, Session, Resumed)> {
        let doors = self.shared.doors.borrow().clone();
        let first = home.unwrap_or_else(|| self.random.random_range(0..doors.len().max(1)));
        for step in 0..doors.len() {
            let node = (first + step) % doors.len();
            let Some(door) = &doors[node] else { continue };
            match Session::open(door, self.protocol, &self.uid, &mut self.memory).await {
                Ok((session, resumed)) => return Some((node, session, resumed)),
                Err(error) => println!("{}: {}: {error:#}", self.uid, door.host),
            }
        }
        None
    }

    fn note(&self, fact: Fact) {
        self.shared.journal.borrow_mut().note(self.index, fact, "");
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Until the connection ends, or is to be left.
    async fn serve(&mut self, session: &mut Session, node: usize, resumed: Resumed) -> anyhow::Result<()> {
        let mut leave = self.shared.leave.subscribe();
        let mut joining = None;
        self.in_room &= resumed == Resumed::Recovered;
        if self.in_room {
            self.joined(session);
        } else {
            let id = self.id();
            session.join(id, &self.room);
            joining = Some(id);
        }
        let mut heard = Vec::new();
        loop {
            let drained = {
                let mut scratch = self.shared.scratch.borrow_mut();
                session.drain(&mut scratch, &mut self.memory, &mut heard)
            };
            for heard in heard.drain(..) {
                match heard {
                    Heard::Event(stamp) if self.shared.clients.role == Role::Members => {
                        self.note(Fact::Event(stamp.publisher, stamp.number));
                    }
                    Heard::Event(_) => {}
                    Heard::Answer(id, ok) if joining == Some(id) => {
                        anyhow::ensure!(ok, "the join was refused");
                        joining = None;
                        self.joined(session);
                    }
                    Heard::Answer(id, ok) => {
                        if let Some(number) = self.publishing.unanswered.remove(&id) {
                            self.note(if ok { Fact::Acked(number) } else { Fact::Refused(number) });
                        }
                    }
                }
            }
            drained?;
            let turn = self.publishing.next_at.filter(|_| joining.is_none());
            if turn.is_some_and(|at| at <= Instant::now()) {
                self.publish_next(session);
                continue;
            }
            tokio::select! {
                ready = session.ready() => ready?,
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {}
                Ok(()) = leave.changed() => {
                    if *leave.borrow_and_update() == node {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// In the room: a publisher repeats what was not answered, or forgets it, and goes on.
    fn joined(&mut self, session: &mut Session) {
        self.in_room = true;
        self.note(Fact::Joined);
        if self.shared.clients.role == Role::Members {
            return;
        }
        let unanswered = std::mem::take(&mut self.publishing.unanswered);
        if self.publishing.keyed {
            for number in unanswered.into_values() {
                self.publish(session, number);
            }
        }
        // Publishers of a room are spread over the interval, so that they do not beat together.
        let interval = Duration::from_micros(self.shared.clients.interval_micros);
        let offset = interval.mul_f64(self.random.random_range(0.0..1.0));
        self.publishing.next_at = Some(Instant::now() + offset);
    }

    fn publish_next(&mut self, session: &mut Session) {
        let interval = Duration::from_micros(self.shared.clients.interval_micros);
        let at = self.publishing.next_at.unwrap_or_else(Instant::now);
        // Turns that were missed while this process did not run are not made up for.
        self.publishing.next_at = Some((at + interval).max(Instant::now()));
        if self.publishing.unanswered.len() < UNANSWERED_MAX {
            let number = self.publishing.next_number;
            self.publishing.next_number += 1;
            self.publish(session, number);
        }
    }

    fn publish(&mut self, session: &mut Session, number: u32) {
        let id = self.id();
        let publisher = u16::try_from(self.index).unwrap_or(u16::MAX);
        let stamp = Stamp { publisher, number, micros: super::journal::now_micros() };
        let key = self.publishing.keyed.then(|| format!("{}-{number}", self.uid));
        self.note(Fact::Sent(number));
        session.publish(id, &self.room, stamp, key.as_deref());
        self.publishing.unanswered.insert(id, number);
    }
}
