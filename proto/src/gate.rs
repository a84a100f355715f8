//! The gate every event passes before it enters a room's log or a session's own log.
//!
//! Belongs here: the test that the stock decoder of every member will accept an event; the list of
//! reserved names; where an event's placeholders point.
//! Stays out: packet framing (`socketio`), who may publish (`product`), sizes of queues and logs.
//! Why: one bad entry would disconnect every member of a room, and again at each recovery (DESIGN §6).
//! Invariants: what passes is UTF-8 and a whole JSON array within the depth limit, its first element a string
//! that is not reserved or a number, its placeholders exactly 0..n−1 for its n attachments.
//! Source: socket.io-parser 4 (`isPayloadValid`, `_reconstructPacket`); FAULTS §3 rows 54–60.

use crate::json::{self, JsonError, Sink};
use crate::limits::Limits;
use crate::wire::Payload;

/// Event names that Socket.IO keeps for itself: a decoder that meets one as a packet's event closes.
pub const RESERVED_EVENTS: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Why an event may not enter a log. The publisher is told; nothing is stored or delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Not a JSON array, or not JSON.
    #[error("the event is not a JSON array: {0}")]
    Json(JsonError),
    /// Nested too deep.
    #[error("the event is nested deeper than {max}")]
    Depth {
        /// What is allowed.
        max: usize,
    },
    /// No name, or one that is no string and no number.
    #[error("the event's name is not a string")]
    NameShape,
    /// A name Socket.IO keeps for itself.
    #[error("the event's name is reserved")]
    NameReserved,
    /// A name over the limit.
    #[error("the event's name is longer than {max} bytes")]
    NameLength {
        /// What is allowed.
        max: usize,
    },
    /// Placeholders and attachments do not match one to one.
    #[error("{0}")]
    Placeholder(#[from] PlaceholderError),
    /// More attachments than a packet may have.
    #[error("more than {max} attachments")]
    Attachments {
        /// What is allowed.
        max: usize,
    },
    /// Larger than a message may be.
    #[error("the event is over {max} bytes")]
    TooBig {
        /// What is allowed.
        max: usize,
    },
}

impl GateError {
    /// The stable word for acks and API answers (`docs/protocol.md`).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Depth { .. } => "depth",
            Self::NameShape | Self::NameReserved | Self::NameLength { .. } => "event_name",
            Self::Placeholder(_) => "placeholder",
            Self::Attachments { .. } => "attachments",
            Self::TooBig { .. } => "too_big",
        }
    }
}

impl From<JsonError> for GateError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::TooDeep { max, .. } => Self::Depth { max },
            other => Self::Json(other),
        }
    }
}

/// Lets an event into a log, or says why not. Linear in its size, no allocation for plain JSON.
///
/// # Errors
/// [`GateError`], whose code and text are for the publisher.
pub fn check_event(payload: &Payload, limits: &Limits) -> Result<(), GateError> {
    if payload.len() > limits.message_bytes_max {
        return Err(GateError::TooBig { max: limits.message_bytes_max });
    }
    if payload.attachments.len() > limits.attachments_max {
        return Err(GateError::Attachments { max: limits.attachments_max });
    }
    if let Err(error) = std::str::from_utf8(&payload.json) {
        return Err(GateError::Json(JsonError::Syntax { at: error.valid_up_to() }));
    }
    let mut placeholders = Placeholders::new(payload.attachments.len());
    json::check_with(&payload.json, limits.json_depth_max, &mut placeholders)?;
    check_name(first_of_array(&payload.json)?, Some(limits.event_name_bytes_max))?;
    placeholders.finish()?.exactly_once()?;
    Ok(())
}

/// The first element of a checked text that must be an array with one at least.
fn first_of_array(text: &[u8]) -> Result<&[u8], GateError> {
    match json::elements(text, json::DEPTH_MAX).next() {
        None => Err(GateError::NameShape),
        Some(Err(error)) => Err(error.into()),
        Some(Ok(at)) => Ok(&text[at]),
    }
}

/// Whether a raw JSON value may be an event's name: a number, or a string that is not reserved.
pub(crate) fn check_name(raw: &[u8], bytes_max: Option<usize>) -> Result<(), GateError> {
    let name = match raw.first() {
        Some(b'"') => json::unescape(raw).ok_or(GateError::NameShape)?,
        Some(b'-' | b'0'..=b'9') => raw.into(),
        _ => return Err(GateError::NameShape),
    };
    if RESERVED_EVENTS.iter().any(|reserved| reserved.as_bytes() == &*name) {
        return Err(GateError::NameReserved);
    }
    match bytes_max {
        Some(max) if name.len() > max => Err(GateError::NameLength { max }),
        _ => Ok(()),
    }
}

/// A placeholder that does not fit the attachments it comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceholderError {
    /// Its `num` is no number or names no attachment. The stock decoder closes on this.
    #[error("a placeholder names none of the {attachments} attachments")]
    OutOfRange {
        /// How many there are.
        attachments: usize,
    },
    /// Two placeholders name one attachment. The stock decoder takes it; no encoder makes it.
    #[error("attachment {num} is named twice")]
    Repeated {
        /// Which.
        num: usize,
    },
    /// No placeholder names this attachment.
    #[error("no placeholder names attachment {num}")]
    Missing {
        /// Which.
        num: usize,
    },
}

/// Finds the objects that the stock decoder replaces by an attachment: those whose last
/// `_placeholder` member is `true` (`JSON.parse` keeps the last of repeated keys, and undoes escapes
/// in keys). Allocates nothing until a key named `_placeholder` or `num` passes by.
pub(crate) struct Placeholders {
    /// Times each attachment was named.
    named: Vec<u32>,
    depth: usize,
    /// Open objects in which one of the two keys has been seen, outermost first.
    candidates: Vec<Candidate>,
    /// The key whose value comes next.
    key: Option<Key>,
    error: Option<PlaceholderError>,
}

#[derive(Clone, Copy)]
enum Key {
    Placeholder,
    Num,
}

struct Candidate {
    depth: usize,
    placeholder: bool,
    num: Option<usize>,
}

impl Placeholders {
    /// For a text that comes with this many attachments.
    pub(crate) fn new(attachments: usize) -> Self {
        Self { named: vec![0; attachments], depth: 0, candidates: Vec::new(), key: None, error: None }
    }

    /// After the walk: all placeholders are in range, else the first that was not.
    pub(crate) fn finish(self) -> Result<InRange, PlaceholderError> {
        self.error.map_or(Ok(InRange { named: self.named }), Err)
    }

    fn value(&mut self, raw: Option<&[u8]>) {
        let Some(key) = self.key.take() else { return };
        if self.candidates.last().is_none_or(|last| last.depth != self.depth) {
            self.candidates.push(Candidate { depth: self.depth, placeholder: false, num: None });
        }
        let attachments = self.named.len();
        let Some(candidate) = self.candidates.last_mut() else { return };
        match key {
            Key::Placeholder => candidate.placeholder = raw == Some(b"true"),
            Key::Num => candidate.num = raw.and_then(|raw| index_below(raw, attachments)),
        }
    }
}

/// All placeholders of a text name an attachment.
pub(crate) struct InRange {
    named: Vec<u32>,
}

impl InRange {
    /// And each attachment is named by exactly one.
    pub(crate) fn exactly_once(&self) -> Result<(), PlaceholderError> {
        for (num, times) in self.named.iter().enumerate() {
            match times {
                0 => return Err(PlaceholderError::Missing { num }),
                1 => {}
                _ => return Err(PlaceholderError::Repeated { num }),
            }
        }
        Ok(())
    }
}

/// Reads a raw JSON number as an index below `len`; `1.0` and `1e0` are 1, as in JavaScript.
fn index_below(raw: &[u8], len: usize) -> Option<usize> {
    let number: f64 = std::str::from_utf8(raw).ok()?.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "few attachments; checked to be whole and in range")]
    let fits = number >= 0.0 && number < len as f64 && number.fract() == 0.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range")]
    fits.then_some(number as usize)
}

impl Sink for Placeholders {
    fn key(&mut self, raw: &[u8]) {
        self.key = match raw {
            b"\"_placeholder\"" => Some(Key::Placeholder),
            b"\"num\"" => Some(Key::Num),
            _ if raw.contains(&b'\\') => match json::unescape(raw).as_deref() {
                Some(b"_placeholder") => Some(Key::Placeholder),
                Some(b"num") => Some(Key::Num),
                _ => None,
            },
            _ => None,
        };
    }

    fn scalar(&mut self, raw: &[u8]) {
        self.value(Some(raw));
    }

    fn open(&mut self) {
        self.value(None);
        self.depth += 1;
    }

    fn close(&mut self) {
        if self.candidates.last().is_some_and(|last| last.depth == self.depth)
            && let Some(Candidate { placeholder: true, num, .. }) = self.candidates.pop()
        {
            match num {
                Some(num) => self.named[num] = self.named[num].saturating_add(1),
                None => {
                    let attachments = self.named.len();
                    self.error.get_or_insert(PlaceholderError::OutOfRange { attachments });
                }
            }
        }
        self.depth -= 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn gate(json: &str, attachments: usize) -> Result<(), &'static str> {
        let payload = Payload { json: json.to_owned().into(), attachments: vec![Bytes::new(); attachments] };
        check_event(&payload, &Limits::default()).map_err(|error| error.code())
    }

    fn nested(depth: usize) -> String {
        format!("[\"a\",{}{}]", "[".repeat(depth - 1), "]".repeat(depth - 1))
    }

    #[test]
    fn what_stock_encoders_make_passes() {
        let name_128 = format!("[\"{}\"]", "n".repeat(128));
        for (json, attachments) in [
            (r#"["a"]"#, 0),
            (r#" [ "a" , {"n":1} ] "#, 0),
            ("[1,2]", 0),
            (r#"["",null]"#, 0),
            (r#"["a",1e999,-0,18446744073709551616,"\ud800","\u0000",{"k":1,"k":2}]"#, 0),
            (r#"["a",{"_placeholder":false,"num":9}]"#, 0),
            (r#"["a",{"num":9,"_placeholder":"true"}]"#, 0),
            (r#"["a",{"_placeholder":true,"num":0}]"#, 1),
            (r#"["a",{"num":1,"_placeholder":true},[{"x":{"_placeholder":true,"num":0}}]]"#, 2),
            (name_128.as_str(), 0),
            (nested(128).as_str(), 0),
        ] {
            assert_eq!(gate(json, attachments), Ok(()), "{json}");
        }
    }

    #[test]
    fn what_would_close_a_member_is_refused_with_its_code() {
        let name_129 = format!("[\"{}\"]", "n".repeat(129));
        for (json, attachments, code) in [
            ("", 0, "json"),
            ("{}", 0, "json"),
            ("\"a\"", 0, "json"),
            (r#"["a""#, 0, "json"),
            (r#"["a"]x"#, 0, "json"),
            (r#"["a",]"#, 0, "json"),
            ("[\"a\u{1}\"]", 0, "json"),
            ("[]", 0, "event_name"),
            ("[null]", 0, "event_name"),
            ("[{}]", 0, "event_name"),
            ("[true]", 0, "event_name"),
            (r#"["connect"]"#, 0, "event_name"),
            (r#"["connect_error"]"#, 0, "event_name"),
            (r#"["disconnect"]"#, 0, "event_name"),
            (r#"["disconnecting"]"#, 0, "event_name"),
            (r#"["newListener"]"#, 0, "event_name"),
            (r#"["removeListener"]"#, 0, "event_name"),
            (r#"["\u0063onnect"]"#, 0, "event_name"),
            (name_129.as_str(), 0, "event_name"),
            (nested(129).as_str(), 0, "depth"),
            (r#"["a",{"_placeholder":true,"num":0}]"#, 0, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":1}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":-1}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":0.5}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":"0"}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":[0]}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":false,"_placeholder":true,"num":7}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":0,"num":7}]"#, 1, "placeholder"),
            (r#"["a",{"\u005fplaceholder":true,"n\u0075m":7}]"#, 1, "placeholder"),
            (r#"["a"]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#, 1, "placeholder"),
            (r#"["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#, 2, "placeholder"),
            (r#"["a"]"#, 11, "attachments"),
        ] {
            assert_eq!(gate(json, attachments), Err(code), "{json}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let payload = Payload::json(&b"[\"a\",\"\xff\"]"[..]);
        let refused = check_event(&payload, &Limits::default()).unwrap_err();
        assert_eq!(refused, GateError::Json(JsonError::Syntax { at: 6 }));
    }

    #[test]
    fn attachments_count_against_the_size() {
        let payload = Payload {
            json: Bytes::from_static(br#"["a",{"_placeholder":true,"num":0}]"#),
            attachments: vec![vec![0; 1_000_000].into()],
        };
        let refused = check_event(&payload, &Limits::default()).unwrap_err();
        assert_eq!(refused.code(), "too_big");
    }

    proptest! {
        #[test]
        fn any_bytes_pass_or_are_refused(json: Vec<u8>, attachments in 0_usize..12) {
            let payload = Payload { json: json.into(), attachments: vec![Bytes::new(); attachments] };
            let _ = check_event(&payload, &Limits::default());
        }

        #[test]
        fn placeholders_made_in_any_order_pass(count in 0_usize..=10, turn in 0_usize..10) {
            let nums: Vec<usize> = (0..count).map(|i| (i + turn) % count.max(1)).collect();
            let mut json = String::from("[\"e\"");
            for num in nums {
                json += &format!(r#",{{"deep":[{{"_placeholder":true,"num":{num}}}]}}"#);
            }
            json += "]";
            prop_assert_eq!(gate(&json, count), Ok(()));
        }
    }
}
