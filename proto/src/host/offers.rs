//! How a copy gets to whoever should have it.
//!
//! Belongs here: which copies are offered, how many at a time, what an owner answers.
//! Stays out: the copy itself, which is asked for (`opening`).
//! Units: `OFFERED_MAX` keys under way to one peer; repeated each second until answered.
//! Invariants: a copy that the ring does not place here is dropped only when the owner and its backup
//! hold all of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entity, Host};
use crate::collections::FixedMap;
use crate::id::{Address, NodeRef, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::Ctx;
use crate::wire::{Offered, Replication, To, Version};

/// Keys offered to one peer and not answered.
const OFFERED_MAX: usize = 64;
/// Keys looked for at a time because this node holds a copy; those that somebody wants come on top.
const OPENINGS_MAX: usize = 256;

/// Copies that are to be offered.
#[derive(Debug)]
pub(super) struct Offers<E: Entity> {
    /// Copies that may have to go elsewhere.
    keys: BTreeSet<E::Key>,
    /// Those of them that were not looked at since.
    fresh: BTreeSet<E::Key>,
    /// Offered, and to whom.
    offered: FixedMap<E::Key, NodeRef>,
    per_peer: BTreeMap<NodeRef, usize>,
}

impl<E: Entity> Default for Offers<E> {
    fn default() -> Self {
        Self {
            keys: BTreeSet::new(),
            fresh: BTreeSet::new(),
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

    pub(super) fn forget(&mut self, key: &E::Key) {
        self.answered(key);
        self.fresh.remove(key);
        self.keys.remove(key);
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
        self.fresh = self.keys.clone();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<E: Entity> Host<E> {
    /// Offers what is to be offered, as many as may be under way.
    pub(super) fn send_offers(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut groups: BTreeMap<(NodeRef, To), Vec<Offered<E::Key>>> = BTreeMap::new();
        let mut full = BTreeSet::new();
        let fresh = std::mem::take(&mut self.offers.fresh);
        let mut later = BTreeSet::new();
        for key in fresh {
            let placement = E::placement(&self.shared, &key);
            let Some(held) = self.held.get(&key) else {
                self.offers.keys.remove(&key);
                continue;
            };
            // Nobody owns anything: wait.
            let Some(owner) = ctx.view.owner(placement) else { continue };
            if owner == self.me.node {
                if held.owning.is_some() {
                    self.offers.keys.remove(&key);
                } else if self.openings.len() < OPENINGS_MAX {
                    self.open(ctx, &key, Term::NONE);
                } else {
                    later.insert(key);
                }
                continue;
            }
            let is_backup = ctx.view.ring.backup(placement) == Some(self.me.node);
            if held.owning.is_none() && is_backup && held.version.term.owner == owner {
                self.offers.keys.remove(&key);
                continue;
            }
            let under_way = self.offers.per_peer.entry(owner).or_default();
            if full.contains(&owner) || *under_way >= OFFERED_MAX {
                full.insert(owner);
                later.insert(key);
                continue;
            }
            *under_way += 1;
            let offered = Offered { key: key.clone(), version: held.version, last: held.state.last() };
            self.offers.offered.insert(key, owner);
            let shards = ctx.view.node(owner).and_then(|n| n.record.as_ref()).map(|r| r.shards);
            let to = shards.map_or(To::Host(placement), |shards| To::Shard(placement.shard(shards)));
            groups.entry((owner, to)).or_default().push(offered);
        }
        self.offers.fresh.append(&mut later);
        let any = !groups.is_empty();
        for ((peer, to), offered) in groups {
            ctx.out.send(peer, to, self.lane(), E::body(Replication::Offer(offered)));
        }
        any
    }

    pub(super) fn on_offer(&mut self, ctx: &mut Ctx<'_>, from: Address, offered: Offered<E::Key>) {
        let Offered { key, version, last } = offered;
        self.terms.heard(version.term);
        let placement = E::placement(&self.shared, &key);
        if !ctx.view.owns(placement) {
            return;
        }
        let Some(held) = self.held.get(&key).filter(|held| held.owning.is_some()) else {
            // Whoever offers it is asked first.
            self.open(ctx, &key, Term { number: version.term.number, owner: from.node });
            return;
        };
        let owning = held.owning.as_deref().expect("just seen");
        let absorbed = held.absorbed.contains(&(from.node, version));
        let to = To::Shard(from.shard);
        if !absorbed && !held.state.covers(last) {
            let ask = Replication::Ask { key };
            return ctx.out.send(from.node, to, self.lane(), E::body(ask));
        }
        let safe = owning.backup.is_none() || (owning.base.is_some() && owning.confirmed == held.version.op);
        let safe = safe || is_planted(Mutant::DroppedUnsafe);
        if safe && owning.backup != Some(from.node) {
            let drop = Replication::Drop(vec![(key, version)]);
            ctx.out.send(from.node, to, self.lane(), E::body(drop));
        }
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
            if let Some(held) = self.held.remove(key) {
                self.released(held);
            }
        }
    }

    /// Owned entities that the ring gives to others.
    pub(crate) fn to_hand_over(&self, view: &crate::view::View) -> usize {
        let leaving = |key: &&E::Key| {
            self.owns(key) && view.owner(E::placement(&self.shared, key)).is_some_and(|o| o != self.me.node)
        };
        self.offers.keys.iter().filter(leaving).count()
    }
}
