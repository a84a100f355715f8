//! Gossip datagrams: sealed so that only holders of the cluster key can write or read one.
//!
//! Belongs here: the packet's layout, sealing, opening, replay windows, refusals.
//! Stays out: what is inside (`machine`), whom to answer how often (`machine`).
//! Invariants: no nonce is used twice under one key (the key is this start's, the counter only
//! rises); a packet is opened at most once; nothing is remembered of a packet that did not open.
//!
//! ```text
//! sealed   0x01 ‖ key fingerprint 4 ‖ cluster id 8 ‖ protocol min 2 ‖ max 2 ‖ sender 8 ‖ boot 8 ‖
//!          counter 8 ‖ AES-128-GCM( ring digest 8 ‖ kind 1 ‖ body ) ‖ tag 16
//! refusal  0x02 ‖ key fingerprint 4 ‖ cluster id 8 ‖ protocol min 2 ‖ max 2 ‖ counter refused 8
//! ```
//!
//! Integers are little endian. The first 41 bytes are authenticated with the rest. The key is
//! HKDF(cluster key, "gossip", sender ‖ boot) and the nonce 0⁴ ‖ counter. The bit 0x40 of the first
//! byte is clear in both: QUIC shares the socket and always sets it.
//!
//! A refusal is not sealed (the two sides may have no key in common) and good for a log line only.
//! It repeats the counter of the packet it refuses, so that only who saw that packet can forge it,
//! and is shorter than any sealed packet, so that it amplifies nothing.
//!
//! What a replay of an earlier start of a sender can do: its packets open again once per start that
//! fell out of [`BOOTS_PER_SENDER_MAX`]; they speak for a life that is over, so SWIM ignores them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{Mismatch, NODES_MAX, PACKET_BYTES_MAX};
use crate::id::NodeId;
use crate::keys::{ClusterKey, Purpose};
use crate::wire::ProtocolRange;

const SEALED: u8 = 0x01;
const REFUSAL: u8 = 0x02;
const SENDER_AT: usize = 17;
const HEADER_BYTES: usize = 41;
const TAG_BYTES: usize = 16;
const REFUSAL_BYTES: usize = 25;

/// What one packet can carry inside the seal.
pub(crate) const PLAIN_BYTES_MAX: usize = PACKET_BYTES_MAX - HEADER_BYTES - TAG_BYTES;

/// Starts of one sender that are told apart. A sender has one; a restart makes it two for a while.
const BOOTS_PER_SENDER_MAX: usize = 4;

/// Senders remembered. Beyond it, who has been silent longest is forgotten (and its next packet
/// starts a new window).
const SENDERS_MAX: usize = 2 * NODES_MAX;

/// Packets by which one may overtake another.
const WINDOW: u64 = 1_024;

/// What both sides must agree on to understand each other; in clear in each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) fingerprint: [u8; 4],
    pub(crate) cluster_id: u64,
    pub(crate) protocol: ProtocolRange,
}

impl Terms {
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&self.cluster_id.to_le_bytes());
        out.extend_from_slice(&self.protocol.min.to_le_bytes());
        out.extend_from_slice(&self.protocol.max.to_le_bytes());
    }

    /// Reads the 16 bytes after the first.
    fn read(packet: &[u8]) -> Self {
        Self {
            fingerprint: array(packet, 1),
            cluster_id: u64::from_le_bytes(array(packet, 5)),
            protocol: ProtocolRange {
                min: u16::from_le_bytes(array(packet, 13)),
                max: u16::from_le_bytes(array(packet, 15)),
            },
        }
    }

    fn mismatch(self, theirs: Self) -> Option<Mismatch> {
        if self.fingerprint != theirs.fingerprint {
            Some(Mismatch::Key { ours: self.fingerprint, theirs: theirs.fingerprint })
        } else if self.cluster_id != theirs.cluster_id {
            Some(Mismatch::Cluster { ours: self.cluster_id, theirs: theirs.cluster_id })
        } else if self.protocol.common(theirs.protocol).is_none() {
            Some(Mismatch::Protocol { ours: self.protocol, theirs: theirs.protocol })
        } else {
            None
        }
    }
}

/// Seals this start's packets.
pub(crate) struct Sealer {
    key: LessSafeKey,
    /// Everything of the header but the counter.
    head: Vec<u8>,
    counter: u64,
}

impl Sealer {
    pub(crate) fn new(cluster: &ClusterKey, terms: Terms, sender: NodeId, boot_id: u64) -> Self {
        let mut head = Vec::with_capacity(HEADER_BYTES);
        head.push(SEALED);
        terms.write(&mut head);
        head.extend_from_slice(&sender.0.to_le_bytes());
        head.extend_from_slice(&boot_id.to_le_bytes());
        Self { key: key_of(cluster, sender, boot_id), head, counter: 0 }
    }

    /// A packet around `plain`, which is at most [`PLAIN_BYTES_MAX`] long.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Bytes {
        assert!(plain.len() <= PLAIN_BYTES_MAX, "{} bytes do not fit one packet", plain.len());
        self.counter += 1;
        let mut packet = Vec::with_capacity(HEADER_BYTES + plain.len() + TAG_BYTES);
        packet.extend_from_slice(&self.head);
        packet.extend_from_slice(&self.counter.to_le_bytes());
        packet.extend_from_slice(plain);
        let (header, body) = packet.split_at_mut(HEADER_BYTES);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.counter), Aad::from(header), body)
            .expect("a packet is shorter than AES-GCM's limit");
        packet.extend_from_slice(tag.as_ref());
        Bytes::from(packet)
    }

    /// Whether `counter` is of a packet of this start that may still be under way.
    pub(crate) fn sent_lately(&self, counter: u64) -> bool {
        counter > 0 && counter <= self.counter && self.counter - counter < WINDOW
    }
}

/// A packet that opened.
pub(crate) struct Opened<'a> {
    pub(crate) sender: NodeId,
    pub(crate) boot_id: u64,
    pub(crate) plain: &'a [u8],
}

/// What else a datagram can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpened {
    /// No packet, or forged, or damaged.
    Junk,
    /// Opened before, or too old to tell.
    Replayed,
    /// A packet of another key, cluster or protocol; `counter` goes into the refusal.
    Mismatch { why: Mismatch, counter: u64 },
    /// A peer's refusal of our packet `counter`; `None` if it names no difference.
    Refusal { why: Option<Mismatch>, counter: u64 },
}

/// Opens everybody's packets.
pub(crate) struct Opener {
    cluster: ClusterKey,
    terms: Terms,
    senders: BTreeMap<NodeId, Sender>,
    /// Rises with each packet opened: orders senders and boots by last use.
    clock: u64,
}

#[derive(Default)]
struct Sender {
    boots: Vec<Boot>,
    used: u64,
}

struct Boot {
    id: u64,
    key: LessSafeKey,
    window: Window,
    used: u64,
}

impl Opener {
    pub(crate) fn new(cluster: ClusterKey, terms: Terms) -> Self {
        Self { cluster, terms, senders: BTreeMap::new(), clock: 0 }
    }

    /// Opens `packet` in place.
    pub(crate) fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<Opened<'a>, NotOpened> {
        match packet.first() {
            Some(&SEALED) if (HEADER_BYTES + TAG_BYTES..=PACKET_BYTES_MAX).contains(&packet.len()) => {}
            Some(&REFUSAL) if packet.len() == REFUSAL_BYTES => {
                let why = self.terms.mismatch(Terms::read(packet));
                return Err(NotOpened::Refusal {
                    why,
                    counter: u64::from_le_bytes(array(packet, SENDER_AT)),
                });
            }
            _ => return Err(NotOpened::Junk),
        }
        let counter = u64::from_le_bytes(array(packet, SENDER_AT + 16));
        if let Some(why) = self.terms.mismatch(Terms::read(packet)) {
            return Err(NotOpened::Mismatch { why, counter });
        }
        let sender = NodeId(u64::from_le_bytes(array(packet, SENDER_AT)));
        let boot_id = u64::from_le_bytes(array(packet, SENDER_AT + 8));
        self.clock += 1;
        let known = self.senders.get_mut(&sender).and_then(|s| s.boots.iter_mut().find(|b| b.id == boot_id));
        let (header, sealed) = packet.split_at_mut(HEADER_BYTES);
        let plain_bytes = if let Some(boot) = known {
            if !boot.window.is_new(counter) {
                return Err(NotOpened::Replayed);
            }
            let len = open_with(&boot.key, counter, header, sealed)?;
            boot.window.mark(counter);
            boot.used = self.clock;
            len
        } else {
            let key = key_of(&self.cluster, sender, boot_id);
            let len = open_with(&key, counter, header, sealed)?;
            self.remember(
                sender,
                Boot { id: boot_id, key, window: Window::starting_at(counter), used: self.clock },
            );
            len
        };
        Ok(Opened { sender, boot_id, plain: &sealed[..plain_bytes] })
    }

    fn remember(&mut self, id: NodeId, boot: Boot) {
        if self.senders.len() >= SENDERS_MAX
            && !self.senders.contains_key(&id)
            && let Some(silent) = self.senders.iter().min_by_key(|(_, s)| s.used).map(|(id, _)| *id)
        {
            self.senders.remove(&silent);
        }
        let sender = self.senders.entry(id).or_default();
        sender.used = self.clock;
        if sender.boots.len() >= BOOTS_PER_SENDER_MAX
            && let Some(oldest) = (0..sender.boots.len()).min_by_key(|&i| sender.boots[i].used)
        {
            sender.boots.remove(oldest);
        }
        sender.boots.push(boot);
    }

    /// The refusal of a packet that had `counter`.
    pub(crate) fn refusal(&self, counter: u64) -> Bytes {
        let mut packet = Vec::with_capacity(REFUSAL_BYTES);
        packet.push(REFUSAL);
        self.terms.write(&mut packet);
        packet.extend_from_slice(&counter.to_le_bytes());
        Bytes::from(packet)
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.senders.len() <= SENDERS_MAX, "{} senders remembered", self.senders.len());
        assert!(self.senders.values().all(|s| s.boots.len() <= BOOTS_PER_SENDER_MAX), "too many boots");
    }
}

/// Which of the last [`WINDOW`] counters have been opened. (RFC 4303 §3.4.3.)
#[derive(Clone)]
struct Window {
    highest: u64,
    /// Bit `c mod WINDOW` for each counter `c` in (highest − WINDOW, highest].
    seen: [u64; (WINDOW / 64) as usize],
}

impl Window {
    fn starting_at(counter: u64) -> Self {
        let mut window = Self { highest: counter, seen: [0; (WINDOW / 64) as usize] };
        window.set(counter, true);
        window
    }

    fn is_new(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        self.highest - counter < WINDOW && {
            let (word, bit) = Self::place(counter);
            self.seen[word] & bit == 0
        }
    }

    fn mark(&mut self, counter: u64) {
        if counter > self.highest {
            let from = self.highest.max(counter.saturating_sub(WINDOW)) + 1;
            for skipped in from..counter {
                self.set(skipped, false);
            }
            self.highest = counter;
        }
        self.set(counter, true);
    }

    fn set(&mut self, counter: u64, seen: bool) {
        let (word, bit) = Self::place(counter);
        if seen {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }

    fn place(counter: u64) -> (usize, u64) {
        let bit = counter % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }
}

fn key_of(cluster: &ClusterKey, sender: NodeId, boot_id: u64) -> LessSafeKey {
    let mut context = [0; 16];
    context[..8].copy_from_slice(&sender.0.to_le_bytes());
    context[8..].copy_from_slice(&boot_id.to_le_bytes());
    let derived = cluster.derive(Purpose::Gossip, &context);
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &derived[..16]).expect("AES-128 keys have 16 bytes"))
}

fn open_with(key: &LessSafeKey, counter: u64, header: &[u8], sealed: &mut [u8]) -> Result<usize, NotOpened> {
    let plain = key.open_in_place(nonce(counter), Aad::from(header), sealed);
    plain.map(|plain| plain.len()).map_err(|_| NotOpened::Junk)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// `N` bytes at `at`; the caller has checked the length.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(key: &ClusterKey) -> Terms {
        Terms { fingerprint: key.fingerprint(), cluster_id: 3, protocol: ProtocolRange { min: 1, max: 2 } }
    }

    fn pair() -> (Sealer, Opener) {
        let key = ClusterKey::new([7; 32]);
        (Sealer::new(&key, terms(&key), NodeId(1), 2), Opener::new(key.clone(), terms(&key)))
    }

    fn open(opener: &mut Opener, packet: &[u8]) -> Result<Vec<u8>, NotOpened> {
        opener.open(&mut packet.to_vec()).map(|opened| opened.plain.to_vec())
    }

    #[test]
    fn a_packet_opens_once() {
        let (mut sealer, mut opener) = pair();
        let (first, second) = (sealer.seal(b"one"), sealer.seal(b"two"));
        assert_eq!(open(&mut opener, &second).unwrap(), b"two");
        assert_eq!(open(&mut opener, &first).unwrap(), b"one", "late is not replayed");
        assert_eq!(open(&mut opener, &first), Err(NotOpened::Replayed));
        assert_eq!(open(&mut opener, &second), Err(NotOpened::Replayed));
    }

    #[test]
    fn what_is_older_than_the_window_is_replayed() {
        let (mut sealer, mut opener) = pair();
        let old = sealer.seal(b"old");
        let newer: Vec<Bytes> = (0..2 * WINDOW).map(|_| sealer.seal(b"new")).collect();
        assert!(open(&mut opener, newer.last().unwrap()).is_ok());
        assert_eq!(open(&mut opener, &old), Err(NotOpened::Replayed));
        let inside = &newer[newer.len() - WINDOW as usize..];
        assert!(inside[..inside.len() - 1].iter().all(|p| open(&mut opener, p).is_ok()));
        assert!(inside.iter().all(|p| open(&mut opener, p) == Err(NotOpened::Replayed)));
    }

    #[test]
    fn each_tampered_byte_is_noticed_and_remembers_nothing() {
        let (mut sealer, mut opener) = pair();
        let packet = sealer.seal(b"hello");
        for at in 0..packet.len() {
            let mut forged = packet.to_vec();
            forged[at] ^= 0x80;
            assert!(open(&mut opener, &forged).is_err(), "byte {at}");
        }
        assert!(opener.senders.is_empty());
        assert!(open(&mut opener, &packet).is_ok());
    }

    #[test]
    fn another_key_cluster_or_protocol_is_named_on_both_sides() {
        let (ours, theirs) = (ClusterKey::new([7; 32]), ClusterKey::new([8; 32]));
        let cases = [
            (theirs.clone(), terms(&theirs)),
            (ours.clone(), Terms { cluster_id: 4, ..terms(&ours) }),
            (ours.clone(), Terms { protocol: ProtocolRange { min: 3, max: 4 }, ..terms(&ours) }),
        ];
        for (key, their_terms) in cases {
            let mut sealer = Sealer::new(&key, their_terms, NodeId(1), 2);
            let mut here = Opener::new(ours.clone(), terms(&ours));
            let mut there = Opener::new(key, their_terms);
            let Err(NotOpened::Mismatch { why, counter }) = open(&mut here, &sealer.seal(b"x")) else {
                panic!("it must not open");
            };
            assert_eq!(Some(why), terms(&ours).mismatch(their_terms));
            assert!(sealer.sent_lately(counter) && !sealer.sent_lately(counter + 1));
            let answer = open(&mut there, &here.refusal(counter));
            assert_eq!(answer, Err(NotOpened::Refusal { why: their_terms.mismatch(terms(&ours)), counter }));
        }
    }

    #[test]
    fn a_restarted_sender_is_heard_beside_its_late_packets() {
        let key = ClusterKey::new([7; 32]);
        let mut opener = Opener::new(key.clone(), terms(&key));
        for boot in 0..20 {
            let mut sealer = Sealer::new(&key, terms(&key), NodeId(1), boot);
            assert!(open(&mut opener, &sealer.seal(b"x")).is_ok());
            opener.check_invariants();
        }
    }

    #[test]
    fn golden_bytes() {
        let (mut sealer, opener) = pair();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&sealer.seal(b"hello")), GOLDEN_SEALED);
        assert_eq!(hex(&opener.refusal(9)), GOLDEN_REFUSAL);
    }

    const GOLDEN_SEALED: &str = concat!(
        "017ebb52470300000000000000010002000100000000000000020000000000000001",
        "00000000000000d0dfd493810ee470c9cc1dce166c025a11757ef19b"
    );
    const GOLDEN_REFUSAL: &str = "027ebb52470300000000000000010002000900000000000000";
}
