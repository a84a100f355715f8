//! What the body of a request may hold.
//!
//! Belongs here: the JSON shapes, strict: an unknown field is an error, not a surprise.
//! Stays out: limits of names (`call`), the gate.
//! Invariants: event and arguments stay slices of the body.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::web::Failure;

/// Sends an event. One of room, uid, sid and all says to whom.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Publish<'a> {
    #[serde(borrow)]
    pub(super) room: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) sid: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) all: bool,
    #[serde(borrow)]
    pub(super) namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) event: &'a RawValue,
    #[serde(borrow)]
    pub(super) args: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) except: Except,
    /// Its idempotency key, named as in the clients' protocols.
    #[serde(borrow, rename = "id")]
    pub(super) idempotency_key: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) volatile: bool,
}

/// Who does not get an event.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Except {
    pub(super) sids: Vec<String>,
    pub(super) rooms: Vec<String>,
}

/// A user's sessions, one, or the members of a room.
#[derive(Debug, Default)]
pub(super) struct Session<'a> {
    pub(super) uid: Option<Cow<'a, str>>,
    pub(super) sid: Option<Cow<'a, str>>,
    /// Members of this room.
    pub(super) within: Option<Cow<'a, str>>,
    pub(super) all: bool,
    pub(super) namespace: Option<Cow<'a, str>>,
    pub(super) except: Option<Except>,
}

/// Puts sessions into a room or takes them out.
#[derive(Debug)]
pub(super) struct Membership<'a> {
    pub(super) who: Session<'a>,
    pub(super) room: Cow<'a, str>,
}

/// Ends sessions.
#[derive(Debug)]
pub(super) struct Disconnect<'a> {
    pub(super) who: Session<'a>,
    pub(super) close: Option<bool>,
}

/// Several commands.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch<'a> {
    /// Read one by one, so that a bad one spoils only itself.
    #[serde(borrow)]
    pub(super) items: Vec<&'a RawValue>,
}

/// One command of a batch: `{"publish": {…}}`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Item<'a> {
    #[serde(borrow)]
    Publish(Publish<'a>),
    #[serde(borrow)]
    Join(Membership<'a>),
    #[serde(borrow)]
    Leave(Membership<'a>),
    #[serde(borrow)]
    Disconnect(Disconnect<'a>),
}

// serde's `flatten` would silence unknown fields, so the flat shapes are spelt out here.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatMembership<'a> {
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "in")]
    within: Option<Cow<'a, str>>,
    #[serde(default)]
    all: bool,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    except: Option<Except>,
    #[serde(borrow)]
    room: Cow<'a, str>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Membership<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let flat = FlatMembership::deserialize(deserializer)?;
        let FlatMembership { uid, sid, within, all, namespace, except, room } = flat;
        Ok(Self { who: Session { uid, sid, within, all, namespace, except }, room })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatDisconnect<'a> {
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "in")]
    within: Option<Cow<'a, str>>,
    #[serde(default)]
    all: bool,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    except: Option<Except>,
    close: Option<bool>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Disconnect<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let flat = FlatDisconnect::deserialize(deserializer)?;
        let FlatDisconnect { uid, sid, within, all, namespace, except, close } = flat;
        Ok(Self { who: Session { uid, sid, within, all, namespace, except }, close })
    }
}

/// Reads a body.
///
/// # Errors
/// 400, naming the place. The body itself is not repeated in full.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let code = if error.is_data() { "arguments" } else { "json" };
        Failure::bad_request(code, error.to_string())
    })
}

/// Any bytes as each of the bodies: read, or refused in JSON. What is read is part of the body.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn check_bodies(bytes: &[u8]) {
    fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
        parse(bytes).inspect_err(|refused| assert!(refused.body().is_object())).ok()
    }
    let is_part = |raw: &RawValue| bytes.as_ptr_range().contains(&raw.get().as_ptr());
    if let Some(publish) = read::<Publish<'_>>(bytes) {
        assert!(is_part(publish.event) && publish.args.is_none_or(is_part));
    }
    if let Some(batch) = read::<Batch<'_>>(bytes) {
        assert!(batch.items.iter().all(|item| is_part(item)));
        batch.items.iter().for_each(|item| drop(read::<Item<'_>>(item.get().as_bytes())));
    }
    let _ = (read::<Membership<'_>>(bytes), read::<Disconnect<'_>>(bytes), read::<Item<'_>>(bytes));
}
