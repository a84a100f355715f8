//! The first thing a newcomer runs: `meshd demo`, and its page in a real browser.

use std::net::SocketAddr;

use mesh_tests::process::{Process, binary};
use mesh_tests::{http, js, until};
use serde_json::Value;
use tokio::process::Command;

/// Starts the demo and gives it with the address of its page.
async fn demo() -> (Process, SocketAddr) {
    let mut command = Command::new(binary("meshd"));
    command.arg("demo").env("HOME", std::env::temp_dir());
    let mut demo = Process::start("meshd demo", &mut command);
    let line = demo.line("http://").await;
    let url = line.split("http://").nth(1).unwrap_or_default();
    let host = url.split(|c: char| c == '/' || c.is_whitespace()).next().unwrap_or_default();
    let at = host.replace("localhost", "127.0.0.1");
    let at = at.parse().unwrap_or_else(|e| panic!("no address of a page in {line:?}: {e}"));
    (demo, at)
}

async fn state(page: SocketAddr) -> Result<Value, String> {
    let answer = http::get(page, "/demo/state.json?product=rooms&uid=alice&room=lobby").await;
    answer.map(|a| a.json()).map_err(|e| e.to_string())
}

/// The state, once `count` nodes are on the ring.
async fn state_of(page: SocketAddr, count: usize) -> Value {
    until(&format!("{count} active nodes"), || async {
        let state = state(page).await?;
        let active =
            state["nodes"].as_array().into_iter().flatten().filter(|n| n["state"] == "active").count();
        if active == count { Ok(state) } else { Err(state["nodes"].to_string()) }
    })
    .await
}

#[tokio::test]
async fn three_nodes_start_and_ctrl_c_ends_them_all() {
    let (mut demo, page) = demo().await;
    let state = state_of(page, 3).await;
    let nodes = state["nodes"].as_array().unwrap();
    let clients: Vec<SocketAddr> =
        nodes.iter().map(|n| n["client"].as_str().unwrap().parse().unwrap()).collect();
    let shares: f64 = nodes.iter().filter_map(|n| n["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-6, "{shares}");
    demo.signal("INT").await;
    assert_eq!(demo.ended().await.code(), Some(0));
    for client in clients {
        assert!(http::get(client, "/").await.is_err(), "{client} still answers");
    }
}

/// Two tabs on two nodes talk; a killed node leaves the picture, and its tab comes back by another.
#[tokio::test]
async fn the_page_works_in_a_browser() {
    let (_demo, page) = demo().await;
    state_of(page, 3).await;
    let pictures = std::env::var("MESH_TESTS_PICTURES").unwrap_or_default();
    let url = format!("http://{page}/");
    let mut browser = js::start("page.mjs", &[&url, &pictures]).await;
    assert!(browser.ended().await.success());
}
