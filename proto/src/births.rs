//! Which entries of a room have been somewhere, whatever histories they came through.
//!
//! Belongs here: a version vector (Parker et al. 1983) over the terms of a room. An entry is born where it is
//! appended first, at (term, number); a merge appends it again, at another place, and its birth goes with it.
//! Stays out: what follows from it for a log (`room`) and for members (`edge`).
//! Units: at most [`TERMS_MAX`] terms, some 40 bytes each.
//! Invariants: entries born under one term come into any log in the order of their births, so the last of
//! them stands for all before it; of a term that was forgotten it is said that nothing is known.

use serde::{Deserialize, Serialize};

use crate::id::{Cursor, Term};

/// Terms that are told apart. A room gets a new one when its owner changes; the lowest is forgotten first.
const TERMS_MAX: usize = 64;

/// For each term the last entry born under it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Births {
    /// Of this term and lower ones nothing is known unless they are among `last`.
    forgotten: Term,
    /// Ascending by term.
    last: Vec<(Term, u64)>,
}

/// Whether an entry is among [`Births`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    Yes,
    No,
    /// It was born under a term that has been forgotten.
    Unknown,
}

impl Births {
    pub(crate) fn has(&self, born: Cursor) -> Has {
        match self.upto(born.term) {
            Some(upto) if born.seq <= upto => Has::Yes,
            None if born.term <= self.forgotten => Has::Unknown,
            _ => Has::No,
        }
    }

    fn upto(&self, term: Term) -> Option<u64> {
        self.place(term).ok().map(|place| self.last[place].1)
    }

    fn place(&self, term: Term) -> Result<usize, usize> {
        match self.last.last() {
            // Nearly always.
            Some((last, _)) if *last == term => Ok(self.last.len() - 1),
            _ => self.last.binary_search_by_key(&term, |(term, _)| *term),
        }
    }

    /// This one and all that were born under its term before it.
    pub(crate) fn add(&mut self, born: Cursor) {
        match self.place(born.term) {
            Ok(place) => self.last[place].1 = self.last[place].1.max(born.seq),
            Err(_) if born.term <= self.forgotten => {}
            Err(place) => {
                self.last.insert(place, (born.term, born.seq));
                if self.last.len() > TERMS_MAX {
                    let lowest = self.last.remove(0).0;
                    self.forgotten = self.forgotten.max(lowest);
                }
            }
        }
    }

    /// Not this one, nor those that were born under its term after it.
    pub(crate) fn cut(&mut self, born: Cursor) {
        if let Ok(place) = self.place(born.term) {
            self.last[place].1 = self.last[place].1.min(born.seq.saturating_sub(1));
        }
    }

    /// All of these as well.
    pub(crate) fn join(&mut self, other: &Self) {
        self.forget_upto(other.forgotten);
        other.each().for_each(|born| self.add(born));
    }

    fn forget_upto(&mut self, term: Term) {
        // What is known for sure stays so.
        self.forgotten = self.forgotten.max(term);
    }

    /// The last of each term.
    pub(crate) fn each(&self) -> impl Iterator<Item = Cursor> + '_ {
        self.last.iter().map(|&(term, seq)| Cursor { term, seq })
    }

    /// Whether none of these is surely missing here.
    pub(crate) fn has_all(&self, other: &Self) -> bool {
        other.each().all(|born| self.has(born) != Has::No)
    }

    /// Whether it has forgotten terms that `other` has not.
    pub(crate) fn has_forgotten_more(&self, other: &Self) -> bool {
        self.forgotten > other.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeId, NodeRef};

    fn born(term: u64, seq: u64) -> Cursor {
        let owner = NodeRef { id: NodeId(term), incarnation: 1 };
        Cursor { term: Term { number: term, owner }, seq }
    }

    fn births(of: &[(u64, u64)]) -> Births {
        let mut births = Births::default();
        of.iter().for_each(|(term, seq)| births.add(born(*term, *seq)));
        births
    }

    #[test]
    fn the_last_of_a_term_stands_for_those_before_it() {
        let births = births(&[(3, 7), (1, 4), (3, 5)]);
        assert_eq!(births.has(born(3, 7)), Has::Yes);
        assert_eq!(births.has(born(3, 8)), Has::No);
        assert_eq!(births.has(born(1, 4)), Has::Yes);
        assert_eq!(births.has(born(2, 1)), Has::No);
    }

    #[test]
    fn two_are_joined_and_what_comes_later_is_cut_off() {
        let mut one = births(&[(1, 4), (2, 9)]);
        let other = births(&[(1, 6), (3, 2)]);
        assert!(!one.has_all(&other));
        one.join(&other);
        assert!(one.has_all(&other) && one.has_all(&births(&[(2, 9)])));
        one.cut(born(2, 8));
        assert_eq!((one.has(born(2, 7)), one.has(born(2, 8))), (Has::Yes, Has::No));
        one.cut(born(4, 1));
        assert_eq!(one.has(born(1, 6)), Has::Yes);
    }

    #[test]
    fn of_forgotten_terms_nothing_is_known() {
        let many = |terms: std::ops::Range<u64>| births(&terms.map(|term| (term, 5)).collect::<Vec<_>>());
        let mut births = many(10..10 + TERMS_MAX as u64);
        assert_eq!(births.has(born(10, 5)), Has::Yes);
        births.add(born(1_000, 1));
        assert_eq!(births.has(born(10, 5)), Has::Unknown);
        assert_eq!(births.has(born(3, 1)), Has::Unknown);
        assert_eq!(births.has(born(11, 6)), Has::No);
        births.add(born(3, 1));
        assert_eq!(births.has(born(3, 1)), Has::Unknown, "forgotten stays forgotten");
        assert!(births.has_forgotten_more(&many(1..2)) && births.has_all(&many(1..2)));
        let mut few = many(1..2);
        few.join(&births);
        assert_eq!((few.has(born(1, 5)), few.has(born(1_000, 1))), (Has::Unknown, Has::Yes));
        assert!(few.has_forgotten_more(&many(1..2)) && !few.has_forgotten_more(&births));
        assert!(few.last.len() <= TERMS_MAX);
    }
}
