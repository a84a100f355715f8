//! The load generator: raw Socket.IO clients against running nodes, run as its own process.
//!
//! Belongs here: what a node costs per delivery, message, connection; what it loses, doubles or
//! reorders; how late it is. Stays out: behaviour (the `tests` crate), anything on virtual time.
//! Method: one thread of light clients (`client`); every message carries a stamp (`stamp`); every
//! receiver keeps an account (`tally`); the servers' CPU and memory come from `/proc` (`process`).
//! Absolute figures drift with the machine: `--beside-baseline` runs a bare broadcast loop of the
//! same bytes in the same minute, and that ratio is what counts.

mod baseline;
pub(crate) mod client;
mod echo;
mod fleet;
mod frame;
mod idle;
mod process;
mod report;
mod rooms;
pub(crate) mod stamp;
mod tally;

use std::time::Duration;

use clap::{Args, Subcommand};

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
    /// Serve a bare broadcast loop that speaks just enough Socket.IO to be driven like a node.
    Baseline(Baseline),
}

/// The nodes to drive.
#[derive(Args, Clone, Debug)]
pub struct Nodes {
    /// Client port of a node; repeat for several: clients are dealt to them in turn.
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
            Load::Baseline(command) => baseline::serve(command.port, command.coalesce).await,
        }
    })
}
