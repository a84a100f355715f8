//! Connections that do nothing: what each costs to open and to hold.

use std::time::Duration;

use anyhow::ensure;

use super::process::Servers;
use super::report::float;
use super::{Idle, fleet};

/// `load idle`.
pub(super) async fn run(command: Idle) -> anyhow::Result<()> {
    let (nodes, _own) = command.nodes.or_own().await?;
    let servers = Servers::new(&nodes.pids)?;
    let rooms =
        (0..command.clients)
            .map(|client| {
                if command.rooms > 0 { vec![format!("idle-{}", client % command.rooms)] } else { Vec::new() }
            })
            .collect();
    let before = servers.resident_bytes()?;
    let fleet = fleet::open(&nodes, &servers, rooms).await?;
    let clients = fleet.clients.len() as u64;
    println!("connections         {clients} over {} node(s)", nodes.targets.len());
    println!("opened per second   {:.0}", float(clients) / fleet.took.as_secs_f64());
    if !servers.is_empty() {
        let with = if command.rooms > 0 { "and a join " } else { "" };
        println!(
            "CPU us per connect  {:.1} ({with}included)",
            float(fleet.cpu.0) / 1e3 / float(clients.max(1))
        );
    }
    let closed = fleet::hold(fleet.clients);
    let cpu = servers.cpu()?;
    tokio::time::sleep(Duration::from_secs(command.hold)).await;
    if !servers.is_empty() {
        let cpu = float(servers.cpu()?.0.saturating_sub(cpu.0)) / 1e9 / float(command.hold.max(1));
        println!("CPU while idle      {:.2} % of a core", cpu * 100.0);
        let after = servers.resident_bytes()?;
        let grown: u64 = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).sum();
        println!("RSS per connection  {:.0} B", float(grown) / float(clients.max(1)));
        for ((pid, before), after) in nodes.pids.iter().zip(before).zip(after) {
            println!("  pid {pid:<8} {:>8} KiB before, {:>8} KiB after", before >> 10, after >> 10);
        }
    }
    ensure!(closed.get() == 0, "{} connections were closed while idle", closed.get());
    Ok(())
}
