//! Bindings (I3's kind): a key is at one upstream at a time, and what was answered stays until it is released.
//!
//! Belongs here: what was asked of each key, in which order; what answers may not say together.
//! Stays out: who asks what and when (`cluster::bindings`).
//! Each Choose names an upstream of its own, so that an answer tells whose wish it is. Who asks releases an
//! upstream by naming it as unfit or to be forgotten; from the moment of asking it may be gone. A question
//! without an answer may still be carried out, and one that was repeated may be carried out twice: until its
//! answer, what it wishes may come back.

use std::collections::BTreeMap;

use mesh_proto::time::Instant;

use super::Violation;

/// What was wished, with upstreams by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wished {
    /// Where it is.
    Find,
    /// The upstream named after this question, perhaps instead of another.
    Choose(Option<u64>),
    /// To be there no more.
    Forget(u64),
}

/// A question under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    key: usize,
    wished: Wished,
    /// Counted with the answers.
    at: u64,
}

/// What is known of one upstream of one key; moments are counted.
#[derive(Clone, Copy, Debug, Default)]
struct Value {
    /// An answer has named it.
    told: Option<u64>,
    /// The question that chose it was answered: it is not chosen again.
    settled: Option<u64>,
    /// Somebody has asked for its end.
    released: bool,
    /// The key was elsewhere after all that could have chosen it.
    gone: Option<u64>,
}

/// The account of one run.
#[derive(Debug, Default)]
pub struct Bound {
    /// Nothing that was answered may be lost.
    pub(super) full: bool,
    moments: u64,
    asked: BTreeMap<u64, Asked>,
    keys: BTreeMap<usize, BTreeMap<u64, Value>>,
    /// Keys whose bindings end by themselves.
    fleeting: Vec<usize>,
    /// Questions that were answered.
    pub answered: u64,
}

impl Bound {
    /// Bindings of this key end by themselves within the run: no more is known than whose wish an answer is.
    pub fn is_fleeting(&mut self, key: usize) {
        self.fleeting.push(key);
    }

    /// A question leaves for the owner of a key.
    pub fn asks(&mut self, number: u64, key: usize, wished: Wished) {
        self.moments += 1;
        let values = self.keys.entry(key).or_default();
        match wished {
            Wished::Find => {}
            Wished::Choose(instead_of) => {
                values.entry(number).or_default();
                if let Some(unfit) = instead_of {
                    values.entry(unfit).or_default().released = true;
                }
            }
            Wished::Forget(which) => values.entry(which).or_default().released = true,
        }
        self.asked.insert(number, Asked { key, wished, at: self.moments });
    }

    /// The upstream that an answer has named last for this key.
    #[must_use]
    pub fn last_told(&self, key: usize) -> Option<u64> {
        let told = |(number, value): (&u64, &Value)| Some((value.told?, *number));
        self.keys.get(&key)?.iter().filter_map(told).max().map(|(_, number)| number)
    }

    /// There was a moment without a node, or all that was known may have been lost with it.
    pub fn begins_anew(&mut self) {
        for value in self.keys.values_mut().flat_map(BTreeMap::values_mut) {
            (value.told, value.gone) = (None, None);
        }
        self.asked.clear();
    }

    /// From here on nothing may be lost, whatever was before.
    pub fn holds_from_here(&mut self) {
        self.begins_anew();
        self.full = true;
    }

    /// Questions under way.
    #[must_use]
    pub fn unanswered(&self) -> Option<u64> {
        self.asked.keys().next().copied()
    }

    /// A question failed: it may be carried out all the same, now or later.
    pub fn failed(&mut self, number: u64) -> bool {
        self.asked.remove(&number).is_some()
    }

    /// A question was answered: the key is at this upstream, or at none.
    pub fn answers(
        &mut self,
        now: Instant,
        number: u64,
        upstream: Option<u64>,
        violations: &mut Vec<Violation>,
    ) {
        self.moments += 1;
        let Some(asked) = self.asked.remove(&number) else { return };
        self.answered += 1;
        let (at, moment) = (asked.at, self.moments);
        let values = self.keys.entry(asked.key).or_default();
        let mut broken = |invariant, what: String| {
            let what = format!("binding {}, question {number} ({:?}): {what}", asked.key, asked.wished);
            violations.push(Violation { invariant, at: now, what });
        };
        if let Some(upstream) = upstream
            && !values.contains_key(&upstream)
        {
            return broken("I7", format!("u{upstream} was never wished for it"));
        }
        if let Wished::Choose(_) = asked.wished {
            values.entry(number).or_default().settled = Some(moment);
        }
        if !self.full || self.fleeting.contains(&asked.key) {
            return;
        }
        let here = upstream.map(|upstream| values[&upstream]);
        if let (Some(upstream), Some(Value { gone: Some(gone), .. })) = (upstream, here)
            && at >= gone
        {
            broken("I3", format!("u{upstream} is back, though nobody chose it again"));
        }
        for (other, value) in values.iter_mut().filter(|(other, _)| Some(**other) != upstream) {
            let Some(told) = value.told else { continue };
            let is_lost = told <= at && !value.released;
            let are_two = !value.released && here.is_some_and(|here| !here.released);
            if is_lost || are_two {
                broken(
                    "I3",
                    format!("it is at {upstream:?}, and was at u{other}, which nobody has released"),
                );
            }
            if told <= at && value.settled.is_some_and(|settled| settled <= at) {
                value.gone = value.gone.or(Some(moment));
            }
        }
        if let Some(upstream) = upstream {
            let value = values.entry(upstream).or_default();
            value.told = value.told.or(Some(moment));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays questions (number, wish) and answers (number, upstream); the invariants that break.
    fn play(story: &[(u64, Result<Wished, Option<u64>>)]) -> Vec<&'static str> {
        let mut bound = Bound { full: true, ..Bound::default() };
        let mut violations = Vec::new();
        for (number, what) in story {
            match what {
                Ok(wished) => bound.asks(*number, 0, *wished),
                Err(upstream) => bound.answers(Instant::ZERO, *number, *upstream, &mut violations),
            }
        }
        violations.into_iter().map(|violation| violation.invariant).collect()
    }

    const CHOOSE: Result<Wished, Option<u64>> = Ok(Wished::Choose(None));
    const FIND: Result<Wished, Option<u64>> = Ok(Wished::Find);

    fn at(upstream: u64) -> Result<Wished, Option<u64>> {
        Err(Some(upstream))
    }

    #[test]
    fn who_comes_first_decides_and_a_release_lets_the_next_one_in() {
        let both = [(1, CHOOSE), (2, CHOOSE), (2, at(1)), (1, at(1))];
        assert!(play(&both).is_empty());
        let released =
            [(1, CHOOSE), (1, at(1)), (2, Ok(Wished::Choose(Some(1)))), (3, FIND), (2, at(2)), (3, at(1))];
        assert!(play(&released).is_empty(), "a slow answer may be from before");
        let forgotten =
            [(1, CHOOSE), (1, at(1)), (2, Ok(Wished::Forget(1))), (2, Err(None)), (3, CHOOSE), (3, at(3))];
        assert!(play(&forgotten).is_empty());
        let repeated =
            [(1, CHOOSE), (2, FIND), (2, at(1)), (3, Ok(Wished::Forget(1))), (3, Err(None)), (1, at(1))];
        assert!(play(&repeated).is_empty(), "what has no answer may be carried out twice");
    }

    #[test]
    fn two_at_once_a_loss_a_return_and_a_stranger_are_seen() {
        assert_eq!(play(&[(1, CHOOSE), (2, CHOOSE), (2, at(2)), (1, at(1))]), ["I3"]);
        assert_eq!(play(&[(1, CHOOSE), (1, at(1)), (2, FIND), (2, Err(None))]), ["I3"]);
        assert_eq!(play(&[(1, CHOOSE), (1, at(1)), (2, CHOOSE), (2, at(2))]), ["I3"]);
        let back =
            [(1, CHOOSE), (1, at(1)), (2, Ok(Wished::Forget(1))), (2, Err(None)), (3, FIND), (3, at(1))];
        assert_eq!(play(&back), ["I3"]);
        assert_eq!(play(&[(1, FIND), (1, at(9))]), ["I7"]);
    }
}
