//! A session's own stream: events for it alone, also over transports that come and go (I5, I6).
//!
//! Belongs here: what backends sent to which session, what was carried out, what the client got.
//! Stays out: rooms (`whole`, `kept`).
//! A backend sends the next event to a session when the one before has been answered, so numbers rise in
//! what was carried out.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::time::Instant;

use super::{SessionId, Violation};

/// The account of one run.
#[derive(Debug, Default)]
pub struct Own {
    /// Nothing that was answered may be lost.
    pub(super) full: bool,
    /// To whom each number was sent.
    sent: BTreeMap<u64, SessionId>,
    /// What was answered as carried out.
    safe: BTreeMap<SessionId, BTreeSet<u64>>,
    got: BTreeMap<SessionId, BTreeSet<u64>>,
}

impl Own {
    /// A backend sends `number` to a session.
    pub fn sent(&mut self, number: u64, to: SessionId) {
        self.sent.insert(number, to);
    }

    /// It was answered: carried out at one session.
    pub fn safe(&mut self, number: u64) {
        if let Some(to) = self.sent.get(&number) {
            self.safe.entry(*to).or_default().insert(number);
        }
    }

    /// The client got it.
    pub fn delivered(&mut self, now: Instant, to: SessionId, number: u64, violations: &mut Vec<Violation>) {
        let mut broken = |invariant, what: String| {
            let what = format!("client {}.{} {what}", to.client, to.session);
            violations.push(Violation { invariant, at: now, what });
        };
        if self.sent.get(&number) != Some(&to) {
            broken("I7", format!("got {number}, which was for {:?}", self.sent.get(&number)));
        }
        if !self.got.entry(to).or_default().insert(number) {
            broken("I5", format!("got {number} of its own stream twice"));
        } else if let Some(before) = self.missing(to).filter(|missing| *missing < number) {
            broken("I6", format!("got {number} of its own stream before {before}"));
        }
    }

    /// The first of what was answered that this session has not got.
    #[must_use]
    pub fn missing(&self, session: SessionId) -> Option<u64> {
        let got = self.got.get(&session);
        let safe = self.safe.get(&session).filter(|_| self.full)?;
        safe.iter().find(|number| got.is_none_or(|got| !got.contains(number))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: SessionId = SessionId { client: 1, session: 1 };
    const OTHER: SessionId = SessionId { client: 1, session: 2 };

    fn broken(own: &mut Own, to: SessionId, numbers: &[u64]) -> Vec<&'static str> {
        let mut violations = Vec::new();
        numbers.iter().for_each(|number| own.delivered(Instant::ZERO, to, *number, &mut violations));
        violations.into_iter().map(|violation| violation.invariant).collect()
    }

    fn three_sent(full: bool) -> Own {
        let mut own = Own { full, ..Own::default() };
        for number in 1..4 {
            own.sent(number, ME);
        }
        own.safe(1);
        own.safe(2);
        own
    }

    #[test]
    fn an_own_stream_in_order_breaks_nothing_and_the_rest_is_owed() {
        let mut own = three_sent(true);
        assert!(broken(&mut own, ME, &[1]).is_empty());
        assert_eq!(own.missing(ME), Some(2));
        assert!(broken(&mut own, ME, &[2, 3]).is_empty(), "what nobody answered may come");
        assert_eq!((own.missing(ME), own.missing(OTHER)), (None, None));
    }

    #[test]
    fn a_hole_a_repeat_and_a_stranger_in_an_own_stream_are_seen() {
        assert_eq!(broken(&mut three_sent(true), ME, &[2]), ["I6"]);
        assert_eq!(broken(&mut three_sent(true), ME, &[1, 1]), ["I5"]);
        assert_eq!(broken(&mut three_sent(true), OTHER, &[1]), ["I7"]);
        assert!(broken(&mut three_sent(false), ME, &[2]).is_empty(), "where it may be lost");
    }
}
