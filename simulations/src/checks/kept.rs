//! Acknowledged means safe (I3): who must have got which event in the end.
//!
//! Belongs here: what was acknowledged, who was in its room from before it was asked until the end, gaps
//! that were told instead. Stays out: what was delivered (`Checks`).
//! A member whose stay ends owes nothing to this account: how far it had got is not known to it.
//! Edges go by their names here: one that was declared down and is back under another incarnation still
//! has its clients, and what they were told.

use std::collections::BTreeMap;

use mesh_proto::id::NodeId;
use mesh_proto::time::Instant;

use super::{EventId, SessionId};

/// A product and a room of it.
pub type Room = (u8, u16);

/// An event whose publisher was told that it is safe.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    /// Which.
    pub event: EventId,
    /// Where.
    pub room: Room,
    /// When its publisher asked.
    pub asked: Instant,
    /// A session that does not get it: the publisher, unless it wanted to.
    pub except: Option<SessionId>,
}

/// The account of one run.
#[derive(Debug, Default)]
pub struct Kept {
    acked: Vec<Acked>,
    /// Since when a session is in a room, by what its client was told last.
    members: BTreeMap<(Room, SessionId), Instant>,
    /// Gaps told to edges.
    gaps: BTreeMap<(Room, NodeId), Instant>,
    /// The last gap that a shard told its own edge: in which room nobody outside hears.
    gaps_within: BTreeMap<NodeId, Instant>,
    /// Gaps told.
    pub gaps_told: u64,
}

/// A member that never got what was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What.
    pub event: EventId,
    /// Where.
    pub room: Room,
    /// Who.
    pub member: SessionId,
}

impl Kept {
    /// A publish was acknowledged.
    pub fn acked(&mut self, acked: Acked) {
        self.acked.push(acked);
    }

    /// A client was told that it is in a room.
    pub fn joined(&mut self, now: Instant, room: Room, member: SessionId) {
        self.members.insert((room, member), now);
    }

    /// An edge is told that there is a hole in what it gets of a room.
    pub fn gap(&mut self, now: Instant, room: Room, edge: NodeId) {
        self.gaps_told += 1;
        self.gaps.insert((room, edge), now);
    }

    /// A shard tells its own edge that there is a hole in some room.
    pub fn gap_within(&mut self, now: Instant, edge: NodeId) {
        self.gaps_told += 1;
        self.gaps_within.insert(edge, now);
    }

    /// When that edge was told last that there is a hole in what it gets of a room, or in some room.
    pub fn last_gap(&self, room: Room, edge: NodeId) -> Option<Instant> {
        self.gaps.get(&(room, edge)).max(self.gaps_within.get(&edge)).copied()
    }

    /// Everything acknowledged that a member never got. `edges_of` tells where a session that is in a room
    /// until now has its transport, and where it had it before that went over to a WebSocket.
    pub fn lost<'a>(
        &'a self,
        gaps_excuse: bool,
        has: impl Fn(Room, SessionId, EventId) -> bool + 'a,
        edges_of: impl Fn(Room, SessionId) -> Option<[NodeId; 2]> + 'a,
    ) -> impl Iterator<Item = Lost> + 'a {
        let here = move |((room, member), since): (&(Room, SessionId), &'a Instant)| {
            edges_of(*room, *member).map(|edges| (*room, *member, since, edges))
        };
        self.members.iter().filter_map(here).flat_map(move |(room, member, since, edges)| {
            let gap =
                edges.iter().filter_map(|edge| self.last_gap(room, *edge)).max().filter(|_| gaps_excuse);
            let owed = self.acked.iter().filter(move |acked| {
                let excused = gap.is_some_and(|gap| gap >= acked.asked);
                acked.room == room && acked.asked > *since && acked.except != Some(member) && !excused
            });
            let missing: Vec<Lost> = owed
                .filter(|acked| !has(acked.room, member, acked.event))
                .map(|acked| Lost { event: acked.event, room, member })
                .collect();
            missing
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: NodeId = NodeId(1);
    const FORMER: NodeId = NodeId(2);

    fn session(client: u32) -> SessionId {
        SessionId { client, session: 1 }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn publish(kept: &mut Kept, seconds: u64, except: Option<SessionId>) -> EventId {
        let event = EventId { publisher: session(9), number: u32::try_from(seconds).unwrap() };
        kept.acked(Acked { event, room: (0, 1), asked: at(seconds), except });
        event
    }

    /// Members 3 and above have left since.
    fn lost(kept: &Kept, gaps_excuse: bool) -> Vec<u32> {
        let here = |_, member: SessionId| (member.client < 3).then_some([EDGE, FORMER]);
        kept.lost(gaps_excuse, |_, _, _| false, here).map(|lost| lost.member.client).collect()
    }

    #[test]
    fn members_from_before_the_publish_until_the_end_are_owed_it() {
        let mut kept = Kept::default();
        kept.joined(at(1), (0, 1), session(1));
        kept.joined(at(1), (0, 2), session(2));
        kept.joined(at(1), (0, 1), session(3));
        kept.joined(at(1), (0, 1), session(0));
        let event = publish(&mut kept, 2, Some(session(0)));
        assert_eq!(lost(&kept, false), [1]);
        let has = |room, _, e| room == (0, 1) && e == event;
        assert_eq!(kept.lost(false, has, |_, _| Some([EDGE; 2])).count(), 0);
        kept.joined(at(3), (0, 1), session(1));
        assert!(lost(&kept, false).is_empty(), "joined anew after it");
    }

    #[test]
    fn a_gap_told_after_the_publish_excuses_it() {
        let mut kept = Kept::default();
        kept.joined(at(1), (0, 1), session(1));
        publish(&mut kept, 2, None);
        kept.gap(at(3), (0, 1), EDGE);
        assert!(lost(&kept, true).is_empty());
        assert_eq!(lost(&kept, false), [1], "where no gap may be told");
        publish(&mut kept, 4, None);
        assert_eq!(lost(&kept, true), [1]);
        kept.gap(at(5), (0, 1), FORMER);
        assert!(lost(&kept, true).is_empty(), "told before its transport went over");
    }
}
