//! How fast the membership notices, and what it costs.
//!
//! Belongs here: every duration and count of the failure detector, the spreading of news, the join.
//! Stays out: bounds of tables (beside each table).
//! Units: in the types. Invariants: [`Timing::check`].
//! Source: SWIM (Das et al. 2002) §4; the figures were found by simulation (`churn`,
//! docs/benchmarks.md).

use std::time::Duration;

/// The clockwork of one node's membership. All nodes of a cluster should run the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A random peer is probed this often. Time to notice a death is this long on average (somebody
    /// happens to probe it), plus this again (its answer is waited for), plus the suspicion.
    /// Lower: faster, more datagrams (each probe is two). What it mends is the tail: one death in a
    /// hundred is not probed by anybody for 4.6 periods (the chances are independent, e to the -4.6),
    /// in a LAN 0.41 s.
    pub probe_period: Duration,
    /// No answer within this time: other nodes are asked to try. Above the round trip's p99, and
    /// under half of `probe_period`, so that their answers still count.
    pub probe_rtt: Duration,
    /// How many others are asked to try. More: fewer suspicions when datagrams are lost.
    pub helpers: usize,
    /// A suspect that has not spoken up for this long is down. Longer than any pause of a healthy
    /// process; it is the larger part of the time to notice a death, which changes by just as much
    /// as this does. 550 ms in a LAN: eleven gossip periods for a refutation to come through, enough
    /// for no false down at 20 % loss.
    pub suspect_for: Duration,
    /// While there is news it is sent this often,
    pub gossip_period: Duration,
    /// to so many random peers.
    pub gossip_fanout: usize,
    /// Each node passes a piece of news on this many times. ln N + 14 reaches everybody at 5 % loss;
    /// foca's own rule of thumb does not. Idle cost: none.
    pub transmissions: u8,
    /// A down node is remembered for this long, so that late rumours do not bring it back.
    pub down_kept_for: Duration,
    /// Two nodes that are down to each other are told so this often: heals partitions.
    pub announce_to_down_period: Duration,
    /// Seeds that are not known as nodes are asked this often: two clusters find each other. A node
    /// that knows none of its seeds as one asks after `ask_again_after` each time.
    pub seed_period: Duration,
    /// A question of a join or an exchange is repeated after this time without an answer.
    pub ask_again_after: Duration,
    /// While no seed answers, the pause between attempts doubles up to this.
    pub join_pause_max: Duration,
    /// While seeds answer that they are starting themselves, they are asked again after this.
    pub join_round: Duration,
    /// So long all seeds are waited for before the majority of them begins a cluster without the
    /// rest.
    pub seeds_waited_for: Duration,
    /// A live holder of this node's name has this long to go.
    pub name_waited_for: Duration,
    /// A timer that comes later than this is this node's own fault, not its peers'.
    pub lateness_forgiven: Duration,
    /// Views in a row (nodes coming in, records arriving) are this far apart. A node that goes is
    /// shown at once.
    pub view_spacing: Duration,
    /// Two rings that differ for this long although nothing changes: full exchange.
    pub disagreement_borne: Duration,
}

impl Timing {
    /// One site: round trips of a few milliseconds. A death is noticed by all in 0.8 s (median).
    #[must_use]
    pub const fn lan() -> Self {
        Self {
            probe_period: Duration::from_millis(90),
            probe_rtt: Duration::from_millis(35),
            helpers: 5,
            suspect_for: Duration::from_millis(550),
            gossip_period: Duration::from_millis(50),
            gossip_fanout: 4,
            transmissions: 20,
            down_kept_for: Duration::from_secs(24 * 3600),
            announce_to_down_period: Duration::from_secs(1),
            seed_period: Duration::from_secs(5),
            ask_again_after: Duration::from_millis(100),
            join_pause_max: Duration::from_secs(2),
            join_round: Duration::from_millis(200),
            seeds_waited_for: Duration::from_secs(5),
            name_waited_for: Duration::from_secs(3),
            lateness_forgiven: Duration::from_millis(200),
            view_spacing: Duration::from_millis(50),
            disagreement_borne: Duration::from_millis(500),
        }
    }

    /// Across regions: round trips up to about 100 ms. A death is noticed in about 2 s.
    #[must_use]
    pub const fn wan() -> Self {
        Self {
            probe_period: Duration::from_millis(300),
            probe_rtt: Duration::from_millis(120),
            suspect_for: Duration::from_millis(1_200),
            gossip_period: Duration::from_millis(100),
            ask_again_after: Duration::from_millis(300),
            join_round: Duration::from_millis(400),
            lateness_forgiven: Duration::from_millis(300),
            disagreement_borne: Duration::from_secs(1),
            ..Self::lan()
        }
    }

    /// The rules between the fields; the text says which one is broken.
    ///
    /// # Errors
    /// A sentence naming the fields.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.probe_rtt.is_zero() || self.gossip_period.is_zero() {
            Err("probe_rtt and gossip_period must not be zero")
        } else if self.probe_rtt * 2 > self.probe_period {
            Err("probe_period must be at least twice probe_rtt")
        } else if self.suspect_for < self.probe_period * 2 {
            Err("suspect_for must be at least twice probe_period")
        } else if self.helpers == 0 || self.gossip_fanout == 0 || self.transmissions == 0 {
            Err("helpers, gossip_fanout and transmissions must not be zero")
        } else {
            Ok(())
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::lan()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_keep_the_rules_between_fields() {
        assert_eq!(Timing::lan().check(), Ok(()));
        assert_eq!(Timing::wan().check(), Ok(()));
        let hasty = Timing { probe_rtt: Duration::from_millis(80), ..Timing::lan() };
        assert!(hasty.check().is_err());
    }
}
