//! A child process, its output, and its end.
//!
//! Invariants: no process outlives its [`Process`]; only processes started here are signalled, by pid.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::wait::{soon, until};

/// Lines kept of each process for the report of a failure.
const LINES_KEPT: usize = 4_000;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Kept open: a supervised node stops when it is closed.
    stdin: ChildStdin,
    output: Output,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

/// The lines a process has printed so far, both streams, in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Output(Arc<Mutex<Vec<String>>>);

impl Output {
    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether some line holds `text`.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        self.lines().iter().any(|line| line.contains(text))
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_KEPT {
            lines.push(line);
        }
    }
}

impl Process {
    /// Starts `command`, its input held open and its output captured.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: impl Into<String>, command: &mut Command) -> Self {
        let name = name.into();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let output = Output::default();
        let stdin = child.stdin.take().expect("piped");
        let out = child.stdout.take().expect("piped");
        let err = child.stderr.take().expect("piped");
        let readers = vec![read(out, output.clone()), read(err, output.clone())];
        Self { name, child, stdin, output, readers }
    }

    /// What it has printed.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Writes one line to its input.
    ///
    /// # Panics
    /// When it does not read any more.
    pub async fn tell(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.expect("reads its input");
    }

    /// Waits for a line that holds `text` and gives it.
    ///
    /// # Panics
    /// When it ends, or too much time passes, without one.
    pub async fn line(&mut self, text: &str) -> String {
        let what = format!("{} to print {text:?}", self.name);
        let mut ended = false;
        until(&what, || {
            let found = self.output.lines().into_iter().find(|line| line.contains(text));
            // Once more after the end: the last line may still be on its way.
            assert!(!ended || found.is_some(), "{what}, but it ended:\n{}", self.output.lines().join("\n"));
            ended = self.readers.iter().all(tokio::task::JoinHandle::is_finished);
            let seen = format!("{} lines", self.output.lines().len());
            async move { found.ok_or(seen) }
        })
        .await
    }

    /// Sends a signal by name, as `kill` knows it.
    ///
    /// # Panics
    /// When `kill` cannot be run.
    pub async fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().await;
        assert!(status.is_ok_and(|s| s.success()), "kill -s {signal} {pid}");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = soon(&format!("the end of {}", self.name), self.child.wait()).await.expect("a child");
        for reader in self.readers.drain(..) {
            // A grandchild may hold the pipe; what was printed before is there.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), reader).await;
        }
        status
    }

    /// `kill -9`, without waiting.
    pub fn start_kill(&mut self) {
        let _ = self.child.start_kill();
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.start_kill();
        let _ = self.child.wait().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        if std::thread::panicking() {
            eprintln!("---- output of {} ----\n{}", self.name, self.output.lines().join("\n"));
        }
    }
}

fn read(stream: impl AsyncRead + Unpin + Send + 'static, output: Output) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            output.push(line);
        }
    })
}

/// Runs a command to its end: exit code, standard output, standard error.
///
/// # Panics
/// When it cannot be run, or does not end.
pub async fn run(program: impl AsRef<OsStr>, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("a command", command.output()).await.expect("can be run");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// The built binary `name`, beside the running test.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test");
    let built = test.ancestors().nth(2).expect("target/<profile>/deps/<test>").join(name);
    assert!(built.is_file(), "{} is missing: run `cargo build --workspace --bins` first", built.display());
    built
}

/// The top of the repository.
///
/// # Panics
/// Never.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the repository")
}
