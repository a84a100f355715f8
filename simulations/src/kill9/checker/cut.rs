//! What a cut of the network excuses.
//!
//! Belongs here: sides, the times of a cut, which messages may be missing at whom. Stays out: cutting.
//! Rule (DESIGN §1, P8): each side serves its own, and what could not be merged is told as a gap. So what a
//! side's members are owed of its own publishers while it stands alone must come, and everything from
//! when there is one owner each again. What was sent across the cut, or while owners changed, must come or
//! its room must have been told a gap at the member's node. Twice or out of order it may never come.

use std::collections::BTreeSet;

use super::{Broken, Checker, Message, Publisher, Round, Seat, State};

/// A cut that split the nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut {
    /// By node: those of one number reach each other all the time.
    pub(crate) sides: Vec<usize>,
    pub(crate) from: u64,
    /// When each side had a ring of its own.
    pub(crate) split: u64,
    /// When the network was whole again.
    pub(crate) mended: u64,
    /// When there was one owner each again.
    pub(crate) healed: u64,
    /// The side of a node of which one way is cut only: it is not told that it is alone, nor can it serve.
    pub(crate) half: Option<usize>,
    /// Where a hole in the log of a room was told: node, room.
    pub(crate) gaps: BTreeSet<(usize, usize)>,
}

/// What acknowledged nothing within this time before a cut may have been under way when it came.
const UNDER_WAY: u64 = 1_000_000;

impl Cut {
    /// The side of a client by its node; one that has none is alone.
    pub(super) fn side(&self, node: Option<usize>) -> Option<usize> {
        self.sides.get(node?).copied()
    }

    /// Whether a message of `room`, sent and answered then by a publisher of side `by`, may be missing at a member
    /// by `node`.
    pub(super) fn excuses(
        &self,
        (sent, answered): (u64, u64),
        room: usize,
        by: Option<usize>,
        node: usize,
    ) -> bool {
        let own = by.is_some() && by != self.half && by == self.side(Some(node));
        let alone = own && self.stood_alone(sent, answered);
        !alone && self.touches(sent, answered) && self.gaps.contains(&(node, room))
    }

    /// Whether the cut, or the changes of owners after it, may have come between a message and its members.
    pub(super) fn touches(&self, sent: u64, answered: u64) -> bool {
        answered + UNDER_WAY >= self.from && sent <= self.healed
    }

    /// Whether a message went its whole way while its side stood alone.
    pub(super) fn stood_alone(&self, sent: u64, answered: u64) -> bool {
        sent >= self.split && answered <= self.mended
    }
}

impl Checker {
    /// The network was cut in this round.
    pub(crate) fn was_cut(&mut self, cut: Cut) {
        self.cut = Some(cut);
    }

    /// A hole in the log of a room was told at `node`.
    pub(crate) fn gap_told(&mut self, node: usize, room: usize) {
        if let Some(cut) = &mut self.cut {
            cut.gaps.insert((node, room));
        }
    }

    /// The side of a client; all are on one while the network is whole.
    pub(super) fn side(&self, seat: &Seat) -> Option<usize> {
        self.cut.as_ref().map_or(Some(0), |cut| cut.side(seat.node()))
    }

    pub(super) fn excuses(&self, member: usize, publisher: usize, message: &Message) -> bool {
        let Some((cut, node)) = self.cut.as_ref().zip(self.members[member].seat.node()) else { return false };
        let by = cut.side(self.publishers[publisher].seat.node());
        cut.excuses((message.sent, message.answered), member / self.plan.members, by, node)
    }

    /// Each side has had answers while it stood alone.
    pub(super) fn judge_sides(&self, round: &mut Round, broken: &mut Broken) {
        let Some(cut) = &self.cut else { return };
        let publishers_of =
            |side| self.publishers.iter().filter(move |p| cut.side(p.seat.node()) == Some(side));
        let sides: BTreeSet<_> = cut.sides.iter().copied().filter(|side| cut.half != Some(*side)).collect();
        for side in sides {
            let served = |publisher: &Publisher| {
                let alone = |m: &Message| m.state == State::Acked && cut.stood_alone(m.sent, m.answered);
                publisher.to_judge().any(|(_, message)| alone(message))
            };
            let silent = publishers_of(side).filter(|publisher| !served(publisher)).count();
            if silent > 0 {
                round.not_served += silent as u64;
                broken
                    .say(|| format!("{silent} publishers of side {side} had no answer while it stood alone"));
            }
        }
    }

    /// Whether a message has one place in the order of a room for all members of `side`: while owners change, and
    /// out of a merge, it comes to each node in its time.
    pub(super) fn has_place(&self, side: usize, publisher: u16, number: u32) -> bool {
        let publisher = &self.publishers[usize::from(publisher)];
        let message = publisher.messages.get(number as usize);
        let Some((cut, &Message { sent, answered, .. })) = self.cut.as_ref().zip(message) else {
            return true;
        };
        let own = self.side(&publisher.seat) == Some(side);
        let alone = own && cut.half != Some(side) && cut.stood_alone(sent, answered);
        alone || !cut.touches(sent, answered)
    }
}
