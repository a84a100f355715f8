//! Looking through what nobody asks about: how much at once, how often.
//!
//! Belongs here: the bound of one step, where the next one goes on. Stays out: what is looked through (`edge`,
//! `room`, `session`, `host`).
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

/// One walk through numbered slots, some at a time. A walk that is begun anew goes on where the last one was, so
/// that what lies last gets its turn however often that happens.
#[derive(Debug, Default)]
pub(crate) struct Round {
    at: usize,
    left: usize,
    slots: usize,
}

impl Round {
    /// Everything is to be looked at, whatever has been looked at before. There are so many slots.
    pub(crate) fn begin(&mut self, slots: usize) {
        self.left = slots;
        self.slots = slots;
    }

    /// The next slot. There are so many by now: at least as many as there were.
    pub(crate) fn next(&mut self, slots: usize) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        // New slots lie on the way.
        self.left = self.left + (slots - self.slots) - 1;
        self.slots = slots;
        let at = if self.at < slots { self.at } else { 0 };
        self.at = at + 1;
        Some(at)
    }

    /// Slots left to look at.
    pub(crate) fn left(&self) -> usize {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_sees_every_slot_however_it_begins_and_however_many_come() {
        let mut round = Round::default();
        round.begin(5);
        let seen: Vec<usize> = (0..3).filter_map(|_| round.next(5)).collect();
        assert_eq!(seen, [0, 1, 2]);
        round.begin(5);
        let mut seen: Vec<usize> = (0..3).filter_map(|_| round.next(5)).collect();
        seen.extend(std::iter::from_fn(|| round.next(8)));
        assert_eq!(seen, [3, 4, 0, 1, 2, 3, 4, 5], "what is new is on the way, and not owed");
        assert_eq!((round.next(8), round.left()), (None, 0));
        round.begin(8);
        let mut seen: Vec<usize> = std::iter::from_fn(|| round.next(8)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<_>>());
    }
}
