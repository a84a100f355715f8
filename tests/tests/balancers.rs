//! haproxy and nginx as `docs/balancers.md` has them, in front of three nodes: stock clients by polling and
//! with an upgrade, each request and connection at another node.
//!
//! The scenarios are in `tests/js/polling.mjs` and `tests/js/herd.mjs`. The long run, which is not part of the
//! test run (`docs/benchmarks.md` has its figures):
//! `MESH_HERD='{"clients":200,"seconds":600}' cargo nextest run -p mesh-tests --run-ignored only herd`

use std::time::Duration;

use mesh_tests::Cluster;
use mesh_tests::js::start;
use mesh_tests::process::Process;
use mesh_tests::proxy::{Kind, Proxy};
use mesh_tests::wait::until_within;

/// The nodes believe the balancer: all clients come from loopback, which is exempt from limits either way.
const TRUSTING: [(&str, &str); 1] = [("CLIENT__TRUSTED_PROXIES", "127.0.0.1")];

async fn through(kind: Kind) {
    let cluster = Cluster::start_with(3, &TRUSTING).await;
    let mut proxy = Proxy::start(kind, &cluster).await;
    let address = proxy.addr().to_string();
    for scenario in ["polling_only", "kept", "upgrade", "large"] {
        let status = start("polling.mjs", &[scenario, &address]).await.ended().await;
        assert!(status.success(), "{kind:?} {scenario}: {status}");
    }
    assert!(proxy.runs());
}

#[tokio::test]
async fn stock_clients_behind_haproxy() {
    through(Kind::Haproxy).await;
}

#[tokio::test]
async fn stock_clients_behind_nginx() {
    through(Kind::Nginx).await;
}

/// Waits for a line that may take as long as the herd runs.
async fn printed(clients: &Process, text: &str) {
    until_within(Duration::from_secs(3_600), text, || async {
        let lines = clients.output().lines();
        let seen = lines.iter().any(|line| line.contains(text) || line.starts_with("herd: "));
        if seen { Ok(()) } else { Err(lines.join("\n")) }
    })
    .await;
}

/// A herd for minutes, with a node killed and started again at its old address, and one drained.
async fn herd(kind: Kind) {
    let mut cluster = Cluster::start_with(3, &TRUSTING).await;
    let proxy = Proxy::start(kind, &cluster).await;
    let plan = std::env::var("MESH_HERD").unwrap_or_else(|_| r#"{"clients":20,"seconds":30}"#.into());
    let mut clients = start("herd.mjs", &["herd", &proxy.addr().to_string(), &plan]).await;
    for (word, index) in [("kill", 1), ("drain", 2)] {
        printed(&clients, &format!("now {word}")).await;
        if word == "kill" {
            cluster.kill(index).await;
        } else {
            cluster.drain(index).await;
        }
        cluster.restart_in_place(index).await;
        cluster.agreed().await;
    }
    printed(&clients, "figures ").await;
    let status = clients.ended().await;
    println!("{kind:?}: {}", clients.output().lines().join("\n"));
    assert!(status.success(), "{kind:?}: {status}");
}

#[tokio::test]
#[ignore = "minutes; see the top of this file"]
async fn herd_behind_haproxy() {
    herd(Kind::Haproxy).await;
}

#[tokio::test]
#[ignore = "minutes; see the top of this file"]
async fn herd_behind_nginx() {
    herd(Kind::Nginx).await;
}
