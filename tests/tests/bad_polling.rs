//! Bad input by long-polling, in upgrades and in packets: the reference server's answer or a better one,
//! and nobody else disturbed (`FAULTS` §3 by number).
//!
//! Every wrong request comes in at another node than the one the session is at.

use mesh_tests::cluster::Node;
use mesh_tests::engine::{EngineSocket, Kept, Polling};
use mesh_tests::{Cluster, http};

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// What becomes of the session that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    Stays,
    Ends,
}
use Session::{Ends, Stays};

fn request(line: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line} HTTP/1.1\r\nHost: x\r\n{more}").into_bytes();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

async fn metric(node: &Node, name: &str) -> u64 {
    let metrics = node.admin("/metrics").await.expect("metrics").body;
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn every_wrong_request_gets_its_answer_also_as_the_second_of_a_connection() {
    let cluster = Cluster::start(2).await;
    let (at, other) = (cluster.nodes[0].at.client, cluster.nodes[1].at.client);
    let bystander = Polling::connect(at, "bystander").await;
    let forged = {
        let mut forged = bystander.sid.clone();
        let last = if forged.ends_with('A') { "B" } else { "A" };
        forged.replace_range(forged.len() - 1.., last);
        forged
    };
    let long = "s".repeat(7_000);
    let too_long = "s".repeat(10_000);
    let many: String = "X: y\r\n".repeat(70);
    let big: String = format!("X: {}\r\n", "y".repeat(17_000));
    let odd = format!("{UPGRADE}Sec-WebSocket-Protocol: {}\r\n", ",;\"".repeat(3_000));
    // SID stands for the session's own id.
    let rows: Vec<(u8, String, &str, u16, &str)> = vec![
        (1, "GET /socket.io/?EIO=4".into(), "", 400, r#"{"code":0,"message":"Transport unknown"}"#),
        (1, "GET /socket.io/?EIO=4&transport=flash&sid=SID".into(), "", 400, r#""code":0"#),
        (1, "GET /socket.io/?EIO=4&transport=webtransport".into(), "", 400, r#""code":0"#),
        (2, format!("GET {POLLING}&sid=unknown"), "", 400, r#"{"code":1,"message":"Session ID unknown"}"#),
        (2, format!("GET {POLLING}&sid=__proto__"), "", 400, r#""code":1"#),
        (2, format!("GET {POLLING}&sid="), "", 400, r#""code":1"#),
        (2, format!("GET {POLLING}&sid={forged}"), "", 400, r#""code":1"#),
        (2, format!("POST {POLLING}&sid={forged}"), "", 400, r#""code":1"#),
        (2, format!("GET {POLLING}&sid=SID&sid=SID"), "", 400, r#""code":1"#),
        (2, format!("GET {POLLING}&sid={long}"), "", 400, r#""code":1"#),
        (2, format!("GET {WEBSOCKET}&sid={forged}"), UPGRADE, 400, r#""code":1"#),
        (3, format!("POST {POLLING}"), "", 400, r#"{"code":2,"message":"Bad handshake method"}"#),
        (3, format!("PUT {POLLING}"), "", 400, r#""code":2"#),
        (3, format!("DELETE {POLLING}"), "", 400, r#""code":2"#),
        (3, format!("DELETE {POLLING}&sid=SID"), "", 405, "GET or POST"),
        (3, format!("PUT {POLLING}&sid=SID"), "", 405, "GET or POST"),
        (4, format!("GET {WEBSOCKET}"), "", 400, r#"{"code":3,"message":"Bad request"}"#),
        (4, format!("GET {WEBSOCKET}&sid=SID"), "", 400, r#""code":3"#),
        (
            5,
            "GET /socket.io/?transport=polling".into(),
            "",
            400,
            r#"{"code":5,"message":"Unsupported protocol"#,
        ),
        (5, "GET /socket.io/?EIO=3&transport=polling".into(), "", 400, r#""code":5"#),
        (5, "GET /socket.io/?EIO=99&transport=polling".into(), "", 400, r#""code":5"#),
        (5, "GET /socket.io/?EIO=4&EIO=4&transport=polling".into(), "", 400, r#""code":5"#),
        (5, "GET /socket.io/?EIO=3&transport=polling&sid=SID".into(), "", 400, r#""code":3"#),
        (5, "GET /socket.io/?EIO=3&transport=websocket&sid=SID".into(), UPGRADE, 400, r#""code":3"#),
        (7, "OPTIONS /socket.io/?EIO=4&transport=polling&sid=SID".into(), "", 204, ""),
        (
            8,
            format!("POST {POLLING}&sid=SID"),
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
            "",
        ),
        (8, format!("POST {POLLING}&sid=SID"), "Content-Length: 1\r\nContent-Length: 1\r\n", 400, ""),
        (8, format!("POST {POLLING}&sid=SID"), "Transfer-Encoding: chunked, chunked\r\n", 400, ""),
        (8, format!("POST {POLLING}&sid=SID"), "X: a\r\n b\r\n", 400, ""),
        (8, format!("POST {POLLING}&sid=SID"), "X: a\n", 400, ""),
        (9, format!("GET {POLLING}&sid=SID"), "Host: y\r\n", 400, ""),
        (10, format!("GET {POLLING}&sid={too_long}"), "", 414, ""),
        (10, format!("GET {POLLING}&sid=SID"), &many, 431, ""),
        (10, format!("GET {POLLING}&sid=SID"), &big, 431, ""),
        (19, format!("GET {POLLING}&sid=SID&j=0"), "", 400, r#""code":3"#),
        (20, "PRI *".into(), "", 400, ""),
        (21, format!("GET {WEBSOCKET}"), "Upgrade: h2c\r\nConnection: Upgrade\r\n", 400, r#""code":3"#),
        (21, format!("GET {WEBSOCKET}"), "Upgrade: websocket\r\nConnection: close\r\n", 400, r#""code":3"#),
        (23, format!("GET {WEBSOCKET}&sid={forged}"), &odd, 400, r#""code":1"#),
        (25, "GET /socket.io/../../etc/passwd".into(), "", 404, ""),
        (25, "GET //socket.io/?EIO=4&transport=polling".into(), "", 404, ""),
        (25, "GET /socket.io/%00".into(), "", 404, ""),
        (25, "CONNECT x:1".into(), "", 400, ""),
        (26, "GET /metrics".into(), "", 404, ""),
        (26, "GET /healthz".into(), "", 404, ""),
    ];
    for (row, line, more, status, words) in rows {
        let line = line.replace("SID", &bystander.sid);
        let bytes = request(&line, more, b"");
        let shown: String = format!("row {row}: {line} {more:?}").chars().take(200).collect();
        for first_of_all in [true, false] {
            let mut kept = Kept::to(other).await;
            if !first_of_all {
                kept.send(&request(&format!("POST {}", bystander.target()), "", b"3")).await;
                let answer = kept.answer().await.unwrap_or_else(|| panic!("{shown}: closed too early"));
                assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{shown}");
            }
            kept.send(&bytes).await;
            let answer = kept.answer().await.unwrap_or_else(|| panic!("{shown}: no answer"));
            assert_eq!(answer.status, status, "{shown}: {answer:?}");
            assert!(answer.body.contains(words), "{shown}: {answer:?}");
        }
    }
    assert!(bystander.is_alive(other).await, "nothing of this ended a session");
}

#[tokio::test]
async fn every_bad_body_gets_its_answer_and_ends_its_own_session_or_none() {
    let cluster = Cluster::start(2).await;
    let (at, other) = (cluster.nodes[0].at.client, cluster.nodes[1].at.client);
    let bystander = Polling::connect(at, "bystander").await;
    let length = |length: usize| format!("Content-Length: {length}\r\n\r\n").into_bytes();
    let body = |body: &[u8]| [length(body.len()), body.to_vec()].concat();
    let chunked = |rest: &str| format!("Transfer-Encoding: chunked\r\n\r\n{rest}").into_bytes();
    let deep = format!("42[\"join\",{}{}]", "[".repeat(200), "]".repeat(200));
    let auth = format!("40{{\"token\":\"{}\"}}", "x".repeat(9_000));
    let attachments = format!("4511-[\"publish\"{}]", r#",{"_placeholder":true,"num":0}"#.repeat(11));
    let rows: Vec<(u8, Vec<u8>, u16, Session)> = vec![
        (12, length(1_000_001), 413, Ends),
        (13, chunked(&format!("f4241\r\n{}", "x".repeat(1_000))), 413, Ends),
        (13, chunked("1\r\n3x\r\n"), 400, Ends),
        (13, chunked("zz\r\n"), 400, Ends),
        (13, chunked("1\r\n3\r\n0\r\n\r\n"), 200, Stays),
        (15, [b"Content-Type: application/octet-stream\r\n".to_vec(), body(b"3")].concat(), 400, Ends),
        (16, body(b"9"), 200, Ends),
        (16, body(b"4\x1e"), 400, Ends),
        (17, body(&[0x1e; 1_000_000]), 400, Ends),
        (17, body("3\u{1e}".repeat(256).as_bytes()), 400, Ends),
        (17, body("3\u{1e}".repeat(255).trim_end_matches('\u{1e}').as_bytes()), 200, Stays),
        (18, body(b"4\xff\xfe"), 400, Ends),
        (18, body(b"b***"), 400, Ends),
        (42, body(b"7"), 200, Ends),
        (42, length(0), 400, Ends),
        (43, body(b"0\x1e3\x1e5\x1e6"), 200, Stays),
        (44, body(b"2"), 200, Ends),
        (44, body(b"2probe"), 200, Ends),
        (45, body(b"1"), 200, Ends),
        (50, body(b"42/other,[\"x\"]"), 200, Ends),
        (50, body(b"41/other,"), 200, Ends),
        (51, body(b"40"), 200, Ends),
        (51, body(b"44{}"), 200, Ends),
        (52, body(b"40/nope,"), 200, Stays),
        (53, body(b"40/nope,[1]"), 200, Ends),
        (53, body(auth.as_bytes()), 200, Ends),
        (54, body(b"42[\"connect\"]"), 200, Ends),
        (54, body(b"42[\"disconnecting\"]"), 200, Ends),
        (55, body(b"42{}"), 200, Ends),
        (55, body(b"42[]"), 200, Ends),
        (55, body(b"42[null]"), 200, Ends),
        (55, body(b"42[\"x\""), 200, Ends),
        (55, body(b"47"), 200, Ends),
        (55, body(b"42[1]"), 200, Stays),
        (56, body(deep.as_bytes()), 200, Ends),
        (58, body(b"437[]"), 200, Stays),
        (58, body(b"4212345678901234567890[\"rooms\"]"), 200, Stays),
        (59, body(b"450-[\"x\"]"), 200, Ends),
        (59, body(attachments.as_bytes()), 200, Ends),
        (59, body(b"45[\"x\"]"), 200, Ends),
        (60, body(b"bAQID"), 200, Ends),
        (60, body(b"451-[\"x\",{\"_placeholder\":true,\"num\":0}]\x1e42[\"x\"]"), 200, Ends),
        (60, body(b"451-[\"x\",{\"_placeholder\":true,\"num\":3}]\x1ebAQID"), 200, Ends),
        (62, body(b"41{}"), 200, Ends),
    ];
    for (number, (row, rest, status, session)) in rows.into_iter().enumerate() {
        let session_of = Polling::connect(at, &format!("u{number}")).await;
        let shown: String = String::from_utf8_lossy(&rest).chars().take(100).collect();
        let head = format!("POST {} HTTP/1.1\r\nHost: x\r\n", session_of.target()).into_bytes();
        let mut kept = Kept::to(other).await;
        kept.send(&[head, rest].concat()).await;
        let answer = kept.answer().await.unwrap_or_else(|| panic!("row {row}: {shown:?}: no answer"));
        assert_eq!(answer.status, status, "row {row}: {shown:?}: {answer:?}");
        let lives = session_of.is_alive(other).await;
        assert_eq!(lives, session == Stays, "row {row}: {shown:?}: {answer:?}");
    }
    assert!(bystander.is_alive(other).await);
    assert!(metric(&cluster.nodes[0], "meshd_protocol_errors_total").await > 20);
}

#[tokio::test]
async fn the_same_packets_over_a_websocket_close_it_or_not() {
    let cluster = Cluster::start(1).await;
    let node = cluster.nodes[0].at.client;
    let rows: [(u8, &str, Session); 17] = [
        (42, "9", Ends),
        (42, "", Ends),
        (43, "0", Stays),
        (43, "3", Stays),
        (43, "5", Stays),
        (44, "2", Ends),
        (44, "2probe", Ends),
        (45, "1", Ends),
        (50, "42/other,[\"x\"]", Ends),
        (51, "40", Ends),
        (51, "44{}", Ends),
        (52, "40/nope,", Stays),
        (55, "42[1]", Stays),
        (58, "4299999999999999999999[\"rooms\"]", Stays),
        (59, "450-[\"x\"]", Ends),
        (60, "451-[\"x\",{\"_placeholder\":true,\"num\":\"0\"}]", Ends),
        (62, "41{}", Ends),
    ];
    for (number, (row, text, session)) in rows.into_iter().enumerate() {
        let mut socket = EngineSocket::connect(node, &format!("u{number}")).await;
        socket.send(text).await;
        socket.send("427[\"rooms\"]").await;
        let mut answered = false;
        while let Some(text) = socket.next().await {
            if text.starts_with("437[") {
                answered = true;
                break;
            }
        }
        assert_eq!(answered, session == Stays, "row {row}: {text:?}");
    }
}

#[tokio::test]
async fn two_requests_at_once_by_two_nodes_end_the_session() {
    let cluster = Cluster::start(3).await;
    let [a, b, c] = [0, 1, 2].map(|n| cluster.nodes[n].at.client);
    let polling = Polling::connect(a, "alice").await;
    // Whichever reaches the session second ends it; the held one gets the last word.
    let (first, second) = tokio::join!(polling.get(b), polling.get(c));
    let (held, refused) = if first.status == 200 { (first, second) } else { (second, first) };
    assert_eq!((held.status, held.body.as_str()), (200, "1"));
    assert_eq!((refused.status, refused.body.contains(r#""code":3"#)), (400, true), "{refused:?}");
    assert!(!polling.is_alive(a).await);
}

#[tokio::test]
async fn upgrades_that_are_wrong_leave_the_session_as_it_was() {
    let cluster = Cluster::start(2).await;
    let (at, other) = (cluster.nodes[0].at.client, cluster.nodes[1].at.client);
    let polling = Polling::connect(at, "alice").await;
    // Row 46: without a probe, with something else than one, or with a second one.
    for words in [&["5"][..], &["42[\"x\"]"], &["2"], &["2probe", "2probe"], &["2probe", "9"]] {
        let mut socket = polling.upgrade(other).await.expect("101");
        for text in words {
            socket.send(text).await;
        }
        assert!(socket.rest().await.len() <= 1, "{words:?}");
        assert!(polling.is_alive(other).await, "{words:?}");
    }
    let mut socket = polling.upgrade(other).await.expect("101");
    socket.send_binary(b"2probe").await;
    assert!(socket.rest().await.is_empty());
    // Two at once: the second is closed, the first goes on.
    let mut first = polling.upgrade(other).await.expect("101");
    first.send("2probe").await;
    assert_eq!(first.next().await.as_deref(), Some("3probe"));
    let mut second = polling.upgrade(at).await.expect("101, as the reference server");
    assert!(second.rest().await.is_empty(), "closed without a word");
    first.send("5").await;
    first.send("421[\"rooms\"]").await;
    let got = first.next().await.expect("an answer");
    assert!(got == "6" || got.starts_with("431["), "{got}");
    // It has another transport now, or none: unknown to polling, at any node.
    for node in [at, other] {
        assert_eq!(polling.get(node).await.status, 400);
        assert_eq!(polling.post(node, "3").await.status, 400);
        // A WebSocket that comes just after the one that has taken over is closed, as the reference server does;
        // once nobody remembers the session, it is refused before 101.
        match polling.upgrade(node).await {
            Ok(mut socket) => assert!(socket.rest().await.is_empty(), "closed without a word"),
            Err(refused) => {
                assert_eq!((refused.0, refused.1.contains(r#""code":1"#)), (400, true), "{refused:?}")
            }
        }
    }
    // Row 4: nor has a session that began over a WebSocket another one.
    let mut socket = EngineSocket::open(at, "&product=rooms&uid=bob").await.expect("101");
    let open = socket.next().await.expect("open");
    let sid = open.split('"').nth(3).expect("a sid").to_owned();
    let direct = Polling { sid };
    assert_eq!(direct.get(other).await.status, 400);
    assert_eq!(direct.upgrade(other).await.expect_err("refused").0, 400);
    socket.send("40").await;
    assert!(socket.next().await.is_some_and(|text| text.starts_with("40{")), "unhurt");
}

#[tokio::test]
async fn an_upgrade_that_stalls_is_closed_and_the_session_goes_on() {
    let cluster = Cluster::start(2).await;
    let (at, other) = (cluster.nodes[0].at.client, cluster.nodes[1].at.client);
    let stalled = async |uid: &str, words: &[&str]| {
        let polling = Polling::connect(at, uid).await;
        let mut socket = polling.upgrade(other).await.expect("101");
        for text in words {
            socket.send(text).await;
        }
        assert_eq!(socket.rest().await.len(), words.len(), "{uid} is closed in time");
        assert!(polling.is_alive(other).await, "{uid}");
    };
    tokio::join!(stalled("silent", &[]), stalled("probed", &["2probe"]));
}

#[tokio::test]
async fn pages_of_listed_origins_alone_get_credentials() {
    let cluster = Cluster::start_with(1, &[("CLIENT__ALLOWED_ORIGINS", "https://app.example")]).await;
    let node = cluster.nodes[0].at.client;
    let ask = async |method: &str, transport: &str, more: &str| {
        let line = format!("{method} /socket.io/?EIO=4&transport={transport}&product=rooms&uid=a");
        let mut kept = Kept::to(node).await;
        kept.send(&request(&line, more, b"")).await;
        let answer = kept.answer().await.expect("an answer");
        let cors: Vec<&str> = answer.head.lines().filter(|line| line.starts_with("Access-Control")).collect();
        (answer.status, cors.join("\n"))
    };
    let listed = "Origin: https://app.example\r\n";
    let (status, cors) = ask("GET", "polling", listed).await;
    let expected = "Access-Control-Allow-Origin: https://app.example\nAccess-Control-Allow-Credentials: true";
    assert_eq!((status, cors), (200, expected.to_owned()));
    let preflight =
        format!("{listed}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-a\r\n");
    let (status, cors) = ask("OPTIONS", "polling", &preflight).await;
    assert_eq!(status, 204);
    assert!(
        cors.starts_with(expected) && cors.contains("Allow-Methods: ") && cors.contains("Allow-Headers: x-a")
    );
    for foreign in ["https://evil.example", "null", "https://app.example.evil", "http://app.example"] {
        for (transport, more) in [("polling", ""), ("websocket", UPGRADE)] {
            let (status, cors) = ask("GET", transport, &format!("Origin: {foreign}\r\n{more}")).await;
            assert_eq!((status, cors.as_str()), (403, ""), "{foreign} by {transport}");
        }
        let (_, cors) = ask("OPTIONS", "polling", &format!("Origin: {foreign}\r\n")).await;
        assert_eq!(cors, "", "{foreign}");
    }
    assert_eq!(ask("GET", "polling", &format!("{listed}Origin: https://evil.example\r\n")).await.0, 403);
    assert_eq!(ask("GET", "polling", "").await, (200, String::new()), "no page");
    let any = Cluster::start(1).await;
    let line = "GET /socket.io/?EIO=4&transport=polling&product=rooms&uid=a";
    let bytes = request(line, &format!("{listed}Connection: close\r\n"), b"");
    let answer = http::raw(any.nodes[0].at.client, &bytes);
    let head = answer.await.expect("an answer").head;
    assert!(head.contains("Access-Control-Allow-Origin: *") && !head.contains("Credentials"), "{head}");
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let cluster = Cluster::start(1).await;
    let node = cluster.nodes[0].at.client;
    let polling = Polling::connect(node, "alice").await;
    let mut slow = Kept::to(node).await;
    let head = format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n4", polling.target());
    slow.send(head.as_bytes()).await;
    assert_eq!(slow.answer().await.expect("an answer").status, 408);
    assert!(!polling.is_alive(node).await);
}
