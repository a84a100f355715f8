//! One client's transport: its stream and what is unfinished on it, in either direction.
//!
//! Belongs here: the state a driver keeps per client, and one write of it.
//! Stays out: turns, deadlines, the machine (`driver`).
//! Units: an idle client costs its slot here (about 110 bytes), one task and one registration with
//! the reactor; buffers exist only while something is unfinished.

use std::io;

use mesh_proto::shard::ClientGone;
use mesh_proto::time::Instant;
use tokio::task::AbortHandle;

use super::outbox::Pending;
use crate::admission::ClientPlace;
use crate::transport::stream::ClientStream;
use crate::transport::websocket::FrameReader;

/// A client of this shard.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: ClientStream,
    pub(super) reader: FrameReader,
    /// What this turn has for it.
    pub(super) pending: Pending,
    /// What did not fit into its socket.
    pub(super) rest: Option<Box<Rest>>,
    /// The task that waits for its bytes; none while reading is paused.
    pub(super) reading: Option<AbortOnDrop>,
    pub(super) phase: Phase,
    /// The machine wants nothing more of it for now.
    pub(super) paused: bool,
    /// A pong is queued; further pings are covered by it.
    pub(super) pong_queued: bool,
    /// The turn it was last read in, modulo 2^32.
    pub(super) read_in: u32,
    /// Its one entry in the driver's deadlines.
    pub(super) deadline: Option<Instant>,
    /// Frees its counts when the client goes.
    _place: ClientPlace,
}

/// Where a transport is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages flow.
    Open,
    /// Our close frame is queued or written; messages are ignored.
    Closing {
        /// The peer's close frame has come: nothing is left to wait for but our own bytes.
        answered: bool,
        /// What the machine will be told.
        gone: ClientGone,
    },
}

/// Bytes that wait for the socket.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Vec<u8>,
    written: usize,
    /// The task that waits for the socket to take more.
    pub(super) flushing: Option<AbortOnDrop>,
}

/// Ends its task when dropped.
#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub(super) fn new(stream: ClientStream, place: ClientPlace) -> Self {
        Self {
            stream,
            reader: FrameReader::default(),
            pending: Pending::default(),
            rest: None,
            reading: None,
            phase: Phase::Open,
            paused: false,
            pong_queued: false,
            read_in: 0,
            deadline: None,
            _place: place,
        }
    }

    /// Writes at once: one system call on a plain stream. Bytes taken.
    pub(super) fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        would_block_is_zero(self.stream.write_now(bytes))
    }

    /// Bytes that wait for the socket.
    pub(super) fn rest_len(&self) -> usize {
        self.stream.unsent() + self.rest.as_ref().map_or(0, |rest| rest.bytes.len() - rest.written)
    }

    /// Whether everything queued so far is out.
    pub(super) fn is_drained(&self) -> bool {
        self.rest.is_none() && self.pending.is_empty()
    }

    /// Whether the peer's close frame has come.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Closing { answered: true, .. })
    }

    /// Keeps bytes for later. Whether somebody must begin to wait for the socket.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> bool {
        match &mut self.rest {
            Some(rest) => {
                rest.bytes.drain(..rest.written);
                rest.written = 0;
                rest.bytes.extend_from_slice(bytes);
                false
            }
            None => {
                self.rest = Some(Box::new(Rest { bytes: bytes.to_vec(), written: 0, flushing: None }));
                true
            }
        }
    }

    /// Writes what waits, once the reactor says that the socket takes some. Bytes written.
    pub(super) fn write_rest(&mut self) -> io::Result<usize> {
        let Some(rest) = &mut self.rest else { return Ok(0) };
        let written = would_block_is_zero(self.stream.try_write(&rest.bytes[rest.written..]))?;
        rest.written += written;
        if rest.written == rest.bytes.len() && self.stream.unsent() == 0 {
            self.rest = None;
        }
        Ok(written)
    }
}

fn would_block_is_zero(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
