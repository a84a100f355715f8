//! Writing what the mesh says to a client.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::id::{Cursor, SocketSid};
use crate::json;
use crate::shard::{CloseCode, Packet};
use crate::wire::Payload;

/// Are you there? Sent every `ping_interval_ms`.
pub const PING: Packet = Packet::Text(Bytes::from_static(b"{\"type\":\"ping\"}"));
/// The answer to a client's ping.
pub const PONG: Packet = Packet::Text(Bytes::from_static(b"{\"type\":\"pong\"}"));

/// The first message to a client that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// Its public id.
    pub sid: SocketSid,
    /// Who it is.
    pub uid: &'a str,
    /// The product it uses.
    pub product: &'a str,
    /// The node it entered by, for people.
    pub node: &'a str,
    /// How often we send a ping.
    pub ping_interval: Duration,
    /// How long we then wait for any message.
    pub ping_timeout: Duration,
    /// The largest message.
    pub message_bytes_max: usize,
}

impl Welcome<'_> {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> Packet {
        Message::new("welcome")
            .text("sid", &self.sid.to_text())
            .text("uid", self.uid)
            .text("product", self.product)
            .text("node", self.node)
            .number("ping_interval_ms", self.ping_interval.as_millis())
            .number("ping_timeout_ms", self.ping_timeout.as_millis())
            .number("message_bytes_max", self.message_bytes_max as u128)
            .end()
    }
}

/// An event: of a room, with its position there, or straight to this client. The same bytes for every
/// member, so encode it once.
#[must_use]
pub fn encode_event(room: Option<(&str, Cursor)>, payload: &Payload) -> Packet {
    let mut message = Message::new("event");
    if let Some((room, pos)) = room {
        message = message.text("room", room).text("pos", &pos.to_text());
    }
    let (event, args) = json::split_first(&payload.json).unwrap_or((b"null", b""));
    let list = [b"[", args, b"]"].concat();
    message.raw("event", event).raw("args", &list).attachments(payload).end()
}

/// The answer to request `id`. The members of an answer made by the mesh, `[{"ok":…}]`, become members
/// of the message; whatever else a backend answers stays whole as `args`.
#[must_use]
pub fn encode_ack(id: u64, payload: &Payload) -> Packet {
    let mut message = Message::new("ack").number("id", u128::from(id));
    match &payload.json[..] {
        [b'[', b'{', members @ .., b'}', b']'] if members.starts_with(b"\"ok\":") => {
            message.0.push(b',');
            message.0.extend_from_slice(members);
        }
        args => message = message.raw("args", args),
    }
    message.attachments(payload).end()
}

/// Something is wrong that no request asked about.
#[must_use]
pub fn encode_error(code: &str, message: &str) -> Packet {
    Message::new("error").text("code", code).text("message", message).end()
}

/// A backend has put this client into a room.
#[must_use]
pub fn encode_joined(room: &str, pos: Cursor) -> Packet {
    Message::new("joined").text("room", room).text("pos", &pos.to_text()).end()
}

/// A backend has taken this client out of a room.
#[must_use]
pub fn encode_left(room: &str) -> Packet {
    Message::new("left").text("room", room).end()
}

/// The last message before we close. For clients that do not see close codes.
#[must_use]
pub fn encode_closed(code: CloseCode) -> Packet {
    Message::new("closed")
        .number("code", u128::from(code.code()))
        .text("message", code.reason())
        .raw("reconnect", if code.may_reconnect() { b"true" } else { b"false" })
        .end()
}

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: &str) -> Self {
        Self(format!("{{\"type\":\"{kind}\"").into_bytes())
    }

    /// `,"name":`; names are ours and need no escapes.
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn raw(mut self, name: &str, json: &[u8]) -> Self {
        self.name(name);
        self.0.extend_from_slice(json);
        self
    }

    fn text(mut self, name: &str, text: &str) -> Self {
        self.name(name);
        json::push_string(&mut self.0, text);
        self
    }

    fn number(self, name: &str, number: u128) -> Self {
        self.raw(name, number.to_string().as_bytes())
    }

    /// Base64, in the order of their placeholders; nothing where there are none.
    fn attachments(mut self, payload: &Payload) -> Self {
        if payload.attachments.is_empty() {
            return self;
        }
        self.name("attachments");
        for (i, bytes) in payload.attachments.iter().enumerate() {
            self.0.extend_from_slice(if i == 0 { b"[\"" } else { b",\"" });
            self.0.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            self.0.push(b'"');
        }
        self.0.push(b']');
        self
    }

    fn end(mut self) -> Packet {
        self.0.push(b'}');
        Packet::Text(self.0.into())
    }
}
