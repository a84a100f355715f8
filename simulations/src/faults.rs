//! What goes wrong in a run, chosen by its seed.
//!
//! Belongs here: kinds of faults, which of them a seed switches on (swarm testing, Groce et al. 2012:
//! runs without some kinds reach further into the others), when they strike.
//! Stays out: carrying them out (`cluster::trouble`).

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::time::Instant;

use crate::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9: everything of the node is gone.
    Crash,
    /// kill -9 and a start under the same name within 100 ms.
    QuickRestart,
    /// SIGSTOP, SIGCONT after a while.
    Pause,
    /// The nodes fall into two groups that do not hear each other.
    Partition,
    /// One node is heard but hears nothing, or the other way round.
    OneWay,
    /// Two nodes do not hear each other; both see the rest.
    Pair,
    /// One connection between two nodes breaks.
    LinkBreak,
    /// A new node joins, or one that died comes back.
    Join,
    /// A node drains and leaves.
    Drain,
    /// A client stops reading for a while.
    SlowClient,
    /// The network loses, doubles and delays datagrams for a while.
    Weather,
    /// A backend publishes through the HTTP API's entrance.
    Backend,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Crash,
        Self::QuickRestart,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Pair,
        Self::LinkBreak,
        Self::Join,
        Self::Drain,
        Self::SlowClient,
        Self::Weather,
        Self::Backend,
    ];
}

/// Faults to come: each kind with its moments.
#[derive(Clone, Debug)]
pub struct Plan {
    /// When what strikes.
    pub strikes: Vec<(Instant, Kind)>,
}

impl Plan {
    /// The faults of a seed between two moments. About half of the kinds are on.
    #[must_use]
    pub fn draw(random: &mut Random, from: Instant, to: Instant) -> Self {
        let on: Vec<Kind> = Kind::ALL.into_iter().filter(|_| random.per_mille(450)).collect();
        let pace = random.millis(400, 3_000);
        let mut strikes = Vec::new();
        let mut at = from;
        while let Some(kind) = random.pick(&on) {
            at = at + random.between(pace / 4, pace * 2);
            if at >= to {
                break;
            }
            strikes.push((at, kind));
        }
        Self { strikes }
    }
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

    #[test]
    fn seeds_differ_in_the_kinds_they_switch_on() {
        let kinds = |seed| {
            let to = Instant::from_micros(60_000_000);
            let plan = Plan::draw(&mut Random::new(seed), Instant::ZERO, to);
            assert!(plan.strikes.iter().all(|(at, _)| *at < to));
            plan.strikes.iter().map(|(_, kind)| *kind).collect::<std::collections::BTreeSet<_>>()
        };
        let all: Vec<_> = (0..20).map(kinds).collect();
        assert!(all.iter().any(|kinds| kinds != &all[0]));
        let seen: std::collections::BTreeSet<_> = all.into_iter().flatten().collect();
        assert_eq!(seen.len(), Kind::ALL.len());
    }
}
