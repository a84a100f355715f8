//! Request bodies of the client port, read piece by piece or whole.
//!
//! Belongs here: where a body ends, undoing chunks, trailer fields, its bounds.
//! Stays out: sockets and time (`listener`, `proxy`), what the bytes mean.
//! Invariants: a body read whole never holds more than the bound and one read; one read in pieces holds none
//! of it; the verdict does not depend on how the bytes were split; what follows the body is left for the next
//! request.
//! Source: RFC 9112 §6.3 (length), §7.1 (chunked coding).

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::{HEADERS_MAX, RequestHead};

/// Bytes of one chunk's size line, extensions included.
const SIZE_LINE_BYTES_MAX: usize = 256;

/// Bytes of the fields after the last chunk.
const TRAILER_BYTES_MAX: usize = 4 << 10;

/// Why a body is refused. The connection closes after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than the bound.
    #[error("body over the bound")]
    TooLarge,
    /// No chunked coding.
    #[error("malformed chunks")]
    Malformed,
}

/// How a body says where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// By `Content-Length`.
    Exact(u64),
    /// By chunks.
    Chunked,
}

/// What is next of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Some bytes, at least one.
    Data(Bytes),
    /// Nothing more: the body is whole. Holds the fields after the last chunk.
    End(HeaderMap),
}

/// Takes one body out of the bytes of a connection, piece by piece.
#[derive(Debug)]
pub struct BodyPieces {
    state: State,
    length: BodyLength,
    /// Bytes that chunks may still announce.
    left: u64,
    trailer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are missing.
    Exact(u64),
    /// A chunk's size line is next.
    Size,
    /// So many bytes of a chunk are missing.
    Chunk(u64),
    /// The line end after a chunk is next.
    ChunkEnd,
    /// Fields after the last chunk.
    Trailer,
}

impl BodyPieces {
    /// For the body that `head` announces; `head` has passed its own checks.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] before anything of it is read.
    pub fn new(head: &RequestHead<'_>, bytes_max: u64) -> Result<Self, BodyError> {
        let (state, length) = match head.header_text("content-length").map(str::parse::<u64>) {
            Some(Ok(len)) if len <= bytes_max => (State::Exact(len), BodyLength::Exact(len)),
            Some(_) => return Err(BodyError::TooLarge),
            None if head.header("transfer-encoding").is_some() => (State::Size, BodyLength::Chunked),
            None => (State::Exact(0), BodyLength::None),
        };
        Ok(Self { state, length, left: bytes_max, trailer: Vec::new() })
    }

    /// How it ends.
    #[must_use]
    pub fn length(&self) -> BodyLength {
        self.length
    }

    /// Whether only [`Piece::End`] is left.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.state == State::Exact(0)
    }

    /// Takes the next piece from the front of `bytes`; `None` when more bytes are needed. Not to be called
    /// after [`Piece::End`].
    ///
    /// # Errors
    /// [`BodyError`]; nothing more is to be read.
    pub fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, BodyError> {
        let mut at = 0;
        let piece = loop {
            let rest = &bytes[at..];
            match self.state {
                State::Exact(0) => break Some(Piece::End(HeaderMap::new())),
                _ if rest.is_empty() => break None,
                State::Exact(missing) => {
                    let (data, left) = take_front(bytes, at, missing);
                    self.state = State::Exact(left);
                    return Ok(Some(Piece::Data(data)));
                }
                State::Chunk(missing) => {
                    let (data, left) = take_front(bytes, at, missing);
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::Size => match size_line(rest)? {
                    None => break None,
                    Some((len, size)) => {
                        at += len;
                        self.left = self.left.checked_sub(size).ok_or(BodyError::TooLarge)?;
                        self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
                    }
                },
                State::ChunkEnd if rest.len() < 2 => break None,
                State::ChunkEnd if rest.starts_with(b"\r\n") => {
                    at += 2;
                    self.state = State::Size;
                }
                State::ChunkEnd => return Err(BodyError::Malformed),
                State::Trailer => {
                    let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                        if rest.len() + self.trailer.len() > TRAILER_BYTES_MAX {
                            return Err(BodyError::Malformed);
                        }
                        break None;
                    };
                    let line = &rest[..=end];
                    at += line.len();
                    self.trailer.extend_from_slice(line);
                    if !line.ends_with(b"\r\n") || self.trailer.len() > TRAILER_BYTES_MAX {
                        return Err(BodyError::Malformed);
                    }
                    if line.len() == 2 {
                        self.state = State::Exact(0);
                        break Some(Piece::End(trailer_fields(&std::mem::take(&mut self.trailer))?));
                    }
                }
            }
        };
        bytes.drain(..at);
        Ok(piece)
    }
}

/// At most `missing` bytes from `at` on, without copying them where nothing else is there; how many are missing
/// still. What lies before `at` goes too.
fn take_front(bytes: &mut Vec<u8>, at: usize, missing: u64) -> (Bytes, u64) {
    let available = bytes.len() - at;
    let len = usize::try_from(missing).map_or(available, |missing| missing.min(available));
    let data = if at == 0 && len == bytes.len() {
        Bytes::from(std::mem::take(bytes))
    } else {
        let data = Bytes::copy_from_slice(&bytes[at..at + len]);
        bytes.drain(..at + len);
        data
    };
    (data, missing - len as u64)
}

/// Length of a whole size line and the size it tells. A lone CR or LF in it would end the line for some readers
/// and not for others.
fn size_line(bytes: &[u8]) -> Result<Option<(usize, u64)>, BodyError> {
    let window = &bytes[..bytes.len().min(SIZE_LINE_BYTES_MAX)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        let whole = bytes.len() < SIZE_LINE_BYTES_MAX;
        let plausible = window.iter().rev().skip(1).all(|&byte| byte != b'\r');
        return if whole && plausible { Ok(None) } else { Err(BodyError::Malformed) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(BodyError::Malformed)?;
    if line.iter().any(|&byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(BodyError::Malformed);
    }
    match httparse::parse_chunk_size(&bytes[..=end]) {
        Ok(httparse::Status::Complete((len, size))) if len == end + 1 => Ok(Some((len, size))),
        _ => Err(BodyError::Malformed),
    }
}

fn trailer_fields(bytes: &[u8]) -> Result<HeaderMap, BodyError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(bytes, &mut headers) else {
        return Err(BodyError::Malformed);
    };
    let mut fields = HeaderMap::new();
    for header in headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| BodyError::Malformed)?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| BodyError::Malformed)?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Takes one body out of the bytes of a connection, whole.
#[derive(Debug)]
pub struct BodyReader {
    pieces: BodyPieces,
    body: Vec<u8>,
}

impl BodyReader {
    /// For the body that `head` announces; `head` has passed its own checks.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] before anything of it is read.
    pub fn new(head: &RequestHead<'_>, bytes_max: usize) -> Result<Self, BodyError> {
        Ok(Self { pieces: BodyPieces::new(head, bytes_max as u64)?, body: Vec::new() })
    }

    /// Takes what it needs from the front of `bytes`; `Some` once the body is whole.
    ///
    /// # Errors
    /// [`BodyError`]; nothing more is to be read.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Bytes>, BodyError> {
        loop {
            match self.pieces.next(bytes)? {
                Some(Piece::Data(data)) => self.body.extend_from_slice(&data),
                Some(Piece::End(_)) => return Ok(Some(std::mem::take(&mut self.body).into())),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Verdict = Result<Option<Bytes>, BodyError>;

    /// The verdict on what follows a head with `header`, given in pieces of `split` bytes; and what is left.
    fn read(header: &str, input: &[u8], split: usize) -> (Verdict, Vec<u8>) {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let mut reader = match BodyReader::new(&head, 10) {
            Ok(reader) => reader,
            Err(error) => return (Err(error), input.to_vec()),
        };
        let mut bytes = Vec::new();
        let mut outcome = reader.take(&mut bytes);
        for piece in input.chunks(split.max(1)) {
            bytes.extend_from_slice(piece);
            if outcome == Ok(None) {
                outcome = reader.take(&mut bytes);
            }
        }
        (outcome, bytes)
    }

    #[test]
    fn bodies_end_where_they_say() {
        let whole = |text: &'static str| Ok(Some(Bytes::from_static(text.as_bytes())));
        let cases: &[(&str, &[u8], Verdict, &[u8])] = &[
            ("Content-Length: 3", b"abcGET", whole("abc"), b"GET"),
            ("Content-Length: 0", b"GET", whole(""), b"GET"),
            ("X: y", b"GET", whole(""), b"GET"),
            ("Content-Length: 11", b"", Err(BodyError::TooLarge), b""),
            ("Content-Length: 99999999999999999999999", b"", Err(BodyError::TooLarge), b""),
            ("Content-Length: 4", b"abc", Ok(None), b""),
            (
                "Transfer-Encoding: chunked",
                b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\nGET",
                whole("abcde"),
                b"GET",
            ),
            ("Transfer-Encoding: chunked", b"0\r\nA: b\r\n\r\nGET", whole(""), b"GET"),
            ("Transfer-Encoding: chunked", b"b\r\n", Err(BodyError::TooLarge), b"b\r\n"),
            ("Transfer-Encoding: chunked", b"5\r\nabcde\r\n6\r\n", Err(BodyError::TooLarge), b""),
            ("Transfer-Encoding: chunked", b"3\r\nabcX", Ok(None), b"X"),
            ("Transfer-Encoding: chunked", b"3\r\nabcXY", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"zz\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"-1\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"3\r\nabc", Ok(None), b""),
            // Lines that end for some readers where they do not end for others.
            ("Transfer-Encoding: chunked", b"3\nabc\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"3;a\nb\r\nabc\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"3;a\rb\r\nabc\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"0\r\nA: b\nC: d\r\n\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"0\r\nA b\r\n\r\n", Err(BodyError::Malformed), b""),
            ("Transfer-Encoding: chunked", b"ffffffffffffffff\r\n", Err(BodyError::TooLarge), b""),
            ("Transfer-Encoding: chunked", b"10000000000000000\r\n", Err(BodyError::Malformed), b""),
        ];
        for (header, input, outcome, left) in cases {
            for split in 1..=input.len().max(1) {
                let (got, rest) = read(header, input, split);
                assert_eq!(got, *outcome, "{header}, {input:?} by {split}");
                if outcome.is_ok() {
                    assert_eq!(rest, *left, "{header}, {input:?} by {split}");
                }
            }
        }
    }

    #[test]
    fn pieces_come_as_they_are_read_and_end_with_the_trailer_fields() {
        let text = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut pieces = BodyPieces::new(&RequestHead::parse(text).unwrap(), u64::MAX).unwrap();
        assert_eq!(pieces.length(), BodyLength::Chunked);
        let mut bytes = b"5\r\nabc".to_vec();
        assert_eq!(pieces.next(&mut bytes), Ok(Some(Piece::Data("abc".into()))));
        assert_eq!((pieces.next(&mut bytes), bytes.len()), (Ok(None), 0), "nothing is held back");
        bytes.extend_from_slice(b"de\r\n0\r\nX-Sum: 7\r\n\r\nGET");
        assert_eq!(pieces.next(&mut bytes), Ok(Some(Piece::Data("de".into()))));
        let Ok(Some(Piece::End(fields))) = pieces.next(&mut bytes) else { panic!("no end") };
        assert_eq!((fields["x-sum"].as_bytes(), &*bytes), (&b"7"[..], &b"GET"[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_end_the_same_however_they_are_split(input: Vec<u8>, split in 1_usize..20) {
            let whole = read("Transfer-Encoding: chunked", &input, input.len());
            let parts = read("Transfer-Encoding: chunked", &input, split);
            prop_assert_eq!(whole.0, parts.0);
        }
    }
}
