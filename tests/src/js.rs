//! JavaScript clients: the stock Socket.IO client and a browser, under Node.
//!
//! The packages are pinned in `tests/js/package-lock.json` and installed once, when they are missing.
//! A script gets the client addresses of the nodes as arguments; it prints what it has found and
//! exits with 0 when all is well.

use std::fs::File;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::cluster::Cluster;
use crate::process::{Process, repository};

fn directory() -> PathBuf {
    repository().join("tests/js")
}

/// Installs the packages if they are missing or others are listed by now. Tests are processes of their own: a file lock makes one
/// of them do it while the others wait.
async fn install() {
    let installed = directory().join("node_modules/.package-lock.json");
    let lock = File::create(directory().join(".install-lock")).expect("tests/js is writable");
    lock.lock().expect("a file lock");
    if is_older(&installed, &directory().join("package-lock.json")) {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(directory());
        let status = npm.status().await.expect("npm is installed");
        assert!(status.success(), "npm ci in tests/js: {status}");
    }
}

/// Whether what is installed is missing, or older than the list of what is to be installed.
pub(crate) fn is_older(installed: &Path, listed: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    changed(installed).is_none() || changed(installed) < changed(listed)
}

/// Starts `tests/js/<script>` with these arguments.
pub async fn start(script: &str, args: &[&str]) -> Process {
    install().await;
    let mut node = Command::new("node");
    node.arg(directory().join(script)).args(args).current_dir(directory());
    Process::start(script, &mut node)
}

/// The same by version 4.5 of the stock client.
pub async fn start_with_4_5(script: &str, args: &[&str]) -> Process {
    install().await;
    let mut node = Command::new("node");
    node.env("CLIENT", "4.5").arg(directory().join(script)).args(args).current_dir(directory());
    Process::start(script, &mut node)
}

/// Starts a scenario of `tests/js/<script>` with the client addresses of all running nodes.
pub async fn start_scenario(script: &str, scenario: &str, cluster: &Cluster) -> Process {
    let nodes: Vec<String> = cluster.clients().iter().map(ToString::to_string).collect();
    let args: Vec<&str> = std::iter::once(scenario).chain(nodes.iter().map(String::as_str)).collect();
    start(script, &args).await
}

/// Runs a scenario to its end, which must be a good one.
///
/// # Panics
/// When it exits with anything but 0; its output is shown.
pub async fn run_scenario(script: &str, scenario: &str, cluster: &Cluster) {
    let mut process = start_scenario(script, scenario, cluster).await;
    let status = process.ended().await;
    assert!(status.success(), "{script} {scenario}: {status}");
}
