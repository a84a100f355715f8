//! Placement: which nodes answer for a key.
//!
//! Belongs here: building the circle from one list of nodes; owner and backup lookup; shares.
//! Stays out: membership itself (`membership`), moving state, sockets, clocks.
//! Units: positions are u64 on a circle; `vnodes` a count per unit of weight; a lookup is
//! O(log vnodes) plus the vnodes skipped, and allocates nothing but the answer.
//! Invariants: same nodes ⇒ same placement on every node and build; replicas are distinct nodes.
//! Source: Karger et al. 1997; vnodes after DeCandia et al. 2007 (Dynamo) §4.2.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

use crate::id::{NodeId, NodeRef, Placement};

/// Vnodes of a node of weight 1. 256 keeps max/mean load under 1.1 for ten nodes.
pub const VNODES_DEFAULT: u32 = 256;

/// One node as the ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingNode {
    /// Which life of which node.
    pub node: NodeRef,
    /// Failure domain; replicas prefer distinct ones.
    pub zone: u16,
    /// Share of the circle in units of `vnodes`.
    pub weight: u16,
}

/// An immutable circle, rebuilt for each change of the nodes on it and shared by `Arc`.
#[derive(Clone, Debug)]
pub struct Ring {
    nodes: Vec<RingNode>,
    circle: HashRing<Vnode, PositionHash>,
    /// Node index at each place of the circle, clockwise.
    walk: Vec<u16>,
    /// Position of each place.
    positions: Vec<u64>,
    zones: usize,
    digest: u64,
}

impl Ring {
    /// The circle of `nodes`, each with `vnodes × weight` places.
    ///
    /// # Panics
    /// With more than 65,535 nodes or 2³² vnodes.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = RingNode>, vnodes: u32) -> Self {
        let mut nodes: Vec<RingNode> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup_by_key(|n| n.node.id);
        let mut entries = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let index = u16::try_from(index).expect("at most 65,535 nodes");
            for number in 0..vnodes * u32::from(node.weight) {
                entries.push(Vnode { position: Vnode::position(node.node.id, number), place: 0, index });
            }
        }
        entries.sort_by_key(|v| (v.position, v.index));
        for (place, vnode) in entries.iter_mut().enumerate() {
            vnode.place = u32::try_from(place).expect("at most 2^32 vnodes");
        }
        let walk = entries.iter().map(|v| v.index).collect();
        let positions = entries.iter().map(|v| v.position).collect();
        let mut circle = HashRing::with_hasher(PositionHash);
        circle.batch_add(entries);
        let mut zones: Vec<u16> = nodes.iter().map(|n| n.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        Self { digest: digest_of(&nodes), zones: zones.len(), walk, positions, circle, nodes }
    }

    /// The nodes on the circle, ordered by id.
    #[must_use]
    pub fn nodes(&self) -> &[RingNode] {
        &self.nodes
    }

    /// Hash of the sorted (node, incarnation, weight) list: equal digests, equal placement.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The node that owns `placement`; `None` on an empty ring.
    #[must_use]
    pub fn owner(&self, placement: Placement) -> Option<NodeRef> {
        let vnode = self.circle.get(&Position(placement.0))?;
        Some(self.nodes[usize::from(vnode.index)].node)
    }

    /// The owner's backup: the second of [`Ring::replicas`].
    #[must_use]
    pub fn backup(&self, placement: Placement) -> Option<NodeRef> {
        self.replicas(placement, 2).get(1).copied()
    }

    /// The first `count` distinct nodes clockwise from `placement`: the owner, then the backup, then
    /// whom to ask next. The second is in another zone than the first where there is one.
    #[must_use]
    pub fn replicas(&self, placement: Placement, count: usize) -> Vec<NodeRef> {
        let Some(start) = self.circle.get(&Position(placement.0)) else { return Vec::new() };
        let start = start.place as usize;
        let wanted = count.min(self.nodes.len());
        let mut chosen: Vec<u16> = Vec::with_capacity(wanted);
        let mut passed_over: Vec<u16> = Vec::new();
        for step in 0..self.walk.len() {
            if chosen.len() == wanted {
                break;
            }
            let index = self.walk[(start + step) % self.walk.len()];
            if chosen.contains(&index) || passed_over.contains(&index) {
                continue;
            }
            let zone = self.nodes[usize::from(index)].zone;
            let zones_used: Vec<u16> = chosen.iter().map(|&i| self.nodes[usize::from(i)].zone).collect();
            if zones_used.contains(&zone) && distinct(&zones_used) < self.zones {
                passed_over.push(index);
            } else {
                chosen.push(index);
            }
        }
        chosen.extend(passed_over.into_iter().take(wanted - chosen.len()));
        chosen.into_iter().map(|i| self.nodes[usize::from(i)].node).collect()
    }

    /// The nodes at the places of the circle, clockwise from `placement`, once around: indexes into
    /// [`Ring::nodes`], each as often as it has places.
    pub(crate) fn clockwise(&self, placement: Placement) -> impl Iterator<Item = u16> {
        let start = self.circle.get(&Position(placement.0)).map_or(0, |vnode| vnode.place as usize);
        let (before, from) = self.walk.split_at(start);
        from.iter().chain(before).copied()
    }

    /// Share of the circle owned by each node, in the order of [`Ring::nodes`]; sums to 1.
    #[must_use]
    pub fn shares(&self) -> Vec<f64> {
        let mut owned = vec![0_u128; self.nodes.len()];
        let arcs = self.arcs();
        for (from, to, index) in &arcs {
            owned[usize::from(*index)] += u128::from(to.wrapping_sub(*from));
        }
        let whole = 2_f64.powi(64);
        if arcs.len() == 1 {
            return vec![1.0];
        }
        #[expect(clippy::cast_precision_loss, reason = "a share is shown with two digits")]
        owned.into_iter().map(|arc| arc as f64 / whole).collect()
    }

    /// The arcs of the circle clockwise: (from exclusive, to inclusive, index into
    /// [`Ring::nodes`]). For drawing.
    #[must_use]
    pub fn arcs(&self) -> Vec<(u64, u64, u16)> {
        let mut from = self.positions.last().copied().unwrap_or(0);
        let places = self.positions.iter().zip(&self.walk);
        places.map(|(&to, &index)| (std::mem::replace(&mut from, to), to, index)).collect()
    }
}

fn distinct(zones: &[u16]) -> usize {
    let mut zones = zones.to_vec();
    zones.sort_unstable();
    zones.dedup();
    zones.len()
}

fn digest_of(nodes: &[RingNode]) -> u64 {
    let mut bytes = Vec::with_capacity(nodes.len() * 18);
    for node in nodes {
        bytes.extend_from_slice(&node.node.id.0.to_le_bytes());
        bytes.extend_from_slice(&node.node.incarnation.to_le_bytes());
        bytes.extend_from_slice(&node.weight.to_le_bytes());
    }
    xxh3_64(&bytes)
}

/// One place of a node on the circle.
#[derive(Clone, Debug)]
struct Vnode {
    position: u64,
    place: u32,
    index: u16,
}

impl Vnode {
    /// The place of a node's `number`-th vnode. The incarnation is left out: a restarted node gets
    /// its old places back.
    fn position(node: NodeId, number: u32) -> u64 {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&node.0.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        xxh3_64(&bytes)
    }
}

impl Hash for Vnode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position);
    }
}

/// A key that is already a position.
struct Position(u64);

impl Hash for Position {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// `hashring` hashes what it is given; positions are hashes already and pass through.
#[derive(Clone, Debug, Default)]
struct PositionHash;

impl BuildHasher for PositionHash {
    type Hasher = PassThrough;

    fn build_hasher(&self) -> PassThrough {
        PassThrough(0)
    }
}

struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("positions are written as u64")
    }

    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(names: &[&str]) -> Ring {
        Ring::new(names.iter().map(|n| node(n, 0)), VNODES_DEFAULT)
    }

    fn node(name: &str, zone: u16) -> RingNode {
        let node = NodeRef { id: NodeId::of_name(name), incarnation: 1 };
        RingNode { node, zone, weight: 1 }
    }

    fn keys() -> impl Iterator<Item = Placement> {
        (0..20_000).map(|i| Placement::of_user("chat", &format!("u{i}")))
    }

    #[test]
    fn placement_is_pinned_by_golden_vectors() {
        assert_eq!(Placement::of_user("chat", "alice").0, 0xc52f_2d85_acb0_e39f);
        assert_eq!(Placement::of_room("chat", "/", "lobby").0, 0x6c4a_2804_54f7_1bd6);
        let ring = ring(&["a", "b", "c"]);
        assert_eq!(ring.digest(), 0xc69e_aadc_96e1_d0f4);
        assert_eq!(ring.owner(Placement(0)).unwrap().id, NodeId::of_name("a"));
    }

    #[test]
    fn a_tagged_room_is_placed_with_its_user() {
        assert_eq!(Placement::of_room("chat", "/", "{alice}inbox"), Placement::of_user("chat", "alice"));
        assert_ne!(Placement::of_room("chat", "/", "{}inbox"), Placement::of_user("chat", ""));
    }

    #[test]
    fn replicas_are_distinct_and_start_with_the_owner() {
        let ring = ring(&["a", "b", "c"]);
        for key in keys() {
            let replicas = ring.replicas(key, 5);
            assert_eq!(replicas.len(), 3);
            assert_eq!(replicas[0], ring.owner(key).unwrap());
            assert_eq!(distinct_nodes(&replicas), 3);
        }
    }

    fn distinct_nodes(nodes: &[NodeRef]) -> usize {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    }

    #[test]
    fn the_backup_is_in_another_zone_where_there_is_one() {
        let ring = Ring::new([node("a", 1), node("b", 1), node("c", 1), node("d", 2)], VNODES_DEFAULT);
        let d = NodeId::of_name("d");
        for key in keys() {
            let replicas = ring.replicas(key, 4);
            assert!(replicas[0].id == d || replicas[1].id == d, "{replicas:?}");
            assert_eq!(distinct_nodes(&replicas), 4);
        }
    }

    #[test]
    fn a_dead_owners_keys_fall_to_their_backups() {
        let before = ring(&["a", "b", "c", "d"]);
        let after = ring(&["a", "b", "d"]);
        for key in keys() {
            let owner = before.owner(key).unwrap();
            let expected = if owner.id == NodeId::of_name("c") { before.backup(key).unwrap() } else { owner };
            assert_eq!(after.owner(key), Some(expected));
        }
    }

    #[test]
    fn a_join_moves_its_share_and_nothing_else() {
        let before = ring(&["a", "b", "c"]);
        let after = ring(&["a", "b", "c", "d"]);
        let d = NodeId::of_name("d");
        let moved = keys().filter(|&k| before.owner(k) != after.owner(k)).count();
        assert!(keys().all(|k| before.owner(k) == after.owner(k) || after.owner(k).unwrap().id == d));
        assert!(moved < 20_000 / 4 * 115 / 100, "{moved} keys moved");
    }

    #[test]
    fn shares_sum_to_one_and_follow_weight() {
        let mut heavy = node("b", 0);
        heavy.weight = 3;
        let ring = Ring::new([node("a", 0), heavy], VNODES_DEFAULT);
        let shares = ring.shares();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let heavy_at = ring.nodes().iter().position(|n| n.weight == 3).unwrap();
        assert!((0.65..0.85).contains(&shares[heavy_at]), "{shares:?}");
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        let ring = ring(&[]);
        assert_eq!(ring.owner(Placement(1)), None);
        assert!(ring.replicas(Placement(1), 2).is_empty());
    }
}
