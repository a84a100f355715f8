//! Answers that go on: lines as they come, over chunked HTTP.
//!
//! Belongs here: bodies, whole or line by line. Stays out: what the lines say.
//! What a full queue means: whoever writes lines waits ([`LINES_WAITING_MAX`]), and says in a later line
//! what it has left out.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, header};
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use super::Reply;

/// Lines written and not yet taken by the connection.
pub const LINES_WAITING_MAX: usize = 64;

/// An answer that ends when its writer is dropped.
#[derive(Debug)]
pub struct Lines {
    content_type: &'static str,
    lines: mpsc::Receiver<Bytes>,
}

impl Lines {
    /// An answer of this type, and the writer of its lines; each brings its own line end. Sending fails
    /// once the other side has gone.
    #[must_use]
    pub fn new(content_type: &'static str) -> (mpsc::Sender<Bytes>, Self) {
        let (writer, lines) = mpsc::channel(LINES_WAITING_MAX);
        (writer, Self { content_type, lines })
    }
}

/// What a handler answers.
#[derive(Debug)]
pub enum Answer {
    /// At once.
    Whole(Reply),
    /// As it comes.
    Lines(Lines),
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Whole(reply)
    }
}

impl Answer {
    pub(super) fn into_response(self, head_only: bool) -> http::Response<Body> {
        let Lines { content_type, lines } = match self {
            Self::Whole(reply) => return reply.into_response(head_only),
            Self::Lines(lines) => lines,
        };
        let body = if head_only { Body::whole(Bytes::new()) } else { Body(Inner::Lines(lines)) };
        let mut response = http::Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// The body of a response.
#[derive(Debug)]
pub(super) struct Body(Inner);

#[derive(Debug)]
enum Inner {
    Whole(Full<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Inner::Whole(Full::new(bytes)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Inner::Whole(body) => Pin::new(body).poll_frame(context),
            Inner::Lines(lines) => {
                lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Whole(body) => body.is_end_stream(),
            Inner::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Whole(body) => body.size_hint(),
            Inner::Lines(_) => SizeHint::default(),
        }
    }
}
