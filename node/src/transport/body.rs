//! Request bodies of the client port: those of polling clients, small and whole.
//!
//! Belongs here: where a body ends, undoing chunks, its bounds.
//! Stays out: sockets and time (`listener`), what the bytes mean (`mesh_proto::engineio`).
//! Invariants: never holds more than the bound and one read; the verdict does not depend on how the bytes
//! were split; what follows the body is left for the next request.
//! Source: RFC 9112 §6.3 (length), §7.1 (chunked coding).

use bytes::Bytes;

use super::head::RequestHead;

/// Bytes of one chunk's size line, extensions included.
const SIZE_LINE_BYTES_MAX: usize = 256;

/// Bytes of the fields after the last chunk, which nobody reads.
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

/// Takes one body out of the bytes of a connection.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    bytes_max: usize,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are missing.
    Exact(usize),
    /// A chunk's size line is next.
    Size,
    /// So many bytes of a chunk are missing.
    Chunk(usize),
    /// The line end after a chunk is next.
    ChunkEnd,
    /// Fields after the last chunk, so many bytes of them seen.
    Trailer(usize),
    Done,
}

impl BodyReader {
    /// For the body that `head` announces; `head` has passed its own checks.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] before anything of it is read.
    pub fn new(head: &RequestHead<'_>, bytes_max: usize) -> Result<Self, BodyError> {
        let state = match head.header_text("content-length").map(str::parse::<usize>) {
            Some(Ok(len)) if len <= bytes_max => State::Exact(len),
            Some(_) => return Err(BodyError::TooLarge),
            None if head.header("transfer-encoding").is_some() => State::Size,
            None => State::Exact(0),
        };
        Ok(Self { state, bytes_max, body: Vec::new() })
    }

    /// Takes what it needs from the front of `bytes`; `Some` once the body is whole.
    ///
    /// # Errors
    /// [`BodyError`]; nothing more is to be read.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Bytes>, BodyError> {
        let mut at = 0;
        let whole = loop {
            let rest = &bytes[at..];
            match self.state {
                State::Done | State::Exact(0) => break true,
                _ if rest.is_empty() => break false,
                State::Exact(missing) => {
                    let len = self.copy(rest, missing);
                    at += len;
                    self.state = State::Exact(missing - len);
                }
                State::Chunk(missing) => {
                    let len = self.copy(rest, missing);
                    at += len;
                    self.state = if len == missing { State::ChunkEnd } else { State::Chunk(missing - len) };
                }
                State::Size => match httparse::parse_chunk_size(rest) {
                    Ok(httparse::Status::Complete((len, size))) if len <= SIZE_LINE_BYTES_MAX => {
                        at += len;
                        let size = usize::try_from(size).map_err(|_| BodyError::TooLarge)?;
                        if size > self.bytes_max - self.body.len() {
                            return Err(BodyError::TooLarge);
                        }
                        self.state = if size == 0 { State::Trailer(0) } else { State::Chunk(size) };
                    }
                    Ok(httparse::Status::Partial) if rest.len() <= SIZE_LINE_BYTES_MAX => break false,
                    _ => return Err(BodyError::Malformed),
                },
                State::ChunkEnd if rest.len() < 2 => break false,
                State::ChunkEnd if rest.starts_with(b"\r\n") => {
                    at += 2;
                    self.state = State::Size;
                }
                State::ChunkEnd => return Err(BodyError::Malformed),
                State::Trailer(seen) => {
                    let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                        if rest.len() + seen > TRAILER_BYTES_MAX {
                            return Err(BodyError::Malformed);
                        }
                        break false;
                    };
                    let line = &rest[..=end];
                    at += line.len();
                    let seen = seen + line.len();
                    if !line.ends_with(b"\r\n") || seen > TRAILER_BYTES_MAX {
                        return Err(BodyError::Malformed);
                    }
                    self.state = if line.len() == 2 { State::Done } else { State::Trailer(seen) };
                }
            }
        };
        bytes.drain(..at);
        Ok(whole.then(|| std::mem::take(&mut self.body).into()))
    }

    /// The bound was looked at when the length was told.
    fn copy(&mut self, rest: &[u8], missing: usize) -> usize {
        let len = missing.min(rest.len());
        self.body.extend_from_slice(&rest[..len]);
        len
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

    proptest! {
        #[test]
        fn any_bytes_end_the_same_however_they_are_split(input: Vec<u8>, split in 1_usize..20) {
            let whole = read("Transfer-Encoding: chunked", &input, input.len());
            let parts = read("Transfer-Encoding: chunked", &input, split);
            prop_assert_eq!(whole.0, parts.0);
        }
    }
}
