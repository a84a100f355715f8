//! Whole answers: JSON where something can be said, one shape for every error.
//!
//! Belongs here: status, body and the few headers an answer has.
//! Stays out: which failure is which status (`api`, `admin`).

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::lines::Body;

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Its body.
    pub body: Bytes,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// `Allow`, after a wrong method.
    pub allow: Option<&'static str>,
}

impl Reply {
    /// `value` as JSON, with a line end so that it looks right in a terminal.
    ///
    /// # Panics
    /// Never for the answer types of this crate: all have text keys.
    #[must_use]
    pub fn json(status: StatusCode, value: &impl Serialize) -> Self {
        let mut body = serde_json::to_vec(value).expect("answers always serialise");
        body.push(b'\n');
        Self { status, content_type: "application/json", body: body.into(), retry_after: None, allow: None }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into(), retry_after: None, allow: None }
    }

    pub(super) fn into_response(self, head_only: bool) -> http::Response<Body> {
        let len = self.body.len();
        let body = if head_only { Bytes::new() } else { self.body };
        let mut response = http::Response::new(Body::whole(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CONTENT_LENGTH, len.into());
        // Answers are about this moment, and some are secrets of the operator's.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A request that is not answered as asked: `{"error":{"code","message"}}` with this status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {code}: {message}")]
pub struct Failure {
    /// Its status.
    pub status: StatusCode,
    /// A stable word.
    pub code: Cow<'static, str>,
    /// One sentence for the person who reads it.
    pub message: String,
    /// When a repeat may do better, in seconds.
    pub retry_after: Option<u32>,
    /// The methods there are, after a wrong one.
    pub allow: Option<&'static str>,
}

impl Failure {
    /// Any.
    #[must_use]
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), retry_after: None, allow: None }
    }

    /// 400.
    #[must_use]
    pub fn bad_request(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404 for a path that is not served.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "no such path")
    }

    /// 405, naming what is allowed.
    #[must_use]
    pub fn wrong_method(allow: &'static str) -> Self {
        let message = format!("this path takes {allow}");
        let failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        Self { allow: Some(allow), ..failure }
    }

    /// With a time to come back after.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Its body.
    #[must_use]
    pub fn body(&self) -> serde_json::Value {
        serde_json::json!({"error": {"code": self.code, "message": self.message}})
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        let reply = Self::json(failure.status, &failure.body());
        Self { retry_after: failure.retry_after, allow: failure.allow, ..reply }
    }
}
