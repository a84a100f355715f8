//! Clients that poll, each request through any node that is up, and that move to a WebSocket: what the stock
//! client, a balancer without stickiness and `node::listener` do.
//!
//! Belongs here: requests and their answers, the upgrade as the client sees it; draws by a generator of its
//! own, so that seeds without such clients tell the same story as ever.
//! Stays out: what is said (`client`), WebSockets (`transports`).
//! Invariants: a client has one GET and one POST under way at most; a request that was made is answered, or
//! breaks with its node, or is taken back; a client whose request breaks or is refused is without transport.

use mesh_proto::engineio::{decode_payload, encode_payload};
use mesh_proto::id::{ClientIx, EngineSid, NodeRef};
use mesh_proto::shard::{Admission, ClientGone, CloseCode, Input, NewClient, Packet, RequestIx};
use mesh_proto::time::Instant;
use mesh_proto::view::NodeState;
use mesh_proto::wire::{EngineRefusal, EngineRequest, EngineResponse};

use super::transports::{Transport, bytes_of};
use super::{Cluster, Event, FromClient, NodeEvent};
use crate::faults::Regime;
use crate::plot::Mark;

/// Packets of one POST; a client that has more sends another.
const POST_PACKETS_MAX: usize = 200;

/// Between packets of a payload.
const SEPARATOR: u8 = 0x1e;

/// Of 1,000 requests so many meet a node that drains, while there is one: a balancer notices late.
const DRAINING_PER_MILLE: u32 = 200;

/// A client's Engine.IO session while it polls.
#[derive(Debug)]
pub(super) struct Polls {
    pub(super) client: usize,
    /// The node that answered the handshake, and which client it is there while it is known there.
    pub(super) slot: usize,
    pub(super) life: u64,
    node: Option<NodeRef>,
    server: Option<(usize, ClientIx)>,
    sid: Option<EngineSid>,
    outbox: Vec<Packet>,
    get: bool,
    post: bool,
    upgrade: Option<Upgrade>,
    /// The client has left it.
    left: bool,
    /// Why its edge has closed it.
    closed: Option<CloseCode>,
    was_slow: bool,
    /// The node of a request of it has died: its edge may know before its client does.
    broken: bool,
    stalled_until: Instant,
}

/// A WebSocket that is to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upgrade {
    /// A node is asked for it.
    Asked,
    /// It tries the way.
    Tries(u64),
    /// The way is there: what is under way by polling is waited for.
    Pauses(u64),
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Asking {
    transport: u64,
    slot: usize,
    life: u64,
    /// When it reaches its node, and the shard that has it from then on.
    arrives: Instant,
    shard: Option<usize>,
    what: What,
}

/// What a request is for.
#[derive(Clone, Debug)]
pub(super) enum What {
    Open,
    Get,
    Post(Vec<Packet>),
    Upgrade,
}

/// How a request has ended for its client.
#[derive(Debug)]
pub(super) enum Ending {
    Answered(EngineResponse),
    /// Its connection broke.
    Broken,
}

impl Cluster {
    /// A node that a balancer would offer for a request.
    fn offered(&mut self) -> Option<(usize, u64)> {
        let late = self.polling_random.per_mille(DRAINING_PER_MILLE);
        let offered = self.living(|life| (!life.draining || late) && life.state() == NodeState::Active);
        let slot = self.polling_random.pick(&offered)?;
        Some((slot, self.slots[slot].life.as_ref()?.number))
    }

    /// A handshake by polling, at `slot`.
    pub(super) fn open_polling(&mut self, index: usize, transport: u64, slot: usize, life: u64) {
        let polls = Polls {
            client: index,
            slot,
            life,
            node: None,
            server: None,
            sid: None,
            outbox: Vec::new(),
            get: true,
            post: false,
            upgrade: None,
            left: false,
            closed: None,
            was_slow: false,
            broken: false,
            stalled_until: Instant::ZERO,
        };
        self.polls.insert(transport, polls);
        self.make(transport, slot, life, What::Open);
    }

    /// Makes a request through whatever node is offered; without one the transport is lost.
    fn ask(&mut self, transport: u64, what: What) {
        match self.offered() {
            Some((slot, life)) => self.make(transport, slot, life, what),
            None => self.end_of_request(transport, (usize::MAX, 0), what, Ending::Broken),
        }
    }

    fn make(&mut self, transport: u64, slot: usize, life: u64, what: What) {
        self.requests_made += 1;
        let request = self.requests_made;
        let now = self.clock.now();
        let arrives = now + self.polling_random.micros(100, 3_000);
        self.trace.note(now, &[40, transport, slot as u64], || {
            format!("t{transport} asks n{slot} for {what:?}, request {request}")
        });
        let asking = Asking { transport, slot, life, arrives, shard: None, what };
        self.requests.insert(request, asking);
        self.clock.at(arrives, Event::Node { slot, life, event: NodeEvent::Asked { request } });
    }

    /// A request has reached its node.
    pub(super) fn asked(&mut self, slot: usize, request: u64) {
        let Some(asking) = self.requests.get(&request) else { return };
        let Some(polls) = self.polls.get(&asking.transport) else { return };
        let Some(life) = &mut self.slots[slot].life else { return };
        let transport = asking.transport;
        let (shard, input) = match (&asking.what, polls.sid) {
            (What::Open, _) => {
                let client = &self.clients[polls.client];
                let product = self.common.products[usize::from(client.product)].clone();
                let shard = life.shard_for_client();
                let index = life.shards[shard].take_index(transport);
                let new = NewClient {
                    protocol: client.protocol,
                    admission: Ok(Admission { product, uid: client.uid.as_str().into() }),
                    offsets: client.carries,
                    transport: mesh_proto::shard::Transport::Polling(RequestIx(request)),
                };
                let me = life.view.me;
                if let Some(polls) = self.polls.get_mut(&transport) {
                    (polls.server, polls.node) = (Some((shard, index)), Some(me));
                }
                (shard, Input::ClientOpened(index, new))
            }
            (what, Some(sid)) => {
                let asked = match what {
                    What::Post(packets) => EngineRequest::Post(encode_payload(packets)),
                    What::Upgrade => EngineRequest::MayUpgrade,
                    What::Open | What::Get => EngineRequest::Poll,
                };
                let shard = usize::from(sid.shard().0) % life.shards.len();
                (shard, Input::Request(RequestIx(request), sid, asked))
            }
            (_, None) => return,
        };
        if let Some(asking) = self.requests.get_mut(&request) {
            asking.shard = Some(shard);
        }
        self.feed(slot, shard, input);
    }

    /// A shard has answered a request.
    pub(super) fn responded(&mut self, slot: usize, RequestIx(request): RequestIx, response: EngineResponse) {
        let Some(asking) = self.requests.remove(&request) else { return };
        let Asking { transport, life, what, .. } = asking;
        if matches!((&what, &response), (What::Upgrade, EngineResponse::Taken)) {
            return self.open_upgrade(transport, slot, life);
        }
        let delay = self.polling_random.micros(100, 2_000);
        let at = (slot, life);
        let ending = Ending::Answered(response);
        self.clock.after(delay, Event::RequestEnds { transport, at, what, ending });
    }

    /// The `101`, and the probe of the client.
    fn open_upgrade(&mut self, transport: u64, slot: usize, life: u64) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get_mut(&transport).filter(|polls| !polls.left) else { return };
        let Some(sid) = polls.sid else { return };
        self.opened += 1;
        let socket = self.opened;
        polls.upgrade = Some(Upgrade::Tries(socket));
        let mut at = Transport::new(polls.client, slot, life, now);
        at.upgrades = Some((transport, sid));
        self.transports.insert(socket, at);
        self.trace
            .note(now, &[41, transport, socket], || format!("t{socket} tries the way for t{transport}"));
        self.send_to_server(socket, FromClient::Opened);
        self.send_to_server(socket, FromClient::Message(Packet::Text("2probe".into())));
    }

    /// A client is about to try a WebSocket.
    pub(super) fn try_upgrade(&mut self, transport: u64) {
        let Some(polls) = self.polls.get_mut(&transport) else { return };
        if polls.left || polls.upgrade.is_some() || polls.sid.is_none() {
            return;
        }
        polls.upgrade = Some(Upgrade::Asked);
        self.ask(transport, What::Upgrade);
    }

    /// Something came over a WebSocket that is not the client's transport yet.
    pub(super) fn upgrade_hears(&mut self, polling: u64, socket: u64, packet: &Packet) {
        let Some(polls) = self.polls.get_mut(&polling) else { return };
        if polls.upgrade == Some(Upgrade::Tries(socket)) && bytes_of(packet) == b"3probe" {
            polls.upgrade = Some(Upgrade::Pauses(socket));
            self.perhaps_moves(polling);
        }
    }

    /// A WebSocket is closed that has not become the client's transport.
    pub(super) fn upgrade_fails(&mut self, polling: u64, socket: u64) {
        let Some(polls) = self.polls.get_mut(&polling) else { return };
        let is_it = [Upgrade::Tries(socket), Upgrade::Pauses(socket)].map(Some).contains(&polls.upgrade);
        if is_it {
            polls.upgrade = None;
            self.pump_polling(polling);
        }
    }

    /// Nothing is under way by polling: the client goes over.
    fn perhaps_moves(&mut self, transport: u64) {
        let Some(polls) = self.polls.get_mut(&transport) else { return };
        let Some(Upgrade::Pauses(socket)) = polls.upgrade else { return };
        if polls.get || polls.post || polls.left {
            return;
        }
        (polls.left, polls.upgrade) = (true, None);
        let (client, outbox) = (polls.client, std::mem::take(&mut polls.outbox));
        let now = self.clock.now();
        self.trace.note(now, &[42, transport, socket], || format!("c{client} goes over to t{socket}"));
        self.upgraded += 1;
        let slot = self.transports.get(&socket).map(|at| at.slot);
        let life = slot.and_then(|slot| self.slots[slot].life.as_ref());
        self.clients[client].moves_to(socket, life.map(|life| life.view.me.id));
        for packet in std::iter::once(Packet::Text("5".into())).chain(outbox) {
            self.send_to_server(socket, FromClient::Message(packet));
        }
    }

    /// A polling client says something: it goes with the next POST.
    pub(super) fn says_by_polling(&mut self, transport: u64, packet: Packet) -> bool {
        let Some(polls) = self.polls.get_mut(&transport) else { return false };
        polls.outbox.push(packet);
        self.pump_polling(transport);
        true
    }

    /// Makes the requests that are due.
    pub(super) fn pump_polling(&mut self, transport: u64) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get_mut(&transport) else { return };
        let pauses = matches!(polls.upgrade, Some(Upgrade::Pauses(_)));
        if polls.left || polls.sid.is_none() || pauses {
            return;
        }
        let posts = !polls.post && !polls.outbox.is_empty();
        let gets = !polls.get && polls.stalled_until <= now;
        (polls.post, polls.get) = (polls.post || posts, polls.get || gets);
        let body: Vec<Packet> = match posts {
            true => polls.outbox.drain(..polls.outbox.len().min(POST_PACKETS_MAX)).collect(),
            false => Vec::new(),
        };
        if posts {
            self.ask(transport, What::Post(body));
        }
        if gets && self.polls.get(&transport).is_some_and(|polls| !polls.left) {
            self.ask(transport, What::Get);
        }
    }

    /// A request has ended for its client.
    pub(super) fn end_of_request(&mut self, transport: u64, at: (usize, u64), what: What, ending: Ending) {
        let Some(polls) = self.polls.get_mut(&transport).filter(|polls| !polls.left) else { return };
        match (what, ending) {
            (What::Upgrade, _) => polls.upgrade = None,
            (_, Ending::Broken) => self.polling_lost(transport, at, None),
            (_, Ending::Answered(EngineResponse::Refused(why))) => {
                self.polling_lost(transport, at, Some(why));
            }
            (What::Post(_), Ending::Answered(_)) => {
                polls.post = false;
                self.pump_polling(transport);
                self.perhaps_moves(transport);
            }
            (_, Ending::Answered(EngineResponse::Packets(payload))) => {
                polls.get = false;
                // Clients have no bound on the packets of one payload, as nodes have.
                for packet in payload.split(|byte| *byte == SEPARATOR) {
                    let packet =
                        decode_payload(&payload.slice_ref(packet)).expect("a node sends whole packets");
                    packet.iter().for_each(|packet| self.polling_hears(transport, at, packet));
                }
                self.pump_polling(transport);
                self.perhaps_moves(transport);
            }
            (_, Ending::Answered(EngineResponse::Taken)) => {}
        }
    }

    fn polling_hears(&mut self, transport: u64, at: (usize, u64), packet: &Packet) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get_mut(&transport).filter(|polls| !polls.left) else { return };
        let client = polls.client;
        match bytes_of(packet) {
            b"6" => return,
            b"1" => return self.polling_lost(transport, at, None),
            open if open.starts_with(b"0{") => {
                let text = String::from_utf8_lossy(open);
                polls.sid = text.split('"').nth(3).and_then(EngineSid::from_text);
                if self.clients[client].upgrades {
                    let delay = self.polling_random.millis(0, 3_000);
                    self.clock.after(delay, Event::Upgrade { transport });
                }
            }
            _ => {}
        }
        self.trace.note_bytes(now, &[16, client as u64], bytes_of(packet), || {
            format!("c{client} gets {}", String::from_utf8_lossy(bytes_of(packet)))
        });
        let was_connected = self.clients[client].is_connected();
        if let Some(answer) = self.clients[client].hear(now, packet, &mut self.checks) {
            self.client_says(client, answer);
        }
        if !was_connected && self.clients[client].is_connected() {
            self.perhaps_cut_after_connect(client);
        }
    }

    /// I2: a client that polls loses its transport only for a cause that has a name.
    fn polling_lost(&mut self, transport: u64, asked: (usize, u64), refused: Option<EngineRefusal>) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get(&transport) else { return };
        let (index, closed, was_slow) = (polls.client, polls.closed, polls.was_slow);
        let mut open = self.requests.values().filter(|asking| asking.transport == transport);
        let named = self.is_troubled(asked)
            || open.any(|asking| self.is_troubled((asking.slot, asking.life)))
            || self.is_edge_troubled(transport)
            || match closed.map(CloseCode::code) {
                Some(1013) => was_slow && !self.checks.strict,
                Some(4409) => self.clients[index].is_asked_for(now),
                _ => false,
            };
        let (slot, words) = (polls.slot, format!("{refused:?}, {closed:?}"));
        self.trace.note(now, &[43, index as u64, transport], || {
            format!("c{index} loses its session at n{slot} by polling: {words}")
        });
        self.timeline.mark(now, slot, Mark::ClientLost);
        if !named {
            let what =
                format!("client {index} polls, and lost its session at n{slot} by n{}: {words}", asked.0);
            self.checks.violated("I2", now, what);
        }
        self.client_lost(index);
    }

    /// The edge of a session that began by polling gives reason enough to lose it.
    pub(super) fn is_edge_troubled(&self, transport: u64) -> bool {
        self.polls.get(&transport).is_none_or(|polls| {
            let condemned = polls.node.is_some_and(|node| self.condemned.contains(&node));
            condemned || polls.broken || self.is_troubled((polls.slot, polls.life))
        })
    }

    /// This life is over or drains; or nodes may not hear each other: then a request may not find its session.
    pub(super) fn is_troubled(&self, (slot, life): (usize, u64)) -> bool {
        let current = self.slots.get(slot).and_then(|slot| slot.life.as_ref());
        let over = current.is_none_or(|current| current.number != life || current.draining);
        over || self.regime == Regime::AnythingGoes
    }

    /// The client has no use for this session any more. `noticed`: its open requests break.
    pub(super) fn leave_polling(&mut self, transport: u64, noticed: bool) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get_mut(&transport).filter(|polls| !polls.left) else { return };
        polls.left = true;
        let socket = match polls.upgrade.take() {
            Some(Upgrade::Tries(socket) | Upgrade::Pauses(socket)) => Some(socket),
            Some(Upgrade::Asked) | None => None,
        };
        if polls.server.is_none() && polls.node.is_some() {
            self.polls.remove(&transport);
        }
        if let Some(socket) = socket {
            self.send_to_server(socket, FromClient::Closed);
        }
        let open: Vec<(u64, usize, u64, Instant)> = self
            .requests
            .iter()
            .filter(|(_, asking)| asking.transport == transport)
            .map(|(request, asking)| (*request, asking.slot, asking.life, asking.arrives))
            .collect();
        for (request, slot, life, arrives) in open.into_iter().filter(|_| noticed) {
            let at = arrives.max(now) + self.polling_random.micros(100, 2_000);
            self.clock.at(at, Event::Node { slot, life, event: NodeEvent::AskerGone { request } });
        }
    }

    /// The client loses its requests at once, and what is under way is lost. Unless `half_open` the nodes
    /// notice.
    pub(super) fn cut_polling(&mut self, transport: u64, half_open: bool) {
        let now = self.clock.now();
        let Some(polls) = self.polls.get(&transport) else { return };
        let index = polls.client;
        if self.calm || self.clients[index].transport() != Some(transport) {
            return;
        }
        self.trace.note(now, &[44, index as u64, u64::from(half_open)], || {
            format!("c{index} is cut off while it polls, noticed: {}", !half_open)
        });
        self.leave_polling(transport, !half_open);
        self.client_lost(index);
    }

    /// Where a client's transport ends.
    pub(super) fn edge_slot(&self, transport: u64) -> Option<usize> {
        let polls = self.polls.get(&transport).map(|polls| polls.slot);
        polls.or_else(|| Some(self.transports.get(&transport)?.slot))
    }

    /// A node notices that the connection of a request is gone.
    pub(super) fn asker_gone(&mut self, slot: usize, request: u64) {
        if let Some(asking) = self.requests.remove(&request)
            && let Some(shard) = asking.shard
        {
            self.feed(slot, shard, Input::RequestGone(RequestIx(request)));
        }
    }

    /// The edge is done with a client that polls.
    pub(super) fn polling_closed(&mut self, slot: usize, transport: u64, code: CloseCode) -> bool {
        let Some(polls) = self.polls.get_mut(&transport) else { return false };
        polls.closed = Some(code);
        if let Some((shard, index)) = polls.server.take() {
            self.feed(slot, shard, Input::ClientClosed(index, ClientGone::Closed));
        }
        if self.polls[&transport].left {
            self.polls.remove(&transport);
        }
        true
    }

    /// The node is gone: requests at it break, sessions at it are over.
    pub(super) fn cut_requests(&mut self, slot: usize, life: u64) {
        let at = (slot, life);
        let cut: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, asking)| (asking.slot, asking.life) == at)
            .map(|(request, _)| *request)
            .collect();
        for request in cut {
            let Some(Asking { transport, what, .. }) = self.requests.remove(&request) else { continue };
            if let Some(polls) = self.polls.get_mut(&transport) {
                polls.broken = true;
            }
            let delay = self.polling_random.micros(50, 20_000);
            self.clock.after(delay, Event::RequestEnds { transport, at, what, ending: Ending::Broken });
        }
        for polls in self.polls.values_mut().filter(|polls| (polls.slot, polls.life) == at) {
            polls.server = None;
        }
        self.polls.retain(|_, polls| !(polls.left && polls.server.is_none()));
    }

    /// Has a client that polls not come back for a while.
    pub(super) fn stall_polling(&mut self, transport: u64, until: Instant) -> bool {
        let Some(polls) = self.polls.get_mut(&transport) else { return false };
        polls.was_slow = true;
        polls.stalled_until = polls.stalled_until.max(until);
        self.clock.at(until, Event::ClientReads { transport });
        true
    }

    /// The clients that poll come back at once.
    pub(super) fn end_polling_stalls(&mut self) {
        let now = self.clock.now();
        let stalled: Vec<u64> =
            self.polls.iter().filter(|(_, polls)| polls.stalled_until > now).map(|(id, _)| *id).collect();
        for transport in stalled {
            if let Some(polls) = self.polls.get_mut(&transport) {
                polls.stalled_until = now;
            }
            self.pump_polling(transport);
        }
    }
}
