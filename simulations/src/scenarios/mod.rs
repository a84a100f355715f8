//! Runs: one seed, many seeds, one seed as a story.
//!
//! Belongs here: what a run is made of (trouble, then calm), its verdict, the table of many.
//! Stays out: what can happen (`cluster`), what may not (`checks`).

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use clap::Args;
use mesh_proto::time::Instant;

use crate::checks::{EventId, SessionId, Violation};
use crate::cluster::{Cluster, Size};
use crate::faults;

/// When all faults are mended, ring digests are equal within this time (I10).
const RINGS_EQUAL_WITHIN: Duration = Duration::from_secs(10);

/// And every client can publish and receive within this one.
const CLIENTS_WELL_WITHIN: Duration = Duration::from_secs(30);

/// A round of probes is judged after this time.
const PROBE_ROUND: Duration = Duration::from_secs(2);

/// `chaos`.
#[derive(Args, Clone, Debug)]
pub struct Chaos {
    /// Nodes at the start; two more may join.
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// Seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients; default: four per node.
    #[arg(long)]
    clients: Option<usize>,
    /// Seconds during which faults strike.
    #[arg(long, default_value_t = 30)]
    trouble: u64,
    /// Failures after which to stop.
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

/// `replay`.
#[derive(Args, Clone, Debug)]
pub struct Replay {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// Nodes at the start.
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// Clients; default: four per node.
    #[arg(long)]
    clients: Option<usize>,
    /// Seconds during which faults strike.
    #[arg(long, default_value_t = 30)]
    trouble: u64,
    /// The story begins at this second.
    #[arg(long, default_value_t = 0.0)]
    after: f64,
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Equal for equal runs.
    pub trace: u64,
    /// Events of the trace.
    pub events: u64,
    /// Virtual time.
    pub lasted: Duration,
    /// Faults that struck.
    pub faults: faults::Counts,
    /// Events that clients got.
    pub deliveries: u64,
    /// Empty for a clean run.
    pub violations: Vec<Violation>,
}

thread_local! {
    /// Where the last assertion of this thread failed.
    static FAILED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has failed assertions of machines reported with their seed instead of printed as they happen.
fn quiet_assertions() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        FAILED_AT.with(|failed_at| *failed_at.borrow_mut() = place);
    }));
}

/// Runs one seed. With `story`, every event from then on is printed.
#[must_use]
pub fn run(seed: u64, size: Size, story: Option<Instant>) -> Verdict {
    let mut cluster = Cluster::new(seed, size, story);
    let ended = catch_unwind(AssertUnwindSafe(|| trouble_then_calm(&mut cluster)));
    if let Err(panic) = ended {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
        let now = cluster.now();
        let place = FAILED_AT.with(|failed_at| failed_at.take());
        cluster.checks.violated("assertion", now, format!("{} ({place})", words.unwrap_or_default()));
    }
    Verdict {
        trace: cluster.trace.hash(),
        events: cluster.trace.events(),
        lasted: cluster.now().since(Instant::ZERO),
        faults: cluster.faults.clone(),
        deliveries: cluster.checks.deliveries,
        violations: cluster.checks.violations,
    }
}

fn trouble_then_calm(cluster: &mut Cluster) {
    let calm = cluster.trouble_ends();
    cluster.run_until(calm + RINGS_EQUAL_WITHIN);
    if !cluster.checks.violations.is_empty() {
        return;
    }
    if let Some(disagreement) = cluster.disagreement() {
        let now = cluster.now();
        cluster.checks.violated(
            "I10",
            now,
            format!("rings differ 10 s after all was mended: {disagreement}"),
        );
    }
    loop {
        let probes = cluster.probe();
        cluster.run_until(cluster.now() + PROBE_ROUND);
        if !cluster.checks.violations.is_empty() {
            return;
        }
        let Some(missing) = cluster.missing(&probes) else { break };
        if cluster.now() > calm + CLIENTS_WELL_WITHIN {
            let now = cluster.now();
            return cluster.checks.violated("I10", now, missing);
        }
    }
    cluster.check_end();
}

/// Probes of one round: who must have which event.
#[derive(Debug, Default)]
pub struct Probes {
    pub(crate) unsettled: Option<String>,
    pub(crate) expected: Vec<(u8, u16, SessionId, EventId)>,
}

fn size(nodes: usize, clients: Option<usize>, trouble: u64) -> Size {
    Size { nodes, clients: clients.unwrap_or(nodes * 4), trouble: Duration::from_secs(trouble) }
}

/// Runs many seeds and prints a table.
///
/// # Errors
/// When a promise was broken.
pub fn chaos(chaos: &Chaos) -> anyhow::Result<()> {
    let seeds = match chaos.seed {
        Some(seed) => seed..seed + 1,
        None => chaos.from..chaos.from + chaos.seeds,
    };
    println!("seed={}..{}", seeds.start, seeds.end);
    let size = size(chaos.nodes, chaos.clients, chaos.trouble);
    quiet_assertions();
    let cpu = cpu_seconds();
    let mut table = Table::default();
    for seed in seeds {
        let verdict = run(seed, size, None);
        table.add(&verdict);
        for violation in verdict.violations.iter().take(1) {
            println!("seed {seed}: {violation}");
            println!("  {}", replay_line(seed, chaos));
        }
        if table.failed >= chaos.failures {
            println!("stopped after {} failures", table.failed);
            break;
        }
    }
    table.print(cpu_seconds() - cpu);
    anyhow::ensure!(table.failed == 0, "{} of {} seeds broke a promise", table.failed, table.seeds);
    Ok(())
}

fn replay_line(seed: u64, chaos: &Chaos) -> String {
    let clients = chaos.clients.map(|clients| format!(" --clients {clients}")).unwrap_or_default();
    let trouble = if chaos.trouble == 30 { String::new() } else { format!(" --trouble {}", chaos.trouble) };
    let nodes = chaos.nodes;
    format!(
        "cargo run --release -p mesh-simulations -- replay --seed {seed} --nodes {nodes}{clients}{trouble}"
    )
}

/// Tells the story of one seed.
///
/// # Errors
/// When a promise was broken.
pub fn replay(replay: &Replay) -> anyhow::Result<()> {
    println!("seed={}", replay.seed);
    let from = Instant::ZERO + Duration::from_secs_f64(replay.after.max(0.0));
    let verdict = run(replay.seed, size(replay.nodes, replay.clients, replay.trouble), Some(from));
    println!("{} events, {} deliveries, trace {:016x}", verdict.events, verdict.deliveries, verdict.trace);
    for violation in &verdict.violations {
        println!("{violation}");
    }
    anyhow::ensure!(verdict.violations.is_empty(), "seed {} broke a promise", replay.seed);
    Ok(())
}

#[derive(Default)]
struct Table {
    seeds: u64,
    failed: usize,
    lasted: Duration,
    deliveries: u64,
    faults: faults::Counts,
    broken: std::collections::BTreeMap<&'static str, u64>,
}

impl Table {
    fn add(&mut self, verdict: &Verdict) {
        self.seeds += 1;
        self.failed += usize::from(!verdict.violations.is_empty());
        self.lasted += verdict.lasted;
        self.deliveries += verdict.deliveries;
        for (kind, count) in &verdict.faults {
            *self.faults.entry(*kind).or_default() += count;
        }
        for violation in verdict.violations.iter().take(1) {
            *self.broken.entry(violation.invariant).or_default() += 1;
        }
    }

    fn print(&self, cpu_seconds: f64) {
        let hours = self.lasted.as_secs_f64() / 3_600.0;
        println!("seeds                          {:>10}", self.seeds);
        println!("virtual hours                  {hours:>10.2}");
        println!("virtual hours per CPU minute   {:>10.2}", hours / (cpu_seconds / 60.0).max(1e-9));
        println!("deliveries                     {:>10}", self.deliveries);
        for (kind, count) in &self.faults {
            println!("fault {:<24} {count:>10}", format!("{kind:?}"));
        }
        println!("seeds with violations          {:>10}", self.failed);
        for (invariant, count) in &self.broken {
            println!("  {invariant:<28} {count:>10}");
        }
    }
}

/// CPU this process has used, from `/proc`; 0 where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_nanos(nanos).as_secs_f64()
}
