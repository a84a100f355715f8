//! Who clients are: stock clients by the token in their `auth`, requests that lie, and logs that keep
//! what they must not tell (FAULTS rows 24, S5, S6, S7).

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use mesh_tests::js::{run_scenario, start_scenario};
use mesh_tests::{Cluster, http};

/// What is asked for, with which fields, and the code of the refusal.
type Lie<'l> = (&'l str, &'l [(&'l str, &'l str)], &'l str);

/// As in `tests/js/identity.mjs`.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A file with the key that signs tokens, removed at the end.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new(test: &str) -> Self {
        use std::io::Write as _;
        let path = std::env::temp_dir().join(format!("meshd-identity-{}-{test}", std::process::id()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(SECRET.as_bytes()).unwrap();
        Self(path)
    }

    /// Nodes with a product of rooms and one of proxied servers, both by token.
    async fn cluster(&self, count: usize) -> Cluster {
        let key = self.0.to_str().unwrap();
        let settings = [
            ("PRODUCTS__ROOMS__JWT_KEY_FILE", key),
            ("PRODUCTS__ROOMS__NAMESPACES", "/,/admin"),
            ("PRODUCTS__ROOMS__JOIN", "own-tag"),
            ("PRODUCTS__SITE__KIND", "proxy"),
            ("PRODUCTS__SITE__PATHS", "/site"),
            ("PRODUCTS__SITE__UPSTREAMS", "127.0.0.1:1"),
            ("PRODUCTS__SITE__JWT_KEY_FILE", key),
            ("PRODUCTS__SITE__JWT_FROM", "header,query:token,cookie:token"),
            ("LOG__FILTER", "debug,meshd=trace,mesh_proto=trace,foca=info"),
        ];
        Cluster::start_with(count, &settings).await
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Nothing of what was planted, and no token: all of them begin alike.
fn assert_nothing_is_told(cluster: &Cluster, planted: &[&str]) {
    for node in cluster.running() {
        for secret in planted.iter().chain(&["eyJ", SECRET]) {
            assert!(!node.logged(secret), "{} has logged {secret}", node.name);
        }
    }
}

#[tokio::test]
async fn a_stock_client_is_who_its_auth_says_by_every_transport() {
    let key = KeyFile::new("auth");
    let cluster = key.cluster(3).await;
    run_scenario("identity.mjs", "auth", &cluster).await;
    assert_nothing_is_told(&cluster, &[]);
}

#[tokio::test]
async fn a_stock_client_that_is_not_believed_is_told_why_and_may_try_again() {
    let key = KeyFile::new("refusals");
    let cluster = key.cluster(2).await;
    run_scenario("identity.mjs", "refusals", &cluster).await;
    assert_nothing_is_told(&cluster, &[]);
}

#[tokio::test]
async fn a_stock_client_comes_back_as_who_it_was() {
    let key = KeyFile::new("recovery");
    let cluster = key.cluster(2).await;
    let mut client = start_scenario("identity.mjs", "recovery", &cluster).await;
    let line = client.line("pid ").await;
    assert!(client.ended().await.success());
    let pid = line.trim().strip_prefix("pid ").unwrap();
    assert_nothing_is_told(&cluster, &[pid]);
}

#[tokio::test]
async fn requests_that_lie_about_who_they_are_get_a_status_of_their_own() {
    let key = KeyFile::new("lies");
    let cluster = key.cluster(1).await;
    let at = cluster.nodes[0].at.client;
    // {"alg":"none"} and {"alg":"RS256"} with {"sub":"canary","exp":4102444800}.
    let claims = "eyJzdWIiOiJjYW5hcnkiLCJleHAiOjQxMDI0NDQ4MDB9";
    let none = format!("Bearer eyJhbGciOiJub25lIn0.{claims}.");
    let rsa = format!("Bearer eyJhbGciOiJSUzI1NiJ9.{claims}.Y2FuYXJ5");
    let unknown_key = format!("Bearer eyJhbGciOiJIUzI1NiIsImtpZCI6ImNhbmFyeSJ9.{claims}.Y2FuYXJ5");
    let big_cookie = format!("{}=canary", "c".repeat(10_000));
    let big_token = format!("token={}", "canary".repeat(1_700));
    let upgrade = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let cases: &[Lie<'_>] = &[
        ("/site", &[], "uid_required"),
        ("/site?uid=canary", &[], "uid_required"),
        ("/site", &[("X-Mesh-Uid", "canary")], "uid_required"),
        ("/site", &[("X-Uid", "canary"), ("X-Forwarded-For", "127.0.0.1")], "uid_required"),
        ("/site", &[("Authorization", "Basic Y2FuYXJ5")], "uid_required"),
        ("/site", &[("Cookie", &big_cookie)], "uid_required"),
        ("/site", &[("Cookie", &big_token)], "uid_invalid"),
        ("/site", &[("Cookie", "token=canary; token=canary")], "uid_invalid"),
        ("/site", &[("Authorization", &none)], "uid_invalid"),
        ("/site", &[("Authorization", &rsa)], "uid_invalid"),
        ("/site", &[("Authorization", &unknown_key)], "uid_invalid"),
        ("/site", &[("Authorization", "Bearer canary"), ("Authorization", "Bearer canary")], "uid_invalid"),
        ("/site?token=canary", &[], "uid_invalid"),
        ("/site?token=canary&token=canary", &[], "uid_invalid"),
        ("/site?token=%ff", &[], "uid_invalid"),
        ("/site/ws?token=canary", &upgrade, "uid_invalid"),
        ("/site/ws", &upgrade, "uid_required"),
    ];
    for (path, headers, code) in cases {
        for method in ["GET", "POST"] {
            let answer = http::request(at, method, path, headers, "").await.expect("an answer");
            let seen = format!("{method} {path} {headers:.60?}: {} {}", answer.status, answer.body);
            assert_eq!((answer.status, answer.error_code().as_str()), (430, *code), "{seen}");
            assert!(!answer.body.contains("canary"), "{seen}");
        }
    }
    let answer = http::get(at, "/elsewhere?product=canary").await.unwrap();
    assert_eq!((answer.status, answer.error_code().as_str()), (404, "product_unknown"));
    let ignored = cluster.nodes[0].admin("/metrics").await.unwrap().body;
    assert!(ignored.contains("meshd_client_forwarded_ignored_total 4\n"), "two rows, twice each");
    assert_nothing_is_told(&cluster, &["canary", "Y2FuYXJ5"]);
}
