//! One shard: the edge for its clients and the host of its part of sessions and rooms.
//!
//! Belongs here: the interface a driver sees, routing between the machines of a shard, to other shards
//! and to peers, and questions from outside.
//! Stays out: what edges, sessions and rooms do (`edge`, `session`, `room`); sockets, timers, threads.
//! How to drive it: call [`Shard::handle`] for each input, then [`Shard::poll`] until `None`, and
//! wake it with [`Input::Timer`] at [`Shard::next_deadline`]. Inputs may be batched before polling:
//! what belongs together then leaves in one envelope and one write.

mod calls;
mod interface;
/// What every machine of a shard is handed, borrowed from the shard's own fields.
macro_rules! context {
    ($shard:ident) => {
        crate::shard::Ctx {
            now: $shard.now,
            view: &$shard.view,
            out: &mut $shard.out,
            timers: &mut $shard.timers,
            stats: &mut $shard.stats,
        }
    };
}
mod machine;
mod out;
#[cfg(test)]
mod tests;
mod timers;

pub use interface::*;
pub use machine::Shard;
pub(crate) use out::Out;
pub(crate) use timers::{TimerKey, Timers};

/// What every machine of a shard is handed: the moment, the cluster, and where its words go.
pub(crate) struct Ctx<'a> {
    pub(crate) now: crate::time::Instant,
    pub(crate) view: &'a crate::view::View,
    pub(crate) out: &'a mut Out,
    pub(crate) timers: &'a mut Timers,
    pub(crate) stats: &'a mut ShardStats,
}
