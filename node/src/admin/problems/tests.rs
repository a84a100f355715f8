use mesh_proto::id::{NodeId, NodeRef};
use mesh_proto::view::NodeState;

use super::super::cluster::LinkFact;
use super::super::tests::{node, view_of};
use super::*;

/// A healthy cluster of three, seen from `a`, to be spoilt by each test.
struct Scene {
    nodes: Vec<NodeInfo>,
    mesh: MeshFacts,
    shards: Vec<(ShardIx, usize, bool)>,
    places: Descriptors,
    backups_silent: u64,
    settings: Vec<String>,
    problems: Problems,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let nodes = ["a", "b", "c"].map(|name| node(name, NodeState::Active)).to_vec();
        let digest = view_of(&nodes).ring.digest();
        let peers = [&nodes[1], &nodes[2]];
        let mesh = MeshFacts {
            digests: peers.iter().map(|n| (n.node.id, digest)).collect(),
            gossip: mesh_proto::membership::Stats { late: 3, mismatched: 3, ..Default::default() },
            links: peers.iter().map(|n| link(n.node)).collect(),
        };
        let shards = vec![(ShardIx(0), 0, true), (ShardIx(1), 0, true)];
        let places = Descriptors { connections: 10, connections_max: 1_000, fd_limit: 100_000 };
        Self {
            nodes,
            mesh,
            shards,
            places,
            backups_silent: 0,
            settings: Vec::new(),
            problems: Problems::default(),
            start: Instant::now(),
        }
    }

    /// Others of the view, agreed upon at once.
    fn become_nodes(&mut self, nodes: Vec<NodeInfo>) {
        self.nodes = nodes;
        let digest = view_of(&self.nodes).ring.digest();
        self.mesh.digests.values_mut().for_each(|heard| *heard = digest);
    }

    fn lose(&mut self, name: &str) {
        let left = self.nodes.iter().filter(|node| node.name() != name).cloned().collect();
        self.become_nodes(left);
    }

    /// What is shown `secs` after the start.
    fn at(&mut self, secs: u64) -> Vec<String> {
        let view = view_of(&self.nodes);
        let looked = Looked {
            view: &view,
            mesh: Some(&self.mesh),
            shards: &self.shards,
            descriptors: self.places,
            backups_silent: self.backups_silent,
            settings: &self.settings,
        };
        self.problems.look(self.start + Duration::from_secs(secs), &looked);
        self.problems.shown().iter().map(|found| found.problem.what.clone()).collect()
    }
}

fn link(peer: NodeRef) -> LinkFact {
    LinkFact {
        peer,
        connected: true,
        black_holes: 0,
        lost_packets: 0,
        sent_bytes: 0,
        received_bytes: 0,
        sent_datagrams: 0,
        connections_total: 1,
        sent_total: 0,
        resent_total: 0,
        received_total: 0,
        resets_total: 0,
        unconfirmed_bytes: 0,
    }
}

#[test]
fn a_healthy_cluster_has_no_problems() {
    let mut scene = Scene::new();
    assert!(scene.at(0).is_empty() && scene.at(100).is_empty());
}

#[test]
fn each_fault_is_named_after_its_time_and_goes_with_it() {
    type Spoil = fn(&mut Scene);
    let cases: [(&str, u64, Spoil); 11] = [
        ("b does not answer probes", 0, |s| s.nodes[1].suspect = true),
        ("has not announced itself", 2, |s| s.nodes[2].record = None),
        ("c has another ring", 10, |s| {
            s.mesh.digests.insert(NodeId::of_name("c"), 7);
        }),
        ("no link to b", 2, |s| s.mesh.links[0].connected = false),
        ("full-sized datagrams to c vanish", 0, |s| s.mesh.links[1].black_holes = 2),
        ("shard 1 of this node does not answer", 0, |s| s.shards[1].2 = false),
        ("shard 0 of this node is behind", 2, |s| s.shards[0].1 = 3_000),
        ("950 of 1000 connections", 0, |s| s.places.connections = 950),
        ("the process may have 1064 descriptors", 0, |s| {
            s.places = Descriptors { connections: 901, connections_max: 10_000, fd_limit: 1_064 };
        }),
        ("this node has not joined", 10, |s| s.nodes[0] = node("a", NodeState::Joining)),
        ("gossip ran late", 0, |s| s.mesh.gossip.late += 1),
    ];
    for (words, after, spoil) in cases {
        let mut scene = Scene::new();
        assert!(scene.at(0).is_empty(), "{words}");
        spoil(&mut scene);
        // A ring without one of its nodes differs from those heard: that is another story's problem.
        if !words.contains("another ring") {
            scene.become_nodes(scene.nodes.clone());
        }
        let first = scene.at(1);
        assert_eq!(first.len(), usize::from(after == 0), "{words}: {first:?}");
        let then = scene.at(1 + after);
        assert!(then.len() == 1 && then[0].contains(words), "{words}: {then:?}");
        let since = scene.problems.shown()[0].since;
        assert_eq!(since, scene.start + Duration::from_secs(1), "{words}");
        let healthy = Scene::new();
        let late = scene.mesh.gossip.late;
        scene = Scene { problems: scene.problems, start: scene.start, ..healthy };
        scene.mesh.gossip.late = late;
        assert!(scene.at(100).is_empty(), "{words}");
    }
}

#[test]
fn what_comes_and_goes_within_its_time_is_not_shown() {
    let mut scene = Scene::new();
    for secs in 0..60 {
        scene.mesh.links[0].connected = secs % 2 == 0;
        assert!(scene.at(secs).is_empty());
    }
}

#[test]
fn a_node_that_dies_is_spoken_of_until_it_is_back_and_one_that_drains_is_not() {
    let mut scene = Scene::new();
    scene.at(0);
    let full = scene.nodes.clone();
    scene.lose("b");
    assert_eq!(scene.at(1), ["b went down without draining"]);
    assert_eq!(scene.at(599).len(), 1);
    let mut back = full.clone();
    back[1].node.incarnation = 2;
    scene.become_nodes(back);
    assert!(scene.at(600).is_empty());

    scene.lose("c");
    assert_eq!(scene.at(601).len(), 1);
    assert!(scene.at(1_202).is_empty(), "forgotten");

    let mut scene = Scene::new();
    let mut draining = full;
    draining[2] = node("c", NodeState::Draining);
    scene.become_nodes(draining);
    scene.at(0);
    scene.lose("c");
    assert!(scene.at(1).is_empty());
}

#[test]
fn a_backup_that_owes_an_answer_is_told_at_once_and_forgotten_when_it_has_answered() {
    let mut scene = Scene::new();
    assert_eq!(scene.at(0), Vec::<String>::new());
    scene.backups_silent = 1;
    assert!(scene.at(1)[0].contains("owes an answer"));
    scene.backups_silent = 0;
    assert_eq!(scene.at(2), Vec::<String>::new());
}
