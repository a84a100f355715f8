//! From where a session goes on for a client that comes back.
//!
//! Belongs here: what an offset means for a session: which rooms, and from which place in each.
//! Stays out: the bytes of offsets (`recovery`), whether a room's log still has that place (`edge`).
//! Invariants: nobody goes on below a join; what cannot be continued without a hole is refused.

use super::state::{Membership, SessionState};
use crate::id::{Cursor, RoomKey};
use crate::mutant::{Mutant, is_planted};
use crate::recovery::{Carried, Offset, Tag, room_tag};
use crate::room;
use crate::wire::{NotResumed, ResumedRoom};

/// What a client that comes back has seen.
#[derive(Debug, PartialEq)]
pub(super) struct ResumePoint {
    /// The last own-log entry it has shown.
    pub(super) own_seq: u64,
    /// Where its rooms have moved to since their joins.
    moved: Vec<(RoomKey, Cursor)>,
    everyone: (Cursor, Cursor),
}

impl ResumePoint {
    /// The rooms to be served and from where, once the session has been resumed.
    pub(super) fn rooms(&self, state: &SessionState) -> Vec<ResumedRoom> {
        let identity = &state.identity;
        let (joined, after) = self.everyone;
        let room = room::everyone(&identity.product, &identity.namespace);
        let mut rooms = vec![ResumedRoom { room, own_seq: 0, joined, after }];
        let served = state.rooms.iter().skip(usize::from(is_planted(Mutant::ResumedRoomForgotten)));
        rooms.extend(served.filter_map(|m| {
            let joined = m.joined()?;
            let moved = self.moved.iter().find(|(room, _)| *room == m.room);
            let mut after = moved.map_or(joined, |(_, at)| *at);
            after.seq += u64::from(is_planted(Mutant::ResumedOneLater));
            after.seq -= u64::from(is_planted(Mutant::ResumedOneEarlier) && after.seq > joined.seq);
            Some(ResumedRoom { room: m.room.clone(), own_seq: m.since, joined, after })
        }));
        rooms
    }
}

/// A room that an offset may speak of, in the order of joins.
struct Known<'a> {
    since: u64,
    room: &'a RoomKey,
    joined: Option<Cursor>,
    is_member: bool,
}

impl SessionState {
    /// What `carried` says of this session.
    ///
    /// # Errors
    /// Why it cannot go on from there.
    pub(super) fn resume_point(&self, carried: &Carried) -> Result<ResumePoint, NotResumed> {
        let nothing = Offset::default();
        let offset = match carried {
            Carried::Lost => return Err(NotResumed::Hole),
            Carried::Nothing => &nothing,
            Carried::Upto(offset) => offset,
        };
        let own_seq = offset.own_seq;
        let everyone = self.everyone.filter(|_| !self.ended).ok_or(NotResumed::Gone)?;
        if !self.own.can_resume_after(own_seq) {
            return Err(NotResumed::OwnLog);
        }
        // Places are told by the order of joins: all rooms of that moment must be known.
        if !offset.moved.is_empty() && self.forgotten > own_seq {
            return Err(NotResumed::Rooms);
        }
        let identity = &self.identity;
        let everyone_key = room::everyone(&identity.product, &identity.namespace);
        let known = self.known_at(own_seq);
        let (mut tag, mut moved, mut everyone_at) = (Tag::default(), Vec::new(), everyone);
        for (index, step) in &offset.moved {
            let Some(at) = index.checked_sub(1) else {
                tag.add(room_tag(&everyone_key, everyone));
                everyone_at = step.cursor(everyone).ok_or(NotResumed::History)?.max(everyone);
                continue;
            };
            let Known { room, joined, is_member, .. } = known.get(at).ok_or(NotResumed::Rooms)?;
            let joined = (*joined).ok_or(NotResumed::Rooms)?;
            tag.add(room_tag(room, joined));
            if *is_member || is_planted(Mutant::JoinNotClamped) {
                moved.push(((*room).clone(), step.cursor(joined).ok_or(NotResumed::History)?.max(joined)));
            }
        }
        let same_rooms =
            tag.value() == offset.tag || offset.moved.is_empty() || is_planted(Mutant::OffsetUnchecked);
        if !same_rooms {
            return Err(NotResumed::History);
        }
        Ok(ResumePoint { own_seq, moved, everyone: (everyone, everyone_at) })
    }

    /// The rooms it was in when own-log entry `own_seq` was carried out at the edge.
    fn known_at(&self, own_seq: u64) -> Vec<Known<'_>> {
        let member = |m: &&Membership| m.since <= own_seq;
        let members = self.rooms.iter().filter(member).map(|m| {
            let (since, room, joined) = (m.since, &m.room, m.joined());
            Known { since, room, joined, is_member: true }
        });
        let left = self.left.iter().filter(|left| (left.since..left.until).contains(&own_seq));
        let left = left.map(|left| {
            let (since, room, joined) = (left.since, &left.room, left.joined);
            Known { since, room, joined, is_member: false }
        });
        let mut known: Vec<Known<'_>> = members.chain(left).collect();
        known.sort_by_key(|known| known.since);
        known
    }
}
