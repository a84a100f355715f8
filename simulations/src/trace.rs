//! What happened, as a hash and, when somebody reads it, as a story.
//!
//! Invariant: two runs of one seed have the same hash; whatever may differ must be noted here.

use std::fmt;

use mesh_proto::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    story: bool,
    from: Instant,
}

impl Trace {
    /// An empty trace. With `story`, each event is printed as one line, from `from` on.
    #[must_use]
    pub fn new(story: bool, from: Instant) -> Self {
        Self { hash: 0, events: 0, story, from }
    }

    /// Notes that something happened: `facts` go into the hash, `line` into the story.
    pub fn note<L: fmt::Display>(&mut self, now: Instant, facts: &[u64], line: impl FnOnce() -> L) {
        self.events += 1;
        self.mix(now.as_micros());
        facts.iter().for_each(|fact| self.mix(*fact));
        if self.story && now >= self.from {
            println!("{now} {}", line());
        }
    }

    /// The same, with bytes among the facts.
    pub fn note_bytes<L: fmt::Display>(
        &mut self,
        now: Instant,
        facts: &[u64],
        bytes: &[u8],
        line: impl FnOnce() -> L,
    ) {
        self.mix(xxh3_64(bytes));
        self.note(now, facts, line);
    }

    fn mix(&mut self, fact: u64) {
        self.hash = (self.hash.rotate_left(7) ^ fact).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Equal hashes, equal runs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events noted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}
