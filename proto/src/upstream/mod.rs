//! The upstreams of one proxied product at one node: their health, their loads, and which of them is next.
//!
//! Belongs here: active checks (when, which count), ejection by failed requests, consistent hashing with
//! bounded loads, the least loaded, draining.
//! Stays out: connections and the requests themselves (`node::proxy`); what must be the same at every
//! node (`binding`).
//! How to drive it: [`Upstreams::choose_by_hash`], [`Upstreams::least_loaded`] or [`Upstreams::by_name`] name an
//! upstream, [`Upstreams::began`] before the request goes there, [`Upstreams::ended`] when it is over (and for
//! what stays open [`Upstreams::answered`] when its answer begins).
//! After each of them, and at [`Upstreams::next_deadline`], call [`Upstreams::poll`] until `None`.
//! Units: a load is what this node has open there: requests under way, and WebSockets.
//! Invariants: an upstream is unknown, not down, before its first check; a check ends within its timeout;
//! hashing never brings an upstream above its share of the load (`load_percent`) while that is above
//! `load_floor`; what is open stays counted until it has ended, also at an upstream that is off the list.
//! Source: Karger et al. 1997 (consistent hashing); Mirrokni, Thorup, Zadimoghaddam 2016 (bounded loads).

mod health;
mod interface;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::id::{NodeId, NodeRef, Placement};
use crate::ring::{Ring, RingNode, VNODES_DEFAULT};
use crate::time::Instant;
use health::{Health, Verdict};
pub use interface::*;

/// One upstream.
#[derive(Debug)]
struct Upstream {
    name: Arc<str>,
    /// On the list; else it is kept for what is still open there.
    listed: bool,
    health: Health,
    open: u32,
    drain: Option<Drain>,
    /// When its next check is due; or, with a number, when the one under way has failed.
    check: Checking,
    told: UpstreamState,
    answered: u64,
    failed: u64,
    checks_failed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Checking {
    No,
    Due(Instant),
    UnderWay { number: u64, began: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Drain {
    until: Option<Instant>,
    told: bool,
}

impl Upstream {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            listed: true,
            health: Health::new(),
            open: 0,
            drain: None,
            check: Checking::No,
            told: UpstreamState::Unknown,
            answered: 0,
            failed: 0,
            checks_failed: 0,
        }
    }

    fn state(&self) -> UpstreamState {
        match self.health.verdict {
            Verdict::Down => UpstreamState::Down,
            _ if self.health.is_ejected() => UpstreamState::Ejected,
            _ if self.drain.is_some() => UpstreamState::Draining,
            Verdict::Up => UpstreamState::Up,
            Verdict::Unknown => UpstreamState::Unknown,
        }
    }

    fn takes_new(&self, now: Instant) -> bool {
        self.listed && self.drain.is_none() && self.health.is_fit(now)
    }
}

fn find(upstreams: &mut [Option<Upstream>], ix: UpstreamIx) -> Option<&mut Upstream> {
    upstreams.get_mut(ix.0 as usize)?.as_mut()
}

/// The upstreams of one product at one node.
#[derive(Debug)]
pub struct Upstreams {
    config: UpstreamConfig,
    /// By index. An empty place is taken again: nothing is open there.
    upstreams: Vec<Option<Upstream>>,
    /// All that are listed, whatever their state: who is not fit is passed over.
    ring: Ring,
    /// The upstream of each node of the ring.
    on_ring: Vec<UpstreamIx>,
    checks: u64,
    /// Upstreams whose state may be another than was told.
    changed: BTreeSet<UpstreamIx>,
    random: StdRng,
}

impl Upstreams {
    /// None of them has been asked yet. `seed` spreads checks, and decides between equals.
    #[must_use]
    pub fn new(config: UpstreamConfig, now: Instant, seed: u64) -> Self {
        let mut upstreams = Self {
            config: UpstreamConfig::default(),
            upstreams: Vec::new(),
            ring: Ring::new([], VNODES_DEFAULT),
            on_ring: Vec::new(),
            checks: 0,
            changed: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
        };
        upstreams.set_config(config, now);
        upstreams
    }

    /// Another configuration. Who stays on the list keeps its state.
    pub fn set_config(&mut self, config: UpstreamConfig, now: Instant) {
        let names = config.names.clone();
        self.config = config;
        if self.config.interval.is_zero() {
            for upstream in self.upstreams.iter_mut().flatten() {
                upstream.check = Checking::No;
                upstream.health.unchecked();
            }
            self.changed.extend((0..).map(UpstreamIx).take(self.upstreams.len()));
        }
        self.set_names(&names, now);
    }

    /// Another list. Who stays on it keeps its state; who comes is unknown; who goes gets nothing more.
    pub fn set_names(&mut self, names: &[Arc<str>], now: Instant) {
        let wanted: BTreeSet<Arc<str>> = names.iter().take(UPSTREAMS_MAX).cloned().collect();
        let mut missing = wanted.clone();
        for place in &mut self.upstreams {
            let Some(upstream) = place else { continue };
            upstream.listed = missing.remove(&upstream.name);
            if !upstream.listed {
                upstream.check = Checking::No;
            }
            if !upstream.listed && upstream.open == 0 {
                *place = None;
            }
        }
        for name in missing {
            let upstream = Some(Upstream::new(name));
            match self.upstreams.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = upstream,
                None => self.upstreams.push(upstream),
            }
        }
        let interval = self.config.interval;
        for upstream in self.upstreams.iter_mut().flatten().filter(|upstream| upstream.listed) {
            if matches!(upstream.check, Checking::No) && !interval.is_zero() {
                // Soon, but not all at once, at all nodes.
                let spread = u64::try_from(interval.as_micros() / 4).unwrap_or(u64::MAX);
                let wait = Duration::from_micros(self.random.random_range(0..=spread));
                upstream.check = Checking::Due(now + wait);
            }
        }
        self.config.names = wanted.into_iter().collect();
        self.rebuild_ring();
    }

    fn rebuild_ring(&mut self) {
        let node = |name: &str| NodeRef { id: NodeId::of_name(name), incarnation: 0 };
        let listed: Vec<(NodeRef, UpstreamIx)> = (0..)
            .map(UpstreamIx)
            .zip(&self.upstreams)
            .filter_map(|(ix, place)| place.as_ref().filter(|u| u.listed).map(|u| (node(&u.name), ix)))
            .collect();
        let nodes = listed.iter().map(|(node, _)| RingNode { node: *node, zone: 0, weight: 1 });
        self.ring = Ring::new(nodes, VNODES_DEFAULT);
        let place = |ring_node: &RingNode| listed.iter().find(|(node, _)| *node == ring_node.node);
        self.on_ring = self.ring.nodes().iter().filter_map(place).map(|(_, ix)| *ix).collect();
    }

    fn upstream(&self, ix: UpstreamIx) -> Option<&Upstream> {
        self.upstreams.get(ix.0 as usize)?.as_ref()
    }

    fn upstream_mut(&mut self, ix: UpstreamIx) -> Option<&mut Upstream> {
        find(&mut self.upstreams, ix)
    }

    fn iter(&self) -> impl Iterator<Item = (UpstreamIx, &Upstream)> {
        let places = (0..).map(UpstreamIx).zip(&self.upstreams);
        places.filter_map(|(ix, place)| place.as_ref().map(|upstream| (ix, upstream)))
    }

    /// The upstream for a key with this hash (`Placement::of_user(product, uid)`): the next one clockwise
    /// that is fit and not over its share of the load; another than `but`, if one is named. `None`: none is fit.
    #[must_use]
    pub fn choose_by_hash(
        &self,
        now: Instant,
        hash: Placement,
        but: Option<UpstreamIx>,
    ) -> Option<UpstreamIx> {
        let (mut fit, mut open) = (0_u64, 1_u64);
        for (_, upstream) in self.iter().filter(|(ix, u)| Some(*ix) != but && u.takes_new(now)) {
            fit += 1;
            open += u64::from(upstream.open);
        }
        if fit == 0 {
            return None;
        }
        let share = (open * u64::from(self.config.load_percent.max(100))).div_ceil(fit * 100);
        let share = share.max(u64::from(self.config.load_floor));
        // Each upstream is looked at once for each of its places that is passed. One is under its share, or
        // all together would have more than there is.
        let clockwise = self.ring.clockwise(hash).filter_map(|node| self.on_ring.get(usize::from(node)));
        clockwise.copied().find(|ix| {
            let takes = |u: &Upstream| u.takes_new(now) && u64::from(u.open) < share;
            Some(*ix) != but && self.upstream(*ix).is_some_and(takes)
        })
    }

    /// The upstream with the least open that is fit, but not `but`; of several, any. `None`: none is fit.
    #[must_use]
    pub fn least_loaded(&mut self, now: Instant, but: Option<UpstreamIx>) -> Option<UpstreamIx> {
        let fit = || self.iter().filter(|(ix, u)| Some(*ix) != but && u.takes_new(now));
        let least = fit().map(|(_, upstream)| upstream.open).min()?;
        let equals: Vec<UpstreamIx> =
            fit().filter(|(_, upstream)| upstream.open == least).map(|(ix, _)| ix).collect();
        let which = self.random.random_range(0..equals.len());
        Some(equals[which])
    }

    /// The upstream of that name, and how it is; `None`: it is not on the list.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<(UpstreamIx, UpstreamState)> {
        let (ix, upstream) = self.iter().find(|(_, upstream)| upstream.listed && *upstream.name == *name)?;
        Some((ix, upstream.state()))
    }

    /// Whether what is bound to this upstream may go there: it is on the list and fit. It may be draining.
    #[must_use]
    pub fn takes_bound(&self, now: Instant, ix: UpstreamIx) -> bool {
        self.upstream(ix).is_some_and(|upstream| upstream.listed && upstream.health.is_fit(now))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self, ix: UpstreamIx) -> Option<&Arc<str>> {
        self.upstream(ix).map(|upstream| &upstream.name)
    }

    /// When one will be tried again that is out now: for `Retry-After`, where none is fit.
    #[must_use]
    pub fn fit_again_at(&self, now: Instant) -> Option<Instant> {
        let listed = self.iter().filter(|(_, upstream)| upstream.listed);
        let times = listed.filter_map(|(_, upstream)| match (upstream.health.verdict, upstream.check) {
            (Verdict::Down, Checking::Due(at)) => Some(at),
            (Verdict::Down, _) => Some(now + self.config.interval),
            _ => upstream.health.ejected_until(),
        });
        times.min()
    }

    /// Something is opened at an upstream that has just been named: it counts as load there.
    ///
    /// # Panics
    /// If the upstream is not known: it is off the list, and nothing was open there.
    pub fn began(&mut self, now: Instant, ix: UpstreamIx) -> Ticket {
        let upstream = self.upstream_mut(ix).expect("an upstream that has just been named");
        upstream.open += 1;
        Ticket { ix, tries: upstream.health.began(now), answered: false }
    }

    /// Its answer has begun: the upstream is fit, however long the answer takes. For what may stay open
    /// for long, such as a WebSocket; for the rest [`Upstreams::ended`] is enough.
    pub fn answered(&mut self, now: Instant, ticket: &mut Ticket) {
        if let Some(upstream) = self.upstream_mut(ticket.ix)
            && !ticket.answered
        {
            upstream.answered += 1;
            upstream.health.succeeded(now, std::mem::take(&mut ticket.tries));
            ticket.answered = true;
            self.changed.insert(ticket.ix);
        }
    }

    /// It is over.
    pub fn ended(&mut self, now: Instant, mut ticket: Ticket, outcome: Outcome) {
        if outcome == Outcome::Answered {
            self.answered(now, &mut ticket);
        }
        let Ticket { ix, tries, .. } = ticket;
        let Self { config, upstreams, .. } = self;
        let Some(upstream) = find(upstreams, ix) else { return };
        upstream.open -= 1;
        match outcome {
            Outcome::Answered => {}
            Outcome::ConnectFailed | Outcome::Reset | Outcome::TimedOut => {
                upstream.failed += 1;
                upstream.health.failed(now, tries, config);
            }
            Outcome::ClientGone => upstream.health.said_nothing(tries),
        }
        if !upstream.listed && upstream.open == 0 {
            self.upstreams[ix.0 as usize] = None;
        }
        self.changed.insert(ix);
    }

    /// A check has an answer. One that comes too late counts for nothing.
    pub fn checked(&mut self, now: Instant, check: &Check, ok: bool) {
        let Some(upstream) = self.upstream(check.upstream) else { return };
        if let Checking::UnderWay { number, began } = upstream.check
            && number == check.number
        {
            let in_time = now.since(began) < self.config.timeout;
            self.end_check(now, check.upstream, began, ok && in_time);
        }
    }

    fn end_check(&mut self, now: Instant, ix: UpstreamIx, began: Instant, ok: bool) {
        let Self { config, upstreams, .. } = self;
        let Some(upstream) = find(upstreams, ix) else { return };
        upstream.health.checked(now, ok, config);
        upstream.checks_failed += u64::from(!ok);
        upstream.check = Checking::Due((began + config.interval).max(now));
        self.changed.insert(ix);
    }

    /// Nothing new goes to that upstream until [`Upstreams::resume`]; at `until` what is still open there is
    /// to be closed. Whether there is such an upstream.
    pub fn drain(&mut self, name: &str, until: Option<Instant>) -> bool {
        let Some((ix, _)) = self.by_name(name) else { return false };
        if let Some(upstream) = self.upstream_mut(ix) {
            let same = upstream.drain.filter(|drain| drain.until == until);
            upstream.drain = same.or(Some(Drain { until, told: false }));
        }
        self.changed.insert(ix);
        true
    }

    /// It takes what is new again. Whether there is such an upstream.
    pub fn resume(&mut self, name: &str) -> bool {
        let Some((ix, _)) = self.by_name(name) else { return false };
        if let Some(upstream) = self.upstream_mut(ix) {
            upstream.drain = None;
        }
        self.changed.insert(ix);
        true
    }

    /// The next thing to do at `now`; `None` when there is nothing left.
    pub fn poll(&mut self, now: Instant) -> Option<UpstreamOutput> {
        let all = || (0..).map(UpstreamIx);
        let count = self.upstreams.len();
        for ix in all().take(count) {
            if let Some(Checking::UnderWay { began, .. }) = self.upstream(ix).map(|upstream| upstream.check)
                && began + self.config.timeout <= now
            {
                self.end_check(now, ix, began, false);
            }
        }
        while let Some(ix) = self.changed.pop_first() {
            let Some(upstream) = self.upstream_mut(ix) else { continue };
            let state = upstream.state();
            let before = std::mem::replace(&mut upstream.told, state);
            if before != state {
                let name = upstream.name.clone();
                return Some(UpstreamOutput::Changed { upstream: ix, name, before, now: state });
            }
        }
        all().take(count).find_map(|ix| self.poll_due(now, ix))
    }

    fn poll_due(&mut self, now: Instant, ix: UpstreamIx) -> Option<UpstreamOutput> {
        let number = self.checks + 1;
        let upstream = self.upstream_mut(ix)?;
        if let Some(drain) = &mut upstream.drain
            && !drain.told
            && drain.until.is_some_and(|until| until <= now)
        {
            drain.told = true;
            return Some(UpstreamOutput::DrainOver(ix));
        }
        let Checking::Due(at) = upstream.check else { return None };
        if at > now {
            return None;
        }
        upstream.check = Checking::UnderWay { number, began: now };
        let name = upstream.name.clone();
        self.checks = number;
        Some(UpstreamOutput::Check(Check { upstream: ix, name, number }))
    }

    /// When to call [`Upstreams::poll`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let timeout = self.config.timeout;
        let deadlines = self.iter().flat_map(|(_, upstream)| {
            let check = match upstream.check {
                Checking::No => None,
                Checking::Due(at) => Some(at),
                Checking::UnderWay { began, .. } => Some(began + timeout),
            };
            let drain = upstream.drain.filter(|drain| !drain.told).and_then(|drain| drain.until);
            check.into_iter().chain(drain)
        });
        deadlines.min()
    }

    /// All on the list, by name, and those off it where something is open.
    #[must_use]
    pub fn facts(&self) -> Vec<UpstreamFacts> {
        let mut facts: Vec<UpstreamFacts> = self
            .iter()
            .map(|(_, upstream)| UpstreamFacts {
                name: upstream.name.clone(),
                state: upstream.state(),
                open: upstream.open,
                answered_total: upstream.answered,
                failed_total: upstream.failed,
                failures: upstream.health.failures(),
                checks_failed_total: upstream.checks_failed,
                ejected_until: upstream.health.ejected_until(),
                drains: upstream.drain.is_some() || !upstream.listed,
                drained_at: upstream.drain.and_then(|drain| drain.until),
            })
            .collect();
        facts.sort_by(|a, b| a.name.cmp(&b.name));
        facts
    }

    /// Asserts every invariant this machine promises; for tests.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        let listed: Vec<&Arc<str>> =
            self.iter().filter(|(_, u)| u.listed).map(|(_, upstream)| &upstream.name).collect();
        assert_eq!(listed.len(), self.config.names.len(), "one place for each name");
        assert_eq!(self.on_ring.len(), self.ring.nodes().len(), "one upstream for each node of the ring");
        for (ix, upstream) in self.iter() {
            assert!(upstream.listed || upstream.open > 0, "{ix:?} is kept for nothing");
            assert!(
                upstream.listed || matches!(upstream.check, Checking::No),
                "{ix:?} is checked for nothing"
            );
            upstream.health.check_invariants(&self.config);
        }
    }
}
