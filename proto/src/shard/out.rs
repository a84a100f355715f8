//! Where the machines of a shard put what they have to say.
//!
//! Belongs here: outputs in order, and the shortcut for envelopes to this very shard.
//! Stays out: deciding what to say.
//! Invariants: two envelopes on one lane to one place keep their order.

use std::collections::VecDeque;

use super::interface::Output;
use crate::id::{Address, NodeRef, Placement, ShardIx};
use crate::wire::{Body, Envelope, Lane, To};

/// Outputs of one shard.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) me: Address,
    pub(crate) shards: u16,
    /// For the driver.
    pub(crate) outputs: VecDeque<Output>,
    /// For this shard itself.
    pub(crate) local: VecDeque<Envelope>,
}

impl Out {
    pub(crate) fn new(me: Address, shards: u16) -> Self {
        Self { me, shards, outputs: VecDeque::new(), local: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// To the shard of `to` that hosts `placement`.
    pub(crate) fn send_to_host(&mut self, to: NodeRef, placement: Placement, body: Body) {
        self.send(to, To::Host(placement), Lane::of(placement), body);
    }

    /// To a shard that has written to us, on the lane of `placement`.
    pub(crate) fn send_to_address(&mut self, to: Address, placement: Placement, body: Body) {
        self.send(to.node, To::Shard(to.shard), Lane::of(placement), body);
    }

    pub(crate) fn send(&mut self, to_node: NodeRef, to: To, lane: Lane, body: Body) {
        let envelope = Envelope { from: self.me, to, body };
        if to_node != self.me.node {
            self.outputs.push_back(Output::Send { to: to_node, lane, envelope });
            return;
        }
        let mine = 1_u64 << self.me.shard.0;
        let mask = match to {
            To::Host(placement) => 1 << placement.shard(self.shards).0,
            To::Shard(ShardIx(shard)) => 1_u64.checked_shl(u32::from(shard)).unwrap_or(0),
            To::Shards(mask) => mask,
            To::Node => 0,
        };
        if mask == mine {
            self.local.push_back(envelope);
            return;
        }
        if mask & mine != 0 {
            self.local.push_back(Envelope { to: To::Shard(self.me.shard), ..envelope.clone() });
        }
        let to = if mask == 0 { To::Node } else { To::Shards(mask & !mine) };
        self.outputs.push_back(Output::Send { to: to_node, lane, envelope: Envelope { to, ..envelope } });
    }
}
