//! Owning an entity: terms, and what may leave before it is safe (nothing).
//!
//! Belongs here: the term an ownership starts under; the queue every effect passes.
//! Stays out: what sessions and rooms do (`session`, `room`); choosing the owner (`ring`).
//! Invariants: a term is never used twice; an effect leaves only as [`Committed`], and only a
//! [`CommitQueue`] makes those, so that releasing one early does not compile.
//! Source: DESIGN §4 (output commit after Elnozahy et al. 2002 §1.5; terms after Raft §5.1).

use std::collections::VecDeque;

use crate::id::{NodeRef, Term};
use crate::small::give_back;
use crate::wire::COUNTER_END;

/// Hands out terms of one shard.
#[derive(Debug)]
pub struct Terms {
    me: NodeRef,
    highest: u64,
}

impl Terms {
    /// Terms for this life of this node.
    #[must_use]
    pub fn new(me: NodeRef) -> Self {
        Self { me, highest: 0 }
    }

    /// A term above `seen` and above every term this shard has begun: an entity dropped and begun
    /// again is another ownership.
    pub fn begin(&mut self, seen: Term) -> Term {
        self.highest = self.highest.max(seen.number) + 1;
        Term { number: self.highest, owner: self.me }
    }

    /// Another owner's term: what begins here from now on is above it.
    pub fn heard(&mut self, term: Term) {
        if term.number < COUNTER_END {
            self.highest = self.highest.max(term.number);
        }
    }
}

/// An effect that a single crash cannot undo: its op is held by the backup, or there is no other node
/// to hold it.
#[derive(Debug, PartialEq, Eq)]
pub struct Committed<E>(E);

impl<E> Committed<E> {
    /// The effect, for carrying out.
    pub fn into_inner(self) -> E {
        self.0
    }
}

/// Effects waiting for their ops to be safe, in order.
#[derive(Debug)]
pub struct CommitQueue<E> {
    /// Number of the last op that has effects here.
    applied: u64,
    /// Number of the last op that is safe.
    confirmed: u64,
    waiting: VecDeque<(u64, E)>,
}

impl<E> Default for CommitQueue<E> {
    fn default() -> Self {
        Self { applied: 0, confirmed: 0, waiting: VecDeque::new() }
    }
}

impl<E> CommitQueue<E> {
    /// Adds an effect of op number `op`, or of something after it that changed nothing.
    pub fn push(&mut self, op: u64, effect: E) {
        debug_assert!(self.applied <= op, "effects in the order of ops");
        self.applied = op;
        self.waiting.push_back((op, effect));
    }

    /// Every op up to `op` is safe.
    pub fn confirm(&mut self, op: u64) {
        self.confirmed = self.confirmed.max(op.min(self.applied));
    }

    /// The next effect that may leave.
    pub fn release(&mut self) -> Option<Committed<E>> {
        let (op, _) = self.waiting.front()?;
        if *op > self.confirmed {
            return None;
        }
        let released = self.waiting.pop_front().map(|(_, effect)| Committed(effect));
        give_back(&mut self.waiting);
        released
    }

    /// Takes out what is not safe, to be undone.
    pub fn drain(&mut self, mut undo: impl FnMut(E)) {
        self.waiting.drain(..).for_each(|(_, effect)| undo(effect));
    }

    /// Effects waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    #[test]
    fn effects_leave_in_order_and_not_before_their_op_is_safe() {
        let mut queue = CommitQueue::default();
        queue.push(1, "a");
        queue.push(1, "b");
        queue.push(2, "c");
        assert_eq!(queue.release(), None);
        queue.confirm(1);
        assert_eq!(queue.release(), Some(Committed("a")));
        assert_eq!(queue.release(), Some(Committed("b")));
        assert_eq!(queue.release(), None);
        queue.confirm(99);
        assert_eq!(queue.release(), Some(Committed("c")));
        queue.push(3, "d");
        assert_eq!(queue.release(), None, "a confirm of the future confirms nothing");
    }

    #[test]
    fn a_term_is_above_all_it_follows() {
        let me = NodeRef { id: NodeId(1), incarnation: 1 };
        let mut terms = Terms::new(me);
        let first = terms.begin(Term::NONE);
        let other = Term { number: 7, owner: NodeRef { id: NodeId(9), incarnation: 1 } };
        let second = terms.begin(other);
        assert!(first < other && other < second);
        assert!(terms.begin(Term::NONE) > second);
    }
}
