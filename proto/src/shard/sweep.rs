//! Looking through what nobody asks about: how much at once, how often.
//!
//! Belongs here: the bound of one step. Stays out: what is looked through (`edge`, `room`, `session`).
//! Units: entries touched, not time: one step of one machine is at most [`STEP_MAX`] of them, whatever it holds.
//! Invariants: what is due and did not fit is looked at by the next step, [`AGAIN_AFTER`] later.

use std::time::Duration;

/// Logs, tails and dedupe tables are looked through this often for what is too old.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// The same, where the last step did not get to the end.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Entries that one machine looks at in one step.
pub(super) const STEP_MAX: usize = 4_096;

/// What one step may still look at.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
}

impl Budget {
    pub(crate) fn step() -> Self {
        Self { left: STEP_MAX }
    }

    /// Looks at one more; `false` if the step has looked at as many as it may.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.left > 0;
        self.left -= usize::from(may);
        may
    }

    /// Whether the step has looked at as many as it may.
    pub(crate) fn is_spent(&self) -> bool {
        self.left == 0
    }
}
