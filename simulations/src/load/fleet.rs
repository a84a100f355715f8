//! Opening many clients without flooding the nodes' handshake limits.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::spawn_local;

use super::Nodes;
use super::client::{Client, Door, SCRATCH_BYTES};
use super::process::{CpuNanos, Servers, allow_open_files};

/// Handshakes under way at once.
pub(super) const HANDSHAKES_AT_ONCE: usize = 128;

/// Clients that connected, and what it took.
pub(super) struct Fleet {
    pub(super) clients: Vec<Client>,
    /// Wall time from the first to the last.
    pub(super) took: Duration,
    /// CPU of the servers in that time.
    pub(super) cpu: CpuNanos,
}

/// Connects one client for each of `rooms`, dealt over the targets in turn; each joins its rooms.
///
/// # Errors
/// The first client that is refused.
pub(super) async fn open(nodes: &Nodes, servers: &Servers, rooms: Vec<Vec<String>>) -> anyhow::Result<Fleet> {
    ensure!(!nodes.targets.is_empty(), "give at least one --target ws://HOST:PORT");
    let doors: Vec<Door> =
        nodes.targets.iter().map(|target| Door::parse(target, &nodes.product)).collect::<Result<_, _>>()?;
    allow_open_files(rooms.len() as u64 + 64)?;
    let per_second = f64::from(nodes.connect_rate.max(1)) * doors.len() as f64;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    let started = Instant::now();
    let cpu_before = servers.cpu()?;
    let paced = async_ticks(&mut ticks, rooms.into_iter().enumerate());
    let clients = paced
        .map(|(index, rooms)| {
            let door = &doors[index % doors.len()];
            async move {
                let connecting = Client::connect(door, &format!("load{index}")).await;
                let mut client = connecting.with_context(|| format!("client {index} at {}", door.host))?;
                if !rooms.is_empty() {
                    client.join(&rooms).await.with_context(|| format!("client {index} at {}", door.host))?;
                }
                anyhow::Ok((index, client))
            }
        })
        .buffer_unordered(HANDSHAKES_AT_ONCE)
        .try_collect::<Vec<_>>()
        .await;
    let mut clients = clients?;
    clients.sort_by_key(|(index, _)| *index);
    let took = started.elapsed();
    let cpu = CpuNanos(servers.cpu()?.0 - cpu_before.0);
    Ok(Fleet { clients: clients.into_iter().map(|(_, client)| client).collect(), took, cpu })
}

/// Reads what comes for clients that do nothing; counts those whose connection has ended.
pub(super) fn hold(clients: Vec<Client>) -> Rc<Cell<u64>> {
    let scratch = Rc::new(RefCell::new(vec![0; SCRATCH_BYTES]));
    let closed = Rc::new(Cell::new(0_u64));
    for mut client in clients {
        let (scratch, closed) = (scratch.clone(), closed.clone());
        spawn_local(async move {
            while client.ready().await.is_ok() && client.drain(&mut scratch.borrow_mut(), |_| {}).is_ok() {}
            closed.set(closed.get() + 1);
        });
    }
    closed
}

/// `items`, one per tick.
pub(super) fn async_ticks<T>(
    ticks: &mut tokio::time::Interval,
    items: impl Iterator<Item = T>,
) -> impl futures_util::Stream<Item = T> {
    stream::unfold((ticks, items), |(ticks, mut items)| async {
        let item = items.next()?;
        ticks.tick().await;
        Some((item, (ticks, items)))
    })
}
