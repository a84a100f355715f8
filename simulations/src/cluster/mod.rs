//! A whole cluster on virtual time: nodes, the network between them, their clients.
//!
//! Belongs here: what can happen, in one loop; which part of the simulation it concerns.
//! Stays out: protocol decisions (they are the machines'), what may not happen (`checks`).
//!
//! | part | does |
//! |---|---|
//! | `mesh` | memberships, links, connections |
//! | `shards` | turns of shards: inputs in, outputs out |
//! | `transports` | clients and the streams to them |
//! | `polling` | clients that poll, and their way to a WebSocket |
//! | `crashes` | nodes that come and go |
//! | `bindings` | questions for bindings of users and sessions to upstreams |
//! | `sessions` | cut and half-open transports, events for one session |
//! | `trouble` | pauses, cuts, weather, and the end of all faults |

mod bindings;
mod crashes;
mod mesh;
mod polling;
mod sessions;
mod shards;
mod transports;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::{NodeRef, RoomKey, SocketSid, Term};
use mesh_proto::keys::ClusterKey;
use mesh_proto::limits::Limits;
use mesh_proto::link::Resume;
use mesh_proto::membership::Timing;
use mesh_proto::shard::{ClientProtocol, Holding, Packet, ProductRules};
use mesh_proto::time::Instant;
use mesh_proto::wire::Lane;

use crate::checks::{Acked, Checks, Room, STRICT, SessionId};
use crate::client::Client;
use crate::clock::Clock;
use crate::faults::{self, Regime};
use crate::network::{ConnectionId, Network};
use crate::node::{Common, Life};
use crate::plot::Timeline;
use crate::random::Random;
use crate::scenarios::Probes;
use crate::trace::Trace;
use transports::Transport;

/// Size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes at the start.
    pub nodes: usize,
    /// Clients.
    pub clients: usize,
    /// How long faults strike.
    pub trouble: Duration,
    /// Whether it is held to everything: `Checks::strict`.
    pub strict: bool,
    /// Whether nodes ask for bindings. Without them a seed tells the story it has always told.
    pub bindings: bool,
}

impl Size {
    /// A small and short run, for many seeds; three to five nodes.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let nodes = 3 + usize::try_from(seed % 3).unwrap_or(0);
        Self { nodes, clients: 10, trouble: Duration::from_secs(8), strict: STRICT, bindings: false }
    }
}

/// What can happen.
#[derive(Debug)]
enum Event {
    /// To a node; held back while it is paused, gone when that life is over.
    Node { slot: usize, life: u64, event: NodeEvent },
    /// Reaches whichever life is at that address.
    Datagram { from: usize, to: usize, bytes: Vec<u8> },
    /// A client sees a message, or the end of its transport.
    ToClient { transport: u64, item: ToClient },
    /// A client does something of its own accord.
    ClientActs { client: usize },
    /// A client is cut off, if it still has this transport.
    Cut { transport: u64, half_open: bool },
    /// A request of a client that polls has ended, at this node and life.
    RequestEnds { transport: u64, at: (usize, u64), what: polling::What, ending: polling::Ending },
    /// A client that polls tries a WebSocket.
    Upgrade { transport: u64 },
    /// A stalled client reads on.
    ClientReads { transport: u64 },
    /// A node asks for a binding.
    Binds,
    /// A fault strikes.
    Strike(faults::Kind),
    /// Part of a fault ends.
    Relief(trouble::Relief),
    /// A fault goes on.
    Next(crashes::Next),
}

/// What can happen to a node.
#[derive(Debug)]
enum NodeEvent {
    Datagram {
        from: usize,
        bytes: Vec<u8>,
    },
    MembershipWake,
    Dial {
        peer: NodeRef,
    },
    ConnectionUp {
        peer: NodeRef,
        connection: ConnectionId,
        resume: Resume,
    },
    ConnectionDown {
        peer: NodeRef,
        connection: ConnectionId,
    },
    Bytes {
        peer: NodeRef,
        connection: ConnectionId,
        lane: Lane,
        bytes: Bytes,
    },
    LinkWake {
        peer: NodeRef,
    },
    View {
        shard: usize,
    },
    Turn {
        shard: usize,
    },
    FromClient {
        transport: u64,
        item: FromClient,
    },
    /// A request of a client that polls is there.
    Asked {
        request: u64,
    },
    /// Its connection is gone.
    AskerGone {
        request: u64,
    },
    /// The socket of a client took more.
    Drained {
        transport: u64,
    },
    /// A client did not let go of a closing transport.
    CloseTimeout {
        transport: u64,
    },
    /// The next step of a drain.
    DrainStep {
        closing: bool,
    },
}

#[derive(Debug)]
enum ToClient {
    Message(Packet),
    /// With the server's close code, if it said one.
    Closed(Option<u16>),
}

#[derive(Debug)]
enum FromClient {
    Opened,
    Message(Packet),
    Closed,
}

/// A session or a room.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EntityName {
    Session(SocketSid),
    Room(RoomKey),
}

/// A place for a node.
#[derive(Debug, Default)]
struct Slot {
    life: Option<Life>,
    /// Held back while its process is stopped.
    held: Vec<NodeEvent>,
    shards: u16,
    /// Until when others had reason not to hear it, by simulation time.
    impaired_until: Instant,
    /// A node has been started here.
    ever: bool,
    /// It left of its own accord and has not been started again.
    left: bool,
}

/// The cluster of one run.
#[derive(Debug)]
pub struct Cluster {
    clock: Clock<Event>,
    /// What happened.
    pub trace: Trace,
    /// What may not happen.
    pub checks: Checks,
    /// Faults that struck.
    pub faults: faults::Counts,
    /// What is drawn of it.
    pub timeline: Timeline,
    /// The terms that owners were last heard under.
    terms: BTreeMap<EntityName, Term>,
    network: Network,
    slots: Vec<Slot>,
    clients: Vec<Client>,
    transports: BTreeMap<u64, Transport>,
    common: Common,
    lives: u64,
    /// Lives that somebody had reason to declare down; others may hear of that much later.
    condemned: BTreeSet<NodeRef>,
    /// When a node came or went last.
    lives_changed: Instant,
    opened: u64,
    queries: u64,
    /// Publishes of backends without an answer.
    asked_by_backends: BTreeMap<u64, Acked>,
    /// Events of backends for one session without an answer.
    emitting: BTreeMap<u64, sessions::Emitting>,
    /// Sessions of clients that poll, by transport.
    polls: BTreeMap<u64, polling::Polls>,
    /// Their requests under way.
    requests: BTreeMap<u64, polling::Asking>,
    requests_made: u64,
    /// Clients that have moved from polling to a WebSocket.
    pub upgraded: u64,
    /// Draws for what concerns sessions that go on over several transports.
    sessions_random: Random,
    /// Draws for what concerns clients that poll.
    polling_random: Random,
    /// Questions for bindings, in runs that have them.
    bindings: Option<bindings::Workload>,
    /// No more faults; clients only get where they want to be.
    calm: bool,
    /// What may strike together.
    pub regime: Regime,
    /// When a ring or a life has changed last.
    unsteady_at: Instant,
    /// When a node was killed last.
    crashed_at: Instant,
    trouble_ends: Instant,
    random: Random,
    /// Shards' machines with nothing in them yet are not worth checking at each turn.
    turns: u64,
}

/// How long nodes have to find each other before faults strike.
const SETTLING: Duration = Duration::from_secs(4);

/// Of 1,000 seeds in so many some clients carry their cursors. The others tell the story they would tell if
/// there were none.
const CARRYING_SEEDS_PER_MILLE: u32 = 750;

/// Of 1,000 Socket.IO clients of such a seed so many do.
const CARRYING_CLIENTS_PER_MILLE: u32 = 800;

/// So that what is drawn for sessions is not what is drawn for all else.
const SESSIONS_SALT: u64 = 0x7265_636f_7665_7279;

/// Of 1,000 seeds in so many some clients poll. The others tell the story they would tell if there were none.
const POLLING_SEEDS_PER_MILLE: u32 = 500;

/// Of 1,000 Socket.IO clients of such a seed so many poll, and of 1,000 of those so many go over to a WebSocket.
const POLLING_CLIENTS_PER_MILLE: u32 = 700;
const UPGRADING_CLIENTS_PER_MILLE: u32 = 500;

/// So that what is drawn for clients that poll is not what is drawn for all else.
const POLLING_SALT: u64 = 0x706f_6c6c_696e_6721;

/// The same for how much of a change of the ring a shard carries out in one turn.
const PLACING_SALT: u64 = 0x706c_6163_696e_6721;

/// Slots for nodes that join later.
const SPARE_SLOTS: usize = 2;

/// Bounds that a short run can reach, in some seeds.
fn limits(seed: u64, random: &mut Random) -> Limits {
    let mut placing = Random::new(seed ^ PLACING_SALT);
    let defaults = Limits::default();
    let narrow = |random: &mut Random, bound: usize, tight: usize| {
        if random.per_mille(300) { tight } else { bound }
    };
    Limits {
        room_log_entries_max: narrow(random, 1_000, 200),
        client_queue_bytes_max: narrow(random, defaults.client_queue_bytes_max, 1 << 10),
        tail_bytes_max: narrow(random, defaults.tail_bytes_max, 2 << 10),
        inbound_packets_max: narrow(random, defaults.inbound_packets_max, 8),
        // A client that polls and is lost leaves a session behind until its heartbeat is missed.
        sessions_per_uid_max: 1_000,
        // A shard holds some tens of keys: here a change of the ring takes it many turns.
        placed_per_turn: if placing.per_mille(500) { 1 } else { defaults.placed_per_turn },
        ..defaults
    }
}

impl Cluster {
    /// A cluster of that size; its nodes start within the first second.
    #[must_use]
    pub fn new(seed: u64, size: Size, story: Option<Instant>) -> Self {
        let mut random = Random::new(seed);
        let seeds = (0..size.nodes.min(3)).collect();
        let limits = limits(seed, &mut random);
        let key = ClusterKey::new([7; 32]);
        let products = ["alpha", "beta"].map(|name| Arc::new(ProductRules::open(name))).to_vec();
        let common = Common { products, key, limits, timing: Timing::lan(), seeds };
        let trouble_begins = Instant::ZERO + SETTLING;
        let mut cluster = Self {
            clock: Clock::new(),
            trace: Trace::new(story.is_some(), story.unwrap_or_default()),
            checks: Checks::new(size.strict),
            faults: faults::Counts::new(),
            timeline: Timeline::default(),
            terms: BTreeMap::new(),
            network: Network::new(random.fork()),
            slots: Vec::new(),
            clients: Vec::new(),
            transports: BTreeMap::new(),
            common,
            lives: 0,
            condemned: BTreeSet::new(),
            lives_changed: Instant::ZERO,
            opened: 0,
            queries: 0,
            asked_by_backends: BTreeMap::new(),
            emitting: BTreeMap::new(),
            polls: BTreeMap::new(),
            requests: BTreeMap::new(),
            requests_made: 0,
            upgraded: 0,
            sessions_random: Random::new(seed ^ SESSIONS_SALT),
            polling_random: Random::new(seed ^ POLLING_SALT),
            bindings: size.bindings.then(|| bindings::Workload::new(seed)),
            calm: false,
            regime: Regime::default(),
            unsteady_at: Instant::ZERO,
            crashed_at: Instant::ZERO,
            trouble_ends: trouble_begins,
            random: random.fork(),
            turns: 0,
        };
        for slot in 0..size.nodes + SPARE_SLOTS {
            let shards = 1 + u16::try_from(random.below(3)).unwrap_or(0);
            cluster.slots.push(Slot { shards, ..Slot::default() });
            if slot < size.nodes {
                cluster.clock.after(random.millis(0, 1_000), Event::Relief(trouble::Relief::Start(slot)));
            }
        }
        cluster.add_clients(&mut random, size.clients);
        let plan = faults::Plan::draw(&mut random, size.nodes, trouble_begins, trouble_begins + size.trouble);
        cluster.regime = plan.regime;
        cluster.trouble_ends = plan.ends;
        for (at, kind) in plan.strikes {
            cluster.clock.at(at, Event::Strike(kind));
        }
        cluster.clock.at(plan.ends, Event::Relief(trouble::Relief::All));
        cluster.checks.hold_to(plan.regime);
        if cluster.sessions_random.per_mille(CARRYING_SEEDS_PER_MILLE) {
            cluster.add_carriers(trouble_begins, plan.ends);
        }
        if cluster.polling_random.per_mille(POLLING_SEEDS_PER_MILLE) {
            for client in cluster.clients.iter_mut().filter(|c| c.protocol == ClientProtocol::SocketIo) {
                client.polls = cluster.polling_random.per_mille(POLLING_CLIENTS_PER_MILLE);
                client.upgrades = cluster.polling_random.per_mille(UPGRADING_CLIENTS_PER_MILLE);
            }
        }
        if size.bindings {
            cluster.add_bindings(trouble_begins);
        }
        cluster
    }

    /// A few rooms, so that each has members on several nodes; two products use the same names.
    fn add_clients(&mut self, random: &mut Random, count: usize) {
        let rooms = 2 + random.below(4);
        for id in 0..count {
            let protocol =
                if random.per_mille(500) { ClientProtocol::SocketIo } else { ClientProtocol::Plain };
            let product = u8::from(random.per_mille(250));
            let uid = format!("u{}", random.below(1 + count as u64 * 3 / 4));
            let mut wanted: Vec<u16> =
                (0..1 + random.below(3)).map(|_| u16::try_from(random.below(rooms)).unwrap_or(0)).collect();
            wanted.sort_unstable();
            wanted.dedup();
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            let mut client = Client::new(id, protocol, product, uid, wanted, random.fork());
            client.loyal = random.per_mille(500);
            self.clients.push(client);
            let first = random.millis(1_500, 3_500);
            self.clock.after(first, Event::ClientActs { client: self.clients.len() - 1 });
        }
    }

    /// Some of the clients are stock clients that come back to their session, and trouble comes for them.
    fn add_carriers(&mut self, from: Instant, to: Instant) {
        for client in self.clients.iter_mut().filter(|c| c.protocol == ClientProtocol::SocketIo) {
            client.carries = self.sessions_random.per_mille(CARRYING_CLIENTS_PER_MILLE);
        }
        let strikes = faults::Plan::draw_for_sessions(&mut self.sessions_random, self.regime, from, to);
        for (at, kind) in strikes {
            self.clock.at(at, Event::Strike(kind));
        }
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// When faults stop.
    #[must_use]
    pub fn trouble_ends(&self) -> Instant {
        self.trouble_ends
    }

    /// Runs until `until`, or until a promise is broken.
    pub fn run_until(&mut self, until: Instant) {
        while self.checks.violations.is_empty() && self.clock.now() < until {
            let Some(event) = self.clock.advance() else { return };
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Node { slot, life, event } => {
                let Some(current) = &self.slots[slot].life else { return };
                if current.number != life {
                    return;
                }
                if current.paused {
                    self.slots[slot].held.push(event);
                } else {
                    self.happen_to(slot, event);
                }
            }
            Event::Datagram { from, to, bytes } => match &self.slots[to].life {
                None => {}
                Some(life) if life.paused => self.slots[to].held.push(NodeEvent::Datagram { from, bytes }),
                Some(_) => self.datagram(to, from, bytes),
            },
            Event::ToClient { transport, item } => self.client_sees(transport, item),
            Event::ClientActs { client } => self.client_acts(client),
            Event::Cut { transport, half_open } => self.cut_transport(transport, half_open),
            Event::RequestEnds { transport, at, what, ending } => {
                self.end_of_request(transport, at, what, ending);
            }
            Event::Upgrade { transport } => self.try_upgrade(transport),
            Event::ClientReads { transport } => self.client_reads(transport),
            Event::Binds => self.ask_for_binding(),
            Event::Strike(kind) => self.strike(kind),
            Event::Relief(relief) => self.relieve(relief),
            Event::Next(next) => self.follow(next),
        }
    }

    fn happen_to(&mut self, slot: usize, event: NodeEvent) {
        match event {
            NodeEvent::Datagram { from, bytes } => self.datagram(slot, from, bytes),
            NodeEvent::MembershipWake => self.membership_wake(slot),
            NodeEvent::Dial { peer } => self.dial(slot, peer),
            NodeEvent::ConnectionUp { peer, connection, resume } => {
                self.connection_up(slot, peer, connection, resume);
            }
            NodeEvent::ConnectionDown { peer, connection } => self.connection_down(slot, peer, connection),
            NodeEvent::Bytes { peer, connection, lane, bytes } => {
                self.bytes(slot, peer, connection, lane, bytes);
            }
            NodeEvent::LinkWake { peer } => self.link_wake(slot, peer),
            NodeEvent::View { shard } => self.view_reaches_shard(slot, shard),
            NodeEvent::Turn { shard } => self.turn(slot, shard),
            NodeEvent::FromClient { transport, item } => self.take_from_client(slot, transport, item),
            NodeEvent::Asked { request } => self.asked(slot, request),
            NodeEvent::AskerGone { request } => self.asker_gone(slot, request),
            NodeEvent::Drained { transport } => self.drained(slot, transport),
            NodeEvent::CloseTimeout { transport } => self.close_timeout(slot, transport),
            NodeEvent::DrainStep { closing } => self.drain_step(slot, closing),
        }
    }

    /// Schedules an event of the present life of a node.
    fn node_after(&mut self, slot: usize, delay: Duration, event: NodeEvent) {
        self.node_at(slot, self.clock.now() + delay, event);
    }

    fn node_at(&mut self, slot: usize, at: Instant, event: NodeEvent) {
        if let Some(life) = &self.slots[slot].life {
            self.clock.at(at, Event::Node { slot, life: life.number, event });
        }
    }

    /// Ring digests of all nodes that are up, where they differ or a node is not active: why.
    #[must_use]
    pub fn disagreement(&self) -> Option<String> {
        let lives = self.slots.iter().enumerate().filter_map(|(slot, s)| Some((slot, s.life.as_ref()?)));
        let rings: Vec<_> = lives
            .map(|(slot, life)| (slot, life.state(), life.view.ring.digest(), life.view.nodes.len()))
            .collect();
        let differ = rings.iter().any(|r| r.2 != rings[0].2 || r.1 != mesh_proto::view::NodeState::Active);
        differ.then(|| {
            let lines = rings.iter().map(|(slot, state, digest, nodes)| {
                format!("n{slot} {state:?} ring {digest:016x} of {nodes}")
            });
            lines.collect::<Vec<_>>().join(", ")
        })
    }

    /// Asserts what every machine promises.
    fn check_machines(&self) {
        for life in self.slots.iter().filter_map(|slot| slot.life.as_ref()) {
            life.membership.check_invariants();
            life.links.values().for_each(|link| link.link.check_invariants());
            life.shards.iter().for_each(|slot| slot.shard.check_invariants());
        }
    }
}

impl Cluster {
    /// Every client that is where it wants to be publishes once to each of its rooms.
    pub fn probe(&mut self) -> Probes {
        let now = self.clock.now();
        let unsettled = self.clients.iter().find(|client| !client.is_settled());
        let unsettled = unsettled
            .map(|client| format!("client {} is not where it wants to be: {}", client.id, client.standing()));
        let mut probes = Probes { unsettled, expected: Vec::new() };
        for index in 0..self.clients.len() {
            for room in self.clients[index].rooms().to_vec() {
                if !self.clients[index].is_in(room) {
                    continue;
                }
                let product = self.clients[index].product;
                self.clients[index].in_generation(self.checks.generation);
                let Some((event, packet)) = self.clients[index].probe(now, room) else { continue };
                self.client_says(index, packet);
                let members =
                    self.clients.iter().filter(|member| member.product == product && member.is_in(room));
                probes.expected.extend(members.map(|member| (product, room, member.session_id(), event)));
            }
        }
        probes
    }

    /// What a round of probes has not reached: why, in one sentence.
    #[must_use]
    pub fn missing(&self, probes: &Probes) -> Option<String> {
        let unreached = || {
            let missed = |(product, room, to, event): &&_| !self.checks.has(*product, *room, *to, *event);
            let (_, room, to, event) = probes.expected.iter().find(missed)?;
            Some(format!("client {}.{} of room {room} never got {event}", to.client, to.session))
        };
        probes.unsettled.clone().or_else(unreached)
    }

    /// What is checked once, at the end.
    pub fn check_end(&mut self) {
        self.check_machines();
        let now = self.clock.now();
        self.checks.check_orders(now);
        if self.regime == Regime::OneAtATime {
            self.checks.check_appended_once(now);
        }
        for client in &self.clients {
            if let Some(request) = client.unanswered(now) {
                let what = format!("client {} never got an answer to {request:?}", client.id);
                self.checks.violated("I3", now, what);
            }
        }
        for (session, _) in self.clients.iter().filter_map(Client::last_session) {
            if let Some(number) = self.checks.own.missing(session) {
                let SessionId { client, session } = session;
                let what = format!("client {client}.{session} never got {number} of its own stream");
                self.checks.violated("I6", now, what);
            }
        }
        if let Some(number) = self.checks.bound.unanswered() {
            let what = format!("question {number} for a binding never got an answer");
            self.checks.violated("I10", now, what);
        }
        if self.checks.strict {
            let (clients, slots) = (&self.clients, &self.slots);
            let places: BTreeMap<u64, usize> = (self.transports.iter().map(|(id, at)| (*id, at.slot)))
                .chain(self.polls.iter().map(|(id, polls)| (*id, polls.slot)))
                .collect();
            let transports = &self.transports;
            let edges_of = |(product, room): Room, session: SessionId| {
                let client = clients.iter().find(|client| client.session_id() == session)?;
                let transport =
                    client.transport().filter(|_| client.product == product && client.is_in(room))?;
                let edge = slots[*places.get(&transport)?].life.as_ref()?.view.me.id;
                // What its edge was told before it went over to a WebSocket.
                let moved = transports.get(&transport).and_then(|at| at.upgrades);
                Some([edge, moved.map_or(edge, |(_, sid)| sid.edge())])
            };
            let living: BTreeSet<NodeRef> =
                slots.iter().filter_map(|slot| slot.life.as_ref()).map(|life| life.view.me).collect();
            let excuses = (self.regime == Regime::AnythingGoes).then_some(&living);
            self.checks.check_kept(now, excuses, edges_of);
        }
    }

    /// What is held otherwise than the ring says (I8): each key once by its owner, an equal copy at its
    /// backup, and nowhere else.
    #[must_use]
    pub fn misplaced(&self) -> Option<String> {
        let lives: Vec<&Life> = self.slots.iter().filter_map(|slot| slot.life.as_ref()).collect();
        let ring = &lives.first()?.view.ring;
        let mut held = BTreeMap::<String, Vec<(NodeRef, Holding)>>::new();
        for life in &lives {
            for holding in life.shards.iter().flat_map(|slot| slot.shard.holdings()) {
                held.entry(holding.name.clone()).or_default().push((life.view.me, holding));
            }
        }
        held.into_iter().find_map(|(name, copies)| {
            let wanted = ring.replicas(copies[0].1.placement, 2);
            let owned = |(node, holding): &&(NodeRef, Holding)| holding.owned && Some(node) == wanted.first();
            let owner = copies.iter().find(owned);
            let equal = |(node, holding): &(NodeRef, Holding)| {
                wanted.contains(node)
                    && owner.is_some_and(|(at, owner)| {
                        node == at || (holding.version, holding.digest) == (owner.version, owner.digest)
                    })
            };
            let right = copies.len() == wanted.len() && copies.iter().all(equal);
            (!right).then(|| format!("{name} belongs to {wanted:?} and is held as {copies:?}"))
        })
    }

    /// A room as the account of deliveries names it.
    fn room_of(&self, key: &RoomKey) -> Option<Room> {
        let product = self.common.products.iter().position(|rules| rules.name == *key.product())?;
        Some((u8::try_from(product).ok()?, key.room().strip_prefix('r')?.parse().ok()?))
    }
}
