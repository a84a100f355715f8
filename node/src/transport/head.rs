//! Request heads, read by ourselves: an upgraded connection never passes through an HTTP server,
//! which would leave kilobytes behind for each.
//!
//! Belongs here: gathering a head over any split of its bytes; its bounds; shapes that two HTTP
//! parsers could read differently, all refused.
//! Stays out: what the request asks for (`route`); bodies, for which the client port has no use.
//! Invariants: linear time in the bytes received; never holds more than [`HEAD_BYTES_MAX`] plus
//! one read; the verdict on a whole head does not depend on how its bytes were split.
//! Source: RFC 9112 §2–3, §5.2, §6.1.

use super::Response;

/// Bytes of a head, its empty line included.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Header lines of a head.
pub const HEADERS_MAX: usize = 64;

/// Bytes of a request target.
pub const TARGET_BYTES_MAX: usize = 8 << 10;

/// Longest method we let pass while a target has no end yet; only 414 depends on it.
const METHOD_BYTES_MAX: usize = 32;

/// Why a head is refused. The connection closes after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.1, or a shape that another parser might read differently. Nothing of it is used.
    #[error("malformed request head: {0}")]
    Malformed(&'static str),
    /// More than [`TARGET_BYTES_MAX`].
    #[error("request target over {TARGET_BYTES_MAX} bytes")]
    TargetTooLong,
    /// More than [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    #[error("request head over {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} headers")]
    TooLarge,
    /// Not whole in time.
    #[error("request head not complete in time")]
    Timeout,
}

impl HeadError {
    /// What the client is told.
    #[must_use]
    pub fn response(self) -> Response {
        let (status, body) = match self {
            Self::Malformed(_) => (400, r#"{"error":{"code":"bad_request","message":"malformed request"}}"#),
            Self::TargetTooLong => {
                (414, r#"{"error":{"code":"uri_too_long","message":"request target over 8 KiB"}}"#)
            }
            Self::TooLarge => (
                431,
                r#"{"error":{"code":"head_too_large","message":"request head over 16 KiB or 64 headers"}}"#,
            ),
            Self::Timeout => {
                (408, r#"{"error":{"code":"timeout","message":"no whole request head in time"}}"#)
            }
        };
        Response::json(status, body)
    }

    /// A word for counters.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TargetTooLong => "uri_too_long",
            Self::TooLarge => "head_too_large",
            Self::Timeout => "head_timeout",
        }
    }
}

/// Bytes of a head that is still arriving.
#[derive(Debug, Default)]
pub struct HeadBuffer {
    bytes: Vec<u8>,
}

impl HeadBuffer {
    /// Takes what was read. `Some(len)` once the head is whole: `len` bytes of [`Self::bytes`] are
    /// the head, what lies behind them came with it.
    ///
    /// # Errors
    /// As soon as no continuation could make it a head we accept.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Option<usize>, HeadError> {
        let seen = self.bytes.len();
        self.bytes.extend_from_slice(chunk);
        // A TLS hello or an HTTP/2 preface has no line end to wait for.
        if seen == 0 {
            check_start(&self.bytes)?;
        }
        for at in seen..self.bytes.len() {
            let upto = &self.bytes[..=at];
            if upto[at] == b'\n' && !upto.ends_with(b"\r\n") {
                return Err(HeadError::Malformed("bare line feed"));
            }
            if upto.ends_with(b"\r\n\r\n") {
                return if at < HEAD_BYTES_MAX { Ok(Some(at + 1)) } else { Err(self.too_large()) };
            }
        }
        if self.bytes.len() >= HEAD_BYTES_MAX { Err(self.too_large()) } else { Ok(None) }
    }

    /// Everything received so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes that came after a head of `len` bytes.
    #[must_use]
    pub fn into_read_ahead(mut self, len: usize) -> Vec<u8> {
        self.bytes.split_off(len)
    }

    /// A head that is too large is mostly one with a long target: say which.
    fn too_large(&self) -> HeadError {
        let first_line = self.bytes.iter().position(|&b| b == b'\r').unwrap_or(self.bytes.len());
        if first_line > TARGET_BYTES_MAX + METHOD_BYTES_MAX {
            HeadError::TargetTooLong
        } else {
            HeadError::TooLarge
        }
    }
}

/// Refuses what cannot become a request line, from the first bytes on.
fn check_start(bytes: &[u8]) -> Result<(), HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::Request::new(&mut headers).parse(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::HeaderName => HeadError::Malformed("header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("header value"),
        httparse::Error::NewLine => HeadError::Malformed("line end"),
        httparse::Error::Version => HeadError::Malformed("version"),
        _ => HeadError::Malformed("request line"),
    }
}

/// A whole request head, checked. Borrows the bytes it was read from.
#[derive(Clone)]
pub struct RequestHead<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// The path, beginning with `/`, as it came (not percent-decoded).
    pub path: &'a str,
    /// The query without `?`; empty when there is none.
    pub query: &'a str,
    /// Whether the version is 1.1 (else 1.0).
    pub http11: bool,
    headers: Vec<httparse::Header<'a>>,
}

impl<'a> RequestHead<'a> {
    /// Reads a head that [`HeadBuffer::push`] has found whole.
    ///
    /// # Errors
    /// [`HeadError`] for anything ambiguous or over a bound.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let status = request.parse(bytes).map_err(refused)?;
        if status.is_partial() {
            return Err(HeadError::Malformed("empty request line"));
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return Err(HeadError::Malformed("request line"));
        };
        if target.len() > TARGET_BYTES_MAX {
            return Err(HeadError::TargetTooLong);
        }
        // Absolute-form, authority-form (CONNECT) and `*` are for proxies; this is none.
        if !target.starts_with('/') {
            return Err(HeadError::Malformed("request target"));
        }
        let target = target.split('#').next().unwrap_or(target);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let head = Self { method, path, query, http11: version == 1, headers: request.headers.to_vec() };
        head.check_framing()?;
        Ok(head)
    }

    /// The value of the first header called `name`, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// The value of the first header called `name`, when it is UTF-8.
    #[must_use]
    pub fn header_text(&self, name: &str) -> Option<&'a str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every value of headers called `name`.
    pub fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    }

    /// Every header, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + '_ {
        self.headers.iter().map(|h| (h.name, h.value))
    }

    /// Whether a comma-separated header holds `token`, in any case.
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name).any(|value| {
            value.split(|&b| b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }

    /// Where a body would end must have one reading, and the host one value: what a proxy in front
    /// and we could read differently is how requests are smuggled (RFC 9112 §6.3, §3.2).
    fn check_framing(&self) -> Result<(), HeadError> {
        if self.values("host").count() != 1 {
            return Err(HeadError::Malformed("not exactly one Host"));
        }
        let mut lengths = self.values("content-length");
        let length = lengths.next();
        if lengths.next().is_some() {
            return Err(HeadError::Malformed("two Content-Length"));
        }
        if length.is_some_and(|value| value.is_empty() || !value.iter().all(u8::is_ascii_digit)) {
            return Err(HeadError::Malformed("Content-Length"));
        }
        let mut encodings = self.values("transfer-encoding");
        let encoding = encodings.next();
        if encodings.next().is_some() || (encoding.is_some() && length.is_some()) {
            return Err(HeadError::Malformed("Transfer-Encoding"));
        }
        if encoding.is_some_and(|value| !value.eq_ignore_ascii_case(b"chunked")) {
            return Err(HeadError::Malformed("Transfer-Encoding"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The status a whole input earns; 0 for an accepted head, 1 for "needs more".
    fn status(input: &[u8], split: usize) -> u16 {
        let mut buffer = HeadBuffer::default();
        for chunk in input.chunks(split.max(1)) {
            match buffer.push(chunk) {
                Ok(None) => {}
                Ok(Some(len)) => {
                    return RequestHead::parse(&buffer.bytes()[..len])
                        .map_or_else(|error| error.response().status, |_| 0);
                }
                Err(error) => return error.response().status,
            }
        }
        1
    }

    #[test]
    fn bad_heads_get_their_answer_whatever_the_split() {
        let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(9_000));
        let endless_target = format!("GET /{}", "a".repeat(20_000));
        let long_head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(17_000));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(64));
        let fits = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(63));
        let cases: &[(&str, u16)] = &[
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 0),
            (&fits, 0),
            ("GET / HTTP/1.1\r\nHost: x\r\n", 1),
            // FAULTS row 8.
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: x\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
            // Row 9.
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", 400),
            // Row 10.
            (&long_target, 414),
            (&endless_target, 414),
            (&long_head, 431),
            (&many, 431),
            // Rows 20 and 25.
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            ("\x16\x03\x01\x02", 400),
            ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("\r\n\r\n", 400),
        ];
        for (input, expected) in cases {
            for split in [1, 2, 3, 7, 4_096, usize::MAX] {
                let shown: String = input.chars().take(60).collect();
                assert_eq!(status(input.as_bytes(), split), *expected, "split {split}: {shown:?}");
            }
        }
    }

    #[test]
    fn what_follows_the_head_is_kept() {
        let mut buffer = HeadBuffer::default();
        let len = buffer.push(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nrest").unwrap().unwrap();
        let head = RequestHead::parse(&buffer.bytes()[..len]).unwrap();
        assert_eq!((head.method, head.path, head.query, head.http11), ("GET", "/a", "b=c", true));
        assert_eq!(buffer.into_read_ahead(len), b"rest");
    }

    #[test]
    fn tokens_are_found_in_lists_of_any_case() {
        let bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nconnection: x , UPGRADE\r\n\r\n";
        let head = RequestHead::parse(bytes).unwrap();
        assert!(head.has_token("Connection", "upgrade"));
        assert!(!head.has_token("Connection", "close"));
    }

    proptest! {
        #[test]
        fn any_head_ends_the_same_whatever_the_split(
            mut bytes in prop::collection::vec(prop::sample::select(b"GET /?: HTP1.\r\n\0\x80ab".to_vec()), 0..200),
            split in 1_usize..9,
        ) {
            bytes.extend_from_slice(b"\r\n\r\n");
            prop_assert_eq!(status(&bytes, split), status(&bytes, usize::MAX));
        }
    }
}
