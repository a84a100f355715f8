//! Hosting entities: who owns a key, who holds a copy of it, and what may leave when.
//!
//! Belongs here: roles, terms, ops to the backup and their confirms, beginning a term, hand-over, offers
//! of copies. The same code for sessions and rooms.
//! Stays out: what an op does ([`Entity`]), what its effects are (`session`, `room`), the ring.
//! Units: ops are counted from 1 for each entity, through all its terms.
//! Invariants: an entity's replicated state changes by ops only, the same at owner and backup; two copies
//! of one [`Version`] are equal; a copy takes no ops of a term below its own, nor of anyone but the
//! node it was given to; an op is confirmed once the backup has it, or when no other node could.
//! When it breaks: a refused owner steps down or begins above; what it had not confirmed is in the copy
//! that it offers to the new one.
//!
//! | file | answers |
//! |---|---|
//! | `backup` | what owners tell backups: batches, confirms, whole copies |
//! | `copies` | what backups do with that |
//! | `opening` | how a node comes to own a key: it asks, it is given, it takes over |
//! | `offers` | how a copy gets to whoever should have it |
//! | `placing` | what each key is after a change of the cluster, a part of them at a time |
//! | `table` | entities by key, and in an order to walk through |
//!
//! Source: DESIGN §4; terms and log matching after Raft (Ongaro, Ousterhout 2014) §5.

mod backup;
mod copies;
mod durability;
mod offers;
mod opening;
mod placing;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use crate::entity::Terms;
use crate::id::{Address, Cursor, NodeRef, Placement, Term};
use crate::shard::Ctx;
use crate::time::Instant;
use crate::view::View;
use crate::wire::{self, Body, OwnershipFacts, Replication, Version};
use backup::Backups;

pub(crate) use durability::SingleCopy;
use offers::Offers;
pub(crate) use opening::Open;
use opening::{Opening, Ready};
pub(crate) use placing::CHANGE_COSTS;
use placing::{Placing, backup_for};
use table::Table;

/// What is hosted: replicated state that changes by ops.
pub(crate) trait Entity: Debug + Sized {
    /// Its name.
    type Key: Clone + Ord + Hash + Debug;
    /// A change.
    type Op: Clone + Debug;
    /// All of its replicated state, as it travels.
    type Copy: Clone + Debug;
    /// What only an owner has, and every owner makes anew.
    type Live: Debug + Default;
    /// What waits while a key is being opened.
    type Input: Debug;
    /// Bookkeeping over all entities of the shard.
    type Shared: Debug;

    /// Where a key lives.
    fn placement(shared: &Self::Shared, key: &Self::Key) -> Placement;
    /// The cluster has changed: what is live of the dead is forgotten. Whether [`Event::Cut`] is to say so.
    fn on_view(&self, _live: &mut Self::Live, _view: &View) -> bool {
        false
    }
    /// Whether this entity is to survive its owner.
    fn is_durable(&self, shared: &Self::Shared, key: &Self::Key) -> bool;
    /// A new one, if anybody may begin one that nobody holds.
    fn new(shared: &mut Self::Shared, key: &Self::Key, now: Instant, term: Term) -> Option<Self>;
    /// Carries out an op, here and at the backup alike.
    fn apply(&mut self, shared: &mut Self::Shared, key: &Self::Key, now: Instant, op: &Self::Op);
    /// All of it.
    fn to_copy(&self) -> Self::Copy;
    /// From all of it.
    fn from_copy(shared: &mut Self::Shared, key: &Self::Key, now: Instant, copy: Self::Copy) -> Self;
    /// It is not held here any more.
    fn released(self, shared: &mut Self::Shared, key: &Self::Key);
    /// The last place in it, where it is a log: of its newest entry.
    fn last(&self) -> Cursor;
    /// The same of a copy.
    fn last_of(copy: &Self::Copy) -> Cursor;
    /// Whether it holds all that a copy with this last place does.
    fn covers(&self, last: Cursor) -> bool;
    /// The ops that bring in what only `other` holds, in its order, under `term`; and whether something of
    /// it cannot be brought in any more.
    fn missing(&self, term: Term, other: &Self::Copy) -> (Vec<Self::Op>, bool);
    /// Whether `copy` is without something that this one holds.
    fn is_more_than(&self, copy: &Self::Copy) -> bool;
    /// Bytes of a copy, roughly.
    fn copy_bytes(&self) -> usize;
    /// A number over its replicated state, the same for equal copies.
    fn digest(&self) -> u64;
    /// The message that carries this.
    fn body(message: Replication<Self::Key, Self::Op, Self::Copy>) -> Body;
}

/// Replication of one kind of entity.
pub(crate) type MessageOf<E> = Replication<<E as Entity>::Key, <E as Entity>::Op, <E as Entity>::Copy>;

/// What has become of an entity, for the machine that hosts it.
#[derive(Debug)]
pub(crate) enum Event<E: Entity> {
    /// Owned from here on: nothing live is there yet.
    Began(E::Key),
    /// More of its ops are safe.
    Confirmed(E::Key),
    /// It has taken in what another copy held, by ops of its own; `true`: not all of it.
    Merged(E::Key, bool),
    /// The cluster has changed, and it has lost something by that.
    Cut(E::Key),
    /// Another owns it, or is about to; what was live is to be sent there by those it came from.
    Lost(E::Key, E::Live),
}

/// What an explanation says of an entity's ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub(crate) term: Term,
    pub(crate) began: Began,
    pub(crate) since: Instant,
    pub(crate) backup: Option<NodeRef>,
    /// Ops the backup has not confirmed.
    pub(crate) lag: u64,
    /// Ops so far.
    pub(crate) applied: u64,
}

impl Ownership {
    /// The same for people, at `now`.
    pub(crate) fn facts(&self, now: Instant) -> OwnershipFacts {
        let began = match self.began {
            Began::New => wire::Began::New,
            Began::TakeOver(from) => wire::Began::TakeOver { from },
            Began::HandOver(from) => wire::Began::HandOver { from },
        };
        let since_secs = now.since(self.since).as_secs();
        OwnershipFacts { backup: self.backup, lag_ops: self.lag, began, since_secs }
    }
}

/// How an ownership began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Began {
    /// Nobody had held it.
    New,
    /// Its owner was gone; this node was the backup.
    TakeOver(NodeRef),
    /// Handed over, or found at this node.
    HandOver(NodeRef),
}

/// One copy of an entity.
#[derive(Debug)]
struct Held<E: Entity> {
    version: Version,
    state: E,
    /// By which view of the cluster it is what it is here (see [`placing`]).
    placed: u64,
    owning: Option<Box<Owning<E>>>,
    /// Given to that node, which is to own it: nobody else's ops are taken until it is gone or this
    /// has passed.
    promised: Option<(NodeRef, Instant)>,
    /// Of an earlier life of this node, or of a time when the ring did not place it here: another may have
    /// gone on since, or ended it.
    unsure: bool,
    /// Copies of others that hold nothing more than this one.
    absorbed: Vec<(NodeRef, Version)>,
}

/// What an owner keeps beside the state.
#[derive(Debug)]
struct Owning<E: Entity> {
    live: E::Live,
    /// The term ops are applied under; from the first op on the version's.
    term: Term,
    began: Began,
    since: Instant,
    /// Tells this ownership from others of the same entity by this node.
    epoch: u64,
    backup: Option<NodeRef>,
    /// What the backup holds once it has taken all that was sent; `None`: it needs a whole copy.
    base: Option<Version>,
    /// The last whole copy sent, by number: what is refused of earlier news is settled by it.
    copied: u64,
    /// Ops not sent yet.
    pending: Vec<E::Op>,
    /// The last op that is safe: some backup had it, or there was no other node.
    confirmed: u64,
    /// The last op that the present backup has.
    backed: Option<u64>,
    /// Whoever offered what we hold too, and may drop it once the backup has this op.
    drops: Vec<(Address, Version, u64)>,
}

impl<E: Entity> Held<E> {
    fn new(version: Version, state: E, placed: u64) -> Self {
        Self { version, state, placed, owning: None, promised: None, unsure: false, absorbed: Vec::new() }
    }
}

impl<E: Entity> Owning<E> {
    /// The backup has nothing, as far as is known: it gets a whole copy.
    fn lose_backup(&mut self) {
        self.base = None;
        self.backed = None;
        self.pending.clear();
    }
}

/// Every entity of one kind that this shard owns or backs up.
#[derive(Debug)]
pub(crate) struct Host<E: Entity> {
    me: Address,
    now: Instant,
    pub(crate) shared: E::Shared,
    terms: Terms,
    epochs: u64,
    owned_max: usize,
    owned: usize,
    held: Table<E::Key, Held<E>>,
    placing: Placing<E::Key>,
    openings: BTreeMap<E::Key, Opening<E>>,
    ready: VecDeque<Ready<E>>,
    events: VecDeque<Event<E>>,
    backups: Backups<E>,
    offers: Offers<E>,
    /// Owned entities with something for their backup at the end of this turn.
    dirty: BTreeSet<E::Key>,
}

/// An owned entity, borrowed.
pub(crate) struct Owned<'a, E: Entity> {
    /// Changed by [`Owned::apply`] only.
    pub(crate) state: &'a mut E,
    pub(crate) live: &'a mut E::Live,
    pub(crate) term: Term,
    /// The last op that is safe.
    pub(crate) confirmed: u64,
    version: &'a mut Version,
    /// Ops for the backup; `None`: it gets a whole copy, or there is none.
    pending: Option<&'a mut Vec<E::Op>>,
    now: Instant,
    key: &'a E::Key,
    shared: &'a mut E::Shared,
    dirty: &'a mut BTreeSet<E::Key>,
}

impl<E: Entity> Owned<'_, E> {
    /// Applies an op. Its number: what follows from it waits for that confirm.
    pub(crate) fn apply(&mut self, op: E::Op) -> u64 {
        self.state.apply(self.shared, self.key, self.now, &op);
        *self.version = Version { term: self.term, op: self.version.op + 1 };
        if let Some(pending) = &mut self.pending {
            pending.push(op);
        }
        if !self.dirty.contains(self.key) {
            self.dirty.insert(self.key.clone());
        }
        self.version.op
    }

    /// The last op applied.
    pub(crate) fn applied(&self) -> u64 {
        self.version.op
    }
}

impl<E: Entity> Host<E> {
    pub(crate) fn new(me: Address, owned_max: usize, placed_per_turn: usize, shared: E::Shared) -> Self {
        Self {
            me,
            now: Instant::ZERO,
            shared,
            terms: Terms::new(me.node),
            epochs: 0,
            owned_max,
            owned: 0,
            held: Table::default(),
            placing: Placing::new(placed_per_turn),
            openings: BTreeMap::new(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            backups: Backups::default(),
            offers: Offers::default(),
            dirty: BTreeSet::new(),
        }
    }

    /// The entity, if this shard owns it.
    pub(crate) fn owned<'a>(&'a mut self, key: &'a E::Key) -> Option<Owned<'a, E>> {
        let held = self.held.get_mut(key)?;
        let owning = held.owning.as_deref_mut()?;
        let follows = owning.backup.is_some() && owning.base.is_some();
        Some(Owned {
            state: &mut held.state,
            live: &mut owning.live,
            term: owning.term,
            confirmed: owning.confirmed,
            version: &mut held.version,
            pending: follows.then_some(&mut owning.pending),
            now: self.now,
            key,
            shared: &mut self.shared,
            dirty: &mut self.dirty,
        })
    }

    /// The same, to look at.
    pub(crate) fn peek(&self, key: &E::Key) -> Option<(&E, &E::Live)> {
        let held = self.held.get(key)?;
        held.owning.as_deref().map(|owning| (&held.state, &owning.live))
    }

    pub(crate) fn owns(&self, key: &E::Key) -> bool {
        self.held.get(key).is_some_and(|held| held.owning.is_some())
    }

    /// Any copy, owned or not.
    pub(crate) fn copy(&self, key: &E::Key) -> Option<&E> {
        self.held.get(key).map(|held| &held.state)
    }

    /// Every copy, owned or not.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (&E::Key, &E)> {
        self.held.iter().map(|(key, held)| (key, &held.state))
    }

    /// Whether it is owned, or being looked for in order to be.
    pub(crate) fn is_known(&self, key: &E::Key) -> bool {
        self.owns(key) || self.openings.contains_key(key)
    }

    /// The state of any copy, to be trimmed by a bound that is not the entity's own.
    pub(crate) fn copy_mut(&mut self, key: &E::Key) -> Option<(&mut E, &mut E::Shared)> {
        self.held.get_mut(key).map(|held| (&mut held.state, &mut self.shared))
    }

    /// Owned entities.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&E::Key, &E, &E::Live)> {
        self.held.iter().filter_map(|(key, held)| {
            let owning = held.owning.as_deref()?;
            Some((key, &held.state, &owning.live))
        })
    }

    /// How many are owned.
    pub(crate) fn owned_count(&self) -> usize {
        self.owned
    }

    /// How many are held for others.
    pub(crate) fn copy_count(&self) -> usize {
        self.held.len() - self.owned
    }

    /// Begins an entity that cannot be anywhere yet, or that was looked for in vain.
    pub(crate) fn create(&mut self, ctx: &Ctx<'_>, key: &E::Key, state: E, above: Term) {
        let term = self.terms.begin(above);
        self.let_go(key);
        self.begin_new(ctx, key, term, state);
    }

    /// Begins what nobody holds.
    fn begin_new(&mut self, ctx: &Ctx<'_>, key: &E::Key, term: Term, state: E) {
        self.held.insert(key.clone(), Held::new(Version { term, op: 0 }, state, self.placing.view()));
        self.begin(ctx, key, term, Began::New, None);
    }

    /// The copy is not held here any more.
    fn let_go(&mut self, key: &E::Key) {
        if let Some(held) = self.held.remove(key) {
            self.released(key, held);
        }
    }

    /// Goes on under a term above `seen`.
    pub(crate) fn begin_above(&mut self, key: &E::Key, seen: Term) {
        let terms = &mut self.terms;
        if let Some(held) = self.held.get_mut(key)
            && let Some(owning) = held.owning.as_deref_mut()
            && seen > owning.term
        {
            owning.term = terms.begin(seen);
            self.dirty.insert(key.clone());
        }
    }

    /// It is over: the backup is told, and whoever gave or offered it and may still hold it.
    pub(crate) fn end(&mut self, key: &E::Key) {
        let Some(held) = self.held.remove(key) else { return };
        if let Some(owning) = held.owning.as_deref() {
            let giver = match owning.began {
                Began::HandOver(giver) => Some(giver),
                Began::New | Began::TakeOver(_) => None,
            };
            let offerers = owning.drops.iter().map(|(offerer, ..)| offerer.node);
            let holders: BTreeSet<NodeRef> = owning.backup.into_iter().chain(giver).chain(offerers).collect();
            for holder in holders {
                self.backups.ended(holder, key.clone(), owning.term);
            }
        }
        self.dirty.remove(key);
        self.released(key, held);
    }

    fn released(&mut self, key: &E::Key, held: Held<E>) {
        self.owned -= usize::from(held.owning.is_some());
        held.state.released(&mut self.shared, key);
    }

    /// Makes a held copy an owned one.
    fn begin(
        &mut self,
        ctx: &Ctx<'_>,
        key: &E::Key,
        term: Term,
        began: Began,
        base: Option<(NodeRef, Version)>,
    ) {
        let Some(held) = self.held.get_mut(key) else { return };
        let backup = backup_for(ctx, &self.shared, self.me.node, key, &held.state);
        let base = base.filter(|(node, _)| Some(*node) == backup).map(|(_, version)| version);
        self.epochs += 1;
        let confirmed = if backup.is_none() { held.version.op } else { 0 };
        let owning = Owning {
            live: E::Live::default(),
            term,
            began,
            since: ctx.now,
            epoch: self.epochs,
            backup,
            base,
            copied: 0,
            pending: Vec::new(),
            confirmed,
            backed: base.map(|version| version.op),
            drops: Vec::new(),
        };
        self.owned += usize::from(held.owning.is_none());
        held.owning = Some(Box::new(owning));
        held.promised = None;
        held.placed = self.placing.view();
        self.events.push_back(Event::Began(key.clone()));
        self.dirty.insert(key.clone());
        self.cancel_opening(key);
    }

    /// Another is to own it: the copy stays, what is live goes back to where it came from.
    fn step_down(&mut self, key: &E::Key) {
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(owning) = held.owning.take() else { return };
        self.owned -= 1;
        self.dirty.remove(key);
        self.backups.forget(key);
        self.offers.keep(key.clone());
        self.events.push_back(Event::Lost(key.clone(), owning.live));
    }

    /// What has become of entities since the last call.
    pub(crate) fn next_event(&mut self) -> Option<Event<E>> {
        self.events.pop_front()
    }

    pub(crate) fn ownership(&self, key: &E::Key) -> Option<Ownership> {
        let held = self.held.get(key)?;
        let owning = held.owning.as_deref()?;
        let Owning { term, began, since, backup, confirmed, .. } = *owning;
        let applied = held.version.op;
        Some(Ownership { term, began, since, backup, lag: applied.saturating_sub(confirmed), applied })
    }

    /// Every copy: key, whether owned, version, digest of its state.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (&E::Key, bool, Version, u64)> {
        self.held.iter().map(|(key, held)| {
            let version = match held.owning.as_deref() {
                Some(owning) => Version { term: owning.term, op: held.version.op },
                None => held.version,
            };
            (key, held.owning.is_some(), version, held.state.digest())
        })
    }

    /// Takes a message of another node's host. What has come of it is in [`Host::next_event`] and
    /// [`Host::next_ready`].
    pub(crate) fn handle(&mut self, ctx: &mut Ctx<'_>, from: Address, message: MessageOf<E>) {
        self.now = ctx.now;
        match message {
            Replication::Replicate { batch, items } => self.take_batch(ctx, from, batch, items),
            Replication::Replicated { batch, refused } => self.on_replicated(ctx, from, batch, refused),
            Replication::Offer(offered) => {
                for one in offered {
                    self.on_offer(ctx, from, one);
                }
            }
            Replication::Ask { key } => self.on_ask(ctx, from, key),
            Replication::Have { key, settled, owned, copy } => {
                self.on_have(ctx, from, key, settled, owned, copy);
            }
            Replication::NotYours { key } => self.on_not_yours(ctx, from, &key),
            Replication::Drop(keys) => {
                for (key, version) in keys {
                    self.on_drop(ctx, from, &key, version);
                }
            }
        }
    }

    /// Another life of this node: what it owned was another's ownership, and is offered to its owner.
    pub(crate) fn on_rebirth(&mut self, me: Address) {
        self.me = me;
        self.terms = Terms::new(me.node);
        let owned: Vec<E::Key> =
            self.held.iter().filter(|(_, held)| held.owning.is_some()).map(|(key, _)| key.clone()).collect();
        for key in owned {
            self.step_down(&key);
        }
        for (key, held) in self.held.iter_mut() {
            held.unsure = true;
            self.offers.look_at(key.clone());
        }
        self.backups = Backups::default();
        self.cancel_openings();
    }

    /// The turn is over: the next may send as many copies, and look at as many offers.
    pub(crate) fn turn_ends(&mut self) {
        self.backups.turn_ends();
        self.offers.turn_ends();
    }

    /// Whether the last turn has left something that the next can do without hearing anything.
    pub(crate) fn has_more(&self) -> bool {
        self.is_placing() || self.backups.has_more() || self.offers.has_more()
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        self.now = ctx.now;
        let sent = self.send_to_backups(ctx);
        let offered = self.send_offers(ctx);
        sent || offered
    }

    /// Once a second: what was offered and not taken is offered again.
    pub(crate) fn sweep(&mut self) {
        self.offers.repeat();
    }

    /// Whether there is anything to look after without a message.
    pub(crate) fn has_to_sweep(&self) -> bool {
        !self.offers.is_empty() || !self.openings.is_empty()
    }

    /// Asserts bounds and cross references.
    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.owned, self.held.iter().filter(|(_, held)| held.owning.is_some()).count());
        for (key, held) in self.held.iter() {
            assert!(
                held.placed == self.placing.view() || self.placing.is_under_way(),
                "{key:?}: not placed, and nobody will"
            );
            let Some(owning) = held.owning.as_deref() else { continue };
            assert!(owning.confirmed <= held.version.op, "{key:?}: more confirmed than applied");
            assert!(owning.term >= held.version.term, "{key:?}: applied under a term above its own");
            assert!(owning.term.owner == self.me.node, "{key:?}: owned under another's term");
            let waits = owning.confirmed < held.version.op || !owning.pending.is_empty();
            // One that is not placed yet may wait for a backup that is gone.
            if waits
                && held.placed == self.placing.view()
                && owning.backup.is_some()
                && !self.dirty.contains(key)
            {
                let sent = self.backups.is_under_way(key) || self.backups.waits(key);
                assert!(sent, "{key:?}: ops that nobody will confirm");
            }
            assert!(!self.openings.contains_key(key), "{key:?}: owned and being opened");
        }
        self.backups.check_invariants();
    }
}

/// One owned entity without a host, for tests of what ops lead to.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Alone<E: Entity> {
    pub(crate) state: E,
    pub(crate) live: E::Live,
    key: E::Key,
    version: Version,
    shared: E::Shared,
    dirty: BTreeSet<E::Key>,
}

#[cfg(test)]
impl<E: Entity> Alone<E> {
    pub(crate) fn new(key: E::Key, state: E, shared: E::Shared) -> Self {
        let (live, version) = (E::Live::default(), Version::default());
        Self { state, live, key, version, shared, dirty: BTreeSet::new() }
    }

    pub(crate) fn owned(&mut self) -> Owned<'_, E> {
        Owned {
            state: &mut self.state,
            live: &mut self.live,
            term: Term::NONE,
            confirmed: self.version.op,
            version: &mut self.version,
            pending: None,
            now: Instant::ZERO,
            key: &self.key,
            shared: &mut self.shared,
            dirty: &mut self.dirty,
        }
    }
}
