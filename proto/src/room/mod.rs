//! Rooms owned by this shard: ordered logs of events, and who is served from them.
//!
//! Belongs here: appending publishes once, serving edge shards from their cursors, trimming.
//! Stays out: members and delivery to clients (`edge`), who may publish (`session`, the HTTP API).
//! Units: bytes of an entry are its payload and a flat overhead.
//! Invariants: positions strictly rise under every owner; an entry leaves only when committed; a
//! subscriber has at most its window under way; every table has a bound.
//! When it breaks: a new owner begins a term above every cursor it is shown; what the old one alone
//! held is told as a gap.

mod dedupe;
mod log;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::collections::FixedMap;
use crate::entity::{CommitQueue, Committed, Terms};
use crate::id::{Address, Cursor, NodeRef, Placement, PublishId, RoomKey, Term};
use crate::limits::Limits;
use crate::shard::{Ctx, Out};
use crate::time::Instant;
use crate::wire::{
    Answer, Body, COUNTER_END, CommandFailed, DedupeKey, Lane, NotOwner, Payload, Publish, PublishRefused,
    RoomEntry, RoomEvent, RoomFacts, RoomToEdge, RoomToPublisher, Subject, Subscription, To, ToRoom,
};
use dedupe::{Dedupe, Verdict};
use log::RoomLog;
pub(crate) use log::entry_bytes;

/// What may be under way to one subscriber; the tail it feeds holds as much.
const WINDOW_BYTES: u64 = 256 << 10;
/// Marks kept beyond twice the entries there are, before they are looked through.
const MARKS_SLACK: usize = 1_024;
/// A subscriber reports what it has taken each time it is this much.
pub(crate) const REPORT_BYTES: usize = 64 << 10;

/// Every room this shard owns.
#[derive(Debug)]
pub(crate) struct Rooms {
    limits: Limits,
    rooms_max: usize,
    terms: Terms,
    rooms: FixedMap<RoomKey, Room>,
    /// Entries of all logs in the order they were appended: the oldest of all rooms go first.
    /// A mark names its entry: an entry may be gone by its own room's bounds.
    ages: VecDeque<(Instant, RoomKey, u64)>,
    log_entries: usize,
    log_bytes: usize,
    /// Rooms with something to send at the end of this turn.
    dirty: BTreeSet<RoomKey>,
}

#[derive(Debug)]
struct Room {
    term: Term,
    log: RoomLog,
    /// Seq of the last entry that is safe to serve.
    committed: u64,
    subscribers: BTreeMap<Address, Subscriber>,
    dedupe: Dedupe,
    effects: CommitQueue<Effect>,
    used: Instant,
}

/// An edge shard's relay of this room.
#[derive(Clone, Copy, Debug)]
struct Subscriber {
    /// Seq of the last entry sent.
    sent: u64,
    /// Log offset of the end of the last entry it has taken.
    taken_offset: u64,
}

/// What an op of a room leads to, once it is safe.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "waits for a moment; boxed it would cost an allocation per publish"
)]
enum Effect {
    /// Entries up to this one may be served.
    Serve(u64),
    /// The publisher may be told.
    Tell(Address, Body),
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    /// In the log, now or since earlier.
    At { at: Cursor, duplicate: bool },
    /// Never.
    Refused(PublishRefused),
    /// Not here, or not yet: repeat by the ring.
    NotHere,
}

impl Rooms {
    pub(crate) fn new(me: Address, shards: u16, limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            rooms_max: (limits.rooms_per_node_max / usize::from(shards.max(1))).max(1),
            terms: Terms::new(me.node),
            rooms: FixedMap::default(),
            ages: VecDeque::new(),
            log_entries: 0,
            log_bytes: 0,
            dirty: BTreeSet::new(),
        }
    }

    pub(crate) fn handle(&mut self, ctx: &mut Ctx<'_>, from: Address, message: ToRoom) {
        match message {
            ToRoom::Publish(publish) => self.on_publish(ctx, from, publish),
            ToRoom::Subscribe(list) => {
                for subscription in list {
                    self.subscribe(ctx, from, subscription);
                }
            }
            ToRoom::Unsubscribe(list) => {
                for key in list {
                    if let Some(room) = self.rooms.get_mut(&key) {
                        room.subscribers.remove(&from);
                    }
                }
            }
            ToRoom::Taken { room: key, cursor } => {
                let Some(room) = self.rooms.get_mut(&key) else { return };
                if let Some(subscriber) = room.subscribers.get_mut(&from) {
                    // Nobody can have taken what it was not sent.
                    let offset = room.log.offset_after(cursor.seq.min(subscriber.sent));
                    subscriber.taken_offset = subscriber.taken_offset.max(offset);
                    if subscriber.sent < room.committed {
                        self.dirty.insert(key);
                    }
                }
            }
        }
    }

    fn on_publish(&mut self, ctx: &mut Ctx<'_>, from: Address, publish: Publish) {
        let (room, id) = (publish.room.clone(), publish.id);
        match self.publish(ctx, publish) {
            Published::At { at, .. } => {
                let published = RoomToPublisher::Published { room: room.clone(), id, at };
                self.tell(room, from, Body::RoomToPublisher(published));
            }
            Published::Refused(why) => {
                let placement = room.placement();
                let refused = RoomToPublisher::Refused { room, id, why };
                ctx.out.send_to_address(from, placement, Body::RoomToPublisher(refused));
            }
            Published::NotHere => not_owner(ctx, from, Subject::Room(room.clone()), &room),
        }
    }

    /// A publish by the HTTP API, answered as a call.
    pub(crate) fn on_call(&mut self, ctx: &mut Ctx<'_>, from: Address, call: u64, publish: Publish) {
        let room = publish.room.clone();
        match self.publish(ctx, publish) {
            Published::At { at, duplicate } => {
                let answer = Ok(Answer::Published { at, duplicate });
                self.tell(room, from, Body::Answer { call, answer });
            }
            Published::Refused(PublishRefused::RoomsPerNode) => {
                let why = "the node owns as many rooms as it may".to_owned();
                let answer = Err(CommandFailed::Refused(why));
                ctx.out.send_to_address(from, room.placement(), Body::Answer { call, answer });
            }
            Published::NotHere => not_owner(ctx, from, Subject::Call(call), &room),
        }
    }

    /// Says so once the last op is safe.
    fn tell(&mut self, key: RoomKey, to: Address, body: Body) {
        if let Some(room) = self.rooms.get_mut(&key) {
            room.effects.push(Effect::Tell(to, body));
            self.dirty.insert(key);
        }
    }

    /// Appends once. Whoever asked is answered by [`Rooms::tell`].
    fn publish(&mut self, ctx: &mut Ctx<'_>, publish: Publish) -> Published {
        if !ctx.view.owns(publish.room.placement()) {
            return Published::NotHere;
        }
        let now = ctx.now;
        let Some(room) = self.room(now, &publish.room) else {
            return Published::Refused(PublishRefused::RoomsPerNode);
        };
        let term = room.term;
        room.effects.applied();
        match room.dedupe.judge(publish.id, publish.after, publish.dedupe.as_ref()) {
            Verdict::OutOfOrder => return Published::NotHere,
            Verdict::Seen(at) => {
                ctx.stats.duplicates_total += 1;
                return Published::At { at, duplicate: true };
            }
            // An idempotency key seen under another publish id: that id may be repeated as well.
            Verdict::SeenKey(at) => {
                ctx.stats.duplicates_total += 1;
                self.remember(now, &publish.room, publish.id, None, at);
                return Published::At { at, duplicate: true };
            }
            Verdict::New => {}
        }
        if publish.event.volatile {
            let at = room.log.last();
            self.volatile(ctx, &publish.room, &publish.event);
            return Published::At { at, duplicate: false };
        }
        let entry = RoomEntry { term, id: publish.id, event: publish.event };
        let bytes = entry_bytes(&entry);
        let at = room.log.append(entry);
        room.effects.push(Effect::Serve(at.seq));
        self.log_bytes += bytes;
        self.log_entries += 1;
        self.ages.push_back((now, publish.room.clone(), at.seq));
        ctx.stats.publishes_total += 1;
        self.remember(now, &publish.room, publish.id, publish.dedupe, at);
        self.trim_to_bounds(&publish.room);
        self.dirty.insert(publish.room);
        Published::At { at, duplicate: false }
    }

    /// A volatile event goes beside the log to whoever is subscribed now.
    fn volatile(&self, ctx: &mut Ctx<'_>, key: &RoomKey, event: &RoomEvent) {
        let Some(room) = self.rooms.get(key) else { return };
        for (node, mask) in by_node(room.subscribers.keys().copied()) {
            let message = RoomToEdge::Volatile { room: key.clone(), event: event.clone() };
            ctx.out.send(node, To::Shards(mask), Lane::of(key.placement()), Body::RoomToEdge(message));
        }
    }

    fn remember(
        &mut self,
        now: Instant,
        key: &RoomKey,
        id: PublishId,
        dedupe: Option<DedupeKey>,
        at: Cursor,
    ) {
        let limits = &self.limits;
        if let Some(room) = self.rooms.get_mut(key) {
            room.dedupe.remember(now, limits, id, dedupe, at);
        }
    }

    /// The room, begun under a new term if this shard does not have it; `None` at the bound.
    fn room(&mut self, now: Instant, key: &RoomKey) -> Option<&mut Room> {
        if !self.rooms.contains_key(key) && self.rooms.len() >= self.rooms_max {
            return None;
        }
        let terms = &mut self.terms;
        let room = self.rooms.entry(key.clone()).or_insert_with(|| Room {
            term: terms.begin(Term::NONE),
            log: RoomLog::new(),
            committed: 0,
            subscribers: BTreeMap::new(),
            dedupe: Dedupe::default(),
            effects: CommitQueue::default(),
            used: now,
        });
        room.used = now;
        Some(room)
    }

    fn subscribe(&mut self, ctx: &mut Ctx<'_>, from: Address, subscription: Subscription) {
        let Subscription { room: key, after, term, at_head } = subscription;
        let bounce = Subject::Room(key.clone());
        if !ctx.view.owns(key.placement()) {
            return not_owner(ctx, from, bounce, &key);
        }
        // At the bound of rooms the edge asks again later, as it does when it was wrong.
        let Some(room) = self.room(ctx.now, &key) else { return not_owner(ctx, from, bounce, &key) };
        if term.number >= COUNTER_END {
            return;
        }
        let known = room.log.contains(after, room.term);
        if term > room.term {
            let term = self.terms.begin(term);
            let room = self.rooms.get_mut(&key).expect("just made");
            if known || at_head {
                room.term = term;
            } else {
                room.begin_above(ctx, &key, term);
            }
        }
        let room = self.rooms.get_mut(&key).expect("just made");
        let seq = match at_head {
            true => room.committed,
            false => room.log.seq_at(after).min(room.committed.max(room.log.first() - 1)),
        };
        // A valid cursor is taken at its word; at the head the next entry will be of this term.
        let start = match known && !at_head {
            true => after,
            false if seq == room.log.head() => Cursor { term: room.term, seq },
            false => room.log.position(seq),
        };
        let gap = !known && !at_head;
        ctx.stats.gaps_total += u64::from(gap);
        let subscribed = RoomToEdge::Subscribed { room: key.clone(), term: room.term, from: start, gap };
        let taken_offset = room.log.offset_after(seq);
        room.subscribers.insert(from, Subscriber { sent: seq, taken_offset });
        ctx.out.send_to_address(from, key.placement(), Body::RoomToEdge(subscribed));
        if seq < room.committed {
            self.dirty.insert(key);
        }
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(room) = self.rooms.get_mut(key) else { continue };
            // One copy only for now: every op is as safe as it gets. The backup's confirm goes here.
            room.effects.confirm_all();
            while let Some(effect) = room.effects.release() {
                room.carry_out(key.placement(), effect, ctx.out);
            }
            room.serve(ctx, key);
        }
        !dirty.is_empty()
    }

    fn trim_to_bounds(&mut self, key: &RoomKey) {
        let Some(room) = self.rooms.get_mut(key) else { return };
        while room.log.len() > self.limits.room_log_entries_max
            || (room.log.bytes() > self.limits.room_log_bytes_max && room.log.len() > 1)
        {
            self.log_bytes -= room.log.trim_first();
            self.log_entries -= 1;
        }
        while self.log_bytes > self.limits.room_logs_bytes_max && self.trim_oldest() {}
        // Marks of entries that their own room's bounds have trimmed already.
        if self.ages.len() > 2 * self.log_entries + MARKS_SLACK {
            let rooms = &self.rooms;
            self.ages.retain(|(_, key, seq)| rooms.get(key).is_some_and(|room| room.log.first() <= *seq));
        }
    }

    /// Trims the oldest entry of all, if its own room has not yet; `false` when there is none left.
    fn trim_oldest(&mut self) -> bool {
        let Some((_, key, seq)) = self.ages.pop_front() else { return false };
        if let Some(room) =
            self.rooms.get_mut(&key).filter(|room| room.log.first() <= seq && room.log.len() > 0)
        {
            self.log_bytes -= room.log.trim_first();
            self.log_entries -= 1;
        }
        true
    }

    /// Drops what is too old, and rooms that nobody uses.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let age_max = self.limits.room_log_age_max;
        while self.ages.front().is_some_and(|(since, ..)| now.since(*since) >= age_max) {
            self.trim_oldest();
        }
        let limits = &self.limits;
        let (mut freed, mut entries) = (0, 0);
        self.rooms.retain(|_, room| {
            room.dedupe.expire(now, limits);
            let idle = room.subscribers.is_empty()
                && room.dedupe.is_empty()
                && now.since(room.used) >= limits.room_log_age_max;
            if idle {
                freed += room.log.bytes();
                entries += room.log.len();
            }
            !idle
        });
        self.log_bytes -= freed;
        self.log_entries -= entries;
    }

    /// The cluster has changed: rooms that are another's now are dropped, dead subscribers forgotten.
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        let (mut freed, mut entries) = (0, 0);
        self.rooms.retain(|key, room| {
            room.subscribers.retain(|address, _| ctx.view.is_up(address.node));
            let owned = ctx.view.owns(key.placement());
            if !owned {
                freed += room.log.bytes();
                entries += room.log.len();
                // An edge that has not seen this ring, or sees us own the room again in its next one,
                // would take our silence for a quiet room.
                for address in room.subscribers.keys() {
                    not_owner(ctx, *address, Subject::Room(key.clone()), key);
                }
            }
            owned
        });
        self.log_bytes -= freed;
        self.log_entries -= entries;
        let rooms = &self.rooms;
        self.ages.retain(|(_, key, _)| rooms.contains_key(key));
    }

    /// Another life of this node: every ownership starts anew.
    pub(crate) fn on_rebirth(&mut self, me: Address) {
        self.rooms.clear();
        self.ages.clear();
        self.dirty.clear();
        self.log_entries = 0;
        self.log_bytes = 0;
        self.terms = Terms::new(me.node);
    }

    pub(crate) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(crate) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    pub(crate) fn subscribers(&self, key: &RoomKey) -> Vec<Address> {
        self.rooms.get(key).map_or_else(Vec::new, |room| room.subscribers.keys().copied().collect())
    }

    pub(crate) fn history(&self, key: &RoomKey, count: u32) -> Option<Vec<(Cursor, Payload)>> {
        let room = self.rooms.get(key)?;
        let first = room.committed.saturating_sub(u64::from(count)).max(room.log.first() - 1) + 1;
        let entry = |seq| room.log.get(seq).map(|e| (Cursor { term: e.term, seq }, e.event.payload.clone()));
        Some((first..=room.committed).filter_map(entry).collect())
    }

    pub(crate) fn facts(&self, now: Instant, key: &RoomKey) -> Option<RoomFacts> {
        let room = self.rooms.get(key)?;
        let oldest = self.ages.iter().find(|(_, k, seq)| k == key && *seq >= room.log.first());
        let head = room.log.head();
        let at = |seq| room.log.get(seq).map_or(room.term, |e| e.term);
        Some(RoomFacts {
            head: Cursor { term: at(head), seq: head },
            entries: room.log.len() as u64,
            bytes: room.log.bytes() as u64,
            seconds_kept: oldest.map_or(0, |(since, ..)| now.since(*since).as_secs()),
            subscribers: room
                .subscribers
                .iter()
                .map(|(&address, s)| (address, Cursor { term: at(s.sent), seq: s.sent }))
                .collect(),
        })
    }

    /// Asserts bounds and order.
    pub(crate) fn check_invariants(&self) {
        assert!(self.rooms.len() <= self.rooms_max, "{} rooms", self.rooms.len());
        let mut bytes = 0;
        for (key, room) in &self.rooms {
            bytes += room.log.bytes();
            assert!(room.log.len() <= self.limits.room_log_entries_max, "{key:?}: log over its bound");
            assert!(room.committed <= room.log.head(), "{key:?}: served ahead of the log");
            assert!(room.dedupe.len() <= self.limits.dedupe_entries_max, "{key:?}: dedupe over its bound");
            for (address, s) in &room.subscribers {
                assert!(s.sent <= room.committed, "{key:?}: {address:?} was sent an uncommitted entry");
            }
        }
        assert_eq!(bytes, self.log_bytes, "bytes of logs are miscounted");
        let entries: usize = self.rooms.values().map(|room| room.log.len()).sum();
        assert_eq!(entries, self.log_entries, "entries of logs are miscounted");
    }
}

impl Room {
    /// A term above one that an edge has heard. What this owner has taken so far moves under it: below
    /// it that edge would never be served it. The others go on where they are.
    fn begin_above(&mut self, ctx: &mut Ctx<'_>, key: &RoomKey, term: Term) {
        self.term = term;
        self.log.relabel(term);
        for (address, subscriber) in &self.subscribers {
            let from = Cursor { term, seq: subscriber.sent };
            let anew = RoomToEdge::Subscribed { room: key.clone(), term, from, gap: false };
            ctx.out.send_to_address(*address, key.placement(), Body::RoomToEdge(anew));
        }
    }

    fn carry_out(&mut self, placement: Placement, effect: Committed<Effect>, out: &mut Out) {
        match effect.into_inner() {
            Effect::Serve(seq) => self.committed = seq,
            Effect::Tell(to, body) => out.send_to_address(to, placement, body),
        }
    }

    /// Sends each subscriber what its window allows; those of one node who are equally far share one
    /// copy on the wire.
    fn serve(&mut self, ctx: &mut Ctx<'_>, key: &RoomKey) {
        let mut groups: BTreeMap<(NodeRef, u64, u64), u64> = BTreeMap::new();
        for (address, subscriber) in &mut self.subscribers {
            if subscriber.sent + 1 < self.log.first() {
                // What it has not been sent is gone: a hole, to be told.
                subscriber.sent = self.log.first() - 1;
                subscriber.taken_offset = self.log.offset_after(subscriber.sent);
                ctx.stats.gaps_total += 1;
                let from = self.log.position(subscriber.sent);
                let gap = RoomToEdge::Subscribed { room: key.clone(), term: self.term, from, gap: true };
                ctx.out.send_to_address(*address, key.placement(), Body::RoomToEdge(gap));
            }
            let mut last = subscriber.sent;
            let taken = subscriber.taken_offset;
            // An entry larger than the window goes out when no more is under way than may be unreported.
            while last < self.committed
                && (self.log.offset_after(last + 1) - taken <= WINDOW_BYTES
                    || self.log.offset_after(last).saturating_sub(taken) < REPORT_BYTES as u64)
            {
                last += 1;
            }
            if last > subscriber.sent {
                *groups.entry((address.node, subscriber.sent + 1, last)).or_default() |= 1 << address.shard.0;
                subscriber.sent = last;
            }
        }
        for ((node, first, last), mask) in groups {
            let entries = (first..=last).filter_map(|seq| self.log.get(seq).cloned()).collect();
            let message = RoomToEdge::Entries { room: key.clone(), term: self.term, first, entries };
            ctx.out.send(node, To::Shards(mask), Lane::of(key.placement()), Body::RoomToEdge(message));
        }
    }
}

fn not_owner(ctx: &mut Ctx<'_>, from: Address, subject: Subject, key: &RoomKey) {
    ctx.stats.not_owner_total += 1;
    let bounce =
        NotOwner { subject, owner: ctx.view.owner(key.placement()), ring_digest: ctx.view.ring.digest() };
    ctx.out.send_to_address(from, key.placement(), Body::NotOwner(bounce));
}

/// Addresses, ordered, as one shard mask per node.
fn by_node(addresses: impl Iterator<Item = Address>) -> BTreeMap<NodeRef, u64> {
    let mut masks = BTreeMap::new();
    for address in addresses {
        *masks.entry(address.node).or_default() |= 1 << address.shard.0;
    }
    masks
}

/// The room that every session of a namespace is in.
pub(crate) fn everyone(product: &Arc<str>, namespace: &Arc<str>) -> RoomKey {
    RoomKey::new(product, namespace, "")
}
