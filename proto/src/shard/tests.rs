//! Whole clusters of shards in one process: instant, ordered delivery, views changed by hand, real
//! bytes of both client protocols.

mod app;
mod asks;
mod backends;
mod backups;
mod bindings;
mod bounds;
mod clients;
mod crashes;
mod histories;
mod identity;
mod misplaced;
mod namespaces;
mod owners;
mod partitions;
mod placing;
mod polling;
mod products;
mod readers;
mod recovery;
mod repeats;
mod rivals;
mod slow;
mod woken;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::id::{Address, ClientIx, EngineSid, NodeId, NodeRef, Placement, PublishId, RoomKey, ShardIx};
use crate::keys::{ClusterKey, IdKey};
use crate::limits::Limits;
use crate::time::Instant;
use crate::view::{NodeInfo, NodeRecord, NodeState, View};
use crate::wire::{
    Answer, Body, Command, CommandFailed, DedupeKey, EdgeRef, EngineRefusal, EngineRequest, EngineResponse,
    Envelope, Gathered, Payload, Publish, Query, RoomEvent, SessionIdentity, Shadow, Subscription, To,
    ToRoom, ToSession,
};

const VNODES: u32 = 16;

fn node(name: &str, incarnation: u64) -> NodeRef {
    NodeRef { id: NodeId::of_name(name), incarnation }
}

/// Where a client is: node and shard.
type At = (usize, u16);

/// N nodes × S shards.
struct Mesh {
    now: Instant,
    nodes: Vec<NodeRef>,
    shards: BTreeMap<At, Shard>,
    alive: Vec<bool>,
    /// The way of a dead node's last words: (from, to) still arrives.
    last_words: Option<(usize, usize)>,
    /// Up, and not on the ring any more, or not yet.
    draining: Option<usize>,
    joining: Option<usize>,
    queue: VecDeque<(NodeRef, Envelope)>,
    /// Envelopes on this way are held back: (from, to).
    cut: Option<(usize, usize)>,
    kept_back: Vec<(NodeRef, Envelope)>,
    /// Nodes of two numbers cannot reach each other.
    sides: Vec<usize>,
    /// Whom each node sees, by which incarnation; `None`: whoever is alive. Nobody hears from others: what
    /// they say waits.
    seen: Option<Vec<BTreeMap<usize, u64>>>,
    early: Vec<(NodeRef, Envelope)>,
    /// What each client got, and what was done to it.
    got: BTreeMap<(At, u32), Vec<String>>,
    closed: BTreeMap<(At, u32), CloseCode>,
    paused: BTreeMap<(At, u32), bool>,
    /// Bytes left over for clients that take nothing.
    stuck: BTreeMap<(At, u32), usize>,
    answers: BTreeMap<u64, Result<Answer, CommandFailed>>,
    /// What requests of polling clients were answered.
    responses: BTreeMap<u64, EngineResponse>,
    requests: u64,
    /// Clients without a socket: the driver is done with them at once.
    polling: BTreeSet<(At, u32)>,
    clients: u32,
    shard_count: u16,
    rules: Arc<ProductRules>,
    /// The product's code, the same on all nodes; what it was asked (node, question); clients' answers.
    app: Option<fn(&AppCall) -> AppOutcome>,
    asked: Vec<(usize, AppCall)>,
    app_answered: Vec<(u64, Option<Payload>)>,
    app_gathered: Vec<(u64, Gathered)>,
    /// Who clients are is to be found out.
    identities: Vec<(At, AuthQuestion)>,
    /// Clients opened from here on carry their cursors.
    offsets: bool,
}

impl Mesh {
    fn new(nodes: usize, shards: u16) -> Self {
        Self::with(nodes, shards, Limits::default(), ProductRules::open("chat"))
    }

    fn with(count: usize, shard_count: u16, limits: Limits, rules: ProductRules) -> Self {
        let nodes: Vec<NodeRef> = (0..count).map(|n| node(&format!("n{n}"), 1)).collect();
        let mut shards = BTreeMap::new();
        for (n, me) in nodes.iter().enumerate() {
            for shard in 0..shard_count {
                let config = ShardConfig {
                    me: Address { node: *me, shard: ShardIx(shard) },
                    shards: shard_count,
                    node_name: format!("n{n}").into(),
                    products: vec![Arc::new(rules.clone())],
                    limits: limits.clone(),
                    ids: IdKey::new(&ClusterKey::new([7; 32])),
                    seed: (n as u64) << 8 | u64::from(shard),
                };
                shards.insert((n, shard), Shard::new(config));
            }
        }
        let mut mesh = Self {
            now: Instant::from_micros(1_000_000),
            alive: vec![true; count],
            last_words: None,
            draining: None,
            joining: None,
            nodes,
            shards,
            queue: VecDeque::new(),
            cut: None,
            kept_back: Vec::new(),
            sides: vec![0; count],
            seen: None,
            early: Vec::new(),
            got: BTreeMap::new(),
            closed: BTreeMap::new(),
            paused: BTreeMap::new(),
            stuck: BTreeMap::new(),
            answers: BTreeMap::new(),
            responses: BTreeMap::new(),
            requests: 0,
            polling: BTreeSet::new(),
            clients: 0,
            shard_count,
            rules: Arc::new(rules),
            app: None,
            asked: Vec::new(),
            app_answered: Vec::new(),
            app_gathered: Vec::new(),
            identities: Vec::new(),
            offsets: false,
        };
        mesh.views();
        mesh
    }

    fn view(&self, of: usize) -> Arc<View> {
        let alive = (0..self.nodes.len()).filter(|n| self.alive[*n]);
        let infos = alive.map(|n| self.info(n, self.nodes[n]));
        Arc::new(View::new(1, self.nodes[of], infos.collect(), VNODES))
    }

    fn info(&self, n: usize, node: NodeRef) -> NodeInfo {
        NodeInfo {
            node,
            mesh_addr: ([127, 0, 0, 1], 1).into(),
            zone: 0,
            weight: 1,
            suspect: false,
            record: Some(Arc::new(NodeRecord {
                node,
                version: 1,
                name: format!("n{n}"),
                state: match Some(n) {
                    n if n == self.draining => NodeState::Draining,
                    n if n == self.joining => NodeState::Joining,
                    _ => NodeState::Active,
                },
                client_addr: String::new(),
                admin_addr: String::new(),
                api_addr: String::new(),
                shards: self.shard_count,
                software: String::new(),
            })),
        }
    }

    /// Shows node `n` what it sees: it hears from whom it did not see before.
    fn show(&mut self, n: usize) {
        let seen = self.seen.as_ref().unwrap()[n].clone();
        let infos = seen.iter().map(|(&other, &incarnation)| {
            self.info(other, NodeRef { id: self.nodes[other].id, incarnation })
        });
        let view = Arc::new(View::new(1, self.nodes[n], infos.collect(), VNODES));
        for shard in 0..self.shard_count {
            self.input((n, shard), Input::View(view.clone()));
        }
        for early in std::mem::take(&mut self.early).into_iter().rev() {
            self.queue.push_front(early);
        }
    }

    /// Everybody alive sees who is alive.
    fn views(&mut self) {
        for n in 0..self.nodes.len() {
            self.view_at(n);
        }
        self.settle();
    }

    /// One node sees it; nothing is delivered yet.
    fn view_at(&mut self, n: usize) {
        let view = self.view(n);
        for shard in 0..self.shard_count {
            if self.alive[n] {
                self.input((n, shard), Input::View(view.clone()));
            }
        }
    }

    fn input(&mut self, at: At, input: Input) {
        self.shards.get_mut(&at).unwrap().handle(self.now, input);
        self.drain(at);
    }

    fn drain(&mut self, at: At) {
        let stuck = self.stuck.clone();
        let mut over = Vec::new();
        let mut outcomes = Vec::new();
        while let Some(output) = self.shards.get_mut(&at).unwrap().poll() {
            match output {
                Output::Write(ix, packet) => self.write(at, ix, &packet),
                Output::Fanout(packets, clients) => {
                    for ix in clients {
                        packets.iter().for_each(|packet| self.write(at, ix, packet));
                    }
                }
                Output::FanoutEach(each) => {
                    for (ix, tail) in each.tails() {
                        each.whole(tail).iter().for_each(|packet| self.write(at, ix, packet));
                    }
                }
                Output::Close(ix, code) => {
                    self.closed.insert((at, ix.0), code);
                    over.extend(self.polling.contains(&(at, ix.0)).then_some(ix));
                }
                Output::Respond(RequestIx(request), response) => {
                    assert!(self.responses.insert(request, response).is_none(), "answered twice");
                }
                Output::PauseReading(ix) => {
                    assert!(!self.paused.insert((at, ix.0), true).unwrap_or(false), "paused twice");
                }
                Output::ResumeReading(ix) => {
                    assert!(self.paused.insert((at, ix.0), false).unwrap_or(false), "resumed unpaused");
                }
                Output::App(call) => {
                    if let (Some(number), Some(app)) = (call.call, self.app) {
                        outcomes.push((call.identity.sid, number, app(&call)));
                    }
                    self.asked.push((at.0, *call));
                }
                Output::Identify(question) => self.identities.push((at, question)),
                Output::AppAnswered(name, answer) => self.app_answered.push((name, answer)),
                Output::AppGathered(name, gathered) => self.app_gathered.push((name, gathered)),
                Output::Send { to, envelope, .. } => self.queue.push_back((to, envelope)),
                Output::Answer(token, answer) => {
                    assert!(self.answers.insert(token, answer).is_none(), "answered twice");
                }
            }
        }
        self.shards[&at].check_invariants();
        for (sid, call, outcome) in outcomes {
            self.input(at, Input::App(sid, call, outcome));
        }
        for ix in over {
            self.input(at, Input::ClientClosed(ix, ClientGone::Closed));
        }
        // As the driver does: once per turn, for each with output left over.
        let more: Vec<(u32, usize)> = (self.stuck.iter())
            .filter(|(client, left)| client.0 == at && stuck.get(client) != Some(left))
            .map(|(client, left)| (client.1, *left))
            .collect();
        for (ix, left) in more {
            self.input(at, Input::ClientQueue(ClientIx(ix), left));
        }
    }

    fn write(&mut self, at: At, ix: ClientIx, packet: &Packet) {
        assert!(!self.closed.contains_key(&(at, ix.0)), "written to after its end");
        let text = match packet {
            Packet::Text(bytes) | Packet::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        };
        if let Some(left) = self.stuck.get_mut(&(at, ix.0)) {
            *left += packet.len();
        }
        self.got.entry((at, ix.0)).or_default().push(text);
    }

    /// Delivers until nothing is under way and no client that is behind could be served at once.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            if let Some((to, envelope)) = self.queue.pop_front() {
                self.deliver(to, envelope);
            } else if let Some(at) = self.shards.keys().copied().find(|at| {
                self.alive[at.0] && self.shards[at].next_deadline().is_some_and(|due| due <= self.now)
            }) {
                self.input(at, Input::Timer);
            } else {
                return;
            }
        }
        panic!("the mesh does not come to rest");
    }

    fn deliver(&mut self, to: NodeRef, envelope: Envelope) {
        let from = self.nodes.iter().position(|n| *n == envelope.from.node);
        let Some(n) = self.nodes.iter().position(|n| *n == to).filter(|n| self.alive[*n]) else { return };
        let speaks = |from: &usize| self.alive[*from] || self.last_words == Some((*from, n));
        let Some(from) = from.filter(speaks) else { return };
        if self.sides[from] != self.sides[n] {
            return;
        }
        let sees = |seen: &Vec<BTreeMap<usize, u64>>| {
            from == n || seen[n].get(&from) == Some(&envelope.from.node.incarnation)
        };
        if !self.seen.as_ref().is_none_or(sees) {
            return self.early.push((to, envelope));
        }
        if self.cut == Some((from, n)) {
            self.kept_back.push((to, envelope));
            return;
        }
        let mask = match envelope.to {
            To::Host(placement) => 1 << placement.shard(self.shard_count).0,
            To::Shard(shard) => 1_u64 << shard.0,
            To::Shards(mask) => mask,
            To::Node => 0,
        };
        for shard in (0..self.shard_count).filter(|shard| mask >> shard & 1 == 1) {
            self.input((n, shard), Input::Envelope(envelope.clone()));
        }
    }

    /// The way from one node to another loses what is held back, and both ends hear of it.
    fn reset(&mut self) {
        let Some((from, to)) = self.cut.take() else { return };
        self.kept_back.clear();
        for shard in 0..self.shard_count {
            self.input((from, shard), Input::LinkReset(self.nodes[to]));
            self.input((to, shard), Input::LinkReset(self.nodes[from]));
        }
        self.settle();
    }

    fn heal(&mut self) {
        self.cut = None;
        self.queue.extend(std::mem::take(&mut self.kept_back));
        self.settle();
    }

    fn wait(&mut self, duration: Duration) {
        self.settle();
        let until = self.now + duration;
        loop {
            let next = self.shards.iter().filter(|(at, _)| self.alive[at.0]);
            let next = next.filter_map(|(_, shard)| shard.next_deadline()).min();
            self.now = next.filter(|at| *at <= until).unwrap_or(until).max(self.now);
            self.settle();
            if self.now >= until {
                return;
            }
        }
    }

    fn open(&mut self, at: At, protocol: ClientProtocol, admission: Result<&str, Refusal>) -> Client {
        let admission = admission.map(|uid| Admission { product: self.rules.clone(), uid: uid.into() });
        self.open_as(at, protocol, admission)
    }

    fn open_as(&mut self, at: At, protocol: ClientProtocol, admission: Result<Admission, Refusal>) -> Client {
        let ix = self.clients;
        self.clients += 1;
        let transport = Transport::WebSocket;
        let new = NewClient { protocol, admission, offsets: self.offsets, transport };
        self.input(at, Input::ClientOpened(ClientIx(ix), new));
        self.settle();
        Client { at, ix }
    }

    /// A Socket.IO client that is connected.
    fn client(&mut self, at: At, uid: &str) -> Client {
        let client = self.open(at, ClientProtocol::SocketIo, Ok(uid));
        self.say(client, "40");
        let got = self.take(client);
        assert!(got[0].starts_with("0{\"sid\"") && got[1].starts_with("40{\"sid\""), "{got:?}");
        client
    }

    fn plain(&mut self, at: At, uid: &str) -> Client {
        self.open(at, ClientProtocol::Plain, Ok(uid))
    }

    /// Without delivery.
    fn send(&mut self, client: Client, text: &str) {
        let packet = Packet::Text(text.to_owned().into());
        self.input(client.at, Input::ClientPacket(ClientIx(client.ix), packet));
    }

    fn say(&mut self, client: Client, text: &str) {
        self.send(client, text);
        self.settle();
    }

    /// What the client got since it was last asked.
    fn take(&mut self, client: Client) -> Vec<String> {
        self.got.remove(&(client.at, client.ix)).unwrap_or_default()
    }

    fn ask(&mut self, client: Client, text: &str) -> Vec<String> {
        self.say(client, text);
        self.take(client)
    }

    /// The client takes nothing from here on; with 0 it has taken everything.
    fn left_over(&mut self, client: Client, bytes: usize) {
        match bytes {
            0 => self.stuck.remove(&(client.at, client.ix)),
            _ => self.stuck.insert((client.at, client.ix), bytes),
        };
        self.input(client.at, Input::ClientQueue(ClientIx(client.ix), bytes));
        self.settle();
    }

    fn closed(&self, client: Client) -> Option<CloseCode> {
        self.closed.get(&(client.at, client.ix)).copied()
    }

    fn is_paused(&self, client: Client) -> bool {
        self.paused.get(&(client.at, client.ix)).copied().unwrap_or(false)
    }

    fn gone(&mut self, client: Client) {
        self.input(client.at, Input::ClientClosed(ClientIx(client.ix), ClientGone::Closed));
        self.settle();
    }

    fn query(&mut self, n: usize, query: Query) -> Result<Answer, CommandFailed> {
        self.begin_query(n, 1, query);
        self.settle();
        self.answers.remove(&1).expect("not answered")
    }

    fn begin_query(&mut self, n: usize, token: u64, query: Query) {
        self.input((n, 0), Input::Query(token, query));
    }

    fn owner_of_room(&self, room: &str) -> usize {
        self.owner(room_key(room).placement())
    }

    fn owner_of_user(&self, uid: &str) -> usize {
        self.owner(Placement::of_user("chat", uid))
    }

    fn owner(&self, placement: Placement) -> usize {
        let n = self.alive.iter().position(|alive| *alive).unwrap();
        let owner = self.view(n).owner(placement).unwrap();
        self.nodes.iter().position(|n| *n == owner).unwrap()
    }

    /// A name that node `n` owns as a room.
    fn room_at(&self, n: usize) -> String {
        (0..).map(|i| format!("room{i}")).find(|room| self.owner_of_room(room) == n).unwrap()
    }

    /// A uid that node `n` owns.
    fn user_at(&self, n: usize) -> String {
        (0..).map(|i| format!("user{i}")).find(|uid| self.owner_of_user(uid) == n).unwrap()
    }

    fn stats(&self, f: impl Fn(&ShardStats) -> u64) -> u64 {
        self.shards.values().map(|shard| f(&shard.stats())).sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    at: At,
    ix: u32,
}

fn room_key(room: &str) -> RoomKey {
    RoomKey::new(&"chat".into(), &"/".into(), room)
}

fn refusal() -> Refusal {
    Refusal { code: "uid_required".into(), message: "say who you are".into() }
}

fn api_publish(room: &str, json: &str, key: Option<&str>) -> Query {
    Query::Publish(Publish {
        room: room_key(room),
        id: PublishId::Api { via: Address { node: node("n0", 1), shard: ShardIx(0) }, number: 0 },
        dedupe: key.map(|key| DedupeKey { uid: None, key: key.into() }),
        event: RoomEvent::new(Payload::json(json.to_owned())),
        after: None,
    })
}

fn emit(uid: &str, json: String) -> Query {
    user(
        uid,
        Command::Emit {
            payload: Payload::json(json),
            except_rooms: vec![],
            except_sids: vec![],
            dedupe: None,
        },
    )
}

fn user(uid: &str, command: Command) -> Query {
    Query::User { product: "chat".into(), uid: uid.into(), command }
}

fn events(got: &[String]) -> Vec<&str> {
    got.iter().map(String::as_str).filter(|text| text.starts_with("42")).collect()
}

fn second() -> Duration {
    Duration::from_secs(1)
}
