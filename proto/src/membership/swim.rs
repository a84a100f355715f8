//! SWIM itself: the crate `foca`, and what it needs around it.
//!
//! Belongs here: foca's timers as one ordered queue, what its probes show, reading a datagram before
//! foca does.
//! Stays out: sealing, joining, records, what the view says; how suspicions run (`suspicion`).
//! Invariants: timers fire in the order of their deadlines, then of their insertion; a member that
//! refuted a suspicion is never told that it is down; a life acts on its own suspicions only; who is
//! suspect here is told with each probe.
//! Source: SWIM (Das et al. 2002); foca 2.0.0.

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Foca, Member, NoCustomBroadcast, OwnedNotification, PostcardCodec, State, Timer,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::health::Health;
use super::suspicion::{Lasts, Suspicions, telling};
use super::{Identity, Timing};
use crate::id::NodeId;
use crate::time::Instant;

/// Members remembered, down ones included. Beyond it the one that has been down longest is
/// forgotten.
pub(crate) const MEMBERS_MAX: usize = 4 * super::NODES_MAX;

/// Lateness below this is that of every scheduler.
const LATENESS_USUAL: Duration = Duration::from_millis(10);

/// A suspicion that is about to come true when this node wakes waits for so many probe periods.
const CHANCE_PERIODS: u32 = 2;

/// The failure detector of this node.
pub(crate) struct Swim {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    effects: AccumulatingRuntime<Identity>,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    inserted: u64,
    /// Where in `timers` a down member's removal is: one per node, however often it went down.
    removals: BTreeMap<NodeId, (Instant, u64)>,
    /// Whose suspicions, probes and refutations these are.
    life: Identity,
    suspicions: Suspicions,
    health: Health,
    /// Who is being probed, and whether it was suspect before.
    probed: Option<(Identity, bool)>,
    /// The probe under way has been given more time, because this node stood still.
    probe_excused: bool,
    /// When suspicions became shorter last: none was due before.
    eased_at: Instant,
    /// Suspicions of this life up to here are refuted.
    refuted: u16,
    /// Suspects to be told so.
    tellings: VecDeque<(Identity, Bytes)>,
    suspect_for: Duration,
    probe_period: Duration,
    lateness_forgiven: Duration,
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
            life: me,
            suspicions: Suspicions::default(),
            health: Health::default(),
            probed: None,
            probe_excused: false,
            eased_at: Instant::ZERO,
            refuted: 0,
            tellings: VecDeque::new(),
            suspect_for: timing.suspect_for,
            probe_period: timing.probe_period,
            lateness_forgiven: timing.lateness_forgiven,
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
            let (probes, gossips) =
                (matches!(timer, Timer::ProbeRandomMember(_)), matches!(timer, Timer::PeriodicGossip(_)));
            if let Timer::RemoveDown(id) = &timer {
                self.removals.remove(&id.node.id);
            }
            let probed = if probes { self.probed.take() } else { None };
            self.hand(now, timer);
            if let Some((id, was_suspect)) = probed {
                self.probe_ended(now, &id, was_suspect);
            }
            if gossips {
                self.settle();
                for suspect in self.suspicions.tell_next() {
                    self.tell(&suspect);
                }
            }
        }
        if self.suspicions.next_deadline(self.lasts()).is_some_and(|at| at <= now) {
            self.settle();
            while let Some(timer) = self.suspicions.take_due(now, self.lasts()) {
                self.hand(now, timer);
            }
        }
    }

    fn hand(&mut self, now: Instant, timer: Timer<Identity>) {
        if let Err(error) = self.foca.handle_timer(timer, &mut self.effects) {
            tracing::debug!(%error, "a membership timer failed");
        }
        self.schedule(now);
    }

    /// foca 2.0.0 takes a suspicion that was refuted meanwhile for one that came true, and tells the
    /// healthy member that it is down (it then renews itself for nothing). So it is handed only those
    /// that stand.
    fn settle(&mut self) {
        self.suspicions.settle(self.foca.iter_members());
    }

    /// A probe has failed exactly if foca has raised a suspicion for it.
    fn probe_ended(&mut self, now: Instant, probed: &Identity, was_suspect: bool) {
        self.probe_excused = false;
        let before = self.health.stretch();
        if !self.suspicions.holds(probed.node.id) {
            self.health.probe_answered();
        } else if !was_suspect {
            self.health.probe_failed();
        }
        if self.health.stretch() < before {
            self.eased_at = now;
        }
    }

    /// Others say that they suspect this life at `incarnation`.
    pub(crate) fn suspected(&mut self, incarnation: u16) {
        if incarnation >= self.refuted {
            self.refuted = incarnation.saturating_add(1);
            self.health.suspected();
        }
    }

    /// When to call [`Swim::fire`].
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        let suspicion = self.suspicions.next_deadline(self.lasts()).map(|at| at.max(self.eased_at));
        [timer, suspicion].into_iter().flatten().min()
    }

    /// How many times `suspect_for` a suspicion lasts at present.
    pub(crate) fn stretch(&self) -> u32 {
        self.health.stretch()
    }

    fn lasts(&self) -> Lasts {
        Lasts { run: self.suspect_for, clock: self.suspect_for * self.health.stretch() }
    }

    /// This node stood still for `late`, until now. That time does not count, neither for whoever is
    /// probed nor for whoever is suspected; and as the others may have stood still with it, both get
    /// a full chance to answer. Longer ones also stretch suspicions for a while.
    pub(crate) fn stood_still(&mut self, now: Instant, late: Duration) {
        if late < LATENESS_USUAL {
            return;
        }
        self.health.late(late, self.lateness_forgiven);
        self.suspicions.stood_still(now, late, self.lasts(), self.probe_period * CHANCE_PERIODS);
        let mut more = late;
        if late >= self.lateness_forgiven && !self.probe_excused {
            self.probe_excused = true;
            more += self.probe_period;
        }
        let is_probe = |timer: &Timer<Identity>| {
            matches!(timer, Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. })
        };
        let probes: Vec<(Instant, u64)> =
            self.timers.iter().filter(|(_, timer)| is_probe(timer)).map(|(at, _)| *at).collect();
        for (at, n) in probes {
            if let Some(timer) = self.timers.remove(&(at, n)) {
                let ends = matches!(timer, Timer::ProbeRandomMember(_));
                self.timers.insert((at + if ends { more } else { late }, n), timer);
            }
        }
    }

    /// A datagram to send.
    pub(crate) fn next_send(&mut self) -> Option<(Identity, Bytes)> {
        self.effects.to_send().or_else(|| self.tellings.pop_front())
    }

    /// Something foca wants known.
    pub(crate) fn next_note(&mut self) -> Option<OwnedNotification<Identity>> {
        self.effects.to_notify()
    }

    fn schedule(&mut self, now: Instant) {
        if *self.foca.identity() != self.life {
            self.life = *self.foca.identity();
            self.suspicions.forget();
            self.probed = None;
            self.refuted = 0;
        }
        while let Some((after, timer)) = self.effects.to_schedule() {
            match &timer {
                Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                    // Refuted before it was raised: that member has spoken since its probe began.
                    let suspect = Member::new(*member_id, *incarnation, State::Suspect);
                    if self.foca.iter_members().all(|m| *m != suspect) {
                        continue;
                    }
                    if let Some(suspect) = self.suspicions.raise(now, timer) {
                        self.tell(&suspect);
                    }
                    continue;
                }
                Timer::SendIndirectProbe { probed_id, .. } => self.probe_begins(*probed_id),
                _ => {}
            }
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

    /// A suspect that this node does not suspect by itself may never have heard of it: who told so
    /// may be gone, or reborn. It is told before its silence can count.
    fn probe_begins(&mut self, id: Identity) {
        let suspect =
            self.foca.iter_members().find(|m| *m.id() == id && m.state() == State::Suspect).cloned();
        self.probed = Some((id, suspect.is_some()));
        if let Some(suspect) = suspect {
            self.tell(&suspect);
        }
    }

    fn tell(&mut self, suspect: &Member<Identity>) {
        self.tellings.push_back((*suspect.id(), telling(self.life, suspect)));
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.members().len() <= MEMBERS_MAX + super::NODES_MAX, "too many members remembered");
        assert!(self.removals.values().all(|at| self.timers.contains_key(at)), "a removal has no timer");
        assert!(self.suspicions.len() <= self.members().len(), "more suspicions than members");
        // Per member a removal; and those of foca itself, some from former lives.
        let bound = 64 + self.members().len();
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
