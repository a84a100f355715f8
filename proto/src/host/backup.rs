//! What owners tell their backups.
//!
//! Belongs here: one batch per turn and peer shard, its confirm, whole copies within a budget.
//! Stays out: what a backup does with it (`copies`).
//! Units: `COPIES_MAX` whole copies, and `COPY_BYTES_MAX` of them, are under way to one peer, and a turn makes
//! `COPIES_PER_TURN_MAX`; those with ops that wait go first.
//! When it breaks: a lost link or a refusal makes the next news of that entity a whole copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Entity, Event, Host, MessageOf, Version};
use crate::collections::FixedMap;
use crate::id::{Address, NodeRef, Term};
use crate::mutant::{Mutant, is_planted};
use crate::shard::{Ctx, TimerKey};
use crate::time::Instant;
use crate::wire::{Item, News, Refusal, Replication, To};

/// Whole copies under way to one peer: they share their lane with the ops of all others, which wait behind them.
const COPY_BYTES_MAX: usize = 1 << 20;
/// The same as a count: small copies cost by the piece, here and there about 10 µs, and every shard of every peer
/// may send so many.
const COPIES_MAX: usize = 64;
/// Whole copies made in one turn, for all peers.
const COPIES_PER_TURN_MAX: usize = 128;
/// In place of the epoch of an ownership: it is over.
const ENDED: u64 = 0;
/// A batch is sent on when it holds so much.
const BATCH_BYTES: usize = 256 << 10;
/// What a refused owner that stays one waits before it speaks again: about the time views take to agree.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// A backup silent for this long is reported (DESIGN §4).
pub(crate) const SILENT_AFTER: Duration = Duration::from_millis(250);

/// Batches under way, and entities that wait for their whole copy to be sent.
#[derive(Debug)]
pub(super) struct Backups<E: Entity> {
    batches: BTreeMap<u64, Batch<E>>,
    next_batch: u64,
    /// News sent so far.
    sent: u64,
    /// Whole copies under way, per peer.
    copying: BTreeMap<NodeRef, Copying>,
    /// How many more this turn may make.
    turn_left: usize,
    /// Entities that need a whole copy at that backup.
    waiting: BTreeMap<NodeRef, Waiting<E>>,
    /// Refused for now.
    paused: BTreeSet<E::Key>,
    /// Batches each entity is in.
    under_way: FixedMap<E::Key, u32>,
    ended: BTreeMap<NodeRef, Vec<(E::Key, Term)>>,
}

/// Whole copies to be sent to one peer. An entity that has got another backup since may still be in it.
#[derive(Debug)]
struct Waiting<E: Entity> {
    /// Something waits for them.
    urgent: BTreeSet<E::Key>,
    idle: BTreeSet<E::Key>,
}

impl<E: Entity> Default for Waiting<E> {
    fn default() -> Self {
        Self { urgent: BTreeSet::new(), idle: BTreeSet::new() }
    }
}

impl<E: Entity> Waiting<E> {
    fn pop(&mut self) -> Option<E::Key> {
        self.urgent.pop_first().or_else(|| self.idle.pop_first())
    }
}

/// Whole copies under way to one peer.
#[derive(Clone, Copy, Debug, Default)]
struct Copying {
    count: usize,
    bytes: usize,
}

/// News under way.
#[derive(Debug)]
struct Sent<E: Entity> {
    key: E::Key,
    /// Of which ownership.
    epoch: u64,
    /// What the backup has once it takes it.
    version: Version,
    /// Counts what is sent.
    number: u64,
}

#[derive(Debug)]
struct Batch<E: Entity> {
    to: NodeRef,
    sent: Instant,
    copies: Copying,
    items: Vec<Sent<E>>,
}

impl<E: Entity> Default for Backups<E> {
    fn default() -> Self {
        Self {
            batches: BTreeMap::new(),
            next_batch: 1,
            sent: 0,
            copying: BTreeMap::new(),
            turn_left: COPIES_PER_TURN_MAX,
            waiting: BTreeMap::new(),
            paused: BTreeSet::new(),
            under_way: FixedMap::default(),
            ended: BTreeMap::new(),
        }
    }
}

impl<E: Entity> Backups<E> {
    pub(super) fn ended(&mut self, backup: NodeRef, key: E::Key, term: Term) {
        self.forget(&key);
        self.ended.entry(backup).or_default().push((key, term));
    }

    /// It is not owned here any more.
    pub(super) fn forget(&mut self, key: &E::Key) {
        self.paused.remove(key);
        for waiting in self.waiting.values_mut() {
            waiting.urgent.remove(key);
            waiting.idle.remove(key);
        }
    }

    fn wait(&mut self, backup: NodeRef, key: &E::Key, urgent: bool) {
        let waiting = self.waiting.entry(backup).or_default();
        if urgent {
            waiting.idle.remove(key);
            waiting.urgent.insert(key.clone());
        } else if !waiting.urgent.contains(key) {
            waiting.idle.insert(key.clone());
        }
    }

    /// Nothing that was under way to `peer` will be answered. What has ended is told again, if the peer
    /// is still there. Returns whose news are lost.
    pub(super) fn forget_peer(&mut self, peer: NodeRef, is_up: bool) -> Vec<E::Key> {
        let lost: Vec<u64> = self.batches.iter().filter(|(_, b)| b.to == peer).map(|(n, _)| *n).collect();
        let mut keys = Vec::new();
        for number in lost {
            let Some(batch) = self.take(number) else { continue };
            for sent in batch.items {
                if sent.epoch != ENDED {
                    keys.push(sent.key);
                } else if is_up {
                    self.ended.entry(peer).or_default().push((sent.key, sent.version.term));
                }
            }
        }
        self.copying.remove(&peer);
        keys
    }

    /// What is for the dead is not sent. Returns the keys whose ops wait for another backup now.
    pub(super) fn on_view(&mut self, ctx: &Ctx<'_>) -> Vec<E::Key> {
        let gone: BTreeSet<NodeRef> =
            self.batches.values().map(|b| b.to).filter(|node| !ctx.view.is_up(*node)).collect();
        let mut waited_for: Vec<E::Key> =
            gone.into_iter().flat_map(|peer| self.forget_peer(peer, false)).collect();
        self.ended.retain(|node, _| ctx.view.is_up(*node));
        self.waiting.retain(|node, waiting| {
            let is_up = ctx.view.is_up(*node);
            if !is_up {
                waited_for.extend(std::mem::take(&mut waiting.urgent));
            }
            is_up
        });
        waited_for
    }

    pub(super) fn turn_ends(&mut self) {
        self.turn_left = COPIES_PER_TURN_MAX;
    }

    /// Whether more copies could be sent to somebody.
    pub(super) fn has_more(&self) -> bool {
        self.waiting.keys().any(|peer| self.may_copy_to(*peer))
    }

    fn take(&mut self, number: u64) -> Option<Batch<E>> {
        let batch = self.batches.remove(&number)?;
        if let Some(copying) = self.copying.get_mut(&batch.to) {
            copying.bytes = copying.bytes.saturating_sub(batch.copies.bytes);
            copying.count = copying.count.saturating_sub(batch.copies.count);
        }
        for Sent { key, .. } in &batch.items {
            if let Some(count) = self.under_way.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.under_way.remove(key);
                }
            }
        }
        Some(batch)
    }

    pub(super) fn is_under_way(&self, key: &E::Key) -> bool {
        self.under_way.contains_key(key)
    }

    pub(super) fn waits(&self, key: &E::Key) -> bool {
        let mut waiting = self.waiting.values();
        self.paused.contains(key) || waiting.any(|w| w.urgent.contains(key) || w.idle.contains(key))
    }

    /// Entities whose whole copy is still to be sent.
    pub(super) fn copies_pending(&self) -> usize {
        self.paused.len() + self.waiting.values().map(|w| w.urgent.len() + w.idle.len()).sum::<usize>()
    }

    /// Backups that have not answered for [`SILENT_AFTER`].
    pub(super) fn silent(&self, now: Instant) -> BTreeSet<NodeRef> {
        let late = self.batches.values().filter(|b| now.since(b.sent) >= SILENT_AFTER);
        late.map(|b| b.to).collect()
    }

    /// Whether one more may be under way.
    fn may_copy_to(&self, peer: NodeRef) -> bool {
        let Copying { count, bytes } = self.copying.get(&peer).copied().unwrap_or_default();
        self.turn_left > 0 && count < COPIES_MAX && bytes < COPY_BYTES_MAX
    }

    pub(super) fn check_invariants(&self) {
        let items: usize = self.batches.values().map(|b| b.items.len()).sum();
        assert_eq!(items, self.under_way.values().map(|count| *count as usize).sum::<usize>());
    }
}

/// Whom a batch is for: the backup's shard, and the lane of ours.
type Group = (NodeRef, To);

#[derive(Debug)]
struct Filling<E: Entity> {
    items: Vec<Item<E::Key, E::Op, E::Copy>>,
    sent: Vec<Sent<E>>,
    copies: Copying,
}

impl<E: Entity> Default for Filling<E> {
    fn default() -> Self {
        Self { items: Vec::new(), sent: Vec::new(), copies: Copying::default() }
    }
}

impl<E: Entity> Host<E> {
    /// The backup is another, or has lost its copy: it gets a whole one.
    pub(super) fn backup_changed(&mut self, key: &E::Key) {
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(owning) = held.owning.as_deref_mut() else { return };
        self.backups.forget(key);
        match owning.backup {
            None => {
                owning.confirmed = held.version.op;
                self.events.push_back(Event::Confirmed(key.clone()));
            }
            Some(backup) => {
                let urgent = owning.confirmed < held.version.op;
                if urgent || !is_planted(Mutant::BackupNotFilled) {
                    self.backups.wait(backup, key, urgent);
                }
            }
        }
    }

    /// The backup gets a whole copy, whatever it has.
    pub(super) fn fill_anew(&mut self, key: &E::Key) {
        if let Some(owning) = self.held.get_mut(key).and_then(|held| held.owning.as_deref_mut()) {
            owning.lose_backup();
            self.backup_changed(key);
        }
    }

    /// Something waits for the ops of this entity: its copy goes before those that nothing waits for.
    pub(crate) fn hurry(&mut self, key: &E::Key) {
        let Some(owning) = self.held.get(key).and_then(|held| held.owning.as_deref()) else { return };
        if let (Some(backup), None) = (owning.backup, owning.base)
            && !self.backups.paused.contains(key)
        {
            self.backups.wait(backup, key, true);
        }
    }

    /// Sends the ops of this turn, and as many whole copies as may be under way.
    pub(super) fn send_to_backups(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        let any = !dirty.is_empty() || !self.backups.ended.is_empty();
        let mut filling: BTreeMap<Group, Filling<E>> = BTreeMap::new();
        for key in &dirty {
            self.fill(ctx, &mut filling, key);
        }
        for (peer, ended) in std::mem::take(&mut self.backups.ended) {
            for (key, term) in ended {
                let to = group::<E>(ctx, &self.shared, peer, &key);
                let version = Version { term, op: u64::MAX };
                let filling = filling.entry(to).or_default();
                filling.items.push(Item { key: key.clone(), term, news: News::Ended });
                filling.sent.push(Sent { key, epoch: ENDED, version, number: 0 });
            }
        }
        let peers: Vec<NodeRef> = self.backups.waiting.keys().copied().collect();
        for peer in peers {
            while self.backups.may_copy_to(peer)
                && let Some(key) = self.backups.waiting.get_mut(&peer).and_then(Waiting::pop)
            {
                self.fill_copy(ctx, &mut filling, peer, &key);
            }
        }
        self.backups.waiting.retain(|_, w| !w.urgent.is_empty() || !w.idle.is_empty());
        for (group, batch) in filling {
            self.send_batch(ctx, group, batch);
        }
        any
    }

    /// Puts the news of one entity into its batch.
    fn fill(&mut self, ctx: &mut Ctx<'_>, filling: &mut BTreeMap<Group, Filling<E>>, key: &E::Key) {
        self.place(ctx, key);
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(owning) = held.owning.as_deref_mut() else { return };
        let Some(backup) = owning.backup else {
            owning.confirmed = held.version.op;
            self.events.push_back(Event::Confirmed(key.clone()));
            return;
        };
        let Some(base) = owning.base else {
            if !self.backups.paused.contains(key) {
                self.backups.wait(backup, key, true);
            }
            return;
        };
        // An op under a new term may be none at all: the backup is to hear of the term.
        held.version.term = owning.term;
        if base == held.version {
            return;
        }
        owning.base = Some(held.version);
        if is_planted(Mutant::ReleasedEarly) {
            owning.confirmed = held.version.op;
            self.events.push_back(Event::Confirmed(key.clone()));
        }
        let news = News::Ops { base, ops: std::mem::take(&mut owning.pending) };
        let item = Item { key: key.clone(), term: owning.term, news };
        let group = group::<E>(ctx, &self.shared, backup, key);
        let batch = filling.entry(group).or_default();
        batch.items.push(item);
        self.backups.sent += 1;
        let number = self.backups.sent;
        batch.sent.push(Sent { key: key.clone(), epoch: owning.epoch, version: held.version, number });
    }

    /// Puts a whole copy into its batch, if that peer is still to have one.
    fn fill_copy(
        &mut self,
        ctx: &mut Ctx<'_>,
        filling: &mut BTreeMap<Group, Filling<E>>,
        peer: NodeRef,
        key: &E::Key,
    ) {
        self.place(ctx, key);
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(owning) = held.owning.as_deref_mut() else { return };
        if owning.backup != Some(peer) || owning.base.is_some() {
            return;
        }
        held.version.term = owning.term;
        owning.base = Some(held.version);
        owning.pending.clear();
        let bytes = held.state.copy_bytes();
        let absorbed = held.absorbed.iter().find(|(node, _)| *node == peer).map(|(_, version)| *version);
        let news = News::Copy { op: held.version.op, copy: held.state.to_copy(), absorbed };
        let item = Item { key: key.clone(), term: owning.term, news };
        let to = group::<E>(ctx, &self.shared, peer, key);
        let batch = filling.entry(to).or_default();
        batch.items.push(item);
        self.backups.sent += 1;
        owning.copied = self.backups.sent;
        let number = owning.copied;
        batch.sent.push(Sent { key: key.clone(), epoch: owning.epoch, version: held.version, number });
        self.backups.turn_left = self.backups.turn_left.saturating_sub(1);
        for copies in [&mut batch.copies, self.backups.copying.entry(peer).or_default()] {
            copies.bytes += bytes;
            copies.count += 1;
        }
        if batch.copies.bytes >= BATCH_BYTES {
            let full = std::mem::take(batch);
            self.send_batch(ctx, to, full);
        }
    }

    fn send_batch(&mut self, ctx: &mut Ctx<'_>, (peer, to): Group, filled: Filling<E>) {
        if filled.items.is_empty() {
            return;
        }
        let number = self.backups.next_batch;
        self.backups.next_batch += 1;
        for Sent { key, .. } in &filled.sent {
            *self.backups.under_way.entry(key.clone()).or_default() += 1;
        }
        let batch = Batch { to: peer, sent: ctx.now, copies: filled.copies, items: filled.sent };
        self.backups.batches.insert(number, batch);
        let message: MessageOf<E> = Replication::Replicate { batch: number, items: filled.items };
        ctx.out.send(peer, to, self.lane(), E::body(message));
    }

    /// A backup answers.
    pub(super) fn on_replicated(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        number: u64,
        refused: Vec<(u32, Refusal<E::Copy>)>,
    ) {
        if self.backups.batches.get(&number).is_none_or(|batch| batch.to != from.node) {
            return;
        }
        let Some(batch) = self.backups.take(number) else { return };
        let mut refused: BTreeMap<u32, Refusal<E::Copy>> = refused.into_iter().collect();
        for (index, Sent { key, epoch, version, number }) in (0..).zip(batch.items) {
            let refusal = refused.remove(&index);
            let Some(held) = self.held.get_mut(&key) else { continue };
            let Some(owning) = held.owning.as_deref_mut() else { continue };
            if owning.epoch != epoch || owning.backup != Some(from.node) {
                continue;
            }
            match refusal {
                None => {
                    if number >= owning.copied && owning.base.is_some() {
                        owning.backed = owning.backed.max(Some(version.op));
                    }
                    if version.op > owning.confirmed {
                        owning.confirmed = version.op;
                        self.events.push_back(Event::Confirmed(key.clone()));
                    }
                    if !owning.drops.is_empty() {
                        self.send_drops(ctx, &key);
                    }
                }
                // A whole copy has followed, or is the answer to what was refused before.
                Some(_) if number < owning.copied => {}
                Some(refusal) => {
                    self.place(ctx, &key);
                    self.on_refused(ctx, &key, from.node, refusal);
                }
            }
        }
        // There may be room for more copies now.
        if self.backups.copies_pending() > 0 {
            self.send_to_backups(ctx);
        }
    }

    fn on_refused(&mut self, ctx: &mut Ctx<'_>, key: &E::Key, by: NodeRef, refusal: Refusal<E::Copy>) {
        let placement = E::placement(&self.shared, key);
        let mine = ctx.view.owns(placement);
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(owning) = held.owning.as_deref_mut() else { return };
        // By the present view it may be another's by now.
        let Some(backup) = owning.backup.filter(|backup| *backup == by) else { return };
        owning.lose_backup();
        match refusal {
            Refusal::Missing => {
                self.backup_changed(key);
                return;
            }
            Refusal::Lacks(version, copy) => {
                self.begin_above(key, version.term);
                self.merge(key, &copy);
                self.absorbed(key, backup, version);
                self.backup_changed(key);
                return;
            }
            Refusal::Higher(term) => {
                ctx.stats.fences_total += 1;
                if !mine {
                    self.step_down(key);
                    return self.offers.look_at(key.clone());
                }
                self.begin_above(key, term);
            }
            Refusal::Promised(_) if !mine => {
                self.step_down(key);
                return self.offers.look_at(key.clone());
            }
            Refusal::Promised(_) => {}
        }
        self.backups.forget(key);
        self.backups.paused.insert(key.clone());
        ctx.timers.set(ctx.now + REFUSED_PAUSE, TimerKey::Retry);
    }

    /// Those refused a while ago speak again.
    pub(super) fn retry_backups(&mut self) {
        for key in std::mem::take(&mut self.backups.paused) {
            self.backup_changed(&key);
        }
    }

    /// Entities whose backup is still to get a whole copy.
    pub(crate) fn copies_pending(&self) -> usize {
        self.backups.copies_pending()
    }

    /// Ops applied that backups have not confirmed.
    pub(crate) fn lag_ops(&self) -> u64 {
        let unsent = self.dirty.iter().filter(|key| !self.backups.is_under_way(key));
        let unsafe_keys = self.backups.under_way.keys().chain(unsent);
        unsafe_keys.filter_map(|key| self.ownership(key)).map(|ownership| ownership.lag).sum()
    }

    /// Backups that owe an answer for too long.
    pub(crate) fn silent_backups(&self, now: Instant) -> usize {
        self.backups.silent(now).len()
    }
}

fn group<E: Entity>(ctx: &Ctx<'_>, shared: &E::Shared, peer: NodeRef, key: &E::Key) -> Group {
    (peer, ctx.host_of(peer, E::placement(shared, key)))
}
