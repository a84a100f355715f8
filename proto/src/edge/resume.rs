//! Clients that come back: asking for their session, and serving it from where they are.
//!
//! Belongs here: the question to the owner, what its answer leads to, falling back to a new session.
//! Stays out: what an offset means (`session::resume`), serving a cursor (`readers`).
//! Invariants: the client is told that it goes on only when the owner of every room has found its cursor;
//! before that anything that fails gives it a new session; it is told before it gets any event. A transport
//! gives way only to one that its client has shown to be the next: by an offset that was written over it, or
//! by the answer to a ping that left after the owner had named it.
//! When it breaks: the question is repeated to whoever owns the session then; after `RESUME_MAX` the client
//! begins anew. A question that comes late, or for a client that is gone, takes nothing away from anybody.

use std::sync::Arc;
use std::time::Duration;

use super::Edge;
use super::session::EdgeSession;
use crate::id::{Address, ClientIx, Cursor, NodeRef, Pid, Placement, RoomKey, SocketSid};
use crate::json;
use crate::mutant::{Mutant, is_planted};
use crate::recovery::room_tag;
use crate::shard::{Admission, CloseCode, Ctx, TimerKey};
use crate::wire::{
    AskedBy, Body, DetachReason, MovedResume, NotResumed, Resume, Resumed, SessionToEdge, ToSession,
};

/// A client that comes back waits this long at most.
pub(super) const RESUME_MAX: Duration = Duration::from_secs(10);

/// A question under way.
#[derive(Debug)]
pub(super) struct Resuming {
    sid: SocketSid,
    placement: Placement,
    /// Who was asked; `None`: to be asked again.
    owner: Option<NodeRef>,
    /// It is not asked again before the client has answered this ping.
    ping: Option<u64>,
    question: Resume,
}

impl Resuming {
    pub(super) fn client(&self) -> ClientIx {
        self.question.client
    }
}

impl Edge {
    /// The session that a CONNECT asks for, if it asks for one: its pid, and the offset carried here.
    pub(super) fn resume_asked(auth: Option<&[u8]>) -> Option<(Pid, Option<Arc<str>>)> {
        let auth = auth?;
        let (mut pid, mut offset) = (None, None);
        for member in json::members(auth, crate::limits::Limits::default().json_depth_max).flatten() {
            let value = || json::unescape_str(&auth[member.value.clone()]);
            match json::unescape_str(&auth[member.key.clone()]).as_deref() {
                Some("pid") => pid = value().and_then(|text| Pid::from_text(&text)),
                Some("offset") => offset = value().map(|text| text.as_ref().into()),
                _ => {}
            }
        }
        Some((pid?, offset))
    }

    /// Asks the owner of a session for it.
    pub(super) fn ask_resume(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        namespace: Arc<str>,
        pid: Pid,
        offset: Option<Arc<str>>,
    ) {
        let Some(client) = self.client(ix) else { return };
        client.connected();
        let (Ok(Admission { product, .. }), Some(uid)) =
            (client.admission.clone(), client.uid_in(&namespace))
        else {
            return;
        };
        client.resume_due = Some(ctx.now + RESUME_MAX);
        self.resumes_asked += 1;
        let id = self.resumes_asked;
        if let Some(client) = self.client(ix) {
            client.resuming.push(id);
        }
        let sid = self.ids.sid_of(&pid);
        // An older transport of the same client: it does not ask any more.
        let older = self.resuming.iter().find(|(_, resuming)| resuming.sid == sid);
        let older = older.map(|(id, resuming)| (*id, resuming.client(), resuming.question.namespace.clone()));
        let product = product.name.clone();
        let question = Resume { id, pid, product, uid, namespace, client: ix, offset, instead_of: None };
        let placement = self.ids.placement_of(sid);
        self.resuming.insert(id, Resuming { sid, placement, owner: None, ping: None, question });
        if let Some((older, at, namespace)) = older {
            self.resuming.remove(&older);
            if let Some(client) = self.client(at) {
                client.resuming.retain(|asked| *asked != older);
                self.connect(ctx, at, &namespace);
            }
        }
        self.send_resumes(ctx);
        self.arm(ctx, ix);
    }

    /// Asks for whatever is not being asked for.
    pub(super) fn send_resumes(&mut self, ctx: &mut Ctx<'_>) {
        for resuming in self.resuming.values_mut().filter(|resuming| resuming.owner.is_none()) {
            let client = self.clients[resuming.client().0 as usize].as_deref();
            let client = client.expect("a question has its client");
            if resuming.ping.is_some_and(|ping| !client.has_answered(ping)) {
                continue;
            }
            resuming.owner = ctx.view.owner(resuming.placement);
            if let Some(owner) = resuming.owner {
                let resume = ToSession::Resume(Box::new(resuming.question.clone()));
                ctx.out.send_to_host(owner, resuming.placement, Body::ToSession(resume));
            }
        }
    }

    /// The session has had transport `attachment`, of which the client's offset does not know: if the client
    /// is there now, that is not its transport any more.
    fn still_there(&mut self, ctx: &mut Ctx<'_>, from: Address, id: u64, attachment: u64) {
        let Some(ix) = self.resuming.get(&id).filter(|r| r.owner == Some(from.node)).map(Resuming::client)
        else {
            return;
        };
        let ping = self.ping(ctx, ix).filter(|_| !is_planted(Mutant::AskedForTheGone));
        if let Some(resuming) = self.resuming.get_mut(&id) {
            resuming.question.instead_of = Some(attachment);
            (resuming.owner, resuming.ping) = (None, ping);
        }
        self.send_resumes(ctx);
        self.arm(ctx, ix);
    }

    /// Asks again wherever `which` holds for the node asked.
    pub(super) fn ask_resumes_again(
        &mut self,
        ctx: &mut Ctx<'_>,
        which: impl Fn(Option<NodeRef>, Placement, &Ctx<'_>) -> bool,
    ) {
        for resuming in self.resuming.values_mut() {
            if which(resuming.owner, resuming.placement, ctx) {
                resuming.owner = None;
            }
        }
        self.send_resumes(ctx);
    }

    /// The node asked does not own the session: ask again soon.
    pub(super) fn resume_bounced(&mut self, ctx: &mut Ctx<'_>, from: Address, sid: SocketSid) {
        for resuming in self.resuming.values_mut() {
            if resuming.sid == sid && resuming.owner == Some(from.node) {
                resuming.owner = None;
                ctx.timers.set(ctx.now + crate::session::RETRY_AFTER, TimerKey::Retry);
            }
        }
    }

    pub(super) fn is_resuming(&self, sid: SocketSid) -> bool {
        self.resuming.values().any(|resuming| resuming.sid == sid)
    }

    pub(super) fn is_resuming_in(&self, ix: ClientIx, namespace: &str) -> bool {
        let client = self.clients.get(ix.0 as usize).and_then(|client| client.as_deref());
        client.is_some_and(|client| {
            let mut asked = client.resuming.iter().filter_map(|id| self.resuming.get(id));
            asked.any(|resuming| *resuming.question.namespace == *namespace)
        })
    }

    /// Takes a question off, if it is still open and this is who was asked: its client and namespace.
    fn answered(&mut self, from: Address, id: u64) -> Option<(ClientIx, Arc<str>)> {
        self.resuming.get(&id).filter(|resuming| resuming.owner == Some(from.node))?;
        let Resume { client: ix, namespace, .. } = self.resuming.remove(&id)?.question;
        let client = self.client(ix)?;
        let place = client.resuming.iter().position(|asked| *asked == id)?;
        client.resuming.remove(place);
        Some((ix, namespace))
    }

    /// The questions of a client that another edge is to ask.
    pub(super) fn take_resumes(&mut self, ix: ClientIx) -> Vec<MovedResume> {
        let asked = self.client(ix).map(|client| std::mem::take(&mut client.resuming)).unwrap_or_default();
        let questions = asked.into_iter().filter_map(|id| self.resuming.remove(&id));
        let moved = questions.map(|Resuming { question: Resume { namespace, pid, offset, .. }, .. }| {
            MovedResume { namespace, pid, offset }
        });
        moved.collect()
    }

    /// The client of questions is gone.
    pub(super) fn forget_resumes(&mut self, ix: ClientIx) {
        let client = self.clients.get_mut(ix.0 as usize).and_then(|client| client.as_deref_mut());
        for id in client.map(|client| std::mem::take(&mut client.resuming)).unwrap_or_default() {
            self.resuming.remove(&id);
        }
    }

    /// One session more of a client goes on, or does not: nothing is waited for unless others are.
    pub(super) fn resume_is_over(&mut self, ix: ClientIx) {
        let waiting = self.sessions_of(ix).iter().any(|index| {
            let session = &self.sessions[*index as usize];
            session.resumes && !session.welcomed
        });
        if let Some(client) = self.client(ix)
            && client.resuming.is_empty()
            && !waiting
        {
            client.resume_due = None;
        }
    }

    /// A client that came back gets a new session in a namespace.
    fn begin_anew(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, namespace: &Arc<str>, why: NotResumed) {
        ctx.stats.not_resumed_total += 1;
        tracing::debug!(client = ix.0, ?why, "a client that came back begins anew");
        self.resume_is_over(ix);
        self.connect(ctx, ix, namespace);
    }

    pub(super) fn not_resumed(&mut self, ctx: &mut Ctx<'_>, from: Address, id: u64, why: NotResumed) {
        if let Some((ix, namespace)) = self.answered(from, id) {
            self.begin_anew(ctx, ix, &namespace, why);
        }
    }

    /// The session goes on here: its rooms are looked up before the client is told.
    pub(super) fn resumed(&mut self, ctx: &mut Ctx<'_>, from: Address, resumed: Resumed) {
        let Resumed { id, identity, term, attachment, own_seq, rooms } = resumed;
        let (sid, placement) = (identity.sid, self.ids.placement_of(identity.sid));
        let Some((ix, _)) = self.answered(from, id) else {
            let here = self.by_sid.get(&sid).map(|index| self.sessions[*index as usize].attachment);
            if here == Some(attachment) {
                // The question was asked twice.
                return;
            }
            // Nobody waits for it any more: the session is without a transport.
            let reason = DetachReason::TransportClose;
            let detach = ToSession::Detach { sid, attachment, clean: false, reason };
            return ctx.out.send_to_address(from, placement, Body::ToSession(detach));
        };
        if let Some(&former) = self.by_sid.get(&sid) {
            self.close_with(ctx, former, CloseCode::Ended, DetachReason::TransportClose);
        }
        let Some(client) = self.client(ix) else { return };
        let protocol = client.protocol;
        let key = self.ids.offset_key(&identity.pid);
        let mut session = EdgeSession::new(identity, placement, protocol, ix, attachment);
        session.offset_key = Some(key);
        session.resumes = true;
        session.goes_on_after(own_seq);
        (session.owner, session.term) = (Some(from.node), term);
        let index = self.keep_session(session);
        for room in rooms {
            self.go_on_in(ctx, index, &room.room, room.own_seq, room.joined, room.after);
        }
        self.sessions[index as usize].attached = true;
        self.catch_up(ctx, ix);
        self.arm(ctx, ix);
    }

    /// The session is served from the tail of a room it was in: from its own place, once that is found.
    pub(super) fn go_on_in(
        &mut self,
        ctx: &mut Ctx<'_>,
        index: u32,
        room: &RoomKey,
        own_seq: u64,
        joined: Cursor,
        after: Cursor,
    ) {
        self.join_tail(ctx, index, room, 0, AskedBy::Client);
        let Some(&tail) = self.by_room.get(room) else { return };
        if let Some(m) = self.sessions[index as usize].membership(tail) {
            (m.own_seq, m.joined, m.tag) = (own_seq, joined, room_tag(room, joined));
        }
        self.read_from(ctx, index, tail, after);
    }

    /// A session that was to go on cannot without a hole: its client begins anew, and it is over.
    pub(super) fn give_up_resume(&mut self, ctx: &mut Ctx<'_>, index: u32, why: NotResumed) {
        let (ix, namespace) = {
            let session = &self.sessions[index as usize];
            (session.client, session.identity.namespace.clone())
        };
        self.end_session(ctx, index, true, DetachReason::ServerDisconnect);
        self.begin_anew(ctx, ix, &namespace, why);
    }

    /// It has taken too long to come back.
    pub(super) fn resume_is_late(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let asked = self.client(ix).map(|client| std::mem::take(&mut client.resuming)).unwrap_or_default();
        for id in asked {
            if let Some(resuming) = self.resuming.remove(&id) {
                self.begin_anew(ctx, ix, &resuming.question.namespace, NotResumed::Late);
            }
        }
        let late: Vec<u32> = self.sessions_of(ix).to_vec();
        for index in late {
            let session = &self.sessions[index as usize];
            if session.resumes && !session.welcomed {
                self.give_up_resume(ctx, index, NotResumed::Late);
            }
        }
    }

    /// What an owner says of a resume.
    pub(super) fn take_resume_answer(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        message: SessionToEdge,
    ) -> Option<SessionToEdge> {
        match message {
            SessionToEdge::Resumed(resumed) => self.resumed(ctx, from, *resumed),
            SessionToEdge::NotResumed { id, why, .. } => self.not_resumed(ctx, from, id, why),
            SessionToEdge::StillThere { id: Some(id), attachment, .. } => {
                self.still_there(ctx, from, id, attachment);
            }
            other => return Some(other),
        }
        None
    }
}
