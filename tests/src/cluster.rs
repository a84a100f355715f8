//! Nodes of one cluster, as an operator has them.
//!
//! Belongs here: starting and ending nodes, learning their addresses, what they say of themselves.
//! Stays out: clients ([`crate::plain`], [`crate::js`]).
//! Invariants: each cluster has its own key, so that a port that the system gives out twice never
//! joins two tests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tokio::process::Command;

use crate::http;
use crate::plain::PlainClient;
use crate::process::{Process, binary};
use crate::wait::until;

/// Where a node listens, as it reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Clients.
    pub client: SocketAddr,
    /// Clients, by TLS.
    pub client_tls: Option<SocketAddr>,
    /// HTTP API.
    pub api: SocketAddr,
    /// `meshctl`, health, metrics.
    pub admin: SocketAddr,
    /// Other nodes, by UDP.
    pub mesh: SocketAddr,
}

impl Addresses {
    /// Reads the line that a supervised node prints once it listens.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let told: Value = serde_json::from_str(line).ok()?;
        let address = |what: &str| told[what].as_str()?.parse().ok();
        Some(Self {
            client: address("client")?,
            client_tls: address("client_tls"),
            api: address("api")?,
            admin: address("admin")?,
            mesh: address("mesh")?,
        })
    }
}

/// Settings of a node, as environment variables without `MESHD_`.
pub type Settings = BTreeMap<String, String>;

/// One node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub settings: Settings,
    /// Where it listens; of its last life when it is dead.
    pub at: Addresses,
    /// Its process; `None` once it has ended.
    pub process: Option<Process>,
}

impl Node {
    /// Starts a node and waits until it says where it listens.
    pub async fn start(name: &str, settings: Settings) -> Self {
        let mut process = spawn(name, &settings);
        let line = process.line("{\"name\":").await;
        let at = Addresses::from_line(&line).unwrap_or_else(|| panic!("no addresses in {line:?}"));
        Self { name: name.to_owned(), settings, at, process: Some(process) }
    }

    /// Its running process.
    ///
    /// # Panics
    /// When it has been ended.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Whether what it logged holds `text`.
    ///
    /// # Panics
    /// When it has been ended.
    #[must_use]
    pub fn logged(&self, text: &str) -> bool {
        self.process.as_ref().expect("a running node").output().has(text)
    }

    /// `GET` on its admin listener.
    ///
    /// # Errors
    /// What was seen instead of 200, for [`until`].
    pub async fn admin(&self, path: &str) -> Result<http::Answer, String> {
        match http::get(self.at.admin, path).await {
            Ok(answer) if answer.status == 200 => Ok(answer),
            Ok(answer) => Err(format!("{} {path}: {} {}", self.name, answer.status, answer.body)),
            Err(error) => Err(format!("{} {path}: {error}", self.name)),
        }
    }

    /// A client of the plain protocol that enters by this node.
    pub async fn client(&self, uid: &str) -> PlainClient {
        PlainClient::connect(self.at.client, uid).await
    }
}

/// Starts `meshd` with these settings and nothing else from the environment.
#[must_use]
pub fn spawn(name: &str, settings: &Settings) -> Process {
    spawn_program(&binary("meshd"), name, settings)
}

/// The same with the `meshd` at `program`.
#[must_use]
pub fn spawn_program(program: &Path, name: &str, settings: &Settings) -> Process {
    let mut command = Command::new(program);
    command.arg("--supervised").env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", std::env::temp_dir());
    command.envs(settings.iter().map(|(key, value)| (format!("MESHD_{key}"), value)));
    Process::start(name, &mut command)
}

/// Settings of a lone node called `name` on free loopback ports.
#[must_use]
pub fn settings(name: &str, key: &str, seeds: &[SocketAddr]) -> Settings {
    let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
    [
        ("NODE__NAME", name),
        ("NODE__SHARDS", "2"),
        ("DRAIN__ANNOUNCE", "0s"),
        ("MESH__KEY", key),
        ("MESH__SEEDS", &seeds.join(",")),
        ("MESH__LISTEN", "127.0.0.1:0"),
        ("CLIENT__LISTEN", "127.0.0.1:0"),
        ("API__LISTEN", "127.0.0.1:0"),
        ("ADMIN__LISTEN", "127.0.0.1:0"),
        ("LOG__FILTER", "debug,foca=info"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// A key nobody else uses: this process, and a running number.
#[must_use]
pub fn fresh_key() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{:032x}{:032x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Some nodes that should form one cluster.
#[derive(Debug)]
pub struct Cluster {
    /// All of them, dead ones too, in order of their start.
    pub nodes: Vec<Node>,
    key: String,
    extra: Settings,
}

impl Cluster {
    /// Starts `count` nodes and waits until they agree.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, &[]).await
    }

    /// The same, with settings for every node.
    pub async fn start_with(count: usize, extra: &[(&str, &str)]) -> Self {
        let extra = extra.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut cluster = Self { nodes: Vec::new(), key: fresh_key(), extra };
        for _ in 0..count {
            cluster.add().await;
        }
        cluster.agreed().await;
        cluster
    }

    /// The key of this cluster.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Settings for one more node.
    #[must_use]
    pub fn settings_for(&self, name: &str) -> Settings {
        let seeds: Vec<SocketAddr> = self.running().map(|node| node.at.mesh).collect();
        let mut settings = settings(name, &self.key, &seeds);
        settings.extend(self.extra.clone());
        settings
    }

    /// Starts one more node; does not wait for the others to agree.
    pub async fn add(&mut self) -> usize {
        let name = format!("n{}", self.nodes.len() + 1);
        let node = Node::start(&name, self.settings_for(&name)).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Those that have not been ended.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.process.is_some())
    }

    /// Client addresses of all running nodes.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.running().map(|node| node.at.client).collect()
    }

    /// `kill -9` of node `index`.
    pub async fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.nodes[index].process.take() {
            process.kill().await;
        }
    }

    /// `kill -9` of several nodes, none of which sees another one die first.
    pub async fn kill_together(&mut self, indexes: &[usize]) {
        for &index in indexes {
            self.nodes[index].process().start_kill();
        }
        for &index in indexes {
            self.kill(index).await;
        }
    }

    /// Starts a dead node again, under its name, at whatever ports are free.
    pub async fn restart(&mut self, index: usize) {
        let name = self.nodes[index].name.clone();
        assert!(self.nodes[index].process.is_none(), "{name} still runs");
        self.nodes[index] = Node::start(&name, self.settings_for(&name)).await;
    }

    /// Starts a dead node again, under its name and where its clients, backends and operators know it.
    pub async fn restart_in_place(&mut self, index: usize) {
        let dead = &self.nodes[index];
        assert!(dead.process.is_none(), "{} still runs", dead.name);
        let (name, at) = (dead.name.clone(), dead.at);
        let mut settings = self.settings_for(&name);
        for (setting, address) in [("CLIENT", at.client), ("API", at.api), ("ADMIN", at.admin)] {
            settings.insert(format!("{setting}__LISTEN"), address.to_string());
        }
        self.nodes[index] = Node::start(&name, settings).await;
    }

    /// Tells a node to stop and waits until it has drained and ended.
    pub async fn drain(&mut self, index: usize) {
        let process = self.nodes[index].process();
        process.signal("TERM").await;
        let ended = process.ended().await;
        assert!(ended.success(), "drained: {ended}");
        self.nodes[index].process = None;
    }

    /// Waits until every running node is ready, lists exactly the running ones, and all have the same
    /// ring digest, which is returned.
    pub async fn agreed(&self) -> String {
        let names: Vec<&str> = self.running().map(|node| node.name.as_str()).collect();
        self.wait_until("all nodes to agree", |seen| {
            let first = seen.first()?.1["ring_digest"].as_str()?.to_owned();
            let same = seen
                .iter()
                .all(|(_, status)| status["ring_digest"] == *first && status_names(status) == names);
            same.then_some(first)
        })
        .await
    }

    /// Waits until `seen`, given (name, status) of every running node, finds what it looks for.
    ///
    /// # Panics
    /// When it does not come; with the last states.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        mut seen: impl FnMut(&[(String, Value)]) -> Option<T>,
    ) -> T {
        let seen = RefCell::new(&mut seen);
        until(what, || async {
            let mut statuses = Vec::new();
            for node in self.running() {
                node.admin("/readyz").await?;
                statuses.push((node.name.clone(), node.admin("/v1/status").await?.json()));
            }
            let found = (seen.borrow_mut())(&statuses);
            found.ok_or_else(|| statuses.iter().map(|(name, status)| format!("\n{name}: {status}")).collect())
        })
        .await
    }
}

/// Names of the nodes that a status lists, in order.
#[must_use]
pub fn status_names(status: &Value) -> Vec<&str> {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut names: Vec<&str> = nodes.iter().filter_map(|node| node["name"].as_str()).collect();
    names.sort_unstable();
    names
}
