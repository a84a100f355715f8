//! What `kill9` checks, with every test run: three kills, transports left half open, a cut.
//!
//! More: `cargo run --release -p mesh-simulations -- kill9 --rounds 100`.

use mesh_tests::process::binary;
use tokio::process::Command;

/// Three nodes and 42 clients; what was printed when no promise was broken.
async fn kill9(mode: &str, rounds: usize) -> String {
    let (told, errors) = run(mode, rounds).await;
    assert!(errors.is_empty(), "{told}{errors}");
    told
}

/// The same; what was printed, and the errors.
async fn run(mode: &str, rounds: usize) -> (String, String) {
    let mut kill9 = Command::new(env!("CARGO_BIN_EXE_mesh-simulations"));
    kill9.args(["kill9", "--mode", mode, "--rounds", &rounds.to_string()]);
    kill9.args(["--rooms=6", "--members=4", "--rate=60", "--pause=1"]);
    kill9.arg("--meshd").arg(binary("meshd")).kill_on_drop(true);
    let done = kill9.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    assert!(done.status.success() || !done.stderr.is_empty(), "it says why it fails");
    (text(done.stdout), text(done.stderr))
}

#[tokio::test]
async fn clients_lose_nothing_and_are_recovered_when_nodes_are_killed() {
    let told = kill9("kill", 3).await;
    // The rounds took place, and there was something to lose.
    assert_eq!(told.matches("kill -9 of n").count(), 3, "{told}");
    let sum = told.split("all 3 rounds").nth(1).unwrap_or_default();
    assert!(!sum.contains(" 0 lost their transport") && !sum.contains("acked 0 "), "{told}");
    assert!(!sum.contains("recovered 0, not recovered"), "{told}");
}

#[tokio::test]
async fn transports_that_clients_have_left_are_closed_also_by_a_node_that_stood_still() {
    let told = kill9("half-open", 1).await;
    let left = told.split("left as they were: ").nth(1).unwrap_or_default();
    assert!(left.chars().next().is_some_and(|first| ('1'..='9').contains(&first)), "{told}");
}

#[tokio::test]
async fn both_sides_of_a_cut_serve_and_heal() {
    let (told, errors) = run("cut", 1).await;
    let sum = told.split("all 1 rounds").nth(1).unwrap_or_else(|| panic!("{told}{errors}"));
    assert!(told.contains(" cut from "), "{told}");
    let nothing = [
        "disconnected 0,",
        "served by their side 0,",
        "wrong rings 0,",
        "acked and lost 0,",
        "doubled 0,",
        "unanswered 0\n",
    ];
    for none in nothing {
        assert!(sum.contains(none), "{none} {told}{errors}");
    }
}
