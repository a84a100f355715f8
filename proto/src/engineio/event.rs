//! Messages of Engine.IO alone as events called `message`, and back.

use std::sync::Arc;

use bytes::Bytes;

use crate::json;
use crate::shard::Packet;
use crate::wire::Payload;

/// A text message as an event.
#[must_use]
pub fn read_text_event(text: &[u8]) -> Payload {
    let mut out = b"[\"message\",".to_vec();
    json::push_string(&mut out, &String::from_utf8_lossy(text));
    out.push(b']');
    Payload::json(out)
}

/// A binary message as an event.
#[must_use]
pub fn read_bytes_event(bytes: Bytes) -> Payload {
    let json = Bytes::from_static(b"[\"message\",{\"_placeholder\":true,\"num\":0}]");
    Payload { json, attachments: vec![bytes] }
}

/// An event as a message: its bytes if it has any, else its first argument, a string as its text and
/// anything else as JSON.
#[must_use]
pub fn encode_message_event(payload: &Payload) -> Arc<[Packet]> {
    if let Some(bytes) = payload.attachments.first() {
        return Arc::new([Packet::Binary(bytes.clone())]);
    }
    let argument = json::elements(&payload.json, json::DEPTH_MAX).nth(1).and_then(Result::ok);
    let raw = argument.map_or(&b""[..], |at| &payload.json[at]);
    let text = json::unescape_str(raw);
    let text = text.as_deref().map_or(raw, str::as_bytes);
    Arc::new([Packet::Text([b"4", text].concat().into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_went() {
        for text in ["hello", "", "with \"quotes\" and \u{1e}", "€"] {
            let [Packet::Text(back)] = &*encode_message_event(&read_text_event(text.as_bytes())) else {
                panic!("no text")
            };
            assert_eq!(back, &format!("4{text}"));
        }
        let bytes = Bytes::from_static(&[1, 2, 3, 4]);
        assert_eq!(*encode_message_event(&read_bytes_event(bytes.clone())), [Packet::Binary(bytes)]);
        let [Packet::Text(json)] = &*encode_message_event(&Payload::json("[\"message\",{\"a\":1}]")) else {
            panic!("no text")
        };
        assert_eq!(json, "4{\"a\":1}");
    }
}
