//! A few nodes on a virtual network: the harness of the tests beside it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::keys::ClusterKey;
use crate::membership::{Input, Membership, MembershipConfig, Notice, Output};
use crate::time::Instant;
use crate::view::NodeState;

/// Nodes, what is under way between them, and one clock.
pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) nodes: BTreeMap<SocketAddr, Node>,
    under_way: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    pub(super) rng: StdRng,
    /// Share of datagrams lost.
    pub(super) loss: f64,
    /// Pairs between which nothing passes, one way.
    pub(super) cut: Vec<(SocketAddr, SocketAddr)>,
}

pub(super) struct Node {
    pub(super) machine: Membership,
    pub(super) notices: Vec<Notice>,
    /// Does nothing; datagrams wait for it.
    pub(super) paused: bool,
    waiting: Vec<(SocketAddr, Vec<u8>)>,
}

pub(super) fn addr(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7_400))
}

pub(super) fn config(n: u16, name: &str, seeds: &[u16]) -> MembershipConfig {
    MembershipConfig {
        client_addr: "127.0.0.1:8000".into(),
        admin_addr: "127.0.0.1:8001".into(),
        api_addr: "127.0.0.1:8002".into(),
        shards: 2,
        software: "0.1.0".into(),
        seeds: seeds.iter().map(|&n| addr(n)).collect(),
        vnodes: 16,
        seed: u64::from(n),
        ..MembershipConfig::new(name, addr(n), ClusterKey::new([7; 32]), 0)
    }
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_micros(1_000_000),
            nodes: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            rng: StdRng::seed_from_u64(seed),
            loss: 0.0,
            cut: Vec::new(),
        }
    }

    /// `count` nodes called n1, n2, … that all name `seeds`, started at once.
    pub(super) fn cluster(seed: u64, count: u16, seeds: &[u16]) -> Self {
        let mut net = Self::new(seed);
        for n in 1..=count {
            net.start(n, seeds);
        }
        net
    }

    /// Starts node `n` under its usual name.
    pub(super) fn start(&mut self, n: u16, seeds: &[u16]) {
        self.start_as(config(n, &format!("n{n}"), seeds));
    }

    pub(super) fn start_as(&mut self, mut config: MembershipConfig) {
        config.boot_id = self.rng.random();
        config.seed ^= config.boot_id;
        let addr = config.mesh_addr;
        let machine = Membership::new(self.now, config);
        self.nodes.insert(addr, Node { machine, notices: Vec::new(), paused: false, waiting: Vec::new() });
        self.drain(addr);
    }

    pub(super) fn kill(&mut self, n: u16) {
        self.nodes.remove(&addr(n));
    }

    pub(super) fn input(&mut self, n: u16, input: Input<'_>) {
        let now = self.now;
        self.node(n).machine.handle(now, input);
        self.drain(addr(n));
    }

    pub(super) fn node(&mut self, n: u16) -> &mut Node {
        self.nodes.get_mut(&addr(n)).expect("it runs")
    }

    /// Cuts both ways between two sets.
    pub(super) fn split(&mut self, left: &[u16], right: &[u16]) {
        for &a in left {
            for &b in right {
                self.cut.extend([(addr(a), addr(b)), (addr(b), addr(a))]);
            }
        }
    }

    pub(super) fn resume(&mut self, n: u16) {
        let now = self.now;
        let node = self.node(n);
        node.paused = false;
        for (from, mut bytes) in std::mem::take(&mut node.waiting) {
            node.machine.handle(now, Input::Datagram { from, bytes: &mut bytes });
        }
        self.drain(addr(n));
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, which must happen within `limit`; answers how long it took.
    pub(super) fn until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Duration {
        let (start, end) = (self.now, self.now + limit);
        while !done(self) {
            assert!(self.step(end), "not within {limit:?}: {}", self.describe());
        }
        self.now.since(start)
    }

    /// Everybody (not paused) sees all nodes that run, active, and all rings agree.
    pub(super) fn agrees(&self) -> bool {
        let mut digests = self.nodes.values().map(|node| node.machine.view().ring.digest());
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
            && self.nodes.values().all(|node| {
                let view = node.machine.view();
                view.nodes.len() == self.nodes.len()
                    && view.nodes.iter().all(|n| n.state() == NodeState::Active)
            })
    }

    pub(super) fn says(&self, n: u16, notice: impl Fn(&Notice) -> bool) -> usize {
        self.nodes[&addr(n)].notices.iter().filter(|n| notice(n)).count()
    }

    pub(super) fn describe(&self) -> String {
        let mut out = String::new();
        for (addr, node) in &self.nodes {
            let view = node.machine.view();
            let nodes: Vec<String> = view
                .nodes
                .iter()
                .map(|n| format!("{}.{}{:?}", n.name(), n.node.incarnation, n.state()))
                .collect();
            out += &format!("\n{addr} {:?} sees {nodes:?}; said {:?}", node.machine, node.notices);
        }
        out
    }

    fn step(&mut self, end: Instant) -> bool {
        let datagram = self.under_way.first_key_value().map(|((at, _), _)| *at);
        let timers = self.nodes.iter().filter(|(_, node)| !node.paused);
        let timer = timers.filter_map(|(addr, node)| Some((node.machine.next_deadline()?, *addr))).min();
        let at = [datagram, timer.map(|(at, _)| at)].into_iter().flatten().min();
        let Some(at) = at.filter(|at| *at <= end) else { return false };
        self.now = self.now.max(at);
        // Datagrams first, as the driver does.
        if datagram == Some(at) {
            let Some((_, (from, to, mut bytes))) = self.under_way.pop_first() else { return false };
            let now = self.now;
            let Some(node) = self.nodes.get_mut(&to) else { return true };
            if node.paused {
                node.waiting.push((from, bytes));
            } else {
                node.machine.handle(now, Input::Datagram { from, bytes: &mut bytes });
                self.drain(to);
            }
        } else if let Some((_, addr)) = timer {
            let now = self.now;
            if let Some(node) = self.nodes.get_mut(&addr) {
                node.machine.handle(now, Input::Timer);
            }
            self.drain(addr);
        }
        true
    }

    fn drain(&mut self, from: SocketAddr) {
        let Some(node) = self.nodes.get_mut(&from) else { return };
        node.machine.check_invariants();
        while let Some(output) = node.machine.poll() {
            match output {
                Output::Datagram { to, bytes } => {
                    assert!(bytes.len() <= super::super::PACKET_BYTES_MAX, "{} bytes", bytes.len());
                    if self.rng.random_bool(self.loss) || self.cut.contains(&(from, to)) {
                        continue;
                    }
                    let latency = Duration::from_micros(self.rng.random_range(200..1_500));
                    self.sent += 1;
                    self.under_way.insert((self.now + latency, self.sent), (from, to, bytes.to_vec()));
                }
                Output::Notice(notice) => node.notices.push(notice),
                Output::View(_) => {}
            }
        }
    }
}
