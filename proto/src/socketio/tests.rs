//! Golden packets, every refusal of FAULTS §3 rows 50–62 that one packet can show, arbitrary bytes.

use proptest::prelude::*;

use super::*;
use crate::limits::Limits;
use crate::shard::Packet;
use crate::wire::Payload;

fn read(text: &str) -> Result<SocketPacket, SocketError> {
    decode(&Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
}

fn namespace(name: &'static str) -> Namespace {
    Namespace(Bytes::from_static(name.as_bytes()))
}

fn event(text: &str) -> (Option<u64>, String) {
    match read(text) {
        Ok(SocketPacket::Event { ack, json, .. }) => (ack, String::from_utf8(json.to_vec()).unwrap()),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn connects_are_read() {
    let auth = |json: &'static str| Some(Bytes::from_static(json.as_bytes()));
    for (text, name, payload) in [
        ("0", "/", None),
        ("0/admin,", "/admin", None),
        ("0/admin", "/admin", None),
        ("0{\"token\":\"x\"}", "/", auth("{\"token\":\"x\"}")),
        ("0/admin?x=1&y=2,{}", "/admin", auth("{}")),
        ("0/é,{}", "/é", auth("{}")),
        ("0 {} ", "/", auth(" {} ")),
    ] {
        let packet = SocketPacket::Connect { namespace: namespace(name), auth: payload };
        assert_eq!(read(text), Ok(packet), "{text}");
    }
    assert_eq!(read("1"), Ok(SocketPacket::Disconnect { namespace: Namespace::MAIN }));
    assert_eq!(read("1/admin,"), Ok(SocketPacket::Disconnect { namespace: namespace("/admin") }));
}

#[test]
fn events_and_acks_are_read() {
    let json = |text: &'static str| Bytes::from_static(text.as_bytes());
    for (text, packet) in [
        (
            "2[\"a\",1]",
            SocketPacket::Event {
                namespace: Namespace::MAIN,
                ack: None,
                json: json("[\"a\",1]"),
                attachments: 0,
            },
        ),
        (
            "2/admin,12[\"a\"]",
            SocketPacket::Event {
                namespace: namespace("/admin"),
                ack: Some(12),
                json: json("[\"a\"]"),
                attachments: 0,
            },
        ),
        (
            "51-/admin,7[\"a\",{\"_placeholder\":true,\"num\":0}]",
            SocketPacket::Event {
                namespace: namespace("/admin"),
                ack: Some(7),
                json: json("[\"a\",{\"_placeholder\":true,\"num\":0}]"),
                attachments: 1,
            },
        ),
        (
            "3/admin,13[1]",
            SocketPacket::Ack { namespace: namespace("/admin"), id: 13, json: json("[1]"), attachments: 0 },
        ),
        (
            "61-13[{\"_placeholder\":true,\"num\":0}]",
            SocketPacket::Ack {
                namespace: Namespace::MAIN,
                id: 13,
                json: json("[{\"_placeholder\":true,\"num\":0}]"),
                attachments: 1,
            },
        ),
        ("35", SocketPacket::Ack { namespace: Namespace::MAIN, id: 5, json: json("[]"), attachments: 0 }),
        (
            "3[]",
            SocketPacket::Ack {
                namespace: Namespace::MAIN,
                id: ACK_ID_UNKNOWN,
                json: json("[]"),
                attachments: 0,
            },
        ),
    ] {
        assert_eq!(read(text), Ok(packet), "{text}");
    }
}

#[test]
fn numbers_names_and_strings_pass_byte_for_byte() {
    for json in [
        "[\"a\",1e999,18446744073709551616,-0,\"\\ud800\",{\"k\":1,\"k\":2},\"\\u0000\"]",
        "[1]",
        "[-0.5,\"numeric names are accepted\"]",
        "[\"\"]",
        " [ \"a\" ] ",
        "[\"a\",{\"_placeholder\":true,\"num\":9}]",
    ] {
        assert_eq!(event(&format!("2{json}")), (None, json.to_owned()));
    }
}

#[test]
fn an_ack_id_too_large_for_javascript_is_dropped_and_the_event_kept() {
    assert_eq!(event("20[\"a\"]").0, Some(0));
    assert_eq!(event("2007[\"a\"]").0, Some(7));
    assert_eq!(event("29007199254740992[\"a\"]").0, Some(1 << 53));
    assert_eq!(event("29007199254740993[\"a\"]").0, None);
    assert_eq!(event("299999999999999999999[\"a\"]").0, None);
    assert!(matches!(read("399999999999999999999[]"), Ok(SocketPacket::Ack { id: ACK_ID_UNKNOWN, .. })));
}

#[test]
fn what_a_stock_server_closes_on_is_refused() {
    let nested = |depth: usize| format!("2[\"a\",{}{}]", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(read(&nested(128)).is_ok());
    let cases: &[(String, CloseCode)] = &[
        (String::new(), CloseCode::ProtocolError),
        ("7".into(), CloseCode::ProtocolError),
        ("9[\"a\"]".into(), CloseCode::ProtocolError),
        ("[\"a\"]".into(), CloseCode::ProtocolError),
        ("-1".into(), CloseCode::ProtocolError),
        // Row 51 to 53: connects.
        ("4{\"message\":\"x\"}".into(), CloseCode::ProtocolError),
        (format!("0/{},", "n".repeat(128)), CloseCode::Policy),
        ("0[]".into(), CloseCode::ProtocolError),
        ("0null".into(), CloseCode::ProtocolError),
        ("0\"token\"".into(), CloseCode::ProtocolError),
        ("0{\"a\":}".into(), CloseCode::ProtocolError),
        (format!("0{{\"a\":\"{}\"}}", "x".repeat(8 << 10)), CloseCode::Policy),
        // Row 54: reserved names.
        ("2[\"connect\"]".into(), CloseCode::ProtocolError),
        ("2[\"connect_error\"]".into(), CloseCode::ProtocolError),
        ("2[\"disconnect\"]".into(), CloseCode::ProtocolError),
        ("2[\"disconnecting\"]".into(), CloseCode::ProtocolError),
        ("2[\"newListener\"]".into(), CloseCode::ProtocolError),
        ("2[\"removeListener\"]".into(), CloseCode::ProtocolError),
        ("2[\"dis\\u0063onnect\"]".into(), CloseCode::ProtocolError),
        // Row 55: shapes.
        ("2".into(), CloseCode::ProtocolError),
        ("2{}".into(), CloseCode::ProtocolError),
        ("2\"a\"".into(), CloseCode::ProtocolError),
        ("2[]".into(), CloseCode::ProtocolError),
        ("2[null]".into(), CloseCode::ProtocolError),
        ("2[{}]".into(), CloseCode::ProtocolError),
        ("2[true]".into(), CloseCode::ProtocolError),
        ("2[\"a\"".into(), CloseCode::ProtocolError),
        ("2[\"a\"]]".into(), CloseCode::ProtocolError),
        ("2/admin[\"a\"]".into(), CloseCode::ProtocolError),
        ("3{}".into(), CloseCode::ProtocolError),
        ("31{\"0\":1}".into(), CloseCode::ProtocolError),
        // Row 56: depth.
        (nested(129), CloseCode::Policy),
        // Row 59: counts of attachments.
        ("50-[\"a\"]".into(), CloseCode::ProtocolError),
        ("511-[\"a\"]".into(), CloseCode::Policy),
        ("599999999999999999999999-[\"a\"]".into(), CloseCode::Policy),
        ("5[\"a\"]".into(), CloseCode::ProtocolError),
        ("5-[\"a\"]".into(), CloseCode::ProtocolError),
        ("5-1-[\"a\"]".into(), CloseCode::ProtocolError),
        ("51e0-[\"a\"]".into(), CloseCode::ProtocolError),
        ("51[\"a\"]".into(), CloseCode::ProtocolError),
        ("51".into(), CloseCode::ProtocolError),
        ("6[1]".into(), CloseCode::ProtocolError),
        ("1e9-".into(), CloseCode::ProtocolError),
        // Row 60: placeholders.
        ("51-[\"a\",{\"_placeholder\":true,\"num\":1}]".into(), CloseCode::ProtocolError),
        ("51-[\"a\",{\"_placeholder\":true,\"num\":-1}]".into(), CloseCode::ProtocolError),
        ("51-[\"a\",{\"_placeholder\":true,\"num\":\"0\"}]".into(), CloseCode::ProtocolError),
        ("51-[\"a\",{\"_placeholder\":true}]".into(), CloseCode::ProtocolError),
        ("61-1[{\"_placeholder\":true,\"num\":\"splice\"}]".into(), CloseCode::ProtocolError),
        // Row 62: disconnect with data.
        ("1[]".into(), CloseCode::ProtocolError),
        ("1/admin,{}".into(), CloseCode::ProtocolError),
    ];
    for (text, code) in cases {
        match read(text) {
            Err(error) => assert_eq!(error.close_code(), *code, "{text}: {error}"),
            Ok(packet) => panic!("{text}: {packet:?}"),
        }
    }
}

#[test]
fn attachments_complete_their_packet() {
    let limits = Limits::default();
    let mut reassembly = Reassembly::new();
    let text = Bytes::from_static(
        b"52-9[\"a\",{\"_placeholder\":true,\"num\":0},{\"_placeholder\":true,\"num\":1}]",
    );
    assert_eq!(reassembly.text(&text, &limits), Ok(None));
    assert!(reassembly.is_awaiting());
    assert_eq!(reassembly.binary(Bytes::from_static(b"x"), &limits), Ok(None));
    let whole = reassembly.binary(Bytes::from_static(b""), &limits).unwrap().unwrap();
    let payload =
        Payload { json: text.slice(4..), attachments: vec![Bytes::from_static(b"x"), Bytes::new()] };
    assert_eq!(whole, ClientPacket::Event { namespace: Namespace::MAIN, ack: Some(9), payload });
    assert!(!reassembly.is_awaiting());
    let next = reassembly.text(&Bytes::from_static(b"1"), &limits);
    assert_eq!(next, Ok(Some(ClientPacket::Disconnect { namespace: Namespace::MAIN })));
}

#[test]
fn messages_out_of_place_are_refused() {
    let limits = Limits { message_bytes_max: 100, ..Limits::default() };
    let binary = Bytes::from_static(b"51-[\"a\",{\"_placeholder\":true,\"num\":0}]");
    let mut idle = Reassembly::new();
    assert_eq!(idle.binary(Bytes::new(), &limits), Err(SocketError::UnexpectedBinary));
    let mut awaiting = Reassembly::new();
    awaiting.text(&binary, &limits).unwrap();
    assert_eq!(
        awaiting.text(&Bytes::from_static(b"2[\"a\"]"), &limits),
        Err(SocketError::AttachmentsMissing)
    );
    let mut awaiting = Reassembly::new();
    awaiting.text(&binary, &limits).unwrap();
    let over = awaiting.binary(vec![0; 100].into(), &limits);
    assert_eq!(over, Err(SocketError::TooBig { max: 100 }));
    let long = format!("2[\"{}\"]", "a".repeat(100));
    assert_eq!(Reassembly::new().text(&long.into(), &limits), Err(SocketError::TooBig { max: 100 }));
}

#[test]
fn packets_are_written_as_stock_decoders_read_them() {
    let text = |packet: &Packet| match packet {
        Packet::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        Packet::Binary(_) => panic!("binary"),
    };
    let plain = Payload::json(&b"[\"a\",1]"[..]);
    let binary = Payload {
        json: Bytes::from_static(b"[\"a\",{\"_placeholder\":true,\"num\":0}]"),
        attachments: vec![Bytes::from_static(&[1, 2])],
    };
    assert_eq!(text(&encode_event("/", &plain)[0]), "42[\"a\",1]");
    assert_eq!(text(&encode_event("/admin", &plain)[0]), "42/admin,[\"a\",1]");
    let packets = encode_event("/admin", &binary);
    assert_eq!(text(&packets[0]), "451-/admin,[\"a\",{\"_placeholder\":true,\"num\":0}]");
    assert_eq!(packets[1..], [Packet::Binary(Bytes::from_static(&[1, 2]))]);
    assert_eq!(text(&encode_ack("/", 12, &plain)[0]), "4312[\"a\",1]");
    assert_eq!(text(&encode_ack("/x", 12, &binary)[0]), "461-/x,12[\"a\",{\"_placeholder\":true,\"num\":0}]");
    assert_eq!(text(&encode_connect("/", "s", None)), "40{\"sid\":\"s\"}");
    assert_eq!(text(&encode_connect("/x", "s", Some("p"))), "40/x,{\"sid\":\"s\",\"pid\":\"p\"}");
    assert_eq!(
        text(&encode_connect_error("/nope", "Invalid namespace", None)),
        "44/nope,{\"message\":\"Invalid namespace\"}"
    );
    assert_eq!(
        text(&encode_connect_error("/", "say \"who\"", Some("{\"code\":\"uid_required\"}"))),
        "44{\"message\":\"say \\\"who\\\"\",\"data\":{\"code\":\"uid_required\"}}"
    );
    assert_eq!(text(&encode_disconnect("/")), "41");
    assert_eq!(text(&encode_disconnect("/admin")), "41/admin,");
}

#[test]
fn large_packets_are_read_once() {
    let limits = Limits::default();
    for text in [
        format!("2{}[\"a\"]", "9".repeat(900_000)),
        format!("5{}", "1".repeat(900_000)),
        format!("0/{}", "?".repeat(900_000)),
        format!("2/{}", "a".repeat(900_000)),
        format!("51-[\"a\",{}]", vec!["{\"_placeholder\":true,\"num\":0}"; 30_000].join(",")),
        format!("51-[\"a\"{}]", ",{\"num\":0}".repeat(90_000)),
    ] {
        let _ = decode(&text.into(), &limits);
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(text: Vec<u8>, binary: Vec<u8>) {
        let limits = Limits::default();
        let mut reassembly = Reassembly::new();
        let _ = reassembly.text(&text.into(), &limits);
        let _ = reassembly.binary(binary.into(), &limits);
    }

    #[test]
    fn near_packets_decode_or_fail(text in "[0-7][0-9]{0,2}-?(/[a-z?,]{0,4})?[0-9]{0,3}[\\[\\]{}a\",:0-9]{0,12}") {
        let _ = decode(&text.into(), &Limits::default());
    }

    #[test]
    fn what_is_written_is_read_again(
        name in "/[a-z]{0,5}",
        id in 0..=ACK_ID_MAX,
        word in any::<String>(),
        attachments in proptest::collection::vec(any::<Vec<u8>>().prop_map(Bytes::from), 0..=10),
    ) {
        let mut json = b"[\"e\",".to_vec();
        crate::json::push_string(&mut json, &word);
        for num in 0..attachments.len() {
            json.extend_from_slice(format!(",{{\"_placeholder\":true,\"num\":{num}}}").as_bytes());
        }
        json.push(b']');
        let payload = Payload { json: json.into(), attachments };
        let limits = Limits::default();
        for (packets, is_event) in [(encode_event(&name, &payload), true), (encode_ack(&name, id, &payload), false)] {
            let mut reassembly = Reassembly::new();
            let mut last = None;
            for packet in packets.iter() {
                prop_assert_eq!(&last, &None);
                last = match packet {
                    Packet::Text(text) => reassembly.text(&text.slice(1..), &limits).unwrap(),
                    Packet::Binary(bytes) => reassembly.binary(bytes.clone(), &limits).unwrap(),
                };
            }
            match last {
                Some(ClientPacket::Event { namespace, ack: None, payload: read }) if is_event => {
                    prop_assert_eq!(namespace.as_str(), &name);
                    prop_assert_eq!(&read, &payload);
                }
                Some(ClientPacket::Ack { namespace, id: read_id, payload: read }) if !is_event => {
                    prop_assert_eq!(namespace.as_str(), &name);
                    prop_assert_eq!(read_id, id);
                    prop_assert_eq!(&read, &payload);
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
