use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::id::{Address, Cursor, NodeId, NodeRef, ShardIx, SocketSid, Term};
use mesh_proto::shard::ShardStats;
use mesh_proto::view::{NodeInfo, NodeRecord, NodeState, View};
use mesh_proto::wire;
use mesh_proto::wire::{
    Began, CommandFailed, DrainCommand, DrainPhase, DrainStatus, NodeStatus, OwnershipFacts, ProblemTold,
    Query, Reloaded, RoomFacts, SessionFacts,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::answers::{Explained, Facts, RingAnswer, Status};
use super::*;
use crate::admission::AdmissionLimits;
use crate::handles::{ShardHandle, ShardReport, ToShard};
use crate::web::BearerKeys;
use crate::web::testing::{Answered, Running, run};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A node called `name`, announced as `state`.
pub(crate) fn node(name: &str, state: NodeState) -> NodeInfo {
    let node = NodeRef { id: NodeId::of_name(name), incarnation: 1 };
    let record = NodeRecord {
        node,
        version: 1,
        name: name.into(),
        state,
        client_addr: format!("{name}:4080"),
        admin_addr: format!("{name}:4082"),
        api_addr: format!("{name}:4081"),
        shards: 2,
        software: "0.1.0".into(),
    };
    NodeInfo {
        node,
        mesh_addr: ([127, 0, 0, 1], 4083).into(),
        zone: 0,
        weight: 1,
        suspect: false,
        record: Some(record.into()),
    }
}

/// The view of the first of `nodes`.
pub(super) fn view_of(nodes: &[NodeInfo]) -> View {
    View::new(1, nodes[0].node, nodes.to_vec(), 16)
}

/// Peers answer with these; nodes that are missing are silent.
struct FakeCluster {
    statuses: BTreeMap<NodeRef, NodeStatus>,
    digests: BTreeMap<NodeId, u64>,
}

impl Cluster for FakeCluster {
    fn node_status(&self, node: NodeRef) -> Answering<'_, Option<NodeStatus>> {
        Box::pin(async move {
            match self.statuses.get(&node) {
                Some(status) => Some(status.clone()),
                None => std::future::pending().await,
            }
        })
    }

    fn drain(
        &self,
        node: NodeRef,
        command: DrainCommand,
    ) -> Answering<'_, Result<DrainStatus, CommandFailed>> {
        Box::pin(async move {
            let status = self.statuses.get(&node).ok_or(CommandFailed::Timeout)?;
            match command {
                DrainCommand::Cancel => Err(CommandFailed::Refused("it does not drain".into())),
                _ => Ok(DrainStatus { phase: DrainPhase::Announce, clients: status.clients, ..status.drain }),
            }
        })
    }

    fn reload(&self, node: NodeRef) -> Answering<'_, Result<Reloaded, CommandFailed>> {
        Box::pin(async move {
            let _ = self.statuses.get(&node).ok_or(CommandFailed::Timeout)?;
            let problems = vec![format!("{:?}", node.id)];
            Ok(Reloaded { problems, ..Reloaded::default() })
        })
    }

    fn facts(&self) -> Answering<'_, Option<MeshFacts>> {
        Box::pin(async { Some(MeshFacts { digests: self.digests.clone(), ..MeshFacts::default() }) })
    }
}

fn shard(shard: u16, answers: bool) -> ShardHandle {
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(input) = rx.recv().await {
            match input {
                ToShard::Stats(reply) if answers => {
                    let machine = ShardStats {
                        clients: 5,
                        sessions: 4,
                        rooms: 3,
                        to_hand_over: 3,
                        ..ShardStats::default()
                    };
                    let _ = reply.send(ShardReport { machine, ..ShardReport::default() });
                }
                ToShard::Query(query, reply) if answers => drop(reply.send(explained(&query))),
                other => kept.push(other),
            }
        }
    });
    ShardHandle { shard: ShardIx(shard), tx }
}

fn explained(query: &Query) -> Result<wire::Answer, CommandFailed> {
    let a = NodeRef { id: NodeId::of_name("a"), incarnation: 1 };
    let edge = Address { node: a, shard: ShardIx(1) };
    let term = Term { number: 3, owner: a };
    match query {
        Query::ExplainUser { uid, .. } if &**uid == "alice" => Ok(wire::Answer::User(vec![SessionFacts {
            sid: SocketSid([7; 16]),
            namespace: "/".into(),
            term,
            edge: Some(edge),
            rooms: 2,
            inbound: 10,
            own_seq: 4,
            ownership: OwnershipFacts {
                backup: Some(a),
                lag_ops: 2,
                began: Began::TakeOver { from: a },
                since_secs: 6,
            },
        }])),
        Query::ExplainRoom(room) if room.room() == "lobby" => Ok(wire::Answer::Room(RoomFacts {
            head: Cursor { term, seq: 9 },
            entries: 9,
            bytes: 900,
            seconds_kept: 30,
            subscribers: vec![(edge, Cursor { term, seq: 8 })],
            ownership: OwnershipFacts { backup: None, lag_ops: 0, began: Began::New, since_secs: 0 },
        })),
        Query::ExplainBinding(key) if key.expose_text() == "carol" => {
            Ok(wire::Answer::Binding(wire::BindingFacts {
                upstream: "10.0.0.1:3000".into(),
                at: Cursor { term, seq: 2 },
                ends_in_secs: Some(30),
                ownership: OwnershipFacts { backup: Some(a), lag_ops: 0, began: Began::New, since_secs: 5 },
            }))
        }
        _ => Err(CommandFailed::NotFound),
    }
}

/// Node `a` of `nodes`. `silent` does not answer; `astray` has another ring.
pub(super) fn state(nodes: &[NodeInfo], silent: &str, astray: &str, shards_answer: bool) -> AdminState {
    let view = view_of(nodes);
    let digest_of = |name: &str| if name == astray { 7 } else { view.ring.digest() };
    let status =
        |n: &NodeInfo| NodeStatus { clients: 1, ring_digest: digest_of(&n.name()), ..Default::default() };
    let cluster = FakeCluster {
        statuses: nodes.iter().filter(|n| n.name() != silent).map(|n| (n.node, status(n))).collect(),
        digests: nodes.iter().skip(1).map(|n| (n.node.id, digest_of(&n.name()))).collect(),
    };
    let admission = Admission::new(AdmissionLimits::default(), 2);
    AdminState {
        name: "a".into(),
        software: "0.1.0".into(),
        started: Instant::now(),
        shards: Shards(Arc::from([shard(0, shards_answer), shard(1, shards_answer)])),
        view: watch::channel(Arc::new(view)).1,
        cluster: Arc::new(cluster),
        board: Board::new(),
        drain: DrainControl::new(admission.clone()),
        proxies: Proxies::new([], admission.clone(), Tasks::new()),
        admission,
        connections_max: 50_000,
        fd_limit: 100_000,
        limits: Limits::default(),
        settings: ReloadControl::new(crate::config::Config::default().shown()).0,
        sources: vec![Arc::new(crate::api::Counters::default())],
    }
}

fn three() -> Vec<NodeInfo> {
    ["a", "b", "c"].map(|name| node(name, NodeState::Active)).to_vec()
}

struct Story {
    running: Running,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Story {
    /// With a watcher that has looked at least once.
    async fn new(state: AdminState, access: Access) -> Self {
        let mut snapshot = state.board.subscribe();
        let admin = Admin::new(state, access, Tasks::new());
        admin.start();
        snapshot.changed().await.unwrap();
        Self { running: run(admin).await, snapshot }
    }

    async fn open(state: AdminState) -> Self {
        Self::new(state, Access::Loopback).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.running.ask("GET", path, "", "").await
    }
}

#[tokio::test]
async fn a_healthy_cluster_is_ready_and_agreed() {
    let story = Story::open(state(&three(), "", "", true)).await;
    assert_eq!(story.get("/healthz").await.body, "ok\n");
    assert_eq!(story.get("/readyz").await.json(), serde_json::json!({"ready": true, "reasons": []}));
    let status: Status = serde_json::from_value(story.get("/v1/status").await.json()).unwrap();
    assert!(status.problems.is_empty(), "{status:?}");
    assert_eq!(status.ring_agreed, Some(true));
    assert_eq!(status.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!((status.nodes.iter().map(|n| n.share).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(status.nodes[0].is_me && status.nodes[1].counts.as_ref().unwrap().agrees);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_named() {
    let story = Story::open(state(&three(), "b", "c", true)).await;
    let status: Status = serde_json::from_value(story.get("/v1/status").await.json()).unwrap();
    assert!(status.problems.iter().any(|p| p.what.starts_with("b is up but did not answer")), "{status:?}");
    assert_eq!(status.nodes[1].counts, None);
    assert_eq!(status.ring_agreed, Some(false));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_ready_once_the_ring_agrees_or_ten_seconds_have_passed() {
    let mut story = Story::open(state(&three(), "", "c", true)).await;
    let answer = story.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["reasons"], serde_json::json!(["ring not agreed with: c"]));
    let settled = story.snapshot.wait_for(|s| s.ring_settled);
    tokio::time::timeout(Duration::from_secs(11), settled).await.expect("in time").unwrap();
    assert_eq!(story.get("/readyz").await.status, 200);
    let status = story.get("/v1/status").await;
    assert!(status.body.contains("c has another ring"), "{status:?}");
}

#[tokio::test]
async fn joining_and_draining_nodes_are_not_ready() {
    for (node_state, word) in [(NodeState::Joining, "joining"), (NodeState::Draining, "draining")] {
        let mut nodes = three();
        nodes[0] = node("a", node_state);
        let story = Story::open(state(&nodes, "", "", true)).await;
        let answer = story.get("/readyz").await;
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains(word), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_shards_do_not_keep_the_answers_back() {
    let story = Story::open(state(&three(), "", "", false)).await;
    let status = story.get("/v1/status").await;
    assert!(status.body.contains("shard 1 of this node does not answer"), "{status:?}");
    assert!(story.get("/metrics").await.body.contains("meshd_shard_answers{shard=\"0\"} 0"));
    let explained: Explained =
        serde_json::from_value(story.get("/v1/explain?product=p&uid=u").await.json()).unwrap();
    assert_eq!(explained.facts, Facts::Unknown("no answer from the owner in time".into()));
}

#[tokio::test]
async fn the_ring_is_whole_and_its_arcs_follow_each_other() {
    let story = Story::open(state(&three(), "", "", true)).await;
    let ring: RingAnswer = serde_json::from_value(story.get("/v1/ring").await.json()).unwrap();
    assert_eq!(ring.nodes.len(), 3);
    assert_eq!((ring.arcs[0].from, ring.arcs.last().unwrap().to), (0.0, 1.0));
    let mut drawn = [0.0; 3];
    for pair in ring.arcs.windows(2) {
        assert!((pair[0].to - pair[1].from).abs() < 1e-12 && pair[0].node != pair[1].node, "{pair:?}");
    }
    for arc in &ring.arcs {
        drawn[arc.node] += arc.to - arc.from;
    }
    for (node, drawn) in ring.nodes.iter().zip(drawn) {
        assert!((node.share - drawn).abs() < 1e-9, "{node:?} {drawn}");
    }
    let nodes_only: RingAnswer =
        serde_json::from_value(story.get("/v1/ring?arcs=false").await.json()).unwrap();
    assert_eq!(nodes_only, RingAnswer { arcs: Vec::new(), ..ring });
    assert_eq!(story.get("/v1/ring?arcs=no").await.status, 400);
    let alone = Story::open(state(&three()[..1], "", "", true)).await;
    let ring: RingAnswer = serde_json::from_value(alone.get("/v1/ring").await.json()).unwrap();
    assert_eq!(ring.arcs.len(), 1);
}

#[tokio::test]
async fn a_user_a_room_and_a_binding_are_explained() {
    let story = Story::open(state(&three(), "", "", true)).await;
    let explained: Explained =
        serde_json::from_value(story.get("/v1/explain?product=chat&uid=alice").await.json()).unwrap();
    assert_eq!(explained.hash, "c52f2d85acb0e39f");
    assert!(explained.owner.is_some() && explained.backup.is_some() && explained.owner != explained.backup);
    assert_eq!(explained.shard, Some(1));
    let Facts::User(sessions) = &explained.facts else { panic!("{explained:?}") };
    assert_eq!((sessions[0].edge.as_deref(), &*sessions[0].term), (Some("a shard 1"), "3 by a"));
    let ownership = &sessions[0].ownership;
    assert_eq!((ownership.backup.as_deref(), ownership.lag_ops), (Some("a"), 2));
    assert_eq!(
        (&*ownership.began, ownership.from.as_deref(), ownership.since_secs),
        ("take-over", Some("a"), 6)
    );
    let room: Explained =
        serde_json::from_value(story.get("/v1/explain?product=chat&room=lobby").await.json()).unwrap();
    assert_eq!(room.hash, "6c4a280454f71bd6");
    let Facts::Room(line) = &room.facts else { panic!("{room:?}") };
    assert_eq!((line.seq, line.subscribers[0].seq), (9, 8));
    for target in ["uid", "sid", "upstream"] {
        let answer = story.get(&format!("/v1/explain?product=chat&{target}=carol")).await;
        let bound: Explained = serde_json::from_value(answer.json()).unwrap();
        let Facts::Binding(line) = &bound.facts else { panic!("{bound:?}") };
        assert_eq!((&*line.upstream, &*line.term, line.decision), ("10.0.0.1:3000", "3 by a", 2));
        assert_eq!((line.ends_in_secs, line.ownership.backup.as_deref()), (Some(30), Some("a")));
        assert_eq!(bound.key.contains("carol"), target != "sid", "a sid is a secret: {}", bound.key);
    }
    let nobody = story.get("/v1/explain?product=chat&uid=bob").await;
    assert_eq!(nobody.json()["facts"], "nothing");
}

#[tokio::test]
async fn settings_are_shown_with_their_origins() {
    let story = Story::open(state(&three(), "", "", true)).await;
    let config: ConfigAnswer = serde_json::from_value(story.get("/v1/config").await.json()).unwrap();
    let listen = config.values.iter().find(|value| value.key == "admin.listen").expect("admin.listen");
    assert_eq!((&*listen.value, &*listen.origin), ("127.0.0.1:4082", "default"));
}

#[tokio::test]
async fn requests_that_are_wrong_have_exact_statuses() {
    let story = Story::open(state(&three(), "", "", true)).await;
    let long = format!("/v1/explain?product=p&room={}", "r".repeat(257));
    for (method, path, headers, status, code) in [
        ("GET", "/", "", 404, "not_found"),
        ("GET", "/v1", "", 404, "not_found"),
        ("GET", "/v1/status/", "", 404, "not_found"),
        ("POST", "/v1/status", "", 405, "method_not_allowed"),
        ("POST", "/v1/watch", "", 405, "method_not_allowed"),
        ("GET", "/v1/drain?force=true", "", 400, "query"),
        ("POST", "/v1/drain?node=nobody", "", 404, "no_such_node"),
        ("POST", "/v1/drain?cancel=true", "", 409, "refused"),
        ("POST", "/v1/drain", "Origin: https://evil.example\r\n", 403, "origin"),
        ("DELETE", "/metrics", "", 405, "method_not_allowed"),
        ("GET", "/v1/explain", "", 400, "product"),
        ("GET", "/v1/explain?product=", "", 400, "product"),
        ("GET", "/v1/explain?product=p", "", 400, "target"),
        ("GET", "/v1/explain?product=p&uid=a&room=b", "", 400, "target"),
        ("GET", "/v1/explain?product=p&uid=a&namespace=%2F", "", 400, "target"),
        ("GET", "/v1/explain?product=p&uid=a&sid=b", "", 400, "target"),
        ("GET", "/v1/explain?product=p&sid=a&upstream=b", "", 400, "target"),
        ("GET", "/v1/explain?product=p&upstream=", "", 400, "target"),
        ("GET", "/v1/explain?product=p&uid=", "", 400, "uid_required"),
        ("GET", "/v1/explain?product=p&uid=%00", "", 400, "uid_invalid"),
        ("GET", "/v1/explain?product=p&uid=%ff", "", 400, "query"),
        ("GET", "/v1/explain?product=p&user=a", "", 400, "query"),
        ("GET", &long, "", 400, "room"),
        ("GET", "/v1/status", "Host: evil.example\r\n", 403, "host"),
        ("GET", "/healthz", "Host: evil.example\r\n", 403, "host"),
        ("GET", "/v1/status", "Origin: https://evil.example\r\n", 403, "origin"),
        ("GET", "/metrics", "Origin: null\r\n", 403, "origin"),
    ] {
        let answer = story.running.ask(method, path, headers, "").await;
        assert_eq!(answer.outcome(), (status, code.into()), "{method} {path}");
        assert_eq!(answer.header("allow"), (status == 405).then_some("GET, HEAD"));
    }
}

#[tokio::test]
async fn with_a_token_only_probes_and_numbers_go_without() {
    let access = Access::Keys(BearerKeys::new([TOKEN]).unwrap());
    let story = Story::new(state(&three(), "", "", true), access).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(story.get(path).await.status, 200, "{path}");
    }
    for path in ["/v1/status", "/v1/ring", "/v1/config", "/v1/explain?product=p&uid=u", "/nothing"] {
        assert_eq!(story.get(path).await.outcome(), (401, "unauthorized".into()), "{path}");
        let good = format!("Authorization: Bearer {TOKEN}\r\nHost: node-1.internal\r\n");
        let answer = story.running.ask("GET", path, &good, "").await;
        assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 }, "{path}");
    }
    for _ in 0..5 {
        let wrong = story.running.ask("GET", "/v1/ring", "Authorization: Bearer guess\r\n", "").await;
        assert_eq!(wrong.status, 401);
    }
    let good = format!("Authorization: Bearer {TOKEN}\r\n");
    let locked_out = story.running.ask("GET", "/v1/ring", &good, "").await;
    assert_eq!((locked_out.status, locked_out.header("retry-after")), (429, Some("60")));
    assert_eq!(story.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn metrics_are_well_formed_and_speak_of_nobody() {
    let story = Story::open(state(&three(), "", "", true)).await;
    let answer = story.get("/metrics").await;
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let mut families: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let mut current = "";
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && families.insert(name, ("", 0)).is_none(), "{line}");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!((name, name.ends_with("_total")), (current, kind == "counter"), "{line}");
            families.get_mut(name).unwrap().0 = kind;
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            assert_eq!(name, current, "{line}");
            value.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {line}"));
            for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
                let (name, _) = label.split_once('=').unwrap();
                assert!(
                    ["shard", "state", "reason", "endpoint", "status", "version"].contains(&name),
                    "{line}"
                );
            }
            families.get_mut(name).unwrap().1 += 1;
        }
    }
    assert!(families.len() > 50 && families.values().all(|(kind, samples)| !kind.is_empty() && *samples > 0));
    assert!(answer.body.contains("\nmeshd_sessions{shard=\"1\"} 4\n"), "{}", answer.body);
    assert!(answer.body.contains("\nmeshd_nodes{state=\"active\"} 3\n"));
    assert!(!answer.body.contains("127.0.0.1"));
}

#[tokio::test]
async fn the_counts_told_to_peers_are_sums_over_shards() {
    let state = state(&three(), "", "", true);
    let AdminState { shards, view, board, drain, settings, .. } = state;
    let own = OwnAnswers { shards, view: view.clone(), board, drain, settings };
    let status = own.status(Duration::from_secs(9)).await;
    assert_eq!((status.clients, status.sessions, status.rooms, status.uptime_secs), (10, 8, 6, 9));
    assert_eq!(status.ring_digest, view.borrow().ring.digest());
    assert_eq!((status.safety.to_hand_over, status.drain.phase), (6, DrainPhase::Serving));
    assert!(matches!(serde_json::to_value(Status::default()).unwrap(), Value::Object(_)));
}

#[tokio::test]
async fn what_several_nodes_say_is_told_once_with_their_names() {
    let mut scene = state(&three(), "", "", true);
    let told = |what: &str, since_secs| ProblemTold { what: what.into(), since_secs, ..Default::default() };
    let view = scene.view.borrow().clone();
    let status = |problem_count, problems| NodeStatus {
        ring_digest: view.ring.digest(),
        problem_count,
        problems,
        ..Default::default()
    };
    let nodes = three();
    let statuses = BTreeMap::from([
        (nodes[0].node, status(0, vec![])),
        (nodes[1].node, status(12, vec![told("x went down", 5), told("its disk is hot", 1)])),
        (nodes[2].node, status(1, vec![told("x went down", 7)])),
    ]);
    let digests = nodes.iter().map(|n| (n.node.id, view.ring.digest())).collect();
    scene.cluster = Arc::new(FakeCluster { statuses, digests });
    let story = Story::open(scene).await;
    let status: Status = serde_json::from_value(story.get("/v1/status").await.json()).unwrap();
    let seen: Vec<(&str, u64, Vec<&str>)> = status
        .problems
        .iter()
        .map(|p| (p.what.as_str(), p.since_secs, p.said_by.iter().map(String::as_str).collect()))
        .collect();
    assert_eq!(seen, [("x went down", 7, vec!["b", "c"]), ("its disk is hot", 1, vec!["b"])]);
    assert_eq!(status.problems_untold, 10);
}

#[tokio::test]
async fn a_drain_is_asked_of_any_node_and_one_that_is_gone_is_told_so() {
    let story = Story::open(state(&three(), "c", "", true)).await;
    let line = story.running.ask("POST", "/v1/drain?node=b", "", "").await.json();
    assert_eq!(
        (&line["node"], &line["phase"], &line["clients"]),
        (&"b".into(), &"announce".into(), &1.into())
    );
    let gone = story.get("/v1/drain?node=d").await.json();
    assert_eq!((&gone["node"], &gone["phase"]), (&"d".into(), &"gone".into()));
    assert_eq!(story.get("/v1/drain?node=c").await.outcome(), (503, "silent".into()));
}

#[tokio::test]
async fn a_node_that_drains_is_not_ready_before_it_leaves_the_ring() {
    let scene = state(&three(), "", "", true);
    let drain = scene.drain.clone();
    let story = Story::open(scene).await;
    assert_eq!(story.get("/readyz").await.status, 200);
    drain.enter(DrainPhase::Announce);
    assert_eq!(story.get("/readyz").await.json()["reasons"], serde_json::json!(["draining"]));
}
