//! The node's one UDP port: QUIC for links, and gossip datagrams taken out before QUIC sees them.
//!
//! Belongs here: the socket and its buffers, telling the two kinds of datagrams apart, quinn's settings.
//! Stays out: certificates (`tls`), what travels on connections (`hello`, `link`), gossip (`gossip`).
//! Units: bytes; durations in the names.
//! Invariants: failure detection never waits for QUIC: gossip datagrams are sent on their own handle
//! of the socket and leave through a bounded channel that drops when full.
//! Source: RFC 9000; RFC 9443 (telling protocols apart by the first byte).

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_proto::keys::{ClusterKey, Purpose};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime as _, TokioRuntime, UdpPoller, VarInt};
use quinn_proto::HashedConnectionIdGenerator;

use super::congestion::FloorConfig;
use super::tls::Tls;

/// What the socket asks the kernel to hold in each direction. The usual 208 KiB overflow at speed,
/// which QUIC takes for congestion.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Bytes of one connection the peer need not have acknowledged yet.
const SEND_WINDOW_BYTES: u64 = 2 << 20;
/// Bytes of one lane we let the peer send ahead of our reading.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Bytes of one connection, all lanes together.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A connection on which nothing arrives for so long is broken; the link outlives it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// So an idle connection says something this often.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Streams a peer may have open: its lanes, and as many again while a link is replaced.
const UNI_STREAMS_MAX: u32 = 16;

/// Handshakes waiting to be looked at; more are refused.
const INCOMING_MAX: usize = 256;

/// The largest MTU that fits ten segments of one segmented send into a datagram's 64 KiB.
pub const MTU_MAX: u16 = 6_500;

/// Where gossip datagrams go. Called on the thread that reads the socket; must not block.
/// Returns whether it was taken.
pub(crate) type GossipSink = Box<dyn Fn(SocketAddr, Vec<u8>) -> bool + Send + Sync>;

/// How the port behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The address to bind; port 0 picks one.
    pub listen: SocketAddr,
    /// The largest datagram to find out by probing, at most [`MTU_MAX`]. 1452 fits every common path.
    pub mtu_max: u16,
    /// Bytes that may always be in flight, whatever loss says. RUST-STACK §C: under random loss the
    /// tail of latency is a starved window. Lower it for thin links between sites.
    pub window_floor_bytes: u64,
}

impl EndpointConfig {
    /// The defaults, bound to `listen`: large datagrams on loopback (half the CPU), elsewhere those
    /// of Ethernet.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        let mtu_max = if listen.ip().is_loopback() { MTU_MAX } else { 1_452 };
        Self { listen, mtu_max, window_floor_bytes: 64 << 10 }
    }
}

/// Binds the port.
///
/// # Errors
/// What the operating system says, the address being in use above all.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(listen);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel caps both at its own limits (net.core.rmem_max, wmem_max) without an error.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    let held = socket.recv_buffer_size()?;
    if held < SOCKET_BUFFER_BYTES {
        tracing::info!(held, wanted = SOCKET_BUFFER_BYTES, "kernel limits the mesh socket's buffers");
    }
    Ok(socket.into())
}

/// Starts QUIC on `socket`. Must be called on the runtime that is to drive it.
pub(crate) fn quic(
    socket: UdpSocket,
    config: &EndpointConfig,
    key: &ClusterKey,
    tls: &Tls,
    gossip: GossipSink,
) -> io::Result<(quinn::Endpoint, Arc<DatagramCounts>)> {
    let local = socket.local_addr()?;
    let counts = Arc::<DatagramCounts>::default();
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    let shared = Arc::new(SharedSocket { inner, gossip, counts: counts.clone() });
    let transport = Arc::new(transport(config));
    let mut server = quinn::ServerConfig::with_crypto(tls.server.clone());
    server.transport_config(transport.clone()).max_incoming(INCOMING_MAX).migration(false);
    let mut client = quinn::ClientConfig::new(tls.client.clone());
    client.transport_config(transport);
    let settings = settings(config, key, local);
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(settings, Some(server), shared, Arc::new(TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok((endpoint, counts))
}

/// Keys for resets and connection ids come from the cluster key and the address: a node restarted
/// on its port answers packets for its former life with resets that the peer believes (0.3 ms
/// instead of the idle timeout).
fn settings(config: &EndpointConfig, key: &ClusterKey, local: SocketAddr) -> quinn::EndpointConfig {
    let context = local.to_string();
    let reset = key.derive(Purpose::StatelessReset, context.as_bytes());
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset);
    let ids = key.derive(Purpose::ConnectionIds, context.as_bytes());
    let mut id_key = [0; 8];
    id_key.copy_from_slice(&ids[..8]);
    let id_key = u64::from_be_bytes(id_key);
    let mut settings = quinn::EndpointConfig::new(Arc::new(reset));
    settings.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    // The fixed bit tells QUIC from gossip: peers may not clear it.
    settings.grease_quic_bit(false);
    settings.min_reset_interval(Duration::from_millis(1));
    let payload = config.mtu_max.clamp(1_472, MTU_MAX);
    settings.max_udp_payload_size(payload).expect("within QUIC's range of 1200 to 65527");
    settings
}

pub(super) fn transport(config: &EndpointConfig) -> quinn::TransportConfig {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(config.mtu_max.min(MTU_MAX));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("5 s is a QUIC duration")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(discovery))
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(FloorConfig::new(config.window_floor_bytes)));
    transport
}

/// Gossip datagrams that came and that were dropped because the gossip thread was behind.
#[derive(Debug, Default)]
pub(crate) struct DatagramCounts {
    pub(crate) received: AtomicU64,
    pub(crate) dropped: AtomicU64,
    /// Times the mesh thread looked into the socket.
    pub(crate) looks: AtomicU64,
}

/// quinn's socket with the gossip datagrams taken out.
struct SharedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    gossip: GossipSink,
    counts: Arc<DatagramCounts>,
}

impl fmt::Debug for SharedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedSocket").field(&self.inner).finish()
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        self.counts.looks.fetch_add(1, Ordering::Relaxed);
        let count = ready!(polled)?;
        for (buffer, meta) in bufs.iter_mut().zip(&mut meta[..count]) {
            let (addr, stride) = (meta.addr, meta.stride);
            meta.len = take_gossip(&mut buffer[..meta.len], stride, |datagram| {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                if !(self.gossip)(addr, datagram.to_vec()) {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Takes the gossip datagrams out of a buffer in which the kernel may have put several, each
/// `stride` long but the last; moves the others together and returns their length.
fn take_gossip(buffer: &mut [u8], stride: usize, mut take: impl FnMut(&[u8])) -> usize {
    let (mut from, mut kept) = (0, 0);
    while from < buffer.len() {
        let to = (from + stride.max(1)).min(buffer.len());
        if mesh_proto::membership::is_gossip(buffer[from]) {
            take(&buffer[from..to]);
        } else {
            if kept < from {
                buffer.copy_within(from..to, kept);
            }
            kept += to - from;
        }
        from = to;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gossip_is_taken_out_of_a_coalesced_buffer() {
        let mut buffer = *b"\x40aa\x01bb\x41cc\x01dd\x42e";
        let mut taken = Vec::new();
        let kept = take_gossip(&mut buffer, 3, |datagram| taken.push(datagram.to_vec()));
        assert_eq!(&buffer[..kept], b"\x40aa\x41cc\x42e");
        assert_eq!(taken, [b"\x01bb", b"\x01dd"]);
        assert_eq!(take_gossip(&mut [1, 2], 2, |_| ()), 0);
        assert_eq!(take_gossip(&mut [], 0, |_| ()), 0);
    }
}
