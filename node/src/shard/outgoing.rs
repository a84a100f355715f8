//! Envelopes on their way out of a shard, and where they wait when the way is blocked.
//!
//! Belongs here: batches to other shards of this node, backlogs to peers, their bounds.
//! Stays out: links (`mesh` implements [`Outbound`]), what is said (`mesh_proto`).
//! What filling up means: a backlog over its bound is dropped as a whole and the machine is told
//! that the link was reset; it repeats what is unconfirmed, in order. Nothing ever waits for a slow
//! receiver, so that no two shards can wait for each other.
//! Invariants: order is kept per receiver; nothing overtakes a backlog.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mesh_proto::id::{Address, NodeRef, ShardIx};
use mesh_proto::view::View;
use mesh_proto::wire::{self, Body, Envelope, Lane, To};
use tokio::sync::mpsc::error::TrySendError;

use crate::handles::{Shards, ToShard};

/// Envelopes kept for a shard of this node whose queue is full.
const SIBLING_BACKLOG_MAX: usize = 65_536;

/// Bytes kept for a peer whose link takes no more.
const PEER_BACKLOG_BYTES_MAX: usize = 16 << 20;

/// The way to other nodes.
pub trait Outbound: Send {
    /// Queues an encoded envelope for a peer. One for a peer that is not up is dropped.
    ///
    /// # Errors
    /// [`Full`] when the link takes no more at present; nothing was taken.
    fn try_send(&self, to: NodeRef, lane: Lane, envelope: Bytes) -> Result<(), Full>;
}

/// The queue is full: keep it and come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link's queue is full")]
pub struct Full;

/// A node without peers: everything for one is dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Outbound for NoPeers {
    fn try_send(&self, _to: NodeRef, _lane: Lane, _envelope: Bytes) -> Result<(), Full> {
        Ok(())
    }
}

/// What one shard has to send.
pub(crate) struct Outgoing {
    me: Address,
    shards: Shards,
    /// One batch per shard of this node, by index. Our own stays empty.
    batches: Vec<Vec<Envelope>>,
    /// For this very shard, in order.
    own: VecDeque<Envelope>,
    outbound: Box<dyn Outbound>,
    peers: BTreeMap<NodeRef, Backlog>,
    /// The last entries of a room that were encoded: each subscribed node gets the same.
    last_entries: Option<(Envelope, Bytes)>,
}

#[derive(Debug, Default)]
struct Backlog {
    waiting: VecDeque<(Lane, Bytes)>,
    bytes: usize,
}

impl Outgoing {
    pub(crate) fn new(me: Address, shards: Shards, outbound: Box<dyn Outbound>) -> Self {
        let batches = shards.0.iter().map(|_| Vec::new()).collect();
        let (own, peers) = (VecDeque::new(), BTreeMap::new());
        Self { me, shards, batches, own, outbound, peers, last_entries: None }
    }

    /// Takes one envelope. A receiver whose backlog had to be dropped is returned.
    pub(crate) fn send(&mut self, to: NodeRef, lane: Lane, envelope: Envelope) -> Option<NodeRef> {
        if to == self.me.node { self.send_here(envelope) } else { self.send_away(to, lane, envelope) }
    }

    /// Which shard this is.
    pub(crate) fn shard(&self) -> ShardIx {
        self.me.shard
    }

    /// The next envelope that this shard sent to itself.
    pub(crate) fn next_own(&mut self) -> Option<Envelope> {
        self.own.pop_front()
    }

    /// Whether there are envelopes to itself.
    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// Whether anything could not be handed on yet.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.peers.is_empty() || self.batches.iter().any(|batch| !batch.is_empty())
    }

    /// Hands on what can be: the batches of this turn, and backlogs from earlier ones.
    pub(crate) fn flush(&mut self) {
        for (batch, shard) in self.batches.iter_mut().zip(self.shards.0.iter()) {
            if batch.is_empty() {
                continue;
            }
            // A shard that is gone takes the node with it; only a full queue is worth another try.
            let outcome = shard.tx.try_send(ToShard::Envelopes(std::mem::take(batch)));
            if let Err(TrySendError::Full(ToShard::Envelopes(refused))) = outcome {
                *batch = refused;
            }
        }
        self.peers.retain(|&peer, backlog| {
            while let Some((lane, envelope)) = backlog.waiting.pop_front() {
                if self.outbound.try_send(peer, lane, envelope.clone()).is_err() {
                    backlog.waiting.push_front((lane, envelope));
                    return true;
                }
                backlog.bytes -= envelope.len();
            }
            false
        });
        self.last_entries = None;
    }

    /// Forgets backlogs of peers that are gone. In another life of this node its shards have another
    /// address, by which they reach each other from now on.
    pub(crate) fn set_view(&mut self, view: &View) {
        self.me.node = view.me;
        self.peers.retain(|&peer, _| view.is_up(peer));
    }

    fn send_here(&mut self, envelope: Envelope) -> Option<NodeRef> {
        let mut reset = None;
        let mut named = self.shards.named(envelope.to).map(|handle| usize::from(handle.shard.0)).peekable();
        let mut envelope = Some(envelope);
        while let Some(shard) = named.next() {
            // The last one named takes the envelope itself.
            let copy = if named.peek().is_some() { envelope.clone() } else { envelope.take() };
            let Some(copy) = copy else { break };
            if shard == usize::from(self.me.shard.0) {
                self.own.push_back(copy);
                continue;
            }
            let batch = &mut self.batches[shard];
            batch.push(copy);
            if batch.len() > SIBLING_BACKLOG_MAX {
                batch.clear();
                reset = Some(self.me.node);
            }
        }
        reset
    }

    fn send_away(&mut self, to: NodeRef, lane: Lane, envelope: Envelope) -> Option<NodeRef> {
        let bytes = self.encode(envelope);
        let backlog = self.peers.get_mut(&to);
        if backlog.is_none() && self.outbound.try_send(to, lane, bytes.clone()).is_ok() {
            return None;
        }
        let backlog = self.peers.entry(to).or_default();
        backlog.bytes += bytes.len();
        backlog.waiting.push_back((lane, bytes));
        if backlog.bytes <= PEER_BACKLOG_BYTES_MAX {
            return None;
        }
        self.peers.remove(&to);
        Some(to)
    }

    /// Encodes; entries of a room that go to several nodes in a row are encoded once.
    fn encode(&mut self, envelope: Envelope) -> Bytes {
        if !matches!(envelope.body, Body::RoomToEdge(_)) || matches!(envelope.to, To::Node) {
            return wire::encode(&envelope);
        }
        if let Some((last, bytes)) = &self.last_entries
            && *last == envelope
        {
            return bytes.clone();
        }
        let bytes = wire::encode(&envelope);
        self.last_entries = Some((envelope, bytes.clone()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use mesh_proto::id::{NodeId, Placement, ShardIx};
    use mesh_proto::wire::Query;
    use tokio::sync::mpsc;

    use super::*;
    use crate::handles::ShardHandle;

    /// A link that takes `room` more envelopes.
    #[derive(Clone, Default)]
    struct Link(Arc<Mutex<(usize, Vec<u64>)>>);

    impl Outbound for Link {
        fn try_send(&self, _to: NodeRef, _lane: Lane, envelope: Bytes) -> Result<(), Full> {
            let mut link = self.0.lock().unwrap();
            if link.0 == 0 {
                return Err(Full);
            }
            link.0 -= 1;
            link.1.push(call_of(&wire::decode::<Envelope>(&envelope).unwrap()));
            Ok(())
        }
    }

    fn node(id: u64) -> NodeRef {
        NodeRef { id: NodeId(id), incarnation: 1 }
    }

    fn me() -> Address {
        Address { node: node(1), shard: ShardIx(0) }
    }

    fn envelope(to: To, call: u64) -> Envelope {
        Envelope { from: me(), to, body: Body::Query { call, query: Query::NodeStatus } }
    }

    fn call_of(envelope: &Envelope) -> u64 {
        let Body::Query { call, .. } = envelope.body else { panic!("not a query") };
        call
    }

    fn shards(queue_len: usize) -> (Shards, Vec<mpsc::Receiver<ToShard>>) {
        let (handles, queues) = (0..2)
            .map(|shard| {
                let (tx, rx) = mpsc::channel(queue_len);
                (ShardHandle { shard: ShardIx(shard), tx }, rx)
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        (Shards(handles.into()), queues)
    }

    #[test]
    fn envelopes_to_shards_of_this_node_go_in_one_batch_a_turn() {
        let (shards, mut queues) = shards(1);
        let mut outgoing = Outgoing::new(me(), shards, Box::new(NoPeers));
        for call in 0..3 {
            outgoing.send(node(1), Lane::CONTROL, envelope(To::Shards(0b11), call));
        }
        let own: Vec<_> = std::iter::from_fn(|| outgoing.next_own()).map(|e| call_of(&e)).collect();
        assert_eq!(own, [0, 1, 2]);
        outgoing.flush();
        outgoing.send(node(1), Lane::CONTROL, envelope(To::Shard(ShardIx(1)), 3));
        outgoing.flush();
        assert!(outgoing.is_blocked(), "the queue has room for one batch");
        let Ok(ToShard::Envelopes(batch)) = queues[1].try_recv() else { panic!("no batch") };
        assert_eq!(batch.iter().map(call_of).collect::<Vec<_>>(), [0, 1, 2]);
        outgoing.flush();
        assert!(!outgoing.is_blocked());
        let Ok(ToShard::Envelopes(batch)) = queues[1].try_recv() else { panic!("no batch") };
        assert_eq!(call_of(&batch[0]), 3);
    }

    #[test]
    fn shards_of_a_node_reach_each_other_in_its_next_life() {
        let (shards, mut queues) = shards(1);
        let mut outgoing = Outgoing::new(me(), shards, Box::new(NoPeers));
        let reborn = NodeRef { incarnation: 2, ..node(1) };
        outgoing.set_view(&View::new(1, reborn, Vec::new(), 1));
        outgoing.send(reborn, Lane::CONTROL, envelope(To::Shard(ShardIx(1)), 7));
        outgoing.flush();
        let Ok(ToShard::Envelopes(batch)) = queues[1].try_recv() else { panic!("no batch") };
        assert_eq!(call_of(&batch[0]), 7);
    }

    #[test]
    fn a_full_link_keeps_the_order() {
        let link = Link::default();
        link.0.lock().unwrap().0 = 2;
        let mut outgoing = Outgoing::new(me(), shards(1).0, Box::new(link.clone()));
        for call in 0..5 {
            assert_eq!(outgoing.send(node(2), Lane(0), envelope(To::Host(Placement(1)), call)), None);
        }
        assert!(outgoing.is_blocked());
        link.0.lock().unwrap().0 = 100;
        outgoing.send(node(2), Lane(0), envelope(To::Host(Placement(1)), 5));
        outgoing.flush();
        assert!(!outgoing.is_blocked());
        assert_eq!(link.0.lock().unwrap().1, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_backlog_over_its_bound_is_dropped_and_the_machine_told() {
        let mut outgoing = Outgoing::new(me(), shards(1).0, Box::new(Link::default()));
        let big = "x".repeat(1 << 20);
        let query = Query::ExplainUser { product: "p".into(), uid: big.into() };
        let envelope = Envelope { from: me(), to: To::Node, body: Body::Query { call: 0, query } };
        let resets: Vec<_> =
            (0..17).filter_map(|_| outgoing.send(node(2), Lane(0), envelope.clone())).collect();
        assert_eq!(resets, [node(2)]);
        assert!(!outgoing.is_blocked() || outgoing.peers[&node(2)].bytes < PEER_BACKLOG_BYTES_MAX);
    }
}
