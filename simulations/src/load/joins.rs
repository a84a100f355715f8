//! Clients that join many rooms right after CONNECT: until the last answer, and what it costs.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::json;

use super::Joins;
use super::client::Client;
use super::own::Cluster;
use super::process::{Servers, allow_open_files};
use super::table::{Table, percentiles};
use crate::times::Times;

/// What nodes send by themselves is counted over this time first.
const IDLE: Duration = Duration::from_secs(2);

const COLUMNS: [&str; 9] = [
    "joins",
    "client's last answer p50 ms",
    "p99",
    "max",
    "all answered ms",
    "CPU us/join",
    "envelopes/join",
    "datagrams/join",
    "bytes/join",
];

/// One row of the report.
struct Case {
    name: String,
    clients: usize,
    /// How often, one after the other.
    rounds: usize,
    /// All clients join the same rooms.
    shared: bool,
}

/// `load joins`.
pub(super) async fn run(command: Joins) -> anyhow::Result<()> {
    let cluster = command.own.start().await?;
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    allow_open_files(command.clients as u64 + 64)?;
    let Joins { rooms, clients, rounds, .. } = command;
    let case = |name: &str, clients, rounds, shared| Case { name: name.to_owned(), clients, rounds, shared };
    let cases = [
        case("one client, new rooms", 1, rounds, false),
        case(&format!("{clients} at once, new rooms"), clients, 1, false),
        case(&format!("{clients} at once, the same rooms"), clients, 1, true),
    ];
    let mut table = Table::new(format!("{rooms} joins right after CONNECT, {} nodes", all.len()), &COLUMNS);
    let before = cluster.sum(&all).await?;
    tokio::time::sleep(IDLE).await;
    let idle = cluster.sum(&all).await?.since(&before, "meshd_link_envelopes_sent") / IDLE.as_secs_f64();
    for case in &cases {
        table.row(case.name.clone(), case.run(&cluster, &all, rooms).await?);
    }
    table.note(format!("idle: {idle:.0} envelopes/s, not taken off"));
    table.print(command.json);
    Ok(())
}

impl Case {
    async fn run(
        &self,
        cluster: &Cluster,
        all: &[usize],
        rooms: usize,
    ) -> anyhow::Result<Vec<serde_json::Value>> {
        let servers = Servers::new(&cluster.driven(all).pids)?;
        let (before, cpu) = (cluster.sum(all).await?, servers.cpu()?);
        let (mut single, mut whole) = (Times::default(), Times::default());
        for round in 0..self.rounds {
            let started = Instant::now();
            let joining = (0..self.clients).map(|index| {
                let owner = if self.shared { 0 } else { index };
                let rooms: Vec<String> =
                    (0..rooms).map(|room| format!("{}-{round}-{owner}-{room}", self.name)).collect();
                let door = cluster.door(all[index % all.len()]);
                async move {
                    let mut client = Client::connect(&door, &format!("joins-{round}-{index}")).await?;
                    let connected = Instant::now();
                    client.join(&rooms).await?;
                    anyhow::Ok((client, connected.elapsed()))
                }
            });
            let joined = try_join_all(joining).await?;
            whole.add(Some(started.elapsed()));
            for (_, took) in &joined {
                single.add(Some(*took));
            }
        }
        let joins = (rooms * self.clients * self.rounds) as f64;
        let cpu = servers.cpu()?.0.saturating_sub(cpu.0);
        let after = cluster.sum(all).await?;
        let per_join = |name| json!(after.since(&before, name) / joins);
        let mut cells = vec![json!(joins as u64)];
        cells.extend(percentiles(&single));
        cells.push(percentiles(&whole).swap_remove(0));
        cells.push(json!(super::report::float(cpu) / 1e3 / joins));
        cells.push(per_join("meshd_link_envelopes_sent"));
        cells.push(per_join("meshd_link_sent_datagrams"));
        cells.push(per_join("meshd_link_sent_bytes"));
        Ok(cells)
    }
}
