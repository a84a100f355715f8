//! What a round has shown, for people and for scripts.
//!
//! Belongs here: the figures of one round, their sum, which of them are promises. Stays out: how they
//! come about (`checker`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::times::Times;

/// The figures of a round, or of a whole run.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// Clients on one transport all the time, by a node that lived; in a rolling restart, of each step.
    pub(super) undisturbed: u64,
    /// Their longest times without a delivery.
    pub(super) pause: Times,
    /// The slowest delivery of each, of messages whose publisher's edge lived too.
    pub(super) slowest: Times,
    /// Lost transports of clients whose edge lived.
    pub(super) disconnected: u64,
    /// Messages acknowledged and not delivered to a member that is owed them, each time.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Events after a later one of their publisher, or in another order than another member's.
    pub(super) reordered: u64,
    /// Events of another room.
    pub(super) foreign: u64,
    /// Messages without an answer although their transport stands.
    pub(super) unanswered: u64,
    /// Clients that did not come back in time.
    pub(super) not_back: u64,
    /// Lost transports of clients whose edge was killed, stopped or drained.
    pub(super) edge_lost: u64,
    /// Clients of a stopped node that kept their transport.
    pub(super) still_attached: u64,
    /// Times from a lost transport to the next CONNECT.
    pub(super) back: Times,
    /// CONNECTs that said `recovered`.
    pub(super) recovered: u64,
    /// CONNECTs of clients that came back, with recovery in their protocol, without it.
    pub(super) not_recovered: u64,
    /// Why, in the servers' words, and how often.
    pub(super) reasons: BTreeMap<String, u64>,
    /// CONNECTs in a protocol without recovery.
    pub(super) new_sessions: u64,
    /// Transports left as they were by their clients.
    pub(super) left: u64,
    /// Those of them that no server has closed.
    pub(super) left_open: u64,
    /// Messages acknowledged and not delivered to a member whose room was told a gap, in a cut.
    pub(super) gaps: u64,
    /// Publishers without an answer while their side stood alone.
    pub(super) not_served: u64,
    /// From a kill to one ring of all others.
    pub(super) noticed: Times,
    /// From a cut to a ring of each side.
    pub(super) split: Times,
    /// From the mending of a cut to one ring.
    pub(super) one_ring: Times,
    /// From the mending of a cut to one owner each.
    pub(super) one_owner: Times,
    /// Of these, how many took too long; and rings that changed although every node could be reached.
    pub(super) wrong_ring: u64,
    pub(super) published: u64,
    pub(super) acked: u64,
    /// Answered with an error.
    pub(super) refused: u64,
    /// Lost their transport before an answer, and were not repeated.
    pub(super) unknown: u64,
    pub(super) delivered: u64,
    /// Some broken promises in words.
    pub(super) sentences: Vec<String>,
}

impl Round {
    /// What is promised to be zero: name and count.
    fn promises(&self) -> [(&'static str, u64); 11] {
        [
            ("disconnected", self.disconnected),
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("out of order", self.reordered),
            ("foreign", self.foreign),
            ("unanswered", self.unanswered),
            ("not back", self.not_back),
            ("not recovered", self.not_recovered),
            ("left open", self.left_open),
            ("not served", self.not_served),
            ("wrong ring", self.wrong_ring),
        ]
    }

    /// The broken promises, in a few words; empty if there is none.
    pub(super) fn broken(&self) -> String {
        let broken = self.promises().into_iter().filter(|(_, count)| *count > 0);
        broken.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }

    /// Why clients were not recovered.
    fn why(&self) -> String {
        if self.reasons.is_empty() {
            return String::new();
        }
        let reasons = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
        format!(" ({})", reasons.collect::<Vec<_>>().join(", "))
    }

    /// Adds the figures of another round.
    pub(super) fn add(&mut self, round: &Self) {
        self.pause.extend(&round.pause);
        self.slowest.extend(&round.slowest);
        self.back.extend(&round.back);
        self.noticed.extend(&round.noticed);
        self.split.extend(&round.split);
        self.one_ring.extend(&round.one_ring);
        self.one_owner.extend(&round.one_owner);
        for (reason, count) in &round.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        for (sum, more) in [
            (&mut self.undisturbed, round.undisturbed),
            (&mut self.disconnected, round.disconnected),
            (&mut self.lost, round.lost),
            (&mut self.doubled, round.doubled),
            (&mut self.reordered, round.reordered),
            (&mut self.foreign, round.foreign),
            (&mut self.unanswered, round.unanswered),
            (&mut self.not_back, round.not_back),
            (&mut self.edge_lost, round.edge_lost),
            (&mut self.still_attached, round.still_attached),
            (&mut self.recovered, round.recovered),
            (&mut self.not_recovered, round.not_recovered),
            (&mut self.new_sessions, round.new_sessions),
            (&mut self.left, round.left),
            (&mut self.left_open, round.left_open),
            (&mut self.gaps, round.gaps),
            (&mut self.not_served, round.not_served),
            (&mut self.wrong_ring, round.wrong_ring),
            (&mut self.published, round.published),
            (&mut self.acked, round.acked),
            (&mut self.refused, round.refused),
            (&mut self.unknown, round.unknown),
            (&mut self.delivered, round.delivered),
        ] {
            *sum += more;
        }
    }

    /// Prints what it shows, under `title`.
    pub(super) fn print(&self, title: &str) {
        let [p50, p99, max] = self.pause.percentiles([50, 99, 100]);
        let Self { undisturbed, disconnected, lost, doubled, reordered, foreign, unanswered, .. } = self;
        println!("{title}");
        let [slow50, slow99, slowest] = self.slowest.percentiles([50, 99, 100]);
        println!(
            "  edge lived: {undisturbed} clients, disconnected {disconnected}, pause p50 {p50:.3} s p99 {p99:.3} s \
             max {max:.3} s, slowest delivery p50 {slow50:.3} s p99 {slow99:.3} s max {slowest:.3} s"
        );
        let [p50, p99, max] = self.back.percentiles([50, 99, 100]);
        println!(
            "  edge hurt: {} lost their transport ({} kept it), back after p50 {p50:.2} s p99 {p99:.2} s max \
             {max:.2} s; recovered {}, not recovered {}{}, without recovery in their protocol {}, not back {}",
            self.edge_lost,
            self.still_attached,
            self.recovered,
            self.not_recovered,
            self.why(),
            self.new_sessions,
            self.not_back
        );
        if self.noticed != Times::default() {
            println!("  kill to one ring of the others  {}", self.noticed);
        }
        if self.left > 0 {
            println!("  left as they were: {} transports, {} still open", self.left, self.left_open);
        }
        if self.one_ring != Times::default() {
            println!("  cut: to a ring of each side  {}", self.split);
            println!("  mended: to one ring          {}", self.one_ring);
            println!("  mended: to one owner each    {}", self.one_owner);
            println!(
                "  publishers not served by their side {}, wrong rings {}, not delivered and told as a gap {}",
                self.not_served, self.wrong_ring, self.gaps
            );
        }
        println!(
            "  published {} acked {} refused {} unknown {}, delivered {}; acked and lost {lost}, doubled {doubled}, \
             out of order {reordered}, foreign {foreign}, unanswered {unanswered}",
            self.published, self.acked, self.refused, self.unknown, self.delivered
        );
        for sentence in &self.sentences {
            println!("  BROKEN {sentence}");
        }
    }

    /// The same for a script; times in seconds.
    pub(super) fn json(&self) -> Value {
        let times = |times: &Times| {
            let [p50, p99, max] = times.percentiles([50, 99, 100]);
            json!({ "p50": p50, "p99": p99, "max": max, "missed": times.missed })
        };
        json!({
            "undisturbed": self.undisturbed, "pause": times(&self.pause), "slowest": times(&self.slowest),
            "disconnected": self.disconnected, "lost": self.lost, "doubled": self.doubled,
            "out_of_order": self.reordered, "foreign": self.foreign, "unanswered": self.unanswered,
            "edge_lost": self.edge_lost, "still_attached": self.still_attached, "back": times(&self.back),
            "recovered": self.recovered, "not_recovered": self.not_recovered,
            "reasons": self.reasons, "left": self.left, "left_open": self.left_open, "gaps": self.gaps,
            "not_served": self.not_served, "wrong_ring": self.wrong_ring, "noticed": times(&self.noticed), "split": times(&self.split),
            "one_ring": times(&self.one_ring), "one_owner": times(&self.one_owner),
            "new_sessions": self.new_sessions, "not_back": self.not_back, "published": self.published,
            "acked": self.acked, "refused": self.refused, "unknown": self.unknown,
            "delivered": self.delivered, "broken": self.sentences,
        })
    }
}
