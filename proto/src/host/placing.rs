//! What each key is after a change of the cluster: owned, backed up, to be offered, and backed up by whom.
//!
//! Belongs here: looking at every key once for each change, so many in a turn; which of them go first.
//! Stays out: what the cluster is (`view`), what follows for one key (`backup`, `opening`, `offers`).
//! How: views are counted, and each copy keeps the number of the view it was placed by. A key that anything is
//! said about is placed by the present view before that is heard ([`Host::place`]): what is said meets the key as
//! it is to be. For all others it is as if the view had come to them a moment later, as it comes to other nodes
//! and shards a moment later anyway. Views that come meanwhile begin the walk anew; a key may miss any but the last.
//! Units: a turn looks at `placed_per_turn` keys; one that changes its owner or backup counts as [`CHANGE_COSTS`].
//! Invariants: a key is placed by the present view, or the walk is under way.

use std::collections::VecDeque;

use super::{Entity, Event, Held, Host};
use crate::id::NodeRef;
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Ctx, Round};
use crate::view::{NodeInfo, NodeState};

/// A key that gets another owner or backup costs as much as so many that stay as they are: measured, about 10 µs
/// against a half.
pub(crate) const CHANGE_COSTS: usize = 16;

#[derive(Debug)]
pub(super) struct Placing<K> {
    /// Counts the views.
    view: u64,
    per_turn: usize,
    round: Round,
    /// Keys that somebody waits for: they are looked at before all others.
    first: VecDeque<K>,
}

impl<K> Placing<K> {
    pub(super) fn new(per_turn: usize) -> Self {
        Self { view: 0, per_turn, round: Round::default(), first: VecDeque::new() }
    }

    pub(super) fn view(&self) -> u64 {
        self.view
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.left() > 0
    }

    /// Keys not looked at yet, at most.
    pub(super) fn left(&self) -> usize {
        self.round.left() + self.first.len()
    }
}

impl<E: Entity> Host<E> {
    /// The cluster has changed: every key is to be placed anew.
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        self.now = ctx.now;
        if !(self.placing.is_under_way() && is_planted(Mutant::ChangeLeftToTheLast)) {
            self.placing.view += 1;
            self.placing.round.begin(self.held.slots());
        }
        let waited_for = self.backups.on_view(ctx);
        self.placing.first.extend(waited_for);
        self.openings_on_view(ctx);
    }

    /// Places as many keys as one turn may.
    pub(crate) fn place_some(&mut self, ctx: &mut Ctx<'_>) {
        self.now = ctx.now;
        let mut spent = 0;
        while spent < self.placing.per_turn {
            let key = match self.placing.first.pop_front() {
                Some(key) => Some(key),
                None => match self.placing.round.next(self.held.slots()) {
                    Some(slot) => self.held.key_at(slot).cloned(),
                    None => return,
                },
            };
            let changed = key.is_some_and(|key| self.place(ctx, &key));
            spent += if changed { CHANGE_COSTS } else { 1 };
        }
    }

    /// Whether keys are still to be placed by the present view.
    pub(crate) fn is_placing(&self) -> bool {
        self.placing.is_under_way()
    }

    /// Places a key by the present view, if it is not. Whether its owner or backup is another now.
    pub(crate) fn place(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) -> bool {
        let (view, me) = (self.placing.view, self.me.node);
        let Some(held) = self.held.get_mut(key).filter(|held| held.placed != view) else { return false };
        self.now = ctx.now;
        held.placed = view;
        held.absorbed.clear();
        let Some(owning) = held.owning.as_deref_mut() else { return self.place_copy(ctx, key) };
        let owner = ctx.view.owner(E::placement(&self.shared, key));
        let leaves = owner.is_some_and(|owner| owner != me);
        if held.state.on_view(&mut owning.live, ctx.view) {
            self.events.push_back(Event::Cut(key.clone()));
        }
        // Until it is handed over the old backup keeps up with it.
        let stays = leaves && owning.backup.is_some_and(|backup| ctx.view.is_up(backup));
        let backup = if stays { owning.backup } else { backup_for(ctx, &self.shared, me, key, &held.state) };
        let moves = backup != owning.backup;
        if moves {
            owning.backup = backup;
            owning.lose_backup();
        }
        if leaves {
            self.offers.look_at(key.clone());
        }
        if moves {
            self.backup_changed(key);
        }
        leaves || moves
    }

    fn place_copy(&mut self, ctx: &mut Ctx<'_>, key: &E::Key) -> bool {
        let Some(held) = self.held.get(key) else { return false };
        if ctx.view.owns(E::placement(&self.shared, key)) && is_orphan(ctx, self.me.node, held) {
            self.take_over(ctx, key);
            return true;
        }
        let is_away = self.who_should_have(ctx, key).is_some();
        if is_away {
            self.offers.look_at(key.clone());
        } else {
            self.offers.forget(key);
        }
        is_away
    }

    /// What was under way to `peer` is lost.
    pub(crate) fn on_link_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        self.now = ctx.now;
        // The peer has what it has confirmed: only what it has not is in doubt.
        for key in self.backups.forget_peer(peer, true) {
            if let Some(owning) = self.held.get_mut(&key).and_then(|held| held.owning.as_deref_mut())
                && owning.backup == Some(peer)
            {
                owning.lose_backup();
                self.backup_changed(&key);
            }
        }
        self.offers.repeat();
        self.ask_again_after_reset(ctx, peer);
    }
}

/// Who holds the copy of a key that this node owns: the next on the ring, whoever that is.
pub(super) fn backup_for<E: Entity>(
    ctx: &Ctx<'_>,
    shared: &E::Shared,
    me: NodeRef,
    key: &E::Key,
    state: &E,
) -> Option<NodeRef> {
    if !state.is_durable(shared, key) {
        return None;
    }
    ctx.view.ring.replicas(E::placement(shared, key), 2).into_iter().find(|node| *node != me)
}

/// Whether nobody alive is likely to have more than this copy. An earlier life of this node was declared
/// down, so another may have gone on since; and a node that drains may have been the backup.
pub(super) fn is_orphan<E: Entity>(ctx: &Ctx<'_>, me: NodeRef, held: &Held<E>) -> bool {
    let former = held.version.term.owner;
    let drains = |n: &NodeInfo| n.state() == NodeState::Draining && n.node != me;
    !held.unsure && former.id != me.id && !ctx.view.is_up(former) && !ctx.view.nodes.iter().any(drains)
}
