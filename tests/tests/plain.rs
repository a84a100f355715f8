//! The plain WebSocket protocol, as `docs/protocol.md` has it, against three real nodes.

use mesh_tests::Cluster;
use mesh_tests::plain::PlainClient;
use serde_json::{Value, json};

async fn members(cluster: &Cluster, room: &str) -> Vec<PlainClient> {
    let mut members = Vec::new();
    for (index, node) in cluster.nodes.iter().enumerate() {
        let mut client = node.client(&format!("member{index}")).await;
        client.join(room).await;
        members.push(client);
    }
    members
}

#[tokio::test]
async fn a_conversation_goes_as_documented() {
    let cluster = Cluster::start(2).await;
    let mut a = cluster.nodes[0].client("alice").await;
    assert_eq!(a.welcome["uid"], "alice");
    assert_eq!(a.welcome["product"], "rooms");
    assert_eq!(a.welcome["node"], cluster.nodes[0].name);
    assert!(a.sid().len() > 10 && a.welcome["message_bytes_max"] == 1_000_000);
    let mut b = cluster.nodes[1].client("bob").await;
    a.join("lobby").await;
    b.join("lobby").await;
    let publish = json!({ "type": "publish", "room": "lobby", "event": "say",
                          "args": ["hello", { "n": 1 }], "self": true });
    let ack = a.ok(publish).await;
    let own = a.event().await;
    assert_eq!(
        own,
        json!({ "type": "event", "room": "lobby", "pos": ack["pos"], "event": "say",
                            "args": ["hello", { "n": 1 }] })
    );
    assert_eq!(b.event().await, own, "the same for everyone");
    assert_eq!(b.ok(json!({ "type": "rooms" })).await["rooms"], json!(["lobby"]));
    b.send(&json!({ "type": "ping" })).await;
    b.until(|m| m["type"] == "pong").await;
}

#[tokio::test]
async fn members_by_any_node_get_one_order() {
    const EACH: u64 = 200;
    let cluster = Cluster::start(3).await;
    let mut members = members(&cluster, "order").await;
    let mut publishers = Vec::new();
    for (who, node) in cluster.nodes.iter().enumerate() {
        let mut client = node.client(&format!("publisher{who}")).await;
        client.join("order").await;
        publishers.push(tokio::spawn(async move {
            for n in 0..EACH {
                client.say("order", "say", json!([who, n])).await;
            }
        }));
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let all = usize::try_from(EACH).unwrap() * cluster.nodes.len();
    let first = members[0].arguments(all).await;
    for member in &mut members[1..] {
        assert_eq!(member.arguments(all).await, first);
    }
    for who in 0..cluster.nodes.len() {
        let own: Vec<u64> = first.iter().filter(|a| a[0] == who).filter_map(|a| a[1].as_u64()).collect();
        assert!(own.is_sorted() && own.len() as u64 == EACH, "one publisher's order, nothing twice: {own:?}");
    }
}

#[tokio::test]
async fn a_key_is_published_once_per_user() {
    let cluster = Cluster::start(3).await;
    let mut members = members(&cluster, "r").await;
    let mut a = cluster.nodes[0].client("a").await;
    let mut again = cluster.nodes[1].client("a").await;
    let publish = |text: &str, key: Value| json!({ "type": "publish", "room": "r", "event": "say", "args": [text], "key": key });
    for client in [&mut a, &mut again] {
        client.join("r").await;
    }
    let first = a.ok(publish("one", json!("k"))).await;
    let second = again.ok(publish("one again", json!("k"))).await;
    assert_eq!(first["pos"], second["pos"]);
    a.ok(publish("two", json!(7))).await;
    for member in &mut members {
        assert_eq!(member.arguments(2).await, ["one", "two"]);
    }
}

#[tokio::test]
async fn except_leaves_out_sessions_and_rooms() {
    let cluster = Cluster::start(3).await;
    let mut members = members(&cluster, "r").await;
    members[2].join("quiet").await;
    let mut a = cluster.nodes[0].client("a").await;
    a.join("r").await;
    let out = members[1].sid().to_owned();
    for (text, except) in [("1", json!(out)), ("2", json!(["quiet"])), ("3", json!([]))] {
        let publish =
            json!({ "type": "publish", "room": "r", "event": "say", "args": [text], "except": except });
        a.ok(publish).await;
    }
    assert_eq!(members[0].arguments(3).await, ["1", "2", "3"]);
    assert_eq!(members[1].arguments(2).await, ["2", "3"]);
    assert_eq!(members[2].arguments(2).await, ["1", "3"]);
}

#[tokio::test]
async fn bytes_travel_beside_the_json() {
    let cluster = Cluster::start(2).await;
    let mut members = members(&cluster, "r").await;
    let mut a = cluster.nodes[0].client("a").await;
    a.join("r").await;
    let placeholder = json!({ "_placeholder": true, "num": 0 });
    let photo = json!({ "type": "publish", "room": "r", "event": "photo", "args": ["cat", placeholder],
                        "attachments": ["/9j/4AAQ"] });
    a.ok(photo).await;
    for member in &mut members {
        let event = member.event().await;
        assert_eq!(event["args"], json!(["cat", placeholder]));
        assert_eq!(event["attachments"], json!(["/9j/4AAQ"]));
    }
}

#[tokio::test]
async fn what_can_be_refused_is_refused_by_code_and_the_connection_stays() {
    let cluster = Cluster::start(1).await;
    let mut a = cluster.nodes[0].client("a").await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let long = "x".repeat(257);
    let before_join = [
        (json!({ "type": "join", "room": "" }), "room_name"),
        (json!({ "type": "join", "room": long }), "room_name"),
        (json!({ "type": "join" }), "arguments"),
        (json!({ "type": "join", "room": "r", "rom": 1 }), "arguments"),
        (json!({ "type": "dance" }), "unknown_event"),
        (json!({ "type": "publish", "room": "r", "event": "say" }), "not_member"),
    ];
    for (request, code) in before_join {
        let answer = a.ask(request.clone()).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!(code)), "{request}");
    }
    a.join("r").await;
    let placeholder = json!({ "_placeholder": true, "num": 1 });
    let in_room = [
        (json!({ "type": "publish", "room": "r", "event": "disconnect" }), "event_name"),
        (json!({ "type": "publish", "room": "r", "event": ["say"] }), "event_name"),
        (json!({ "type": "publish", "room": "r", "event": "say", "args": 5 }), "arguments"),
        (json!({ "type": "publish", "room": "r", "event": "say", "args": [placeholder] }), "placeholder"),
        (json!({ "type": "publish", "room": "r", "event": "say", "attachments": ["*"] }), "attachments"),
        (json!({ "type": "publish", "room": "r", "event": "say", "exept": "x" }), "arguments"),
    ];
    for (request, code) in in_room {
        let answer = a.ask(request.clone()).await;
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!(code)), "{request}");
    }
    a.send_text(format!(r#"{{"type":"publish","id":99,"room":"r","event":"say","args":[{deep}]}}"#)).await;
    let told = a.until(|m| m["type"] == "error" || m["id"] == 99).await;
    assert_eq!(told["code"], "depth");
    a.send_text("{nonsense").await;
    assert_eq!(a.until(|m| m["type"] == "error").await["code"], "json");
    assert!(a.is_alive().await);
}

#[tokio::test]
async fn a_refused_client_is_told_why_and_closed_with_4430() {
    let cluster = Cluster::start(1).await;
    let refusals = [
        ("/ws?product=rooms", "uid_required"),
        ("/ws?product=nope&uid=a", "product_unknown"),
        ("/ws?product=rooms&uid=%00", "uid_invalid"),
    ];
    for (path, code) in refusals {
        let mut client = PlainClient::open(cluster.nodes[0].at.client, path).await;
        assert_eq!(client.until(|m| m["type"] == "error").await["code"], code, "{path}");
        assert_eq!(client.closed().await, Some(4430), "{path}");
    }
}

#[tokio::test]
async fn a_silent_client_is_closed_and_one_that_answers_is_not() {
    let quick = [("LIMITS__PING_INTERVAL", "2s"), ("LIMITS__PING_TIMEOUT", "1s")];
    let cluster = Cluster::start_with(1, &quick).await;
    let node = &cluster.nodes[0];
    let mut awake = node.client("awake").await;
    let silent = PlainClient::open(node.at.client, "/ws?product=rooms&uid=silent").await;
    let mut silent = silent.without_heartbeat();
    let (code, ()) = tokio::join!(silent.closed(), awake.serve_pings(3));
    assert_eq!(code, Some(4408));
    assert!(awake.is_alive().await);
}

#[tokio::test]
async fn one_session_too_many_ends_the_oldest() {
    let cluster = Cluster::start_with(2, &[("LIMITS__SESSIONS_PER_UID_MAX", "2")]).await;
    let mut sessions = Vec::new();
    for index in 0..3 {
        let mut session = cluster.nodes[index % 2].client("same").await;
        session.join("r").await;
        sessions.push(session);
    }
    assert_eq!(sessions[0].closed().await, Some(4409));
    for session in &mut sessions[1..] {
        assert!(session.is_alive().await);
    }
}
