//! Memberships, links and the connections under them: what `node::mesh` does over real sockets.

use mesh_proto::id::NodeRef;
use mesh_proto::link::{self, Link, LinkLimits, Resume};
use mesh_proto::membership::{self, Notice};
use mesh_proto::shard;
use mesh_proto::view::{NodeState, View};
use mesh_proto::wire::{self, Envelope, Lane};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Cluster, Event, NodeEvent, Slot};
use crate::network::{ConnectionId, End};
use crate::node::{PeerLink, slot_of};

/// Who could help must have been there for a whole suspicion, and known to all.
const STEADY: Duration = Duration::from_secs(3);

/// A life that has been told to leave ends at the latest after this time.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

impl Cluster {
    pub(super) fn datagram(&mut self, slot: usize, from: usize, mut bytes: Vec<u8>) {
        let from = crate::node::address_of(from);
        self.membership(slot, membership::Input::Datagram { from, bytes: &mut bytes });
    }

    pub(super) fn membership_wake(&mut self, slot: usize) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        if life.membership_wake_at.take_if(|at| *at <= now).is_some() {
            self.membership(slot, membership::Input::Timer);
        }
    }

    /// One input of a membership, and everything that follows from it.
    pub(super) fn membership(&mut self, slot: usize, input: membership::Input<'_>) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let local = life.local(now);
        life.membership.handle(local, input);
        self.drain_membership(slot);
    }

    pub(super) fn drain_membership(&mut self, slot: usize) {
        loop {
            let Some(life) = &mut self.slots[slot].life else { return };
            let Some(output) = life.membership.poll() else { break };
            match output {
                membership::Output::Datagram { to, bytes } => self.send_datagram(slot, to, &bytes),
                membership::Output::View(view) => self.new_view(slot, view),
                membership::Output::Notice(notice) => self.notice(slot, notice),
            }
        }
        let Some(life) = &mut self.slots[slot].life else { return };
        let wake_at = life.membership.next_deadline().map(|at| life.global(at));
        if life.membership_wake_at != wake_at {
            life.membership_wake_at = wake_at;
            if let Some(at) = wake_at {
                self.node_at(slot, at, NodeEvent::MembershipWake);
            }
        }
    }

    fn send_datagram(&mut self, slot: usize, to: std::net::SocketAddr, bytes: &Bytes) {
        let Some(to) = slot_of(to).filter(|to| *to < self.slots.len()) else { return };
        for delay in self.network.datagram(slot, to) {
            self.clock.after(delay, Event::Datagram { from: slot, to, bytes: bytes.to_vec() });
        }
    }

    fn notice(&mut self, slot: usize, notice: Notice) {
        let now = self.clock.now();
        self.trace.note(now, &[1, slot as u64], || format!("n{slot} says: {notice}"));
        match notice {
            Notice::PeerDown(peer) | Notice::PeerLeft(peer) => self.check_down(slot, peer.node),
            Notice::Left => self.end_life(slot, true),
            Notice::Began => self.checks.clusters_begun += 1,
            Notice::NameTaken { .. } => {
                let what = format!("n{slot} gives up: {notice}");
                self.checks.violated("name", now, what);
            }
            _ => {}
        }
    }

    /// I11: a node is declared down only if there was a reason. Whom two sides of a partition declared
    /// down stays so for that life, and when they meet again everybody hears it.
    fn check_down(&mut self, accuser: usize, down: NodeRef) {
        let now = self.clock.now();
        let accused =
            self.slots.iter().position(|slot| slot.life.as_ref().is_some_and(|l| l.view.me == down));
        let Some(accused) = accused else { return };
        let away = self.slots[accused].life.as_ref().is_some_and(|life| life.paused || life.draining);
        let cut = [accused, accuser].iter().any(|at| self.is_cut(*at));
        if away || cut && !self.third_parties_see_both(accuser, accused) {
            self.condemned.insert(down);
        }
        if !self.condemned.contains(&down) {
            let what =
                format!("n{accuser} declares n{accused} ({down:?}) down, which is up and can be reached");
            self.checks.violated("I11", now, what);
        }
    }

    /// Whether the network gave others reason to give the node up, now or a moment ago.
    fn is_cut(&self, slot: usize) -> bool {
        self.clock.now() < self.slots[slot].impaired_until || self.network.touches(slot)
    }

    /// Whether all that is cut is the path between these two, while a healthy node sees both.
    fn third_parties_see_both(&self, one: usize, other: usize) -> bool {
        let blocks = self.network.blocks();
        let only_pair = blocks.len() == 2 && blocks.contains(&(one, other)) && blocks.contains(&(other, one));
        let now = self.clock.now();
        let healthy = |slot: &Slot| {
            now >= slot.impaired_until
                && slot
                    .life
                    .as_ref()
                    .is_none_or(|l| !l.paused && !l.draining && l.state() == NodeState::Active)
        };
        let alive = self.slots.iter().filter(|slot| slot.life.is_some()).count();
        let steady = now.since(self.lives_changed) >= STEADY;
        steady
            && only_pair
            && alive > 2
            && self.network.weather.loss_per_mille == 0
            && self.slots.iter().all(healthy)
    }

    fn new_view(&mut self, slot: usize, view: Arc<View>) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let reborn = life.view.me != view.me;
        let ring_changed = life.view.ring.digest() != view.ring.digest();
        life.view = view.clone();
        if ring_changed || reborn {
            self.generation_ends();
            let digest = view.ring.digest();
            self.trace.note(now, &[2, slot as u64, digest], || {
                format!("n{slot} has ring {digest:016x} of {} nodes", view.ring.nodes().len())
            });
        }
        let Some(life) = &self.slots[slot].life else { return };
        let gone: Vec<NodeRef> =
            life.links.keys().filter(|peer| reborn || !view.is_up(**peer)).copied().collect();
        for peer in gone {
            self.drop_link(slot, peer);
        }
        let Some(life) = &mut self.slots[slot].life else { return };
        let mut dial = Vec::new();
        for info in view.nodes.iter().filter(|info| info.node != view.me) {
            if life.links.contains_key(&info.node) {
                continue;
            }
            let Some(peer_slot) = slot_of(info.mesh_addr) else { continue };
            life.links_made += 1;
            let link = Link::new(life.links_made, LinkLimits::default());
            let peer = PeerLink { link, slot: peer_slot, connection: None, attempts: 0, wake_at: None };
            life.links.insert(info.node, peer);
            if view.me.id < info.node.id {
                dial.push(info.node);
            }
        }
        let shards = life.shards.len();
        for peer in dial {
            let delay = self.random.micros(200, 3_000);
            self.node_after(slot, delay, NodeEvent::Dial { peer });
        }
        for shard in 0..shards {
            let delay = self.random.micros(0, 2_000);
            self.node_after(slot, delay, NodeEvent::View { shard });
        }
        if reborn {
            for info in view.nodes.iter().filter(|info| info.node != view.me) {
                self.reset_at_shards(slot, info.node);
            }
        }
    }

    fn drop_link(&mut self, slot: usize, peer: NodeRef) {
        let Some(life) = &mut self.slots[slot].life else { return };
        if let Some(connection) = life.links.remove(&peer).and_then(|link| link.connection) {
            self.sever(connection);
        }
    }

    /// Breaks a connection; each end notices in its own time.
    pub(super) fn sever(&mut self, connection: ConnectionId) {
        let Some(ends) = self.network.sever(connection) else { return };
        for (end, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let told = self.network.passes(other.slot, end.slot);
            let delay = if told { self.network.latency() } else { self.random.millis(1_000, 5_000) };
            let event = NodeEvent::ConnectionDown { peer: other.node, connection };
            self.clock.after(delay, Event::Node { slot: end.slot, life: end.life, event });
        }
    }

    pub(super) fn connection_down(&mut self, slot: usize, peer: NodeRef, connection: ConnectionId) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let (local, me) = (life.local(now), life.view.me);
        let Some(link) = life.links.get_mut(&peer).filter(|link| link.connection == Some(connection)) else {
            return;
        };
        link.connection = None;
        link.link.handle(local, link::Input::Disconnected);
        if me.id < peer.id {
            let delay = self.random.millis(20, 300);
            self.node_after(slot, delay, NodeEvent::Dial { peer });
        }
        self.drain_link(slot, peer);
    }

    /// Connects, if the peer is there, knows this life and can be reached both ways.
    pub(super) fn dial(&mut self, slot: usize, peer: NodeRef) {
        let now = self.clock.now();
        let Some(life) = &self.slots[slot].life else { return };
        let (me, number) = (life.view.me, life.number);
        let Some(link) = life.links.get(&peer) else { return };
        if link.connection.is_some() {
            return;
        }
        let (there, attempts, resume) = (link.slot, link.attempts, link.link.resume());
        let reachable = self.network.passes(slot, there) && self.network.passes(there, slot);
        let other =
            self.slots[there].life.as_ref().filter(|life| reachable && !life.paused && life.view.me == peer);
        let Some((other, theirs)) = other.and_then(|life| Some((life.number, life.links.get(&me)?))) else {
            let delay = self.random.millis(20, 100) * 2_u32.pow(attempts.min(4));
            if let Some(link) = self.slots[slot].life.as_mut().and_then(|life| life.links.get_mut(&peer)) {
                link.attempts += 1;
            }
            return self.node_after(slot, delay, NodeEvent::Dial { peer });
        };
        let (their_resume, old) = (theirs.link.resume(), theirs.connection);
        if let Some(old) = old {
            // The acceptor had not noticed yet that the last one broke.
            self.sever(old);
            self.connection_down(there, me, old);
        }
        let dialler = End { slot, life: number, node: me };
        let acceptor = End { slot: there, life: other, node: peer };
        let connection = self.network.connect(dialler, acceptor);
        self.trace.note(now, &[3, slot as u64, there as u64], || format!("n{slot} connects to n{there}"));
        for (end, at) in [(dialler, peer), (acceptor, me)] {
            let life = self.slots[end.slot].life.as_mut();
            if let Some(link) = life.and_then(|life| life.links.get_mut(&at)) {
                link.connection = Some(connection);
                link.attempts = 0;
            }
        }
        // Neither end's first bytes may overtake the other's handshake.
        let accepted = self.network.latency();
        let confirmed = accepted + self.random.micros(0, 150);
        for (end, peer, resume, delay) in
            [(acceptor, me, resume, accepted), (dialler, peer, their_resume, confirmed)]
        {
            let event = NodeEvent::ConnectionUp { peer, connection, resume };
            self.clock.after(delay, Event::Node { slot: end.slot, life: end.life, event });
        }
    }

    pub(super) fn connection_up(
        &mut self,
        slot: usize,
        peer: NodeRef,
        connection: ConnectionId,
        resume: Resume,
    ) {
        self.link(slot, peer, connection, link::Input::Connected(resume));
    }

    pub(super) fn bytes(
        &mut self,
        slot: usize,
        peer: NodeRef,
        connection: ConnectionId,
        lane: Lane,
        bytes: Bytes,
    ) {
        self.link(slot, peer, connection, link::Input::Received { lane, bytes });
    }

    /// An input from a connection, if it still stands and is the link's.
    fn link(&mut self, slot: usize, peer: NodeRef, connection: ConnectionId, input: link::Input) {
        let now = self.clock.now();
        if self.network.connection(connection).is_none() {
            return;
        }
        let Some(life) = &mut self.slots[slot].life else { return };
        let local = life.local(now);
        let Some(link) = life.links.get_mut(&peer).filter(|link| link.connection == Some(connection)) else {
            return;
        };
        link.link.handle(local, input);
        self.drain_link(slot, peer);
    }

    pub(super) fn link_wake(&mut self, slot: usize, peer: NodeRef) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let local = life.local(now);
        let Some(link) = life.links.get_mut(&peer) else { return };
        if link.wake_at.take_if(|at| *at <= now).is_some() {
            link.link.handle(local, link::Input::Timer);
            self.drain_link(slot, peer);
        }
    }

    pub(super) fn drain_link(&mut self, slot: usize, peer: NodeRef) {
        let now = self.clock.now();
        loop {
            let Some(life) = &mut self.slots[slot].life else { return };
            let number = life.number;
            let Some(link) = life.links.get_mut(&peer) else { return };
            let connection = link.connection;
            let Some(output) = link.link.poll() else { break };
            match output {
                link::Output::Transmit { lane, bytes } => {
                    if let Some(connection) = connection {
                        self.transmit(slot, number, connection, lane, bytes);
                    }
                }
                link::Output::Deliver { envelope, .. } => self.deliver(slot, peer, &envelope),
                link::Output::Reset => {
                    self.trace
                        .note(now, &[4, slot as u64], || format!("n{slot}'s link to {peer:?} starts over"));
                    self.reset_at_shards(slot, peer);
                }
                link::Output::Misbehaved(how) => {
                    let what = format!("n{slot} says that {peer:?} misbehaves: {how}");
                    self.checks.violated("link", now, what);
                }
            }
        }
        let Some(life) = &mut self.slots[slot].life else { return };
        let started = life.started;
        let Some(link) = life.links.get_mut(&peer) else { return };
        let wake_at = link.link.next_deadline().map(|at| started + Duration::from_micros(at.as_micros()));
        if link.wake_at != wake_at {
            link.wake_at = wake_at;
            if let Some(at) = wake_at {
                self.node_at(slot, at, NodeEvent::LinkWake { peer });
            }
        }
    }

    fn transmit(&mut self, slot: usize, life: u64, connection: ConnectionId, lane: Lane, bytes: Bytes) {
        let Some(ends) = self.network.connection(connection).map(|c| c.ends) else { return };
        let end = usize::from(ends[0].slot != slot || ends[0].life != life);
        if let Some(arrival) = self.network.write(self.clock.now(), connection, end, lane, &bytes) {
            self.arrive(connection, ends, end, lane, bytes, arrival);
        }
    }

    /// Bytes that end `end` has written arrive at the other one.
    pub(super) fn arrive(
        &mut self,
        connection: ConnectionId,
        ends: [End; 2],
        end: usize,
        lane: Lane,
        bytes: Bytes,
        at: mesh_proto::time::Instant,
    ) {
        let (from, to) = (ends[end], ends[1 - end]);
        let event = NodeEvent::Bytes { peer: from.node, connection, lane, bytes };
        self.clock.at(at, Event::Node { slot: to.slot, life: to.life, event });
    }

    fn deliver(&mut self, slot: usize, peer: NodeRef, envelope: &Bytes) {
        match wire::decode::<Envelope>(envelope) {
            Ok(envelope) => self.route(slot, envelope),
            Err(error) => {
                let what = format!("n{slot} cannot read an envelope of {peer:?}: {error}");
                self.checks.violated("wire", self.clock.now(), what);
            }
        }
    }

    /// A ring, a life or a link has changed: what was under way may be repeated, perhaps elsewhere.
    pub(super) fn generation_ends(&mut self) {
        self.checks.generation += 1;
        self.unsteady_at = self.clock.now();
        let rings =
            || self.slots.iter().filter_map(|slot| slot.life.as_ref()).map(|life| life.view.ring.digest());
        self.checks.split = rings().any(|ring| Some(ring) != rings().next());
    }

    fn reset_at_shards(&mut self, slot: usize, peer: NodeRef) {
        self.generation_ends();
        let shards = self.slots[slot].life.as_ref().map_or(0, |life| life.shards.len());
        for shard in 0..shards {
            self.feed(slot, shard, shard::Input::LinkReset(peer));
        }
    }
}
