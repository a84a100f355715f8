//! Garbage on each port, oversized and endless input, readers that do not read: clear answers, and
//! nothing else disturbed (`FAULTS` by number where there is one).

use mesh_tests::cluster::Node;
use mesh_tests::plain::PlainClient;
use mesh_tests::wait::soon;
use mesh_tests::{Cluster, http, until};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// Two members by different nodes whose conversation must go on, whatever else happens.
struct Witnesses(PlainClient, PlainClient);

impl Witnesses {
    async fn of(cluster: &Cluster) -> Self {
        let last = cluster.nodes.last().expect("a node");
        let mut pair = Self(cluster.nodes[0].client("w1").await, last.client("w2").await);
        pair.0.join("witnesses").await;
        pair.1.join("witnesses").await;
        pair
    }

    async fn go_on(&mut self) {
        self.0.say("witnesses", "say", "still").await;
        assert_eq!(self.1.arguments(1).await, ["still"]);
        self.1.say("witnesses", "say", "here").await;
        assert_eq!(self.0.arguments(1).await, ["here"]);
    }
}

fn garbage(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn garbage_on_each_port_disturbs_nobody() {
    let mut cluster = Cluster::start(2).await;
    let mut witnesses = Witnesses::of(&cluster).await;
    let at = cluster.nodes[0].at;
    let noise = garbage(20_000);
    let beginnings: [&[u8]; 6] = [
        &noise,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        &[0; 4_096],
    ];
    for port in [at.client, at.api, at.admin] {
        for bytes in beginnings {
            let mut stream = TcpStream::connect(port).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            // A reset is an answer too.
            let _ = soon("the end of a garbage connection", stream.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{port}: {answer}");
        }
    }
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for len in [0, 1, 20, 100, 1_200, 9_000] {
        for first in [0x00, 0x40, 0x80, 0xc0, 0xff] {
            let mut datagram = garbage(len);
            datagram.first_mut().into_iter().for_each(|byte| *byte = first);
            let _ = udp.send_to(&datagram, at.mesh).await;
        }
    }
    witnesses.go_on().await;
    cluster.agreed().await;
    assert!(!cluster.nodes[0].process().has_ended());
}

#[tokio::test]
async fn requests_that_two_readers_could_read_differently_are_refused() {
    let cluster = Cluster::start(1).await;
    let client = cluster.nodes[0].at.client;
    let refused = [
        ("GET /ws HTTP/1.1\r\n\r\n", 400),
        ("GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /ws HTTP/1.1\nHost: a\n\n", 400),
        ("GET http://elsewhere/ws HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("POST /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST /ws HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        ("GET /demo/state.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
        ("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", 426),
        ("GET /socket.io/?EIO=4&transport=carrier-pigeon HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /socket.io/?EIO=3&transport=polling HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ];
    for (request, status) in refused {
        let answer = http::raw(client, request.as_bytes()).await.unwrap();
        assert_eq!(answer.status, status, "{request:?}: {}", answer.body);
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9_000));
    assert_eq!(http::raw(client, long.as_bytes()).await.unwrap().status, 414);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(65));
    assert_eq!(http::raw(client, many.as_bytes()).await.unwrap().status, 431);
}

#[tokio::test]
async fn an_oversized_message_closes_its_sender_with_1009() {
    let cluster = Cluster::start(1).await;
    let mut witnesses = Witnesses::of(&cluster).await;
    let mut sender = cluster.nodes[0].client("sender").await;
    sender.send_text("x".repeat(1_000_001)).await;
    assert_eq!(sender.closed().await, Some(1009));
    witnesses.go_on().await;
}

#[tokio::test]
async fn a_frame_that_declares_more_than_it_may_is_refused_before_it_comes() {
    let cluster = Cluster::start(1).await;
    let mut stream = websocket_by_hand(&cluster.nodes[0]).await;
    // A masked text frame of 2^62 bytes.
    let mut head = vec![0x81, 0xff];
    head.extend_from_slice(&(1_u64 << 62).to_be_bytes());
    head.extend_from_slice(&[0; 4]);
    stream.write_all(&head).await.unwrap();
    assert_eq!(close_code(&mut stream).await, Some(1009));
}

#[tokio::test]
async fn broken_frames_are_a_protocol_error() {
    let cluster = Cluster::start(1).await;
    let mut witnesses = Witnesses::of(&cluster).await;
    let broken: [(&[u8], u16); 6] = [
        (&[0x81, 0x01, b'x'], 1002),             // not masked
        (&[0xc1, 0x80, 0, 0, 0, 0], 1002),       // a reserved bit
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),       // an unknown opcode
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),       // a continuation of nothing
        (&[0x09, 0x80, 0, 0, 0, 0], 1002),       // a fragmented ping
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007), // text that is not UTF-8
    ];
    for (frame, code) in broken {
        let mut stream = websocket_by_hand(&cluster.nodes[0]).await;
        stream.write_all(frame).await.unwrap();
        assert_eq!(close_code(&mut stream).await, Some(code), "{frame:02x?}");
    }
    witnesses.go_on().await;
}

/// Half-open handshakes hold a place, no more: they are closed in time, and nobody else waits.
#[tokio::test]
async fn half_open_handshakes_end_in_time_and_let_others_in() {
    let quick = [("CLIENT__HEAD_TIMEOUT", "1s")];
    let cluster = Cluster::start_with(1, &quick).await;
    let client = cluster.nodes[0].at.client;
    let mut half_open = Vec::new();
    for index in 0..300 {
        let mut stream = TcpStream::connect(client).await.unwrap();
        let part = &b"GET /ws?uid=a HTTP/1.1\r\nHost: x\r\n"[..index % 30];
        stream.write_all(part).await.unwrap();
        half_open.push(stream);
    }
    Witnesses::of(&cluster).await.go_on().await;
    for stream in &mut half_open {
        let mut answer = Vec::new();
        let _ = soon("the end of a half-open handshake", stream.read_to_end(&mut answer)).await;
        assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408"), "{answer:?}");
    }
    Witnesses::of(&cluster).await.go_on().await;
}

#[tokio::test]
async fn one_client_too_many_is_refused_with_503_and_fits_when_another_leaves() {
    let cluster = Cluster::start_with(1, &[("CLIENT__CONNECTIONS_MAX", "3")]).await;
    let node = &cluster.nodes[0];
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(node.client(&format!("c{index}")).await);
    }
    let refused = http::get(node.at.client, "/ws?uid=late").await.unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.head.to_ascii_lowercase().contains("retry-after:"), "{}", refused.head);
    drop(clients.pop());
    until("a place", || async {
        let answer = http::get(node.at.client, "/ws").await.map_err(|e| e.to_string())?;
        if answer.status == 426 { Ok(()) } else { Err(answer.head) }
    })
    .await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
}

/// A client that never reads is closed, or falls behind; members of the same room notice nothing.
#[tokio::test]
async fn a_client_that_never_reads_delays_nobody() {
    const MESSAGES: usize = 300;
    let cluster = Cluster::start_with(2, &[("LIMITS__CLIENT_STALL_MAX", "2s")]).await;
    let mut reader = cluster.nodes[1].client("reader").await;
    let mut publisher = cluster.nodes[1].client("publisher").await;
    let mut deaf = cluster.nodes[0].client("deaf").await;
    for client in [&mut reader, &mut publisher, &mut deaf] {
        client.join("r").await;
    }
    let text = "x".repeat(50_000);
    for n in 0..MESSAGES {
        publisher.say("r", "say", json!([n, text])).await;
        assert_eq!(reader.arguments(1).await[0][0], n);
    }
    until("the deaf client to be closed or counted as behind", || async {
        let metrics = cluster.nodes[0].admin("/metrics").await?.body;
        let counted = metrics.lines().any(|line| {
            let slow = line.contains("behind_total") || line.contains("too_slow_total");
            slow && !line.starts_with('#') && !line.ends_with(" 0")
        });
        if counted { Ok(()) } else { Err(metrics.lines().filter(|l| l.contains("slow")).collect()) }
    })
    .await;
    assert!(reader.is_alive().await && publisher.is_alive().await);
}

/// A WebSocket at `/ws`, up to the `101`, frames left to the caller.
async fn websocket_by_hand(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.at.client).await.unwrap();
    let request = "GET /ws?product=rooms&uid=hand HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the handshake's answer", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Reads frames of the server until its close frame.
async fn close_code(stream: &mut TcpStream) -> Option<u16> {
    let mut bytes = Vec::new();
    let _ = soon("the end of the connection", stream.read_to_end(&mut bytes)).await;
    let mut rest = bytes.as_slice();
    while let [first, len, after @ ..] = rest {
        let (len, after) = match (*len, after) {
            (126, [a, b, after @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), after),
            (len, after) => (usize::from(len), after),
        };
        if first & 0x0f == 8 {
            return after.first_chunk().map(|code| u16::from_be_bytes(*code));
        }
        rest = after.get(len..)?;
    }
    None
}
