//! A small workload of bindings: nodes ask for them as they do for users and sessions of proxied products.
//!
//! Belongs here: who asks what and when, by a generator of its own, in runs that want it only: the others
//! tell the story they would tell without. Stays out: what answers may not say (`checks::bound`).

use std::time::Duration;

use mesh_proto::binding::{BindingClass, BindingKey};
use mesh_proto::shard::Input;
use mesh_proto::time::Instant;
use mesh_proto::view::NodeState;
use mesh_proto::wire::{Answer, CommandFailed, Query, Wish};

use super::{Cluster, Event};
use crate::checks::Wished;
use crate::random::Random;

/// Keys that are asked for; the last ones end by themselves.
const KEYS: usize = 7;
const FLEETING_KEYS: usize = 2;

/// What is drawn for bindings is not what is drawn for all else.
const SALT: u64 = 0x6269_6e64_696e_6773;

/// When all faults are mended for so long, every question is answered, and so for a while more.
const WELL_AFTER: Duration = Duration::from_secs(10);
const ASKED_WELL_FOR: Duration = Duration::from_millis(1_500);

/// The workload of one run.
#[derive(Debug)]
pub(super) struct Workload {
    random: Random,
    pace: Duration,
    /// All faults are mended since [`WELL_AFTER`].
    is_well: bool,
}

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ SALT);
        let pace = random.millis(5, 150);
        Self { random, pace, is_well: false }
    }
}

impl Cluster {
    /// Questions begin with the faults.
    pub(super) fn add_bindings(&mut self, from: Instant) {
        (KEYS - FLEETING_KEYS..KEYS).for_each(|key| self.checks.bound.is_fleeting(key));
        self.clock.at(from, Event::Binds);
    }

    /// One question, and the next one after a while.
    pub(super) fn ask_for_binding(&mut self) {
        let now = self.clock.now();
        let Some(mut workload) = self.bindings.take() else { return };
        let well_at = self.trouble_ends + WELL_AFTER;
        if now >= well_at && !workload.is_well {
            workload.is_well = true;
            self.checks.bound.holds_from_here();
        }
        let pace = workload.pace;
        if now < well_at + ASKED_WELL_FOR {
            self.clock.after(workload.random.between(pace / 4, pace * 2), Event::Binds);
            self.ask_for_one(&mut workload.random);
        }
        self.bindings = Some(workload);
    }

    fn ask_for_one(&mut self, random: &mut Random) {
        let now = self.clock.now();
        let asking = self.living(|life| !life.paused && life.state() != NodeState::Joining);
        let Some(slot) = random.pick(&asking) else { return };
        let Some(life) = &self.slots[slot].life else { return };
        let shard = random.index(life.shards.len());
        let index = random.index(KEYS);
        let product = self.common.products[index % self.common.products.len()].name.clone();
        let class = if index.is_multiple_of(3) { BindingClass::Sid } else { BindingClass::Uid };
        let key = BindingKey::new(&product, class, &format!("k{index}"));
        self.queries += 1;
        let number = self.queries;
        let last = self.checks.bound.last_told(index);
        let wished = match (random.below(100), last) {
            (0..15, Some(last)) => Wished::Choose(Some(last)),
            (15..25, Some(last)) => Wished::Forget(last),
            (25..50, _) => Wished::Find,
            _ => Wished::Choose(None),
        };
        let name = |number: u64| -> std::sync::Arc<str> { format!("u{number}").into() };
        let wish = match wished {
            Wished::Find => Wish::Find,
            Wished::Choose(instead_of) => {
                Wish::Choose { upstream: name(number), instead_of: instead_of.map(name) }
            }
            Wished::Forget(which) => Wish::Forget { upstream: name(which) },
        };
        let keep = match () {
            () if wished == Wished::Find && random.per_mille(500) => Duration::ZERO,
            () if index < KEYS - FLEETING_KEYS => Duration::from_secs(3_600),
            () => random.millis(200, 2_000),
        };
        self.checks.bound.asks(number, index, wished);
        self.trace.note(now, &[33, number, slot as u64], || {
            format!("n{slot} asks {number} for binding {index}: {wish:?}")
        });
        self.feed(slot, shard, Input::Query(number, Query::Bind { key, wish, keep }));
    }

    /// A question has an answer, if it was one.
    pub(super) fn bound(&mut self, number: u64, answer: &Result<Answer, CommandFailed>) {
        let now = self.clock.now();
        let upstream = match answer {
            Ok(Answer::Bound(name)) => name.strip_prefix('u').and_then(|number| number.parse().ok()),
            Ok(Answer::NotBound) => None,
            other => {
                let was_asked = self.checks.bound.failed(number);
                if was_asked && self.bindings.as_ref().is_some_and(|workload| workload.is_well) {
                    let what = format!("question {number} for a binding is answered {other:?}");
                    self.checks.violated("I10", now, what);
                }
                return;
            }
        };
        self.checks.bound_is(now, number, upstream);
    }
}
