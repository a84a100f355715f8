//! Connection state recovery of the stock Socket.IO client against real nodes.
//!
//! The scenarios are in `tests/js/recovery.mjs`.

use mesh_tests::Cluster;
use mesh_tests::js::{run_scenario, start_scenario};

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
