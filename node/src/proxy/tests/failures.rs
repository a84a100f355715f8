//! Upstreams and clients that fail, and what the other side sees.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_that_finds_nobody_goes_elsewhere_once() {
    let rig = rig(&[nobody().await, named("a").await]).await;
    for number in 0..20 {
        let request = format!("POST /?uid={number} HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(
            Peer::to(rig.addr).await.ask(&request).await.1,
            "a",
            "it was not sent, so any may be again"
        );
    }
}

#[tokio::test]
async fn without_any_upstream_the_answer_comes_at_once() {
    let rig = rig(&[]).await;
    let mut client = Peer::to(rig.addr).await;
    let (head, body) = client.ask(&get("/")).await;
    assert!(status(&head) == 503 && head.contains("retry-after: 1"), "{head}");
    assert!(body.contains("no_upstream"), "{body}");
    let (head, _) = client.ask(&get("/")).await;
    assert_eq!(status(&head), 503, "the connection is kept");
    let dead = super::rig(&[nobody().await, nobody().await]).await;
    let (head, body) = Peer::to(dead.addr).await.ask(&get("/")).await;
    assert!(status(&head) == 502 && head.contains("retry-after: 1"), "{head}");
    assert!(body.contains("upstream_unreachable"), "{body}");
}

/// Closes each connection when it has read a head, and counts them.
async fn closing() -> (SocketAddr, Arc<std::sync::atomic::AtomicU32>) {
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = count.clone();
    let addr = server(move |mut peer| {
        let count = counted.clone();
        async move {
            peer.head().await;
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    })
    .await;
    (addr, count)
}

#[tokio::test]
async fn only_what_may_be_repeated_is_sent_again_to_another() {
    for (request, repeated) in [
        ("GET / HTTP/1.1\r\nHost: app\r\n\r\n", true),
        ("DELETE / HTTP/1.1\r\nHost: app\r\n\r\n", true),
        ("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n", false),
        ("PATCH / HTTP/1.1\r\nHost: app\r\n\r\n", false),
        // Some of its body is gone.
        ("PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc", false),
    ] {
        let ((a, at_a), (b, at_b)) = (closing().await, closing().await);
        let rig = rig(&[a, b]).await;
        let (head, _) = Peer::to(rig.addr).await.ask(request).await;
        assert_eq!(status(&head), 502, "{request}");
        let seen = [at_a, at_b].map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
        assert_eq!(seen.iter().sum::<u32>(), 1 + u32::from(repeated), "{request}: {seen:?}");
        assert!(seen.iter().all(|count| *count <= 1), "never twice to one: {request}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_its_upstream_has_closed_does_no_harm() {
    // Answers one request on each connection and closes it, without having said so.
    let upstream = server(|mut peer| async move {
        peer.head().await.unwrap();
        peer.send(OK).await.unwrap();
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    for _ in 0..20 {
        assert_eq!(client.ask(&get("/")).await.1, "ok");
    }
    let upstream = rig.proxy.facts();
    assert_eq!((upstream[0].failed_total, upstream[0].answered_total), (0, 20));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_given_no_end() {
    for (answer, framing) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "chunks"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf", "a chunk"),
    ] {
        let upstream = server(move |mut peer| async move {
            peer.head().await;
            let _ = peer.send(answer).await;
        })
        .await;
        let rig = rig(&[upstream]).await;
        let mut client = Peer::to(rig.addr).await;
        client.send(&get("/")).await.unwrap();
        let (told, _) = client.rest().await;
        assert!(!told.contains("\r\n0\r\n"), "{framing}: {told}");
        assert!(!told.contains("200 OK") || !told.ends_with("100"), "{framing}: {told}");
        // A client that reads until the end of the connection must not take it for the end either.
        let mut client = Peer::to(rig.addr).await;
        client.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n").await.unwrap();
        let (told, whole) = client.rest().await;
        assert!(!whole || told.contains("content-length: 100"), "{framing}: {told}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_such() {
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        let upstream = server(move |mut peer| async move {
            peer.head().await;
            let _ = peer.send(answer).await;
            peer.head().await;
        })
        .await;
        let rig = rig(&[upstream]).await;
        let (head, _) = Peer::to(rig.addr).await.ask(&get("/")).await;
        assert_eq!(status(&head), 502, "{answer:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up_in_time() {
    let upstream = server(|mut peer| async move {
        let _ = peer.rest().await;
    })
    .await;
    let slow = Duration::from_millis(200);
    let settings = Settings { answer_timeout: slow, stream_timeout: slow, ..settings(&[upstream]) };
    let rig = rig_with(settings, false).await;
    for request in [get("/"), "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc".into()] {
        let (head, body) = Peer::to(rig.addr).await.ask(&request).await;
        assert!(status(&head) == 504 && body.contains("upstream_timeout"), "{head}{body}");
    }
    let facts = rig.proxy.facts();
    assert_eq!((facts[0].failed_total, facts[0].open), (2, 0));
}

#[tokio::test]
async fn an_answer_that_hangs_half_way_ends() {
    let upstream = server(|mut peer| async move {
        peer.head().await;
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
        let _ = peer.rest().await;
    })
    .await;
    let slow = Duration::from_millis(200);
    let rig = rig_with(Settings { stream_timeout: slow, ..settings(&[upstream]) }, false).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&get("/")).await.unwrap();
    let (told, _) = client.rest().await;
    assert!(told.is_empty() || told.ends_with("half"), "{told}");
}

#[tokio::test]
async fn a_client_that_goes_takes_its_request_along() {
    let (told, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let upstream = server(move |mut peer| {
        let told = told.clone();
        async move {
            peer.head().await;
            told.send("asked").unwrap();
            // No answer: only the client's end can end this.
            let _ = peer.rest().await;
            told.send("ended").unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let upload = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nsome";
    for request in [get("/"), upload.to_owned()] {
        let mut client = Peer::to(rig.addr).await;
        client.send(&request).await.unwrap();
        assert_eq!(timeout(SOON, ended.recv()).await.unwrap(), Some("asked"));
        drop(client);
        assert_eq!(timeout(SOON, ended.recv()).await.unwrap(), Some("ended"));
    }
    assert_eq!(rig.proxy.facts()[0].failed_total, 0, "that is nobody's fault but the client's");
}

#[tokio::test]
async fn bodies_over_their_bound_or_out_of_form_are_refused() {
    let upstream = server(|mut peer| async move {
        let _ = peer.rest().await;
    })
    .await;
    let rig = rig_with(Settings { body_bytes_max: 10, ..settings(&[upstream]) }, false).await;
    for (request, expected) in [
        ("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 11\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("GET /<script> HTTP/1.1\r\nHost: app\r\n\r\n", 400),
    ] {
        let mut client = Peer::to(rig.addr).await;
        let (head, _) = client.ask(request).await;
        assert_eq!(status(&head), expected, "{request}");
    }
}

#[tokio::test]
async fn a_server_that_leads_back_here_ends_in_a_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let back = listener.local_addr().unwrap();
    let rig = rig(&[back]).await;
    let target = rig.addr;
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut there = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
    let (head, body) = Peer::to(rig.addr).await.ask(&get("/")).await;
    assert_eq!((status(&head), body.contains("loop")), (508, true), "{head}");
}

#[tokio::test]
async fn checks_find_out_who_answers_and_who_only_accepts() {
    let silent = server(|mut peer| async move {
        let _ = peer.rest().await;
    })
    .await;
    let servers = [named("a").await, silent, nobody().await];
    let check = CheckRequest { method: http::Method::GET, path: "/health".into(), good: vec![200..=399] };
    let mut with_checks = Settings { check: Some(check), ..settings(&servers) };
    with_checks.upstreams.interval = Duration::from_millis(50);
    with_checks.upstreams.timeout = Duration::from_millis(50);
    let rig = rig_with(with_checks, false).await;
    let expected = ["up", "down", "down"];
    let found = async {
        loop {
            let facts = rig.proxy.facts();
            let words: Vec<_> = servers
                .iter()
                .filter_map(|addr| facts.iter().find(|facts| *facts.name == *addr.to_string()))
                .map(|facts| facts.state.word())
                .collect();
            if words == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, found).await.unwrap_or_else(|_| panic!("{:?}", rig.proxy.facts()));
    for uid in 0..20 {
        assert_eq!(Peer::to(rig.addr).await.ask(&get(&format!("/?uid={uid}"))).await.1, "a");
    }
}
