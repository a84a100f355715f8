//! A session as its edge sees it: what the owner has not confirmed, what the client is owed, where it is
//! served from.
//!
//! Belongs here: numbering, the shadow, repeats. Stays out: packets of client protocols, tails.
//! Invariants: inbound packets keep their numbers through every owner; own-log entries are taken once
//! and in order.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{ClientIx, Cursor, NodeRef, Placement, RoomKey, Term};
use crate::limits::Limits;
use crate::shard::ClientProtocol;
use crate::time::Instant;
use crate::wire::{Inbound, OwnEntry, OwnKind, SessionIdentity};

/// Bookkeeping of an inbound packet beside its payload.
const PACKET_OVERHEAD_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct EdgeSession {
    pub(super) identity: SessionIdentity,
    pub(super) placement: Placement,
    pub(super) protocol: ClientProtocol,
    pub(super) client: ClientIx,
    pub(super) attachment: u64,
    /// Whom we attached to, and whether it has taken the session on.
    pub(super) owner: Option<NodeRef>,
    pub(super) attached: bool,
    /// The client has been told that it is connected.
    pub(super) welcomed: bool,
    pub(super) term: Term,
    /// Packets up to here are done and safe.
    pub(super) confirmed: u64,
    unconfirmed: VecDeque<Inbound>,
    unconfirmed_bytes: usize,
    /// The last packet sent to the present owner.
    sent: u64,
    /// The last own-log entry taken.
    pub(super) own_seq: u64,
    /// Entries taken and not carried out yet, oldest first. `None`: an answer that the client has had
    /// from an earlier owner.
    pub(super) own_waiting: VecDeque<Option<OwnEntry>>,
    /// How many unconfirmed packets that ask for an answer under an id have got it.
    answered: BTreeMap<u64, usize>,
    pub(super) own_reported: u64,
    /// Bytes of the entries carried out since then.
    own_unreported_bytes: usize,
    /// The first of `own_waiting` is held back since then.
    pub(super) held_since: Option<Instant>,
    pub(super) rooms: Vec<Membership>,
}

/// A room of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    /// Index into the edge's tails.
    pub(super) tail: u32,
    /// Place among the tail's members; `None` while the tail is not live yet.
    pub(super) slot: Option<u32>,
    /// Where the join took effect.
    pub(super) joined: Cursor,
    /// The client did not ask for it: it is told when the join is in force.
    pub(super) tell: bool,
    /// The own-log entry that asked for it; 0 for the room of everyone.
    pub(super) own_seq: u64,
    /// Index of the next entry to serve. Counts only while the client is behind.
    pub(super) next: u64,
}

/// The id under which a packet asks for an answer.
fn asks_for(packet: &Inbound) -> Option<u64> {
    match packet {
        Inbound::Event { ack, .. } => *ack,
        Inbound::Answered { ack } => Some(*ack),
        Inbound::Ack { .. } | Inbound::Disconnect => None,
    }
}

fn packet_bytes(packet: &Inbound) -> usize {
    PACKET_OVERHEAD_BYTES
        + match packet {
            Inbound::Event { payload, .. } | Inbound::Ack { payload, .. } => payload.len(),
            Inbound::Disconnect | Inbound::Answered { .. } => 0,
        }
}

impl EdgeSession {
    pub(super) fn new(
        identity: SessionIdentity,
        placement: Placement,
        protocol: ClientProtocol,
        client: ClientIx,
    ) -> Self {
        Self {
            identity,
            placement,
            protocol,
            client,
            attachment: 1,
            owner: None,
            attached: false,
            welcomed: false,
            term: Term::NONE,
            confirmed: 0,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            sent: 0,
            own_seq: 0,
            own_waiting: VecDeque::new(),
            answered: BTreeMap::new(),
            own_reported: 0,
            own_unreported_bytes: 0,
            held_since: None,
            rooms: Vec::new(),
        }
    }

    pub(super) fn push_inbound(&mut self, packet: Inbound) {
        self.unconfirmed_bytes += packet_bytes(&packet);
        self.unconfirmed.push_back(packet);
    }

    /// More than its owner should have under way.
    pub(super) fn is_over_inbound_bound(&self, limits: &Limits) -> bool {
        self.unconfirmed.len() >= limits.inbound_packets_max
            || self.unconfirmed_bytes >= limits.inbound_bytes_max
    }

    /// Little enough that reading may go on.
    pub(super) fn is_under_half_of_bound(&self, limits: &Limits) -> bool {
        self.unconfirmed.len() <= limits.inbound_packets_max / 2
            && self.unconfirmed_bytes <= limits.inbound_bytes_max / 2
    }

    pub(super) fn confirm_inbound(&mut self, number: u64) {
        while self.confirmed < number
            && let Some(packet) = self.unconfirmed.pop_front()
        {
            self.unconfirmed_bytes -= packet_bytes(&packet);
            self.confirmed += 1;
            if let Some(id) = asks_for(&packet)
                && let Some(count) = self.answered.get_mut(&id)
            {
                *count -= 1;
                if *count == 0 {
                    self.answered.remove(&id);
                }
            }
        }
        self.sent = self.sent.max(self.confirmed);
    }

    /// Takes the next own-log entry, to be carried out in its turn. A new owner carries out again what
    /// the last one had not confirmed, so it may answer what has been answered.
    pub(super) fn take_own(&mut self, entry: OwnEntry) {
        self.own_seq += 1;
        let repeated = match entry.kind {
            OwnKind::Ack { id, .. } => !self.count_answer(id),
            _ => false,
        };
        self.own_waiting.push_back((!repeated).then_some(entry));
    }

    /// Counts an answer; `false` if every packet that asks for it has got it.
    fn count_answer(&mut self, id: u64) -> bool {
        let asking = self.unconfirmed.iter().filter(|packet| asks_for(packet) == Some(id)).count();
        let answered = self.answered.get(&id).copied().unwrap_or(0);
        if answered > 0 && answered >= asking {
            return false;
        }
        // An owner that lives on may confirm a packet before it repeats the answer.
        if asking > answered {
            self.answered.insert(id, answered + 1);
        }
        if asking == answered + 1 {
            self.settle(id);
        }
        true
    }

    /// Every packet that asks for this answer has got it: what they did is done, and no other owner is
    /// to do it again.
    fn settle(&mut self, id: u64) {
        for packet in self.unconfirmed.iter_mut().filter(|packet| asks_for(packet) == Some(id)) {
            let before = packet_bytes(packet);
            *packet = Inbound::Answered { ack: id };
            self.unconfirmed_bytes -= before - packet_bytes(packet);
        }
    }

    /// Whether an entry that waits takes the session out of this room.
    pub(super) fn leaves_soon(&self, room: &RoomKey) -> bool {
        self.own_waiting
            .iter()
            .flatten()
            .any(|entry| matches!(&entry.kind, OwnKind::Leave(left, _) if left == room))
    }

    /// Another owner, or the same anew: everything unconfirmed goes out again.
    pub(super) fn rewind_inbound(&mut self) {
        self.sent = self.confirmed;
    }

    /// What the owner has not been sent: number of the first, and the packets.
    pub(super) fn take_unsent(&mut self) -> Option<(u64, Vec<Inbound>)> {
        let skip = usize::try_from(self.sent - self.confirmed).ok()?;
        let first = self.sent + 1;
        let packets: Vec<Inbound> = self.unconfirmed.iter().skip(skip).cloned().collect();
        self.sent += packets.len() as u64;
        (!packets.is_empty()).then_some((first, packets))
    }

    /// The last own-log entry carried out.
    pub(super) fn own_done(&self) -> u64 {
        self.own_seq - self.own_waiting.len() as u64
    }

    /// Takes the next of `own_waiting`.
    pub(super) fn pop_own(&mut self) -> Option<Option<OwnEntry>> {
        let entry = self.own_waiting.pop_front()?;
        if let Some(OwnKind::Ack { payload, .. } | OwnKind::Emit { payload, .. }) =
            entry.as_ref().map(|entry| &entry.kind)
        {
            self.own_unreported_bytes += payload.len();
        }
        Some(entry)
    }

    /// Whether the owner should be told at once how far the own log is carried out, before its bounds
    /// stop it. Telling it of every entry would wake two nodes more for each ack.
    pub(super) fn own_report_is_due(&self, limits: &Limits) -> bool {
        self.own_done() - self.own_reported >= limits.own_log_entries_max as u64 / 8
            || self.own_unreported_bytes >= limits.own_log_bytes_max / 4
    }

    pub(super) fn own_was_reported(&mut self) {
        self.own_reported = self.own_done();
        self.own_unreported_bytes = 0;
    }

    pub(super) fn membership(&mut self, tail: u32) -> Option<&mut Membership> {
        self.rooms.iter_mut().find(|m| m.tail == tail)
    }

    pub(super) fn is_excepted<'a>(
        &self,
        room_of: impl Fn(u32) -> &'a RoomKey,
        except_rooms: &[std::sync::Arc<str>],
    ) -> bool {
        !except_rooms.is_empty()
            && self.rooms.iter().any(|m| {
                let room = room_of(m.tail);
                !room.is_everyone() && except_rooms.iter().any(|except| **except == *room.room())
            })
    }

    pub(super) fn check_invariants(&self, limits: &Limits) {
        assert_eq!(self.unconfirmed_bytes, self.unconfirmed.iter().map(packet_bytes).sum::<usize>());
        assert!(self.sent >= self.confirmed && self.sent <= self.confirmed + self.unconfirmed.len() as u64);
        assert!(self.rooms.len() <= limits.rooms_per_session_max + 1);
        assert!(self.answered.values().sum::<usize>() <= self.unconfirmed.len());
    }
}
