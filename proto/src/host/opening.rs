//! How a node comes to own a key.
//!
//! Belongs here: whom to ask for what is held elsewhere, what waits meanwhile, taking over, being given.
//! Stays out: who is told of copies that nobody asks for (`offers`).
//! Units: at most `CANDIDATES` nodes of the ring are asked; at most `WAITING_MAX` inputs wait for a key.
//! Invariants: a term begins only after the nodes that may hold the key have said what they hold; who
//! says "nothing" counts only if it has been on the ring for the settle time, or is the last.
//! When it breaks: a node that is asked and goes down is left out; a lost link means asking again.

use std::collections::VecDeque;
use std::time::Duration;

use super::placing::is_orphan;
use super::{Began, Entity, Event, Host, Version};
use crate::id::{Address, NodeRef, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Ctx, TimerKey};
use crate::time::Instant;
use crate::view::NodeState;
use crate::wire::{Lane, Replication, To};

/// Nodes of the ring that are asked for a key at most (DESIGN §4).
const CANDIDATES: usize = 4;
/// Inputs that wait for one key; more are bounced.
const WAITING_MAX: usize = 256;
/// A node that was given a copy has so long to begin its term.
const PROMISE_MAX: Duration = Duration::from_secs(1);
/// Inputs wait for so long while views differ; then they are bounced.
const DIFFER_MAX: Duration = Duration::from_secs(1);
/// A node that is not on the ring is waited for so long to see it.
const HINTED_MAX: Duration = Duration::from_millis(500);
/// The node asked sees another ring: asked again after a part of the time that views take to agree.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Whether a key may be served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// Owned.
    Yes,
    /// Nobody holds it: whoever can may create it.
    Absent,
    /// It is being looked for: let the input wait.
    Wait,
    /// Another owns it, or this shard owns as many as it may.
    No,
}

/// A key being looked for.
#[derive(Debug)]
pub(super) struct Opening<E: Entity> {
    /// Who has been asked and has not answered.
    asked: Option<NodeRef>,
    /// Who is asked next; whether its "nothing" counts.
    candidates: VecDeque<(NodeRef, bool)>,
    asked_counts: bool,
    /// The highest term shown by whoever wants it.
    shown: Term,
    /// Views differ: all are asked again at the next retry.
    again: bool,
    since: Instant,
    /// The furthest copy given by one that was not the owner.
    found: Option<(NodeRef, Version, E::Copy)>,
    waiting: Vec<(Address, E::Input)>,
}

/// An input whose key has been looked for.
#[derive(Debug)]
pub(super) struct Ready<E: Entity> {
    key: E::Key,
    from: Address,
    input: E::Input,
    /// The question was answered, not given up.
    answered: bool,
}

impl<E: Entity> Host<E> {
    /// Whether `key` may be served here now. `shown` is the highest term that whoever wants it has
    /// heard.
    pub(crate) fn open(&mut self, ctx: &mut Ctx<'_>, key: &E::Key, shown: Term) -> Open {
        self.now = ctx.now;
        self.place(ctx, key);
        if self.owns(key) {
            return Open::Yes;
        }
        if let Some(opening) = self.openings.get_mut(key) {
            opening.shown = opening.shown.max(shown);
            return Open::Wait;
        }
        if !ctx.view.owns(E::placement(&self.shared, key)) || self.owned >= self.owned_max {
            return Open::No;
        }
        if let Some(held) = self.held.get(key)
            && is_orphan(ctx, self.me.node, held)
        {
            self.take_over(ctx, key);
            return Open::Yes;
        }
        let candidates = self.candidates(ctx, key, shown);
        if candidates.is_empty() {
            return self.conclude(ctx, key, shown, None);
        }
        let opening = Opening {
            asked: None,
            candidates,
            asked_counts: false,
            shown,
            again: false,
            since: ctx.now,
            found: None,
            waiting: Vec::new(),
        };
        self.openings.insert(key.clone(), opening);
        self.ask_next(ctx, key);
        Open::Wait
    }

    /// Keeps an input until its key is open; `Err` gives it back at the bound.
    pub(crate) fn wait(&mut self, key: &E::Key, from: Address, input: E::Input) -> Result<(), E::Input> {
        match self.openings.get_mut(key).filter(|opening| opening.waiting.len() < WAITING_MAX) {
            Some(opening) => {
                opening.waiting.push((from, input));
                Ok(())
            }
            None => Err(input),
        }
    }

    /// An input whose key is open now, absent, or another's.
    pub(crate) fn next_ready(&mut self, ctx: &Ctx<'_>) -> Option<(Address, E::Key, E::Input, Open)> {
        let Ready { key, from, input, answered } = self.ready.pop_front()?;
        let open = match self.owns(&key) {
            true => Open::Yes,
            false if !answered || self.held.contains_key(&key) => Open::No,
            false if ctx.view.owns(E::placement(&self.shared, &key)) => Open::Absent,
            false => Open::No,
        };
        Some((from, key, input, open))
    }

    /// Who may hold a key, in the order to ask.
    fn candidates(&self, ctx: &Ctx<'_>, key: &E::Key, shown: Term) -> VecDeque<(NodeRef, bool)> {
        let placement = E::placement(&self.shared, key);
        let held = self.held.get(key).map(|held| held.version.term.owner);
        // Up and not on the ring: it drains, or was declared down and comes back with what it holds.
        let aside = ctx.view.nodes.iter().filter(|n| n.state() != NodeState::Active).map(|n| n.node);
        let hinted = [Some(shown.owner), held].into_iter().flatten().chain(aside);
        let hinted = hinted.filter(|node| ctx.view.is_up(*node)).map(|node| (node, false));
        // On a ring that has not changed for the settle time, the backup knows.
        let count = if ctx.pace.is_calm(ctx.now) { 1 } else { CANDIDATES };
        let ring = ctx.view.ring.replicas(placement, count + 1).into_iter().map(|node| (node, true));
        let mut candidates: VecDeque<(NodeRef, bool)> = VecDeque::new();
        for (node, counts) in hinted.chain(ring) {
            if node != self.me.node && candidates.iter().all(|(other, _)| *other != node) {
                candidates.push_back((node, counts));
            }
        }
        candidates
    }

    /// That node has a copy of a key that is being looked for: it is asked next.
    pub(super) fn ask_too(&mut self, ctx: &Ctx<'_>, key: &E::Key, node: NodeRef) {
        let Some(opening) = self.openings.get_mut(key).filter(|opening| opening.asked != Some(node)) else {
            return;
        };
        let has_said = opening.found.as_ref().is_some_and(|(giver, ..)| *giver == node);
        if !has_said && ctx.view.is_up(node) {
            opening.candidates.retain(|(candidate, _)| *candidate != node);
            opening.candidates.push_front((node, false));
        }
    }

    fn ask_next(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) {
        let placement = E::placement(&self.shared, key);
        let lane = self.lane();
        let Some(opening) = self.openings.get_mut(key) else { return };
        opening.asked = None;
        while let Some((node, counts)) = opening.candidates.pop_front() {
            if ctx.view.is_up(node) {
                opening.asked = Some(node);
                opening.asked_counts = counts;
                let ask = Replication::Ask { key: key.clone() };
                return ctx.out.send(node, To::Host(placement), lane, E::body(ask));
            }
        }
        let (shown, found) = (opening.shown, opening.found.take());
        self.conclude(ctx, key, shown, found);
    }

    pub(super) fn on_ask(&mut self, ctx: &mut Ctx<'_>, from: Address, key: E::Key) {
        let owner = ctx.view.owner(E::placement(&self.shared, &key));
        let to = To::Shard(from.shard);
        if owner != Some(from.node) {
            let differs = Replication::NotYours { key };
            return ctx.out.send(from.node, to, self.lane(), E::body(differs));
        }
        let owned = self.owns(&key);
        if owned {
            self.step_down(&key);
        }
        self.offers.answered(&key);
        let copy = self.held.get_mut(&key).map(|held| {
            held.promised = Some((from.node, ctx.now + PROMISE_MAX));
            (held.version, held.state.to_copy())
        });
        let settled = ctx.pace.is_settled(ctx.now);
        let have = Replication::Have { key, settled, owned, copy };
        ctx.out.send(from.node, to, self.lane(), E::body(have));
    }

    pub(super) fn on_have(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        key: E::Key,
        settled: bool,
        owned: bool,
        copy: Option<(Version, E::Copy)>,
    ) {
        if let Some((version, _)) = &copy {
            self.terms.heard(version.term);
        }
        self.place(ctx, &key);
        if let Some(opening) = self.openings.get_mut(&key) {
            if opening.asked != Some(from.node) {
                return;
            }
            let (shown, counts) = (opening.shown, opening.asked_counts);
            match copy {
                Some((version, copy)) if owned => {
                    ctx.stats.moves_total += 1;
                    self.conclude(ctx, &key, shown, Some((from.node, version, copy)));
                }
                // Its owner, or another backup, may have gone further.
                Some((version, copy)) => {
                    let owner = version.term.owner;
                    if owner != self.me.node && owner != from.node && ctx.view.is_up(owner) {
                        opening.candidates.retain(|(node, _)| *node != owner);
                        opening.candidates.push_front((owner, false));
                    }
                    let rank = |version, copy| (E::last_of(copy), version);
                    let found = opening.found.as_ref();
                    if found.is_none_or(|(_, best, other)| rank(*best, other) < rank(version, &copy)) {
                        opening.found = Some((from.node, version, copy));
                    }
                    self.ask_next(ctx, &key);
                }
                None if counts
                    && opening.found.is_none()
                    && opening.candidates.front().is_none_or(|(_, counts)| *counts)
                    && (settled || is_planted(Mutant::SettledRuleSkipped)) =>
                {
                    self.conclude(ctx, &key, shown, None);
                }
                None => self.ask_next(ctx, &key),
            }
            return;
        }
        // Asked because of an offer: what the other holds beside ours.
        if let Some((version, copy)) = copy
            && self.owns(&key)
        {
            self.begin_above(&key, version.term);
            self.merge(&key, &copy);
            self.absorbed(&key, from.node, version);
        }
    }

    /// That node's copy holds nothing more than ours does now.
    pub(super) fn absorbed(&mut self, key: &E::Key, node: NodeRef, version: Version) {
        if let Some(held) = self.held.get_mut(key) {
            held.absorbed.retain(|(other, _)| *other != node);
            held.absorbed.push((node, version));
        }
    }

    /// Applies what only `copy` holds.
    pub(super) fn merge(&mut self, key: &E::Key, copy: &E::Copy) {
        let Some(held) = self.held.get(key) else { return };
        let Some(owning) = held.owning.as_deref() else { return };
        let (ops, is_partial) = held.state.missing(owning.term, copy);
        if (ops.is_empty() && !is_partial) || is_planted(Mutant::NotMerged) {
            return;
        }
        let Some(mut owned) = self.owned(key) else { return };
        for op in ops {
            owned.apply(op);
        }
        self.events.push_back(Event::Merged(key.clone(), is_partial));
    }

    pub(super) fn on_not_yours(&mut self, ctx: &mut Ctx<'_>, from: Address, key: &E::Key) {
        if let Some(opening) = self.openings.get_mut(key).filter(|o| o.asked == Some(from.node)) {
            if !opening.asked_counts && ctx.now.since(opening.since) >= HINTED_MAX {
                return self.ask_next(ctx, key);
            }
            opening.asked = None;
            opening.again = true;
            ctx.timers.set(ctx.now + ASK_AGAIN_AFTER, TimerKey::Retry);
        }
    }

    /// The question is answered: what was found, what this node holds itself, or nothing.
    fn conclude(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &E::Key,
        shown: Term,
        found: Option<(NodeRef, Version, E::Copy)>,
    ) -> Open {
        let opening = self.openings.remove(key);
        let shown = opening.as_ref().map_or(shown, |opening| opening.shown.max(shown));
        let own = self.held.get(key).map(|held| held.version);
        match (found, own) {
            (Some((giver, version, copy)), own) => {
                // The base is the copy whose last entry has the higher term, then the longer one, whoever owned it.
                let last = self.held.get(key).map(|held| held.state.last());
                let lesser = match own {
                    Some(own) if own == version => None,
                    Some(own) if (last, own) > (Some(E::last_of(&copy)), version) => Some(copy),
                    _ => {
                        let mine = self.held.get(key).map(|held| held.state.to_copy());
                        self.hold(ctx, key, version, copy);
                        mine
                    }
                };
                let mine = self.held.get(key).map_or(version, |held| held.version);
                let term = self.terms.begin(shown.max(mine.term).max(version.term));
                let base = (mine == version).then_some((giver, version));
                self.begin(ctx, key, term, Began::HandOver(giver), base);
                if let Some(lesser) = lesser {
                    self.merge(key, &lesser);
                }
            }
            (None, Some(own)) => {
                let term = self.terms.begin(shown.max(own.term));
                ctx.stats.takeovers_total += 1;
                self.begin(ctx, key, term, Began::TakeOver(own.term.owner), None);
            }
            (None, None) => {
                let term = self.terms.begin(shown);
                if let Some(state) = E::new(&mut self.shared, key, ctx.now, term) {
                    self.begin_new(ctx, key, term, state);
                }
            }
        }
        if let Some(opening) = opening {
            self.ready_now(key, opening, true);
        }
        if self.owns(key) { Open::Yes } else { Open::Absent }
    }

    /// The owner is gone, and this node was its backup.
    pub(super) fn take_over(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) {
        let Some(held) = self.held.get(key) else { return };
        let former = held.version.term;
        let above = if is_planted(Mutant::TakeOverBeginsLow) { Term::NONE } else { former };
        let term = self.terms.begin(above);
        ctx.stats.takeovers_total += 1;
        self.offers.forget(key);
        self.begin(ctx, key, term, Began::TakeOver(former.owner), None);
    }

    /// To whom a copy of this node is promised, if that still counts.
    pub(super) fn promised_to(&mut self, ctx: &Ctx<'_>, key: &E::Key) -> Option<NodeRef> {
        let held = self.held.get_mut(key)?;
        held.promised = held.promised.filter(|(node, until)| ctx.now < *until && ctx.view.is_up(*node));
        held.promised.map(|(node, _)| node)
    }

    /// Everything that is being looked for is looked for by the new ring.
    pub(super) fn openings_on_view(&mut self, ctx: &mut Ctx<'_>) {
        let keys: Vec<E::Key> = self.openings.keys().cloned().collect();
        for key in keys {
            let asked_is_up = self.openings[&key].asked.is_some_and(|node| ctx.view.is_up(node))
                || self.openings[&key].again;
            if !ctx.view.owns(E::placement(&self.shared, &key)) {
                self.cancel_opening(&key);
            } else if !asked_is_up {
                self.ask_all(ctx, &key);
            }
        }
    }

    fn ask_all(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) {
        let Some(shown) = self.openings.get(key).map(|opening| opening.shown) else { return };
        let candidates = self.candidates(ctx, key, shown);
        if let Some(opening) = self.openings.get_mut(key) {
            opening.candidates = candidates;
            opening.again = false;
            opening.found = None;
        }
        self.ask_next(ctx, key);
    }

    pub(super) fn ask_again_after_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        let keys: Vec<E::Key> = self
            .openings
            .iter()
            .filter(|(_, opening)| opening.asked == Some(peer))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.ask_all(ctx, &key);
        }
    }

    /// A while has passed since views differed.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        let keys: Vec<E::Key> =
            self.openings.iter().filter(|(_, opening)| opening.again).map(|(key, _)| key.clone()).collect();
        for key in keys {
            // Whoever waits may see another ring by now.
            if self.openings.get(&key).is_some_and(|opening| ctx.now.since(opening.since) >= DIFFER_MAX) {
                self.cancel_opening(&key);
            } else {
                self.ask_all(ctx, &key);
            }
        }
        self.retry_backups();
    }

    /// The question is not asked any more: what waited for its answer looks again.
    pub(super) fn cancel_opening(&mut self, key: &E::Key) {
        if let Some(opening) = self.openings.remove(key) {
            self.ready_now(key, opening, false);
        }
    }

    fn ready_now(&mut self, key: &E::Key, opening: Opening<E>, answered: bool) {
        let waiting = opening.waiting.into_iter();
        self.ready.extend(waiting.map(|(from, input)| Ready { key: key.clone(), from, input, answered }));
    }

    pub(super) fn cancel_openings(&mut self) {
        let keys: Vec<E::Key> = self.openings.keys().cloned().collect();
        keys.iter().for_each(|key| self.cancel_opening(key));
    }

    /// The lane of everything this shard's host says: two things it says to one place keep their order.
    pub(super) fn lane(&self) -> Lane {
        let lanes = u16::from(Lane::DATA_LANES);
        Lane(u8::try_from(self.me.shard.0 % lanes).unwrap_or(0))
    }
}
