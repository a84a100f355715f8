//! A driver with a stand-in machine, against real sockets on loopback.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use mesh_proto::id::{Address, NodeId, ShardIx};
use mesh_proto::limits::Limits;
use mesh_proto::shard::{ClientProtocol, CloseCode, NewClient, Packet, Refusal, Transport};
use mesh_proto::wire::Query;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::super::outgoing::{NoPeers, Outgoing};
use super::super::thread::{Shared, drive};
use super::*;
use crate::admission::{Admission, AdmissionLimits};
use crate::handles::{OpenedClient, ShardHandle, Shards};
use crate::identity::{Identities, Identity};
use crate::tasks::Tasks;

const GREETING: &str = "hello\r\n";

/// What the stand-in saw and will say.
#[derive(Default)]
struct Said {
    /// Text of each packet, by client.
    packets: Vec<(u32, String)>,
    opened: Vec<u32>,
    closed: Vec<(u32, ClientGone)>,
    queues: Vec<(u32, usize)>,
    outputs: VecDeque<Output>,
}

/// Echoes what it is sent; some texts are orders.
#[derive(Clone, Default)]
struct Echo(Rc<RefCell<Said>>);

impl Machine for Echo {
    fn handle(&mut self, _now: Instant, input: Input) {
        let mut said = self.0.borrow_mut();
        match input {
            Input::ClientOpened(ix, _) => said.opened.push(ix.0),
            Input::ClientClosed(ix, gone) => {
                said.closed.push((ix.0, gone));
                // As if it had been queued before.
                said.outputs.push_back(Output::Write(ix, Packet::Text("ghost".into())));
            }
            Input::ClientQueue(ix, left) => said.queues.push((ix.0, left)),
            Input::Query(token, _) => {
                said.outputs.push_back(Output::Answer(token, Err(CommandFailed::NotFound)));
            }
            Input::ClientPacket(ix, packet) => {
                let Packet::Text(text) = &packet else {
                    return said.outputs.push_back(Output::Write(ix, packet));
                };
                let text = String::from_utf8(text.to_vec()).unwrap();
                match text.as_str() {
                    "close" => said.outputs.push_back(Output::Close(ix, CloseCode::Ended)),
                    "pause" => said.outputs.push_back(Output::PauseReading(ix)),
                    "panic" => panic!("ordered"),
                    _ => said.outputs.push_back(Output::Write(ix, packet)),
                }
                said.packets.push((ix.0, text));
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.0.borrow_mut().outputs.pop_front()
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn has_more(&self) -> bool {
        false
    }

    fn stats(&self) -> ShardStats {
        ShardStats::default()
    }
}

/// A driven shard.
struct Bench {
    echo: Echo,
    tx: mpsc::Sender<ToShard>,
    driving: tokio::task::JoinHandle<()>,
    listener: TcpListener,
    admission: Arc<Admission>,
    _view: watch::Sender<Arc<View>>,
}

impl Bench {
    async fn new() -> Self {
        let me = Address { node: NodeRef { id: NodeId(1), incarnation: 1 }, shard: ShardIx(0) };
        let (tx, rx) = mpsc::channel(64);
        let shards = Shards(Arc::new([ShardHandle { shard: ShardIx(0), tx: tx.clone() }]));
        let (view_tx, view) = watch::channel(Arc::new(View::new(1, me.node, Vec::new(), 1)));
        let (echo, clock) = (Echo::default(), Clock::start());
        let handlers = tokio::runtime::Handle::current();
        let (_, identity) = watch::channel(Arc::new(Identity::new([], 128)));
        let identities = Identities::new(identity, shards.clone(), Tasks::new(), handlers.clone());
        let apps = Apps::new(
            BTreeMap::new(),
            shards.clone(),
            view.clone(),
            Limits::default(),
            Tasks::new(),
            handlers,
        );
        let outgoing = Outgoing::new(me, shards, Box::new(NoPeers));
        let driver =
            Driver::new(echo.clone(), clock, 1_000_000, outgoing, Arc::new(apps), Arc::new(identities));
        let shared = Rc::new(Shared::new(driver, clock));
        let driving = tokio::task::spawn_local(drive(shared, rx, view, CancellationToken::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admission = Admission::new(AdmissionLimits::default(), 1);
        Self { echo, tx, driving, listener, admission, _view: view_tx }
    }

    /// A client whose handshake is done; `first` came with it.
    async fn client(&self, first: &[u8]) -> TcpStream {
        let addr = self.listener.local_addr().unwrap();
        let (ours, accepted) = tokio::join!(TcpStream::connect(addr), self.listener.accept());
        let refusal = Refusal { code: "uid_required".into(), message: String::new() };
        let opened = OpenedClient {
            stream: accepted.unwrap().0.into_std().unwrap().into(),
            greeting: GREETING.into(),
            read_ahead: first.to_vec(),
            client: NewClient {
                protocol: ClientProtocol::Plain,
                admission: Err(refusal),
                offsets: false,
                transport: Transport::WebSocket,
            },
            place: self.admission.admit([127, 0, 0, 1].into(), Instant::ZERO).unwrap(),
        };
        self.tx.send(ToShard::Client(opened)).await.unwrap();
        let mut ours = ours.unwrap();
        let mut greeting = [0; GREETING.len()];
        ours.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, GREETING.as_bytes());
        ours
    }

    /// Makes the machine say something.
    async fn say(&self, output: Output) {
        self.echo.0.borrow_mut().outputs.push_back(output);
        self.tx.send(ToShard::CloseClients(0)).await.unwrap();
    }

    async fn until(&self, what: &str, state: impl Fn(&Said) -> bool) {
        for _ in 0..100_000 {
            if state(&self.echo.0.borrow()) {
                return;
            }
            tokio::task::yield_now().await;
        }
        let said = self.echo.0.borrow();
        panic!("never {what}; closed {:?}, queues {:?}", said.closed, said.queues);
    }

    async fn report(&self) -> DriverStats {
        let (tx, rx) = oneshot::channel();
        self.tx.send(ToShard::Stats(tx)).await.unwrap();
        rx.await.unwrap().driver
    }
}

/// Runs a test as the shard's thread does, in real time.
fn driven(test: impl Future<Output = ()>) {
    run(false, test);
}

/// With a clock that moves on whenever nothing else can happen.
fn driven_ahead_of_time(test: impl Future<Output = ()>) {
    run(true, test);
}

fn run(paused: bool, test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(paused).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).ok().filter(|&len| len < 126).expect("a short payload");
    let mut bytes = vec![0x80 | opcode, 0x80 | len, 0, 0, 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    frame(1, text.as_bytes())
}

/// A server's frame of fewer than 126 bytes.
async fn next(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 2];
    stream.read_exact(&mut header).await.unwrap();
    let mut payload = vec![0; usize::from(header[1])];
    stream.read_exact(&mut payload).await.unwrap();
    (header[0] & 0x0f, payload)
}

async fn next_text(stream: &mut TcpStream) -> String {
    let (opcode, payload) = next(stream).await;
    assert_eq!(opcode, 1);
    String::from_utf8(payload).unwrap()
}

fn close_code(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[0], payload[1]])
}

#[test]
fn frames_that_came_with_the_handshake_are_the_first() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(&[text("one"), text("tw")].concat()[..10]).await;
        client.write_all(&[text("one"), text("tw")].concat()[10..]).await.unwrap();
        assert_eq!(next_text(&mut client).await, "one");
        assert_eq!(next_text(&mut client).await, "tw");
        assert_eq!(bench.echo.0.borrow().opened, [0]);
    });
}

#[test]
fn what_is_there_at_once_leaves_in_one_write() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        let before = bench.report().await;
        let many: Vec<u8> = (0..1_000).flat_map(|number| text(&number.to_string())).collect();
        client.write_all(&many).await.unwrap();
        for number in 0..1_000 {
            assert_eq!(next_text(&mut client).await, number.to_string());
        }
        let after = bench.report().await;
        assert!(after.writes_total - before.writes_total <= 10, "{before:?} {after:?}");
    });
}

#[test]
fn one_message_reaches_everybody_it_is_for_in_order() {
    driven(async {
        let bench = Bench::new().await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(bench.client(b"").await);
        }
        let everyone: Vec<_> = (0..10).map(ClientIx).collect();
        let packets: Arc<[Packet]> = Arc::new([Packet::Text("a".into()), Packet::Binary("b".into())]);
        bench.echo.0.borrow_mut().outputs.push_back(Output::Fanout(packets, everyone.clone()));
        bench.echo.0.borrow_mut().outputs.push_back(Output::Write(ClientIx(3), Packet::Text("c".into())));
        bench.say(Output::Fanout(Arc::new([Packet::Text("d".into())]), everyone)).await;
        for (ix, client) in clients.iter_mut().enumerate() {
            assert_eq!(next(client).await, (1, b"a".to_vec()));
            assert_eq!(next(client).await, (2, b"b".to_vec()));
            if ix == 3 {
                assert_eq!(next_text(client).await, "c");
            }
            assert_eq!(next_text(client).await, "d");
        }
    });
}

#[test]
fn a_client_that_does_not_read_is_reported_until_it_has_read_all() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        let big = Packet::Binary(vec![7; 1_000_000].into());
        let mut sent = 0;
        while bench.echo.0.borrow().queues.is_empty() {
            bench.say(Output::Write(ClientIx(0), big.clone())).await;
            sent += 1;
            let taken = sent;
            bench.until("written", |_| bench.tx.capacity() == 64 && taken > 0).await;
            bench.report().await;
        }
        let first = bench.echo.0.borrow().queues[0];
        assert!(first.1 > 0);
        let mut left = sent * (10 + 1_000_000);
        let mut bytes = vec![0; 1 << 20];
        while left > 0 {
            left -= client.read(&mut bytes).await.unwrap();
        }
        bench.until("drained", |said| said.queues.last() == Some(&(0, 0))).await;
        assert_eq!(bench.report().await.blocked_total, 1);
        client.write_all(&text("still here")).await.unwrap();
        assert_eq!(next_text(&mut client).await, "still here");
    });
}

#[test]
fn a_close_of_ours_follows_what_is_queued_and_waits_for_the_answer() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&[text("last"), text("close"), text("ignored?")].concat()).await.unwrap();
        assert_eq!(next_text(&mut client).await, "last");
        // The machine had all three before it was polled; what it answers after its close is not sent.
        let (opcode, payload) = next(&mut client).await;
        assert_eq!((opcode, close_code(&payload)), (8, 4409));
        client.write_all(&text("too late")).await.unwrap();
        client.write_all(&frame(8, &payload)).await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        bench.until("closed", |said| !said.closed.is_empty()).await;
        let said = bench.echo.0.borrow();
        assert_eq!(said.closed, [(0, ClientGone::Closed)]);
        assert!(said.packets.iter().all(|(_, text)| text != "too late"));
    });
}

#[test]
fn a_close_that_is_never_answered_ends_after_two_seconds() {
    driven_ahead_of_time(async {
        let bench = Bench::new().await;
        let mut client = bench.client(&text("close")).await;
        let (opcode, _) = next(&mut client).await;
        assert_eq!(opcode, 8);
        let began = tokio::time::Instant::now();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(began.elapsed() <= Duration::from_secs(2));
        assert_eq!(bench.echo.0.borrow().closed, [(0, ClientGone::Closed)]);
        assert_eq!(bench.admission.open(), 0, "its place is free");
    });
}

#[test]
fn a_close_of_the_peer_is_echoed_and_ends_at_once() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&text("bye")).await.unwrap();
        assert_eq!(next_text(&mut client).await, "bye");
        client.write_all(&frame(8, &[0x0b, 0xb8])).await.unwrap();
        assert_eq!(next(&mut client).await, (8, vec![0x0b, 0xb8]));
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        bench.until("closed", |said| said.closed == [(0, ClientGone::Closed)]).await;
    });
}

#[test]
fn a_client_that_hangs_up_is_closed_once() {
    driven(async {
        let bench = Bench::new().await;
        drop(bench.client(b"").await);
        bench.until("closed", |said| !said.closed.is_empty()).await;
        let mut next_client = bench.client(b"").await;
        next_client.write_all(&text("same slot")).await.unwrap();
        assert_eq!(next_text(&mut next_client).await, "same slot");
        let said = bench.echo.0.borrow();
        assert_eq!((said.opened.as_slice(), said.closed.len()), (&[0, 0][..], 1));
    });
}

#[test]
fn a_broken_rule_is_told_and_the_client_closed_with_an_error() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&[text("fine"), vec![0x81, 1, b'x'], text("after")].concat()).await.unwrap();
        let (opcode, payload) = next(&mut client).await;
        assert_eq!((opcode, close_code(&payload)), (8, 1002));
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "our end is closed at once");
        drop(client);
        bench.until("closed", |said| said.closed == [(0, ClientGone::Error)]).await;
        assert_eq!(bench.echo.0.borrow().packets.len(), 1);
        assert_eq!(bench.report().await.violations_total, 1);
    });
}

#[test]
fn a_frame_must_be_whole_in_time() {
    driven_ahead_of_time(async {
        let bench = Bench::new().await;
        let mut client = bench.client(&text("slow")[..7]).await;
        let (opcode, payload) = next(&mut client).await;
        assert_eq!((opcode, close_code(&payload)), (8, 1008));
    });
}

#[test]
fn pings_are_answered() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&[frame(9, b"1"), frame(9, b"2"), text("then")].concat()).await.unwrap();
        // The second came while the answer to the first was queued.
        assert_eq!(next(&mut client).await, (10, b"1".to_vec()));
        assert_eq!(next_text(&mut client).await, "then");
        client.write_all(&frame(9, b"3")).await.unwrap();
        assert_eq!(next(&mut client).await, (10, b"3".to_vec()));
    });
}

#[test]
fn a_paused_client_is_not_read_until_it_is_resumed() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&text("pause")).await.unwrap();
        bench.until("paused", |said| said.packets.len() == 1 && said.outputs.is_empty()).await;
        client.write_all(&text("later")).await.unwrap();
        let mut other = bench.client(b"").await;
        for _ in 0..10 {
            other.write_all(&text("meanwhile")).await.unwrap();
            assert_eq!(next_text(&mut other).await, "meanwhile");
        }
        assert!(bench.echo.0.borrow().packets.iter().all(|(_, text)| text != "later"));
        bench.say(Output::ResumeReading(ClientIx(0))).await;
        assert_eq!(next_text(&mut client).await, "later");
    });
}

#[test]
fn nothing_meant_for_a_client_that_is_gone_reaches_its_successor() {
    driven(async {
        let bench = Bench::new().await;
        drop(bench.client(b"").await);
        let mut client = bench.client(b"").await;
        client.write_all(&text("mine")).await.unwrap();
        assert_eq!(next_text(&mut client).await, "mine");
    });
}

#[test]
fn queries_are_answered_and_counted() {
    driven(async {
        let bench = Bench::new().await;
        let (tx, rx) = oneshot::channel();
        bench.tx.send(ToShard::Query(Query::NodeStatus, tx)).await.unwrap();
        assert_eq!(rx.await.unwrap(), Err(CommandFailed::NotFound));
        assert_eq!(bench.report().await.queries_open, 0);
    });
}

#[test]
fn a_panic_in_a_clients_task_ends_the_shard() {
    driven(async {
        let bench = Bench::new().await;
        let mut client = bench.client(b"").await;
        client.write_all(&text("panic")).await.unwrap();
        let error = bench.driving.await.unwrap_err();
        assert!(error.is_panic());
    });
}
