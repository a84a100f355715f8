//! How fast real processes notice that one of them was killed, and agree without it.
//!
//! Belongs here: the `drill` command: N nodes on loopback, kill -9 one after another, restarts, what
//! was measured. Stays out: looking at nodes (`watch`), starting them (`mesh_tests`), virtual time
//! (`churn`).
//! Method: every node's ring is asked for on its admin listener every [`watch::LOOK_EVERY`], all
//! nodes side by side; what is measured is when the answer came, so a figure is too large by up to
//! that and the time of an answer, and nothing is subtracted.
//! Invariants: only processes started here are ended, by pid, however the drill ends: they are killed
//! with their handles, and stop by themselves when this process is gone.

mod burn;
pub(crate) mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use burn::Burn;
use clap::Args;
use mesh_tests::cluster::{Addresses, Settings, fresh_key, settings, spawn_program};
use mesh_tests::process::Process;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::signal::unix::{SignalKind, signal};
use watch::{Ring, Watch};

use crate::processes::program;
use crate::times::Times;

/// Agreement and news of a death are waited for this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between agreement and the next kill, at least; up to twice that. Longer than the second after
/// which a node may take another life again.
const PAUSE: Duration = Duration::from_millis(1_200);

/// Start real nodes on loopback, kill -9 one after another, restart each; report how fast the others
/// notice and agree.
#[derive(Clone, Debug, Args)]
pub struct Drill {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Nodes killed (and restarted), one after another.
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// Keep every core busy meanwhile.
    #[arg(long)]
    burn: bool,
    /// The `meshd` to run; by default the one beside this program.
    #[arg(long)]
    meshd: Option<PathBuf>,
    /// Which nodes are killed, and after what pauses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs `drill` and prints the report.
///
/// # Errors
/// If nodes do not start, do not agree, or a signal ends the drill.
pub fn run(drill: &Drill) -> anyhow::Result<()> {
    ensure!((2..=64).contains(&drill.nodes), "--nodes is 2 to 64");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = Cluster::drill(drill) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

/// The nodes, and what is known of them.
struct Cluster {
    meshd: PathBuf,
    nodes: Vec<Node>,
    watch: Watch,
    /// Lives that were ended, as log lines show them.
    killed: Vec<(String, String)>,
}

struct Node {
    name: String,
    settings: Settings,
    process: Process,
    /// Lines of its output judged so far.
    judged: usize,
}

/// What a drill has measured.
#[derive(Default)]
struct Report {
    first: Times,
    last: Times,
    agreed: Times,
    restarted: Times,
    /// Lines by which a node blamed another that ran, or found itself blamed.
    false_downs: Vec<String>,
}

impl Cluster {
    async fn drill(drill: &Drill) -> anyhow::Result<()> {
        let meshd = program(drill.meshd.as_deref())?;
        println!("seed={} nodes={} kills={} burn={}", drill.seed, drill.nodes, drill.kills, drill.burn);
        let burn = drill.burn.then(Burn::start);
        let (mut cluster, joined) = Self::start(meshd, drill.nodes).await?;
        println!("  join: last start to one ring everywhere  {:.3} s", joined.as_secs_f64());

        let mut rng = StdRng::seed_from_u64(drill.seed);
        let mut report = Report::default();
        for _ in 0..drill.kills {
            let pause = PAUSE + PAUSE.mul_f64(rng.random_range(0.0..1.0));
            cluster.watch.run(pause).await;
            let victim = rng.random_range(0..drill.nodes);
            cluster.kill_and_restart(victim, &mut report).await?;
        }
        // News of a wrong verdict may still be under way.
        cluster.watch.run(PAUSE).await;
        cluster.judge(&mut report.false_downs);
        report.print();
        cluster.end().await;
        drop(burn);
        Ok(())
    }

    /// Starts the nodes one after the other; how long from the start of the last one until all agree.
    async fn start(meshd: PathBuf, count: usize) -> anyhow::Result<(Self, Duration)> {
        let key = fresh_key();
        let mut cluster = Self { meshd, nodes: Vec::new(), watch: Watch::default(), killed: Vec::new() };
        let mut seeds = Vec::new();
        let mut last_start = Instant::now();
        for number in 1..=count {
            let name = format!("n{number}");
            let mut settings = settings(&name, &key, &seeds);
            settings.insert("LOG__FILTER".into(), "info".into());
            last_start = Instant::now();
            let (process, at) = start_node(&cluster.meshd, &name, &settings).await?;
            // A restart is under the same address, and needs somebody else to ask.
            settings.insert("MESH__LISTEN".into(), at.mesh.to_string());
            seeds.push(at.mesh);
            cluster.watch.add(at.admin);
            cluster.nodes.push(Node { name, settings, process, judged: 0 });
        }
        let all: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        for node in &mut cluster.nodes {
            node.settings.insert("MESH__SEEDS".into(), all.join(","));
        }
        let agreed = cluster.watch.until(PATIENCE, |rings| agree(rings, count)).await;
        ensure!(agreed, "no one ring within {PATIENCE:?}");
        Ok((cluster, last_start.elapsed()))
    }

    async fn kill_and_restart(&mut self, victim: usize, report: &mut Report) -> anyhow::Result<()> {
        let name = self.nodes[victim].name.clone();
        let count = self.nodes.len();
        self.judge(&mut report.false_downs);
        let life = self.watch.life_of(&name).context("the ring does not name its own node")?;
        self.killed.push((format!("node down: {name} ("), format!(" life {life})")));
        self.watch.leave_out(victim);
        let killed_at = Instant::now();
        self.nodes[victim].process.kill().await;

        let without = |ring: &Ring| !ring.has(&name);
        let mut first = None;
        let mut last = None;
        let agreed = self
            .watch
            .until(PATIENCE, |rings| {
                let survivors = || rings.iter().flatten();
                if first.is_none() && survivors().any(without) {
                    first = Some(killed_at.elapsed());
                }
                if last.is_none() && survivors().all(without) {
                    last = Some(killed_at.elapsed());
                }
                agree(rings, count - 1)
            })
            .await;
        report.first.add(first);
        report.last.add(last);
        report.agreed.add(agreed.then(|| killed_at.elapsed()));
        let started_at = Instant::now();
        let node = &mut self.nodes[victim];
        let (process, at) = start_node(&self.meshd, &node.name, &node.settings).await?;
        (node.process, node.judged) = (process, 0);
        self.watch.put_back(victim, at.admin);
        let back = self.watch.until(PATIENCE, |rings| agree(rings, count)).await;
        report.restarted.add(back.then(|| started_at.elapsed()));
        ensure!(agreed && back, "the rings did not become one again within {PATIENCE:?}");
        Ok(())
    }

    /// Reads what the nodes have said since: only lives that were ended may have been declared down.
    /// (Asked before a kill: a line about the last one may have come after the ring without it.)
    fn judge(&mut self, false_downs: &mut Vec<String>) {
        for node in &mut self.nodes {
            let lines = node.process.output().lines();
            for line in lines.iter().skip(node.judged) {
                let killed =
                    || self.killed.iter().any(|(name, life)| line.contains(name) && line.contains(life));
                if line.contains("this node was declared down") || line.contains("node down: ") && !killed() {
                    false_downs.push(format!("{}: {line}", node.name));
                }
            }
            node.judged = lines.len();
        }
    }

    /// Ends every node.
    async fn end(mut self) {
        for node in &mut self.nodes {
            node.process.kill().await;
        }
    }
}

/// Starts a node and learns where it listens.
pub(crate) async fn start_node(
    meshd: &std::path::Path,
    name: &str,
    settings: &Settings,
) -> anyhow::Result<(Process, Addresses)> {
    let mut process = spawn_program(meshd, name, settings);
    let line = process.line("{\"name\":").await;
    let at = Addresses::from_line(&line).with_context(|| format!("no addresses in {line:?}"))?;
    Ok((process, at))
}

/// Whether all rings that are looked at are known, have `count` nodes and are one.
pub(crate) fn agree(rings: &[Option<Ring>], count: usize) -> bool {
    let mut known = rings.iter().flatten();
    known.clone().count() == count
        && known
            .next()
            .is_some_and(|first| first.nodes.len() == count && known.all(|ring| ring.digest == first.digest))
}

impl Report {
    fn print(&self) {
        println!("  noticed by the first survivor            {}", self.first);
        println!("  noticed by the last survivor             {}", self.last);
        println!("  one ring at all survivors                {}", self.agreed);
        println!("  restart: start to one ring everywhere    {}", self.restarted);
        println!("  false downs                              {}", self.false_downs.len());
        for line in self.false_downs.iter().take(10) {
            println!("    FALSE {line}");
        }
        println!("  resolution                               {} ms", watch::LOOK_EVERY.as_millis());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(digest: &str, nodes: &[&str]) -> Option<Ring> {
        Some(Ring {
            digest: digest.into(),
            nodes: nodes.iter().map(|node| ((*node).to_owned(), 1)).collect(),
        })
    }

    #[test]
    fn nodes_agree_when_all_have_one_whole_ring() {
        let two = ["n1", "n2"];
        assert!(agree(&[ring("a", &two), ring("a", &two)], 2));
        assert!(agree(&[ring("a", &two), None, ring("a", &two)], 2), "one is left out");
        assert!(!agree(&[ring("a", &two), ring("b", &two)], 2), "two rings");
        assert!(!agree(&[ring("a", &two), ring("a", &two)], 3), "one is not on it yet");
        assert!(!agree(&[ring("a", &two), None], 2), "one has not answered");
    }
}
