//! Bindings owned by this shard: which upstream a user or a session of a proxied product is at.
//!
//! Belongs here: deciding once, answering when that is safe, ending what is not used.
//! Stays out: which upstream is fit (`upstream`), who asks and when (`node::proxy`), who owns a binding and
//! who backs it up (`host`).
//! Units: a binding is some 200 bytes; `bindings_per_node_max` of them.
//! Invariants: who asks at the owner is told one upstream until that is found unfit or forgotten; an answer
//! leaves only when what it says is committed.
//! When it breaks: the backup goes on. After a partition one decision stands: the one made under the higher
//! term, of one term the later one, whoever owns the binding then. If owner and backup are lost together,
//! or at the bound, the next who asks decides anew: who has something open there asks again and again.

mod key;
mod state;

use std::collections::BTreeSet;
use std::time::Duration;

pub use key::{BindingClass, BindingKey};
use state::Binding;

use crate::entity::CommitQueue;
use crate::host::{Event, Host, MessageOf, Open};
use crate::id::{Address, NodeRef, Term};
use crate::limits::Limits;
use crate::marks::{Mark, Marks};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Budget, Ctx};
use crate::time::Instant;
use crate::wire::{Answer, BindingFacts, Body, CommandFailed, Subject, Wish};

/// Bytes of a uid, a sid or the name of an upstream at most.
pub const BINDING_TEXT_BYTES_MAX: usize = 256;

/// What was decided of a binding that is forgotten is kept for so long: older copies of it that are still on
/// their way to its owner do not bring it back.
const FORGOTTEN_FOR: Duration = Duration::from_secs(30);

/// Every binding this shard owns or backs up.
#[derive(Debug)]
pub(crate) struct Bindings {
    host: Host<Binding>,
    owned_max: usize,
    /// Owned bindings by the moment they end: those that end first go first at the bound.
    ends: Marks<BindingKey>,
    /// Bindings with something to send at the end of this turn.
    dirty: BTreeSet<BindingKey>,
}

/// What only a binding's owner has.
#[derive(Debug, Default)]
pub(crate) struct BindingLive {
    /// The op that changed last what askers are told.
    decided: u64,
    answers: CommitQueue<Tell>,
    ends: Mark,
}

#[derive(Debug)]
struct Tell {
    to: Address,
    call: u64,
    answer: Answer,
}

/// A question for a binding.
#[derive(Debug)]
pub(crate) struct BindInput {
    call: u64,
    wish: Wish,
    /// It ends when it has not been used for so long. Zero: this is no use of it.
    keep: Duration,
}

impl Bindings {
    pub(crate) fn new(me: Address, shards: u16, limits: &Limits) -> Self {
        let owned_max = (limits.bindings_per_node_max / usize::from(shards.max(1))).max(1);
        Self {
            // The oldest give way: there is always room for one more.
            host: Host::new(me, usize::MAX, limits.placed_per_turn, ()),
            owned_max,
            ends: Marks::default(),
            dirty: BTreeSet::new(),
        }
    }

    /// A question, answered as a call.
    pub(crate) fn on_call(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        call: u64,
        key: &BindingKey,
        wish: Wish,
        keep: Duration,
    ) {
        let name = match &wish {
            Wish::Find => None,
            Wish::Choose { upstream, .. } | Wish::Forget { upstream } => Some(&**upstream),
        };
        let longest = key.expose_text().len().max(name.map_or(0, str::len));
        if longest > BINDING_TEXT_BYTES_MAX {
            let why = format!("a name of {longest} bytes; {BINDING_TEXT_BYTES_MAX} are allowed");
            let answer = Err(CommandFailed::Refused(why));
            return ctx.out.send_to_address(from, key.placement(), Body::Answer { call, answer });
        }
        let open = self.host.open(ctx, key, Term::NONE);
        self.react_to_events(ctx);
        self.carry_out(ctx, from, key, BindInput { call, wish, keep }, open);
    }

    /// Another holder of bindings.
    pub(crate) fn on_replication(&mut self, ctx: &mut Ctx<'_>, from: Address, message: MessageOf<Binding>) {
        self.host.handle(ctx, from, message);
        self.react(ctx);
    }

    /// Answers a question, now or when the binding has been found.
    fn carry_out(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        key: &BindingKey,
        input: BindInput,
        open: Open,
    ) {
        match open {
            Open::Wait => {
                if let Err(input) = self.host.wait(key, from, input) {
                    ctx.not_owner(from, key.placement(), Subject::Call(input.call));
                }
            }
            Open::No => ctx.not_owner(from, key.placement(), Subject::Call(input.call)),
            Open::Absent if matches!(input.wish, Wish::Choose { .. }) => {
                self.keep_to_bounds(ctx, self.owned_max - 1);
                self.host.create(ctx, key, Binding::undecided(ctx.now), Term::NONE);
                self.react_to_events(ctx);
                self.answer(ctx, from, key, input);
            }
            Open::Absent => {
                let body = Body::Answer { call: input.call, answer: Ok(Answer::NotBound) };
                ctx.out.send_to_address(from, key.placement(), body);
            }
            Open::Yes => self.answer(ctx, from, key, input),
        }
    }

    /// Decides, and answers once that is safe.
    fn answer(&mut self, ctx: &mut Ctx<'_>, from: Address, key: &BindingKey, input: BindInput) {
        let BindInput { call, wish, keep } = input;
        let mut binding = self.host.owned(key).expect("checked by the caller");
        let bound = binding.state.upstream(ctx.now).cloned();
        let decision = match (&wish, &bound) {
            (Wish::Choose { upstream, .. }, None) => Some(Some(upstream.clone())),
            (Wish::Choose { upstream, instead_of }, Some(bound)) => {
                let is_unfit = instead_of.as_ref() == Some(bound) || is_planted(Mutant::BindingOverwritten);
                (is_unfit && upstream != bound).then(|| Some(upstream.clone()))
            }
            (Wish::Forget { upstream }, Some(bound)) => (upstream == bound).then_some(None),
            (Wish::Find | Wish::Forget { .. }, _) => None,
        };
        let op = match &decision {
            Some(Some(upstream)) => Some(binding.state.decide(binding.term, Some(upstream.clone()), keep)),
            Some(None) => Some(binding.state.decide(binding.term, None, FORGOTTEN_FOR)),
            None if bound.is_none() || matches!(wish, Wish::Forget { .. }) => None,
            None => binding.state.touch(ctx.now, keep),
        };
        if let Some(op) = op {
            let op = binding.apply(op);
            if decision.is_some() {
                binding.live.decided = op;
            }
            self.ends.remove(&mut binding.live.ends, key);
            self.ends.set(&mut binding.live.ends, key, Some(binding.state.ends_at()));
        }
        let answer = binding.state.upstream(ctx.now).cloned().map_or(Answer::NotBound, Answer::Bound);
        binding.live.answers.push(binding.live.decided, Tell { to: from, call, answer });
        self.host.hurry(key);
        self.dirty.insert(key.clone());
    }

    /// Carries out what has become of bindings, and the questions that waited for it.
    fn react(&mut self, ctx: &mut Ctx<'_>) {
        self.react_to_events(ctx);
        while let Some((from, key, input, open)) = self.host.next_ready(ctx) {
            self.carry_out(ctx, from, &key, input, open);
            self.react_to_events(ctx);
        }
    }

    fn react_to_events(&mut self, ctx: &mut Ctx<'_>) {
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Began(key) | Event::Merged(key, _) => {
                    if let Some(binding) = self.host.owned(&key) {
                        binding.live.decided = binding.applied();
                        self.ends.remove(&mut binding.live.ends, &key);
                        self.ends.set(&mut binding.live.ends, &key, Some(binding.state.ends_at()));
                        self.dirty.insert(key);
                    }
                }
                Event::Confirmed(key) => {
                    self.dirty.insert(key);
                }
                Event::Cut(_) => {}
                Event::Lost(key, live) => self.give_back(ctx, &key, live),
            }
        }
    }

    /// It is not owned here any more: who waits for an answer asks again.
    fn give_back(&mut self, ctx: &mut Ctx<'_>, key: &BindingKey, mut live: BindingLive) {
        self.ends.remove(&mut live.ends, key);
        live.answers.drain(|tell| ctx.not_owner(tell.to, key.placement(), Subject::Call(tell.call)));
    }

    fn end(&mut self, ctx: &mut Ctx<'_>, key: &BindingKey) {
        if let Some(binding) = self.host.owned(key) {
            let live = std::mem::take(binding.live);
            self.give_back(ctx, key, live);
            self.host.end(key);
        }
    }

    /// Forgets those that would end first, until so many are left.
    fn keep_to_bounds(&mut self, ctx: &mut Ctx<'_>, count: usize) {
        while self.host.owned_count() > count
            && let Some((_, key)) = self.ends.first()
        {
            ctx.stats.bindings_evicted_total += 1;
            self.end(ctx, &key);
        }
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        // Those handed over come without asking.
        self.keep_to_bounds(ctx, self.owned_max);
        let sent = self.host.flush(ctx);
        self.react(ctx);
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(binding) = self.host.owned(key) else { continue };
            binding.live.answers.confirm(binding.confirmed);
            while let Some(tell) = binding.live.answers.release() {
                let Tell { to, call, answer } = tell.into_inner();
                ctx.out.send_to_address(to, key.placement(), Body::Answer { call, answer: Ok(answer) });
            }
        }
        sent || !dirty.is_empty()
    }

    /// Ends what has not been used for long enough. Whether more is due than one step may look at.
    pub(crate) fn sweep(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut budget = Budget::step();
        while let Some((at, key)) = self.ends.first()
            && at <= ctx.now
            && budget.spend()
        {
            self.end(ctx, &key);
        }
        self.host.sweep();
        self.react(ctx);
        budget.is_spent()
    }

    /// Whether there is anything to look through now and then.
    pub(crate) fn has_to_sweep(&self) -> bool {
        self.ends.len() > 0 || self.host.has_to_sweep()
    }

    /// A while has passed since views differed.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        self.host.retry(ctx);
        self.react(ctx);
    }

    /// The cluster has changed: bindings follow the ring, some in each turn ([`Bindings::place_some`]).
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        self.host.on_view(ctx);
        self.react(ctx);
    }

    /// Some more bindings follow the ring, those with something under way first.
    pub(crate) fn place_some(&mut self, ctx: &mut Ctx<'_>) {
        self.host.place_some(ctx);
        self.react(ctx);
    }

    /// Somebody asks about this binding: it is what the present ring says.
    pub(crate) fn place(&mut self, ctx: &mut Ctx<'_>, key: &BindingKey) {
        self.host.place(ctx, key);
        self.react(ctx);
    }

    /// Whether the last turn has left something that the next can do without hearing anything.
    pub(crate) fn has_more(&self) -> bool {
        self.host.has_more()
    }

    pub(crate) fn turn_ends(&mut self) {
        self.host.turn_ends();
    }

    /// What was under way to `peer` is lost.
    pub(crate) fn on_link_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        self.host.on_link_reset(ctx, peer);
        self.react(ctx);
    }

    /// Another life of this node: what it owned is offered to its owner.
    pub(crate) fn on_rebirth(&mut self, ctx: &mut Ctx<'_>, me: Address) {
        self.host.on_rebirth(me);
        self.react(ctx);
        self.dirty.clear();
    }

    pub(crate) fn host(&self) -> &Host<Binding> {
        &self.host
    }

    pub(crate) fn facts(&self, now: Instant, key: &BindingKey) -> Option<BindingFacts> {
        let (binding, _) = self.host.peek(key)?;
        Some(BindingFacts {
            upstream: binding.upstream(now)?.clone(),
            at: binding.at(),
            ends_in_secs: (!binding.stays()).then(|| binding.ends_at().since(now).as_secs()),
            ownership: self.host.ownership(key)?.facts(now),
        })
    }

    /// Asserts bounds and cross references.
    pub(crate) fn check_invariants(&self) {
        self.host.check_invariants();
        assert!(self.host.owned_count() <= self.owned_max, "more bindings than allowed");
        assert_eq!(self.host.owned_count(), self.ends.len(), "bindings without an end");
        for (key, binding, live) in self.host.iter() {
            let applied = self.host.ownership(key).map(|ownership| ownership.applied);
            assert!(Some(live.decided) <= applied, "{key:?}: answered ahead of what is applied");
            assert!(binding.at().seq > 0, "{key:?}: owned, and nothing was decided");
        }
    }
}
