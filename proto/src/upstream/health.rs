//! Whether one upstream is fit to be sent something: what its checks say, and what its requests say.
//!
//! Belongs here: rise and fall by checks, ejection by requests, the one request that tries an ejected one.
//! Stays out: when checks are made, loads, choice (`Upstreams`).
//! Units: failures in a row; times from the caller's clock.
//! Invariants: nothing is down before a check has failed; an ejection ends by a success only, or because
//! the checks have seen the upstream come back; at most one request tries an ejected upstream.
//! Source: rise and fall as in HAProxy's health checks; ejection after Envoy's outlier detection.

use std::time::Duration;

use super::UpstreamConfig;
use crate::time::Instant;

/// What active checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Unknown,
    Up,
    Down,
}

/// Out because of its requests.
#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    /// A request is under way that tries it.
    is_tried: bool,
}

/// The health of one upstream.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) verdict: Verdict,
    /// Checks in a row that contradict the verdict.
    contradicted: u32,
    /// Requests in a row that failed.
    failures: u32,
    ejection: Option<Ejection>,
    /// How long the last ejection was meant to last.
    ejected_for: Duration,
    /// When the last ejection ended.
    back_at: Instant,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            verdict: Verdict::Unknown,
            contradicted: 0,
            failures: 0,
            ejection: None,
            ejected_for: Duration::ZERO,
            back_at: Instant::ZERO,
        }
    }

    /// Whether a request may be sent there: also the one that tries an ejected upstream.
    pub(super) fn is_fit(&self, now: Instant) -> bool {
        let may_be_tried = |e: Ejection| now >= e.until && !e.is_tried;
        self.verdict != Verdict::Down && self.ejection.is_none_or(may_be_tried)
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// How long nothing is sent there yet.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        self.ejection.map(|ejection| ejection.until)
    }

    /// Requests in a row that failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// A request goes there; whether it is the one that tries an ejected upstream.
    pub(super) fn began(&mut self, now: Instant) -> bool {
        match &mut self.ejection {
            Some(ejection) if now >= ejection.until && !ejection.is_tried => {
                ejection.is_tried = true;
                true
            }
            _ => false,
        }
    }

    /// A request was answered.
    pub(super) fn succeeded(&mut self, now: Instant, tried: bool) {
        self.failures = 0;
        if self.verdict == Verdict::Unknown {
            self.verdict = Verdict::Up;
        }
        if tried {
            self.end_ejection(now);
        }
    }

    /// A request failed by the upstream's fault.
    pub(super) fn failed(&mut self, now: Instant, tried: bool, config: &UpstreamConfig) {
        self.failures = self.failures.saturating_add(1);
        let too_many = config.eject_after > 0 && self.failures >= config.eject_after;
        // What began before an ejection says nothing about the time since.
        let ejects = if self.ejection.is_some() { tried } else { too_many };
        if ejects {
            self.eject(now, config);
        }
    }

    /// A request says nothing: its client is gone.
    pub(super) fn said_nothing(&mut self, tried: bool) {
        if tried && let Some(ejection) = &mut self.ejection {
            ejection.is_tried = false;
        }
    }

    /// Out for as long as the first time, or for twice as long as last time, if it did not stay in for as
    /// long as it had been out.
    fn eject(&mut self, now: Instant, config: &UpstreamConfig) {
        let relapsed = self.ejection.is_some() || now.since(self.back_at) < self.ejected_for;
        self.ejected_for = match relapsed {
            true => self.ejected_for.saturating_mul(2).min(config.eject_max),
            false => config.eject_for,
        };
        self.ejection = Some(Ejection { until: now + self.ejected_for, is_tried: false });
    }

    fn end_ejection(&mut self, now: Instant) {
        if self.ejection.take().is_some() {
            self.back_at = now;
            self.failures = 0;
        }
    }

    /// A check has ended.
    pub(super) fn checked(&mut self, now: Instant, ok: bool, config: &UpstreamConfig) {
        let (contradicts, enough) = match (self.verdict, ok) {
            (Verdict::Unknown, true) => (true, 1),
            (Verdict::Down, true) => (true, config.rise),
            (Verdict::Unknown | Verdict::Up, false) => (true, config.fall),
            (Verdict::Up, true) | (Verdict::Down, false) => (false, 1),
        };
        if !contradicts {
            self.contradicted = 0;
            return;
        }
        self.contradicted += 1;
        if self.contradicted < enough.max(1) {
            return;
        }
        self.contradicted = 0;
        if self.verdict == Verdict::Down {
            // It has come back: what its requests said before is of another time.
            self.end_ejection(now);
        }
        self.verdict = if ok { Verdict::Up } else { Verdict::Down };
    }

    /// Checks are not made any more: what they said last is no news.
    pub(super) fn unchecked(&mut self) {
        self.verdict = Verdict::Unknown;
        self.contradicted = 0;
    }

    pub(super) fn check_invariants(&self, config: &UpstreamConfig) {
        assert!(self.contradicted < config.rise.max(config.fall).max(1), "a verdict is overdue");
    }
}
