//! Entities by their keys, and by slots that stay where they are.
//!
//! Belongs here: finding one, walking through all of them a part at a time while some come and go.
//! Stays out: what they are.
//! Units: a slot is an index; those of the gone are given out again, so that there are never more of them than
//! there were entities at once. An entity is an allocation of its own: tables grow by the size of a pointer.

use slab::Slab;

use crate::collections::FixedMap;

#[derive(Debug)]
pub(super) struct Table<K, V> {
    slots: Slab<(K, Box<V>)>,
    by_key: FixedMap<K, u32>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { slots: Slab::new(), by_key: FixedMap::default() }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Table<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let slot = *self.by_key.get(key)?;
        self.slots.get(slot as usize).map(|(_, value)| &**value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = *self.by_key.get(key)?;
        self.slots.get_mut(slot as usize).map(|(_, value)| &mut **value)
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// In place of what was there.
    pub(super) fn insert(&mut self, key: K, value: V) {
        match self.get_mut(&key) {
            Some(former) => *former = value,
            None => {
                let slot = self.slots.insert((key.clone(), Box::new(value)));
                self.by_key.insert(key, u32::try_from(slot).expect("entities of one shard are far fewer"));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let slot = self.by_key.remove(key)?;
        Some(*self.slots.remove(slot as usize).1)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// In the order of their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().map(|(_, (key, value))| (key, &**value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.slots.iter_mut().map(|(_, (key, value))| (&*key, &mut **value))
    }

    /// How many slots there are, free ones among them: it never falls.
    pub(super) fn slots(&self) -> usize {
        self.slots.capacity()
    }

    /// The key at a slot, if it is taken.
    pub(super) fn key_at(&self, slot: usize) -> Option<&K> {
        self.slots.get(slot).map(|(key, _)| key)
    }
}
