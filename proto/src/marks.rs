//! Logs and tables of many names in the order of the oldest thing each of them keeps.
//!
//! Belongs here: which of them is next to give something up, however many there are.
//! Stays out: what they keep, and how old it is (`room`, `edge`).
//! Units: one mark for a name that keeps anything; O(log names) each time it is moved.
//! Invariants: a mark is not later than the oldest thing its name keeps, but may be earlier: who takes it
//! looks there, and puts it back where it belongs.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::time::Instant;

/// One mark for each name that keeps something.
#[derive(Debug)]
pub(crate) struct Marks<K>(BTreeSet<(Instant, K)>);

/// Where a name is marked, if it is.
#[derive(Debug, Default)]
pub(crate) struct Mark(Option<Instant>);

impl<K> Default for Marks<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Ord + Clone> Marks<K> {
    /// Marks `key`, which keeps something since `oldest`, unless it is marked; `None`: it keeps nothing.
    pub(crate) fn set(&mut self, mark: &mut Mark, key: &K, oldest: Option<Instant>) {
        if mark.0.is_none()
            && let Some(oldest) = oldest
        {
            mark.0 = Some(oldest);
            self.0.insert((oldest, key.clone()));
        }
    }

    /// It keeps nothing any more, or is about to be marked anew.
    pub(crate) fn remove(&mut self, mark: &mut Mark, key: &K) {
        if let Some(since) = mark.0.take() {
            self.0.remove(&(since, key.clone()));
        }
    }

    /// The one that may keep the oldest thing of all.
    pub(crate) fn first(&self) -> Option<(Instant, K)> {
        self.0.first().cloned()
    }

    /// The mark after `last`, or the first. Marks move towards the end only: whoever goes on like this sees every
    /// name that has had a mark all the time.
    pub(crate) fn next_after(&self, last: Option<(Instant, K)>) -> Option<(Instant, K)> {
        match last {
            None => self.first(),
            Some(last) => self.0.range((Bound::Excluded(last), Bound::Unbounded)).next().cloned(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_first_and_each_is_there_once() {
        let at = |micros| Some(Instant::from_micros(micros));
        let (mut marks, mut one, mut two) = (Marks::default(), Mark::default(), Mark::default());
        marks.set(&mut one, &1, at(5));
        marks.set(&mut one, &1, at(9));
        marks.set(&mut two, &2, at(7));
        assert_eq!((marks.first(), marks.len()), (Some((Instant::from_micros(5), 1)), 2));
        marks.remove(&mut one, &1);
        marks.set(&mut one, &1, at(9));
        assert_eq!(marks.first(), Some((Instant::from_micros(7), 2)));
        marks.remove(&mut two, &2);
        marks.set(&mut two, &2, None);
        assert_eq!((marks.first(), marks.len()), (Some((Instant::from_micros(9), 1)), 1));
    }
}
