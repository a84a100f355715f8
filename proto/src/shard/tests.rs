//! Whole clusters of shards in one process: instant, ordered delivery, views changed by hand, real
//! bytes of both client protocols.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::id::{Address, ClientIx, NodeId, NodeRef, Placement, PublishId, RoomKey, ShardIx};
use crate::keys::{ClusterKey, IdKey};
use crate::limits::Limits;
use crate::time::Instant;
use crate::view::{NodeInfo, NodeRecord, NodeState, View};
use crate::wire::{
    Answer, Body, Command, CommandFailed, DedupeKey, EdgeRef, Envelope, Payload, Publish, Query, RoomEvent,
    SessionIdentity, Shadow, Subscription, To, ToRoom, ToSession,
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
    queue: VecDeque<(NodeRef, Envelope)>,
    /// Envelopes on this way are held back: (from, to).
    cut: Option<(usize, usize)>,
    kept_back: Vec<(NodeRef, Envelope)>,
    /// What each client got, and what was done to it.
    got: BTreeMap<(At, u32), Vec<String>>,
    closed: BTreeMap<(At, u32), CloseCode>,
    paused: BTreeMap<(At, u32), bool>,
    /// Bytes left over for clients that take nothing.
    stuck: BTreeMap<(At, u32), usize>,
    answers: BTreeMap<u64, Result<Answer, CommandFailed>>,
    clients: u32,
    shard_count: u16,
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
            nodes,
            shards,
            queue: VecDeque::new(),
            cut: None,
            kept_back: Vec::new(),
            got: BTreeMap::new(),
            closed: BTreeMap::new(),
            paused: BTreeMap::new(),
            stuck: BTreeMap::new(),
            answers: BTreeMap::new(),
            clients: 0,
            shard_count,
        };
        mesh.views();
        mesh
    }

    fn view(&self, of: usize) -> Arc<View> {
        let infos = (0..self.nodes.len()).filter(|n| self.alive[*n]).map(|n| NodeInfo {
            node: self.nodes[n],
            mesh_addr: ([127, 0, 0, 1], 1).into(),
            zone: 0,
            weight: 1,
            suspect: false,
            record: Some(Arc::new(NodeRecord {
                node: self.nodes[n],
                version: 1,
                name: format!("n{n}"),
                state: NodeState::Active,
                client_addr: String::new(),
                admin_addr: String::new(),
                api_addr: String::new(),
                shards: self.shard_count,
                software: String::new(),
            })),
        });
        Arc::new(View::new(1, self.nodes[of], infos.collect(), VNODES))
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
        while let Some(output) = self.shards.get_mut(&at).unwrap().poll() {
            match output {
                Output::Write(ix, packet) => self.write(at, ix, &packet),
                Output::Fanout(packets, clients) => {
                    for ix in clients {
                        packets.iter().for_each(|packet| self.write(at, ix, packet));
                    }
                }
                Output::Close(ix, code) => {
                    self.closed.insert((at, ix.0), code);
                }
                Output::PauseReading(ix) => {
                    assert!(!self.paused.insert((at, ix.0), true).unwrap_or(false), "paused twice");
                }
                Output::ResumeReading(ix) => {
                    assert!(self.paused.insert((at, ix.0), false).unwrap_or(false), "resumed unpaused");
                }
                Output::Send { to, envelope, .. } => self.queue.push_back((to, envelope)),
                Output::Answer(token, answer) => {
                    assert!(self.answers.insert(token, answer).is_none(), "answered twice");
                }
            }
        }
        self.shards[&at].check_invariants();
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
        let Some(from) = from.filter(|from| self.alive[*from]) else { return };
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
        let ix = self.clients;
        self.clients += 1;
        let admission =
            admission.map(|uid| Admission { product: Arc::new(ProductRules::open("chat")), uid: uid.into() });
        self.input(at, Input::ClientOpened(ClientIx(ix), NewClient { protocol, admission }));
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
    Refusal { code: "uid_required", message: "say who you are".into() }
}

fn api_publish(room: &str, json: &str, key: Option<&str>) -> Query {
    Query::Publish(Publish {
        room: room_key(room),
        id: PublishId::Api { via: Address { node: node("n0", 1), shard: ShardIx(0) }, number: 0 },
        dedupe: key.map(|key| DedupeKey { uid: None, key: key.into() }),
        event: RoomEvent {
            payload: Payload::json(json.to_owned()),
            except_sids: Vec::new(),
            except_rooms: Vec::new(),
            volatile: false,
        },
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

#[test]
fn clients_of_both_protocols_connect_and_are_welcomed() {
    let mut mesh = Mesh::new(3, 2);
    mesh.client((0, 0), "alice");
    let plain = mesh.plain((1, 1), "bob");
    let got = mesh.take(plain);
    assert!(got[0].starts_with("{\"type\":\"welcome\"") && got[0].contains("\"uid\":\"bob\""), "{got:?}");
    assert_eq!(mesh.stats(|s| s.sessions), 2);
}

#[test]
fn refusals_speak_the_clients_protocol() {
    let mut mesh = Mesh::new(1, 1);
    let client = mesh.open((0, 0), ClientProtocol::SocketIo, Err(refusal()));
    mesh.take(client);
    assert!(mesh.ask(client, "40")[0].contains("\"data\":{\"code\":\"uid_required\"}"));
    assert_eq!(mesh.closed(client), None);
    let plain = mesh.open((0, 0), ClientProtocol::Plain, Err(refusal()));
    assert!(mesh.take(plain)[0].contains("uid_required"));
    assert_eq!(mesh.closed(plain), Some(CloseCode::Refused));
}

#[test]
fn a_second_connect_and_an_event_before_the_first_close() {
    let mut mesh = Mesh::new(1, 1);
    let twice = mesh.client((0, 0), "alice");
    mesh.say(twice, "40");
    assert_eq!(mesh.closed(twice), Some(CloseCode::ProtocolError));
    let early = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("bob"));
    mesh.say(early, "42[\"rooms\"]");
    assert_eq!(mesh.closed(early), Some(CloseCode::ProtocolError));
    mesh.gone(twice);
    mesh.gone(early);
    assert_eq!(mesh.stats(|s| s.sessions + s.clients), 0);
}

#[test]
fn silence_is_timed_out_and_answers_keep_a_client() {
    let mut mesh = Mesh::new(1, 1);
    let (lively, silent) = (mesh.client((0, 0), "a"), mesh.client((0, 0), "b"));
    let never = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("c"));
    mesh.wait(second() * 26);
    assert_eq!(mesh.closed(never), Some(CloseCode::Timeout));
    assert_eq!(mesh.take(lively), ["2"]);
    mesh.say(lively, "3");
    mesh.wait(second() * 20);
    assert_eq!(mesh.closed(silent), Some(CloseCode::Timeout));
    assert_eq!(mesh.closed(lively), None);
}

#[test]
fn requests_are_answered_and_reserved_names_reach_no_log() {
    let mut mesh = Mesh::new(3, 1);
    let a = mesh.client((0, 0), "alice");
    assert!(mesh.ask(a, "421[\"publish\",\"r\",\"e\"]")[0].contains("\"code\":\"not_member\""));
    assert_eq!(mesh.ask(a, "422[\"join\",\"r\"]"), ["432[{\"ok\":true}]"]);
    assert!(mesh.ask(a, "423[\"rooms\"]")[0].contains("[\"r\"]"));
    assert!(mesh.ask(a, "424[\"publish\",\"r\",\"disconnect\"]")[0].contains("\"ok\":false"));
    assert_eq!(mesh.stats(|s| s.publishes_total), 0);
    assert!(mesh.ask(a, "425[\"publish\",\"r\",\"e\"]")[0].contains("\"pos\""));
    assert_eq!(mesh.ask(a, "426[\"leave\",\"r\"]"), ["436[{\"ok\":true}]"]);
    assert!(mesh.ask(a, "427[\"publish\",\"r\",\"e\"]")[0].contains("\"code\":\"not_member\""));
}

#[test]
fn a_publisher_sees_its_own_event_before_the_ack() {
    let mut mesh = Mesh::new(3, 2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.plain((1, 1), "bob"));
    mesh.say(a, "421[\"join\",\"r\"]");
    mesh.say(b, "{\"type\":\"join\",\"id\":1,\"room\":\"r\"}");
    mesh.take(a);
    mesh.take(b);
    let got = mesh.ask(a, "422[\"publish\",\"r\",{\"event\":\"e\",\"self\":true,\"id\":\"x\"},1]");
    assert_eq!(got[0], "42[\"e\",1]");
    assert!(got[1].starts_with("432[{\"ok\":true,\"pos\""), "{got:?}");
    assert!(mesh.take(b)[0].contains("\"event\":\"e\",\"args\":[1]"));
    let again = mesh.ask(a, "423[\"publish\",\"r\",{\"event\":\"e\",\"self\":true,\"id\":\"x\"},1]");
    assert!(again.len() == 1 && again[0].starts_with("433[{\"ok\":true"), "{again:?}");
    assert!(mesh.take(b).is_empty());
}

#[test]
fn members_of_an_excepted_room_are_left_out() {
    let mut mesh = Mesh::new(2, 1);
    let [a, b, c] = [(0, "a"), (0, "b"), (1, "c")].map(|(n, uid)| mesh.client((n, 0), uid));
    for client in [a, b, c] {
        mesh.say(client, "42[\"join\",\"r\"]");
    }
    mesh.say(c, "42[\"join\",\"out\"]");
    mesh.say(a, "42[\"publish\",\"r\",{\"event\":\"e\",\"except\":[\"out\"]}]");
    assert_eq!(mesh.take(b), ["42[\"e\"]"]);
    assert!(mesh.take(c).is_empty() && mesh.take(a).is_empty());
}

#[test]
fn all_members_see_one_order() {
    let mut mesh = Mesh::new(3, 2);
    let clients: Vec<Client> =
        (0..6).map(|i| mesh.client((i % 3, u16::try_from(i / 3).unwrap()), &format!("u{i}"))).collect();
    for client in &clients {
        mesh.say(*client, "42[\"join\",\"r\"]");
    }
    for round in 0..20 {
        for (i, client) in clients.iter().enumerate() {
            mesh.send(
                *client,
                &format!("42[\"publish\",\"r\",{{\"event\":\"e\",\"self\":true}},{i},{round}]"),
            );
        }
    }
    mesh.settle();
    let first = mesh.take(clients[0]);
    assert_eq!(events(&first).len(), 120);
    assert!(clients[1..].iter().all(|client| mesh.take(*client) == first));
}

#[test]
fn the_seventeenth_session_of_a_user_ends_the_oldest() {
    let mut mesh = Mesh::new(3, 1);
    let clients: Vec<Client> = (0..17).map(|i| mesh.client((i % 3, 0), "alice")).collect();
    assert_eq!(mesh.take(clients[0]), ["41"]);
    assert_eq!(mesh.closed(clients[0]), Some(CloseCode::Ended));
    assert!(clients[1..].iter().all(|client| mesh.closed(*client).is_none()));
    assert_eq!(mesh.stats(|s| s.sessions), 16);
}

/// Two members of a room at one edge, the second of which does not drain.
fn with_slow_member(limits: Limits) -> (Mesh, Client, Client) {
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let (fast, slow) = (mesh.client((0, 0), "fast"), mesh.client((0, 0), "slow"));
    mesh.say(fast, "42[\"join\",\"r\"]");
    mesh.say(slow, "42[\"join\",\"r\"]");
    mesh.left_over(slow, 40_000);
    (mesh, fast, slow)
}

fn publish_big(mesh: &mut Mesh, client: Client, number: usize) {
    let filler = "x".repeat(20_000);
    mesh.say(
        client,
        &format!("42[\"publish\",\"r\",{{\"event\":\"e\",\"self\":true}},{number},\"{filler}\"]"),
    );
}

#[test]
fn a_client_that_does_not_drain_falls_behind_and_catches_up_in_order() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    for number in 0..8 {
        publish_big(&mut mesh, fast, number);
    }
    assert_eq!(events(&mesh.take(fast)).len(), 8);
    let mut got = mesh.take(slow);
    assert!(got.len() < 8 && mesh.stats(|s| s.behind_total) > 0);
    mesh.left_over(slow, 0);
    got.extend(mesh.take(slow));
    let numbers: Vec<&str> = events(&got).iter().map(|text| &text["42[\"e\",".len()..][..1]).collect();
    assert_eq!(numbers.concat(), "01234567");
    assert_eq!(mesh.closed(slow), None);
}

#[test]
fn a_client_that_the_tail_has_left_is_closed_and_nobody_else() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    for number in 0..30 {
        publish_big(&mut mesh, fast, number);
    }
    mesh.left_over(slow, 0);
    assert_eq!(mesh.closed(slow), Some(CloseCode::TooSlow));
    assert_eq!(mesh.closed(fast), None);
}

#[test]
fn a_client_for_whom_nothing_drains_is_closed() {
    let (mut mesh, _, slow) = with_slow_member(Limits::default());
    mesh.wait(second() * 21);
    assert_eq!(mesh.closed(slow), Some(CloseCode::TooSlow));
}

#[test]
fn tails_over_their_common_bound_drop_the_oldest_of_all() {
    let limits = Limits { tails_bytes_max: 50_000, ..Limits::default() };
    let (mut mesh, fast, _) = with_slow_member(limits);
    for number in 0..9 {
        publish_big(&mut mesh, fast, number);
    }
    let tails = mesh.shards[&(0, 0)].stats().tail_bytes;
    assert!((20_000..=50_000).contains(&tails), "{tails}");
}

#[test]
fn a_client_that_is_behind_can_leave_its_namespace() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    (0..3).for_each(|number| publish_big(&mut mesh, fast, number));
    assert!(mesh.stats(|s| s.behind_total) > 0);
    mesh.say(slow, "41");
    mesh.left_over(slow, 0);
    mesh.take(slow);
    mesh.say(slow, "40");
    assert!(mesh.take(slow)[0].starts_with("40{"));
}

#[test]
fn a_client_that_is_behind_can_be_disconnected_by_a_backend() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    (0..3).for_each(|number| publish_big(&mut mesh, fast, number));
    let done = mesh.query(1, user("slow", Command::Disconnect { close: false }));
    assert_eq!(done, Ok(Answer::Done { sessions: 1 }));
    assert_eq!(
        mesh.query(1, user("slow", Command::Disconnect { close: false })),
        Ok(Answer::Done { sessions: 0 })
    );
    mesh.left_over(slow, 0);
    assert!(mesh.take(slow).contains(&"41".to_owned()));
}

#[test]
fn what_is_owed_to_one_client_is_not_forgotten_when_its_queue_fills_within_a_turn() {
    let mut mesh = Mesh::new(1, 1);
    let a = mesh.client((0, 0), "alice");
    let filler = "x".repeat(30_000);
    for number in 0..4 {
        mesh.shards
            .get_mut(&(0, 0))
            .unwrap()
            .handle(mesh.now, Input::Query(number, emit("alice", format!("[\"e\",{number},\"{filler}\"]"))));
    }
    // The driver writes all of it at once and so has nothing left over to report.
    mesh.drain((0, 0));
    mesh.settle();
    let reached = mesh.answers.values().filter(|a| **a == Ok(Answer::Done { sessions: 1 })).count();
    assert!(reached >= 3, "{:?}", mesh.answers);
    assert_eq!(mesh.take(a).len(), reached);
}

#[test]
fn too_much_unconfirmed_pauses_reading_until_the_owner_answers() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    let a = mesh.client((0, 0), &uid);
    mesh.cut = Some((0, 1));
    for _ in 0..256 {
        mesh.say(a, "42[\"rooms\"]");
    }
    assert!(mesh.is_paused(a));
    mesh.heal();
    assert!(!mesh.is_paused(a));
}

#[test]
fn a_client_whose_session_ends_while_it_waits_is_read_from_again() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    let a = mesh.client((0, 0), &uid);
    mesh.cut = Some((0, 1));
    for _ in 0..256 {
        mesh.say(a, "42[\"rooms\"]");
    }
    mesh.say(a, "41");
    assert!(!mesh.is_paused(a));
}

#[test]
fn a_client_that_sends_too_fast_is_read_more_slowly() {
    let mut mesh = Mesh::new(1, 1);
    let a = mesh.client((0, 0), "alice");
    for _ in 0..1_001 {
        mesh.say(a, "42[\"rooms\"]");
    }
    assert!(mesh.is_paused(a));
    mesh.wait(second());
    assert!(!mesh.is_paused(a) && mesh.closed(a).is_none());
}

#[test]
fn a_client_that_asks_on_and_takes_no_answers_is_closed() {
    let mut mesh = Mesh::new(1, 1);
    let plain = mesh.plain((0, 0), "bob");
    mesh.left_over(plain, 60_000);
    for _ in 0..1_000 {
        if mesh.closed(plain).is_none() {
            mesh.say(plain, "{\"type\":\"ping\"}");
        }
    }
    assert_eq!(mesh.closed(plain), Some(CloseCode::TooSlow));
}

#[test]
fn a_room_goes_on_when_its_owner_dies() {
    let mut mesh = Mesh::new(3, 2);
    let room = mesh.room_at(2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 1), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    for number in 0..5 {
        mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",{number}]"));
    }
    // Published into the dead node, and again to the new owner.
    mesh.alive[2] = false;
    mesh.say(a, &format!("429[\"publish\",\"{room}\",\"e\",5]"));
    assert!(mesh.take(a).is_empty());
    mesh.views();
    mesh.wait(second());
    let got = mesh.take(b);
    assert_eq!(events(&got).len(), 6, "{got:?}");
    assert!(mesh.take(a)[0].starts_with("439[{\"ok\":true"));
    mesh.say(b, &format!("42[\"publish\",\"{room}\",\"f\"]"));
    assert_eq!(mesh.take(a), ["42[\"f\"]"]);
}

#[test]
fn what_a_new_owner_took_before_the_edges_asked_reaches_them() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    // A busy old owner has high terms.
    for i in 0..40 {
        mesh.query(2, api_publish(&format!("other{i}"), "[\"e\"]", None)).unwrap();
    }
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",0]"));
    mesh.alive[2] = false;
    let new_owner = mesh.owner_of_room(&room);
    mesh.view_at(new_owner);
    mesh.query(new_owner, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.views();
    let got = mesh.take(b);
    assert_eq!(events(&got), ["42[\"e\",0]", "42[\"e\",1]"]);
    assert_eq!(events(&mesh.take(a)), ["42[\"e\",1]"]);
}

#[test]
fn a_session_goes_on_when_its_owner_dies() {
    let mut mesh = Mesh::new(3, 2);
    let uid = mesh.user_at(2);
    let (a, room) = (mesh.client((0, 0), &uid), mesh.room_at(1));
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(a);
    mesh.alive[2] = false;
    for number in 0..5 {
        mesh.say(
            a,
            &format!("42{number}[\"publish\",\"{room}\",{{\"event\":\"e\",\"self\":true}},{number}]"),
        );
    }
    assert!(mesh.take(a).is_empty());
    mesh.views();
    mesh.wait(second());
    let got = mesh.take(a);
    assert_eq!(events(&got).len(), 5, "{got:?}");
    assert_eq!(got.iter().filter(|text| text.starts_with("43")).count(), 5);
    assert!(mesh.ask(a, "428[\"rooms\"]")[0].contains(&room));
    assert_eq!(mesh.closed(a), None);
}

#[test]
fn a_bounce_is_asked_again_until_the_views_agree() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    let a = mesh.client((0, 0), "alice");
    mesh.alive[2] = false;
    mesh.view_at(0);
    if mesh.owner_of_room(&room) == 0 {
        mesh.view_at(1);
    }
    mesh.settle();
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.view_at(1);
    mesh.wait(second());
    assert_eq!(mesh.take(a), ["431[{\"ok\":true}]"]);
}

#[test]
fn what_a_link_lost_is_repeated_and_done_once() {
    let mut mesh = Mesh::new(2, 2);
    let uid = mesh.user_at(1);
    let room = mesh.room_at(1);
    for cut in [(0, 1), (1, 0)] {
        let a = mesh.client((0, 1), &uid);
        mesh.say(a, &format!("420[\"join\",\"{room}\"]"));
        mesh.take(a);
        mesh.cut = Some(cut);
        for number in 1..4 {
            mesh.say(
                a,
                &format!("42{number}[\"publish\",\"{room}\",{{\"event\":\"e\",\"self\":true}},{number}]"),
            );
        }
        mesh.reset();
        mesh.wait(second());
        let got = mesh.take(a);
        assert_eq!(events(&got), ["42[\"e\",1]", "42[\"e\",2]", "42[\"e\",3]"], "{cut:?}");
        assert_eq!(got.iter().filter(|text| text.starts_with("43")).count(), 3, "{got:?}");
        mesh.gone(a);
    }
}

#[test]
fn a_subscribers_window_opens_again_whatever_the_size_of_entries() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    mesh.take(b);
    for size in [100, 5_000, 300_000, 10, 70_000, 400_000, 1] {
        for _ in 0..8 {
            mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",\"{}\"]", "x".repeat(size)));
            mesh.left_over(b, 0);
        }
        let got = mesh.take(b);
        assert_eq!(events(&got).len(), 8, "entries of {size} bytes");
    }
}

#[test]
fn backends_publish_ask_and_command() {
    let mut mesh = Mesh::new(3, 2);
    let a = mesh.client((0, 0), "alice");
    assert_eq!(mesh.query(1, user("alice", Command::Join("r".into()))), Ok(Answer::Done { sessions: 1 }));
    let first = mesh.query(1, api_publish("r", "[\"e\",1]", Some("k")));
    assert!(matches!(first, Ok(Answer::Published { duplicate: false, .. })));
    let again = mesh.query(2, api_publish("r", "[\"e\",1]", Some("k")));
    assert!(matches!(again, Ok(Answer::Published { duplicate: true, .. })));
    assert_eq!(mesh.take(a), ["42[\"e\",1]"]);
    let Ok(Answer::Members(members)) = mesh.query(2, Query::Members { room: room_key("r"), list: true })
    else {
        panic!("no members");
    };
    assert_eq!((members.sessions, members.listed.len(), members.silent.len()), (1, 1, 0));
    let Ok(Answer::History(history)) = mesh.query(0, Query::History { room: room_key("r"), count: 9 }) else {
        panic!("no history");
    };
    assert_eq!(history.len(), 1);
    let sid = members.listed[0].sid;
    let command = Command::Emit {
        payload: Payload::json("[\"m\"]"),
        except_rooms: vec![],
        except_sids: vec![],
        dedupe: None,
    };
    let to_sid = Query::Session { product: "chat".into(), sid, command };
    assert_eq!(mesh.query(2, to_sid), Ok(Answer::Done { sessions: 1 }));
    assert_eq!(mesh.take(a), ["42[\"m\"]"]);
    let Ok(Answer::User(facts)) =
        mesh.query(1, Query::ExplainUser { product: "chat".into(), uid: "alice".into() })
    else {
        panic!("no facts");
    };
    assert_eq!(facts[0].rooms, 1);
    assert!(matches!(mesh.query(1, Query::ExplainRoom(room_key("r"))), Ok(Answer::Room(_))));
    assert_eq!(mesh.query(1, Query::ExplainRoom(room_key("no"))), Err(CommandFailed::NotFound));
}

#[test]
fn a_call_without_an_answer_ends_in_time() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    mesh.cut = Some((0, 1));
    mesh.begin_query(0, 7, user(&uid, Command::Join("r".into())));
    mesh.wait(second() * 6);
    assert_eq!(mesh.answers[&7], Err(CommandFailed::Timeout));
}

#[test]
fn publishes_of_a_backend_keep_their_order_through_a_bounce() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    mesh.alive[2] = false;
    let owner = mesh.owner_of_room(&room);
    let asker = 1 - owner;
    mesh.view_at(asker);
    // The new owner does not know yet: the first bounces; then it does, and the second arrives.
    mesh.begin_query(asker, 11, api_publish(&room, "[\"e\",1]", None));
    let (to, envelope) = mesh.queue.pop_front().unwrap();
    mesh.deliver(to, envelope);
    mesh.view_at(owner);
    mesh.begin_query(asker, 12, api_publish(&room, "[\"e\",2]", None));
    mesh.wait(second());
    assert_eq!(mesh.answers.len(), 2);
    assert!(mesh.answers.values().all(|a| matches!(a, Ok(Answer::Published { duplicate: false, .. }))));
    let history = mesh.query(asker, Query::History { room: room_key(&room), count: 9 });
    let Ok(Answer::History(history)) = history else { panic!("{history:?}") };
    let texts: Vec<&[u8]> = history.iter().map(|(_, payload)| &payload.json[..]).collect();
    assert_eq!(texts, [b"[\"e\",1]", b"[\"e\",2]"]);
}

#[test]
fn clients_are_closed_at_the_pace_asked_for() {
    let mut mesh = Mesh::new(1, 1);
    let clients: Vec<Client> = (0..5).map(|i| mesh.client((0, 0), &format!("u{i}"))).collect();
    let closed =
        |mesh: &Mesh| clients.iter().filter(|c| mesh.closed(**c) == Some(CloseCode::Restart)).count();
    for expected in [2, 4, 5] {
        mesh.input((0, 0), Input::CloseClients(2));
        assert_eq!(closed(&mesh), expected);
    }
}

#[test]
fn clients_of_a_reborn_node_go_on() {
    let mut mesh = Mesh::new(3, 2);
    let clients: Vec<Client> = (0..6).map(|i| mesh.client((i % 3, 0), &format!("u{i}"))).collect();
    for client in &clients {
        mesh.say(*client, "42[\"join\",\"r\"]");
    }
    mesh.nodes[1].incarnation = 2;
    mesh.views();
    mesh.wait(second());
    mesh.say(clients[1], "429[\"publish\",\"r\",{\"event\":\"e\",\"self\":true}]");
    mesh.wait(second());
    for client in &clients {
        let got = mesh.take(*client);
        assert_eq!(events(&got), ["42[\"e\"]"], "{client:?} {got:?}");
        assert_eq!(mesh.closed(*client), None);
    }
}

#[test]
fn old_marks_of_a_busy_room_do_not_trim_what_is_young() {
    let limits = Limits { room_log_entries_max: 10, ..Limits::default() };
    let mut mesh = Mesh::with(1, 1, limits, ProductRules::open("chat"));
    for _ in 0..30 {
        mesh.query(0, api_publish("r", "[\"old\"]", None)).unwrap();
    }
    mesh.wait(second() * 60);
    for _ in 0..10 {
        mesh.query(0, api_publish("r", "[\"young\"]", None)).unwrap();
    }
    mesh.wait(second() * 62);
    let history = mesh.query(0, Query::History { room: room_key("r"), count: 99 });
    assert!(matches!(history, Ok(Answer::History(entries)) if entries.len() == 10));
}

#[test]
fn words_of_a_peer_that_cannot_be_are_ignored() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(0);
    let from = Address { node: mesh.nodes[1], shard: ShardIx(0) };
    let odd = Address { node: mesh.nodes[1], shard: ShardIx(700) };
    let room = room_key(&mesh.room_at(0));
    let ids = IdKey::new(&ClusterKey::new([7; 32]));
    let identity = SessionIdentity {
        sid: ids.seal_sid(Placement::of_user("chat", &uid), 1),
        pid: ids.seal_pid(Placement::of_user("chat", &uid), 1, [0; 16]),
        product: "chat".into(),
        uid: uid.as_str().into(),
        namespace: "/".into(),
    };
    let shadow = |inbound_confirmed| Shadow {
        term: crate::id::Term::NONE,
        inbound_confirmed,
        own_seq: 0,
        rooms: Vec::new(),
    };
    let attach = |edge, inbound| {
        let edge = EdgeRef { attachment: 1, edge, client: ClientIx(0) };
        Body::ToSession(ToSession::Attach { identity: identity.clone(), edge, shadow: shadow(inbound) })
    };
    let subscription = Subscription {
        room: room.clone(),
        after: crate::id::Cursor::NONE,
        at_head: true,
        term: crate::id::Term::NONE,
    };
    let cursor = crate::id::Cursor { term: crate::id::Term::NONE, seq: u64::MAX };
    for (from, body) in [
        (odd, Body::ToRoom(ToRoom::Subscribe(vec![subscription.clone()]))),
        (from, attach(odd, 0)),
        (from, attach(from, u64::MAX)),
        (from, Body::ToRoom(ToRoom::Subscribe(vec![subscription]))),
        (from, Body::ToRoom(ToRoom::Taken { room: room.clone(), cursor })),
    ] {
        mesh.input((0, 0), Input::Envelope(Envelope { from, to: To::Shard(ShardIx(0)), body }));
    }
    mesh.query(0, api_publish(room.room(), "[\"e\"]", None)).unwrap();
    assert_eq!(mesh.stats(|s| s.sessions), 0);
}
