//! Reading a client's messages.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::{REQUEST_ID_END, encode};
use crate::json;
use crate::limits::Limits;
use crate::product::{ErrorCode, RequestError};
use crate::shard::Packet;
use crate::wire::Payload;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlainRequest {
    /// `join`, `leave`, `publish` or `rooms`, as the same event of a Socket.IO client: `["join","r"]`.
    /// Whole JSON, but its arguments are for the product to judge.
    Event {
        /// Answer under this id, if at all.
        id: Option<u64>,
        /// Name and arguments.
        payload: Payload,
    },
    /// The client wants to know whether we are there: answer [`super::PONG`].
    Ping,
    /// The answer to our [`super::PING`].
    Pong,
}

/// A message that is no request. The client is told; its connection stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct PlainError {
    /// The id it was sent under, as far as it could be read.
    pub id: Option<u64>,
    /// What is wrong.
    pub error: RequestError,
}

impl PlainError {
    /// What the client is told: an `ack` if it gave an id, else an `error`.
    #[must_use]
    pub fn to_packet(&self) -> Packet {
        match self.id {
            Some(id) => encode::encode_ack(id, &self.error.to_ack()),
            None => encode::encode_error(self.error.code.as_str(), &self.error.message),
        }
    }
}

/// Reads one text message.
///
/// # Errors
/// [`PlainError`]; send [`PlainError::to_packet`] and go on.
pub fn decode(text: &Bytes, limits: &Limits) -> Result<PlainRequest, PlainError> {
    let nameless = |error| PlainError { id: None, error };
    if text.len() > limits.message_bytes_max {
        let message = format!("a message has at most {} bytes", limits.message_bytes_max);
        return Err(nameless(RequestError::new(ErrorCode::TooBig, message)));
    }
    let fields = Fields::read(text, limits).map_err(nameless)?;
    let id = fields.request_id().map_err(nameless)?;
    fields.request(id, limits).map_err(|error| PlainError { id, error })
}

fn wrong(message: &'static str) -> RequestError {
    RequestError::new(ErrorCode::Arguments, message)
}

/// The members of a message, raw; of repeated ones the last, as in `JSON.parse`.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    room: Option<&'a [u8]>,
    event: Option<&'a [u8]>,
    args: Option<&'a [u8]>,
    attachments: Option<&'a [u8]>,
    self_too: Option<&'a [u8]>,
    except: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    /// A member that no message has.
    unknown: bool,
}

impl<'a> Fields<'a> {
    fn read(text: &'a [u8], limits: &Limits) -> Result<Self, RequestError> {
        let mut fields = Self::default();
        for member in json::members(text, limits.json_depth_max) {
            let member = member?;
            let value = Some(&text[member.value]);
            match json::unescape_str(&text[member.key]).as_deref() {
                Some("type") => fields.kind = value,
                Some("id") => fields.id = value,
                Some("room") => fields.room = value,
                Some("event") => fields.event = value,
                Some("args") => fields.args = value,
                Some("attachments") => fields.attachments = value,
                Some("self") => fields.self_too = value,
                Some("except") => fields.except = value,
                Some("key") => fields.key = value,
                // Kept free for catching up from a position (`docs/protocol.md`).
                Some("since") => {}
                _ => fields.unknown = true,
            }
        }
        Ok(fields)
    }

    fn request_id(&self) -> Result<Option<u64>, RequestError> {
        let Some(raw) = self.id else { return Ok(None) };
        let id = std::str::from_utf8(raw)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .filter(|&id| id < REQUEST_ID_END);
        id.map(Some).ok_or(wrong("id is a whole number from 0 to 2^53 - 1"))
    }

    fn request(self, id: Option<u64>, limits: &Limits) -> Result<PlainRequest, RequestError> {
        let kind = self.kind.and_then(json::unescape_str).ok_or(wrong("a message has a type, a string"))?;
        let payload = match &*kind {
            "ping" => return Ok(PlainRequest::Ping),
            "pong" => return Ok(PlainRequest::Pong),
            _ if self.unknown => {
                return Err(wrong(
                    "members are type, id, room, event, args, attachments, self, except and key",
                ));
            }
            "join" | "leave" => {
                let room = self.room.ok_or(wrong("room is missing"))?;
                Payload::json([b"[\"", kind.as_bytes(), b"\",", room, b"]"].concat())
            }
            "publish" => self.publish(limits)?,
            "rooms" => Payload::json(Bytes::from_static(b"[\"rooms\"]")),
            _ => {
                let message = "types are join, leave, publish, rooms, ping and pong";
                return Err(RequestError::new(ErrorCode::UnknownEvent, message));
            }
        };
        Ok(PlainRequest::Event { id, payload })
    }

    /// `["publish",<room>,<event or options>,<args>…]`.
    fn publish(&self, limits: &Limits) -> Result<Payload, RequestError> {
        let room = self.room.ok_or(wrong("room is missing"))?;
        let event = self.event.ok_or(wrong("event is missing"))?;
        if !matches!(event.first(), Some(b'"' | b'-' | b'0'..=b'9')) {
            return Err(RequestError::new(ErrorCode::EventName, "event is a string"));
        }
        let args = match self.args {
            None => &[],
            Some([b'[', inner @ .., b']']) => inner.trim_ascii(),
            Some(_) => return Err(wrong("args is an array")),
        };
        let attachments = self.attachments.map_or(Ok(Vec::new()), |raw| read_attachments(raw, limits))?;
        let options = [("self", self.self_too), ("except", self.except), ("id", self.key)];

        let mut json = Vec::with_capacity(room.len() + event.len() + args.len() + 128);
        json.extend_from_slice(b"[\"publish\",");
        json.extend_from_slice(room);
        json.push(b',');
        if options.iter().all(|(_, value)| value.is_none()) {
            json.extend_from_slice(event);
        } else {
            json.extend_from_slice(b"{\"event\":");
            json.extend_from_slice(event);
            for (name, value) in options {
                let Some(value) = value else { continue };
                json.extend_from_slice(format!(",\"{name}\":").as_bytes());
                json.extend_from_slice(value);
            }
            json.push(b'}');
        }
        if !args.is_empty() {
            json.push(b',');
            json.extend_from_slice(args);
        }
        json.push(b']');
        Ok(Payload { json: json.into(), attachments })
    }
}

/// An array of base64 strings, padded or not.
fn read_attachments(raw: &[u8], limits: &Limits) -> Result<Vec<Bytes>, RequestError> {
    let refuse = |message: String| RequestError::new(ErrorCode::Attachments, message);
    let mut attachments = Vec::new();
    for at in json::elements(raw, limits.json_depth_max) {
        if attachments.len() == limits.attachments_max {
            return Err(refuse(format!("more than {} attachments", limits.attachments_max)));
        }
        let text = json::unescape_str(&raw[at.map_err(|error| refuse(error.to_string()))?]);
        let bytes = text.and_then(|text| BASE64.decode(&*text).ok());
        let bytes = bytes.ok_or_else(|| refuse("attachments is an array of base64 strings".to_owned()))?;
        attachments.push(bytes.into());
    }
    Ok(attachments)
}
