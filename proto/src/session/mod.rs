//! Sessions owned by this shard: one Socket.IO socket or plain WebSocket client each.
//!
//! Belongs here: the events of a session in order, the product's answer to each, what is owed to the
//! client (its own log), publishes under way, limits per user.
//! Stays out: transports and delivery (`edge`), rooms' logs (`room`), the wire of client protocols.
//! Units: inbound packets are numbered by the edge, own-log entries from 1 by the owner.
//! Invariants: packets are begun in order; one that is repeated has no second effect; its `Done` leaves
//! after everything it led to is safe; all sessions of one (product, uid) are here.
//! When it breaks: with one copy, a session whose owner is gone is rebuilt from its edge's shadow.
//!
//! | file | answers |
//! |---|---|
//! | `state` | what survives the owner, and its ops |
//! | `own_log` | what is for the client alone, until its edge has it |
//! | `live` | packets under way and effects: what every owner makes anew |
//! | `run` | what each packet leads to |

mod live;
mod own_log;
mod run;
mod state;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::collections::FixedMap;
use crate::entity::Terms;
use crate::id::{Address, NodeRef, Placement, PublishId, RoomKey, SocketSid};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::shard::{Ctx, ProductRules, TimerKey};
use crate::time::Instant;
use crate::wire::{
    ATTACHMENT_SHIFT, Body, Command, DedupeKey, DisconnectCode, EdgeRef, Inbound, NotOwner, RoomToPublisher,
    SessionFacts, SessionIdentity, SessionOp, SessionToEdge, Shadow, Subject, ToSession,
};
use live::Session;
use state::SessionState;

/// Bounced publishes are sent again after this long: about the time views take to agree.
pub(crate) const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(50);

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
                session.op(&SessionOp::OwnReceived(own_seq));
                self.run(ctx, sid);
            }
            ToSession::Joined { sid, own_seq, at } => {
                let Some(session) = self.attached_at(sid, from) else { return self.bounce(ctx, from, sid) };
                session.joined(own_seq, at);
                self.run(ctx, sid);
            }
            ToSession::Detach { sid, attachment, .. } => {
                let Some(session) = self.at_edge(sid, from) else { return };
                if session.state.attachment <= attachment {
                    session.park();
                    self.run(ctx, sid);
                }
            }
        }
    }

    /// The session, if its transport ends at `from`: an older edge has no say any more.
    fn at_edge(&mut self, sid: SocketSid, from: Address) -> Option<&mut Session> {
        self.sessions.get_mut(&sid).filter(|s| s.state.edge.is_some_and(|edge| edge.edge == from))
    }

    /// The same, and it has attached to this owner.
    fn attached_at(&mut self, sid: SocketSid, from: Address) -> Option<&mut Session> {
        self.at_edge(sid, from).filter(|s| s.live.attached)
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
        let late = |s: &Session| {
            let at_least = s.state.attachment + u64::from(s.is_parked());
            edge.attachment < at_least || (s.is_parked() && s.state.ended)
        };
        if !self.products.contains_key(&identity.product) || self.sessions.get(&sid).is_some_and(late) {
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(unknown));
        }
        // Another owner has had it since: what we hold is the past.
        if self.sessions.get(&sid).is_some_and(|s| shadow.term > s.term) {
            self.forget(sid);
        }
        if !self.sessions.contains_key(&sid) {
            let term = self.terms.begin(shadow.term);
            self.index(&identity);
            self.sessions.insert(sid, Session::new(term, SessionState::new(identity)));
        }
        let session = self.sessions.get_mut(&sid).expect("just made");
        session.attach(edge, &shadow, &self.limits);
        let attached =
            SessionToEdge::Attached { sid, term: session.term, inbound_confirmed: session.live.received };
        session.send(placement, attached, ctx.out);
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
        if let Some(session) = self.sessions.get_mut(&sid).filter(|s| !s.state.ended) {
            session.op(&SessionOp::End { close, code });
            self.unindex(sid);
            self.dirty.insert(sid);
        }
    }

    fn unindex(&mut self, sid: SocketSid) {
        let Some(session) = self.sessions.get(&sid) else { return };
        let identity = &session.state.identity;
        let key = (identity.product.clone(), identity.uid.clone());
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
        if self.attached_at(sid, from).is_none_or(|s| first > s.live.received + 1) {
            return self.bounce(ctx, from, sid);
        }
        let session = self.sessions.get_mut(&sid).expect("just seen");
        for (number, packet) in (first..).zip(packets) {
            if number == session.live.received + 1 {
                session.live.received = number;
                session.live.program.push_back(packet);
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
            if session.state.edge.is_some_and(|edge| edge.edge.node == peer) {
                // An edge that has the session attaches anew; one that has not disowns it.
                let again = SessionToEdge::Reattach { sid: *sid };
                session.send(self.ids.placement_of(*sid), again, ctx.out);
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
        let of_others = self.sessions.keys().filter(|sid| !ctx.view.owns(ids.placement_of(**sid)));
        for sid in of_others.copied().collect::<Vec<SocketSid>>() {
            // An edge that has not seen this ring must not wait for us.
            let edge = self.sessions.get(&sid).and_then(|s| s.state.edge).map(|edge| edge.edge);
            if let Some(edge) = edge.filter(|edge| ctx.view.is_up(edge.node)) {
                self.bounce(ctx, edge, sid);
            }
            self.forget(sid);
        }
        let at_dead_edge = |s: &Session| s.state.edge.is_some_and(|edge| !ctx.view.is_up(edge.edge.node));
        let parked = self.sessions.iter().filter(|(_, s)| at_dead_edge(s)).map(|(sid, _)| *sid);
        for sid in parked.collect::<Vec<SocketSid>>() {
            if let Some(session) = self.sessions.get_mut(&sid) {
                session.park();
            }
            self.run(ctx, sid);
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
            session.live.effects.confirm_all();
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
        let here = self.sessions.get(&sid).is_some_and(|s| &*s.state.identity.product == product);
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
                sid: s.state.identity.sid,
                namespace: s.state.identity.namespace.clone(),
                term: s.term,
                edge: s.state.edge.map(|edge| edge.edge),
                rooms: u32::try_from(s.state.rooms.len()).unwrap_or(u32::MAX),
                inbound: s.live.received & ((1 << ATTACHMENT_SHIFT) - 1),
                own_seq: s.state.own.last(),
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
                let identity = &self.sessions[sid].state.identity;
                assert!(identity.product == *product && identity.uid == *uid, "{sid:?} filed wrongly");
            }
        }
        assert!(indexed <= self.sessions.len());
        let busy = self.sessions.iter().filter(|(_, s)| !s.live.open.is_empty());
        assert!(busy.map(|(sid, _)| sid).all(|sid| self.busy.contains(sid)), "a busy session is not filed");
        assert!(self.busy.iter().all(|sid| self.sessions.contains_key(sid)));
        for session in self.sessions.values() {
            session.check_invariants(&self.limits);
        }
        assert!(self.emitted.len() <= self.limits.dedupe_entries_max);
    }
}
