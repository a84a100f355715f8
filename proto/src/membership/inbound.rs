//! Datagrams in, and what is believed of them.
//!
//! Belongs here: opening, telling kinds apart, refusals, what no honest node sends, claims about
//! this very node.
//! Stays out: answering questions of an exchange (`exchange`), SWIM's own rules (`swim`).
//! Invariants: nothing reaches SWIM that names an absurd identity, more nodes than there may be, or
//! this node's end twice within a second; a refusal changes no state.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};

use super::exchange::AGREE_PERIOD;
use super::identity::INCARNATION_MAX;
use super::machine::{Membership, Phase};
use super::outbound::{INNER_HEADER_BYTES, KIND_RECORDS, KIND_SWIM, KIND_WORD};
use super::records::Records;
use super::seal::NotOpened;
use super::swim::{Inspected, inspect};
use super::sync::{Purpose, Word};
use super::views::{Dirty, is_up, is_up_at_all};
use super::{HeardDigest, Identity, NODES_MAX, Notice};
use crate::id::NodeId;
use crate::time::Instant;
use crate::wire;

/// Unknown nodes taken in per second, once the first [`NODES_MAX`] have been.
const NEWCOMERS_PER_SECOND: u64 = 64;

/// This node takes a new life at most this often. (FAULTS 77.)
const RENEWAL_PERIOD: Duration = Duration::from_secs(1);

/// So many new lives within a minute are worth a notice.
const RENEWALS_NOTED: usize = 5;

/// Kinds of notices that are held back per peer.
pub(super) mod kind {
    pub(in super::super) const REFUSING: u8 = 0;
    pub(in super::super) const REFUSED: u8 = 1;
    pub(in super::super) const NONSENSE: u8 = 2;
    pub(in super::super) const TOO_MANY: u8 = 3;
    pub(in super::super) const DECLARED_DOWN: u8 = 4;
    pub(in super::super) const LATE: u8 = 5;
}

impl Membership {
    pub(super) fn datagram(&mut self, now: Instant, from: SocketAddr, bytes: &mut [u8]) {
        self.stats.received += 1;
        self.stats.received_bytes += bytes.len() as u64;
        if matches!(self.phase, Phase::Leaving { .. } | Phase::Stopped) {
            return;
        }
        match self.opener.open(bytes) {
            Ok(opened) if opened.boot_id == self.config.boot_id => {
                if let Phase::Joining(join) = &mut self.phase {
                    join.is_self(from);
                }
                self.config.seeds.retain(|seed| *seed != from);
            }
            Ok(opened) => {
                let (sender, plain) = (opened.sender, opened.plain);
                if let Err(what) = self.opened(now, from, sender, plain) {
                    self.nonsense(now, from, what);
                }
            }
            Err(not_opened) => self.not_opened(now, from, not_opened),
        }
    }

    fn not_opened(&mut self, now: Instant, from: SocketAddr, why: NotOpened) {
        match why {
            NotOpened::Junk => self.stats.junk += 1,
            NotOpened::Replayed => self.stats.replayed += 1,
            NotOpened::Mismatch { why, counter } => {
                self.stats.mismatched += 1;
                if self.limits.refusals.allows(now, from) {
                    let refusal = self.opener.refusal(counter);
                    self.send(from, refusal);
                }
                if self.limits.notices.allows(now, (kind::REFUSING, from)) {
                    self.notice(Notice::Refusing { peer: from, why });
                }
            }
            NotOpened::Refusal { why, counter } => {
                let ours = self.sealer.sent_lately(counter);
                let Some(why) = why.filter(|_| ours) else {
                    self.stats.junk += 1;
                    return;
                };
                if self.limits.notices.allows(now, (kind::REFUSED, from)) {
                    self.notice(Notice::Refused { peer: from, why });
                }
            }
        }
    }

    pub(super) fn nonsense(&mut self, now: Instant, from: SocketAddr, what: &'static str) {
        self.stats.refused += 1;
        if self.limits.notices.allows(now, (kind::NONSENSE, from)) {
            self.notice(Notice::Nonsense { peer: from, what });
        }
    }

    fn opened(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sender: NodeId,
        plain: &[u8],
    ) -> Result<(), &'static str> {
        let Some((header, body)) = plain.split_first_chunk::<INNER_HEADER_BYTES>() else {
            return Err("short packet");
        };
        let [digest @ .., kind] = *header;
        match kind {
            KIND_SWIM => {
                let (len, rest) = body.split_first_chunk::<2>().ok_or("short packet")?;
                let (swim, records) =
                    rest.split_at_checked(usize::from(u16::from_le_bytes(*len))).ok_or("short packet")?;
                let records = Records::read(records)?;
                let inspected = inspect(swim)?;
                if inspected.source.node.id != sender {
                    return Err("speaks for another node");
                }
                if self.may_apply(now, from, &inspected)
                    && let Phase::Up(up) = &mut self.phase
                {
                    for update in &inspected.updates {
                        if *update.id() == self.identity && update.state() == State::Suspect {
                            up.swim.suspected(update.incarnation());
                        }
                    }
                    if let Err(error) = up.swim.datagram(now, swim) {
                        self.stats.refused += 1;
                        tracing::debug!(%from, %error, "a membership datagram was not applied");
                    }
                }
                self.offered(now, records);
            }
            KIND_RECORDS => {
                let records = Records::read(body)?;
                self.offered(now, records);
            }
            KIND_WORD => {
                let word: Word = wire::decode(body).map_err(|_| "malformed word")?;
                self.word(now, from, sender, word)?;
            }
            _ => self.stats.refused += 1, // A newer build's. It speaks our protocol, too.
        }
        self.heard(now, from, sender, u64::from_le_bytes(digest));
        Ok(())
    }

    fn offered(&mut self, now: Instant, records: Vec<crate::view::NodeRecord>) {
        if !matches!(self.phase, Phase::Up(_)) {
            return;
        }
        for record in records {
            let node = record.node;
            if node.id != self.identity.node.id
                && self.records.offer(now, record, true)
                && is_up(&self.known, node)
            {
                self.mark(Dirty::Soon);
            }
        }
    }

    /// Remembers the sender's ring; if it has long been another one than ours, exchanges.
    fn heard(&mut self, now: Instant, from: SocketAddr, sender: NodeId, digest: u64) {
        if !is_up_at_all(&self.known, sender) {
            return;
        }
        if self.digests.len() < NODES_MAX || self.digests.contains_key(&sender) {
            self.digests.insert(sender, HeardDigest { digest, at: now });
        }
        let pause = AGREE_PERIOD + Duration::from_millis(2) * u32::try_from(self.known.len()).unwrap_or(0);
        if digest != self.view().ring.digest()
            && now.since(self.ring_at) >= self.config.timing.disagreement_borne
            && now.since(self.agreed_at) >= pause
        {
            self.agreed_at = now;
            self.start_pull(now, from, Purpose::Agree { back: true });
        }
    }

    /// Whether a SWIM datagram may be applied; acts on what it says about this node.
    fn may_apply(&mut self, now: Instant, from: SocketAddr, said: &Inspected) -> bool {
        if !matches!(self.phase, Phase::Up(_)) {
            return false;
        }
        let me = self.identity.node;
        if said.target.node.id == me.id && said.target != self.identity {
            self.claimed(now, from, &said.target);
            // It does not know this life of ours: introduce it.
            if self.limits.hints.allows(now, said.source.node.id) {
                self.start_pull(now, from, Purpose::Agree { back: true });
            }
        }
        if let Some(known) = self.known.get(&said.source.node.id)
            && known.id().node.incarnation > said.source.node.incarnation + 1
        {
            let incarnation = known.id().node.incarnation;
            if self.limits.hints.allows(now, said.source.node.id) {
                self.say(from, &Word::Superseded { incarnation });
            }
        }
        for update in said.updates.iter().filter(|u| u.id().node.id == me.id) {
            if *update.id() != self.identity {
                self.claimed(now, from, update.id());
            }
        }
        let ends_us =
            |update: &Member<Identity>| update.state() == State::Down && *update.id() == self.identity;
        if (said.says_we_are_down || said.updates.iter().any(ends_us)) && !self.may_renew(now, from) {
            return false;
        }
        let named = said.updates.iter().map(Member::id).chain([&said.source]);
        let strangers =
            named.filter(|id| id.node.id != me.id && !self.known.contains_key(&id.node.id)).count();
        self.may_take_in(now, from, strangers)
    }

    /// Somebody knows this node's name under another identity: an earlier life, a later one that
    /// this start knows nothing of, or another holder of the name.
    pub(super) fn claimed(&mut self, now: Instant, from: SocketAddr, other: &Identity) {
        let theirs = other.node.incarnation;
        if other.addr != self.identity.addr && self.limits.hints.allows(now, other.node.id) {
            let nonce = self.new_name_nonce();
            self.say(other.addr, &Word::NameProbe { id: self.identity.node.id, nonce });
        }
        if theirs > self.identity.node.incarnation && self.may_renew(now, from) {
            self.rename(now, theirs + 1, from);
        }
    }

    /// Takes the life `incarnation`, above one that others know.
    pub(super) fn rename(&mut self, now: Instant, incarnation: u64, from: SocketAddr) {
        let identity = self.identity.in_life(incarnation);
        let Phase::Up(up) = &mut self.phase else { return };
        if incarnation >= INCARNATION_MAX {
            return;
        }
        up.swim.rename(now, identity);
        self.renewed(now, identity, Some(from));
    }

    /// Whether this node may take another life now; counts it.
    pub(super) fn may_renew(&mut self, now: Instant, by: SocketAddr) -> bool {
        let renewals = &mut self.limits.renewals;
        if renewals.back().is_some_and(|&last| now.since(last) < RENEWAL_PERIOD) {
            return false;
        }
        while renewals.front().is_some_and(|&first| now.since(first) > Duration::from_secs(60)) {
            renewals.pop_front();
        }
        renewals.push_back(now);
        let times = renewals.len();
        if times >= RENEWALS_NOTED && self.limits.notices.allows(now, (kind::DECLARED_DOWN, by)) {
            let times = u32::try_from(times).unwrap_or(u32::MAX);
            self.notice(Notice::DeclaredDownOften { by, times });
        }
        true
    }

    /// Whether `strangers` more nodes may be taken in. (FAULTS 80.)
    pub(super) fn may_take_in(&mut self, now: Instant, from: SocketAddr, strangers: usize) -> bool {
        if strangers == 0 {
            return true;
        }
        let (tokens, since) = &mut self.limits.newcomers;
        let earned =
            u64::try_from(now.since(*since).as_millis()).unwrap_or(u64::MAX) * NEWCOMERS_PER_SECOND / 1_000;
        if earned > 0 {
            *tokens = (*tokens + earned).min(NODES_MAX as u64);
            *since = now;
        }
        let up = self.known.values().filter(|m| m.state() != State::Down).count();
        if up + strangers <= NODES_MAX && *tokens >= strangers as u64 {
            *tokens -= strangers as u64;
            return true;
        }
        self.stats.refused += 1;
        let known = self.known.len();
        if self.limits.notices.allows(now, (kind::TOO_MANY, from)) {
            self.notice(Notice::TooManyNodes { from, known });
        }
        false
    }
}
