//! Everything an operator can set, with defaults and reasons.
//!
//! Belongs here: the settings, section by section. Each field's documentation is also its text in
//! `docs/config.md`: meaning, unit, default and why, relation to others, cost.
//! Stays out: reading (`sources`), rules between settings (`check`), printing (`reference`), secrets
//! in files (`secrets`); what the settings do.
//! Sources, weaker first: default < file (`--config`) < environment (`MESHD_MESH__LISTEN` is
//! `mesh.listen`) < flag. Every value remembers which one set it.
//! Invariants: a [`Config`] that [`Config::load`] returns has passed every check.

mod check;
pub mod live;
mod origin;
pub mod product;
pub mod reference;
pub mod secrets;
mod setting;
mod sources;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_proto::limits::Limits;
use mesh_proto::membership::Timing;

pub use origin::{ConfigError, ConfigErrors, Origin, Origins};
pub use product::ProductConfig;
pub use setting::{Kind, SecretText, Value};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use sources::errors_in;
pub use sources::{Flag, Sources};
pub use table::{Key, Section};

use table::section;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Ports of a node started without settings: clients, HTTP API, admin, mesh.
pub const PORTS: [u16; 4] = [4080, 4081, 4082, 4083];

/// All settings of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[drain]`
    pub drain: DrainConfig,
    /// `[mesh]`
    pub mesh: MeshConfig,
    /// `[client]`
    pub client: ClientConfig,
    /// `[api]`
    pub api: ApiConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[limits]`
    pub limits: Limits,
    /// `[products.NAME]`; without any, one named `rooms`.
    pub products: Products,
    /// Where each value comes from.
    pub origins: Origins,
}

/// The products by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Products(pub BTreeMap<String, ProductConfig>);

impl Default for Products {
    fn default() -> Self {
        Self(BTreeMap::from([(DEFAULT_PRODUCT.to_owned(), ProductConfig::default())]))
    }
}

/// The product of a node that is told of none.
pub const DEFAULT_PRODUCT: &str = "rooms";

section! {
    /// This node.
    pub struct NodeConfig {
        /// The node's name: its lasting identity on the ring, and how people refer to it. Unique in
        /// the cluster: a second holder exits with code 3. Default `""`: the host's name and the
        /// mesh port, so that several nodes of one host differ.
        name: String = String::new(), Kind::Text;
        /// Failure domain, as a number: owner and backup are chosen from different zones where
        /// there are several. Default 0: one zone.
        zone: u16 = 0, Kind::Count(0..=65_535);
        /// Share of users and rooms, relative to other nodes. Default 1. A node of weight 2 owns
        /// twice as much. Changing it moves keys.
        weight: u16 = 1, Kind::Count(1..=64);
        /// Threads that hold clients, sessions and rooms. Default 0: one per core. More than the
        /// cores cost memory and gain nothing.
        shards: u16 = 0, Kind::Count(0..=64);
    }
}

section! {
    /// The end of a node, by `meshctl drain` or SIGTERM: announce, hand-over, closing, leaving.
    /// `drain.announce` and `drain.deadline` together must fit into the supervisor's own limit
    /// (systemd 90s, Kubernetes 30s).
    pub struct DrainConfig {
        /// How long a draining node stays as it is, only not ready and refusing new clients: the time
        /// balancers need to notice. Default 5s. Left out when the node has no client: then nobody
        /// would be sent elsewhere too early. Longer than the balancer's period of health checks.
        announce: Duration = Duration::from_secs(5), Kind::Time(Duration::ZERO..=Duration::from_secs(600));
        /// How long everything after that may take: half of it at most for handing over users and
        /// rooms, the rest for closing clients (500 a second, faster where time is short) and leaving.
        /// Default 25s: clients come back at a bearable pace up to 10,000 a node; raise it with more.
        deadline: Duration = Duration::from_secs(25), Kind::Time(Duration::from_secs(1)..=Duration::from_secs(3600));
    }
}

section! {
    /// The mesh: how nodes find and trust each other. All nodes of a cluster should agree on
    /// everything but the addresses.
    pub struct MeshConfig {
        /// UDP address of gossip and links. Default 127.0.0.1:4083: this host only. Anything else
        /// needs a key.
        listen: SocketAddr = SocketAddr::new(LOOPBACK, PORTS[3]), Kind::Address;
        /// The address by which other nodes reach this one. Default `""`: the address bound. Needed
        /// where `mesh.listen` is a wildcard, or behind address translation.
        advertise: Option<SocketAddr> = None, Kind::AddressOrNone;
        /// Nodes to join through, `HOST:PORT` of their mesh addresses; names are looked up again
        /// and again. Default none: this node begins a cluster. Give all nodes the same two or
        /// three; a node that reaches none of them owns nothing and keeps trying.
        seeds: Vec<String> = Vec::new(), Kind::Peers;
        /// The cluster's name, checked when nodes meet: keeps a test cluster apart from the real
        /// one even with the same key.
        cluster: String = "meshd".into(), Kind::Name;
        /// File with the cluster key: 32 random bytes as 64 hex digits, made by `meshctl keygen`, readable
        /// by its owner only. Default `""`: on loopback a development key of this user is made and
        /// used; on any other address the node refuses to start.
        key_file: Option<PathBuf> = None, Kind::Path;
        /// The cluster key itself, from the environment (`MESHD_MESH__KEY`) only: a file or a
        /// command line would show it. Default `""`. Excludes `mesh.key_file`.
        key: SecretText = SecretText::default(), Kind::Secret;
        /// Timing of failure detection: `lan` for round trips of a few milliseconds, `wan` for up
        /// to 100 ms. Sets the settings below that nothing else sets. Default `lan`: a death is
        /// noticed in 0.8 s (median).
        timing: String = "lan".into(), Kind::Choice(&["lan", "wan"]);
        /// A random peer is probed this often. Shorter: deaths are noticed sooner, more datagrams.
        /// Default 90ms (`wan`: 300ms). More than twice `mesh.probe_rtt`.
        probe_period: Duration = Duration::from_millis(90), Kind::Time(Duration::from_millis(20)..=Duration::from_secs(10));
        /// No answer within this time: other nodes are asked to try. Default 35ms (`wan`: 120ms):
        /// above the round trip's p99 of one site.
        probe_rtt: Duration = Duration::from_millis(35), Kind::Time(Duration::from_millis(1)..=Duration::from_secs(5));
        /// How many others are asked to try. Default 5. More: fewer false suspicions when datagrams
        /// are lost, more datagrams then.
        helpers: usize = 5, Kind::Count(1..=32);
        /// A suspect that has not spoken up for this long is down. Default 550ms (`wan`: 1200ms):
        /// no false alarm at 20 % loss, and a death noticed by all within 1.2 s. Longer than any
        /// pause of a healthy process; the larger part of the time to notice a death. At least
        /// twice `mesh.probe_period`.
        suspect_for: Duration = Duration::from_millis(550), Kind::Time(Duration::from_millis(100)..=Duration::from_secs(60));
        /// While there is news it is sent this often. Default 50ms (`wan`: 100ms).
        gossip_period: Duration = Duration::from_millis(50), Kind::Time(Duration::from_millis(10)..=Duration::from_secs(5));
        /// Points on the ring per unit of weight. Default 256: the busiest of ten nodes has under
        /// 10 % more than its share. More: evener, slower to rebuild. **All nodes must have the
        /// same**, else they disagree about owners.
        vnodes: u32 = 256, Kind::Count(16..=4_096);
    }
}

section! {
    /// The port clients connect to.
    pub struct ClientConfig {
        /// TCP address for clients: Socket.IO at `/socket.io/`, plain WebSocket at `/ws`. Default
        /// 127.0.0.1:4080: this host only. Anything else needs products with an identity other
        /// than `query`.
        listen: SocketAddr = SocketAddr::new(LOOPBACK, PORTS[0]), Kind::Address;
        /// The same by TLS: a second TCP address, for `https://` and `wss://`. Default `""`: none; a balancer
        /// in front ends TLS. Needs `client.tls_certificates`.
        tls_listen: Option<SocketAddr> = None, Kind::AddressOrNone;
        /// Certificates for it, PEM: `FILE` with the certificate, its issuers and its key, or `CHAIN:KEY`;
        /// files of keys readable by their owner only. A client is shown the first one for the name it asks
        /// for (SNI), else the first. Default none.
        tls_certificates: Vec<String> = Vec::new(), Kind::List;
        /// What other nodes and people are told of this port, `HOST:PORT`. Default `""`: the
        /// address bound. For display only.
        advertise: String = String::new(), Kind::Text;
        /// Pages that may connect, as `https://app.example.com`; `*` is any. Default `*`: nothing
        /// here authenticates by cookie, so that another site gains nothing by connecting. List
        /// pages that poll `withCredentials`: browsers keep answers meant for any page from these.
        /// Requests without `Origin` (not from browsers) always pass.
        allowed_origins: Vec<String> = vec!["*".into()], Kind::List;
        /// Balancers in front, as addresses or networks (`10.0.0.0/8`, `2001:db8::/32`): for limits and
        /// logs the client is the rightmost hop of `X-Forwarded-For` that is not one of them; more than 10
        /// hops are refused. Default `""`: what others say of addresses is ignored and counted
        /// (`meshd_client_forwarded_ignored_total`). Name only what cannot be reached past the balancer:
        /// whoever is named here can be anyone.
        trusted_proxies: Vec<String> = Vec::new(), Kind::List;
        /// Clients of this node. Default 50,000. One more is refused with 503. Each costs about
        /// 8 KiB and a file descriptor: 64 more than this must be open to the process.
        connections_max: usize = 50_000, Kind::Count(1..=10_000_000);
        /// Clients of one address (IPv6: one /64). Default 1,000. One more is refused with 429.
        /// Loopback and private addresses are exempt: behind them stands a balancer.
        connections_per_ip_max: u32 = 1_000, Kind::Count(1..=10_000_000);
        /// Handshakes per second of this node. Default 2,000: what one core can do beside its
        /// work. Above it 503 with `Retry-After`.
        handshakes_per_second: u32 = 2_000, Kind::Count(1..=1_000_000);
        /// Handshakes per second of one address. Default 100. Same exemption.
        handshakes_per_ip_per_second: u32 = 100, Kind::Count(1..=1_000_000);
        /// The product of requests that neither name one (`?product=`) nor come by a host or path of one.
        /// Default `""`: `rooms`, or the first by name where there is no such.
        default_product: String = String::new(), Kind::Text;
        /// What becomes of a client that names a product there is not. Default `refuse`: it is told
        /// `product_unknown` (404 over HTTP). `default`: it is served by the default one.
        unknown_product: String = "refuse".into(), Kind::Choice(&["refuse", "default"]);
        /// A request head must be whole within this time. Default 5s: half-open connections cost a
        /// file descriptor each.
        head_timeout: Duration = Duration::from_secs(5), Kind::Time(Duration::from_millis(100)..=Duration::from_secs(60));
    }
}

section! {
    /// The port backends publish by.
    pub struct ApiConfig {
        /// TCP address of the HTTP API. Default 127.0.0.1:4081: this host only. Anything else needs
        /// a key.
        listen: SocketAddr = SocketAddr::new(LOOPBACK, PORTS[1]), Kind::Address;
        /// File with the key that callers send as `Authorization: Bearer KEY`; at least 32
        /// characters, readable by its owner only. Default `""`: no key is asked for, on loopback
        /// only.
        key_file: Option<PathBuf> = None, Kind::Path;
    }
}

section! {
    /// The port of `meshctl`, health checks and metrics.
    pub struct AdminConfig {
        /// TCP address. Default 127.0.0.1:4082: this host only. Anything else needs a token.
        listen: SocketAddr = SocketAddr::new(LOOPBACK, PORTS[2]), Kind::Address;
        /// File with the token that `meshctl` sends; at least 32 characters, readable by its owner
        /// only. Default `""`: none is asked for, on loopback only. `/healthz`, `/readyz` and
        /// `/metrics` never ask for it.
        token_file: Option<PathBuf> = None, Kind::Path;
    }
}

section! {
    /// What is logged, to standard error.
    pub struct LogConfig {
        /// `text` for people, `json` for machines: one object a line. Default `text`.
        format: String = "text".into(), Kind::Choice(&["text", "json"]);
        /// Levels, as `info`, or `info,meshd::mesh=debug`. Default `info`: rare events of the node's
        /// life. `debug` speaks of each session, `trace` of each packet. Payloads and secrets are
        /// never logged.
        filter: String = "info".into(), Kind::Text;
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

section! {
    /// Bounds of everything that can grow. What is refused or dropped is counted in the metrics.
    for Limits {
        /// One message of a client, attachments included; Engine.IO's `maxPayload`. Default 1MB,
        /// as the stock server. A larger one closes the client with 1009.
        message_bytes_max, Kind::Size(KIB..=64 * MIB);
        /// Attachments of one binary packet. Default 10, as the stock parser. More close the client.
        attachments_max, Kind::Count(0..=1_000);
        /// Nesting of one JSON message. Default 128: enough for any sane payload, safe for any
        /// parser behind us.
        json_depth_max, Kind::Count(8..=128);
        /// The auth payload of a CONNECT. Default 8KiB: room for a token with many claims.
        auth_bytes_max, Kind::Size(256..=MIB);
        /// A room's name. Default 256B.
        room_name_bytes_max, Kind::Size(1..=4 * KIB);
        /// An event's name. Default 128B.
        event_name_bytes_max, Kind::Size(1..=4 * KIB);
        /// A uid. Default 128B.
        uid_bytes_max, Kind::Size(1..=KIB);
        /// Namespaces of one client. Default 16.
        namespaces_max, Kind::Count(1..=1_000);
        /// Rooms of one session. Default 1,000. One more is refused with `room_limit`.
        rooms_per_session_max, Kind::Count(1..=100_000);
        /// Rooms owned by one node. Default 1,000,000; an idle one costs about 1 KiB. One more is
        /// refused as overload.
        rooms_per_node_max, Kind::Count(1..=100_000_000);
        /// Users and sessions of proxied products that one node keeps bound to an upstream. Default
        /// 1,000,000; one costs about 300 B. At one more, the one that would end first is forgotten:
        /// who has something open there has it made again, others go where the hash says.
        bindings_per_node_max, Kind::Count(1..=100_000_000);
        /// Sessions of one user of a product. Default 16: tabs and devices. One more closes the
        /// oldest.
        sessions_per_uid_max, Kind::Count(1..=100_000);
        /// Packets of one session that its edge keeps unconfirmed. Default 256; then it stops
        /// reading that client.
        inbound_packets_max, Kind::Count(1..=65_536);
        /// Bytes of the same. Default 1MiB; at least one message (`limits.message_bytes_max`).
        inbound_bytes_max, Kind::Size(KIB..=GIB);
        /// What may wait in one client's queue. Default 64KiB; beyond it the client is behind and
        /// is served by its place in the room's log when it drains. Raise it and every slow client
        /// costs that much memory.
        client_queue_bytes_max, Kind::Size(KIB..=64 * MIB);
        /// A client that takes nothing of what waits for it for this long is closed. Default 45s,
        /// `limits.ping_interval` and `limits.ping_timeout` together: when a lost host is noticed
        /// too. Meanwhile it costs its queue; what it misses is in the room's log, so more than
        /// `limits.room_log_age_max` is of no use.
        client_stall_max, Kind::Time(SECOND..=HOUR);
        /// Events per second of one session. Default 200; beyond it the client is read more slowly.
        events_per_second, Kind::Count(1..=1_000_000);
        /// Events above that rate in one go. Default 1,000; at least `limits.events_per_second`.
        events_burst, Kind::Count(1..=10_000_000);
        /// Tail of one room at a node with members: what its slow clients catch up from without
        /// asking the room's owner. Default 256KiB. As much again may be held of what was fetched
        /// from there.
        tail_bytes_max, Kind::Size(KIB..=GIB);
        /// Tails of all rooms of one shard. Default 64MiB; at least `limits.tail_bytes_max`.
        tails_bytes_max, Kind::Size(KIB..=64 * GIB);
        /// Log of one room at its owner, entries. Default 1,000: who comes back within that many
        /// misses nothing.
        room_log_entries_max, Kind::Count(1..=1_000_000);
        /// Log of one room, bytes. Default 1MiB; at least one message.
        room_log_bytes_max, Kind::Size(KIB..=GIB);
        /// Log of one room, age. Default 2m, the time a client may be away.
        room_log_age_max, Kind::Time(SECOND..=HOUR);
        /// Logs of all rooms owned by one shard. Default 1GiB; the oldest entries of all rooms go
        /// first. At least `limits.room_log_bytes_max`.
        room_logs_bytes_max, Kind::Size(MIB..=1024 * GIB);
        /// A session's own log, entries: what is for this client alone and not yet taken. Default
        /// 256.
        own_log_entries_max, Kind::Count(1..=65_536);
        /// A session's own log, bytes. Default 64KiB.
        own_log_bytes_max, Kind::Size(KIB..=64 * MIB);
        /// How long a session is kept for a client whose transport is gone. Default 2m, as the stock
        /// server and as the logs of rooms reach back. Longer holds memory for clients that will not
        /// come back.
        recovery_window, Kind::Time(SECOND..=HOUR);
        /// How long a publish's id or an idempotency key is remembered. Default 2m.
        dedupe_window, Kind::Time(SECOND..=HOUR);
        /// Ids remembered per room. Default 10,000; at a higher rate the window is shorter.
        dedupe_entries_max, Kind::Count(1..=10_000_000);
        /// The same of all rooms that a node owns or backs up. Default 2,000,000, about 300 MB when it
        /// is full; the oldest of all rooms go first: what is repeated of them is taken for new.
        dedupe_entries_per_node_max, Kind::Count(1..=100_000_000);
        /// Engine.IO's `pingInterval`. Default 25s, as the stock server. With `limits.ping_timeout`
        /// the time in which a silent client is given up, on both sides.
        ping_interval, Kind::Time(SECOND / 10..=HOUR);
        /// Engine.IO's `pingTimeout`. Default 20s, as the stock server; less than
        /// `limits.ping_interval`.
        ping_timeout, Kind::Time(SECOND / 10..=HOUR);
        /// A client must CONNECT within this time of its handshake. Default 15s.
        connect_timeout, Kind::Time(SECOND / 10..=HOUR);
        /// Attachments of a packet must arrive within this time. Default 20s.
        attachment_timeout, Kind::Time(SECOND..=HOUR);
        /// API requests under way in one shard. Default 10,000; one more is answered 503.
        api_calls_max, Kind::Count(1..=1_000_000);
        /// An API request ends within this time. Default 5s, answered 504 then.
        api_timeout, Kind::Time(Duration::from_millis(100)..=HOUR);
        /// Members listed in one answer. Default 1,000; the count is exact beyond it.
        members_listed_max, Kind::Count(0..=100_000);
    }
}

/// The fixed sections by name, in order of documentation.
pub(crate) const SECTIONS: [&str; 8] = ["node", "drain", "mesh", "client", "api", "admin", "log", "limits"];

impl Config {
    /// With these products, as they are by default where no source names them.
    #[must_use]
    pub fn with_products(mut self, names: &[String]) -> Self {
        for name in names {
            self.products.0.entry(name.clone()).or_default();
        }
        self
    }

    /// A fixed section by its name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&dyn Section> {
        Some(match name {
            "node" => &self.node,
            "drain" => &self.drain,
            "mesh" => &self.mesh,
            "client" => &self.client,
            "api" => &self.api,
            "admin" => &self.admin,
            "log" => &self.log,
            "limits" => &self.limits,
            _ => return None,
        })
    }

    fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
        Some(match name {
            "node" => &mut self.node,
            "drain" => &mut self.drain,
            "mesh" => &mut self.mesh,
            "client" => &mut self.client,
            "api" => &mut self.api,
            "admin" => &mut self.admin,
            "log" => &mut self.log,
            "limits" => &mut self.limits,
            _ => return None,
        })
    }

    /// Collects all sources and checks the result.
    ///
    /// # Errors
    /// Everything that is wrong, all at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let (mut config, mut errors) = sources::collect(sources);
        check::apply_preset(&mut config);
        errors.extend(check::check(&config, sources.open_files_max, &errors));
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors::new(errors)) }
    }
}

impl ClientConfig {
    /// A listener that other hosts may reach: its setting and its address.
    #[must_use]
    pub fn open_listener(&self) -> Option<(&'static str, SocketAddr)> {
        let listeners = [("client.listen", Some(self.listen)), ("client.tls_listen", self.tls_listen)];
        let mut listeners = listeners.into_iter().filter_map(|(key, address)| Some((key, address?)));
        listeners.find(|(_, address)| !address.ip().is_loopback())
    }
}

impl MeshConfig {
    /// The membership's clockwork: the preset with the settings of this section put in.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let preset = if self.timing == "wan" { Timing::wan() } else { Timing::lan() };
        Timing {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            helpers: self.helpers,
            suspect_for: self.suspect_for,
            gossip_period: self.gossip_period,
            ..preset
        }
    }
}
