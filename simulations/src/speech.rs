//! What clients of the simulation say and understand: the real bytes of both client protocols.
//!
//! Belongs here: requests out, server messages in. Stays out: when to say what (`client`).
//! Payloads: `["m",{"by":[client,session,number],"to":[product,room]}]` in rooms, `["own",{"n":number}]` for
//! one session alone; behind that the offset of a client that carries its cursors.

use bytes::Bytes;
use mesh_proto::id::{Cursor, Term};
use mesh_proto::shard::{ClientProtocol, Packet};
use serde_json::{Value, json};

use crate::checks::{EventId, SessionId};

/// A message of a server.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// The Engine.IO handshake: say CONNECT now.
    Open,
    /// The session stands.
    Connected {
        /// Its public id.
        sid: String,
        /// Its secret, where it can be recovered.
        pid: Option<String>,
    },
    /// A heartbeat: say pong.
    Ping,
    /// An answer.
    Answer {
        /// To this request.
        id: u64,
        /// `None`: it was carried out. Else the code of the refusal.
        refused: Option<String>,
        /// The term under which the event that it asked to publish is in its room's log.
        term: Option<Term>,
    },
    /// A published event.
    Event {
        /// Which.
        event: EventId,
        /// The product it was published in.
        product: u8,
        /// The room it was published to.
        room: u16,
        /// Its position, where the protocol shows it.
        position: Option<Cursor>,
        /// The room the server says it is of, where the protocol shows it.
        room_told: Option<String>,
        /// What the stock client would store.
        offset: Option<String>,
    },
    /// An event for this session alone.
    Own {
        /// Its number among all of them.
        number: u64,
        /// What the stock client would store.
        offset: Option<String>,
    },
    /// The server has ended the session, or refuses it.
    Ended(String),
    /// Nothing a client of this simulation expects.
    Strange(String),
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To be in a room.
    Join(u16),
    /// Not to be in it any more.
    Leave(u16),
    /// To send an event.
    Publish {
        /// To whom.
        room: u16,
        /// The product it is published in, told in the payload.
        product: u8,
        /// Which.
        event: EventId,
        /// Whether the publisher gets it too.
        to_self: bool,
    },
}

/// A room's name.
#[must_use]
pub fn room_name(room: u16) -> String {
    format!("r{room}")
}

fn text(text: impl Into<Vec<u8>>) -> Packet {
    Packet::Text(Bytes::from(text.into()))
}

/// What a client says after [`Heard::Open`]; one that has a pid asks for its session, as the stock client does.
#[must_use]
pub fn connect(pid: Option<&str>, offset: Option<&str>) -> Packet {
    match (pid, offset) {
        (None, _) => text("40"),
        (Some(pid), None) => text(format!("40{}", json!({"pid": pid}))),
        (Some(pid), Some(offset)) => text(format!("40{}", json!({"pid": pid, "offset": offset}))),
    }
}

/// What a client says after [`Heard::Ping`].
#[must_use]
pub fn pong(protocol: ClientProtocol) -> Packet {
    match protocol {
        ClientProtocol::SocketIo => text("3"),
        ClientProtocol::Plain => text(r#"{"type":"pong"}"#),
        ClientProtocol::EngineIo => unreachable!("no simulated client speaks it"),
    }
}

/// A request under `id`.
#[must_use]
pub fn request(protocol: ClientProtocol, id: u64, request: Request) -> Packet {
    let payload = |product: u8, room: u16, event: EventId| {
        let SessionId { client, session } = event.publisher;
        json!({"by": [client, session, event.number], "to": [product, room]})
    };
    match protocol {
        ClientProtocol::SocketIo => {
            let arguments = match request {
                Request::Join(room) => json!(["join", room_name(room)]),
                Request::Leave(room) => json!(["leave", room_name(room)]),
                Request::Publish { room, product, event, to_self } => {
                    let name = if to_self { json!({"event": "m", "self": true}) } else { json!("m") };
                    json!(["publish", room_name(room), name, payload(product, room, event)])
                }
            };
            text(format!("42{id}{arguments}"))
        }
        ClientProtocol::Plain => {
            let message = match request {
                Request::Join(room) => json!({"type": "join", "id": id, "room": room_name(room)}),
                Request::Leave(room) => json!({"type": "leave", "id": id, "room": room_name(room)}),
                Request::Publish { room, product, event, to_self } => json!({
                    "type": "publish", "id": id, "room": room_name(room), "event": "m", "self": to_self,
                    "args": [payload(product, room, event)],
                }),
            };
            text(message.to_string())
        }
        ClientProtocol::EngineIo => unreachable!("no simulated client speaks it"),
    }
}

/// What a server's message means.
#[must_use]
pub fn hear(protocol: ClientProtocol, packet: &Packet) -> Heard {
    let Packet::Text(bytes) = packet else { return Heard::Strange("a binary message".into()) };
    let Ok(words) = std::str::from_utf8(bytes) else { return Heard::Strange("no UTF-8".into()) };
    let heard = match protocol {
        ClientProtocol::SocketIo => hear_socketio(words),
        ClientProtocol::Plain => hear_plain(words),
        ClientProtocol::EngineIo => unreachable!("no simulated client speaks it"),
    };
    heard.unwrap_or_else(|| Heard::Strange(words.chars().take(300).collect()))
}

fn hear_socketio(words: &str) -> Option<Heard> {
    if words == "2" {
        return Some(Heard::Ping);
    }
    if words.starts_with("0{") {
        return Some(Heard::Open);
    }
    if let Some(answer) = words.strip_prefix("40") {
        let answer: Value = serde_json::from_str(answer).ok()?;
        let pid = answer["pid"].as_str().map(Into::into);
        return Some(Heard::Connected { sid: answer["sid"].as_str()?.into(), pid });
    }
    if words.starts_with("41") || words.starts_with("44") || words == "1" {
        return Some(Heard::Ended(words.into()));
    }
    let (kind, rest) = words.split_at_checked(2)?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (id, arguments) = rest.split_at(digits);
    let arguments: Vec<Value> = serde_json::from_str(arguments).ok()?;
    match kind {
        "42" => {
            // Behind the arguments of an event that asks for an ack the stock client puts the function that
            // answers: no string is last.
            let last = arguments.last().filter(|_| id.is_empty());
            let offset = last.and_then(|last| last.as_str()).map(Into::into);
            match arguments.first()?.as_str()? {
                "m" => event(arguments.get(1)?, None, None, offset),
                "own" => Some(Heard::Own { number: arguments.get(1)?["n"].as_u64()?, offset }),
                _ => None,
            }
        }
        "43" => answer(id.parse().ok()?, arguments.first()?),
        _ => None,
    }
}

fn answer(id: u64, answer: &Value) -> Option<Heard> {
    let term = answer["pos"].as_str().and_then(Cursor::from_text).map(|at| at.term);
    Some(Heard::Answer { id, refused: refusal(answer), term })
}

/// `None` for `{"ok":true,…}`, else the code.
fn refusal(answer: &Value) -> Option<String> {
    if answer["ok"] == true {
        return None;
    }
    Some(answer["code"].as_str().unwrap_or("no code").to_owned())
}

/// The event that an entry of a room's log carries, if a client of the simulation published it.
pub fn logged_event(json: &[u8]) -> Option<EventId> {
    let payload: Value = serde_json::from_slice(json).ok()?;
    match event(payload.get(1)?, None, None, None)? {
        Heard::Event { event, .. } => Some(event),
        _ => None,
    }
}

fn event(
    payload: &Value,
    position: Option<Cursor>,
    room_told: Option<String>,
    offset: Option<String>,
) -> Option<Heard> {
    let number = |field: &str, at: usize| payload[field][at].as_u64();
    let publisher = SessionId {
        client: u32::try_from(number("by", 0)?).ok()?,
        session: u32::try_from(number("by", 1)?).ok()?,
    };
    let event = EventId { publisher, number: u32::try_from(number("by", 2)?).ok()? };
    let product = u8::try_from(number("to", 0)?).ok()?;
    let room = u16::try_from(number("to", 1)?).ok()?;
    Some(Heard::Event { event, product, room, position, room_told, offset })
}

fn hear_plain(words: &str) -> Option<Heard> {
    let message: Value = serde_json::from_str(words).ok()?;
    match message["type"].as_str()? {
        "welcome" => Some(Heard::Connected { sid: message["sid"].as_str()?.into(), pid: None }),
        "ping" => Some(Heard::Ping),
        "ack" => answer(message["id"].as_u64()?, &message),
        "event" if message["event"] == "own" => {
            Some(Heard::Own { number: message["args"][0]["n"].as_u64()?, offset: None })
        }
        "event" => {
            let position = message["pos"].as_str().and_then(Cursor::from_text);
            event(&message["args"][0], position, message["room"].as_str().map(Into::into), None)
        }
        "error" | "closed" => Some(Heard::Ended(words.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::id::{NodeId, NodeRef};

    use super::*;

    const TERM: Term =
        Term { number: 0x1b, owner: NodeRef { id: NodeId(0x9f3a_21bc_0011_2233), incarnation: 0x2ee1 } };

    #[test]
    fn a_published_event_comes_back_as_it_was() {
        let id = EventId { publisher: SessionId { client: 3, session: 2 }, number: 9 };
        let publish = Request::Publish { room: 4, product: 1, event: id, to_self: true };
        let Packet::Text(bytes) = request(ClientProtocol::SocketIo, 5, publish) else { panic!() };
        let words = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(words.starts_with(r#"425["publish","r4",{"#), "{words}");
        let heard = hear(ClientProtocol::SocketIo, &text(r#"42["m",{"by":[3,2,9],"to":[1,4]}]"#));
        let event =
            Heard::Event { event: id, product: 1, room: 4, position: None, room_told: None, offset: None };
        assert_eq!(heard, event);
    }

    #[test]
    fn a_client_that_comes_back_says_what_the_stock_client_says() {
        let words = |pid, offset| match connect(pid, offset) {
            Packet::Text(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Packet::Binary(_) => panic!(),
        };
        assert_eq!(words(None, Some("o")), "40");
        assert_eq!(words(Some("p"), None), r#"40{"pid":"p"}"#);
        assert_eq!(words(Some("p"), Some("o")), r#"40{"offset":"o","pid":"p"}"#);
        let hear = |words: &str| hear(ClientProtocol::SocketIo, &text(words));
        let (sid, pid) = ("s".to_owned(), Some("p".to_owned()));
        assert_eq!(hear(r#"40{"sid":"s","pid":"p"}"#), Heard::Connected { sid, pid });
        let offset = Some("o".to_owned());
        assert_eq!(hear(r#"42["own",{"n":7},"o"]"#), Heard::Own { number: 7, offset });
        // An event that asks for an ack carries none.
        assert_eq!(hear(r#"425["own",{"n":7},"o"]"#), Heard::Own { number: 7, offset: None });
    }

    #[test]
    fn answers_and_endings_are_understood() {
        let hear = |words: &str| hear(ClientProtocol::SocketIo, &text(words));
        assert_eq!(hear(r#"4312[{"ok":true}]"#), Heard::Answer { id: 12, refused: None, term: None });
        let term = Some(TERM);
        assert_eq!(
            hear(r#"4312[{"ok":true,"pos":"1b-9f3a21bc00112233-2ee1.42"}]"#),
            Heard::Answer { id: 12, refused: None, term }
        );
        let refused = Some("not_member".to_owned());
        assert_eq!(
            hear(r#"430[{"ok":false,"code":"not_member"}]"#),
            Heard::Answer { id: 0, refused, term: None }
        );
        assert_eq!(hear("41"), Heard::Ended("41".into()));
        assert!(matches!(hear("nonsense"), Heard::Strange(_)));
    }

    #[test]
    fn plain_events_show_their_position() {
        let words = r#"{"type":"event","room":"r4","pos":"1b-9f3a21bc00112233-2ee1.42","event":"m","args":[{"by":[3,2,9],"to":[1,4]}]}"#;
        let Heard::Event { position, room_told, .. } = hear(ClientProtocol::Plain, &text(words)) else {
            panic!()
        };
        assert_eq!(position, Some(Cursor { term: TERM, seq: 42 }));
        assert_eq!(room_told.as_deref(), Some("r4"));
    }
}
