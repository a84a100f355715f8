//! Connection state recovery of the stock Socket.IO client against real nodes.
//!
//! The scenarios are in `tests/js/recovery.mjs` and, as a table, in `tests/js/matrix.mjs`. Two rooms that are busy for half
//! a minute: `MESH_BUSY_SECONDS=30 cargo nextest run -p mesh-tests --test recovery matrix`.

use std::time::Duration;

use mesh_tests::Cluster;
use mesh_tests::js::{run_scenario, start, start_scenario};
use mesh_tests::wait::until_within;
use serde_json::{Value, json};

#[tokio::test]
async fn a_client_whose_node_is_killed_misses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let mut clients = start_scenario("recovery.mjs", "killed", &cluster).await;
    clients.line("ready").await;
    cluster.kill(0).await;
    assert!(clients.ended().await.success());
}

#[tokio::test]
async fn a_newer_transport_by_another_node_beats_a_half_open_one() {
    let cluster = Cluster::start(3).await;
    run_scenario("recovery.mjs", "half_open", &cluster).await;
}

#[tokio::test]
async fn clients_that_do_not_ask_get_events_as_they_are() {
    let cluster = Cluster::start(2).await;
    run_scenario("recovery.mjs", "not_asked", &cluster).await;
}

/// How long the whole of it may take, thirty seconds of busy rooms included.
const PLAYED_WITHIN: Duration = Duration::from_secs(120);

/// One fault of the table in `tests/js/matrix.mjs`, for every transport and every story at once. `strike` is the part
/// of it that is not the clients'.
async fn matrix(fault: &str, strike: impl AsyncFnOnce(&mut Cluster)) {
    let mut cluster = Cluster::start_with(4, &[("PRODUCTS__ROOMS__PUBLISH", "anyone")]).await;
    let nodes = cluster.nodes.iter().map(|node| {
        let [client, api, admin] = [node.at.client, node.at.api, node.at.admin].map(|at| at.to_string());
        json!({"client": client, "api": api, "admin": admin})
    });
    let nodes = Value::from_iter(nodes).to_string();
    let mut clients = start("matrix.mjs", &[fault, &nodes]).await;
    clients.line("strike").await;
    strike(&mut cluster).await;
    clients.tell("struck").await;
    until_within(PLAYED_WITHIN, "the clients to be done", || {
        let ended = clients.has_ended();
        async move { if ended { Ok(()) } else { Err("they are not".into()) } }
    })
    .await;
    assert!(clients.ended().await.success(), "{fault}");
}

#[tokio::test]
async fn matrix_of_a_network_blip() {
    matrix("blip", async |_| {}).await;
}

#[tokio::test]
async fn matrix_of_a_link_gone_without_a_word() {
    matrix("half_open", async |_| {}).await;
}

#[tokio::test]
async fn matrix_of_a_link_cut_in_the_middle_of_the_replay() {
    matrix("cut_in_the_middle_of_the_replay", async |_| {}).await;
}

#[tokio::test]
async fn matrix_of_an_edge_killed() {
    matrix("edge_kill", async |cluster| cluster.kill(0).await).await;
}

#[tokio::test]
async fn matrix_of_an_owner_killed() {
    matrix("owner_kill", async |cluster| cluster.kill(3).await).await;
}

#[tokio::test]
async fn matrix_of_edge_and_owner_killed_at_once() {
    matrix("both", async |cluster| cluster.kill_together(&[0, 3]).await).await;
}

#[tokio::test]
async fn matrix_of_a_rolling_restart() {
    matrix("rolling_restart", async |cluster| {
        for index in 0..cluster.nodes.len() {
            cluster.drain(index).await;
            cluster.restart_in_place(index).await;
            cluster.agreed().await;
        }
    })
    .await;
}
