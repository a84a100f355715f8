//! The plain WebSocket protocol: JSON text messages, for anything that is not a Socket.IO client.
//!
//! Belongs here: reading a client's messages into the events of the `rooms` product (`decode`), writing
//! what the mesh says to it (`encode`). `docs/protocol.md` is the reference for people.
//! Stays out: heartbeat timers and sessions (`edge`), what requests mean (`product::rooms`).
//! Format: one JSON object per text message, its `type` says what it is. Binary messages are not used.
//! Invariants: arguments are copied byte for byte in both directions; a bad message is answered and
//! costs nothing else: only a broken WebSocket or a missing heartbeat ends the connection.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{PlainError, PlainRequest, decode};
pub use encode::{
    PING, PONG, Welcome, encode_ack, encode_closed, encode_error, encode_event, encode_joined, encode_left,
};

/// Ids of requests are below this: JavaScript counts them exactly.
pub const REQUEST_ID_END: u64 = 1 << 53;
