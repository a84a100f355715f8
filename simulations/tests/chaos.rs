//! A short chaos run with every test run, and the promise that a seed always tells the same story.
//!
//! More: `cargo run --release -p mesh-simulations -- chaos --nodes 9 --seeds 200`.

use std::sync::atomic::{AtomicU64, Ordering};

use mesh_simulations::cluster::Size;
use mesh_simulations::scenarios::{hunt, huntable, run};
use xxhash_rust::xxh3::xxh3_64;

/// Seeds of one test run; `MESH_SIM_SEEDS` sets another number.
const SEEDS: u64 = 500;

/// And so many more with nodes that ask for bindings.
const SEEDS_WITH_BINDINGS: u64 = 100;

/// Planted bugs that one test run hunts.
const HUNTS: usize = 4;

/// Each of them must be found within so many seeds.
const HUNT_SEEDS: u64 = 2_000;

/// Seeds that found something, held to everything.
fn strictly_clean(seeds: &[u64]) {
    for &seed in seeds {
        let verdict = run(seed, Size { strict: true, ..Size::small(seed) }, None);
        assert_eq!(verdict.violations.first().map(ToString::to_string), None, "seed={seed}");
    }
}

/// Runs the seeds on all cores; the sentence about the first that broke a promise.
fn first_failure(seeds: std::ops::Range<u64>, bindings: bool) -> Option<String> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return None;
                }
                let size = Size { strict: true, bindings, ..Size::small(seed) };
                if let Some(violation) = run(seed, size, None).violations.first() {
                    next.store(seeds.end, Ordering::Relaxed);
                    return Some(failure(seed, size, &violation.to_string()));
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
    });
    failures.into_iter().next()
}

fn failure(seed: u64, size: Size, violation: &str) -> String {
    format!(
        "seed {seed}: {violation}\n  cargo run --release -p mesh-simulations -- replay --seed {seed} --nodes {} \
         --clients {} --trouble {} --strict{}",
        size.nodes,
        size.clients,
        size.trouble.as_secs(),
        if size.bindings { " --bindings" } else { "" }
    )
}

#[test]
fn clusters_in_trouble_keep_their_promises() {
    let count = std::env::var("MESH_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(SEEDS);
    println!("seed=1..{}", count + 1);
    assert_eq!(first_failure(1..count + 1, false), None);
}

/// The same with nodes that ask for bindings, which makes other stories of the same seeds.
#[test]
fn bindings_keep_their_promises_in_trouble() {
    println!("seed=1..{}", SEEDS_WITH_BINDINGS + 1);
    assert_eq!(first_failure(1..SEEDS_WITH_BINDINGS + 1, true), None);
}

/// CI sets `MESH_COMMIT` to the commit's hash, so that every commit looks somewhere else.
#[test]
fn the_seeds_of_this_commit_keep_their_promises() {
    let Ok(commit) = std::env::var("MESH_COMMIT") else { return };
    let seed = xxh3_64(commit.as_bytes()) >> 1;
    println!("seed={seed}..{}", seed + 20);
    assert_eq!(first_failure(seed..seed + 20, false), None);
    assert_eq!(first_failure(seed..seed + 20, true), None);
}

/// A session whose owner was told to drop it was gone before its user's list and its edge were told.
#[test]
fn an_owner_that_drops_a_session_forgets_whose_it_was() {
    for seed in [53, 61, 114] {
        let verdict = run(seed, Size::small(seed), None);
        assert_eq!(verdict.violations.first().map(ToString::to_string), None, "seed={seed}");
    }
}

/// A gap was told to an edge, which then was declared down and came back under another incarnation with
/// the same clients: the gap still counts.
#[test]
fn what_an_edge_was_told_outlives_its_incarnation() {
    strictly_clean(&[943, 1740, 17744]);
}

/// A backup was given the copy of another owner, under a higher term, after its own owner's: nobody saw it.
#[test]
fn a_backup_holds_the_copy_of_its_owner() {
    strictly_clean(&[9277]);
}

/// All seeds of the cluster were started again while a node stood that is none: two clusters for 3 s.
#[test]
fn no_second_cluster_begins_beside_whoever_is_left() {
    strictly_clean(&[5272, 24232]);
}

/// What recovery has shown: answers to subscriptions of before, sessions asked for on behalf of transports
/// that were lost, an own stream resumed from two places, a merged session that was taken for attached.
#[test]
fn clients_that_come_back_go_on_and_miss_nothing() {
    for seed in [133, 228, 589, 866, 1504, 2158, 2589, 3046, 4964] {
        let verdict = run(seed, Size::small(seed), None);
        assert_eq!(verdict.violations.first().map(ToString::to_string), None, "seed={seed}");
    }
    let recovered = (1..6).map(|seed| run(seed, Size::small(seed), None).recovered);
    assert!(recovered.sum::<u64>() > 0, "nobody came back");
}

/// A room began a new history while a copy of it lived, at a node that was up and not on the ring yet; then all
/// of the older history came after it. (5198: owner and backup were gone together; one had only itself served.)
#[test]
fn what_is_appended_to_two_histories_is_no_order_of_one() {
    strictly_clean(&[2267, 5198, 17221]);
}

/// A shard answered what its node's next life had been asked in the name of the last one.
#[test]
fn what_a_next_life_is_asked_is_answered() {
    strictly_clean(&[4520]);
}

/// What had been fetched for a client that came back came again when another history was merged in.
#[test]
fn what_was_fetched_does_not_come_again() {
    strictly_clean(&[4713, 7377, 8453, 10094, 10165]);
}

/// What a merge brought was news to an edge that had begun after it, or had gone on after a hole.
#[test]
fn what_was_before_a_member_joined_does_not_come_after_it() {
    strictly_clean(&[3776, 5072, 5564, 8400, 9692, 12236, 16723, 19896]);
}

/// An answer of more than 256 packets was none to the simulated client.
#[test]
fn a_client_that_polls_takes_whatever_there_is() {
    strictly_clean(&[15923]);
}

/// An answer came without the event, in whose place its edge had been told of a hole.
#[test]
fn an_answer_does_not_wait_for_what_is_in_a_hole() {
    strictly_clean(&[20109]);
}

/// A question for a session came when its client was elsewhere by then: on a link that was broken, in a POST
/// through a node that had stood still.
#[test]
fn a_question_that_comes_late_takes_the_session_from_nobody() {
    strictly_clean(&[8270, 9200, 11708, 16109, 16386]);
}

/// A client came back on both sides of a cut; an owner was asked twice; two histories of a session had the same
/// numbers.
#[test]
fn a_live_transport_stays_whatever_two_owners_have_counted() {
    strictly_clean(&[3614, 5238, 13194, 17239, 17912, 19187]);
}

/// A polling client had been told of a hole through its edge, and went over to a WebSocket elsewhere.
#[test]
fn a_hole_moves_along_with_its_session() {
    strictly_clean(&[316, 8935]);
}

/// Which planted bugs are hunted, and on which seeds, changes with the commit. All of them:
/// `cargo run --release -p mesh-simulations --features mutants -- mutants`.
#[test]
fn planted_bugs_are_found() {
    let commit = std::env::var("MESH_COMMIT").unwrap_or_default();
    let draw = xxh3_64(commit.as_bytes());
    let from = draw >> 32;
    println!("seed={from}..{}", from + HUNT_SEEDS);
    let all: Vec<_> = huntable().into_iter().filter(|mutant| !mutant.is_rare()).collect();
    let first = usize::try_from(draw % all.len() as u64).unwrap_or(0);
    for at in first..first + HUNTS {
        let mutant = all[at % all.len()];
        let found = hunt(mutant, from..from + HUNT_SEEDS, 2);
        assert!(found.is_some(), "{mutant:?} is not found: {}", mutant.what());
    }
}

#[test]
fn the_same_seed_tells_the_same_story_twice() {
    for seed in 1..6 {
        let [one, other] = [0, 1].map(|_| run(seed, Size::small(seed), None));
        assert_eq!((one.trace, one.events), (other.trace, other.events), "seed={seed}");
        assert!(one.events > 100, "seed={seed}: nothing happened");
    }
    let [one, other] = [1, 4].map(|seed| run(seed, Size::small(1), None));
    assert_ne!(one.trace, other.trace);
}
