//! The program `meshd`: one node, or a demonstration of three.
//!
//! Belongs here: the command line, exit codes, the one place where errors are printed.
//! Stays out: everything a program that embeds a node would want too.
//! Exit codes: 0 stopped as told; 1 an address could not be used, or the system gave something out;
//! 2 settings or usage; 3 another live node has this name; 4 a part of the node failed; 130 a second
//! signal.

use std::io::Read as _;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use meshd::config::{Config, Flag, PORTS, Sources};
use meshd::demo::supervisor::{self, DemoError};
use meshd::node::{Ended, Node, Options, StartError};
use meshd::{fd_limit, logs};

/// Live connections for web applications: WebSocket and Socket.IO on a mesh of equal nodes.
///
/// Without arguments one node starts on this host: clients on port 4080, the HTTP API on 4081,
/// meshctl on 4082, other nodes on UDP 4083.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts three nodes on this host and a page to play with them; Ctrl-C ends it.
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// Settings file (TOML); see docs/config.md.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// A node to join through, by its mesh address; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<String>,
    /// This node's name [node.name].
    #[arg(long)]
    name: Option<String>,
    /// The first of four ports in a row: clients, HTTP API, admin, mesh; all on 127.0.0.1.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65_532))]
    port: Option<u16>,
    /// Address for clients [client.listen].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address for other nodes [mesh.listen].
    #[arg(long, value_name = "IP:PORT")]
    mesh: Option<String>,
    /// Address of the HTTP API [api.listen].
    #[arg(long, value_name = "IP:PORT")]
    api: Option<String>,
    /// Address for meshctl, health and metrics [admin.listen].
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// Format of the log [log.format].
    #[arg(long, value_name = "text|json")]
    log: Option<String>,
    /// Any setting, as mesh.timing=wan; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Prints every setting with its origin, or all that is wrong, and exits.
    #[arg(long)]
    check_config: bool,
    /// Started by a supervisor: addresses on standard output, the end of standard input is a stop.
    #[arg(long, hide = true)]
    supervised: bool,
    /// Serves the page of the demonstration, whose control is at this address.
    #[arg(long, hide = true, value_name = "URL")]
    demo_control: Option<String>,
}

impl NodeArgs {
    fn sources(&self) -> Result<Sources, String> {
        let mut flags = Vec::new();
        let mut flag = |flag: &str, key: &str, value: String| {
            flags.push(Flag { flag: flag.into(), key: key.into(), value });
        };
        if let Some(first) = self.port {
            let keys = ["client.listen", "api.listen", "admin.listen", "mesh.listen"];
            for (key, port) in keys.into_iter().zip(first..) {
                flag("--port", key, format!("127.0.0.1:{port}"));
            }
        }
        let single = [
            ("--name", "node.name", &self.name),
            ("--listen", "client.listen", &self.listen),
            ("--mesh", "mesh.listen", &self.mesh),
            ("--api", "api.listen", &self.api),
            ("--admin", "admin.listen", &self.admin),
            ("--log", "log.format", &self.log),
        ];
        for (name, key, value) in single {
            if let Some(value) = value {
                flag(name, key, value.clone());
            }
        }
        if !self.seed.is_empty() {
            flag("--seed", "mesh.seeds", self.seed.join(","));
        }
        for set in &self.set {
            let (key, value) = set.split_once('=').ok_or_else(|| format!("--set {set}: not KEY=VALUE"))?;
            flag("--set", key.trim(), value.trim().to_owned());
        }
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        let open_files_max = fd_limit::raise().ok();
        Ok(Sources { file: self.config.clone(), env, flags, open_files_max })
    }
}

/// What ends the program: an exit code and what is printed.
struct Failure(u8, String);

fn main() -> ExitCode {
    debug_assert_eq!(PORTS, [4080, 4081, 4082, 4083], "the help text names the ports");
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Command::Demo(args)) => demo(&args),
        None => node(&cli.node),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, text)) => {
            use std::io::Write as _;
            // Standard error may be gone; the code tells it then.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(code)
        }
    }
}

fn demo(args: &DemoArgs) -> Result<(), Failure> {
    supervisor::run(args.nodes).map_err(|error| {
        let code = if matches!(error, DemoError::Impatient) { 130 } else { 1 };
        Failure(code, format!("meshd: {}", chain(&error)))
    })
}

fn node(args: &NodeArgs) -> Result<(), Failure> {
    let sources = args.sources().map_err(|text| Failure(2, format!("meshd: {text}")))?;
    let config = Config::load(&sources).map_err(|errors| Failure(2, errors.to_string()))?;
    if args.check_config {
        use std::io::Write as _;
        let _ = std::io::stdout().write_all(config.shown_as_text().as_bytes());
        return Ok(());
    }
    let logs = logs::start(&config.log).map_err(|text| Failure(1, format!("meshd: no log: {text}")))?;
    let demo_control = args.demo_control.clone();
    let options = Options { demo_control, sources: Some(sources), ..Options::default() };
    let ended = run(config, options, args.supervised);
    logs.flush();
    ended
}

fn run(config: Config, options: Options, supervised: bool) -> Result<(), Failure> {
    let running = Node::start(config, options).map_err(|error| {
        let code = match error {
            StartError::Settings(_) => 2,
            _ => 1,
        };
        let prefix = if code == 2 { "" } else { "meshd: " };
        Failure(code, format!("{prefix}{}", chain(&error)))
    })?;
    running.stop_on_signals().map_err(|cause| Failure(1, format!("meshd: no signal handler: {cause}")))?;
    if supervised {
        use std::io::Write as _;
        let line = serde_json::to_string(running.addresses()).expect("addresses are plain JSON");
        let _ = writeln!(std::io::stdout(), "{line}");
        let stop = running.stopper();
        let watch = move || {
            // Ends with the supervisor, however that one ended.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            stop.cancel();
        };
        let _ = std::thread::Builder::new().name("supervisor".into()).spawn(watch);
    }
    match running.wait() {
        Ended::Stopped => Ok(()),
        Ended::NameTaken(holder) => Err(Failure(3, format!("meshd: {holder}"))),
        Ended::Failed => Err(Failure(4, "meshd: a part of the node failed; the log has it".into())),
        Ended::Impatient => Err(Failure(130, "meshd: second signal, stopped at once".into())),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
