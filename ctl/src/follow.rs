//! Commands that go on for a while: `drain` and `watch`.
//!
//! Belongs here: when they end, and with which exit code. Stays out: their words (`show`).

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use meshd::admin::answers::{DrainLine, Event};

use crate::client::{Client, Unreachable, query};
use crate::{Drain, Written, read, show, write_out};

/// How often a drain's progress is asked for.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A line within a phase comes this often at most.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Questions without an answer, in a row, until following is given up.
const SILENT_MAX: u32 = 10;

/// Has a node drain (or serve again) and follows it until it is gone.
pub(crate) fn drain(client: &Client, drain: &Drain, json: bool) -> anyhow::Result<ExitCode> {
    let node: Vec<(&str, &str)> = drain.node.iter().map(|node| ("node", node.as_str())).collect();
    let how = [("force", drain.force), ("cancel", drain.cancel)];
    let how = how.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| (name, "true"));
    let asked = query(&[node.clone(), how.collect()].concat());
    let first: DrainLine = client.tell(&format!("/v1/drain?{asked}"))?;
    print_step(&first, json)?;
    if drain.no_wait || drain.cancel {
        return Ok(ExitCode::SUCCESS);
    }
    let path = format!("/v1/drain?{}", query(&[("node", first.node.as_str())]));
    let (mut shown, mut shown_at) = (first.clone(), Instant::now());
    let mut silent = 0;
    loop {
        std::thread::sleep(ASK_EVERY);
        let line = match client.ask::<DrainLine>(&path) {
            Ok(line) => line,
            // The node asked is the one that drains: its silence is its end.
            Err(error) if first.is_me && error.is::<Unreachable>() => gone(&shown, shown_at),
            Err(error) if silent >= SILENT_MAX => return Err(error),
            Err(_) => {
                silent += 1;
                continue;
            }
        };
        silent = 0;
        // Another life of the node has nothing to do with this drain.
        let line = if line.incarnation == first.incarnation { line } else { gone(&shown, shown_at) };
        let moved = line.phase != shown.phase;
        let news = (line.clients, line.to_hand_over) != (shown.clients, shown.to_hand_over);
        if moved || news && shown_at.elapsed() >= LINE_EVERY {
            print_step(&line, json)?;
            (shown, shown_at) = (line, Instant::now());
        }
        match shown.phase.as_str() {
            "gone" => return Ok(ExitCode::SUCCESS),
            "serving" => bail!("{} serves again: its drain was taken back", shown.node),
            _ => {}
        }
    }
}

/// The last line of a drain, at a moment in which nobody is left to say it.
fn gone(last: &DrainLine, at: Instant) -> DrainLine {
    let since = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    DrainLine {
        phase: "gone".into(),
        clients: 0,
        to_hand_over: 0,
        elapsed_ms: last.elapsed_ms.saturating_add(since),
        ..last.clone()
    }
}

fn print_step(line: &DrainLine, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string(line)? + "\n" } else { show::drain_step(line) };
    write_out(&text).map(drop)
}

/// Prints what happens until somebody ends it.
pub(crate) fn watch(client: &Client, json: bool) -> anyhow::Result<()> {
    client.follow("/v1/watch", |line| {
        let text = if json {
            String::from_utf8_lossy(line).into_owned() + "\n"
        } else {
            show::event(&read::<Event>(line)?)
        };
        Ok(match write_out(&text)? {
            Written::All => ControlFlow::Continue(()),
            Written::NobodyReads => ControlFlow::Break(()),
        })
    })
}
