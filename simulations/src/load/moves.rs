//! A node joins, then goes by a drain: how long what moves pauses.
//!
//! Method: rooms with one member each fill the nodes; watched rooms lie among them, chosen by the ring that
//! is to come. A node joins, and drains (SIGTERM), in rounds; nobody is connected to it. At the end
//! one of the first nodes drains, with all that it owns and its clients.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::Moves;
use super::own::{Cluster, Places};
use super::probes::{COLUMNS, Probes, Wanted};
use super::table::Table;
use super::takeover::{fill, settled};

/// Between two changes.
const CALM: Duration = Duration::from_secs(2);

/// What has moved is seen working for so long.
const AFTER: Duration = Duration::from_millis(500);

const GROUPS: [&str; 3] = ["moved room", "moved publisher", "neither"];

/// `load moves`.
pub(super) async fn run(command: Moves) -> anyhow::Result<()> {
    ensure!(command.own.count >= 2, "a node joins others: --nodes 2 or more");
    let mut cluster = command.own.start().await?;
    let first: Vec<usize> = (0..cluster.nodes.len()).collect();
    let newcomer = first.len();
    // The last of the first nodes drains at the end: no watched client is there.
    let closed = fill(&cluster, &first, command.rooms, command.rooms_per_client).await?;
    settled(&cluster, &first).await?;
    let every = Duration::from_millis(command.every);
    let mut probes = Probes::start(wanted(&cluster, newcomer, command.sampled)?, every).await?;

    let (mut joins, mut drains) = (Vec::new(), Vec::new());
    let mut notes = Vec::new();
    let with: Vec<usize> = (0..=newcomer).collect();
    for round in 0..command.rounds {
        tokio::time::sleep(CALM).await;
        let (started, from) = (Instant::now(), probes.now());
        if round == 0 {
            cluster.nodes.add().await?;
        } else {
            cluster.nodes.restart(newcomer).await?;
        }
        cluster.nodes.agreed(with.len()).await?;
        let agreed = started.elapsed();
        let moved = settled(&cluster, &with).await?.duration_since(started);
        let owned = cluster.numbers(newcomer).await?;
        notes.push(format!(
            "join {round}: one ring after {:.2} s, moved and backed after {:.2} s; {} handed over to it",
            agreed.as_secs_f64(),
            moved.as_secs_f64(),
            owned.of("meshd_moves_total")
        ));
        tokio::time::sleep(AFTER).await;
        joins.push((from, probes.now()));

        tokio::time::sleep(CALM).await;
        let (took, span) = drain(&mut cluster, newcomer, &first, &probes).await?;
        notes.push(format!("drain {round}: ended after {:.2} s", took.as_secs_f64()));
        drains.push(span);
    }
    let closed_by_moves = closed.get();
    let last = newcomer - 1;
    let mut final_span = None;
    if command.drain_one {
        tokio::time::sleep(CALM).await;
        let before = cluster.numbers(last).await?;
        let (took, span) = drain(&mut cluster, last, &first[..last], &probes).await?;
        notes.push(format!(
            "drain of a node with {} sessions, {} rooms, {} clients: ended after {:.2} s",
            before.of("meshd_sessions"),
            before.of("meshd_rooms"),
            before.of("meshd_clients"),
            took.as_secs_f64()
        ));
        final_span = Some(span);
    }
    probes.stop().await;
    let report = |title: &str, spans: &[(u64, u64)]| {
        let mut table = Table::new(title, &COLUMNS);
        probes.rows(&mut table, &GROUPS, spans);
        table
    };
    let title = format!("{} rooms on {} nodes, {every:?} between publishes", command.rooms, first.len());
    report(&format!("{title}: a node joins"), &joins).print(command.json);
    let mut table = report(&format!("{title}: it drains"), &drains);
    table.note(format!("clients closed by joins and drains of it: {closed_by_moves}"));
    for note in notes {
        table.note(note);
    }
    table.print(command.json);
    if let Some(span) = final_span {
        report(&format!("{title}: one of them drains"), &[span]).print(command.json);
    }
    Ok(())
}

/// Drains a node to its end; how long that took, and the span in the probes' time.
async fn drain(
    cluster: &mut Cluster,
    node: usize,
    rest: &[usize],
    probes: &Probes,
) -> anyhow::Result<(Duration, (u64, u64))> {
    let (started, from) = (Instant::now(), probes.now());
    cluster.nodes.terminate(node).await;
    cluster.nodes.ended(node).await?;
    let took = started.elapsed();
    cluster.nodes.agreed(rest.len()).await?;
    settled(cluster, rest).await?;
    tokio::time::sleep(AFTER).await;
    Ok((took, (from, probes.now())))
}

/// So many rooms of each group, with clients at the nodes that stay to the end.
fn wanted(cluster: &Cluster, newcomer: usize, sampled: usize) -> anyhow::Result<Vec<Wanted>> {
    let after = Places::of(0..=newcomer);
    let mut wanted = Vec::new();
    for number in 0..sampled.div_ceil(GROUPS.len()) {
        for group in 0..GROUPS.len() {
            let name = format!("moves-{group}-{number}");
            let goes = |at: &[usize]| at[0] == newcomer;
            let stays = |at: &[usize]| at[0] != newcomer && at[1] != newcomer;
            let room = if group == 0 { after.room(&name, goes)? } else { after.room(&name, stays)? };
            let uid = if group == 1 { after.user(&name, goes)? } else { after.user(&name, stays)? };
            let [door, member] = [number, number + 1].map(|node| cluster.door(node % (newcomer - 1)));
            wanted.push(Wanted { group, uid, room, door, member });
        }
    }
    Ok(wanted)
}
