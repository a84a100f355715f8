//! What clients carry: the offset that ends each event of a client that may come back.
//!
//! Belongs here: a session's cursors as an offset, events with it.
//! Stays out: the bytes of an offset (`recovery`).
//! Units: an event is written as the shared text without its closing bracket, and a tail of some 20 bytes.
//! Invariants: an offset says exactly what has been written to the client before it, this event included.

use std::sync::Arc;

use super::Edge;
use super::session::Membership;
use crate::mutant::{Mutant, is_planted};
use crate::recovery::{self, RoomAt};
use crate::shard::Packet;

impl Edge {
    /// Appends what ends an event for this session: its offset as the last argument.
    pub(super) fn append_tail(&mut self, out: &mut Vec<u8>, index: u32) {
        let session = &self.sessions[index as usize];
        let Some(key) = session.offset_key else { return };
        let behind = self.clients[session.client.0 as usize].as_ref().is_some_and(|client| client.behind);
        let tails = &self.tails;
        let is_whole = !session.rooms.iter().any(|m| self.has_hole(m));
        let rooms = session.rooms.iter().map(|m| {
            if m.slot.is_none() && m.verified {
                return None;
            }
            let at = m.handed_up_to(behind, &tails[m.tail as usize]);
            Some(RoomAt { tag: m.tag, joined: m.joined, at })
        });
        if is_whole || is_planted(Mutant::LostNotTold) {
            recovery::encode(out, &mut self.scratch, key, session.own_done, rooms);
        } else {
            recovery::encode_lost(out, &mut self.scratch, key, session.own_done);
        }
        out.extend_from_slice(b"\"]");
    }

    /// Whether something has not been served in a room: its history has been lost since the client's join.
    pub(super) fn has_hole(&self, m: &Membership) -> bool {
        let known = if m.history == 0 { m.in_force_in } else { m.history };
        let in_force = m.slot.is_some() && m.verified;
        m.has_hole || (in_force && known != self.tails[m.tail as usize].history())
    }

    /// An event for one client, whole.
    pub(super) fn with_tail(&mut self, frames: &[Packet], index: u32) -> Arc<[Packet]> {
        let mut tail = Vec::with_capacity(48);
        self.append_tail(&mut tail, index);
        with_tail(frames, &tail)
    }
}

/// The messages of an event: the first ends with `tail`.
pub(super) fn with_tail(frames: &[Packet], tail: &[u8]) -> Arc<[Packet]> {
    let (first, rest) = frames.split_first().expect("an event is at least a text");
    let (Packet::Text(open) | Packet::Binary(open)) = first;
    let text = [&open[..], tail].concat();
    std::iter::once(Packet::Text(text.into())).chain(rest.iter().cloned()).collect()
}
