//! The numbers of `/metrics`.
//!
//! Belongs here: their names and help texts. Stays out: the text format (`metrics`).
//! Invariants: labels are shard numbers, states and reasons: never a room, user, session or address.

use crate::admin::AdminState;
use crate::handles::{ShardReport, ToShard};
use crate::metrics::{Exposition, Kind};
use mesh_proto::view::{NodeInfo, NodeState};

use super::board::Snapshot;
use super::cluster::{LinkFact, MeshFacts, shard_reports};
use super::status::{ready, shares};

type Read = fn(&ShardReport) -> u64;

/// Per shard: name, kind, help, where it is read.
const SHARD_FAMILIES: [(&str, Kind, &str, Read); 39] = [
    (
        "meshd_clients",
        Kind::Gauge,
        "Clients whose transport ends here. Not counted: handshakes under way.",
        |r| r.machine.clients,
    ),
    (
        "meshd_sessions",
        Kind::Gauge,
        "Sessions this node owns, wherever their clients are connected. Not counted: copies held as backup.",
        |r| r.machine.sessions,
    ),
    ("meshd_rooms", Kind::Gauge, "Rooms this node owns. Not counted: rooms it only has members of.", |r| {
        r.machine.rooms
    }),
    (
        "meshd_bindings",
        Kind::Gauge,
        "Users and sessions of proxied products that this node keeps bound to an upstream, and those forgotten within 30 s. Not counted: copies held as backup.",
        |r| r.machine.bindings,
    ),
    (
        "meshd_bindings_evicted_total",
        Kind::Counter,
        "Bindings forgotten because there were too many. Not counted: those that ended because nobody used them.",
        |r| r.machine.bindings_evicted_total,
    ),
    ("meshd_tails", Kind::Gauge, "Rooms with members among this node's clients.", |r| r.machine.tails),
    (
        "meshd_room_log_bytes",
        Kind::Gauge,
        "Bytes in the logs of rooms owned. Not counted: bookkeeping around them.",
        |r| r.machine.log_bytes,
    ),
    ("meshd_tail_bytes", Kind::Gauge, "Bytes in tails. Not counted: bookkeeping around them.", |r| {
        r.machine.tail_bytes
    }),
    (
        "meshd_packets_received_total",
        Kind::Counter,
        "Packets received from clients. Not counted: WebSocket pings, packets refused by the frame reader.",
        |r| r.machine.packets_received_total,
    ),
    (
        "meshd_deliveries_total",
        Kind::Counter,
        "Messages handed to clients' transports, one for each client. Not counted: heartbeats of the WebSocket layer; whether the client has received them.",
        |r| r.machine.deliveries_total,
    ),
    (
        "meshd_publishes_total",
        Kind::Counter,
        "Entries appended to rooms owned. Not counted: repeats, volatile events, events for one session alone.",
        |r| r.machine.publishes_total,
    ),
    ("meshd_publish_duplicates_total", Kind::Counter, "Publishes dropped as repeats.", |r| {
        r.machine.duplicates_total
    }),
    (
        "meshd_clients_behind_total",
        Kind::Counter,
        "Times a client fell behind and was served by its cursors.",
        |r| r.machine.behind_total,
    ),
    (
        "meshd_older_fetches_total",
        Kind::Counter,
        "Fetches of entries before a tail from a room's owner, each shared by all who wait for it.",
        |r| r.machine.fetches_total,
    ),
    (
        "meshd_clients_too_slow_total",
        Kind::Counter,
        "Clients closed because they were too slow. They may come back.",
        |r| r.machine.too_slow_total,
    ),
    (
        "meshd_protocol_errors_total",
        Kind::Counter,
        "Clients closed for breaking Engine.IO, Socket.IO or the plain protocol. Not counted: WebSocket violations, refused handshakes.",
        |r| r.machine.protocol_errors_total,
    ),
    (
        "meshd_volatile_dropped_total",
        Kind::Counter,
        "Volatile events not written because a client's queue was not empty.",
        |r| r.machine.volatile_dropped_total,
    ),
    (
        "meshd_gaps_total",
        Kind::Counter,
        "Holes in the logs of rooms owned here, told to edges; not how many clients heard of them.",
        |r| r.machine.gaps_total,
    ),
    (
        "meshd_not_owner_total",
        Kind::Counter,
        "Envelopes bounced because this node does not own what they are about: normal for moments after a ring change.",
        |r| r.machine.not_owner_total,
    ),
    ("meshd_resumed_total", Kind::Counter, "Clients that came back to their session.", |r| {
        r.machine.resumed_total
    }),
    (
        "meshd_not_resumed_total",
        Kind::Counter,
        "Clients that came back and began anew: too late, or what they had missed was not kept any more.",
        |r| r.machine.not_resumed_total,
    ),
    ("meshd_reattached_total", Kind::Counter, "Sessions attached anew after their owner changed.", |r| {
        r.machine.reattached_total
    }),
    (
        "meshd_to_hand_over",
        Kind::Gauge,
        "Sessions and rooms held as owner that the ring gives to others: not 0 for moments after a ring change, and while draining.",
        |r| r.machine.to_hand_over,
    ),
    (
        "meshd_copies_pending",
        Kind::Gauge,
        "Sessions and rooms owned whose backup does not have all of them yet. Not counted: those without a backup because there is no other node.",
        |r| r.machine.copies_pending,
    ),
    ("meshd_copies", Kind::Gauge, "Sessions and rooms held as backup for other owners.", |r| {
        r.machine.copies
    }),
    (
        "meshd_backups_silent",
        Kind::Gauge,
        "Backups that have owed an answer for 250 ms or more: what waits for them is held back.",
        |r| r.machine.backups_silent,
    ),
    (
        "meshd_replication_lag_ops",
        Kind::Gauge,
        "Operations applied that backups have not confirmed: their effects wait.",
        |r| r.machine.replication_lag_ops,
    ),
    (
        "meshd_parked_sessions",
        Kind::Gauge,
        "Sessions owned without a transport, kept for their clients to come back.",
        |r| r.machine.parked_sessions,
    ),
    (
        "meshd_moves_total",
        Kind::Counter,
        "Sessions and rooms taken over from their owner by hand-over. Not counted: those begun after an owner's death.",
        |r| r.machine.moves_total,
    ),
    (
        "meshd_takeovers_total",
        Kind::Counter,
        "Sessions and rooms carried on from a copy after their owner's death. Not counted: those rebuilt without a copy.",
        |r| r.machine.takeovers_total,
    ),
    (
        "meshd_fences_total",
        Kind::Counter,
        "Messages of owners refused here because a higher term was known.",
        |r| r.machine.fences_total,
    ),
    ("meshd_shard_turns_total", Kind::Counter, "Turns of the shard's loop.", |r| r.driver.turns_total),
    (
        "meshd_client_read_bytes_total",
        Kind::Counter,
        "Bytes read from clients, frame headers included. Not counted: TCP/IP, handshakes.",
        |r| r.driver.read_bytes_total,
    ),
    (
        "meshd_client_written_bytes_total",
        Kind::Counter,
        "Bytes written to clients, frame headers included. Not counted: TCP/IP, handshakes.",
        |r| r.driver.written_bytes_total,
    ),
    (
        "meshd_client_writes_total",
        Kind::Counter,
        "Write calls to clients. Fewer than deliveries: what is there at once leaves in one.",
        |r| r.driver.writes_total,
    ),
    ("meshd_client_write_blocked_total", Kind::Counter, "Times a client's socket did not take all.", |r| {
        r.driver.blocked_total
    }),
    (
        "meshd_websocket_violations_total",
        Kind::Counter,
        "Clients closed for breaking the WebSocket protocol.",
        |r| r.driver.violations_total,
    ),
    (
        "meshd_backlogs_dropped_total",
        Kind::Counter,
        "Backlogs to peers or shards dropped over their bound; what was in them is repeated.",
        |r| r.driver.backlogs_dropped_total,
    ),
    ("meshd_queries_open", Kind::Gauge, "Questions of the HTTP API and of operators under way.", |r| {
        r.driver.queries_open
    }),
];

/// The whole text of a scrape.
pub(super) async fn exposition(state: &AdminState, snapshot: &Snapshot) -> String {
    let mut out = Exposition::default();
    out.family("meshd_build_info", Kind::Gauge, "Always 1.");
    out.sample(&[("version", &state.software)], 1);
    let uptime = state.started.elapsed().as_secs();
    out.single("meshd_uptime_seconds", Kind::Gauge, "Seconds since this process's node started.", uptime);
    if let Some(bytes) = resident_bytes() {
        let help = "Memory of the process in RAM. Not counted: kernel memory of its sockets.";
        out.single("meshd_process_resident_bytes", Kind::Gauge, help, bytes);
    }
    shards(state, &mut out).await;
    client_port(state, &mut out);
    cluster(state, snapshot, &mut out);
    // Asked for now, as the shards are: what the last look saw is a second old.
    if let Some(mesh) = state.cluster.facts().await {
        gossip(&mesh, &mut out);
        links(&mesh.links, &mut out);
    }
    for source in &state.sources {
        source.write(&mut out);
    }
    out.into_text()
}

async fn shards(state: &AdminState, out: &mut Exposition) {
    let reports = shard_reports(&state.shards).await;
    let labels: Vec<String> = reports.iter().map(|(shard, _)| shard.0.to_string()).collect();
    for (name, kind, help, read) in SHARD_FAMILIES {
        out.family(name, kind, help);
        for (label, (_, report)) in labels.iter().zip(&reports) {
            if let Some(report) = report {
                out.sample(&[("shard", label)], read(report));
            }
        }
    }
    out.family(
        "meshd_shard_answers",
        Kind::Gauge,
        "1 if the shard gave its numbers within a second; without them its samples are left out.",
    );
    for (label, (_, report)) in labels.iter().zip(&reports) {
        out.sample(&[("shard", label)], u8::from(report.is_some()));
    }
    out.family(
        "meshd_shard_queue_length",
        Kind::Gauge,
        "Inputs waiting for a shard. Not counted: bytes waiting in clients' sockets.",
    );
    for (label, handle) in labels.iter().zip(state.shards.0.iter()) {
        let waiting: &tokio::sync::mpsc::Sender<ToShard> = &handle.tx;
        out.sample(&[("shard", label)], waiting.max_capacity() - waiting.capacity());
    }
}

fn client_port(state: &AdminState, out: &mut Exposition) {
    let help = "Connections of the client port, handshakes under way included.";
    out.single("meshd_client_connections", Kind::Gauge, help, state.admission.open());
    out.family(
        "meshd_client_refusals_total",
        Kind::Counter,
        "Connections and requests of the client port refused, by reason. Not counted: clients refused for their \
         uid or product, which are told in their own protocol.",
    );
    for (reason, count) in state.admission.refusals() {
        out.sample(&[("reason", reason.as_str())], count);
    }
    let help = "Requests of the client port whose X-Forwarded-*, X-Real-IP or Forwarded was ignored, as their peer \
                is not in client.trusted_proxies.";
    let ignored = state.admission.forwarded_ignored();
    out.single("meshd_client_forwarded_ignored_total", Kind::Counter, help, ignored);
}

fn cluster(state: &AdminState, snapshot: &Snapshot, out: &mut Exposition) {
    let view = state.view.borrow().clone();
    out.family("meshd_nodes", Kind::Gauge, "Nodes this node sees up, itself included, by state.");
    let count = |wanted: fn(&NodeInfo) -> bool| view.nodes.iter().filter(|node| wanted(node)).count();
    out.sample(&[("state", "active")], count(|n| !n.suspect && n.state() == NodeState::Active));
    out.sample(&[("state", "joining")], count(|n| !n.suspect && n.state() == NodeState::Joining));
    out.sample(&[("state", "draining")], count(|n| !n.suspect && n.state() == NodeState::Draining));
    out.sample(&[("state", "suspect")], count(|n| n.suspect));
    let share = shares(&view).get(&view.me).copied().unwrap_or(0.0);
    out.single("meshd_ring_share", Kind::Gauge, "This node's part of the ring, 0 to 1.", share);
    let help = "Peers whose ring differs from this node's, or is not known, at the last look.";
    out.single("meshd_ring_disagreeing_nodes", Kind::Gauge, help, snapshot.disagreeing.len());
    let is_ready = u8::from(ready(&view, snapshot, state.drain.status().phase).ready);
    out.single("meshd_ready", Kind::Gauge, "What /readyz says: 1 if clients may be sent here.", is_ready);
    let help = "Problems that `meshctl status` lists. Not counted: nodes silent to that very question.";
    out.single("meshd_problems", Kind::Gauge, help, snapshot.problems.len());
    let help = "Views of the cluster so far.";
    out.single("meshd_views_total", Kind::Counter, help, view.version);
}

fn gossip(mesh: &MeshFacts, out: &mut Exposition) {
    let stats = &mesh.gossip;
    let mut counter = |name, help: &str, value: u64| out.single(name, Kind::Counter, help, value);
    counter("meshd_gossip_received_total", "Gossip datagrams received, junk included.", stats.received);
    counter("meshd_gossip_sent_total", "Gossip datagrams sent.", stats.sent);
    counter(
        "meshd_gossip_received_bytes_total",
        "Bytes of the same, sealed. Not counted: UDP/IP.",
        stats.received_bytes,
    );
    counter(
        "meshd_gossip_sent_bytes_total",
        "Bytes of the same, sealed. Not counted: UDP/IP.",
        stats.sent_bytes,
    );
    counter(
        "meshd_suspicions_total",
        "Suspicions of nodes seen, raised here or elsewhere.",
        stats.suspicions,
    );
    counter("meshd_node_downs_total", "Nodes that went down. Not counted: restarts.", stats.downs);
    counter("meshd_rejoins_total", "Times this node was declared down and came back.", stats.rejoins);
    counter(
        "meshd_gossip_late_total",
        "Timers of gossip that came late: this node was short of CPU or stopped.",
        stats.late,
    );
    out.single(
        "meshd_suspicion_stretch",
        Kind::Gauge,
        "How many times longer than usual this node waits before it declares others down; above 1 it doubts itself.",
        u64::from(stats.stretch),
    );
    out.family(
        "meshd_gossip_dropped_total",
        Kind::Counter,
        "Gossip datagrams dropped, by reason. Not counted: those the kernel dropped.",
    );
    let dropped = [
        ("junk", stats.junk),
        ("replayed", stats.replayed),
        ("mismatched", stats.mismatched),
        ("refused", stats.refused),
    ];
    for (reason, count) in dropped {
        out.sample(&[("reason", reason)], count);
    }
}

/// Links of peers that went down leave these sums, so they are gauges where they would be counters.
fn links(links: &[LinkFact], out: &mut Exposition) {
    let sum = |read: fn(&LinkFact) -> u64| links.iter().map(read).sum::<u64>();
    let connected = links.iter().filter(|link| link.connected).count();
    let mut gauge = |name, help: &str, value: u64| out.single(name, Kind::Gauge, help, value);
    gauge("meshd_links", "Peers this node keeps a link to.", links.len() as u64);
    gauge("meshd_links_connected", "Links with a connection at present.", connected as u64);
    gauge(
        "meshd_link_envelopes_sent",
        "Envelopes sent on present links, repeats included.",
        sum(|l| l.sent_total),
    );
    gauge("meshd_link_envelopes_resent", "Envelopes sent again on present links.", sum(|l| l.resent_total));
    gauge("meshd_link_envelopes_received", "Envelopes received on present links.", sum(|l| l.received_total));
    gauge(
        "meshd_link_connections",
        "Connections made on present links: more than one each means reconnects.",
        sum(|l| l.connections_total),
    );
    gauge(
        "meshd_link_resets",
        "Times everything under way on a present link was given up.",
        sum(|l| l.resets_total),
    );
    gauge(
        "meshd_link_unconfirmed_bytes",
        "Bytes on present links that peers have not confirmed.",
        sum(|l| l.unconfirmed_bytes as u64),
    );
    gauge(
        "meshd_link_sent_bytes",
        "Bytes sent to peers on present connections, encryption and repeats included. Not counted: UDP/IP headers, gossip.",
        sum(|l| l.sent_bytes),
    );
    gauge("meshd_link_received_bytes", "Bytes received likewise.", sum(|l| l.received_bytes));
    gauge("meshd_link_sent_datagrams", "Datagrams sent likewise.", sum(|l| l.sent_datagrams));
    gauge("meshd_link_lost_packets", "Datagrams lost on present connections.", sum(|l| l.lost_packets));
    gauge(
        "meshd_link_black_holes",
        "Black holes met on present connections: should be 0.",
        sum(|l| l.black_holes),
    );
}

/// `VmRSS` of this process; `None` where there is no /proc.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}
