//! The client's side of one request: its body read, its answer written, on one connection.
//!
//! Belongs here: reading only what the upstream takes, writing what the client takes, and how long either may
//! do nothing.
//! Stays out: what is sent (`head`), to whom (`forward`).
//! What filling up means: an upstream that takes no body stops the reading of the client's connection; a client
//! that takes no answer stops the reading of the upstream's. Held meanwhile: one read each way, what hyper
//! buffers, and [`READ_AHEAD_MAX`] of further requests.
//! Invariants: nothing of the body is read before the upstream has said that it wants it, where the client
//! asked (`Expect`).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::BodyGiver;
use crate::transport::body::{BodyError, BodyPieces, Piece};

/// One read of a client's connection.
const READ_BYTES: usize = 32 << 10;

/// Bytes of further requests kept while one waits for its answer; then they stay in the socket.
const READ_AHEAD_MAX: usize = 16 << 10;

/// Bytes of an answer that wait for the client, one frame more at most.
const WAITING_BYTES_MAX: usize = 32 << 10;

/// Parts of one write.
const SLICES: usize = 8;

/// A body may take this long, and longer only while it comes at [`BODY_BYTES_PER_SECOND`]. Only the time spent
/// waiting for the client counts.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Slower bodies are given up.
const BODY_BYTES_PER_SECOND: u64 = 1 << 10;

/// However fast a body was: nothing for so long, and it is given up.
const BODY_STALL: Duration = Duration::from_secs(45);

/// How long a client that asked whether its body is wanted waits for the upstream's word; then it hears ours.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no more from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientEnd {
    /// Its connection is gone.
    Gone,
    /// Its body came too slowly.
    Slow,
    /// Its body is none, or over its bound.
    Body(BodyError),
}

/// The body of a request, as far as the client has sent it.
enum Incoming {
    /// The client waits to be told to send it.
    Held(Held),
    Streams(Streams),
    /// All of it has been given.
    Whole,
    /// The upstream takes no more; the client may still be sending.
    Unwanted,
}

struct Held {
    streams: Streams,
    until: Pin<Box<Sleep>>,
}

struct Streams {
    pieces: BodyPieces,
    giver: BodyGiver,
    read: u64,
    waited: Duration,
    /// Since when the client is waited for, and until when.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// One request's client.
pub(super) struct Client<'c, S> {
    stream: &'c mut S,
    /// Bytes read behind what has been used.
    rest: &'c mut Vec<u8>,
    body: Incoming,
    out: VecDeque<Bytes>,
    out_len: usize,
    /// The stream may hold back something of what it has taken.
    unflushed: bool,
    /// Whether a byte of the body has left the client's connection for an upstream.
    pub(super) body_begun: bool,
}

impl<'c, S: AsyncRead + AsyncWrite + Unpin> Client<'c, S> {
    pub(super) fn new(stream: &'c mut S, rest: &'c mut Vec<u8>) -> Self {
        let (out, out_len) = (VecDeque::new(), 0);
        Self { stream, rest, body: Incoming::Whole, out, out_len, unflushed: false, body_begun: false }
    }

    /// The body of the request goes to `giver` from now on. With `held` the client waits for a word first.
    pub(super) fn upload(&mut self, pieces: BodyPieces, giver: BodyGiver, held: bool) {
        let streams = Streams { pieces, giver, read: 0, waited: Duration::ZERO, waiting: None };
        self.body = if held && self.rest.is_empty() {
            let until = Box::pin(sleep_until(Instant::now() + EXPECT_TIMEOUT));
            Incoming::Held(Held { streams, until })
        } else {
            Incoming::Streams(streams)
        };
    }

    /// Takes the body back for another attempt; `None` where some of it is gone or there is none.
    pub(super) fn take_back(&mut self) -> Option<BodyPieces> {
        match std::mem::replace(&mut self.body, Incoming::Whole) {
            Incoming::Held(Held { streams, .. }) | Incoming::Streams(streams) if !self.body_begun => {
                Some(streams.pieces)
            }
            _ => None,
        }
    }

    /// Whether the whole request has been read, so that the next can follow on the connection.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.body, Incoming::Whole)
    }

    /// The upstream wants the body: the client is told (it has been, by the interim answer passed on).
    pub(super) fn wanted(&mut self) {
        if let Incoming::Held(_) = &self.body
            && let Incoming::Held(held) = std::mem::replace(&mut self.body, Incoming::Whole)
        {
            self.body = Incoming::Streams(held.streams);
        }
    }

    /// Passes the body on as far as there is room for it, then watches the connection. Ready when
    /// something has moved, or with an error when the request cannot go on.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientEnd>> {
        if let Incoming::Held(held) = &mut self.body {
            match held.streams.giver.poll_room(cx) {
                Poll::Ready(false) => {
                    self.body = Incoming::Unwanted;
                    return Poll::Ready(Ok(()));
                }
                _ if held.until.as_mut().poll(cx).is_ready() => {
                    self.push(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
                    self.wanted();
                }
                // A client that does not wait after all.
                _ => match self.poll_read(cx) {
                    Poll::Ready(Ok(_)) => self.wanted(),
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        match &self.body {
            Incoming::Streams(_) => self.poll_pieces(cx),
            _ => self.poll_gone(cx),
        }
    }

    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientEnd>> {
        loop {
            let Incoming::Streams(streams) = &mut self.body else { return Poll::Pending };
            if !ready!(streams.giver.poll_room(cx)) {
                self.body = Incoming::Unwanted;
                return Poll::Ready(Ok(()));
            }
            match streams.pieces.next(self.rest) {
                Err(error) => return Poll::Ready(Err(ClientEnd::Body(error))),
                Ok(Some(Piece::Data(data))) => {
                    self.body_begun = true;
                    streams.giver.give(data);
                    // Who takes the last of a known length asks for no more.
                    if streams.pieces.is_whole() {
                        self.end(http::HeaderMap::new());
                    }
                    return Poll::Ready(Ok(()));
                }
                Ok(Some(Piece::End(trailers))) => {
                    self.end(trailers);
                    return Poll::Ready(Ok(()));
                }
                Ok(None) => {}
            }
            streams.begin_waiting();
            match self.poll_read(cx) {
                Poll::Ready(Ok(len)) => {
                    if let Incoming::Streams(streams) = &mut self.body {
                        streams.has_read(len);
                    }
                }
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {
                    let Incoming::Streams(streams) = &mut self.body else { return Poll::Pending };
                    return streams.poll_slow(cx).map(|()| Err(ClientEnd::Slow));
                }
            }
        }
    }

    fn end(&mut self, trailers: http::HeaderMap) {
        if let Incoming::Streams(streams) = std::mem::replace(&mut self.body, Incoming::Whole) {
            streams.giver.end(trailers);
        }
    }

    /// Ready when the connection is gone. What comes meanwhile is kept for later, within its bound.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientEnd>> {
        while self.rest.len() < READ_AHEAD_MAX {
            if let Err(end) = ready!(self.poll_read(cx)) {
                return Poll::Ready(Err(end));
            }
        }
        Poll::Pending
    }

    /// One read, kept in `rest`. A client that closes its side is gone: nobody sends half a connection's
    /// requests.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ClientEnd>> {
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        match ready!(Pin::new(&mut *self.stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                self.rest.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Ok(()) | Err(_) => Poll::Ready(Err(ClientEnd::Gone)),
        }
    }

    /// Queues bytes of an answer.
    pub(super) fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.out_len += bytes.len();
            self.out.push_back(bytes);
        }
    }

    /// Whether more of an answer should be fetched.
    pub(super) fn has_room(&self) -> bool {
        self.out_len < WAITING_BYTES_MAX
    }

    /// Whether the client has taken everything.
    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// Writes once; ready when something was taken.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientEnd>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.out) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        if count == 0 {
            let flushed = ready!(Pin::new(&mut *self.stream).poll_flush(cx));
            self.unflushed = false;
            return Poll::Ready(flushed.map_err(|_| ClientEnd::Gone));
        }
        let written = match ready!(Pin::new(&mut *self.stream).poll_write_vectored(cx, &slices[..count])) {
            Ok(written) if written > 0 => written,
            _ => return Poll::Ready(Err(ClientEnd::Gone)),
        };
        self.out_len -= written;
        self.unflushed = true;
        let mut left = written;
        while let Some(first) = self.out.front_mut() {
            let len = left.min(first.len());
            first.advance(len);
            left -= len;
            if !first.is_empty() {
                break;
            }
            self.out.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl Streams {
    fn begin_waiting(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        let now = Instant::now();
        let allowed = BODY_TIMEOUT + Duration::from_secs(self.read / BODY_BYTES_PER_SECOND);
        let until = now + allowed.saturating_sub(self.waited).min(BODY_STALL);
        self.waiting = Some((now, Box::pin(sleep_until(until))));
    }

    fn has_read(&mut self, len: usize) {
        self.read += len as u64;
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }

    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.waiting {
            Some((_, until)) => until.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
