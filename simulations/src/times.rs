//! Durations of one kind, told by their percentiles.
//!
//! Units: seconds when shown; percentiles are of single cases, not interpolated.

use std::fmt;
use std::time::Duration;

/// What was measured so far, and how often it did not end in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    all: Vec<Duration>,
    /// Cases without an end.
    pub(crate) missed: usize,
}

impl Times {
    /// One more case; `None`: it did not end in time.
    pub(crate) fn add(&mut self, time: Option<Duration>) {
        match time {
            Some(time) => self.all.push(time),
            None => self.missed += 1,
        }
    }
}

impl Times {
    /// The percentiles, in seconds; 0 when there is no case.
    pub(crate) fn percentiles<const N: usize>(&self, percents: [usize; N]) -> [f64; N] {
        let mut all = self.all.clone();
        all.sort_unstable();
        percents.map(|percent| {
            let rank = (all.len() * percent).div_ceil(100).max(1) - 1;
            all.get(rank).map_or(0.0, Duration::as_secs_f64)
        })
    }

    /// Cases that ended.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Takes in the cases of another.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.all.extend_from_slice(&other.all);
        self.missed += other.missed;
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = self.percentiles([50, 99, 100]);
        write!(f, "p50 {p50:.3} s  p99 {p99:.3} s  max {max:.3} s  missed {}", self.missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_cases_that_happened() {
        let mut times = Times::default();
        for millis in 1..=100 {
            times.add(Some(Duration::from_millis(millis)));
        }
        times.add(None);
        assert_eq!(times.to_string(), "p50 0.050 s  p99 0.099 s  max 0.100 s  missed 1");
    }
}
