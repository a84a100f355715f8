//! Runs: one seed, many seeds, one seed as a story, planted bugs.
//!
//! Belongs here: what a run is made of (trouble, then calm), its verdict.
//! Stays out: what can happen (`cluster`), what may not (`checks`).
//!
//! | part | does |
//! |---|---|
//! | `chaos` | runs many seeds and tells of them in a table |
//! | `hunt` | looks for the first seeds that find planted bugs |

mod chaos;
mod hunt;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use mesh_proto::mutant::{self, Mutant};
use mesh_proto::time::Instant;

use crate::checks::{EventId, STRICT, SessionId, Violation};
use crate::cluster::{Cluster, Size};
use crate::faults::{self, Regime};
use crate::plot::{self, Timeline};
pub use chaos::{Chaos, chaos};
pub use hunt::{Found, Mutants, hunt, huntable, mutants};

/// When all faults are mended, ring digests are equal within this time (I10).
const RINGS_EQUAL_WITHIN: Duration = Duration::from_secs(10);

/// And every client can publish and receive within this one.
const CLIENTS_WELL_WITHIN: Duration = Duration::from_secs(30);

/// When nobody publishes any more, every backup has an equal copy, and nobody else has one, within this.
const COPIES_EQUAL_WITHIN: Duration = Duration::from_secs(10);

/// A round of probes is judged after this time.
const PROBE_ROUND: Duration = Duration::from_secs(2);

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
    /// Hold it to everything.
    #[arg(long)]
    strict: bool,
    /// Nodes also ask for bindings.
    #[arg(long)]
    bindings: bool,
    /// Draw it into this file (SVG): nodes as lanes; crashes, moves, gaps, cuts.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// With this bug planted.
    #[arg(long)]
    mutant: Option<Mutant>,
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Equal for equal runs.
    pub trace: u64,
    /// Events of the trace.
    pub events: u64,
    /// What it was held to.
    pub regime: Regime,
    /// Virtual time.
    pub lasted: Duration,
    /// Faults that struck.
    pub faults: faults::Counts,
    /// Events that clients got.
    pub deliveries: u64,
    /// Holes that edges were told of.
    pub gaps: u64,
    /// Clients that came back and went on with their session.
    pub recovered: u64,
    /// Clients that came back for a session and began anew.
    pub begun_anew: u64,
    /// Empty for a clean run.
    pub violations: Vec<Violation>,
    /// What is drawn of it.
    pub timeline: Timeline,
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

/// Runs one seed with a bug planted in every machine.
///
/// # Errors
/// In builds without planted bugs.
pub fn run_planted(seed: u64, size: Size, mutant: Mutant) -> anyhow::Result<Verdict> {
    mutant::plant(Some(mutant)).map_err(anyhow::Error::msg)?;
    let verdict = run(seed, size, None);
    mutant::plant(None).map_err(anyhow::Error::msg)?;
    Ok(verdict)
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
        regime: cluster.regime,
        lasted: cluster.now().since(Instant::ZERO),
        faults: cluster.faults.clone(),
        deliveries: cluster.checks.deliveries,
        gaps: cluster.checks.kept.gaps_told,
        recovered: cluster.checks.recovered,
        begun_anew: cluster.checks.begun_anew,
        timeline: {
            let broken = cluster.checks.violations.first();
            let broken = broken.map(|violation| (violation.at, violation.to_string()));
            let ended = cluster.now();
            cluster.timeline.ends(ended, broken);
            cluster.timeline
        },
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
    if !cluster.checks.strict || !cluster.checks.violations.is_empty() {
        return;
    }
    // Nobody publishes any more: what clients still join settles as well.
    let quiet = cluster.now();
    while let Some(misplaced) = cluster.misplaced() {
        if cluster.now() > quiet + COPIES_EQUAL_WITHIN {
            let now = cluster.now();
            return cluster.checks.violated("I8", now, misplaced);
        }
        cluster.run_until(cluster.now() + PROBE_ROUND / 4);
        if !cluster.checks.violations.is_empty() {
            return;
        }
    }
}

/// Probes of one round: who must have which event.
#[derive(Debug, Default)]
pub struct Probes {
    pub(crate) unsettled: Option<String>,
    pub(crate) expected: Vec<(u8, u16, SessionId, EventId)>,
}

/// What finds this again.
fn replay_line(seed: u64, size: Size, mutant: Option<Mutant>) -> String {
    let Size { nodes, clients, trouble, strict, bindings } = size;
    let trouble = trouble.as_secs();
    let strict = if strict && !STRICT { " --strict" } else { "" };
    let bindings = if bindings { " --bindings" } else { "" };
    let (features, mutant) = match mutant {
        Some(mutant) => (" --features mutants", format!(" --mutant {mutant:?}")),
        None => ("", String::new()),
    };
    format!(
        "cargo run --release -p mesh-simulations{features} -- replay --seed {seed} --nodes {nodes} --clients \
         {clients} --trouble {trouble}{strict}{bindings}{mutant}"
    )
}

fn size(nodes: usize, clients: Option<usize>, trouble: u64, strict: bool, bindings: bool) -> Size {
    let clients = clients.unwrap_or(nodes * 4);
    Size { nodes, clients, trouble: Duration::from_secs(trouble), strict, bindings }
}

/// Tells the story of one seed.
///
/// # Errors
/// When a promise was broken.
pub fn replay(replay: &Replay) -> anyhow::Result<()> {
    println!("seed={}", replay.seed);
    let from = Instant::ZERO + Duration::from_secs_f64(replay.after.max(0.0));
    mutant::plant(replay.mutant).map_err(anyhow::Error::msg)?;
    let verdict = run(
        replay.seed,
        size(replay.nodes, replay.clients, replay.trouble, replay.strict || STRICT, replay.bindings),
        Some(from),
    );
    if let Some(path) = &replay.plot {
        let title = format!("Seed {}, {} nodes, {:?}", replay.seed, replay.nodes, verdict.regime);
        std::fs::write(path, plot::draw(&title, &verdict.timeline))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} events, {} deliveries, trace {:016x}", verdict.events, verdict.deliveries, verdict.trace);
    for violation in &verdict.violations {
        println!("{violation}");
    }
    anyhow::ensure!(verdict.violations.is_empty(), "seed {} broke a promise", replay.seed);
    Ok(())
}
