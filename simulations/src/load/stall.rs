//! A backup that stops for a moment under publishes: who waits, and for how long.
//!
//! Method: one node is stopped (SIGSTOP) and woken again, in rounds; no client is connected to it. Watched
//! rooms in three groups: the room's backup is that node, the publisher's backup is, neither is.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Stall;
use super::own::{Cluster, Places};
use super::probes::{COLUMNS, Probes, Wanted};
use super::table::Table;

/// The node that is stopped, and those that are not.
const STOPPED: usize = 1;
const OTHERS: [usize; 2] = [0, 2];

/// Between two rounds.
const CALM: Duration = Duration::from_secs(2);

/// What was held back has come so long after the node was woken.
const AFTER: Duration = Duration::from_millis(500);

/// Between two looks at what the others say.
const LOOK_EVERY: Duration = Duration::from_millis(50);

const GROUPS: [&str; 3] = ["room's backup stopped", "publisher's backup stopped", "neither"];

/// What the others said of it at most.
#[derive(Default)]
struct Said {
    silent: f64,
    lag: f64,
    problems: f64,
}

/// `load stall`.
pub(super) async fn run(command: Stall) -> anyhow::Result<()> {
    anyhow::ensure!(command.own.count == 3, "the groups are made for --nodes 3");
    let mut cluster = command.own.start().await?;
    let every = Duration::from_millis(command.every);
    let mut probes = Probes::start(wanted(&cluster, command.rooms)?, every).await?;
    let time = Duration::from_millis(command.time);
    let mut spans = Vec::new();
    let mut said = Said::default();
    for _ in 0..command.rounds {
        cluster.nodes.watch(CALM).await;
        let from = probes.now().saturating_sub(command.every * 1_000);
        cluster.nodes.stop(STOPPED).await;
        said.look(&cluster, time).await?;
        cluster.nodes.wake(STOPPED).await;
        cluster.nodes.watch(AFTER).await;
        spans.push((from, probes.now()));
    }
    cluster.nodes.agreed(cluster.nodes.len()).await?;
    probes.stop().await;
    let title = format!("{} times {time:?} without a backup, {every:?} between publishes", command.rounds);
    let mut table = Table::new(title, &COLUMNS);
    probes.rows(&mut table, &GROUPS, &spans);
    table.note(format!(
        "meanwhile meshd_backups_silent up to {}, meshd_replication_lag_ops up to {}, meshd_problems up to {}",
        said.silent, said.lag, said.problems
    ));
    let after = cluster.sum(&OTHERS).await?;
    table.note(format!(
        "suspicions {}, nodes declared down {}",
        after.of("meshd_suspicions_total"),
        after.of("meshd_node_downs_total")
    ));
    table.print(command.json);
    Ok(())
}

/// So many rooms of each group. Nothing of theirs is owned by the node that stops.
fn wanted(cluster: &Cluster, rooms: usize) -> anyhow::Result<Vec<Wanted>> {
    let places = Places::of(0..cluster.nodes.len());
    let backed = |at: &[usize]| at[1] == STOPPED;
    let apart = |at: &[usize]| at[2] == STOPPED;
    let mut wanted = Vec::new();
    for number in 0..rooms {
        for group in 0..GROUPS.len() {
            let name = format!("stall-{group}-{number}");
            let room = if group == 0 { places.room(&name, backed) } else { places.room(&name, apart) };
            let uid = if group == 1 { places.user(&name, backed) } else { places.user(&name, apart) };
            let [door, member] = OTHERS.map(|node| cluster.door(node));
            wanted.push(Wanted { group, uid: uid?, room: room?, door, member });
        }
    }
    Ok(wanted)
}

impl Said {
    /// Looks at the others for some time.
    async fn look(&mut self, cluster: &Cluster, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for node in OTHERS {
                let numbers = cluster.numbers(node).await?;
                self.silent = self.silent.max(numbers.of("meshd_backups_silent"));
                self.lag = self.lag.max(numbers.of("meshd_replication_lag_ops"));
                self.problems = self.problems.max(numbers.of("meshd_problems"));
            }
            sleep_until(end.min(Instant::now() + LOOK_EVERY)).await;
        }
        Ok(())
    }
}
