//! The command line of the simulations and the load generator.
//!
//! Belongs here: the subcommands. Stays out: what they do (`mesh_simulations`).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_simulations::{churn, drill, kill9, load, scenarios};

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
    /// Run many seeds of a cluster in trouble; print a table, and a replay line for each failure.
    Chaos(scenarios::Chaos),
    /// Start, kill and restart nodes on a virtual network: how fast the others notice and agree.
    Churn(churn::Churn),
    /// Start real nodes on loopback, kill -9 one after another: how fast the others notice and agree.
    Drill(drill::Drill),
    /// Kill, stop or restart real nodes under load and check that clients saw what was promised.
    Kill9(kill9::Kill9),
    #[command(hide = true)]
    Kill9Clients(kill9::Clients),
    /// Tell the story of one seed.
    Replay(scenarios::Replay),
    /// Plant bugs, one at a time, and see how many seeds it takes to find each.
    Mutants(scenarios::Mutants),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Load(load) => load::run(load),
        Command::Chaos(chaos) => scenarios::chaos(&chaos),
        Command::Churn(churn) => churn::run(&churn),
        Command::Drill(drill) => drill::run(&drill),
        Command::Kill9(kill9) => kill9::run(&kill9),
        Command::Kill9Clients(clients) => kill9::run_clients(&clients),
        Command::Replay(replay) => scenarios::replay(&replay),
        Command::Mutants(mutants) => scenarios::mutants(&mutants),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line; a backtrace would hide it.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
