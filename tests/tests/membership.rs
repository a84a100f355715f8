//! Nodes that join, die, stop, or do not belong.

use mesh_tests::cluster::{Node, settings, spawn, status_names};
use mesh_tests::{Cluster, http, until};
use serde_json::json;

#[tokio::test]
async fn three_nodes_agree_on_one_ring() {
    let cluster = Cluster::start(3).await;
    let digest = cluster.agreed().await;
    assert_eq!(digest.len(), 16, "{digest}");
    for node in &cluster.nodes {
        let status = node.admin("/v1/status").await.unwrap().json();
        assert_eq!(status_names(&status), ["n1", "n2", "n3"]);
    }
}

#[tokio::test]
async fn a_killed_node_is_noticed_and_comes_back_under_its_name() {
    let mut cluster = Cluster::start(3).await;
    let before = cluster.agreed().await;
    cluster.kill(1).await;
    let without = cluster.agreed().await;
    assert_ne!(without, before);
    cluster.restart(1).await;
    let back = cluster.agreed().await;
    assert_ne!(back, without);
    assert_ne!(back, before, "another incarnation is another node");
}

#[tokio::test]
async fn clients_of_other_nodes_stay_connected_and_go_on() {
    const ROOMS: usize = 20;
    let mut cluster = Cluster::start(3).await;
    let mut a = cluster.nodes[0].client("a").await;
    let mut b = cluster.nodes[1].client("b").await;
    for room in 0..ROOMS {
        a.join(&format!("r{room}")).await;
        b.join(&format!("r{room}")).await;
    }
    cluster.kill(2).await;
    cluster.agreed().await;
    for room in 0..ROOMS {
        a.say(&format!("r{room}"), "say", room).await;
    }
    let mut got = b.arguments(ROOMS).await;
    got.sort_by_key(|n| n.as_u64());
    assert_eq!(got, (0..ROOMS).map(|n| json!(n)).collect::<Vec<_>>());
    assert!(a.is_alive().await);
}

#[tokio::test]
async fn a_node_that_joins_takes_its_share_and_disconnects_nobody() {
    let mut cluster = Cluster::start(2).await;
    let mut a = cluster.nodes[0].client("a").await;
    let mut b = cluster.nodes[1].client("b").await;
    for room in 0..20 {
        a.join(&format!("r{room}")).await;
        b.join(&format!("r{room}")).await;
    }
    let third = cluster.add().await;
    cluster.agreed().await;
    let mut c = cluster.nodes[third].client("c").await;
    for room in 0..20 {
        let room = format!("r{room}");
        c.join(&room).await;
        a.say(&room, "say", room.as_str()).await;
    }
    for client in [&mut b, &mut c] {
        let mut got = client.arguments(20).await;
        got.dedup();
        assert_eq!(got.len(), 20);
    }
}

#[tokio::test]
async fn sigterm_closes_clients_with_1012_and_exits_0() {
    let mut cluster = Cluster::start(2).await;
    let mut leaving = cluster.nodes[1].client("leaving").await;
    let mut staying = cluster.nodes[0].client("staying").await;
    cluster.nodes[1].process().signal("TERM").await;
    assert_eq!(leaving.closed().await, Some(1012));
    let status = cluster.nodes[1].process().ended().await;
    assert_eq!(status.code(), Some(0));
    cluster.nodes[1].process = None;
    cluster.agreed().await;
    assert!(staying.is_alive().await);
}

#[tokio::test]
async fn sigint_is_the_same() {
    let mut cluster = Cluster::start(1).await;
    cluster.nodes[0].process().signal("INT").await;
    assert_eq!(cluster.nodes[0].process().ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_holder_of_a_name_exits_with_3_and_the_first_stays() {
    let mut cluster = Cluster::start(2).await;
    let digest = cluster.agreed().await;
    let mut second = spawn("a second n2", &cluster.settings_for("n2"));
    assert_eq!(second.ended().await.code(), Some(3), "{}", second.output().lines().join("\n"));
    assert!(second.output().lines().iter().any(|line| line.contains("n2")), "it names the name");
    assert_eq!(cluster.agreed().await, digest, "nobody else is disturbed");
    assert!(!cluster.nodes[1].process().has_ended());
}

#[tokio::test]
async fn a_node_with_another_key_is_refused_and_both_say_why() {
    let cluster = Cluster::start(1).await;
    let other = mesh_tests::cluster::fresh_key();
    let stranger = Node::start("stranger", settings("stranger", &other, &[cluster.nodes[0].at.mesh])).await;
    until("both to say that the key differs", || async {
        let says = |node: &Node| {
            let lines = node.process.as_ref().expect("running").output().lines();
            lines.iter().any(|line| line.contains("key") && (line.contains("WARN") || line.contains("ERROR")))
        };
        match (says(&cluster.nodes[0]), says(&stranger)) {
            (true, true) => Ok(()),
            seen => Err(format!("(member, stranger) = {seen:?}")),
        }
    })
    .await;
    assert_eq!(status_names(&cluster.nodes[0].admin("/v1/status").await.unwrap().json()), ["n1"]);
    let ready = http::get(stranger.at.admin, "/readyz").await.unwrap();
    assert_eq!(ready.status, 503, "it owns nothing: {}", ready.body);
}

#[tokio::test]
async fn a_node_whose_seeds_are_away_is_not_ready_and_joins_when_they_come() {
    let key = mesh_tests::cluster::fresh_key();
    // A port that is free now; the seed takes it later.
    let reserved = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let seed_at = reserved.local_addr().unwrap();
    let early = Node::start("early", settings("early", &key, &[seed_at])).await;
    assert_eq!(http::get(early.at.admin, "/readyz").await.unwrap().status, 503);
    assert_eq!(http::get(early.at.admin, "/healthz").await.unwrap().status, 200);
    drop(reserved);
    let mut seed = settings("seed", &key, &[]);
    seed.insert("MESH__LISTEN".into(), seed_at.to_string());
    let _seed = Node::start("seed", seed).await;
    until("the early node to be ready", || early.admin("/readyz")).await;
    let status = early.admin("/v1/status").await.unwrap().json();
    assert_eq!(status_names(&status), ["early", "seed"]);
}
