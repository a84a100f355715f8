//! What the API answers (`docs/http-api.md`).

use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::web::{Failure, Reply};

/// To a publish to a room or to all: it is in the log.
#[derive(Debug, Serialize)]
pub struct PublishedAnswer {
    /// Its position, in the text form that clients see too.
    pub pos: String,
    /// Whether this idempotency key had been published before.
    pub duplicate: bool,
}

/// To a publish to a uid or sid.
#[derive(Debug, Serialize)]
pub struct DeliveredAnswer {
    /// Sessions it was sent to.
    pub delivered: u32,
}

/// To join, leave and disconnect.
#[derive(Debug, Serialize)]
pub struct SessionsAnswer {
    /// Sessions it was done to.
    pub sessions: u32,
}

/// To join, leave and disconnect of a room's members.
#[derive(Debug, Serialize)]
pub struct ActedAnswer {
    /// Sessions it was done to.
    pub sessions: u64,
    /// Sessions that were there and have not said that it is done.
    pub missing: u64,
    /// Nodes that did not answer in time: what they have done is not known.
    pub silent: Vec<String>,
}

/// To counts and members.
#[derive(Debug, Serialize)]
pub struct MembersAnswer {
    /// Sessions in the room.
    pub sessions: u64,
    /// Who, as far as listed; absent in counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<MemberAnswer>>,
    /// Nodes that did not answer in time: their members are missing here.
    pub silent: Vec<String>,
}

/// One session in a room.
#[derive(Debug, Serialize)]
pub struct MemberAnswer {
    /// Its user.
    pub uid: String,
    /// Its public id.
    pub sid: String,
}

/// To history.
#[derive(Debug, Serialize)]
pub struct HistoryAnswer {
    /// Oldest first.
    pub entries: Vec<HistoryEntry>,
}

/// One entry of a room's log.
#[derive(Debug, Serialize)]
pub struct HistoryEntry {
    /// Its position, in the text form that clients see too.
    pub pos: String,
    /// `[event, …args]`, as published. Binary attachments are left out.
    pub event: Box<RawValue>,
}

/// To a user.
#[derive(Debug, Serialize)]
pub struct UserAnswer {
    /// The user.
    pub uid: String,
    /// Its sessions.
    pub sessions: Vec<UserSession>,
}

/// One session of a user.
#[derive(Debug, Serialize)]
pub struct UserSession {
    /// Its public id.
    pub sid: String,
    /// Its namespace.
    pub namespace: String,
    /// Whether a transport is attached at present.
    pub connected: bool,
    /// Rooms it is in.
    pub rooms: u32,
}

/// To a batch: one result per item, in order.
#[derive(Debug, Serialize)]
pub struct BatchAnswer {
    /// The results.
    pub results: Vec<BatchResult>,
}

/// What the item alone would have been answered.
#[derive(Debug, Serialize)]
pub struct BatchResult {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Box<RawValue>,
}

impl BatchResult {
    pub(super) fn of(outcome: Result<Reply, Failure>) -> Self {
        let reply = outcome.unwrap_or_else(Reply::from);
        let text = std::str::from_utf8(&reply.body).unwrap_or("null").trim_end().to_owned();
        let null = || RawValue::NULL.to_owned();
        Self { status: reply.status.as_u16(), body: RawValue::from_string(text).unwrap_or_else(|_| null()) }
    }
}

pub(super) fn ok(value: &impl Serialize) -> Reply {
    Reply::json(StatusCode::OK, value)
}
