//! WebSocket frames, server side, without a buffer per connection.
//!
//! Belongs here: frames and messages out of whatever slice was read (unmasking, assembly, every rule
//! a client can break), frame headers for what is written.
//! Stays out: sockets, when to write (`shard`), what a message means (`mesh_proto`).
//! Units: bytes. An idle [`FrameReader`] is 16 bytes; only an unfinished frame or message has a
//! buffer, which grows with what arrived, never with what was announced.
//! Invariants: same messages and same verdict for any split of the same bytes.
//! Source: RFC 6455 §5 (frames), §7.4 (close codes), §8.1 (UTF-8).

use std::io::Cursor;

use bytes::Bytes;
use mesh_proto::shard::{CloseCode, Packet};
use mesh_proto::time::Instant;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Fragments of one message; no library splits finer.
const FRAGMENTS_MAX: u16 = 1_024;

/// Fragments without content of one message.
const EMPTY_FRAGMENTS_MAX: u16 = 64;

/// Pings and pongs of one client per second.
const CONTROLS_PER_SECOND_MAX: u8 = 20;

/// Bytes reserved at once for an unfinished message; beyond that its buffer doubles as it fills.
const RESERVE_MAX: usize = 16 << 10;

/// Payload of a control frame (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Header of a masked frame with a 64-bit length.
const HEADER_BYTES_MAX: usize = 14;

/// What came out of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message.
    Message(Packet),
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    /// Needs no answer.
    Pong,
    /// The peer closes; the code to echo. Whatever follows is ignored.
    Close(Option<u16>),
}

/// The rule a client has broken. Its connection is closed with [`Violation::close_code`]; bytes
/// after it are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that no version of the protocol allows.
    #[error("broken frame: {0}")]
    Frame(&'static str),
    /// A message over the limit; nothing was allocated for it.
    #[error("message too big")]
    TooBig,
    /// Text, or a close reason, that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// More fragments or control frames than any honest client sends.
    #[error("flood of {0}")]
    Flood(&'static str),
}

impl Violation {
    /// The code its connection is closed with.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Frame(_) => CloseCode::ProtocolError.code(),
            Self::TooBig => CloseCode::TooBig.code(),
            // 1007 is the frame layer's own: no machine closes with it.
            Self::NotUtf8 => 1007,
            Self::Flood(_) => CloseCode::Policy.code(),
        }
    }

    /// The reason sent with it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Frame(what) | Self::Flood(what) => what,
            Self::TooBig => CloseCode::TooBig.reason(),
            Self::NotUtf8 => "invalid UTF-8",
        }
    }
}

/// What a reader needs to know besides the bytes; the same for all clients of a shard.
#[derive(Clone, Copy, Debug)]
pub struct ReadContext {
    /// When the bytes were read.
    pub now: Instant,
    /// The largest message, all fragments together.
    pub message_bytes_max: usize,
}

/// Turns one client's bytes into messages.
#[derive(Debug, Default)]
pub struct FrameReader {
    unfinished: Option<Box<Unfinished>>,
    /// The second that `controls` counts in, modulo 2^32.
    controls_second: u32,
    controls: u8,
    /// After a close frame or a violation.
    ended: bool,
}

/// What is kept between two reads.
#[derive(Debug)]
struct Unfinished {
    /// Since when something is unfinished.
    since: Instant,
    /// First bytes of a header that is not whole.
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// Payload of an unfinished control frame.
    control: Vec<u8>,
    /// The message whose fragments are arriving.
    message: Option<Message>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: OpCode,
    last: bool,
    mask: [u8; 4],
    /// Payload still to come.
    left: usize,
}

#[derive(Debug)]
struct Message {
    text: bool,
    data: Vec<u8>,
    /// So much of `data` is known to be UTF-8.
    valid: usize,
    fragments: u16,
    empty_fragments: u16,
}

impl FrameReader {
    /// Since when a frame or a message has been unfinished.
    #[must_use]
    pub fn unfinished_since(&self) -> Option<Instant> {
        self.unfinished.as_ref().map(|unfinished| unfinished.since)
    }

    /// Whether a close frame or a violation has made it deaf.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next event in `bytes[*at..]`, which are unmasked in place; `*at` moves past what was
    /// used. `None` when all is used up.
    ///
    /// # Errors
    /// [`Violation`]; from then on all bytes are ignored.
    pub fn next(
        &mut self,
        context: ReadContext,
        bytes: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event>, Violation> {
        if self.ended {
            *at = bytes.len();
            return Ok(None);
        }
        let outcome = self.advance(context, bytes, at);
        if matches!(outcome, Err(_) | Ok(Some(Event::Close(_)))) {
            self.ended = true;
            self.unfinished = None;
            *at = bytes.len();
        }
        outcome
    }

    fn advance(
        &mut self,
        context: ReadContext,
        bytes: &mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event>, Violation> {
        loop {
            let begun = self.unfinished.as_mut().and_then(|unfinished| unfinished.frame.take());
            let frame = match begun {
                Some(frame) => frame,
                None => match self.header(context, bytes, at)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let end = *at + frame.left.min(bytes.len() - *at);
            let chunk = &mut bytes[*at..end];
            *at = end;
            unmask(chunk, frame.mask);
            let event = match frame.opcode {
                OpCode::Control(control) => self.control_payload(context, frame, control, chunk)?,
                OpCode::Data(data) => self.data_payload(context, frame, data, chunk)?,
            };
            if event.is_some() || *at == bytes.len() {
                return Ok(event);
            }
        }
    }

    /// Reads a header, from the kept bytes of a split one or from the slice itself.
    fn header(
        &mut self,
        context: ReadContext,
        bytes: &[u8],
        at: &mut usize,
    ) -> Result<Option<Frame>, Violation> {
        let mut parsed = None;
        if let Some(unfinished) = self.unfinished.as_mut().filter(|unfinished| unfinished.header_len > 0) {
            while parsed.is_none() {
                let Some(&byte) = bytes.get(*at) else { return Ok(None) };
                unfinished.header[unfinished.header_len] = byte;
                unfinished.header_len += 1;
                *at += 1;
                parsed = parse_header(&unfinished.header[..unfinished.header_len])?;
            }
            unfinished.header_len = 0;
        } else {
            let rest = &bytes[*at..];
            parsed = parse_header(rest)?;
            match &parsed {
                Some((_, _, len)) => *at += len,
                None if rest.is_empty() => {}
                None => {
                    let unfinished = self.begin(context.now);
                    unfinished.header[..rest.len()].copy_from_slice(rest);
                    unfinished.header_len = rest.len();
                    *at = bytes.len();
                }
            }
        }
        let Some((header, payload_bytes, _)) = parsed else { return Ok(None) };
        self.check(context, &header, payload_bytes).map(Some)
    }

    /// Every rule that a header alone can break, before any byte of its payload is kept.
    fn check(
        &mut self,
        context: ReadContext,
        header: &FrameHeader,
        payload_bytes: u64,
    ) -> Result<Frame, Violation> {
        let Some(mask) = header.mask else { return Err(Violation::Frame("unmasked frame")) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::Frame("reserved bit set"));
        }
        let left = usize::try_from(payload_bytes).map_err(|_| Violation::TooBig)?;
        let last = header.is_final;
        let message = self.unfinished.as_mut().and_then(|unfinished| unfinished.message.as_mut());
        match (header.opcode, message) {
            (OpCode::Control(_), _) if !last => return Err(Violation::Frame("fragmented control frame")),
            (OpCode::Control(_), _) if left > CONTROL_BYTES_MAX => {
                return Err(Violation::Frame("control frame over 125 bytes"));
            }
            (OpCode::Control(Control::Close), _) => {}
            (OpCode::Control(_), _) => self.count_control(context.now)?,
            (OpCode::Data(Data::Continue), None) => {
                return Err(Violation::Frame("continuation of nothing"));
            }
            (OpCode::Data(Data::Continue), Some(message)) => {
                message.count_fragment(left)?;
                if left > context.message_bytes_max.saturating_sub(message.data.len()) {
                    return Err(Violation::TooBig);
                }
            }
            (OpCode::Data(_), Some(_)) => return Err(Violation::Frame("message inside a message")),
            (OpCode::Data(_), None) if left > context.message_bytes_max => return Err(Violation::TooBig),
            (OpCode::Data(_), None) => {}
        }
        Ok(Frame { opcode: header.opcode, last, mask, left })
    }

    fn count_control(&mut self, now: Instant) -> Result<(), Violation> {
        let second = (now.as_micros() / 1_000_000) as u32;
        if second != self.controls_second {
            self.controls_second = second;
            self.controls = 0;
        }
        self.controls += 1;
        if self.controls > CONTROLS_PER_SECOND_MAX {
            return Err(Violation::Flood("pings"));
        }
        Ok(())
    }

    fn control_payload(
        &mut self,
        context: ReadContext,
        mut frame: Frame,
        control: Control,
        chunk: &[u8],
    ) -> Result<Option<Event>, Violation> {
        frame.left -= chunk.len();
        let begun = self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.control.is_empty());
        if frame.left == 0 && !begun {
            self.release();
            return control_event(control, chunk).map(Some);
        }
        let unfinished = self.begin(context.now);
        unfinished.control.extend_from_slice(chunk);
        if frame.left > 0 {
            frame.mask.rotate_left(chunk.len() % 4);
            unfinished.frame = Some(frame);
            return Ok(None);
        }
        let payload = std::mem::take(&mut unfinished.control);
        self.release();
        control_event(control, &payload).map(Some)
    }

    fn data_payload(
        &mut self,
        context: ReadContext,
        mut frame: Frame,
        data: Data,
        chunk: &[u8],
    ) -> Result<Option<Event>, Violation> {
        frame.left -= chunk.len();
        let begun = self.unfinished.as_ref().is_some_and(|unfinished| unfinished.message.is_some());
        if frame.left == 0 && frame.last && !begun {
            self.release();
            let text = data == Data::Text;
            if text && std::str::from_utf8(chunk).is_err() {
                return Err(Violation::NotUtf8);
            }
            return Ok(Some(Event::Message(packet(text, Bytes::copy_from_slice(chunk)))));
        }
        let unfinished = self.begin(context.now);
        let message = unfinished.message.get_or_insert_with(|| Message::new(data == Data::Text));
        if !begun && !frame.last {
            message.count_fragment(frame.left + chunk.len())?;
        }
        message.append(chunk, frame.left)?;
        if frame.left > 0 {
            frame.mask.rotate_left(chunk.len() % 4);
            unfinished.frame = Some(frame);
            return Ok(None);
        }
        if !frame.last {
            return Ok(None);
        }
        let message = unfinished.message.take().map(Message::finish).transpose()?;
        self.release();
        Ok(message.map(Event::Message))
    }

    fn begin(&mut self, now: Instant) -> &mut Unfinished {
        self.unfinished.get_or_insert_with(|| {
            Box::new(Unfinished {
                since: now,
                header: [0; HEADER_BYTES_MAX],
                header_len: 0,
                frame: None,
                control: Vec::new(),
                message: None,
            })
        })
    }

    /// Lets the buffers go once nothing is unfinished.
    fn release(&mut self) {
        if self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_idle()) {
            self.unfinished = None;
        }
    }
}

impl Unfinished {
    fn is_idle(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.control.is_empty() && self.message.is_none()
    }
}

impl Message {
    fn new(text: bool) -> Self {
        Self { text, data: Vec::new(), valid: 0, fragments: 0, empty_fragments: 0 }
    }

    fn count_fragment(&mut self, len: usize) -> Result<(), Violation> {
        self.fragments += 1;
        self.empty_fragments += u16::from(len == 0);
        if self.fragments > FRAGMENTS_MAX || self.empty_fragments > EMPTY_FRAGMENTS_MAX {
            return Err(Violation::Flood("fragments"));
        }
        Ok(())
    }

    fn append(&mut self, chunk: &[u8], left: usize) -> Result<(), Violation> {
        self.data.reserve(chunk.len() + left.min(RESERVE_MAX));
        self.data.extend_from_slice(chunk);
        if !self.text {
            return Ok(());
        }
        // A character may be split over reads and fragments; anything else wrong is wrong now.
        match std::str::from_utf8(&self.data[self.valid..]) {
            Ok(_) => self.valid = self.data.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }

    fn finish(self) -> Result<Packet, Violation> {
        if self.text && self.valid != self.data.len() {
            return Err(Violation::NotUtf8);
        }
        Ok(packet(self.text, Bytes::from(self.data.into_boxed_slice())))
    }
}

fn packet(text: bool, bytes: Bytes) -> Packet {
    if text { Packet::Text(bytes) } else { Packet::Binary(bytes) }
}

/// A header, the payload it announces and its own length; `None` while it is not whole.
fn parse_header(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Violation> {
    let mut cursor = Cursor::new(bytes);
    match FrameHeader::parse(&mut cursor) {
        Ok(Some((header, len))) => {
            Ok(Some((header, len, usize::try_from(cursor.position()).unwrap_or(usize::MAX))))
        }
        Ok(None) => Ok(None),
        Err(_) => Err(Violation::Frame("unknown opcode")),
    }
}

fn control_event(control: Control, payload: &[u8]) -> Result<Event, Violation> {
    match control {
        Control::Ping => Ok(Event::Ping(Bytes::copy_from_slice(payload))),
        Control::Pong => Ok(Event::Pong),
        Control::Close => close_event(payload),
        Control::Reserved(_) => Err(Violation::Frame("unknown opcode")),
    }
}

/// RFC 6455 §5.5.1 and §7.4: an empty body, or a code that may be sent and a reason in UTF-8.
fn close_event(payload: &[u8]) -> Result<Event, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(Event::Close(None)),
        [_] => return Err(Violation::Frame("close frame of one byte")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Frame("close code that must not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::NotUtf8);
    }
    Ok(Event::Close(Some(code)))
}

/// XORs `bytes` with the mask, eight at a time (RFC 6455 §5.3).
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Opcodes that a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SentOpcode {
    /// A text message.
    Text = 1,
    /// A binary message.
    Binary = 2,
    /// The close frame.
    Close = 8,
    /// The answer to a ping.
    Pong = 10,
}

/// Appends a header for a whole, unmasked frame of `len` bytes (2 to 10 bytes).
pub fn append_header(out: &mut Vec<u8>, opcode: SentOpcode, len: usize) {
    out.push(0x80 | opcode as u8);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// Appends a message as one frame.
pub fn append_packet(out: &mut Vec<u8>, packet: &Packet) {
    let (opcode, bytes) = match packet {
        Packet::Text(bytes) => (SentOpcode::Text, bytes),
        Packet::Binary(bytes) => (SentOpcode::Binary, bytes),
    };
    append_header(out, opcode, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends the beginning of a text of `len` bytes: its header and its first bytes. The others follow.
pub fn append_text_head(out: &mut Vec<u8>, first: &[u8], len: usize) {
    append_header(out, SentOpcode::Text, len);
    out.extend_from_slice(first);
}

/// Appends a pong.
pub fn append_pong(out: &mut Vec<u8>, payload: &[u8]) {
    append_header(out, SentOpcode::Pong, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame; `None` answers one without a code. The reason is cut to fit.
pub fn append_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return append_header(out, SentOpcode::Close, 0) };
    let cut = reason.floor_char_boundary(CONTROL_BYTES_MAX - 2);
    append_header(out, SentOpcode::Close, 2 + cut);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..cut]);
}

#[cfg(test)]
mod tests;
