//! The driver of shards: one thread each, which owns the clients, sessions and rooms of its shard.
//!
//! Belongs here: between a client's handshake and `mesh_proto::shard::Shard`, nothing else.
//! Stays out: protocol decisions (the machine's), handshakes (`listener`), links (`mesh`).
//!
//! | module | answers |
//! |---|---|
//! | `thread` | when is a turn taken, and what if something panics |
//! | `driver` | what a turn does |
//! | `client` | what is kept of one client |
//! | `outbox` | how many clients get one frame |
//! | `outgoing` | how envelopes leave, and where they wait |

mod client;
mod driver;
mod outbox;
mod outgoing;
mod thread;

pub use outgoing::{Full, NoPeers, Outbound};
pub use thread::{ShardParts, start};

/// Counts of one shard's driver, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Turns taken.
    pub turns_total: u64,
    /// Reads from clients.
    pub reads_total: u64,
    /// Bytes of the same, frame headers included.
    pub read_bytes_total: u64,
    /// Writes to clients. Fewer than deliveries: what is there at once leaves in one.
    pub writes_total: u64,
    /// Bytes of the same, frame headers included.
    pub written_bytes_total: u64,
    /// Times a client's socket did not take all.
    pub blocked_total: u64,
    /// Clients closed for breaking the WebSocket protocol.
    pub violations_total: u64,
    /// Backlogs to peers or shards dropped because they had grown over their bound.
    pub backlogs_dropped_total: u64,
    /// Queries under way.
    pub queries_open: u64,
}
