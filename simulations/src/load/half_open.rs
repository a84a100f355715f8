//! Connections that stop in the middle of coming in: what they cost, what closes them, and when.
//!
//! Method: one node; connections of each kind in turn, at a rate below the limit of handshakes; one
//! watched room beside them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::HalfOpen;
use super::client::upgrade_head;
use super::frame::{self, Frame};
use super::own::{CONNECT_RATE, PRODUCT};
use super::probes::{COLUMNS, Probes, Wanted};
use super::process::{Servers, allow_open_files};
use super::report::float;
use super::table::{Table, percentiles};
use crate::times::Times;

/// Whoever is not closed within this time is not closed at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at the node's memory.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between publishes of the watched room.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);

/// Where a connection stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    /// Nothing is sent.
    Silent,
    /// Half of the request's head.
    Head,
    /// All of it, and nothing after the answer.
    Upgrade,
    /// Half of the frame with CONNECT.
    Connect,
}

const STOPS: [(Stop, &str); 4] = [
    (Stop::Silent, "nothing sent"),
    (Stop::Head, "half a head"),
    (Stop::Upgrade, "upgraded, then silent"),
    (Stop::Connect, "half a CONNECT"),
];

/// What closed connections that stopped there, and when.
#[derive(Default)]
struct Seen(BTreeMap<(Stop, String), Times>);

/// `load half-open`.
pub(super) async fn run(command: HalfOpen) -> anyhow::Result<()> {
    let cluster = super::own::Own { count: 1, ..command.own.clone() }.start().await?;
    allow_open_files(command.connections as u64 + 64)?;
    let door = cluster.door(0);
    let watched = Wanted {
        group: 0,
        uid: "beside".into(),
        room: "beside".into(),
        door: door.clone(),
        member: door.clone(),
    };
    let mut probes = Probes::start(vec![watched], PUBLISH_EVERY).await?;
    let servers = Servers::new(&[cluster.nodes.pid(0)])?;
    let resident = |servers: &Servers| servers.resident_bytes().map(|each| each.iter().sum::<u64>());
    let (before, cpu, from) = (resident(&servers)?, servers.cpu()?, probes.now());
    let seen = Rc::new(RefCell::new(Seen::default()));
    let started = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CONNECT_RATE);
    let mut open = tokio::task::JoinSet::new();
    for index in 0..command.connections {
        ticks.tick().await;
        let (door, seen) = (door.clone(), seen.clone());
        open.spawn_local(async move {
            let (stop, _) = STOPS[index % STOPS.len()];
            let started = Instant::now();
            let closed = tokio::time::timeout(PATIENCE, stopped(&door, stop)).await;
            let how = match closed {
                Ok(Ok(how)) => how,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "still open".to_owned(),
            };
            seen.borrow_mut().0.entry((stop, how)).or_default().add(Some(started.elapsed()));
        });
    }
    let opened = started.elapsed();
    let mut peak = before;
    while !open.is_empty() {
        let look = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(look);
        loop {
            tokio::select! {
                () = &mut look => break,
                ended = open.join_next() => if ended.is_none() { break },
            }
        }
        peak = peak.max(resident(&servers)?);
    }
    let cpu = servers.cpu()?.0.saturating_sub(cpu.0);
    let until = probes.now();
    probes.stop().await;

    let count = command.connections as u64;
    let title =
        format!("{count} connections that stop half-way, opened within {:.1} s", opened.as_secs_f64());
    let mut table = Table::new(title, &["connections", "closed after p50 ms", "p99", "last"]);
    for ((stop, how), times) in &seen.borrow().0 {
        let name = STOPS.iter().find(|(other, _)| other == stop).map_or("", |(_, name)| name);
        let mut cells = vec![json!(times.count())];
        cells.extend(percentiles(times));
        table.row(format!("{name}: {how}"), cells);
    }
    let after = resident(&servers)?;
    let kib = |bytes: u64| float(bytes) / 1_024.0;
    table.note(format!(
        "resident {:.0} KiB before, {:.0} at most, {:.0} after: {:.2} KiB a connection at most; CPU {:.1} us each, others' publishes included",
        kib(before),
        kib(peak),
        kib(after),
        kib(peak.saturating_sub(before)) / float(count.max(1)),
        float(cpu) / 1e3 / float(count.max(1))
    ));
    table.print(command.json);
    let mut beside = Table::new("a room beside them", &COLUMNS);
    probes.rows(&mut beside, &["meanwhile"], &[(from, until)]);
    beside.print(command.json);
    Ok(())
}

/// A connection that goes no further; what the node did with it.
async fn stopped(door: &super::client::Door, stop: Stop) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(door.addr).await.context("connecting")?;
    let head = upgrade_head(
        &door.host,
        &format!("/socket.io/?EIO=4&transport=websocket&product={PRODUCT}&uid=half"),
    );
    let mut connect = Vec::new();
    frame::put_text(&mut connect, b"40");
    let sent: Vec<&[u8]> = match stop {
        Stop::Silent => vec![],
        Stop::Head => vec![&head.as_bytes()[..head.len() / 2]],
        Stop::Upgrade => vec![head.as_bytes()],
        Stop::Connect => vec![head.as_bytes(), &connect[..connect.len() / 2]],
    };
    for part in sent {
        stream.write_all(part).await.context("writing")?;
    }
    let mut read = Vec::new();
    // A reset ends it as well as a close.
    let _ = stream.read_to_end(&mut read).await;
    Ok(told(&read))
}

/// What a node said before it closed: the status of an answer, the code of a close.
fn told(read: &[u8]) -> String {
    let status = String::from_utf8_lossy(read.get(9..12).unwrap_or_default()).into_owned();
    if status != "101" {
        return if status.is_empty() {
            "closed without a word".to_owned()
        } else {
            format!("answer {status}")
        };
    }
    let mut rest =
        read.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(&[][..], |at| &read[at + 4..]);
    while let Ok(Some((frame, len))) = frame::take(rest) {
        if let Frame::Close(code) = frame {
            return format!("close {code}");
        }
        rest = &rest[len..];
    }
    "closed without a code".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_closed_a_connection_is_read_from_its_last_words() {
        assert_eq!(told(b""), "closed without a word");
        assert_eq!(told(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), "answer 408");
        assert_eq!(told(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x020{\x88\x02\x11\x38"), "close 4408");
        assert_eq!(told(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x020{"), "closed without a code");
    }
}
