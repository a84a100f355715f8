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

/// The table of `tests/js/matrix.mjs`: what breaks, for every transport and every story at once.
#[tokio::test]
async fn whatever_breaks_each_transport_gets_exactly_what_it_missed() {
    let cluster = Cluster::start(3).await;
    for scenario in ["blip", "elsewhere", "cut_in_replay"] {
        run_scenario("matrix.mjs", scenario, &cluster).await;
    }
}

#[tokio::test]
async fn when_the_edge_dies_each_transport_gets_exactly_what_it_missed() {
    let mut cluster = Cluster::start(3).await;
    let mut clients = start_scenario("matrix.mjs", "edge_kill", &cluster).await;
    clients.line("kill the edge").await;
    cluster.kill(0).await;
    assert!(clients.ended().await.success());
}

#[tokio::test]
async fn when_an_owner_dies_no_transport_is_lost() {
    let mut cluster = Cluster::start(4).await;
    let mut clients = start_scenario("matrix.mjs", "owner_kill", &cluster).await;
    clients.line("kill the owner").await;
    cluster.kill(3).await;
    clients.tell("killed").await;
    assert!(clients.ended().await.success());
}
