//! The stock client in a browser, on a page of another origin than the nodes.
//!
//! The scenario is in `tests/js/browser.mjs`.

use mesh_tests::balancer::Balancer;
use mesh_tests::{Cluster, js};
use serde_json::json;

/// By polling, with an upgrade and by WebSocket; each connection of the browser goes to another node.
#[tokio::test]
async fn a_page_of_another_origin_works_where_it_is_listed() {
    let mut pages = js::start("browser.mjs", &["origins"]).await;
    let line = pages.line("origin ").await;
    let origin = line.trim_start_matches("origin ");
    let listed = Cluster::start_with(3, &[("CLIENT__ALLOWED_ORIGINS", origin)]).await;
    let balancer = Balancer::start(listed.clients()).await;
    let any = Cluster::start(1).await;
    let addresses = json!({"listed": balancer.addr(), "any": any.nodes[0].at.client});
    pages.tell(&addresses.to_string()).await;
    assert!(pages.ended().await.success());
}
