//! Clients that do nothing, half of them by WebSocket and half by polling: what each costs to let in and to hold, at nodes
//! and at the reference server, one after the other in the same minutes.
//!
//! Method: a polling client has one connection, on which its requests follow one another: a held GET, an answer to each
//! ping, the next GET. Each server has been held for a while before its memory is read.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use mesh_tests::js;
use mesh_tests::process::Process;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::Mixed;
use super::client::{BROWSER_HEADERS, Client, Door, printable};
use super::fleet::{HANDSHAKES_AT_ONCE, async_ticks, hold};
use super::own::{CONNECT_RATE, Cluster, Own, PRODUCT};
use super::process::{Servers, allow_open_files};
use super::report::float;
use super::table::Table;

/// What every answer fits.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Something to connect to, until it is dropped.
struct Target {
    name: String,
    doors: Vec<Door>,
    servers: Servers,
    _running: Running,
}

enum Running {
    Nodes { _cluster: Box<Cluster> },
    Reference { _process: Box<Process> },
}

impl Target {
    async fn nodes(own: &Own, count: usize) -> anyhow::Result<Self> {
        let cluster = Own { count, ..own.clone() }.start().await?;
        let doors = (0..count).map(|node| cluster.door(node)).collect();
        let pids: Vec<u32> = (0..count).map(|node| cluster.nodes.pid(node)).collect();
        let name = if count == 1 { "meshd, one node".to_owned() } else { format!("meshd, {count} nodes") };
        Ok(Self {
            name,
            doors,
            servers: Servers::new(&pids)?,
            _running: Running::Nodes { _cluster: cluster.into() },
        })
    }

    async fn reference() -> anyhow::Result<Self> {
        let mut process = js::start("server.mjs", &[]).await;
        let line = process.line("listens ").await;
        let port = line.trim_start_matches("listens ");
        let doors = vec![Door::parse(&format!("ws://127.0.0.1:{port}"), PRODUCT)?];
        let servers = Servers::new(&[process.pid()])?;
        let name = "Socket.IO 4.8 on Node".to_owned();
        Ok(Self { name, doors, servers, _running: Running::Reference { _process: process.into() } })
    }
}

/// `load mixed`.
pub(super) async fn run(command: Mixed) -> anyhow::Result<()> {
    allow_open_files(command.clients as u64 + 64)?;
    let mut table = Table::new(
        format!("{} clients, half by WebSocket, half by polling, idle", command.clients),
        &["connects/s", "CPU us per connect", "RSS B per client", "CPU us/s per idle client", "% of a core"],
    );
    for count in [1, command.own.count] {
        measure(&mut table, Target::nodes(&command.own, count).await?, &command).await?;
    }
    measure(&mut table, Target::reference().await?, &command).await?;
    table.print(command.json);
    Ok(())
}

async fn measure(table: &mut Table, target: Target, command: &Mixed) -> anyhow::Result<()> {
    let Target { name, doors, servers, .. } = &target;
    let resident = || servers.resident_bytes().map(|each| each.iter().sum::<u64>());
    let (memory, cpu, started) = (resident()?, servers.cpu()?, Instant::now());
    let lost = Rc::new(Cell::new(0_u64));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CONNECT_RATE);
    let websockets: Vec<Client> = async_ticks(&mut ticks, 0..command.clients)
        .map(|index| {
            let (door, lost) = (doors[index / 2 % doors.len()].clone(), lost.clone());
            async move {
                let uid = format!("load{index}");
                if index % 2 == 0 {
                    return Client::connect(&door, &uid).await.map(Some);
                }
                let polling = Polling::connect(&door, &uid).await?;
                spawn_local(async move {
                    if polling.hold().await.is_err() {
                        lost.set(lost.get() + 1);
                    }
                });
                anyhow::Ok(None)
            }
        })
        .buffer_unordered(HANDSHAKES_AT_ONCE)
        .try_filter_map(async |client| Ok(client))
        .try_collect()
        .await
        .with_context(|| name.clone())?;
    let clients = float(command.clients as u64);
    let took = started.elapsed();
    let connecting = servers.cpu()?.0 - cpu.0;
    let closed = hold(websockets);
    // The rest of what letting them in has left to do.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let cpu = servers.cpu()?;
    tokio::time::sleep(Duration::from_secs(command.hold)).await;
    let idle = float(servers.cpu()?.0 - cpu.0) / 1e3 / float(command.hold.max(1));
    let grown = float(resident()?.saturating_sub(memory));
    ensure!(closed.get() + lost.get() == 0, "{name}: {} + {} were lost while idle", closed.get(), lost.get());
    table.row(
        name.clone(),
        vec![
            json!(clients / took.as_secs_f64()),
            json!(float(connecting) / 1e3 / clients),
            json!(grown / clients),
            json!(idle / clients),
            json!(idle / 1e4),
        ],
    );
    Ok(())
}

/// A client that polls.
struct Polling {
    stream: TcpStream,
    host: String,
    /// Path and query of its requests.
    target: String,
}

impl Polling {
    /// Connects as `uid` and is in the namespace `/` when it returns.
    async fn connect(door: &Door, uid: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(door.addr).await.with_context(|| format!("connecting to {}", door.addr))?;
        stream.set_nodelay(true)?;
        let target = format!("/socket.io/?EIO=4&transport=polling&product={}&uid={uid}", door.product);
        let mut client = Self { stream, host: door.host.clone(), target };
        let open = client.get().await?;
        let sid = open.split('"').nth(3).filter(|_| open.starts_with("0{"));
        let sid =
            sid.with_context(|| format!("no Engine.IO handshake but {}", printable(open.as_bytes())))?;
        client.target = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
        client.post("40").await?;
        let connected = client.get().await?;
        ensure!(connected.starts_with("40{"), "not connected: {}", printable(connected.as_bytes()));
        Ok(client)
    }

    /// Polls, and answers pings, until it is refused.
    async fn hold(mut self) -> anyhow::Result<()> {
        loop {
            if self.get().await?.split('\u{1e}').any(|packet| packet == "2") {
                self.post("3").await?;
            }
        }
    }

    async fn get(&mut self) -> anyhow::Result<String> {
        let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n{BROWSER_HEADERS}\r\n", self.target, self.host);
        self.ask(&head).await
    }

    async fn post(&mut self, body: &str) -> anyhow::Result<()> {
        let Self { target, host, .. } = self;
        let len = body.len();
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain;charset=UTF-8\r\n\
             Content-Length: {len}\r\n{BROWSER_HEADERS}\r\n{body}"
        );
        let answer = self.ask(&request).await?;
        ensure!(answer == "ok", "a POST was answered {}", printable(answer.as_bytes()));
        Ok(())
    }

    /// The body of the answer. No buffer is kept while it is waited for.
    async fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.readable().await?;
        let mut answer = Vec::with_capacity(1 << 10);
        loop {
            ensure!(self.stream.read_buf(&mut answer).await? > 0, "closed");
            ensure!(answer.len() < ANSWER_BYTES_MAX, "an endless answer");
            let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&answer[..end])?;
            if !head.starts_with("HTTP/1.1 200") {
                bail!("refused: {}", printable(&answer));
            }
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
            });
            let body = &answer[end + 4..];
            if body.len() >= length.context("no Content-Length")? {
                return Ok(std::str::from_utf8(body)?.to_owned());
            }
        }
    }
}
