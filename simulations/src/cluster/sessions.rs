//! Trouble for sessions that go on over several transports: cuts, half-open transports, an edge and an owner
//! that die together, events for one session alone.
//!
//! Belongs here: which client, when, by a generator of its own, so that seeds without such clients tell the
//! same story as ever. Stays out: what a client keeps and says (`client`).
//! Invariants: a transport that is half open brings nothing to anybody; its node hears of its end when the
//! node itself closes it, or when all faults are mended.

use mesh_proto::id::{Placement, SocketSid};
use mesh_proto::shard::{ClientGone, Input};
use mesh_proto::view::NodeState;
use mesh_proto::wire::{Command, DedupeKey, Payload, Query};

use super::{Cluster, Event};
use crate::checks::SessionId;
use crate::faults::Kind;

/// Of 1,000 CONNECTs so many are followed by a cut within [`CUT_AFTER_CONNECT_MILLIS`].
const CUT_AFTER_CONNECT_PER_MILLE: u32 = 150;

/// Long enough for part of a replay.
const CUT_AFTER_CONNECT_MILLIS: u64 = 30;

/// An event for one session under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emitting {
    to: SessionId,
    slot: usize,
    life: u64,
}

impl Cluster {
    pub(super) fn strike_sessions(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Emit => self.emit(),
            Kind::EdgeAndOwner => self.kill_edge_and_owner(),
            _ => {
                let carriers = self.carriers();
                let Some(index) = self.sessions_random.pick(&carriers) else { return false };
                let Some(transport) = self.clients[index].transport() else { return false };
                self.cut_transport(transport, kind == Kind::HalfOpen);
                true
            }
        }
    }

    /// Clients with a transport that carry their cursors.
    fn carriers(&self) -> Vec<usize> {
        let carries =
            |index: &usize| self.clients[*index].carries && self.clients[*index].transport().is_some();
        (0..self.clients.len()).filter(carries).collect()
    }

    /// The client loses its transport at once, and what is under way is lost. Its node notices too, unless
    /// its half stays open.
    pub(super) fn cut_transport(&mut self, transport: u64, half_open: bool) {
        let now = self.clock.now();
        if self.polls.contains_key(&transport) {
            return self.cut_polling(transport, half_open);
        }
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if self.calm || self.clients[at.client].transport() != Some(transport) {
            return;
        }
        let (index, slot, server) = (at.client, at.slot, at.server);
        at.half_open = half_open;
        self.trace.note(now, &[31, index as u64, u64::from(half_open)], || {
            format!(
                "c{index} is cut off from n{slot}{}",
                if half_open { ", which does not notice" } else { "" }
            )
        });
        if !half_open {
            self.transports.remove(&transport);
            if let Some((shard, client)) = server {
                self.feed(slot, shard, Input::ClientClosed(client, ClientGone::Error));
            }
        }
        self.client_lost(index);
    }

    /// All faults are mended: nodes notice whom they have lost.
    pub(super) fn end_half_open(&mut self) {
        let half_open = self.transports.iter().filter(|(_, at)| at.half_open);
        let half_open: Vec<_> = half_open.map(|(id, at)| (*id, at.slot, at.server)).collect();
        for (transport, slot, server) in half_open {
            self.transports.remove(&transport);
            if let Some((shard, client)) = server {
                self.feed(slot, shard, Input::ClientClosed(client, ClientGone::Error));
            }
        }
    }

    /// A client was told that it is connected: the next cut may come in the middle of the replay, or before
    /// it has seen anything.
    pub(super) fn perhaps_cut_after_connect(&mut self, index: usize) {
        if self.calm || !self.clients[index].carries {
            return;
        }
        if let Some(transport) = self.clients[index].transport()
            && self.sessions_random.per_mille(CUT_AFTER_CONNECT_PER_MILLE)
        {
            let delay = self.sessions_random.micros(0, CUT_AFTER_CONNECT_MILLIS * 1_000);
            let half_open = self.sessions_random.per_mille(300);
            self.clock.after(delay, Event::Cut { transport, half_open });
        }
    }

    fn kill_edge_and_owner(&mut self) -> bool {
        let carriers = self.carriers();
        let Some(index) = self.sessions_random.pick(&carriers) else { return false };
        let client = &self.clients[index];
        let product = &self.common.products[usize::from(client.product)].name;
        let placement = Placement::of_user(product, &client.uid);
        let edge = client.transport().and_then(|transport| self.edge_slot(transport));
        let Some(edge) = edge.filter(|edge| self.slots[*edge].life.is_some()) else { return false };
        let owner = self.slots[edge].life.as_ref().and_then(|life| life.view.owner(placement));
        let owner = self.living(|life| Some(life.view.me) == owner).first().copied();
        if self.living(|_| true).len() < 3 {
            return false;
        }
        for slot in [Some(edge), owner].into_iter().flatten() {
            if self.slots[slot].life.is_some() {
                self.end_life(slot, false);
                self.perhaps_back(slot);
            }
        }
        true
    }

    /// One event for one session, through the entrance of the HTTP API; the next to the same session when this
    /// one is answered.
    fn emit(&mut self) -> bool {
        let active = self.living(|life| !life.paused && life.state() == NodeState::Active);
        let known = |client: &crate::client::Client| {
            let (to, sid) = client.last_session()?;
            Some((usize::from(client.product), to, SocketSid::from_text(sid)?))
        };
        let targets: Vec<_> = self.clients.iter().filter(|client| client.carries).filter_map(known).collect();
        let (Some(slot), Some((product, to, sid))) =
            (self.sessions_random.pick(&active), self.sessions_random.pick(&targets))
        else {
            return false;
        };
        let lives = &self.slots;
        self.emitting.retain(|_, emitting| {
            lives[emitting.slot].life.as_ref().is_some_and(|life| life.number == emitting.life)
        });
        if self.emitting.values().any(|emitting| emitting.to == to) {
            return false;
        }
        let Some(life) = &self.slots[slot].life else { return false };
        let (life, shards) = (life.number, life.shards.len());
        self.queries += 1;
        let number = self.queries;
        self.emitting.insert(number, Emitting { to, slot, life });
        self.checks.own.sent(number, to);
        let command = Command::Emit {
            payload: Payload::json(format!(r#"["own",{{"n":{number}}}]"#)),
            except_rooms: Vec::new(),
            except_sids: Vec::new(),
            // The node that asks may have to ask twice: an owner may die between doing it and saying so.
            dedupe: Some(DedupeKey { uid: None, key: number.to_string().into() }),
        };
        let product = self.common.products[product].name.clone();
        let now = self.clock.now();
        self.trace.note(now, &[32, number, u64::from(to.client)], || {
            format!("a backend sends {number} to client {}.{} through n{slot}", to.client, to.session)
        });
        let shard = self.sessions_random.index(shards);
        self.feed(slot, shard, Input::Query(number, Query::Session { product, sid, command }));
        true
    }

    /// A backend's event for one session is answered.
    pub(super) fn emitted(&mut self, number: u64, reached: bool) {
        if self.emitting.remove(&number).is_some() && reached {
            self.checks.own.safe(number);
        }
    }
}
