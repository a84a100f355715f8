//! The nodes of a run: real processes, hurt and healed.
//!
//! Belongs here: starting, killing, stopping, restarting one node, and waiting until all agree again.
//! Stays out: clients, and when what happens to whom (`mod`).
//! Invariants: a node starts again under its name and mesh address, at other client ports; what it logged
//! in each life is kept in a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::cluster::{Addresses, Settings, fresh_key, settings};
use mesh_tests::process::Process;

use crate::drill::watch::Watch;
use crate::drill::{agree, start_node};

/// Agreement, and the end of a node that was asked to stop, are waited for this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a node that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The nodes, and what is seen of them.
pub(super) struct Nodes {
    meshd: PathBuf,
    directory: PathBuf,
    nodes: Vec<Node>,
    watch: Watch,
}

struct Node {
    name: String,
    settings: Settings,
    process: Process,
    at: Addresses,
    /// Whether clients may be sent to it.
    serves: bool,
    lives: usize,
}

impl Nodes {
    /// Starts `count` nodes; returns when they agree.
    pub(super) async fn start(
        meshd: PathBuf,
        directory: PathBuf,
        count: usize,
        log: &str,
    ) -> anyhow::Result<Self> {
        let key = fresh_key();
        let mut cluster = Self { meshd, directory, nodes: Vec::new(), watch: Watch::default() };
        let mut seeds = Vec::new();
        for number in 1..=count {
            let name = format!("n{number}");
            let mut settings = settings(&name, &key, &seeds);
            settings.insert("LOG__FILTER".into(), log.to_owned());
            let (process, at) = start_node(&cluster.meshd, &name, &settings).await?;
            settings.insert("MESH__LISTEN".into(), at.mesh.to_string());
            seeds.push(at.mesh);
            cluster.watch.add(at.admin);
            cluster.nodes.push(Node { name, settings, process, at, serves: true, lives: 1 });
        }
        let all: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        for node in &mut cluster.nodes {
            node.settings.insert("MESH__SEEDS".into(), all.join(","));
        }
        cluster.agreed(count).await?;
        Ok(cluster)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Where clients may connect, as `kill9-clients` reads it.
    pub(super) fn doors(&self) -> String {
        let door = |node: &Node| if node.serves { node.at.client.to_string() } else { "-".to_owned() };
        self.nodes.iter().map(door).collect::<Vec<_>>().join(",")
    }

    /// Looks at the nodes for some time.
    pub(super) async fn watch(&mut self, time: Duration) {
        self.watch.run(time).await;
    }

    /// `kill -9`.
    pub(super) async fn kill(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].serves = false;
        self.nodes[node].process.kill().await;
    }

    /// Waits until all but one node have a ring without that one.
    pub(super) async fn agreed_without_one(&mut self) -> anyhow::Result<()> {
        self.agreed(self.nodes.len() - 1).await
    }

    /// Starts a node that has ended.
    pub(super) async fn restart(&mut self, node: usize) -> anyhow::Result<()> {
        self.keep_log(node)?;
        let Node { name, settings, process, at, serves, lives } = &mut self.nodes[node];
        (*process, *at) = start_node(&self.meshd, name, settings).await?;
        *serves = true;
        *lives += 1;
        self.watch.put_back(node, at.admin);
        Ok(())
    }

    /// Waits until all have one ring, with this node in a life after `life`.
    pub(super) async fn agreed_with(&mut self, node: usize, life: Option<u64>) -> anyhow::Result<()> {
        let (name, count) = (self.nodes[node].name.clone(), self.nodes.len());
        let agreed = self.watch.until(PATIENCE, |rings| {
            agree(rings, count) && rings.iter().flatten().all(|ring| ring.life_of(&name) > life)
        });
        ensure!(agreed.await, "no one ring with {name} within {PATIENCE:?}");
        Ok(())
    }

    /// The life of a node, as the others see it.
    pub(super) fn life_of(&self, node: usize) -> Option<u64> {
        self.watch.life_of(&self.nodes[node].name)
    }

    /// `SIGSTOP`. Clients may still be sent to it: nobody knows.
    pub(super) async fn stop(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].process.signal("STOP").await;
    }

    /// `SIGCONT`.
    pub(super) async fn wake(&mut self, node: usize) {
        self.nodes[node].process.signal("CONT").await;
        self.watch.put_back(node, self.nodes[node].at.admin);
    }

    /// `SIGTERM`.
    pub(super) async fn terminate(&mut self, node: usize) {
        self.watch.leave_out(node);
        self.nodes[node].process.signal("TERM").await;
    }

    /// Waits for the end of a node that was asked for it.
    pub(super) async fn ended(&mut self, node: usize) -> anyhow::Result<()> {
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

    async fn agreed(&mut self, count: usize) -> anyhow::Result<()> {
        let agreed = self.watch.until(PATIENCE, |rings| agree(rings, count)).await;
        ensure!(agreed, "no one ring of {count} nodes within {PATIENCE:?}");
        Ok(())
    }

    /// Fails when a node has ended that was not asked to.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if node.process.has_ended() {
                bail!("{} ended by itself", node.name);
            }
        }
        Ok(())
    }

    /// Keeps what all nodes have logged.
    pub(super) fn keep_logs(&self) -> anyhow::Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.keep_log(node))
    }

    fn keep_log(&self, node: usize) -> anyhow::Result<()> {
        let Node { name, process, lives, .. } = &self.nodes[node];
        let path = self.directory.join(format!("{name}.{lives}.log"));
        write(&path, &process.output().lines().join("\n"))
    }
}

/// Writes a file whole.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
