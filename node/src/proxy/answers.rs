//! What a client is told when there is no answer of an upstream's.
//!
//! Belongs here: status, code and words of each refusal; JSON or text, as the client likes.
//! Stays out: refusals for want of a uid (`identity`).

use std::time::Duration;

use crate::transport::Response;
use crate::transport::head::RequestHead;

/// Why a request got no answer of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No upstream is fit: come back then.
    NoUpstream(Duration),
    /// The mesh could not say in time where it belongs.
    NoBinding,
    /// The upstream took no connection, or closed it without an answer.
    Unreachable,
    /// What the upstream said is no answer.
    Malformed,
    /// The upstream did not answer in time.
    TimedOut,
    /// The body came too slowly.
    SlowBody,
    /// The body is over its bound.
    BodyTooLarge,
    /// The body is none.
    BadBody,
    /// The target cannot be passed on.
    BadTarget,
    /// The request leads in a circle.
    Loop,
    /// An Engine.IO session nobody knows.
    UnknownSid,
}

impl Refused {
    /// The answer, in the form the request asks for.
    pub(super) fn response(self, head: &RequestHead<'_>) -> Response {
        if self == Self::UnknownSid {
            return Response::json(400, r#"{"code":1,"message":"Session ID unknown"}"#);
        }
        let (status, code, message) = self.words();
        let response = if prefers_text(head) {
            Response::json(status, format!("{message}\n")).with_type("text/plain; charset=utf-8")
        } else {
            Response::json(status, format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#))
        };
        match self {
            Self::NoUpstream(wait) => response.with_header("Retry-After", seconds(wait).to_string()),
            _ if status > 500 && status != 508 => response.with_header("Retry-After", "1"),
            _ => response,
        }
    }

    fn words(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::NoUpstream(_) => (503, "no_upstream", "no server is ready: come back in a moment"),
            Self::NoBinding => (503, "busy", "the cluster did not answer in time: come back in a moment"),
            Self::Unreachable => (502, "upstream_unreachable", "the server took no connection or closed it"),
            Self::Malformed => (502, "upstream_malformed", "the server's answer could not be read"),
            Self::TimedOut => (504, "upstream_timeout", "the server did not answer in time"),
            Self::SlowBody => (408, "timeout", "the body came too slowly"),
            Self::BodyTooLarge => (413, "body_too_large", "the body is over its bound"),
            Self::BadBody => (400, "bad_request", "malformed body"),
            Self::BadTarget => (400, "bad_request", "percent-encode the request target"),
            Self::Loop => (508, "loop", "a server behind this one leads back to it"),
            Self::UnknownSid => (400, "sid_unknown", "Session ID unknown"),
        }
    }

    /// A word for counters.
    pub(super) fn word(self) -> &'static str {
        self.words().1
    }
}

/// At least one.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0 || wait.as_secs() == 0)
}

/// Whether a text is wanted: `Accept` names text before JSON. Who says nothing is a program, and gets JSON.
fn prefers_text(head: &RequestHead<'_>) -> bool {
    let ranges = head.values("accept").flat_map(|value| value.split(|&byte| byte == b','));
    for range in ranges {
        let range = range.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        if range.starts_with(b"text/") {
            return true;
        }
        if range.ends_with(b"json") {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_speak_as_the_request_asks() {
        for (accept, status, content_type) in [
            ("", 502, "application/json"),
            ("Accept: */*\r\n", 502, "application/json"),
            ("Accept: application/json, text/plain, */*\r\n", 502, "application/json"),
            ("Accept: text/html,application/xhtml+xml\r\n", 502, "text/plain; charset=utf-8"),
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{accept}\r\n");
            let head = RequestHead::parse(text.as_bytes()).unwrap();
            let response = Refused::Unreachable.response(&head);
            assert_eq!((response.status, response.content_type), (status, content_type), "{accept}");
            assert!(response.headers.contains(&("Retry-After", "1".into())));
            let wait = Refused::NoUpstream(Duration::from_millis(1_500)).response(&head);
            assert!(wait.headers.contains(&("Retry-After", "2".into())), "{wait:?}");
        }
    }
}
