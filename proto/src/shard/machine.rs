//! The machine of a shard: each input to the part it belongs to, each output on its way.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::asks::Asks;
use super::calls::Calls;
use super::interface::{Holding, Input, Output, ShardConfig, ShardStats};
use super::{Out, Pace, TimerKey, Timers, sweep};
use crate::binding::Bindings;
use crate::edge::Edge;
use crate::id::{Address, ShardIx};
#[cfg(test)]
use crate::id::{ClientIx, Cursor, RoomKey};
use crate::keys::IdKey;
use crate::room::Rooms;
use crate::session::Sessions;
use crate::time::Instant;
use crate::view::View;
use crate::wire::{Answer, Body, CommandFailed, Envelope, NotOwner, Query, Subject};

/// Envelopes from this node's next life kept until the view that says so: it is microseconds away.
/// More are dropped, and asked for again when a later view comes.
const EARLY_MAX: usize = 4_096;

/// The machine of one shard.
#[derive(Debug)]
pub struct Shard {
    me: Address,
    ids: IdKey,
    now: Instant,
    view: Arc<View>,
    out: Out,
    timers: Timers,
    sweep_at: Option<Instant>,
    /// From shards of this node that know of its next life already: they wait until we do.
    early: VecDeque<Envelope>,
    /// Something was handled since the last flush.
    unsettled: bool,
    stats: ShardStats,
    pace: Pace,
    edge: Edge,
    sessions: Sessions,
    rooms: Rooms,
    bindings: Bindings,
    calls: Calls,
    asks: Asks,
}

impl Shard {
    /// A shard without clients, sessions or rooms. It owns nothing until it is given a view.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        let ShardConfig { me, shards, node_name, products, limits, ids, seed } = config;
        let view = View::new(0, me.node, Vec::new(), 1);
        Self {
            me,
            ids: ids.clone(),
            now: Instant::ZERO,
            view: Arc::new(view),
            out: Out::new(me, shards),
            timers: Timers::default(),
            sweep_at: None,
            early: VecDeque::new(),
            unsettled: false,
            stats: ShardStats::default(),
            pace: Pace::new(limits.settle_time),
            edge: Edge::new(me, node_name, &limits, ids.clone(), &products, StdRng::seed_from_u64(seed)),
            rooms: Rooms::new(me, shards, &limits, &products),
            bindings: Bindings::new(me, shards, &limits),
            sessions: Sessions::new(me, &limits, ids.clone(), products),
            calls: Calls::new(me, &limits, ids),
            asks: Asks::default(),
        }
    }

    /// Takes one input at `now`. Outputs wait in [`Shard::poll`].
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.now = self.now.max(now);
        self.unsettled = true;
        if let Input::View(view) = input {
            return self.on_view(view);
        }
        let mut ctx = context!(self);
        match input {
            Input::ClientOpened(ix, new) => self.edge.opened(&mut ctx, ix, new),
            Input::ClientPacket(ix, packet) => self.edge.packet(&mut ctx, ix, packet),
            Input::ClientClosed(ix, gone) => self.edge.gone(&mut ctx, ix, gone),
            Input::ClientQueue(ix, left) => self.edge.queue_left(&mut ctx, ix, left),
            Input::Envelope(envelope) => self.out.local.push_back(envelope),
            Input::View(_) => unreachable!("handled above"),
            Input::LinkReset(peer) => {
                self.edge.on_link_reset(&mut ctx, peer);
                self.sessions.on_link_reset(&mut ctx, peer);
                self.rooms.on_link_reset(&mut ctx, peer);
                self.bindings.on_link_reset(&mut ctx, peer);
                self.calls.on_lost(&mut ctx, |node, _| node == peer);
            }
            Input::Request(ix, sid, request) => self.edge.request(&mut ctx, ix, sid, request),
            Input::RequestGone(ix) => self.edge.request_gone(&mut ctx, ix),
            Input::Query(token, query) => self.calls.begin(&mut ctx, token, query),
            Input::Identified(ix, number, said) => self.edge.identified(&mut ctx, ix, number, said),
            Input::App(sid, call, outcome) => self.sessions.on_app(&mut ctx, sid, call, outcome),
            Input::CloseClients(count) => self.edge.close_some(&mut ctx, count),
            Input::Products(products) => {
                self.edge.learn_products(&products);
                self.rooms.learn_products(&products);
                self.sessions.learn_products(products);
            }
            Input::Timer => self.on_timers(),
        }
        self.drain_local();
    }

    fn on_view(&mut self, view: Arc<View>) {
        let same_nodes = self.view.is_same_mesh(&view);
        self.view = view;
        self.pace.on_view(self.now, &self.view);
        if same_nodes {
            // A suspicion, or a record: nobody came, went or owns anything else.
            return;
        }
        if self.view.me != self.me.node {
            self.me.node = self.view.me;
            self.out.me = self.me;
            self.rooms.on_rebirth(&mut context!(self), self.me);
            self.bindings.on_rebirth(&mut context!(self), self.me);
            self.sessions.on_rebirth(&mut context!(self), self.me);
            self.calls.on_rebirth(&mut context!(self), self.me);
            context!(self).asks_on_rebirth();
            self.edge.on_rebirth(&mut context!(self), self.me);
        }
        let mut ctx = context!(self);
        self.rooms.on_view(&mut ctx);
        self.bindings.on_view(&mut ctx);
        self.edge.on_view(&mut ctx);
        self.sessions.on_view(&mut ctx);
        ctx.asks_on_view();
        self.place_some();
        let view = self.view.clone();
        let mut ctx = context!(self);
        self.calls.on_lost(&mut ctx, |node, placement| view.owner(placement) != Some(node));
        self.out.local.extend(self.early.drain(..));
        self.drain_local();
    }

    /// Some more of what this shard holds follows the ring: what there is of it may keep a thread busy for a
    /// second, and clients wait meanwhile.
    fn place_some(&mut self) {
        let mut ctx = context!(self);
        self.rooms.place_some(&mut ctx);
        self.bindings.place_some(&mut ctx);
        self.edge.place_some(&mut ctx);
        self.sessions.place_some(&mut ctx);
        // First how far our members are, then what we publish: a room's new owner begins above both.
        let rooms = self.sessions.hold_misdirected(&ctx);
        if !rooms.is_empty() {
            self.edge.place_rooms(&mut ctx, &rooms);
            self.sessions.send_bounced(&mut ctx);
        }
    }

    fn on_timers(&mut self) {
        if self.has_more() {
            self.place_some();
        }
        while let Some(key) = self.timers.pop_due(self.now) {
            let mut ctx = context!(self);
            match key {
                TimerKey::Client(ix) => self.edge.client_due(&mut ctx, ix),
                TimerKey::Held(sid) => self.edge.held_long_enough(&mut ctx, sid),
                TimerKey::Retry => {
                    self.edge.retry(&mut ctx);
                    self.rooms.retry(&mut ctx);
                    self.bindings.retry(&mut ctx);
                    self.sessions.retry(&mut ctx);
                    self.calls.send_held(&mut ctx);
                }
                TimerKey::Sweep => {
                    self.sweep_at = None;
                    let mut more = self.edge.sweep(&mut ctx);
                    more |= self.rooms.sweep(&mut ctx);
                    more |= self.sessions.sweep(&mut ctx);
                    more |= self.bindings.sweep(&mut ctx);
                    if more {
                        self.sweep_in(sweep::AGAIN_AFTER);
                    }
                }
                TimerKey::Calls => self.calls.expire(&mut ctx),
                TimerKey::Asks => ctx.asks_expire(),
            }
        }
        self.edge.catch_up_all(&mut context!(self));
    }

    /// Envelopes to this shard, among them those it has sent itself.
    fn drain_local(&mut self) {
        while let Some(envelope) = self.out.local.pop_front() {
            self.on_envelope(envelope);
        }
    }

    fn on_envelope(&mut self, envelope: Envelope) {
        if envelope.from.shard.0 >= ShardIx::COUNT_MAX {
            tracing::debug!(from = ?envelope.from, "envelope from a shard that cannot be");
            return;
        }
        let sender = envelope.from.node;
        if sender.id == self.me.node.id && sender != self.me.node {
            // What another shard says in a life that is over, it says again in the next one.
            if sender > self.me.node && self.early.len() < EARLY_MAX {
                self.early.push_back(envelope);
            }
            return;
        }
        let Envelope { from, body, .. } = envelope;
        let mut ctx = context!(self);
        match body {
            Body::ToSession(message) => self.sessions.handle(&mut ctx, from, message),
            Body::SessionToEdge(message) => self.edge.take_from_session(&mut ctx, from, message),
            Body::ToRoom(message) => self.rooms.handle(&mut ctx, from, message),
            Body::RoomToEdge(message) => self.edge.take_from_room(&mut ctx, from, message),
            Body::RoomToPublisher(message) => self.sessions.on_published(&mut ctx, message),
            Body::NotOwner(NotOwner { subject, .. }) => match subject {
                Subject::Call(call) => self.calls.on_bounced(&mut ctx, call),
                subject => {
                    if let Subject::Room(room) = &subject {
                        self.sessions.on_room_bounced(&mut ctx, from.node, room);
                    }
                    self.edge.on_bounced(&mut ctx, from, &subject);
                }
            },
            Body::Rooms(message) => self.rooms.on_replication(&mut ctx, from, message),
            Body::Bindings(message) => self.bindings.on_replication(&mut ctx, from, message),
            Body::Sessions(message) => self.sessions.on_replication(&mut ctx, from, message),
            Body::ToEngine(message) => self.edge.take_from_asker(&mut ctx, from, message),
            Body::FromEngine(message) => self.edge.take_from_engine(&mut ctx, from, message),
            Body::ToAsker(message) => ctx.on_asked(from, message),
            Body::Query { call, query } => self.on_query(from, call, query),
            Body::Answer { call, answer } => self.calls.on_answer(&mut ctx, from, call, answer),
        }
    }

    fn on_query(&mut self, from: Address, call: u64, query: Query) {
        let placement = query.placement(&self.ids);
        let mut ctx = context!(self);
        if let Some(placement) = placement.filter(|&p| !ctx.view.owns(p)) {
            return ctx.not_owner(from, placement, Subject::Call(call));
        }
        let answer = match query {
            Query::Publish(publish) => return self.rooms.on_call(&mut ctx, from, call, publish),
            Query::Members { room, list } => {
                self.rooms.place(&mut ctx, &room);
                let edges = self.rooms.subscribers(&room);
                return self.calls.gather_room(&mut ctx, from, call, room, list, edges);
            }
            Query::User { product, uid, command } => {
                return self.sessions.command_user(&mut ctx, from, call, &(product, uid), &command);
            }
            Query::Session { product, sid, command } => {
                return self.sessions.command_session(&mut ctx, from, call, &product, sid, &command);
            }
            Query::LocalMembers { rooms, except_sids, except_rooms, list } => {
                Ok(Answer::Members(self.edge.local_members(&rooms, &except_sids, &except_rooms, list)))
            }
            Query::History { room, count } => {
                self.rooms.place(&mut ctx, &room);
                self.rooms.history(&room, count).map(Answer::History).ok_or(CommandFailed::NotFound)
            }
            Query::ExplainUser { product, uid } => {
                Ok(Answer::User(self.sessions.facts(self.now, &product, &uid)))
            }
            Query::ExplainRoom(room) => {
                self.rooms.place(&mut ctx, &room);
                self.rooms.facts(self.now, &room).map(Answer::Room).ok_or(CommandFailed::NotFound)
            }
            Query::Bind { key, wish, keep } => {
                return self.bindings.on_call(&mut ctx, from, call, &key, wish, keep);
            }
            Query::ExplainBinding(key) => {
                self.bindings.place(&mut ctx, &key);
                self.bindings.facts(self.now, &key).map(Answer::Binding).ok_or(CommandFailed::NotFound)
            }
            Query::NodeStatus
            | Query::Drain(_)
            | Query::Reload
            | Query::MembersOf { .. }
            | Query::Broadcast(_) => Err(CommandFailed::NotFound),
        };
        let placement = placement.unwrap_or(crate::id::Placement(0));
        self.out.send_to_address(from, placement, Body::Answer { call, answer });
    }

    /// The next thing to do; `None` when there is nothing left.
    pub fn poll(&mut self) -> Option<Output> {
        if self.unsettled {
            self.settle();
        }
        let output = self.out.outputs.pop_front();
        if output.is_none() {
            self.edge.turn_ends();
            self.rooms.turn_ends();
            self.bindings.turn_ends();
            self.sessions.turn_ends();
        }
        output
    }

    /// Sends what the inputs since the last poll have made ready, together.
    fn settle(&mut self) {
        loop {
            let mut ctx = context!(self);
            let mut any = self.edge.flush(&mut ctx);
            any |= self.sessions.flush(&mut ctx);
            any |= self.rooms.flush(&mut ctx);
            any |= self.bindings.flush(&mut ctx);
            any |= !self.out.local.is_empty();
            self.drain_local();
            if !any {
                break;
            }
        }
        self.unsettled = false;
        let to_sweep = self.rooms.has_to_sweep()
            || self.sessions.has_to_sweep()
            || self.bindings.has_to_sweep()
            || self.edge.has_to_sweep();
        if to_sweep && self.sweep_at.is_none() {
            self.sweep_in(sweep::INTERVAL);
        }
    }

    fn sweep_in(&mut self, wait: std::time::Duration) {
        let at = self.now + wait;
        self.sweep_at = Some(at);
        self.timers.set(at, TimerKey::Sweep);
    }

    /// Whether something is left that one turn would do too much of at once: [`Input::Timer`] goes on with it,
    /// in each turn a part. The driver serves its sockets in between.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let any = self.rooms.has_more() || self.bindings.has_more() || self.edge.has_more();
        any || self.sessions.has_more()
    }

    /// When to call [`Shard::handle`] with [`Input::Timer`] at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.has_more() || self.edge.has_ready_behind() {
            return Some(self.now);
        }
        self.timers.next()
    }

    /// Puts the session of a client at a cursor in a room it has joined.
    #[cfg(test)]
    pub(super) fn read_from(&mut self, now: Instant, ix: ClientIx, room: &RoomKey, cursor: Cursor) {
        self.now = self.now.max(now);
        self.unsettled = true;
        self.edge.client_reads_from(&mut context!(self), ix, room, cursor);
        self.drain_local();
    }

    /// Holes this shard's edge has been told in the log of a room.
    #[cfg(test)]
    pub(super) fn holes_told(&self, room: &RoomKey) -> u64 {
        self.edge.holes_told(room)
    }

    /// Counts so far.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        let (rooms, sessions, bindings) = (self.rooms.host(), self.sessions.host(), self.bindings.host());
        let copies_pending = rooms.copies_pending() + sessions.copies_pending() + bindings.copies_pending();
        let to_hand_over = rooms.to_hand_over(&self.view)
            + sessions.to_hand_over(&self.view)
            + bindings.to_hand_over(&self.view);
        let silent = rooms.silent_backups(self.now).max(sessions.silent_backups(self.now));
        ShardStats {
            clients: self.edge.client_count() as u64,
            sessions: self.sessions.len() as u64,
            rooms: self.rooms.len() as u64,
            bindings: bindings.owned_count() as u64,
            tails: self.edge.tail_count() as u64,
            parked_sessions: self.sessions.parked_count() as u64,
            log_bytes: self.rooms.log_bytes() as u64,
            tail_bytes: self.edge.tail_bytes() as u64,
            copies: (rooms.copy_count() + sessions.copy_count() + bindings.copy_count()) as u64,
            copies_pending: copies_pending as u64,
            to_hand_over: to_hand_over as u64,
            backups_silent: silent.max(bindings.silent_backups(self.now)) as u64,
            replication_lag_ops: rooms.lag_ops() + sessions.lag_ops() + bindings.lag_ops(),
            ..self.stats
        }
    }

    /// Holes told to edges so far; for tests and simulations.
    #[must_use]
    pub fn gaps_told(&self) -> u64 {
        self.stats.gaps_total
    }

    /// Every entity held here, owned or backed up; for tests and simulations.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let rooms = self.rooms.holdings().map(|(key, owned, version, digest)| Holding {
            name: format!("{key:?}"),
            placement: key.placement(),
            owned,
            version,
            digest,
        });
        let sessions = self.sessions.host().holdings().map(|(sid, owned, version, digest)| Holding {
            name: format!("{sid:?}"),
            placement: self.ids.placement_of(*sid),
            owned,
            version,
            digest,
        });
        let bindings = self.bindings.host().holdings().map(|(key, owned, version, digest)| Holding {
            name: format!("{key:?}"),
            placement: key.placement(),
            owned,
            version,
            digest,
        });
        rooms.chain(sessions).chain(bindings).collect()
    }

    /// Asserts every invariant this machine promises; for tests and simulations.
    ///
    /// # Panics
    /// When one does not hold, with the state that broke it.
    pub fn check_invariants(&self) {
        self.edge.check_invariants();
        self.edge.check_moving(&self.view);
        self.sessions.check_invariants();
        self.rooms.check_invariants();
        self.bindings.check_invariants();
        self.calls.check_invariants();
        self.asks.check_invariants();
    }
}
