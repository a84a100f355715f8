//! The gossip thread: owner of the membership machine.
//!
//! Belongs here: its loop, sending its datagrams, publishing views, telling people what happened.
//! Stays out: SWIM itself (`mesh_proto::membership`), receiving (the socket's wrapper in `endpoint`).
//! Invariants: waiting datagrams are taken in before timers fire, so that a probe is not failed by an
//! answer that is already here; timers wait for the mesh's runtime only while datagrams lie unread in
//! the socket (`reader`).

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::time::Duration;

use mesh_proto::id::NodeId;
use mesh_proto::membership::{HeardDigest, Input, Membership, MembershipConfig, Notice, Output, Stats};
use mesh_proto::view::View;
use tokio::sync::{oneshot, watch};

use super::priority;
use super::reader::Reader;
use crate::clock::Clock;

/// Datagrams and commands waiting for the gossip thread. Full: datagrams are dropped, as the network
/// may do; commands fail.
pub(crate) const GOSSIP_QUEUE_LEN: usize = 1_024;

/// Inputs taken in before timers have their turn: more than the queue holds would let a flood of
/// datagrams stop the clock.
const INPUTS_PER_TURN: usize = GOSSIP_QUEUE_LEN;

/// The longest sleep, in case the machine has no deadline.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The sleep while the mesh thread is behind.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the gossip thread is told.
#[derive(Debug)]
pub(crate) enum ToGossip {
    /// From the socket.
    Datagram(SocketAddr, Vec<u8>),
    /// Seeds, resolved anew.
    Seeds(Vec<SocketAddr>),
    /// Announce draining, or take it back.
    Drain(bool),
    /// Leave for good.
    Leave,
    /// What is known, for status.
    Facts(oneshot::Sender<GossipFacts>),
    /// End the thread.
    Stop,
}

/// What the membership knows, for status and metrics.
#[derive(Clone, Debug)]
pub struct GossipFacts {
    /// Counts since the start.
    pub stats: Stats,
    /// Ring digests as last heard from each node that is up.
    pub digests: BTreeMap<NodeId, HeardDigest>,
    /// Gossip datagrams that the socket refused to send.
    pub unsent: u64,
    /// Whether the kernel let the thread run ahead of others.
    pub raised_priority: bool,
}

/// What the node must act on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Another live node has this node's name, and where: this one must exit (status 3).
    pub name_taken_by: Option<SocketAddr>,
    /// The others were told that this node leaves.
    pub left: bool,
}

/// The thread's ends.
pub(crate) struct GossipThread {
    pub(crate) socket: UdpSocket,
    pub(crate) reader: Reader,
    pub(crate) inputs: Receiver<ToGossip>,
    pub(crate) views: watch::Sender<Arc<View>>,
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) clock: Clock,
}

impl GossipThread {
    /// Starts the thread.
    pub(crate) fn start(self, config: MembershipConfig) -> io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("gossip".into()).spawn(move || self.run(config))
    }

    fn run(self, config: MembershipConfig) {
        let raised_priority = priority::raise();
        tracing::debug!(raised_priority, "gossip thread runs");
        let membership = Membership::new(self.clock.now(), config);
        let facts =
            GossipFacts { stats: *membership.stats(), digests: BTreeMap::new(), unsent: 0, raised_priority };
        Loop { thread: self, membership, facts }.run();
    }
}

struct Loop {
    thread: GossipThread,
    membership: Membership,
    facts: GossipFacts,
}

impl Loop {
    fn run(mut self) {
        self.drain();
        let mut behind = false;
        loop {
            let now = self.thread.clock.now();
            let deadline = self.membership.next_deadline().unwrap_or(now + SLEEP_MAX);
            let sleep = if behind { LOOK_AGAIN } else { deadline.since(now).min(SLEEP_MAX) };
            match self.thread.inputs.recv_timeout(sleep) {
                Ok(input) => {
                    if !self.take(input) || !self.take_waiting() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !self.take_waiting() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = self.thread.clock.now();
            let due = self.membership.next_deadline().is_some_and(|deadline| deadline <= now);
            behind = due && !self.thread.reader.keeps_up(now);
            if due && !behind {
                // What the mesh thread has handed over since is taken in before, too.
                if !self.take_waiting() {
                    return;
                }
                self.membership.handle(self.thread.clock.now(), Input::Timer);
            }
            self.drain();
        }
    }

    /// Takes in what waits; whether to go on.
    fn take_waiting(&mut self) -> bool {
        for _ in 0..INPUTS_PER_TURN {
            match self.thread.inputs.try_recv() {
                Ok(input) => {
                    if !self.take(input) {
                        return false;
                    }
                }
                Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => break,
            }
        }
        true
    }

    /// Takes in one input; whether to go on.
    fn take(&mut self, input: ToGossip) -> bool {
        let now = self.thread.clock.now();
        match input {
            ToGossip::Datagram(from, mut bytes) => {
                self.membership.handle(now, Input::Datagram { from, bytes: &mut bytes });
            }
            ToGossip::Seeds(seeds) => self.membership.handle(now, Input::Seeds(seeds)),
            ToGossip::Drain(true) => self.membership.handle(now, Input::Drain),
            ToGossip::Drain(false) => self.membership.handle(now, Input::CancelDrain),
            ToGossip::Leave => self.membership.handle(now, Input::Leave),
            ToGossip::Facts(asker) => {
                self.facts.stats = *self.membership.stats();
                self.facts.digests = self.membership.digests().clone();
                let _ = asker.send(self.facts.clone());
            }
            ToGossip::Stop => return false,
        }
        self.drain();
        true
    }

    fn drain(&mut self) {
        while let Some(output) = self.membership.poll() {
            match output {
                Output::Datagram { to, bytes } => {
                    // A full socket buffer or an unreachable peer is a lost datagram, nothing more.
                    if self.thread.socket.send_to(&bytes, to).is_err() {
                        self.facts.unsent += 1;
                    }
                }
                Output::View(view) => {
                    self.log_ring(&view);
                    self.thread.views.send_replace(view);
                }
                Output::Notice(notice) => self.notice(&notice),
            }
        }
    }

    /// A line when the ring changes; views also change with suspicions and records.
    fn log_ring(&self, view: &View) {
        let digest = view.ring.digest();
        if digest != self.thread.views.borrow().ring.digest() {
            let (nodes, on_ring) = (view.nodes.len(), view.ring.nodes().len());
            tracing::info!(nodes, on_ring, digest = format!("{digest:016x}"), "the ring has changed");
        }
    }

    fn notice(&self, notice: &Notice) {
        match notice {
            Notice::NameTaken { holder, .. } => {
                let holder = *holder;
                self.thread.standing.send_modify(|standing| standing.name_taken_by = Some(holder));
            }
            Notice::Left => self.thread.standing.send_modify(|standing| standing.left = true),
            _ => {}
        }
        log(notice);
    }
}

/// One line for people.
fn log(notice: &Notice) {
    match notice {
        Notice::NameTaken { .. } => tracing::error!(%notice, "membership"),
        Notice::PeerUp(_)
        | Notice::PeerRenamed { .. }
        | Notice::PeerRefuted(_)
        | Notice::PeerLeft(_)
        | Notice::Joined { .. }
        | Notice::Began
        | Notice::Left => tracing::info!(%notice, "membership"),
        _ => tracing::warn!(%notice, "membership"),
    }
}

/// Puts a datagram into the thread's queue; whether there was room.
pub(crate) fn offer(queue: &SyncSender<ToGossip>, from: SocketAddr, bytes: Vec<u8>) -> bool {
    queue.try_send(ToGossip::Datagram(from, bytes)).is_ok()
}
