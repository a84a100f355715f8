//! When to leave a hook alone that does not answer.
//!
//! Belongs here: a machine of three states, told of attempts and their ends. Stays out: the attempts.
//! Invariants: while it is open nobody asks; when its pause is over one asks, and all others wait for
//! what that one learns; whoever was let ask says how it ended.
//! Source: circuit breaker as in Nygard, Release It!, 2nd ed. (2018), §5.2.

use std::time::Duration;

use mesh_proto::time::Instant;

/// How others are answered while one tries: soon they will know.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All may ask; so many attempts in a row have failed.
    Closed(u32),
    /// Nobody asks until then.
    Open(Instant),
    /// One is trying.
    Trial,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Answered,
    Failed,
    /// Whoever asked has gone, and it is not known.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures in a row that open it.
    after: u32,
    /// How long it stays open.
    pause: Duration,
}

impl Breaker {
    pub(super) fn new(after: u32, pause: Duration) -> Self {
        Self { state: State::Closed(0), after, pause }
    }

    /// Whether to ask now.
    ///
    /// # Errors
    /// When to come back.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed(_) => Ok(()),
            State::Open(until) if now < until => Err(until.since(now)),
            State::Open(_) => {
                self.state = State::Trial;
                Ok(())
            }
            State::Trial => Err(TRIAL_PAUSE),
        }
    }

    /// An attempt that [`Self::begin`] has let happen is over; whether it has opened or closed the breaker.
    pub(super) fn ended(&mut self, now: Instant, ended: Ended) -> bool {
        let before = self.is_open();
        self.state = match (self.state, ended) {
            (_, Ended::Answered) => State::Closed(0),
            (State::Closed(failures), Ended::Failed) if failures + 1 < self.after => {
                State::Closed(failures + 1)
            }
            // One that began before it opened says nothing new.
            (State::Open(until), _) => State::Open(until),
            (_, Ended::Failed) => State::Open(now + self.pause),
            // The next is the trial.
            (State::Trial, Ended::Unknown) => State::Open(now),
            (closed, Ended::Unknown) => closed,
        };
        self.is_open() != before
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Instant {
        Instant::ZERO + seconds * SECOND
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_good_trial_closes_it() {
        let mut breaker = Breaker::new(3, 5 * SECOND);
        for ended in [Ended::Failed, Ended::Failed, Ended::Answered, Ended::Failed, Ended::Failed] {
            assert_eq!(breaker.begin(at(0)), Ok(()));
            assert!(!breaker.ended(at(0), ended));
        }
        assert!(breaker.ended(at(0), Ended::Failed), "the third in a row");
        assert_eq!(breaker.begin(at(2)), Err(3 * SECOND));
        // What began earlier changes nothing.
        assert!(!breaker.ended(at(2), Ended::Failed));
        assert_eq!(breaker.begin(at(4)), Err(SECOND));
        assert_eq!(breaker.begin(at(5)), Ok(()), "the trial");
        assert_eq!(breaker.begin(at(5)), Err(TRIAL_PAUSE), "and nobody beside it");
        assert!(!breaker.ended(at(6), Ended::Failed));
        assert_eq!(breaker.begin(at(7)), Err(4 * SECOND));
        assert_eq!(breaker.begin(at(11)), Ok(()));
        assert!(breaker.ended(at(11), Ended::Answered));
        assert_eq!((breaker.begin(at(11)), breaker.begin(at(11))), (Ok(()), Ok(())));
    }

    #[test]
    fn a_trial_that_nobody_waited_for_leaves_room_for_the_next() {
        let mut breaker = Breaker::new(1, 5 * SECOND);
        assert_eq!(breaker.begin(at(0)), Ok(()));
        assert!(breaker.ended(at(0), Ended::Failed));
        assert_eq!(breaker.begin(at(5)), Ok(()));
        assert!(!breaker.ended(at(6), Ended::Unknown));
        assert_eq!(breaker.begin(at(6)), Ok(()), "another trial at once");
        // Outside of a trial it says nothing.
        assert!(breaker.ended(at(6), Ended::Answered));
        assert!(!breaker.ended(at(6), Ended::Unknown));
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_answer_that_began_before_it_opened_closes_it() {
        let mut breaker = Breaker::new(1, 5 * SECOND);
        breaker.begin(at(0)).unwrap();
        breaker.begin(at(0)).unwrap();
        assert!(breaker.ended(at(1), Ended::Failed));
        assert!(breaker.ended(at(1), Ended::Answered));
        assert_eq!(breaker.begin(at(1)), Ok(()));
    }
}
