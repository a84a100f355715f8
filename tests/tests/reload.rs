//! Settings taken over by nodes that run.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_tests::cluster::{Addresses, settings};
use mesh_tests::plain::PlainClient;
use mesh_tests::process::{Process, binary, run};
use mesh_tests::{http, until};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

/// A node whose settings are in a file, too.
struct Node {
    process: Process,
    at: Addresses,
    file: PathBuf,
}

impl Node {
    async fn start(name: &str, seeds: &[SocketAddr], text: &str) -> Self {
        let file = std::env::temp_dir().join(format!("meshd-reload-{}-{name}.toml", std::process::id()));
        fs::write(&file, text).unwrap();
        let mut command = Command::new(binary("meshd"));
        command.args(["--supervised", "--config"]).arg(&file).env_clear().env("HOME", std::env::temp_dir());
        let key = format!("{:064x}", std::process::id());
        command.envs(settings(name, &key, seeds).iter().map(|(key, value)| (format!("MESHD_{key}"), value)));
        let mut process = Process::start(name, &mut command);
        let line = process.line("{\"name\":").await;
        Self { process, at: Addresses::from_line(&line).unwrap(), file }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    async fn reload(&self, more: &[&str]) -> (i32, String) {
        let admin = self.at.admin.to_string();
        let (code, text, err) =
            run(binary("meshctl"), &[&["reload", "--admin", &admin], more].concat()).await;
        (code, text + &err)
    }

    /// What a client of this product gets.
    async fn welcome(&self, product: &str) -> serde_json::Value {
        let mut client = PlainClient::open(self.at.client, &format!("/ws?uid=alice&product={product}")).await;
        client.next().await
    }

    async fn status(&self) -> String {
        http::get(self.at.admin, "/v1/status").await.unwrap().body
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

const FIRST: &str = "[products.rooms]\npublish = \"members\"\n";

#[tokio::test]
async fn new_products_and_rules_are_taken_over_and_clients_stay() {
    let node = Node::start("n1", &[], FIRST).await;
    let mut alice = node_client(&node).await;
    alice.join("r").await;
    assert_eq!(node.welcome("shop").await["code"], "product_unknown");

    node.write(
        "[products.rooms]\npublish = \"nobody\"\n[products.shop]\n[limits]\nping_interval = \"30s\"\n",
    );
    let (code, told) = node.reload(&[]).await;
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("changed: products.rooms.publish\n  changed: products.shop\n"), "{told}");
    assert!(told.contains("needs a restart: limits.ping_interval"), "{told}");
    assert_eq!(node.welcome("shop").await["type"], "welcome");
    let refused = alice.ask(json!({"type": "publish", "room": "r", "event": "e"})).await;
    assert_eq!(refused["code"], "forbidden", "{refused}");
    assert!(alice.is_alive().await);

    let (code, told) = node.reload(&[]).await;
    assert!(code == 0 && told.contains("nothing has changed"), "{told}");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_told() {
    let node = Node::start("n2", &[], FIRST).await;
    node.write("[products.rooms]\npublish = \"everybody\"\n[products.shop]\n");
    let (code, told) = node.reload(&[]).await;
    assert_eq!(code, 1, "{told}");
    let name = node.file.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(told.contains(&format!("{name}:2")) && told.contains("everybody"), "{told}");
    assert_eq!(node.welcome("shop").await["code"], "product_unknown");
    let status = || async {
        let status = node.status().await;
        if status.contains("could not be taken over") { Ok(()) } else { Err(status) }
    };
    until("the problem in the status", status).await;

    node.write("[products.rooms]\n[products.shop]\n");
    node.process.signal("HUP").await;
    let taken = || async {
        let welcome = node.welcome("shop").await;
        if welcome["type"] == "welcome" { Ok(()) } else { Err(welcome.to_string()) }
    };
    until("the product after SIGHUP", taken).await;
    let status = || async {
        let status = node.status().await;
        if status.contains("could not be taken over") { Err(status) } else { Ok(()) }
    };
    until("no problem in the status", status).await;
}

#[tokio::test]
async fn any_node_tells_all() {
    let one = Node::start("n3", &[], FIRST).await;
    let two = Node::start("n4", &[one.at.mesh], FIRST).await;
    let both = || async {
        let status = two.status().await;
        if status.contains("n3") && status.contains("n4") { Ok(()) } else { Err(status) }
    };
    until("two nodes", both).await;
    for node in [&one, &two] {
        node.write("[products.rooms]\njoin = \"nobody\"\n");
    }
    let (code, told) = two.reload(&["--all"]).await;
    assert_eq!(code, 0, "{told}");
    assert_eq!(told.matches("changed: products.rooms.join").count(), 2, "{told}");
    two.write("nonsense");
    let (code, told) = one.reload(&["n4"]).await;
    assert!(code == 1 && told.contains("n4  nothing taken over"), "{told}");
    let (code, told) = one.reload(&["n9"]).await;
    assert!(code == 1 && told.contains("no such node"), "{told}");
}

/// A server that answers everything with one letter.
async fn upstream(letter: char) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                while stream.read(&mut request).await.is_ok_and(|len| len > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{letter}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

#[tokio::test]
async fn upstreams_change_while_clients_come() {
    let (a, b) = (upstream('a').await, upstream('b').await);
    let text = |upstream: SocketAddr, more: &str| {
        format!(
            "[products.rooms]\n[products.site]\nkind = \"proxy\"\npaths = [\"/site\"]\nuid = \"optional\"\n\
             upstreams = [\"{upstream}\"]\n{more}"
        )
    };
    let node = Node::start("n5", &[], &text(a, "")).await;
    let answered = || async { http::get(node.at.client, "/site/").await.unwrap() };
    assert_eq!(answered().await.body, "a");
    node.write(&text(b, ""));
    assert_eq!(node.reload(&[]).await.0, 0);
    assert_eq!(answered().await.body, "b");
    node.write(&text(a, "owner_header = \"x-owner\"\n"));
    assert_eq!(node.reload(&[]).await.0, 0);
    assert_eq!(answered().await.body, "a");
    node.write(FIRST);
    assert_eq!(node.reload(&[]).await.0, 0);
    assert_eq!(answered().await.status, 404);
}

async fn node_client(node: &Node) -> PlainClient {
    PlainClient::connect(node.at.client, "alice").await
}
