//! Bodies both ways.

use super::*;

/// Reads a request's body and says how long it was and what followed it.
async fn measuring() -> SocketAddr {
    server(|mut peer| async move {
        while let Some(head) = peer.head().await {
            let head = head.to_ascii_lowercase();
            let mut trailers = String::new();
            let len = if head.contains("transfer-encoding: chunked") {
                let mut len = 0;
                loop {
                    let line = peer.until(b"\r\n").await.unwrap();
                    let size = std::str::from_utf8(&line).unwrap().trim();
                    let size = usize::from_str_radix(size, 16).unwrap();
                    if size == 0 {
                        break;
                    }
                    len += size;
                    peer.bytes(size + 2).await;
                }
                loop {
                    let line = peer.until(b"\r\n").await.unwrap();
                    if line == b"\r\n" {
                        break len;
                    }
                    trailers.push_str(std::str::from_utf8(&line).unwrap().trim());
                }
            } else {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length = length.map_or(0, |length| length.parse().unwrap());
                peer.bytes(length).await;
                length
            };
            let body = format!("{len} {trailers}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            peer.send(&answer).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn bodies_of_every_form_arrive_whole_and_leave_the_connection_in_step() {
    let rig = rig(&[measuring().await]).await;
    let mut client = Peer::to(rig.addr).await;
    let big = "x".repeat(300_000);
    for (fields, body, expected) in [
        ("Content-Length: 3", "abc".to_owned(), "3 "),
        ("Content-Length: 0", String::new(), "0 "),
        ("Content-Length: 300000", big.clone(), "300000 "),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n".into(), "5 "),
        ("Transfer-Encoding: chunked", "0\r\n\r\n".into(), "0 "),
        (
            "Transfer-Encoding: chunked\r\nTrailer: X-Sum",
            "3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n".into(),
            "3 x-sum: 7",
        ),
        ("Transfer-Encoding: chunked", format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len()), "300000 "),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: app\r\n{fields}\r\n\r\n{body}");
        assert_eq!(client.ask(&request).await.1, expected, "{fields}");
    }
    // Split anywhere.
    for byte in b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" {
        client.stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await.1, "3 ");
}

#[tokio::test]
async fn a_client_that_asks_first_waits_for_the_upstream_s_word() {
    let upstream = server(|mut peer| async move {
        while let Some(head) = peer.head().await {
            assert!(head.contains("expect: 100-continue\r\n"), "{head}");
            if head.starts_with("PUT /no") {
                peer.send("HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
                return;
            }
            peer.send("HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            peer.bytes(3).await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes").await.unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let ask = |target: &str| {
        format!("PUT {target} HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    };
    let mut client = Peer::to(rig.addr).await;
    client.send(&ask("/yes")).await.unwrap();
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 100 "));
    client.send("abc").await.unwrap();
    assert_eq!(client.answer().await.1, "yes");
    client.send(&ask("/no")).await.unwrap();
    let (head, body) = client.answer().await;
    assert_eq!((status(&head), &*body), (413, "no"));
    assert!(head.contains("connection: close"), "what would follow could be body or request: {head}");
}

#[tokio::test]
async fn a_client_whose_upstream_says_nothing_is_told_to_go_on() {
    let rig = rig(&[measuring().await]).await;
    let mut client = Peer::to(rig.addr).await;
    client
        .send("PUT / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .await
        .unwrap();
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 100 "));
    client.send("abc").await.unwrap();
    assert_eq!(client.answer().await.1, "3 ");
}

#[tokio::test]
async fn an_upload_to_a_server_that_does_not_read_stops_at_its_buffers() {
    let (gate, opened) = tokio::sync::watch::channel(false);
    let upstream = server(move |mut peer| {
        let mut opened = opened.clone();
        async move {
            peer.head().await.unwrap();
            opened.wait_for(|opened| *opened).await.unwrap();
            peer.bytes(64 << 20).await;
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    let total = 64_usize << 20;
    client.send(&format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {total}\r\n\r\n")).await.unwrap();
    let written = until_stuck(&mut client.stream, total).await;
    // Two sockets with their buffers on the way, and what we hold.
    assert!(written < 24 << 20, "{written} bytes were taken though nobody reads");
    gate.send(true).unwrap();
    let mut left = total - written;
    let chunk = vec![b'x'; 1 << 20];
    while left > 0 {
        let len = left.min(chunk.len());
        client.stream.write_all(&chunk[..len]).await.unwrap();
        left -= len;
    }
    assert_eq!(client.answer().await.1, "ok");
}

#[tokio::test]
async fn a_download_by_a_client_that_does_not_read_stops_at_its_buffers() {
    let (told, mut written) = tokio::sync::watch::channel(0);
    let total = 64_usize << 20;
    let upstream = server(move |mut peer| {
        let told = told.clone();
        async move {
            peer.head().await.unwrap();
            peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")).await.unwrap();
            let stuck = until_stuck(&mut peer.stream, total).await;
            told.send(stuck).unwrap();
            let chunk = vec![b'x'; 1 << 20];
            let mut left = total - stuck;
            while left > 0 {
                let len = left.min(chunk.len());
                peer.stream.write_all(&chunk[..len]).await.unwrap();
                left -= len;
            }
            peer.head().await;
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&get("/")).await.unwrap();
    let written = *timeout(SOON, written.wait_for(|written| *written > 0)).await.unwrap().unwrap();
    assert!(written < 24 << 20, "{written} bytes were taken though nobody reads");
    client.head().await.unwrap();
    assert_eq!(client.bytes(total).await.len(), total, "and all of it arrives");
}

/// Writes until nothing is taken for a while; how much was.
async fn until_stuck(stream: &mut TcpStream, most: usize) -> usize {
    let chunk = vec![b'x'; 64 << 10];
    let mut written = 0;
    while written < most {
        let len = chunk.len().min(most - written);
        match timeout(Duration::from_millis(300), stream.write(&chunk[..len])).await {
            Ok(len) => written += len.unwrap(),
            Err(_) => break,
        }
    }
    written
}

#[tokio::test]
async fn a_stream_of_events_passes_as_it_comes() {
    let (say, told) = tokio::sync::watch::channel(0_u32);
    let upstream = server(move |mut peer| {
        let mut told = told.clone();
        async move {
            peer.head().await.unwrap();
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
            loop {
                told.changed().await.unwrap();
                let number = *told.borrow_and_update();
                peer.send(&format!("data: {number}\n\n")).await.unwrap();
            }
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&get("/")).await.unwrap();
    assert!(client.head().await.unwrap().contains("transfer-encoding: chunked"), "the head does not wait");
    for number in 1..4 {
        say.send(number).unwrap();
        let event = client.until(b"\n\n\r\n").await.unwrap();
        assert_eq!(String::from_utf8(event).unwrap(), format!("9\r\ndata: {number}\n\n\r\n"));
    }
}
