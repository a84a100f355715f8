//! Byte streams through the mesh: from the node a client is at to the server beside another node.
//!
//! Belongs here: connections of their own between nodes, a stream for each tunnel, the first words on it.
//! Stays out: which node (`proxy`), HTTP.
//! Units: a tunnel that is not read holds at most [`STREAM_WINDOW_BYTES`] at the node that opened it, and what
//! a lane may hold at the other; at most [`TUNNELS_PER_PEER_MAX`] from each peer.
//! What filling up means: the sender waits (QUIC's flow control), and so, through TCP, whoever writes; a peer
//! that has too many tunnels open waits for one to end, within its connect timeout.
//! Invariants: links never share a connection with tunnels: their windows are their own. A tunnel that breaks
//! is reset: it never ends as if it were whole. Both ends show certificates of the cluster's authority.
//! Source: RFC 9000 §2–4 (streams and their windows).
//!
//! ```text
//! edge                                     owner
//!   | ----- TunnelHello -----------------> |   (a bidirectional stream)
//!   | <---- Opened ------------------------ |   once its server has taken a connection
//!   | <==== bytes both ways =============> |
//! ```

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use mesh_proto::id::NodeRef;
use mesh_proto::view::View;
use mesh_proto::wire;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use super::endpoint;
use super::tls::{self, SERVER_NAME};
use crate::handles::ViewWatch;

/// Raised when the first words change.
const VERSION: u16 = 1;

/// Bytes of one tunnel that its peer may send ahead of our reading, at the node that opened it.
pub(super) const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// Bytes of all tunnels of a peer together.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Tunnels that one peer may have open.
const TUNNELS_PER_PEER_MAX: u32 = 16_384;

/// The longest first word.
const HELLO_BYTES_MAX: usize = 1_024;

/// A server beside this node must take a connection within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Between dialling a node and its connection.
const DIAL_WITHIN: Duration = Duration::from_secs(3);

/// What a tunnel is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TunnelHello {
    version: u16,
    cluster_id: u64,
    product: String,
}

/// Whether it is open. A wire type: append, never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Opened {
    /// Bytes follow.
    Yes,
    /// Another version, another cluster, or no such product here.
    Refused,
    /// The server beside the node takes no connection.
    NoServer,
}

/// Takes in connections with tunnels.
pub(super) type TunnelSink = Arc<OnceLock<Box<dyn Fn(Connection) + Send + Sync>>>;

/// What the mesh thread has that tunnels are made of.
#[derive(Clone)]
pub(crate) struct Tunnels {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    cluster_id: u64,
    view: ViewWatch,
    sink: TunnelSink,
    /// One connection to each peer that has been asked for a tunnel.
    open: Arc<Mutex<HashMap<NodeRef, Connection>>>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

impl Tunnels {
    pub(super) fn new(
        endpoint: quinn::Endpoint,
        client: quinn::ClientConfig,
        cluster_id: u64,
        view: ViewWatch,
    ) -> Self {
        Self { endpoint, client, cluster_id, view, sink: TunnelSink::default(), open: Arc::default() }
    }

    /// Where connections of peers go.
    pub(super) fn sink(&self) -> TunnelSink {
        self.sink.clone()
    }

    /// From now on peers' tunnels go to the server that `port_of` names for a product, at this host's loopback
    /// address. `spawn` runs each connection's and each tunnel's task. To be called once.
    pub(crate) fn serve(
        &self,
        port_of: impl Fn(&str) -> Option<u16> + Send + Sync + 'static,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) {
        let (cluster_id, port_of, spawn) = (self.cluster_id, Arc::new(port_of), Arc::new(spawn));
        let serve = move |connection: Connection| {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(TUNNELS_PER_PEER_MAX));
            connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
            let (port_of, each) = (port_of.clone(), spawn.clone());
            spawn(Box::pin(async move {
                while let Ok((send, recv)) = connection.accept_bi().await {
                    let port_of = port_of.clone();
                    each(Box::pin(async move {
                        // A peer that goes takes its tunnels along.
                        let _ = served(Tunnel::new(send, recv), cluster_id, &*port_of).await;
                    }));
                }
            }));
        };
        let _ = self.sink.set(Box::new(serve));
    }

    /// A tunnel to the server of `product` beside the node called `name`, another than this one.
    ///
    /// # Errors
    /// When there is no such node, or its server takes no connection.
    pub(crate) async fn open(&self, name: &str, product: &str) -> io::Result<Tunnel> {
        let (node, addr) = {
            let view = self.view.borrow();
            let named = view.nodes.iter().find(|node| node.record.as_ref().is_some_and(|r| r.name == name));
            let node = named.ok_or(io::ErrorKind::NotFound)?;
            (node.node, node.mesh_addr)
        };
        let connection = self.connection(node, addr, name).await?;
        let (send, recv) = connection.open_bi().await?;
        let mut tunnel = Tunnel::new(send, recv);
        let hello =
            TunnelHello { version: VERSION, cluster_id: self.cluster_id, product: product.to_owned() };
        tunnel.tell(&hello).await?;
        match timeout(CONNECT_WITHIN, tunnel.hear()).await?? {
            Opened::Yes => Ok(tunnel),
            Opened::Refused => Err(io::ErrorKind::PermissionDenied.into()),
            Opened::NoServer => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Closes connections to nodes that are not up any more: nothing else would tell before the idle timeout.
    pub(crate) fn keep_to(&self, view: &View) {
        self.lock().retain(|node, connection| {
            let up = view.is_up(*node);
            if !up {
                connection.close(VarInt::from_u32(0), b"down");
            }
            up
        });
    }

    async fn connection(&self, node: NodeRef, addr: SocketAddr, name: &str) -> io::Result<Connection> {
        let kept = self.lock().get(&node).filter(|kept| kept.close_reason().is_none()).cloned();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let connecting = self.endpoint.connect_with(self.client.clone(), addr, SERVER_NAME);
        let connecting = connecting.map_err(io::Error::other)?;
        let connection = timeout(DIAL_WITHIN, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if !tls::certificate_names(&connection, name) {
            connection.close(VarInt::from_u32(1), b"not whom I dialled");
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut open = self.lock();
        open.retain(|_, kept| kept.close_reason().is_none());
        // Of two dialled at once one is enough; the other goes on with the tunnels it has.
        Ok(open.entry(node).or_insert(connection).clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeRef, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of the connections that tunnels are opened on.
pub(super) fn client(tls: &tls::Tls, config: &endpoint::EndpointConfig) -> quinn::ClientConfig {
    let mut transport = endpoint::transport(config);
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    let mut client = quinn::ClientConfig::new(tls.tunnel_client.clone());
    client.transport_config(Arc::new(transport));
    client
}

/// Whether a peer wants tunnels on this connection, not a link.
pub(super) fn is_wanted(connection: &Connection) -> bool {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(tls::TUNNEL_ALPN))
}

/// One tunnel of a peer, to its end.
async fn served(
    mut tunnel: Tunnel,
    cluster_id: u64,
    port_of: &(dyn Fn(&str) -> Option<u16> + Send + Sync),
) -> io::Result<()> {
    let hello: TunnelHello = timeout(CONNECT_WITHIN, tunnel.hear()).await??;
    let port = port_of(&hello.product).filter(|_| hello.version == VERSION && hello.cluster_id == cluster_id);
    let Some(port) = port else { return tunnel.refuse(Opened::Refused).await };
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let Ok(Ok(server)) = timeout(CONNECT_WITHIN, connecting).await else {
        return tunnel.refuse(Opened::NoServer).await;
    };
    server.set_nodelay(true)?;
    tunnel.tell(&Opened::Yes).await?;
    crate::proxy::piped(tunnel, server).await
}

/// A byte stream through the mesh.
#[derive(Debug)]
pub(crate) struct Tunnel {
    send: SendStream,
    recv: RecvStream,
    /// The other end has been told that nothing follows.
    finished: bool,
}

impl Tunnel {
    fn new(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv, finished: false }
    }

    async fn tell<T: Serialize>(&mut self, word: &T) -> io::Result<()> {
        let body = wire::encode(word);
        let len = u16::try_from(body.len()).map_err(io::Error::other)?;
        self.send.write_all(&[&len.to_be_bytes()[..], &body].concat()).await.map_err(io::Error::from)
    }

    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut len = [0; 2];
        self.recv.read_exact(&mut len).await.map_err(io::Error::other)?;
        let len = usize::from(u16::from_be_bytes(len));
        if len > HELLO_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; len];
        self.recv.read_exact(&mut body).await.map_err(io::Error::other)?;
        wire::decode(&body).map_err(io::Error::other)
    }

    async fn refuse(mut self, why: Opened) -> io::Result<()> {
        self.tell(&why).await?;
        self.finished = true;
        self.send.finish().map_err(io::Error::other)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            // Else the other end would take what it has got for all there is.
            let _ = self.send.reset(VarInt::from_u32(1));
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Poll::Ready(self.send.finish().map_err(io::Error::other))
    }
}
