//! Bytes both ways between a client and its upstream, after a `101`.
//!
//! Belongs here: moving bytes as they are: frames, extensions and close codes are the two ends' own.
//! Stays out: the handshake (`forward`).
//! What filling up means: each side is read only when the other has taken what was read before.
//! Units: a pipe that is idle holds no buffer: bytes are read onto the stack, and only what could not be
//! written at once is kept.
//! Invariants: it ends: when both sides have ended, when one breaks, or [`HALF_OPEN`] after one has ended.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// One read.
const READ_BYTES: usize = 16 << 10;

/// How long one side may go on alone. A WebSocket's ends close together (RFC 6455 §7.1.1): this is for peers that
/// have only left half of the connection behind.
const HALF_OPEN: Duration = Duration::from_secs(30);

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read, and not yet written.
    left: Vec<u8>,
    written: usize,
    /// The sink may hold back something of what it has taken.
    unflushed: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// Its source has ended: the sink is told.
    Ending,
    Ended,
}

impl Flow {
    fn with(left: Vec<u8>) -> Self {
        Self { left, ..Self::default() }
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; READ_BYTES];
        loop {
            while self.written < self.left.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.left[self.written..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += written;
                self.unflushed = true;
            }
            if !self.left.is_empty() {
                (self.left, self.written) = (Vec::new(), 0);
            }
            match self.phase {
                Phase::Open => {}
                Phase::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                    return Poll::Ready(Ok(()));
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
            let mut buffer = ReadBuf::uninit(&mut scratch);
            let read = Pin::new(&mut *from).poll_read(cx, &mut buffer)?;
            if read.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.phase = Phase::Ending;
                continue;
            }
            let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.unflushed = true;
            self.left.extend_from_slice(&bytes[written..]);
        }
    }
}

/// A client and its upstream.
pub(super) struct Pipe<C, U> {
    client: C,
    upstream: U,
    up: Flow,
    down: Flow,
    /// Runs while only one direction is open.
    half_open: Option<Pin<Box<Sleep>>>,
}

impl<C, U> Pipe<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// `to_upstream` and `to_client` go before everything else.
    pub(super) fn new(client: C, upstream: U, to_upstream: Vec<u8>, to_client: Vec<u8>) -> Self {
        let (up, down) = (Flow::with(to_upstream), Flow::with(to_client));
        Self { client, upstream, up, down, half_open: None }
    }
}

impl<C, U> Future for Pipe<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// An error where one side broke.
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let up = this.up.poll(cx, &mut this.client, &mut this.upstream)?;
        let down = this.down.poll(cx, &mut this.upstream, &mut this.client)?;
        match (up, down) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => {
                let until = || Box::pin(sleep_until(Instant::now() + HALF_OPEN));
                this.half_open.get_or_insert_with(until).as_mut().poll(cx).map(|()| Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_side_s_end_reaches_the_other_and_a_half_open_pipe_ends() {
        let (mut client, near) = duplex(64);
        let (far, mut upstream) = duplex(64);
        let pipe = tokio::spawn(Pipe::new(near, far, b"up-first ".to_vec(), b"down-first ".to_vec()));
        client.write_all(b"up").await.unwrap();
        upstream.write_all(b"down").await.unwrap();
        let mut bytes = [0; 11];
        upstream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"up-first up");
        let mut bytes = [0; 15];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"down-first down");
        client.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut [0; 8]).await.unwrap(), 0, "the end has reached the upstream");
        upstream.write_all(b"last words").await.unwrap();
        let mut bytes = [0; 10];
        client.read_exact(&mut bytes).await.unwrap();
        let began = Instant::now();
        pipe.await.unwrap().unwrap();
        assert_eq!(began.elapsed().as_secs(), HALF_OPEN.as_secs());
    }

    #[tokio::test]
    async fn a_side_that_takes_nothing_stops_the_other() {
        let (mut client, near) = duplex(64);
        let (far, _upstream) = duplex(64);
        let _pipe = tokio::spawn(Pipe::new(near, far, Vec::new(), Vec::new()));
        let mut written = 0;
        let flood = async {
            loop {
                written += client.write(&[7; 1_024]).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(200), flood).await.is_err());
        assert!(written <= 64 + 64 + READ_BYTES, "{written} bytes were taken though nobody reads");
    }
}
