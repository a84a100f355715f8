//! How a client gets in: from the first byte of its request to a stream that carries frames.
//!
//! Belongs here: reading requests, short answers, frames.
//! Stays out: who the client is (`identity`), pages ([`Site`]), what its messages mean
//! (`mesh_proto::shard`).
//!
//! | module | answers |
//! |---|---|
//! | [`head`] | the bytes of a request head, or the refusal they earn |
//! | [`body`] | the bytes of a request body, within their bounds |
//! | [`proxies`] | the address a request comes from, by the word of trusted proxies |
//! | [`route`] | what a request head asks for |
//! | [`stream`] | the bytes of a client, encrypted or not |
//! | [`tls`] | which certificate a client is shown |
//! | [`websocket`] | frames in, frames out |

pub mod body;
pub mod head;
pub mod proxies;
pub mod route;
pub mod stream;
pub mod tls;
pub mod websocket;

use std::borrow::Cow;
use std::sync::Arc;

use head::RequestHead;

/// Every raw value that `name` has in a query, in order.
pub(crate) fn query_values<'q>(query: &'q str, name: &str) -> impl Iterator<Item = &'q str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// Undoes `%41` and `+`. A broken escape stays as it is; `None` when the result is not UTF-8.
#[must_use]
pub fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        match (first, escaped) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &rest[2..];
            }
            (b'+', None) => bytes.push(b' '),
            (byte, None) => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A whole HTTP answer with a short body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its body.
    pub body: Cow<'static, [u8]>,
    /// Further header lines.
    pub headers: Vec<(&'static str, String)>,
}

impl Response {
    /// An answer with a JSON body.
    #[must_use]
    pub fn json(status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self { status, content_type: "application/json", body, headers: Vec::new() }
    }

    /// With another type of content.
    #[must_use]
    pub fn with_type(mut self, content_type: &'static str) -> Self {
        self.content_type = content_type;
        self
    }

    /// With one more header line. Neither part may come from a client.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Its bytes, `Connection: close` included. `head_only` leaves the body out (answers to HEAD).
    #[must_use]
    pub fn to_bytes(&self, head_only: bool) -> Vec<u8> {
        self.bytes(head_only, false)
    }

    /// Its bytes on a connection that stays open.
    #[must_use]
    pub fn to_kept_bytes(&self) -> Vec<u8> {
        self.bytes(false, true)
    }

    fn bytes(&self, head_only: bool, keep: bool) -> Vec<u8> {
        use std::fmt::Write as _;
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason_phrase(self.status));
        let len = self.body.len();
        if self.status != 204 {
            let _ = write!(text, "Content-Type: {}\r\nContent-Length: {len}\r\n", self.content_type);
        }
        for (name, value) in &self.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str(if keep { "\r\n" } else { "Connection: close\r\n\r\n" });
        let mut bytes = text.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        430 => "Uid Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        508 => "Loop Detected",
        _ => "Error",
    }
}

/// Answers requests that are for no client transport: the demo page. `None` gives 404.
pub type Site = Arc<dyn Fn(&RequestHead<'_>) -> Option<Response> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_escapes_are_undone_and_broken_ones_kept() {
        let cases = [("a", "a"), ("a%20b+c", "a b c"), ("%e2%82%AC", "€"), ("%", "%"), ("%zz%4", "%zz%4")];
        for (text, decoded) in cases {
            assert_eq!(percent_decoded(text).as_deref(), Some(decoded), "{text}");
        }
        assert_eq!(percent_decoded("%ff"), None);
    }

    #[test]
    fn an_answer_names_its_length_and_closes() {
        let bytes = Response::json(404, "{}").with_header("Retry-After", "1").to_bytes(false);
        let expected = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                        Retry-After: 1\r\nConnection: close\r\n\r\n{}";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
