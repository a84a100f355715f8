//! Products: what happens to a client's event.
//!
//! Belongs here: the words in which requests are refused, and the acks that carry them; one module per
//! built-in product.
//! Stays out: sessions and rooms themselves (`session`, `room`), who a client is (`node::product`).
//! Invariants: codes are stable: `docs/protocol.md` lists each, clients branch on them.

pub mod rooms;

use std::borrow::Cow;

use crate::gate::GateError;
use crate::json::{self, JsonError};
use crate::wire::Payload;

/// Why a request was refused, as clients see it. Stable: append, never rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Too few, too many or wrong arguments.
    Arguments,
    /// An event this product does not have.
    UnknownEvent,
    /// A room name that is empty, too long, or has control characters.
    RoomName,
    /// One room more than a session may be in.
    RoomLimit,
    /// An event name that is no string, reserved, or too long.
    EventName,
    /// Not JSON.
    Json,
    /// JSON nested too deep.
    Depth,
    /// Placeholders and attachments do not match one to one.
    Placeholder,
    /// Too many attachments, or not base64.
    Attachments,
    /// Larger than a message may be.
    TooBig,
    /// Only members of the room may do this.
    NotMember,
    /// The product's rules do not allow this to clients.
    Forbidden,
    /// Too many requests; the request was not carried out.
    Rate,
    /// No answer in time; whether it was carried out is not known.
    Timeout,
    /// The node that owns the room takes no more; later may work.
    Overloaded,
    /// The product's code failed.
    Internal,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 16] = [
        Self::Arguments,
        Self::UnknownEvent,
        Self::RoomName,
        Self::RoomLimit,
        Self::EventName,
        Self::Json,
        Self::Depth,
        Self::Placeholder,
        Self::Attachments,
        Self::TooBig,
        Self::NotMember,
        Self::Forbidden,
        Self::Rate,
        Self::Timeout,
        Self::Overloaded,
        Self::Internal,
    ];

    /// The word in acks and error messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::UnknownEvent => "unknown_event",
            Self::RoomName => "room_name",
            Self::RoomLimit => "room_limit",
            Self::EventName => "event_name",
            Self::Json => "json",
            Self::Depth => "depth",
            Self::Placeholder => "placeholder",
            Self::Attachments => "attachments",
            Self::TooBig => "too_big",
            Self::NotMember => "not_member",
            Self::Forbidden => "forbidden",
            Self::Rate => "rate",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
        }
    }
}

/// A request that is not carried out. The client gets it as an ack error; its connection stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct RequestError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one sentence.
    pub message: Cow<'static, str>,
}

impl RequestError {
    /// A refusal.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// The arguments of the ack that tells the client.
    #[must_use]
    pub fn to_ack(&self) -> Payload {
        ack_error(self.code, &self.message)
    }
}

impl From<GateError> for RequestError {
    fn from(error: GateError) -> Self {
        let code = match error {
            GateError::Json(_) => ErrorCode::Json,
            GateError::Depth { .. } => ErrorCode::Depth,
            GateError::NameShape | GateError::NameReserved | GateError::NameLength { .. } => {
                ErrorCode::EventName
            }
            GateError::Placeholder(_) => ErrorCode::Placeholder,
            GateError::Attachments { .. } => ErrorCode::Attachments,
            GateError::TooBig { .. } => ErrorCode::TooBig,
        };
        Self::new(code, error.to_string())
    }
}

impl From<JsonError> for RequestError {
    fn from(error: JsonError) -> Self {
        let code = match error {
            JsonError::TooDeep { .. } => ErrorCode::Depth,
            _ => ErrorCode::Json,
        };
        Self::new(code, error.to_string())
    }
}

/// The arguments of a good ack: `[{"ok":true,<fields>}]`. Values are raw JSON.
#[must_use]
pub fn ack_ok(fields: &[(&str, &str)]) -> Payload {
    let mut out = b"[{\"ok\":true".to_vec();
    for (name, value) in fields {
        out.push(b',');
        json::push_string(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"}]");
    Payload::json(out)
}

/// The arguments of an ack that refuses: `[{"ok":false,"code":…,"message":…}]`.
#[must_use]
pub fn ack_error(code: ErrorCode, message: &str) -> Payload {
    let mut out = format!("[{{\"ok\":false,\"code\":\"{}\",\"message\":", code.as_str()).into_bytes();
    json::push_string(&mut out, message);
    out.extend_from_slice(b"}]");
    Payload::json(out)
}

/// The arguments of the ack that lists rooms: `[{"ok":true,"rooms":[…]}]`.
#[must_use]
pub fn ack_rooms<'a>(names: impl IntoIterator<Item = &'a str>) -> Payload {
    let mut out = b"[{\"ok\":true,\"rooms\":[".to_vec();
    for (i, name) in names.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        json::push_string(&mut out, name);
    }
    out.extend_from_slice(b"]}]");
    Payload::json(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_json_whatever_the_text() {
        assert_eq!(ack_ok(&[]).json, r#"[{"ok":true}]"#);
        assert_eq!(ack_ok(&[("pos", "\"1.2\""), ("n", "3")]).json, r#"[{"ok":true,"pos":"1.2","n":3}]"#);
        assert_eq!(
            ack_error(ErrorCode::RoomName, "not \"this\"\n").json,
            r#"[{"ok":false,"code":"room_name","message":"not \"this\"\n"}]"#
        );
        assert_eq!(ack_rooms([]).json, r#"[{"ok":true,"rooms":[]}]"#);
        assert_eq!(ack_rooms(["a", "\"b\\"]).json, r#"[{"ok":true,"rooms":["a","\"b\\"]}]"#);
    }

    #[test]
    fn codes_are_distinct_and_those_of_the_gate_are_the_same_words() {
        let words: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for error in [
            GateError::Json(JsonError::NotAnArray),
            GateError::Depth { max: 1 },
            GateError::NameShape,
            GateError::NameReserved,
            GateError::NameLength { max: 1 },
            GateError::Placeholder(crate::gate::PlaceholderError::Missing { num: 0 }),
            GateError::Attachments { max: 1 },
            GateError::TooBig { max: 1 },
        ] {
            assert_eq!(RequestError::from(error).code.as_str(), error.code());
        }
    }
}
