//! Many seeds: a table, and a replay line for each that broke a promise.
//!
//! Belongs here: spreading seeds over threads, adding up. Stays out: a run itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use mesh_proto::mutant::Mutant;

use super::{Verdict, quiet_assertions, replay_line, run, run_planted, size};
use crate::checks::STRICT;
use crate::cluster::Size;
use crate::faults::{self, Regime};

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
    /// The small runs of the tests: 3 to 5 nodes, 10 clients, 8 s.
    #[arg(long)]
    small: bool,
    /// Hold them to everything.
    #[arg(long)]
    strict: bool,
    /// Nodes also ask for bindings.
    #[arg(long)]
    bindings: bool,
    /// Failures after which to stop.
    #[arg(long, default_value_t = 10)]
    failures: usize,
    /// With this bug planted.
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Runs at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// Runs many seeds and prints a table.
///
/// # Errors
/// When a promise was broken, or a bug is to be planted that this build does not have.
pub fn chaos(chaos: &Chaos) -> anyhow::Result<()> {
    let seeds = match chaos.seed {
        Some(seed) => seed..seed + 1,
        None => chaos.from..chaos.from + chaos.seeds,
    };
    println!("seed={}..{}", seeds.start, seeds.end);
    if let Some(mutant) = chaos.mutant {
        mesh_proto::mutant::plant(Some(mutant)).map_err(anyhow::Error::msg)?;
        println!("planted: {mutant:?}: {}", mutant.what());
    }
    let size_of = |seed| match chaos.small {
        true => Size { strict: chaos.strict || STRICT, bindings: chaos.bindings, ..Size::small(seed) },
        false => size(chaos.nodes, chaos.clients, chaos.trouble, chaos.strict || STRICT, chaos.bindings),
    };
    let mut table = Table::default();
    let cpu_seconds = run_all(seeds, size_of, chaos.mutant, chaos.jobs, |seed, verdict| {
        table.add(&verdict);
        for violation in verdict.violations.iter().take(1) {
            println!("seed {seed}: {violation}");
            println!("  {}", replay_line(seed, size_of(seed), chaos.mutant));
        }
        table.failed < chaos.failures
    });
    if table.failed >= chaos.failures {
        println!("stopped after {} failures", table.failed);
    }
    table.print(cpu_seconds);
    anyhow::ensure!(table.failed == 0, "{} of {} seeds broke a promise", table.failed, table.seeds);
    Ok(())
}

/// Runs the seeds on so many threads; each verdict as it comes, until `go_on` says no. Returns the CPU
/// time that it took.
pub(super) fn run_all(
    seeds: Range<u64>,
    size_of: impl Fn(u64) -> Size + Sync,
    mutant: Option<Mutant>,
    jobs: usize,
    mut go_on: impl FnMut(u64, Verdict) -> bool,
) -> f64 {
    let loud = std::panic::take_hook();
    quiet_assertions();
    let next = AtomicU64::new(seeds.start);
    let (verdicts, arrived) = mpsc::sync_channel(jobs.max(1));
    let work = |verdicts: mpsc::SyncSender<(u64, Verdict)>| {
        let began = cpu_seconds();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let verdict = match mutant {
                None => run(seed, size_of(seed), None),
                Some(mutant) => run_planted(seed, size_of(seed), mutant).expect("planted before"),
            };
            if verdicts.send((seed, verdict)).is_err() {
                break;
            }
        }
        cpu_seconds() - began
    };
    let work = &work;
    let cpu_seconds = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1))
            .map(|_| {
                let verdicts = verdicts.clone();
                scope.spawn(move || work(verdicts))
            })
            .collect();
        drop(verdicts);
        let mut going = true;
        for (seed, verdict) in arrived {
            // Seeds that had begun are still told: the lowest one that failed may be among them.
            going &= go_on(seed, verdict);
            if !going {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    });
    std::panic::set_hook(loud);
    cpu_seconds
}

#[derive(Default)]
struct Table {
    seeds: u64,
    /// Of them, those held to the full promise.
    one_at_a_time: u64,
    failed: usize,
    lasted: Duration,
    deliveries: u64,
    gaps: u64,
    /// Clients that came back, by regime: went on, began anew.
    came_back: BTreeMap<&'static str, [u64; 2]>,
    faults: faults::Counts,
    broken: BTreeMap<&'static str, u64>,
}

impl Table {
    fn add(&mut self, verdict: &Verdict) {
        self.seeds += 1;
        self.one_at_a_time += u64::from(verdict.regime == Regime::OneAtATime);
        self.failed += usize::from(!verdict.violations.is_empty());
        self.lasted += verdict.lasted;
        self.deliveries += verdict.deliveries;
        self.gaps += verdict.gaps;
        let regime = match verdict.regime {
            Regime::OneAtATime => "one at a time",
            Regime::AnythingGoes => "anything goes",
        };
        let [recovered, begun_anew] = self.came_back.entry(regime).or_default();
        *recovered += verdict.recovered;
        *begun_anew += verdict.begun_anew;
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
        println!("  held to the full promise     {:>10}", self.one_at_a_time);
        println!("virtual hours                  {hours:>10.2}");
        println!("virtual hours per CPU minute   {:>10.2}", hours / (cpu_seconds / 60.0).max(1e-9));
        println!("deliveries                     {:>10}", self.deliveries);
        println!("gaps told to edges             {:>10}", self.gaps);
        for (regime, [recovered, begun_anew]) in &self.came_back {
            println!("recovered, {regime:<19} {recovered:>10}, {begun_anew} began anew");
        }
        for (kind, count) in &self.faults {
            println!("fault {:<24} {count:>10}", format!("{kind:?}"));
        }
        println!("seeds with violations          {:>10}", self.failed);
        for (invariant, count) in &self.broken {
            println!("  {invariant:<28} {count:>10}");
        }
    }
}

/// CPU this thread has used, from `/proc`; 0 where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_nanos(nanos).as_secs_f64()
}
