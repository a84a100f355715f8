//! The stock Socket.IO clients (JavaScript and Python, pinned) against three real nodes.
//!
//! The scenarios are in `tests/js/rooms.mjs`, `tests/js/refusals.mjs` and `tests/python/rooms.py`.

use mesh_tests::js::{run_scenario, start_scenario};
use mesh_tests::{Cluster, python};

async fn on_three_nodes(script: &str, scenario: &str) {
    let cluster = Cluster::start(3).await;
    run_scenario(script, scenario, &cluster).await;
}

#[tokio::test]
async fn members_by_any_node_get_one_order() {
    on_three_nodes("rooms.mjs", "one_order").await;
}

#[tokio::test]
async fn self_includes_the_sender_and_except_leaves_out() {
    on_three_nodes("rooms.mjs", "self_and_except").await;
}

#[tokio::test]
async fn an_id_is_published_once_per_user() {
    on_three_nodes("rooms.mjs", "dedupe").await;
}

#[tokio::test]
async fn rooms_are_listed_and_left() {
    on_three_nodes("rooms.mjs", "rooms_and_leave").await;
}

#[tokio::test]
async fn bytes_arrive_as_bytes() {
    on_three_nodes("rooms.mjs", "binary").await;
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_alone() {
    on_three_nodes("rooms.mjs", "namespaces").await;
}

#[tokio::test]
async fn every_refusal_has_its_code() {
    on_three_nodes("refusals.mjs", "codes").await;
}

#[tokio::test]
async fn a_refused_connect_says_why() {
    on_three_nodes("refusals.mjs", "connect_errors").await;
}

#[tokio::test]
async fn no_publish_closes_a_members_connection() {
    on_three_nodes("refusals.mjs", "no_publish_harms_members").await;
}

#[tokio::test]
async fn a_message_too_big_closes_its_sender_alone() {
    on_three_nodes("refusals.mjs", "too_big").await;
}

#[tokio::test]
async fn one_room_too_many_is_refused() {
    let cluster = Cluster::start_with(1, &[("LIMITS__ROOMS_PER_SESSION_MAX", "3")]).await;
    run_scenario("refusals.mjs", "room_limit", &cluster).await;
}

#[tokio::test]
async fn a_products_rules_are_kept() {
    let rules = [("PRODUCTS__ROOMS__JOIN", "own-tag"), ("PRODUCTS__ROOMS__PUBLISH", "nobody")];
    let cluster = Cluster::start_with(1, &rules).await;
    run_scenario("refusals.mjs", "forbidden", &cluster).await;
}

#[tokio::test]
async fn clients_of_other_nodes_go_on_when_one_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let mut clients = start_scenario("rooms.mjs", "survive", &cluster).await;
    clients.line("ready").await;
    cluster.kill(2).await;
    cluster.agreed().await;
    clients.tell("killed").await;
    clients.line("went on").await;
    assert!(clients.ended().await.success());
}

#[tokio::test]
async fn a_stopping_node_closes_the_transport_so_that_clients_come_back() {
    let mut cluster = Cluster::start(1).await;
    let mut client = start_scenario("rooms.mjs", "restart", &cluster).await;
    client.line("ready").await;
    cluster.nodes[0].process().signal("TERM").await;
    assert!(client.ended().await.success());
}

/// Their handlers take the arguments of the event and no others: they are not given offsets.
#[tokio::test]
async fn python_clients_work_with_the_default_settings() {
    let cluster = Cluster::start(3).await;
    let nodes: Vec<String> = cluster.clients().iter().map(ToString::to_string).collect();
    let mut clients = python::start("rooms.py", &[&nodes[0], &nodes[1]]).await;
    assert!(clients.ended().await.success());
}
