//! The client port against real sockets; the shard's queue is read by the test.

use std::future::ready;
use std::pin::Pin;

use bytes::Bytes;
use mesh_proto::id::ShardIx;
use mesh_proto::shard::{ClientProtocol, NewClient, ProductRules, Refusal};
use mesh_proto::wire::EngineRefusal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::*;
use crate::admission::AdmissionLimits;
use crate::handles::{EngineAsked, ShardHandle};
use crate::identity::{Identified, Product};
use crate::transport::proxies::TrustedProxies;
use crate::transport::query_values;

const UPGRADE: &str = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Knows nobody, and all users of products that are not rooms.
struct Stranger;

impl Doorkeeper for Stranger {
    fn identify(&self, _: &Product, facts: &RequestFacts<'_>) -> Deciding<Identified> {
        let uid = query_values(facts.head.query, "uid").next().map(Arc::from);
        let known = uid.map(|uid| Identified { uid: Some(uid), ..Identified::default() });
        Box::pin(ready(known.ok_or_else(|| Denied::uid("uid_required", "who are you"))))
    }

    fn admit(
        &self,
        product: Result<&Product, Denied>,
        protocol: ClientProtocol,
        facts: &RequestFacts<'_>,
    ) -> Deciding<Admitted> {
        if facts.head.query.contains("busy") {
            let retry_after = Some(Duration::from_secs(3));
            let denied = Denied { status: 503, retry_after, ..Denied::uid("hook_failed", "not now") };
            return Box::pin(ready(Err(denied)));
        }
        let message = format!("{} {}", facts.head.path, facts.head.query);
        let refusal = match product {
            Ok(_) => Refusal { code: "uid_required".into(), message },
            Err(denied) => denied.into(),
        };
        let transport = Transport::WebSocket;
        let client = NewClient { protocol, admission: Err(refusal), offsets: false, transport };
        Box::pin(ready(Ok(Admitted { client, set_cookie: Some("a=b".into()) })))
    }
}

/// `rooms`, also at `/chat`, and a proxy at `/site`.
fn products() -> Products {
    let with_path = |product: Product, path: &str| Product { paths: vec![path.into()], ..product };
    let site = with_path(Product::proxy("site"), "/site");
    Products::new(with_path(Product::rooms(ProductRules::open("rooms")), "/chat"), [site], false)
}

struct Bench {
    addr: SocketAddr,
    inbox: mpsc::Receiver<ToShard>,
    admission: Arc<Admission>,
    tasks: Tasks,
    _settings: watch::Sender<Arc<PortSettings>>,
}

fn bench(limits: AdmissionLimits, head_timeout: Duration, queue_len: usize) -> Bench {
    bench_behind(TrustedProxies::default(), limits, head_timeout, queue_len)
}

fn bench_behind(
    proxies: TrustedProxies,
    limits: AdmissionLimits,
    head_timeout: Duration,
    queue_len: usize,
) -> Bench {
    bench_with(None, proxies, limits, head_timeout, queue_len)
}

fn bench_with(
    proxy: Option<Arc<dyn Forward>>,
    proxies: TrustedProxies,
    limits: AdmissionLimits,
    head_timeout: Duration,
    queue_len: usize,
) -> Bench {
    let (tx, inbox) = mpsc::channel(queue_len);
    let listener = ClientListener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.local_addr();
    let admission = Admission::new(limits, 1);
    let site: Site = Arc::new(|head| (head.path == "/").then(|| Response::json(200, r#""home""#)));
    let policy = RoutePolicy { proxies, ..RoutePolicy::default() };
    let settings = PortSettings { products: Arc::new(products()), doorkeeper: Arc::new(Stranger), policy };
    let (settings_tx, settings) = watch::channel(Arc::new(settings));
    let port = ClientPort {
        shards: Shards(Arc::new([ShardHandle { shard: ShardIx(0), tx }])),
        settings,
        proxy,
        site: Some(site),
        admission: admission.clone(),
        head_timeout,
        message_bytes_max: 1_000,
        requests: Arc::default(),
        clock: Clock::start(),
    };
    let tasks = Tasks::new();
    listener.start(port, None, &tasks).unwrap();
    Bench { addr, inbox, admission, tasks, _settings: settings_tx }
}

fn plain_bench() -> Bench {
    bench(AdmissionLimits::default(), Duration::from_secs(5), 16)
}

/// All that is answered to `request`, until the port closes.
async fn answer(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn opened(bench: &mut Bench) -> OpenedClient {
    match bench.inbox.recv().await {
        Some(ToShard::Client(opened)) => opened,
        other => panic!("not a client: {other:?}"),
    }
}

async fn asked(bench: &mut Bench) -> EngineAsked {
    match bench.inbox.recv().await {
        Some(ToShard::Request(asked)) => asked,
        other => panic!("not a request: {other:?}"),
    }
}

/// One answer of a connection that stays open.
async fn kept_answer(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let mut bytes = [0; 1_024];
        let len = stream.read(&mut bytes).await.unwrap();
        assert!(len > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&bytes[..len]);
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return text.into_owned();
        }
    }
}

#[tokio::test]
async fn requests_of_a_polling_client_follow_one_another_on_a_connection() {
    let mut bench = plain_bench();
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    let polling = "/socket.io/?EIO=4&transport=polling";
    let get = format!("GET {polling} HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n\r\n");
    stream.write_all(get.as_bytes()).await.unwrap();
    let Some(ToShard::Polling(opened)) = bench.inbox.recv().await else { panic!("no handshake") };
    assert!(matches!(opened.client.transport, Transport::Polling(_)));
    opened.answer.send(EngineResponse::Packets("0{}".into())).unwrap();
    let told = kept_answer(&mut stream).await;
    assert!(told.ends_with("\r\n\r\n0{}") && told.contains("text/plain; charset=UTF-8"), "{told}");
    assert!(told.contains("Access-Control-Allow-Origin: *") && !told.contains("Credentials"), "{told}");
    assert_eq!(bench.admission.open(), 2, "the session counts beside its connection");
    let sid = EngineSid::new(mesh_proto::id::NodeId(1), ShardIx(0), [1; 16]).expose_text();
    // Two requests in one write: the second waits for the answer to the first.
    let post = format!("POST {polling}&sid={sid} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let both =
        format!("{post}2\r\n40\r\n0\r\n\r\n{}", get.replace("polling ", &format!("polling&sid={sid} ")));
    stream.write_all(both.as_bytes()).await.unwrap();
    let first = asked(&mut bench).await;
    assert_eq!(first.request, EngineRequest::Post("40".into()));
    assert!(bench.inbox.try_recv().is_err());
    first.answer.send(EngineResponse::Taken).unwrap();
    assert!(kept_answer(&mut stream).await.ends_with("\r\n\r\nok"));
    let second = asked(&mut bench).await;
    assert_eq!(second.request, EngineRequest::Poll);
    let refused = EngineResponse::Refused(EngineRefusal::UnknownSid);
    second.answer.send(refused).unwrap();
    assert!(kept_answer(&mut stream).await.contains(r#"{"code":1,"message":"Session ID unknown"}"#));
    // A held GET whose connection breaks is taken back.
    let get = get.replace("polling ", &format!("polling&sid={sid} "));
    stream.write_all(get.as_bytes()).await.unwrap();
    let held = asked(&mut bench).await;
    drop(stream);
    let Some(ToShard::RequestGone(ix)) = bench.inbox.recv().await else { panic!("not taken back") };
    assert_eq!(ix, held.ix);
}

#[tokio::test]
async fn a_body_over_its_bound_is_told_so_and_ends_the_session() {
    let mut bench = plain_bench();
    let sid = EngineSid::new(mesh_proto::id::NodeId(1), ShardIx(0), [1; 16]).expose_text();
    let target = format!("/socket.io/?EIO=4&transport=polling&sid={sid}");
    let cases = [
        ("Content-Length: 1001\r\n\r\n".to_owned(), "413 "),
        (format!("Transfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n", "x".repeat(1_001)), "413 "),
        ("Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".to_owned(), "400 "),
        ("Content-Type: application/octet-stream\r\nContent-Length: 1\r\n\r\nx".to_owned(), "400 "),
    ];
    for (rest, status) in cases {
        let mut stream = TcpStream::connect(bench.addr).await.unwrap();
        stream.write_all(format!("POST {target} HTTP/1.1\r\nHost: x\r\n{rest}").as_bytes()).await.unwrap();
        let asked = asked(&mut bench).await;
        assert_eq!(asked.request, EngineRequest::Post(Bytes::new()), "no payload: the session ends");
        asked.answer.send(EngineResponse::Refused(EngineRefusal::BadRequest)).unwrap();
        let told = kept_answer(&mut stream).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{told}");
    }
}

#[tokio::test]
async fn every_refusal_is_told_and_closes() {
    let bench = plain_bench();
    let big = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    let cases = [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK", "home"),
        ("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK", "\r\n\r\n"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found", "not_found"),
        (
            "GET /socket.io/?EIO=4&transport=flash HTTP/1.1\r\nHost: x\r\n\r\n",
            "400 Bad Request",
            r#""code":0"#,
        ),
        ("POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nsome body", "405 ", "Allow: GET"),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request", "bad_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request", "bad_request"),
        ("\x16\x03\x01\x02\0\x01\0", "400 Bad Request", "bad_request"),
        (big.as_str(), "431 ", "head_too_large"),
    ];
    for (request, status, words) in cases {
        let shown: String = request.chars().take(40).collect();
        let told = answer(bench.addr, request.as_bytes()).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{shown:?}: {told}");
        assert!(told.contains(words) && told.contains("Connection: close"), "{shown:?}: {told}");
    }
    let counted: u64 = bench.admission.refusals().map(|(_, count)| count).sum();
    assert_eq!(counted, cases.len() as u64 - 2);
}

#[tokio::test]
async fn an_upgrade_reaches_the_shard_with_its_first_frames() {
    let mut bench = plain_bench();
    let request =
        format!("GET /ws?token=t HTTP/1.1\r\nAuthorization: Bearer x\r\nOther: y\r\n{UPGRADE}\u{1}frames");
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    // Byte by byte: the head is whole wherever it is cut.
    stream.set_nodelay(true).unwrap();
    for chunk in request.as_bytes().chunks(9) {
        stream.write_all(chunk).await.unwrap();
        tokio::task::yield_now().await;
    }
    let client = opened(&mut bench).await;
    assert!(client.greeting.starts_with(b"HTTP/1.1 101 "));
    assert!(client.greeting.ends_with(b"Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSet-Cookie: a=b\r\n\r\n"));
    assert_eq!(client.client.protocol, ClientProtocol::Plain);
    assert_eq!(client.client.admission.unwrap_err().message, "/ws token=t");
    let came = client.read_ahead.len();
    assert!(b"\x01frames".starts_with(&client.read_ahead[..]) && came <= 7);
    assert_eq!(bench.admission.open(), 1);
    drop(client.place);
    assert_eq!(bench.admission.open(), 0);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off_in_time() {
    let bench = bench(AdmissionLimits::default(), Duration::from_millis(50), 16);
    let told = answer(bench.addr, b"GET / HTTP/1.1\r\nHost: x\r\nSlow: ").await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    let silent = answer(bench.addr, b"").await;
    assert!(silent.starts_with("HTTP/1.1 408 "), "{silent}");
}

#[tokio::test]
async fn half_open_handshakes_hold_a_place_and_disturb_nobody() {
    let mut bench = plain_bench();
    let mut half_open = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(bench.addr).await.unwrap();
        stream.write_all(b"GET /ws HTTP/1.1\r\n").await.unwrap();
        half_open.push(stream);
    }
    let mut good = TcpStream::connect(bench.addr).await.unwrap();
    good.write_all(format!("GET /ws HTTP/1.1\r\n{UPGRADE}").as_bytes()).await.unwrap();
    let client = opened(&mut bench).await;
    assert_eq!(bench.admission.open(), 501);
    drop((half_open, client));
    while bench.admission.open() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_full_node_says_come_back() {
    let limits = AdmissionLimits { connections_max: 1, ..AdmissionLimits::default() };
    let bench = bench(limits, Duration::from_secs(5), 16);
    let _first = TcpStream::connect(bench.addr).await.unwrap();
    while bench.admission.open() < 1 {
        tokio::task::yield_now().await;
    }
    let told = answer(bench.addr, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("Retry-After: 1"), "{told}");
}

#[tokio::test]
async fn limits_per_address_count_whom_a_trusted_proxy_names() {
    let limits = AdmissionLimits { connections_per_ip_max: 1, ..AdmissionLimits::default() };
    let proxies = TrustedProxies::from_list(&["127.0.0.0/8".into()]).unwrap();
    let mut bench = bench_behind(proxies, limits, Duration::from_secs(5), 16);
    let request =
        |client: &str| format!("GET /ws HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, {client}\r\n{UPGRADE}");
    let mut first = TcpStream::connect(bench.addr).await.unwrap();
    first.write_all(request("2a00:1::1").as_bytes()).await.unwrap();
    let taken = opened(&mut bench).await;
    // One of the same /64, one of another, and one that has passed too many hands.
    let told = answer(bench.addr, request("2a00:1::2").as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("ip_full"), "{told}");
    let mut other = TcpStream::connect(bench.addr).await.unwrap();
    other.write_all(request("2a00:1:0:1::1").as_bytes()).await.unwrap();
    let _other = opened(&mut bench).await;
    let told = answer(bench.addr, request(&"1.1.1.1, ".repeat(10)).as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("hops"), "{told}");
    // The place is given back under the address that took it.
    drop(taken.place);
    let mut again = TcpStream::connect(bench.addr).await.unwrap();
    again.write_all(request("2a00:1::3").as_bytes()).await.unwrap();
    let _again = opened(&mut bench).await;
    assert_eq!(bench.admission.forwarded_ignored(), 0);
}

#[tokio::test]
async fn requests_of_several_clients_on_one_connection_count_for_each() {
    let limits = AdmissionLimits { handshakes_per_ip_per_second: 1, ..AdmissionLimits::default() };
    let proxies = TrustedProxies::from_list(&["127.0.0.1".into()]).unwrap();
    let mut bench = bench_behind(proxies, limits, Duration::from_secs(5), 16);
    let sid = EngineSid::new(mesh_proto::id::NodeId(1), ShardIx(0), [1; 16]).expose_text();
    let get = |client: &str| {
        let line = format!("GET /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1");
        format!("{line}\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n")
    };
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    for client in ["203.0.113.1", "203.0.113.2", "203.0.113.2"] {
        stream.write_all(get(client).as_bytes()).await.unwrap();
        asked(&mut bench).await.answer.send(EngineResponse::Taken).unwrap();
        assert!(kept_answer(&mut stream).await.starts_with("HTTP/1.1 200 "), "{client}");
    }
    stream.write_all(get("203.0.113.1").as_bytes()).await.unwrap();
    let told = kept_answer(&mut stream).await;
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("ip_rate"), "{told}");
}

#[tokio::test]
async fn what_a_stranger_says_of_addresses_is_ignored_and_counted() {
    let bench = plain_bench();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
    assert!(answer(bench.addr, request).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(bench.admission.forwarded_ignored(), 1);
}

#[tokio::test]
async fn a_draining_node_lets_nobody_in_and_serves_who_is_in() {
    let mut bench = plain_bench();
    bench.admission.set_draining(true);
    let polling = "GET /socket.io/?EIO=4&transport=polling";
    for request in
        [format!("GET /ws HTTP/1.1\r\n{UPGRADE}"), format!("{polling} HTTP/1.1\r\nHost: x\r\n\r\n")]
    {
        let told = answer(bench.addr, request.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("draining"), "{told}");
    }
    let sid = EngineSid::new(mesh_proto::id::NodeId(1), ShardIx(0), [1; 16]);
    let request = format!("{polling}&sid={} HTTP/1.1\r\nHost: x\r\n\r\n", sid.expose_text());
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = asked(&mut bench).await;
    assert_eq!((asked.sid, asked.request), (sid, EngineRequest::Poll));
    // Kept connections end with an answer, not with the node under the next request of a balancer.
    asked.answer.send(EngineResponse::Packets("6".into())).unwrap();
    let told = read_to_end(&mut stream).await;
    assert!(
        told.starts_with("HTTP/1.1 200 ") && told.contains("Connection: close") && told.ends_with("6"),
        "{told}"
    );
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    told
}

#[tokio::test]
async fn a_shard_with_a_full_queue_refuses_with_503() {
    let mut bench = bench(AdmissionLimits::default(), Duration::from_secs(5), 1);
    let request = format!("GET /ws HTTP/1.1\r\n{UPGRADE}");
    let mut first = TcpStream::connect(bench.addr).await.unwrap();
    first.write_all(request.as_bytes()).await.unwrap();
    while bench.inbox.is_empty() {
        tokio::task::yield_now().await;
    }
    let told = answer(bench.addr, request.as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("shard_busy"), "{told}");
    opened(&mut bench).await;
}

#[tokio::test]
async fn a_stopped_port_accepts_nobody() {
    let bench = plain_bench();
    assert_eq!(bench.tasks.stop(Duration::from_secs(5)).await, 0);
    assert!(TcpStream::connect(bench.addr).await.is_err());
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let bench = plain_bench();
    let error = ClientListener::bind(bench.addr).unwrap_err();
    assert!(error.to_string().contains(&bench.addr.to_string()));
}

#[tokio::test]
async fn a_beginning_of_paths_chooses_the_product_and_is_taken_off() {
    let mut bench = plain_bench();
    for (target, code, message) in [
        ("/chat/ws?a=b", "uid_required", "/ws a=b"),
        ("/ws?a=b", "uid_required", "/ws a=b"),
        ("/ws?product=nope", "product_unknown", "no such product"),
        ("/socket.io/?EIO=4&transport=websocket&product=nope", "product_unknown", "no such product"),
    ] {
        let mut stream = TcpStream::connect(bench.addr).await.unwrap();
        stream.write_all(format!("GET {target} HTTP/1.1\r\n{UPGRADE}").as_bytes()).await.unwrap();
        let opened = opened(&mut bench).await;
        let refusal = opened.client.admission.unwrap_err();
        assert_eq!(refusal.code, code, "{target}");
        assert!(refusal.message.starts_with(message), "{target}: {refusal:?}");
        let greeting = String::from_utf8(opened.greeting.to_vec()).unwrap();
        assert!(greeting.ends_with("Set-Cookie: a=b\r\n\r\n"), "{greeting}");
    }
    let told = answer(bench.addr, b"GET /other?product=nope HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 404 ") && told.contains("product_unknown"), "{told}");
    let told = answer(bench.addr, b"GET /chat/../site HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
}

#[tokio::test]
async fn who_cannot_be_known_just_now_is_told_to_come_back() {
    let bench = plain_bench();
    let polling = "GET /socket.io/?EIO=4&transport=polling&busy HTTP/1.1\r\nHost: x\r\n\r\n";
    let websocket = format!("GET /ws?busy HTTP/1.1\r\n{UPGRADE}");
    for request in [polling, &websocket] {
        let told = answer(bench.addr, request.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("hook_failed"), "{told}");
        assert!(told.contains("Retry-After: 3\r\n"), "{told}");
    }
}

/// Answers with what it was given, and keeps the connection.
struct Echo;

impl Forward for Echo {
    fn forward<'f>(&'f self, request: Proxied) -> Pin<Box<dyn Future<Output = Forwarded> + Send + 'f>> {
        Box::pin(async move {
            let Proxied { product, identified, head, rest, mut stream, place, .. } = request;
            let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
            let body = format!("{} {} {line}", product.name, identified.uid.unwrap());
            stream.write_all(&Response::json(200, body).to_kept_bytes()).await.unwrap();
            Forwarded::Kept { stream, rest, place }
        })
    }
}

#[tokio::test]
async fn requests_of_a_proxy_are_handed_over_with_their_user_and_their_connection_comes_back() {
    let limits = AdmissionLimits::default();
    let within = Duration::from_secs(5);
    let mut bench = bench_with(Some(Arc::new(Echo)), TrustedProxies::default(), limits, within, 16);
    let mut stream = TcpStream::connect(bench.addr).await.unwrap();
    let site = "GET /site/a?uid=alice HTTP/1.1\r\nHost: x\r\n\r\n";
    let sid = EngineSid::new(mesh_proto::id::NodeId(1), ShardIx(0), [1; 16]).expose_text();
    let poll = format!("GET /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: x\r\n\r\n");
    // Half of the second is read with the first, the third is for this node's own machines.
    let (half, other_half) = site.split_at(20);
    for part in [format!("{site}{half}"), other_half.into()] {
        stream.write_all(part.as_bytes()).await.unwrap();
        let told = kept_answer(&mut stream).await;
        assert!(told.ends_with("site alice GET /site/a?uid=alice HTTP/1.1"), "{told}");
    }
    stream.write_all(poll.as_bytes()).await.unwrap();
    asked(&mut bench).await.answer.send(EngineResponse::Taken).unwrap();
    assert!(kept_answer(&mut stream).await.ends_with("ok"));
    let told = answer(bench.addr, b"GET /site/a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 430 ") && told.contains("uid_required"), "{told}");
    let upgrade = format!("GET /site/ws HTTP/1.1\r\n{UPGRADE}");
    assert!(answer(bench.addr, upgrade.as_bytes()).await.starts_with("HTTP/1.1 430 "));
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_at_once() {
    let bench = plain_bench();
    let told = answer(bench.addr, b"GET /site?uid=a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("no_upstream"), "{told}");
    assert!(told.contains("Retry-After: 1\r\n"), "{told}");
}
