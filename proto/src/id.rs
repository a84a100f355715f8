//! Names and numbers of everything the mesh talks about.
//!
//! Belongs here: newtypes, their bytes and their text forms; placement hashes of keys.
//! Stays out: who owns a placement (`ring`), how ids are drawn and sealed (`keys`).
//! Units: lengths in bytes; text forms are base64url without padding.
//! Invariants: a placement depends on explicit bytes only, pinned by golden vectors; secrets
//! (`EngineSid`, `Pid`) never print.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// A node's lasting identity: the hash of its configured name. The same name restarted is the same
/// `NodeId` with another incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id of the node called `name`.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 32)
    }
}

/// One life of a node: what links, terms and edge references point at. A restarted node is another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    /// Which node.
    pub id: NodeId,
    /// Which life of it; larger is later.
    pub incarnation: u64,
}

impl fmt::Debug for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.id, self.incarnation)
    }
}

/// A shard of a node: one thread, `0..shards`, at most 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardIx(pub u16);

impl ShardIx {
    /// Shards of a node at most: masks of shards are 64 bits.
    pub const COUNT_MAX: u16 = 64;
}

/// One machine that can be written to: a shard of one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The node and its life.
    pub node: NodeRef,
    /// The shard on it.
    pub shard: ShardIx,
}

/// A position on the ring's circle: a 64-bit hash of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Placement(pub u64);

impl Placement {
    /// Where the sessions of (`product`, `uid`) live: `H(len‖product ‖ len‖uid)`.
    #[must_use]
    pub fn of_user(product: &str, uid: &str) -> Self {
        hash_parts(&[product, uid])
    }

    /// Where a room lives: `H(len‖product ‖ len‖namespace ‖ len‖room)`. A room named `{x}rest` is
    /// placed as uid `x`, so that it shares owner and shard with that user's sessions.
    #[must_use]
    pub fn of_room(product: &str, namespace: &str, room: &str) -> Self {
        match room.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((tag, _)) if !tag.is_empty() => Self::of_user(product, tag),
            _ => hash_parts(&[product, namespace, room]),
        }
    }

    /// Where something else that is named by these texts lives, each with its length in front.
    pub(crate) fn of_parts(parts: &[&str]) -> Self {
        hash_parts(parts)
    }

    /// The shard of a node with `shards` shards that hosts this placement.
    #[must_use]
    pub fn shard(self, shards: u16) -> ShardIx {
        ShardIx(u16::try_from(self.0 % u64::from(shards.max(1))).unwrap_or(0))
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// XXH3 over each part with its length (u32, little endian) in front, so that no two lists of parts
/// share their bytes.
fn hash_parts(parts: &[&str]) -> Placement {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    for part in parts {
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        hasher.update(&len.to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Placement(hasher.digest())
}

/// A room: its names and where it lives. Cheap to clone (one pointer), ordered by placement first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomKey(Arc<RoomParts>);

/// Field order is sort order: placement first makes most comparisons one integer's.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct RoomParts {
    placement: Placement,
    product: Arc<str>,
    namespace: Arc<str>,
    room: Box<str>,
}

impl RoomKey {
    /// The room `room` of `namespace` in `product`. The empty name is "all of the namespace".
    #[must_use]
    pub fn new(product: &Arc<str>, namespace: &Arc<str>, room: &str) -> Self {
        Self(Arc::new(RoomParts {
            placement: Placement::of_room(product, namespace, room),
            product: product.clone(),
            namespace: namespace.clone(),
            room: room.into(),
        }))
    }

    /// Where it lives on the ring.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.0.placement
    }

    /// The product it belongs to.
    #[must_use]
    pub fn product(&self) -> &Arc<str> {
        &self.0.product
    }

    /// Its Socket.IO namespace, `/` for the main one.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        &self.0.namespace
    }

    /// Its name; empty for "all of the namespace".
    #[must_use]
    pub fn room(&self) -> &str {
        &self.0.room
    }

    /// Whether this is the room that every session of the namespace is in.
    #[must_use]
    pub fn is_everyone(&self) -> bool {
        self.0.room.is_empty()
    }
}

impl std::hash::Hash for RoomKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.placement.0);
    }
}

impl fmt::Debug for RoomKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}#{}", self.0.product, self.0.namespace, self.0.room)
    }
}

impl Serialize for RoomKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.0.product, &*self.0.namespace, &*self.0.room).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RoomKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Borrowed from the message: each name is copied once, into its place.
        let (product, namespace, room) = <(&str, &str, &str)>::deserialize(deserializer)?;
        Ok(Self::new(&product.into(), &namespace.into(), room))
    }
}

/// The public id of a session (Socket.IO's `socket.id`): one AES block of placement ‖ 8 random
/// bytes. Every node finds its owner (`keys::IdKey::placement_of`), nobody else can read it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketSid(pub [u8; 16]);

impl SocketSid {
    /// Its text form, 22 characters.
    #[must_use]
    pub fn to_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads the text form; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        decode_fixed(text).map(Self)
    }
}

impl fmt::Debug for SocketSid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// The secret that resumes a session: one sealed placement block ‖ 16 random bytes.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Pid(pub [u8; 32]);

impl Pid {
    /// Its text form, 43 characters. A secret: for the client it belongs to only.
    #[must_use]
    pub fn expose_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads the text form; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        decode_fixed(text).map(Self)
    }
}

impl PartialEq for Pid {
    /// Constant time.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Pid {}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pid(***)")
    }
}

/// Uids that begin so were made up for one connection. Who comes back to such a session shows its pid;
/// the uid of the new connection says nothing.
pub const ANONYMOUS: char = '~';

/// The secret id of an Engine.IO session (`?sid=`): node id ‖ shard ‖ 16 random bytes, so that any
/// node forwards a request to its edge in O(1).
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct EngineSid(pub [u8; 26]);

impl EngineSid {
    /// Joins the edge and the random part.
    #[must_use]
    pub fn new(edge: NodeId, shard: ShardIx, random: [u8; 16]) -> Self {
        let mut bytes = [0; 26];
        bytes[..8].copy_from_slice(&edge.0.to_be_bytes());
        bytes[8..10].copy_from_slice(&shard.0.to_be_bytes());
        bytes[10..].copy_from_slice(&random);
        Self(bytes)
    }

    /// Its text form, 35 characters. A secret: for the client it belongs to only.
    #[must_use]
    pub fn expose_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads the text form; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        decode_fixed(text).map(Self)
    }

    /// The node where the session is, or was when it began.
    #[must_use]
    pub fn edge(&self) -> NodeId {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        NodeId(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The shard there.
    #[must_use]
    pub fn shard(&self) -> ShardIx {
        ShardIx(u16::from_be_bytes([self.0[8], self.0[9]]))
    }

    /// Half of the random part: spreads sessions, and finds one without being enough to be it.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl PartialEq for EngineSid {
    /// Constant time.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for EngineSid {}

impl fmt::Debug for EngineSid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineSid(***)")
    }
}

fn decode_fixed<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    (len == N).then_some(bytes)
}

/// A client transport that ends at this shard. Dense, reused after the transport is gone; the
/// driver hands it out and never reuses one before the shard has seen `ClientClosed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientIx(pub u32);

/// Fencing number of an ownership: totally ordered, never used twice (a restarted node is another
/// incarnation). DESIGN §4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    /// Exceeds every number the new owner has seen for the key.
    pub number: u64,
    /// The owner whose term it is.
    pub owner: NodeRef,
}

impl Term {
    /// Below every term an owner can have: "nothing seen yet".
    pub const NONE: Self = Self { number: 0, owner: NodeRef { id: NodeId(0), incarnation: 0 } };
}

impl Default for Term {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}@{:?}", self.number, self.owner)
    }
}

/// A place in a room's log. Ordered by term, then sequence number; strictly rises for each client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// The term of the entry at `seq`.
    pub term: Term,
    /// Entries counted from 1 within the log; 0 is "before the first".
    pub seq: u64,
}

impl Cursor {
    /// Before everything.
    pub const NONE: Self = Self { term: Term::NONE, seq: 0 };

    /// Its text form for clients, `<term>-<node>-<incarnation>.<seq>`: hexadecimal, the sequence number
    /// decimal. Opaque to them.
    #[must_use]
    pub fn to_text(self) -> String {
        let Term { number, owner } = self.term;
        format!("{number:x}-{:x}-{:x}.{}", owner.id.0, owner.incarnation, self.seq)
    }

    /// Reads the text form; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        let (term, seq) = text.split_once('.')?;
        let mut parts = term.splitn(3, '-');
        let number = hex(parts.next()?)?;
        let owner = NodeRef { id: NodeId(hex(parts.next()?)?), incarnation: hex(parts.next()?)? };
        let cursor = Self { term: Term { number, owner }, seq: seq.parse().ok()? };
        // One spelling per cursor: no signs, no leading zeros, no capitals.
        (cursor.to_text() == text).then_some(cursor)
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.term, self.seq)
    }
}

/// Who a publish is by, kept through every retry: rooms drop what they have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishId {
    /// By a client's inbound packet `number`, the `index`-th publish made by it.
    Session {
        /// The publishing session.
        sid: SocketSid,
        /// The packet's number in the session, from 1.
        number: u64,
        /// The publish within that packet, from 0.
        index: u32,
    },
    /// By the HTTP API at `via`.
    Api {
        /// The node and shard that took the request.
        via: Address,
        /// Its running number there.
        number: u64,
    },
}

impl PublishId {
    /// Its place among the publishes of its session, for those of one.
    #[must_use]
    pub fn place(self) -> Option<(u64, u32)> {
        match self {
            Self::Session { number, index, .. } => Some((number, index)),
            Self::Api { .. } => None,
        }
    }
}

/// Whoever numbers publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Publisher {
    /// A session.
    Session(SocketSid),
    /// The HTTP API at a shard.
    Api(Address),
}

/// A publish's place among those of its publisher: packet, and publish within it.
pub type PublishNumber = (u64, u32);

impl PublishId {
    /// By whom, and its place among those.
    #[must_use]
    pub fn split(self) -> (Publisher, PublishNumber) {
        match self {
            Self::Session { sid, number, index } => (Publisher::Session(sid), (number, index)),
            Self::Api { via, number } => (Publisher::Api(via), (number, 0)),
        }
    }

    /// The reverse of [`PublishId::split`].
    #[must_use]
    pub fn join(publisher: Publisher, (number, index): PublishNumber) -> Self {
        match publisher {
            Publisher::Session(sid) => Self::Session { sid, number, index },
            Publisher::Api(via) => Self::Api { via, number },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_one_text_form() {
        let owner = NodeRef { id: NodeId(u64::MAX), incarnation: 17 };
        for cursor in [Cursor::NONE, Cursor { term: Term { number: 26, owner }, seq: u64::MAX }] {
            assert_eq!(Cursor::from_text(&cursor.to_text()), Some(cursor));
        }
        assert_eq!(
            Cursor::from_text("1a-ffffffffffffffff-11.7").map(Cursor::to_text).as_deref(),
            Some("1a-ffffffffffffffff-11.7")
        );
        for text in [
            "",
            "1",
            "1.2",
            "1-2.3",
            "1-2-3",
            "1-2-3.",
            "+1-2-3.4",
            "01-2-3.4",
            "A-2-3.4",
            "1-2-3.4 ",
            "1-2-3-4.5",
            "1-2-3.4.5",
            "11111111111111111-2-3.4",
        ] {
            assert_eq!(Cursor::from_text(text), None, "{text}");
        }
    }
}
