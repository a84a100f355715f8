//! A binary packet and the attachments that follow it, put together.

use bytes::Bytes;

use super::{Namespace, SocketError, SocketPacket, decode};
use crate::limits::Limits;
use crate::shard::Packet;
use crate::wire::Payload;

/// One whole packet from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientPacket {
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
    /// An event. What the stock decoder accepts, not yet what may enter a log ([`crate::gate`]).
    Event {
        /// Where.
        namespace: Namespace,
        /// The id to answer under.
        ack: Option<u64>,
        /// Name and arguments.
        payload: Payload,
    },
    /// The client's answer to an event of ours.
    Ack {
        /// Where.
        namespace: Namespace,
        /// The id we sent, or [`super::ACK_ID_UNKNOWN`].
        id: u64,
        /// The arguments.
        payload: Payload,
    },
}

/// Reads the messages of one client. One pointer large while no attachments are missing, which is
/// nearly always; the caller keeps the deadline for those that are (`limits.attachment_timeout`).
#[derive(Debug, Default)]
pub struct Reassembly(Option<Box<Awaiting>>);

#[derive(Debug)]
struct Awaiting {
    /// An event or an ack whose attachments are not all here.
    packet: ClientPacket,
    /// How many it has when it is whole.
    attachments: usize,
    /// Text and attachments so far.
    bytes: usize,
}

impl Reassembly {
    /// Nothing is missing.
    #[must_use]
    pub fn new() -> Self {
        Self(None)
    }

    /// Whether attachments are missing: the caller's deadline runs.
    #[must_use]
    pub fn is_awaiting(&self) -> bool {
        self.0.is_some()
    }

    /// The messages taken so far of a packet that is not whole, for another reader to take.
    #[must_use]
    pub fn into_messages(self) -> Vec<Packet> {
        let Some(Awaiting { packet, attachments, .. }) = self.0.map(|awaiting| *awaiting) else {
            return Vec::new();
        };
        let (kind, namespace, id, payload) = match packet {
            ClientPacket::Event { namespace, ack, payload } => ('5', namespace, ack, payload),
            ClientPacket::Ack { namespace, id, payload } => ('6', namespace, Some(id), payload),
            // These have no attachments to wait for.
            ClientPacket::Connect { .. } | ClientPacket::Disconnect { .. } => return Vec::new(),
        };
        let id = id.filter(|id| *id != super::ACK_ID_UNKNOWN).map(|id| id.to_string());
        let head = format!("4{kind}{attachments}-{},{}", &*namespace, id.unwrap_or_default());
        let text = Packet::Text([head.as_bytes(), &payload.json].concat().into());
        std::iter::once(text).chain(payload.attachments.into_iter().map(Packet::Binary)).collect()
    }

    /// Takes a text message, Engine.IO's `4` taken off. `None`: attachments must follow.
    ///
    /// # Errors
    /// [`SocketError`]; close the transport with [`SocketError::close_code`].
    pub fn text(&mut self, text: &Bytes, limits: &Limits) -> Result<Option<ClientPacket>, SocketError> {
        if self.is_awaiting() {
            return Err(SocketError::AttachmentsMissing);
        }
        if text.len() > limits.message_bytes_max {
            return Err(SocketError::TooBig { max: limits.message_bytes_max });
        }
        let (packet, attachments) = match decode(text, limits)? {
            SocketPacket::Connect { namespace, auth } => (ClientPacket::Connect { namespace, auth }, 0),
            SocketPacket::Disconnect { namespace } => (ClientPacket::Disconnect { namespace }, 0),
            SocketPacket::Event { namespace, ack, json, attachments } => {
                (ClientPacket::Event { namespace, ack, payload: Payload::json(json) }, attachments)
            }
            SocketPacket::Ack { namespace, id, json, attachments } => {
                (ClientPacket::Ack { namespace, id, payload: Payload::json(json) }, attachments)
            }
        };
        if attachments == 0 {
            return Ok(Some(packet));
        }
        self.0 = Some(Box::new(Awaiting { packet, attachments, bytes: text.len() }));
        Ok(None)
    }

    /// Takes a binary message. `None`: more must follow.
    ///
    /// # Errors
    /// [`SocketError`]; close the transport with [`SocketError::close_code`].
    pub fn binary(&mut self, bytes: Bytes, limits: &Limits) -> Result<Option<ClientPacket>, SocketError> {
        let awaiting = self.0.as_mut().ok_or(SocketError::UnexpectedBinary)?;
        awaiting.bytes = awaiting.bytes.saturating_add(bytes.len());
        if awaiting.bytes > limits.message_bytes_max {
            return Err(SocketError::TooBig { max: limits.message_bytes_max });
        }
        let received = match &mut awaiting.packet {
            ClientPacket::Event { payload, .. } | ClientPacket::Ack { payload, .. } => {
                payload.attachments.push(bytes);
                payload.attachments.len()
            }
            ClientPacket::Connect { .. } | ClientPacket::Disconnect { .. } => awaiting.attachments,
        };
        if received < awaiting.attachments {
            return Ok(None);
        }
        Ok(self.0.take().map(|whole| whole.packet))
    }
}
