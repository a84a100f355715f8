//! The network between nodes: which datagrams arrive and when, which streams stall or break.
//!
//! Belongs here: reachability, latency, loss, repeats; connections that carry the lanes of links.
//! Stays out: what travels. Nodes are named by their slot.
//! Invariants: bytes of one lane of one connection arrive in order or not at all; a datagram may be
//! lost, doubled, late or overtaken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::NodeRef;
use mesh_proto::time::Instant;
use mesh_proto::wire::Lane;

use crate::random::Random;

/// Number of a connection.
pub type ConnectionId = u64;

/// Quality of the whole network.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Datagrams lost, of 1,000.
    pub loss_per_mille: u32,
    /// Datagrams doubled, of 1,000.
    pub repeat_per_mille: u32,
    /// Most latency, one way.
    pub latency_max: Duration,
    /// Datagrams delayed by up to 20 ms more, of 1,000.
    pub jitter_per_mille: u32,
}

impl Weather {
    /// A quiet network.
    #[must_use]
    pub fn calm() -> Self {
        Self { loss_per_mille: 0, repeat_per_mille: 0, latency_max: LATENCY_MAX, jitter_per_mille: 5 }
    }
}

const LATENCY_MIN: Duration = Duration::from_micros(200);
const LATENCY_MAX: Duration = Duration::from_micros(1_500);

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The node's slot.
    pub slot: usize,
    /// Which life of it, by the simulation's count.
    pub life: u64,
    /// The same, by the cluster's.
    pub node: NodeRef,
}

/// A connection between two nodes. End 0 dialled.
#[derive(Debug)]
pub struct Connection {
    /// Both ends.
    pub ends: [End; 2],
    /// When the last bytes of a lane arrive, per sending end.
    arrival: [[Instant; Lane::COUNT]; 2],
    /// Bytes that wait for the path to open, per sending end.
    held: [Vec<(Lane, Bytes)>; 2],
}

/// Bytes that waited for their path to open.
#[derive(Debug)]
pub struct Released {
    /// On this connection.
    pub connection: ConnectionId,
    /// Written by this end.
    pub end: usize,
    /// On this lane.
    pub lane: Lane,
    /// The bytes.
    pub bytes: Bytes,
    /// When they reach the other end.
    pub arrival: Instant,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    /// Its present quality.
    pub weather: Weather,
    /// Directions in which nothing passes.
    blocked: BTreeSet<(usize, usize)>,
    connections: BTreeMap<ConnectionId, Connection>,
    opened: u64,
    random: Random,
}

impl Network {
    /// A quiet network without connections.
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self {
            weather: Weather::calm(),
            blocked: BTreeSet::new(),
            connections: BTreeMap::new(),
            opened: 0,
            random,
        }
    }

    /// Whether anything passes from one slot to another.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.blocked.contains(&(from, to))
    }

    /// Lets nothing pass in this direction.
    pub fn block(&mut self, from: usize, to: usize) {
        self.blocked.insert((from, to));
    }

    /// Whether anything is blocked that involves the slot.
    #[must_use]
    pub fn touches(&self, slot: usize) -> bool {
        self.blocked.iter().any(|(from, to)| *from == slot || *to == slot)
    }

    /// When a datagram sent now arrives: not at all, once, or twice.
    pub fn datagram(&mut self, from: usize, to: usize) -> impl Iterator<Item = Duration> + use<> {
        let copies = if !self.passes(from, to) || self.random.per_mille(self.weather.loss_per_mille) {
            0
        } else {
            1 + usize::from(self.random.per_mille(self.weather.repeat_per_mille))
        };
        let arrivals: Vec<_> = (0..copies).map(|_| self.datagram_latency()).collect();
        arrivals.into_iter()
    }

    fn datagram_latency(&mut self) -> Duration {
        let late = self.random.per_mille(self.weather.jitter_per_mille);
        let jitter = if late { self.random.millis(0, 20) } else { Duration::ZERO };
        self.latency() + jitter
    }

    /// One way.
    pub fn latency(&mut self) -> Duration {
        self.random.between(LATENCY_MIN, self.weather.latency_max)
    }

    /// Opens a connection.
    pub fn connect(&mut self, dialler: End, acceptor: End) -> ConnectionId {
        self.opened += 1;
        let ends = [dialler, acceptor];
        self.connections
            .insert(self.opened, Connection { ends, arrival: Default::default(), held: Default::default() });
        self.opened
    }

    /// A connection that has not broken.
    #[must_use]
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    /// When bytes that end `end` writes now reach the other end; `None` when they wait for the path
    /// or the connection has broken.
    pub fn write(
        &mut self,
        now: Instant,
        id: ConnectionId,
        end: usize,
        lane: Lane,
        bytes: &Bytes,
    ) -> Option<Instant> {
        let latency = self.stream_latency();
        let connection = self.connections.get_mut(&id)?;
        let (from, to) = (connection.ends[end].slot, connection.ends[1 - end].slot);
        if self.blocked.contains(&(from, to)) || !connection.held[end].is_empty() {
            connection.held[end].push((lane, bytes.clone()));
            return None;
        }
        let arrival = &mut connection.arrival[end][usize::from(lane.0)];
        *arrival = (*arrival).max(now + latency);
        Some(*arrival)
    }

    /// A lost packet costs a stream a round of repair.
    fn stream_latency(&mut self) -> Duration {
        let repair = self.random.per_mille(self.weather.loss_per_mille);
        self.latency() + if repair { self.random.millis(2, 30) } else { Duration::ZERO }
    }

    /// Breaks a connection: what is under way on it is lost. Its ends, to be told.
    pub fn sever(&mut self, id: ConnectionId) -> Option<[End; 2]> {
        self.connections.remove(&id).map(|connection| connection.ends)
    }

    /// Connections over a path in which at least one direction is blocked.
    #[must_use]
    pub fn stalled(&self) -> Vec<ConnectionId> {
        let stalled = |connection: &Connection| {
            let [a, b] = [connection.ends[0].slot, connection.ends[1].slot];
            !self.passes(a, b) || !self.passes(b, a)
        };
        self.connections.iter().filter(|(_, c)| stalled(c)).map(|(id, _)| *id).collect()
    }

    /// Connections that stand.
    #[must_use]
    pub fn standing(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    /// Lets everything pass in these directions; the bytes that waited.
    pub fn unblock(&mut self, now: Instant, which: &[(usize, usize)]) -> Vec<Released> {
        for direction in which {
            self.blocked.remove(direction);
        }
        let mut released = Vec::new();
        let (random, latency_max) = (&mut self.random, self.weather.latency_max);
        for (id, connection) in &mut self.connections {
            for end in 0..2 {
                let direction = (connection.ends[end].slot, connection.ends[1 - end].slot);
                if self.blocked.contains(&direction) || connection.held[end].is_empty() {
                    continue;
                }
                // The sender tries again when its probe timer fires.
                let retry = random.millis(0, 300) + random.between(LATENCY_MIN, latency_max);
                for (lane, bytes) in std::mem::take(&mut connection.held[end]) {
                    let arrival = &mut connection.arrival[end][usize::from(lane.0)];
                    *arrival = (*arrival).max(now + retry);
                    released.push(Released { connection: *id, end, lane, bytes, arrival: *arrival });
                }
            }
        }
        released
    }

    /// Every blocked direction.
    #[must_use]
    pub fn blocks(&self) -> Vec<(usize, usize)> {
        self.blocked.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::id::NodeId;

    use super::*;

    fn bytes() -> Bytes {
        Bytes::from_static(b"x")
    }

    #[test]
    fn a_lane_keeps_its_order_and_waits_while_blocked() {
        let mut network = Network::new(Random::new(1));
        let [a, b] = [0, 1].map(|slot| End {
            slot,
            life: 1,
            node: NodeRef { id: NodeId(slot as u64), incarnation: 1 },
        });
        let id = network.connect(a, b);
        let now = Instant::from_micros(5);
        let arrivals: Vec<_> =
            (0..50).map(|_| network.write(now, id, 0, Lane(0), &bytes()).unwrap()).collect();
        assert!(arrivals.is_sorted());
        network.block(0, 1);
        assert_eq!(network.write(now, id, 0, Lane(0), &bytes()), None);
        assert!(network.write(now, id, 1, Lane(0), &bytes()).is_some());
        assert_eq!(network.stalled(), [id]);
        let released = network.unblock(now, &[(0, 1)]);
        assert_eq!(released.len(), 1);
        assert!(released[0].arrival >= *arrivals.last().unwrap());
        network.sever(id);
        assert_eq!(network.write(now, id, 0, Lane(0), &bytes()), None);
    }

    #[test]
    fn datagrams_are_lost_and_doubled_as_asked() {
        let mut network = Network::new(Random::new(1));
        network.weather.loss_per_mille = 200;
        network.weather.repeat_per_mille = 100;
        let copies: Vec<usize> = (0..1_000).map(|_| network.datagram(0, 1).count()).collect();
        assert!((150..250).contains(&copies.iter().filter(|n| **n == 0).count()));
        assert!((50..130).contains(&copies.iter().filter(|n| **n == 2).count()));
        network.block(0, 1);
        assert_eq!(network.datagram(0, 1).count(), 0);
    }
}
