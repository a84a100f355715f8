//! Commands into queries, and the owners' answers into replies.
//!
//! Belongs here: limits of names, the payload spliced from the body, statuses.
//! Stays out: JSON shapes (`body`, `answers`), which shard is asked (`api`).

use std::sync::Arc;

use http::StatusCode;
use mesh_proto::gate::{GateError, check_event};
use mesh_proto::id::{NodeRef, RoomKey, SocketSid};
use mesh_proto::shard::ProductRules;
use mesh_proto::wire::{
    self, Action, Answer, Broadcast, Command, CommandFailed, DedupeKey, Payload, Query, RoomEvent,
};
use serde_json::value::RawValue;

use super::Api;
use super::answers::{
    ActedAnswer, DeliveredAnswer, HistoryAnswer, HistoryEntry, MemberAnswer, MembersAnswer, PublishedAnswer,
    SessionsAnswer, UserAnswer, UserSession, ok,
};
use super::body::{Membership, Publish, Session};
use crate::web::{Failure, Reply};

/// Sessions, or rooms, that one event may be kept from.
const EXCEPT_MAX: usize = 100;

/// Bytes of an idempotency key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// Seconds after which a repeat may do better.
const RETRY_AFTER: u32 = 1;

/// A publish, ready to be asked for.
pub(super) struct PublishCall {
    pub(super) query: Query,
    /// Whether it goes to a room's log (else to sessions).
    pub(super) to_room: bool,
}

pub(super) fn publish(
    api: &Api,
    product: &ProductRules,
    publish: &Publish<'_>,
    key: Option<&str>,
) -> Result<PublishCall, Failure> {
    let payload = payload(api, publish.event, publish.args)?;
    let dedupe = dedupe(publish.idempotency_key.as_deref(), key)?;
    let except_sids = parse_all(&publish.except.sids, "except.sids", sid)?;
    let except_rooms = parse_all(&publish.except.rooms, "except.rooms", |name| room_name(api, name))?;
    let named = [publish.room.is_some(), publish.uid.is_some(), publish.sid.is_some(), publish.all];
    if named.iter().filter(|named| **named).count() != 1 {
        return Err(Failure::bad_request("target", "name one of room, uid, sid and all"));
    }
    let room = match &publish.room {
        Some(name) => Some(room_name(api, name)?),
        None if publish.all => Some("".into()),
        None => None,
    };
    if let Some(room) = room {
        let namespace: Arc<str> = publish.namespace.as_deref().unwrap_or("/").into();
        let volatile = publish.volatile;
        let event = RoomEvent { except_sids, except_rooms, volatile, ..RoomEvent::new(payload) };
        let room = RoomKey::new(&product.name, &namespace, &room);
        let publish = wire::Publish { room, id: api.publish_id(), dedupe, event, after: None };
        return Ok(PublishCall { query: Query::Publish(publish), to_room: true });
    }
    if publish.volatile || publish.namespace.is_some() {
        return Err(Failure::bad_request("arguments", "volatile and namespace go with room or all"));
    }
    let who = Session { uid: publish.uid.clone(), sid: publish.sid.clone(), ..Session::default() };
    let command = Command::Emit { payload, except_rooms, except_sids, dedupe };
    Ok(PublishCall { query: to_sessions(api, product, &who, command)?, to_room: false })
}

pub(super) fn join(api: &Api, membership: &Membership<'_>) -> Result<Command, Failure> {
    Ok(Command::Join(room_name(api, &membership.room)?))
}

pub(super) fn leave(api: &Api, membership: &Membership<'_>) -> Result<Command, Failure> {
    Ok(Command::Leave(room_name(api, &membership.room)?))
}

pub(super) fn to_sessions(
    api: &Api,
    product: &ProductRules,
    who: &Session<'_>,
    command: Command,
) -> Result<Query, Failure> {
    let named = [who.uid.is_some(), who.sid.is_some(), who.within.is_some(), who.all];
    if named.iter().filter(|named| **named).count() != 1 {
        return Err(Failure::bad_request("target", "name one of uid, sid, in and all"));
    }
    if who.within.is_some() || who.all {
        return to_members(api, product, who, command);
    }
    if who.namespace.is_some() || who.except.is_some() {
        return Err(Failure::bad_request("arguments", "namespace and except go with in or all"));
    }
    let product = product.name.clone();
    match (&who.uid, &who.sid) {
        (Some(uid), None) => Ok(Query::User { product, uid: api.uid(uid)?, command }),
        (None, Some(text)) => Ok(Query::Session { product, sid: sid(text)?, command }),
        _ => Err(Failure::no_such_path()),
    }
}

/// Something done to all members of a room, in the order of its events.
fn to_members(
    api: &Api,
    product: &ProductRules,
    who: &Session<'_>,
    command: Command,
) -> Result<Query, Failure> {
    let action = match command {
        Command::Join(room) => Action::Join(vec![room]),
        Command::Leave(room) => Action::Leave(vec![room]),
        Command::Disconnect { close } => Action::Disconnect { close },
        Command::Emit { .. } => return Err(Failure::no_such_path()),
    };
    let room = who.within.as_ref().map_or(Ok("".into()), |room| room_name(api, room))?;
    let namespace: Arc<str> = who.namespace.as_deref().unwrap_or("/").into();
    let (sids, rooms) = who.except.as_ref().map_or((&[][..], &[][..]), |e| (&e.sids, &e.rooms));
    let except_sids = parse_all(sids, "except.sids", sid)?;
    let except_rooms = parse_all(rooms, "except.rooms", |name| room_name(api, name))?;
    let event = RoomEvent { except_sids, except_rooms, ..RoomEvent::new(Payload::json("[]")) };
    let within_ms = u32::try_from(api.limits.api_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(Query::Broadcast(Box::new(Broadcast {
        rooms: vec![RoomKey::new(&product.name, &namespace, &room)],
        event,
        action: Some(action),
        within_ms: Some(within_ms),
    })))
}

/// `["event",…args]`, spliced from slices of the body and checked as any client's event is.
fn payload(api: &Api, event: &RawValue, args: Option<&RawValue>) -> Result<Payload, Failure> {
    let event = event.get();
    if !event.starts_with('"') {
        return Err(Failure::bad_request("event_name", "event is a string"));
    }
    let args = args.map_or("[]", |args| args.get());
    let Some(inner) = args.strip_prefix('[').and_then(|args| args.strip_suffix(']')) else {
        return Err(Failure::bad_request("arguments", "args is an array"));
    };
    let separator = if inner.trim_ascii().is_empty() { "" } else { "," };
    let payload = Payload::json(format!("[{event}{separator}{}]", inner.trim_ascii()));
    check_event(&payload, &api.limits).map_err(|error| {
        let status = match error {
            GateError::TooBig { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Failure::new(status, error.code(), error.to_string())
    })?;
    Ok(payload)
}

fn dedupe(field: Option<&str>, header: Option<&str>) -> Result<Option<DedupeKey>, Failure> {
    let refused = |message: String| Failure::bad_request("idempotency_key", message);
    // An item's own key stands before one made from its batch's header ("key#index").
    let key = match (field, header) {
        (Some(field), Some(header)) if field != header && !header.contains('#') => {
            return Err(refused("the Idempotency-Key header and the field id differ".into()));
        }
        (Some(field), _) => field,
        (None, Some(header)) => header,
        (None, None) => return Ok(None),
    };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(refused(format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes")));
    }
    Ok(Some(DedupeKey { uid: None, key: key.into() }))
}

fn room_name(api: &Api, name: &str) -> Result<Arc<str>, Failure> {
    if name.is_empty() {
        return Err(Failure::bad_request("room", "room is empty: say \"all\": true to reach everyone"));
    }
    if name.len() > api.limits.room_name_bytes_max {
        return Err(api.room_too_long());
    }
    Ok(name.into())
}

fn sid(text: &str) -> Result<SocketSid, Failure> {
    SocketSid::from_text(text)
        .ok_or_else(|| Failure::bad_request("sid", "not a session id: 22 characters are"))
}

fn parse_all<T>(
    texts: &[String],
    field: &str,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    if texts.len() > EXCEPT_MAX {
        return Err(Failure::bad_request("except", format!("{field} has at most {EXCEPT_MAX}")));
    }
    texts.iter().map(|text| parse(text)).collect()
}

type Answered = Result<Answer, CommandFailed>;

pub(super) fn published(answer: Answered, to_room: bool) -> Result<Reply, Failure> {
    match answer {
        Ok(Answer::Published { at, duplicate }) => Ok(ok(&PublishedAnswer { pos: at.to_text(), duplicate })),
        Ok(Answer::Done { sessions: 0 }) => Ok(delivered(StatusCode::ACCEPTED, 0)),
        Ok(Answer::Done { sessions }) => Ok(delivered(StatusCode::OK, sessions)),
        // Nobody there is no error of the backend's: users come and go.
        Err(CommandFailed::NotFound) if !to_room => Ok(delivered(StatusCode::ACCEPTED, 0)),
        other => Err(failure(other)),
    }
}

fn delivered(status: StatusCode, delivered: u32) -> Reply {
    Reply::json(status, &DeliveredAnswer { delivered })
}

pub(super) fn done(answer: Answered) -> Result<Reply, Failure> {
    match answer {
        Ok(Answer::Done { sessions }) if sessions > 0 => Ok(ok(&SessionsAnswer { sessions })),
        Ok(Answer::Done { .. }) => Err(failure(Err(CommandFailed::NotFound))),
        other => Err(failure(other)),
    }
}

/// What an action on a room's members has come to.
pub(super) fn acted(api: &Api, answer: Answered) -> Result<Reply, Failure> {
    match answer {
        Ok(Answer::Gathered(gathered)) if gathered.unserved == 0 => Ok(ok(&ActedAnswer {
            sessions: gathered.answers.len() as u64,
            missing: gathered.missing,
            silent: gathered.silent.iter().map(|node| name_of(api, *node)).collect(),
        })),
        Ok(Answer::Gathered(_)) => Err(failure(Err(CommandFailed::Timeout))),
        other => Err(failure(other)),
    }
}

pub(super) fn members(api: &Api, answer: Answered, list: bool) -> Result<Reply, Failure> {
    let members = match answer {
        Ok(Answer::Members(members)) => members,
        // Rooms begin with their first member or event: one that nobody knows is empty.
        Err(CommandFailed::NotFound) => wire::Members::default(),
        other => return Err(failure(other)),
    };
    let listed = members
        .listed
        .iter()
        .map(|member| MemberAnswer { uid: member.uid.to_string(), sid: member.sid.to_text() });
    let answer = MembersAnswer {
        sessions: members.sessions,
        members: list.then(|| listed.collect()),
        silent: members.silent.iter().map(|node| name_of(api, *node)).collect(),
    };
    Ok(ok(&answer))
}

fn name_of(api: &Api, node: NodeRef) -> String {
    let view = api.view.borrow();
    view.node(node).map_or_else(|| format!("{node:?}"), mesh_proto::view::NodeInfo::name)
}

pub(super) fn history(answer: Answered) -> Result<Reply, Failure> {
    let entries = match answer {
        Ok(Answer::History(entries)) => entries,
        Err(CommandFailed::NotFound) => Vec::new(),
        other => return Err(failure(other)),
    };
    let entries = entries.into_iter().filter_map(|(at, payload)| {
        let text = String::from_utf8(payload.json.to_vec()).ok()?;
        Some(HistoryEntry { pos: at.to_text(), event: RawValue::from_string(text).ok()? })
    });
    Ok(ok(&HistoryAnswer { entries: entries.collect() }))
}

pub(super) fn user(uid: &str, answer: Answered) -> Result<Reply, Failure> {
    let sessions = match answer {
        Ok(Answer::User(sessions)) => sessions,
        Err(CommandFailed::NotFound) => Vec::new(),
        other => return Err(failure(other)),
    };
    let sessions = sessions.iter().map(|session| UserSession {
        sid: session.sid.to_text(),
        namespace: session.namespace.to_string(),
        connected: session.edge.is_some(),
        rooms: session.rooms,
    });
    Ok(ok(&UserAnswer { uid: uid.to_owned(), sessions: sessions.collect() }))
}

/// The status of a query that has no answer of its kind.
fn failure(answer: Answered) -> Failure {
    let busy = |code, error: &CommandFailed| {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string()).retry_after(RETRY_AFTER)
    };
    match answer {
        Err(error @ CommandFailed::NotFound) => {
            Failure::new(StatusCode::NOT_FOUND, "session_unknown", error.to_string())
        }
        Err(CommandFailed::Timeout) => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "no answer from the owner in time: it may have been done; repeat a publish with its idempotency key",
        )
        .retry_after(RETRY_AFTER),
        Err(error @ CommandFailed::NoOwner) => busy("no_owner", &error),
        Err(error @ CommandFailed::Overloaded) => busy("overloaded", &error),
        Err(error @ CommandFailed::Refused(_)) => {
            Failure::new(StatusCode::CONFLICT, "refused", error.to_string())
        }
        Ok(_) => {
            tracing::error!("a shard answered another question than it was asked");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "an answer of the wrong kind")
        }
    }
}
