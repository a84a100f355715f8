//! What backends have emitted to a session under idempotency keys.
//!
//! Belongs here: which keys are known, and since when the owner knows them.
//! Stays out: what an emit leads to (`state`, `run`); keys of events to rooms (`room::dedupe`).
//! Units: at most [`KEYS_MAX`] keys of 16 bytes; the oldest go first. Owner and backup hold the same.
//! Invariants: keys go by ops only. How old they are is the owner's knowledge, made anew with each
//! owner; what is older than the window goes with the next emit under a key.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::live::Session;
use crate::time::Instant;
use crate::wire::{EmitKey, Payload, SessionOp};

/// Keys remembered for one session. Not a setting: owner and backup must agree.
pub(super) const KEYS_MAX: usize = 256;

/// The keys, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EmitKeys(VecDeque<EmitKey>);

impl EmitKeys {
    /// Whether `key` is among those after the oldest `forgotten`.
    fn knows(&self, key: EmitKey, forgotten: usize) -> bool {
        self.0.iter().skip(forgotten).any(|known| *known == key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Remembers one more, after the oldest `forgotten` are gone.
    pub(super) fn remember(&mut self, key: EmitKey, forgotten: usize) {
        self.0.drain(..forgotten.min(self.0.len()));
        self.0.push_back(key);
        while self.0.len() > KEYS_MAX {
            self.0.pop_front();
        }
    }
}

/// Since when each of the keys is known here, in their order.
#[derive(Debug, Default)]
pub(super) struct KeyAges(VecDeque<Instant>);

impl KeyAges {
    /// One for each of `keys`: those that came from elsewhere are known since now.
    pub(super) fn follow(&mut self, keys: &EmitKeys, now: Instant) {
        let surplus = self.0.len().saturating_sub(keys.len());
        self.0.drain(..surplus);
        self.0.resize(keys.len(), now);
    }

    /// How many, from the oldest on, are past the window.
    fn expired(&self, now: Instant, window: Duration) -> usize {
        self.0.iter().take_while(|since| now.since(**since) >= window).count()
    }
}

impl Session<'_> {
    /// The client is owed an event of a backend, unless it has had one under this key.
    pub(super) fn emit(&mut self, now: Instant, window: Duration, payload: &Payload, key: Option<EmitKey>) {
        let mut forgotten = 0;
        if let Some(key) = key {
            self.live.key_ages.follow(&self.state.emitted, now);
            forgotten = self.live.key_ages.expired(now, window);
            if self.state.emitted.knows(key, forgotten) {
                return;
            }
            self.live.key_ages.0.drain(..forgotten);
        }
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        let key = key.map(|key| (key, forgotten));
        self.live.key_ages.0.extend(key.map(|_| now));
        let payload = payload.clone();
        self.op(SessionOp::Emit { payload, volatile: false, key, asks: false, after: None });
        self.live.key_ages.follow(&self.state.emitted, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> EmitKey {
        EmitKey::new(None, &n.to_string())
    }

    #[test]
    fn so_many_keys_are_known_and_the_oldest_go_first() {
        let mut keys = EmitKeys::default();
        (0..300).for_each(|n| keys.remember(key(n), 0));
        assert_eq!(keys.len(), KEYS_MAX);
        assert!(!keys.knows(key(43), 0) && keys.knows(key(44), 0));
        keys.remember(key(300), 10);
        assert!(!keys.knows(key(53), 0) && keys.knows(key(54), 0));
        keys.remember(key(301), usize::MAX);
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn keys_that_came_from_elsewhere_are_known_since_now() {
        let (mut keys, mut ages) = (EmitKeys::default(), KeyAges::default());
        let (window, at) = (Duration::from_secs(2), |secs: u64| Instant::from_micros(secs * 1_000_000));
        keys.remember(key(1), 0);
        ages.follow(&keys, at(1));
        keys.remember(key(2), 0);
        ages.follow(&keys, at(2));
        assert_eq!([ages.expired(at(2), window), ages.expired(at(3), window)], [0, 1]);
        // Another copy takes the place of this one.
        let mut others = EmitKeys::default();
        others.remember(key(3), 0);
        ages.follow(&others, at(3));
        assert_eq!([ages.expired(at(3), window), ages.expired(at(4), window)], [0, 1]);
    }
}
