//! Golden messages in both directions, refusals with their codes, arbitrary bytes.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::id::{Cursor, NodeId, NodeRef, SocketSid, Term};
use crate::limits::Limits;
use crate::product::rooms::{self, Request};
use crate::product::{ErrorCode, ack_error, ack_ok};
use crate::shard::{CloseCode, Packet};
use crate::wire::Payload;

fn read(text: &str) -> Result<PlainRequest, PlainError> {
    decode(&Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
}

fn text(packet: &Packet) -> &str {
    match packet {
        Packet::Text(text) => std::str::from_utf8(text).unwrap(),
        Packet::Binary(_) => panic!("binary"),
    }
}

fn cursor() -> Cursor {
    Cursor { term: Term { number: 3, owner: NodeRef { id: NodeId(0xab), incarnation: 17 } }, seq: 42 }
}

#[test]
fn requests_become_the_events_of_the_rooms_product() {
    for (message, id, json) in [
        (r#"{"type":"join","room":"r","id":1}"#, Some(1), r#"["join","r"]"#),
        (r#" { "room" : "\u00e9" , "type" : "jo\u0069n" } "#, None, r#"["join","\u00e9"]"#),
        (r#"{"type":"join","room":"r","since":"3-ab-11.42"}"#, None, r#"["join","r"]"#),
        (r#"{"type":"leave","room":"r","id":9007199254740991}"#, Some((1 << 53) - 1), r#"["leave","r"]"#),
        (r#"{"type":"rooms","id":0}"#, Some(0), r#"["rooms"]"#),
        (r#"{"type":"publish","room":"r","event":"e"}"#, None, r#"["publish","r","e"]"#),
        (r#"{"type":"publish","room":"r","event":"e","args":[ ]}"#, None, r#"["publish","r","e"]"#),
        (
            r#"{"type":"publish","room":"r","event":"e","args":[ 1e999,{"a":"]"} ]}"#,
            None,
            r#"["publish","r","e",1e999,{"a":"]"}]"#,
        ),
        (
            r#"{"type":"publish","room":"r","event":"e","args":[1],"self":true,"except":["x"],"key":"k"}"#,
            None,
            r#"["publish","r",{"event":"e","self":true,"except":["x"],"id":"k"},1]"#,
        ),
    ] {
        let payload = Payload::json(json.to_owned());
        assert_eq!(read(message), Ok(PlainRequest::Event { id, payload: payload.clone() }), "{message}");
        assert!(rooms::parse(&payload, &Limits::default()).is_ok(), "{json}");
    }
    assert_eq!(read(r#"{"type":"ping"}"#), Ok(PlainRequest::Ping));
    assert_eq!(read(r#"{"type":"pong","anything":1}"#), Ok(PlainRequest::Pong));
}

#[test]
fn attachments_come_as_base64_padded_or_not() {
    let message = r#"{"type":"publish","room":"r","event":"e",
        "args":[{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}],"attachments":["AQ","\/w=="]}"#;
    let Ok(PlainRequest::Event { payload, .. }) = read(message) else { panic!() };
    assert_eq!(payload.attachments, [Bytes::from_static(&[1]), Bytes::from_static(&[255])]);
    let Ok(Request::Publish(publish)) = rooms::parse(&payload, &Limits::default()) else { panic!() };
    assert_eq!(publish.payload.attachments, payload.attachments);
}

#[test]
fn bad_messages_are_answered_under_their_id_where_it_can_be_read() {
    let eleven = format!(
        r#"{{"type":"publish","room":"r","event":"e","id":1,"attachments":[{}""]}}"#,
        "\"\",".repeat(10)
    );
    let deep = format!(r#"{{"type":"publish","args":{}{}}}"#, "[".repeat(128), "]".repeat(128));
    let big = format!(r#"{{"type":"publish","x":"{}"}}"#, "x".repeat(1_000_000));
    for (message, id, code) in [
        ("", None, "json"),
        ("hello", None, "json"),
        ("[]", None, "json"),
        ("{\"type\":\"join\"", None, "json"),
        ("{\"type\":\"join\"} x", None, "json"),
        (&deep, None, "depth"),
        (&big, None, "too_big"),
        ("{}", None, "arguments"),
        (r#"{"type":7}"#, None, "arguments"),
        (r#"{"type":"join","id":-1,"room":"r"}"#, None, "arguments"),
        (r#"{"type":"join","id":1.0,"room":"r"}"#, None, "arguments"),
        (r#"{"type":"join","id":"1","room":"r"}"#, None, "arguments"),
        (r#"{"type":"join","id":null,"room":"r"}"#, None, "arguments"),
        (r#"{"type":"join","id":9007199254740992,"room":"r"}"#, None, "arguments"),
        (r#"{"type":"join","id":1}"#, Some(1), "arguments"),
        (r#"{"type":"publish","room":"r","id":1}"#, Some(1), "arguments"),
        (r#"{"type":"publish","event":"e","id":1}"#, Some(1), "arguments"),
        (r#"{"type":"publish","room":"r","event":"e","args":{},"id":1}"#, Some(1), "arguments"),
        (r#"{"type":"publish","room":"r","event":"e","exept":"x","id":1}"#, Some(1), "arguments"),
        (r#"{"type":"publish","room":"r","event":{"event":"e"},"id":1}"#, Some(1), "event_name"),
        (r#"{"type":"publish","room":"r","event":null,"id":1}"#, Some(1), "event_name"),
        (r#"{"type":"publish","room":"r","event":"e","attachments":"AQ","id":1}"#, Some(1), "attachments"),
        (r#"{"type":"publish","room":"r","event":"e","attachments":[1],"id":1}"#, Some(1), "attachments"),
        (r#"{"type":"publish","room":"r","event":"e","attachments":["*"],"id":1}"#, Some(1), "attachments"),
        (&eleven, Some(1), "attachments"),
        (r#"{"type":"presence","room":"r","id":1}"#, Some(1), "unknown_event"),
    ] {
        match read(message) {
            Err(refused) => {
                assert_eq!((refused.id, refused.error.code.as_str()), (id, code), "{message}: {refused}");
            }
            Ok(request) => panic!("{message}: {request:?}"),
        }
    }
    let shown = |message: &str| text(&read(message).unwrap_err().to_packet()).to_owned();
    assert_eq!(shown("[]"), r#"{"type":"error","code":"json","message":"not an object"}"#);
    assert_eq!(
        shown(r#"{"type":"join","id":7}"#),
        r#"{"type":"ack","id":7,"ok":false,"code":"arguments","message":"room is missing"}"#
    );
}

#[test]
fn the_server_says_what_the_document_says() {
    let plain = Payload::json(r#" [ "x" , 1, {"a":[2]} ] "#);
    let binary = Payload {
        json: Bytes::from_static(br#"["x",{"_placeholder":true,"num":0}]"#),
        attachments: vec![Bytes::from_static(&[255]), Bytes::new()],
    };
    let welcome = Welcome {
        sid: SocketSid([0; 16]),
        uid: "al\"ice",
        product: "rooms",
        node: "n1",
        ping_interval: Duration::from_secs(25),
        ping_timeout: Duration::from_secs(20),
        message_bytes_max: 1_000_000,
    };
    for (packet, golden) in [
        (
            welcome.encode(),
            r#"{"type":"welcome","sid":"AAAAAAAAAAAAAAAAAAAAAA","uid":"al\"ice","product":"rooms","node":"n1","ping_interval_ms":25000,"ping_timeout_ms":20000,"message_bytes_max":1000000}"#,
        ),
        (
            encode_event(Some(("r\"", cursor())), &plain),
            r#"{"type":"event","room":"r\"","pos":"3-ab-11.42","event":"x","args":[1, {"a":[2]}]}"#,
        ),
        (
            encode_event(None, &binary),
            r#"{"type":"event","event":"x","args":[{"_placeholder":true,"num":0}],"attachments":["/w==",""]}"#,
        ),
        (encode_event(None, &Payload::json("[7]")), r#"{"type":"event","event":7,"args":[]}"#),
        (encode_ack(5, &ack_ok(&[("n", "1")])), r#"{"type":"ack","id":5,"ok":true,"n":1}"#),
        (
            encode_ack(5, &ack_error(ErrorCode::Rate, "slow down")),
            r#"{"type":"ack","id":5,"ok":false,"code":"rate","message":"slow down"}"#,
        ),
        (encode_ack(5, &plain), r#"{"type":"ack","id":5,"args": [ "x" , 1, {"a":[2]} ] }"#),
        (encode_ack(5, &Payload::json("[{\"ok\":1},2]")), r#"{"type":"ack","id":5,"args":[{"ok":1},2]}"#),
        (encode_error("json", "no"), r#"{"type":"error","code":"json","message":"no"}"#),
        (encode_joined("r", cursor()), r#"{"type":"joined","room":"r","pos":"3-ab-11.42"}"#),
        (encode_left("r"), r#"{"type":"left","room":"r"}"#),
        (
            encode_closed(CloseCode::Ended),
            r#"{"type":"closed","code":4409,"message":"session ended","reconnect":false}"#,
        ),
        (PING, r#"{"type":"ping"}"#),
        (PONG, r#"{"type":"pong"}"#),
    ] {
        assert_eq!(text(&packet), golden);
        assert_eq!(crate::json::check(golden.as_bytes(), 128), Ok(()));
    }
}

/// The document is the contract: every word a client can meet is in it.
#[test]
fn the_document_lists_every_code() {
    let document = include_str!("../../../docs/protocol.md");
    for code in ErrorCode::ALL {
        assert!(document.contains(&format!("| `{}` |", code.as_str())), "{}", code.as_str());
    }
    for code in CloseCode::ALL {
        let may = if code.may_reconnect() { "yes" } else { "no" };
        let row = format!("| {} | {} | {may} |", code.code(), code.reason());
        assert!(document.contains(&row), "{row}");
    }
    for kind in ["welcome", "event", "ack", "error", "closed", "ping", "pong"] {
        assert!(document.contains(&format!("\"type\":\"{kind}\"")), "{kind}");
    }
}

#[test]
fn large_messages_are_read_once() {
    let limits = Limits::default();
    for message in [
        format!("{{\"type\":\"join\"{}}}", ",\"a\":1".repeat(150_000)),
        format!(
            "{{\"type\":\"publish\",\"room\":\"r\",\"event\":\"e\",\"args\":[{}1]}}",
            "1,".repeat(450_000)
        ),
        format!("{{\"type\":\"publish\",\"id\":{}}}", "9".repeat(900_000)),
        format!(
            "{{\"type\":\"publish\",\"room\":\"r\",\"event\":\"e\",\"attachments\":[\"{}\"]}}",
            "A".repeat(900_000)
        ),
    ] {
        let _ = decode(&message.into(), &limits);
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
        let _ = decode(&bytes.into(), &Limits::default());
    }

    #[test]
    fn near_requests_become_whole_json(
        kind in "join|leave|publish|rooms",
        room in "\"[a-z]{0,2}\"|7|null|\\[\\]|\\{\\}|\"",
        args in "\\[[0-9,\\[\\]\"]{0,6}\\]|\\{\\}| \\[ 1 \\] ",
    ) {
        let message = format!(r#"{{"type":"{kind}","room":{room},"event":"e","args":{args},"self":{room}}}"#);
        let limits = Limits::default();
        if let Ok(PlainRequest::Event { payload, .. }) = decode(&message.into(), &limits) {
            prop_assert!(crate::json::split_array(&payload.json, 128).is_ok());
            let _ = rooms::parse(&payload, &limits);
        }
    }

    #[test]
    fn what_is_published_arrives(word: String, event: String, binary: Vec<u8>) {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let mut payload = Payload::json(format!(
            "[{},{},{{\"_placeholder\":true,\"num\":0}}]", quoted(&event), quoted(&word)
        ));
        payload.attachments = vec![binary.into()];
        let message = text(&encode_event(Some((&word, cursor())), &payload))
            .replacen("\"event\"", "\"publish\"", 1)
            .replacen("\"pos\"", "\"since\"", 1);
        let Ok(PlainRequest::Event { payload: sent, .. }) = read(&message) else { panic!("{message}") };
        match rooms::parse(&sent, &Limits::default()) {
            Ok(Request::Publish(publish)) => prop_assert_eq!(publish.payload, payload),
            Ok(other) => prop_assert!(false, "{other:?}"),
            Err(refused) => prop_assert!(matches!(refused.code, ErrorCode::RoomName | ErrorCode::EventName)),
        }
    }
}
