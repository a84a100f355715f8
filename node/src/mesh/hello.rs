//! The first words on a connection: who is there, whether to talk, and where each end stands.
//!
//! Belongs here: hello and resume exchange, refusals, opening of lanes.
//! Stays out: dialling and its retries (`link`), which handshakes are let in (`accept`).
//! Units: messages on the hello stream are a big-endian u16 length and postcard.
//! Invariants: the accepting side speaks first (a finished TLS handshake does not tell the dialler
//! that its certificate was taken); both ends learn why they do not talk.
//!
//! ```text
//! dialler                                  accepting side
//!   | <-------- Hello --------------------- |   (one bidirectional stream)
//!   | --------- Hello --------------------> |
//!   | <-------- Resume -------------------- |   once the peer is in the view
//!   | --------- Resume -------------------> |
//!   | <====== five lanes each way ========> |   (unidirectional, first byte = lane)
//! ```
//!
//! A refusal closes the connection with [`CloseReason::Refused`] and the encoded [`Refused`].

use bytes::Bytes;
use mesh_proto::id::{NodeId, NodeRef};
use mesh_proto::link::Resume;
use mesh_proto::wire::{self, Hello, Lane, ProtocolRange, Refused};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tls;
use crate::handles::ViewWatch;

/// The longest message on a hello stream. A hello is some 40 bytes and a name.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// Why a connection is closed, as its QUIC application code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The node stops.
    Stopping = 0,
    /// The reason bytes are an encoded [`Refused`].
    Refused = 1,
    /// Membership says that the peer, or this end, is another life by now.
    PeerDown = 2,
    /// A newer connection of the same link took over.
    Replaced = 3,
    /// The peer broke the protocol of links.
    Misbehaved = 4,
    /// The dialler is not in this end's view yet; it may try again.
    NotInView = 5,
}

impl CloseReason {
    /// Why the other side closed, if it did and the reason is one that ends a standing link.
    pub(crate) fn told(closed: &ConnectionError) -> Option<Self> {
        let ConnectionError::ApplicationClosed(close) = closed else { return None };
        let ends = [Self::Stopping, Self::PeerDown, Self::Replaced, Self::Misbehaved];
        ends.into_iter().find(|reason| close.error_code == VarInt::from_u32(*reason as u32))
    }

    /// Whether links end so in the ordinary course of nodes coming and going.
    pub(crate) fn is_orderly(self) -> bool {
        matches!(self, Self::Stopping | Self::PeerDown | Self::Replaced)
    }

    /// Closes `connection` for this reason.
    pub(crate) fn close(self, connection: &Connection) {
        connection.close(VarInt::from_u32(self as u32), format!("{self:?}").as_bytes());
    }
}

/// Why an exchange did not end in lanes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    /// The connection broke, or never stood: address, TLS, silence.
    #[error(transparent)]
    Connection(ConnectionError),
    /// The dialling itself failed on this side.
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    /// This side refuses.
    #[error("refused: {0}")]
    Refusing(Refused),
    /// The other side refuses.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refused),
    /// Bytes that are no message of this exchange.
    #[error("malformed hello: {0}")]
    Malformed(String),
    /// It took too long.
    #[error("no hello in time")]
    TimedOut,
}

impl HelloError {
    /// Whether trying again soon is pointless: an operator must act first.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Refusing(why) | Self::RefusedByPeer(why) => *why != Refused::NotWhomDialled,
            _ => false,
        }
    }
}

impl From<ConnectionError> for HelloError {
    fn from(error: ConnectionError) -> Self {
        if let ConnectionError::ApplicationClosed(close) = &error
            && close.error_code == VarInt::from_u32(CloseReason::Refused as u32)
            && let Ok(why) = wire::decode(&close.reason)
        {
            return Self::RefusedByPeer(why);
        }
        Self::Connection(error)
    }
}

/// What this node says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) name: String,
    pub(crate) cluster_id: u64,
    pub(crate) protocol: ProtocolRange,
    pub(crate) view: ViewWatch,
}

impl Local {
    fn hello(&self) -> Hello {
        let view = self.view.borrow();
        Hello {
            protocol: self.protocol,
            cluster_id: self.cluster_id,
            node: view.me,
            name: self.name.clone(),
            ring_digest: view.ring.digest(),
        }
    }

    /// Whether this node talks to whoever says `theirs` under the certificate of `connection`.
    fn check(&self, connection: &Connection, theirs: &Hello) -> Result<(), Refused> {
        if self.protocol.common(theirs.protocol).is_none() {
            return Err(Refused::Protocol { ours: self.protocol, theirs: theirs.protocol });
        }
        if self.cluster_id != theirs.cluster_id {
            return Err(Refused::Cluster { ours: self.cluster_id, theirs: theirs.cluster_id });
        }
        let named = NodeId::of_name(&theirs.name) == theirs.node.id;
        if !named || !tls::certificate_names(connection, &theirs.name) {
            return Err(Refused::Identity);
        }
        Ok(())
    }
}

/// A connection whose ends know each other, and the stream they talk on.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) connection: Connection,
    pub(crate) peer: Hello,
    send: SendStream,
    recv: RecvStream,
}

/// A connection with its lanes.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) connection: Connection,
    pub(crate) peer: Hello,
    pub(crate) resume: Resume,
    pub(crate) outgoing: [SendStream; Lane::COUNT],
    pub(crate) incoming: [RecvStream; Lane::COUNT],
}

/// The hello of the accepting side.
pub(crate) async fn greet_accepting(connection: Connection, local: &Local) -> Result<Greeted, HelloError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write(&connection, &mut send, &local.hello()).await?;
    let peer: Hello = read(&connection, &mut recv).await?;
    refuse_unless(local.check(&connection, &peer), &connection)?;
    Ok(Greeted { connection, peer, send, recv })
}

/// The hello of the dialling side, which wanted to reach `whom`.
pub(crate) async fn greet_dialling(
    connection: Connection,
    local: &Local,
    whom: NodeRef,
) -> Result<Greeted, HelloError> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let peer: Hello = read(&connection, &mut recv).await?;
    let dialled = if peer.node == whom { Ok(()) } else { Err(Refused::NotWhomDialled) };
    refuse_unless(local.check(&connection, &peer).and(dialled), &connection)?;
    write(&connection, &mut send, &local.hello()).await?;
    Ok(Greeted { connection, peer, send, recv })
}

/// Exchanges resume points and opens the lanes. The same on both sides.
pub(crate) async fn join(greeted: Greeted, ours: Resume) -> Result<Joined, HelloError> {
    let Greeted { connection, peer, mut send, mut recv } = greeted;
    write(&connection, &mut send, &ours).await?;
    let resume: Resume = read(&connection, &mut recv).await?;
    let mut outgoing = Vec::with_capacity(Lane::COUNT);
    for lane in 0..Lane::COUNT {
        let mut stream = connection.open_uni().await?;
        let control = lane == usize::from(Lane::CONTROL.0);
        // Queries and confirmations do not wait for data.
        let _ = stream.set_priority(i32::from(control));
        stream.write_all(&[lane as u8]).await.map_err(|_| lost(&connection))?;
        outgoing.push(stream);
    }
    let mut incoming: [Option<RecvStream>; Lane::COUNT] = [const { None }; Lane::COUNT];
    for _ in 0..Lane::COUNT {
        let mut stream = connection.accept_uni().await?;
        let mut lane = [0];
        stream.read_exact(&mut lane).await.map_err(|_| lost(&connection))?;
        match incoming.get_mut(usize::from(lane[0])) {
            Some(slot @ None) => *slot = Some(stream),
            _ => return Err(HelloError::Malformed(format!("lane {}", lane[0]))),
        }
    }
    let incoming = incoming.map(|lane| lane.expect("as many distinct lanes as there are"));
    let outgoing = outgoing.try_into().expect("as many lanes as there are");
    Ok(Joined { connection, peer, resume, outgoing, incoming })
}

fn refuse_unless(verdict: Result<(), Refused>, connection: &Connection) -> Result<(), HelloError> {
    verdict.map_err(|why| {
        connection.close(VarInt::from_u32(CloseReason::Refused as u32), &wire::encode(&why));
        HelloError::Refusing(why)
    })
}

async fn write<T: Serialize>(
    connection: &Connection,
    stream: &mut SendStream,
    message: &T,
) -> Result<(), HelloError> {
    let body = wire::encode(message);
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut chunks = [Bytes::copy_from_slice(&len.to_be_bytes()), body];
    stream.write_all_chunks(&mut chunks).await.map_err(|_| lost(connection))
}

async fn read<T: DeserializeOwned>(
    connection: &Connection,
    stream: &mut RecvStream,
) -> Result<T, HelloError> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).await.map_err(|_| lost(connection))?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > MESSAGE_BYTES_MAX {
        return Err(HelloError::Malformed(format!("{len} bytes")));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.map_err(|_| lost(connection))?;
    wire::decode(&body).map_err(|error| HelloError::Malformed(error.to_string()))
}

/// Why a stream failed: as a rule because the connection did, with a reason.
fn lost(connection: &Connection) -> HelloError {
    connection.close_reason().map_or(HelloError::Malformed("stream ended early".into()), HelloError::from)
}
