//! What a room has seen already.
//!
//! Belongs here: the highest publish per publisher; idempotency keys.
//! Stays out: the log.
//! Units: kept for `dedupe_window`, at most `dedupe_entries_max` of each; the oldest go first. A publisher
//! is as old as its last publish was when it was last looked at.
//! Invariants: senders repeat in order and name the publish before, so "not above the highest" is
//! exactly "seen".

use std::collections::VecDeque;

use crate::collections::FixedMap;
use crate::id::{Cursor, PublishId, PublishNumber, Publisher};
use crate::limits::Limits;
use crate::mutant::{Mutant, is_planted};
use crate::shard::Budget;
use crate::small::give_back;
use crate::time::Instant;
use crate::wire::DedupeKey;

/// Publishers seen since they were marked that are passed over before the oldest mark goes, whatever it is.
const PASSED_OVER_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Dedupe {
    highest: FixedMap<Publisher, (PublishNumber, Cursor, Instant)>,
    keys: FixedMap<DedupeKey, (Cursor, Instant)>,
    publisher_ages: VecDeque<(Instant, Publisher)>,
    key_ages: VecDeque<(Instant, DedupeKey)>,
}

/// What is to be done with a publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Append it.
    New,
    /// It is in the log, or was: at this position or before it.
    Seen(Cursor),
    /// Its idempotency key was used before, by another publish, which is there.
    SeenKey(Cursor),
    /// The publish before it has not been here: it must come first.
    OutOfOrder,
}

impl Dedupe {
    pub(super) fn judge(&self, id: PublishId, after: Option<(u64, u32)>, key: Option<&DedupeKey>) -> Verdict {
        let (publisher, number) = id.split();
        let highest = self.highest.get(&publisher);
        if let Some((seen, at, _)) = highest
            && number <= *seen
            && !is_planted(Mutant::DedupeSkipped)
        {
            return Verdict::Seen(*at);
        }
        let in_order = is_planted(Mutant::AfterIgnored);
        if !in_order && after.is_some_and(|after| highest.is_none_or(|(seen, ..)| *seen < after)) {
            return Verdict::OutOfOrder;
        }
        match key.and_then(|key| self.keys.get(key)) {
            Some((at, _)) => Verdict::SeenKey(*at),
            None => Verdict::New,
        }
    }

    /// Remembers a publish that was appended, or found by its key, at `at`.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        limits: &Limits,
        id: PublishId,
        key: Option<DedupeKey>,
        at: Cursor,
    ) {
        let (publisher, number) = id.split();
        match self.highest.get_mut(&publisher) {
            Some((known, _, seen)) if *known > number => *seen = now,
            Some(known) => *known = (number, at, now),
            None => {
                self.highest.insert(publisher, (number, at, now));
                self.publisher_ages.push_back((now, publisher));
            }
        }
        while self.publisher_ages.len() > limits.dedupe_entries_max {
            self.forget_oldest_publisher();
        }
        if let Some(key) = key {
            self.remember_key(now, limits, key, at);
        }
    }

    fn remember_key(&mut self, now: Instant, limits: &Limits, key: DedupeKey, at: Cursor) {
        if self.keys.insert(key.clone(), (at, now)).is_none() {
            self.key_ages.push_back((now, key));
        }
        while self.key_ages.len() > limits.dedupe_entries_max {
            self.forget_oldest_key();
        }
    }

    /// Forgets what is older than the window, as far as the budget goes.
    pub(super) fn expire(&mut self, now: Instant, limits: &Limits, budget: &mut Budget) {
        let is_old = |since: Instant| now.since(since) >= limits.dedupe_window;
        while self.oldest().is_some_and(is_old) && budget.spend() {
            self.look_at_oldest();
        }
    }

    /// Since when the first of both tables is remembered.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let publisher = self.publisher_ages.front().map(|(since, _)| *since);
        let key = self.key_ages.front().map(|(since, _)| *since);
        publisher.into_iter().chain(key).min()
    }

    /// Forgets the oldest of both tables.
    pub(super) fn forget_oldest(&mut self) {
        let key = self.key_ages.front().map(|(since, _)| *since);
        match self.publisher_ages.front() {
            Some((since, _)) if key.is_none_or(|key| *since <= key) => self.forget_oldest_publisher(),
            _ => self.forget_oldest_key(),
        }
    }

    /// The oldest of both tables goes, or to the end, if it is a publisher that was seen since.
    fn look_at_oldest(&mut self) {
        let key = self.key_ages.front().map(|(since, _)| *since);
        match self.publisher_ages.front() {
            Some((since, _)) if key.is_none_or(|key| *since <= key) => {
                self.pass_over_or_forget();
            }
            _ => self.forget_oldest_key(),
        }
    }

    /// The highest publish of a publisher that has been here.
    pub(super) fn highest(&self, publisher: Publisher) -> Option<PublishNumber> {
        self.highest.get(&publisher).map(|(number, ..)| *number)
    }

    /// Every publisher with its highest publish and where that is, oldest first.
    pub(super) fn publishers(&self) -> Vec<(Publisher, PublishNumber, Cursor)> {
        let known = self.publisher_ages.iter().filter_map(|(_, publisher)| {
            self.highest.get(publisher).map(|(number, at, _)| (*publisher, *number, *at))
        });
        known.collect()
    }

    /// Every idempotency key with the place of its event, oldest first.
    pub(super) fn keys(&self) -> Vec<(DedupeKey, Cursor)> {
        let known = self.key_ages.iter();
        known.filter_map(|(_, key)| self.keys.get(key).map(|(at, _)| (key.clone(), *at))).collect()
    }

    /// What another copy had seen, as if it were seen now.
    pub(super) fn restore(
        &mut self,
        now: Instant,
        limits: &Limits,
        publishers: Vec<(Publisher, PublishNumber, Cursor)>,
        keys: Vec<(DedupeKey, Cursor)>,
    ) {
        for (publisher, number, at) in publishers {
            self.remember(now, limits, PublishId::join(publisher, number), None, at);
        }
        for (key, at) in keys {
            self.remember_key(now, limits, key, at);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.highest.is_empty() && self.keys.is_empty()
    }

    /// Entries of the larger table.
    pub(super) fn len(&self) -> usize {
        self.highest.len().max(self.keys.len())
    }

    /// Entries of both.
    pub(super) fn entries(&self) -> usize {
        self.highest.len() + self.keys.len()
    }

    /// The first publisher goes, or to the end, if it was seen since. Whether it went.
    fn pass_over_or_forget(&mut self) -> bool {
        let Some((since, publisher)) = self.publisher_ages.pop_front() else { return true };
        match self.highest.get(&publisher) {
            Some((.., seen)) if *seen > since => {
                self.publisher_ages.push_back((*seen, publisher));
                false
            }
            _ => {
                self.highest.remove(&publisher);
                self.give_back();
                true
            }
        }
    }

    fn forget_oldest_publisher(&mut self) {
        let went = (0..PASSED_OVER_MAX).any(|_| self.pass_over_or_forget());
        if !went && let Some((_, publisher)) = self.publisher_ages.pop_front() {
            self.highest.remove(&publisher);
            self.give_back();
        }
    }

    fn forget_oldest_key(&mut self) {
        if let Some((_, key)) = self.key_ages.pop_front() {
            self.keys.remove(&key);
            self.give_back();
        }
    }

    /// Tables that remember nothing hold nothing.
    fn give_back(&mut self) {
        if self.highest.is_empty() && self.highest.capacity() > 0 {
            self.highest = FixedMap::default();
        }
        if self.keys.is_empty() && self.keys.capacity() > 0 {
            self.keys = FixedMap::default();
        }
        give_back(&mut self.publisher_ages);
        give_back(&mut self.key_ages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SocketSid, Term};

    fn publish(number: u64) -> PublishId {
        PublishId::Session { sid: SocketSid([1; 16]), number, index: 0 }
    }

    fn at(seq: u64) -> Cursor {
        Cursor { term: Term::NONE, seq }
    }

    #[test]
    fn repeats_are_seen_and_successors_wait_for_their_turn() {
        let (mut dedupe, limits) = (Dedupe::default(), Limits::default());
        assert_eq!(dedupe.judge(publish(1), None, None), Verdict::New);
        dedupe.remember(Instant::ZERO, &limits, publish(1), None, at(1));
        assert_eq!(dedupe.judge(publish(1), None, None), Verdict::Seen(at(1)));
        assert_eq!(dedupe.judge(publish(3), Some((2, 0)), None), Verdict::OutOfOrder);
        assert_eq!(dedupe.judge(publish(2), Some((1, 0)), None), Verdict::New);
    }

    #[test]
    fn keys_are_seen_whoever_repeats_them_until_they_expire() {
        let (mut dedupe, limits) = (Dedupe::default(), Limits::default());
        let key = DedupeKey { uid: Some("alice".into()), key: "k".into() };
        dedupe.remember(Instant::ZERO, &limits, publish(1), Some(key.clone()), at(1));
        assert_eq!(dedupe.judge(publish(2), None, Some(&key)), Verdict::SeenKey(at(1)));
        dedupe.expire(Instant::ZERO + limits.dedupe_window, &limits, &mut Budget::step());
        assert_eq!(dedupe.judge(publish(2), None, Some(&key)), Verdict::New);
        assert!(dedupe.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut dedupe = Dedupe::default();
        let limits = Limits { dedupe_entries_max: 4, ..Limits::default() };
        for i in 0..20 {
            let id = PublishId::Session { sid: SocketSid([i; 16]), number: 1, index: 0 };
            dedupe.remember(Instant::ZERO, &limits, id, None, at(u64::from(i)));
        }
        assert_eq!(dedupe.len(), 4);
    }

    #[test]
    fn who_publishes_on_is_not_the_oldest() {
        let mut dedupe = Dedupe::default();
        let limits = Limits { dedupe_entries_max: 4, ..Limits::default() };
        let of = |publisher, number| PublishId::Session { sid: SocketSid([publisher; 16]), number, index: 0 };
        for i in 1..20 {
            let now = Instant::from_micros(u64::from(i));
            dedupe.remember(now, &limits, of(0, u64::from(i)), None, at(1));
            dedupe.remember(now, &limits, of(i, 1), None, at(1));
        }
        assert_eq!(dedupe.judge(of(0, 19), None, None), Verdict::Seen(at(1)));
        assert_eq!(dedupe.judge(of(0, 20), Some((19, 0)), None), Verdict::New);
        assert_eq!(dedupe.entries(), 4);
    }

    #[test]
    fn what_is_too_old_goes_as_far_as_the_budget() {
        let (mut dedupe, limits) = (Dedupe::default(), Limits::default());
        for i in 0..10_000_u64 {
            let id = PublishId::Session { sid: SocketSid(u128::from(i).to_be_bytes()), number: 1, index: 0 };
            dedupe.remember(Instant::ZERO, &limits, id, None, at(i));
        }
        let late = Instant::ZERO + limits.dedupe_window;
        let mut left = vec![];
        while !dedupe.is_empty() {
            dedupe.expire(late, &limits, &mut Budget::step());
            left.push(dedupe.len());
        }
        assert_eq!(left, [5_904, 1_808, 0]);
    }
}
