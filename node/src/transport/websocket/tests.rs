use std::io::{self, Read, Write};

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message as Reference, WebSocket};

use super::*;

const LIMIT: usize = 1_000;

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | len as u8),
        len => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    let mask = [7, 0xaa, 0, 0x55];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// What our reader makes of `bytes`, read `split` bytes at a time.
fn read(bytes: &[u8], split: usize) -> (Vec<Event>, Option<Violation>) {
    let mut reader = FrameReader::default();
    let context = ReadContext { now: Instant::ZERO, message_bytes_max: LIMIT };
    let mut events = Vec::new();
    for chunk in bytes.chunks(split.max(1)) {
        let (mut chunk, mut at) = (chunk.to_vec(), 0);
        loop {
            match reader.next(context, &mut chunk, &mut at) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(violation) => return (events, Some(violation)),
            }
        }
        assert_eq!(at, chunk.len(), "bytes left unread");
    }
    (events, None)
}

fn refused(bytes: &[u8]) -> u16 {
    for split in [1, 3, 5] {
        assert_eq!(read(bytes, split), read(bytes, usize::MAX), "split {split}");
    }
    read(bytes, usize::MAX).1.map_or(0, Violation::close_code)
}

fn text(text: &str) -> Event {
    Event::Message(Packet::Text(Bytes::copy_from_slice(text.as_bytes())))
}

#[test]
fn each_broken_rule_has_its_close_code() {
    let big_header = |len: u64| [&[0x82, 0xff][..], &len.to_be_bytes(), &[0; 4]].concat();
    let fragments = |count: usize, payload: &[u8]| {
        let mut bytes = frame(0x02, payload);
        bytes.extend((1..count).flat_map(|_| frame(0x00, payload)));
        bytes
    };
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("whole text", frame(0x81, b"hi"), 0),
        // FAULTS row 29.
        ("unmasked", vec![0x81, 2, b'h', b'i'], 1002),
        // Row 30.
        ("rsv1", frame(0xc1, b"hi"), 1002),
        ("rsv3", frame(0x91, b"hi"), 1002),
        ("opcode 3", frame(0x83, b"hi"), 1002),
        ("opcode 11", frame(0x8b, b"hi"), 1002),
        // Row 31.
        ("fragmented ping", frame(0x09, b"hi"), 1002),
        ("ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        ("continuation of nothing", frame(0x80, b"hi"), 1002),
        ("message inside a message", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
        // Row 32.
        ("over the limit", big_header(1_001), 1009),
        ("2^63", big_header(1 << 63), 1009),
        // Row 33.
        ("over the limit by fragments", fragments(3, &[0; 400]), 1009),
        ("1,025 fragments", [fragments(64, b""), fragments(1, b"")].concat(), 1002),
        ("65 empty fragments", fragments(65, b""), 1008),
        ("1,000 fragments", fragments(1_000, b"a"), 0),
        // Row 34.
        ("bad UTF-8", frame(0x81, b"\xff"), 1007),
        ("half a character", frame(0x81, b"\xe2\x82"), 1007),
        (
            "half a character at the end of fragments",
            [frame(0x01, b"\xe2"), frame(0x80, b"\x82")].concat(),
            1007,
        ),
        ("bad UTF-8 in the first fragment", frame(0x01, b"a\xff"), 1007),
        // Row 35.
        ("close of one byte", frame(0x88, b"a"), 1002),
        ("close 1005", frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close 1006", frame(0x88, &1006_u16.to_be_bytes()), 1002),
        ("close 1015", frame(0x88, &1015_u16.to_be_bytes()), 1002),
        ("close 0", frame(0x88, &[0, 0]), 1002),
        ("close 65535", frame(0x88, &[0xff, 0xff]), 1002),
        ("close with a broken reason", frame(0x88, &[3, 0xe8, 0xff]), 1007),
        // Row 37.
        ("20 pings", frame(0x89, b"x").repeat(20), 0),
        ("21 pings", frame(0x89, b"x").repeat(21), 1008),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(refused(bytes), *code, "{name}");
    }
}

#[test]
fn more_than_1024_fragments_are_a_flood() {
    let mut reader = FrameReader::default();
    let context = ReadContext { now: Instant::ZERO, message_bytes_max: 1 << 20 };
    let mut bytes = frame(0x02, b"a");
    bytes.extend((0..1_024).flat_map(|_| frame(0x00, b"a")));
    let mut at = 0;
    assert_eq!(reader.next(context, &mut bytes, &mut at), Err(Violation::Flood("fragments")));
}

#[test]
fn a_ping_between_fragments_comes_before_their_message() {
    let bytes = [frame(0x01, "a€".as_bytes().split_at(2).0), frame(0x89, b"p")].concat();
    let bytes = [bytes, frame(0x80, "a€".as_bytes().split_at(2).1), frame(0x88, &[3, 0xe8])].concat();
    let expected = vec![Event::Ping(Bytes::from_static(b"p")), text("a€"), Event::Close(Some(1000))];
    for split in [1, 2, 5, 100] {
        assert_eq!(read(&bytes, split), (expected.clone(), None));
    }
}

#[test]
fn what_follows_a_close_is_ignored() {
    let bytes = [frame(0x88, b""), frame(0x81, b"late"), vec![0xff; 9]].concat();
    assert_eq!(read(&bytes, 1), (vec![Event::Close(None)], None));
}

#[test]
fn an_idle_reader_holds_no_buffer() {
    let mut reader = FrameReader::default();
    assert!(size_of::<FrameReader>() <= 16);
    let mut at = 0;
    let mut bytes = frame(0x81, b"hello");
    let context = ReadContext { now: Instant::from_micros(5), message_bytes_max: LIMIT };
    let (first, second) = bytes.split_at_mut(4);
    assert_eq!(reader.next(context, first, &mut at), Ok(None));
    assert_eq!(reader.unfinished_since(), Some(context.now));
    at = 0;
    assert_eq!(reader.next(context, second, &mut at), Ok(Some(text("hello"))));
    assert_eq!(reader.unfinished_since(), None);
}

#[test]
fn written_frames_have_the_shortest_header() {
    for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
        let mut out = Vec::new();
        append_packet(&mut out, &Packet::Binary(vec![1; len].into()));
        assert_eq!(out.len(), header + len);
        let (parsed, payload_bytes, used) = parse_header(&out).unwrap().unwrap();
        assert_eq!((payload_bytes, used), (len as u64, header));
        assert!(parsed.is_final && parsed.mask.is_none());
    }
    let mut out = Vec::new();
    append_close(&mut out, Some(1002), &"é".repeat(100));
    assert_eq!(out.len(), 2 + 2 + 122);
}

/// A stream that has `input` to read and swallows writes.
struct Tape {
    input: Cursor<Vec<u8>>,
}

impl Read for Tape {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.input.read(into)
    }
}

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the reference makes of `bytes`: its messages, and whether it refused something.
fn reference(bytes: &[u8]) -> (Vec<Event>, bool) {
    let config = WebSocketConfig::default().max_message_size(Some(LIMIT)).max_frame_size(Some(LIMIT));
    let tape = Tape { input: Cursor::new(bytes.to_vec()) };
    let mut socket = WebSocket::from_raw_socket(tape, Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        match socket.read() {
            Ok(Reference::Text(text)) => {
                events.push(Event::Message(Packet::Text(Bytes::copy_from_slice(text.as_bytes()))));
            }
            Ok(Reference::Binary(bytes)) => events.push(Event::Message(Packet::Binary(bytes))),
            Ok(Reference::Ping(bytes)) => events.push(Event::Ping(bytes)),
            Ok(Reference::Pong(_)) => events.push(Event::Pong),
            Ok(Reference::Close(frame)) => {
                events.push(Event::Close(frame.map(|frame| frame.code.into())));
                return (events, false);
            }
            Ok(Reference::Frame(_)) => unreachable!("only whole messages are read"),
            Err(Error::Protocol(
                tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (events, false),
            Err(Error::Io(_) | Error::ConnectionClosed) => return (events, false),
            Err(_) => return (events, true),
        }
    }
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop::sample::select(vec![
        0x81_u8, 0x82, 0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a, 0x88, 0xc1, 0x83, 0x09,
    ]);
    let payload = prop_oneof![
        "[a-z€ß]{0,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..140),
        Just(vec![b'x'; 600]),
        Just(vec![3, 0xe8]),
    ];
    (first, payload).prop_map(|(first, payload)| {
        // The reference closes as well on a broken close frame, but calls it no error: see the table.
        let payload = if first == 0x88 && !payload.is_empty() { vec![3, 0xe8] } else { payload };
        frame(first, &payload)
    })
}

proptest! {
    #[test]
    fn same_messages_and_verdict_as_the_reference_for_any_split(
        frames in prop::collection::vec(any_frame(), 0..12),
        split in 1_usize..40,
    ) {
        let bytes = frames.concat();
        let (events, violation) = read(&bytes, split);
        prop_assert_eq!((&events, violation), (&read(&bytes, usize::MAX).0, read(&bytes, usize::MAX).1));
        let (expected, refused) = reference(&bytes);
        prop_assert_eq!(violation.is_some(), refused, "{:?}", violation);
        prop_assert_eq!(events, expected);
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), split in 1_usize..50) {
        prop_assert_eq!(read(&bytes, split), read(&bytes, usize::MAX));
    }
}
