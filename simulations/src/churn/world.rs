//! Memberships on a virtual network of datagrams.
//!
//! Belongs here: one clock, one queue of events, nodes that run, loss and latency.
//! Stays out: what is measured (`mod`). Links, shards and clients are `chaos`'s.
//! Units: latency 0.2 to 1.5 ms, uniform; loss independent per datagram.
//! Invariants: same seed, same run; events in the order of their time, then of their insertion;
//! every machine keeps its own invariants (checked at each view).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::{NodeId, NodeRef};
use mesh_proto::keys::ClusterKey;
use mesh_proto::membership::{Input, Membership, MembershipConfig, Notice, Output, Stats, Timing};
use mesh_proto::time::Instant;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The cluster under test.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) rng: StdRng,
    nodes: Vec<Option<Running>>,
    lives: Vec<u64>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    inserted: u64,
    loss: f64,
    vnodes: u32,
    timing: Timing,
    seeds: Vec<SocketAddr>,
    /// How many running nodes have which ring.
    rings: BTreeMap<u64, usize>,
    /// Counts of nodes that have stopped.
    retired: Totals,
    /// Who took whom for down, although it ran.
    pub(super) false_downs: Vec<(Instant, usize, String)>,
}

struct Running {
    machine: Membership,
    /// When it is woken next.
    wake: Option<Instant>,
    ring: u64,
    nodes_seen: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Datagram { from: SocketAddr, to: usize, bytes: Bytes },
    Wake(usize),
    Start(usize),
}

/// Counts of all nodes together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) suspicions: u64,
    pub(super) rejoins: u64,
    pub(super) exchanges: u64,
}

impl Totals {
    fn add(&mut self, stats: &Stats) {
        self.sent += stats.sent;
        self.sent_bytes += stats.sent_bytes;
        self.suspicions += stats.suspicions;
        self.rejoins += stats.rejoins;
        self.exchanges += stats.exchanges;
    }
}

impl World {
    pub(super) fn new(count: usize, seeds: usize, loss: f64, vnodes: u32, timing: Timing, seed: u64) -> Self {
        Self {
            now: Instant::from_micros(1_000_000),
            rng: StdRng::seed_from_u64(seed),
            nodes: (0..count).map(|_| None).collect(),
            lives: vec![0; count],
            events: BinaryHeap::new(),
            inserted: 0,
            loss,
            vnodes,
            timing,
            seeds: (0..seeds.min(count)).map(addr).collect(),
            rings: BTreeMap::new(),
            retired: Totals::default(),
            false_downs: Vec::new(),
        }
    }

    /// Starts node `n` at `at`.
    pub(super) fn start_at(&mut self, at: Instant, n: usize) {
        self.insert(at, Event::Start(n));
    }

    /// Stops node `n` without a word.
    pub(super) fn kill(&mut self, n: usize) {
        if let Some(node) = self.nodes[n].take() {
            self.count_ring(node.ring, false);
            self.retired.add(node.machine.stats());
        }
    }

    pub(super) fn running(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    pub(super) fn machine(&self, n: usize) -> Option<&Membership> {
        self.nodes[n].as_ref().map(|node| &node.machine)
    }

    /// Whether all running nodes see all running nodes, and have one ring of them.
    pub(super) fn agrees(&self) -> bool {
        let running = self.running();
        self.rings.len() == 1
            && self.nodes.iter().flatten().all(|node| node.nodes_seen == running)
            && self
                .nodes
                .iter()
                .flatten()
                .next()
                .is_some_and(|n| n.machine.view().ring.nodes().len() == running)
    }

    /// Whether `observer` still has `n` in its view (or does not run).
    pub(super) fn sees(&self, observer: usize, n: usize) -> bool {
        let id = NodeId::of_name(&name(n));
        self.machine(observer)
            .is_some_and(|m| m.view().nodes.binary_search_by_key(&id, |n| n.node.id).is_ok())
    }

    /// Whether what each node last heard of the others' rings is the present ring.
    pub(super) fn heard_agree(&self) -> bool {
        let running = self.running();
        self.rings.len() == 1
            && self.nodes.iter().flatten().all(|node| {
                let digests = node.machine.digests();
                digests.len() == running - 1 && digests.values().all(|heard| heard.digest == node.ring)
            })
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.retired;
        for node in self.nodes.iter().flatten() {
            totals.add(node.machine.stats());
        }
        totals
    }

    /// Runs for `time`.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end).is_some() {}
        self.now = end;
    }

    /// Runs until `done`, asked after each view that changed; `None` if not within `limit`.
    pub(super) fn until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        if done(self) {
            return Some(Duration::ZERO);
        }
        while let Some(view_changed) = self.step(end) {
            if view_changed && done(self) {
                return Some(self.now.since(start));
            }
        }
        self.now = end;
        None
    }

    /// One event; says whether a view changed. `None` when nothing happens before `end`.
    fn step(&mut self, end: Instant) -> Option<bool> {
        self.events.peek().filter(|Reverse((at, ..))| *at <= end)?;
        let Reverse((at, _, event)) = self.events.pop()?;
        self.now = self.now.max(at);
        let now = self.now;
        match event {
            Event::Start(n) => {
                self.start(n);
                Some(true)
            }
            Event::Datagram { from, to, bytes } => {
                let mut bytes = bytes.to_vec();
                let node = self.nodes[to].as_mut();
                let Some(node) = node else { return Some(false) };
                node.machine.handle(now, Input::Datagram { from, bytes: &mut bytes });
                Some(self.drain(to))
            }
            Event::Wake(n) => {
                let node = self.nodes[n].as_mut().filter(|node| node.wake == Some(at));
                let Some(node) = node else { return Some(false) };
                node.wake = None;
                node.machine.handle(now, Input::Timer);
                Some(self.drain(n))
            }
        }
    }

    fn start(&mut self, n: usize) {
        self.lives[n] += 1;
        let (name, key, boot_id) = (name(n), ClusterKey::new([7; 32]), self.rng.random());
        let config = MembershipConfig {
            me: NodeRef { id: NodeId::of_name(&name), incarnation: self.lives[n] },
            client_addr: format!("{}", addr(n)),
            admin_addr: format!("{}", addr(n)),
            api_addr: format!("{}", addr(n)),
            shards: 2,
            software: "simulated".into(),
            seeds: self.seeds.clone(),
            vnodes: self.vnodes,
            timing: self.timing.clone(),
            seed: self.rng.random(),
            ..MembershipConfig::new(&name, addr(n), key, boot_id)
        };
        let machine = Membership::new(self.now, config);
        let ring = machine.view().ring.digest();
        self.count_ring(ring, true);
        self.nodes[n] = Some(Running { machine, wake: None, ring, nodes_seen: 1 });
        self.drain(n);
    }

    fn drain(&mut self, n: usize) -> bool {
        let mut view_changed = false;
        while let Some(output) = self.nodes[n].as_mut().and_then(|node| node.machine.poll()) {
            match output {
                Output::Datagram { to, bytes } => {
                    if !self.rng.random_bool(self.loss)
                        && let Some(to) = self.index(to)
                    {
                        let latency = Duration::from_micros(self.rng.random_range(200..1_500));
                        self.insert(self.now + latency, Event::Datagram { from: addr(n), to, bytes });
                    }
                }
                Output::View(view) => {
                    view_changed = true;
                    self.count_ring(view.ring.digest(), true);
                    if let Some(node) = self.nodes[n].as_mut() {
                        let before = std::mem::replace(&mut node.ring, view.ring.digest());
                        node.nodes_seen = view.nodes.len();
                        node.machine.check_invariants();
                        self.count_ring(before, false);
                    }
                }
                Output::Notice(notice) => self.judge(n, &notice),
            }
        }
        let Some(node) = self.nodes[n].as_mut() else { return view_changed };
        let next = node.machine.next_deadline().map(|at| at.max(self.now));
        if node.wake != next {
            node.wake = next;
            if let Some(at) = next {
                self.insert(at, Event::Wake(n));
            }
        }
        view_changed
    }

    /// A node that runs and was declared down was declared so falsely: nothing is paused here.
    fn judge(&mut self, observer: usize, notice: &Notice) {
        let accused = match notice {
            Notice::PeerDown(peer) | Notice::PeerLeft(peer) => (0..self.nodes.len())
                .find(|&n| name(n) == peer.name)
                .filter(|&n| self.machine(n).is_some_and(|m| m.view().me == peer.node)),
            Notice::Rejoined { .. } => Some(observer),
            _ => None,
        };
        if accused.is_some() {
            self.false_downs.push((self.now, observer, notice.to_string()));
        }
    }

    fn insert(&mut self, at: Instant, event: Event) {
        self.inserted += 1;
        self.events.push(Reverse((at, self.inserted, event)));
    }

    fn count_ring(&mut self, digest: u64, up: bool) {
        let count = self.rings.entry(digest).or_insert(0);
        *count = if up { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.rings.remove(&digest);
        }
    }

    fn index(&self, to: SocketAddr) -> Option<usize> {
        let SocketAddr::V4(to) = to else { return None };
        let [_, _, high, low] = to.ip().octets();
        Some(usize::from(u16::from_be_bytes([high, low]))).filter(|&n| n < self.nodes.len())
    }
}

pub(super) fn name(n: usize) -> String {
    format!("node-{n}")
}

fn addr(n: usize) -> SocketAddr {
    let [high, low] = u16::try_from(n).expect("at most 65,535 nodes").to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 7_400))
}
