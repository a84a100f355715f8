//! The load generator: raw Socket.IO clients against running nodes, run as its own process.
//!
//! Belongs here: what a node costs per delivery, message, connection; what it loses, doubles or
//! reorders; how late it is. Stays out: behaviour (the `tests` crate), anything on virtual time.
//! Method: one thread of light clients (`client`); every message carries a stamp (`stamp`); every
//! receiver keeps an account (`tally`); the servers' CPU and memory come from `/proc` (`process`).
//! Absolute figures drift with the machine: `--beside-baseline` runs a bare broadcast loop of the
//! same bytes in the same minute, and that ratio is what counts.
//! Commands that hurt nodes start their own (`own`) and watch some rooms closely (`probes`).

mod baseline;
pub(crate) mod client;
mod costs;
mod echo;
mod fleet;
mod frame;
mod half_open;
mod herd;
mod idle;
mod joins;
mod mixed;
mod moves;
mod own;
mod probes;
mod process;
mod report;
mod rooms;
mod stall;
pub(crate) mod stamp;
mod table;
mod takeover;
mod tally;

use std::time::Duration;

use clap::{Args, Subcommand};
use own::Own;

/// What to do to the nodes.
#[derive(Debug, Subcommand)]
pub enum Load {
    /// Fan out as fast as the window of unanswered publishes allows.
    Fanout(Fanout),
    /// Fan out at a fixed rate of deliveries.
    Paced(Paced),
    /// Publish to oneself and wait for it: latency without load.
    Echo(Echo),
    /// Open connections, one room each, and hold them: memory and CPU per connection.
    Idle(Idle),
    /// 20 publishers × 1,000 messages through all targets to 300 members: exits 1 unless nothing
    /// is lost, nothing doubled and all have seen one order.
    Soak20(Soak),
    /// Kill the node of a room's members: all come back by the others. Starts its own nodes, as all that follow.
    Herd(Herd),
    /// Stop a backup for a moment under publishes: who waits for it.
    Stall(Stall),
    /// Join many rooms right after CONNECT.
    Joins(Joins),
    /// Kill an owner of many rooms: how long they pause, and until all have a backup again.
    Takeover(Takeover),
    /// Let a node join and drain among many rooms: how long what moves pauses.
    Moves(Moves),
    /// What backups and distance cost a publish: latency, CPU, bytes between nodes.
    Costs(Costs),
    /// Open connections that stop half-way: what they cost, what closes them, when.
    HalfOpen(HalfOpen),
    /// Hold idle clients by WebSocket and by polling, at nodes and at the reference server (needs Node).
    Mixed(Mixed),
    /// Serve a bare broadcast loop that speaks just enough Socket.IO to be driven like a node.
    Baseline(Baseline),
}

/// The nodes to drive.
#[derive(Args, Clone, Debug)]
pub struct Nodes {
    /// Client port of a node; repeat for several: clients are dealt to them in turn. Without any, nodes
    /// are started for the run (`--nodes`, `--set`, `--meshd`).
    #[arg(long = "target", value_name = "ws://HOST:PORT")]
    targets: Vec<String>,
    /// Process id of a node, to measure its CPU and memory; repeat for several.
    #[arg(long = "pid")]
    pids: Vec<u32>,
    /// The product clients ask for.
    #[arg(long, default_value = "rooms")]
    product: String,
    /// Connections opened per second and target. Nodes take 2,000 handshakes per second.
    #[arg(long, default_value_t = 1_500)]
    connect_rate: u32,
    #[command(flatten)]
    own: Own,
}

/// How long to run.
#[derive(Args, Clone, Debug)]
struct Span {
    /// Seconds before the measurement begins.
    #[arg(long, default_value_t = 3)]
    warmup: u64,
    /// Seconds measured.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// What is published, to how many, and beside what: the same for `fanout` and `paced`.
#[derive(Args, Clone, Debug)]
struct Rooms {
    /// Rooms: 1 for the big room, 100 for the small ones.
    #[arg(long, default_value_t = 1)]
    rooms: usize,
    /// Receiving members of each room: 1,000 for the big room, 10 for the small ones.
    #[arg(long, default_value_t = 1_000)]
    members: usize,
    /// Bytes of the published string.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Run the bare broadcast loop first, with and without coalescing.
    #[arg(long)]
    beside_baseline: bool,
}

/// `load fanout`.
#[derive(Args, Debug)]
pub struct Fanout {
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    rooms: Rooms,
    /// Publishing members of each room. A node takes 200 events per second of each for long.
    #[arg(long, default_value_t = 20)]
    publishers: usize,
    /// Unanswered publishes each publisher keeps under way.
    #[arg(long, default_value_t = 8)]
    window: usize,
}

/// `load paced`.
#[derive(Args, Debug)]
pub struct Paced {
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    rooms: Rooms,
    /// Deliveries per second over all rooms.
    #[arg(long, default_value_t = 20_000)]
    deliveries: u32,
}

/// `load echo`.
#[derive(Args, Debug)]
pub struct Echo {
    #[command(flatten)]
    nodes: Nodes,
    #[command(flatten)]
    span: Span,
    /// Clients, each in a room of its own, each with one publish under way.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Bytes of the published string.
    #[arg(long, default_value_t = 128)]
    payload: usize,
}

/// `load idle`.
#[derive(Args, Debug)]
pub struct Idle {
    #[command(flatten)]
    nodes: Nodes,
    /// Connections over all targets.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Rooms: each client joins one. 0: none joins any.
    #[arg(long, default_value_t = 10_000)]
    rooms: usize,
    /// Seconds to hold them after the last has joined; memory is read at the end, CPU over it.
    #[arg(long, default_value_t = 30)]
    hold: u64,
}

/// `load soak20`.
#[derive(Args, Debug)]
pub struct Soak {
    #[command(flatten)]
    nodes: Nodes,
    /// Receiving members.
    #[arg(long, default_value_t = 300)]
    members: usize,
    /// Publishers.
    #[arg(long, default_value_t = 20)]
    publishers: usize,
    /// Messages of each publisher.
    #[arg(long, default_value_t = 1_000)]
    messages: u32,
}

/// `load herd`.
#[derive(Args, Debug)]
pub struct Herd {
    #[command(flatten)]
    own: Own,
    /// Members of the room.
    #[arg(long, default_value_t = 5_000)]
    clients: usize,
    /// Messages per second.
    #[arg(long, default_value_t = 5)]
    rate: u32,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load stall`.
#[derive(Args, Debug)]
pub struct Stall {
    #[command(flatten)]
    own: Own,
    /// Rooms of each group.
    #[arg(long, default_value_t = 6)]
    rooms: usize,
    /// Milliseconds between two publishes of a room.
    #[arg(long, default_value_t = 20)]
    every: u64,
    /// Milliseconds the backup is stopped.
    #[arg(long, default_value_t = 500)]
    time: u64,
    /// How often.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load joins`.
#[derive(Args, Debug)]
pub struct Joins {
    #[command(flatten)]
    own: Own,
    /// Rooms each client joins.
    #[arg(long, default_value_t = 50)]
    rooms: usize,
    /// Clients of the burst.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Single clients before it, one after the other.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load takeover`.
#[derive(Args, Debug)]
pub struct Takeover {
    #[command(flatten)]
    own: Own,
    /// Rooms of one member each.
    #[arg(long, default_value_t = 100_000)]
    rooms: usize,
    /// Rooms each of their clients is in.
    #[arg(long, default_value_t = 50)]
    rooms_per_client: usize,
    /// Watched rooms.
    #[arg(long, default_value_t = 60)]
    sampled: usize,
    /// Milliseconds between two publishes of a watched room.
    #[arg(long, default_value_t = 50)]
    every: u64,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load moves`.
#[derive(Args, Debug)]
pub struct Moves {
    #[command(flatten)]
    own: Own,
    /// Rooms of one member each.
    #[arg(long, default_value_t = 10_000)]
    rooms: usize,
    /// Rooms each of their clients is in.
    #[arg(long, default_value_t = 50)]
    rooms_per_client: usize,
    /// Watched rooms.
    #[arg(long, default_value_t = 30)]
    sampled: usize,
    /// Milliseconds between two publishes of a watched room.
    #[arg(long, default_value_t = 20)]
    every: u64,
    /// Joins, each followed by a drain.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// At the end drain one of the first nodes, with its clients and all that it owns.
    #[arg(long)]
    drain_one: bool,
    /// JSON objects in place of the tables.
    #[arg(long)]
    json: bool,
}

/// `load costs`.
#[derive(Args, Debug)]
pub struct Costs {
    #[command(flatten)]
    own: Own,
    /// Milliseconds between two publishes.
    #[arg(long, default_value_t = 10)]
    every: u64,
    /// Milliseconds measured of each case in each round.
    #[arg(long, default_value_t = 2_000)]
    span: u64,
    /// Rounds over all cases.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load half-open`.
#[derive(Args, Debug)]
pub struct HalfOpen {
    #[command(flatten)]
    own: Own,
    /// Connections, a quarter of each kind.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// JSON objects in place of the tables.
    #[arg(long)]
    json: bool,
}

/// `load mixed`.
#[derive(Args, Debug)]
pub struct Mixed {
    #[command(flatten)]
    own: Own,
    /// Clients of each server.
    #[arg(long, default_value_t = 10_000)]
    clients: usize,
    /// Seconds over which CPU is counted while they are idle; memory is read at their end. Clients are pinged every 25 s.
    #[arg(long, default_value_t = 50)]
    hold: u64,
    /// One JSON object in place of the table.
    #[arg(long)]
    json: bool,
}

/// `load baseline`.
#[derive(Args, Debug)]
pub struct Baseline {
    /// Port on loopback; 0 for any. The address is printed.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Gather what came in one turn and write it to each socket in one call.
    #[arg(long)]
    coalesce: bool,
}

impl Span {
    fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Runs one load to its end.
///
/// # Errors
/// When the nodes refuse or break off, and, for `soak20`, when a promise is broken.
pub fn run(load: Load) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match load {
            Load::Fanout(fanout) => rooms::fanout(fanout).await,
            Load::Paced(paced) => rooms::paced(paced).await,
            Load::Echo(command) => echo::run(command).await,
            Load::Idle(command) => idle::run(command).await,
            Load::Soak20(soak) => rooms::soak(soak).await,
            Load::Herd(command) => herd::run(command).await,
            Load::Stall(command) => stall::run(command).await,
            Load::Joins(command) => joins::run(command).await,
            Load::Takeover(command) => takeover::run(command).await,
            Load::Moves(command) => moves::run(command).await,
            Load::Costs(command) => costs::run(command).await,
            Load::HalfOpen(command) => half_open::run(command).await,
            Load::Mixed(command) => mixed::run(command).await,
            Load::Baseline(command) => baseline::serve(command.port, command.coalesce).await,
        }
    })
}
