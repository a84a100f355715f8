//! The built-in product `rooms`: clients join rooms and publish into them, no code needed.
//!
//! Belongs here: reading one event as a request; who may join and publish.
//! Stays out: carrying requests out (`session`, `room`); the wire of either protocol (`socketio`, `plain`).
//! Events: `join(room)`, `leave(room)`, `publish(room, event | {event, self, except, id}, ...args)`,
//! `rooms()`; each answered by an ack if the client asked for one.
//! Invariants: a published payload has passed the gate; arguments are copied byte for byte.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::{ErrorCode, RequestError, ack_ok};
use crate::gate;
use crate::id::{Cursor, SocketSid};
use crate::json::{self, Elements};
use crate::limits::Limits;
use crate::shard::{JoinRule, ProductRules, PublishRule};
use crate::wire::Payload;

/// Names in one `except`.
pub const EXCEPT_MAX: usize = 64;
/// The longest `id` of a publish.
pub const DEDUPE_KEY_BYTES_MAX: usize = 128;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// To be in a room.
    Join {
        /// Its name.
        room: Arc<str>,
    },
    /// Not to be in a room any more.
    Leave {
        /// Its name.
        room: Arc<str>,
    },
    /// To send an event to a room's members.
    Publish(Publish),
    /// Which rooms it is in.
    Rooms,
}

/// An event for a room's members.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// The room's name.
    pub room: Arc<str>,
    /// What the members get: name and arguments, past the gate.
    pub payload: Payload,
    /// Whether the publisher gets it too.
    pub self_too: bool,
    /// Names in `except` that are session ids.
    pub except_sids: Vec<SocketSid>,
    /// All names in `except`: as in Socket.IO a name may be a room or a session id, and nobody can tell
    /// a room called like an id from that id.
    pub except_rooms: Vec<Arc<str>>,
    /// The same id from the same user is published once.
    pub id: Option<Arc<str>>,
}

/// Reads the event `payload` of a client.
///
/// # Errors
/// [`RequestError`], to be answered by [`RequestError::to_ack`]; nothing is to be done.
pub fn parse(payload: &Payload, limits: &Limits) -> Result<Request, RequestError> {
    let mut args = Arguments::new(payload, limits);
    let verb = args.next()?.and_then(json::unescape_str).unwrap_or_default();
    match &*verb {
        "join" => {
            let room = args.last_room("join takes one argument, the room")?;
            Ok(Request::Join { room })
        }
        "leave" => {
            let room = args.last_room("leave takes one argument, the room")?;
            Ok(Request::Leave { room })
        }
        "publish" => parse_publish(args).map(Request::Publish),
        "rooms" => {
            args.end("rooms takes no arguments")?;
            Ok(Request::Rooms)
        }
        _ => Err(RequestError::new(ErrorCode::UnknownEvent, "there are join, leave, publish and rooms")),
    }
}

/// The arguments of the ack for a publish that is safe: `[{"ok":true,"pos":"…"}]`.
#[must_use]
pub fn ack_published(at: Cursor) -> Payload {
    ack_ok(&[("pos", &format!("\"{}\"", at.to_text()))])
}

/// Whether a name may be a room's: not empty (that is everyone), not too long, no control characters.
///
/// # Errors
/// [`ErrorCode::RoomName`].
pub fn check_room_name(name: &str, limits: &Limits) -> Result<(), RequestError> {
    let refuse = |message: Cow<'static, str>| Err(RequestError::new(ErrorCode::RoomName, message));
    if name.is_empty() {
        refuse("a room's name is not empty".into())
    } else if name.len() > limits.room_name_bytes_max {
        refuse(format!("a room's name has at most {} bytes", limits.room_name_bytes_max).into())
    } else if name.chars().any(char::is_control) {
        refuse("a room's name has no control characters".into())
    } else {
        Ok(())
    }
}

/// Whether the product lets the user `uid` join `room`.
///
/// # Errors
/// [`ErrorCode::Forbidden`].
pub fn check_join(rules: &ProductRules, uid: &str, room: &str) -> Result<(), RequestError> {
    let allowed = match rules.join {
        JoinRule::Anyone => true,
        // The tag as placement reads it: up to the first brace, so that no two users share one.
        JoinRule::OwnTag => {
            let tag = room.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            tag.is_some_and(|(tag, _)| tag == uid)
        }
        JoinRule::Nobody => false,
    };
    if allowed {
        return Ok(());
    }
    Err(RequestError::new(
        ErrorCode::Forbidden,
        match rules.join {
            JoinRule::OwnTag => "only rooms named {your uid}… can be joined",
            JoinRule::Anyone | JoinRule::Nobody => "only a backend puts sessions into rooms",
        },
    ))
}

/// Whether the product lets a session publish into a room it is, or is not, a member of.
///
/// # Errors
/// [`ErrorCode::NotMember`], [`ErrorCode::Forbidden`].
pub fn check_publish(rules: &ProductRules, is_member: bool) -> Result<(), RequestError> {
    match rules.publish {
        PublishRule::Anyone => Ok(()),
        PublishRule::Members if is_member => Ok(()),
        PublishRule::Members => {
            Err(RequestError::new(ErrorCode::NotMember, "join the room before publishing into it"))
        }
        PublishRule::Nobody => Err(RequestError::new(ErrorCode::Forbidden, "only a backend publishes here")),
    }
}

/// The elements of an event, taken one by one.
struct Arguments<'a> {
    payload: &'a Payload,
    limits: &'a Limits,
    elements: Elements<'a>,
}

impl<'a> Arguments<'a> {
    fn new(payload: &'a Payload, limits: &'a Limits) -> Self {
        Self { payload, limits, elements: json::elements(&payload.json, limits.json_depth_max) }
    }

    fn next_at(&mut self) -> Result<Option<Range<usize>>, RequestError> {
        Ok(self.elements.next().transpose()?)
    }

    /// The next element, raw.
    fn next(&mut self) -> Result<Option<&'a [u8]>, RequestError> {
        Ok(self.next_at()?.map(|at| &self.payload.json[at]))
    }

    fn end(&mut self, usage: &'static str) -> Result<(), RequestError> {
        match self.next()? {
            None if self.payload.attachments.is_empty() => Ok(()),
            _ => Err(RequestError::new(ErrorCode::Arguments, usage)),
        }
    }

    fn room(&mut self, usage: &'static str) -> Result<Arc<str>, RequestError> {
        let raw = self.next()?.ok_or(RequestError::new(ErrorCode::Arguments, usage))?;
        read_room(raw, self.limits)
    }

    fn last_room(&mut self, usage: &'static str) -> Result<Arc<str>, RequestError> {
        let room = self.room(usage)?;
        self.end(usage)?;
        Ok(room)
    }
}

fn read_room(raw: &[u8], limits: &Limits) -> Result<Arc<str>, RequestError> {
    let name =
        json::unescape_str(raw).ok_or(RequestError::new(ErrorCode::RoomName, "a room's name is a string"))?;
    check_room_name(&name, limits)?;
    Ok(name.into())
}

/// The second argument of `publish`: the event's name (raw), alone or with options.
#[derive(Default)]
struct Options<'a> {
    event: Option<&'a [u8]>,
    self_too: bool,
    except_sids: Vec<SocketSid>,
    except_rooms: Vec<Arc<str>>,
    id: Option<Arc<str>>,
}

fn parse_publish(mut args: Arguments<'_>) -> Result<Publish, RequestError> {
    const USAGE: &str = "publish takes a room, an event or {event, self, except, id}, then arguments";
    let room = args.room(USAGE)?;
    let raw = args.next()?.ok_or(RequestError::new(ErrorCode::Arguments, USAGE))?;
    let options = match raw.first() {
        Some(b'{') => parse_options(raw, args.limits)?,
        _ => Options { event: Some(raw), ..Options::default() },
    };
    let event = options.event.ok_or(RequestError::new(ErrorCode::EventName, "the options have no event"))?;
    let mut json = Vec::with_capacity(args.payload.json.len());
    json.push(b'[');
    json.extend_from_slice(event);
    match args.next_at()? {
        None => json.push(b']'),
        Some(first) => {
            // From the first argument to the closing bracket. The gate looks at all of it.
            json.push(b',');
            json.extend_from_slice(args.payload.json[first.start..].trim_ascii_end());
        }
    }
    // Placeholders stay what they were: room and options hold none, so all are among the arguments.
    let payload = Payload { json: json.into(), attachments: args.payload.attachments.clone() };
    gate::check_event(&payload, args.limits)?;
    let Options { self_too, except_sids, except_rooms, id, .. } = options;
    Ok(Publish { room, payload, self_too, except_sids, except_rooms, id })
}

fn parse_options<'a>(raw: &'a [u8], limits: &Limits) -> Result<Options<'a>, RequestError> {
    let wrong = |message: &'static str| RequestError::new(ErrorCode::Arguments, message);
    let mut options = Options::default();
    for member in json::members(raw, limits.json_depth_max) {
        let member = member?;
        let (key, value) = (json::unescape_str(&raw[member.key]), &raw[member.value]);
        match (key.as_deref(), value) {
            (Some("event"), _) => options.event = Some(value),
            (Some("self" | "except" | "id"), b"null") => {}
            (Some("self"), b"true") => options.self_too = true,
            (Some("self"), b"false") => options.self_too = false,
            (Some("self"), _) => return Err(wrong("self is true or false")),
            (Some("except"), _) => parse_except(value, limits, &mut options)?,
            (Some("id"), _) => options.id = Some(parse_id(value)?),
            _ => return Err(wrong("the options of publish are event, self, except and id")),
        }
    }
    Ok(options)
}

/// One name or an array of names.
fn parse_except(raw: &[u8], limits: &Limits, options: &mut Options<'_>) -> Result<(), RequestError> {
    const SHAPE: &str = "except is a room or session id, or an array of at most 64 of them";
    let mut add = |raw: &[u8]| {
        let room = read_room(raw, limits).map_err(|_| RequestError::new(ErrorCode::Arguments, SHAPE))?;
        if options.except_rooms.len() == EXCEPT_MAX {
            return Err(RequestError::new(ErrorCode::Arguments, SHAPE));
        }
        options.except_sids.extend(SocketSid::from_text(&room));
        options.except_rooms.push(room);
        Ok(())
    };
    if raw.first() != Some(&b'[') {
        return add(raw);
    }
    for name in json::elements(raw, limits.json_depth_max) {
        add(&raw[name?])?;
    }
    Ok(())
}

/// A string, or a number as its text.
fn parse_id(raw: &[u8]) -> Result<Arc<str>, RequestError> {
    let text = match raw.first() {
        Some(b'"') => json::unescape_str(raw),
        Some(b'-' | b'0'..=b'9') => std::str::from_utf8(raw).ok().map(Cow::Borrowed),
        _ => None,
    };
    match text {
        Some(text) if (1..=DEDUPE_KEY_BYTES_MAX).contains(&text.len()) => Ok(text.into()),
        _ => Err(RequestError::new(ErrorCode::Arguments, "id is a string of 1 to 128 bytes or a number")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Request, RequestError> {
        parse(&Payload::json(json.to_owned()), &Limits::default())
    }

    fn publish(json: &str) -> Publish {
        match read(json) {
            Ok(Request::Publish(publish)) => publish,
            other => panic!("{json}: {other:?}"),
        }
    }

    #[test]
    fn joins_leaves_and_lists_are_read() {
        assert_eq!(read(r#"["join","r"]"#), Ok(Request::Join { room: "r".into() }));
        assert_eq!(read(r#" [ "j\u006fin" , "\u00e9\"" ] "#), Ok(Request::Join { room: "é\"".into() }));
        assert_eq!(read(r#"["leave","r"]"#), Ok(Request::Leave { room: "r".into() }));
        assert_eq!(read(r#"["rooms"]"#), Ok(Request::Rooms));
    }

    #[test]
    fn a_publish_keeps_its_arguments_byte_for_byte() {
        for (json, payload) in [
            (r#"["publish","r","e"]"#, r#"["e"]"#),
            (r#"["publish","r","e",1e999, {"a" : -0},"\ud800"] "#, r#"["e",1e999, {"a" : -0},"\ud800"]"#),
            (r#"["publish","r",7,null]"#, "[7,null]"),
            (r#"["publish","r",{"event":"\u0065"},[]]"#, r#"["\u0065",[]]"#),
            (r#"["publish","r",{"event":"a","event":"b"}]"#, r#"["b"]"#),
        ] {
            let publish = publish(json);
            assert_eq!((&*publish.room, &publish.payload.json[..]), ("r", payload.as_bytes()), "{json}");
            assert_eq!((publish.self_too, publish.id), (false, None));
        }
    }

    #[test]
    fn options_of_publish_are_read() {
        let sid = SocketSid([7; 16]);
        let json = format!(
            r#"["publish","r",{{"event":"e","self":true,"except":["other","{}"],"id":"k"}},1]"#,
            sid.to_text()
        );
        let read = publish(&json);
        assert_eq!(read.payload.json, r#"["e",1]"#);
        assert!(read.self_too);
        assert_eq!(read.except_sids, [sid]);
        assert_eq!(read.except_rooms, ["other".into(), Arc::from(sid.to_text())]);
        assert_eq!(read.id.as_deref(), Some("k"));
        let read = publish(r#"["publish","r",{"id":12,"except":"one","event":"e","self":null}]"#);
        assert_eq!(read.id.as_deref(), Some("12"));
        assert_eq!(read.except_rooms, ["one".into()]);
    }

    #[test]
    fn attachments_of_a_publish_go_along() {
        let payload = Payload {
            json: Bytes::from_static(br#"["publish","r","e",{"_placeholder":true,"num":0}]"#),
            attachments: vec![Bytes::from_static(b"x")],
        };
        let Ok(Request::Publish(publish)) = parse(&payload, &Limits::default()) else { panic!() };
        assert_eq!(publish.payload.json, r#"["e",{"_placeholder":true,"num":0}]"#);
        assert_eq!(publish.payload.attachments, payload.attachments);
    }

    #[test]
    fn bad_requests_are_refused_with_their_code() {
        let long_room = format!(r#"["join","{}"]"#, "r".repeat(257));
        let long_event = format!(r#"["publish","r","{}"]"#, "e".repeat(129));
        let long_id = format!(r#"["publish","r",{{"event":"e","id":"{}"}}]"#, "k".repeat(129));
        let many = format!(r#"["publish","r",{{"event":"e","except":[{}"x"]}}]"#, "\"x\",".repeat(64));
        let deep = format!(r#"["publish","r","e",{}{}]"#, "[".repeat(128), "]".repeat(128));
        for (json, code) in [
            ("", "json"),
            ("{}", "json"),
            (r#"["join","r""#, "json"),
            (r#"["publish","r","e",{]"#, "json"),
            (r#"["publish","r","e",1]]"#, "json"),
            (&deep, "depth"),
            ("[]", "unknown_event"),
            ("[7]", "unknown_event"),
            (r#"["Join","r"]"#, "unknown_event"),
            (r#"["message","r"]"#, "unknown_event"),
            (r#"["join"]"#, "arguments"),
            (r#"["join","r","s"]"#, "arguments"),
            (r#"["leave","r",null]"#, "arguments"),
            (r#"["rooms","r"]"#, "arguments"),
            (r#"["publish"]"#, "arguments"),
            (r#"["publish","r"]"#, "arguments"),
            (r#"["join",""]"#, "room_name"),
            (r#"["join",7]"#, "room_name"),
            (r#"["join",null]"#, "room_name"),
            (r#"["join","a\u0000b"]"#, "room_name"),
            (r#"["join","a\nb"]"#, "room_name"),
            (r#"["join","a\u0085b"]"#, "room_name"),
            (r#"["join","\ud800"]"#, "room_name"),
            (&long_room, "room_name"),
            (r#"["publish","","e"]"#, "room_name"),
            (r#"["publish","r",null]"#, "event_name"),
            (r#"["publish","r",["e"]]"#, "event_name"),
            (r#"["publish","r",{}]"#, "event_name"),
            (r#"["publish","r","connect"]"#, "event_name"),
            (r#"["publish","r",{"event":"disconnect"}]"#, "event_name"),
            (r#"["publish","r",{"event":{"event":"e"}}]"#, "event_name"),
            (&long_event, "event_name"),
            (r#"["publish","r",{"event":"e","self":1}]"#, "arguments"),
            (r#"["publish","r",{"event":"e","to":"x"}]"#, "arguments"),
            (r#"["publish","r",{"event":"e","except":7}]"#, "arguments"),
            (r#"["publish","r",{"event":"e","except":[""]}]"#, "arguments"),
            (r#"["publish","r",{"event":"e","except":{"_placeholder":true,"num":0}}]"#, "arguments"),
            (&many, "arguments"),
            (r#"["publish","r",{"event":"e","id":""}]"#, "arguments"),
            (r#"["publish","r",{"event":"e","id":{}}]"#, "arguments"),
            (&long_id, "arguments"),
            (r#"["publish","r","e",{"_placeholder":true,"num":0}]"#, "placeholder"),
        ] {
            match read(json) {
                Err(error) => assert_eq!(error.code.as_str(), code, "{json}: {error}"),
                Ok(request) => panic!("{json}: {request:?}"),
            }
        }
        let with_attachment = |json: &'static str| {
            let payload = Payload { json: json.into(), attachments: vec![Bytes::new()] };
            parse(&payload, &Limits::default()).unwrap_err().code
        };
        assert_eq!(with_attachment(r#"["publish","r","e"]"#), ErrorCode::Placeholder);
        assert_eq!(
            with_attachment(r#"["publish","r","e",{"_placeholder":true,"num":1}]"#),
            ErrorCode::Placeholder
        );
        assert_eq!(with_attachment(r#"["join",{"_placeholder":true,"num":0}]"#), ErrorCode::RoomName);
        assert_eq!(with_attachment(r#"["rooms"]"#), ErrorCode::Arguments);
    }

    #[test]
    fn a_safe_publish_is_acked_with_its_position() {
        assert_eq!(ack_published(Cursor::NONE).json, r#"[{"ok":true,"pos":"0-0-0.0"}]"#);
    }

    #[test]
    fn rules_say_who_may_join_and_publish() {
        let mut rules = ProductRules::open("chat");
        assert_eq!(check_join(&rules, "alice", "r"), Ok(()));
        assert_eq!(check_publish(&rules, true), Ok(()));
        assert_eq!(check_publish(&rules, false).unwrap_err().code, ErrorCode::NotMember);
        rules.publish = PublishRule::Anyone;
        assert_eq!(check_publish(&rules, false), Ok(()));
        rules.publish = PublishRule::Nobody;
        assert_eq!(check_publish(&rules, true).unwrap_err().code, ErrorCode::Forbidden);
        rules.join = JoinRule::OwnTag;
        assert_eq!(check_join(&rules, "alice", "{alice}inbox"), Ok(()));
        for room in ["{alic}e", "{alice2}x", "alice", "{bob}alice}", "{alice"] {
            assert_eq!(check_join(&rules, "alice", room).unwrap_err().code, ErrorCode::Forbidden, "{room}");
        }
        assert!(check_join(&rules, "bob}alice", "{bob}alice}x").is_err());
        rules.join = JoinRule::Nobody;
        assert_eq!(check_join(&rules, "alice", "{alice}inbox").unwrap_err().code, ErrorCode::Forbidden);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(json: Vec<u8>) {
            let _ = parse(&Payload::json(json), &Limits::default());
        }

        #[test]
        fn what_is_published_has_passed_the_gate(rest in "[\\[\\]{}\",:a-e0-1 ]{0,24}", wrong: bool) {
            let end = if wrong { "" } else { "]" };
            let limits = Limits::default();
            let payload = Payload::json(format!("[\"publish\",\"r\",\"e\"{rest}{end}"));
            if let Ok(Request::Publish(publish)) = parse(&payload, &limits) {
                prop_assert_eq!(gate::check_event(&publish.payload, &limits), Ok(()));
                prop_assert!(json::check(&payload.json, 128).is_ok());
            }
        }
    }
}
