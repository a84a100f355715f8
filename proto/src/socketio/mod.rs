//! Socket.IO v5: the packets inside Engine.IO messages.
//!
//! Belongs here: reading one packet (`decode`), putting binary packets together (`reassembly`),
//! writing packets (`encode`).
//! Stays out: which packet is right in which state (`edge`), what may enter a log (`gate`), what events
//! mean (`product`).
//! Format: `<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]`, type one digit: `0` connect, `1`
//! disconnect, `2` event, `3` ack, `4` connect error, `5` binary event, `6` binary ack.
//! Invariants: JSON is checked whole and stays as it came, byte for byte.
//! Source: Socket.IO protocol, revision 5; socket.io-parser 4; FAULTS §3 rows 50–62.

mod decode;
mod encode;
mod reassembly;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::gate::{GateError, PlaceholderError};
use crate::json::JsonError;
use crate::shard::CloseCode;

pub use decode::decode;
pub use encode::{
    encode_ack, encode_asking_event, encode_connect, encode_connect_error, encode_disconnect, encode_event,
    encode_open_event,
};
pub use reassembly::{ClientPacket, Reassembly};

/// The longest namespace name. Not a setting: nobody has needed more.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// The largest ack id that JavaScript counts exactly. An event with a larger one is handled and not
/// answered.
pub const ACK_ID_MAX: u64 = 1 << 53;

/// The id of an ack that names no event of ours: it had none, or one too large to be ours. Ignored like
/// any other unknown id.
pub const ACK_ID_UNKNOWN: u64 = u64::MAX;

/// A namespace's name without its query string; `/` is the main one. A slice of the packet it came in.
#[derive(Clone, PartialEq, Eq)]
pub struct Namespace(Bytes);

impl Namespace {
    /// The namespace that packets without a name are for.
    pub const MAIN: Self = Self(Bytes::from_static(b"/"));

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was read")
    }
}

impl Deref for Namespace {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// One packet from a client, before its attachments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketPacket {
    /// The client asks for a namespace.
    Connect {
        /// Which.
        namespace: Namespace,
        /// A JSON object, if it sent one.
        auth: Option<Bytes>,
    },
    /// The client leaves a namespace for good.
    Disconnect {
        /// Which.
        namespace: Namespace,
    },
    /// An event.
    Event {
        /// Where.
        namespace: Namespace,
        /// The id to answer under, if the client wants an answer and the id can be kept.
        ack: Option<u64>,
        /// A JSON array, name first.
        json: Bytes,
        /// Binary messages that follow and belong to it.
        attachments: usize,
    },
    /// The client's answer to an event of ours.
    Ack {
        /// Where.
        namespace: Namespace,
        /// The id we sent, or [`ACK_ID_UNKNOWN`].
        id: u64,
        /// A JSON array.
        json: Bytes,
        /// Binary messages that follow and belong to it.
        attachments: usize,
    },
}

/// A packet that a stock server closes on. The transport is closed without a goodbye packet, so that
/// the client may come back; nothing of the packet is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// No packet at all.
    #[error("empty packet")]
    Empty,
    /// A type that does not exist.
    #[error("unknown packet type {0:#04x}")]
    UnknownType(u8),
    /// A connect error, which only servers send.
    #[error("connect error from a client")]
    ConnectError,
    /// A binary packet without a count of attachments, or with the count 0.
    #[error("binary packet without a count of attachments")]
    AttachmentCount,
    /// More attachments than allowed.
    #[error("more than {max} attachments")]
    TooManyAttachments {
        /// What is allowed.
        max: usize,
    },
    /// A namespace's name over [`NAMESPACE_BYTES_MAX`], or not UTF-8.
    #[error("namespace is not UTF-8 of at most {NAMESPACE_BYTES_MAX} bytes")]
    Namespace,
    /// Broken or too deep JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The auth payload of a connect is no object.
    #[error("auth payload is not an object")]
    AuthShape,
    /// The auth payload is too long.
    #[error("auth payload over {max} bytes")]
    AuthTooBig {
        /// What is allowed.
        max: usize,
    },
    /// A disconnect with data.
    #[error("disconnect with data")]
    DisconnectData,
    /// An event that is no array, or without a name, or with a reserved one.
    #[error("event refused: {0}")]
    Event(GateError),
    /// An ack that is no array.
    #[error("ack is not an array")]
    AckShape,
    /// A placeholder that names no attachment.
    #[error(transparent)]
    Placeholder(#[from] PlaceholderError),
    /// A binary message that no packet announced.
    #[error("binary message that no packet announced")]
    UnexpectedBinary,
    /// A packet while attachments of another are missing.
    #[error("packet while attachments of another are missing")]
    AttachmentsMissing,
    /// A packet with its attachments is over the size of a message.
    #[error("packet and attachments over {max} bytes")]
    TooBig {
        /// What is allowed.
        max: usize,
    },
}

impl SocketError {
    /// How the transport is closed.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::TooBig { .. } => CloseCode::TooBig,
            Self::TooManyAttachments { .. }
            | Self::AuthTooBig { .. }
            | Self::Namespace
            | Self::Json(JsonError::TooDeep { .. }) => CloseCode::Policy,
            _ => CloseCode::ProtocolError,
        }
    }
}
