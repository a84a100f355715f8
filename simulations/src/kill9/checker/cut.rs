//! What a cut of the network excuses.
//!
//! Belongs here: sides, the times of a cut, which messages may be missing at whom. Stays out: cutting.
//! Rule (DESIGN §1, P8): each side serves its own, and what could not be merged is told as a gap. So what a
//! side's members are owed of its own publishers while it stands alone must come, and everything from
//! when there is one owner each again. What was sent across the cut, or while owners changed, must come or
//! its room must have been told a gap at the member's node. Twice or out of order it may never come.

use std::collections::BTreeSet;

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
        let own = by.is_some() && by == self.side(Some(node));
        let alone = own && self.stood_alone(sent, answered);
        let apart = answered + UNDER_WAY < self.from || sent > self.healed;
        !alone && !apart && self.gaps.contains(&(node, room))
    }

    /// Whether a message went its whole way while its side stood alone.
    pub(super) fn stood_alone(&self, sent: u64, answered: u64) -> bool {
        sent >= self.split && answered <= self.mended
    }
}
