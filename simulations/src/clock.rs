//! Virtual time: what happens next.
//!
//! Belongs here: the present moment and the events to come, earliest first, in the order they were
//! scheduled where times are equal. Stays out: what events mean.
//! Units: microseconds since the simulation began, as [`Instant`].

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use mesh_proto::time::Instant;

/// The clock and its events.
#[derive(Debug)]
pub struct Clock<E> {
    now: Instant,
    scheduled: u64,
    events: BinaryHeap<Scheduled<E>>,
}

#[derive(Debug)]
struct Scheduled<E> {
    at: Instant,
    number: u64,
    event: E,
}

impl<E> Clock<E> {
    /// At the beginning, with nothing to come.
    #[must_use]
    pub fn new() -> Self {
        Self { now: Instant::ZERO, scheduled: 0, events: BinaryHeap::new() }
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Has `event` happen at `at`, or now if that has passed.
    pub fn at(&mut self, at: Instant, event: E) {
        self.scheduled += 1;
        self.events.push(Scheduled { at: at.max(self.now), number: self.scheduled, event });
    }

    /// Has `event` happen `delay` from now.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// Goes on to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let next = self.events.pop()?;
        self.now = next.at;
        Some(next.event)
    }
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Ord for Scheduled<E> {
    /// Reversed: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Scheduled<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_in_the_order_they_were_scheduled() {
        let mut clock = Clock::new();
        clock.after(Duration::from_millis(2), "late");
        clock.after(Duration::from_millis(1), "first");
        clock.after(Duration::from_millis(1), "second");
        let order: Vec<_> = std::iter::from_fn(|| clock.advance()).collect();
        assert_eq!(order, ["first", "second", "late"]);
        assert_eq!(clock.now(), Instant::from_micros(2_000));
    }
}
