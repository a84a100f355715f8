//! Long-polling and the upgrade of the stock client, with each request through another of three nodes.
//!
//! The scenarios are in `tests/js/polling.mjs`.

use mesh_tests::Cluster;
use mesh_tests::balancer::Balancer;
use mesh_tests::js::{start, start_with_4_5};
use mesh_tests::process::Process;

async fn behind_a_balancer(scenario: &str) -> usize {
    let cluster = Cluster::start(3).await;
    let balancer = Balancer::start(cluster.clients()).await;
    let address = balancer.addr().to_string();
    let process = start("polling.mjs", &[scenario, &address]).await;
    passed(scenario, process).await;
    balancer.connections()
}

async fn passed(scenario: &str, mut process: Process) {
    let status = process.ended().await;
    assert!(status.success(), "{scenario}: {status}");
}

/// Version 4.5 is the oldest that is still met often; it knows nothing of recovery.
#[tokio::test]
async fn the_stock_client_4_5_by_polling_and_upgrade() {
    let cluster = Cluster::start(3).await;
    let balancer = Balancer::start(cluster.clients()).await;
    let address = balancer.addr().to_string();
    for scenario in ["polling_only", "kept", "upgrade", "large"] {
        passed(scenario, start_with_4_5("polling.mjs", &[scenario, &address]).await).await;
    }
    let nodes = cluster.clients().iter().map(ToString::to_string).collect::<Vec<_>>();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    for scenario in ["one_order", "rooms_and_leave", "binary"] {
        let args = [&[scenario][..], &nodes].concat();
        passed(scenario, start_with_4_5("rooms.mjs", &args).await).await;
    }
}

#[tokio::test]
async fn by_polling_alone_each_request_through_another_node() {
    let connections = behind_a_balancer("polling_only").await;
    assert!(connections > 100, "each request was a connection: {connections}");
}

#[tokio::test]
async fn by_polling_alone_on_connections_that_are_kept() {
    behind_a_balancer("kept").await;
}

#[tokio::test]
async fn an_upgrade_by_another_node_loses_nothing() {
    behind_a_balancer("upgrade").await;
}

#[tokio::test]
async fn large_payloads_pass_and_one_too_large_closes_its_sender_alone() {
    behind_a_balancer("large").await;
}

#[tokio::test]
async fn a_polling_client_comes_back_to_its_session() {
    behind_a_balancer("recovered").await;
}
