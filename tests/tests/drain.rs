//! Draining a node, and following what happens, from outside: readiness, clients, exit codes, lines.

use mesh_tests::cluster::status_names;
use mesh_tests::process::{Process, binary, run};
use mesh_tests::{Cluster, http, until};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;

/// Longer than any test: a phase that ends only when it is told to.
const NEVER: &str = "600s";

/// `meshctl` against node `index`.
async fn meshctl(cluster: &Cluster, index: usize, args: &[&str]) -> (i32, String, String) {
    let admin = cluster.nodes[index].at.admin.to_string();
    run(binary("meshctl"), &[args, &["--admin", &admin]].concat()).await
}

/// Waits until `meshctl drain` would say that node `index` is in this phase.
async fn in_phase(cluster: &Cluster, index: usize, phase: &str) {
    until(&format!("the phase {phase}"), || async {
        let line = cluster.nodes[index].admin("/v1/drain").await?.json();
        if line["phase"] == phase { Ok(()) } else { Err(line.to_string()) }
    })
    .await;
}

/// The handshake of a new client at node `index`.
async fn handshake(cluster: &Cluster, index: usize) -> http::Answer {
    let headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    http::request(cluster.nodes[index].at.client, "GET", "/ws?uid=late", &headers, "").await.unwrap()
}

async fn readiness(cluster: &Cluster, index: usize) -> (u16, String) {
    let answer = http::get(cluster.nodes[index].at.admin, "/readyz").await.unwrap();
    (answer.status, answer.body)
}

#[tokio::test]
async fn a_drained_node_sends_its_clients_elsewhere_and_exits_0() {
    const CLIENTS: usize = 30;
    let mut cluster = Cluster::start(3).await;
    let mut speaker = cluster.nodes[0].client("speaker").await;
    speaker.join("lobby").await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = cluster.nodes[1].client(&format!("u{number}")).await;
        client.join("lobby").await;
        clients.push(client);
    }
    let (code, out, err) = meshctl(&cluster, 0, &["drain", "n2"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.lines().count() >= 2 && out.lines().all(|line| line.starts_with("n2  ")), "{out}");
    assert!(out.lines().last().unwrap().contains("gone"), "{out}");
    for client in &mut clients {
        assert_eq!(client.closed().await, Some(1012));
    }
    assert_eq!(cluster.nodes[1].process().ended().await.code(), Some(0));
    cluster.nodes[1].process = None;
    cluster.agreed().await;
    let mut back = Vec::new();
    for number in 0..CLIENTS {
        let mut client = cluster.nodes[2].client(&format!("u{number}")).await;
        client.join("lobby").await;
        back.push(client);
    }
    speaker.say("lobby", "say", "after").await;
    for client in &mut back {
        assert_eq!(client.arguments(1).await, [json!("after")]);
    }
    let status = cluster.nodes[0].admin("/v1/status").await.unwrap().json();
    let gone =
        status["problems"].as_array().unwrap().iter().any(|p| p["what"].as_str().unwrap().contains("n2"));
    assert!(!gone, "a drained node is missed by nobody: {status}");
}

#[tokio::test]
async fn while_it_announces_a_node_refuses_and_serves_on_and_a_cancel_takes_it_back() {
    let cluster = Cluster::start_with(2, &[("DRAIN__ANNOUNCE", NEVER)]).await;
    let ring = cluster.agreed().await;
    let mut old = cluster.nodes[1].client("old").await;
    let (code, out, err) = meshctl(&cluster, 1, &["drain", "--no-wait"]).await;
    assert_eq!((code, out.contains("announce")), (0, true), "{out}{err}");
    let (status, body) = readiness(&cluster, 1).await;
    assert_eq!((status, body.contains("draining")), (503, true), "{body}");
    let refused = handshake(&cluster, 1).await;
    assert_eq!((refused.status, refused.error_code()), (503, "draining".into()));
    assert!(refused.head.to_lowercase().contains("retry-after"), "{}", refused.head);
    assert!(old.is_alive().await);
    let seen = cluster.nodes[0].admin("/v1/status").await.unwrap().json();
    assert_eq!((&seen["ring_digest"], status_names(&seen)), (&ring.as_str().into(), vec!["n1", "n2"]));
    let drain = &seen["nodes"][1]["drain"];
    assert_eq!((&drain["phase"], &drain["clients"]), (&json!("announce"), &json!(1)));

    let (code, out, err) = meshctl(&cluster, 0, &["drain", "n2", "--cancel"]).await;
    assert_eq!((code, out.contains("serving")), (0, true), "{out}{err}");
    assert_eq!(cluster.agreed().await, ring, "it never left");
    cluster.nodes[1].client("new").await;
    assert!(old.is_alive().await);
    let (code, _, err) = meshctl(&cluster, 0, &["drain", "n2", "--cancel"]).await;
    assert_eq!((code, err.trim_end().lines().count()), (1, 1), "{err}");
}

#[tokio::test]
async fn a_drain_that_closes_clients_is_taken_back_and_the_node_is_on_the_ring_again() {
    let extra = [("DRAIN__ANNOUNCE", "0s"), ("DRAIN__DEADLINE", NEVER), ("CLIENT__HEAD_TIMEOUT", "60s")];
    let cluster = Cluster::start_with(2, &extra).await;
    let ring = cluster.agreed().await;
    let mut closed = cluster.nodes[1].client("closed").await;
    // Counts as a client, and cannot be told to go.
    let half_open = TcpStream::connect(cluster.nodes[1].at.client).await.unwrap();
    until("the half-open handshake to be counted", || async {
        let line = cluster.nodes[1].admin("/v1/drain").await?.json();
        if line["clients"] == 2 { Ok(()) } else { Err(line.to_string()) }
    })
    .await;
    meshctl(&cluster, 1, &["drain", "--no-wait"]).await;
    assert_eq!(closed.closed().await, Some(1012));
    in_phase(&cluster, 1, "closing").await;
    until("the other to go on alone", || async {
        let seen = cluster.nodes[0].admin("/v1/status").await?.json();
        let off_ring = seen["ring_digest"] != ring && seen["nodes"][1]["state"] == "draining";
        if off_ring { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
    let (code, out, err) = meshctl(&cluster, 1, &["drain", "--cancel"]).await;
    assert_eq!((code, out.contains("serving")), (0, true), "{out}{err}");
    assert_eq!(cluster.agreed().await, ring);
    cluster.nodes[1].client("closed").await;
    drop(half_open);
}

#[tokio::test]
async fn the_last_active_node_is_drained_by_force_only() {
    let mut cluster = Cluster::start(1).await;
    let mut client = cluster.nodes[0].client("a").await;
    let (code, out, err) = meshctl(&cluster, 0, &["drain"]).await;
    assert_eq!((code, err.trim_end().lines().count()), (1, 1), "{out}{err}");
    assert!(err.contains("--force"), "it says what to do: {err}");
    assert_eq!(readiness(&cluster, 0).await.0, 200);
    assert!(client.is_alive().await);
    let (code, out, err) = meshctl(&cluster, 0, &["drain", "--force", "--json"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["node"], &last["phase"]), (&json!("n1"), &json!("gone")));
    assert_eq!(client.closed().await, Some(1012));
    assert_eq!(cluster.nodes[0].process().ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_cuts_a_drain_short() {
    let mut cluster = Cluster::start_with(2, &[("DRAIN__ANNOUNCE", NEVER)]).await;
    let _client = cluster.nodes[1].client("a").await;
    cluster.nodes[1].process().signal("TERM").await;
    in_phase(&cluster, 1, "announce").await;
    let (code, _, err) = meshctl(&cluster, 1, &["drain", "--cancel"]).await;
    assert_eq!((code, err.contains("signal")), (1, true), "whoever sent the signal wants its end: {err}");
    cluster.nodes[1].process().signal("TERM").await;
    assert_eq!(cluster.nodes[1].process().ended().await.code(), Some(130));
}

#[tokio::test]
async fn nodes_that_nobody_knows_are_named() {
    let cluster = Cluster::start(1).await;
    let (code, _, err) = meshctl(&cluster, 0, &["drain", "n7"]).await;
    assert_eq!((code, err.contains("no node n7")), (1, true), "{err}");
}

/// A running `meshctl watch` that has said hello.
async fn watching(cluster: &Cluster, more: &[&str]) -> Process {
    let mut command = Command::new(binary("meshctl"));
    command.args(["watch", "--admin", &cluster.nodes[0].at.admin.to_string()]).args(more);
    let mut watch = Process::start("meshctl watch", &mut command);
    watch.line("hello").await;
    watch
}

#[tokio::test]
async fn watch_prints_a_kill_a_join_and_a_drain() {
    let mut cluster = Cluster::start(3).await;
    let mut watch = watching(&cluster, &[]).await;
    let mut json_watch = watching(&cluster, &["--json"]).await;
    cluster.kill(2).await;
    watch.line("n3 is down").await;
    let down: Value = serde_json::from_str(&json_watch.line("n3 is down").await).unwrap();
    assert_eq!((&down["kind"], &down["node"]), (&json!("down"), &json!("n3")));
    assert!(down["at_ms"].as_u64() > Some(1_700_000_000_000), "{down}");
    cluster.add().await;
    watch.line("n4 is up").await;
    let ring: Value = serde_json::from_str(&json_watch.line("3 nodes (").await).unwrap();
    assert_eq!(ring["kind"], "ring");
    let (code, out, err) = meshctl(&cluster, 0, &["drain", "n2"]).await;
    assert_eq!(code, 0, "{out}{err}");
    watch.line("n2 is draining").await;
    watch.line("n2 has left").await;
}

#[tokio::test]
async fn watch_ends_with_the_node_it_asks() {
    let mut cluster = Cluster::start(2).await;
    let mut watch = watching(&cluster, &[]).await;
    cluster.nodes[0].process().signal("TERM").await;
    assert_eq!(watch.ended().await.code(), Some(1));
    assert_eq!(cluster.nodes[0].process().ended().await.code(), Some(0));
}
