//! Sessions owned by this shard: one Socket.IO socket or plain WebSocket client each.
//!
//! Belongs here: the events of a session in order, the product's answer to each, what is owed to the
//! client (its own log), publishes under way, limits per user.
//! Stays out: transports and delivery (`edge`), rooms' logs (`room`), the wire of client protocols.
//! Units: inbound packets are numbered by the edge, own-log entries from 1 by the owner.
//! Invariants: packets are begun in order; one that is repeated has no second effect; its `Done` leaves
//! after everything it led to is safe; all sessions of one (product, uid) are here.
//! When it breaks: the backup goes on; a session whose owner and backup are both gone is rebuilt from its
//! edge's shadow.
//!
//! | file | answers |
//! |---|---|
//! | `state` | what survives the owner, and its ops |
//! | `own_log` | what is for the client alone, until its edge has it |
//! | `emitted` | which emits of backends it has had |
//! | `live` | packets under way and effects: what every owner makes anew |
//! | `run` | what each packet leads to |
//! | `resume` | from where it goes on for a client that comes back |

mod app;
mod emitted;
mod live;
mod own_log;
mod resume;
mod run;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::collections::{FixedMap, FixedSet};
use crate::host::{CHANGE_COSTS, Event, Host, MessageOf, Open};
use crate::id::{ANONYMOUS, Address, NodeRef, Placement, PublishId, RoomKey, SocketSid, Term};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::mutant::{Mutant, is_planted};
use crate::recovery::{self, Carried};
use crate::shard::{AppEvent, Budget, Ctx, ProductRules, TimerKey};
use crate::time::Instant;
use crate::wire::{
    ATTACHMENT_SHIFT, Answer, Body, Command, CommandFailed, DetachReason, DisconnectCode, EdgeRef, Inbound,
    NotResumed, Publish, Resume, RoomToPublisher, SessionFacts, SessionIdentity, SessionOp, SessionToEdge,
    Shadow, Subject, ToSession, is_same_transport, next_transport,
};
use live::{Effect, Session};
pub use state::SessionState;
use state::SessionsShared;

/// Bounced publishes are sent again after this long: about the time views take to agree.
pub(crate) const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(50);

/// Every session this shard owns or backs up.
#[derive(Debug)]
pub(crate) struct Sessions {
    limits: Limits,
    ids: IdKey,
    products: FixedMap<Arc<str>, Arc<ProductRules>>,
    host: Host<SessionState>,
    /// Sessions owned.
    by_user: FixedMap<UserKey, Vec<SocketSid>>,
    /// Sessions with something to send at the end of this turn.
    dirty: BTreeSet<SocketSid>,
    /// Sessions with packets under way: those that a bounce may be about.
    busy: BTreeSet<SocketSid>,
    /// Sessions with publishes to be sent again.
    bounced: BTreeSet<SocketSid>,
    /// The publishes of those after this one, among the busy, may be at owners of a former ring; `None` in
    /// here: of all.
    misdirected: Option<Option<SocketSid>>,
    /// Sessions taken over whose edges have not attached, in the order in which they are asked again. A mark
    /// may be void.
    expected: VecDeque<(Instant, SocketSid)>,
    /// Sessions owned that have no transport, as of the last turn.
    without_edge: FixedSet<SocketSid>,
    /// Backends' commands that are not safe yet, by their number here.
    pending: BTreeMap<u64, Pending>,
    answered: u64,
    /// Questions to products' code so far.
    calls: u64,
    /// Sessions without a transport, in the order they lost it. A mark may be of one that has one again.
    parked: VecDeque<(Instant, SocketSid)>,
}

type UserKey = (Arc<str>, Arc<str>);

/// A backend's command under way to the sessions of a user.
#[derive(Clone, Copy, Debug)]
struct Pending {
    from: Address,
    call: u64,
    placement: Placement,
    /// Sessions with which it is not safe yet.
    left: u32,
    reached: u32,
}

/// An edge's word for a session.
#[derive(Debug)]
pub(crate) struct Attach {
    identity: SessionIdentity,
    edge: EdgeRef,
    shadow: Box<Shadow>,
    hello: Option<Bytes>,
    instead_of: Option<u64>,
}

/// What waits while a session is looked for.
#[derive(Debug)]
pub(crate) enum Word {
    Attach(Attach),
    Resume(Resume),
}

/// An edge that has not attached to a new owner is asked to, this often.
const REATTACH_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// Sessions kept for clients that may come back; more end the one that has waited longest.
const PARKED_MAX: usize = 100_000;

impl Sessions {
    pub(crate) fn new(
        me: Address,
        limits: &Limits,
        ids: IdKey,
        products: impl IntoIterator<Item = Arc<ProductRules>>,
    ) -> Self {
        let products: FixedMap<Arc<str>, Arc<ProductRules>> =
            products.into_iter().map(|rules| (rules.name.clone(), rules)).collect();
        let single_copy = products.values().collect();
        let shared = SessionsShared { ids: ids.clone(), single_copy };
        Self {
            limits: limits.clone(),
            ids,
            products,
            host: Host::new(me, usize::MAX, limits.placed_per_turn, shared),
            by_user: FixedMap::default(),
            dirty: BTreeSet::new(),
            busy: BTreeSet::new(),
            bounced: BTreeSet::new(),
            misdirected: None,
            expected: VecDeque::new(),
            without_edge: FixedSet::default(),
            pending: BTreeMap::new(),
            answered: 0,
            calls: 0,
            parked: VecDeque::new(),
        }
    }

    /// New rules, or new products; those that are not named stay.
    pub(crate) fn learn_products(&mut self, products: Vec<Arc<ProductRules>>) {
        for rules in products {
            self.host.shared.single_copy.learn(&rules);
            self.products.insert(rules.name.clone(), rules);
        }
    }

    pub(crate) fn handle(&mut self, ctx: &mut Ctx<'_>, from: Address, message: ToSession) {
        let sid = match &message {
            ToSession::Attach { identity, .. } => identity.sid,
            ToSession::Resume(resume) => self.ids.sid_of(&resume.pid),
            ToSession::Inbound { sid, .. }
            | ToSession::OwnReceived { sid, .. }
            | ToSession::Joined { sid, .. }
            | ToSession::Detach { sid, .. } => *sid,
        };
        self.place(ctx, &sid);
        match message {
            ToSession::Attach { identity, edge, shadow, hello, instead_of } => {
                self.on_attach(ctx, from, Attach { identity, edge, shadow, hello, instead_of });
            }
            ToSession::Inbound { sid, first, packets } => {
                self.on_inbound(ctx, from, sid, first, packets);
            }
            ToSession::Resume(resume) => self.on_resume(ctx, from, *resume),
            ToSession::OwnReceived { sid, own_seq, shown } => {
                let Some(mut session) = self.attached_at(&sid, from) else {
                    return self.bounce(ctx, from, sid);
                };
                session.op(SessionOp::OwnReceived { own_seq, shown });
                self.run(ctx, sid);
            }
            ToSession::Joined { sid, own_seq, at } => {
                let Some(mut session) = self.attached_at(&sid, from) else {
                    return self.bounce(ctx, from, sid);
                };
                if own_seq == 0 {
                    session.joined_everyone(at);
                } else {
                    session.joined(own_seq, at);
                }
                self.run(ctx, sid);
            }
            ToSession::Detach { sid, attachment, clean, reason } => {
                let Some(session) = self.at_edge(&sid, from) else { return };
                if session.state.attachment <= attachment || is_planted(Mutant::OlderTransportParks) {
                    session.live.detached = Some(reason);
                    self.park(ctx, sid, clean || !reason.may_resume());
                    self.lost_transport(ctx, sid, reason);
                    self.run(ctx, sid);
                }
            }
        }
    }

    /// Another holder of sessions.
    pub(crate) fn on_replication(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        message: MessageOf<SessionState>,
    ) {
        self.host.handle(ctx, from, message);
        self.react(ctx);
    }

    /// The session, if its transport ends at `from`: an older edge has no say any more.
    fn at_edge<'a>(&'a mut self, sid: &'a SocketSid, from: Address) -> Option<Session<'a>> {
        self.host.owned(sid).filter(|s| s.state.edge.is_some_and(|edge| edge.edge == from))
    }

    /// The same, and it has attached to this owner.
    fn attached_at<'a>(&'a mut self, sid: &'a SocketSid, from: Address) -> Option<Session<'a>> {
        let session = self.at_edge(sid, from).filter(|s| s.live.attached)?;
        session.live.resumed = None;
        Some(session)
    }

    fn on_attach(&mut self, ctx: &mut Ctx<'_>, from: Address, attach: Attach) {
        let Attach { identity, edge, shadow, .. } = &attach;
        let sid = identity.sid;
        let placement = self.ids.placement_of(sid);
        if placement != Placement::of_user(&identity.product, &identity.uid) {
            return self.bounce(ctx, from, sid);
        }
        // An edge speaks for itself only: what we send goes to the address it names.
        if edge.edge != from || !shadow.is_plausible() {
            return;
        }
        if !self.products.contains_key(&identity.product) {
            let unknown = SessionToEdge::Unknown { sid, attachment: edge.attachment };
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(unknown));
        }
        // No owner has heard of it before: nobody needs to be asked.
        let is_new = shadow.term == Term::NONE && edge.attachment == 1;
        let open = if is_new && self.host.copy(&sid).is_none() && ctx.view.owns(placement) {
            Open::Absent
        } else {
            self.host.open(ctx, &sid, shadow.term)
        };
        self.react_to_events(ctx);
        self.attach_to(ctx, from, attach, open);
    }

    fn attach_to(&mut self, ctx: &mut Ctx<'_>, from: Address, attach: Attach, open: Open) {
        let sid = attach.identity.sid;
        match open {
            Open::Yes => {}
            Open::No => return self.bounce(ctx, from, sid),
            Open::Wait => {
                if self.host.wait(&sid, from, Box::new(Word::Attach(attach))).is_err() {
                    self.bounce(ctx, from, sid);
                }
                return;
            }
            Open::Absent => {
                let state = SessionState::new(attach.identity.clone());
                self.host.create(ctx, &sid, state, attach.shadow.term);
                self.react_to_events(ctx);
            }
        }
        let Attach { identity, edge, shadow, hello, instead_of } = attach;
        let Some(session) = self.host.owned(&sid) else { return };
        let (last, former) = (session.state.attachment, session.state.edge);
        // A transport that was given up comes back by a resume only; but an edge may have been out of reach.
        let is_gone = session.is_parked() && !session.state.identity.resumable && edge.attachment <= last;
        let is_over = session.is_parked() && session.state.ended;
        let placement = self.ids.placement_of(sid);
        if is_gone || is_over || session.state.has_left(edge.attachment, shadow.attached[1]) {
            let unknown = SessionToEdge::Unknown { sid, attachment: edge.attachment };
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(unknown));
        }
        let is_here = former.is_none_or(|former| former.edge == edge.edge && former.client == edge.client);
        if edge.attachment == last && is_here && shadow.attached[0] <= session.state.attached {
            // It has said so again since: this has been long under way.
            return;
        }
        if edge.attachment < last || (edge.attachment == last && !is_here) {
            // Two owners have counted, or its client has left it: which, the client says.
            let still_there = SessionToEdge::StillThere { sid, id: None, attachment: last };
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(still_there));
        }
        let former = former.filter(|former| !is_same_transport(former.attachment, edge.attachment));
        let is_heard = instead_of == Some(last);
        let given_up = former.filter(|_| is_heard);
        // Another owner has had it since: what we hold is the past.
        let is_past = shadow.term > session.term;
        self.host.begin_above(&sid, shadow.term);
        let is_app = self.products.get(&identity.product).is_some_and(|rules| rules.is_app);
        let mut to_admit = None;
        if let Some(mut session) = self.host.owned(&sid) {
            to_admit = hello.filter(|_| is_app && !session.state.admitted);
            session.attach(edge, &shadow, is_past, to_admit.is_none(), &self.limits, given_up);
        }
        if let Some(former) = former.filter(|_| !is_heard) {
            self.ask_to_attach(ctx, sid, former);
        }
        if let Some(auth) = to_admit {
            self.ask_to_admit(ctx, sid, shadow.inbound_confirmed, auth);
        }
        self.dirty.insert(sid);
        self.run(ctx, sid);
    }

    /// Carries out what has become of sessions, and the edges' words that waited for it.
    fn react(&mut self, ctx: &mut Ctx<'_>) {
        self.react_to_events(ctx);
        while let Some((from, _, word, open)) = self.host.next_ready(ctx) {
            match *word {
                Word::Attach(attach) => self.attach_to(ctx, from, attach, open),
                Word::Resume(resume) => self.resume_at(ctx, from, resume, open),
            }
            self.react_to_events(ctx);
        }
    }

    fn react_to_events(&mut self, ctx: &mut Ctx<'_>) {
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Began(sid) => self.began(ctx, sid),
                Event::Confirmed(sid) => {
                    self.dirty.insert(sid);
                }
                Event::Merged(sid, _) => self.replaced(ctx, sid),
                Event::Cut(sid) => self.park_if_edge_is_gone(ctx, sid),
                Event::Lost(sid, mut live) => {
                    live.effects.drain(|effect| {
                        if let Effect::Told(answer) = effect {
                            self.give_up(ctx, answer);
                        }
                    });
                    self.unindex(&sid);
                    self.dirty.remove(&sid);
                    self.without_edge.remove(&sid);
                    self.busy.remove(&sid);
                    self.bounced.remove(&sid);
                    // Its edge attaches to the new owner, and repeats what was under way.
                    let edge = self.host.copy(&sid).and_then(|s| s.edge).map(|edge| edge.edge);
                    if let Some(edge) = edge.filter(|edge| ctx.view.is_up(edge.node)) {
                        self.bounce(ctx, edge, sid);
                    }
                }
            }
        }
    }

    /// The session is owned here from now on, whoever had it before.
    fn began(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        let Some(session) = self.host.owned(&sid) else { return };
        session.live.key_ages.follow(&session.state.emitted, ctx.now);
        session.live.expected = Some(ctx.now);
        let (identity, ended) = (session.state.identity.clone(), session.state.ended);
        if !ended {
            self.index(&identity);
        }
        self.expected.push_back((ctx.now, sid));
        self.dirty.insert(sid);
        self.park_if_edge_is_gone(ctx, sid);
    }

    /// Another copy has taken the place of ours: it knows the session's transport better, and what an edge has
    /// said to us was said to the one of before.
    fn replaced(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        let Some(session) = self.host.owned(&sid) else { return };
        session.live.attached = false;
        session.live.key_ages.follow(&session.state.emitted, ctx.now);
        // The client may be at either.
        let (edge, former) = (session.state.edge, session.live.edge);
        for edge in edge.into_iter().chain(former.filter(|_| former != edge)) {
            self.ask_to_attach(ctx, sid, edge);
        }
        self.dirty.insert(sid);
        self.park_if_edge_is_gone(ctx, sid);
    }

    /// An edge that has the session attaches, or says that it has not.
    fn ask_to_attach(&self, ctx: &mut Ctx<'_>, sid: SocketSid, edge: EdgeRef) {
        if ctx.view.is_up(edge.edge.node) {
            let again = Body::SessionToEdge(SessionToEdge::Reattach { sid });
            ctx.out.send_to_address(edge.edge, self.ids.placement_of(sid), again);
        }
    }

    fn park_if_edge_is_gone(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        let Some(session) = self.host.owned(&sid) else { return };
        let is_gone = match session.state.edge {
            Some(edge) => !ctx.view.is_up(edge.edge.node),
            // Parked under another owner; a new one waits for its first edge.
            None => session.state.attachment > 0,
        };
        if is_gone {
            self.park(ctx, sid, false);
        }
        self.run(ctx, sid);
    }

    /// The session has no transport: for a while its client may come back, unless it is `over`.
    fn park(&mut self, ctx: &Ctx<'_>, sid: SocketSid, over: bool) {
        let Some(mut session) = self.host.owned(&sid) else { return };
        self.dirty.insert(sid);
        session.park(ctx.now, over);
        if session.state.ended {
            return self.unindex(&sid);
        }
        if session.state.identity.resumable {
            self.parked.push_back((ctx.now, sid));
        }
        if self.parked.len() > PARKED_MAX
            && let Some(oldest) = self.parked.pop_front()
        {
            self.expire(oldest);
        }
    }

    /// A mark of a parked session is old: the session ends if it is still the same silence.
    fn expire(&mut self, (since, sid): (Instant, SocketSid)) {
        let parked = self.host.owned(&sid).filter(|s| s.is_parked() && s.live.parked_since == Some(since));
        if let Some(mut session) = parked {
            session.op(SessionOp::Park { over: true });
            self.unindex(&sid);
            self.dirty.insert(sid);
        }
    }

    fn on_resume(&mut self, ctx: &mut Ctx<'_>, from: Address, resume: Resume) {
        let sid = self.ids.sid_of(&resume.pid);
        let open = self.host.open(ctx, &sid, Term::NONE);
        self.react_to_events(ctx);
        self.resume_at(ctx, from, resume, open);
    }

    fn resume_at(&mut self, ctx: &mut Ctx<'_>, from: Address, resume: Resume, open: Open) {
        let sid = self.ids.sid_of(&resume.pid);
        match open {
            Open::Yes => {}
            Open::No => return self.bounce(ctx, from, sid),
            Open::Wait => {
                if self.host.wait(&sid, from, Box::new(Word::Resume(resume))).is_err() {
                    self.bounce(ctx, from, sid);
                }
                return;
            }
            Open::Absent => return self.not_resumed(ctx, from, sid, resume.id, NotResumed::Gone),
        }
        let Resume { id, pid, product, uid, namespace, client, offset, instead_of } = resume;
        let key = self.ids.offset_key(&pid);
        let carried = offset.map_or(Carried::Nothing, |text| recovery::decode(&text, key));
        let Some(mut session) = self.host.owned(&sid) else { return };
        if session.has_resumed(from, id) {
            session.answer_resume();
            self.dirty.insert(sid);
            return;
        }
        let identity = &session.state.identity;
        let is_theirs = identity.pid == pid
            && identity.product == product
            && (identity.uid == uid || [&identity.uid, &uid].iter().all(|uid| uid.starts_with(ANONYMOUS)))
            && identity.namespace == namespace;
        let point = match session.state.resume_point(&carried) {
            Ok(point) if is_theirs && identity.resumable => point,
            Ok(_) => return self.not_resumed(ctx, from, sid, id, NotResumed::NotTheirs),
            Err(why) => return self.not_resumed(ctx, from, sid, id, why),
        };
        let last = session.state.attachment;
        // The question may have been long under way, and its client back by another transport since.
        if !session.state.own.is_of_present(point.own_seq) && instead_of != Some(last) {
            let still_there = SessionToEdge::StillThere { sid, id: Some(id), attachment: last };
            let placement = self.ids.placement_of(sid);
            return ctx.out.send_to_address(from, placement, Body::SessionToEdge(still_there));
        }
        let Some(attachment) = next_transport(last, ctx.view.me) else {
            return self.not_resumed(ctx, from, sid, id, NotResumed::Gone);
        };
        session.resume(EdgeRef { attachment, edge: from, client }, id, &point);
        self.tell_app(ctx, &sid, AppEvent::Attach);
        self.dirty.insert(sid);
        self.run(ctx, sid);
    }

    fn not_resumed(&self, ctx: &mut Ctx<'_>, from: Address, sid: SocketSid, id: u64, why: NotResumed) {
        let placement = self.ids.placement_of(sid);
        let refused = SessionToEdge::NotResumed { sid, id, why };
        ctx.out.send_to_address(from, placement, Body::SessionToEdge(refused));
    }

    /// Files a session under its user; one too many in its namespace, or in all, ends the oldest.
    fn index(&mut self, identity: &SessionIdentity) {
        let key = (identity.product.clone(), identity.uid.clone());
        let sids = self.by_user.entry(key).or_default();
        sids.push(identity.sid);
        let max = self.limits.sessions_per_uid_max;
        let host = &self.host;
        let in_namespace =
            |sid: &&SocketSid| host.copy(sid).is_some_and(|s| s.identity.namespace == identity.namespace);
        let crowd: Vec<SocketSid> = if sids.len() > max * self.limits.namespaces_max {
            sids.clone()
        } else {
            sids.iter().filter(in_namespace).copied().collect()
        };
        if crowd.len() <= max {
            return;
        }
        // One that nobody is using, if there is any.
        let unused = |sid: &&SocketSid| {
            **sid != identity.sid && host.copy(sid).is_some_and(|state| state.edge.is_none())
        };
        let oldest = crowd.iter().find(unused).copied().unwrap_or(crowd[0]);
        self.end(oldest, DisconnectCode::SessionsPerUid, true);
    }

    /// Tells the client that its session is over; it is gone here once the edge has detached it.
    fn end(&mut self, sid: SocketSid, code: DisconnectCode, close: bool) {
        if let Some(mut session) = self.host.owned(&sid).filter(|s| !s.state.ended) {
            session.op(SessionOp::End { close, code });
            self.unindex(&sid);
            self.dirty.insert(sid);
        }
    }

    fn unindex(&mut self, sid: &SocketSid) {
        let Some(state) = self.host.copy(sid) else { return };
        let key = (state.identity.product.clone(), state.identity.uid.clone());
        if let Some(sids) = self.by_user.get_mut(&key) {
            sids.retain(|s| s != sid);
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
        let session = self.attached_at(&sid, from).filter(|s| first <= s.live.received + 1);
        let Some(session) = session else { return self.bounce(ctx, from, sid) };
        for (number, packet) in (first..).zip(packets) {
            if number == session.live.received + 1 {
                session.live.received = number;
                session.live.program.push_back(packet);
            }
        }
        self.run(ctx, sid);
    }

    fn bounce(&self, ctx: &mut Ctx<'_>, from: Address, sid: SocketSid) {
        ctx.not_owner(from, self.ids.placement_of(sid), Subject::Session(sid));
    }

    /// A room's owner answers.
    pub(crate) fn on_published(&mut self, ctx: &mut Ctx<'_>, message: RoomToPublisher) {
        let (id, room, outcome) = match message {
            RoomToPublisher::Published { room, id, at } => (id, room, Ok(at)),
            RoomToPublisher::Refused { room, id, why } => (id, room, Err(why)),
        };
        let PublishId::Session { sid, .. } = id else { return };
        if let Some(mut session) = self.host.owned(&sid) {
            session.published(ctx, id, &room, outcome);
            self.run(ctx, sid);
        }
    }

    /// The room is not where we sent it, or not yet: everything under way to it is held until the retry,
    /// or goes at once to the owner that the ring names by now.
    pub(crate) fn on_room_bounced(&mut self, ctx: &mut Ctx<'_>, from: NodeRef, room: &RoomKey) {
        if !self.hold_where(|publish, sent_to| publish.room == *room && sent_to == from) {
            return;
        }
        if ctx.view.owner(room.placement()) == Some(from) {
            ctx.timers.set(ctx.now + RETRY_AFTER, TimerKey::Retry);
        } else {
            self.send_bounced(ctx);
        }
    }

    /// Takes back publishes under way for which `lost` holds. Returns whether there were any.
    fn hold_where(&mut self, lost: impl Fn(&Publish, NodeRef) -> bool) -> bool {
        let mut any = false;
        for sid in &self.busy {
            if let Some(mut session) = self.host.owned(sid)
                && session.hold(&lost)
            {
                self.bounced.insert(*sid);
                any = true;
            }
        }
        any
    }

    /// What was under way to `peer` is lost.
    pub(crate) fn on_link_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        self.host.on_link_reset(ctx, peer);
        self.react(ctx);
        self.hold_where(|_, sent_to| sent_to == peer);
        for (sid, state, _) in self.host.iter() {
            if let Some(edge) = state.edge.filter(|edge| edge.edge.node == peer) {
                // An edge that has the session attaches anew; one that has not disowns it.
                let again = SessionToEdge::Reattach { sid: *sid };
                let placement = self.ids.placement_of(*sid);
                ctx.out.send_to_address(edge.edge, placement, Body::SessionToEdge(again));
            }
        }
        self.send_bounced(ctx);
    }

    /// A while has passed since views differed.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        self.host.retry(ctx);
        self.react(ctx);
        self.send_bounced(ctx);
    }

    /// Sends again what was bounced, by the present ring.
    pub(crate) fn send_bounced(&mut self, ctx: &mut Ctx<'_>) {
        for sid in std::mem::take(&mut self.bounced) {
            let Some(mut session) = self.host.owned(&sid) else { continue };
            if !session.send_held(ctx) {
                self.bounced.insert(sid);
            }
        }
    }

    /// The cluster has changed: sessions follow the ring, publishes their rooms, some in each turn
    /// ([`Sessions::place_some`], [`Sessions::hold_misdirected`]).
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        self.host.on_view(ctx);
        self.react(ctx);
        self.misdirected = Some(None);
    }

    /// Some more sessions follow the ring, those with something under way first.
    pub(crate) fn place_some(&mut self, ctx: &mut Ctx<'_>) {
        self.host.place_some(ctx);
        self.react(ctx);
    }

    /// Somebody asks about this session: it is what the present ring says.
    pub(crate) fn place(&mut self, ctx: &mut Ctx<'_>, sid: &SocketSid) {
        self.host.place(ctx, sid);
        self.react(ctx);
    }

    /// Takes back publishes of some more sessions whose rooms have other owners by now. Returns those rooms:
    /// [`Sessions::send_bounced`] sends them.
    pub(crate) fn hold_misdirected(&mut self, ctx: &Ctx<'_>) -> Vec<RoomKey> {
        let mut rooms = Vec::new();
        for _ in 0..(self.limits.placed_per_turn / CHANGE_COSTS).max(1) {
            let next = match self.misdirected {
                None => break,
                Some(None) => self.busy.first().copied(),
                Some(Some(last)) => {
                    self.busy.range((Bound::Excluded(last), Bound::Unbounded)).next().copied()
                }
            };
            self.misdirected = next.map(Some);
            let Some(sid) = next else { break };
            let Some(mut session) = self.host.owned(&sid) else { continue };
            if session.hold(|publish, sent_to| ctx.view.owner(publish.room.placement()) != Some(sent_to)) {
                rooms.extend(session.held_rooms());
                self.bounced.insert(sid);
            }
        }
        rooms
    }

    /// Whether the last turn has left something that the next can do without hearing anything.
    pub(crate) fn has_more(&self) -> bool {
        self.misdirected.is_some() || self.host.has_more()
    }

    pub(crate) fn turn_ends(&mut self) {
        self.host.turn_ends();
    }

    /// Asks again for edges that have not attached, which may have let the session go while nobody heard
    /// it, and ends what was parked for too long. Whether more is due than one step may look at.
    pub(crate) fn sweep(&mut self, ctx: &mut Ctx<'_>) -> bool {
        self.host.sweep();
        let mut budget = Budget::step();
        while let Some(&(since, sid)) = self.expected.front()
            && ctx.now.since(since) >= REATTACH_AFTER
            && budget.spend()
        {
            self.expected.pop_front();
            let Some(session) = self.host.owned(&sid) else { continue };
            let is_expected = session.live.expected == Some(since) && !session.live.attached;
            let Some(edge) = session.state.edge.filter(|_| is_expected) else { continue };
            session.live.expected = Some(ctx.now);
            self.expected.push_back((ctx.now, sid));
            let again = Body::SessionToEdge(SessionToEdge::Reattach { sid });
            ctx.out.send_to_address(edge.edge, self.ids.placement_of(sid), again);
        }
        while let Some(&mark) = self.parked.front()
            && ctx.now.since(mark.0) >= self.limits.recovery_window
            && budget.spend()
        {
            self.parked.pop_front();
            self.expire(mark);
        }
        budget.is_spent()
    }

    pub(crate) fn has_to_sweep(&self) -> bool {
        self.host.has_to_sweep() || !self.parked.is_empty() || !self.expected.is_empty()
    }

    fn forget(&mut self, ctx: &mut Ctx<'_>, sid: SocketSid) {
        if let Some(session) = self.host.owned(&sid) {
            let mut effects = std::mem::take(&mut session.live.effects);
            effects.drain(|effect| {
                if let Effect::Told(answer) = effect {
                    self.count_down(ctx, answer, 1);
                }
            });
        }
        let said = self.host.owned(&sid).and_then(|session| session.live.detached);
        self.tell_app(ctx, &sid, AppEvent::Disconnect(said.unwrap_or(DetachReason::ServerDisconnect)));
        self.unindex(&sid);
        self.host.end(&sid);
        self.dirty.remove(&sid);
        self.without_edge.remove(&sid);
        self.busy.remove(&sid);
        self.bounced.remove(&sid);
    }

    /// Another life of this node: what it owned is offered to its owner.
    pub(crate) fn on_rebirth(&mut self, ctx: &mut Ctx<'_>, me: Address) {
        self.host.on_rebirth(me);
        self.react(ctx);
    }

    /// Sends what this turn has made ready. Returns whether there was anything.
    pub(crate) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let sent = self.host.flush(ctx);
        self.react(ctx);
        let dirty = std::mem::take(&mut self.dirty);
        for sid in &dirty {
            let placement = self.ids.placement_of(*sid);
            let Some(mut session) = self.host.owned(sid) else { continue };
            if session.is_parked() {
                self.without_edge.insert(*sid);
            } else {
                self.without_edge.remove(sid);
            }
            session.live.effects.confirm(session.confirmed);
            if session.has_held() {
                session.send_held(ctx);
            }
            let told = session.release(placement, ctx.out);
            let is_over = session.is_over();
            told.into_iter().for_each(|answer| self.count_down(ctx, answer, 1));
            if is_over {
                self.forget(ctx, *sid);
            }
        }
        sent || !dirty.is_empty()
    }

    pub(crate) fn host(&self) -> &Host<SessionState> {
        &self.host
    }

    /// Does with each session of a user what a backend asks. The answer says how many there were, once
    /// it is safe with all of them.
    pub(crate) fn command_user(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        call: u64,
        user: &UserKey,
        command: &Command,
    ) {
        let placement = Placement::of_user(&user.0, &user.1);
        let sids = self.by_user.get(user).cloned().unwrap_or_default();
        if (sids.is_empty() && ctx.pace.is_moving(ctx.now)) || self.host.is_placing() {
            // They may be on their way here, or here and not filed yet.
            return ctx.ask_again(from, placement, Subject::Call(call));
        }
        self.command_all(ctx, Pending { from, call, placement, left: 0, reached: 0 }, &sids, command);
    }

    /// Does with one session what a backend asks, and answers when it is safe.
    pub(crate) fn command_session(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        call: u64,
        product: &str,
        sid: SocketSid,
        command: &Command,
    ) {
        let placement = self.ids.placement_of(sid);
        self.place(ctx, &sid);
        match self.host.peek(&sid) {
            Some((state, _)) if &*state.identity.product == product => {
                let pending = Pending { from, call, placement, left: 0, reached: 0 };
                self.command_all(ctx, pending, &[sid], command);
            }
            None if ctx.pace.is_moving(ctx.now) => ctx.ask_again(from, placement, Subject::Call(call)),
            _ => {
                let answer = Err(CommandFailed::NotFound);
                ctx.out.send_to_address(from, placement, Body::Answer { call, answer });
            }
        }
    }

    fn command_all(
        &mut self,
        ctx: &mut Ctx<'_>,
        mut pending: Pending,
        sids: &[SocketSid],
        command: &Command,
    ) {
        self.answered += 1;
        let answer = self.answered;
        for sid in sids {
            if self.command(ctx, *sid, command)
                && let Some(session) = self.host.owned(sid)
            {
                session.live.effects.push(session.applied(), Effect::Told(answer));
                pending.reached += 1;
                self.dirty.insert(*sid);
            }
        }
        pending.left = pending.reached;
        self.pending.insert(answer, pending);
        self.count_down(ctx, answer, 0);
    }

    /// So many more sessions are safe with what a backend asked.
    fn count_down(&mut self, ctx: &mut Ctx<'_>, answer: u64, sessions: u32) {
        let Some(pending) = self.pending.get_mut(&answer) else { return };
        pending.left -= sessions;
        if pending.left == 0 {
            let Pending { from, call, placement, reached, .. } = *pending;
            self.pending.remove(&answer);
            let answer = Ok(Answer::Done { sessions: reached });
            ctx.out.send_to_address(from, placement, Body::Answer { call, answer });
        }
    }

    /// Whether it was carried out nobody here will know.
    fn give_up(&mut self, ctx: &mut Ctx<'_>, answer: u64) {
        if let Some(Pending { from, call, placement, .. }) = self.pending.remove(&answer) {
            let answer = Err(CommandFailed::Timeout);
            ctx.out.send_to_address(from, placement, Body::Answer { call, answer });
        }
    }

    pub(crate) fn facts(&self, now: Instant, product: &Arc<str>, uid: &Arc<str>) -> Vec<SessionFacts> {
        let sids = self.by_user.get(&(product.clone(), uid.clone()));
        let facts = |sid: &SocketSid| {
            let (state, live) = self.host.peek(sid)?;
            let ownership = self.host.ownership(sid)?;
            Some(SessionFacts {
                sid: *sid,
                namespace: state.identity.namespace.clone(),
                term: ownership.term,
                edge: state.edge.map(|edge| edge.edge),
                rooms: u32::try_from(state.rooms.len()).unwrap_or(u32::MAX),
                inbound: live.received & ((1 << ATTACHMENT_SHIFT) - 1),
                own_seq: state.own.last(),
                ownership: ownership.facts(now),
            })
        };
        sids.into_iter().flatten().filter_map(facts).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.host.owned_count()
    }

    /// Sessions without a transport.
    pub(crate) fn parked_count(&self) -> usize {
        self.without_edge.len()
    }

    /// Asserts bounds and order.
    pub(crate) fn check_invariants(&self) {
        let mut indexed = 0;
        for ((product, uid), sids) in &self.by_user {
            indexed += sids.len();
            let max = self.limits.sessions_per_uid_max * self.limits.namespaces_max;
            assert!(sids.len() <= max, "{product} {uid}: too many sessions");
            for sid in sids {
                let (state, _) = self.host.peek(sid).expect("filed under its user and owned");
                let identity = &state.identity;
                assert!(identity.product == *product && identity.uid == *uid, "{sid:?} filed wrongly");
            }
        }
        assert!(indexed <= self.len());
        self.host.check_invariants();
        for (sid, state, live) in self.host.iter() {
            let counted = self.without_edge.contains(sid);
            assert!(counted == state.edge.is_none() || self.dirty.contains(sid), "{sid:?}: miscounted");
            assert!(live.open.is_empty() || self.busy.contains(sid), "{sid:?}: busy and not filed");
            state.check_invariants(&self.limits);
            live.check_invariants(state, &self.limits);
        }
        assert!(self.busy.iter().all(|sid| self.host.owns(sid)));
        assert!(self.without_edge.iter().all(|sid| self.host.owns(sid)));
    }
}
