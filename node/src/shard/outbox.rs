//! What one turn writes: every frame encoded once, referred to by all who get it.
//!
//! Belongs here: encoding messages into one arena; for each client the list of its pieces of it.
//! Stays out: sockets; what did not fit into them (`client`).
//! Why: a message for a thousand clients is copied once, into the arena. A client's pieces that lie
//! side by side are one piece, so that a client that gets a run of messages, be it all that was said
//! in its one room, is written to straight from the arena; only others are gathered.
//! Invariants: pieces of a client keep the order of the pushes.

use std::ops::Range;

use mesh_proto::shard::Packet;

use crate::transport::websocket;

const NONE: u32 = u32::MAX;

/// The list of one client's pieces. Meaningful until [`Outbox::clear`] only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    first: u32,
    last: u32,
}

impl Default for Pending {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Pending {
    pub(crate) fn is_empty(self) -> bool {
        self.first == NONE
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    end: u32,
    next: u32,
}

/// The arena of one shard.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    arena: Vec<u8>,
    pieces: Vec<Piece>,
    /// Where pieces that are not side by side are joined for one write.
    gathered: Vec<u8>,
}

impl Outbox {
    /// Encodes with `append`; the range to [`Self::push`] to each client that gets it.
    pub(crate) fn encode(&mut self, append: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.arena.len();
        append(&mut self.arena);
        start..self.arena.len()
    }

    /// Encodes messages, one frame each.
    pub(crate) fn encode_packets(&mut self, packets: &[Packet]) -> Range<usize> {
        self.encode(|arena| packets.iter().for_each(|packet| websocket::append_packet(arena, packet)))
    }

    /// Adds a range to what a client gets. Whether it is its first.
    pub(crate) fn push(&mut self, pending: &mut Pending, range: &Range<usize>) -> bool {
        let position = |at: usize| u32::try_from(at).expect("the arena is flushed long before 4 GiB");
        let (start, end, piece) = (position(range.start), position(range.end), position(self.pieces.len()));
        if let Some(last) = self.pieces.get_mut(pending.last as usize) {
            if last.end == start {
                last.end = end;
                return false;
            }
            last.next = piece;
        }
        self.pieces.push(Piece { start, end, next: NONE });
        let first = pending.is_empty();
        if first {
            pending.first = piece;
        }
        pending.last = piece;
        first
    }

    /// All bytes of a client, in order.
    pub(crate) fn gather(&mut self, pending: Pending) -> &[u8] {
        let Some(first) = self.pieces.get(pending.first as usize) else { return &[] };
        if first.next == NONE {
            return &self.arena[first.start as usize..first.end as usize];
        }
        self.gathered.clear();
        let mut next = pending.first;
        while let Some(piece) = self.pieces.get(next as usize) {
            self.gathered.extend_from_slice(&self.arena[piece.start as usize..piece.end as usize]);
            next = piece.next;
        }
        &self.gathered
    }

    /// Bytes and pieces held, as bytes.
    pub(crate) fn weight(&self) -> usize {
        self.arena.len() + self.pieces.len() * size_of::<Piece>()
    }

    /// Forgets everything; the memory is kept for the next turn up to `keep` bytes each.
    pub(crate) fn clear(&mut self, keep: usize) {
        self.arena.clear();
        self.pieces.clear();
        self.gathered.clear();
        self.arena.shrink_to(keep);
        self.pieces.shrink_to(keep / size_of::<Piece>());
        self.gathered.shrink_to(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_side_by_side_become_one_and_others_are_joined_in_order() {
        let mut outbox = Outbox::default();
        let (mut every, mut some) = (Pending::default(), Pending::default());
        for (number, text) in ["a", "b", "c"].into_iter().enumerate() {
            let range = outbox.encode(|arena| arena.extend_from_slice(text.as_bytes()));
            assert_eq!(outbox.push(&mut every, &range), number == 0);
            if number != 1 {
                outbox.push(&mut some, &range);
            }
        }
        assert_eq!(outbox.pieces.len(), 3);
        assert_eq!(outbox.gather(every), b"abc");
        assert_eq!(outbox.gather(some), b"ac");
        assert_eq!(outbox.gather(Pending::default()), b"");
        outbox.clear(0);
        assert_eq!(outbox.weight(), 0);
    }
}
