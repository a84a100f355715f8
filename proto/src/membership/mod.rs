//! Who is in the cluster.
//!
//! Belongs here: SWIM (by the crate `foca`), joining, the sealing of its datagrams, records of what
//! nodes announce, and the view made of all that.
//! Stays out: sockets and clocks (`node::mesh`), placement (`ring`), links.
//! Units: datagrams are at most [`PACKET_BYTES_MAX`] bytes, sealed.
//! Invariants: [`Membership::check_invariants`]; I11 of DESIGN §13 (no node is declared down that was
//! up, reachable and unpaused for the whole suspicion time).

//!
//! | file | holds |
//! |---|---|
//! | `interface` | config, inputs, outputs, counts |
//! | `machine` | [`Membership`]: its parts, its timers |
//! | `inbound`, `outbound` | datagrams in, and what is believed of them; datagrams out |
//! | `views` | the view, and what is new in it |
//! | `exchange` | joining, rejoining, agreeing |
//! | `join` | whose cluster to join, or who begins one |
//! | `sync` | pages of a full exchange |
//! | `swim` | foca and its timers |
//! | `suspicion`, `health` | when a suspicion comes true |
//! | `records` | what nodes announce, and its spreading |
//! | `seal` | packets |
//! | `identity`, `notice`, `timing`, `throttle` | words |

mod exchange;
mod health;
mod identity;
mod inbound;
mod interface;
mod join;
mod machine;
mod notice;
mod outbound;
mod records;
pub(crate) mod seal;
mod suspicion;
mod swim;
mod sync;
mod throttle;
mod timing;
mod views;

#[cfg(test)]
mod tests;

pub use identity::{Identity, WEIGHT_MAX};
pub use interface::{HeardDigest, Input, MembershipConfig, Output, Stats};
pub use join::SEEDS_MAX;
pub use machine::Membership;
pub use notice::{Mismatch, Notice, Peer};
pub use records::RECORD_BYTES_MAX;
pub use timing::Timing;

/// The largest datagram, sealed: fits any path that QUIC fits.
pub const PACKET_BYTES_MAX: usize = 1_200;

/// Nodes of one cluster. More are not taken in.
pub const NODES_MAX: usize = 1_000;

/// Whether a datagram with this first byte is this module's. QUIC sets bit 0x40 of each packet
/// (RFC 9000 §17.2, §17.3; nobody may grease it here), gossip never does (after RFC 9443).
#[must_use]
pub fn is_gossip(first_byte: u8) -> bool {
    first_byte & 0x40 == 0
}
