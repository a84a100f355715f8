//! Many packets in one body of long-polling.
//!
//! Belongs here: the record separator and base64 of binary messages. Stays out: HTTP (`node`).
//! Format: packets joined by 0x1e; a text packet as over WebSocket, a binary message as `b` and base64.
//! Source: Engine.IO protocol, revision 4, "HTTP long-polling"; FAULTS §3 rows 16–18.

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use bytes::Bytes;

use crate::shard::Packet;

/// Packets in one payload; a client that queues more sends two payloads.
pub const PAYLOAD_PACKETS_MAX: usize = 256;

const SEPARATOR: u8 = 0x1e;

/// Clients differ in padding; what the bits say is not in doubt either way.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A body that is no payload. The request gets 400 and the Engine.IO session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// A packet without a type, which includes an empty body.
    #[error("empty packet in payload")]
    EmptyPacket,
    /// More than [`PAYLOAD_PACKETS_MAX`].
    #[error("more than {PAYLOAD_PACKETS_MAX} packets in payload")]
    TooManyPackets,
    /// A text packet that is not UTF-8.
    #[error("payload is not UTF-8")]
    NotUtf8,
    /// A binary message that is not base64.
    #[error("binary message is not base64")]
    NotBase64,
}

/// Splits a body into the messages it carries: text packets with their type digit, as slices of
/// `body`, and the content of binary messages.
///
/// # Errors
/// [`PayloadError`]; nothing of the body is to be used.
pub fn decode_payload(body: &Bytes) -> Result<Vec<Packet>, PayloadError> {
    // Counted before anything is allocated: a body may be a million separators.
    if body.iter().filter(|&&byte| byte == SEPARATOR).take(PAYLOAD_PACKETS_MAX).count() == PAYLOAD_PACKETS_MAX
    {
        return Err(PayloadError::TooManyPackets);
    }
    body.split(|&byte| byte == SEPARATOR)
        .map(|packet| match packet {
            [] => Err(PayloadError::EmptyPacket),
            [b'b', base64 @ ..] => {
                let bytes = LENIENT.decode(base64).map_err(|_| PayloadError::NotBase64)?;
                Ok(Packet::Binary(bytes.into()))
            }
            text => {
                std::str::from_utf8(text).map_err(|_| PayloadError::NotUtf8)?;
                Ok(Packet::Text(body.slice_ref(text)))
            }
        })
        .collect()
}

/// Joins messages into one body.
#[must_use]
pub fn encode_payload(packets: &[Packet]) -> Bytes {
    let mut out = Vec::with_capacity(packets.iter().map(|packet| packet.len() * 4 / 3 + 5).sum());
    for (i, packet) in packets.iter().enumerate() {
        if i > 0 {
            out.push(SEPARATOR);
        }
        match packet {
            Packet::Text(text) => out.extend_from_slice(text),
            Packet::Binary(bytes) => {
                out.push(b'b');
                out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_protocols_own_example_reads_and_writes() {
        let body = Bytes::from_static(b"4hello\x1e2\x1e4world\x1ebAQIDBA==");
        let packets = [
            Packet::Text(Bytes::from_static(b"4hello")),
            Packet::Text(Bytes::from_static(b"2")),
            Packet::Text(Bytes::from_static(b"4world")),
            Packet::Binary(Bytes::from_static(&[1, 2, 3, 4])),
        ];
        assert_eq!(decode_payload(&body).unwrap(), packets);
        assert_eq!(encode_payload(&packets), body);
        assert_eq!(decode_payload(&Bytes::from_static(b"bAQIDBA")).unwrap(), packets[3..]);
    }

    #[test]
    fn bodies_that_are_no_payload_are_refused() {
        for (body, error) in [
            (&b""[..], PayloadError::EmptyPacket),
            (b"4a\x1e", PayloadError::EmptyPacket),
            (b"\x1e4a", PayloadError::EmptyPacket),
            (b"4a\x1e\x1e4b", PayloadError::EmptyPacket),
            (b"4\xff", PayloadError::NotUtf8),
            (b"4a\x1e4\xc3", PayloadError::NotUtf8),
            (b"b*", PayloadError::NotBase64),
            (b"bA", PayloadError::NotBase64),
            (b"bAQ=A", PayloadError::NotBase64),
        ] {
            assert_eq!(decode_payload(&Bytes::from_static(body)), Err(error), "{body:?}");
        }
    }

    #[test]
    fn packets_are_counted_before_they_are_read() {
        let body = |count: usize| Bytes::from(vec!["6"; count].join("\u{1e}"));
        assert_eq!(decode_payload(&body(256)).unwrap().len(), 256);
        assert_eq!(decode_payload(&body(257)), Err(PayloadError::TooManyPackets));
        assert_eq!(decode_payload(&vec![SEPARATOR; 1_000_000].into()), Err(PayloadError::TooManyPackets));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(body: Vec<u8>) {
            let _ = decode_payload(&body.into());
        }

        #[test]
        fn payloads_come_back(parts in proptest::collection::vec(
            prop_oneof![
                "[0-6][^\u{1e}]{0,20}".prop_map(|text| Packet::Text(text.into())),
                any::<Vec<u8>>().prop_map(|bytes| Packet::Binary(bytes.into())),
            ],
            1..20,
        )) {
            prop_assert_eq!(decode_payload(&encode_payload(&parts)).unwrap(), parts);
        }
    }
}
