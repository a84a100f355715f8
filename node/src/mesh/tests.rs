//! Links between nodes of one process on loopback, with views made by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{Address, NodeId, NodeRef, Placement, RoomKey, ShardIx};
use mesh_proto::keys::ClusterKey;
use mesh_proto::link::LinkLimits;
use mesh_proto::membership::MembershipConfig;
use mesh_proto::view::{NodeInfo, NodeRecord, NodeState, View};
use mesh_proto::wire::{
    self, Answer, Body, CommandFailed, Envelope, Lane, NodeStatus, ProtocolRange, Query, To,
};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::endpoint::{self, EndpointConfig};
use super::links::{Links, LinksConfig};
use super::tls::Tls;
use super::{Mesh, MeshConfig, NodeStatusSource};
use crate::clock::Clock;
use crate::handles::{ShardHandle, Shards, ToShard};
use crate::tasks::Tasks;

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What tells test nodes apart.
struct Spec {
    name: &'static str,
    incarnation: u64,
    key: u8,
    cluster_id: u64,
    protocol: ProtocolRange,
    listen: std::net::SocketAddr,
    shard_queue_len: usize,
}

impl Spec {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            incarnation: 1,
            key: 7,
            cluster_id: 1,
            protocol: ProtocolRange::OURS,
            listen: "127.0.0.1:0".parse().unwrap(),
            shard_queue_len: 64,
        }
    }
}

/// Links without a membership: the test shows them their views.
struct Node {
    me: NodeInfo,
    links: Links,
    views: watch::Sender<Arc<View>>,
    shards: Vec<mpsc::Receiver<ToShard>>,
    endpoint: quinn::Endpoint,
}

const SHARDS: u16 = 2;

impl Node {
    fn start(spec: Spec) -> Self {
        let socket = endpoint::bind(spec.listen).unwrap();
        let mesh_addr = socket.local_addr().unwrap();
        let key = ClusterKey::new([spec.key; 32]);
        let tls = Tls::new(&key, spec.name).unwrap();
        let config = EndpointConfig::new(spec.listen);
        let (endpoint, _) = endpoint::quic(socket, &config, &key, &tls, Box::new(|_, _| true)).unwrap();
        let node = NodeRef { id: NodeId::of_name(spec.name), incarnation: spec.incarnation };
        let me = info(node, spec.name, mesh_addr);
        let (views, view) = watch::channel(Arc::new(View::new(1, node, vec![me.clone()], 8)));
        let (handles, shards) = (0..SHARDS)
            .map(|shard| {
                let (tx, rx) = mpsc::channel(spec.shard_queue_len);
                (ShardHandle { shard: ShardIx(shard), tx }, rx)
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        let config = LinksConfig {
            endpoint: endpoint.clone(),
            name: spec.name.into(),
            cluster_id: spec.cluster_id,
            protocol: spec.protocol,
            limits: LinkLimits::default(),
            shards: Shards(handles.into()),
            status: Arc::new(|_| {
                Box::pin(async {
                    Ok(Answer::NodeStatus(NodeStatus { clients: 42, ..NodeStatus::default() }))
                })
            }),
            tunnels: Arc::default(),
            clock: Clock::start(),
            tasks: Tasks::new(),
        };
        let links = Links::start(config, view);
        Self { me, links, views, shards, endpoint }
    }

    fn see(&self, version: u64, nodes: &[&NodeInfo]) {
        let nodes = nodes.iter().map(|info| (*info).clone()).collect();
        self.views.send_replace(Arc::new(View::new(version, self.me.node, nodes, 8)));
    }

    /// Waits until the links of the newest view exist.
    async fn knows(&mut self, peer: NodeRef) {
        timeout(PATIENCE, self.links.peers.wait_for(|peers| peers.find(peer).is_some()))
            .await
            .unwrap()
            .unwrap();
    }

    fn send(&self, to: NodeRef, placement: Placement, number: u64) {
        let call = number;
        let body = Body::Answer { call, answer: Err(CommandFailed::Timeout) };
        self.send_body(to, To::Host(placement), Lane::of(placement), body);
    }

    fn send_body(&self, to: NodeRef, dest: To, lane: Lane, body: Body) {
        let from = Address { node: self.me.node, shard: ShardIx(0) };
        let envelope = wire::encode(&Envelope { from, to: dest, body });
        self.links.peers.borrow().try_send(to, lane, envelope).unwrap();
    }

    /// The connection under a link.
    fn connection(&self, peer: NodeRef) -> Option<quinn::Connection> {
        let peers = self.links.peers.borrow();
        let mut connection = None;
        peers.find(peer)?.shared.report(|report| connection = report.connection.clone());
        connection.map(|(_, connection)| connection)
    }

    /// The next message to a shard.
    async fn told(&mut self, shard: usize) -> ToShard {
        timeout(PATIENCE, self.shards[shard].recv()).await.expect("a message in time").unwrap()
    }

    async fn link_connected(&self, peer: NodeRef) {
        let facts = || self.links.peers.borrow().facts();
        until(|| facts().iter().any(|link| link.peer == peer && link.connected_for.is_some())).await;
    }
}

/// Waits for a state that nobody announces.
async fn until(state: impl Fn() -> bool) {
    let reached = async {
        while !state() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the state in time");
}

fn info(node: NodeRef, name: &str, mesh_addr: std::net::SocketAddr) -> NodeInfo {
    let record = NodeRecord {
        node,
        version: 1,
        name: name.into(),
        state: NodeState::Active,
        client_addr: String::new(),
        admin_addr: String::new(),
        api_addr: String::new(),
        shards: SHARDS,
        software: String::new(),
    };
    NodeInfo { node, mesh_addr, zone: 0, weight: 1, suspect: false, record: Some(record.into()) }
}

async fn meet(nodes: &mut [&mut Node]) {
    let infos: Vec<NodeInfo> = nodes.iter().map(|node| node.me.clone()).collect();
    for node in nodes.iter_mut() {
        node.see(2, &infos.iter().collect::<Vec<_>>());
    }
    for node in nodes.iter_mut() {
        let me = node.me.node;
        for peer in infos.iter().filter(|info| info.node != me) {
            node.knows(peer.node).await;
        }
    }
}

fn number(envelope: &Envelope) -> u64 {
    match envelope.body {
        Body::Answer { call, .. } => call,
        _ => panic!("{envelope:?}"),
    }
}

#[tokio::test]
async fn three_nodes_exchange_envelopes_in_order_under_load() {
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| Node::start(Spec::new(name)));
    meet(&mut [&mut a, &mut b, &mut c]).await;
    let placements: Vec<Placement> = (0..16).map(|i| Placement::of_user("p", &i.to_string())).collect();
    let count = 20_000_u64;
    // Everybody writes to everybody, in bursts that exceed the shards' queues.
    for number in 0..count {
        let placement = placements[number as usize % placements.len()];
        for (from, to) in [(&a, &b), (&a, &c), (&b, &a), (&b, &c), (&c, &a), (&c, &b)] {
            from.send(to.me.node, placement, number);
        }
        if number % 512 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for node in [&mut a, &mut b, &mut c] {
        let mut last: BTreeMap<(NodeRef, Placement), u64> = BTreeMap::new();
        let mut seen = 0;
        while seen < 2 * count {
            let shards = &mut node.shards;
            let (first, second) = shards.split_at_mut(1);
            let told = timeout(PATIENCE, async {
                tokio::select! { m = first[0].recv() => m, m = second[0].recv() => m }
            });
            let Some(ToShard::Envelopes(envelopes)) = told.await.expect("all arrive") else {
                panic!("a reset")
            };
            for envelope in envelopes {
                let To::Host(placement) = envelope.to else { panic!("{envelope:?}") };
                let number = number(&envelope);
                let before = last.insert((envelope.from.node, placement), number);
                assert_eq!(before.map_or(number % 16, |before| before + 16), number, "in order, no hole");
                seen += 1;
            }
        }
    }
}

#[tokio::test]
async fn one_envelope_for_several_shards_crosses_once() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec::new(name)));
    meet(&mut [&mut a, &mut b]).await;
    let body = Body::Answer { call: 5, answer: Err(CommandFailed::Timeout) };
    a.send_body(b.me.node, To::Shards(0b11), Lane(0), body);
    for shard in 0..2 {
        let ToShard::Envelopes(envelopes) = b.told(shard).await else { panic!() };
        assert_eq!(number(&envelopes[0]), 5);
    }
    assert_eq!(b.links.peers.borrow().facts()[0].stats.received_total, 1);
}

#[tokio::test]
async fn a_node_answers_for_its_status() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec::new(name)));
    meet(&mut [&mut a, &mut b]).await;
    for node in [a.me.node, b.me.node] {
        let answer = timeout(PATIENCE, a.links.calls.ask(node, Query::NodeStatus)).await.unwrap();
        assert!(matches!(answer, Ok(Answer::NodeStatus(NodeStatus { clients: 42, .. }))));
    }
    let refused = a.links.calls.ask(b.me.node, Query::History { room: room("r"), count: 1 }).await;
    assert!(matches!(refused, Err(CommandFailed::Refused(_))));
    let nobody = NodeRef { id: NodeId(1), incarnation: 1 };
    assert_eq!(a.links.calls.ask(nobody, Query::NodeStatus).await, Err(CommandFailed::NotFound));
}

fn room(name: &str) -> RoomKey {
    RoomKey::new(&"p".into(), &"/".into(), name)
}

#[tokio::test]
async fn a_lost_connection_loses_and_doubles_nothing() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec::new(name)));
    meet(&mut [&mut a, &mut b]).await;
    a.link_connected(b.me.node).await;
    let placement = Placement::of_user("p", "alice");
    let shard = usize::from(placement.shard(SHARDS).0);
    let (mut sent, mut got) = (0, 0);
    for round in 0..5 {
        for _ in 0..2_000 {
            a.send(b.me.node, placement, sent);
            sent += 1;
        }
        if round % 2 == 0 {
            // As from the network: neither end expects it.
            tokio::task::yield_now().await;
            if let Some(connection) = a.connection(b.me.node) {
                connection.close(99_u32.into(), b"cut");
            }
        }
        while got < sent {
            let ToShard::Envelopes(envelopes) = b.told(shard).await else { panic!("a reset") };
            for envelope in envelopes {
                assert_eq!(number(&envelope), got);
                got += 1;
            }
        }
    }
    assert!(a.links.peers.borrow().facts()[0].connections_total > 1);
}

#[tokio::test]
async fn a_full_shard_slows_the_peer_and_nothing_is_lost() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec { shard_queue_len: 1, ..Spec::new(name) }));
    meet(&mut [&mut a, &mut b]).await;
    let placement = Placement::of_user("p", "alice");
    let shard = usize::from(placement.shard(SHARDS).0);
    let long = "x".repeat(20_000);
    for call in 0..500 {
        // 10 MB, more than the flow control windows.
        let query = Query::Members { room: room(&long), list: false };
        a.send_body(b.me.node, To::Host(placement), Lane(0), Body::Query { call, query });
        tokio::task::yield_now().await;
    }
    // Status passes although the shard takes nothing.
    let status = timeout(PATIENCE, a.links.calls.ask(b.me.node, Query::NodeStatus)).await.unwrap();
    assert!(status.is_ok(), "{status:?}");
    let mut next = 0;
    while next < 500 {
        let ToShard::Envelopes(envelopes) = b.told(shard).await else { panic!("a reset") };
        for envelope in envelopes {
            let Body::Query { call, .. } = envelope.body else { panic!() };
            assert_eq!(call, next);
            next += 1;
        }
    }
}

/// A node whose threads vanish without a word when it is dropped, as by kill -9.
fn start_killable(spec: Spec) -> (Node, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let inside = runtime.enter();
    let node = Node::start(spec);
    drop(inside);
    (node, runtime)
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_by_its_resets_and_gets_a_new_link() {
    let mut a = Node::start(Spec::new("a"));
    let (mut b, runtime) = start_killable(Spec::new("b"));
    meet(&mut [&mut a, &mut b]).await;
    a.link_connected(b.me.node).await;
    b.link_connected(a.me.node).await;
    let connection = a.connection(b.me.node).unwrap();
    let (old, listen) = (b.me.node, b.me.mesh_addr);
    runtime.shutdown_background();
    drop(b);
    until(|| endpoint::bind(listen).is_ok()).await;
    let mut b = Node::start(Spec { incarnation: 2, listen, ..Spec::new("b") });
    // Nobody has told a, whose next packet for the former life is answered with a reset.
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert_eq!(reason, quinn::ConnectionError::Reset);

    a.see(3, &[&a.me, &b.me]);
    b.see(3, &[&a.me, &b.me]);
    a.knows(b.me.node).await;
    let placement = Placement::of_user("p", "alice");
    a.send(b.me.node, placement, 1);
    let ToShard::Envelopes(envelopes) = b.told(usize::from(placement.shard(SHARDS).0)).await else {
        panic!()
    };
    assert_eq!(number(&envelopes[0]), 1);
    assert!(a.links.peers.borrow().find(old).is_none());
}

/// What the dialling and the accepting side say when they do not talk.
async fn refusal(other: Spec) -> (String, String) {
    use super::hello::{Local, greet_accepting, greet_dialling};
    let bare = |spec: &Spec| {
        let socket = endpoint::bind(spec.listen).unwrap();
        let key = ClusterKey::new([spec.key; 32]);
        let tls = Tls::new(&key, spec.name).unwrap();
        let config = EndpointConfig::new(spec.listen);
        let endpoint = endpoint::quic(socket, &config, &key, &tls, Box::new(|_, _| true)).unwrap().0;
        let node = NodeRef { id: NodeId::of_name(spec.name), incarnation: spec.incarnation };
        let me = info(node, spec.name, endpoint.local_addr().unwrap());
        let (_, view) = watch::channel(Arc::new(View::new(1, node, vec![me], 8)));
        let local =
            Local { name: spec.name.into(), cluster_id: spec.cluster_id, protocol: spec.protocol, view };
        (endpoint, local, node)
    };
    let (accepting, local, node) = bare(&Spec::new("a"));
    let (dialling, other_local, _) = bare(&other);
    let addr = accepting.local_addr().unwrap();
    let accepted = async {
        let connection = accepting.accept().await.unwrap().await?;
        greet_accepting(connection, &local).await
    };
    let dialled = async {
        let connection = dialling.connect(addr, super::tls::SERVER_NAME)?.await?;
        greet_dialling(connection, &other_local, node).await
    };
    let (dialled, accepted) = timeout(PATIENCE, async { tokio::join!(dialled, accepted) }).await.unwrap();
    (dialled.unwrap_err().to_string(), accepted.unwrap_err().to_string())
}

#[tokio::test]
async fn another_cluster_is_refused_and_both_sides_know_why() {
    let (dialled, accepted) = refusal(Spec { cluster_id: 2, ..Spec::new("b") }).await;
    assert!(dialled.starts_with("refused: another cluster id"), "{dialled}");
    assert!(accepted.starts_with("refused by the peer: another cluster id"), "{accepted}");
}

#[tokio::test]
async fn a_protocol_without_overlap_is_refused_and_both_sides_know_why() {
    let newer = ProtocolRange { min: 90, max: 91 };
    let (dialled, accepted) = refusal(Spec { protocol: newer, ..Spec::new("b") }).await;
    assert_eq!(dialled, "refused: no common protocol: we speak 90..=91, they speak 1..=1");
    assert!(accepted.starts_with("refused by the peer: no common protocol"), "{accepted}");
}

#[tokio::test]
async fn another_key_is_refused_by_both_sides() {
    let (dialled, accepted) = refusal(Spec { key: 8, ..Spec::new("b") }).await;
    assert!(dialled.contains("BadSignature"), "{dialled}");
    assert!(accepted.contains("cert") || accepted.contains("closed"), "{accepted}");
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nothing() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec::new(name)));
    meet(&mut [&mut a, &mut b]).await;
    a.link_connected(b.me.node).await;
    let noise = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 1_u64;
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..state % 1_400)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8
            })
            .collect();
        state = state.wrapping_add(0x9e37_79b9);
        let _ = noise.send_to(&bytes, b.me.mesh_addr).await;
    }
    let placement = Placement::of_user("p", "alice");
    a.send(b.me.node, placement, 1);
    let ToShard::Envelopes(envelopes) = b.told(usize::from(placement.shard(SHARDS).0)).await else {
        panic!()
    };
    assert_eq!(number(&envelopes[0]), 1);
    assert_eq!(a.links.peers.borrow().facts()[0].connections_total, 1);
}

#[tokio::test]
async fn a_hello_that_overtakes_the_view_waits_for_it() {
    let [mut a, mut b] = ["a", "b"].map(|name| Node::start(Spec::new(name)));
    if a.me.node.id > b.me.node.id {
        std::mem::swap(&mut a, &mut b);
    }
    // The dialling side knows the other one, the accepting side does not yet.
    a.see(2, &[&a.me, &b.me]);
    a.knows(b.me.node).await;
    a.send(b.me.node, Placement(0), 1);
    until(|| b.endpoint.stats().accepted_handshakes > 0).await;
    b.see(2, &[&a.me, &b.me]);
    let ToShard::Envelopes(envelopes) = b.told(0).await else { panic!() };
    assert_eq!(number(&envelopes[0]), 1);
}

/// A whole mesh, gossip included.
fn whole(name: &str, seeds: &[std::net::SocketAddr]) -> (Mesh, Vec<mpsc::Receiver<ToShard>>) {
    let listen = "127.0.0.1:0".parse().unwrap();
    let membership = MembershipConfig {
        vnodes: 16,
        ..MembershipConfig::new(name, listen, ClusterKey::new([7; 32]), rand::random())
    };
    let config = MeshConfig {
        endpoint: EndpointConfig::new(listen),
        seeds: seeds.iter().map(ToString::to_string).collect(),
        membership,
        limits: LinkLimits::default(),
    };
    let (tx, rx) = mpsc::channel(64);
    let shards = Shards(vec![ShardHandle { shard: ShardIx(0), tx }].into());
    let status: NodeStatusSource =
        Arc::new(|_| Box::pin(async { Ok(Answer::NodeStatus(NodeStatus::default())) }));
    (Mesh::start(config, shards, status).unwrap(), vec![rx])
}

async fn all_active(mesh: &Mesh, count: usize) {
    let mut view = mesh.handle().view();
    let active = view.wait_for(|view| view.ring.nodes().len() == count && view.nodes.len() == count);
    timeout(PATIENCE, active).await.expect("the nodes find each other").unwrap();
}

#[tokio::test]
async fn three_meshes_find_each_other_talk_and_part() {
    let (a, _a_shards) = whole("a", &[]);
    let seed = [a.handle().bound()];
    let (b, mut b_shards) = whole("b", &seed);
    let (c, _c_shards) = whole("c", &seed);
    for mesh in [&a, &b, &c] {
        all_active(mesh, 3).await;
    }
    let me = |mesh: &Mesh| mesh.handle().view().borrow().me;
    let envelope = Envelope {
        from: Address { node: me(&c), shard: ShardIx(0) },
        to: To::Shard(ShardIx(0)),
        body: Body::Answer { call: 9, answer: Err(CommandFailed::Timeout) },
    };
    c.handle().try_send(me(&b), Lane(0), wire::encode(&envelope)).unwrap();
    let told = timeout(PATIENCE, b_shards[0].recv()).await.unwrap().unwrap();
    let ToShard::Envelopes(envelopes) = told else { panic!("{told:?}") };
    assert_eq!(envelopes, [envelope]);

    let answer = a.handle().ask_node(me(&c), Query::NodeStatus).await;
    assert!(matches!(answer, Ok(Answer::NodeStatus(_))), "{answer:?}");
    assert!(a.handle().gossip().await.unwrap().stats.received > 0);

    assert!(c.handle().leave().await);
    c.stop(PATIENCE).await;
    all_active(&a, 2).await;
    all_active(&b, 2).await;
    b.stop(PATIENCE).await;
    a.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (a, _shards) = whole("a", &[]);
    let error = endpoint::bind(a.handle().bound()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    a.stop(PATIENCE).await;
}
