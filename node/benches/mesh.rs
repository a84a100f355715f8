//! What an envelope costs between two nodes: `cargo bench -p meshd --bench mesh`.
//!
//! Two meshes in one process on loopback, gossip and QUIC included. First flat out: envelopes of one
//! room entry each with 128 bytes of payload, at most [`IN_FLIGHT`] under way. Then ping-pong: one
//! envelope there, one back, each through a shard's channel and thread. CPU is that of the `mesh`
//! threads (`/proc/self/task/*/schedstat`), so Linux only.

#![allow(missing_docs, reason = "a program, not a library")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::id::{Address, NodeRef, PublishId, RoomKey, ShardIx, SocketSid, Term};
use mesh_proto::keys::ClusterKey;
use mesh_proto::link::LinkLimits;
use mesh_proto::membership::MembershipConfig;
use mesh_proto::wire::{
    self, Answer, Body, Envelope, Lane, NodeStatus, Payload, RoomEntry, RoomEvent, RoomToEdge, To,
};
use meshd::handles::{ShardHandle, Shards, ToShard};
use meshd::mesh::{EndpointConfig, Mesh, MeshConfig, NodeStatusSource};
use tokio::sync::mpsc;

const IN_FLIGHT: u64 = 16_000;
const FLAT_OUT: Duration = Duration::from_secs(5);
const PINGS: usize = 20_000;
const PAYLOAD_BYTES: usize = 128;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mtu = std::env::var("MTU").ok().and_then(|mtu| mtu.parse().ok()).unwrap_or(1_452);
    let before = mesh_threads();
    let (a, _, a_shard) = start("a", &[], mtu);
    let a_thread = new_thread(&before);
    let before = mesh_threads();
    let (b, b_queue, mut b_shard) = start("b", &[a.handle().bound().to_string()], mtu);
    let b_thread = new_thread(&before);
    for mesh in [&a, &b] {
        let mut view = mesh.handle().view();
        runtime.block_on(view.wait_for(|view| view.ring.nodes().len() == 2)).unwrap();
    }
    let to = b.handle().view().borrow().me;
    let from = a.handle().view().borrow().me;
    let envelope = envelope(from);
    println!("mtu up to {mtu}; envelope of {} bytes, payload {PAYLOAD_BYTES}", envelope.len());
    decode_alone(&envelope);

    let received = Arc::new(AtomicU64::new(0));
    let count = received.clone();
    let receiver = std::thread::spawn(move || {
        while let Some(message) = b_shard.blocking_recv() {
            match message {
                ToShard::Envelopes(envelopes) => {
                    count.fetch_add(envelopes.len() as u64, Ordering::Relaxed);
                }
                ToShard::CloseClients(_) => break,
                other => panic!("{other:?}"),
            }
        }
        b_shard
    });
    flat_out(&a, to, &envelope, &received, [a_thread, b_thread]);
    for link in a.handle().links().into_iter().chain(b.handle().links()) {
        println!("  {link:?}");
    }
    // Anything but envelopes ends the receiver, whose channel the ping-pong needs.
    b_queue.blocking_send(ToShard::CloseClients(0)).unwrap();
    let shards = [a_shard, receiver.join().unwrap()];
    ping_pong([&a, &b], shards, &envelope, [a_thread, b_thread]);
    runtime.block_on(async {
        a.stop(Duration::from_secs(1)).await;
        b.stop(Duration::from_secs(1)).await;
    });
}

fn flat_out(a: &Mesh, to: NodeRef, envelope: &Bytes, received: &AtomicU64, threads: [u64; 2]) {
    // Copies of their own, as from a shard: one count of references would be fought over.
    let envelopes: Vec<Bytes> = (0..1_024).map(|_| Bytes::copy_from_slice(envelope)).collect();
    let cpu = threads.map(cpu_nanos);
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < FLAT_OUT {
        if sent - received.load(Ordering::Relaxed) >= IN_FLIGHT {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        for _ in 0..64 {
            let envelope = &envelopes[sent as usize % envelopes.len()];
            while a.handle().try_send(to, Lane((sent % 4) as u8), envelope.clone()).is_err() {
                std::thread::sleep(Duration::from_micros(50));
            }
            sent += 1;
        }
    }
    while received.load(Ordering::Relaxed) < sent {
        std::thread::sleep(Duration::from_micros(50));
    }
    let elapsed = start.elapsed();
    let used = [0, 1].map(|i| (cpu_nanos(threads[i]) - cpu[i]) / sent);
    println!(
        "flat out: {:.2} M envelopes/s, CPU per envelope: sender {} ns, receiver {} ns (decode included)",
        sent as f64 / elapsed.as_secs_f64() / 1e6,
        used[0],
        used[1],
    );
}

fn ping_pong([a, b]: [&Mesh; 2], shards: [mpsc::Receiver<ToShard>; 2], envelope: &Bytes, threads: [u64; 2]) {
    let [mut a_shard, mut b_shard] = shards;
    let (to, back) = (b.handle().view().borrow().me, a.handle().view().borrow().me);
    let (handle, answer) = (b.handle().clone(), envelope.clone());
    let echo = std::thread::spawn(move || {
        for _ in 0..PINGS {
            b_shard.blocking_recv().unwrap();
            handle.try_send(back, Lane(0), answer.clone()).unwrap();
        }
    });
    let cpu = threads.map(cpu_nanos);
    let mut round_trips: Vec<Duration> = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        a.handle().try_send(to, Lane(0), envelope.clone()).unwrap();
        a_shard.blocking_recv().unwrap();
        round_trips.push(start.elapsed());
    }
    echo.join().unwrap();
    round_trips.sort_unstable();
    let at = |q: f64| round_trips[(PINGS as f64 * q) as usize].as_micros();
    let used = [0, 1].map(|i| (cpu_nanos(threads[i]) - cpu[i]) / PINGS as u64);
    println!(
        "ping-pong: round trip p50 {} us, p99 {} us, p99.9 {} us; CPU per round trip {} / {} ns",
        at(0.5),
        at(0.99),
        at(0.999),
        used[0],
        used[1],
    );
}

/// What of the receiver's cost is decoding: not the mesh's to save.
fn decode_alone(envelope: &Bytes) {
    let start = cpu_nanos_here();
    let rounds = 300_000;
    for _ in 0..rounds {
        let decoded: Envelope = wire::decode(std::hint::black_box(envelope)).unwrap();
        std::hint::black_box(decoded);
    }
    println!("decode and drop alone: {} ns", (cpu_nanos_here() - start) / rounds);
}

fn envelope(from: NodeRef) -> Bytes {
    let room = RoomKey::new(&"chat".into(), &"/".into(), "lobby");
    let id = PublishId::Session { sid: SocketSid([7; 16]), number: 1_000, index: 0 };
    let payload = Payload::json(vec![b'x'; PAYLOAD_BYTES]);
    let event = RoomEvent { except_sids: vec![SocketSid([7; 16])], ..RoomEvent::new(payload) };
    let term = Term { number: 1, owner: from };
    let entries = vec![RoomEntry::new(term, id, event)];
    let body = Body::RoomToEdge(RoomToEdge::Entries { room, term, first: 1_000, entries });
    wire::encode(&Envelope { from: Address { node: from, shard: ShardIx(0) }, to: To::Shards(1), body })
}

type Started = (Mesh, mpsc::Sender<ToShard>, mpsc::Receiver<ToShard>);

fn start(name: &str, seeds: &[String], mtu_max: u16) -> Started {
    let listen = "127.0.0.1:0".parse().unwrap();
    let membership = MembershipConfig {
        vnodes: 16,
        ..MembershipConfig::new(name, listen, ClusterKey::new([7; 32]), rand::random())
    };
    let endpoint = EndpointConfig { mtu_max, ..EndpointConfig::new(listen) };
    let config = MeshConfig { endpoint, seeds: seeds.to_vec(), membership, limits: LinkLimits::default() };
    let (tx, rx) = mpsc::channel(meshd::handles::SHARD_QUEUE_LEN);
    let shards = Shards(vec![ShardHandle { shard: ShardIx(0), tx: tx.clone() }].into());
    let status: NodeStatusSource =
        Arc::new(|_| Box::pin(async { Ok(Answer::NodeStatus(NodeStatus::default())) }));
    (Mesh::start(config, shards, status).unwrap(), tx, rx)
}

/// Threads of this process that are called `mesh`.
fn mesh_threads() -> Vec<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| {
        fs::read_to_string(format!("/proc/self/task/{id}/comm")).is_ok_and(|name| name.trim() == "mesh")
    })
    .collect()
}

fn new_thread(before: &[u64]) -> u64 {
    mesh_threads().into_iter().find(|id| !before.contains(id)).expect("a mesh has a thread")
}

/// Nanoseconds a thread has run.
fn cpu_nanos(thread: u64) -> u64 {
    schedstat(&format!("/proc/self/task/{thread}/schedstat"))
}

/// The same of the calling thread.
fn cpu_nanos_here() -> u64 {
    schedstat("/proc/thread-self/schedstat")
}

fn schedstat(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
