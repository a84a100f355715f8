//! WebSockets: everything is between the two ends.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};

use super::*;

const HANDSHAKE: &str = "GET /ws?uid=alice HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: superchat\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n";

#[tokio::test]
async fn a_handshake_passes_untouched_and_so_do_the_bytes_behind_it() {
    let (told, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let upstream = server(move |mut peer| {
        let told = told.clone();
        async move {
            told.send(peer.head().await.unwrap()).unwrap();
            // The first frame comes with the handshake's answer, and is no frame that a server without the
            // extension could read.
            peer.send(&format!("{ACCEPTED}\u{1}first")).await.unwrap();
            let bytes = peer.bytes(5).await;
            peer.stream.write_all(&bytes).await.unwrap();
            let _ = peer.rest().await;
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    client.send(&format!("{HANDSHAKE}early")).await.unwrap();
    let asked = heads.recv().await.unwrap();
    for line in [
        "sec-websocket-protocol: chat, superchat",
        "sec-websocket-extensions: permessage-deflate; client_max_window_bits",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        "connection: upgrade",
        "upgrade: websocket",
        "x-mesh-uid: alice",
    ] {
        assert!(asked.contains(&format!("{line}\r\n")), "{line} in {asked}");
    }
    let answer = client.head().await.unwrap();
    for line in [
        "sec-websocket-protocol: superchat",
        "sec-websocket-extensions: permessage-deflate; server_no_context_takeover",
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    ] {
        assert!(answer.contains(&format!("{line}\r\n")), "{line} in {answer}");
    }
    assert_eq!(client.bytes(6 + 5).await, b"\x01firstearly");
    assert_eq!(rig.proxy.facts()[0].open, 1, "it counts while it is open");
    drop(client);
    let closed = async {
        while rig.proxy.facts()[0].open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, closed).await.expect("the upstream's side ends with the client's");
}

/// Accepts WebSockets, answers messages, and ends as it is told.
async fn echo_server() -> SocketAddr {
    server(|peer| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(peer.stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            let text = message.to_text().unwrap_or_default();
            let answer = match text {
                "close 4321" => {
                    Message::Close(Some(CloseFrame { code: CloseCode::from(4_321), reason: "why".into() }))
                }
                "die" => return,
                _ if message.is_close() => continue,
                _ if message.is_ping() || message.is_pong() => continue,
                _ => message,
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn messages_and_close_codes_pass_both_ways() {
    let rig = rig(&[echo_server().await]).await;
    let url = format!("ws://{}/ws", rig.addr);
    let connect = || async { tokio_tungstenite::connect_async(url.as_str()).await.unwrap().0 };
    let mut socket = connect().await;
    let big = vec![7_u8; 900_000];
    for message in [Message::text("hello"), Message::binary(big), Message::text("")] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
    socket.send(Message::text("close 4321")).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("no close") };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4_321, "why"));
    let mut socket = connect().await;
    socket.close(Some(CloseFrame { code: CloseCode::from(4_999), reason: "bye".into() })).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("no answer to a close") };
    assert_eq!(u16::from(close.code), 4_999, "answered by the upstream, not by us");
    let mut socket = connect().await;
    socket.send(Message::text("die")).await.unwrap();
    assert!(!matches!(socket.next().await, Some(Ok(_))), "an upstream's death is the client's end");
}

#[tokio::test]
async fn a_refused_handshake_is_an_answer_like_any_other() {
    let upstream = server(|mut peer| async move {
        while let Some(head) = peer.head().await {
            let answer = if head.starts_with("GET /ws") {
                "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            };
            peer.send(answer).await.unwrap();
        }
    })
    .await;
    let rig = rig(&[upstream]).await;
    let mut client = Peer::to(rig.addr).await;
    let (head, body) = client.ask(HANDSHAKE).await;
    assert_eq!((status(&head), &*body), (403, "no"));
    assert_eq!(client.ask(&get("/")).await.1, "ok", "the connection goes on");
    let h2c = HANDSHAKE.replace("Upgrade: websocket", "Upgrade: h2c").replace("/ws?", "/?");
    assert_eq!(client.ask(&h2c).await.1, "ok", "another protocol is not asked for");
}

#[tokio::test]
async fn a_drained_upstream_takes_nobody_new_and_is_let_go_in_the_end() {
    let (a, b) = (echo_server().await, echo_server().await);
    let pins = [("alice".to_owned(), Arc::from(a.to_string()))];
    let rig = rig_with(Settings { pins: pins.into(), ..settings(&[a, b]) }, false).await;
    let url = format!("ws://{}/ws?uid=alice", rig.addr);
    let mut socket = tokio_tungstenite::connect_async(url).await.unwrap().0;
    socket.send(Message::text("hello")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    assert!(rig.proxy.drain(&a.to_string(), Some(Duration::from_millis(200))));
    socket.send(Message::text("still there")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("still there"));
    let end = timeout(SOON, socket.next()).await.expect("an end at the deadline");
    assert!(!matches!(end, Some(Ok(Message::Text(_)))), "{end:?}");
}
