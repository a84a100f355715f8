//! How far this node trusts its own judgement of others.
//!
//! Belongs here: the count of signs that it is this node that is slow, and what follows from it: how
//! many times longer it lets its suspicions run.
//! Stays out: the suspicions (`suspicion`), who measures the signs (`machine`, `swim`).
//! Units: points; [`POINTS_PER_STEP`] of them make suspicions last one `suspect_for` longer.
//! Invariants: at most [`STEPS_MAX`] steps, so that a death is noticed in bounded time all the same.
//! Source: Lifeguard (Dadgar, Phillips, Currey 2017) §IV, local health multiplier. Other than there,
//! lateness counts by its length, for that is the sign that cannot be a lost datagram.

use std::time::Duration;

/// Points that make suspicions last one `suspect_for` longer. As many as a node collects at 20 % loss
/// less than once in a hundred suspicions: probes fail and suspicions come then, too.
const POINTS_PER_STEP: u32 = 8;

/// The most steps: five times `suspect_for`, 2.75 s in a LAN.
const STEPS_MAX: u32 = 4;

/// Signs of this node's own slowness, fading as its probes are answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    points: u32,
}

impl Health {
    /// This node did nothing for `late` although something was due. `forgiven` of it make one step.
    pub(crate) fn late(&mut self, late: Duration, forgiven: Duration) {
        let points = late.as_micros() * u128::from(POINTS_PER_STEP) / forgiven.as_micros().max(1);
        self.worse(u32::try_from(points).unwrap_or(u32::MAX));
    }

    /// A probe of a node that was not suspected failed.
    pub(crate) fn probe_failed(&mut self) {
        self.worse(1);
    }

    /// A probe was answered.
    pub(crate) fn probe_answered(&mut self) {
        self.points = self.points.saturating_sub(1);
    }

    /// Others suspect this node, which runs.
    pub(crate) fn suspected(&mut self) {
        self.worse(1);
    }

    /// How many times `suspect_for` a suspicion lasts: 1 in good health.
    pub(crate) fn stretch(self) -> u32 {
        1 + self.points / POINTS_PER_STEP
    }

    fn worse(&mut self, points: u32) {
        self.points = self.points.saturating_add(points).min(POINTS_PER_STEP * STEPS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_stretches_by_its_length_and_answers_take_that_back() {
        let forgiven = Duration::from_millis(200);
        let mut health = Health::default();
        health.late(Duration::from_millis(190), forgiven);
        assert_eq!(health.stretch(), 1);
        health.late(Duration::from_millis(300), forgiven);
        assert_eq!(health.stretch(), 3);
        health.late(Duration::from_secs(100), forgiven);
        assert_eq!(health.stretch(), 5);
        for _ in 0..25 {
            health.probe_answered();
        }
        assert_eq!(health.stretch(), 1);
    }

    #[test]
    fn one_failed_probe_in_a_good_time_means_nothing() {
        let mut health = Health::default();
        for _ in 0..100 {
            health.probe_failed();
            health.suspected();
            health.probe_answered();
            health.probe_answered();
        }
        assert_eq!(health.stretch(), 1);
    }
}
