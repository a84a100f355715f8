//! How a copy gets to whoever should have it.
//!
//! Belongs here: which copies are offered, how many at a time, what an owner answers.
//! Stays out: the copy itself, which is asked for (`opening`).
//! Units: `OFFERED_MAX` keys under way to one peer; repeated each second until answered; a turn looks at
//! `LOOKED_AT_MAX` of them.
//! Invariants: a copy that the ring does not place here is dropped only when the owner and its backup
//! hold all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Entity, Host};
use crate::collections::FixedMap;
use crate::id::{Address, NodeRef, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::Ctx;
use crate::wire::{Offered, Replication, To, Version};

/// Keys offered to one peer and not answered. It asks for each, is given it, and others wait behind that.
const OFFERED_MAX: usize = 32;
/// Keys looked at in one turn: some 100 µs.
const LOOKED_AT_MAX: usize = 256;
/// Keys looked for at a time because this node holds a copy; those that somebody wants come on top.
const OPENINGS_MAX: usize = 256;

/// Copies that are to be offered.
#[derive(Debug)]
pub(super) struct Offers<E: Entity> {
    /// Copies that may have to go elsewhere.
    keys: BTreeSet<E::Key>,
    /// Those of them that were not looked at since.
    fresh: BTreeSet<E::Key>,
    /// All are looked at again, from the first after this one on; `None` in here: from the first.
    again_after: Option<Option<E::Key>>,
    /// How many more this turn may look at.
    turn_left: usize,
    /// Those to be offered to each peer; to this node itself: to be asked for.
    queues: BTreeMap<NodeRef, BTreeSet<E::Key>>,
    /// Offered, and to whom.
    offered: FixedMap<E::Key, NodeRef>,
    per_peer: BTreeMap<NodeRef, usize>,
}

impl<E: Entity> Default for Offers<E> {
    fn default() -> Self {
        Self {
            keys: BTreeSet::new(),
            fresh: BTreeSet::new(),
            again_after: None,
            turn_left: LOOKED_AT_MAX,
            queues: BTreeMap::new(),
            offered: FixedMap::default(),
            per_peer: BTreeMap::new(),
        }
    }
}

impl<E: Entity> Offers<E> {
    /// This copy may have to go elsewhere.
    pub(super) fn look_at(&mut self, key: E::Key) {
        self.answered(&key);
        self.fresh.insert(key.clone());
        self.keys.insert(key);
    }

    /// The same, at the next repetition.
    pub(super) fn keep(&mut self, key: E::Key) {
        self.keys.insert(key);
    }

    pub(super) fn forget(&mut self, key: &E::Key) {
        self.answered(key);
        self.fresh.remove(key);
        self.keys.remove(key);
        for queue in self.queues.values_mut() {
            queue.remove(key);
        }
    }

    /// The peer it was offered to has spoken: another may be offered in its place.
    pub(super) fn answered(&mut self, key: &E::Key) {
        if let Some(peer) = self.offered.remove(key)
            && let Some(count) = self.per_peer.get_mut(&peer)
        {
            *count -= 1;
        }
    }

    /// Everything is offered again.
    pub(super) fn repeat(&mut self) {
        self.offered.clear();
        self.per_peer.clear();
        self.queues.clear();
        self.fresh.clear();
        self.again_after = (!self.keys.is_empty()).then_some(None);
    }

    /// The next key to look at, if this turn may look at one more.
    fn next_to_look_at(&mut self) -> Option<E::Key> {
        if self.turn_left == 0 {
            return None;
        }
        let next = self.fresh.pop_first().or_else(|| self.next_again())?;
        self.turn_left -= 1;
        Some(next)
    }

    fn next_again(&mut self) -> Option<E::Key> {
        let next = match self.again_after.as_ref()? {
            None => self.keys.first(),
            Some(last) => self.keys.range((Bound::Excluded(last), Bound::Unbounded)).next(),
        };
        let next = next.cloned();
        self.again_after = next.clone().map(Some);
        next
    }

    pub(super) fn turn_ends(&mut self) {
        self.turn_left = LOOKED_AT_MAX;
    }

    pub(super) fn has_more(&self) -> bool {
        !self.fresh.is_empty() || self.again_after.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<E: Entity> Host<E> {
    /// Offers what is to be offered, as many as may be under way.
    pub(super) fn send_offers(&mut self, ctx: &mut Ctx<'_>) -> bool {
        while let Some(key) = self.offers.next_to_look_at() {
            match self.who_should_have(ctx, &key) {
                Some(owner) => {
                    // Should the ring bring it home again, it may have ended elsewhere meanwhile.
                    if let Some(held) = self.held.get_mut(&key) {
                        held.unsure = true;
                    }
                    self.offers.queues.entry(owner).or_default().insert(key);
                }
                None => self.offers.forget(&key),
            }
        }
        let mut groups: BTreeMap<(NodeRef, To), Vec<Offered<E::Key>>> = BTreeMap::new();
        let owners: Vec<NodeRef> = self.offers.queues.keys().copied().collect();
        for owner in owners {
            while let Some(key) = self.next_to_offer(owner) {
                if owner == self.me.node {
                    self.open(ctx, &key, Term::NONE);
                    continue;
                }
                let Some(held) = self.held.get(&key) else { continue };
                let offered = Offered { key: key.clone(), version: held.version, last: held.state.last() };
                let placement = E::placement(&self.shared, &key);
                *self.offers.per_peer.entry(owner).or_default() += 1;
                self.offers.offered.insert(key, owner);
                groups.entry((owner, ctx.host_of(owner, placement))).or_default().push(offered);
            }
        }
        let any = !groups.is_empty();
        for ((peer, to), offered) in groups {
            ctx.out.send(peer, to, self.lane(), E::body(Replication::Offer(offered)));
        }
        any
    }

    /// The node that the ring names for a copy held here; `None` if it is where it should be, or nobody
    /// owns anything.
    pub(super) fn who_should_have(&self, ctx: &Ctx<'_>, key: &E::Key) -> Option<NodeRef> {
        let placement = E::placement(&self.shared, key);
        let held = self.held.get(key)?;
        let owner = ctx.view.owner(placement)?;
        let owned = held.owning.is_some();
        let is_backup = !owned && ctx.view.ring.backup(placement) == Some(self.me.node);
        let at_home = match owner == self.me.node {
            true => owned,
            false => is_backup && held.version.term.owner == owner && !held.unsure,
        };
        (!at_home).then_some(owner)
    }

    /// The next key to offer to `owner`, if one more may be under way.
    fn next_to_offer(&mut self, owner: NodeRef) -> Option<E::Key> {
        let may = match owner == self.me.node {
            true => self.openings.len() < OPENINGS_MAX,
            false => self.offers.per_peer.get(&owner).is_none_or(|count| *count < OFFERED_MAX),
        };
        self.offers.queues.get_mut(&owner).filter(|_| may)?.pop_first()
    }

    pub(super) fn on_offer(&mut self, ctx: &mut Ctx<'_>, from: Address, offered: Offered<E::Key>) {
        let Offered { key, version, last } = offered;
        self.terms.heard(version.term);
        self.place(ctx, &key);
        let placement = E::placement(&self.shared, &key);
        if !ctx.view.owns(placement) {
            return;
        }
        // Should the backup offer it: another owner's copy has replaced ours there, and a new term is news.
        self.begin_above(&key, version.term);
        let Some(held) = self.held.get(&key).filter(|held| held.owning.is_some()) else {
            // Whoever offers it is asked first, or next.
            self.open(ctx, &key, Term { number: version.term.number, owner: from.node });
            self.ask_too(ctx, &key, from.node);
            return;
        };
        let owning = held.owning.as_deref().expect("just seen");
        let absorbed = held.absorbed.contains(&(from.node, version));
        let to = To::Shard(from.shard);
        if !absorbed && !held.state.covers(last) {
            let ask = Replication::Ask { key };
            return ctx.out.send(from.node, to, self.lane(), E::body(ask));
        }
        // It may go once the backup has all that we have now.
        let (backup, upto) = (owning.backup, held.version.op);
        if backup == Some(from.node) {
            // It has seen a ring that we have not, and does not trust its copy any more; nothing that is under way
            // will tell it otherwise.
            if owning.base.is_some() && !self.backups.is_under_way(&key) {
                self.fill_anew(&key);
            }
            return;
        }
        if let Some(owning) = self.held.get_mut(&key).and_then(|held| held.owning.as_deref_mut()) {
            owning.drops.retain(|(offerer, ..)| offerer.node != from.node);
            owning.drops.push((from, version, upto));
        }
        self.send_drops(ctx, &key);
    }

    /// Answers those who offered what is at the backup by now.
    pub(super) fn send_drops(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) {
        let lane = self.lane();
        let Some(owning) = self.held.get_mut(key).and_then(|held| held.owning.as_deref_mut()) else { return };
        let (has_backup, backed) = (owning.backup.is_some(), owning.backed);
        owning.drops.retain(|(offerer, version, upto)| {
            let safe = !has_backup || backed.is_some_and(|backed| backed >= *upto);
            let safe = safe || is_planted(Mutant::DroppedUnsafe);
            if safe {
                let drop = Replication::Drop(vec![(key.clone(), *version)]);
                ctx.out.send(offerer.node, To::Shard(offerer.shard), lane, E::body(drop));
            }
            !safe
        });
    }

    pub(super) fn on_drop(&mut self, ctx: &Ctx<'_>, from: Address, key: &E::Key, version: Version) {
        let placement = E::placement(&self.shared, key);
        if self.held.get(key).is_none_or(|held| held.version != version) {
            // It has gone on since: what is new in it is offered again.
            return;
        }
        let replicas = ctx.view.ring.replicas(placement, 2);
        if replicas.first() == Some(&from.node) && self.owns(key) {
            // The copy stays until those it was live for have been told; it is offered again.
            return self.step_down(key);
        }
        if !self.owns(key) && !replicas.contains(&self.me.node) {
            self.offers.forget(key);
            self.let_go(key);
        }
    }

    /// Copies that are to go to other nodes, or wait for word that they may be dropped.
    pub(crate) fn to_hand_over(&self, view: &crate::view::View) -> usize {
        // One not placed yet may be among them.
        if view.ring.nodes().is_empty() { 0 } else { self.offers.keys.len() + self.placing.left() }
    }
}
