//! What passes, and how.

use super::*;

const ECHO: &str = "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{}";

#[tokio::test]
async fn every_method_passes_with_its_target_and_who_the_client_is() {
    let rig = rig(&[answering(ECHO).await]).await;
    let mut client = Peer::to(rig.addr).await;
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "REPORT"] {
        let request =
            format!("{method} /a/b?c=%20d&uid=alice HTTP/1.1\r\nHost: app\r\nX-Mesh-Uid: eve\r\n\r\n");
        let (head, echoed) = client.ask(&request).await;
        assert_eq!(status(&head), 200, "{method}");
        assert!(echoed.starts_with(&format!("{method} /a/b?c=%20d&uid=alice HTTP/1.1\r\n")), "{echoed}");
        for line in
            ["x-mesh-uid: alice", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "via: 1.1 meshd"]
        {
            assert!(echoed.contains(&format!("{line}\r\n")), "{method}: {line} in {echoed}");
        }
        assert!(!echoed.contains("eve"), "{echoed}");
        assert!(head.contains("via: 1.1 meshd\r\n") && !head.contains("connection:"), "{head}");
    }
}

#[tokio::test]
async fn one_connection_to_an_upstream_serves_many_requests_and_many_clients() {
    let (told, mut connections) = tokio::sync::mpsc::unbounded_channel();
    let upstream = server(move |mut peer| {
        told.send(()).unwrap();
        async move {
            while peer.head().await.is_some() {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    for _ in 0..3 {
        let mut client = Peer::to(rig.addr).await;
        for _ in 0..3 {
            assert_eq!(client.ask(&get("/")).await.1, "ok");
        }
    }
    connections.recv().await.unwrap();
    assert!(connections.try_recv().is_err(), "one connection is enough");
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connection_in_step() {
    let upstream = server(|mut peer| async move {
        while let Some(head) = peer.head().await {
            let answer = match head.split(' ').nth(1).unwrap() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n",
                "/chunked-head" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/empty" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            peer.send(answer).await.unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    for (request, expected, length) in [
        ("GET /204", "204", None),
        ("GET /304", "304", Some("77")),
        ("HEAD /head", "200", Some("77")),
        ("HEAD /chunked-head", "200", None),
    ] {
        client.send(&format!("{request} HTTP/1.1\r\nHost: app\r\n\r\n")).await.unwrap();
        let head = client.head().await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {expected}")), "{request}: {head}");
        let told = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(told, length, "{request}: {head}");
        assert!(!head.contains("transfer-encoding"), "{request}: {head}");
        assert_eq!(client.ask(&get("/")).await.1, "ok", "after {request}");
    }
    client.send(&get("/empty")).await.unwrap();
    client.head().await.unwrap();
    assert_eq!(client.bytes(5).await, b"0\r\n\r\n");
    assert_eq!(client.ask(&get("/")).await.1, "ok");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let rig = rig(&[answering(ECHO).await]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&format!("{}{}{}", get("/1"), get("/2"), get("/3"))).await.unwrap();
    for target in ["/1", "/2", "/3"] {
        assert!(client.answer().await.1.starts_with(&format!("GET {target} ")));
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_answer_it_can_read() {
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    let rig = rig(&[answering(chunks).await]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n").await.unwrap();
    let (answer, whole) = client.rest().await;
    assert!(whole && answer.ends_with("connection: close\r\n\r\nabcdef"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_given_an_end() {
    let upstream = server(|mut peer| async move {
        peer.head().await.unwrap();
        peer.send("HTTP/1.0 200 OK\r\n\r\nold server").await.unwrap();
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&get("/")).await.unwrap();
    client.head().await.unwrap();
    assert_eq!(client.until(b"0\r\n\r\n").await.unwrap(), b"a\r\nold server\r\n0\r\n\r\n");
    client.send(&get("/")).await.unwrap();
    assert!(client.head().await.is_some(), "the client's connection goes on");
}

#[tokio::test]
async fn interim_answers_and_trailers_pass() {
    let upstream = server(|mut peer| async move {
        while peer.head().await.is_some() {
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await.unwrap();
            peer.send(
                "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\nX-Sum: 7\r\nTransfer-Encoding: evil\r\n\r\n",
            )
            .await
            .unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&get("/")).await.unwrap();
    let hints = client.head().await.unwrap();
    assert!(hints.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n"), "{hints}");
    assert!(client.head().await.unwrap().contains("trailer: X-Sum\r\n"));
    let body = client.until(b"\r\n\r\n").await.unwrap();
    assert_eq!(String::from_utf8(body).unwrap(), "2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn a_uid_has_one_upstream_whatever_the_connection() {
    let servers = [named("a").await, named("b").await, named("c").await, named("d").await];
    let rig = rig(&servers).await;
    let mut used = std::collections::BTreeSet::new();
    for number in 0..40 {
        let target = format!("/?uid=user-{number}");
        let first = Peer::to(rig.addr).await.ask(&get(&target)).await.1;
        assert_eq!(Peer::to(rig.addr).await.ask(&get(&target)).await.1, first);
        used.insert(first);
    }
    assert_eq!(used.len(), 4, "all of them have users");
}

#[tokio::test]
async fn a_pinned_uid_goes_where_it_is_pinned_and_elsewhere_when_that_is_gone() {
    let (a, b) = (named("a").await, nobody().await);
    let pins = [("eve".to_owned(), Arc::from(a.to_string())), ("bob".to_owned(), Arc::from(b.to_string()))];
    let settings = Settings { pins: pins.into(), ..settings(&[a, b]) };
    let rig = rig_with(settings, false).await;
    for uid in ["eve", "bob"] {
        assert_eq!(Peer::to(rig.addr).await.ask(&get(&format!("/?uid={uid}"))).await.1, "a", "{uid}");
    }
}

#[tokio::test]
async fn the_upstream_is_named_where_that_is_configured() {
    let a = named("a").await;
    let settings = Settings {
        owner_header: Some("x-owner".into()),
        owner_cookie: Some("agent-info".into()),
        own_host: true,
        ..settings(&[a])
    };
    let rig = rig_with(settings, false).await;
    let (head, _) = Peer::to(rig.addr).await.ask(&get("/")).await;
    assert!(head.contains(&format!("x-owner: {a}\r\n")), "{head}");
    assert!(head.contains(&format!("set-cookie: agent-info={a}; path=/\r\n")), "{head}");
}

/// An Engine.IO server that gives its sessions the name `name`, in the coding that it is told.
async fn engine(name: &'static str, gzip: bool) -> SocketAddr {
    server(move |mut peer| async move {
        while let Some(head) = peer.head().await {
            let mut body = format!(r#"0{{"sid":"{name}-sid","upgrades":[]}}"#).into_bytes();
            let mut fields = "";
            if head.contains("sid=") {
                body = name.as_bytes().to_vec();
            } else if gzip {
                assert!(head.contains("accept-encoding: identity"), "{head}");
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                std::io::Write::write_all(&mut writer, &body).unwrap();
                body = writer.finish().unwrap();
                fields = "Content-Encoding: gzip\r\n";
            }
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n");
            peer.send(&answer).await.unwrap();
            for byte in body {
                peer.stream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await.unwrap();
            }
            peer.send("0\r\n\r\n").await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_handshake_s_answer_is_read_and_passed_on_as_it_was() {
    for gzip in [false, true] {
        let rig = rig_with(Settings { by_uid: false, ..settings(&[engine("a", gzip).await]) }, false).await;
        let mut client = Peer::to(rig.addr).await;
        client.send(&get("/socket.io/?EIO=4&transport=polling")).await.unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(head.contains("content-encoding: gzip"), gzip);
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        client.until(b"0\r\n\r\n").await.unwrap();
        let key = BindingKey::new(&"app".into(), mesh_proto::binding::BindingClass::Sid, "a-sid");
        assert!(rig.proxy.bindings.find(&key).await.is_ok());
        let unknown = client.ask(&get("/socket.io/?EIO=4&transport=polling&sid=nobody")).await;
        assert_eq!((status(&unknown.0), &*unknown.1), (400, r#"{"code":1,"message":"Session ID unknown"}"#));
    }
}

#[tokio::test]
async fn a_client_without_a_uid_stays_by_its_cookie() {
    let servers = [named("a").await, named("b").await, named("c").await];
    let sticky = Settings { sticky_cookie: Some("stick".into()), by_uid: false, ..settings(&servers) };
    let rig = rig_with(sticky, false).await;
    let (head, first) = Peer::to(rig.addr).await.ask(&get("/")).await;
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    assert!(!cookie.contains("127.0.0.1"), "{cookie}");
    for _ in 0..10 {
        let request = format!("GET / HTTP/1.1\r\nHost: app\r\nCookie: x=y; {cookie}\r\n\r\n");
        let (head, name) = Peer::to(rig.addr).await.ask(&request).await;
        assert_eq!((name, head.contains("set-cookie")), (first.clone(), false));
    }
}
