//! Answers of a hook, kept for a moment.
//!
//! Belongs here: finding, keeping and forgetting. Stays out: what is worth keeping.
//! Invariants: bounded; nothing older than its time is found; only a hash of what was asked is kept.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mesh_proto::time::Instant;

/// A hash of what was asked.
pub(super) type Asked = [u8; 32];

#[derive(Debug)]
pub(super) struct Cache<T> {
    /// How long; zero: nothing is kept.
    time: Duration,
    entries_max: usize,
    kept: HashMap<Asked, (Instant, T)>,
    /// Oldest first. All are kept equally long, so that this is also the order in which they end.
    order: VecDeque<(Instant, Asked)>,
}

impl<T: Clone> Cache<T> {
    pub(super) fn new(time: Duration, entries_max: usize) -> Self {
        Self { time, entries_max, kept: HashMap::new(), order: VecDeque::new() }
    }

    pub(super) fn find(&self, now: Instant, asked: &Asked) -> Option<T> {
        let (until, answer) = self.kept.get(asked)?;
        (now < *until).then(|| answer.clone())
    }

    /// Keeps an answer; the oldest go where there are too many.
    pub(super) fn keep(&mut self, now: Instant, asked: Asked, answer: T) {
        if self.time.is_zero() {
            return;
        }
        while let Some(&(until, oldest)) = self.order.front() {
            if now < until && self.order.len() < self.entries_max {
                break;
            }
            self.order.pop_front();
            // It may have been asked again since.
            if self.kept.get(&oldest).is_some_and(|(kept, _)| *kept == until) {
                self.kept.remove(&oldest);
            }
        }
        let until = now + self.time;
        self.kept.insert(asked, (until, answer));
        self.order.push_back((until, asked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Instant {
        Instant::ZERO + seconds * SECOND
    }

    #[test]
    fn an_answer_is_found_for_its_time_and_the_oldest_go_first() {
        let mut cache = Cache::new(5 * SECOND, 2);
        cache.keep(at(0), [1; 32], "a");
        cache.keep(at(1), [2; 32], "b");
        assert_eq!((cache.find(at(4), &[1; 32]), cache.find(at(5), &[1; 32])), (Some("a"), None));
        cache.keep(at(2), [1; 32], "c");
        assert_eq!(cache.find(at(6), &[1; 32]), Some("c"), "asked again");
        cache.keep(at(2), [3; 32], "d");
        assert_eq!(cache.find(at(2), &[2; 32]), None, "no more than two");
        assert_eq!((cache.find(at(2), &[1; 32]), cache.find(at(2), &[3; 32])), (Some("c"), Some("d")));
        cache.keep(at(60), [4; 32], "e");
        assert_eq!((cache.kept.len(), cache.order.len()), (1, 1));
        let mut none = Cache::new(Duration::ZERO, 2);
        none.keep(at(0), [1; 32], "a");
        assert_eq!(none.find(at(0), &[1; 32]), None);
    }
}
