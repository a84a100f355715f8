//! What of a binding survives its owner: the last decision, and since when it has not been used.
//!
//! Belongs here: ops, the same at owner and backup; which of two decisions stands.
//! Stays out: who decides, what is answered (`Bindings`), who owns it (`host`).
//! Units: times of this node's clock. A copy that arrives counts as used at that moment, for no two nodes
//! have one clock: a binding may end later than it should, never while it is in use.
//! Invariants: a decision is never replaced by one with a lower place; no place is used twice, for a term
//! has one owner, which numbers its decisions.

use std::sync::Arc;
use std::time::Duration;

use super::{BindInput, BindingKey, BindingLive};
use crate::host::{Entity, MessageOf};
use crate::id::{Cursor, Placement, Term};
use crate::time::Instant;
use crate::wire::{BindingOp, Body, Decision};

/// The replicated part of a binding.
#[derive(Debug)]
pub(crate) struct Binding {
    decision: Decision,
    used: Instant,
}

impl Binding {
    /// Nothing has been decided.
    pub(super) fn undecided(now: Instant) -> Self {
        let decision = Decision { at: Cursor::NONE, upstream: None, keep: Duration::ZERO };
        Self { decision, used: now }
    }

    pub(super) fn at(&self) -> Cursor {
        self.decision.at
    }

    /// To what it is bound at `now`, if it is.
    pub(super) fn upstream(&self, now: Instant) -> Option<&Arc<str>> {
        self.decision.upstream.as_ref().filter(|_| now < self.ends_at())
    }

    /// When it ends, unless it is used.
    pub(super) fn ends_at(&self) -> Instant {
        self.used + self.decision.keep
    }

    /// Whether it stays until it is lifted.
    pub(super) fn stays(&self) -> bool {
        self.decision.keep == Duration::MAX
    }

    /// What follows the last decision, under the term of its owner.
    pub(super) fn decide(&self, term: Term, upstream: Option<Arc<str>>, keep: Duration) -> BindingOp {
        let at = Cursor { term, seq: self.decision.at.seq + 1 };
        BindingOp::Decide(Decision { at, upstream, keep })
    }

    /// The op that says that it is in use, if it is worth one: it moves the end by more than a quarter.
    pub(super) fn touch(&self, now: Instant, keep: Duration) -> Option<BindingOp> {
        let gain = (now + keep).since(self.ends_at());
        (gain > keep / 4).then_some(BindingOp::Touch(keep))
    }
}

impl Entity for Binding {
    type Key = BindingKey;
    type Op = BindingOp;
    type Copy = Decision;
    type Live = BindingLive;
    type Input = BindInput;
    type Shared = ();

    fn placement((): &(), key: &BindingKey) -> Placement {
        key.placement()
    }

    fn is_durable(&self, (): &(), _: &BindingKey) -> bool {
        true
    }

    /// Nobody begins one without having something to bind it to.
    fn new((): &mut (), _: &BindingKey, _: Instant, _: Term) -> Option<Self> {
        None
    }

    fn apply(&mut self, (): &mut (), _: &BindingKey, now: Instant, op: &BindingOp) {
        match op {
            BindingOp::Decide(decision) => self.decision = decision.clone(),
            BindingOp::Touch(keep) => self.decision.keep = *keep,
        }
        self.used = now;
    }

    fn to_copy(&self) -> Decision {
        self.decision.clone()
    }

    fn from_copy((): &mut (), _: &BindingKey, now: Instant, decision: Decision) -> Self {
        Self { decision, used: now }
    }

    fn released(self, (): &mut (), _: &BindingKey) {}

    fn last(&self) -> Cursor {
        self.decision.at
    }

    fn last_of(copy: &Decision) -> Cursor {
        copy.at
    }

    fn covers(&self, last: Cursor) -> bool {
        self.decision.at >= last
    }

    fn missing(&self, _: Term, other: &Decision) -> (Vec<BindingOp>, bool) {
        let stands = self.decision.at >= other.at;
        (if stands { Vec::new() } else { vec![BindingOp::Decide(other.clone())] }, false)
    }

    fn is_more_than(&self, copy: &Decision) -> bool {
        self.decision.at > copy.at
    }

    fn copy_bytes(&self) -> usize {
        64 + self.decision.upstream.as_ref().map_or(0, |upstream| upstream.len())
    }

    fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&crate::wire::encode(&self.decision))
    }

    fn body(message: MessageOf<Self>) -> Body {
        Body::Bindings(message)
    }
}
