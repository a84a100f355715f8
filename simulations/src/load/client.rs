//! A light Socket.IO client: one stream, two small buffers, no timer.
//!
//! Belongs here: connecting, the Socket.IO handshake, joining, frames in and out of one stream.
//! Stays out: what a mode does with the messages (`rooms`, `echo`, `idle`; `kill9`).
//! Memory: an idle client costs its stream and an empty buffer or two; reading goes through one
//! scratch buffer shared by all clients of the thread.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::net::TcpStream;

use super::frame::{self, Frame};

/// One read takes at most so much.
pub(crate) const SCRATCH_BYTES: usize = 256 << 10;

/// Reads of one client before the others get their turn.
const READS_PER_TURN_MAX: usize = 4;

/// A handshake or a join that takes longer has failed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a client connects and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    /// The node's client port.
    pub(crate) addr: SocketAddr,
    /// Host header.
    pub(crate) host: String,
    /// `product` of the query.
    pub(crate) product: String,
}

impl Door {
    /// Reads `ws://HOST:PORT`.
    ///
    /// # Errors
    /// When it is something else or has no address.
    pub(crate) fn parse(target: &str, product: &str) -> anyhow::Result<Self> {
        use std::net::ToSocketAddrs as _;
        let host = target.trim_start_matches("ws://").trim_end_matches('/');
        ensure!(!host.contains("://"), "{target}: only ws://HOST:PORT");
        let mut addrs = host.to_socket_addrs().with_context(|| format!("{target}: want ws://HOST:PORT"))?;
        let addr = addrs.next().with_context(|| format!("{target} has no address"))?;
        Ok(Self { addr, host: host.to_owned(), product: product.to_owned() })
    }
}

/// What one client's socket had to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// The payload's front of a published event, from the first character of the stamp on.
    Event(&'a [u8]),
    /// An answer: its id, and whether it says `"ok":true`.
    Ack(u64, bool),
    /// Anything else of Socket.IO.
    Other(&'a [u8]),
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    /// The front of a frame whose rest has not come.
    partial: Vec<u8>,
    /// Frames the socket has not taken yet.
    outgoing: Vec<u8>,
    next_ack: u64,
}

/// Sends as many headers as a browser does, so that their cost is in the figures.
pub(super) const BROWSER_HEADERS: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/142.0.0.0 Safari/537.36\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\nCache-Control: no-cache\r\n\
Pragma: no-cache\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nCookie: theme=dark; session=3f9c1b7e5a2d4c68\r\n";

impl Client {
    /// Connects as `uid` and is in the namespace `/` when it returns.
    ///
    /// # Errors
    /// With the server's own words when it refuses.
    pub(crate) async fn connect(door: &Door, uid: &str) -> anyhow::Result<Self> {
        let opening = async {
            let path = format!("/socket.io/?EIO=4&transport=websocket&product={}&uid={uid}", door.product);
            let mut client = Self::open(door, &path).await?;
            let open = client.text().await?;
            ensure!(open.starts_with(b"0{"), "no Engine.IO handshake but {}", printable(&open));
            client.send(b"40");
            let connected = client.text().await?;
            ensure!(connected.starts_with(b"40{"), "not connected: {}", printable(&connected));
            Ok(client)
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, opening).await.context("handshake takes over 30 s")?
    }

    /// Opens a WebSocket at `path`, whatever is spoken on it.
    ///
    /// # Errors
    /// With the server's own words when it refuses.
    pub(crate) async fn open(door: &Door, path: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(door.addr).await.with_context(|| format!("connecting to {}", door.addr))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, partial: Vec::new(), outgoing: Vec::new(), next_ack: 0 };
        client.upgrade(&door.host, path).await?;
        Ok(client)
    }

    async fn upgrade(&mut self, host: &str, path: &str) -> anyhow::Result<()> {
        self.outgoing.extend_from_slice(upgrade_head(host, path).as_bytes());
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(answer.len() < 16 << 10, "an endless answer to the upgrade");
            self.read_some(&mut answer).await?;
        };
        if !answer.starts_with(b"HTTP/1.1 101") {
            bail!("refused: {}", printable(&answer));
        }
        self.partial = answer.split_off(end);
        Ok(())
    }

    /// Joins rooms, without waiting in between, and waits until it is in all of them.
    ///
    /// # Errors
    /// When a room refuses.
    pub(crate) async fn join(&mut self, rooms: &[String]) -> anyhow::Result<()> {
        for room in rooms {
            let id = self.next_ack();
            frame::put_text(&mut self.outgoing, format!("42{id}[\"join\",\"{room}\"]").as_bytes());
        }
        self.flush();
        let answering = async {
            let mut open = rooms.len();
            while open > 0 {
                let text = self.text().await?;
                if text.starts_with(b"43") {
                    ensure!(contains(&text, b"\"ok\":true"), "join refused: {}", printable(&text));
                    open -= 1;
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, answering).await.context("joins take over 30 s")??;
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        self.outgoing = Vec::new();
        Ok(())
    }

    /// Publishes with an answer asked for; its id.
    pub(crate) fn publish(
        &mut self,
        room: &str,
        to_self: bool,
        stamp: super::stamp::Stamp,
        payload_len: usize,
    ) -> u64 {
        let id = self.next_ack();
        let event = if to_self { r#"{"event":"m","self":true}"# } else { r#""m""# };
        let mut text = format!("42{id}[\"publish\",\"{room}\",{event},\"").into_bytes();
        stamp.put(&mut text, payload_len);
        text.extend_from_slice(b"\"]");
        self.send(&text);
        id
    }

    fn next_ack(&mut self) -> u64 {
        self.next_ack += 1;
        self.next_ack - 1
    }

    /// Queues one message and writes what the socket takes.
    pub(crate) fn send(&mut self, text: &[u8]) {
        frame::put_text(&mut self.outgoing, text);
        self.flush();
    }

    /// Writes what the socket takes. A broken socket shows itself when it is read.
    pub(crate) fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(0) | Err(_) => return,
                Ok(written) => drop(self.outgoing.drain(..written)),
            }
        }
    }

    /// Waits until there is something to read, or room for what is queued.
    ///
    /// # Errors
    /// Never in practice; those of the reactor.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        use tokio::io::Interest;
        let interest = if self.outgoing.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        self.stream.ready(interest).await.map(|_| ())
    }

    /// Reads what has come, at most a few buffers full, and answers heartbeats.
    ///
    /// # Errors
    /// When the server closed, with its code, or broke the protocol.
    pub(crate) fn drain(
        &mut self,
        scratch: &mut [u8],
        mut on: impl FnMut(Message<'_>),
    ) -> anyhow::Result<()> {
        self.flush();
        if !self.partial.is_empty() {
            // A handshake may have left whole frames behind.
            let taken = take_all(&self.partial, &mut self.outgoing, &mut on)?;
            self.partial.drain(..taken);
        }
        for _ in 0..READS_PER_TURN_MAX {
            let read = match self.stream.try_read(scratch) {
                Ok(0) => bail!("the server closed the stream"),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            };
            if self.partial.is_empty() {
                let taken = take_all(&scratch[..read], &mut self.outgoing, &mut on)?;
                self.partial.extend_from_slice(&scratch[taken..read]);
            } else {
                self.partial.extend_from_slice(&scratch[..read]);
                let taken = take_all(&self.partial, &mut self.outgoing, &mut on)?;
                self.partial.drain(..taken);
            }
            if read < scratch.len() {
                break;
            }
        }
        self.flush();
        Ok(())
    }

    /// Reads and forgets what comes, and answers nothing, until the server has closed.
    pub(crate) async fn closed(self, scratch: &RefCell<Vec<u8>>) {
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut scratch.borrow_mut()) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// The next text message; for handshakes only.
    pub(crate) async fn text(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some((frame, len)) = frame::take(&self.partial).map_err(anyhow::Error::msg)? {
                let text = match frame {
                    Frame::Text(text) => Some(text.to_vec()),
                    Frame::Close(code) => bail!("the server closed with {code}"),
                    _ => None,
                };
                self.partial.drain(..len);
                match text {
                    Some(text) if text == b"2" => self.send(b"3"),
                    Some(text) => return Ok(text),
                    None => {}
                }
                continue;
            }
            let mut partial = std::mem::take(&mut self.partial);
            self.read_some(&mut partial).await?;
            self.partial = partial;
        }
    }

    async fn read_some(&mut self, into: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut chunk = [0; 2_048];
        loop {
            self.flush();
            self.ready().await?;
            match self.stream.try_read(&mut chunk) {
                Ok(0) => bail!("the server closed the stream; so far: {}", printable(into)),
                Ok(read) => {
                    into.extend_from_slice(&chunk[..read]);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The request that asks for a WebSocket at `path`.
pub(crate) fn upgrade_head(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{BROWSER_HEADERS}\r\n"
    )
}

/// Takes every whole frame of `bytes`; how many bytes they were.
fn take_all(bytes: &[u8], out: &mut Vec<u8>, on: &mut impl FnMut(Message<'_>)) -> anyhow::Result<usize> {
    let mut taken = 0;
    while let Some((frame, len)) = frame::take(&bytes[taken..]).map_err(anyhow::Error::msg)? {
        taken += len;
        match frame {
            Frame::Text(b"2") => frame::put_text(out, b"3"),
            Frame::Text(text) => on(parse(text)),
            Frame::Ping(content) => frame::put_pong(out, content),
            Frame::Binary(_) | Frame::Pong => {}
            Frame::Close(code) => bail!("the server closed with {code}"),
        }
    }
    Ok(taken)
}

fn parse(text: &[u8]) -> Message<'_> {
    if let Some(payload) = text.strip_prefix(br#"42["m",""#) {
        return Message::Event(payload);
    }
    if let Some(rest) = text.strip_prefix(b"43") {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let id = digits.fold(0_u64, |id, digit| id.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
        return Message::Ack(id, contains(rest, b"\"ok\":true"));
    }
    Message::Other(text)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Bytes of a server for an error message.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(parse(br#"42["m","0001 x"]"#), Message::Event(br#"0001 x"]"#));
        assert_eq!(parse(br#"4317[{"ok":true,"pos":"1"}]"#), Message::Ack(17, true));
        assert_eq!(parse(br#"430[{"ok":false,"code":"rate"}]"#), Message::Ack(0, false));
        assert_eq!(parse(b"41"), Message::Other(b"41"));
    }

    #[test]
    fn a_target_is_an_address() {
        assert_eq!(Door::parse("ws://127.0.0.1:4080/", "rooms").unwrap().host, "127.0.0.1:4080");
        assert!(Door::parse("http://127.0.0.1:4080", "rooms").is_err());
    }
}
