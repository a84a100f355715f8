//! Clients by TLS, against real nodes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use mesh_tests::{Cluster, http, js};

/// A certificate for `localhost` with its key, in a file of its own.
fn certificate(name: &str) -> PathBuf {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = std::env::temp_dir().join(format!("meshd-tls-{}-{name}.pem", std::process::id()));
    fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

async fn cluster(certificates: &str) -> Cluster {
    let tls = [("CLIENT__TLS_LISTEN", "127.0.0.1:0"), ("CLIENT__TLS_CERTIFICATES", certificates)];
    Cluster::start_with(2, &tls).await
}

#[tokio::test]
async fn stock_clients_connect_by_tls_and_by_every_transport() {
    let file = certificate("transports");
    let file_name = file.to_str().unwrap();
    let cluster = cluster(file_name).await;
    let port = cluster.nodes[0].at.client_tls.unwrap().port().to_string();
    let status = js::start("tls.mjs", &["transports", &port, file_name]).await.ended().await;
    assert!(status.success());
    let status = js::start("tls.mjs", &["untrusted", &port]).await.ended().await;
    assert!(status.success());
    fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn who_speaks_no_tls_to_its_port_is_told_so() {
    let file = certificate("plain");
    let cluster = cluster(file.to_str().unwrap()).await;
    let at = cluster.nodes[0].at.client_tls.unwrap();
    let answer = http::get(at, "/socket.io/?EIO=4&transport=polling").await.unwrap();
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("tls_required")));
    fs::remove_file(file).unwrap();
}
