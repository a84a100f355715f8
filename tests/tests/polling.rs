//! Long-polling and the upgrade of the stock client, with each request through another of three nodes.
//!
//! The scenarios are in `tests/js/polling.mjs`.

use mesh_tests::Cluster;
use mesh_tests::balancer::Balancer;
use mesh_tests::js::start;

async fn behind_a_balancer(scenario: &str) -> usize {
    let cluster = Cluster::start(3).await;
    let balancer = Balancer::start(cluster.clients()).await;
    let address = balancer.addr().to_string();
    let mut process = start("polling.mjs", &[scenario, &address]).await;
    let status = process.ended().await;
    assert!(status.success(), "{scenario}: {status}");
    balancer.connections()
}

#[tokio::test]
async fn by_polling_alone_each_request_through_another_node() {
    let connections = behind_a_balancer("polling_only").await;
    assert!(connections > 100, "each request was a connection: {connections}");
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
