//! The nodes of a run: real processes, hurt and healed.
//!
//! Belongs here: starting, killing, stopping, restarting one node, and waiting until all agree again.
//! Stays out: clients, and when what happens to whom (`kill9`, `load`).
//! Invariants: a node starts again under its name and mesh address, at other client ports; what it logged
//! in each life is kept in a file where a directory is given.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::cluster::{Addresses, Settings, fresh_key, settings};
use mesh_tests::process::Process;

use crate::drill::watch::{Ring, Watch};
use crate::drill::{agree, start_node};
use crate::relay::Relay;

/// Agreement, and the end of a node that was asked to stop, are waited for this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a node that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The nodes, and what is seen of them.
pub(crate) struct Nodes {
    meshd: PathBuf,
    /// Where logs are kept.
    directory: Option<PathBuf>,
    key: String,
    extra: Settings,
    nodes: Vec<Node>,
    watch: Watch,
    /// What lies between the nodes; `None`: nothing.
    relay: Option<Relay>,
}

struct Node {
    name: String,
    settings: Settings,
    process: Process,
    at: Addresses,
    /// Whether clients may be sent to it.
    serves: bool,
    lives: usize,
    /// Lines of its present life that were taken.
    lines_taken: usize,
}

/// What the nodes of a cluster own together: a key with two owners counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) rooms: u64,
    pub(crate) sessions: u64,
    /// Owned by a node to which the ring does not give it.
    pub(crate) misplaced: u64,
}

impl Node {
    fn take_lines(&mut self, mut on: impl FnMut(&str)) {
        let lines = self.process.output().lines();
        lines.iter().skip(self.lines_taken).for_each(|line| on(line));
        self.lines_taken = lines.len();
    }
}

impl Nodes {
    /// Starts `count` nodes with `extra` settings; returns when they agree.
    pub(crate) async fn start(
        meshd: PathBuf,
        directory: Option<PathBuf>,
        count: usize,
        extra: Settings,
    ) -> anyhow::Result<Self> {
        Self::start_behind(None, meshd, directory, count, extra).await
    }

    /// The same with a network between them that can be cut.
    pub(crate) async fn start_behind(
        relay: Option<Relay>,
        meshd: PathBuf,
        directory: Option<PathBuf>,
        count: usize,
        extra: Settings,
    ) -> anyhow::Result<Self> {
        let (key, nodes) = (fresh_key(), Vec::new());
        let mut cluster = Self { meshd, directory, key, extra, nodes, watch: Watch::default(), relay };
        for _ in 0..count {
            cluster.add().await?;
        }
        let all: Vec<String> = (0..count).map(|node| cluster.reached_at(node).to_string()).collect();
        for node in &mut cluster.nodes {
            node.settings.insert("MESH__SEEDS".into(), all.join(","));
        }
        cluster.agreed(count).await?;
        Ok(cluster)
    }

    /// Starts one more node; does not wait for the others to agree.
    pub(crate) async fn add(&mut self) -> anyhow::Result<()> {
        let name = format!("n{}", self.nodes.len() + 1);
        let seeds: Vec<_> = (0..self.nodes.len()).map(|node| self.reached_at(node)).collect();
        let mut settings = settings(&name, &self.key, &seeds);
        settings.extend(self.extra.clone());
        if let Some(relay) = &self.relay {
            settings.insert("MESH__ADVERTISE".into(), relay.door(self.nodes.len()).to_string());
        }
        let (process, at) = start_node(&self.meshd, &name, &settings).await?;
        if let Some(relay) = &self.relay {
            relay.place(self.nodes.len(), at.mesh);
        }
        settings.insert("MESH__LISTEN".into(), at.mesh.to_string());
        self.watch.add(at.admin);
        self.nodes.push(Node { name, settings, process, at, serves: true, lives: 1, lines_taken: 0 });
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Where clients may connect, as `kill9-clients` reads it.
    pub(crate) fn doors(&self) -> String {
        let door = |node: &Node| if node.serves { node.at.client.to_string() } else { "-".to_owned() };
        self.nodes.iter().map(door).collect::<Vec<_>>().join(",")
    }

    /// Looks at the nodes for some time.
    pub(crate) async fn watch(&mut self, time: Duration) {
        self.watch.run(time).await;
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].serves = false;
        self.nodes[node].process.kill().await;
    }

    /// Waits until all but one node have a ring without that one.
    pub(crate) async fn agreed_without_one(&mut self) -> anyhow::Result<()> {
        self.agreed(self.nodes.len() - 1).await
    }

    /// Starts a node that has ended.
    pub(crate) async fn restart(&mut self, node: usize) -> anyhow::Result<()> {
        self.keep_log(node)?;
        let Node { name, settings, process, at, serves, lives, lines_taken } = &mut self.nodes[node];
        (*process, *at) = start_node(&self.meshd, name, settings).await?;
        *serves = true;
        *lives += 1;
        *lines_taken = 0;
        self.watch.put_back(node, at.admin);
        Ok(())
    }

    /// Waits until all have one ring, with this node in a life after `life`.
    pub(crate) async fn agreed_with(&mut self, node: usize, life: Option<u64>) -> anyhow::Result<()> {
        let (name, count) = (self.nodes[node].name.clone(), self.nodes.len());
        let agreed = self.watch.until(PATIENCE, |rings| {
            agree(rings, count) && rings.iter().flatten().all(|ring| ring.life_of(&name) > life)
        });
        ensure!(agreed.await, "no one ring with {name} within {PATIENCE:?}");
        Ok(())
    }

    /// The life of a node, as the others see it.
    pub(crate) fn life_of(&self, node: usize) -> Option<u64> {
        self.watch.life_of(&self.nodes[node].name)
    }

    /// `SIGSTOP`. Clients may still be sent to it: nobody knows.
    pub(crate) async fn stop(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].process.signal("STOP").await;
    }

    /// `SIGCONT`.
    pub(crate) async fn wake(&mut self, node: usize) {
        self.nodes[node].process.signal("CONT").await;
        self.watch.put_back(node, self.nodes[node].at.admin);
    }

    /// `SIGTERM`.
    pub(crate) async fn terminate(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].process.signal("TERM").await;
    }

    /// Waits for the end of a node that was asked for it.
    pub(crate) async fn ended(&mut self, node: usize) -> anyhow::Result<()> {
        let mut waited = Duration::ZERO;
        while !self.nodes[node].process.has_ended() {
            self.watch.run(LOOK_EVERY).await;
            waited += LOOK_EVERY;
            ensure!(waited < PATIENCE, "{} does not end within {PATIENCE:?}", self.nodes[node].name);
        }
        self.nodes[node].serves = false;
        let status = self.nodes[node].process.ended().await;
        ensure!(status.success(), "{} ended with {status}", self.nodes[node].name);
        Ok(())
    }

    /// Where the others reach a node.
    fn reached_at(&self, node: usize) -> SocketAddr {
        self.relay.as_ref().map_or(self.nodes[node].at.mesh, |relay| relay.door(node))
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// When they were not started behind one.
    pub(crate) fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("started behind a relay")
    }

    /// Waits until `done`, asked about each node's ring, holds; whether that was within `limit`.
    pub(crate) async fn until(&mut self, limit: Duration, done: impl FnMut(&[Option<Ring>]) -> bool) -> bool {
        self.watch.until(limit, done).await
    }

    /// What every node says of itself, by one of them; `None` when one does not answer.
    pub(crate) async fn holdings(&self, by: usize) -> Option<Holdings> {
        let answer = mesh_tests::http::get(self.nodes[by].at.admin, "/v1/status").await.ok()?;
        let told: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        let nodes = told["nodes"].as_array().filter(|nodes| nodes.len() == self.nodes.len())?;
        nodes.iter().try_fold(Holdings::default(), |sum, node| {
            let count = |what: &str| node["counts"][what].as_u64();
            Some(Holdings {
                rooms: sum.rooms + count("rooms")?,
                sessions: sum.sessions + count("sessions")?,
                misplaced: sum.misplaced + count("to_hand_over")?,
            })
        })
    }

    /// Takes what all nodes have logged since the last time: the node, the line.
    pub(crate) fn take_lines(&mut self, mut on: impl FnMut(usize, &str)) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.take_lines(|line| on(index, line));
        }
    }

    /// Where a node listens.
    pub(crate) fn at(&self, node: usize) -> Addresses {
        self.nodes[node].at
    }

    /// The process of a node that runs.
    pub(crate) fn pid(&self, node: usize) -> u32 {
        self.nodes[node].process.pid()
    }

    /// Waits until so many nodes have one ring of so many.
    pub(crate) async fn agreed(&mut self, count: usize) -> anyhow::Result<()> {
        let agreed = self.watch.until(PATIENCE, |rings| agree(rings, count)).await;
        ensure!(agreed, "no one ring of {count} nodes within {PATIENCE:?}");
        Ok(())
    }

    /// Fails when a node has ended that was not asked to.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if node.process.has_ended() {
                bail!("{} ended by itself", node.name);
            }
        }
        Ok(())
    }

    /// Keeps what all nodes have logged.
    pub(crate) fn keep_logs(&self) -> anyhow::Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.keep_log(node))
    }

    fn keep_log(&self, node: usize) -> anyhow::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let Node { name, process, lives, .. } = &self.nodes[node];
        let path = directory.join(format!("{name}.{lives}.log"));
        write(&path, &process.output().lines().join("\n"))
    }
}

/// The `meshd` to run: the one that is named, or the one beside this program.
///
/// # Errors
/// When it is not there.
pub(crate) fn program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let meshd = match named {
        Some(meshd) => meshd.to_owned(),
        None => std::env::current_exe()?.with_file_name("meshd"),
    };
    ensure!(meshd.is_file(), "{} is missing: build it, or name another by --meshd", meshd.display());
    Ok(meshd)
}

/// Writes a file whole.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
