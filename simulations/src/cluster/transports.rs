//! Clients and the streams to them: what sockets and `node::transport` do.
//!
//! Invariants: messages of one transport arrive in order; what is under way when a node dies may or
//! may not arrive; each client is told of its transport's end once, and each shard exactly once.

use std::collections::VecDeque;
use std::time::Duration;

use mesh_proto::id::{ClientIx, EngineSid};
use mesh_proto::shard::{Admission, ClientGone, CloseCode, Input, NewClient, Packet};
use mesh_proto::time::Instant;
use mesh_proto::view::NodeState;

use super::{Cluster, Event, FromClient, NodeEvent, ToClient};
use crate::client::Action;
use crate::plot::Mark;

/// What a socket takes before its reader has read any of it.
const SOCKET_BYTES: usize = 256 << 10;

/// The same for a slow client.
const SLOW_SOCKET_BYTES: usize = 2 << 10;

/// A transport that is not let go by its client is cut after this time.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// One client's stream to one node.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) client: usize,
    pub(super) slot: usize,
    pub(super) life: u64,
    /// The shard and index at the node, once it has been taken in and until the shard is told of the end.
    pub(super) server: Option<(usize, ClientIx)>,
    /// When the last message arrives, in each direction.
    to_client_at: Instant,
    to_server_at: Instant,
    /// Bytes written that the client has not read.
    in_socket: usize,
    socket_max: usize,
    /// What the socket did not take.
    left_over: VecDeque<Packet>,
    left_over_bytes: usize,
    /// What the shard was last told is left over.
    reported: usize,
    reading: bool,
    /// Read from the socket later.
    unread_by_server: VecDeque<Packet>,
    closing: Option<CloseCode>,
    /// The client does not read until then.
    pub(super) stalled_until: Instant,
    unread_by_client: VecDeque<ToClient>,
    pub(super) was_slow: bool,
    /// The client is gone and the node has not noticed: nothing passes.
    pub(super) half_open: bool,
    /// It is to take over from polling: from which transport, and the session's name.
    pub(super) upgrades: Option<(u64, EngineSid)>,
}

impl Transport {
    /// A stream that is being opened.
    pub(super) fn new(client: usize, slot: usize, life: u64, now: Instant) -> Self {
        Self {
            client,
            slot,
            life,
            server: None,
            to_client_at: now,
            to_server_at: now,
            in_socket: 0,
            socket_max: SOCKET_BYTES,
            left_over: VecDeque::new(),
            left_over_bytes: 0,
            reported: 0,
            reading: true,
            unread_by_server: VecDeque::new(),
            closing: None,
            stalled_until: Instant::ZERO,
            unread_by_client: VecDeque::new(),
            was_slow: false,
            half_open: false,
            upgrades: None,
        }
    }
}

impl Cluster {
    pub(super) fn client_acts(&mut self, index: usize) {
        let now = self.clock.now();
        self.clients[index].in_generation(self.checks.generation);
        if self.clients[index].transport().is_none() {
            self.connect_client(index);
        } else {
            for action in self.clients[index].act(now, self.calm) {
                match action {
                    Action::Send(packet) => self.client_says(index, packet),
                    Action::Close => return self.client_closes(index),
                }
            }
        }
        let next = if self.calm { self.random.millis(100, 300) } else { self.random.millis(30, 900) };
        self.clock.after(next, Event::ClientActs { client: index });
    }

    /// Any node that a load balancer would offer.
    fn connect_client(&mut self, index: usize) {
        let now = self.clock.now();
        let ready: Vec<usize> = (0..self.slots.len())
            .filter(|slot| {
                self.slots[*slot]
                    .life
                    .as_ref()
                    .is_some_and(|life| !life.draining && life.state() == NodeState::Active)
            })
            .collect();
        let Some(slot) = self.random.pick(&ready) else { return };
        let Some((life, node)) = self.slots[slot].life.as_ref().map(|life| (life.number, life.view.me.id))
        else {
            return;
        };
        self.opened += 1;
        let transport = self.opened;
        self.clients[index].opened(transport, node);
        if self.clients[index].polls {
            self.trace.note(now, &[10, index as u64, slot as u64], || format!("c{index} polls n{slot}"));
            return self.open_polling(index, transport, slot, life);
        }
        let arrives = now + self.random.micros(200, 3_000);
        let mut at = Transport::new(index, slot, life, now);
        at.to_server_at = arrives;
        self.transports.insert(transport, at);
        self.trace.note(now, &[10, index as u64, slot as u64], || format!("c{index} connects to n{slot}"));
        let event = NodeEvent::FromClient { transport, item: FromClient::Opened };
        self.clock.at(arrives, Event::Node { slot, life, event });
    }

    pub(super) fn client_says(&mut self, index: usize, packet: Packet) {
        let now = self.clock.now();
        self.trace.note_bytes(now, &[11, index as u64], bytes_of(&packet), || {
            format!("c{index} says {}", String::from_utf8_lossy(bytes_of(&packet)))
        });
        if let Some(transport) = self.clients[index].transport()
            && !self.says_by_polling(transport, packet.clone())
        {
            self.send_to_server(transport, FromClient::Message(packet));
        }
    }

    fn client_closes(&mut self, index: usize) {
        let now = self.clock.now();
        self.trace.note(now, &[12, index as u64], || format!("c{index} closes its transport"));
        if let Some(transport) = self.clients[index].transport() {
            self.send_to_server(transport, FromClient::Closed);
        }
        self.client_lost(index);
    }

    /// The client is without a transport and comes back after a while, as the stock client does.
    pub(super) fn client_lost(&mut self, index: usize) {
        let now = self.clock.now();
        if let Some(transport) = self.clients[index].transport() {
            self.leave_polling(transport, true);
        }
        self.clients[index].closed(now);
        let delay = self.random.millis(300, 1_500);
        self.clock.after(delay, Event::ClientActs { client: index });
    }

    pub(super) fn send_to_server(&mut self, transport: u64, item: FromClient) {
        let latency = self.random.micros(100, 2_000);
        let now = self.clock.now();
        let Some(at) = self.transports.get_mut(&transport) else { return };
        at.to_server_at = at.to_server_at.max(now + latency);
        let event = NodeEvent::FromClient { transport, item };
        self.clock.at(at.to_server_at, Event::Node { slot: at.slot, life: at.life, event });
    }

    pub(super) fn take_from_client(&mut self, slot: usize, transport: u64, item: FromClient) {
        let Some(at) = self.transports.get_mut(&transport) else { return };
        match (item, at.server) {
            (FromClient::Opened, _) => {
                let client = &self.clients[at.client];
                let product = self.common.products[usize::from(client.product)].clone();
                let admission = Ok(Admission { product, uid: client.uid.as_str().into() });
                let new = NewClient {
                    protocol: client.protocol,
                    admission,
                    offsets: client.carries,
                    transport: at.upgrades.map_or(mesh_proto::shard::Transport::WebSocket, |(_, sid)| {
                        mesh_proto::shard::Transport::Upgrade(sid)
                    }),
                };
                let Some(life) = &mut self.slots[slot].life else { return };
                let shard = life.shard_for_client();
                let index = life.shards[shard].take_index(transport);
                at.server = Some((shard, index));
                self.feed(slot, shard, Input::ClientOpened(index, new));
            }
            (FromClient::Message(packet), Some((shard, index))) if at.reading => {
                self.feed(slot, shard, Input::ClientPacket(index, packet));
            }
            (FromClient::Message(packet), Some(_)) => at.unread_by_server.push_back(packet),
            (FromClient::Closed, Some((shard, index))) => {
                self.transports.remove(&transport);
                self.feed(slot, shard, Input::ClientClosed(index, ClientGone::Closed));
            }
            (FromClient::Message(_) | FromClient::Closed, None) => {}
        }
    }

    pub(super) fn set_reading(&mut self, transport: u64, reading: bool) {
        let now = self.clock.now();
        let Some(at) = self.transports.get_mut(&transport) else { return };
        at.reading = reading;
        let (client, slot) = (at.client, at.slot);
        self.trace.note(now, &[13, transport, u64::from(reading)], || {
            format!("n{slot} {} reading from c{client}", if reading { "goes on" } else { "stops" })
        });
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if let (true, Some((shard, index))) = (reading, at.server) {
            for packet in std::mem::take(&mut at.unread_by_server) {
                self.feed(slot, shard, Input::ClientPacket(index, packet));
            }
        }
    }

    pub(super) fn write(&mut self, transport: u64, packet: Packet) {
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if at.closing.is_some() {
            return;
        }
        at.left_over_bytes += packet.len();
        at.left_over.push_back(packet);
        self.pump(transport);
    }

    /// Gives the socket what it takes.
    fn pump(&mut self, transport: u64) {
        let now = self.clock.now();
        let Some(at) = self.transports.get_mut(&transport) else { return };
        while at.in_socket == 0 || at.in_socket < at.socket_max {
            let Some(packet) = at.left_over.pop_front() else { break };
            at.left_over_bytes -= packet.len();
            at.in_socket += packet.len();
            at.to_client_at = at.to_client_at.max(now + self.random.micros(100, 2_000));
            self.clock.at(at.to_client_at, Event::ToClient { transport, item: ToClient::Message(packet) });
        }
        if let Some(code) = at.closing.filter(|_| at.left_over.is_empty()) {
            at.to_client_at = at.to_client_at.max(now + self.random.micros(100, 2_000));
            let item = ToClient::Closed(Some(code.code()));
            self.clock.at(at.to_client_at, Event::ToClient { transport, item });
        }
    }

    /// Tells the shard what a client's socket did not take this turn.
    pub(super) fn report_queue(&mut self, slot: usize, transport: u64) {
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if at.left_over_bytes == 0 && at.reported == 0 || at.closing.is_some() {
            return;
        }
        at.reported = at.left_over_bytes;
        if let Some((shard, index)) = at.server {
            let left = at.left_over_bytes;
            self.feed(slot, shard, Input::ClientQueue(index, left));
        }
    }

    pub(super) fn drained(&mut self, slot: usize, transport: u64) {
        let Some(at) = self.transports.get(&transport) else { return };
        if !at.left_over.is_empty() {
            self.pump(transport);
            self.report_queue(slot, transport);
        }
    }

    pub(super) fn close(&mut self, slot: usize, transport: u64, code: CloseCode) {
        let now = self.clock.now();
        if self.polling_closed(slot, transport, code) {
            return;
        }
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if at.closing.is_some() {
            return;
        }
        at.closing = Some(code);
        let client = at.client;
        self.trace.note(now, &[14, transport, u64::from(code.code())], || {
            format!("n{slot} closes c{client}: {code:?}")
        });
        self.pump(transport);
        self.node_after(slot, CLOSE_TIMEOUT, NodeEvent::CloseTimeout { transport });
    }

    pub(super) fn close_timeout(&mut self, slot: usize, transport: u64) {
        let Some(at) = self.transports.get_mut(&transport) else { return };
        let Some((shard, index)) = at.server.take() else { return };
        if at.half_open {
            self.transports.remove(&transport);
        } else if !at.left_over.is_empty() {
            at.left_over.clear();
            at.left_over_bytes = 0;
            self.pump(transport);
        }
        self.feed(slot, shard, Input::ClientClosed(index, ClientGone::Closed));
    }

    pub(super) fn client_sees(&mut self, transport: u64, item: ToClient) {
        let now = self.clock.now();
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if now < at.stalled_until || !at.unread_by_client.is_empty() {
            at.unread_by_client.push_back(item);
        } else {
            self.client_takes(transport, item);
        }
    }

    pub(super) fn client_reads(&mut self, transport: u64) {
        let now = self.clock.now();
        self.pump_polling(transport);
        let Some(at) = self.transports.get_mut(&transport) else { return };
        if now < at.stalled_until {
            return;
        }
        for item in std::mem::take(&mut at.unread_by_client) {
            self.client_takes(transport, item);
        }
    }

    fn client_takes(&mut self, transport: u64, item: ToClient) {
        let now = self.clock.now();
        let Some(at) = self.transports.get_mut(&transport) else { return };
        let (client, slot, life, was_slow) = (at.client, at.slot, at.life, at.was_slow);
        match item {
            ToClient::Message(_) | ToClient::Closed(Some(_)) if at.half_open => {}
            ToClient::Message(packet) => {
                at.in_socket -= packet.len();
                if !at.left_over.is_empty() {
                    let event = NodeEvent::Drained { transport };
                    self.clock.after(Duration::from_micros(50), Event::Node { slot, life, event });
                }
                if self.clients[client].transport() != Some(transport) {
                    if let Some((polling, _)) = at.upgrades {
                        self.upgrade_hears(polling, transport, &packet);
                    }
                    return;
                }
                self.trace.note_bytes(now, &[16, client as u64], bytes_of(&packet), || {
                    format!("c{client} gets {}", String::from_utf8_lossy(bytes_of(&packet)))
                });
                let was_connected = self.clients[client].is_connected();
                if let Some(answer) = self.clients[client].hear(now, &packet, &mut self.checks) {
                    self.client_says(client, answer);
                }
                if !was_connected && self.clients[client].is_connected() {
                    self.perhaps_cut_after_connect(client);
                }
            }
            ToClient::Closed(code) => {
                let upgrades = at.upgrades;
                if code.is_some() {
                    self.send_to_server(transport, FromClient::Closed);
                } else {
                    self.transports.remove(&transport);
                }
                if self.clients[client].transport() == Some(transport) {
                    let moved_from_trouble = upgrades.is_some_and(|(from, _)| self.is_edge_troubled(from));
                    if !moved_from_trouble {
                        self.check_close(client, slot, life, was_slow, code);
                    }
                    self.client_lost(client);
                } else if let Some((polling, _)) = upgrades {
                    self.upgrade_fails(polling, transport);
                }
            }
        }
    }

    /// I2: a transport is closed only for a cause that has a name.
    fn check_close(&mut self, client: usize, slot: usize, life: u64, was_slow: bool, code: Option<u16>) {
        let now = self.clock.now();
        let life = self.slots[slot].life.as_ref().filter(|current| current.number == life);
        let named = match code {
            // The node is gone.
            None => life.is_none(),
            Some(1012) => life.is_none_or(|life| life.draining),
            // No stall here is as long as one for which a client is closed, and logs are long enough.
            Some(1013) => was_slow && !self.checks.strict,
            // An older transport of the client had asked for its session: its node is answered now.
            Some(4409) => self.clients[client].is_asked_for(now),
            Some(_) => false,
        };
        self.trace.note(now, &[15, client as u64, code.map_or(0, u64::from)], || {
            format!("c{client} loses its transport to n{slot}, code {code:?}")
        });
        self.timeline.mark(now, slot, Mark::ClientLost);
        if !named {
            let what = format!("n{slot} closed client {client} with {code:?} for no cause of its own");
            self.checks.violated("I2", now, what);
        }
    }

    /// The node of these transports is gone: its clients see a closed stream.
    pub(super) fn cut_transports(&mut self, slot: usize, life: u64) {
        let now = self.clock.now();
        self.cut_requests(slot, life);
        let cut: Vec<u64> = self
            .transports
            .iter()
            .filter(|(_, t)| t.slot == slot && t.life == life)
            .map(|(id, _)| *id)
            .collect();
        for transport in cut {
            let delay = self.random.micros(50, 20_000);
            if let Some(at) = self.transports.get_mut(&transport) {
                at.server = None;
                at.left_over.clear();
                at.stalled_until = now;
                let unread = std::mem::take(&mut at.unread_by_client);
                at.to_client_at = at.to_client_at.max(now + delay);
                self.clock.at(at.to_client_at, Event::ToClient { transport, item: ToClient::Closed(None) });
                for item in unread {
                    self.client_takes(transport, item);
                }
            }
        }
    }

    /// Has a client stop reading for a while.
    pub(super) fn stall_client(&mut self, index: usize, span: Duration) {
        let now = self.clock.now();
        let Some(transport) = self.clients[index].transport() else { return };
        if self.stall_polling(transport, now + span) {
            return;
        }
        let Some(at) = self.transports.get_mut(&transport) else { return };
        at.was_slow = true;
        at.socket_max = SLOW_SOCKET_BYTES;
        at.stalled_until = at.stalled_until.max(now + span);
        let until = at.stalled_until;
        self.trace.note(now, &[17, index as u64], || format!("c{index} does not read until {until}"));
        self.clock.at(until, Event::ClientReads { transport });
    }

    /// All clients read again.
    pub(super) fn end_stalls(&mut self) {
        let now = self.clock.now();
        self.end_polling_stalls();
        let stalled: Vec<u64> =
            self.transports.iter().filter(|(_, at)| at.stalled_until > now).map(|(id, _)| *id).collect();
        for transport in stalled {
            if let Some(at) = self.transports.get_mut(&transport) {
                at.stalled_until = now;
                self.clock.at(now, Event::ClientReads { transport });
            }
        }
    }
}

pub(super) fn bytes_of(packet: &Packet) -> &[u8] {
    match packet {
        Packet::Text(bytes) | Packet::Binary(bytes) => bytes,
    }
}
