//! The floor: a broadcast loop with nothing around it, driven by the same clients as a node.
//!
//! Belongs here: the least that can be called a server of rooms: take a publish, encode its frame
//! once, write it to each socket of the room. Stays out: everything a node does beyond that (owners,
//! order across nodes, limits, slow readers).
//! Two variants: every frame with its own write, and all frames of a turn in one write per socket.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::process::Stdio;
use std::rc::Rc;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::frame;

/// One client's socket and what it did not take yet.
struct Socket {
    stream: TcpStream,
    left_over: RefCell<Vec<u8>>,
}

impl Socket {
    fn write(&self, bytes: &[u8]) {
        let mut left_over = self.left_over.borrow_mut();
        let written = if left_over.is_empty() { self.stream.try_write(bytes) } else { Ok(0) };
        match written {
            Ok(written) => left_over.extend_from_slice(&bytes[written..]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => left_over.extend_from_slice(bytes),
            // A closed socket shows itself to its reading task.
            Err(_) => {}
        }
    }
}

/// What came in and waits for the loop.
struct Publish {
    room: String,
    by: Rc<Socket>,
    frame: Vec<u8>,
    answer: Vec<u8>,
}

#[derive(Default)]
struct Hub {
    rooms: RefCell<BTreeMap<String, Vec<Rc<Socket>>>>,
    queue: RefCell<Vec<Publish>>,
    woken: Notify,
}

/// `load baseline`: serves until it is killed.
pub(super) async fn serve(port: u16, coalesce: bool) -> anyhow::Result<()> {
    super::process::allow_open_files(1_024)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("{}", listener.local_addr()?);
    let hub = Rc::new(Hub::default());
    spawn_local(broadcast(hub.clone(), coalesce));
    loop {
        let (stream, _) = listener.accept().await?;
        let hub = hub.clone();
        spawn_local(async move { drop(client(stream, hub).await) });
    }
}

/// The loop that is measured.
async fn broadcast(hub: Rc<Hub>, coalesce: bool) {
    loop {
        hub.woken.notified().await;
        let publishes = std::mem::take(&mut *hub.queue.borrow_mut());
        let rooms = hub.rooms.borrow();
        if !coalesce {
            for publish in &publishes {
                for socket in rooms.get(&publish.room).into_iter().flatten() {
                    if !Rc::ptr_eq(socket, &publish.by) {
                        socket.write(&publish.frame);
                    }
                }
            }
        } else {
            let mut by_room = BTreeMap::<&str, Vec<&Publish>>::new();
            for publish in &publishes {
                by_room.entry(&publish.room).or_default().push(publish);
            }
            for (room, publishes) in by_room {
                let all: Vec<u8> =
                    publishes.iter().flat_map(|publish| publish.frame.iter().copied()).collect();
                for socket in rooms.get(room).into_iter().flatten() {
                    if publishes.iter().any(|publish| Rc::ptr_eq(socket, &publish.by)) {
                        let others = publishes.iter().filter(|publish| !Rc::ptr_eq(socket, &publish.by));
                        socket.write(
                            &others.flat_map(|publish| publish.frame.iter().copied()).collect::<Vec<_>>(),
                        );
                    } else {
                        socket.write(&all);
                    }
                }
            }
        }
        for publish in &publishes {
            publish.by.write(&publish.answer);
        }
    }
}

/// One client: handshake, then joins and publishes, read without a JSON parser.
async fn client(mut stream: TcpStream, hub: Rc<Hub>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("closed before its request");
        }
    }
    // The load client does not check the accept key; nothing else comes here.
    let mut hello =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_vec();
    frame::put_server_text(
        &mut hello,
        br#"0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#,
    );
    stream.write_all(&hello).await?;
    bytes.clear();
    let socket = Rc::new(Socket { stream, left_over: RefCell::default() });
    let mut content = Vec::new();
    loop {
        let pending = !socket.left_over.borrow().is_empty();
        let interest = if pending {
            tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE
        } else {
            tokio::io::Interest::READABLE
        };
        let ready = socket.stream.ready(interest).await?;
        if ready.is_writable() && pending {
            let left_over = std::mem::take(&mut *socket.left_over.borrow_mut());
            socket.write(&left_over);
        }
        if !ready.is_readable() {
            continue;
        }
        match socket.stream.try_read_buf(&mut bytes) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e.into()),
        }
        let mut taken = 0;
        while let Some((opcode, len)) = frame::take_masked(&bytes[taken..], &mut content) {
            taken += len;
            if opcode == 1 {
                take(&content, &socket, &hub);
            }
        }
        bytes.drain(..taken);
    }
    for members in hub.rooms.borrow_mut().values_mut() {
        members.retain(|member| !Rc::ptr_eq(member, &socket));
    }
    Ok(())
}

/// `40`, `42<id>["join","room"]` or `42<id>["publish","room","m","payload"]`, as our client writes
/// them.
fn take(text: &[u8], socket: &Rc<Socket>, hub: &Rc<Hub>) {
    let text = String::from_utf8_lossy(text);
    let mut answer = Vec::new();
    if text == "40" {
        frame::put_server_text(&mut answer, br#"40{"sid":"x"}"#);
        socket.write(&answer);
        return;
    }
    let Some((id, rest)) = text.strip_prefix("42").and_then(|rest| rest.split_once('[')) else { return };
    let mut words = rest.trim_end_matches(']').split(',').map(|word| word.trim_matches('"'));
    frame::put_server_text(&mut answer, format!("43{id}[{{\"ok\":true}}]").as_bytes());
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("join"), Some(room), ..) => {
            hub.rooms.borrow_mut().entry(room.to_owned()).or_default().push(socket.clone());
            socket.write(&answer);
        }
        (Some("publish"), Some(room), Some(_), Some(payload)) => {
            let mut event = Vec::with_capacity(payload.len() + 12);
            // Writing into a Vec does not fail.
            let _ = write!(event, "42[\"m\",\"{payload}\"]");
            let mut encoded = Vec::with_capacity(event.len() + 4);
            frame::put_server_text(&mut encoded, &event);
            let publish = Publish { room: room.to_owned(), by: socket.clone(), frame: encoded, answer };
            hub.queue.borrow_mut().push(publish);
            hub.woken.notify_one();
        }
        _ => {}
    }
}

/// A baseline server as a process of its own; ends with this one.
pub(super) struct Child {
    process: tokio::process::Child,
    address: String,
    pid: u32,
}

impl Child {
    /// Starts it and waits for its address.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn start(coalesce: bool) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.args(["load", "baseline"]).args(coalesce.then_some("--coalesce"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("starting the baseline server")?;
        let out = process.stdout.take().context("its output is piped")?;
        let address =
            BufReader::new(out).lines().next_line().await?.context("the baseline server said nothing")?;
        let pid = process.id().context("it has just started")?;
        Ok(Self { process, address, pid })
    }

    /// Where it listens.
    pub(super) fn target(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.process.kill().await?;
        Ok(())
    }
}
