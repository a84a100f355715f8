//! Hash maps whose iteration order is the same in every run.
//!
//! Belongs here: the hasher and the two aliases. Stays out: anything with behaviour.
//! Why: std's default hasher is seeded by the operating system, so two runs of one simulation
//! would differ. With a fixed hasher the same operations give the same order. Keys that an
//! attacker chooses (uids, room names) are hashed under `RoomKey`'s and `Placement`'s 64-bit hash
//! first; tables keyed by them are bounded.

#![allow(clippy::disallowed_types, reason = "the one place that names std's maps")]

use std::hash::BuildHasherDefault;

/// The fixed hasher: XXH3, 64 bits, seed 0.
pub type FixedState = BuildHasherDefault<xxhash_rust::xxh3::Xxh3Default>;

/// A hash map with a fixed hasher.
pub type FixedMap<K, V> = std::collections::HashMap<K, V, FixedState>;

/// A hash set with a fixed hasher.
pub type FixedSet<K> = std::collections::HashSet<K, FixedState>;
