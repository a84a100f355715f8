//! Nodes that get no CPU for a while, again and again: nobody is blamed who could not be heard only
//! because the accuser did not run, and a real death is noticed all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;

use super::net::{Net, addr};
use super::{millis, secs};
use crate::id::NodeRef;
use crate::membership::{Notice, Timing};
use crate::time::Instant;

/// The steps in which nodes are stopped and woken.
const SLICE: Duration = millis(5);

/// A verdict may come so much after its reason has ended: one slice, and the way of a datagram.
const SLACK: Duration = millis(10);

/// So soon all starving survivors know of a death: they run for a tenth to a half of the time.
const NOTICED_WITHIN: Duration = secs(10);

/// How nodes are short of CPU.
#[derive(Clone, Copy, Debug)]
struct Hunger {
    /// All stop and wake at the same time, give or take 30 ms; else each on its own.
    together: bool,
    /// The longest pause; the shortest is 50 ms.
    pause_max: Duration,
    /// The longest time a node runs in between; the shortest is 20 ms.
    run_max: Duration,
}

/// Stops and wakes the nodes of a net, and watches what they say.
struct Starving {
    net: Net,
    hunger: Hunger,
    count: u16,
    /// When each is stopped or woken next.
    turns: BTreeMap<u16, Instant>,
    /// The last pause of each: from when, until when.
    pauses: BTreeMap<u16, (Instant, Option<Instant>)>,
    read: BTreeMap<u16, usize>,
    judged: BTreeSet<NodeRef>,
    /// Verdicts about nodes that had not been silent for the suspicion time.
    unjust: Vec<String>,
}

impl Starving {
    fn new(seed: u64, count: u16, hunger: Hunger) -> Self {
        let mut net = Net::cluster(seed, count, &[1, 2]);
        net.until(secs(3), Net::agrees);
        net.run(secs(2));
        let turns = (1..=count).map(|n| (n, net.now)).collect();
        let read = (1..=count).map(|n| (n, net.node(n).notices.len())).collect();
        let (pauses, judged, unjust) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Self { net, hunger, count, turns, pauses, read, judged, unjust }
    }

    fn lasts(&mut self, min: Duration, max: Duration) -> Duration {
        let (min, max) = (min.as_micros() as u64, max.as_micros() as u64);
        Duration::from_micros(self.net.rng.random_range(min..=max))
    }

    /// Until `done`, within `limit`; answers how long it took.
    fn run(&mut self, limit: Duration, done: impl Fn(&Net) -> bool) -> Option<Duration> {
        let start = self.net.now;
        while self.net.now.since(start) < limit {
            if done(&self.net) {
                return Some(self.net.now.since(start));
            }
            self.turn();
            self.net.run(SLICE);
            self.listen();
        }
        None
    }

    /// Stops and wakes whoever's time has come.
    fn turn(&mut self) {
        let now = self.net.now;
        let due: Vec<u16> = self.turns.iter().filter(|(_, at)| **at <= now).map(|(n, _)| *n).collect();
        let Some(&first) = due.first() else { return };
        let stops = self.net.nodes.get(&addr(first)).is_none_or(|node| !node.paused);
        let Hunger { together, pause_max, run_max } = self.hunger;
        if together {
            let lasts =
                if stops { self.lasts(millis(50), pause_max) } else { self.lasts(millis(20), run_max) };
            for n in 1..=self.count {
                self.set(n, stops);
                let apart = self.lasts(Duration::ZERO, millis(30));
                self.turns.insert(n, now + lasts + if stops { apart } else { Duration::ZERO });
            }
            return;
        }
        for n in due {
            let stops = self.net.nodes.get(&addr(n)).is_some_and(|node| !node.paused);
            let lasts =
                if stops { self.lasts(millis(50), pause_max) } else { self.lasts(millis(20), run_max) };
            self.set(n, stops);
            self.turns.insert(n, now + lasts);
        }
    }

    fn set(&mut self, n: u16, paused: bool) {
        let now = self.net.now;
        if !self.net.nodes.contains_key(&addr(n)) || self.net.node(n).paused == paused {
            return;
        }
        if paused {
            self.net.node(n).paused = true;
            self.pauses.insert(n, (now, None));
        } else {
            self.net.resume(n);
            if let Some(pause) = self.pauses.get_mut(&n) {
                pause.1 = Some(now);
            }
        }
    }

    fn listen(&mut self) {
        for n in 1..=self.count {
            let Some(node) = self.net.nodes.get(&addr(n)) else { continue };
            let new = node.notices[self.read[&n]..].to_vec();
            self.read.insert(n, node.notices.len());
            for notice in new {
                if let Notice::PeerDown(peer) | Notice::PeerLeft(peer) = &notice
                    && self.judged.insert(peer.node)
                {
                    self.judge(n, peer.node, &notice);
                }
            }
        }
    }

    /// The first verdict about a life: had it been silent for the suspicion time until now?
    fn judge(&mut self, by: u16, life: NodeRef, notice: &Notice) {
        let now = self.net.now;
        let runs = (1..=self.count)
            .find(|n| self.net.nodes.get(&addr(*n)).is_some_and(|node| node.machine.view().me == life));
        let Some(accused) = runs else { return };
        let silent = self.pauses.get(&accused).is_some_and(|(from, until)| {
            let until = until.unwrap_or(now);
            until.since(*from) >= Timing::lan().suspect_for && until + SLACK >= now
        });
        if !silent {
            let pause = self.pauses.get(&accused);
            self.unjust.push(format!("at {now} n{by} says {notice}; last pause {pause:?}"));
        }
    }

    fn all_run(&mut self) {
        for n in 1..=self.count {
            self.set(n, false);
        }
    }
}

const HUNGERS: [Hunger; 6] = [
    Hunger { together: true, pause_max: millis(500), run_max: millis(100) },
    Hunger { together: true, pause_max: millis(1_500), run_max: millis(400) },
    Hunger { together: true, pause_max: millis(1_500), run_max: millis(2_000) },
    Hunger { together: false, pause_max: millis(500), run_max: millis(100) },
    Hunger { together: false, pause_max: millis(1_500), run_max: millis(400) },
    Hunger { together: false, pause_max: millis(1_500), run_max: millis(2_000) },
];

#[test]
fn nobody_is_declared_down_for_the_hunger_of_the_accuser() {
    for count in [3, 5, 9] {
        for hunger in HUNGERS {
            for seed in 0..4 {
                let mut starving = Starving::new(seed, count, hunger);
                assert!(starving.run(secs(40), |_| false).is_none());
                assert!(
                    starving.unjust.is_empty(),
                    "{count} nodes, {hunger:?}, seed {seed}: {:#?}",
                    starving.unjust
                );
                starving.all_run();
                starving.net.until(secs(10), Net::agrees);
            }
        }
    }
}

#[test]
fn a_death_among_starving_nodes_is_noticed() {
    for count in [3, 5, 9] {
        for hunger in HUNGERS {
            for seed in 0..4 {
                let mut starving = Starving::new(seed, count, hunger);
                starving.run(secs(5), |_| false);
                let died = starving.net.node(2).machine.view().me;
                starving.net.kill(2);
                let noticed = starving.run(NOTICED_WITHIN, |net| {
                    net.nodes.values().all(|n| n.machine.view().nodes.iter().all(|n| n.node.id != died.id))
                });
                assert!(
                    noticed.is_some(),
                    "{count} nodes, {hunger:?}, seed {seed}: {}",
                    starving.net.describe()
                );
            }
        }
    }
}
