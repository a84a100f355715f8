//! Behaviour of whole memberships on a virtual network.

mod hostile;
mod net;
mod starvation;
mod suspicion;

use std::time::Duration;

use net::{Net, addr, config};

use super::{Input, Mismatch, Notice};
use crate::id::NodeId;
use crate::keys::ClusterKey;
use crate::view::NodeState;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn is_down(notice: &Notice) -> bool {
    matches!(notice, Notice::PeerDown(_) | Notice::PeerRenamed { .. } | Notice::Rejoined { .. })
}

#[test]
fn a_node_without_seeds_begins_at_once() {
    let mut net = Net::cluster(1, 1, &[]);
    assert!(net.agrees(), "{}", net.describe());
    assert_eq!(net.says(1, |n| *n == Notice::Began), 1);
    net.run(secs(60));
    assert!(net.agrees());
}

#[test]
fn a_node_whose_only_seed_is_itself_begins_at_once() {
    let net = Net::cluster(1, 1, &[1]);
    assert!(net.agrees(), "{}", net.describe());
}

#[test]
fn nodes_join_through_a_seed_that_began() {
    let mut net = Net::cluster(1, 5, &[1]);
    let took = net.until(secs(3), Net::agrees);
    assert!(took < secs(1), "{took:?}");
    assert_eq!(net.says(2, |n| matches!(n, Notice::Joined { .. })), 1);
}

#[test]
fn three_nodes_that_all_name_all_three_come_up_as_one_cluster() {
    for seed in 0..20 {
        let mut net = Net::cluster(seed, 3, &[1, 2, 3]);
        net.until(secs(3), Net::agrees);
        let began = (1..=3).map(|n| net.says(n, |n| *n == Notice::Began)).sum::<usize>();
        assert_eq!(began, 1, "seed {seed}");
    }
}

#[test]
fn two_nodes_that_name_each_other_and_a_third_come_up() {
    let mut net = Net::new(3);
    net.start(1, &[2]);
    net.run(secs(7));
    assert_eq!(net.node(1).machine.view().nodes[0].state(), NodeState::Joining);
    net.start(3, &[1, 2]);
    net.run(secs(5));
    net.start(2, &[1]);
    net.until(secs(4), Net::agrees);
    let began = (1..=3).map(|n| net.says(n, |n| *n == Notice::Began)).sum::<usize>();
    assert_eq!((began, net.says(3, |n| *n == Notice::Began)), (1, 0), "nobody waits for 3");
}

#[test]
fn nodes_that_name_each_other_in_a_ring_come_up() {
    let mut net = Net::new(3);
    for n in 1..=4 {
        net.start(n, &[n % 4 + 1]);
    }
    net.until(secs(5), Net::agrees);
    let began = (1..=4).map(|n| net.says(n, |n| *n == Notice::Began)).sum::<usize>();
    assert_eq!(began, 1);
}

#[test]
fn with_one_seed_of_three_missing_the_majority_begins() {
    let mut net = Net::cluster(1, 2, &[1, 2, 3]);
    net.run(secs(4));
    assert!(net.nodes.values().all(|n| n.machine.view().nodes[0].state() == NodeState::Joining));
    net.until(secs(4), Net::agrees);
    net.start(3, &[1, 2, 3]);
    net.until(secs(2), Net::agrees);
}

#[test]
fn a_node_that_reaches_no_seed_owns_nothing_says_so_and_joins_when_one_returns() {
    let mut net = Net::new(1);
    net.start(2, &[1]);
    net.run(secs(130));
    let view = net.node(2).machine.view().clone();
    assert!(view.ring.nodes().is_empty() && view.nodes[0].state() == NodeState::Joining);
    assert_eq!(net.says(2, |n| matches!(n, Notice::NoSeedAnswers { .. })), 3, "at 3, 63 and 123 s");
    net.start(1, &[]);
    net.until(secs(3), Net::agrees);
}

#[test]
fn forty_nodes_join_at_once_under_heavy_loss() {
    let mut net = Net::new(5);
    net.loss = 0.2;
    for n in 1..=40 {
        net.start(n, &[1, 2, 3]);
    }
    net.until(secs(8), Net::agrees);
}

#[test]
fn a_killed_node_is_noticed_by_all_within_about_a_second_and_nobody_else_is_blamed() {
    for count in [3, 9] {
        let mut net = Net::cluster(count.into(), count, &[1]);
        net.until(secs(3), Net::agrees);
        net.run(secs(2));
        net.kill(2);
        let took = net.until(secs(3), |net| {
            net.nodes.values().all(|n| n.machine.view().nodes.len() == usize::from(count) - 1)
        });
        assert!(took < millis(1_600), "{took:?}");
        net.run(secs(20));
        assert!(net.agrees());
        assert_eq!(net.says(1, is_down), 1);
    }
}

#[test]
fn a_restart_under_the_same_name_and_address_is_seen_as_another_life_at_once() {
    let mut net = Net::cluster(1, 4, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(1));
    net.kill(3);
    net.run(millis(50));
    net.start(3, &[1]);
    let took = net.until(secs(2), |net| {
        net.agrees()
            && net.nodes.values().all(|n| n.machine.view().nodes.iter().any(|n| n.node.incarnation == 2))
    });
    assert!(took < millis(700), "{took:?}");
    assert_eq!(net.says(2, |n| matches!(n, Notice::PeerRenamed { .. })), 1);
    assert_eq!(net.says(2, |n| matches!(n, Notice::PeerDown(_))), 0);
}

#[test]
fn a_restart_takes_an_incarnation_above_the_last_even_with_its_clock_set_back() {
    let mut net = Net::new(1);
    net.start(1, &[]);
    let mut started_late = config(2, "n2", &[1]);
    started_late.me.incarnation = 1_000_000;
    net.start_as(started_late);
    net.until(secs(3), Net::agrees);
    net.kill(2);
    net.start(2, &[1]);
    net.until(secs(3), Net::agrees);
    assert_eq!(net.node(2).machine.view().me.incarnation, 1_000_001);
}

#[test]
fn a_first_node_that_restarts_without_seeds_finds_its_cluster_again() {
    for incarnation in [1, 5] {
        let mut net = Net::cluster(1, 4, &[1]);
        net.until(secs(3), Net::agrees);
        net.run(secs(3));
        net.kill(1);
        let mut again = config(1, "n1", &[]);
        again.me.incarnation = incarnation;
        net.start_as(again);
        net.run(millis(500));
        net.until(secs(10), Net::agrees);
    }
}

#[test]
fn suspicion_is_refuted_when_datagrams_are_lost() {
    let mut net = Net::cluster(11, 3, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.loss = 0.2;
    net.run(secs(120));
    let suspected: u64 = net.nodes.values().map(|n| n.machine.stats().suspicions).sum();
    assert!(suspected > 0, "the test must see suspicions");
    assert!((1..=3).all(|n| net.says(n, is_down) == 0), "{}", net.describe());
}

#[test]
fn a_cut_between_two_nodes_that_both_see_a_third_changes_nothing() {
    let mut net = Net::cluster(1, 3, &[3]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.split(&[1], &[2]);
    net.run(secs(60));
    assert!(net.agrees() && (1..=3).all(|n| net.says(n, is_down) == 0), "{}", net.describe());
}

#[test]
fn one_way_loss_between_two_nodes_changes_nothing() {
    let mut net = Net::cluster(1, 4, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.cut.push((addr(1), addr(2)));
    net.run(secs(60));
    assert!(net.agrees() && (1..=4).all(|n| net.says(n, is_down) == 0), "{}", net.describe());
}

#[test]
fn both_sides_of_a_partition_go_on_and_become_one_again() {
    let mut net = Net::cluster(1, 6, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.split(&[1, 2, 3], &[4, 5, 6]);
    net.run(secs(20));
    assert!(net.nodes.values().all(|n| n.machine.view().ring.nodes().len() == 3), "{}", net.describe());
    net.cut.clear();
    let took = net.until(secs(15), Net::agrees);
    assert!(took < secs(10), "{took:?}");
}

#[test]
fn a_pair_that_is_cut_goes_on_alone_and_heals() {
    let mut net = Net::cluster(1, 2, &[1, 2]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.split(&[1], &[2]);
    net.run(secs(300));
    assert!(net.nodes.values().all(|n| n.machine.view().ring.nodes().len() == 1));
    net.cut.clear();
    net.until(secs(10), Net::agrees);
}

#[test]
fn two_clusters_that_began_apart_find_each_other_by_their_seeds() {
    let mut net = Net::new(1);
    net.split(&[1, 2], &[3, 4]);
    net.start(1, &[]);
    net.start(2, &[1]);
    net.start(3, &[]);
    net.start(4, &[3]);
    net.run(secs(3));
    net.cut.clear();
    net.run(secs(3));
    net.input(2, Input::Seeds(vec![addr(1), addr(3)]));
    net.until(secs(8), Net::agrees);
    assert!((1..=4).all(|n| net.says(n, is_down) == 0), "merging renames nobody");
}

/// Simulation seed 5272: one node stood while its seeds were started again, and they began without it.
#[test]
fn seeds_that_all_start_again_join_whoever_is_left() {
    for seed in 0..20 {
        let mut net = Net::cluster(seed, 4, &[1, 2, 3]);
        net.until(secs(3), Net::agrees);
        (1..=3).for_each(|n| net.kill(n));
        net.run(secs(3) + millis(250 * seed));
        (1..=3).for_each(|n| net.start(n, &[1, 2, 3]));
        net.until(secs(3), Net::agrees);
        let began = (1..=3).map(|n| net.says(n, |n| *n == Notice::Began)).sum::<usize>();
        assert_eq!(began, 0, "seed {seed}: {}", net.describe());
    }
}

#[test]
fn a_paused_node_finds_itself_fenced_and_rejoins_without_blaming_others() {
    for pause in [2, 5, 120] {
        let mut net = Net::cluster(1, 4, &[1]);
        net.until(secs(3), Net::agrees);
        net.run(secs(2));
        net.node(3).paused = true;
        net.run(secs(pause));
        assert_eq!(net.node(1).machine.view().nodes.len(), 3);
        net.resume(3);
        net.until(secs(5), Net::agrees);
        assert_eq!(net.says(3, |n| matches!(n, Notice::Rejoined { .. })), 1, "{}", net.describe());
        assert_eq!(net.says(3, |n| matches!(n, Notice::PeerDown(_))), 0);
        assert_eq!(net.node(1).machine.view().nodes.iter().filter(|n| n.node.incarnation > 1).count(), 1);
    }
}

#[test]
fn a_short_pause_harms_nobody() {
    let mut net = Net::cluster(1, 5, &[1]);
    net.until(secs(3), Net::agrees);
    for round in 0..20 {
        net.run(millis(1_700 + 37 * round));
        net.node(3).paused = true;
        net.run(millis(400));
        net.resume(3);
    }
    net.run(secs(3));
    assert!((1..=5).all(|n| net.says(n, is_down) == 0), "{}", net.describe());
    assert!(net.node(3).machine.stats().late >= 10);
}

#[test]
fn draining_leaves_the_ring_and_can_be_taken_back() {
    let mut net = Net::cluster(1, 3, &[1]);
    net.until(secs(3), Net::agrees);
    net.input(2, Input::Drain);
    net.until(secs(1), |net| net.nodes.values().all(|n| n.machine.view().ring.nodes().len() == 2));
    assert!(net.nodes.values().all(|n| n.machine.view().nodes.len() == 3));
    net.input(2, Input::CancelDrain);
    net.until(secs(1), Net::agrees);
}

#[test]
fn a_node_that_leaves_is_gone_at_once_and_may_come_back() {
    let mut net = Net::cluster(1, 5, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(1));
    net.input(4, Input::Leave);
    net.run(millis(300));
    assert_eq!(net.says(4, |n| *n == Notice::Left), 1);
    assert_eq!(net.node(4).machine.next_deadline(), None);
    net.kill(4);
    net.until(millis(300), Net::agrees);
    net.start(4, &[1]);
    net.until(secs(2), Net::agrees);
}

#[test]
fn a_node_that_leaves_is_told_from_one_that_died() {
    let left = |notice: &Notice| matches!(notice, Notice::PeerLeft(peer) if peer.name == "n4");
    for drains_first in [false, true] {
        let mut net = Net::cluster(1, 5, &[1]);
        net.until(secs(3), Net::agrees);
        net.run(secs(1));
        if drains_first {
            net.input(4, Input::Drain);
            net.run(secs(1));
        }
        net.input(4, Input::Leave);
        net.run(millis(300));
        net.kill(4);
        net.run(secs(3));
        for n in [1, 2, 3, 5] {
            assert_eq!((net.says(n, left), net.says(n, is_down)), (1, 0), "{}", net.describe());
            assert_eq!(net.says(n, |n| matches!(n, Notice::PeerSuspect(_))), 0);
        }
    }
}

#[test]
fn a_node_that_dies_while_it_drains_is_down_not_gone() {
    let mut net = Net::cluster(1, 5, &[1]);
    net.until(secs(3), Net::agrees);
    net.input(4, Input::Drain);
    net.run(secs(1));
    net.kill(4);
    net.run(secs(3));
    for n in [1, 2, 3, 5] {
        let left = net.says(n, |n| matches!(n, Notice::PeerLeft(_)));
        assert_eq!((left, net.says(n, is_down)), (0, 1), "{}", net.describe());
    }
}

#[test]
fn the_second_holder_of_a_live_name_stops_within_some_seconds_and_the_first_is_unhurt() {
    let mut net = Net::cluster(1, 3, &[1]);
    net.until(secs(3), Net::agrees);
    net.start_as(config(9, "n2", &[1]));
    let taken = |n: &Notice| matches!(n, Notice::NameTaken { holder, .. } if *holder == addr(2));
    net.until(secs(4), |net| net.says(9, taken) == 1);
    assert_eq!(net.node(9).machine.next_deadline(), None, "it has stopped");
    net.kill(9);
    assert!(net.agrees() && net.says(2, is_down) == 0 && net.says(1, is_down) == 0);
}

#[test]
fn a_name_whose_holder_dies_or_leaves_is_taken_over_elsewhere() {
    for leaves in [false, true] {
        let mut net = Net::cluster(1, 3, &[1]);
        net.until(secs(3), Net::agrees);
        net.run(secs(1));
        net.start_as(config(9, "n2", &[1]));
        net.run(millis(500));
        if leaves {
            net.input(2, Input::Leave);
        }
        net.kill(2);
        net.until(secs(4), Net::agrees);
        assert_eq!(net.node(9).machine.view().me.incarnation, 2);
    }
}

#[test]
fn of_two_nodes_that_became_members_under_one_name_one_stops() {
    let mut net = Net::new(1);
    net.start(1, &[]);
    net.start_as(config(2, "twin", &[]));
    net.start_as(config(3, "twin", &[]));
    net.run(secs(1));
    net.input(2, Input::Seeds(vec![addr(1)]));
    net.input(3, Input::Seeds(vec![addr(1)]));
    net.until(secs(20), |net| net.says(3, |n| matches!(n, Notice::NameTaken { .. })) == 1);
    net.kill(3);
    net.until(secs(15), Net::agrees);
    assert_eq!(net.says(2, |n| matches!(n, Notice::NameTaken { .. })), 0);
}

#[test]
fn a_node_with_another_key_cluster_or_protocol_is_kept_out_and_both_sides_say_why() {
    let mut net = Net::cluster(1, 2, &[1]);
    net.until(secs(3), Net::agrees);
    let mut other_key = config(3, "n3", &[1]);
    other_key.cluster_key = ClusterKey::new([8; 32]);
    let mut other_cluster = config(4, "n4", &[1]);
    other_cluster.cluster_id = 2;
    net.start_as(other_key);
    net.start_as(other_cluster);
    net.run(secs(50));
    let by_key = |n: &Notice| {
        matches!(
            n,
            Notice::Refusing { why: Mismatch::Key { .. }, .. }
                | Notice::Refused { why: Mismatch::Key { .. }, .. }
        )
    };
    let by_cluster = |n: &Notice| {
        matches!(
            n,
            Notice::Refusing { why: Mismatch::Cluster { .. }, .. }
                | Notice::Refused { why: Mismatch::Cluster { .. }, .. }
        )
    };
    assert_eq!((net.says(1, by_key), net.says(3, by_key)), (1, 1), "{}", net.describe());
    assert_eq!((net.says(1, by_cluster), net.says(4, by_cluster)), (1, 1));
    assert_eq!(net.node(1).machine.view().nodes.len(), 2);
    assert_eq!(net.node(3).machine.view().nodes[0].state(), NodeState::Joining);
}

#[test]
fn each_node_hears_the_ring_digests_of_the_others() {
    let mut net = Net::cluster(1, 4, &[1]);
    net.until(secs(3), Net::agrees);
    net.run(secs(3));
    let ring = net.node(1).machine.view().ring.digest();
    for node in net.nodes.values() {
        assert_eq!(node.machine.digests().len(), 3);
        assert!(node.machine.digests().values().all(|heard| heard.digest == ring));
    }
}

#[test]
fn announced_records_reach_everybody() {
    let mut net = Net::cluster(1, 4, &[1]);
    net.until(secs(3), Net::agrees);
    for node in net.nodes.values() {
        for seen in &node.machine.view().nodes {
            let record = seen.record.as_ref().unwrap();
            assert_eq!(NodeId::of_name(&record.name), seen.node.id);
            assert_eq!((record.shards, record.api_addr.as_str()), (2, "127.0.0.1:8002"));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut net = Net::cluster(9, 6, &[1, 2]);
        net.loss = 0.1;
        net.run(secs(5));
        net.kill(3);
        net.run(secs(5));
        net.nodes.values().map(|n| format!("{:?} {:?}", n.machine.stats(), n.notices)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
