//! What happens to the nodes in a round.
//!
//! Belongs here: hurting nodes or the network between them, healing, and how long agreement took.
//! Stays out: the rounds (`mod`), what clients saw of it (`checker`).
//! Invariants: when a trouble is over all nodes run and have one ring.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::checker::{Cut, Hurt};
use super::journal::now_micros;
use super::report::Round;
use super::{Mode, Run};
use crate::drill::agree;
use crate::drill::watch::Ring;
use crate::processes::{Holdings, PATIENCE};

/// After a cut each side has a ring of its own within this time (FAULTS F9 aims at 2 s).
const SPLIT_WITHIN: Duration = Duration::from_secs(10);

/// After the mending there is one ring within this time (DESIGN §13, I10) …
const ONE_RING_WITHIN: Duration = Duration::from_secs(10);

/// … and one owner each within this (DESIGN §14).
const ONE_OWNER_WITHIN: Duration = Duration::from_secs(15);

/// Between two questions what nodes own.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What was done to whom.
#[derive(Default)]
pub(super) struct Trouble {
    /// In words.
    pub(super) kind: String,
    pub(super) hurt: Vec<Hurt>,
    /// What nodes showed meanwhile.
    pub(super) seen: Round,
}

impl Trouble {
    fn new(kind: String, hurt: Hurt) -> Self {
        Self { kind, hurt: vec![hurt], seen: Round::default() }
    }
}

/// Which ways are cut.
struct Ways {
    kind: String,
    /// From, to.
    cut: Vec<(usize, usize)>,
    /// The side of each node; `None`: every two nodes still reach each other, some over others.
    sides: Option<Vec<usize>>,
    /// A node of which no ring is expected: it is told half of what happens.
    half: Option<usize>,
}

impl Run<'_> {
    /// Hurts and heals in round `number`.
    pub(super) async fn trouble(&mut self, number: usize) -> anyhow::Result<Trouble> {
        // Not always at the same time after the judgement.
        self.nodes.watch(self.random.millis(0, 500)).await;
        let node = self.random.index(self.nodes.len());
        match self.kill9.mode {
            Mode::Kill => self.kill(node).await,
            Mode::Stop => self.stop(node).await,
            Mode::Mixed if self.random.per_mille(500) => self.kill(node).await,
            Mode::Mixed => self.stop(node).await,
            Mode::HalfOpen => self.half_open(node, number).await,
            Mode::Rolling => self.roll().await,
            Mode::Cut => self.cut(number).await,
        }
    }

    async fn kill(&mut self, node: usize) -> anyhow::Result<Trouble> {
        let name = self.nodes.name(node).to_owned();
        let life = self.nodes.life_of(node);
        let (from, killed) = (now_micros(), Instant::now());
        self.nodes.kill(node).await;
        self.open_doors().await;
        let mut seen = Round::default();
        let kind = if self.random.per_mille(250) {
            self.nodes.watch(self.random.millis(0, 100)).await;
            format!("kill -9 of {name}, started again within 100 ms")
        } else {
            self.nodes.agreed_without_one().await?;
            seen.noticed.add(Some(killed.elapsed()));
            self.nodes.watch(self.random.millis(0, 3_000)).await;
            format!("kill -9 of {name}")
        };
        self.take_lines();
        self.nodes.restart(node).await?;
        let until = now_micros();
        self.open_doors().await;
        self.nodes.agreed_with(node, life).await?;
        Ok(Trouble { seen, ..Trouble::new(kind, Hurt { node, from, until }) })
    }

    async fn stop(&mut self, node: usize) -> anyhow::Result<Trouble> {
        let from = now_micros();
        let time = self.random.millis(200, 5_000);
        self.nodes.stop(node).await;
        self.nodes.watch(time).await;
        self.nodes.wake(node).await;
        self.nodes.agreed_with(node, None).await?;
        let kind = format!("SIGSTOP of {} for {:.1} s", self.nodes.name(node), time.as_secs_f64());
        Ok(Trouble::new(kind, Hurt { node, from, until: now_micros() }))
    }

    /// The clients of a node leave their transports as they are and connect anew, by turns while the node
    /// stands still, which then wakes to clients that are elsewhere, and while it runs.
    async fn half_open(&mut self, node: usize, number: usize) -> anyhow::Result<Trouble> {
        let name = self.nodes.name(node).to_owned();
        let from = now_micros();
        let kind = if number % 2 == 1 {
            let time = self.random.millis(200, 5_000);
            self.nodes.stop(node).await;
            self.leave(node).await;
            self.nodes.watch(time).await;
            self.nodes.wake(node).await;
            format!("clients of {name} leave while it stands still for {:.1} s", time.as_secs_f64())
        } else {
            self.leave(node).await;
            format!("clients of {name} leave and close nothing")
        };
        self.nodes.agreed_with(node, None).await?;
        Ok(Trouble::new(kind, Hurt { node, from, until: now_micros() }))
    }

    async fn roll(&mut self) -> anyhow::Result<Trouble> {
        let mut hurt = Vec::new();
        for node in 0..self.nodes.len() {
            let life = self.nodes.life_of(node);
            let from = now_micros();
            self.nodes.terminate(node).await;
            self.nodes.ended(node).await?;
            self.open_doors().await;
            self.take_lines();
            self.nodes.restart(node).await?;
            let step = Hurt { node, from, until: now_micros() };
            hurt.push(step);
            self.open_doors().await;
            self.nodes.agreed_with(node, life).await?;
            let pause = Duration::from_secs(self.kill9.pause);
            self.nodes.watch(self.random.between(pause, pause * 2)).await;
            self.read_on().await?;
            self.checker.measure(from, now_micros(), &[step]);
        }
        Ok(Trouble { kind: "rolling restart".to_owned(), hurt, seen: Round::default() })
    }

    /// Cuts the network between nodes for some seconds.
    async fn cut(&mut self, number: usize) -> anyhow::Result<Trouble> {
        let before = self.settled_holdings().await?;
        let ways = self.draw_ways(number);
        let mut trouble = Trouble::default();
        let (from, cut_at) = (now_micros(), Instant::now());
        for &(from, to) in &ways.cut {
            self.nodes.relay().cut(from, to);
        }
        let hold = self.random.millis(2_000, 6_000);
        let all = self.nodes.len();
        if let Some(sides) = &ways.sides {
            let names: Vec<String> = (0..all).map(|node| self.nodes.name(node).to_owned()).collect();
            let split = self.nodes.until(SPLIT_WITHIN, |rings| split(rings, &names, sides, ways.half)).await;
            trouble.seen.split.add(split.then(|| cut_at.elapsed()));
            trouble.expect(split, || format!("no ring of each side within {SPLIT_WITHIN:?}"));
        }
        let split_at = now_micros();
        if ways.sides.is_some() {
            self.nodes.watch(hold).await;
        } else {
            let changed = self.nodes.until(hold, |rings| !agree(rings, all)).await;
            trouble.expect(!changed, || "a ring changed although every node could be reached".to_owned());
        }
        let (mended, mended_at) = (now_micros(), Instant::now());
        self.nodes.relay().mend();
        self.nodes.agreed(all).await?;
        let took = mended_at.elapsed();
        trouble.seen.one_ring.add(Some(took));
        trouble.expect(took <= ONE_RING_WITHIN, || format!("one ring only after {took:?}"));
        let mut last = None;
        while last != Some(before) {
            let took = mended_at.elapsed();
            ensure!(took < PATIENCE, "owners after {took:?}: {last:?}, before the cut {before:?}");
            self.nodes.watch(ASK_EVERY).await;
            last = self.nodes.holdings(0).await;
        }
        let took = mended_at.elapsed();
        trouble.seen.one_owner.add(Some(took));
        trouble.expect(took <= ONE_OWNER_WITHIN, || format!("one owner each only after {took:?}"));
        trouble.kind =
            format!("{}, for {:.1} s", ways.kind, cut_at.elapsed().saturating_sub(took).as_secs_f64());
        if let Some(sides) = ways.sides {
            let (healed, gaps) = (now_micros(), BTreeSet::new());
            let half = ways.half.map(|node| sides[node]);
            self.checker.was_cut(Cut { sides, half, from, split: split_at, mended, healed, gaps });
        }
        Ok(trouble)
    }

    /// What nodes own together once nothing is on its way.
    async fn settled_holdings(&mut self) -> anyhow::Result<Holdings> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let now = self.nodes.holdings(0).await;
            if let Some(holdings) = now.filter(|holdings| holdings.misplaced == 0) {
                return Ok(holdings);
            }
            ensure!(Instant::now() < give_up, "owners do not settle: {now:?}");
            self.nodes.watch(ASK_EVERY).await;
        }
    }

    /// Kinds of cuts by turns, nodes by chance.
    fn draw_ways(&mut self, number: usize) -> Ways {
        let all = self.nodes.len();
        let a = self.random.index(all);
        let b = (a + 1 + self.random.index(all - 1)) % all;
        let [name, other] = [a, b].map(|node| self.nodes.name(node).to_owned());
        let alone = || Some((0..all).map(|node| usize::from(node == a)).collect());
        let others = (0..all).filter(|&node| node != a);
        match number % 6 {
            1 | 3 => {
                // One node at least on each side.
                let mut sides: Vec<usize> =
                    (0..all).map(|_| usize::from(self.random.per_mille(500))).collect();
                (sides[a], sides[b]) = (0, 1);
                let apart = |&(from, to): &(usize, usize)| sides[from] != sides[to];
                let cut =
                    (0..all).flat_map(|from| (0..all).map(move |to| (from, to))).filter(apart).collect();
                let of = |side: usize| {
                    let of = (0..all).filter(|&node| sides[node] == side).map(|node| self.nodes.name(node));
                    of.collect::<Vec<_>>().join("+")
                };
                let kind = format!("{} cut from {}", of(0), of(1));
                Ways { kind, cut, sides: Some(sides), half: None }
            }
            2 => {
                let kind = format!("{name} and {other} cut from each other only");
                Ways { kind, cut: vec![(a, b), (b, a)], sides: None, half: None }
            }
            4 => {
                let kind = format!("{name} not heard by {other}");
                Ways { kind, cut: vec![(a, b)], sides: None, half: None }
            }
            5 => {
                let cut = others.map(|from| (from, a)).collect();
                Ways { kind: format!("{name} hears nobody"), cut, sides: alone(), half: Some(a) }
            }
            _ => {
                let cut = others.map(|to| (a, to)).collect();
                Ways { kind: format!("{name} heard by nobody"), cut, sides: alone(), half: Some(a) }
            }
        }
    }
}

impl Trouble {
    fn expect(&mut self, holds: bool, words: impl FnOnce() -> String) {
        if !holds {
            self.seen.wrong_ring += 1;
            self.seen.sentences.push(words());
        }
    }
}

/// Whether each node has a ring of exactly its side; `half` may have any.
fn split(rings: &[Option<Ring>], names: &[String], sides: &[usize], half: Option<usize>) -> bool {
    let of_its_side = |node: usize| {
        let Some(ring) = &rings[node] else { return false };
        let side = names.iter().zip(sides).filter(|(_, side)| **side == sides[node]);
        side.clone().count() == ring.nodes.len() && side.into_iter().all(|(name, _)| ring.has(name))
    };
    (0..names.len()).filter(|&node| half != Some(node)).all(of_its_side)
}
