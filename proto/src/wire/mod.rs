//! Bytes between nodes.
//!
//! Belongs here: types that cross the mesh, their codec and its bounds. Nothing else: inner state of
//! machines is not serialisable.
//! Stays out: what the messages mean (`edge`, `session`, `room`), how they travel (`link`).
//! Format: postcard, positional. **Append variants and fields, never reorder**; golden bytes in
//! `tests` hold this.

mod ask;
mod binding;
mod engine;
mod envelope;
mod hello;
mod messages;
mod queries;
mod replication;
mod session_op;
mod status;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use ask::*;
pub use binding::*;
pub use engine::*;
pub use envelope::{Body, Envelope, Lane, To};
pub use hello::{Hello, PROTOCOL_MAX, PROTOCOL_MIN, ProtocolRange, Refused};
pub use messages::*;
pub use queries::*;
pub use replication::*;
pub use session_op::{EmitKey, NEXT_PACKET, SessionOp};
pub use status::*;

/// The largest encoded envelope a link carries: a copy of the largest room, with its dedupe table.
pub const ENVELOPE_BYTES_MAX: usize = 8 << 20;

/// Most messages fit: an envelope with a small event has some 200 bytes.
const ENCODED_BYTES_USUAL: usize = 256;

/// Bytes from a peer that are no message of this protocol. The link they came on is closed; nothing
/// of them is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the bound for this kind of message.
    #[error("message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not postcard of the expected type.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// A whole message, then more bytes.
    #[error("{0} bytes after the message")]
    TrailingBytes(usize),
}

/// Encodes a wire type.
///
/// # Panics
/// Never for the types of this module: they have no unserialisable values.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let storage = Growing(Vec::with_capacity(ENCODED_BYTES_USUAL));
    Bytes::from(postcard::serialize_with_flavor(value, storage).expect("wire types always serialise"))
}

/// Where [`encode`] writes to. postcard's own begins with nothing and grows five times for a usual message.
struct Growing(Vec<u8>);

impl postcard::ser_flavors::Flavor for Growing {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Decodes a wire type that fills `bytes` exactly.
///
/// # Errors
/// [`DecodeError`] for anything else.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    if bytes.len() > ENVELOPE_BYTES_MAX {
        return Err(DecodeError::TooLong { len: bytes.len(), max: ENVELOPE_BYTES_MAX });
    }
    let (value, rest) =
        postcard::take_from_bytes(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}
