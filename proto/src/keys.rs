//! Keys derived from the cluster key, and ids sealed under them.
//!
//! Belongs here: HKDF with one label per use; socket ids and pids.
//! Stays out: reading key files and OS randomness (`node`), gossip packets (`membership::seal`),
//! certificates (`node::mesh`).
//! Invariants: no two uses share a key; nothing here prints a secret.
//! Source: RFC 5869 (HKDF-SHA256); FIPS 197 (AES, one block as a permutation).

use std::fmt;

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use ring::{hkdf, hmac};

use crate::id::{Pid, Placement, SocketSid};
use crate::recovery::OffsetKey;

/// The secret all nodes of a cluster share: 32 random bytes (`meshctl keygen`).
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; 32]);

/// What a derived key is for. Each has its own HKDF label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Seed of the private CA's Ed25519 key.
    CertificateAuthority,
    /// Sealing of gossip datagrams.
    Gossip,
    /// Socket ids and pids.
    Ids,
    /// The check in a client's recovery offset.
    Offsets,
    /// QUIC stateless resets.
    StatelessReset,
    /// QUIC connection ids.
    ConnectionIds,
    /// A fingerprint that may be shown: "which key is this?"
    Fingerprint,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::CertificateAuthority => b"meshd/1 ca",
            Self::Gossip => b"meshd/1 gossip",
            Self::Ids => b"meshd/1 ids",
            Self::Offsets => b"meshd/1 offsets",
            Self::StatelessReset => b"meshd/1 reset",
            Self::ConnectionIds => b"meshd/1 cids",
            Self::Fingerprint => b"meshd/1 fingerprint",
        }
    }
}

impl ClusterKey {
    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 32 bytes for `purpose`; `context` (an address, a sender) may narrow it further.
    #[must_use]
    pub fn derive(&self, purpose: Purpose, context: &[u8]) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"meshd cluster key");
        let prk = salt.extract(&self.0);
        let mut out = [0; 32];
        prk.expand(&[purpose.label(), context], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out))
            .expect("32 bytes are one block of HKDF-SHA256");
        out
    }

    /// Four bytes that tell keys apart without telling the key. Safe to log.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 4] {
        let derived = self.derive(Purpose::Fingerprint, b"");
        [derived[0], derived[1], derived[2], derived[3]]
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(***)")
    }
}

/// Seals placements into socket ids and pids, and finds them again.
#[derive(Clone)]
pub struct IdKey {
    ids: Aes128,
    offsets: hmac::Key,
}

impl IdKey {
    /// The key for ids of this cluster.
    #[must_use]
    pub fn new(cluster: &ClusterKey) -> Self {
        let derived = cluster.derive(Purpose::Ids, b"");
        let mut key = [0; 16];
        key.copy_from_slice(&derived[..16]);
        let offsets = hmac::Key::new(hmac::HMAC_SHA256, &cluster.derive(Purpose::Offsets, b""));
        Self { ids: Aes128::new(&key.into()), offsets }
    }

    /// A new public session id at `placement`.
    #[must_use]
    pub fn seal_sid(&self, placement: Placement, random: u64) -> SocketSid {
        SocketSid(self.seal(placement, random))
    }

    /// A new secret for resuming a session at `placement`.
    #[must_use]
    pub fn seal_pid(&self, placement: Placement, random: u64, secret: [u8; 16]) -> Pid {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.seal(placement, random));
        bytes[16..].copy_from_slice(&secret);
        Pid(bytes)
    }

    /// Where the session `sid` lives. Any 16 bytes have an answer; only the owner there knows
    /// whether there is such a session.
    #[must_use]
    pub fn placement_of(&self, sid: SocketSid) -> Placement {
        self.open(sid.0).0
    }

    /// The ids of a new session: its public one, and the secret that leads to it.
    #[must_use]
    pub fn seal_session(&self, placement: Placement, number: u64, secret: [u8; 16]) -> (SocketSid, Pid) {
        (self.seal_sid(placement, number), self.seal_pid(placement, !number, secret))
    }

    /// The session that a pid resumes. Any 32 bytes have an answer; only the owner knows the secret part.
    #[must_use]
    pub fn sid_of(&self, pid: &Pid) -> SocketSid {
        let mut block = [0; 16];
        block.copy_from_slice(&pid.0[..16]);
        let (placement, number) = self.open(block);
        self.seal_sid(placement, !number)
    }

    /// What checks the offsets that are written under a pid.
    #[must_use]
    pub fn offset_key(&self, pid: &Pid) -> OffsetKey {
        let mut seed = [0; 8];
        seed.copy_from_slice(&hmac::sign(&self.offsets, &pid.0).as_ref()[..8]);
        OffsetKey(u64::from_be_bytes(seed))
    }

    fn open(&self, block: [u8; 16]) -> (Placement, u64) {
        let mut block = block.into();
        self.ids.decrypt_block(&mut block);
        let half = |range: std::ops::Range<usize>| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[range]);
            u64::from_be_bytes(bytes)
        };
        (Placement(half(0..8)), half(8..16))
    }

    fn seal(&self, placement: Placement, random: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&placement.0.to_be_bytes());
        bytes[8..].copy_from_slice(&random.to_be_bytes());
        let mut block = bytes.into();
        self.ids.encrypt_block(&mut block);
        block.into()
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sid_leads_back_to_its_placement() {
        let ids = IdKey::new(&ClusterKey::new([7; 32]));
        let placement = Placement::of_user("chat", "alice");
        let sid = ids.seal_sid(placement, 42);
        assert_eq!(ids.placement_of(sid), placement);
        assert_ne!(ids.seal_sid(placement, 43), sid);
        assert_eq!(SocketSid::from_text(&sid.to_text()), Some(sid));
        let other = IdKey::new(&ClusterKey::new([8; 32]));
        assert_ne!(other.placement_of(sid), placement);
    }

    #[test]
    fn a_pid_leads_to_its_session() {
        let ids = IdKey::new(&ClusterKey::new([7; 32]));
        let (sid, pid) = ids.seal_session(Placement::of_user("chat", "alice"), 42, [3; 16]);
        assert_eq!(ids.sid_of(&pid), sid);
        let other = Pid([9; 32]);
        assert_ne!(ids.offset_key(&pid).0, ids.offset_key(&other).0);
    }

    #[test]
    fn each_purpose_and_context_has_its_own_key() {
        let key = ClusterKey::new([7; 32]);
        assert_ne!(key.derive(Purpose::Gossip, b""), key.derive(Purpose::Ids, b""));
        assert_ne!(key.derive(Purpose::Gossip, b"a"), key.derive(Purpose::Gossip, b"b"));
    }

    #[test]
    fn secrets_do_not_print() {
        let key = ClusterKey::new([7; 32]);
        let pid = IdKey::new(&key).seal_pid(Placement(1), 2, [3; 16]);
        assert_eq!(format!("{key:?} {pid:?}"), "ClusterKey(***) Pid(***)");
    }
}
