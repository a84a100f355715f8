//! What backups do with what owners tell them.
//!
//! Belongs here: taking ops onto a copy, refusing what does not fit.
//! Stays out: telling (`backup`), coming to own a key (`opening`).
//! Invariants: a copy never takes ops that do not follow on it, nor goes back to a lower term; what it
//! alone holds goes to the owner before it is replaced.

use super::{Entity, Held, Host, Version};
use crate::id::{Address, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::Ctx;
use crate::wire::{Item, News, Refusal, Replication, To};

impl<E: Entity> Host<E> {
    pub(super) fn take_batch(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        batch: u64,
        items: Vec<Item<E::Key, E::Op, E::Copy>>,
    ) {
        let mut refused = Vec::new();
        for (index, item) in (0..).zip(items) {
            if let Err(refusal) = self.take_item(ctx, from, item) {
                refused.push((index, refusal));
            }
        }
        let answer = Replication::Replicated { batch, refused };
        ctx.out.send(from.node, To::Shard(from.shard), self.lane(), E::body(answer));
    }

    fn take_item(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        item: Item<E::Key, E::Op, E::Copy>,
    ) -> Result<(), Refusal<E::Copy>> {
        let Item { key, term, news } = item;
        self.terms.heard(term);
        self.place(ctx, &key);
        if let Some(held) = self.held.get(&key) {
            let mine = held.owning.as_deref().map_or(held.version.term, |owning| owning.term);
            if term < mine && !is_planted(Mutant::FenceDropped) {
                ctx.stats.fences_total += 1;
                return Err(Refusal::Higher(mine));
            }
            if let Some(promised) = self.promised_to(ctx, &key).filter(|node| *node != from.node) {
                return Err(Refusal::Promised(promised));
            }
            if self.owns(&key) {
                // Another owner, above ours. Whose the key is, the ring says.
                if ctx.view.owns(E::placement(&self.shared, &key)) {
                    self.begin_above(&key, term);
                    let above = self.ownership(&key).map_or(term, |ownership| ownership.term);
                    return Err(Refusal::Higher(above));
                }
                self.step_down(&key);
                if matches!(news, News::Ended) {
                    // The copy stays until those it was live for have been told; it is offered.
                    return Ok(());
                }
            }
        }
        match news {
            News::Ops { base, ops } => self.take_ops(ctx, &key, term, base, &ops),
            News::Copy { op, copy, absorbed } => {
                self.take_copy(ctx, &key, Version { term, op }, copy, absorbed)
            }
            News::Ended => {
                self.let_go(&key);
                self.offers.forget(&key);
                Ok(())
            }
        }
    }

    fn take_ops(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &E::Key,
        term: Term,
        base: Version,
        ops: &[E::Op],
    ) -> Result<(), Refusal<E::Copy>> {
        let follows = |held: &&mut Held<E>| held.version == base || is_planted(Mutant::BaseIgnored);
        let held = self.held.get_mut(key).filter(follows).ok_or(Refusal::Missing)?;
        for op in ops.iter().skip(usize::from(is_planted(Mutant::FirstOpLost))) {
            held.state.apply(&mut self.shared, key, ctx.now, op);
        }
        held.version = Version { term, op: base.op.saturating_add(ops.len() as u64) };
        held.promised = None;
        held.unsure = false;
        Ok(())
    }

    fn take_copy(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &E::Key,
        version: Version,
        copy: E::Copy,
        absorbed: Option<Version>,
    ) -> Result<(), Refusal<E::Copy>> {
        if let Some(held) = self.held.get(key)
            && held.version.term != version.term
            && absorbed != Some(held.version)
            && held.state.is_more_than(&copy)
            && !is_planted(Mutant::LackingCopyTaken)
        {
            return Err(Refusal::Lacks(held.version, held.state.to_copy()));
        }
        self.hold(ctx, key, version, copy);
        if ctx.view.ring.backup(E::placement(&self.shared, key)) != Some(self.me.node) {
            // The sender has not seen the present ring: somebody else is to have it.
            self.offers.keep(key.clone());
        }
        Ok(())
    }

    /// Holds this copy, in place of any other.
    pub(super) fn hold(&mut self, ctx: &Ctx<'_>, key: &E::Key, version: Version, copy: E::Copy) {
        self.let_go(key);
        let state = E::from_copy(&mut self.shared, key, ctx.now, copy);
        self.held.insert(key.clone(), Held::new(version, state, self.placing.view()));
    }
}
