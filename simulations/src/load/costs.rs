//! What safety and distance cost a publish.
//!
//! Method: three clusters side by side, one node, three nodes without backups, three nodes with them; one
//! watched room of each kind in each, in turns, so that all see the same machine. Bytes, envelopes and
//! datagrams are those between nodes in the same spans, what idle nodes send taken off.

use std::time::Duration;

use serde_json::{Value, json};

use super::Costs;
use super::own::{Cluster, Numbers, Own, Places};
use super::probes::{Probes, Wanted};
use super::process::Servers;
use super::report::{Faults, float};
use super::table::{Table, percentiles};
use crate::times::Times;

const COLUMNS: [&str; 11] = [
    "publishes",
    "answer p50 ms",
    "p99",
    "max",
    "delivery p50 ms",
    "p99 ",
    "max ",
    "CPU us/publish",
    "bytes/publish",
    "envelopes",
    "datagrams",
];

/// Between nodes, per publish.
const TRAFFIC: [&str; 3] =
    ["meshd_link_sent_bytes", "meshd_link_envelopes_sent", "meshd_link_sent_datagrams"];

/// After the last answer, confirmations of links may be under way.
const AFTER: Duration = Duration::from_millis(300);

/// One kind of publish in one cluster.
struct Case {
    name: &'static str,
    cluster: usize,
    /// Where publisher and member are connected, who owns the publisher's session, who the room.
    edge: usize,
    session: usize,
    room: usize,
    sum: Sum,
}

/// What the rounds of a case have shown.
#[derive(Default)]
struct Sum {
    answers: Times,
    deliveries: Times,
    cpu: u64,
    took: Duration,
    traffic: [f64; TRAFFIC.len()],
}

/// `load costs`.
pub(super) async fn run(command: Costs) -> anyhow::Result<()> {
    let with = |count: usize, set: &[&str]| {
        let set = command.own.set.iter().cloned().chain(set.iter().map(|&set| set.to_owned())).collect();
        Own { count, set, ..command.own.clone() }
    };
    let clusters = [
        with(1, &[]).start().await?,
        with(3, &["products.rooms.durability=none"]).start().await?,
        with(3, &[]).start().await?,
    ];
    let case = |name, cluster, [edge, session, room]: [usize; 3]| {
        let sum = Sum::default();
        Case { name, cluster, edge, session, room, sum }
    };
    let mut cases = [
        case("one node", 0, [0, 0, 0]),
        case("no backup, all at the edge", 1, [0, 0, 0]),
        case("no backup, room elsewhere", 1, [0, 0, 1]),
        case("no backup, three nodes", 1, [0, 1, 2]),
        case("backup, all at the edge", 2, [0, 0, 0]),
        case("backup, room elsewhere", 2, [0, 0, 1]),
        case("backup, three nodes", 2, [0, 1, 2]),
    ];
    let span = Duration::from_millis(command.span);
    let mut idle = Vec::new();
    for cluster in &clusters {
        let before = traffic(&all(cluster).await?);
        tokio::time::sleep(span).await;
        let after = traffic(&all(cluster).await?);
        idle.push([0, 1, 2].map(|kind| (after[kind] - before[kind]) / span.as_secs_f64()));
    }
    for round in 0..command.rounds {
        for case in &mut cases {
            case.round(&clusters[case.cluster], round, &command).await?;
        }
    }
    let mut table = Table::new(format!("one room, one publish every {} ms", command.every), &COLUMNS);
    for case in &cases {
        table.row(case.name, case.sum.cells(&idle[case.cluster]));
    }
    table.note("CPU is that of all nodes of the cluster, idling included; traffic is without it");
    table.print(command.json);
    Ok(())
}

impl Case {
    async fn round(&mut self, cluster: &Cluster, round: usize, command: &Costs) -> anyhow::Result<()> {
        let nodes = cluster.nodes.len();
        let places = Places::of(0..nodes);
        let name = format!("costs-{}-{round}", self.name.replace(' ', "-"));
        let wanted = Wanted {
            group: 0,
            uid: places.user(&name, |at| at[0] == self.session)?,
            room: places.room(&name, |at| at[0] == self.room)?,
            door: cluster.door(self.edge),
            member: cluster.door(self.edge),
        };
        let mut probes = Probes::start(vec![wanted], Duration::from_millis(command.every)).await?;
        tokio::time::sleep(AFTER).await;
        let servers = Servers::new(&cluster.driven(&(0..nodes).collect::<Vec<_>>()).pids)?;
        let before = traffic(&all(cluster).await?);
        let (from, cpu) = (probes.now(), servers.cpu()?);
        tokio::time::sleep(Duration::from_millis(command.span)).await;
        let (until, cpu) = (probes.now(), servers.cpu()?.0.saturating_sub(cpu.0));
        let after = traffic(&all(cluster).await?);
        probes.stop().await;
        let faults = probes.faults();
        anyhow::ensure!(faults == Faults::default(), "{}: {faults:?}", self.name);
        let sum = &mut self.sum;
        probes.all[0].collect(from, until, &mut sum.answers, &mut sum.deliveries);
        sum.cpu += cpu;
        sum.took += Duration::from_micros(until - from);
        for kind in 0..TRAFFIC.len() {
            sum.traffic[kind] += after[kind] - before[kind];
        }
        Ok(())
    }
}

impl Sum {
    fn cells(&self, idle: &[f64; TRAFFIC.len()]) -> Vec<Value> {
        let publishes = self.answers.count() as f64;
        let mut cells = vec![json!(self.answers.count())];
        cells.extend(percentiles(&self.answers));
        cells.extend(percentiles(&self.deliveries));
        cells.push(json!(float(self.cpu) / 1e3 / publishes));
        for (sent, idle) in self.traffic.iter().zip(idle) {
            cells.push(json!((sent - idle * self.took.as_secs_f64()).max(0.0) / publishes));
        }
        cells
    }
}

async fn all(cluster: &Cluster) -> anyhow::Result<Numbers> {
    cluster.sum(&(0..cluster.nodes.len()).collect::<Vec<_>>()).await
}

fn traffic(numbers: &Numbers) -> [f64; TRAFFIC.len()] {
    TRAFFIC.map(|name| numbers.of(name))
}
