//! The HTTP API of real nodes, as a backend uses it (`docs/http-api.md`).

use mesh_tests::cluster::Node;
use mesh_tests::http::{self, Answer};
use mesh_tests::plain::PlainClient;
use mesh_tests::process::{repository, run};
use mesh_tests::{Cluster, until};
use serde_json::{Value, json};

async fn call(node: &Node, verb: &str, body: Value) -> Answer {
    http::post(node.at.api, &format!("/v1/products/rooms/{verb}"), &body).await
}

async fn publish(node: &Node, body: Value) -> Value {
    let answer = call(node, "publish", body.clone()).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    answer.json()
}

async fn read(node: &Node, path: &str) -> Value {
    let answer = http::get(node.at.api, &format!("/v1/products/rooms/{path}")).await.unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

/// Clients alice and bob by different nodes, both in room `r`; bob also in `quiet`.
async fn alice_and_bob(cluster: &Cluster) -> (PlainClient, PlainClient) {
    let mut alice = cluster.nodes[0].client("alice").await;
    let mut bob = cluster.nodes[1].client("bob").await;
    alice.join("r").await;
    bob.join("r").await;
    bob.join("quiet").await;
    (alice, bob)
}

#[tokio::test]
async fn any_node_publishes_to_a_room_a_user_a_session_and_all() {
    let cluster = Cluster::start(3).await;
    let (mut alice, mut bob) = alice_and_bob(&cluster).await;
    let third = &cluster.nodes[2];
    publish(third, json!({ "room": "r", "event": "say", "args": ["room"] })).await;
    publish(third, json!({ "uid": "alice", "event": "say", "args": ["uid"] })).await;
    publish(third, json!({ "sid": bob.sid(), "event": "say", "args": ["sid"] })).await;
    publish(third, json!({ "all": true, "event": "say", "args": ["all"] })).await;
    let mut to_alice = alice.arguments(3).await;
    let mut to_bob = bob.arguments(3).await;
    // Between a room, a session's own events and all there is no promised order.
    to_alice.sort_by_key(Value::to_string);
    to_bob.sort_by_key(Value::to_string);
    assert_eq!(to_alice, ["all", "room", "uid"]);
    assert_eq!(to_bob, ["all", "room", "sid"]);
}

#[tokio::test]
async fn except_leaves_out_sessions_and_rooms() {
    let cluster = Cluster::start(2).await;
    let (mut alice, mut bob) = alice_and_bob(&cluster).await;
    let node = &cluster.nodes[0];
    let but_alice = json!({ "sids": [alice.sid()] });
    publish(node, json!({ "room": "r", "event": "say", "args": [1], "except": but_alice })).await;
    publish(node, json!({ "room": "r", "event": "say", "args": [2], "except": { "rooms": ["quiet"] } }))
        .await;
    publish(node, json!({ "room": "r", "event": "say", "args": [3] })).await;
    assert_eq!(alice.arguments(2).await, [2, 3]);
    assert_eq!(bob.arguments(2).await, [1, 3]);
}

#[tokio::test]
async fn an_idempotency_key_publishes_once_by_whichever_node() {
    let cluster = Cluster::start(3).await;
    let (mut alice, _bob) = alice_and_bob(&cluster).await;
    let path = "/v1/products/rooms/publish";
    let body = json!({ "room": "r", "event": "say", "args": ["once"] }).to_string();
    let mut answers = Vec::new();
    for node in &cluster.nodes {
        let answer =
            http::request(node.at.api, "POST", path, &[("Idempotency-Key", "k1")], &body).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answers.push(answer.json());
    }
    assert_eq!(answers[0]["duplicate"], false);
    assert!(
        answers[1..].iter().all(|a| a["duplicate"] == true && a["pos"] == answers[0]["pos"]),
        "{answers:?}"
    );
    publish(&cluster.nodes[0], json!({ "room": "r", "event": "say", "args": ["then"] })).await;
    assert_eq!(alice.arguments(2).await, ["once", "then"]);
}

#[tokio::test]
async fn members_of_a_room_are_joined_taken_out_and_sent_away_in_its_order() {
    let cluster = Cluster::start(3).await;
    let (mut alice, mut bob) = alice_and_bob(&cluster).await;
    let third = &cluster.nodes[2];
    let done = |sessions: u64| json!({ "sessions": sessions, "missing": 0, "silent": [] });
    let answer = call(third, "join", json!({ "in": "r", "room": "vip" })).await;
    assert_eq!((answer.status, answer.json()), (200, done(2)), "{}", answer.body);
    publish(third, json!({ "room": "vip", "event": "say", "args": ["in force"] })).await;
    let but = json!({ "in": "r", "room": "r", "except": { "rooms": ["quiet"] } });
    assert_eq!(call(third, "leave", but).await.json(), done(1));
    publish(third, json!({ "room": "r", "event": "say", "args": ["who is left"] })).await;
    publish(third, json!({ "room": "vip", "event": "say", "args": ["the last"] })).await;
    assert_eq!(alice.arguments(2).await, ["in force", "the last"]);
    let mut to_bob = bob.arguments(3).await;
    to_bob.sort_by_key(Value::to_string);
    assert_eq!(to_bob, ["in force", "the last", "who is left"]);
    assert_eq!(call(third, "disconnect", json!({ "all": true })).await.json(), done(2));
    assert_eq!(read(third, "all").await["sessions"], 0);
    assert_eq!(call(third, "disconnect", json!({ "in": "r" })).await.json(), done(0));
}

#[tokio::test]
async fn a_batch_answers_each_item_as_if_it_were_alone() {
    let cluster = Cluster::start(2).await;
    let (mut alice, _bob) = alice_and_bob(&cluster).await;
    let items = json!({ "items": [
        { "publish": { "room": "r", "event": "say", "args": ["first"] } },
        { "publish": { "room": "r", "event": "connect" } },
        { "publish": { "uid": "nobody", "event": "say" } },
        { "join": { "uid": "alice", "room": "new" } },
    ] });
    let answer = call(&cluster.nodes[1], "batch", items).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let results = answer.json()["results"].as_array().unwrap().clone();
    let statuses: Vec<u64> = results.iter().filter_map(|r| r["status"].as_u64()).collect();
    assert_eq!(statuses.len(), 4);
    assert_eq!((statuses[0], statuses[1], statuses[3]), (200, 400, 200), "{results:?}");
    assert_eq!(results[1]["body"]["error"]["code"], "event_name");
    assert_eq!(results[2]["body"]["delivered"], 0, "{results:?}");
    assert_eq!(alice.arguments(1).await, ["first"]);
}

#[tokio::test]
async fn members_and_counts_are_of_the_whole_cluster() {
    let cluster = Cluster::start(3).await;
    let (alice, bob) = alice_and_bob(&cluster).await;
    let _elsewhere = cluster.nodes[2].client("carol").await;
    for node in &cluster.nodes {
        assert_eq!(read(node, "rooms/r").await["sessions"], 2);
        assert_eq!(read(node, "rooms/empty").await["sessions"], 0);
        let members = read(node, "rooms/r/members").await;
        let mut sids: Vec<&str> =
            members["members"].as_array().unwrap().iter().filter_map(|m| m["sid"].as_str()).collect();
        let mut expected = [alice.sid(), bob.sid()];
        sids.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sids, expected);
        assert_eq!(read(node, "all").await["sessions"], 3);
        assert_eq!(read(node, "users/alice").await["sessions"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_backend_puts_users_into_rooms_takes_them_out_and_ends_them() {
    let cluster = Cluster::start(2).await;
    let (mut alice, mut bob) = alice_and_bob(&cluster).await;
    let node = &cluster.nodes[1];
    assert_eq!(call(node, "join", json!({ "uid": "alice", "room": "vip" })).await.status, 200);
    until_sessions(node, "vip", 1).await;
    publish(node, json!({ "room": "vip", "event": "say", "args": ["psst"] })).await;
    assert_eq!(alice.arguments(1).await, ["psst"]);
    assert_eq!(call(node, "leave", json!({ "uid": "alice", "room": "vip" })).await.status, 200);
    until_sessions(node, "vip", 0).await;
    assert_eq!(call(node, "disconnect", json!({ "uid": "alice" })).await.status, 200);
    assert_eq!(alice.closed().await, Some(4409));
    assert!(bob.is_alive().await);
    until_sessions(node, "r", 1).await;
}

/// An API command is answered by the session's owner; the edge puts it into force a moment later.
async fn until_sessions(node: &Node, room: &str, count: u64) {
    until(&format!("{count} sessions in {room}"), || async {
        let sessions = read(node, &format!("rooms/{room}")).await["sessions"].clone();
        if sessions == count { Ok(()) } else { Err(sessions.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn errors_are_json_with_a_code() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let publishes = [
        (json!({ "room": "r", "event": "connect" }), 400, "event_name"),
        (json!({ "room": "r", "event": "say", "exept": {} }), 400, "arguments"),
        (json!({ "event": "say" }), 400, ""),
        (json!({ "room": "r", "uid": "u", "event": "say" }), 400, ""),
        (json!({ "sid": "nonsense", "event": "say" }), 400, ""),
        (json!({ "room": "r", "event": "say", "args": [{ "_placeholder": true, "num": 0 }] }), 400, ""),
    ];
    for (body, status, code) in publishes {
        let answer = call(node, "publish", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(!answer.error_code().is_empty(), "{body}");
        assert!(code.is_empty() || answer.error_code() == code, "{body}: {}", answer.body);
    }
    let at = node.at.api;
    let post = |path: &'static str, body: &'static str| async move {
        let answer = http::request(at, "POST", path, &[], body).await.unwrap();
        (answer.status, answer.error_code())
    };
    assert_eq!(post("/v1/products/rooms/publish", "{nonsense").await, (400, "json".into()));
    assert_eq!(post("/v1/products/nope/publish", "{}").await, (404, "product_unknown".into()));
    assert_eq!(post("/v1/nothing", "{}").await.0, 404);
    let wrong = http::get(at, "/v1/products/rooms/publish").await.unwrap();
    assert_eq!(wrong.status, 405);
    assert!(wrong.head.to_ascii_lowercase().contains("allow: post"), "{}", wrong.head);
}

#[tokio::test]
async fn a_key_is_asked_for_where_one_is_set() {
    let key = "a-key-of-thirty-two-characters-or-more";
    let file = std::env::temp_dir().join(format!("mesh-tests-api-key-{}", std::process::id()));
    std::fs::write(&file, key).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let cluster = Cluster::start_with(1, &[("API__KEY_FILE", file.to_str().unwrap())]).await;
    let at = cluster.nodes[0].at.api;
    let path = "/v1/products/rooms/all";
    assert_eq!(http::get(at, path).await.unwrap().status, 401);
    let wrong = http::request(at, "GET", path, &[("Authorization", "Bearer wrong")], "").await.unwrap();
    assert_eq!(wrong.status, 401);
    let bearer = format!("Bearer {key}");
    let right = http::request(at, "GET", path, &[("Authorization", &bearer)], "").await.unwrap();
    assert_eq!(right.status, 200, "{}", right.body);
    assert!(!cluster.nodes[0].logged(key), "the key is in the log");
    std::fs::remove_file(file).unwrap();
}

/// What the README shows must run as it stands there, but for the port.
#[tokio::test]
async fn the_curl_lines_of_the_readme_run_as_written() {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<&str> = blocks.filter(|block| block.contains("curl ")).collect();
    let curls: usize =
        blocks.iter().map(|block| block.lines().filter(|l| l.starts_with("curl ")).count()).sum();
    assert!(curls >= 4, "the README has {curls} curl lines");
    let cluster = Cluster::start(1).await;
    let _alice = cluster.nodes[0].client("alice").await;
    let api = cluster.nodes[0].at.api.to_string();
    for block in blocks {
        // Each answer on a line of its own; anything but success ends the script.
        let curl = "set -e\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; echo; }\n";
        let script = format!("{curl}{}", block.replace("127.0.0.1:4081", &api));
        let (code, out, err) = run("sh", &["-c", &script]).await;
        assert_eq!(code, 0, "{script}\n{out}{err}");
        let answers: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(answers.len(), curls, "{script}\n{out}");
    }
}
