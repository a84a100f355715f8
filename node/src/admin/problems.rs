//! What is wrong, in words that say what to do.
//!
//! Belongs here: conditions and how long each must last before it is a problem.
//! Stays out: gathering the facts (`watcher`), answers of other nodes (`status`).
//! Invariants: every problem is read from facts of this node; a condition that comes and goes within
//! its time is never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_proto::id::{NodeId, ShardIx};
use mesh_proto::view::{NodeInfo, NodeState, View};
use tokio::time::Instant;

use super::answers::Problem;
use super::cluster::MeshFacts;
use crate::handles::SHARD_QUEUE_LEN;

/// Shown at once.
const AT_ONCE: Duration = Duration::ZERO;
/// A link is rebuilt, a record arrives and a full queue drains within this time.
const BRIEF: Duration = Duration::from_secs(2);
/// Joining and agreeing on the ring take less.
const SETTLING: Duration = Duration::from_secs(10);
/// An event that left only a count is shown for so long after it.
const RECENT: Duration = Duration::from_secs(60);

/// A node that went down without draining is spoken of for so long, unless it comes back.
const GONE_SHOWN: Duration = Duration::from_secs(600);
/// Nodes gone that are remembered; more are not told one by one.
const GONE_MAX: usize = 100;

/// Everything that is looked at, at one moment.
#[derive(Debug)]
pub(super) struct Looked<'a> {
    pub(super) view: &'a View,
    pub(super) mesh: Option<&'a MeshFacts>,
    /// Each shard: waiting inputs, and whether it answered.
    pub(super) shards: &'a [(ShardIx, usize, bool)],
    pub(super) descriptors: Descriptors,
    /// Backups that owe a shard of this node an answer for too long.
    pub(super) backups_silent: u64,
    /// What was wrong with the settings when they were read last.
    pub(super) settings: &'a [String],
}

/// Places for clients.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Descriptors {
    /// Connections open on the client port.
    pub(super) connections: u64,
    /// How many there may be by configuration.
    pub(super) connections_max: u64,
    /// Files and sockets the process may have.
    pub(super) fd_limit: u64,
}

/// One condition that holds at present.
struct Condition {
    key: (&'static str, String),
    /// It must hold for so long.
    lasting: Duration,
    what: String,
    hurts: &'static str,
    advice: &'static str,
}

/// A count that should not rise.
#[derive(Debug, Default)]
struct Rising {
    value: Option<u64>,
    rose_at: Option<Instant>,
}

/// A problem, and since when it is one.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) since: Instant,
    pub(super) severity: Severity,
    pub(super) problem: Problem,
}

/// Which problems a peer is told of when there are too many for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Somebody waits or is refused now.
    Hurts,
    /// It has cost something, or may soon.
    Threatens,
}

impl Severity {
    fn of(kind: &str) -> Self {
        match kind {
            "joining" | "suspect" | "silent_shard" | "link" | "connections" | "descriptors" | "backlog"
            | "backup" => Self::Hurts,
            _ => Self::Threatens,
        }
    }
}

/// Remembers since when each condition holds.
#[derive(Debug, Default)]
pub(super) struct Problems {
    since: BTreeMap<(&'static str, String), Instant>,
    shown: Vec<Found>,
    late: Rising,
    mismatched: Rising,
    /// Nodes at the last look: name, and whether draining.
    known: BTreeMap<NodeId, (String, bool)>,
    /// Nodes that went down undrained, and when.
    gone: BTreeMap<NodeId, (String, Instant)>,
}

impl Problems {
    /// Takes in what is the case now.
    pub(super) fn look(&mut self, now: Instant, looked: &Looked<'_>) {
        let mut conditions = Vec::new();
        own_state(looked.view, &mut conditions);
        self.gone(now, looked.view, &mut conditions);
        peers(looked, &mut conditions);
        if let Some(mesh) = looked.mesh {
            links(looked.view, mesh, &mut conditions);
            self.gossip(now, mesh, &mut conditions);
        }
        shards(looked.shards, &mut conditions);
        places(looked.descriptors, &mut conditions);
        if looked.backups_silent > 0 {
            conditions.push(Condition {
                key: ("backup", String::new()),
                lasting: AT_ONCE,
                what: "a backup of this node's users and rooms owes an answer for over 250 ms".into(),
                hurts: "acks and events of what it backs up wait; nothing is released before it answers or is down",
                advice: "look at the CPU of the other nodes and at the links to them",
            });
        }
        if let Some(first) = looked.settings.first() {
            conditions.push(Condition {
                key: ("settings", String::new()),
                lasting: AT_ONCE,
                what: format!("its settings could not be taken over: {first}"),
                hurts: "the node goes on with the old ones, and would not start with the new ones",
                advice: "mend them (`meshd --check-config` lists all that is wrong) and `meshctl reload` again",
            });
        }
        self.keep(now, conditions);
    }

    /// The problems there are, and since when.
    pub(super) fn shown(&self) -> &[Found] {
        &self.shown
    }

    fn keep(&mut self, now: Instant, conditions: Vec<Condition>) {
        let holding: BTreeSet<_> = conditions.iter().map(|c| c.key.clone()).collect();
        self.since.retain(|key, _| holding.contains(key));
        self.shown.clear();
        for Condition { key, lasting, what, hurts, advice } in conditions {
            let severity = Severity::of(key.0);
            let since = *self.since.entry(key).or_insert(now);
            if now.duration_since(since) >= lasting {
                let (hurts, advice) = (hurts.into(), advice.into());
                let problem = Problem { what, hurts, advice, ..Problem::default() };
                self.shown.push(Found { since, severity, problem });
            }
        }
    }

    fn gone(&mut self, now: Instant, view: &View, conditions: &mut Vec<Condition>) {
        let up: BTreeMap<_, _> = view
            .nodes
            .iter()
            .map(|node| (node.node.id, (node.name(), node.state() == NodeState::Draining)))
            .collect();
        for (id, (name, draining)) in std::mem::replace(&mut self.known, up) {
            if !draining && !self.known.contains_key(&id) && self.gone.len() < GONE_MAX {
                self.gone.insert(id, (name, now));
            }
        }
        self.gone.retain(|id, (_, at)| !self.known.contains_key(id) && now.duration_since(*at) < GONE_SHOWN);
        for (id, (name, _)) in &self.gone {
            conditions.push(Condition {
                key: ("gone", format!("{id:?}")),
                lasting: AT_ONCE,
                what: format!("{name} went down without draining"),
                hurts: "its clients had to reconnect; the others carry its share of users and rooms",
                advice: "look at its host and log and start it again; after 10 minutes this is forgotten",
            });
        }
    }

    fn gossip(&mut self, now: Instant, mesh: &MeshFacts, conditions: &mut Vec<Condition>) {
        let worst = mesh.gossip.lateness_max_micros / 1_000;
        if self.late.look(now, mesh.gossip.late) {
            conditions.push(Condition {
                key: ("late", String::new()),
                lasting: AT_ONCE,
                what: format!("this node's gossip ran late (worst since its start: {worst} ms)"),
                hurts: "deaths are noticed later; a longer pause makes others take this node for dead",
                advice: "give the host more CPU, or stop what pauses it (swap, snapshots, throttling)",
            });
        }
        if self.mismatched.look(now, mesh.gossip.mismatched) {
            conditions.push(Condition {
                key: ("mismatched", String::new()),
                lasting: AT_ONCE,
                what: "datagrams of another cluster key, name or protocol arrive".into(),
                hurts: "the node that sends them cannot join",
                advice: "its address and what differs are in this node's log: give it this cluster's key",
            });
        }
    }
}

impl Rising {
    /// Whether it rose within [`RECENT`]. What it was at the first look counts as old.
    fn look(&mut self, now: Instant, value: u64) -> bool {
        if self.value.is_some_and(|before| value > before) {
            self.rose_at = Some(now);
        }
        self.value = Some(value);
        self.rose_at.is_some_and(|at| now.duration_since(at) < RECENT)
    }
}

fn own_state(view: &View, conditions: &mut Vec<Condition>) {
    let state = view.node(view.me).map_or(NodeState::Joining, NodeInfo::state);
    if state == NodeState::Joining {
        conditions.push(Condition {
            key: ("joining", String::new()),
            lasting: SETTLING,
            what: "this node has not joined: no seed has given it the membership".into(),
            hurts: "it owns nothing and is not ready; its clients are served by others, if there are any",
            advice: "check mesh.seeds, that UDP passes both ways, and this node's log for refusals",
        });
    }
}

fn peers(looked: &Looked<'_>, conditions: &mut Vec<Condition>) {
    let view = looked.view;
    for node in view.nodes.iter().filter(|node| node.node != view.me) {
        let name = node.name();
        let key = |kind| (kind, format!("{:?}", node.node));
        if node.suspect {
            conditions.push(Condition {
                key: key("suspect"),
                lasting: AT_ONCE,
                what: format!("{name} does not answer probes"),
                hurts: "users and rooms it owns may pause; it is dropped if it stays silent",
                advice: "if it is up, look at its CPU and at UDP between it and the others",
            });
        }
        if node.record.is_none() {
            conditions.push(Condition {
                key: key("record"),
                lasting: BRIEF,
                what: format!("node {name} is up but has not announced itself"),
                hurts: "it is not on this node's ring",
                advice: "look at its log; gossip between it and this node is losing datagrams",
            });
        }
        let heard = looked.mesh.and_then(|mesh| mesh.digests.get(&node.node.id));
        if heard.is_some_and(|digest| *digest != view.ring.digest()) {
            conditions.push(Condition {
                key: key("digest"),
                lasting: SETTLING,
                what: format!("{name} has another ring than this node"),
                hurts: "users and rooms on which they disagree are bounced between owners",
                advice: "compare `meshctl status` on both: nodes one does not see, mesh.vnodes, weights",
            });
        }
    }
}

fn links(view: &View, mesh: &MeshFacts, conditions: &mut Vec<Condition>) {
    for link in &mesh.links {
        let Some(node) = view.node(link.peer) else { continue };
        let name = node.name();
        let key = |kind| (kind, format!("{:?}", link.peer));
        if !link.connected {
            conditions.push(Condition {
                key: key("link"),
                lasting: BRIEF,
                what: format!("no link to {name}, although gossip reaches it"),
                hurts: "what this node's clients send to users and rooms there waits",
                advice: "look for 'refused' in both logs; check that large UDP datagrams pass between them",
            });
        }
        if link.black_holes > 0 {
            conditions.push(Condition {
                key: key("black_hole"),
                lasting: AT_ONCE,
                what: format!(
                    "full-sized datagrams to {name} vanish on the way ({} times)",
                    link.black_holes
                ),
                hurts: "the link stalls for moments and sends smaller datagrams",
                advice: "the path's MTU is smaller than the interfaces': mend it, or ICMP is filtered",
            });
        }
    }
}

fn shards(shards: &[(ShardIx, usize, bool)], conditions: &mut Vec<Condition>) {
    for (shard, waiting, answered) in shards {
        let number = shard.0;
        let key = |kind| (kind, number.to_string());
        if !answered {
            conditions.push(Condition {
                key: key("silent_shard"),
                lasting: AT_ONCE,
                what: format!("shard {number} of this node does not answer within a second"),
                hurts: "its clients, sessions and rooms wait",
                advice: "the thread has no CPU or hangs: look at the host; restart the node if it stays so",
            });
        }
        if *waiting > SHARD_QUEUE_LEN / 2 {
            conditions.push(Condition {
                key: key("backlog"),
                lasting: BRIEF,
                what: format!("shard {number} of this node is behind: {waiting} inputs wait of {SHARD_QUEUE_LEN}"),
                hurts: "latency of its clients and rooms; when full, peers are slowed and new clients refused",
                advice: "too much load for this node: add nodes, or find the loud room or user",
            });
        }
    }
}

fn places(places: Descriptors, conditions: &mut Vec<Condition>) {
    let Descriptors { connections, connections_max, fd_limit } = places;
    if connections_max > 0 && connections >= connections_max / 10 * 9 {
        conditions.push(Condition {
            key: ("connections", String::new()),
            lasting: AT_ONCE,
            what: format!("{connections} of {connections_max} connections are in use"),
            hurts: "beyond that new clients are refused with 503",
            advice: "add nodes, or raise client.connections_max",
        });
    }
    let usable = fd_limit.saturating_sub(crate::fd_limit::RESERVED);
    if fd_limit > 0 && connections >= usable / 10 * 9 {
        conditions.push(Condition {
            key: ("descriptors", String::new()),
            lasting: AT_ONCE,
            what: format!(
                "{connections} connections are open and the process may have {fd_limit} descriptors"
            ),
            hurts: "beyond that new clients are refused",
            advice: "raise the process's limit of open files (LimitNOFILE, ulimit -n)",
        });
    }
}

#[cfg(test)]
mod tests;
