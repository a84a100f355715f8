//! Collections of which there are very many, most of them empty or with one thing in them.
//!
//! Belongs here: what such a collection weighs. Stays out: what is in it.
//! Why: a `BTreeMap` with one entry has room for eleven, a `VecDeque` that is empty again for four; of a million
//! rooms and sessions that is most of the memory.
//! Units: empty ones hold no memory; a [`FewMap`] holds what is in it and not more.

use std::collections::VecDeque;

/// A map of a few entries, ordered by their keys; lookups are O(log n), insertions O(n).
#[derive(Clone, Debug)]
pub(crate) struct FewMap<K, V>(Vec<(K, V)>);

impl<K, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> FewMap<K, V> {
    fn place(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key))
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.place(key).ok()?;
        Some(&mut self.0[at].1)
    }

    /// In place of what was there.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.place(&key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (key, value));
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Ok(at) = self.place(key) {
            self.0.remove(at);
            self.0.shrink_to_fit();
        }
    }

    pub(crate) fn retain(&mut self, keeps: impl Fn(&K) -> bool) {
        self.0.retain(|(key, _)| keeps(key));
        self.0.shrink_to_fit();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// In the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The same, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }
}

/// Gives back the memory of a queue that is empty again.
pub(crate) fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > 0 {
        *queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_kept_in_order_and_hold_no_more_than_they_need() {
        let mut few = FewMap::default();
        for key in [3, 1, 2, 3] {
            few.insert(key, key * 10);
        }
        *few.get_mut(&2).unwrap() = 5;
        assert_eq!(few.iter().collect::<Vec<_>>(), [(&1, &10), (&2, &5), (&3, &30)]);
        assert_eq!(few.0.capacity(), 3);
        few.retain(|key| *key != 1);
        few.remove(&3);
        few.remove(&3);
        assert_eq!(few.keys().collect::<Vec<_>>(), [&2]);
        few.remove(&2);
        assert!(few.is_empty() && few.0.capacity() == 0);
    }

    #[test]
    fn an_empty_queue_holds_nothing() {
        let mut queue = VecDeque::from([1]);
        give_back(&mut queue);
        assert_eq!(queue.pop_front(), Some(1));
        give_back(&mut queue);
        assert_eq!(queue.capacity(), 0);
    }
}
