//! How fast a cluster notices, agrees and settles; and how evenly it shares.
//!
//! Belongs here: the `churn` command: cold start, kills and restarts, a quiet watch, placement.
//! Stays out: entities, links, clients (`chaos`).
//! Units: times are virtual; percentiles are of single kills (or starts), not interpolated.

mod world;

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use mesh_proto::id::{NodeId, NodeRef, Placement};
use mesh_proto::membership::Timing;
use mesh_proto::ring::{Ring, RingNode};
use rand::RngExt as _;
use world::World;

use crate::times::Times;

/// Not noticed within this time: missed.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// Agreement is waited for this long.
const AGREED_WITHIN: Duration = Duration::from_secs(60);

/// Keys placed to see how evenly they lie.
const KEYS: u32 = 200_000;

/// Start, kill and restart nodes of one cluster on a virtual network; report how fast the others
/// notice and how the keys move.
#[derive(Clone, Debug, Args)]
pub struct Churn {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 50)]
    nodes: usize,
    /// Datagrams lost, in percent.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Nodes killed (and restarted), one after another.
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// Nodes that all nodes name as seeds.
    #[arg(long, default_value_t = 3)]
    seeds: usize,
    /// Seconds watched without faults but the loss: nobody may be declared down.
    #[arg(long, default_value_t = 60)]
    watch: u64,
    /// Vnodes per node.
    #[arg(long, default_value_t = 256)]
    vnodes: u32,
    /// Timings for regions far apart.
    #[arg(long)]
    wan: bool,
    /// Another `probe_period` than the preset's, in milliseconds.
    #[arg(long)]
    probe_period: Option<u64>,
    /// Another `suspect_for` than the preset's, in milliseconds.
    #[arg(long)]
    suspect_for: Option<u64>,
    /// Same seed, same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs `churn` and prints the report.
///
/// # Errors
/// If the arguments make no cluster, or it never came to agree.
pub fn run(churn: &Churn) -> anyhow::Result<()> {
    ensure!((2..=1_000).contains(&churn.nodes), "--nodes is 2 to 1000");
    ensure!((0.0..=50.0).contains(&churn.loss), "--loss is 0 to 50 percent");
    ensure!(churn.seeds >= 1, "--seeds is at least 1");
    println!(
        "seed={} nodes={} loss={} % seeds={} vnodes={}",
        churn.seed, churn.nodes, churn.loss, churn.seeds, churn.vnodes
    );
    let mut timing = if churn.wan { Timing::wan() } else { Timing::lan() };
    timing.probe_period = churn.probe_period.map_or(timing.probe_period, Duration::from_millis);
    timing.suspect_for = churn.suspect_for.map_or(timing.suspect_for, Duration::from_millis);
    timing.check().map_err(anyhow::Error::msg)?;
    let mut world =
        World::new(churn.nodes, churn.seeds, churn.loss / 100.0, churn.vnodes, timing, churn.seed);
    cold_start(&mut world, churn)?;
    kills(&mut world, churn)?;
    watch(&mut world, churn);
    placement(churn);
    Ok(())
}

fn cold_start(world: &mut World, churn: &Churn) -> anyhow::Result<()> {
    let start = world.now;
    let mut last = start;
    for n in 0..churn.nodes {
        let at = start + Duration::from_micros(world.rng.random_range(0..1_000_000));
        last = last.max(at);
        world.start_at(at, n);
    }
    let nodes = churn.nodes;
    let all = world.until(AGREED_WITHIN, |w| w.running() == nodes && w.agrees());
    let Some(all) = all else { anyhow::bail!("no full view within {AGREED_WITHIN:?} of the start") };
    println!(
        "cold start   all nodes within {} ms: full view and one ring everywhere {} ms after the first start, {} ms after the last",
        last.since(start).as_millis(),
        all.as_millis(),
        world.now.since(last).as_millis()
    );
    let heard = settle_digests(world);
    println!("             every node has heard that ring from every other {heard} after that");
    Ok(())
}

fn kills(world: &mut World, churn: &Churn) -> anyhow::Result<()> {
    let (mut first, mut last, mut agreed, mut restarted) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    for _ in 0..churn.kills {
        let pause = Duration::from_micros(world.rng.random_range(500_000..700_000));
        world.run(pause);
        let victim = world.rng.random_range(0..churn.nodes);
        let killed_at = world.now;
        world.kill(victim);
        let mut first_seen = None;
        let all = world.until(NOTICED_WITHIN, |w| {
            let still = (0..churn.nodes).filter(|&n| w.sees(n, victim)).count();
            if still < w.running() && first_seen.is_none() {
                first_seen = Some(w.now.since(killed_at));
            }
            still == 0
        });
        first.add(first_seen);
        last.add(all);
        let agree = world.until(AGREED_WITHIN, World::agrees);
        agreed.add(agree.map(|_| world.now.since(killed_at)));
        let at = world.now;
        world.start_at(at, victim);
        let nodes = churn.nodes;
        restarted.add(world.until(AGREED_WITHIN, |w| w.running() == nodes && w.agrees()));
    }
    println!("{} kills", churn.kills);
    println!("  noticed by the first survivor   {first}");
    println!("  noticed by the last survivor    {last}");
    println!("  one ring at all survivors       {agreed}");
    println!("  restart: full view everywhere   {restarted}");
    ensure!(agreed.missed == 0 && restarted.missed == 0, "the rings did not become one again");
    Ok(())
}

fn watch(world: &mut World, churn: &Churn) {
    let before = world.totals();
    world.run(Duration::from_secs(churn.watch));
    let after = world.totals();
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with few digits")]
    let per_node = |count: u64| count as f64 / churn.watch.max(1) as f64 / churn.nodes as f64;
    println!(
        "quiet {} s    {:.0} datagrams/s and {:.0} B/s out per node; {} suspicions seen, {} exchanges",
        churn.watch,
        per_node(after.sent - before.sent),
        per_node(after.sent_bytes - before.sent_bytes),
        after.suspicions - before.suspicions,
        after.exchanges - before.exchanges,
    );
    println!(
        "whole run    {} s of virtual time; false downs {}, rejoins {}; rings {}",
        world.now.as_micros() / 1_000_000,
        world.false_downs.len(),
        after.rejoins,
        if world.agrees() { "agree" } else { "DIFFER" }
    );
    for (at, observer, what) in world.false_downs.iter().take(10) {
        println!("  FALSE at {at} node-{observer}: {what}");
    }
}

/// How long until each node has heard the present ring from every other.
fn settle_digests(world: &mut World) -> String {
    let start = world.now;
    for _ in 0..6_000 {
        if world.heard_agree() {
            return format!("{} ms", world.now.since(start).as_millis());
        }
        world.run(Duration::from_millis(10));
    }
    "not within 60 s".to_owned()
}

/// How evenly keys lie on the ring of these nodes, and how many a join moves.
fn placement(churn: &Churn) {
    let ring = |count: usize| {
        let node = |n: usize| NodeRef { id: NodeId::of_name(&world::name(n)), incarnation: 1 };
        Ring::new((0..count).map(|n| RingNode { node: node(n), zone: 0, weight: 1 }), churn.vnodes)
    };
    let (before, after) = (ring(churn.nodes), ring(churn.nodes + 1));
    let newcomer = NodeId::of_name(&world::name(churn.nodes));
    let mut held = std::collections::BTreeMap::<NodeId, u32>::new();
    let (mut moved, mut astray) = (0_u32, 0_u32);
    for key in 0..KEYS {
        let placement = Placement::of_user("chat", &format!("user-{key}"));
        let (Some(was), Some(is)) = (before.owner(placement), after.owner(placement)) else { continue };
        *held.entry(was.id).or_insert(0) += 1;
        moved += u32::from(was != is);
        astray += u32::from(was != is && is.id != newcomer);
    }
    #[expect(clippy::cast_precision_loss, reason = "ratios are shown with few digits")]
    let (mean, ideal) = (f64::from(KEYS) / churn.nodes as f64, f64::from(KEYS) / (churn.nodes + 1) as f64);
    println!(
        "placement    of {KEYS} keys a join moves {moved}, {:.3} of the ideal {ideal:.0}; {astray} between old nodes; max/mean load {:.3}",
        f64::from(moved) / ideal,
        f64::from(held.values().copied().max().unwrap_or(0)) / mean
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_starts_loses_nodes_and_agrees_again() {
        let churn = Churn {
            nodes: 5,
            loss: 5.0,
            kills: 5,
            seeds: 3,
            watch: 5,
            vnodes: 16,
            wan: false,
            probe_period: None,
            suspect_for: None,
            seed: 7,
        };
        run(&churn).unwrap();
    }
}
