//! Real nodes killed, stopped and restarted under load, judged by what their clients saw.
//!
//! Belongs here: the `kill9` command: the rounds, and what happens in each. Stays out: nodes
//! (`processes`), clients (`clients`, `session`), the judgement (`checker`), its figures (`report`).
//! Method: members and publishers are two processes of clients beside the nodes; each writes a journal of
//! what was sent, answered and delivered, by one clock. A round: a node is hurt and healed, the rings
//! agree, some time passes; then all that was sent so far is judged, as soon as nothing is open or
//! [`SETTLED_WITHIN`] has passed. Publishing never stops.
//! Invariants: no counter of a server is believed; only processes started here are signalled, by pid,
//! and they end with this one.

mod checker;
pub(crate) mod clients;
pub(crate) mod journal;
mod report;
pub(crate) mod session;
mod trouble;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use checker::{Checker, Hurt, Plan};
use clap::{Args, ValueEnum};
pub use clients::{Clients, run as run_clients};
use journal::{Reader, now_micros};
use mesh_tests::process::Process;
use report::Round;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::processes::{self, Nodes, program};
use crate::random::Random;
use crate::relay::Relay;

/// After a round, what is owed must have come within this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Clients must be in their rooms within this time at the start.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at the journals.
const READ_EVERY: Duration = Duration::from_millis(50);

/// Start real nodes and clients on loopback, hurt the nodes in rounds, and check what each client saw
/// against what was acknowledged. Exits 1 when a promise was broken.
#[derive(Clone, Debug, Args)]
pub struct Kill9 {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Rounds.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Which nodes are hurt, how, when; delays of clients.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rooms.
    #[arg(long, default_value_t = 10)]
    rooms: usize,
    /// Receiving members of each room.
    #[arg(long, default_value_t = 10)]
    members: usize,
    /// Publishing members of each room, by different nodes at first.
    #[arg(long, default_value_t = 3)]
    publishers: usize,
    /// Messages published per second, over all rooms.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// What happens in a round.
    #[arg(long, value_enum, default_value_t = Mode::Kill)]
    mode: Mode,
    /// Seconds between agreement after a round's trouble and its judgement.
    #[arg(long, default_value_t = 3)]
    pause: u64,
    /// One JSON object per round and one for the whole run, in place of text.
    #[arg(long)]
    json: bool,
    /// Keep journals and the nodes' logs here; without it they are kept when a promise was broken.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Log filter of the nodes. Why clients were not recovered, and which gaps were told, is read from lines
    /// of `mesh_proto::edge`.
    #[arg(long, default_value = "info,mesh_proto::edge=debug")]
    log: String,
    /// The `meshd` to run; by default the one beside this program.
    #[arg(long)]
    meshd: Option<PathBuf>,
}

/// What happens in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// kill -9 of one node; it starts again within 100 ms, or after the others have noticed.
    Kill,
    /// SIGSTOP of one node for 0.2 to 5 s, then SIGCONT.
    Stop,
    /// One of both, by the seed.
    Mixed,
    /// The clients of a node leave their transports open and come back by another node; by turns while it
    /// stands still for 0.2 to 5 s, and while it runs.
    HalfOpen,
    /// Every node in turn: SIGTERM, its end, a start.
    Rolling,
    /// The network between the nodes is cut for some seconds: two groups, two nodes from each other, one way,
    /// one node deaf or mute, by turns.
    Cut,
}

/// Runs `kill9`.
///
/// # Errors
/// When a promise was broken, nodes do not start or agree, or a signal ends the run.
pub fn run(kill9: &Kill9) -> anyhow::Result<()> {
    ensure!((2..=64).contains(&kill9.nodes), "--nodes is 2 to 64");
    ensure!(kill9.mode != Mode::Cut || kill9.nodes > 2, "--mode cut wants 3 nodes at least");
    ensure!(kill9.rooms * kill9.publishers <= usize::from(u16::MAX), "too many publishers");
    ensure!(
        kill9.rooms > 0 && kill9.members > 0 && kill9.publishers > 0 && kill9.rate > 0,
        "rooms, members, publishers and rate are 1 at least"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = rounds(kill9) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn rounds(kill9: &Kill9) -> anyhow::Result<()> {
    let directory = match &kill9.keep {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("kill9-{}-{}", std::process::id(), kill9.seed)),
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let done = match Run::start(kill9, &directory).await {
        Ok(mut run) => {
            let done = run.all_rounds().await;
            run.keep_logs()?;
            done
        }
        Err(error) => Err(error),
    };
    match &done {
        Ok(()) if kill9.keep.is_none() => std::fs::remove_dir_all(&directory)?,
        Ok(()) => {}
        Err(_) => eprintln!("journals and logs are in {}", directory.display()),
    }
    done
}

/// A run: nodes, clients, the account of all of them.
struct Run<'a> {
    kill9: &'a Kill9,
    directory: PathBuf,
    nodes: Nodes,
    members: Crowd,
    publishers: Crowd,
    checker: Checker,
    random: Random,
    /// Why clients were not recovered in this round so far.
    reasons: BTreeMap<String, u64>,
    sum: Round,
    started: Instant,
}

/// A process of clients and its journal.
struct Crowd {
    process: Process,
    journal: Reader,
}

impl Crowd {
    async fn start(role: &str, arguments: &[String], directory: &Path) -> anyhow::Result<Self> {
        let journal = directory.join(format!("{role}.journal"));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["kill9-clients", "--role", role]).args(arguments).arg("--journal").arg(&journal);
        let mut process = Process::start(format!("kill9-clients {role}"), &mut command);
        process.line("ready").await;
        Ok(Self { process, journal: Reader::open(&journal)? })
    }
}

impl<'a> Run<'a> {
    /// Starts everything; returns when all clients are in their rooms and messages flow.
    async fn start(kill9: &'a Kill9, directory: &Path) -> anyhow::Result<Self> {
        let meshd = program(kill9.meshd.as_deref())?;
        if !kill9.json {
            println!(
                "seed={} nodes={} mode={:?} rounds={}: {} rooms of {} members and {} publishers, {} messages/s",
                kill9.seed,
                kill9.nodes,
                kill9.mode,
                kill9.rounds,
                kill9.rooms,
                kill9.members,
                kill9.publishers,
                kill9.rate
            );
        }
        let extra = [("LOG__FILTER", kill9.log.as_str()), ("PRODUCTS__ROOMS__RECOVERY", "on")];
        let extra = extra.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let relay = match kill9.mode {
            Mode::Cut => Some(Relay::open(kill9.nodes)?),
            _ => None,
        };
        let (logs, count) = (Some(directory.to_owned()), kill9.nodes);
        let nodes = Nodes::start_behind(relay, meshd, logs, count, extra).await?;
        let seed = format!("--seed={}", kill9.seed);
        let members = [
            seed.clone(),
            format!("--count={}", kill9.rooms * kill9.members),
            format!("--per-room={}", kill9.members),
        ];
        let interval = 1e6 * (kill9.rooms * kill9.publishers) as f64 / f64::from(kill9.rate);
        let publishers = [
            seed,
            format!("--count={}", kill9.rooms * kill9.publishers),
            format!("--per-room={}", kill9.publishers),
            format!("--interval-micros={interval:.0}"),
        ];
        let plan = Plan { rooms: kill9.rooms, members: kill9.members, publishers: kill9.publishers };
        let mut run = Self {
            kill9,
            directory: directory.to_owned(),
            nodes,
            members: Crowd::start("members", &members, directory).await?,
            publishers: Crowd::start("publishers", &publishers, directory).await?,
            checker: Checker::new(plan),
            random: Random::new(kill9.seed),
            reasons: BTreeMap::new(),
            sum: Round::default(),
            started: Instant::now(),
        };
        run.open_doors().await;
        let give_up = Instant::now() + READY_WITHIN;
        while !run.checker.all_in() {
            ensure!(Instant::now() < give_up, "not all clients are in their rooms within {READY_WITHIN:?}");
            run.read_on().await?;
        }
        Ok(run)
    }

    async fn all_rounds(&mut self) -> anyhow::Result<()> {
        // A round without trouble: what pauses look like on this machine.
        let from = now_micros();
        self.nodes.watch(Duration::from_secs(self.kill9.pause)).await;
        let mut calm = self.judge(from, &[]).await?;
        self.show(0, "calm", &calm);
        for number in 1..=self.kill9.rounds {
            let from = now_micros();
            let trouble = self.trouble(number).await?;
            let pause = Duration::from_secs(self.kill9.pause);
            self.nodes.watch(self.random.between(pause, pause * 2)).await;
            let mut round = self.judge(from, &trouble.hurt).await?;
            round.add(&trouble.seen);
            round.sentences.extend(trouble.seen.sentences);
            self.show(number, &trouble.kind, &round);
            self.sum.add(&round);
            self.nodes.check_alive()?;
        }
        if self.kill9.json {
            println!("{}", self.json_of("sum", "sum", &self.sum));
        } else {
            self.sum.print(&format!(
                "all {} rounds, {:.0} s",
                self.kill9.rounds,
                self.started.elapsed().as_secs_f64()
            ));
        }
        calm.add(&self.sum);
        let broken = calm.broken();
        ensure!(broken.is_empty(), "promises were broken: {broken}; seed {}", self.kill9.seed);
        Ok(())
    }

    /// Tells the clients which nodes there are.
    async fn open_doors(&mut self) {
        let line = format!("doors {}", self.nodes.doors());
        self.members.process.tell(&line).await;
        self.publishers.process.tell(&line).await;
    }

    /// Looks at the nodes for a moment and takes in what clients wrote meanwhile.
    async fn read_on(&mut self) -> anyhow::Result<()> {
        self.nodes.watch(READ_EVERY).await;
        // Deliveries last: what a member is owed is known before it is missed.
        self.publishers.journal.read(|at, client, fact| self.checker.take_publisher(at, client, fact))?;
        self.members.journal.read(|at, client, fact| self.checker.take_member(at, client, fact))
    }

    /// Tells the clients of a node to leave it and come back elsewhere.
    async fn leave(&mut self, node: usize) {
        let line = format!("leave {node}");
        self.members.process.tell(&line).await;
        self.publishers.process.tell(&line).await;
    }

    /// Takes in what servers say that no client can know: why it was not recovered, which gaps there are.
    fn take_lines(&mut self) {
        let Self { nodes, checker, reasons, .. } = self;
        nodes.take_lines(|node, line| {
            if let Some((_, why)) =
                line.split_once("begins anew").and_then(|(_, told)| told.split_once("why="))
            {
                *reasons.entry(why.trim().to_owned()).or_default() += 1;
            } else if let Some((_, room)) = line.split_once("a hole in the log of a room")
                && let Some((_, number)) = room.split_once("#room-")
                && let Ok(number) = number.trim().parse()
            {
                checker.gap_told(node, number);
            }
        });
    }

    async fn judge(&mut self, from: u64, hurt: &[Hurt]) -> anyhow::Result<Round> {
        self.read_on().await?;
        self.take_lines();
        self.checker.cut(now_micros());
        let give_up = Instant::now() + SETTLED_WITHIN;
        while !self.checker.is_settled() && Instant::now() < give_up {
            self.read_on().await?;
        }
        self.take_lines();
        let mut round = self.checker.judge(from, hurt);
        round.reasons = std::mem::take(&mut self.reasons);
        Ok(round)
    }

    fn show(&self, number: usize, kind: &str, round: &Round) {
        if self.kill9.json {
            println!("{}", self.json_of(&number.to_string(), kind, round));
        } else {
            let at = self.started.elapsed().as_secs_f64();
            round.print(&format!("round {number} at {at:.0} s: {kind}"));
        }
    }

    fn json_of(&self, number: &str, kind: &str, round: &Round) -> serde_json::Value {
        let mut told = round.json();
        told["round"] = number.into();
        told["kind"] = kind.into();
        told["seed"] = self.kill9.seed.into();
        told
    }

    /// Keeps what nodes and clients have said.
    fn keep_logs(&self) -> anyhow::Result<()> {
        for (name, crowd) in [("members", &self.members), ("publishers", &self.publishers)] {
            let path = self.directory.join(format!("{name}.log"));
            processes::write(&path, &crowd.process.output().lines().join("\n"))?;
        }
        self.nodes.keep_logs()
    }
}
