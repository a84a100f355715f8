//! The membership machine: its parts, its timers, its own state.
//!
//! Belongs here: the public calls, what happens when time passes, draining and leaving.
//! Stays out: datagrams (`inbound`, `outbound`), joining and exchanging (`exchange`), views (`views`).
//! Invariants: [`Membership::check_invariants`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{Member, OwnedNotification};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::inbound::kind;
use super::join::Join;
use super::outbound::OUTPUTS_MAX;
use super::records::Records;
use super::seal::{Opener, Sealer, Terms};
use super::swim::Swim;
use super::sync::Pull;
use super::throttle::Throttle;
use super::views::{Dirty, is_up, node_info};
use super::{
    HeardDigest, Identity, Input, MembershipConfig, NODES_MAX, Notice, Output, SEEDS_MAX, Stats, WEIGHT_MAX,
};
use crate::id::{NodeId, NodeRef};
use crate::time::Instant;
use crate::view::{NodeRecord, NodeState, View};
use crate::wire::ProtocolRange;

/// Rounds of telling others that this node leaves: enough for 20 % loss at any size.
const LEAVE_ROUNDS: u32 = 4;

/// Tables are swept this often.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// A name or an address longer than this is cut in this node's own record.
const NAME_BYTES_MAX: usize = 128;
const ADDR_BYTES_MAX: usize = 90;

/// The membership of one node. Call [`Self::handle`], then [`Self::poll`] until `None`, then sleep
/// until [`Self::next_deadline`].
pub struct Membership {
    pub(super) config: MembershipConfig,
    pub(super) phase: Phase,
    pub(super) identity: Identity,
    pub(super) own: Arc<NodeRecord>,
    pub(super) draining: bool,
    pub(super) records: Records,
    /// All members but this node, as SWIM has them.
    pub(super) known: BTreeMap<NodeId, Member<Identity>>,
    pub(super) known_fingerprint: u64,
    pub(super) pulls: BTreeMap<u32, Pull>,
    pub(super) rounds: u32,
    /// The round that several were asked in; the first page of an answer starts an exchange.
    pub(super) open_round: u32,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) rng: StdRng,
    pub(super) digests: BTreeMap<NodeId, HeardDigest>,
    pub(super) agreed_at: Instant,
    pub(super) name_nonce: u64,
    pub(super) limits: Held,
    pub(super) seeds_at: Instant,
    sweep_at: Instant,
    records_at: Option<Instant>,
    pub(super) view: Arc<View>,
    pub(super) dirty: Dirty,
    /// When a view that could wait was published last.
    pub(super) view_at: Instant,
    /// When other nodes came to be on the ring last.
    pub(super) ring_at: Instant,
    pub(super) outputs: VecDeque<Output>,
    pub(super) stats: Stats,
}

/// Where in its life this node is.
pub(super) enum Phase {
    /// On its way into a cluster; nobody's member.
    Joining(Join),
    /// A member.
    Up(Up),
    /// Telling others that it goes.
    Leaving { swim: Box<Swim>, rounds: u32, next: Instant },
    /// Gone, or refused. Nothing is heard or said.
    Stopped,
}

/// A member's own state.
pub(super) struct Up {
    pub(super) swim: Box<Swim>,
    /// After having been declared down: it owns nothing until an exchange is done, or nobody answers
    /// until then.
    pub(super) rejoining_until: Option<Instant>,
}

/// What must not happen too often.
pub(super) struct Held {
    /// Notices, by kind and peer.
    pub(super) notices: Throttle<(u8, SocketAddr)>,
    /// Refusals, by address.
    pub(super) refusals: Throttle<SocketAddr>,
    /// Hints to peers (`Superseded`, exchanges out of turn), by node.
    pub(super) hints: Throttle<NodeId>,
    /// This node's own new lives.
    pub(super) renewals: VecDeque<Instant>,
    /// Unknown nodes that may still be taken in, and when that was true.
    pub(super) newcomers: (u64, Instant),
}

impl Membership {
    /// A node that has just started.
    ///
    /// # Panics
    /// If `config` breaks a rule that `node::config` checks: [`super::Timing::check`], weight 1 to
    /// [`WEIGHT_MAX`], 1 to 64 shards, a name of at most 128 bytes whose hash is `me.id`.
    #[must_use]
    pub fn new(now: Instant, mut config: MembershipConfig) -> Self {
        config.timing.check().unwrap_or_else(|rule| panic!("{rule}"));
        assert!((1..=WEIGHT_MAX).contains(&config.weight), "weight {}", config.weight);
        assert!((1..=64).contains(&config.shards), "{} shards", config.shards);
        assert!(config.name.len() <= NAME_BYTES_MAX, "name of {} bytes", config.name.len());
        assert_eq!(NodeId::of_name(&config.name), config.me.id, "the id is the hash of the name");
        config.seeds.truncate(SEEDS_MAX);
        let identity = Identity {
            node: config.me,
            addr: config.mesh_addr,
            zone: config.zone,
            weight: config.weight,
            protocol_min: ProtocolRange::OURS.min,
            protocol_max: ProtocolRange::OURS.max,
        };
        let own = Arc::new(own_record(&config, identity.node));
        let terms = Terms {
            fingerprint: config.cluster_key.fingerprint(),
            cluster_id: config.cluster_id,
            protocol: ProtocolRange::OURS,
        };
        let nodes = vec![node_info(&identity, false, Some(own.clone()))];
        let view = Arc::new(View::new(1, config.me, nodes, config.vnodes));
        let mut machine = Self {
            phase: Phase::Joining(Join::new(now, &config.seeds, config.mesh_addr, &config.timing)),
            identity,
            own,
            draining: false,
            records: Records::new(config.timing.transmissions),
            known: BTreeMap::new(),
            known_fingerprint: 0,
            pulls: BTreeMap::new(),
            rounds: 0,
            open_round: 0,
            sealer: Sealer::new(&config.cluster_key, terms, config.me.id, config.boot_id),
            opener: Opener::new(config.cluster_key.clone(), terms),
            rng: StdRng::seed_from_u64(config.seed),
            digests: BTreeMap::new(),
            agreed_at: now,
            name_nonce: 0,
            limits: Held {
                notices: Throttle::new(Duration::from_secs(60)),
                refusals: Throttle::new(Duration::from_secs(1)),
                hints: Throttle::new(Duration::from_secs(1)),
                renewals: VecDeque::new(),
                newcomers: (NODES_MAX as u64, now),
            },
            seeds_at: now + config.timing.seed_period,
            sweep_at: now + SWEEP_PERIOD,
            records_at: None,
            view: view.clone(),
            dirty: Dirty::No,
            view_at: now,
            ring_at: now,
            outputs: VecDeque::from([Output::View(view)]),
            stats: Stats { views: 1, stretch: 1, ..Stats::default() },
            config,
        };
        machine.round(now);
        machine.after(now);
        machine
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Datagram { from, bytes } => self.datagram(now, from, bytes),
            Input::Seeds(seeds) => self.resolved(seeds),
            Input::Drain => self.set_draining(now, true),
            Input::CancelDrain => self.set_draining(now, false),
            Input::Leave => self.leave(now),
            Input::Timer => self.timer(now),
        }
        self.after(now);
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with [`Input::Timer`]; `None` once this node has left.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Joining(join) => Some(join.next_deadline()),
            Phase::Up(up) => {
                let all = [up.swim.next_deadline(), up.rejoining_until, Some(self.seeds_at), self.records_at];
                all.into_iter().flatten().min()
            }
            Phase::Leaving { next, .. } => return Some(*next),
            Phase::Stopped => return None,
        };
        let view = (self.dirty > Dirty::No).then_some(self.view_at + self.config.timing.view_spacing);
        let pulls = self.pulls.values().map(|pull| pull.again_at).min();
        [phase, view, pulls, Some(self.sweep_at)].into_iter().flatten().min()
    }

    /// The cluster as of now.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Ring digests as last heard from each node that is up.
    #[must_use]
    pub fn digests(&self) -> &BTreeMap<NodeId, HeardDigest> {
        &self.digests
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Asserts what must always hold.
    pub fn check_invariants(&self) {
        let me = self.view.node(self.view.me).expect("this node is in its own view");
        assert!(self.view.nodes.len() <= NODES_MAX + 1, "{} nodes in view", self.view.nodes.len());
        assert_eq!(me.node.id, self.config.me.id, "this node keeps its id");
        assert!(self.own.node == self.identity.node, "the record is about this life");
        assert!(self.identity.node.incarnation >= self.config.me.incarnation, "incarnations only rise");
        if let Phase::Joining(_) = self.phase {
            assert!(self.view.ring.nodes().is_empty(), "a joining node owns nothing");
        }
        let names = self.view.nodes.windows(2);
        assert!(names.into_iter().all(|two| two[0].node.id < two[1].node.id), "one life of each node is up");
        assert!(self.digests.len() <= NODES_MAX, "{} digests", self.digests.len());
        assert!(self.pulls.len() <= super::exchange::PULLS_MAX, "{} exchanges", self.pulls.len());
        assert!(self.outputs.len() <= 2 * OUTPUTS_MAX, "{} outputs", self.outputs.len());
        self.opener.check_invariants();
        self.records.check_invariants();
        if let Phase::Up(up) = &self.phase {
            assert_eq!(up.swim.me(), &self.identity, "SWIM and this machine agree who this node is");
            up.swim.check_invariants();
        }
    }

    fn timer(&mut self, now: Instant) {
        let Some(due) = self.next_deadline() else { return };
        let late = now.since(due);
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.stats.lateness_max_micros = self.stats.lateness_max_micros.max(micros);
        if late > self.config.timing.lateness_forgiven {
            self.stats.late += 1;
            if self.limits.notices.allows(now, (kind::LATE, self.config.mesh_addr)) {
                self.notice(Notice::Late { by: late });
            }
        }
        if let Phase::Up(up) = &mut self.phase {
            up.swim.stood_still(now, late);
        }
        match &mut self.phase {
            Phase::Joining(join) => {
                let round_due = join.next_round <= now;
                if let Some((seeds, since, waiting)) = join.complaint(now) {
                    self.notice(Notice::NoSeedAnswers { seeds, since, waiting });
                }
                if round_due {
                    self.round(now);
                }
            }
            Phase::Up(up) => {
                up.swim.fire(now);
                self.stats.stretch = up.swim.stretch();
                let give_up_rejoin = up.rejoining_until.is_some_and(|until| until <= now);
                if give_up_rejoin {
                    self.rejoined(now);
                }
                if self.seeds_at <= now {
                    self.ask_strange_seeds(now);
                    self.seeds_at = now + self.seed_pause();
                }
                if self.records_at.is_some_and(|at| at <= now) {
                    self.records_at = None;
                    self.gossip_records();
                }
            }
            Phase::Leaving { .. } => self.leave_round(now),
            Phase::Stopped => {}
        }
        self.ask_again(now);
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP_PERIOD;
            let (known, me) = (&self.known, self.identity.node);
            self.records.sweep(now, |node| node == me || is_up(known, node));
        }
    }

    /// Passes on what SWIM wants, and publishes what changed.
    fn after(&mut self, now: Instant) {
        let Phase::Up(up) = &mut self.phase else { return };
        let mut renewed = None;
        while let Some(note) = up.swim.next_note() {
            if let OwnedNotification::Rejoin(identity) = note {
                renewed = Some(identity);
            }
        }
        if let Some(identity) = renewed {
            up.swim.apply(now, std::iter::empty(), true);
            self.renewed(now, identity, None);
        }
        self.send_swim();
        self.learn();
        self.rejoin_if_alone_no_more(now);
        if self.records.spreading() > 0 && self.records_at.is_none() && !self.known.is_empty() {
            self.records_at = Some(now + self.config.timing.gossip_period);
        }
        if self.dirty == Dirty::Now {
            self.publish(now);
        } else if self.dirty == Dirty::Soon && now.since(self.view_at) >= self.config.timing.view_spacing {
            self.view_at = now;
            self.publish(now);
        }
    }

    fn resolved(&mut self, seeds: Vec<SocketAddr>) {
        if seeds.is_empty() {
            return;
        }
        if let Phase::Joining(join) = &mut self.phase {
            join.resolved(&seeds, self.config.mesh_addr);
        }
        self.config.seeds = seeds;
        self.config.seeds.truncate(SEEDS_MAX);
    }

    fn set_draining(&mut self, now: Instant, draining: bool) {
        self.draining = draining;
        if let Phase::Up(_) = self.phase {
            self.announce_state(now);
        }
    }

    /// Announces what state this node is in, if it is another than was announced.
    pub(super) fn announce_state(&mut self, now: Instant) {
        let state = match &self.phase {
            _ if self.draining => NodeState::Draining,
            Phase::Up(Up { rejoining_until: None, .. }) => NodeState::Active,
            _ => NodeState::Joining,
        };
        if self.own.state != state {
            let own = Arc::make_mut(&mut self.own);
            own.state = state;
            own.version += 1;
        }
        self.records.offer(now, self.own.clone(), true);
        self.mark(Dirty::Now);
    }

    fn leave(&mut self, now: Instant) {
        self.set_draining(now, true);
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Up(Up { mut swim, .. }) => {
                swim.leave(now);
                self.phase = Phase::Leaving { swim, rounds: 1, next: now };
                self.send_swim();
                self.leave_round(now);
            }
            Phase::Joining(_) => self.notice(Notice::Left),
            gone => self.phase = gone,
        }
        self.pulls.clear();
    }

    fn leave_round(&mut self, now: Instant) {
        let gossip_period = self.config.timing.gossip_period;
        let Phase::Leaving { swim, rounds, next } = &mut self.phase else { return };
        if *rounds >= LEAVE_ROUNDS {
            self.phase = Phase::Stopped;
            self.notice(Notice::Left);
            return;
        }
        *next = now + gossip_period;
        *rounds += 1;
        swim.gossip(now);
        self.send_swim();
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phase = match &self.phase {
            Phase::Joining(_) => "joining",
            Phase::Up(Up { rejoining_until: Some(_), .. }) => "rejoining",
            Phase::Up(_) => "up",
            Phase::Leaving { .. } => "leaving",
            Phase::Stopped => "stopped",
        };
        f.debug_struct("Membership").field("me", &self.identity.node).field("phase", &phase).finish()
    }
}

/// The record of a node that has just started.
fn own_record(config: &MembershipConfig, node: NodeRef) -> NodeRecord {
    let cut = |text: &str, max: usize| {
        let end = (0..=text.len().min(max)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text[..end].to_owned()
    };
    NodeRecord {
        node,
        version: 1,
        name: config.name.clone(),
        state: NodeState::Joining,
        client_addr: cut(&config.client_addr, ADDR_BYTES_MAX),
        admin_addr: cut(&config.admin_addr, ADDR_BYTES_MAX),
        api_addr: cut(&config.api_addr, ADDR_BYTES_MAX),
        shards: config.shards,
        software: cut(&config.software, 32),
    }
}
