//! Bounds of everything that can grow, with their defaults (DESIGN §15).
//!
//! Belongs here: limits that `proto` enforces. Stays out: limits of listeners (`node`).
//! Units: in the names; bytes unless said otherwise.

use std::time::Duration;

/// The limits one node enforces. `node::config` fills it; the machines only read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One message from a client, attachments included. Engine.IO's `maxPayload`.
    pub message_bytes_max: usize,
    /// Attachments of one binary packet.
    pub attachments_max: usize,
    /// Nesting of one JSON message.
    pub json_depth_max: usize,
    /// The auth payload of a CONNECT.
    pub auth_bytes_max: usize,
    /// A room's name.
    pub room_name_bytes_max: usize,
    /// An event's name.
    pub event_name_bytes_max: usize,
    /// A uid.
    pub uid_bytes_max: usize,
    /// Namespaces of one client.
    pub namespaces_max: usize,
    /// Rooms of one session.
    pub rooms_per_session_max: usize,
    /// Rooms owned by one node.
    pub rooms_per_node_max: usize,
    /// Bindings of users and sessions to upstreams, owned by one node; at one more, the one that would end
    /// first is forgotten.
    pub bindings_per_node_max: usize,
    /// Sessions of one (product, uid); one more closes the oldest.
    pub sessions_per_uid_max: usize,
    /// Inbound packets of one session the edge keeps unconfirmed; then it stops reading.
    pub inbound_packets_max: usize,
    /// Bytes of the same.
    pub inbound_bytes_max: usize,
    /// What may be queued for one client's transport; beyond it the client is behind.
    pub client_queue_bytes_max: usize,
    /// A client for whom nothing drains this long, while bytes wait for it, is closed.
    pub client_stall_max: Duration,
    /// Events per second of one session, and the burst above it; beyond it is read more slowly.
    pub events_per_second: u32,
    /// Burst of the same.
    pub events_burst: u32,
    /// Tail of one room at an edge shard.
    pub tail_bytes_max: usize,
    /// Tails of all rooms at one shard.
    pub tails_bytes_max: usize,
    /// Log of one room at its owner: entries.
    pub room_log_entries_max: usize,
    /// Log of one room at its owner: bytes.
    pub room_log_bytes_max: usize,
    /// Log of one room at its owner: age.
    pub room_log_age_max: Duration,
    /// Logs of all rooms owned by one shard; oldest entries of all rooms go first.
    pub room_logs_bytes_max: usize,
    /// A session's own log: entries.
    pub own_log_entries_max: usize,
    /// A session's own log: bytes.
    pub own_log_bytes_max: usize,
    /// A session without a transport is kept so long for its client to come back.
    pub recovery_window: Duration,
    /// A node on the ring for this long has been given what it owns: its "I hold nothing" counts.
    pub settle_time: Duration,
    /// Keys that a shard looks at in one turn after the cluster has changed; one that gets another owner or
    /// backup counts as 16. A turn of it takes 0.5 to 1 ms, for which everything else waits.
    pub placed_per_turn: usize,
    /// How long a publish id or an idempotency key is remembered.
    pub dedupe_window: Duration,
    /// Publish ids and idempotency keys remembered per room.
    pub dedupe_entries_max: usize,
    /// The same of all rooms of a node, owned and backed up; the oldest of all rooms go first.
    pub dedupe_entries_per_node_max: usize,
    /// Engine.IO `pingInterval`.
    pub ping_interval: Duration,
    /// Engine.IO `pingTimeout`.
    pub ping_timeout: Duration,
    /// A client must CONNECT within this time of its handshake.
    pub connect_timeout: Duration,
    /// A WebSocket that is to take over a polling session must have done so within this time.
    pub upgrade_timeout: Duration,
    /// Missing attachments of a binary packet must arrive within this time.
    pub attachment_timeout: Duration,
    /// Requests of the HTTP API under way in one shard.
    pub api_calls_max: usize,
    /// A request of the HTTP API ends within this time.
    pub api_timeout: Duration,
    /// Names listed in an answer of members.
    pub members_listed_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 1_000_000,
            attachments_max: 10,
            json_depth_max: 128,
            auth_bytes_max: 8 << 10,
            room_name_bytes_max: 256,
            event_name_bytes_max: 128,
            uid_bytes_max: 128,
            namespaces_max: 16,
            rooms_per_session_max: 1_000,
            rooms_per_node_max: 1_000_000,
            bindings_per_node_max: 1_000_000,
            sessions_per_uid_max: 16,
            inbound_packets_max: 256,
            inbound_bytes_max: 1 << 20,
            client_queue_bytes_max: 64 << 10,
            client_stall_max: Duration::from_secs(45),
            events_per_second: 200,
            events_burst: 1_000,
            tail_bytes_max: 256 << 10,
            tails_bytes_max: 64 << 20,
            room_log_entries_max: 1_000,
            room_log_bytes_max: 1 << 20,
            room_log_age_max: Duration::from_secs(120),
            room_logs_bytes_max: 1 << 30,
            own_log_entries_max: 256,
            own_log_bytes_max: 64 << 10,
            recovery_window: Duration::from_secs(120),
            settle_time: Duration::from_secs(10),
            placed_per_turn: 1_024,
            dedupe_window: Duration::from_secs(120),
            dedupe_entries_max: 10_000,
            dedupe_entries_per_node_max: 2_000_000,
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(15),
            upgrade_timeout: Duration::from_secs(10),
            attachment_timeout: Duration::from_secs(20),
            api_calls_max: 10_000,
            api_timeout: Duration::from_secs(5),
            members_listed_max: 1_000,
        }
    }
}
