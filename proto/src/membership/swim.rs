//! SWIM itself: the crate `foca`, and what it needs around it.
//!
//! Belongs here: foca's timers as one ordered queue, the filter for its stale ones, reading a
//! datagram before foca does.
//! Stays out: sealing, joining, records, what the view says.
//! Invariants: timers fire in the order of their deadlines, then of their insertion; a member that
//! refuted a suspicion is never told that it is down.
//! Source: SWIM (Das et al. 2002); foca 2.0.0.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Foca, Member, NoCustomBroadcast, OwnedNotification, PostcardCodec, State, Timer,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::{Identity, Timing};
use crate::id::NodeId;
use crate::time::Instant;

/// Members remembered, down ones included. Beyond it the one that has been down longest is
/// forgotten.
pub(crate) const MEMBERS_MAX: usize = 4 * super::NODES_MAX;

/// The failure detector of one life of this node.
pub(crate) struct Swim {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    effects: AccumulatingRuntime<Identity>,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    inserted: u64,
    /// Where in `timers` a down member's removal is: one per node, however often it went down.
    removals: BTreeMap<NodeId, (Instant, u64)>,
}

/// A datagram, read but not yet applied.
pub(crate) struct Inspected {
    /// Who says so.
    pub(crate) source: Identity,
    /// To whom.
    pub(crate) target: Identity,
    /// What it says of others (and of us).
    pub(crate) updates: Vec<Member<Identity>>,
    /// It tells us that we are down.
    pub(crate) says_we_are_down: bool,
}

impl Swim {
    /// `packet_bytes_max` is what is left of a datagram for foca.
    pub(crate) fn new(me: Identity, timing: &Timing, packet_bytes_max: usize, seed: u64) -> Self {
        let count = |n: usize| NonZeroUsize::new(n).expect("checked by Timing::check");
        let every = |frequency, n| Some(foca::PeriodicParams { frequency, num_members: count(n) });
        let config = foca::Config {
            probe_period: timing.probe_period,
            probe_rtt: timing.probe_rtt,
            num_indirect_probes: count(timing.helpers),
            max_transmissions: NonZeroU8::new(timing.transmissions).expect("checked by Timing::check"),
            suspect_to_down_after: timing.suspect_for,
            remove_down_after: Some(timing.down_kept_for),
            max_packet_size: count(packet_bytes_max),
            notify_down_members: true,
            // Full exchanges do this better: `sync`.
            periodic_announce: None,
            periodic_announce_to_down_members: every(timing.announce_to_down_period, 2),
            periodic_gossip: every(timing.gossip_period, timing.gossip_fanout),
        };
        Self {
            foca: Foca::new(me, config, StdRng::seed_from_u64(seed), PostcardCodec),
            effects: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            inserted: 0,
            removals: BTreeMap::new(),
        }
    }

    /// This node as SWIM knows it now.
    pub(crate) fn me(&self) -> &Identity {
        self.foca.identity()
    }

    /// All members known, down ones too, in no order.
    pub(crate) fn members(&self) -> impl ExactSizeIterator<Item = &Member<Identity>> {
        self.foca.iter_membership_state()
    }

    /// Applies a datagram that [`inspect`] let pass.
    pub(crate) fn datagram(&mut self, now: Instant, bytes: &[u8]) -> Result<(), foca::Error> {
        let result = self.foca.handle_data(bytes, &mut self.effects);
        self.schedule(now);
        result
    }

    /// Applies what a full exchange told; `news` passes on what was not known here.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        members: impl Iterator<Item = Member<Identity>>,
        news: bool,
    ) {
        let result = self.foca.apply_many(members, news, &mut self.effects);
        debug_assert!(result.is_ok(), "identities always encode: {result:?}");
        self.schedule(now);
    }

    /// Introduces this node to a peer.
    pub(crate) fn announce(&mut self, now: Instant, to: Identity) {
        let result = self.foca.announce(to, &mut self.effects);
        debug_assert!(result.is_ok(), "identities always encode: {result:?}");
        self.schedule(now);
    }

    /// Goes on as another life; tells some peers at once.
    pub(crate) fn rename(&mut self, now: Instant, to: Identity) {
        let result = self.foca.change_identity(to, &mut self.effects);
        debug_assert!(result.is_ok(), "another identity: {result:?}");
        // foca forgot that it is connected; it is, to everybody it knows.
        self.apply(now, std::iter::empty(), true);
    }

    /// Tells some peers that this node is gone. Nothing may be applied afterwards: being told so
    /// in turn would bring it back.
    pub(crate) fn leave(&mut self, now: Instant) {
        let result = self.foca.leave_cluster(&mut self.effects);
        debug_assert!(result.is_ok(), "identities always encode: {result:?}");
        self.timers.clear();
        self.schedule(now);
    }

    /// Tells some random peers the news.
    pub(crate) fn gossip(&mut self, now: Instant) {
        let result = self.foca.gossip(&mut self.effects);
        debug_assert!(result.is_ok(), "identities always encode: {result:?}");
        self.schedule(now);
    }

    /// Fires what is due.
    pub(crate) fn fire(&mut self, now: Instant) {
        // Whatever fires is scheduled anew later than now, so this ends.
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            if let Timer::RemoveDown(id) = &timer {
                self.removals.remove(&id.node.id);
            }
            if !self.is_stale(&timer)
                && let Err(error) = self.foca.handle_timer(timer, &mut self.effects)
            {
                tracing::debug!(%error, "a membership timer failed");
            }
            self.schedule(now);
        }
    }

    /// When to call [`Swim::fire`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// This node stood still for `by`: no timer counts that time. So whoever is probed or suspected
    /// has as much time left as when it stopped (foca has no Lifeguard).
    pub(crate) fn postpone(&mut self, by: Duration) {
        self.timers =
            std::mem::take(&mut self.timers).into_iter().map(|((at, n), t)| ((at + by, n), t)).collect();
        for at in self.removals.values_mut() {
            at.0 = at.0 + by;
        }
    }

    /// A datagram to send.
    pub(crate) fn next_send(&mut self) -> Option<(Identity, Bytes)> {
        self.effects.to_send()
    }

    /// Something foca wants known.
    pub(crate) fn next_note(&mut self) -> Option<OwnedNotification<Identity>> {
        self.effects.to_notify()
    }

    /// foca 2.0.0 takes a suspicion that was refuted meanwhile for one that came true, and tells the
    /// healthy member that it is down (it then renews itself for nothing). So such a timer fires only
    /// while its suspicion stands.
    fn is_stale(&self, timer: &Timer<Identity>) -> bool {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = timer else { return false };
        !self
            .foca
            .iter_members()
            .any(|m| m.id() == member_id && m.incarnation() == *incarnation && m.state() == State::Suspect)
    }

    fn schedule(&mut self, now: Instant) {
        while let Some((after, timer)) = self.effects.to_schedule() {
            self.inserted += 1;
            let at = (now + after, self.inserted);
            if let Timer::RemoveDown(id) = &timer
                && let Some(earlier) = self.removals.insert(id.node.id, at)
            {
                self.timers.remove(&earlier);
            }
            self.timers.insert(at, timer);
        }
        if self.foca.iter_membership_state().len() > MEMBERS_MAX
            && let Some((&id, &at)) = self.removals.iter().min_by_key(|(_, at)| **at)
        {
            self.removals.remove(&id);
            if let Some(timer) = self.timers.remove(&at) {
                // Forgetting a member has no effects beyond that.
                let _ = self.foca.handle_timer(timer, &mut self.effects);
            }
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.members().len() <= MEMBERS_MAX + super::NODES_MAX, "too many members remembered");
        assert!(self.removals.values().all(|at| self.timers.contains_key(at)), "a removal has no timer");
        // Per member: a removal, and the suspicions of it that probes may raise one after another.
        let bound = 64 + 16 * self.members().len();
        assert!(
            self.timers.len() <= bound,
            "{} timers for {} members",
            self.timers.len(),
            self.members().len()
        );
    }
}

/// Reads a datagram as foca will. What it refuses never reaches foca.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Inspected, &'static str> {
    use foca::Message as M;
    let (header, rest) =
        postcard::take_from_bytes::<foca::Header<Identity>>(bytes).map_err(|_| "malformed header")?;
    let third = match &header.message {
        M::PingReq { target: id, .. } | M::IndirectAck { target: id, .. } => Some(id),
        M::IndirectPing { origin: id, .. } | M::ForwardedAck { origin: id, .. } => Some(id),
        _ => None,
    };
    let mut updates = Vec::new();
    let mut rest = rest;
    if let Some((count, tail)) = rest.split_first_chunk::<2>() {
        rest = tail;
        for _ in 0..u16::from_be_bytes(*count) {
            let (update, tail) =
                postcard::take_from_bytes::<Member<Identity>>(rest).map_err(|_| "malformed update")?;
            rest = tail;
            updates.push(update);
        }
    }
    if !rest.is_empty() {
        return Err("bytes after the updates");
    }
    let all = [&header.src, &header.dst].into_iter().chain(third).chain(updates.iter().map(Member::id));
    if let Some(what) = all.into_iter().find_map(Identity::nonsense) {
        return Err(what);
    }
    let says_we_are_down = matches!(header.message, M::TurnUndead);
    Ok(Inspected { source: header.src, target: header.dst, updates, says_we_are_down })
}
