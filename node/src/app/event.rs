//! What clients send, and what they are sent.
//!
//! Belongs here: arguments from and to JSON and bytes. Stays out: whom it goes to (`socket`, `io`).
//! Invariants: what leaves has passed the gate (`mesh_proto::gate`): no stock client trips over it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mesh_proto::gate::check_event;
use mesh_proto::json;
use mesh_proto::limits::Limits;
use mesh_proto::wire::Payload;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// Arguments of an event or an answer: a tuple of what serialises, `()` for none, or [`Arguments`].
pub trait Args {
    /// As JSON texts, with attachments in the order of their placeholders.
    ///
    /// # Errors
    /// When one does not serialise.
    fn arguments(&self) -> Result<Arguments, Error>;
}

/// Arguments one by one: JSON, bytes, or what came from a client as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    json: Vec<u8>,
    attachments: Vec<Bytes>,
}

impl Arguments {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more, as JSON.
    ///
    /// # Errors
    /// When it does not serialise.
    pub fn json(mut self, value: &impl Serialize) -> Result<Self, Error> {
        self.separate();
        serde_json::to_writer(&mut self.json, value)?;
        Ok(self)
    }

    /// One more, as bytes.
    #[must_use]
    pub fn binary(mut self, bytes: impl Into<Bytes>) -> Self {
        self.separate();
        let number = self.attachments.len();
        self.json.extend_from_slice(format!("{{\"_placeholder\":true,\"num\":{number}}}").as_bytes());
        self.attachments.push(bytes.into());
        self
    }

    fn separate(&mut self) {
        if !self.json.is_empty() {
            self.json.push(b',');
        }
    }

    /// An array of them.
    fn into_answer(self) -> Payload {
        Payload { json: [b"[", &self.json[..], b"]"].concat().into(), attachments: self.attachments }
    }

    /// An event with them.
    pub(super) fn into_event(self, name: &str, limits: &Limits) -> Result<Payload, Error> {
        let mut out = b"[".to_vec();
        json::push_string(&mut out, name);
        if !self.json.is_empty() {
            out.push(b',');
            out.extend_from_slice(&self.json);
        }
        out.push(b']');
        let payload = Payload { json: out.into(), attachments: self.attachments };
        check_event(&payload, limits)?;
        Ok(payload)
    }
}

impl Args for Arguments {
    fn arguments(&self) -> Result<Arguments, Error> {
        Ok(self.clone())
    }
}

impl Args for () {
    fn arguments(&self) -> Result<Arguments, Error> {
        Ok(Arguments::new())
    }
}

macro_rules! tuples {
    ($(($($name:ident $index:tt),+))+) => {$(
        impl<$($name: Serialize),+> Args for ($($name,)+) {
            fn arguments(&self) -> Result<Arguments, Error> {
                let arguments = Arguments::new();
                $(let arguments = arguments.json(&self.$index)?;)+
                Ok(arguments)
            }
        }
    )+};
}

tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
}

/// An event of a client.
#[derive(Clone, Debug)]
pub struct Event {
    name: String,
    payload: Payload,
    wants_reply: bool,
    reply: Arc<Mutex<Option<Payload>>>,
}

impl Event {
    /// `None`: not an array that begins with a name.
    pub(super) fn new(payload: Payload, wants_reply: bool) -> Option<Self> {
        let first = json::elements(&payload.json, json::DEPTH_MAX).next()?.ok()?;
        let raw = &payload.json[first];
        // A number is a name as well: what the stock server makes of it.
        let name = match json::unescape_str(raw) {
            Some(name) => name.into_owned(),
            None => String::from_utf8_lossy(raw).into_owned(),
        };
        Some(Self { name, payload, wants_reply, reply: Arc::default() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the client waits for an answer.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.wants_reply
    }

    /// Its arguments as a tuple. Bytes are placeholders here: see [`Self::binary`].
    ///
    /// # Errors
    /// When they are not what was asked for, in words for the client's author.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let args = self.raw_args();
        Ok(serde_json::from_slice(&args).map_err(|error| super::EventRefused(error.to_string()))?)
    }

    /// The bytes of placeholder `number`.
    #[must_use]
    pub fn binary(&self, number: usize) -> Option<&Bytes> {
        self.payload.attachments.get(number)
    }

    /// Its arguments as they came, to be sent on.
    #[must_use]
    pub fn arguments(&self) -> Arguments {
        let args = self.raw_args();
        let inner = args[1..args.len() - 1].to_vec();
        Arguments { json: inner, attachments: self.payload.attachments.clone() }
    }

    /// A JSON array of the arguments.
    fn raw_args(&self) -> Vec<u8> {
        let json = self.payload.json.trim_ascii();
        let mut elements = json::elements(json, json::DEPTH_MAX);
        let _name = elements.next();
        match elements.next() {
            Some(Ok(first)) => [b"[", &json[first.start..]].concat(),
            _ => b"[]".to_vec(),
        }
    }

    /// Answers it. The client gets the answer when all that the handler has done is safe; of several the
    /// last one counts.
    ///
    /// # Errors
    /// When an argument does not serialise.
    pub fn reply(&self, args: impl Args) -> Result<(), Error> {
        let answer = args.arguments()?.into_answer();
        *self.reply.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        Ok(())
    }

    pub(super) fn take_reply(&self) -> Option<Payload> {
        self.reply.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the members of rooms have answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// One for each member that has answered, in no order.
    pub answers: Vec<Answer>,
    /// Members that were asked and have not answered in time, or are gone, or whose answers were too much to
    /// be kept (4 MiB for one question).
    pub missing: u64,
    /// Names of nodes that have not said whom they ask, or are gone with members that had not answered.
    pub silent: Vec<String>,
    /// Rooms whose owner has not taken the event, or had taken it for a run of the handler before this one.
    pub unserved: u32,
}

impl Answers {
    /// Whether everybody who was asked has answered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.unserved == 0 && self.silent.is_empty()
    }

    /// The answers as tuples, if all are there.
    ///
    /// # Errors
    /// [`Incomplete`] with what there is; or when an answer is not what was asked for.
    pub fn all<T: DeserializeOwned>(self) -> Result<Vec<T>, Error> {
        if !self.is_complete() {
            return Err(Incomplete(self).into());
        }
        self.answers.iter().map(Answer::args).collect()
    }
}

/// Not all members have answered: those who have are in it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("operation has timed out: {} have answered, {} have not", .0.answers.len(), .0.missing)]
pub struct Incomplete(pub Answers);

/// One member's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The public id of the session.
    pub socket: String,
    pub(super) payload: Payload,
}

impl Answer {
    /// Its arguments as a tuple. Bytes are placeholders here: see [`Self::binary`].
    ///
    /// # Errors
    /// When they are not what was asked for.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read_answer(&self.payload)
    }

    /// The bytes of placeholder `number`.
    #[must_use]
    pub fn binary(&self, number: usize) -> Option<&Bytes> {
        self.payload.attachments.get(number)
    }
}

/// What an action on the members of rooms has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acted {
    /// Sessions to which it was done.
    pub sessions: u64,
    /// Sessions to which it is not known to be done: one that is away meets it when it is back.
    pub missing: u64,
    /// Names of nodes that have not said, or are gone.
    pub silent: Vec<String>,
    /// Rooms whose owner has not taken it in time.
    pub unserved: u32,
}

impl Acted {
    /// Whether it was done to all who were there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.unserved == 0 && self.silent.is_empty()
    }
}

/// A client's answer as a tuple.
pub(super) fn read_answer<T: DeserializeOwned>(payload: &Payload) -> Result<T, Error> {
    Ok(serde_json::from_slice(&payload.json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        Event::new(Payload::json(json.to_owned()), true).unwrap()
    }

    #[test]
    fn arguments_come_as_tuples_and_go_on_as_they_came() {
        let got = event(r#" ["say", 1 ,{"a":[true]}] "#);
        assert_eq!(got.name(), "say");
        let (number, object): (u32, serde_json::Value) = got.args().unwrap();
        assert_eq!((number, object["a"][0].as_bool()), (1, Some(true)));
        assert!(got.args::<(String,)>().is_err());
        let sent = got.arguments().into_event("back", &Limits::default()).unwrap();
        assert_eq!(&sent.json[..], br#"["back",1 ,{"a":[true]}]"#);
        assert_eq!(&event(r#"["none"]"#).arguments().into_answer().json[..], b"[]");
        assert_eq!(event("[7,1]").name(), "7");
    }

    #[test]
    fn bytes_have_placeholders_and_reserved_names_are_refused() {
        let args = Arguments::new().json(&"a").unwrap().binary(vec![1, 2]).binary(vec![3]);
        let payload = args.into_event("b", &Limits::default()).unwrap();
        let expected = r#"["b","a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
        assert_eq!(&payload.json[..], expected.as_bytes());
        assert_eq!(payload.attachments, [Bytes::from(vec![1, 2]), Bytes::from(vec![3])]);
        let reserved = (1,).arguments().unwrap().into_event("disconnect", &Limits::default());
        assert!(reserved.is_err());
    }
}
