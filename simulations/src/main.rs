//! The command line of the simulations and the load generator.
//!
//! Belongs here: the subcommands. Stays out: what they do (`mesh_simulations`).

use clap::{Parser, Subcommand};
use mesh_simulations::load;

/// Whole clusters on virtual time, and load for running nodes.
#[derive(Debug, Parser)]
#[command(name = "mesh-simulations", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Drive running nodes with raw Socket.IO clients and report what it cost them.
    #[command(subcommand)]
    Load(load::Load),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Load(load) => load::run(load),
    }
}
