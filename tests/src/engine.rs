//! Engine.IO by hand: each request of a session to any node, and exactly as it is written.
//!
//! Belongs here: handshakes, requests on connections that are kept, WebSockets of a polling session.
//! Stays out: what a stock client makes of it ([`crate::js`]).

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::http::{self, Answer};
use crate::wait::soon;

/// What the client port listens to.
const PATH: &str = "/socket.io/?EIO=4";

/// A session that polls.
#[derive(Clone, Debug)]
pub struct Polling {
    /// Its secret name.
    pub sid: String,
}

impl Polling {
    /// A handshake by polling as `uid`, with CONNECT said and answered.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn connect(node: SocketAddr, uid: &str) -> Self {
        let answer = http::get(node, &format!("{PATH}&transport=polling&product=rooms&uid={uid}")).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        let sid = answer.body.split('"').nth(3).unwrap_or_default().to_owned();
        let polling = Self { sid };
        assert_eq!(polling.post(node, "40").await.body, "ok");
        let answer = polling.get(node).await;
        assert!(answer.body.starts_with("40{"), "{answer:?}");
        polling
    }

    /// Path and query of its requests.
    #[must_use]
    pub fn target(&self) -> String {
        format!("{PATH}&transport=polling&sid={}", self.sid)
    }

    /// A poll, until it is answered.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn get(&self, node: SocketAddr) -> Answer {
        http::get(node, &self.target()).await.expect("an answer")
    }

    /// A payload.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn post(&self, node: SocketAddr, body: &str) -> Answer {
        let headers = [("Content-Type", "text/plain;charset=UTF-8")];
        http::request(node, "POST", &self.target(), &headers, body).await.expect("an answer")
    }

    /// Whether it still is one.
    pub async fn is_alive(&self, node: SocketAddr) -> bool {
        self.post(node, "3").await.body == "ok"
    }

    /// A WebSocket for it.
    ///
    /// # Errors
    /// Status and body of the refusal.
    pub async fn upgrade(&self, node: SocketAddr) -> Result<EngineSocket, (u16, String)> {
        EngineSocket::open(node, &format!("&sid={}", self.sid)).await
    }
}

/// A WebSocket at `/socket.io/`.
#[derive(Debug)]
pub struct EngineSocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl EngineSocket {
    /// Opens one with `more` in its query.
    ///
    /// # Errors
    /// Status and body of the refusal.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn open(node: SocketAddr, more: &str) -> Result<Self, (u16, String)> {
        let url = format!("ws://{node}{PATH}&transport=websocket{more}");
        match soon("a WebSocket handshake", connect_async(&url)).await {
            Ok((stream, _)) => Ok(Self(stream)),
            Err(Error::Http(answer)) => {
                let body = answer.body().clone().unwrap_or_default();
                Err((answer.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
            }
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// One that has said CONNECT and been answered.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn connect(node: SocketAddr, uid: &str) -> Self {
        let mut socket = Self::open(node, &format!("&product=rooms&uid={uid}")).await.expect("let in");
        assert!(socket.next().await.is_some_and(|open| open.starts_with("0{")));
        socket.send("40").await;
        assert!(socket.next().await.is_some_and(|connect| connect.starts_with("40{")));
        socket
    }

    /// Sends a text message. One that finds the connection gone is lost.
    pub async fn send(&mut self, text: &str) {
        let _ = soon("a write", self.0.send(Message::text(text.to_owned()))).await;
    }

    /// Sends a binary message. One that finds the connection gone is lost.
    pub async fn send_binary(&mut self, bytes: &'static [u8]) {
        let _ = soon("a write", self.0.send(Message::binary(bytes))).await;
    }

    /// The next text message; `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            match soon("a message", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The messages until the end.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(text) = self.next().await {
            rest.push(text);
        }
        rest
    }
}

/// A connection on which requests follow one another.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Kept {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn to(node: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(node).await.expect("somebody listens"), read: Vec::new() }
    }

    /// Sends bytes as they are. Those that find the connection gone are lost.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = soon("a write", self.stream.write_all(bytes)).await;
    }

    /// The next answer, whose length must be told; `None` at the end.
    pub async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.take() {
                return Some(answer);
            }
            let mut bytes = [0; 4_096];
            match soon("an answer", self.stream.read(&mut bytes)).await {
                Ok(len @ 1..) => self.read.extend_from_slice(&bytes[..len]),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    fn take(&mut self) -> Option<Answer> {
        let text = String::from_utf8_lossy(&self.read).into_owned();
        let (head, rest) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(Some(0), |length| length.parse().ok())?;
        let body = rest.get(..length)?.to_owned();
        self.read.drain(..head.len() + 4 + length);
        Some(Answer { status, head: head.to_owned(), body })
    }
}
