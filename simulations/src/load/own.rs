//! Nodes that a command starts itself.
//!
//! Belongs here: how many and with what settings; which of them answers for a key; what they say of
//! themselves. Stays out: hurting them (`crate::processes`), clients.
//! Method: keys are placed by the nodes' own ring (`mesh_proto::ring`), built from their names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use mesh_proto::id::{NodeId, NodeRef, Placement};
use mesh_proto::ring::{Ring, RingNode, VNODES_DEFAULT};
use mesh_tests::http;
use tokio::task::{JoinHandle, spawn_local};

use super::Nodes;
use super::client::Door;
use crate::processes::{self, program};

/// The product that commands drive in nodes of their own.
pub(super) const PRODUCT: &str = "rooms";

/// Connections opened per second and target.
pub(super) const CONNECT_RATE: u32 = 1_500;

/// Between two looks of a [`Meter`].
const METER_EVERY: Duration = Duration::from_millis(100);

/// Names tried until one is placed as wanted.
const NAMES_TRIED_MAX: usize = 100_000;

/// Nodes that a command starts on loopback, and that end with it.
#[derive(Args, Clone, Debug)]
pub(super) struct Own {
    /// How many.
    #[arg(long = "nodes", default_value_t = 3)]
    pub(super) count: usize,
    /// A setting of every node by its name in docs/config.md; repeat for several.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(super) set: Vec<String>,
    /// The `meshd` to run; by default the one beside this program.
    #[arg(long)]
    pub(super) meshd: Option<PathBuf>,
}

/// Running nodes, called n1, n2, …; numbered from 0.
pub(super) struct Cluster {
    pub(super) nodes: processes::Nodes,
    own: Own,
}

impl Own {
    /// Starts them; returns when they agree.
    ///
    /// # Errors
    /// When a setting is none, or nodes do not start or agree.
    pub(super) async fn start(&self) -> anyhow::Result<Cluster> {
        let mut extra = BTreeMap::from([("LOG__FILTER".to_owned(), "warn".to_owned())]);
        for set in &self.set {
            let (name, value) =
                set.split_once('=').with_context(|| format!("--set {set}: want NAME=VALUE"))?;
            extra.insert(name.replace('.', "__").to_uppercase(), value.to_owned());
        }
        let meshd = program(self.meshd.as_deref())?;
        let nodes = processes::Nodes::start(meshd, None, self.count, extra).await?;
        Ok(Cluster { nodes, own: self.clone() })
    }
}

impl Nodes {
    /// The nodes that were named; without any, nodes started for this, which end with the second part.
    ///
    /// # Errors
    /// When they do not start.
    pub(super) async fn or_own(self) -> anyhow::Result<(Self, Option<Cluster>)> {
        if !self.targets.is_empty() {
            return Ok((self, None));
        }
        let cluster = self.own.start().await?;
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        let Self { connect_rate, .. } = self;
        Ok((Self { connect_rate, ..cluster.driven(&all) }, Some(cluster)))
    }
}

impl Cluster {
    /// Where clients of a node connect.
    pub(super) fn door(&self, node: usize) -> Door {
        let addr = self.nodes.at(node).client;
        Door { addr, host: addr.to_string(), product: PRODUCT.to_owned() }
    }

    /// These nodes as something to drive and to measure.
    pub(super) fn driven(&self, which: &[usize]) -> Nodes {
        Nodes {
            targets: which.iter().map(|&node| format!("ws://{}", self.nodes.at(node).client)).collect(),
            pids: which.iter().map(|&node| self.nodes.pid(node)).collect(),
            product: PRODUCT.to_owned(),
            connect_rate: CONNECT_RATE,
            own: self.own.clone(),
        }
    }

    /// What a node's `/metrics` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn numbers(&self, node: usize) -> anyhow::Result<Numbers> {
        let answer = http::get(self.nodes.at(node).admin, "/metrics").await?;
        ensure!(answer.status == 200, "/metrics: {}", answer.status);
        Ok(Numbers::read(&answer.body))
    }

    /// The sum over some nodes.
    ///
    /// # Errors
    /// When one does not answer.
    pub(super) async fn sum(&self, which: &[usize]) -> anyhow::Result<Numbers> {
        let mut sum = Numbers::default();
        for &node in which {
            sum.add(&self.numbers(node).await?);
        }
        Ok(sum)
    }
}

/// Numbers of a node, added up as they grow: what a link had counted is kept when the link has gone.
pub(super) struct Meter {
    grown: Rc<RefCell<Numbers>>,
    task: JoinHandle<()>,
}

impl Meter {
    /// Begins to count what the node with this admin listener does.
    pub(super) fn start(admin: SocketAddr) -> Self {
        let grown = Rc::new(RefCell::new(Numbers::default()));
        let into = grown.clone();
        let task = spawn_local(async move {
            let mut before: Option<Numbers> = None;
            loop {
                if let Ok(answer) = http::get(admin, "/metrics").await {
                    let now = Numbers::read(&answer.body);
                    if let Some(before) = &before {
                        into.borrow_mut().add_growth(before, &now);
                    }
                    before = Some(now);
                }
                tokio::time::sleep(METER_EVERY).await;
            }
        });
        Self { grown, task }
    }

    /// How much one of its numbers has grown.
    pub(super) fn grown(&self, name: &str) -> f64 {
        self.grown.borrow().of(name)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Numbers of `/metrics` by name, summed over their labels.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(BTreeMap<String, f64>);

impl Numbers {
    fn read(text: &str) -> Self {
        let mut sum = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.rsplit_once(' ')
                && let Ok(value) = value.parse::<f64>()
            {
                let family = name.split('{').next().unwrap_or(name);
                *sum.0.entry(family.to_owned()).or_default() += value;
            }
        }
        sum
    }

    /// One of them; 0 when it is not there.
    pub(super) fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// What has been added since `before`; links that went down meanwhile count as nothing.
    pub(super) fn since(&self, before: &Self, name: &str) -> f64 {
        (self.of(name) - before.of(name)).max(0.0)
    }

    fn add_growth(&mut self, before: &Self, now: &Self) {
        for name in now.0.keys() {
            *self.0.entry(name.clone()).or_default() += now.since(before, name);
        }
    }

    fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }
}

/// Which of some nodes owns a key, and which holds its copy, by number.
pub(super) struct Places(Ring);

impl Places {
    /// The ring of these nodes.
    pub(super) fn of(nodes: impl IntoIterator<Item = usize>) -> Self {
        let node = |node| RingNode { node: as_ref(node), zone: 0, weight: 1 };
        Self(Ring::new(nodes.into_iter().map(node), VNODES_DEFAULT))
    }

    /// Owner first, then the backup, then whoever follows.
    pub(super) fn holders(&self, placement: Placement) -> Vec<usize> {
        let number = |found: NodeRef| {
            let node = usize::try_from(found.incarnation).unwrap_or(usize::MAX);
            debug_assert_eq!(as_ref(node), found);
            node
        };
        self.0.replicas(placement, self.0.nodes().len()).into_iter().map(number).collect()
    }

    /// The first room `NAME-0`, `NAME-1`, … whose holders are as wanted.
    ///
    /// # Errors
    /// When there is none for long.
    pub(super) fn room(&self, name: &str, wanted: impl Fn(&[usize]) -> bool) -> anyhow::Result<String> {
        self.find(name, room_placement, wanted)
    }

    /// The first user `NAME-0`, `NAME-1`, … whose holders are as wanted.
    ///
    /// # Errors
    /// When there is none for long.
    pub(super) fn user(&self, name: &str, wanted: impl Fn(&[usize]) -> bool) -> anyhow::Result<String> {
        self.find(name, user_placement, wanted)
    }

    fn find(
        &self,
        name: &str,
        place: impl Fn(&str) -> Placement,
        wanted: impl Fn(&[usize]) -> bool,
    ) -> anyhow::Result<String> {
        (0..NAMES_TRIED_MAX)
            .map(|number| format!("{name}-{number}"))
            .find(|name| wanted(&self.holders(place(name))))
            .with_context(|| format!("no {name}-… is placed as wanted"))
    }
}

/// Where a room of [`PRODUCT`] lives.
pub(super) fn room_placement(room: &str) -> Placement {
    Placement::of_room(PRODUCT, "/", room)
}

/// Where a user of [`PRODUCT`] lives.
pub(super) fn user_placement(uid: &str) -> Placement {
    Placement::of_user(PRODUCT, uid)
}

/// Node `n1` is number 0. The incarnation, which places nothing, carries the number.
fn as_ref(node: usize) -> NodeRef {
    NodeRef { id: NodeId::of_name(&format!("n{}", node + 1)), incarnation: node as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_over_labels() {
        let numbers =
            Numbers::read("# HELP a b\nmeshd_x{shard=\"0\"} 2\nmeshd_x{shard=\"1\"} 3\nmeshd_y 1.5\n");
        assert_eq!((numbers.of("meshd_x"), numbers.of("meshd_y"), numbers.of("meshd_z")), (5.0, 1.5, 0.0));
    }

    #[test]
    fn keys_are_found_where_they_are_wanted() {
        let map = Places::of(0..3);
        let room = map.room("r", |at| at[..2] == [1, 2]).unwrap();
        assert_eq!(map.holders(room_placement(&room)), [1, 2, 0]);
        let user = map.user("u", |at| at[0] == 2).unwrap();
        assert_eq!(map.holders(user_placement(&user))[0], 2);
    }
}
