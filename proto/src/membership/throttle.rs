//! Not too often: at most one of each key per period.
//!
//! Belongs here: the table. Stays out: what is held back. Invariants: at most `KEYS_MAX` keys; when
//! they are all recent, nothing new is allowed (a flood of keys is what this is for).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Instant;

const KEYS_MAX: usize = 256;

/// Remembers when each key was last allowed.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    period: Duration,
    last: BTreeMap<K, Instant>,
}

impl<K: Ord + Copy> Throttle<K> {
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, last: BTreeMap::new() }
    }

    /// Whether `key` may pass now; if so, not again for a period.
    pub(crate) fn allows(&mut self, now: Instant, key: K) -> bool {
        if self.last.get(&key).is_some_and(|&last| now.since(last) < self.period) {
            return false;
        }
        if self.last.len() >= KEYS_MAX {
            self.last.retain(|_, last| now.since(*last) < self.period);
        }
        if self.last.len() >= KEYS_MAX && !self.last.contains_key(&key) {
            return false;
        }
        self.last.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_passes_once_a_period_and_a_flood_of_keys_is_held() {
        let mut throttle = Throttle::new(Duration::from_secs(1));
        let start = Instant::ZERO;
        assert!(throttle.allows(start, 1));
        assert!(!throttle.allows(start + Duration::from_millis(999), 1));
        assert!(throttle.allows(start + Duration::from_secs(1), 1));
        let now = start + Duration::from_secs(5);
        assert_eq!((100..1_000).filter(|&key| throttle.allows(now, key)).count(), KEYS_MAX);
        assert!(throttle.allows(now + Duration::from_secs(1), 2_000));
    }
}
