//! Where log lines go: to standard error, without ever holding up the thread that wrote them.
//!
//! Belongs here: format, filter, the queue in front of a standard error that nobody drains.
//! Stays out: what is logged. Payloads and secrets never are.
//! What filling up means: lines beyond [`LINES_QUEUED_MAX`] are dropped and counted
//! ([`lines_dropped`]): a full disk behind standard error must not stop a node.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogConfig;
use crate::metrics::{Exposition, Kind, Source};

/// Lines waiting for standard error.
const LINES_QUEUED_MAX: usize = 4_096;

/// How long the end of the process waits for the last lines.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines that could not be written, since the start.
#[must_use]
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The same, for `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct Dropped;

impl Source for Dropped {
    fn write(&self, out: &mut Exposition) {
        let help = "Lines of the log that standard error did not take. Not counted: lines below the filter.";
        out.single("meshd_log_lines_dropped_total", Kind::Counter, help, lines_dropped());
    }
}

/// Starts logging for this process. Keep what it returns to the end: [`Logs::flush`].
///
/// # Errors
/// In words: when the process logs already, or gives no thread.
pub fn start(config: &LogConfig) -> Result<Logs, String> {
    let filter = EnvFilter::builder().parse(&config.filter).map_err(|cause| cause.to_string())?;
    let (tx, lines) = sync_channel(LINES_QUEUED_MAX);
    let run = move || write_lines(&lines);
    std::thread::Builder::new().name("logs".into()).spawn(run).map_err(|cause| cause.to_string())?;
    let logs = Logs { tx };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(logs.clone())
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    let started = match config.format.as_str() {
        "json" => builder.json().flatten_event(true).with_current_span(false).try_init(),
        _ => builder.try_init(),
    };
    started.map(|()| logs).map_err(|cause| cause.to_string())
}

enum Message {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// The way to the thread that writes.
#[derive(Clone, Debug)]
pub struct Logs {
    tx: SyncSender<Message>,
}

impl Logs {
    /// Waits until everything logged so far is written, for a second at most.
    pub fn flush(&self) {
        let (tx, written) = sync_channel(1);
        if self.tx.try_send(Message::Flush(tx)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIME_MAX);
        }
    }
}

impl Write for Logs {
    /// One call holds one whole line: so does tracing's formatter.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.tx.try_send(Message::Line(line.to_vec())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logs {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn write_lines(lines: &Receiver<Message>) {
    let stderr = io::stderr();
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => {
                if stderr.lock().write_all(&line).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            Message::Flush(written) => drop(written.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_never_waits() {
        let (tx, lines) = sync_channel(1);
        let mut logs = Logs { tx };
        let before = lines_dropped();
        for _ in 0..3 {
            assert_eq!(logs.write(b"line").unwrap(), 4);
        }
        assert_eq!(lines_dropped() - before, 2);
        assert!(matches!(lines.try_recv(), Ok(Message::Line(line)) if line == b"line"));
    }
}
