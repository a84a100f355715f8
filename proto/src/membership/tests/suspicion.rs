//! What becomes of suspicions: told to the suspect, forgotten with the life that raised them.

use super::net::Net;
use super::{is_down, millis, secs};

/// Node 1 is cut from the two others until one of them declares it down; it takes another life while
/// it still suspects them, and they it.
fn one_is_reborn_while_it_suspects_the_others(seed: u64) -> Net {
    let mut net = Net::cluster(seed, 3, &[1, 2]);
    net.until(secs(3), Net::agrees);
    net.run(secs(2));
    net.split(&[1], &[2, 3]);
    let gives_up = |n: u16| move |net: &Net| net.says(n, is_down) > 0;
    net.until(secs(3), |net| gives_up(1)(net) || gives_up(2)(net) || gives_up(3)(net));
    net.cut.clear();
    net.until(secs(4), Net::agrees);
    net.run(secs(2));
    net
}

#[test]
fn a_suspicion_of_a_former_life_does_not_come_true_later() {
    for seed in 0..20 {
        let mut net = one_is_reborn_while_it_suspects_the_others(seed);
        let said = [1, 2, 3].map(|n| net.says(n, is_down));
        for _ in 0..3 {
            net.split(&[1], &[2, 3]);
            net.run(millis(250));
            net.cut.clear();
            net.run(secs(2));
        }
        assert_eq!([1, 2, 3].map(|n| net.says(n, is_down)), said, "seed {seed}: {}", net.describe());
    }
}

#[test]
fn nobody_is_held_for_suspect_who_answers() {
    for seed in 0..20 {
        let net = one_is_reborn_while_it_suspects_the_others(seed);
        for node in net.nodes.values() {
            let view = node.machine.view();
            assert!(view.nodes.iter().all(|n| !n.suspect), "seed {seed}: {}", net.describe());
        }
    }
}
