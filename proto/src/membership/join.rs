//! Starting: whose cluster to join, or who may begin one.
//!
//! Belongs here: the seeds and what they answered, the agreement on who begins, the wait for a name.
//! Stays out: the exchange itself (`sync`), what happens after (`machine`).
//! Invariants: while one seed answers as a member nobody begins; a node with seeds never begins
//! alone because they are silent.
//!
//! A node asks all its seeds. One that is a member answers with the first page of the membership;
//! the exchange goes on with it, and then this node is a member too. One that is starting itself
//! says so. If no seed is a member somebody must begin, and only one should:
//!
//! - A starting node *waits for* those of its seeds that answered within the last second, and is
//!   *content* when all of them did, or when after `seeds_waited_for` a majority did (itself counts,
//!   if it is a seed of its own).
//! - Starting nodes tell each other these claims, their own and those they heard.
//! - Follow "waits for" from here. If everybody found that way is content and waits in turn, over
//!   others maybe, for this node, then nobody outside that circle is waited for by it, and **the
//!   lowest id of the circle begins**; the others find it a member when they ask again.
//!
//! So of three nodes that name all three, or of two that name each other, one begins. A node that
//! nobody waits for (its seeds do not know it) never begins. With a seed missing the majority begins
//! without it; two seeds with one missing wait, as the one cannot know. Claims count only when fresh,
//! and the condition must hold in two rounds in a row. Should two circles begin all the same (a
//! partition between seeds during the start), nodes keep asking the seeds that they do not know as
//! members, and the two clusters become one. A member that knows none of its seeds as one asks them
//! faster than they could agree: seeds that all start again join whoever is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::sync::{CLAIMS_MAX, Claim};
use super::{Identity, Timing};
use crate::id::NodeId;
use crate::time::Instant;

/// Seeds of one node; more are not asked.
pub const SEEDS_MAX: usize = 16;

/// A claim older than this is not acted on.
const CLAIM_FRESH: Duration = Duration::from_secs(2);

/// How often a starting node says that it is not getting on.
const COMPLAIN_PERIOD: Duration = Duration::from_secs(60);

/// The first complaint.
const COMPLAIN_AFTER: Duration = Duration::from_secs(3);

/// A node on its way into a cluster.
#[derive(Debug)]
pub(crate) struct Join {
    started: Instant,
    seeds: Vec<Seed>,
    claims: BTreeMap<NodeId, Heard>,
    /// Rounds in a row in which this node might have begun.
    might_begin: u32,
    pause: Duration,
    pub(crate) next_round: Instant,
    next_complaint: Instant,
    pub(crate) name: Option<NameWait>,
}

#[derive(Debug)]
struct Seed {
    addr: SocketAddr,
    is_self: bool,
    /// It answered as a starting node.
    starting: Option<(NodeId, Instant)>,
}

#[derive(Debug)]
struct Heard {
    waits_for: BTreeSet<NodeId>,
    content: bool,
    /// When it was true.
    at: Instant,
}

/// Waiting for an earlier holder of this node's name to go.
#[derive(Debug)]
pub(crate) struct NameWait {
    pub(crate) holder: Identity,
    pub(crate) until: Instant,
    pub(crate) answered_at: Option<Instant>,
}

/// What a round asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// Ask these seeds.
    Ask(Vec<SocketAddr>),
    /// Begin a cluster.
    Begin,
}

impl Join {
    pub(crate) fn new(now: Instant, seeds: &[SocketAddr], own: SocketAddr, timing: &Timing) -> Self {
        let mut join = Self {
            started: now,
            seeds: Vec::new(),
            claims: BTreeMap::new(),
            might_begin: 0,
            pause: timing.join_round / 2,
            next_round: now,
            next_complaint: now + COMPLAIN_AFTER,
            name: None,
        };
        join.resolved(seeds, own);
        join
    }

    /// The seeds' names were resolved again.
    pub(crate) fn resolved(&mut self, addrs: &[SocketAddr], own: SocketAddr) {
        let mut seeds: Vec<Seed> = Vec::new();
        for &addr in addrs {
            if seeds.len() < SEEDS_MAX && seeds.iter().all(|seed| seed.addr != addr) {
                let known = self.seeds.iter().find(|seed| seed.addr == addr);
                seeds.push(Seed {
                    addr,
                    is_self: addr == own || known.is_some_and(|seed| seed.is_self),
                    starting: known.and_then(|seed| seed.starting),
                });
            }
        }
        self.seeds = seeds;
    }

    /// The next round is due.
    pub(crate) fn round(&mut self, now: Instant, me: NodeId, timing: &Timing) -> Round {
        let others: Vec<SocketAddr> = self.seeds.iter().filter(|s| !s.is_self).map(|s| s.addr).collect();
        if others.is_empty() {
            return Round::Begin;
        }
        self.claims.retain(|_, heard| now.since(heard.at) <= CLAIM_FRESH);
        self.might_begin = if self.may_begin(now, me, timing) { self.might_begin + 1 } else { 0 };
        if self.might_begin >= 2 {
            return Round::Begin;
        }
        let answered = self.seeds.iter().any(|seed| self.is_starting(seed, now).is_some());
        self.pause = if answered { timing.join_round } else { (self.pause * 2).min(timing.join_pause_max) };
        self.next_round = now + self.pause;
        Round::Ask(others)
    }

    /// A seed turned out to be this very node.
    pub(crate) fn is_self(&mut self, addr: SocketAddr) {
        for seed in self.seeds.iter_mut().filter(|seed| seed.addr == addr) {
            seed.is_self = true;
        }
    }

    /// A node said that it is starting, too, and what it knows of others.
    pub(crate) fn heard_starting(&mut self, now: Instant, addr: SocketAddr, node: NodeId, claims: &[Claim]) {
        for seed in self.seeds.iter_mut().filter(|seed| seed.addr == addr) {
            if seed.starting.is_none() {
                // It has just come up: no reason to wait out a long pause.
                self.next_round = now;
            }
            seed.starting = Some((node, now));
        }
        for claim in claims.iter().take(CLAIMS_MAX) {
            let age = Duration::from_millis(u64::from(claim.age_millis));
            let at = Instant::from_micros(now.as_micros().saturating_sub(age.as_micros() as u64));
            let newer = self.claims.get(&claim.node).is_none_or(|heard| heard.at < at);
            if newer && age <= CLAIM_FRESH && (self.claims.len() < 4 * CLAIMS_MAX || claim.node == node) {
                let waits_for = claim.waits_for.iter().copied().take(SEEDS_MAX).collect();
                self.claims.insert(claim.node, Heard { waits_for, content: claim.content, at });
            }
        }
    }

    /// This node's claim, and those it heard: first those that others wait for.
    pub(crate) fn claims(&self, now: Instant, me: NodeId, timing: &Timing) -> Vec<Claim> {
        let own = Claim {
            node: me,
            waits_for: self.waits_for(now).into_iter().collect(),
            content: self.is_content(now, timing),
            age_millis: 0,
        };
        let waited_for: BTreeSet<NodeId> =
            self.claims.values().flat_map(|heard| heard.waits_for.iter().copied()).collect();
        let mut others: Vec<(&NodeId, &Heard)> = self.claims.iter().filter(|(id, _)| **id != me).collect();
        others.sort_by_key(|(id, _)| !waited_for.contains(id));
        let others = others.into_iter().map(|(id, heard)| Claim {
            node: *id,
            waits_for: heard.waits_for.iter().copied().collect(),
            content: heard.content,
            age_millis: u16::try_from(now.since(heard.at).as_millis()).unwrap_or(u16::MAX),
        });
        [own].into_iter().chain(others).take(CLAIMS_MAX).collect()
    }

    /// Whether it is time to say that nothing goes on: the seeds, since when, and how many answer.
    pub(crate) fn complaint(&mut self, now: Instant) -> Option<(Vec<SocketAddr>, Duration, usize)> {
        if now < self.next_complaint {
            return None;
        }
        self.next_complaint = now + COMPLAIN_PERIOD;
        let waiting = self.waits_for(now).len();
        let seeds = self.seeds.iter().filter(|seed| !seed.is_self).map(|seed| seed.addr).collect();
        Some((seeds, now.since(self.started), waiting))
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.next_round.min(self.next_complaint)
    }

    fn is_starting(&self, seed: &Seed, now: Instant) -> Option<NodeId> {
        seed.starting.filter(|(_, at)| now.since(*at) <= Duration::from_secs(1)).map(|(id, _)| id)
    }

    fn waits_for(&self, now: Instant) -> BTreeSet<NodeId> {
        self.seeds.iter().filter_map(|seed| self.is_starting(seed, now)).collect()
    }

    fn is_content(&self, now: Instant, timing: &Timing) -> bool {
        let answered = self.seeds.iter().filter(|s| s.is_self || self.is_starting(s, now).is_some()).count();
        let late = now.since(self.started) >= timing.seeds_waited_for;
        answered == self.seeds.len() || (late && answered * 2 > self.seeds.len())
    }

    fn may_begin(&self, now: Instant, me: NodeId, timing: &Timing) -> bool {
        if !self.is_content(now, timing) {
            return false;
        }
        let mut waits: BTreeMap<NodeId, BTreeSet<NodeId>> =
            self.claims.iter().filter(|(_, h)| h.content).map(|(id, h)| (*id, h.waits_for.clone())).collect();
        waits.insert(me, self.waits_for(now));
        let Some(circle) = reached(me, &waits) else { return false };
        let all_wait_for_me =
            circle.iter().all(|&id| id == me || reached(id, &waits).is_some_and(|r| r.contains(&me)));
        circle.len() > 1 && all_wait_for_me && circle.first() == Some(&me)
    }
}

/// Everybody waited for from `from`, itself included; `None` if one of them has no (content) claim.
fn reached(from: NodeId, waits: &BTreeMap<NodeId, BTreeSet<NodeId>>) -> Option<BTreeSet<NodeId>> {
    let mut found = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(id) = next.pop() {
        for &waited in waits.get(&id)? {
            if found.insert(waited) {
                next.push(waited);
            }
        }
    }
    Some(found)
}
