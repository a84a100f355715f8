//! What goes wrong in a run, chosen by its seed.
//!
//! Belongs here: kinds of faults, which of them a seed switches on (swarm testing, Groce et al. 2012:
//! runs without some kinds reach further into the others), when they strike; what a seed may be held to.
//! Stays out: carrying them out (`cluster::trouble`, `cluster::crashes`).

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::time::Instant;

use crate::random::Random;

/// What may come together, and so what a run is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Regime {
    /// One crash at a time: the next comes when everything has had time to be held twice again. No cuts, no
    /// pause as long as a suspicion. Nothing that was acknowledged may be lost.
    #[default]
    OneAtATime,
    /// Everything, and all of it at once: what cannot be kept must be told.
    AnythingGoes,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9: everything of the node is gone.
    Crash,
    /// kill -9 and a start under the same name within 100 ms.
    QuickRestart,
    /// Two nodes are killed within half a second.
    DoubleCrash,
    /// One node is killed and started a few times in a row, each life shorter than a second.
    Flap,
    /// All nodes are restarted one by one, by kill -9 or by drains.
    RollingRestart,
    /// SIGSTOP, SIGCONT after a while.
    Pause,
    /// The nodes fall into two groups that do not hear each other.
    Partition,
    /// The same before they have ever met.
    EarlyPartition,
    /// One node is heard but hears nothing, or the other way round.
    OneWay,
    /// Two nodes do not hear each other; both see the rest.
    Pair,
    /// One connection between two nodes breaks.
    LinkBreak,
    /// A new node joins, or one that died comes back.
    Join,
    /// All nodes that are not there join at once.
    Joins,
    /// A node drains and leaves.
    Drain,
    /// A node drains; meanwhile it or another is killed.
    DrainCrash,
    /// A client stops reading for a while.
    SlowClient,
    /// The network loses, doubles and delays datagrams for a while.
    Weather,
    /// A backend publishes through the HTTP API's entrance.
    Backend,
    /// The transport of one client that carries its cursors is cut; both ends notice.
    Cut,
    /// The same, but the node does not notice: its half stays open.
    HalfOpen,
    /// The edge of a client that carries its cursors is killed, and with it the owner of its session.
    EdgeAndOwner,
    /// A backend sends an event to one session.
    Emit,
}

impl Kind {
    /// Those that concern single clients that come back: drawn apart from the others.
    pub const OF_SESSIONS: [Self; 4] = [Self::Cut, Self::HalfOpen, Self::EdgeAndOwner, Self::Emit];

    /// Every other kind.
    pub const ALL: [Self; 18] = [
        Self::Crash,
        Self::QuickRestart,
        Self::DoubleCrash,
        Self::Flap,
        Self::RollingRestart,
        Self::Pause,
        Self::Partition,
        Self::EarlyPartition,
        Self::OneWay,
        Self::Pair,
        Self::LinkBreak,
        Self::Join,
        Self::Joins,
        Self::Drain,
        Self::DrainCrash,
        Self::SlowClient,
        Self::Weather,
        Self::Backend,
    ];

    /// Whether it may strike under this regime.
    #[must_use]
    pub fn is_of(self, regime: Regime) -> bool {
        let wild = [
            Self::DoubleCrash,
            Self::Partition,
            Self::EarlyPartition,
            Self::OneWay,
            Self::Pair,
            Self::EdgeAndOwner,
        ];
        regime == Regime::AnythingGoes || !wild.contains(&self)
    }

    /// Whether it strikes again and again; the others once in a run, at their own time.
    fn recurs(self) -> bool {
        !matches!(self, Self::RollingRestart | Self::EarlyPartition)
    }
}

/// Faults to come: each kind with its moments.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What may come together.
    pub regime: Regime,
    /// When what strikes.
    pub strikes: Vec<(Instant, Kind)>,
    /// When faults stop.
    pub ends: Instant,
}

/// A seed of 1,000 restarts all its nodes in so many cases: such runs are long.
const ROLLING_PER_MILLE: u32 = 60;

/// What the restart of one node takes, with the time to fill copies.
const RESTART: Duration = Duration::from_secs(5);

impl Plan {
    /// The faults of a seed between two moments. About half of the kinds are on.
    #[must_use]
    pub fn draw(random: &mut Random, nodes: usize, from: Instant, to: Instant) -> Self {
        let regime = if random.per_mille(600) { Regime::OneAtATime } else { Regime::AnythingGoes };
        let on: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| kind.recurs() && kind.is_of(regime) && random.per_mille(450))
            .collect();
        let (mut strikes, mut ends) = (Vec::new(), to);
        if regime == Regime::AnythingGoes && random.per_mille(100) {
            strikes.push((Instant::ZERO, Kind::EarlyPartition));
        }
        if random.per_mille(ROLLING_PER_MILLE) {
            strikes.push((from, Kind::RollingRestart));
            ends = ends.max(from + RESTART * u32::try_from(nodes).unwrap_or(u32::MAX));
        }
        let pace = random.millis(400, 3_000);
        let mut at = from;
        while let Some(kind) = random.pick(&on) {
            at = at + random.between(pace / 4, pace * 2);
            if at >= ends {
                break;
            }
            strikes.push((at, kind));
        }
        Self { regime, strikes, ends }
    }

    /// What strikes sessions between two moments, beside the plan: nearly all of the kinds are on, so that
    /// clients come back often.
    #[must_use]
    pub fn draw_for_sessions(
        random: &mut Random,
        regime: Regime,
        from: Instant,
        to: Instant,
    ) -> Vec<(Instant, Kind)> {
        let on = Kind::OF_SESSIONS.into_iter().filter(|kind| kind.is_of(regime) && random.per_mille(700));
        let on: Vec<Kind> = on.collect();
        let mut strikes = Vec::new();
        let pace = random.millis(150, 1_500);
        let mut at = from;
        while let Some(kind) = random.pick(&on) {
            at = at + random.between(pace / 4, pace * 2);
            if at >= to {
                break;
            }
            strikes.push((at, kind));
        }
        strikes
    }
}

/// A pause that nobody may take for a death: with the probe that misses it, shorter than a suspicion.
#[must_use]
pub fn short_pause(random: &mut Random) -> Duration {
    random.millis(20, 300)
}

/// How long a fault lasts.
#[must_use]
pub fn span(random: &mut Random) -> Duration {
    // Short ones that nobody should notice, and long ones that everybody must.
    if random.per_mille(400) { random.millis(20, 600) } else { random.millis(600, 8_000) }
}

/// Faults that struck, by kind.
pub type Counts = BTreeMap<Kind, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        let to = Instant::from_micros(60_000_000);
        Plan::draw(&mut Random::new(seed), 3, Instant::ZERO, to)
    }

    #[test]
    fn seeds_differ_in_the_kinds_they_switch_on() {
        let kinds = |seed| {
            let plan = plan(seed);
            assert!(plan.strikes.iter().all(|(at, _)| *at < plan.ends));
            plan.strikes.iter().map(|(_, kind)| *kind).collect::<std::collections::BTreeSet<_>>()
        };
        let all: Vec<_> = (0..100).map(kinds).collect();
        assert!(all.iter().any(|kinds| kinds != &all[0]));
        let seen: std::collections::BTreeSet<_> = all.into_iter().flatten().collect();
        assert_eq!(seen.len(), Kind::ALL.len());
    }

    #[test]
    fn clients_come_back_in_most_seeds_and_two_nodes_at_once_die_only_where_anything_goes() {
        let to = Instant::from_micros(8_000_000);
        let kinds = |seed, regime| {
            let strikes = Plan::draw_for_sessions(&mut Random::new(seed), regime, Instant::ZERO, to);
            strikes.into_iter().map(|(_, kind)| kind).collect::<std::collections::BTreeSet<_>>()
        };
        let (one, any) = (Regime::OneAtATime, Regime::AnythingGoes);
        assert!((0..200).all(|seed| !kinds(seed, one).contains(&Kind::EdgeAndOwner)));
        let all: std::collections::BTreeSet<_> = (0..200).flat_map(|seed| kinds(seed, any)).collect();
        assert_eq!(all.len(), Kind::OF_SESSIONS.len());
        let cut = |seed: &u64| kinds(*seed, one).contains(&Kind::Cut);
        assert!((0..200).filter(cut).count() > 100);
    }

    #[test]
    fn more_than_half_of_the_seeds_are_held_to_the_full_promise() {
        let plans: Vec<Plan> = (0..1_000).map(plan).collect();
        let held = plans.iter().filter(|plan| plan.regime == Regime::OneAtATime);
        assert!((550..650).contains(&held.clone().count()));
        for plan in held {
            assert!(plan.strikes.iter().all(|(_, kind)| kind.is_of(Regime::OneAtATime)), "{plan:?}");
        }
    }
}
