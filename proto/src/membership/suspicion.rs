//! The suspicions that this node will act on, and telling the suspects.
//!
//! Belongs here: how long each has run, when it comes true, the datagram that tells a suspect.
//! Stays out: who is suspect (foca), why longer (`health`).
//! Invariants: one per member. None comes true before this node has run for `suspect_for` since it was
//! raised (time in which it stood still does not count), nor before that time, stretched by bad
//! health, has passed by the clock. The suspect is told by the one who suspects it, at once and as
//! long as the suspicion stands, so that none comes true which its suspect could have refuted.
//! Source: SWIM (Das et al. 2002) §4.2; Lifeguard (Dadgar et al. 2017) §IV, buddy system. foca leaves
//! both to chance: it gossips a suspicion for a while, and acts on it later all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use foca::{Member, Message, State, Timer};

use super::Identity;
use crate::id::NodeId;
use crate::time::Instant;

/// Suspects told per gossip period; the others have their turn in the next one.
const TOLD_AT_ONCE: usize = 8;

/// So often a suspicion that is about to come true waits for the others once more, because this node
/// has just stood still.
const CHANCES: u8 = 3;

/// The number of the ping that tells a suspect. Its answer carries the refutation; as an answer to a
/// probe it counts only if the suspect is being probed under that very number: then it is one.
const PING_NUMBER: u8 = 0;

/// How long suspicions last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lasts {
    /// Of this node's running time.
    pub(crate) run: Duration,
    /// By the clock; `run` in good health.
    pub(crate) clock: Duration,
}

/// Suspicions raised by this node, by suspect.
#[derive(Debug, Default)]
pub(crate) struct Suspicions {
    held: BTreeMap<NodeId, Suspicion>,
    told: u64,
}

#[derive(Debug)]
struct Suspicion {
    /// What foca is to be handed when it comes true.
    timer: Timer<Identity>,
    suspect: Member<Identity>,
    raised: Instant,
    /// The same, later by the time this node stood still.
    since: Instant,
    chances: u8,
    /// Which telling was the last: least lately told goes first.
    told: u64,
}

impl Suspicions {
    /// Holds what foca wants to act on later, and answers whom it is about; `None` if an earlier
    /// suspicion of the same member in the same state runs on.
    pub(crate) fn raise(&mut self, now: Instant, timer: Timer<Identity>) -> Option<Member<Identity>> {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer else { return None };
        let suspect = Member::new(*member_id, *incarnation, State::Suspect);
        let id = member_id.node.id;
        if self.held.get(&id).is_some_and(|held| held.suspect == suspect) {
            return None;
        }
        let held = {
            let suspect = suspect.clone();
            Suspicion { timer, suspect, raised: now, since: now, chances: CHANCES, told: 0 }
        };
        self.held.insert(id, held);
        Some(suspect)
    }

    /// Another life of this node starts without any.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
    }

    /// Forgets those that do not stand any more. `members` is everybody foca knows.
    pub(crate) fn settle<'a>(&mut self, members: impl Iterator<Item = &'a Member<Identity>>) {
        if self.held.is_empty() {
            return;
        }
        let mut stand: Vec<NodeId> = Vec::with_capacity(self.held.len());
        for member in members {
            if self.held.get(&member.id().node.id).is_some_and(|held| held.suspect == *member) {
                stand.push(member.id().node.id);
            }
        }
        stand.sort_unstable();
        self.held.retain(|id, _| stand.binary_search(id).is_ok());
    }

    /// This node stood still until now, for `late`. One that is about to come true waits for `chance`.
    pub(crate) fn stood_still(&mut self, now: Instant, late: Duration, lasts: Lasts, chance: Duration) {
        for held in self.held.values_mut() {
            held.since = (held.since + late).min(now);
            if held.chances > 0 && held.deadline(lasts) < now + chance {
                held.chances -= 1;
                held.since = held.since + (now + chance).since(held.since + lasts.run);
            }
        }
    }

    /// When the first comes true.
    pub(crate) fn next_deadline(&self, lasts: Lasts) -> Option<Instant> {
        self.held.values().map(|held| held.deadline(lasts)).min()
    }

    /// One that has come true.
    pub(crate) fn take_due(&mut self, now: Instant, lasts: Lasts) -> Option<Timer<Identity>> {
        let (&id, _) = self.held.iter().find(|(_, held)| held.deadline(lasts) <= now)?;
        self.held.remove(&id).map(|held| held.timer)
    }

    /// Whether one of `suspect` is held.
    pub(crate) fn holds(&self, suspect: NodeId) -> bool {
        self.held.contains_key(&suspect)
    }

    /// Whom to tell now.
    pub(crate) fn tell_next(&mut self) -> Vec<Member<Identity>> {
        let mut waiting: Vec<(u64, NodeId)> = self.held.iter().map(|(id, held)| (held.told, *id)).collect();
        waiting.sort_unstable();
        waiting.truncate(TOLD_AT_ONCE);
        let mut suspects = Vec::with_capacity(waiting.len());
        for (_, id) in waiting {
            self.told += 1;
            if let Some(held) = self.held.get_mut(&id) {
                held.told = self.told;
                suspects.push(held.suspect.clone());
            }
        }
        suspects
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

impl Suspicion {
    fn deadline(&self, lasts: Lasts) -> Instant {
        (self.since + lasts.run).max(self.raised + lasts.clock)
    }
}

/// A ping of SWIM whose one update is that its target is suspect. The target refutes, and its answer
/// says so.
pub(crate) fn telling(me: Identity, suspect: &Member<Identity>) -> Bytes {
    // Incarnation 0 of the sender is no news to anybody.
    let header =
        foca::Header { src: me, src_incarnation: 0, dst: *suspect.id(), message: Message::Ping(PING_NUMBER) };
    let mut bytes = postcard::to_allocvec(&header).expect("identities always encode");
    bytes.extend_from_slice(&1_u16.to_be_bytes());
    bytes.extend_from_slice(&postcard::to_allocvec(suspect).expect("identities always encode"));
    bytes.into()
}
