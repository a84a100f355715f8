//! Rooms owned by this shard: ordered logs of events, and who is served from them.
//!
//! Belongs here: appending publishes once, serving edge shards from their cursors.
//! Stays out: members and delivery to clients (`edge`), who may publish (`session`, the HTTP API), who
//! owns a room and who backs it up (`host`).
//! Units: bytes of an entry are its payload and a flat overhead.
//! Invariants: positions strictly rise under every owner; an entry leaves only when committed; a
//! subscriber has at most its window under way; every table has a bound.
//! When it breaks: the backup goes on under a term above; a cursor that its log does not contain is told
//! as a gap, and so is one before a hole: what a merge could not take in. The log knows of its hole, for who
//! was not subscribed at that moment, and for whoever owns the room later.

mod dedupe;
mod fetch;
mod log;
mod state;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::births::Births;
use crate::entity::{CommitQueue, Committed};
use crate::host::{Event, Host, MessageOf, Open, Ownership};
use crate::id::{Address, Cursor, NodeRef, RoomKey, Term};
use crate::limits::Limits;
use crate::shard::{Ctx, ProductRules};
use crate::small::FewMap;
use crate::time::Instant;
use crate::wire::{
    Answer, AskRef, Body, COUNTER_END, CommandFailed, Lane, Payload, Publish, PublishRefused, RoomEntry,
    RoomEvent, RoomFacts, RoomOp, RoomToEdge, RoomToPublisher, Subject, Subscription, To, ToAsker, ToRoom,
    Version,
};
use dedupe::Verdict;
use log::RoomLog;
pub(crate) use log::entry_bytes;
use state::{RoomState, RoomsShared};

/// What may be under way to one subscriber; the tail it feeds holds as much.
const WINDOW_BYTES: u64 = 256 << 10;
/// A subscriber reports what it has taken each time it is this much.
pub(crate) const REPORT_BYTES: usize = 64 << 10;

/// Every room this shard owns or backs up.
#[derive(Debug)]
pub(crate) struct Rooms {
    host: Host<RoomState>,
    limits: Limits,
    /// Rooms begun here; those taken over or handed over come on top.
    rooms_max: usize,
    /// Rooms with something to send at the end of this turn.
    dirty: BTreeSet<RoomKey>,
    /// When to see whether an owned room is still in use: one mark for each, oldest first. One of an earlier
    /// ownership is void.
    unused: VecDeque<(Instant, RoomKey)>,
}

/// What only a room's owner has.
#[derive(Debug, Default)]
pub(crate) struct RoomLive {
    /// Seq of the last entry that is safe to serve.
    committed: u64,
    /// Seq of the last entry there was when this ownership began.
    inherited: u64,
    subscribers: FewMap<Address, Subscriber>,
    effects: CommitQueue<Effect>,
    used: Instant,
    /// When it was last seen whether it is in use.
    looked_at: Instant,
}

/// An edge shard's relay of this room.
#[derive(Clone, Copy, Debug)]
struct Subscriber {
    /// Which of its edge's questions it answers.
    asked: u64,
    /// Seq of the last entry sent.
    sent: u64,
    /// Log offset of the end of the last entry it has taken.
    taken_offset: u64,
}

/// What others want of a room.
#[derive(Debug)]
pub(crate) enum RoomInput {
    Publish(Publish),
    /// By the HTTP API, answered as a call.
    Call(u64, Publish),
    Subscribe(Subscription),
    Unsubscribe,
    Taken(Cursor),
    Fetch {
        after: Cursor,
        upto: Cursor,
    },
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
    /// Who asks the members may be told who is served; `false`: they had been asked for another before.
    Asked(AskRef, bool),
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    /// In the log, now or since earlier.
    At { at: Cursor, duplicate: bool },
    /// The publish before it has not been here, or too much waits for the backup: repeat it.
    OutOfOrder,
}

impl Rooms {
    pub(crate) fn new(me: Address, shards: u16, limits: &Limits, products: &[Arc<ProductRules>]) -> Self {
        let rooms_max = (limits.rooms_per_node_max / usize::from(shards.max(1))).max(1);
        let single_copy = products.iter().collect();
        Self {
            host: Host::new(
                me,
                rooms_max,
                limits.placed_per_turn,
                RoomsShared::new(limits, shards, single_copy),
            ),
            limits: limits.clone(),
            rooms_max,
            dirty: BTreeSet::new(),
            unused: VecDeque::new(),
        }
    }

    /// New products; those that are not named stay.
    pub(crate) fn learn_products(&mut self, products: &[Arc<ProductRules>]) {
        products.iter().for_each(|rules| self.host.shared.single_copy.learn(rules));
    }

    pub(crate) fn handle(&mut self, ctx: &mut Ctx<'_>, from: Address, message: ToRoom) {
        match message {
            ToRoom::Publish(publish) => {
                let key = publish.room.clone();
                self.input(ctx, from, &key, RoomInput::Publish(publish));
            }
            ToRoom::Subscribe(list) => {
                for subscription in list {
                    let key = subscription.room.clone();
                    self.input(ctx, from, &key, RoomInput::Subscribe(subscription));
                }
            }
            ToRoom::Unsubscribe(list) => {
                for key in list {
                    self.input(ctx, from, &key, RoomInput::Unsubscribe);
                }
            }
            ToRoom::Taken { room, cursor } => self.input(ctx, from, &room, RoomInput::Taken(cursor)),
            ToRoom::Fetch { room, after, upto } => {
                self.input(ctx, from, &room, RoomInput::Fetch { after, upto });
            }
        }
    }

    /// A publish by the HTTP API, answered as a call.
    pub(crate) fn on_call(&mut self, ctx: &mut Ctx<'_>, from: Address, call: u64, publish: Publish) {
        let key = publish.room.clone();
        self.input(ctx, from, &key, RoomInput::Call(call, publish));
    }

    /// Another holder of rooms.
    pub(crate) fn on_replication(&mut self, ctx: &mut Ctx<'_>, from: Address, message: MessageOf<RoomState>) {
        self.host.handle(ctx, from, message);
        self.react(ctx);
    }

    /// Carries out an input, now or when the room has been found.
    fn input(&mut self, ctx: &mut Ctx<'_>, from: Address, key: &RoomKey, input: RoomInput) {
        let shown = match &input {
            RoomInput::Subscribe(subscription) if subscription.term.number >= COUNTER_END => return,
            RoomInput::Subscribe(subscription) => subscription.term,
            // Nothing worth looking for a room.
            RoomInput::Unsubscribe | RoomInput::Taken(_) if !self.host.is_known(key) => return,
            _ => Term::NONE,
        };
        let open = self.host.open(ctx, key, shown);
        self.react_to_events(ctx);
        self.carry_out_input(ctx, from, key, input, open);
    }

    fn carry_out_input(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        key: &RoomKey,
        input: RoomInput,
        open: Open,
    ) {
        match open {
            Open::Wait => {
                if let Err(input) = self.host.wait(key, from, input) {
                    bounce(ctx, from, key, &input);
                }
            }
            Open::No | Open::Absent => {
                let full = self.host.owned_count() >= self.rooms_max && ctx.view.owns(key.placement());
                match input {
                    RoomInput::Publish(publish) if full => refuse(ctx, from, publish),
                    RoomInput::Call(call, _) if full => {
                        let why = "the node owns as many rooms as it may".to_owned();
                        let answer = Err(CommandFailed::Refused(why));
                        ctx.out.send_to_address(from, key.placement(), Body::Answer { call, answer });
                    }
                    // At the bound of rooms the edge asks again later, as it does when it was wrong.
                    input => bounce(ctx, from, key, &input),
                }
            }
            Open::Yes => match input {
                RoomInput::Publish(publish) => self.on_publish(ctx, from, publish),
                RoomInput::Call(call, publish) => self.on_api_publish(ctx, from, call, publish),
                RoomInput::Subscribe(subscription) => self.subscribe(ctx, from, subscription),
                RoomInput::Unsubscribe => {
                    if let Some(room) = self.host.owned(key) {
                        room.live.subscribers.remove(&from);
                    }
                }
                RoomInput::Taken(cursor) => self.on_taken(from, key, cursor),
                RoomInput::Fetch { after, upto } => self.on_fetch(ctx, from, key, after, upto),
            },
        }
    }

    /// Carries out what has become of rooms, and the inputs that waited for it.
    fn react(&mut self, ctx: &mut Ctx<'_>) {
        self.react_to_events(ctx);
        while let Some((from, key, input, open)) = self.host.next_ready(ctx) {
            self.carry_out_input(ctx, from, &key, input, open);
            self.react_to_events(ctx);
        }
    }

    fn react_to_events(&mut self, ctx: &mut Ctx<'_>) {
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Began(key) => {
                    if let Some(room) = self.host.owned(&key) {
                        let head = room.state.log.head();
                        room.live.inherited = head;
                        room.live.used = ctx.now;
                        room.live.looked_at = ctx.now;
                        room.live.effects.push(room.applied(), Effect::Serve(head));
                        self.unused.push_back((ctx.now, key.clone()));
                        self.dirty.insert(key);
                    }
                }
                Event::Merged(key, is_partial) => {
                    if let Some(room) = self.host.owned(&key) {
                        let head = room.state.log.head();
                        room.live.effects.push(room.applied(), Effect::Serve(head));
                        if is_partial {
                            room.live.tell_gap(ctx, &key, room.term, room.state);
                        }
                        self.dirty.insert(key);
                    }
                }
                Event::Confirmed(key) => {
                    self.dirty.insert(key);
                }
                Event::Cut(_) => {}
                Event::Lost(key, live) => give_back(ctx, &key, live),
            }
        }
    }

    fn on_taken(&mut self, from: Address, key: &RoomKey, cursor: Cursor) {
        let Some(room) = self.host.owned(key) else { return };
        if let Some(subscriber) = room.live.subscribers.get_mut(&from) {
            // Nobody can have taken what it was not sent.
            let offset = room.state.log.offset_after(cursor.seq.min(subscriber.sent));
            subscriber.taken_offset = subscriber.taken_offset.max(offset);
            if subscriber.sent < room.live.committed {
                self.dirty.insert(key.clone());
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
            Published::OutOfOrder => ctx.not_owner(from, room.placement(), Subject::Room(room)),
        }
    }

    fn on_api_publish(&mut self, ctx: &mut Ctx<'_>, from: Address, call: u64, publish: Publish) {
        let room = publish.room.clone();
        match self.publish(ctx, publish) {
            Published::At { at, duplicate } => {
                let answer = Ok(Answer::Published { at, duplicate });
                self.tell(room, from, Body::Answer { call, answer });
            }
            Published::OutOfOrder => ctx.not_owner(from, room.placement(), Subject::Call(call)),
        }
    }

    /// Says so once the last op is safe.
    fn tell(&mut self, key: RoomKey, to: Address, body: Body) {
        if let Some(room) = self.host.owned(&key) {
            room.live.effects.push(room.applied(), Effect::Tell(to, body));
            self.host.hurry(&key);
            self.dirty.insert(key);
        }
    }

    /// Appends once, to a room that is owned. Whoever asked is answered by [`Rooms::tell`].
    fn publish(&mut self, ctx: &mut Ctx<'_>, publish: Publish) -> Published {
        let Publish { room: key, id, dedupe, event, after } = publish;
        let mut room = self.host.owned(&key).expect("checked by the caller");
        room.live.used = ctx.now;
        let term = room.term;
        // Senders keep and repeat what the log cannot take before its backup has answered.
        if room.live.is_full(&room.state.log, &self.limits) {
            return Published::OutOfOrder;
        }
        match room.state.dedupe.judge(id, after, dedupe.as_ref()) {
            Verdict::OutOfOrder => return Published::OutOfOrder,
            Verdict::Seen(at) => {
                ctx.stats.duplicates_total += 1;
                if let Some(name) = asked_by(&event) {
                    let first = room.state.log.iter().find(|entry| entry.id == id);
                    let is_it = first.is_some_and(|entry| asked_by(&entry.event) == Some(name));
                    room.live.effects.push(room.applied(), Effect::Asked(name, is_it));
                }
                return Published::At { at, duplicate: true };
            }
            // An idempotency key seen under another publish id: that id may be repeated as well.
            Verdict::SeenKey(at) => {
                ctx.stats.duplicates_total += 1;
                room.apply(RoomOp::Remember { id, at });
                return Published::At { at, duplicate: true };
            }
            Verdict::New => {}
        }
        if event.volatile {
            let at = room.state.log.last();
            self.volatile(ctx, &key, &event);
            return Published::At { at, duplicate: false };
        }
        let name = asked_by(&event);
        let entry = RoomEntry::new(term, id, event);
        let op = room.apply(RoomOp::Append { entry, dedupe });
        let at = room.state.log.last();
        room.live.effects.push(op, Effect::Serve(at.seq));
        if let Some(name) = name {
            room.live.effects.push(op, Effect::Asked(name, true));
        }
        ctx.stats.publishes_total += 1;
        self.dirty.insert(key);
        Published::At { at, duplicate: false }
    }

    /// A volatile event goes beside the log to whoever is subscribed now.
    fn volatile(&self, ctx: &mut Ctx<'_>, key: &RoomKey, event: &RoomEvent) {
        let Some((_, live)) = self.host.peek(key) else { return };
        for (node, mask) in by_node(live.subscribers.keys().copied()) {
            let message = RoomToEdge::Volatile { room: key.clone(), event: event.clone() };
            ctx.out.send(node, To::Shards(mask), Lane::of(key.placement()), Body::RoomToEdge(message));
        }
    }

    fn subscribe(&mut self, ctx: &mut Ctx<'_>, from: Address, subscription: Subscription) {
        let Subscription { room: key, after, term, at_head, asked } = subscription;
        self.host.begin_above(&key, term);
        let room = self.host.owned(&key).expect("checked by the caller");
        room.live.used = ctx.now;
        let log = &room.state.log;
        let known = log.contains(after);
        // What an edge has been served was safe, whatever we know of it.
        let shown = if known { after.seq } else { 0 };
        room.live.committed = room.live.committed.max(shown);
        let head = room.live.committed.max(room.live.inherited);
        let seq = match () {
            () if at_head => head,
            () if known => after.seq,
            // It fell behind what is kept, or another history begins.
            () if after <= log.before_first() => log.first() - 1,
            // It was served from a history that ran beside this one. What of ours it has not seen cannot
            // be told from what was before its members joined.
            () => head,
        };
        let gap = match at_head {
            true => !log.is_whole_after(seq),
            false => !known || !log.is_whole_after(after.seq),
        };
        ctx.stats.gaps_total += u64::from(gap);
        let start = if known && !at_head { after } else { log.position(seq) };
        let births = if gap || at_head { room.state.births_upto(seq) } else { Births::default() };
        let (room_key, term) = (key.clone(), room.term);
        let subscribed = RoomToEdge::Subscribed { room: room_key, term, from: start, gap, births, asked };
        let taken_offset = log.offset_after(seq);
        room.live.subscribers.insert(from, Subscriber { asked, sent: seq, taken_offset });
        ctx.out.send_to_address(from, key.placement(), Body::RoomToEdge(subscribed));
        if seq < log.head() {
            self.host.hurry(&key);
            self.dirty.insert(key);
        }
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        self.keep_to_bounds();
        let sent = self.host.flush(ctx);
        self.react(ctx);
        let dirty = std::mem::take(&mut self.dirty);
        for key in &dirty {
            let Some(room) = self.host.owned(key) else { continue };
            room.live.effects.confirm(room.confirmed);
            while let Some(effect) = room.live.effects.release() {
                room.live.carry_out(ctx, key, effect);
            }
            room.live.serve(ctx, key, room.term, room.state);
        }
        sent || !dirty.is_empty()
    }

    /// A while has passed since views differed.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        self.host.retry(ctx);
        self.react(ctx);
    }

    /// The cluster has changed: rooms follow the ring, some in each turn ([`Rooms::place_some`]).
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        self.host.on_view(ctx);
        self.react(ctx);
    }

    /// Some more rooms follow the ring, those with traffic first.
    pub(crate) fn place_some(&mut self, ctx: &mut Ctx<'_>) {
        self.host.place_some(ctx);
        self.react(ctx);
    }

    /// Somebody asks about this room: it is what the present ring says.
    pub(crate) fn place(&mut self, ctx: &mut Ctx<'_>, key: &RoomKey) {
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

    pub(crate) fn len(&self) -> usize {
        self.host.owned_count()
    }

    pub(crate) fn log_bytes(&self) -> usize {
        self.host.shared.log_bytes
    }

    pub(crate) fn host(&self) -> &Host<RoomState> {
        &self.host
    }

    /// Every copy: key, whether owned, version, digest.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (&RoomKey, bool, Version, u64)> {
        self.host.holdings()
    }

    pub(crate) fn subscribers(&self, key: &RoomKey) -> Vec<Address> {
        self.host.peek(key).map_or_else(Vec::new, |(_, live)| live.subscribers.keys().copied().collect())
    }

    pub(crate) fn history(&self, key: &RoomKey, count: u32) -> Option<Vec<(Cursor, Payload)>> {
        let (room, live) = self.host.peek(key)?;
        let first = live.committed.saturating_sub(u64::from(count)).max(room.log.first() - 1) + 1;
        let entry = |seq| {
            let entry = room.log.get(seq).filter(|entry| entry.event.action().is_none())?;
            Some((Cursor { term: entry.term, seq }, entry.event.payload.clone()))
        };
        Some((first..=live.committed).filter_map(entry).collect())
    }

    pub(crate) fn ownership(&self, key: &RoomKey) -> Option<Ownership> {
        self.host.ownership(key)
    }

    pub(crate) fn facts(&self, now: Instant, key: &RoomKey) -> Option<RoomFacts> {
        let (room, live) = self.host.peek(key)?;
        let oldest = room.log.oldest_since();
        let head = room.log.head();
        let at = |seq| room.log.position(seq).term;
        Some(RoomFacts {
            head: Cursor { term: at(head), seq: head },
            entries: room.log.len() as u64,
            bytes: room.log.bytes() as u64,
            seconds_kept: oldest.map_or(0, |since| now.since(since).as_secs()),
            subscribers: live
                .subscribers
                .iter()
                .map(|(&address, s)| (address, Cursor { term: at(s.sent), seq: s.sent }))
                .collect(),
            ownership: self.ownership(key)?.facts(now),
        })
    }

    /// Asserts bounds and order.
    pub(crate) fn check_invariants(&self) {
        self.host.check_invariants();
        let shared = &self.host.shared;
        let (mut bytes, mut remembered) = (0, 0);
        for (key, room) in self.host.copies() {
            bytes += room.log.bytes();
            remembered += room.dedupe.entries();
            assert!(room.log.len() <= shared.limits.room_log_entries_max, "{key:?}: log over its bound");
            assert!(room.dedupe.len() <= shared.limits.dedupe_entries_max, "{key:?}: dedupe over its bound");
        }
        assert_eq!(bytes, shared.log_bytes, "bytes of logs are miscounted");
        let marked = |kept: fn(&RoomState) -> bool| self.host.copies().filter(|(_, room)| kept(room)).count();
        assert_eq!(marked(|room| room.log.len() > 0), shared.by_log.len(), "logs without a mark");
        assert_eq!(marked(|room| !room.dedupe.is_empty()), shared.by_dedupe.len(), "tables without a mark");
        assert_eq!(remembered, shared.dedupe_entries, "what rooms remember is miscounted");
        assert!(remembered <= shared.dedupe_entries_max, "all rooms together remember {remembered}");
        let is_kept = |bytes: usize| bytes <= shared.limits.room_logs_bytes_max;
        assert!(is_kept(bytes), "logs of all rooms hold {bytes} bytes");
        for (key, room, live) in self.host.iter() {
            assert!(live.committed <= room.log.head(), "{key:?}: served ahead of the log");
            let bound = live.committed.max(live.inherited);
            for (address, s) in live.subscribers.iter() {
                assert!(s.sent <= bound, "{key:?}: {address:?} was sent an uncommitted entry");
            }
        }
    }
}

impl Subscriber {
    /// Something before what it is sent next is not to come.
    fn tell_gap(&self, ctx: &mut Ctx<'_>, to: Address, key: &RoomKey, term: Term, room: &RoomState) {
        ctx.stats.gaps_total += 1;
        let gap = RoomToEdge::Subscribed {
            room: key.clone(),
            term,
            from: room.log.position(self.sent),
            gap: true,
            births: room.births_upto(self.sent),
            asked: self.asked,
        };
        ctx.out.send_to_address(to, key.placement(), Body::RoomToEdge(gap));
    }
}

impl RoomLive {
    /// Whether half of the log is not safe yet: more could trim what nobody has been served.
    fn is_full(&self, log: &RoomLog, limits: &Limits) -> bool {
        let safe = self.committed.max(self.inherited);
        let (entries, end) = (log.head().saturating_sub(safe), log.offset_after(log.head()));
        let bytes = usize::try_from(end - log.offset_after(safe)).unwrap_or(usize::MAX);
        entries >= limits.room_log_entries_max as u64 / 2 || bytes >= limits.room_log_bytes_max / 2
    }

    /// Something of another history is lost to all who are served from this one.
    fn tell_gap(&self, ctx: &mut Ctx<'_>, key: &RoomKey, term: Term, room: &RoomState) {
        for (address, subscriber) in self.subscribers.iter() {
            subscriber.tell_gap(ctx, *address, key, term, room);
        }
    }

    fn carry_out(&mut self, ctx: &mut Ctx<'_>, key: &RoomKey, effect: Committed<Effect>) {
        match effect.into_inner() {
            Effect::Serve(seq) => self.committed = self.committed.max(seq),
            Effect::Tell(to, body) => ctx.out.send_to_address(to, key.placement(), body),
            Effect::Asked(AskRef { by, number }, is_it) => {
                let edges = is_it.then(|| self.subscribers.keys().copied().collect());
                // Edges that a former owner has served may not have asked here yet.
                let may_be_more = ctx.pace.is_moving(ctx.now);
                let served = ToAsker::Served { number, room: key.clone(), edges, may_be_more };
                ctx.out.send_to_address(by, key.placement(), Body::ToAsker(served));
            }
        }
    }

    /// Sends each subscriber what its window allows; those of one node who are equally far share one
    /// copy on the wire.
    fn serve(&mut self, ctx: &mut Ctx<'_>, key: &RoomKey, term: Term, room: &RoomState) {
        let log = &room.log;
        let mut groups: BTreeMap<(NodeRef, u64, u64), u64> = BTreeMap::new();
        for (address, subscriber) in self.subscribers.iter_mut() {
            if subscriber.sent + 1 < log.first() {
                // What it has not been sent is gone: a hole, to be told.
                subscriber.sent = log.first() - 1;
                subscriber.taken_offset = log.offset_after(subscriber.sent);
                subscriber.tell_gap(ctx, *address, key, term, room);
            }
            let mut last = subscriber.sent;
            let taken = subscriber.taken_offset;
            // An entry larger than the window goes out when no more is under way than may be unreported.
            while last < self.committed
                && (log.offset_after(last + 1) - taken <= WINDOW_BYTES
                    || log.offset_after(last).saturating_sub(taken) < REPORT_BYTES as u64)
            {
                last += 1;
            }
            if last > subscriber.sent {
                *groups.entry((address.node, subscriber.sent + 1, last)).or_default() |= 1 << address.shard.0;
                subscriber.sent = last;
            }
        }
        for ((node, first, last), mask) in groups {
            let entries = (first..=last).filter_map(|seq| log.get(seq).cloned()).collect();
            let message = RoomToEdge::Entries { room: key.clone(), term, first, entries };
            ctx.out.send(node, To::Shards(mask), Lane::of(key.placement()), Body::RoomToEdge(message));
        }
    }
}

/// Who waits for what the members answer.
fn asked_by(event: &RoomEvent) -> Option<AskRef> {
    event.asks.as_ref().map(|ask| ask.name).filter(|name| name.number > 0)
}

/// Another owns the room: those served from here, and those who wait for an answer, ask there.
fn give_back(ctx: &mut Ctx<'_>, key: &RoomKey, mut live: RoomLive) {
    for address in live.subscribers.keys() {
        ctx.not_owner(*address, key.placement(), Subject::Room(key.clone()));
    }
    live.effects.drain(|effect| {
        if let Effect::Tell(to, body) = effect {
            let subject = match body {
                Body::Answer { call, .. } => Subject::Call(call),
                _ => Subject::Room(key.clone()),
            };
            ctx.not_owner(to, key.placement(), subject);
        }
    });
}

/// The room is not served here: whoever sent this asks again by its own ring.
fn bounce(ctx: &mut Ctx<'_>, from: Address, key: &RoomKey, input: &RoomInput) {
    match input {
        // Who is not served by this room as it is now has to subscribe first.
        RoomInput::Publish(_) | RoomInput::Subscribe(_) | RoomInput::Fetch { .. } => {
            ctx.not_owner(from, key.placement(), Subject::Room(key.clone()));
        }
        RoomInput::Call(call, _) => ctx.not_owner(from, key.placement(), Subject::Call(*call)),
        RoomInput::Unsubscribe | RoomInput::Taken(_) => {}
    }
}

fn refuse(ctx: &mut Ctx<'_>, from: Address, publish: Publish) {
    let Publish { room, id, .. } = publish;
    let placement = room.placement();
    let refused = RoomToPublisher::Refused { room, id, why: PublishRefused::RoomsPerNode };
    ctx.out.send_to_address(from, placement, Body::RoomToPublisher(refused));
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
