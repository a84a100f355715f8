use std::sync::Mutex;

use mesh_proto::id::{Cursor, NodeId, NodeRef, SocketSid, Term};
use mesh_proto::view::View;
use mesh_proto::wire::{Action, Command, DedupeKey, Gathered, Member, Members, Payload};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::handles::{ShardHandle, ToShard};
use crate::identity::{Product, Products};
use crate::web::BearerKeys;
use crate::web::testing::{Answered, Running, run};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const SID: SocketSid = SocketSid([7; 16]);

type Asked = Arc<Mutex<Vec<Query>>>;

/// An API over two shards that note what they are asked and answer as `answer` says.
struct Story {
    running: Running,
    asked: Asked,
}

impl Story {
    async fn new(answer: impl Fn(&Query) -> Result<Answer, CommandFailed> + Send + Clone + 'static) -> Self {
        let asked = Asked::default();
        let shards = [0, 1].map(|shard| shard_answering(shard, asked.clone(), answer.clone()));
        let products = Products::new(Product::rooms(ProductRules::open("rooms")), [], false);
        let access = Access::Keys(BearerKeys::new([KEY]).unwrap());
        let api = Api::new(
            Shards(Arc::from(shards)),
            watch::channel(Arc::new(View::new(1, me(), Vec::new(), 1))).1,
            watch::channel(Arc::new(products)).1,
            Limits::default(),
            access,
            Arc::default(),
        );
        Self { running: run(api).await, asked }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answered {
        self.running.ask(method, path, &format!("Authorization: Bearer {KEY}\r\n"), body).await
    }

    async fn post(&self, path: &str, body: &str) -> Answered {
        self.ask("POST", &format!("/v1/products/rooms/{path}"), body).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask("GET", &format!("/v1/products/rooms/{path}"), "").await
    }

    fn last(&self) -> Query {
        self.asked.lock().unwrap().last().cloned().expect("a shard was asked")
    }
}

fn me() -> NodeRef {
    NodeRef { id: NodeId(1), incarnation: 1 }
}

fn at(seq: u64) -> Cursor {
    Cursor { term: Term { number: 3, owner: me() }, seq }
}

fn shard_answering(
    shard: u16,
    asked: Asked,
    answer: impl Fn(&Query) -> Result<Answer, CommandFailed> + Send + 'static,
) -> ShardHandle {
    let (tx, mut rx) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(input) = rx.recv().await {
            if let ToShard::Query(query, reply) = input {
                let _ = reply.send(answer(&query));
                asked.lock().unwrap().push(query);
            }
        }
    });
    ShardHandle { shard: ShardIx(shard), tx }
}

/// What a quiet cluster with one session of everyone would say.
fn fine(query: &Query) -> Result<Answer, CommandFailed> {
    Ok(match query {
        Query::Publish(publish) => Answer::Published { at: at(9), duplicate: publish.dedupe.is_some() },
        Query::User { .. } | Query::Session { .. } => Answer::Done { sessions: 1 },
        Query::Members { list, .. } => {
            let member = Member { uid: "alice".into(), sid: SID };
            let listed = if *list { vec![member] } else { Vec::new() };
            Answer::Members(Members { sessions: 1, listed, silent: vec![me()] })
        }
        Query::History { .. } => Answer::History(vec![(at(9), Payload::json(r#"["news",1.0]"#))]),
        Query::ExplainUser { .. } => Answer::User(Vec::new()),
        _ => return Err(CommandFailed::NotFound),
    })
}

#[tokio::test]
async fn a_publish_reaches_the_room_with_its_bytes_untouched() {
    let story = Story::new(fine).await;
    let body = r#"{"room":"lobby","event":"n\u0065ws","args":[ 1.0, {"b":1,"a":2}, "é" ],
        "except":{"rooms":["muted"],"sids":["BwcHBwcHBwcHBwcHBwcHBw"]},"id":"k1"}"#;
    let answer = story.post("publish", body).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"pos": "3-1-1.9", "duplicate": true})));
    let Query::Publish(publish) = story.last() else { panic!("{:?}", story.last()) };
    assert_eq!(format!("{:?}", publish.room), "rooms/#lobby");
    assert_eq!(publish.event.payload.json, r#"["n\u0065ws",1.0, {"b":1,"a":2}, "é"]"#);
    assert_eq!(publish.event.except_sids, [SID]);
    assert_eq!(publish.event.except_rooms, ["muted".into()]);
    assert_eq!(publish.dedupe, Some(DedupeKey { uid: None, key: "k1".into() }));
}

#[tokio::test]
async fn everyone_is_the_room_without_a_name() {
    let story = Story::new(fine).await;
    let answer =
        story.post("publish", r#"{"all":true,"namespace":"/chat","event":"e","volatile":true}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let Query::Publish(publish) = story.last() else { panic!("{:?}", story.last()) };
    assert!(publish.room.is_everyone() && publish.event.volatile);
    assert_eq!(&**publish.room.namespace(), "/chat");
    assert_eq!(publish.event.payload.json, r#"["e"]"#);
}

#[tokio::test]
async fn a_user_or_a_session_is_sent_to_and_commanded() {
    let story = Story::new(fine).await;
    let answer = story.post("publish", r#"{"uid":"alice","event":"e","args":[]}"#).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"delivered": 1})));
    assert!(matches!(story.last(), Query::User { command: Command::Emit { .. }, .. }));
    let sid = SID.to_text();
    for (path, body, command) in [
        ("join", format!(r#"{{"sid":"{sid}","room":"vip"}}"#), Command::Join("vip".into())),
        ("leave", format!(r#"{{"sid":"{sid}","room":"vip"}}"#), Command::Leave("vip".into())),
        ("disconnect", format!(r#"{{"sid":"{sid}"}}"#), Command::Disconnect { close: true }),
        ("disconnect", format!(r#"{{"sid":"{sid}","close":false}}"#), Command::Disconnect { close: false }),
    ] {
        let answer = story.post(path, &body).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"sessions": 1})), "{path}");
        assert_eq!(story.last(), Query::Session { product: "rooms".into(), sid: SID, command });
    }
}

#[tokio::test]
async fn something_is_done_to_the_members_of_a_room() {
    let story = Story::new(|query| match query {
        Query::Broadcast(_) => Ok(Answer::Gathered(Gathered {
            answers: vec![(SID, None)],
            missing: 2,
            silent: vec![me()],
            ..Gathered::default()
        })),
        _ => Err(CommandFailed::NotFound),
    })
    .await;
    for (path, body, action) in [
        ("join", r#"{"in":"lobby","room":"vip"}"#, Action::Join(vec!["vip".into()])),
        ("leave", r#"{"in":"lobby","room":"vip"}"#, Action::Leave(vec!["vip".into()])),
        ("disconnect", r#"{"in":"lobby","close":false}"#, Action::Disconnect { close: false }),
    ] {
        let answer = story.post(path, body).await;
        let told = json!({"sessions": 1, "missing": 2, "silent": ["00000000.1"]});
        assert_eq!((answer.status, answer.json()), (200, told), "{path}");
        let Query::Broadcast(asked) = story.last() else { panic!("{:?}", story.last()) };
        assert_eq!((format!("{:?}", asked.rooms), asked.action), ("[rooms/#lobby]".into(), Some(action)));
    }
    let but = r#"{"all":true,"namespace":"/chat","except":{"rooms":["staff"]}}"#;
    assert_eq!(story.post("disconnect", but).await.status, 200);
    let Query::Broadcast(asked) = story.last() else { panic!("{:?}", story.last()) };
    assert!(asked.rooms[0].is_everyone() && asked.event.except_rooms == ["staff".into()]);
    for (body, code) in [
        (r#"{"in":"lobby","uid":"alice"}"#, "target"),
        (r#"{"all":false}"#, "target"),
        (r#"{"uid":"alice","except":{"rooms":["staff"]}}"#, "arguments"),
    ] {
        assert_eq!(story.post("disconnect", body).await.outcome(), (400, code.into()), "{body}");
    }
    assert_eq!(story.post("disconnect", r#"{"in":""}"#).await.outcome(), (400, "room".into()));
    let unserved = || Ok(Answer::Gathered(Gathered { unserved: 1, ..Gathered::default() }));
    let silent = Story::new(move |_| unserved()).await;
    assert_eq!(silent.post("disconnect", r#"{"in":"lobby"}"#).await.status, 504);
}

#[tokio::test]
async fn nobody_there_is_no_error_of_a_publish() {
    for answer in [Err(CommandFailed::NotFound), Ok(Answer::Done { sessions: 0 })] {
        let story = Story::new(move |_| answer.clone()).await;
        for who in [r#""uid":"alice""#.to_owned(), format!(r#""sid":"{}""#, SID.to_text())] {
            let answer = story.post("publish", &format!(r#"{{{who},"event":"e"}}"#)).await;
            assert_eq!((answer.status, answer.json()), (202, json!({"delivered": 0})));
            let answer = story.post("disconnect", &format!("{{{who}}}")).await;
            assert_eq!(answer.outcome(), (404, "session_unknown".into()));
        }
    }
}

#[tokio::test]
async fn rooms_and_users_can_be_looked_at() {
    let story = Story::new(fine).await;
    assert_eq!(story.get("rooms/lobby").await.json(), json!({"sessions": 1, "silent": ["00000000.1"]}));
    let members = story.get("rooms/a%2Fb/members?namespace=%2Fchat").await.json();
    assert_eq!(members["members"], json!([{"uid": "alice", "sid": SID.to_text()}]));
    let Query::Members { room, .. } = story.last() else { panic!("{:?}", story.last()) };
    assert_eq!(format!("{room:?}"), "rooms/chat#a/b");
    let history = story.get("all/history?limit=5").await;
    assert!(history.body.contains(r#""event":["news",1.0]"#), "{history:?}");
    assert!(matches!(story.last(), Query::History { count: 5, .. }));
    assert_eq!(story.get("users/alice").await.json(), json!({"uid": "alice", "sessions": []}));
    let unknown = Story::new(|_| Err(CommandFailed::NotFound)).await;
    assert_eq!(unknown.get("rooms/lobby").await.json(), json!({"sessions": 0, "silent": []}));
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item_in_order() {
    let story = Story::new(fine).await;
    let body = r#"{"items":[
        {"publish":{"room":"a","event":"e","args":[1]}},
        {"publish":{"room":"","event":"e"}},
        {"dance":{}},
        {"join":{"uid":"alice","room":"vip"}},
        17]}"#;
    let headers = format!("Authorization: Bearer {KEY}\r\nIdempotency-Key: night\r\n");
    let answer = story.running.ask("POST", "/v1/products/rooms/batch", &headers, body).await;
    let results = answer.json()["results"].clone();
    let statuses: Vec<u64> =
        results.as_array().unwrap().iter().map(|r| r["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 400, 400, 200, 400], "{results}");
    assert_eq!(results[0]["body"]["duplicate"], true);
    assert_eq!(results[3]["body"], json!({"sessions": 1}));
    let asked = story.asked.lock().unwrap();
    let published = asked.iter().find_map(|q| if let Query::Publish(p) = q { Some(p) } else { None });
    assert_eq!(&*published.unwrap().dedupe.as_ref().unwrap().key, "night#0");
}

#[tokio::test]
async fn a_hundred_items_run_and_one_more_is_too_many() {
    let story = Story::new(fine).await;
    let items = |count: usize| {
        let item = r#"{"publish":{"room":"a","event":"e"}}"#;
        format!(r#"{{"items":[{}]}}"#, vec![item; count].join(","))
    };
    let answer = story.post("batch", &items(100)).await.json();
    assert!(answer["results"].as_array().unwrap().iter().all(|r| r["status"] == 200));
    assert_eq!(story.post("batch", &items(101)).await.outcome(), (413, "too_large".into()));
    assert_eq!(story.post("batch", &items(0)).await.json(), json!({"results": []}));
}

#[tokio::test]
async fn failures_of_the_cluster_have_their_statuses() {
    for (failed, status, code, retry) in [
        (CommandFailed::Timeout, 504, "timeout", Some("1")),
        (CommandFailed::NoOwner, 503, "no_owner", Some("1")),
        (CommandFailed::Overloaded, 503, "overloaded", Some("1")),
        (CommandFailed::Refused("rooms_per_node".into()), 409, "refused", None),
    ] {
        let story = Story::new(move |_| Err(failed.clone())).await;
        let answer = story.post("publish", r#"{"room":"a","event":"e"}"#).await;
        assert_eq!(answer.outcome(), (status, code.into()));
        assert_eq!(answer.header("retry-after"), retry, "{answer:?}");
    }
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let story = Story::new(fine).await;
    let long_room = format!(r#"{{"room":"{}","event":"e"}}"#, "r".repeat(257));
    let long_uid = format!(r#"{{"uid":"{}","event":"e"}}"#, "u".repeat(129));
    let long_name = format!(r#"{{"room":"a","event":"{}"}}"#, "e".repeat(129));
    let deep = format!(r#"{{"room":"a","event":"e","args":[{}{}]}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"room":"a","event":"e","args":["{}"]}}"#, "x".repeat(1_000_001));
    let huge = format!(r#"{{"room":"a","event":"e","args":["{}"]}}"#, "x".repeat(1_100_000));
    let many = format!(r#"{{"room":"a","event":"e","except":{{"rooms":{:?}}}}}"#, vec!["r"; 101]);
    let long_key = format!(r#"{{"room":"a","event":"e","id":"{}"}}"#, "k".repeat(257));
    let asked_before = story.asked.lock().unwrap().len();
    for (path, body, status, code) in [
        ("publish", "", 400, "json"),
        ("publish", "{", 400, "json"),
        ("publish", "[]", 400, "arguments"),
        ("publish", "{}", 400, "arguments"),
        ("publish", r#"{"room":"a"}"#, 400, "arguments"),
        ("publish", r#"{"room":"a","event":"e"} x"#, 400, "json"),
        ("publish", r#"{"room":"a","event":"e","rom":1}"#, 400, "arguments"),
        ("publish", r#"{"room":"a","room":"b","event":"e"}"#, 400, "arguments"),
        ("publish", r#"{"room":1,"event":"e"}"#, 400, "arguments"),
        ("publish", r#"{"event":"e"}"#, 400, "target"),
        ("publish", r#"{"all":false,"event":"e"}"#, 400, "target"),
        ("publish", r#"{"room":"a","uid":"b","event":"e"}"#, 400, "target"),
        ("publish", r#"{"room":"a","all":true,"event":"e"}"#, 400, "target"),
        ("publish", r#"{"room":"","event":"e"}"#, 400, "room"),
        ("publish", &long_room, 400, "room"),
        ("publish", r#"{"uid":"","event":"e"}"#, 400, "uid_required"),
        ("publish", r#"{"uid":"a\u0000","event":"e"}"#, 400, "uid_invalid"),
        ("publish", &long_uid, 400, "uid_invalid"),
        ("publish", r#"{"sid":"short","event":"e"}"#, 400, "sid"),
        ("publish", r#"{"uid":"a","event":"e","volatile":true}"#, 400, "arguments"),
        ("publish", r#"{"room":"a","event":1}"#, 400, "event_name"),
        ("publish", r#"{"room":"a","event":null}"#, 400, "event_name"),
        ("publish", r#"{"room":"a","event":"connect"}"#, 400, "event_name"),
        ("publish", r#"{"room":"a","event":"\u0064isconnect"}"#, 400, "event_name"),
        ("publish", &long_name, 400, "event_name"),
        ("publish", r#"{"room":"a","event":"e","args":{}}"#, 400, "arguments"),
        ("publish", r#"{"room":"a","event":"e","args":"[1]"}"#, 400, "arguments"),
        ("publish", r#"{"room":"a","event":"e","args":[{"_placeholder":true,"num":0}]}"#, 400, "placeholder"),
        ("publish", &deep, 400, "depth"),
        ("publish", &large, 413, "too_big"),
        ("publish", &huge, 413, "too_large"),
        ("publish", &many, 400, "except"),
        ("publish", r#"{"room":"a","event":"e","except":{"sids":["x"]}}"#, 400, "sid"),
        ("publish", r#"{"room":"a","event":"e","id":""}"#, 400, "idempotency_key"),
        ("publish", &long_key, 400, "idempotency_key"),
        ("join", r#"{"uid":"a"}"#, 400, "arguments"),
        ("join", r#"{"uid":"a","room":""}"#, 400, "room"),
        ("join", r#"{"room":"a"}"#, 400, "target"),
        ("join", r#"{"uid":"a","sid":"BwcHBwcHBwcHBwcHBwcHBw","room":"a"}"#, 400, "target"),
        ("leave", r#"{"uid":"a","room":"a","force":true}"#, 400, "arguments"),
        ("disconnect", r#"{"uid":"a","close":"yes"}"#, 400, "arguments"),
        ("batch", r#"{"items":{}}"#, 400, "arguments"),
        ("batch", "[]", 400, "arguments"),
    ] {
        let answer = story.post(path, body).await;
        assert_eq!(answer.outcome(), (status, code.into()), "{path} {:.80} {answer:?}", body);
        let message = answer.json()["error"]["message"].as_str().map(str::len);
        assert!(message.is_some_and(|len| (1..300).contains(&len)), "{answer:?}");
    }
    assert_eq!(story.asked.lock().unwrap().len(), asked_before, "no shard was bothered");
}

#[tokio::test]
async fn paths_methods_and_parameters_are_exact() {
    let story = Story::new(fine).await;
    for (method, path, status, code) in [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/products/rooms", 404, "not_found"),
        ("GET", "/v1/products/rooms/rooms/", 404, "not_found"),
        ("GET", "/v1/products/rooms/rooms/a/members/x", 404, "not_found"),
        ("GET", "/metrics", 404, "not_found"),
        ("POST", "/v1/products/nope/publish", 404, "product_unknown"),
        ("GET", "/v1/products/rooms/rooms/%ff", 400, "path"),
        ("GET", "/v1/products/rooms/rooms/a/history?limit=0", 400, "limit"),
        ("GET", "/v1/products/rooms/rooms/a/history?limit=x", 400, "limit"),
        ("GET", "/v1/products/rooms/rooms/a?name=x", 400, "query"),
        ("GET", "/v1/products/rooms/publish", 405, "method_not_allowed"),
        ("PUT", "/v1/products/rooms/publish", 405, "method_not_allowed"),
        ("POST", "/v1/products/rooms/rooms/a", 405, "method_not_allowed"),
        ("DELETE", "/v1/products/rooms/users/a", 405, "method_not_allowed"),
    ] {
        let answer = story.ask(method, path, "").await;
        assert_eq!(answer.outcome(), (status, code.into()), "{method} {path}");
        if status == 405 {
            let allow = if path.ends_with("publish") { "POST" } else { "GET, HEAD" };
            assert_eq!(answer.header("allow"), Some(allow), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn without_the_key_nothing_is_told() {
    let story = Story::new(fine).await;
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic YTpi\r\n"] {
        let answer = story.running.ask("GET", "/v1/products/rooms/all", headers, "").await;
        assert_eq!(answer.outcome(), (401, "unauthorized".into()), "{headers}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
}

#[tokio::test]
async fn the_same_key_in_header_and_body_is_one_key() {
    let story = Story::new(fine).await;
    let headers = format!("Authorization: Bearer {KEY}\r\nIdempotency-Key: k\r\n");
    let ask = async |path: &str, body: &str| {
        story.running.ask("POST", &format!("/v1/products/rooms/{path}"), &headers, body).await
    };
    assert_eq!(ask("publish", r#"{"room":"a","event":"e","id":"k"}"#).await.status, 200);
    assert_eq!(ask("publish", r#"{"room":"a","event":"e"}"#).await.json()["duplicate"], Value::Bool(true));
    let differs = ask("publish", r#"{"room":"a","event":"e","id":"other"}"#).await;
    assert_eq!(differs.outcome(), (400, "idempotency_key".into()));
    assert_eq!(ask("join", r#"{"uid":"a","room":"a"}"#).await.outcome(), (400, "idempotency_key".into()));
}
