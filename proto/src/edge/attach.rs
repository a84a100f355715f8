//! Towards owners: attaching sessions, subscribing tails, and doing both again when owners change.
//!
//! Belongs here: who is asked, when it is asked again, what it is told.
//! Stays out: what comes back for clients (`deliver`).
//! When it breaks: a bounce is asked again after `RETRY_AFTER`, by the ring of that moment; a lost link
//! or a new view at once.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Edge;
use super::session::{EdgeSession, Membership};
use super::tail::Tail;
use crate::id::{Address, ClientIx, Cursor, NodeRef, Placement, RoomKey, SocketSid};
use crate::mutant::{Mutant, is_planted};
use crate::plain::{self, Welcome};
use crate::recovery::room_tag;
use crate::room;
use crate::session::RETRY_AFTER;
use crate::shard::{ClientProtocol, CloseCode, Ctx, TimerKey};
use crate::socketio;
use crate::wire::{
    AskedBy, Body, DetachReason, EdgeRef, Lane, SessionIdentity, Shadow, ShadowRoom, Subject, Subscription,
    To, ToRoom, ToSession, next_transport,
};

impl Edge {
    pub(super) fn begin_session(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        identity: SessionIdentity,
        placement: Placement,
        protocol: ClientProtocol,
        hello: Option<Bytes>,
    ) {
        let everyone = room::everyone(&identity.product, &identity.namespace);
        let key = identity.resumable.then(|| self.ids.offset_key(&identity.pid));
        let mut session = EdgeSession::new(identity, placement, protocol, ix, 1);
        session.offset_key = key;
        session.hello = hello;
        let index = self.keep_session(session);
        self.join_tail(ctx, index, &everyone, 0, AskedBy::Client);
        self.attach(ctx, index);
    }

    /// Files a session under its id and with its client.
    pub(super) fn keep_session(&mut self, session: EdgeSession) -> u32 {
        let (sid, ix) = (session.identity.sid, session.client);
        let index = u32::try_from(self.sessions.insert(Box::new(session)))
            .expect("sessions of one shard are far fewer");
        self.by_sid.insert(sid, index);
        if let Some(client) = self.client(ix) {
            client.sessions.push(index);
        }
        index
    }

    /// Attaches a session to the owner the ring names now.
    pub(super) fn attach(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        let everyone = {
            let session = &self.sessions[index as usize];
            room::everyone(&session.identity.product, &session.identity.namespace)
        };
        let tails = &self.tails;
        let session = &mut self.sessions[index as usize];
        session.attached = false;
        session.owner = ctx.view.owner(session.placement);
        session.report_own_anew();
        let Some(owner) = session.owner else { return };
        session.attaches[0] += 1;
        let rooms = session
            .rooms
            .iter()
            .map(|m| (tails[m.tail as usize].key.clone(), m))
            .filter(|(key, m)| *key != everyone && m.is_placed() && !session.leaves_soon(key))
            .map(|(room, m)| ShadowRoom { room, own_seq: m.own_seq, joined: m.joined })
            .skip(usize::from(is_planted(Mutant::ShadowLosesRoom)))
            .collect();
        let resumable = session.identity.resumable;
        let everyone = session.rooms.first().filter(|m| resumable && m.is_placed()).map(|m| m.joined);
        let attach = ToSession::Attach {
            identity: session.identity.clone(),
            edge: EdgeRef { attachment: session.attachment, edge: self.me, client: session.client },
            shadow: Box::new(Shadow {
                term: session.term,
                attached: session.attaches,
                inbound_confirmed: session.confirmed,
                inbound_sent: session.sent_ever,
                own_seq: session.own_seq,
                rooms,
                everyone,
            }),
            hello: session.hello.clone(),
            instead_of: session.instead_of,
        };
        ctx.out.send_to_host(owner, session.placement, Body::ToSession(attach));
    }

    /// The session has another transport, `attachment`, and its owner does not know which of the two is the
    /// later one: this one, if its client answers a ping.
    pub(super) fn meet_rival(&mut self, ctx: &mut Ctx<'_>, index: u32, attachment: u64) {
        let session = &self.sessions[index as usize];
        if attachment < session.attachment {
            // Said before this one outbid it.
            return;
        }
        let ix = session.client;
        let ping = self.ping(ctx, ix);
        self.sessions[index as usize].rival = ping.map(|ping| (attachment, ping));
        self.arm(ctx, ix);
    }

    /// The client has answered a ping: its transport is the last one of its sessions.
    pub(super) fn outbid_rivals(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        for index in self.sessions_of(ix).to_vec() {
            let session = &mut self.sessions[index as usize];
            let client = self.clients[ix.0 as usize].as_deref();
            let answered = session.rival.filter(|(_, ping)| client.is_some_and(|c| c.has_answered(*ping)));
            let Some((rival, _)) = answered else { continue };
            session.rival = None;
            match next_transport(rival, self.me.node) {
                Some(attachment) => {
                    session.outbids(rival, attachment);
                    self.attach(ctx, index);
                }
                None => return self.close(ctx, ix, CloseCode::Ended, DetachReason::TransportClose),
            }
        }
    }

    /// Tells the client that it is connected, once its owner has taken it on and it is served.
    pub(super) fn welcome(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        let session = &mut self.sessions[index as usize];
        let served = session.rooms.first().is_some_and(|m| m.slot.is_some());
        if session.welcomed || !session.attached || !served || !session.rooms.iter().all(|m| m.verified) {
            return;
        }
        session.welcomed = true;
        session.hello = None;
        ctx.stats.resumed_total += u64::from(std::mem::take(&mut session.resumes));
        let identity = &session.identity;
        let packet = match session.protocol {
            ClientProtocol::EngineIo => None,
            ClientProtocol::SocketIo => Some({
                let pid = session.offset_key.map(|_| identity.pid.expose_text());
                socketio::encode_connect(&identity.namespace, &identity.sid.to_text(), pid.as_deref())
            }),
            ClientProtocol::Plain => Some(
                Welcome {
                    sid: identity.sid,
                    uid: &identity.uid,
                    product: &identity.product,
                    node: &self.node_name,
                    ping_interval: self.limits.ping_interval,
                    ping_timeout: self.limits.ping_timeout,
                    message_bytes_max: self.limits.message_bytes_max,
                }
                .encode(),
            ),
        };
        let ix = session.client;
        if let Some(packet) = packet {
            self.write(ctx, ix, packet);
        }
        self.client_of(index).waits = false;
        self.resume_is_over(ix);
        self.process_own(ctx, index);
    }

    /// The session is served from the tail of `room`, now or as soon as that is live.
    pub(super) fn join_tail(
        &mut self,
        ctx: &mut Ctx<'_>,
        index: u32,
        room: &RoomKey,
        own_seq: u64,
        by: AskedBy,
    ) {
        let tail = match self.by_room.get(room) {
            Some(&tail) => {
                self.place_tail(ctx, tail);
                tail
            }
            None => {
                let tail = Tail::new(ctx.now, room.clone(), self.departed.recall(room));
                let tail = u32::try_from(self.tails.insert(Box::new(tail))).expect("bounded");
                self.by_room.insert(room.clone(), tail);
                self.subscribe(ctx, [tail]);
                tail
            }
        };
        let session = &mut self.sessions[index as usize];
        if let Some(membership) = session.membership(tail) {
            // A new owner repeats the join; what is in force already is only said again.
            membership.own_seq = own_seq;
            let in_force = membership.slot.is_some();
            if in_force {
                self.say_joined(ctx, index, tail);
            }
            return;
        }
        // Most sessions are in the room of everyone and one more.
        if session.rooms.len() < 2 {
            session.rooms.reserve_exact(1);
        }
        session.rooms.push(Membership {
            tail,
            slot: None,
            joined: Cursor::NONE,
            tell: by == AskedBy::Backend,
            own_seq,
            at: Cursor::NONE,
            verified: true,
            history: 0,
            in_force_in: 0,
            has_hole: false,
            tag: 0,
        });
        if self.tails[tail as usize].live {
            self.put_in_force(ctx, index, tail);
        } else {
            self.tails[tail as usize].waiting.push_back(index);
        }
    }

    /// From here on the session gets what the tail takes.
    pub(super) fn put_in_force(&mut self, ctx: &mut Ctx<'_>, index: u32, tail: u32) {
        let t = &mut self.tails[tail as usize];
        let at = t.last;
        let session = &mut self.sessions[index as usize];
        let is_plain = session.protocol == ClientProtocol::Plain;
        let carries = session.offset_key.is_some();
        let Some(membership) = session.membership(tail).filter(|m| m.slot.is_none()) else { return };
        membership.slot = Some(u32::try_from(t.members.len()).expect("bounded"));
        if membership.verified {
            membership.joined = at;
            membership.at = at;
            membership.in_force_in = t.history();
            membership.tag = if carries { room_tag(&t.key, at) } else { 0 };
        }
        let reads_on = !membership.verified;
        let tell = membership.tell && is_plain;
        let own_seq = membership.own_seq;
        let joined_room = tell.then(|| t.key.clone());
        t.members.push(index);
        if reads_on {
            self.fall_behind(ctx, index, None);
            self.client_of(index).waits = false;
        }
        if own_seq > 0 || carries {
            self.say_joined(ctx, index, tail);
        }
        if own_seq == 0 {
            self.welcome(ctx, index);
        }
        self.look_at_joining(index);
        if let Some(room) = joined_room {
            let ix = self.sessions[index as usize].client;
            self.write(ctx, ix, plain::encode_joined(room.room(), at));
        }
    }

    fn say_joined(&mut self, ctx: &mut Ctx<'_>, index: u32, tail: u32) {
        let session = &mut self.sessions[index as usize];
        let Some(&mut Membership { own_seq, joined: at, .. }) = session.membership(tail) else { return };
        let joined = ToSession::Joined { sid: session.identity.sid, own_seq, at };
        if let Some(owner) = session.owner {
            ctx.out.send_to_host(owner, session.placement, Body::ToSession(joined));
        }
    }

    /// The session is not served from the tail any more; a tail without members goes. Returns whether
    /// it was.
    pub(super) fn leave_tail(&mut self, ctx: &mut Ctx<'_>, index: u32, tail: u32) -> bool {
        let session = &mut self.sessions[index as usize];
        let Some(place) = session.rooms.iter().position(|m| m.tail == tail) else { return false };
        let membership = session.rooms.remove(place);
        let t = &mut self.tails[tail as usize];
        t.waiting.retain(|s| *s != index);
        if let Some(older) = &mut t.older {
            older.forget(membership.at, index);
        }
        if let Some(slot) = membership.slot {
            t.members.swap_remove(slot as usize);
            if let Some(&moved) = t.members.get(slot as usize)
                && let Some(m) = self.sessions[moved as usize].membership(tail)
            {
                m.slot = Some(slot);
            }
        }
        let t = &mut self.tails[tail as usize];
        if t.members.is_empty() && t.waiting.is_empty() {
            let mut t = self.tails.remove(tail as usize);
            self.by_age.remove(&mut t.mark, &tail);
            self.with_older.remove(&tail);
            self.tail_bytes -= t.bytes + t.older_bytes();
            self.by_room.remove(&t.key);
            self.bounced_rooms.remove(&t.key);
            let key = t.key.clone();
            if let Some(owner) = t.owner {
                let unsubscribe = ToRoom::Unsubscribe(vec![key.clone()]);
                ctx.out.send_to_host(owner, key.placement(), Body::ToRoom(unsubscribe));
            }
            if t.last != Cursor::NONE {
                self.departed.remember(ctx.now, key, t.into_memory(ctx.now));
            }
        }
        true
    }

    /// Asks the owners the ring names now to serve these tails from their cursors; one envelope per
    /// peer, shard and lane.
    pub(super) fn subscribe(&mut self, ctx: &mut Ctx<'_>, tails: impl IntoIterator<Item = u32>) {
        let mut groups: BTreeMap<SubscribeGroup, Vec<Subscription>> = BTreeMap::new();
        for tail in tails {
            let t = &mut self.tails[tail as usize];
            self.asked += 1;
            t.asks(ctx.view.owner(t.key.placement()));
            t.asked = self.asked;
            if let Some(owner) = t.owner {
                let mut after = t.last;
                after.seq += u64::from(is_planted(Mutant::CursorOffByOne));
                let subscription = Subscription {
                    room: t.key.clone(),
                    after,
                    term: t.term.max(t.last.term),
                    at_head: t.fresh,
                    asked: t.asked,
                };
                groups.entry(group_of(ctx, owner, &t.key)).or_default().push(subscription);
            }
        }
        for ((owner, to, lane), rooms) in groups {
            ctx.out.send(owner, to, lane, Body::ToRoom(ToRoom::Subscribe(rooms)));
        }
    }

    /// The receiver of something does not own it: ask again soon.
    pub(crate) fn on_bounced(&mut self, ctx: &mut Ctx<'_>, from: Address, subject: &Subject) {
        match subject {
            Subject::Session(sid) => {
                self.resume_bounced(ctx, from, *sid);
                let Some(&index) = self.by_sid.get(sid) else { return };
                let session = &mut self.sessions[index as usize];
                if session.owner != Some(from.node) {
                    return;
                }
                if ctx.view.owner(session.placement) != session.owner {
                    // It is another's by now: no need to wait until views agree.
                    self.attach_if_moved(ctx, index);
                    return;
                }
                session.attached = false;
                self.bounced_sessions.insert(*sid);
            }
            Subject::Room(room) => {
                let Some(&tail) = self.by_room.get(room) else { return };
                let t = &mut self.tails[tail as usize];
                if t.owner != Some(from.node) {
                    return;
                }
                if ctx.view.owner(room.placement()) != t.owner {
                    return self.moving.ask_first(tail);
                }
                t.asks(Some(from.node));
                self.bounced_rooms.insert(room.clone());
            }
            Subject::Call(_) => return,
        }
        ctx.timers.set(ctx.now + RETRY_AFTER, TimerKey::Retry);
    }

    /// Asks again where we were bounced.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>) {
        for sid in std::mem::take(&mut self.bounced_sessions) {
            if let Some(&index) = self.by_sid.get(&sid) {
                self.attach(ctx, index);
            }
        }
        self.send_resumes(ctx);
        self.place_requests(ctx);
        let rooms = std::mem::take(&mut self.bounced_rooms);
        let tails: Vec<u32> = rooms.iter().filter_map(|room| self.by_room.get(room).copied()).collect();
        self.subscribe(ctx, tails);
    }

    /// What was under way to `peer` is lost: whatever is there is asked for anew.
    pub(crate) fn on_link_reset(&mut self, ctx: &mut Ctx<'_>, peer: NodeRef) {
        self.lost(ctx, |node| node == peer);
        self.ask_resumes_again(ctx, |owner, _, _| owner == Some(peer));
        self.forget_owner(|owner| owner == Some(peer));
        self.look_at_all(ctx);
        self.place_some(ctx);
    }

    /// The cluster has changed: whatever has moved is asked for at its new owner, some in each turn.
    pub(crate) fn on_view(&mut self, ctx: &mut Ctx<'_>) {
        let view = ctx.view;
        self.lost(ctx, |node| !view.is_up(node));
        self.place_requests(ctx);
        self.ask_resumes_again(ctx, |owner, placement, ctx| owner != ctx.view.owner(placement));
        self.look_at_all(ctx);
    }

    /// Another life of this node: nobody knows its address yet.
    pub(crate) fn on_rebirth(&mut self, ctx: &mut Ctx<'_>, me: Address) {
        self.me = me;
        for (_, session) in &mut self.sessions {
            session.attachment += 1;
        }
        self.lost(ctx, |_| true);
        self.ask_resumes_again(ctx, |_, _, _| true);
        self.forget_owner(|_| true);
    }

    /// Nothing that was asked of these owners will be answered.
    fn forget_owner(&mut self, which: impl Fn(Option<NodeRef>) -> bool) {
        for (_, session) in self.sessions.iter_mut().filter(|(_, session)| which(session.owner)) {
            session.owner = None;
            session.attached = false;
        }
        for (_, tail) in self.tails.iter_mut().filter(|(_, tail)| which(tail.owner)) {
            tail.asks(None);
        }
    }

    /// Requests and upgrades between here and nodes for which `which` holds are lost.
    fn lost(&mut self, ctx: &mut Ctx<'_>, which: impl Fn(NodeRef) -> bool) {
        self.requests_lost(ctx, &which);
        self.askers_lost(ctx, &which);
        self.upgrades_lost(ctx, &which);
    }

    /// Answers an owner that serves a session this edge does not have.
    pub(super) fn disown(&self, ctx: &mut Ctx<'_>, from: Address, sid: SocketSid) {
        let detach = ToSession::Detach {
            sid,
            attachment: u64::MAX,
            clean: false,
            reason: DetachReason::TransportClose,
        };
        ctx.out.send_to_address(from, self.ids.placement_of(sid), Body::ToSession(detach));
    }
}

/// What a message to several rooms of one owner is grouped by, so that one envelope lists many.
type SubscribeGroup = (NodeRef, To, Lane);

fn group_of(ctx: &Ctx<'_>, owner: NodeRef, room: &RoomKey) -> SubscribeGroup {
    let placement = room.placement();
    (owner, ctx.host_of(owner, placement), Lane::of(placement))
}
