//! An owner of many rooms is killed: how long its rooms pause, and until all have a backup again.
//!
//! Method: rooms with one member each fill the nodes; some watched rooms lie among them. The last node is
//! killed (kill -9). Watched clients are connected to the others; of the rest, those of the dead node are
//! gone for good.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Takeover;
use super::fleet;
use super::own::{Cluster, Places};
use super::probes::{COLUMNS, Probes, Wanted};
use super::process::Servers;
use super::table::Table;

/// Before the kill, and after all is settled.
const CALM: Duration = Duration::from_secs(3);

/// All have a backup within this time, or never.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// A node may not have begun with a new ring yet: it is settled once it has been for this long.
const STAYS_SETTLED: Duration = Duration::from_secs(1);

/// Between two looks at what nodes say.
const LOOK_EVERY: Duration = Duration::from_millis(100);

const GROUPS: [&str; 4] =
    ["room's owner killed", "publisher's owner killed", "room's backup killed", "neither"];

/// `load takeover`.
pub(super) async fn run(command: Takeover) -> anyhow::Result<()> {
    ensure!(command.own.count >= 3, "a takeover leaves two nodes at least: --nodes 3 or more");
    let mut cluster = command.own.start().await?;
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    let victim = all.len() - 1;
    let closed = fill(&cluster, &all, command.rooms, command.rooms_per_client).await?;
    settled(&cluster, &all).await?;
    let every = Duration::from_millis(command.every);
    let mut probes = Probes::start(wanted(&cluster, victim, command.sampled)?, every).await?;
    tokio::time::sleep(CALM).await;

    let rest = &all[..victim];
    let servers = Servers::new(&cluster.driven(rest).pids)?;
    let (before, cpu) = (cluster.sum(rest).await?, servers.cpu()?);
    let closed_before = closed.get();
    let (killed_at, from) = (Instant::now(), probes.now().saturating_sub(command.every * 1_000));
    cluster.nodes.kill(victim).await;
    cluster.nodes.agreed_without_one().await?;
    let agreed = killed_at.elapsed();
    let backed = settled(&cluster, rest).await?.duration_since(killed_at);
    let cpu = servers.cpu()?.0.saturating_sub(cpu.0);
    let until = probes.now();
    tokio::time::sleep(CALM).await;
    probes.stop().await;

    let after = cluster.sum(rest).await?;
    let mut table = Table::new(
        format!("takeover with {} rooms, kill -9 of one of {} nodes", command.rooms, all.len()),
        &COLUMNS,
    );
    probes.rows(&mut table, &GROUPS, &[(from, until)]);
    table.note(format!(
        "one ring after {:.2} s; all have a backup again after {:.2} s; CPU of the others until then {:.1} s",
        agreed.as_secs_f64(),
        backed.as_secs_f64(),
        super::report::float(cpu) / 1e9
    ));
    let grown = |name| after.since(&before, name);
    table.note(format!(
        "sessions and rooms taken over {}, sessions attached anew {}, resident {:.0} MiB, clients closed {}",
        grown("meshd_takeovers_total"),
        grown("meshd_reattached_total"),
        after.of("meshd_process_resident_bytes") / 1_048_576.0,
        closed.get() - closed_before
    ));
    table.print(command.json);
    Ok(())
}

/// Fills nodes with rooms of one member each; counts clients whose connection ends.
///
/// # Errors
/// When a node refuses.
pub(super) async fn fill(
    cluster: &Cluster,
    doors: &[usize],
    rooms: usize,
    rooms_per_client: usize,
) -> anyhow::Result<std::rc::Rc<std::cell::Cell<u64>>> {
    let nodes = cluster.driven(doors);
    let names: Vec<String> = (0..rooms).map(|room| format!("fill-{room}")).collect();
    let per_client = names.chunks(rooms_per_client.max(1)).map(<[String]>::to_vec).collect();
    let servers = Servers::new(&nodes.pids)?;
    Ok(fleet::hold(fleet::open(&nodes, &servers, per_client).await?.clients))
}

/// Waits until nothing is to be handed over or copied at these nodes, and stays so; since when.
///
/// # Errors
/// When it does not come to that.
pub(super) async fn settled(cluster: &Cluster, nodes: &[usize]) -> anyhow::Result<Instant> {
    let give_up = Instant::now() + SETTLED_WITHIN;
    let mut since = None;
    loop {
        let asked = Instant::now();
        let sum = cluster.sum(nodes).await?;
        if sum.of("meshd_copies_pending") + sum.of("meshd_to_hand_over") > 0.0 {
            since = None;
        } else if asked.duration_since(*since.get_or_insert(asked)) >= STAYS_SETTLED {
            return Ok(since.unwrap_or(asked));
        }
        ensure!(asked < give_up, "not all have a backup within {SETTLED_WITHIN:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// So many rooms of each group, with clients at the nodes that stay.
fn wanted(cluster: &Cluster, victim: usize, sampled: usize) -> anyhow::Result<Vec<Wanted>> {
    let places = Places::of(0..=victim);
    let mut wanted = Vec::new();
    for number in 0..sampled.div_ceil(GROUPS.len()) {
        for group in 0..GROUPS.len() {
            let name = format!("takeover-{group}-{number}");
            let apart = |at: &[usize]| at[0] != victim && at[1] != victim;
            let room = places.room(&name, |at| match group {
                0 => at[0] == victim,
                2 => at[1] == victim,
                _ => apart(at),
            })?;
            let uid = places.user(&name, |at| if group == 1 { at[0] == victim } else { apart(at) })?;
            let [door, member] = [number, number + 1].map(|node| cluster.door(node % victim));
            wanted.push(Wanted { group, uid, room, door, member });
        }
    }
    Ok(wanted)
}
