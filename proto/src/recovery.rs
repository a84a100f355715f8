//! The string a client carries from one transport to the next: how far it has got.
//!
//! Belongs here: the bytes of an offset, its check. Stays out: which rooms a session is in (`session`), what
//! follows a cursor (`edge`).
//! Format, in base64url: varint `own_seq << 1 | lost`; unless lost, a varint bitmap of the rooms that have
//! moved since their join, and for each a varint: `distance << 1` from the join position, or `seq << 1 | 1`
//! where the term is another, followed by the term: varint 0 with node id and incarnation or varint k for the
//! k-th node named so far, then the term's number; 4 bytes of tag over rooms and join positions. At the end
//! 4 bytes of check over all that and the pid.
//! Units: bit 0 is the room of everyone, bit i the i-th room in the order of joins. Little endian.
//! Invariants: any text decodes or is stale, never a panic; an offset decodes under its own pid only.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use crate::id::{Cursor, NodeId, NodeRef, RoomKey, Term};
use crate::mutant::{Mutant, is_planted};

/// Rooms of a session, beside that of everyone, whose cursors fit an offset.
pub const ROOMS_MAX: usize = 64;

/// The longest text that is looked at: 64 rooms, each with a term of its own.
pub const TEXT_MAX: usize = 4 << 10;

/// Bytes of the tag, and of the check.
const SUM_BYTES: usize = 4;

/// What checks the offsets of one pid (`keys::IdKey::offset_key`).
#[derive(Clone, Copy)]
pub struct OffsetKey(pub(crate) u64);

impl std::fmt::Debug for OffsetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OffsetKey(***)")
    }
}

/// How far a client is in one of its rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomAt {
    /// [`room_tag`] of the room.
    pub tag: u64,
    /// Where its join took effect.
    pub joined: Cursor,
    /// The last place it has been served.
    pub at: Cursor,
}

/// A place in a room as an offset tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many entries after the join, under the same term.
    By(u64),
    /// Under another term.
    To(Cursor),
}

impl Moved {
    /// The place it means for who joined at `joined`; `None` if there is no such place.
    #[must_use]
    pub fn cursor(self, joined: Cursor) -> Option<Cursor> {
        match self {
            Self::By(distance) => Some(Cursor { seq: joined.seq.checked_add(distance)?, ..joined }),
            Self::To(cursor) => Some(cursor),
        }
    }
}

/// What a client has carried here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Of another pid, or no offset at all: it has seen no event under this one.
    Nothing,
    /// The edge that wrote it knew that nothing can be continued from here.
    Lost,
    /// This far.
    Upto(Offset),
}

/// A decoded offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// The last own-log entry carried out.
    pub own_seq: u64,
    /// Rooms that have moved, by index, rising.
    pub moved: Vec<(usize, Moved)>,
    /// [`Tag`] over them.
    pub tag: u32,
}

/// Stands for a room and a join position in a [`Tag`].
#[must_use]
pub fn room_tag(room: &RoomKey, joined: Cursor) -> u64 {
    let mut hasher = Xxh3Default::new();
    for part in [&**room.product(), &**room.namespace(), room.room()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let Cursor { term: Term { number, owner }, seq } = joined;
    for number in [number, owner.id.0, owner.incarnation, seq] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.digest()
}

/// Gathers the tag of an offset: owner and edge must mean the same rooms, joined at the same places.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tag(u64);

impl Tag {
    /// Adds the next room that has moved.
    pub fn add(&mut self, room_tag: u64) {
        self.0 = (self.0.rotate_left(5) ^ room_tag).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The tag.
    #[must_use]
    pub fn value(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Appends the offset of a client that has been shown `own_seq` and these rooms, in the order of their
/// joins, that of everyone first; a room that is not in force yet is `None`. `whole` is false where
/// something was missed that cannot be told. `scratch` saves an allocation.
pub fn encode(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    key: OffsetKey,
    own_seq: u64,
    rooms: impl Iterator<Item = Option<RoomAt>> + Clone,
) {
    scratch.clear();
    if write(scratch, own_seq, rooms).is_none() {
        scratch.clear();
        push_varint(scratch, u128::from(own_seq) << 1 | 1);
    }
    let check = check(key, scratch);
    scratch.extend_from_slice(&check);
    let start = out.len();
    out.resize(start + scratch.len().div_ceil(3) * 4, 0);
    let len = URL_SAFE_NO_PAD.encode_slice(&*scratch, &mut out[start..]).expect("room for it was made");
    out.truncate(start + len);
}

/// Appends an offset that says that nothing can be continued.
pub fn encode_lost(out: &mut Vec<u8>, scratch: &mut Vec<u8>, key: OffsetKey, own_seq: u64) {
    let too_many = std::iter::repeat_n(None, ROOMS_MAX + 2);
    encode(out, scratch, key, own_seq, too_many);
}

fn write(out: &mut Vec<u8>, own_seq: u64, rooms: impl Iterator<Item = Option<RoomAt>> + Clone) -> Option<()> {
    let moved = |room: &RoomAt| room.at != room.joined;
    let mut bitmap = 0_u128;
    for (index, room) in rooms.clone().enumerate() {
        if index > ROOMS_MAX {
            return None;
        }
        bitmap |= u128::from(room.as_ref().is_some_and(moved)) << index;
    }
    push_varint(out, u128::from(own_seq) << 1);
    push_varint(out, bitmap);
    let (mut tag, mut nodes): (Tag, Vec<NodeRef>) = (Tag::default(), Vec::new());
    for room in rooms.flatten().filter(moved) {
        tag.add(room.tag);
        let RoomAt { joined, at, .. } = room;
        if at.term == joined.term && at.seq >= joined.seq {
            push_varint(out, u128::from(at.seq - joined.seq) << 1);
            continue;
        }
        push_varint(out, u128::from(at.seq) << 1 | 1);
        let Term { number, owner } = at.term;
        match nodes.iter().position(|node| *node == owner) {
            Some(place) => push_varint(out, place as u128 + 1),
            None => {
                nodes.push(owner);
                push_varint(out, 0);
                out.extend_from_slice(&owner.id.0.to_le_bytes());
                push_varint(out, u128::from(owner.incarnation));
            }
        }
        push_varint(out, u128::from(number));
    }
    out.extend_from_slice(&tag.value().to_le_bytes());
    Some(())
}

/// Reads what a client has carried. Any text may be given.
#[must_use]
pub fn decode(text: &str, key: OffsetKey) -> Carried {
    if text.len() > TEXT_MAX {
        return Carried::Nothing;
    }
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else { return Carried::Nothing };
    let Some(end) = bytes.len().checked_sub(SUM_BYTES) else { return Carried::Nothing };
    let (body, sum) = bytes.split_at(end);
    if !bool::from(check(key, body).ct_eq(sum)) && !is_planted(Mutant::OffsetUnchecked) {
        return Carried::Nothing;
    }
    // What we have written ourselves for this pid and cannot read is not to be guessed at.
    read(body).map_or(Carried::Lost, Carried::Upto)
}

fn read(mut body: &[u8]) -> Option<Offset> {
    let rest = &mut body;
    let first = take_varint(rest)?;
    if first & 1 == 1 {
        return None;
    }
    let own_seq = u64::try_from(first >> 1).ok()?;
    let bitmap = take_varint(rest)?;
    let (mut moved, mut nodes) = (Vec::new(), Vec::new());
    if bitmap >> (ROOMS_MAX + 1) != 0 {
        return None;
    }
    for index in (0..=ROOMS_MAX).filter(|index| bitmap >> index & 1 == 1) {
        let step = take_varint(rest)?;
        let number = u64::try_from(step >> 1).ok()?;
        if step & 1 == 0 {
            moved.push((index, Moved::By(number)));
            continue;
        }
        let owner = match usize::try_from(take_varint(rest)?).ok()?.checked_sub(1) {
            Some(place) => *nodes.get(place)?,
            None => {
                let id = NodeId(u64::from_le_bytes(*take(rest)?));
                let owner = NodeRef { id, incarnation: u64::try_from(take_varint(rest)?).ok()? };
                nodes.push(owner);
                owner
            }
        };
        let term = Term { number: u64::try_from(take_varint(rest)?).ok()?, owner };
        moved.push((index, Moved::To(Cursor { term, seq: number })));
    }
    let tag = u32::from_le_bytes(*take(rest)?);
    rest.is_empty().then_some(Offset { own_seq, moved, tag })
}

/// Not a signature: who holds a pid may be told anything of its own session. It tells offsets of one pid
/// from those of another.
pub(crate) fn check(key: OffsetKey, body: &[u8]) -> [u8; SUM_BYTES] {
    ((xxh3_64_with_seed(body, key.0) >> 32) as u32).to_le_bytes()
}

/// LEB128.
fn push_varint(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u128> {
    let mut value = 0_u128;
    for shift in (0..=70).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u128::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: OffsetKey = OffsetKey(0x1234_5678_9abc_def0);

    fn place(number: u64, node: u64, seq: u64) -> Cursor {
        Cursor { term: Term { number, owner: NodeRef { id: NodeId(node), incarnation: 7 } }, seq }
    }

    fn room(joined: Cursor, at: Cursor) -> Option<RoomAt> {
        Some(RoomAt { tag: joined.seq, joined, at })
    }

    fn text(own_seq: u64, rooms: &[Option<RoomAt>]) -> String {
        let mut out = Vec::new();
        encode(&mut out, &mut Vec::new(), KEY, own_seq, rooms.iter().copied());
        String::from_utf8(out).unwrap()
    }

    fn rooms() -> Vec<Option<RoomAt>> {
        vec![
            room(place(3, 1, 10), place(3, 1, 10)),
            room(place(3, 1, 5), place(3, 1, 305)),
            None,
            room(place(3, 1, 5), place(4, 2, 6)),
            room(place(3, 1, 5), place(9, 2, 1)),
        ]
    }

    #[test]
    fn the_bytes_of_an_offset_are_these() {
        assert_eq!(text(0, &[]), "AAAAAAAASzyoiQ");
        assert_eq!(text(5, &rooms()), "ChrYBA0AAgAAAAAAAAAHBAMBCcaLabXi4XsA");
        let mut lost = Vec::new();
        encode_lost(&mut lost, &mut Vec::new(), KEY, 5);
        assert_eq!(String::from_utf8(lost).unwrap(), "C8rngeg");
    }

    #[test]
    fn what_was_written_is_read_under_its_own_pid_only() {
        let mut tag = Tag::default();
        [5, 5, 5].into_iter().for_each(|room| tag.add(room));
        let moved = vec![(1, Moved::By(300)), (3, Moved::To(place(4, 2, 6))), (4, Moved::To(place(9, 2, 1)))];
        let offset = Offset { own_seq: 5, moved, tag: tag.value() };
        let text = text(5, &rooms());
        assert_eq!(decode(&text, KEY), Carried::Upto(offset));
        assert_eq!(decode(&text, OffsetKey(1)), Carried::Nothing);
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(decode(&String::from_utf8(other).unwrap(), KEY), Carried::Nothing);
        }
    }

    #[test]
    fn sixty_four_rooms_fit_and_one_more_is_told() {
        let moved = |n: u64| room(place(1, 1, n), place(2 + n, n, 1 << 40));
        let fits: Vec<_> = (0..=64).map(moved).collect();
        let text_of_64 = text(9, &fits);
        assert!(text_of_64.len() <= TEXT_MAX, "{}", text_of_64.len());
        assert!(matches!(decode(&text_of_64, KEY), Carried::Upto(offset) if offset.moved.len() == 65));
        let more: Vec<_> = (0..=65).map(moved).collect();
        assert_eq!(decode(&text(9, &more), KEY), Carried::Lost);
    }

    #[test]
    fn a_tag_is_of_names_places_and_order() {
        let key = |name| RoomKey::new(&"chat".into(), &"/".into(), name);
        let (a, b) = (room_tag(&key("{x}a"), place(1, 1, 1)), room_tag(&key("{x}b"), place(1, 1, 1)));
        assert_ne!(a, b, "rooms with one placement");
        assert_ne!(a, room_tag(&key("{x}a"), place(1, 1, 2)));
        let of = |tags: &[u64]| {
            let mut tag = Tag::default();
            tags.iter().for_each(|room| tag.add(*room));
            tag.value()
        };
        assert_ne!(of(&[a, b]), of(&[b, a]));
        assert_ne!(of(&[a]), of(&[a, a]));
    }

    proptest! {
        #[test]
        fn any_text_decodes_or_is_stale(text in ".{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&text, KEY);
            let _ = decode(&URL_SAFE_NO_PAD.encode(&bytes), KEY);
            // The same with a check that holds.
            let mut checked = bytes.clone();
            checked.extend_from_slice(&check(KEY, &bytes));
            let _ = decode(&URL_SAFE_NO_PAD.encode(&checked), KEY);
        }

        #[test]
        fn cursors_come_back(
            own_seq in 0..u64::MAX >> 2,
            steps in prop::collection::vec((any::<u64>(), 0_u64..4, 0..u64::MAX >> 2), 0..40),
        ) {
            let rooms: Vec<_> = steps
                .iter()
                .map(|(number, node, seq)| room(place(7, 1, 100), place(*number, *node, *seq)))
                .collect();
            let Carried::Upto(offset) = decode(&text(own_seq, &rooms), KEY) else { panic!("not read") };
            prop_assert_eq!(offset.own_seq, own_seq);
            for (index, moved) in offset.moved {
                let room = rooms[index].unwrap();
                prop_assert_eq!(moved.cursor(room.joined), Some(room.at));
            }
        }
    }
}
