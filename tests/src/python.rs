//! The stock Socket.IO client for Python.
//!
//! Its packages are pinned in `tests/python/requirements.txt` and installed once, into an environment of their
//! own below `target`, when they are missing.

use std::fs::File;
use std::path::PathBuf;

use tokio::process::Command;

use crate::js::is_older;
use crate::process::{Process, repository};

fn environment() -> PathBuf {
    repository().join("target/python")
}

/// Installs the packages if they are missing or others are listed by now; `.ci/run` has done so before.
async fn install() {
    let listed = repository().join("tests/python/requirements.txt");
    let installed = environment().join("installed");
    std::fs::create_dir_all(environment()).expect("target is writable");
    let lock = File::create(environment().join("install-lock")).expect("target is writable");
    lock.lock().expect("a file lock");
    if is_older(&installed, &listed) {
        let mut python = Command::new("python3");
        python.args(["-m", "venv", "--clear"]).arg(environment());
        let mut pip = Command::new(environment().join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&listed);
        for mut command in [python, pip] {
            let status = command.status().await.expect("python3 is installed");
            assert!(status.success(), "{command:?}: {status}");
        }
        File::create(installed).expect("target is writable");
    }
}

/// Starts `tests/python/<script>` with these arguments.
pub async fn start(script: &str, args: &[&str]) -> Process {
    install().await;
    let mut python = Command::new(environment().join("bin/python"));
    python.arg(repository().join("tests/python").join(script)).args(args);
    Process::start(script, &mut python)
}
