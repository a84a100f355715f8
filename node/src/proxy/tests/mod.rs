//! Proxied requests over real sockets, to servers written here.

mod bodies;
mod failures;
mod requests;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::upstream::UpstreamConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::transport::head::{HeadBuffer, RequestHead};
use crate::transport::query_values;

/// Nothing here takes so long.
const SOON: Duration = Duration::from_secs(10);

/// A product with a port of its own.
struct Rig {
    addr: SocketAddr,
    proxy: Arc<Proxy>,
    _tasks: Tasks,
}

fn settings(upstreams: &[SocketAddr]) -> Settings {
    let names = upstreams.iter().map(|addr| Arc::from(addr.to_string())).collect();
    let upstreams = UpstreamConfig { names, interval: Duration::ZERO, ..UpstreamConfig::default() };
    Settings { upstreams, ..Settings::default() }
}

async fn rig(upstreams: &[SocketAddr]) -> Rig {
    rig_with(settings(upstreams), false).await
}

/// The port takes the uid of `?uid=`.
async fn rig_with(settings: Settings, trusted: bool) -> Rig {
    let tasks = Tasks::new();
    let parts = ProxyParts {
        settings,
        dial: Box::new(ByTcp::default()),
        near: None,
        shards: None,
        clock: Clock::start(),
        tasks: &tasks,
    };
    let proxy = Proxy::start("app".into(), parts);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (serving, group) = (proxy.clone(), tasks.clone());
    tasks.spawn("rig", OnPanic::EndNode, async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let proxy = serving.clone();
            group.spawn("client", OnPanic::EndTask, async move {
                connection(&proxy, stream, peer, trusted).await;
            });
        }
    });
    Rig { addr, proxy, _tasks: tasks }
}

async fn connection(proxy: &Arc<Proxy>, mut stream: TcpStream, peer: SocketAddr, trusted: bool) {
    let mut rest = Vec::new();
    loop {
        let mut buffer = HeadBuffer::default();
        let mut whole = buffer.push(&rest).unwrap();
        while whole.is_none() {
            let mut bytes = [0; 4_096];
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(len) => whole = buffer.push(&bytes[..len]).unwrap(),
            }
        }
        let whole = whole.unwrap();
        rest = buffer.bytes()[whole..].to_vec();
        let head = RequestHead::parse(&buffer.bytes()[..whole]).unwrap();
        let uid = query_values(head.query, "uid").next().map(Arc::from);
        let asking = Asking {
            head: &head,
            peer: peer.ip(),
            trusted,
            secure: false,
            uid,
            set_cookie: None,
            keeps: true,
        };
        match proxy.serve(&mut stream, &mut rest, asking).await {
            Served::Kept => {}
            Served::Close => {
                let _ = stream.shutdown().await;
                let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
                return;
            }
            Served::Refused(response, keeps) => {
                let bytes = if keeps { response.to_kept_bytes() } else { response.to_bytes(false) };
                let _ = stream.write_all(&bytes).await;
                if !keeps {
                    let _ = stream.shutdown().await;
                    let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
                    return;
                }
            }
            Served::Abort => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Served::Gone => return,
            Served::Switched(switched) => return switched.run(stream, rest, Arc::default()).await,
        }
    }
}

/// A server: `serve` is called for each connection.
async fn server<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(Peer) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Peer::of(stream)));
        }
    });
    addr
}

/// One that answers every request with `answer`, and the request's head as body where that has a `{}`.
async fn answering(answer: &'static str) -> SocketAddr {
    server(move |mut peer| async move {
        while let Some(head) = peer.head().await {
            let answer = answer.replace("{len}", &head.len().to_string()).replace("{}", &head);
            if peer.send(&answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A server that tells its name.
async fn named(name: &'static str) -> SocketAddr {
    server(move |mut peer| async move {
        while peer.head().await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            if peer.send(&answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// One end of a connection, read as the tests like.
struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    fn of(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    async fn to(addr: SocketAddr) -> Self {
        Self::of(TcpStream::connect(addr).await.unwrap())
    }

    async fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    /// Everything up to and with `end`; `None` when the other side ends before.
    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                let rest = self.read.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.read, rest));
            }
            let mut bytes = [0; 4_096];
            let read = timeout(SOON, self.stream.read(&mut bytes)).await;
            match read.unwrap_or_else(|_| panic!("{:?} and no more", String::from_utf8_lossy(&self.read))) {
                Ok(0) | Err(_) => return None,
                Ok(len) => self.read.extend_from_slice(&bytes[..len]),
            }
        }
    }

    /// A head, with its empty line.
    async fn head(&mut self) -> Option<String> {
        self.until(b"\r\n\r\n").await.map(|head| String::from_utf8(head).unwrap())
    }

    async fn bytes(&mut self, len: usize) -> Vec<u8> {
        while self.read.len() < len {
            let reading = self.stream.read_buf(&mut self.read);
            let read = timeout(SOON, reading).await.expect("more bytes").unwrap();
            assert!(read > 0, "the end after {:?}", String::from_utf8_lossy(&self.read));
        }
        let rest = self.read.split_off(len);
        std::mem::replace(&mut self.read, rest)
    }

    /// Everything until the other side ends; `false` when it broke off.
    async fn rest(&mut self) -> (String, bool) {
        let mut bytes = std::mem::take(&mut self.read);
        let whole = timeout(SOON, self.stream.read_to_end(&mut bytes)).await.expect("an end").is_ok();
        (String::from_utf8_lossy(&bytes).into_owned(), whole)
    }

    /// An answer with a length, its head in lower case.
    async fn answer(&mut self) -> (String, String) {
        let head = self.head().await.expect("an answer").to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.unwrap_or_else(|| panic!("no length in {head}")).parse().unwrap();
        let body = self.bytes(length).await;
        (head, String::from_utf8(body).unwrap())
    }

    /// One request and its answer.
    async fn ask(&mut self, request: &str) -> (String, String) {
        self.send(request).await.unwrap();
        self.answer().await
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head:?}"))
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n")
}
