//! The demonstration's nodes: real processes of this same program, started, killed and ended together.
//!
//! Belongs here: the children, their output, what is printed, the end.
//! Stays out: the page (`site`), the requests by which it kills and starts nodes (`control`).
//! Owner: one loop owns all children. Each runs in a process group of its own, so that Ctrl-C reaches
//! this process alone, and stops when its standard input ends: also when this process is killed.
//! Secrets: the cluster key lives in memory and in the children's environment, nowhere else.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::control::{self, Act, Asked};
use crate::config::SecretText;
use crate::config::secrets::generate_cluster_key;
use crate::node::Addresses;
use crate::tasks::{OnPanic, Tasks};

/// A node listens within this time, or something is wrong.
const START_WITHIN: Duration = Duration::from_secs(20);

/// All nodes have ended within this time of being told, or are killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Requests of the page that wait. Full: the page is told to come back.
const REQUESTS_LEN: usize = 16;

/// How often it is looked whether a node has ended by itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The demonstration could not be started, or not gone on with. What had started has been ended.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The operating system gave something out.
    #[error("cannot start the demo")]
    Start(#[from] io::Error),
    /// A node did not come up. It has said why on standard error.
    #[error("node {name} did not start: {why}")]
    Node {
        /// Its name.
        name: String,
        /// What was seen.
        why: String,
    },
    /// Told a second time to end.
    #[error("second signal, all nodes killed")]
    Impatient,
}

/// Runs `count` nodes until Ctrl-C or SIGTERM.
///
/// # Errors
/// [`DemoError`].
pub fn run(count: u16) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::new();
        let (requests, asked) = mpsc::channel(REQUESTS_LEN);
        let control_url = control::start(requests, &tasks).await?;
        let signals = Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        };
        let demo = Demo {
            nodes: BTreeMap::new(),
            key: generate_cluster_key(),
            control_url,
            tasks: tasks.clone(),
            signals,
            ending: CancellationToken::new(),
        };
        let ended = demo.run(count, asked).await;
        tasks.stop(Duration::from_secs(1)).await;
        ended
    })
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Demo {
    nodes: BTreeMap<String, DemoNode>,
    key: SecretText,
    control_url: String,
    tasks: Tasks,
    signals: Signals,
    /// All nodes end: what they say of each other's end is no news.
    ending: CancellationToken,
}

/// A node that has been started at least once.
struct DemoNode {
    addresses: Addresses,
    child: Option<Running>,
}

struct Running {
    child: Child,
    /// Its end tells the node to stop.
    stdin: Option<ChildStdin>,
}

impl Demo {
    async fn run(mut self, count: u16, mut asked: mpsc::Receiver<Asked>) -> Result<(), DemoError> {
        let started = self.start_all(count).await;
        let Ok(true) = started else {
            self.stop_all().await?;
            return started.map(drop);
        };
        loop {
            tokio::select! {
                () = self.signals.next() => break,
                Some(request) = asked.recv() => self.answer(request).await,
                () = sleep(LOOK_EVERY) => self.look(),
            }
        }
        self.stop_all().await
    }

    /// Starts the nodes one after the other and says where they are; `false` when told to end.
    async fn start_all(&mut self, count: u16) -> Result<bool, DemoError> {
        for number in 1..=count {
            let name = format!("n{number}");
            let (child, lines) = self.spawn(&name)?;
            let addresses = match self.listening(&name, lines).await {
                Some(addresses) => addresses,
                None => {
                    self.end_one(child).await;
                    return Ok(false);
                }
            };
            match addresses {
                Ok(addresses) => {
                    print_line(&node_line(&addresses));
                    self.nodes.insert(name, DemoNode { addresses, child: Some(child) });
                }
                Err(why) => {
                    self.end_one(child).await;
                    return Err(DemoError::Node { name, why });
                }
            }
        }
        if let Some(first) = self.nodes.values().next() {
            print_line(&format!("open   http://{}/   (Ctrl-C ends all nodes)", first.addresses.client));
        }
        Ok(true)
    }

    /// Where the node listens, or why not; `None` when told to end meanwhile.
    async fn listening(
        &mut self,
        name: &str,
        mut lines: Lines<BufReader<ChildStdout>>,
    ) -> Option<Result<Addresses, String>> {
        let line = tokio::select! {
            () = self.signals.next() => return None,
            line = timeout(START_WITHIN, lines.next_line()) => line,
        };
        let addresses = match line {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).map_err(|_| "it spoke nonsense".to_owned()),
            Ok(_) => Err("it ended at once".to_owned()),
            Err(_) => Err(format!("it did not listen within {START_WITHIN:?}")),
        };
        tracing::debug!(node = name, ok = addresses.is_ok(), "node started");
        Some(addresses)
    }

    fn spawn(&self, name: &str) -> io::Result<(Running, Lines<BufReader<ChildStdout>>)> {
        let alive = self.nodes.iter().filter(|(other, node)| *other != name && node.child.is_some());
        let seeds: Vec<String> = alive.map(|(_, node)| node.addresses.mesh.to_string()).collect();
        // A node that comes back does so where it was: the page's address works again.
        let last = self.nodes.get(name).map(|node| &node.addresses);
        let listen = |at: fn(&Addresses) -> std::net::SocketAddr| {
            last.map_or_else(|| "127.0.0.1:0".to_owned(), |addresses| at(addresses).to_string())
        };
        let mut command = Command::new(std::env::current_exe()?);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("MESHD_") {
                command.env_remove(variable);
            }
        }
        command
            .args(["--supervised", "--name", name, "--demo-control", &self.control_url])
            .args(["--listen", &listen(|a| a.client), "--api", &listen(|a| a.api)])
            .args(["--admin", &listen(|a| a.admin), "--mesh", &listen(|a| a.mesh)])
            .args(["--set", "log.filter=warn", "--set", "node.shards=1"])
            .args(["--set", "drain.announce=0s", "--set", "drain.deadline=5s"])
            .env("MESHD_MESH__KEY", self.key.expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for seed in seeds {
            command.args(["--seed", &seed]);
        }
        let mut child = command.spawn()?;
        if let Some(stderr) = child.stderr.take() {
            let prefix = format!("{name} | ");
            self.tasks.spawn(
                format!("output/{name}"),
                OnPanic::EndTask,
                pass_on(stderr, prefix, self.ending.clone()),
            );
        }
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let stdin = child.stdin.take();
        Ok((Running { child, stdin }, BufReader::new(stdout).lines()))
    }

    /// Does what the page asks.
    async fn answer(&mut self, Asked { act, node: name, answer }: Asked) {
        let done = match act {
            Act::Kill => self.kill(&name).await,
            Act::Start => self.start_again(&name).await,
        };
        let _ = answer.send(done);
    }

    async fn kill(&mut self, name: &str) -> Result<(), String> {
        let running = self.nodes.get_mut(name).and_then(|node| node.child.take());
        let mut running = running.ok_or_else(|| format!("{name} does not run"))?;
        running.child.kill().await.map_err(|error| error.to_string())?;
        print_line(&format!("kill   {name}"));
        Ok(())
    }

    async fn start_again(&mut self, name: &str) -> Result<(), String> {
        match self.nodes.get(name) {
            None => return Err(format!("there is no {name}")),
            Some(node) if node.child.is_some() => return Err(format!("{name} runs")),
            Some(_) => {}
        }
        let (child, lines) = self.spawn(name).map_err(|error| error.to_string())?;
        match self.listening(name, lines).await {
            Some(Ok(addresses)) => {
                print_line(&node_line(&addresses));
                self.nodes.insert(name.to_owned(), DemoNode { addresses, child: Some(child) });
                Ok(())
            }
            Some(Err(why)) => {
                self.end_one(child).await;
                Err(why)
            }
            None => Err("the demo ends".into()),
        }
    }

    /// Notices nodes that have ended by themselves.
    fn look(&mut self) {
        for (name, node) in &mut self.nodes {
            let ended = node.child.as_mut().and_then(|running| running.child.try_wait().ok().flatten());
            if let Some(status) = ended {
                node.child = None;
                print_line(&format!("ended  {name}: {}", in_words(status)));
            }
        }
    }

    /// Ends all nodes in good order, or by force after [`STOP_WITHIN`] or a second signal.
    async fn stop_all(mut self) -> Result<(), DemoError> {
        self.ending.cancel();
        let mut running: Vec<Running> =
            self.nodes.values_mut().filter_map(|node| node.child.take()).collect();
        for node in &mut running {
            node.stdin = None;
        }
        let all = async {
            for node in &mut running {
                let _ = node.child.wait().await;
            }
        };
        let ended = tokio::select! {
            ended = timeout(STOP_WITHIN, all) => Ok(ended.is_ok()),
            () = self.signals.next() => Err(DemoError::Impatient),
        };
        for node in &mut running {
            let _ = node.child.kill().await;
        }
        ended.map(drop)
    }

    async fn end_one(&self, mut running: Running) {
        running.stdin = None;
        if timeout(STOP_WITHIN, running.child.wait()).await.is_err() {
            let _ = running.child.kill().await;
        }
    }
}

/// What the page's request is answered with.
pub(super) type Done = oneshot::Sender<Result<(), String>>;

fn node_line(at: &Addresses) -> String {
    format!(
        "node   {}   clients {}   api {}   admin {}   mesh {}",
        at.name, at.client, at.api, at.admin, at.mesh
    )
}

fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "in some way".into(),
    }
}

/// Prints a line; whoever has closed the other end does not want it.
fn print_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A node's warnings, with its name in front.
async fn pass_on(output: impl AsyncRead + Unpin + Send, prefix: String, ending: CancellationToken) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if !ending.is_cancelled() {
            let _ = writeln!(io::stderr().lock(), "{prefix}{line}");
        }
    }
}
