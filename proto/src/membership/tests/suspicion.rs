//! What becomes of suspicions: told to the suspect, forgotten with the life that raised them.

use super::net::{Net, addr};
use super::{is_down, millis, secs};

/// Two nodes; one declares the other down while they are cut, before the other one's own suspicion
/// has run out. The one that is reborn still holds its peer for suspect.
fn one_is_reborn_while_it_suspects_the_other(seed: u64) -> (Net, u16) {
    let mut net = Net::cluster(seed, 2, &[1, 2]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.split(&[1], &[2]);
    net.until(secs(3), |net| net.nodes.values().any(|n| n.machine.view().nodes.len() == 1));
    net.cut.clear();
    let reborn = if net.node(1).machine.view().nodes.len() == 1 { 2 } else { 1 };
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    (net, reborn)
}

#[test]
fn a_suspicion_of_a_former_life_does_not_come_true_later() {
    for seed in 0..20 {
        let (mut net, _) = one_is_reborn_while_it_suspects_the_other(seed);
        let said = [1, 2].map(|n| net.says(n, is_down));
        net.split(&[1], &[2]);
        net.run(millis(200));
        net.cut.clear();
        net.run(secs(3));
        assert_eq!([1, 2].map(|n| net.says(n, is_down)), said, "seed {seed}: {}", net.describe());
    }
}

#[test]
fn nobody_is_held_for_suspect_who_answers() {
    for seed in 0..20 {
        let (net, reborn) = one_is_reborn_while_it_suspects_the_other(seed);
        let view = net.nodes[&addr(reborn)].machine.view();
        assert!(view.nodes.iter().all(|n| !n.suspect), "seed {seed}: {view:?}");
    }
}
