//! Sessions owned by this shard: one Socket.IO socket or plain WebSocket client each.
//!
//! Belongs here: the events of a session in order, the product's answer to each, what is owed to the
//! client (its own log), publishes under way, limits per user.
//! Stays out: transports and delivery (`edge`), rooms' logs (`room`), the wire of client protocols.
//! Units: inbound packets are numbered by the edge, own-log entries from 1 by the owner.
//! Invariants: packets are begun in order; one that is repeated has no second effect; its `Done` leaves
//! after everything it led to is safe; all sessions of one (product, uid) are here.
//! When it breaks: with one copy, a session whose owner is gone is rebuilt from its edge's shadow.

mod own_log;
mod run;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::collections::FixedMap;
use crate::entity::{CommitQueue, Committed, Terms};
use crate::id::{Address, Cursor, NodeRef, Placement, PublishId, RoomKey, SocketSid, Term};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::shard::{Ctx, Out, ProductRules, TimerKey};
use crate::time::Instant;
use crate::wire::{
    ATTACHMENT_SHIFT, Body, Command, DedupeKey, DisconnectCode, Done, EdgeRef, Inbound, NotOwner, OwnEntry,
    Publish, RoomToPublisher, SessionFacts, SessionIdentity, SessionToEdge, Shadow, Subject, ToSession,
};
use own_log::OwnLog;

/// Bounced publishes are sent again after this long: about the time views take to agree.
pub(crate) const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(50);

/// Leaves remembered, so that a repeated publish is judged by what was so when it was sent.
const LEFT_MAX: usize = 16;

/// Every session this shard owns.
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: Limits,
    ids: IdKey,
    products: FixedMap<Arc<str>, Arc<ProductRules>>,
    terms: Terms,
    sessions: FixedMap<SocketSid, Session>,
    by_user: FixedMap<UserKey, Vec<SocketSid>>,
    /// Idempotency keys of emits to users.
    emitted: FixedMap<(UserKey, DedupeKey), Instant>,
    emitted_ages: VecDeque<(Instant, (UserKey, DedupeKey))>,
    /// Sessions with something to send at the end of this turn.
    dirty: BTreeSet<SocketSid>,
    /// Sessions with packets under way: those that a bounce may be about.
    busy: BTreeSet<SocketSid>,
    /// Sessions with publishes to be sent again.
    bounced: BTreeSet<SocketSid>,
}

type UserKey = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Session {
    identity: SessionIdentity,
    rules: Arc<ProductRules>,
    term: Term,
    edge: EdgeRef,
    /// The transport is gone; what it has sent is still carried out.
    detached: bool,
    /// Its client has been told that it is over.
    ended: bool,
    /// The last packet taken from the edge.
    received: u64,
    /// Packets up to this one may have been begun, here or by an owner before.
    begun_before: u64,
    /// Packets taken but not yet begun: something before them waits.
    program: VecDeque<Inbound>,
    /// Packets begun whose outcome is open, in order.
    open: VecDeque<Open>,
    rooms: Vec<(RoomKey, Cursor)>,
    /// The last leaves, oldest first: of which room, and by which packet.
    left: VecDeque<(RoomKey, u64)>,
    /// The last packet whose join or leave `rooms` contains.
    ops_upto: u64,
    own: OwnLog,
    effects: CommitQueue<Effect>,
}

/// A packet under way.
#[derive(Debug)]
struct Open {
    number: u64,
    ack: Option<u64>,
    waits_for: Wait,
}

#[derive(Debug)]
enum Wait {
    /// The edge, to put the join in force: the own-log entry that asks for it.
    Join { own_seq: u64 },
    /// The room's owner; `sent_to` is `None` while it is to be sent again.
    Publish { publish: Box<Publish>, sent_to: Option<NodeRef> },
}

/// What an op of a session leads to, once it is safe.
#[derive(Debug)]
enum Effect {
    /// Own-log entries up to this one may go to the edge.
    Own(u64),
    /// A packet is carried out.
    Done(Done),
}

impl Sessions {
    pub(crate) fn new(
        me: Address,
        limits: &Limits,
        ids: IdKey,
        products: impl IntoIterator<Item = Arc<ProductRules>>,
    ) -> Self {
        Self {
            limits: limits.clone(),
            ids,
            products: products.into_iter().map(|rules| (rules.name.clone(), rules)).collect(),
            terms: Terms::new(me.node),
            sessions: FixedMap::default(),
            by_user: FixedMap::default(),
            emitted: FixedMap::default(),
            emitted_ages: VecDeque::new(),
            dirty: BTreeSet::new(),
            busy: BTreeSet::new(),
            bounced: BTreeSet::new(),
        }
    }

    pub(crate) fn handle(&mut self, ctx: &mut Ctx<'_>, from: Address, message: ToSession) {
        match message {
            ToSession::Attach { identity, edge, shadow } => {
                self.attach(ctx, from, identity, edge, shadow);
            }
            ToSession::Inbound { sid, first, packets } => {
                self.on_inbound(ctx, from, sid, first, packets);
            }
            ToSession::OwnReceived { sid, own_seq } => {
                let Some(session) = self.attached_at(sid, from) else { return self.bounce(ctx, from, sid) };
                session.own.received(own_seq);
                self.run(ctx, sid);
            }
            ToSession::Joined { sid, own_seq, at } => {
                let Some(session) = self.attached_at(sid, from) else { return self.bounce(ctx, from, sid) };
                session.joined(own_seq, at);
                self.run(ctx, sid);
            }
            ToSession::Detach { sid, attachment, .. } => {
                let Some(session) = self.attached_at(sid, from) else { return };
                if session.edge.attachment <= attachment {
                    session.detach();
                    self.run(ctx, sid);
                }
            }
        }
    }

    /// The session, if its transport ends at `from`: an older edge has no say any more.
    fn attached_at(&mut self, sid: SocketSid, from: Address) -> Option<&mut Session> {
        self.sessions.get_mut(&sid).filter(|s| s.edge.edge == from && !s.detached)
    }

    fn attach(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        identity: SessionIdentity,
        edge: EdgeRef,
        shadow: Shadow,
    ) {
        let sid = identity.sid;
        let placement = self.ids.placement_of(sid);
        if !ctx.view.owns(placement) || placement != Placement::of_user(&identity.product, &identity.uid) {
            return self.bounce(ctx, from, sid);
        }
        // An edge speaks for itself only: what we send goes to the address it names.
        if edge.edge != from || !shadow.is_plausible() {
            return;
        }
        let unknown = SessionToEdge::Unknown { sid, attachment: edge.attachment };
        let Some(rules) = self.products.get(&identity.product).cloned() else {
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(unknown));
        };
        if self.sessions.get(&sid).is_some_and(|s| s.edge.attachment > edge.attachment || s.detached) {
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(unknown));
        }
        // Another owner has had it since: what we hold is the past.
        if self.sessions.get(&sid).is_some_and(|s| shadow.term > s.term) {
            self.forget(sid);
        }
        if !self.sessions.contains_key(&sid) {
            let term = self.terms.begin(shadow.term);
            self.index(&identity);
            self.sessions.insert(sid, Session::from_shadow(identity, rules, term, edge, &shadow));
        }
        let session = self.sessions.get_mut(&sid).expect("just made");
        session.begin_anew(edge, &shadow);
        for (room, at) in &shadow.rooms {
            session.joined_in(room, *at, shadow.own_seq);
        }
        let attached =
            SessionToEdge::Attached { sid, term: session.term, inbound_confirmed: session.received };
        ctx.out.send_to_address(from, placement, Body::SessionToEdge(attached));
        session.resend_own();
        self.dirty.insert(sid);
        self.run(ctx, sid);
    }

    /// Files a new session under its user; one too many ends the oldest.
    fn index(&mut self, identity: &SessionIdentity) {
        let key = (identity.product.clone(), identity.uid.clone());
        let sids = self.by_user.entry(key).or_default();
        sids.push(identity.sid);
        if sids.len() <= self.limits.sessions_per_uid_max {
            return;
        }
        let oldest = sids[0];
        self.end(oldest, DisconnectCode::SessionsPerUid, true);
    }

    /// Tells the client that its session is over; it is gone here once the edge has detached it.
    fn end(&mut self, sid: SocketSid, code: DisconnectCode, close: bool) {
        if let Some(session) = self.sessions.get_mut(&sid).filter(|s| !s.ended) {
            session.ended = true;
            session.push_own(OwnEntry::Disconnect { close, code });
            self.unindex(sid);
            self.dirty.insert(sid);
        }
    }

    fn unindex(&mut self, sid: SocketSid) {
        let Some(session) = self.sessions.get(&sid) else { return };
        let key = (session.identity.product.clone(), session.identity.uid.clone());
        if let Some(sids) = self.by_user.get_mut(&key) {
            sids.retain(|s| *s != sid);
            if sids.is_empty() {
                self.by_user.remove(&key);
            }
        }
    }

    fn on_inbound(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        sid: SocketSid,
        first: u64,
        packets: Vec<Inbound>,
    ) {
        // Unknown, or a hole before `first`: the edge attaches anew and repeats.
        if self.attached_at(sid, from).is_none_or(|s| first > s.received + 1) {
            return self.bounce(ctx, from, sid);
        }
        let session = self.sessions.get_mut(&sid).expect("just seen");
        for (number, packet) in (first..).zip(packets) {
            if number == session.received + 1 {
                session.received = number;
                session.program.push_back(packet);
            }
        }
        self.run(ctx, sid);
    }

    fn bounce(&self, ctx: &mut Ctx<'_>, from: Address, sid: SocketSid) {
        ctx.stats.not_owner_total += 1;
        let placement = self.ids.placement_of(sid);
        let bounce = NotOwner {
            subject: Subject::Session(sid),
            owner: ctx.view.owner(placement),
            ring_digest: ctx.view.ring.digest(),
        };
        ctx.out.send_to_address(from, placement, Body::NotOwner(bounce));
    }

    /// A room's owner answers.
    pub(crate) fn on_published(&mut self, ctx: &mut Ctx<'_>, message: RoomToPublisher) {
        let (id, room, outcome) = match message {
            RoomToPublisher::Published { room, id, at } => (id, room, Ok(at)),
            RoomToPublisher::Refused { room, id, why } => (id, room, Err(why)),
        };
        let PublishId::Session { sid, number, .. } = id else { return };
        if let Some(session) = self.sessions.get_mut(&sid) {
            session.published(number, &room, outcome);
            self.run(ctx, sid);
        }
    }

    /// The room is not where we sent it, or not yet: everything under way to it is held until the retry.
    pub(crate) fn on_room_bounced(&mut self, ctx: &mut Ctx<'_>, from: NodeRef, room: &RoomKey) {
        let mut any = false;
        for sid in &self.busy {
            let Some(session) = self.sessions.get_mut(sid) else { continue };
            if session.hold(|publish, sent_to| publish.room == *room && sent_to == from) {
                self.bounced.insert(*sid);
                any = true;
            }
        }
        if any {
            ctx.timers.set(ctx.now + RETRY_AFTER, TimerKey::Retry);
        }
    }

    /// What was under way to `peer` is lost.
    pub(crate) fn on_link_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        for (sid, session) in &mut self.sessions {
            if session.hold(|_, sent_to| sent_to == peer) {
                self.bounced.insert(*sid);
            }
            if session.edge.edge.node == peer && !session.detached {
                // An edge that has the session attaches anew; one that has not disowns it.
                let again = SessionToEdge::Reattach { sid: *sid };
                let placement = self.ids.placement_of(*sid);
                ctx.out.send_to_address(session.edge.edge, placement, Body::SessionToEdge(again));
            }
        }
        self.retry(ctx);
    }

    /// Sends again what was bounced, by the present ring.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        for sid in std::mem::take(&mut self.bounced) {
            let Some(session) = self.sessions.get_mut(&sid) else { continue };
            if !session.send_held(ctx) {
                self.bounced.insert(sid);
            }
        }
    }

    /// The cluster has changed: sessions of others and of dead edges go, publishes follow their rooms.
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        let ids = &self.ids;
        let gone: Vec<SocketSid> = self
            .sessions
            .iter()
            .filter(|(sid, s)| !ctx.view.owns(ids.placement_of(**sid)) || !ctx.view.is_up(s.edge.edge.node))
            .map(|(sid, _)| *sid)
            .collect();
        for sid in gone {
            // An edge that has not seen this ring must not wait for us.
            let edge = self.sessions.get(&sid).filter(|s| !s.detached).map(|s| s.edge.edge);
            if let Some(edge) = edge.filter(|edge| ctx.view.is_up(edge.node)) {
                self.bounce(ctx, edge, sid);
            }
            self.forget(sid);
        }
        for (sid, session) in &mut self.sessions {
            if session.hold(|publish, sent_to| ctx.view.owner(publish.room.placement()) != Some(sent_to)) {
                self.bounced.insert(*sid);
            }
        }
        self.retry(ctx);
    }

    fn forget(&mut self, sid: SocketSid) {
        self.unindex(sid);
        self.sessions.remove(&sid);
        self.dirty.remove(&sid);
        self.busy.remove(&sid);
        self.bounced.remove(&sid);
    }

    /// Another life of this node: every ownership starts anew.
    pub(crate) fn on_rebirth(&mut self, me: Address) {
        self.sessions.clear();
        self.by_user.clear();
        self.dirty.clear();
        self.busy.clear();
        self.bounced.clear();
        self.terms = Terms::new(me.node);
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        for sid in &dirty {
            let placement = self.ids.placement_of(*sid);
            let Some(session) = self.sessions.get_mut(sid) else { continue };
            // One copy only for now: every op is as safe as it gets. The backup's confirm goes here.
            session.effects.confirm_all();
            session.release(placement, ctx.out);
            if session.is_over() {
                self.forget(*sid);
            }
        }
        !dirty.is_empty()
    }

    /// Does with each session of a user what a backend asks. Returns how many there were.
    pub(crate) fn command_user(
        &mut self,
        ctx: &mut Ctx<'_>,
        product: &Arc<str>,
        uid: &Arc<str>,
        command: &Command,
    ) -> u32 {
        let key = (product.clone(), uid.clone());
        if let Command::Emit { dedupe: Some(dedupe), .. } = command
            && !self.first_emit(ctx.now, key.clone(), dedupe.clone())
        {
            return 0;
        }
        let sids = self.by_user.get(&key).cloned().unwrap_or_default();
        let mut reached = 0;
        for sid in sids {
            reached += u32::from(self.command(ctx, sid, command));
        }
        reached
    }

    /// Does with one session what a backend asks. Returns whether it was there and could take it.
    pub(crate) fn command_session(
        &mut self,
        ctx: &mut Ctx<'_>,
        product: &str,
        sid: SocketSid,
        command: &Command,
    ) -> bool {
        let here = self.sessions.get(&sid).is_some_and(|s| &*s.identity.product == product);
        here && self.command(ctx, sid, command)
    }

    /// Remembers an idempotency key; `false` if it was known.
    fn first_emit(&mut self, now: Instant, user: UserKey, key: DedupeKey) -> bool {
        while let Some((since, oldest)) = self.emitted_ages.front().cloned() {
            let full = self.emitted_ages.len() >= self.limits.dedupe_entries_max;
            if !full && now.since(since) < self.limits.dedupe_window {
                break;
            }
            self.emitted_ages.pop_front();
            self.emitted.remove(&oldest);
        }
        let first = self.emitted.insert((user.clone(), key.clone()), now).is_none();
        if first {
            self.emitted_ages.push_back((now, (user, key)));
        }
        first
    }

    pub(crate) fn facts(&self, product: &Arc<str>, uid: &Arc<str>) -> Vec<SessionFacts> {
        let sids = self.by_user.get(&(product.clone(), uid.clone()));
        let sessions = sids.into_iter().flatten().filter_map(|sid| self.sessions.get(sid));
        sessions
            .map(|s| SessionFacts {
                sid: s.identity.sid,
                namespace: s.identity.namespace.clone(),
                term: s.term,
                edge: (!s.detached).then_some(s.edge.edge),
                rooms: u32::try_from(s.rooms.len()).unwrap_or(u32::MAX),
                inbound: s.received & ((1 << ATTACHMENT_SHIFT) - 1),
                own_seq: s.own.last(),
            })
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Asserts bounds and order.
    pub(crate) fn check_invariants(&self) {
        let mut indexed = 0;
        for ((product, uid), sids) in &self.by_user {
            indexed += sids.len();
            assert!(sids.len() <= self.limits.sessions_per_uid_max, "{product} {uid}: too many sessions");
            for sid in sids {
                let identity = &self.sessions[sid].identity;
                assert!(identity.product == *product && identity.uid == *uid, "{sid:?} filed wrongly");
            }
        }
        assert!(indexed <= self.sessions.len());
        let busy = self.sessions.iter().filter(|(_, s)| !s.open.is_empty());
        assert!(busy.map(|(sid, _)| sid).all(|sid| self.busy.contains(sid)), "a busy session is not filed");
        assert!(self.busy.iter().all(|sid| self.sessions.contains_key(sid)));
        for session in self.sessions.values() {
            session.check_invariants(&self.limits);
        }
        assert!(self.emitted.len() <= self.limits.dedupe_entries_max);
    }
}

impl Session {
    fn from_shadow(
        identity: SessionIdentity,
        rules: Arc<ProductRules>,
        term: Term,
        edge: EdgeRef,
        shadow: &Shadow,
    ) -> Self {
        Self {
            identity,
            rules,
            term,
            edge,
            detached: false,
            ended: false,
            received: shadow.inbound_confirmed,
            begun_before: shadow.inbound_sent,
            program: VecDeque::new(),
            open: VecDeque::new(),
            rooms: shadow.rooms.clone(),
            left: VecDeque::new(),
            ops_upto: shadow.inbound_confirmed,
            own: OwnLog::after(shadow.own_seq),
            effects: CommitQueue::default(),
        }
    }

    /// An edge attaches: what was under way is begun again when it repeats it, and its transport gets
    /// what it has not of the own log.
    fn begin_anew(&mut self, edge: EdgeRef, shadow: &Shadow) {
        self.edge = edge;
        self.received = shadow.inbound_confirmed;
        self.begun_before = shadow.inbound_sent;
        self.program.clear();
        self.open.clear();
        if shadow.own_seq > self.own.last() {
            // It has carried out more than this owner knows of.
            self.rooms.clone_from(&shadow.rooms);
        }
        self.own.rewind(shadow.own_seq);
    }

    /// Appends to the own log; it leaves when committed.
    fn push_own(&mut self, entry: OwnEntry) -> u64 {
        self.effects.applied();
        let own_seq = self.own.push(entry);
        self.effects.push(Effect::Own(own_seq));
        own_seq
    }

    /// What the own log holds goes out again.
    fn resend_own(&mut self) {
        self.effects.applied();
        self.effects.push(Effect::Own(self.own.last()));
    }

    /// Sends what is safe, in order; packets done in a row as one message.
    fn release(&mut self, placement: Placement, out: &mut Out) {
        let mut packets = Vec::new();
        while let Some(effect) = self.effects.release().map(Committed::into_inner) {
            match effect {
                _ if self.detached => {}
                Effect::Done(done) => packets.push(done),
                Effect::Own(upto) => {
                    if let Some((first, entries)) = self.own.take_unsent(upto) {
                        self.send_done(placement, &mut packets, out);
                        let (sid, term) = (self.identity.sid, self.term);
                        let own = SessionToEdge::Own { sid, term, first, entries };
                        out.send_to_address(self.edge.edge, placement, Body::SessionToEdge(own));
                    }
                }
            }
        }
        self.send_done(placement, &mut packets, out);
    }

    fn send_done(&self, placement: Placement, packets: &mut Vec<Done>, out: &mut Out) {
        if !packets.is_empty() {
            let packets = std::mem::take(packets);
            let done = SessionToEdge::Done { sid: self.identity.sid, term: self.term, packets };
            out.send_to_address(self.edge.edge, placement, Body::SessionToEdge(done));
        }
    }

    /// Nobody is owed anything any more.
    fn is_over(&self) -> bool {
        self.detached && self.open.is_empty() && self.program.is_empty()
    }

    fn check_invariants(&self, limits: &Limits) {
        assert!(self.program.len() as u64 <= self.received);
        assert!(self.left.len() <= LEFT_MAX);
        assert!(self.open.iter().zip(self.open.iter().skip(1)).all(|(a, b)| a.number < b.number));
        assert!(self.program.len() <= limits.inbound_packets_max + 1, "{} packets wait", self.program.len());
        assert!(self.rooms.len() <= limits.rooms_per_session_max);
        self.own.check_invariants(limits);
    }
}
