//! Engine.IO v4: the packets under Socket.IO.
//!
//! Belongs here: one packet as text, the open packet, and (`payload`) many packets in one body of
//! long-polling.
//! Stays out: heartbeats, upgrades and who may send what when (`edge`); Socket.IO packets (`socketio`).
//! Format: one digit, then data: `0` open, `1` close, `2` ping, `3` pong, `4` message, `5` upgrade, `6`
//! noop. Over WebSocket a packet is one text message, and a binary message is a message packet's data.
//! Source: Engine.IO protocol, revision 4; FAULTS §3 rows 42–45.

mod event;
mod payload;

use std::time::Duration;

use bytes::Bytes;

use crate::json;
use crate::shard::Packet;

pub use event::{encode_message_event, read_bytes_event, read_text_event};
pub use payload::{PAYLOAD_PACKETS_MAX, PayloadError, decode_payload, encode_payload};

/// The namespace of clients that speak Engine.IO alone. No Socket.IO client can name it.
pub const BARE_NAMESPACE: &str = "engine.io";

/// The engine ping without data, sent every `pingInterval`.
pub const PING: Packet = Packet::Text(Bytes::from_static(b"2"));
/// The answer to an upgrade probe (`2probe`).
pub const PONG_PROBE: Packet = Packet::Text(Bytes::from_static(b"3probe"));
/// Ends the Engine.IO session from our side.
pub const CLOSE: Packet = Packet::Text(Bytes::from_static(b"1"));
/// Ends a pending poll without a message.
pub const NOOP: Packet = Packet::Text(Bytes::from_static(b"6"));

/// One packet from a client. Data is a slice of the message it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnginePacket {
    /// `0`: only servers open; ignored from a client.
    Open,
    /// `1`: the client ends the Engine.IO session.
    Close,
    /// `2` and data: only `2probe` is ever right in version 4.
    Ping(Bytes),
    /// `3` and data: the answer to our ping.
    Pong(Bytes),
    /// `4` and a Socket.IO packet.
    Message(Bytes),
    /// `5`: the client moves to the transport this came on.
    Upgrade,
    /// `6`: nothing.
    Noop,
}

/// A text message that is no Engine.IO packet. The client's transport is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// No type digit at all.
    #[error("empty Engine.IO packet")]
    Empty,
    /// A first byte that is no type.
    #[error("unknown Engine.IO packet type {0:#04x}")]
    UnknownType(u8),
}

/// Reads one text message.
///
/// # Errors
/// [`EngineError`]; close the transport.
pub fn decode_text(text: &Bytes) -> Result<EnginePacket, EngineError> {
    let data = || text.slice(1..);
    match text.first() {
        None => Err(EngineError::Empty),
        Some(b'0') => Ok(EnginePacket::Open),
        Some(b'1') => Ok(EnginePacket::Close),
        Some(b'2') => Ok(EnginePacket::Ping(data())),
        Some(b'3') => Ok(EnginePacket::Pong(data())),
        Some(b'4') => Ok(EnginePacket::Message(data())),
        Some(b'5') => Ok(EnginePacket::Upgrade),
        Some(b'6') => Ok(EnginePacket::Noop),
        Some(&other) => Err(EngineError::UnknownType(other)),
    }
}

/// The packet that opens a session, type digit included. Holds a secret, `sid_text`: for its client only.
#[must_use]
pub fn open_packet(
    sid_text: &str,
    ping_interval: Duration,
    ping_timeout: Duration,
    max_payload: usize,
    upgrades: &[&str],
) -> Bytes {
    let mut out = b"0{\"sid\":".to_vec();
    json::push_string(&mut out, sid_text);
    out.extend_from_slice(b",\"upgrades\":[");
    for (i, upgrade) in upgrades.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        json::push_string(&mut out, upgrade);
    }
    let (interval, timeout) = (ping_interval.as_millis(), ping_timeout.as_millis());
    out.extend_from_slice(
        format!("],\"pingInterval\":{interval},\"pingTimeout\":{timeout},\"maxPayload\":{max_payload}}}")
            .as_bytes(),
    );
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_type_is_read() {
        let data = Bytes::from_static(b"probe");
        for (text, packet) in [
            ("0{}", EnginePacket::Open),
            ("1", EnginePacket::Close),
            ("2", EnginePacket::Ping(Bytes::new())),
            ("2probe", EnginePacket::Ping(data.clone())),
            ("3probe", EnginePacket::Pong(data)),
            ("42[\"a\"]", EnginePacket::Message(Bytes::from_static(b"2[\"a\"]"))),
            ("5", EnginePacket::Upgrade),
            ("6", EnginePacket::Noop),
        ] {
            assert_eq!(decode_text(&Bytes::from_static(text.as_bytes())), Ok(packet), "{text}");
        }
    }

    #[test]
    fn unknown_types_and_empty_texts_are_refused() {
        assert_eq!(decode_text(&Bytes::new()), Err(EngineError::Empty));
        for text in ["9", "7", "-1", "a", "b4", " 4", "\u{1e}", "é"] {
            let refused = decode_text(&Bytes::from_static(text.as_bytes()));
            assert_eq!(refused, Err(EngineError::UnknownType(text.as_bytes()[0])), "{text}");
        }
    }

    #[test]
    fn the_open_packet_is_what_stock_clients_read() {
        let seconds = Duration::from_secs;
        assert_eq!(
            open_packet("abc", seconds(25), seconds(20), 1_000_000, &[]),
            r#"0{"sid":"abc","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#
        );
        assert_eq!(
            open_packet("abc", seconds(1), Duration::from_millis(5), 9, &["websocket", "x"]),
            r#"0{"sid":"abc","upgrades":["websocket","x"],"pingInterval":1000,"pingTimeout":5,"maxPayload":9}"#
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(text: Vec<u8>) {
            let _ = decode_text(&text.into());
        }
    }
}
