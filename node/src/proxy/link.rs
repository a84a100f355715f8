//! One HTTP/1.1 connection to an upstream.
//!
//! Belongs here: opening it, sending one request at a time by hyper, taking the stream back after a `101`.
//! Stays out: which upstream (`forward`), when it is kept (`pool`).
//! Owner: the task that has a request on it drives it: no task of its own, so that a request costs no
//! wake-up of another task. In the pool nobody drives it: that its peer has closed it is seen when it is taken.
//! Units: at most [`BUFFER_BYTES_MAX`] are buffered each way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::RequestBody;

/// What hyper buffers each way; also the largest head of an answer.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// A byte stream to an upstream: TCP, or a tunnel to another node.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

type Io = TokioIo<Box<dyn Stream>>;

/// A connection to an upstream.
pub(super) struct Link {
    sender: SendRequest<RequestBody>,
    connection: Connection<Io, RequestBody>,
    /// It must not be polled again.
    ended: bool,
    /// Whether a request has been answered on it before.
    pub(super) reused: bool,
    /// How long it may be kept, if its upstream has said so.
    pub(super) kept_for: Option<Duration>,
}

/// A stream taken back after a `101`, and what has been read of it.
pub(super) struct Switched {
    pub(super) stream: Box<dyn Stream>,
    pub(super) read_ahead: Bytes,
}

impl Link {
    /// HTTP over `stream`.
    pub(super) async fn over(stream: Box<dyn Stream>) -> io::Result<Self> {
        let shaken = Builder::new().max_buf_size(BUFFER_BYTES_MAX).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(io::Error::other)?;
        Ok(Self { sender, connection, ended: false, reused: false, kept_for: None })
    }

    /// Moves bytes. To be called whenever the task that has it is woken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if !self.ended {
            self.ended = self.connection.poll_without_shutdown(cx).is_ready();
        }
    }

    /// Sends a request; the link must be polled for it to get anywhere.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.sender.try_send_request(request)
    }

    /// Whether it takes another request now.
    pub(super) fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        !self.ended && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }

    /// Takes the stream back after a `101`.
    pub(super) async fn switched(mut self) -> Switched {
        std::future::poll_fn(|cx| {
            self.poll(cx);
            if self.ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.connection.into_parts();
        Switched { stream: parts.io.into_inner(), read_ahead: parts.read_buf }
    }
}

impl AsyncRead for Switched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let len = self.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.read_ahead.split_to(len));
            if self.read_ahead.is_empty() {
                // What it was cut from is let go.
                self.read_ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
