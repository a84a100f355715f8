//! Planted bugs: how many seeds until each is found, and by which promise.
//!
//! Belongs here: the hunt and its table. Stays out: the bugs (`mesh_proto::mutant`).

use std::ops::Range;

use clap::Args;
use mesh_proto::mutant::{self, Mutant};

use super::chaos::run_all;
use super::{replay_line, run};
use crate::checks::Violation;
use crate::cluster::Size;

/// Whether nothing breaks without a planted bug.
fn is_clean(seed: u64, size: Size) -> bool {
    run(seed, size, None).violations.is_empty()
}

/// `mutants`.
#[derive(Args, Clone, Debug)]
pub struct Mutants {
    /// Only these.
    #[arg(long)]
    only: Vec<Mutant>,
    /// Seeds after which a hunt is given up.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// How a planted bug showed.
#[derive(Clone, Debug)]
pub struct Found {
    /// The first seed that broke a promise.
    pub seed: u64,
    /// Which, and how.
    pub violation: Violation,
}

/// Bugs that this version promises to find.
#[must_use]
pub fn huntable() -> Vec<Mutant> {
    Mutant::ALL.iter().copied().filter(|mutant| mutant.is_hunted()).collect()
}

/// The small run of a seed in which this bug can show.
fn size_for(mutant: Mutant, seed: u64) -> Size {
    Size { bindings: mutant.is_of_bindings(), ..Size::small(seed) }
}

/// The first of these seeds, in small runs, that breaks a promise with this bug planted and none without.
#[must_use]
pub fn hunt(mutant: Mutant, seeds: Range<u64>, jobs: usize) -> Option<Found> {
    let mut first: Option<Found> = None;
    run_all(
        seeds,
        |seed| size_for(mutant, seed),
        Some(mutant),
        jobs,
        |seed, verdict| {
            if let Some(violation) = verdict.violations.into_iter().next()
                && first.as_ref().is_none_or(|found| seed < found.seed)
                && is_clean(seed, size_for(mutant, seed))
            {
                first = Some(Found { seed, violation });
            }
            first.is_none()
        },
    );
    first
}

/// Hunts one bug after the other and prints a table.
///
/// # Errors
/// When one was not found, or this build has none.
pub fn mutants(hunts: &Mutants) -> anyhow::Result<()> {
    // Says so at once where there are none.
    mutant::plant(Mutant::ALL.first().copied()).map_err(anyhow::Error::msg)?;
    mutant::plant(None).map_err(anyhow::Error::msg)?;
    let seeds = hunts.from..hunts.from + hunts.seeds;
    println!("seed={}..{}", seeds.start, seeds.end);
    println!("{:<24} {:>6}  by          what", "mutant", "seeds");
    let all = huntable();
    let chosen = if hunts.only.is_empty() { &all } else { &hunts.only };
    let mut missed = Vec::new();
    for &mutant in chosen {
        let name = format!("{mutant:?}");
        match hunt(mutant, seeds.clone(), hunts.jobs) {
            Some(Found { seed, violation }) => {
                let tried = seed - seeds.start + 1;
                println!("{name:<24} {tried:>6}  {:<10}  {}", violation.invariant, violation.what);
                println!("  {}", replay_line(seed, size_for(mutant, seed), Some(mutant)));
            }
            None => {
                println!("{name:<24}   none              {}", mutant.what());
                missed.push(name);
            }
        }
    }
    anyhow::ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}
