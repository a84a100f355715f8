//! What happens in the cluster, as one line each: for `meshctl watch`.
//!
//! Belongs here: differences between two looks, in words; who listens; what a slow listener misses.
//! Stays out: HTTP, how it is shown. Owner: one task tells; each listener is a task of its own.
//! Bounds: [`EVENTS_KEPT`] events wait for the slowest listener; beyond it loses the oldest and is told
//! how many. Peers are asked for their counts only while somebody listens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use mesh_proto::id::{NodeId, NodeRef};
use mesh_proto::view::{NodeInfo, NodeState, View};
use mesh_proto::wire::{DrainPhase, NodeStatus, Safety};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::AdminState;
use super::answers::Event;
use super::cluster::ANSWER_WITHIN;
use super::status::state_word;

/// Events that wait for the slowest listener.
const EVENTS_KEPT: usize = 1_024;

/// How often counts are compared.
const COUNTS_EVERY: Duration = Duration::from_secs(1);

/// A listener who hears nothing for so long is sent an empty line, which shows whether it is there.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// Where events are told. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(EVENTS_KEPT))
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    fn tell(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            // Nobody listens: nobody misses it.
            let _ = self.0.send(event);
        }
    }
}

/// Tells what happens until the listener stops.
pub(super) async fn tell_all(state: Arc<AdminState>, events: Events) {
    let mut views = state.view.clone();
    let mut view = views.borrow_and_update().clone();
    let mut counts: BTreeMap<NodeRef, Told> = BTreeMap::new();
    let mut phase = state.drain.status().phase;
    let mut pace = interval(COUNTS_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The channel outlives the node only while it stops.
            Ok(()) = views.changed() => {
                let next = views.borrow_and_update().clone();
                events.tell(changes(&view, &next));
                view = next;
            }
            now = state.drain.phase_after(phase) => {
                phase = now;
                // What is told of peers a second later is told of this node at once.
                let told = counts.entry(view.me).or_default();
                if told.phase != phase {
                    told.phase = phase;
                    let status = state.drain.status();
                    events.tell([drains(&state.name, phase, status.clients, status.to_hand_over)]);
                }
            }
            _ = pace.tick() => {
                if events.0.receiver_count() == 0 {
                    // A listener to come hears what happens from then on.
                    counts.clear();
                    counts.insert(view.me, Told { phase, safety: None });
                    continue;
                }
                let fresh = ask_all(&state, &view).await;
                counts.retain(|node, _| view.is_up(*node));
                for (node, status) in fresh {
                    let Some(name) = view.node(node).map(NodeInfo::name) else { continue };
                    let first = !counts.contains_key(&node);
                    let told = counts.entry(node).or_default();
                    if first {
                        told.phase = status.drain.phase;
                    }
                    events.tell(told.changes(&name, &status));
                }
            }
        }
    }
}

/// The counts of every node that answers.
async fn ask_all(state: &AdminState, view: &View) -> Vec<(NodeRef, NodeStatus)> {
    let asked = view.nodes.iter().map(|node| async move {
        let answer = timeout(ANSWER_WITHIN, state.cluster.node_status(node.node)).await;
        answer.ok().flatten().map(|status| (node.node, status))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What has been told of one node.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    phase: DrainPhase,
    /// `None` before its first answer: what it counted until then is old.
    safety: Option<Safety>,
}

impl Told {
    fn changes(&mut self, name: &str, status: &NodeStatus) -> Vec<Event> {
        let mut events = Vec::new();
        let drain = &status.drain;
        if std::mem::replace(&mut self.phase, drain.phase) != drain.phase {
            events.push(drains(name, drain.phase, drain.clients, drain.to_hand_over));
        }
        let now = status.safety;
        if let Some(before) = self.safety.replace(now) {
            let counted: [(&str, u64, u64, &str); 4] = [
                ("moves", before.moves_total, now.moves_total, "took over by hand-over"),
                (
                    "takeovers",
                    before.takeovers_total,
                    now.takeovers_total,
                    "carried on after an owner's death",
                ),
                (
                    "fences",
                    before.fences_total,
                    now.fences_total,
                    "refused of an owner that is none any more",
                ),
                ("gaps", before.gaps_total, now.gaps_total, "told to clients as gaps"),
            ];
            for (kind, before, now, words) in counted {
                // Below what it was: another life of the node, which begins at 0.
                let count = now.checked_sub(before).unwrap_or(now);
                if count > 0 {
                    events.push(event(kind, name, count, format!("{name}: {count} {words}")));
                }
            }
        }
        events
    }
}

fn drains(name: &str, phase: DrainPhase, clients: u64, to_hand_over: u64) -> Event {
    let words = match phase {
        DrainPhase::Serving => format!("{name} serves again: its drain was taken back"),
        DrainPhase::Announce => format!("{name} drains: it refuses new clients, {clients} are left"),
        DrainPhase::HandOver => format!("{name} drains: it hands over what it owns"),
        DrainPhase::Closing => {
            format!("{name} drains: it closes {clients} clients, {to_hand_over} entities are left")
        }
        DrainPhase::Leaving => format!("{name} drains: it leaves"),
    };
    event("drain", name, clients, words)
}

fn event(kind: &str, node: &str, count: u64, text: String) -> Event {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    Event { at_ms, kind: kind.into(), node: node.into(), count, text }
}

/// What differs between two views, nodes first, then the ring.
fn changes(before: &View, after: &View) -> Vec<Event> {
    let by_id = |view: &View| -> BTreeMap<NodeId, NodeInfo> {
        view.nodes.iter().map(|node| (node.node.id, node.clone())).collect()
    };
    let (old, new) = (by_id(before), by_id(after));
    let mut events = Vec::new();
    for (id, was) in &old {
        if !new.contains_key(id) {
            let name = was.name();
            events.push(match was.state() {
                NodeState::Draining => event("left", &name, 0, format!("{name} has left")),
                _ => event("down", &name, 0, format!("{name} is down")),
            });
        }
    }
    for (id, now) in &new {
        events.extend(change_of(old.get(id), now));
    }
    if before.ring.digest() != after.ring.digest() {
        let (count, digest) = (after.ring.nodes().len(), after.ring.digest());
        let names: Vec<String> = after
            .ring
            .nodes()
            .iter()
            .map(|on_ring| {
                after.node(on_ring.node).map_or_else(|| format!("{:?}", on_ring.node), NodeInfo::name)
            })
            .collect();
        let text = format!("ring {digest:016x}: {count} nodes ({})", names.join(", "));
        events.push(event("ring", "", count as u64, text));
    }
    events
}

fn change_of(was: Option<&NodeInfo>, now: &NodeInfo) -> Vec<Event> {
    let name = now.name();
    let Some(was) = was else {
        return vec![event(
            "up",
            &name,
            0,
            format!("{name} is up at {}, {}", now.mesh_addr, state_word(now.state())),
        )];
    };
    let mut events = Vec::new();
    if was.node != now.node {
        let text = format!("{name} has restarted, {}", state_word(now.state()));
        events.push(event("restarted", &name, 0, text));
    } else if was.state() != now.state() {
        events.push(event("state", &name, 0, format!("{name} is {}", state_word(now.state()))));
    }
    match (was.suspect, now.suspect) {
        (false, true) => events.push(event("suspect", &name, 0, format!("{name} does not answer probes"))),
        (true, false) => events.push(event("trusted", &name, 0, format!("{name} answers again"))),
        _ => {}
    }
    events
}

/// Writes what one listener hears, until it goes or the node stops.
pub(super) async fn write(
    state: Arc<AdminState>,
    mut heard: broadcast::Receiver<Event>,
    lines: mpsc::Sender<Bytes>,
    stopping: CancellationToken,
) {
    let hello = {
        let view = state.view.borrow();
        let (name, count) = (&state.name, view.nodes.len());
        event(
            "hello",
            name,
            count as u64,
            format!("{count} nodes, ring {:016x}, seen from {name}", view.ring.digest()),
        )
    };
    let all = async {
        let mut line = line_of(&hello);
        while lines.send(line).await.is_ok() {
            line = match timeout(QUIET_MAX, heard.recv()).await {
                Err(_) => Bytes::from_static(b"\n"),
                Ok(Ok(event)) => line_of(&event),
                Ok(Err(RecvError::Lagged(missed))) => line_of(&event(
                    "missed",
                    &state.name,
                    missed,
                    format!("{missed} events were missed: too slow"),
                )),
                Ok(Err(RecvError::Closed)) => return,
            };
        }
    };
    tokio::select! {
        () = all => {}
        () = stopping.cancelled() => {}
    }
}

fn line_of(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).expect("events always serialise");
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests;
