//! A client of the plain WebSocket protocol, written after `docs/protocol.md` alone.

use std::collections::VecDeque;
use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::wait::{PATIENCE, soon};

/// One connected client. Answers heartbeats while it is being read.
#[derive(Debug)]
pub struct PlainClient {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Messages that were read while waiting for another one.
    kept: VecDeque<Value>,
    next_id: u64,
    /// Whether it answers heartbeats.
    heartbeat: bool,
    pings: u32,
    pings_wanted: Option<u32>,
    /// The first message of the server.
    pub welcome: Value,
}

/// What [`PlainClient::read`] may find.
#[derive(Debug)]
pub enum Read {
    /// A message.
    Message(Value),
    /// The end, with the close code if there was one.
    Closed(Option<u16>),
}

impl PlainClient {
    /// Connects as `uid` to product `rooms` and waits for the welcome.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn connect(node: SocketAddr, uid: &str) -> Self {
        let mut client = Self::open(node, &format!("/ws?product=rooms&uid={uid}")).await;
        client.welcome = client.until(|m| m["type"] == "welcome").await;
        client
    }

    /// Opens a WebSocket at `path`, whatever comes then.
    ///
    /// # Panics
    /// When the handshake is refused.
    pub async fn open(node: SocketAddr, path: &str) -> Self {
        let url = format!("ws://{node}{path}");
        let opened = soon("a WebSocket handshake", connect_async(&url)).await;
        let (stream, _) = opened.unwrap_or_else(|e| panic!("{url}: {e}"));
        Self {
            stream,
            kept: VecDeque::new(),
            next_id: 1,
            heartbeat: true,
            pings: 0,
            pings_wanted: None,
            welcome: Value::Null,
        }
    }

    /// From now on it answers no heartbeat.
    #[must_use]
    pub fn without_heartbeat(mut self) -> Self {
        self.heartbeat = false;
        self
    }

    /// Answers so many heartbeats.
    pub async fn serve_pings(&mut self, count: u32) {
        self.pings_wanted = Some(self.pings + count);
        self.until(|m| m["type"] == "ping").await;
    }

    /// Its public id.
    #[must_use]
    pub fn sid(&self) -> &str {
        self.welcome["sid"].as_str().unwrap_or_default()
    }

    /// Sends text as it is.
    ///
    /// # Panics
    /// When the connection is gone.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        soon("a write", self.stream.send(Message::text(text.into()))).await.expect("still connected");
    }

    /// Sends one message.
    pub async fn send(&mut self, message: &Value) {
        self.send_text(message.to_string()).await;
    }

    /// Sends a request and waits for its ack.
    pub async fn ask(&mut self, mut request: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        request["id"] = id.into();
        self.send(&request).await;
        self.until(|m| m["type"] == "ack" && m["id"] == id).await
    }

    /// Sends a request that must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ok(&mut self, request: Value) -> Value {
        let answer = self.ask(request.clone()).await;
        assert_eq!(answer["ok"], true, "{request} was answered {answer}");
        answer
    }

    /// Joins a room.
    pub async fn join(&mut self, room: &str) {
        self.ok(json!({ "type": "join", "room": room })).await;
    }

    /// Publishes one argument.
    pub async fn say(&mut self, room: &str, event: &str, argument: impl Into<Value>) -> Value {
        let argument: Value = argument.into();
        self.ok(json!({ "type": "publish", "room": room, "event": event, "args": [argument] })).await
    }

    /// The next message that is not a heartbeat.
    ///
    /// # Panics
    /// When the connection ends instead.
    pub async fn next(&mut self) -> Value {
        if let Some(message) = self.kept.pop_front() {
            return message;
        }
        match self.read().await {
            Read::Message(message) => message,
            Read::Closed(code) => panic!("closed with {code:?} instead of a message"),
        }
    }

    /// The next event.
    pub async fn event(&mut self) -> Value {
        self.until(|m| m["type"] == "event").await
    }

    /// The first argument of each of the next `count` events.
    pub async fn arguments(&mut self, count: usize) -> Vec<Value> {
        let mut arguments = Vec::with_capacity(count);
        for _ in 0..count {
            arguments.push(self.event().await["args"][0].clone());
        }
        arguments
    }

    /// The first message that `wanted` accepts, kept or yet to come; others are kept.
    ///
    /// # Panics
    /// When the connection ends first, or it does not come.
    pub async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at).expect("just found");
        }
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.read_before(give_up).await {
                Read::Message(message) if wanted(&message) => return message,
                Read::Message(message) => self.kept.push_back(message),
                Read::Closed(code) => panic!("closed with {code:?}; kept: {:?}", self.kept),
            }
        }
    }

    /// Reads on until the connection ends, and says with which code.
    pub async fn closed(&mut self) -> Option<u16> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.read_before(give_up).await {
                Read::Message(message) => self.kept.push_back(message),
                Read::Closed(code) => return code,
            }
        }
    }

    /// Everything read and not yet taken.
    #[must_use]
    pub fn kept(&self) -> Vec<Value> {
        self.kept.iter().cloned().collect()
    }

    /// The next message or the end. Answers heartbeats.
    ///
    /// # Panics
    /// When nothing comes, or something that is not JSON.
    pub async fn read(&mut self) -> Read {
        self.read_before(Instant::now() + PATIENCE).await
    }

    async fn read_before(&mut self, give_up: Instant) -> Read {
        loop {
            let next = timeout_at(give_up, self.stream.next()).await;
            match next.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for a message; kept: {:?}", self.kept))
            {
                Some(Ok(Message::Text(text))) => {
                    let message: Value =
                        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                    if message["type"] != "ping" {
                        return Read::Message(message);
                    }
                    self.pings += 1;
                    if self.heartbeat {
                        self.send(&json!({ "type": "pong" })).await;
                    }
                    if self.pings_wanted == Some(self.pings) {
                        return Read::Message(message);
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    return Read::Closed(frame.map(|frame| CloseCode::into(frame.code)));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Read::Closed(None),
            }
        }
    }

    /// Whether the server still answers it: asks for its rooms.
    pub async fn is_alive(&mut self) -> bool {
        self.ask(json!({ "type": "rooms" })).await["ok"] == true
    }
}
