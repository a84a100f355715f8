//! What nodes announce of themselves, and how it spreads.
//!
//! Belongs here: the newest record per node, and the queue of those to pass on: they fill the rest
//! of each SWIM datagram, and while there are any, datagrams of their own.
//! Stays out: who is up (`swim`), the view.
//! Shape on the wire: repeated (length u16 ‖ postcard of `NodeRecord`).
//! Invariants: a record is at most [`RECORD_BYTES_MAX`], is under the id of its own name, and is
//! replaced only by a later life or version; at most [`RECORDS_MAX`] are held.
//! Why not foca's own broadcasts: they hide their table inside foca, where neither the view nor the
//! full exchange can reach it. The rule of spreading is the same (so many transmissions, those sent
//! least first).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::NODES_MAX;
use super::identity::INCARNATION_MAX;
use crate::id::{NodeId, NodeRef};
use crate::time::Instant;
use crate::view::NodeRecord;
use crate::wire;

/// One encoded record. Longer ones are dropped.
pub const RECORD_BYTES_MAX: usize = 512;

/// Records held, of nodes up or lately so.
const RECORDS_MAX: usize = 2 * NODES_MAX;

/// A record whose node is not up (any more, or yet) is forgotten after this time.
const UNUSED_KEPT_FOR: Duration = Duration::from_secs(60);

/// The records this node knows.
#[derive(Debug)]
pub(crate) struct Records {
    transmissions: u8,
    held: BTreeMap<NodeId, Held>,
    /// (transmissions done, node): what to pass on, least sent first.
    queue: BTreeSet<(u8, NodeId)>,
}

#[derive(Debug)]
struct Held {
    /// Shared with every view that shows it.
    record: Arc<NodeRecord>,
    bytes: Bytes,
    /// Transmissions done; at the limit it is not queued.
    sent: u8,
    used: Instant,
}

impl Records {
    pub(crate) fn new(transmissions: u8) -> Self {
        Self { transmissions, held: BTreeMap::new(), queue: BTreeSet::new() }
    }

    /// Takes a record in if it is newer than what is known of its node. `pass_on` tells others.
    /// Answers whether it was news.
    pub(crate) fn offer(&mut self, now: Instant, record: impl Into<Arc<NodeRecord>>, pass_on: bool) -> bool {
        let record = record.into();
        let id = record.node.id;
        let known = self.held.get(&id).map(|h| (h.record.node.incarnation, h.record.version));
        let bytes = wire::encode(&*record);
        if known >= Some((record.node.incarnation, record.version))
            || nonsense(&record, bytes.len())
            || (known.is_none() && self.held.len() >= RECORDS_MAX)
        {
            return false;
        }
        let sent = if pass_on { 0 } else { self.transmissions };
        if let Some(old) = self.held.insert(id, Held { record, bytes, sent, used: now }) {
            self.queue.remove(&(old.sent, id));
        }
        if pass_on {
            self.queue.insert((0, id));
        }
        true
    }

    /// The record of that very life.
    pub(crate) fn of(&self, node: NodeRef) -> Option<&Arc<NodeRecord>> {
        self.held.get(&node.id).map(|held| &held.record).filter(|record| record.node == node)
    }

    /// How many are being passed on.
    pub(crate) fn spreading(&self) -> usize {
        self.queue.len()
    }

    /// Appends to a datagram what fits before it is `len_max` long.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, len_max: usize) {
        let mut taken = Vec::new();
        for &(sent, id) in &self.queue {
            let Some(held) = self.held.get(&id) else { continue };
            if out.len() + 2 + held.bytes.len() <= len_max {
                let len = u16::try_from(held.bytes.len()).expect("records are short");
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(&held.bytes);
                taken.push((sent, id));
            }
            if out.len() + 64 > len_max {
                break;
            }
        }
        for (sent, id) in taken {
            self.queue.remove(&(sent, id));
            if let Some(held) = self.held.get_mut(&id) {
                held.sent = sent + 1;
                if held.sent < self.transmissions {
                    self.queue.insert((held.sent, id));
                }
            }
        }
    }

    /// Reads what [`Records::fill`] wrote.
    pub(crate) fn read(mut bytes: &[u8]) -> Result<Vec<NodeRecord>, &'static str> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let (len, rest) = bytes.split_first_chunk::<2>().ok_or("cut record")?;
            let len = usize::from(u16::from_le_bytes(*len));
            if len > RECORD_BYTES_MAX {
                return Err("record too long");
            }
            let (record, rest) = rest.split_at_checked(len).ok_or("cut record")?;
            records.push(wire::decode(record).map_err(|_| "malformed record")?);
            bytes = rest;
        }
        Ok(records)
    }

    /// Forgets the records of nodes that have not been up for a while.
    pub(crate) fn sweep(&mut self, now: Instant, is_up: impl Fn(NodeRef) -> bool) {
        let mut gone = Vec::new();
        for (id, held) in &mut self.held {
            if is_up(held.record.node) {
                held.used = now;
            } else if now.since(held.used) > UNUSED_KEPT_FOR {
                gone.push(*id);
            }
        }
        for id in gone {
            if let Some(held) = self.held.remove(&id) {
                self.queue.remove(&(held.sent, id));
            }
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.held.len() <= RECORDS_MAX, "{} records held", self.held.len());
        assert!(self.queue.iter().all(|(_, id)| self.held.contains_key(id)), "a queued record is not held");
        assert!(self.held.values().all(|h| h.bytes.len() <= RECORD_BYTES_MAX), "a record is too long");
    }
}

/// Whether no honest node announces this. (FAULTS 78, 80.)
fn nonsense(record: &NodeRecord, len: usize) -> bool {
    len > RECORD_BYTES_MAX
        || NodeId::of_name(&record.name) != record.node.id
        || record.node.incarnation >= INCARNATION_MAX
        || record.version >= INCARNATION_MAX
        || !(1..=64).contains(&record.shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::NodeState;

    fn record(name: &str, incarnation: u64, version: u64) -> NodeRecord {
        NodeRecord {
            node: NodeRef { id: NodeId::of_name(name), incarnation },
            version,
            name: name.into(),
            state: NodeState::Active,
            client_addr: "127.0.0.1:8000".into(),
            admin_addr: String::new(),
            api_addr: String::new(),
            shards: 1,
            software: "0.1.0".into(),
        }
    }

    #[test]
    fn the_newest_life_and_version_wins() {
        let mut records = Records::new(3);
        let now = Instant::ZERO;
        assert!(records.offer(now, record("a", 5, 2), true));
        assert!(!records.offer(now, record("a", 5, 2), true));
        assert!(!records.offer(now, record("a", 4, 9), true));
        assert!(records.offer(now, record("a", 6, 1), true));
        assert_eq!(records.of(record("a", 6, 1).node).unwrap().version, 1);
        assert_eq!(records.of(record("a", 5, 2).node), None);
    }

    #[test]
    fn each_record_is_passed_on_so_many_times_and_comes_out_whole() {
        let mut records = Records::new(3);
        records.offer(Instant::ZERO, record("a", 1, 1), true);
        records.offer(Instant::ZERO, record("b", 1, 1), true);
        records.offer(Instant::ZERO, record("c", 1, 1), false);
        let one = wire::encode(&record("a", 1, 1)).len() + 2;
        let mut passed_on = 0;
        while records.spreading() > 0 {
            let mut out = Vec::new();
            records.fill(&mut out, one + 10);
            passed_on += Records::read(&out).unwrap().len();
            records.check_invariants();
        }
        assert_eq!(passed_on, 6);
    }

    #[test]
    fn a_record_under_a_foreign_name_or_too_long_is_dropped() {
        let mut records = Records::new(3);
        let forged = NodeRecord { name: "b".into(), ..record("a", 1, 1) };
        assert!(!records.offer(Instant::ZERO, forged, true));
        let long = NodeRecord { client_addr: "x".repeat(600), ..record("a", 1, 1) };
        assert!(!records.offer(Instant::ZERO, long, true));
        assert!(!records.offer(Instant::ZERO, record("a", u64::MAX, 1), true));
        assert!(records.held.is_empty());
    }

    #[test]
    fn records_of_nodes_that_are_gone_are_forgotten() {
        let mut records = Records::new(3);
        records.offer(Instant::ZERO, record("a", 1, 1), true);
        records.offer(Instant::ZERO, record("b", 1, 1), true);
        let late = Instant::ZERO + Duration::from_secs(61);
        records.sweep(late, |node| node.id == NodeId::of_name("a"));
        assert_eq!(records.held.len(), 1);
        records.check_invariants();
    }
}
