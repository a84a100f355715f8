//! Datagrams out: sealing, what rides along, the queue of outputs.
//!
//! Belongs here: what is inside a seal, passing on records, the bound of what is not yet polled.
//! Stays out: reading them (`inbound`), what SWIM says (`swim`).
//! Shape inside a seal: ring digest 8 B ‖ kind 1 B ‖ body.

use std::net::SocketAddr;

use foca::State;
use rand::seq::IteratorRandom as _;

use super::machine::{Membership, Phase, Up};
use super::seal::PLAIN_BYTES_MAX;
use super::sync::Word;
use super::{Notice, Output};
use crate::wire;

/// What is inside a seal: ring digest, kind, body.
pub(super) const KIND_SWIM: u8 = 1;
/// One [`Word`].
pub(super) const KIND_WORD: u8 = 2;
/// Records alone.
pub(super) const KIND_RECORDS: u8 = 3;
/// Digest and kind.
pub(super) const INNER_HEADER_BYTES: usize = 9;

/// Outputs not yet polled. The driver polls after each input, which adds a few hundred at most; a
/// driver that does not poll loses datagrams, never views or notices.
pub(super) const OUTPUTS_MAX: usize = 4_096;

/// Records waiting to be passed on, per `gossip_fanout` datagrams a period.
const RECORDS_PER_BURST: usize = 16;

/// The most times `gossip_fanout` datagrams a period: 320 a second in a LAN, for as long as hundreds
/// of nodes start.
const BURSTS_MAX: usize = 4;

impl Membership {
    /// Seals what foca wants sent; records ride in what room is left.
    pub(super) fn send_swim(&mut self) {
        loop {
            let (Phase::Up(Up { swim, .. }) | Phase::Leaving { swim, .. }) = &mut self.phase else { return };
            let Some((to, bytes)) = swim.next_send() else { return };
            let mut plain = self.inner(KIND_SWIM);
            plain.extend_from_slice(&u16::try_from(bytes.len()).expect("foca keeps its bound").to_le_bytes());
            plain.extend_from_slice(&bytes);
            self.records.fill(&mut plain, PLAIN_BYTES_MAX);
            self.seal(to.addr, &plain);
        }
    }

    /// Records in datagrams of their own, to some random peers; to more of them while more wait than
    /// fits one datagram (many nodes starting at once).
    pub(super) fn gossip_records(&mut self) {
        let up = self.known.values().filter(|m| m.state() != State::Down).map(|m| m.id().addr);
        let bursts = (self.records.spreading() / RECORDS_PER_BURST + 1).min(BURSTS_MAX);
        for to in up.sample(&mut self.rng, self.config.timing.gossip_fanout * bursts) {
            if self.records.spreading() > 0 {
                let mut plain = self.inner(KIND_RECORDS);
                self.records.fill(&mut plain, PLAIN_BYTES_MAX);
                self.seal(to, &plain);
            }
        }
    }

    pub(super) fn say(&mut self, to: SocketAddr, word: &Word) {
        let mut plain = self.inner(KIND_WORD);
        plain.extend_from_slice(&wire::encode(word));
        self.seal(to, &plain);
    }

    fn inner(&self, kind: u8) -> Vec<u8> {
        let mut plain = Vec::with_capacity(PLAIN_BYTES_MAX);
        plain.extend_from_slice(&self.view.ring.digest().to_le_bytes());
        plain.push(kind);
        plain
    }

    fn seal(&mut self, to: SocketAddr, plain: &[u8]) {
        let bytes = self.sealer.seal(plain);
        self.send(to, bytes);
    }

    pub(super) fn send(&mut self, to: SocketAddr, bytes: bytes::Bytes) {
        if self.outputs.len() < OUTPUTS_MAX {
            self.stats.sent += 1;
            self.stats.sent_bytes += bytes.len() as u64;
            self.outputs.push_back(Output::Datagram { to, bytes });
        }
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }
}
