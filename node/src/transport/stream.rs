//! The byte stream of one client: TCP, or TLS over it.
//!
//! Belongs here: reading and writing without waiting, waiting for either, and moving a stream from the
//! runtime of the client port to that of a shard.
//! Stays out: certificates and handshakes (`tls`), what the bytes mean.
//! Invariants: one owner at a time. What [`ClientStream::try_write`] has taken is sent before anything taken
//! later; at most one TLS record of it may wait here, counted by [`ClientStream::unsent`].
//! Units: plaintext bytes, but for [`ClientStream::unsent`], which counts what waits for the socket.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

/// Plaintext of one record (RFC 8446 §5.1): what is encrypted before the socket is asked again.
const RECORD_BYTES: usize = 16 << 10;

/// A client's stream, registered with the runtime it is used on.
#[derive(Debug)]
pub struct ClientStream {
    tcp: TcpStream,
    tls: Option<Box<Tls>>,
}

/// A client's stream between two runtimes.
#[derive(Debug)]
pub struct DetachedStream {
    tcp: std::net::TcpStream,
    tls: Option<Box<Tls>>,
}

/// What TLS adds to a stream.
#[derive(Debug)]
struct Tls {
    session: ServerConnection,
    /// Encrypted bytes that the socket has not taken, `sent` of them have been.
    unsent: Vec<u8>,
    sent: usize,
    /// Decrypted bytes wait in the session.
    readable: bool,
    /// The client has said that nothing follows.
    ended: bool,
}

impl ClientStream {
    /// Bytes as they are.
    #[must_use]
    pub fn plain(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }

    /// Bytes of a TLS session whose handshake is still to be done ([`Self::handshake`]).
    #[must_use]
    pub fn tls(tcp: TcpStream, session: ServerConnection) -> Self {
        let tls = Tls { session, unsent: Vec::new(), sent: 0, readable: false, ended: false };
        Self { tcp, tls: Some(Box::new(tls)) }
    }

    /// Whether nobody on the way can read it.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Does the TLS handshake. Nothing to do on a plain stream.
    ///
    /// # Errors
    /// When the client breaks the protocol or goes. It has been sent the alert that says why.
    pub async fn handshake(&mut self) -> io::Result<()> {
        while self.tls.as_ref().is_some_and(|tls| tls.session.is_handshaking()) {
            let taken = self.try_decrypt();
            // Also what ends it, an alert, has to leave.
            self.flush_all().await?;
            match taken {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tcp.readable().await?,
                Err(error) => return Err(error),
            }
        }
        self.flush_all().await
    }

    /// Leaves its runtime.
    ///
    /// # Errors
    /// When the operating system refuses to let go of it.
    pub fn detach(self) -> io::Result<DetachedStream> {
        Ok(DetachedStream { tcp: self.tcp.into_std()?, tls: self.tls })
    }

    /// Small messages do not wait for the acknowledgement of the one before (RFC 896).
    pub fn set_nodelay(&self) {
        // Fails only on a stream that is broken, which its next use will tell.
        let _ = self.tcp.set_nodelay(true);
    }

    /// Waits until [`Self::try_read`] has something to say.
    ///
    /// # Errors
    /// As of the socket.
    pub async fn readable(&self) -> io::Result<()> {
        if self.has_decrypted() { Ok(()) } else { self.tcp.readable().await }
    }

    /// Reads what is there. 0: the client has closed its end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is; else the stream is broken.
    pub fn try_read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_read(into) };
        loop {
            if let Some(len) = tls.read(into)? {
                return Ok(len);
            }
            match tls.decrypt(|bytes| self.tcp.try_read(bytes)) {
                Ok(_) => tls.flush(|bytes| self.tcp.try_write(bytes))?,
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Self::try_read`], and `context` is woken when it is worth another try.
    pub(crate) fn poll_read_some(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            let mut into = ReadBuf::new(into);
            ready!(Pin::new(&mut self.tcp).poll_read(context, &mut into))?;
            return Poll::Ready(Ok(into.filled().len()));
        }
        loop {
            match self.try_read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_read_ready(context))?;
                }
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Whether a read may find something.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_decrypted() { Poll::Ready(Ok(())) } else { self.tcp.poll_read_ready(context) }
    }

    /// Whether a write may be taken.
    pub(crate) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(context)
    }

    /// Writes what the socket takes, as far as the runtime knows that it takes something.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing; else the stream is broken.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.tcp.try_write(bytes),
            Some(tls) => tls.write(bytes, |bytes| self.tcp.try_write(bytes)),
        }
    }

    /// As [`Self::try_write`], asking the socket itself: the reactor learns that a socket is writable only
    /// after its first wait, and a new client's first message should not wait for that.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let socket = SockRef::from(&self.tcp);
        match &mut self.tls {
            None => socket.send(bytes),
            Some(tls) => tls.write(bytes, |bytes| socket.send(bytes)),
        }
    }

    /// Writes all of a short answer.
    ///
    /// # Errors
    /// When the stream is broken.
    pub async fn write_answer(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Bytes taken and not sent: they wait for the next write.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.unsent.len() - tls.sent)
    }

    /// Tells the client that nothing follows; what is unsent is tried once more.
    pub fn close_write(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.session.send_close_notify();
            let _ = tls.flush(|bytes| SockRef::from(&self.tcp).send(bytes));
        }
        let _ = SockRef::from(&self.tcp).shutdown(Shutdown::Write);
    }

    /// Breaks the connection off, so that the client does not take what it has for all there is.
    pub fn abort(self) {
        // With TLS the farewell that does not come says the same.
        let _ = SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO));
    }

    fn has_decrypted(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.readable || tls.ended)
    }

    fn try_decrypt(&mut self) -> io::Result<usize> {
        match &mut self.tls {
            None => Ok(0),
            Some(tls) => tls.decrypt(|bytes| self.tcp.try_read(bytes)),
        }
    }

    /// Waits until nothing is unsent.
    async fn flush_all(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        loop {
            tls.flush(|bytes| self.tcp.try_write(bytes))?;
            if tls.unsent.is_empty() {
                return Ok(());
            }
            self.tcp.writable().await?;
        }
    }
}

impl DetachedStream {
    /// Enters the runtime of the caller.
    ///
    /// # Errors
    /// When it cannot be registered.
    pub fn attach(self) -> io::Result<ClientStream> {
        Ok(ClientStream { tcp: TcpStream::from_std(self.tcp)?, tls: self.tls })
    }
}

impl From<std::net::TcpStream> for DetachedStream {
    /// A plain one, which must be non-blocking.
    fn from(tcp: std::net::TcpStream) -> Self {
        Self { tcp, tls: None }
    }
}

impl Tls {
    /// Decrypted bytes, if there are any; 0 at the end.
    fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.session.reader().read(into) {
            Ok(0) => {
                self.ended = true;
                Ok(Some(0))
            }
            Ok(len) => {
                self.readable = len == into.len();
                Ok(Some(len))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            // Closed without a farewell: what has come is whole, frames and bodies know their lengths.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.ended = true;
                Ok(Some(0))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes encrypted bytes of the socket, once.
    fn decrypt(&mut self, read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let taken = self.session.read_tls(&mut FromSocket(read))?;
        match self.session.process_new_packets() {
            Ok(state) => {
                self.readable |= state.plaintext_bytes_to_read() > 0;
                Ok(taken)
            }
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    /// Encrypts record by record while the socket takes all of them.
    fn write(&mut self, bytes: &[u8], mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            self.flush(&mut send)?;
            if taken == bytes.len() || !self.unsent.is_empty() {
                break;
            }
            let record = &bytes[taken..bytes.len().min(taken + RECORD_BYTES)];
            taken += self.session.writer().write(record)?;
        }
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Sends what is encrypted, as far as the socket takes it.
    fn flush(&mut self, mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        loop {
            if self.unsent.is_empty() {
                while self.session.wants_write() {
                    self.session.write_tls(&mut self.unsent)?;
                }
            }
            if self.unsent.is_empty() {
                return Ok(());
            }
            match send(&self.unsent[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent == self.unsent.len() {
                self.sent = 0;
                // An idle client keeps no buffer.
                self.unsent = Vec::new();
            }
        }
    }
}

/// The socket as rustls wants it.
struct FromSocket<F>(F);

impl<F: FnMut(&mut [u8]) -> io::Result<usize>> io::Read for FromSocket<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0(into)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_read(context, into);
        }
        let len = ready!(self.poll_read_some(context, into.initialize_unfilled()))?;
        into.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(context))?;
                }
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_write_vectored(context, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(context, first.map_or(&[][..], |slice| slice))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_none()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, tls: Some(tls) } = &mut *self else { return Poll::Ready(Ok(())) };
        loop {
            tls.flush(|bytes| tcp.try_write(bytes))?;
            if tls.unsent.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(tcp.poll_write_ready(context))?;
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &mut self.tls {
            tls.session.send_close_notify();
        }
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
