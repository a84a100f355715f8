//! Three nodes, three kills: what `kill9` checks, with every test run.
//!
//! More: `cargo run --release -p mesh-simulations -- kill9 --rounds 100`.

use mesh_tests::process::binary;
use tokio::process::Command;

#[tokio::test]
async fn clients_lose_nothing_when_nodes_are_killed() {
    let mut kill9 = Command::new(env!("CARGO_BIN_EXE_mesh-simulations"));
    kill9.args(["kill9", "--rounds=3", "--rooms=6", "--members=4", "--rate=60", "--pause=1"]);
    kill9.arg("--meshd").arg(binary("meshd")).kill_on_drop(true);
    let done = kill9.output().await.unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    // The rounds took place, and there was something to lose.
    assert_eq!(told.matches("kill -9 of n").count(), 3, "{told}");
    let sum = told.split("all 3 rounds").nth(1).unwrap_or_default();
    assert!(!sum.contains(" 0 lost their transport") && !sum.contains("acked 0 "), "{told}");
}
