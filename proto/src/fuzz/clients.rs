//! Decoders of what clients send.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::pieces;
use crate::engineio::{self, EnginePacket, PAYLOAD_PACKETS_MAX, decode_payload, encode_payload};
use crate::gate;
use crate::id::{Cursor, EngineSid, NodeId, NodeRef, Pid, SocketSid, Term};
use crate::json;
use crate::limits::Limits;
use crate::plain::{self, PlainRequest};
use crate::product::rooms;
use crate::recovery::{self, Carried, OffsetKey, RoomAt};
use crate::shard::Packet;
use crate::socketio::{ACK_ID_UNKNOWN, ClientPacket, Reassembly, SocketPacket, decode};
use crate::wire::Payload;

/// An Engine.IO packet: what it carries is the text behind its type.
pub fn check_eio_packet(bytes: &[u8]) {
    let text = Bytes::copy_from_slice(bytes);
    match engineio::decode_text(&text) {
        Ok(EnginePacket::Ping(data) | EnginePacket::Pong(data) | EnginePacket::Message(data)) => {
            assert_eq!(data, text[1..]);
        }
        Ok(_) => assert!(matches!(text[0], b'0' | b'1' | b'5' | b'6')),
        Err(_) => assert!(text.first().is_none_or(|kind| !(b'0'..=b'6').contains(kind))),
    }
}

/// A body of long-polling.
pub fn check_polling_payload(bytes: &[u8]) {
    let Ok(packets) = decode_payload(&Bytes::copy_from_slice(bytes)) else { return };
    assert!((1..=PAYLOAD_PACKETS_MAX).contains(&packets.len()));
    assert!(packets.iter().map(Packet::len).sum::<usize>() <= bytes.len(), "no more than was sent");
    assert_eq!(decode_payload(&encode_payload(&packets)), Ok(packets));
}

/// A Socket.IO packet without its attachments: written again it is read the same.
pub fn check_sio_packet(bytes: &[u8]) {
    let limits = Limits::default();
    let text = Bytes::copy_from_slice(bytes);
    let Ok(packet) = decode(&text, &limits) else { return };
    let (kind, namespace, id, json) = match &packet {
        SocketPacket::Connect { namespace, auth } => ("0".into(), namespace, None, auth.clone()),
        SocketPacket::Disconnect { namespace } => ("1".into(), namespace, None, None),
        SocketPacket::Event { namespace, ack, json, attachments: 0 } => {
            ("2".into(), namespace, *ack, Some(json.clone()))
        }
        SocketPacket::Event { namespace, ack, json, attachments } => {
            (format!("5{attachments}-"), namespace, *ack, Some(json.clone()))
        }
        SocketPacket::Ack { namespace, id, json, attachments } => {
            let kind = if *attachments == 0 { "3".into() } else { format!("6{attachments}-") };
            (kind, namespace, Some(*id).filter(|id| *id != ACK_ID_UNKNOWN), Some(json.clone()))
        }
    };
    if let Some(json) = &json {
        assert!(json::check(json, json::DEPTH_MAX).is_ok());
    }
    let id = id.map(|id| id.to_string()).unwrap_or_default();
    let mut again = format!("{kind}{},{id}", namespace.as_str()).into_bytes();
    again.extend_from_slice(&json.unwrap_or_default());
    assert_eq!(decode(&again.into(), &limits), Ok(packet));
}

/// Texts and binary messages in any order ([`pieces`]). A whole packet has the attachments it announced; one that is
/// not whole goes on the same for another reader.
pub fn check_sio_binary_reassembly(bytes: &[u8]) {
    let limits = Limits { message_bytes_max: 300, ..Limits::default() };
    let mut reader = Reassembly::new();
    for (is_binary, piece) in pieces(bytes) {
        let piece = Bytes::copy_from_slice(piece);
        let take = |reader: &mut Reassembly| match is_binary {
            true => reader.binary(piece.clone(), &limits),
            false => reader.text(&piece, &limits),
        };
        let mut other = Reassembly::new();
        for message in std::mem::take(&mut reader).into_messages() {
            let more = match message {
                Packet::Text(text) => [&mut reader, &mut other].map(|r| r.text(&text.slice(1..), &limits)),
                Packet::Binary(bytes) => [&mut reader, &mut other].map(|r| r.binary(bytes.clone(), &limits)),
            };
            // Its head may have been spelt shorter than we write it.
            if more.iter().any(Result::is_err) {
                return;
            }
            assert_eq!(more, [Ok(None), Ok(None)], "what is missing stays missing");
        }
        let packet = take(&mut reader);
        assert_eq!(packet, take(&mut other));
        match packet {
            Err(_) => return,
            Ok(None) => assert!(reader.is_awaiting()),
            Ok(Some(ClientPacket::Event { payload, .. } | ClientPacket::Ack { payload, .. })) => {
                assert!(payload.attachments.len() <= limits.attachments_max);
                assert!(payload.len() <= limits.message_bytes_max);
                assert!(!reader.is_awaiting());
            }
            Ok(Some(_)) => assert!(!reader.is_awaiting()),
        }
    }
}

/// What a client hands back when it comes back, and every other id that it may name. The bytes are also read with a
/// sum that holds, and made into places that must come back.
pub fn check_offset_pid(bytes: &[u8]) {
    const KEY: OffsetKey = OffsetKey(7);
    let own = |carried: Carried| match carried {
        Carried::Upto(offset) => {
            assert!(offset.moved.len() <= recovery::ROOMS_MAX + 1);
            assert!(offset.moved.is_sorted_by(|(a, _), (b, _)| a < b));
        }
        Carried::Nothing | Carried::Lost => {}
    };
    if let Ok(text) = std::str::from_utf8(bytes) {
        own(recovery::decode(text, KEY));
        // One spelling for each id.
        assert!(SocketSid::from_text(text).is_none_or(|sid| sid.to_text() == text));
        assert!(Pid::from_text(text).is_none_or(|pid| pid.expose_text() == text));
        assert!(EngineSid::from_text(text).is_none_or(|sid| sid.expose_text() == text));
        assert!(Cursor::from_text(text).is_none_or(|cursor| cursor.to_text() == text));
    }
    let summed = [bytes, &recovery::check(KEY, bytes)].concat();
    let carried = recovery::decode(&URL_SAFE_NO_PAD.encode(&summed), KEY);
    assert!(carried != Carried::Nothing || summed.len() * 4 / 3 >= recovery::TEXT_MAX - 2, "its sum holds");
    own(carried);

    let number = |chunk: &[u8]| chunk.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let place = |chunk: &[u8]| {
        let (node, rest) = chunk.split_first().unwrap_or((&0, &[]));
        let owner = NodeRef { id: NodeId(u64::from(node % 4)), incarnation: u64::from(node / 4) };
        let (term, seq) = rest.split_at(rest.len() / 2);
        // 62 bits: what a room counts to in an age.
        Cursor { term: Term { number: number(term), owner }, seq: number(seq) >> 2 }
    };
    let rooms: Vec<Option<RoomAt>> = pieces(bytes)
        .take(recovery::ROOMS_MAX + 1)
        .map(|(is_there, chunk)| {
            let (joined, at) = chunk.split_at(chunk.len() / 2);
            is_there.then(|| RoomAt { tag: number(chunk), joined: place(joined), at: place(at) })
        })
        .collect();
    let (mut text, own_seq) = (Vec::new(), number(bytes.get(..4).unwrap_or_default()));
    recovery::encode(&mut text, &mut Vec::new(), KEY, own_seq, rooms.iter().copied());
    let text = String::from_utf8(text).expect("base64");
    let Carried::Upto(offset) = recovery::decode(&text, KEY) else { panic!("{text} is not read") };
    assert_eq!(offset.own_seq, own_seq);
    for (index, moved) in offset.moved {
        let room = rooms[index].expect("a room that was written");
        assert_eq!(moved.cursor(room.joined), Some(room.at));
    }
}

/// A message of the plain protocol: what is asked for is JSON throughout, and what the product makes of it passes the
/// gate.
pub fn check_plain_message(bytes: &[u8]) {
    let limits = Limits::default();
    match plain::decode(&Bytes::copy_from_slice(bytes), &limits) {
        Ok(PlainRequest::Event { payload, .. }) => {
            assert!(json::split_array(&payload.json, json::DEPTH_MAX).is_ok());
            assert!(payload.attachments.len() <= limits.attachments_max);
            is_judged(&payload, &limits);
        }
        Ok(PlainRequest::Ping | PlainRequest::Pong) => {}
        Err(refused) => {
            let (Packet::Text(answer) | Packet::Binary(answer)) = refused.to_packet();
            assert!(json::check(&answer, json::DEPTH_MAX).is_ok(), "the answer is JSON");
        }
    }
}

/// What a client asks of a product of rooms.
pub fn check_publish(bytes: &[u8]) {
    let attachments = usize::from(bytes.first().copied().unwrap_or_default() % 12);
    let json = Bytes::copy_from_slice(bytes.get(1..).unwrap_or_default());
    let payload = Payload { json, attachments: vec![Bytes::new(); attachments] };
    let _ = gate::check_event(&payload, &Limits::default());
    is_judged(&payload, &Limits::default());
}

fn is_judged(payload: &Payload, limits: &Limits) {
    match rooms::parse(payload, limits) {
        Ok(rooms::Request::Publish(publish)) => {
            assert_eq!(gate::check_event(&publish.payload, limits), Ok(()), "nothing else enters a log");
        }
        Ok(_) => {}
        Err(refused) => assert!(json::check(&refused.to_ack().json, json::DEPTH_MAX).is_ok()),
    }
}

/// JSON is judged as `serde_json` does, and taken apart without looking behind its end.
pub fn check_json(bytes: &[u8]) {
    let (shared, depth) = (Bytes::copy_from_slice(bytes), json::DEPTH_MAX);
    let accepted = json::check(bytes, depth).is_ok();
    // A recursion limit of 128 counts otherwise than ours: only what is flat can be compared.
    let is_flat = bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() < 100;
    // Transports have looked for UTF-8 before.
    if let Ok(text) = std::str::from_utf8(bytes)
        && is_flat
    {
        assert_eq!(accepted, serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{text:?}");
    }
    if let Ok(parts) = json::split_array(&shared, depth) {
        assert!(parts.iter().all(|part| json::check(part, depth).is_ok()));
        assert!(parts.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
    }
    let _ = json::members(bytes, depth).count();
    let _ = (json::first_element(bytes), json::split_first(bytes), json::unescape(bytes));
    let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
    let mut quoted = Vec::new();
    json::push_string(&mut quoted, &text);
    assert_eq!(json::check(&quoted, 1), Ok(()));
    assert_eq!(json::unescape_str(&quoted), Some(text));
}
