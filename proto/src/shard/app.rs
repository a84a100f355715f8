//! What a product's own code is asked, and what it answers.
//!
//! Belongs here: the questions a shard puts to an application, and its commands. Stays out: running it (a
//! driver's business, off the shard's thread), carrying commands out (`session`).
//! Order: one question at a time of each session; the next one follows the answer. A question may be
//! put again, to another node's copy of the application, when its owner dies before what it led to is
//! safe: the commands of an event take effect once, whatever the code did besides may happen twice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::id::SocketSid;
use crate::wire::{Action, DetachReason, Payload, SessionIdentity};

/// A question to the application of a product.
#[derive(Clone, Debug)]
pub struct AppCall {
    /// Names the question for its answer; `None`: only told, nothing is answered.
    pub call: Option<u64>,
    /// Whose session.
    pub identity: SessionIdentity,
    /// What the application keeps with the session: JSON, `null` at first.
    pub data: Bytes,
    /// Rooms it is in.
    pub rooms: Vec<Arc<str>>,
    /// What has happened.
    pub event: AppEvent,
}

/// What has happened to a session.
#[derive(Clone, Debug, PartialEq)]
pub enum AppEvent {
    /// It wants to connect. Until the answer the client waits.
    Connect {
        /// The auth payload of its CONNECT, a JSON object; empty if it sent none.
        auth: Bytes,
    },
    /// Its client sent an event.
    Event {
        /// Name and arguments.
        payload: Payload,
        /// Whether the client waits for an answer.
        wants_ack: bool,
    },
    /// Its transport is gone; the client may come back.
    Detach(DetachReason),
    /// Its client is back, and goes on where it was.
    Attach,
    /// It is over.
    Disconnect(DetachReason),
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct AppOutcome {
    /// What is to be done, in order.
    pub commands: Vec<AppCommand>,
    /// What comes then.
    pub then: AppThen,
}

/// What comes after the commands.
#[derive(Clone, Debug, PartialEq)]
pub enum AppThen {
    /// The code goes on: more commands will come.
    More,
    /// It is done; an event that wants one gets this answer.
    Done(Option<Payload>),
    /// The client may not connect: what it is told, and further JSON.
    Refuse(String, Option<Bytes>),
}

/// What an application has done for a session.
#[derive(Clone, Debug, PartialEq)]
pub enum AppCommand {
    /// Send its client an event.
    Emit {
        /// Name and arguments, past the gate.
        payload: Payload,
        /// Only if it can be written at once.
        volatile: bool,
        /// The client is to answer: told by [`super::Output::AppAnswered`] under this name.
        asks: Option<u64>,
    },
    /// Send an event to rooms; to everyone of the namespace if there are none.
    Publish {
        /// Which; a session in several of them gets it once.
        rooms: Vec<Arc<str>>,
        /// Name and arguments, past the gate.
        payload: Payload,
        /// Sessions that do not get it.
        except_sids: Vec<SocketSid>,
        /// Rooms whose members do not get it.
        except_rooms: Vec<Arc<str>>,
        /// Beside the log, only to who can take it at once.
        volatile: bool,
        /// The members are to answer: who waits for that, and how long.
        asks: Option<(u64, Duration)>,
    },
    /// Do something to all members of rooms, of the namespace if there are none; it takes its place among
    /// the rooms' events.
    Act {
        /// Which rooms.
        rooms: Vec<Arc<str>>,
        /// What.
        action: Action,
        /// Sessions to which it is not done.
        except_sids: Vec<SocketSid>,
        /// Rooms to whose members it is not done.
        except_rooms: Vec<Arc<str>>,
    },
    /// Put it into a room.
    Join(Arc<str>),
    /// Take it out of one.
    Leave(Arc<str>),
    /// Keep this with it: JSON.
    SetData(Bytes),
    /// End it.
    Disconnect {
        /// The transport as well.
        close: bool,
    },
}
