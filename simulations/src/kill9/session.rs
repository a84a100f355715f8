//! One connection of a stock client, in either protocol.
//!
//! Belongs here: connecting as a stock client does (`{pid, offset}` included), joining, publishing, and
//! what comes in. Stays out: when to connect and where (`clients`), bytes and frames (`load::client`).
//! Source: socket.io-client 4.8 `socket.ts` (`onconnect`, `emitEvent`: the offset is the last argument
//! of an event if that is a string and there is a pid).

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::time::timeout;

use super::journal::Resumed;
use crate::load::client::{Client, Door, Message, printable};
use crate::load::stamp::Stamp;

/// A balancer tries the next node when one has not answered the upgrade within this time.
const UPGRADE_WITHIN: Duration = Duration::from_secs(1);

/// The stock client's `timeout` for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// Bytes of a published string.
const PAYLOAD_BYTES: usize = 64;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Socket.IO over WebSocket.
    SocketIo,
    /// JSON over a plain WebSocket.
    Plain,
}

/// What a client keeps between its connections.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    connected_before: bool,
    pid: Option<String>,
    offset: Option<String>,
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An event of a publisher.
    Event(Stamp),
    /// The answer to a request, and whether it was carried out.
    Answer(u64, bool),
}

/// A connection.
pub(crate) struct Session {
    client: Client,
    protocol: Protocol,
    /// A server that is silent for longer is gone.
    pub(crate) silence_max: Duration,
}

impl Session {
    /// Connects as `uid`.
    ///
    /// # Errors
    /// When the node does not take it, in the server's own words.
    pub(crate) async fn open(
        door: &Door,
        protocol: Protocol,
        uid: &str,
        memory: &mut Memory,
    ) -> anyhow::Result<(Self, Resumed)> {
        let path = match protocol {
            Protocol::SocketIo => {
                format!("/socket.io/?EIO=4&transport=websocket&product={}&uid={uid}", door.product)
            }
            Protocol::Plain => format!("/ws?product={}&uid={uid}", door.product),
        };
        let client =
            timeout(UPGRADE_WITHIN, Client::open(door, &path)).await.context("no answer in 1 s")??;
        let mut session = Self { client, protocol, silence_max: Duration::MAX };
        let resumed = match protocol {
            Protocol::SocketIo => timeout(CONNECT_WITHIN, session.connect(memory)).await,
            Protocol::Plain => timeout(CONNECT_WITHIN, session.welcome(memory)).await,
        };
        let resumed = resumed.context("not connected within 20 s")??;
        memory.connected_before = true;
        Ok((session, resumed))
    }

    async fn connect(&mut self, memory: &mut Memory) -> anyhow::Result<Resumed> {
        let open = self.client.text().await?;
        let handshake = open.strip_prefix(b"0").with_context(|| printable(&open))?;
        let handshake: Value = serde_json::from_slice(handshake)?;
        self.heartbeat(&handshake["pingInterval"], &handshake["pingTimeout"])?;
        let connect = match (&memory.pid, &memory.offset) {
            (None, _) => "40".to_owned(),
            (Some(pid), None) => format!("40{}", serde_json::json!({ "pid": pid })),
            (Some(pid), Some(offset)) => {
                format!("40{}", serde_json::json!({ "pid": pid, "offset": offset }))
            }
        };
        self.client.send(connect.as_bytes());
        let answer = self.client.text().await?;
        let answer = answer.strip_prefix(b"40").with_context(|| printable(&answer))?;
        let answer: Value = serde_json::from_slice(answer)?;
        let pid = answer["pid"].as_str().map(str::to_owned);
        let resumed = match (&memory.pid, &pid) {
            _ if !memory.connected_before => Resumed::First,
            (None, _) | (_, None) => Resumed::NotOffered,
            (Some(before), Some(now)) if before == now => Resumed::Recovered,
            _ => Resumed::Refused,
        };
        memory.pid = pid;
        Ok(resumed)
    }

    async fn welcome(&mut self, memory: &Memory) -> anyhow::Result<Resumed> {
        let welcome = self.client.text().await?;
        let told: Value = serde_json::from_slice(&welcome)?;
        ensure!(told["type"] == "welcome", "no welcome but {}", printable(&welcome));
        self.heartbeat(&told["ping_interval_ms"], &told["ping_timeout_ms"])?;
        Ok(if memory.connected_before { Resumed::New } else { Resumed::First })
    }

    fn heartbeat(&mut self, interval: &Value, timeout: &Value) -> anyhow::Result<()> {
        let millis = interval.as_u64().zip(timeout.as_u64()).map(|(interval, timeout)| interval + timeout);
        self.silence_max = Duration::from_millis(millis.context("a handshake without ping times")?);
        Ok(())
    }

    /// Asks to be in `room`.
    pub(crate) fn join(&mut self, id: u64, room: &str) {
        let text = match self.protocol {
            Protocol::SocketIo => format!("42{id}[\"join\",\"{room}\"]"),
            Protocol::Plain => format!(r#"{{"type":"join","id":{id},"room":"{room}"}}"#),
        };
        self.client.send(text.as_bytes());
    }

    /// Publishes a stamp; `key` lets it be repeated.
    pub(crate) fn publish(&mut self, id: u64, room: &str, stamp: Stamp, key: Option<&str>) {
        let head = match (self.protocol, key) {
            (Protocol::SocketIo, None) => format!("42{id}[\"publish\",\"{room}\",\"m\",\""),
            (Protocol::SocketIo, Some(key)) => {
                format!(r#"42{id}["publish","{room}",{{"event":"m","id":"{key}"}},""#)
            }
            (Protocol::Plain, key) => {
                let key = key.map_or_else(String::new, |key| format!(r#""key":"{key}","#));
                format!(r#"{{"type":"publish","id":{id},"room":"{room}",{key}"event":"m","args":[""#)
            }
        };
        let mut text = head.into_bytes();
        stamp.put(&mut text, PAYLOAD_BYTES);
        text.extend_from_slice(match self.protocol {
            Protocol::SocketIo => b"\"]",
            Protocol::Plain => b"\"]}",
        });
        self.client.send(&text);
    }

    /// Waits until there is something to do for [`Self::drain`].
    ///
    /// # Errors
    /// When the server has been silent for too long.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let ready = timeout(self.silence_max, self.client.ready()).await;
        Ok(ready.context("nothing heard from the server")??)
    }

    /// Reads and forgets what comes, and answers nothing, until the server has closed.
    pub(super) async fn closed(self, scratch: &RefCell<Vec<u8>>) {
        self.client.closed(scratch).await;
    }

    /// Takes in what has come.
    ///
    /// # Errors
    /// When the transport has ended, or the server ended the session.
    pub(crate) fn drain(
        &mut self,
        scratch: &mut [u8],
        memory: &mut Memory,
        heard: &mut Vec<Heard>,
    ) -> anyhow::Result<()> {
        let mut pings = 0;
        let mut fault = None;
        let protocol = self.protocol;
        let drained = self.client.drain(scratch, |message| {
            let taken = match (protocol, message) {
                (_, Message::Event(payload)) => {
                    if memory.pid.is_some() {
                        memory.offset = last_string(payload).or_else(|| memory.offset.take());
                    }
                    Stamp::read(payload).map(Heard::Event).context("an event without a stamp")
                }
                (_, Message::Ack(id, ok)) => Ok(Heard::Answer(id, ok)),
                (Protocol::SocketIo, Message::Other(text)) => Err(anyhow::anyhow!("{}", printable(text))),
                (Protocol::Plain, Message::Other(text)) => match plain(text) {
                    Ok(Some(heard)) => Ok(heard),
                    Ok(None) => {
                        pings += 1;
                        return;
                    }
                    Err(error) => Err(error),
                },
            };
            match taken {
                Ok(taken) => heard.push(taken),
                Err(error) => fault = fault.take().or(Some(error)),
            }
        });
        for _ in 0..pings {
            self.client.send(br#"{"type":"pong"}"#);
        }
        drained?;
        fault.map_or(Ok(()), Err)
    }
}

/// The last argument of an event whose arguments begin in `payload`, if that is a string.
fn last_string(payload: &[u8]) -> Option<String> {
    let text = payload.strip_suffix(b"\"]")?;
    let from = text.iter().rposition(|byte| *byte == b'"').map_or(0, |at| at + 1);
    String::from_utf8(text[from..].to_vec()).ok()
}

/// A message of the plain protocol; `None`: a heartbeat.
fn plain(text: &[u8]) -> anyhow::Result<Option<Heard>> {
    let message: Value = serde_json::from_slice(text).with_context(|| printable(text))?;
    match message["type"].as_str() {
        Some("ping") => Ok(None),
        Some("event") => {
            let payload = message["args"][0].as_str().unwrap_or_default();
            let stamp = Stamp::read(payload.as_bytes()).context("an event without a stamp")?;
            Ok(Some(Heard::Event(stamp)))
        }
        Some("ack") => {
            let id = message["id"].as_u64().context("an answer to nothing")?;
            Ok(Some(Heard::Answer(id, message["ok"] == true)))
        }
        _ => bail!("{}", printable(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_the_last_string_of_an_event() {
        assert_eq!(last_string(br#"0001 xx","AbC-_"]"#).as_deref(), Some("AbC-_"));
        assert_eq!(last_string(br#"0001 xx"]"#).as_deref(), Some("0001 xx"));
        assert_eq!(last_string(br#"0001 xx",7]"#), None);
    }

    #[test]
    fn plain_messages_are_told_apart() {
        let mut payload = Vec::new();
        let stamp = Stamp { publisher: 3, number: 9, micros: 1 };
        stamp.put(&mut payload, 64);
        let payload = String::from_utf8(payload).unwrap();
        let event = serde_json::json!({ "type": "event", "room": "r", "event": "m", "args": [payload] });
        assert_eq!(plain(event.to_string().as_bytes()).unwrap(), Some(Heard::Event(stamp)));
        assert_eq!(plain(br#"{"type":"ack","id":4,"ok":false}"#).unwrap(), Some(Heard::Answer(4, false)));
        assert_eq!(plain(br#"{"type":"ping"}"#).unwrap(), None);
        assert!(plain(br#"{"type":"left","room":"r"}"#).is_err());
    }
}
