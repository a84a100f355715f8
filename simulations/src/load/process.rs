//! What a server process has used, read from `/proc`.
//!
//! Belongs here: CPU seconds and resident memory of processes we do not own. Linux only.
//! Units: CPU in nanoseconds on a core, memory in bytes.

use std::fs;

use anyhow::{Context as _, ensure};

/// The server processes of a run.
#[derive(Clone, Debug)]
pub(super) struct Servers(Vec<u32>);

/// CPU used by all servers up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuNanos(pub(super) u64);

impl Servers {
    /// The processes `pids`.
    ///
    /// # Errors
    /// When one is not there.
    pub(super) fn new(pids: &[u32]) -> anyhow::Result<Self> {
        for pid in pids {
            ensure!(
                fs::exists(format!("/proc/{pid}/stat"))?,
                "no process {pid}: give the pids of running nodes"
            );
        }
        Ok(Self(pids.to_vec()))
    }

    /// Whether there is nothing to measure.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// CPU used so far by all threads of all servers. From `schedstat` (nanoseconds), which forgets
    /// threads that have ended: nodes keep theirs.
    ///
    /// # Errors
    /// When a process has gone.
    pub(super) fn cpu(&self) -> anyhow::Result<CpuNanos> {
        let mut nanos = 0;
        for pid in &self.0 {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .with_context(|| format!("process {pid} has gone"))?;
            for task in tasks.flatten() {
                let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                nanos += stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(CpuNanos(nanos))
    }

    /// CPU used so far by each kind of thread (`shard`, `mesh`, …: the thread's name up to a digit).
    pub(super) fn cpu_by_thread(&self) -> Vec<(String, CpuNanos)> {
        let mut by_name = std::collections::BTreeMap::<String, u64>::new();
        for pid in &self.0 {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                let nanos = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
                let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit() || "/-#".contains(c));
                *by_name.entry(name.to_owned()).or_default() += nanos;
            }
        }
        by_name.into_iter().map(|(name, nanos)| (name, CpuNanos(nanos))).collect()
    }

    /// Resident bytes of each server.
    ///
    /// # Errors
    /// When a process has gone.
    pub(super) fn resident_bytes(&self) -> anyhow::Result<Vec<u64>> {
        self.0.iter().map(|pid| resident(*pid)).collect()
    }
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kib << 10)
}

/// Raises the soft limit of open files to the hard one.
///
/// # Errors
/// When fewer than `wanted` are allowed even then: the sentence says how to raise it.
pub(super) fn allow_open_files(wanted: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let hard = limit.maximum.unwrap_or(u64::MAX);
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")?;
    ensure!(
        hard >= wanted,
        "{wanted} open files are needed, {hard} are allowed: raise the hard limit (ulimit -Hn)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_cpu() {
        let me = Servers::new(&[std::process::id()]).unwrap();
        assert!(me.resident_bytes().unwrap()[0] > 100_000);
        assert!(me.cpu().unwrap().0 > 0);
        assert!(!me.cpu_by_thread().is_empty());
        assert!(Servers::new(&[u32::MAX]).is_err());
    }
}
