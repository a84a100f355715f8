//! `meshctl`: the operator's command line.
//!
//! Belongs here: commands, their flags, exit codes.
//! Stays out: everything it says. Facts come from a node's admin listener, in the types of
//! `meshd::admin::answers`; there are no defaults, ring arithmetic or wire types of its own.
//! Exit codes: 0 fine, 1 problems found or something went wrong, 2 wrong usage.

mod client;
mod follow;
mod show;
mod svg;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use meshd::admin::answers::{ConfigAnswer, Explained, ReloadAnswer, RingAnswer, Status, UpstreamsAnswer};
use meshd::config::PORTS;
use serde::Serialize;
use serde::de::DeserializeOwned;

use client::{Client, query};

/// Shows and explains a mesh of meshd nodes.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, arg_required_else_help = true)]
struct Cli {
    /// Admin address of any node, HOST:PORT
    #[arg(long, global = true, value_name = "ADDR", env = "MESHCTL_ADMIN", default_value_t = default_admin())]
    admin: String,
    /// File with the admin token; not needed on the node's own host
    #[arg(long, global = true, value_name = "FILE", env = "MESHCTL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

fn default_admin() -> String {
    format!("127.0.0.1:{}", PORTS[2])
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Problems first, then every node; exit code 1 if there are problems
    Status,
    /// Who owns what share of the ring
    Ring {
        /// Also draw it into this file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Who owns a user, a room or a binding, and what the owner knows of it
    Explain(Explain),
    /// Hand over what a node owns, close its clients so that they come back elsewhere, and end it
    Drain(Drain),
    /// Have nodes take over their settings as they are now; exit code 1 if one could not
    Reload(Reload),
    /// The servers behind proxied products, as the node sees them; or drain one of them
    Upstreams {
        #[command(subcommand)]
        command: Option<Upstreams>,
    },
    /// Follow what happens, one line each: nodes, the ring, drains, moves, takeovers
    Watch,
    /// Every setting of the node, with what set it
    Config,
    /// Make a key: for mesh.key_file, api.key_file or admin.token_file
    Keygen,
}

#[derive(Debug, Subcommand)]
enum Upstreams {
    /// Send nothing new to an upstream, at every node
    Drain {
        /// Its name, as `meshctl upstreams` shows it
        upstream: String,
        /// Of this product only
        #[arg(long, value_name = "NAME")]
        product: Option<String>,
        /// Close what is still open there after so many seconds
        #[arg(long, value_name = "SECONDS")]
        deadline: Option<u32>,
        /// Take the drain back
        #[arg(long, conflicts_with = "deadline")]
        cancel: bool,
    },
}

#[derive(Debug, Args)]
struct Explain {
    /// The product
    product: String,
    /// The user; of a proxied product also where it is bound to
    #[arg(required_unless_present_any = ["room", "sid", "upstream"], conflicts_with_all = ["room", "sid", "upstream"])]
    uid: Option<String>,
    /// The room; "" is everyone
    #[arg(long, value_name = "NAME", conflicts_with_all = ["sid", "upstream"])]
    room: Option<String>,
    /// The room's namespace, if not the main one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["uid", "sid", "upstream"])]
    namespace: Option<String>,
    /// The Engine.IO session at an upstream of a proxied product: where it is bound to
    #[arg(long, conflicts_with = "upstream")]
    sid: Option<String>,
    /// The upstream of a proxied product: what is said of it to all nodes
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
}

#[derive(Debug, Args)]
struct Drain {
    /// The node's name; the node that is asked if left out
    node: Option<String>,
    /// Take the drain back: the node is on the ring and ready again
    #[arg(long, conflicts_with_all = ["force", "no_wait"])]
    cancel: bool,
    /// Also the last active node: its rooms and sessions end with it
    #[arg(long)]
    force: bool,
    /// Return at once instead of following until the node is gone
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
struct Reload {
    /// The node's name; the node that is asked if left out
    node: Option<String>,
    /// Every node
    #[arg(long, conflicts_with = "node")]
    all: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Command::Keygen = cli.command {
        let key = meshd::config::secrets::generate_cluster_key();
        print(cli, &Key { key: key.expose() }, |key| format!("{}\n", key.key))?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = Client::new(&cli.admin, cli.token_file.as_deref())?;
    match &cli.command {
        Command::Status => {
            let status: Status = client.ask("/v1/status")?;
            print(cli, &status, show::status)?;
            return Ok(ExitCode::from(u8::from(!status.problems.is_empty())));
        }
        Command::Ring { svg } => {
            let ring: RingAnswer = client.ask("/v1/ring")?;
            if let Some(file) = svg {
                std::fs::write(file, svg::draw(&ring))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            print(cli, &ring, show::ring)?;
        }
        Command::Explain(explain) => {
            let explained: Explained = client.ask(&explain.path()?)?;
            print(cli, &explained, show::explained)?;
        }
        Command::Drain(drain) => return follow::drain(&client, drain, cli.json),
        Command::Reload(reload) => {
            let node = reload.node.iter().map(|node| ("node", node.as_str()));
            let asked: Vec<_> = node.chain(reload.all.then_some(("all", "true"))).collect();
            let told: ReloadAnswer = client.tell(&format!("/v1/reload?{}", query(&asked)))?;
            print(cli, &told, show::reload)?;
            return Ok(ExitCode::from(u8::from(told.nodes.iter().any(|line| !line.problems.is_empty()))));
        }
        Command::Upstreams { command } => {
            let upstreams: UpstreamsAnswer = match command {
                None => client.ask("/v1/upstreams")?,
                Some(drain) => client.tell(&drain.path())?,
            };
            print(cli, &upstreams, show::upstreams)?;
        }
        Command::Watch => follow::watch(&client, cli.json)?,
        Command::Config => {
            let config: ConfigAnswer = client.ask("/v1/config")?;
            print(cli, &config, show::config)?;
        }
        Command::Keygen => {}
    }
    Ok(ExitCode::SUCCESS)
}

impl Upstreams {
    fn path(&self) -> String {
        let Self::Drain { upstream, product, deadline, cancel } = self;
        let deadline = deadline.map(|deadline| deadline.to_string());
        let mut target = vec![("drain", upstream.as_str())];
        target.extend(product.as_deref().map(|product| ("product", product)));
        target.extend(deadline.as_deref().map(|deadline| ("deadline_secs", deadline)));
        target.extend(cancel.then_some(("cancel", "true")));
        format!("/v1/upstreams?{}", query(&target))
    }
}

impl Explain {
    fn path(&self) -> anyhow::Result<String> {
        let mut target = vec![("product", self.product.as_str())];
        match (&self.uid, &self.room, &self.sid, &self.upstream) {
            (Some(uid), None, None, None) => target.push(("uid", uid)),
            (None, Some(room), None, None) => target.push(("room", room)),
            (None, None, Some(sid), None) => target.push(("sid", sid)),
            (None, None, None, Some(upstream)) => target.push(("upstream", upstream)),
            _ => bail!("name one: a user, a room, a session or an upstream"),
        }
        if let Some(namespace) = &self.namespace {
            target.push(("namespace", namespace));
        }
        Ok(format!("/v1/explain?{}", query(&target)))
    }
}

#[derive(Serialize)]
struct Key<'a> {
    key: &'a str,
}

/// Prints an answer as asked for.
fn print<T: Serialize>(cli: &Cli, answer: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    let text = if cli.json { serde_json::to_string_pretty(answer)? + "\n" } else { text(answer) };
    write_out(&text).map(drop)
}

/// What became of a text.
enum Written {
    All,
    /// Whoever read has gone (`| head`): that is no error.
    NobodyReads,
}

/// Writes to standard output, at once.
fn write_out(text: &str) -> anyhow::Result<Written> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Written::All),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Written::NobodyReads),
        Err(error) => Err(error).context("cannot write to the terminal"),
    }
}

/// Reads an answer, naming the node's version where the shape is not what we know.
fn read<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the answer is not what this version of meshctl knows")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, i32> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.exit_code())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in [
            "meshctl dance",
            "meshctl status --fast",
            "meshctl explain chat",
            "meshctl explain chat alice --room lobby",
            "meshctl explain chat alice --namespace /x",
            "meshctl explain chat alice --sid s",
            "meshctl explain chat --sid s --upstream u",
            "meshctl ring --svg",
            "meshctl drain --cancel --force",
            "meshctl drain --cancel --no-wait",
            "meshctl drain n1 n2",
            "meshctl reload n1 --all",
            "meshctl upstreams drain",
            "meshctl upstreams drain a:1 --deadline 5 --cancel",
        ] {
            assert_eq!(parse(line).map(drop), Err(2), "{line}");
        }
        assert_eq!(parse("meshctl --help").map(drop), Err(0));
    }

    #[test]
    fn explain_asks_for_what_was_said() {
        let path = |line: &str| match parse(line).unwrap().command {
            Command::Explain(explain) => explain.path().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path("meshctl explain chat a&b"), "/v1/explain?product=chat&uid=a%26b");
        let room = path("meshctl explain chat --room é --namespace /x --json");
        assert_eq!(room, "/v1/explain?product=chat&room=%C3%A9&namespace=%2Fx");
        assert_eq!(path("meshctl explain shop --sid a=b"), "/v1/explain?product=shop&sid=a%3Db");
        assert_eq!(path("meshctl explain shop --upstream h:1"), "/v1/explain?product=shop&upstream=h%3A1");
    }
}
