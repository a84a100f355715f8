//! What the last look at this node has found, for whoever asks.
//!
//! Belongs here: the newest snapshot; the problems in it as operators and peers are told them.
//! Stays out: looking (`watcher`), judging (`problems`).
//! Invariants: a peer is told at most [`PROBLEMS_TOLD_MAX`] problems, the most severe ones, and how many
//! there are.

use std::sync::Arc;

use mesh_proto::wire::{PROBLEM_TEXT_BYTES_MAX, PROBLEMS_TOLD_MAX, ProblemTold};
use tokio::sync::watch;
use tokio::time::Instant;

use super::answers::Problem;
use super::problems::Found;

/// What the last look has found.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) problems: Vec<Found>,
    /// The ring has agreed with everybody's once since this node became active, or had its time to.
    pub(super) ring_settled: bool,
    /// Nodes whose ring differs, or is not known yet.
    pub(super) disagreeing: Vec<String>,
}

/// Where the newest snapshot hangs. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Board(watch::Sender<Arc<Snapshot>>);

impl Board {
    /// Before the first look.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn post(&self, snapshot: Snapshot) {
        self.0.send_replace(Arc::new(snapshot));
    }

    pub(super) fn latest(&self) -> Arc<Snapshot> {
        self.0.borrow().clone()
    }

    #[cfg(test)]
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }

    /// Those of the last look, with their age.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let now = Instant::now();
        self.latest().problems.iter().map(|found| aged(found, now)).collect()
    }

    /// How many there are, and the most severe of them, the oldest of those first.
    pub(super) fn told(&self) -> (u32, Vec<ProblemTold>) {
        let (now, latest) = (Instant::now(), self.latest());
        let mut found: Vec<&Found> = latest.problems.iter().collect();
        found.sort_by_key(|found| (found.severity, found.since));
        let told = found.iter().take(PROBLEMS_TOLD_MAX).map(|found| {
            let Problem { what, since_secs, hurts, advice, .. } = aged(found, now);
            ProblemTold { what: cut(what), since_secs, hurts: cut(hurts), advice: cut(advice) }
        });
        (u32::try_from(found.len()).unwrap_or(u32::MAX), told.collect())
    }
}

fn aged(found: &Found, now: Instant) -> Problem {
    Problem { since_secs: now.duration_since(found.since).as_secs(), ..found.problem.clone() }
}

/// At most [`PROBLEM_TEXT_BYTES_MAX`], between characters.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(PROBLEM_TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::problems::Severity;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn peers_are_told_the_most_severe_problems_and_how_many_there_are() {
        let board = Board::new();
        assert_eq!(board.told(), (0, Vec::new()));
        let start = Instant::now();
        let found = |number: u64, severity| Found {
            since: start + Duration::from_secs(number),
            severity,
            problem: Problem { what: format!("{number}{}", "\u{e9}".repeat(300)), ..Problem::default() },
        };
        let mut problems: Vec<Found> = (0..10).map(|number| found(number, Severity::Threatens)).collect();
        problems.push(found(10, Severity::Hurts));
        board.post(Snapshot { problems, ..Snapshot::default() });
        tokio::time::advance(Duration::from_secs(20)).await;
        let (count, told) = board.told();
        assert_eq!((count, told.len()), (11, PROBLEMS_TOLD_MAX));
        assert!(told[0].what.starts_with("10") && told[0].since_secs == 10, "{told:?}");
        assert!(told[1].what.starts_with('0') && told[1].since_secs == 20, "{told:?}");
        assert!(told.iter().all(|told| told.what.len() <= PROBLEM_TEXT_BYTES_MAX));
    }
}
