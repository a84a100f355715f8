//! Every node's ring, looked at again and again.
//!
//! Belongs here: one kept connection per admin listener, and the last answer of each.
//! Stays out: what is waited for (`mod`).
//! Invariants: nodes are looked at side by side, so a slow one delays nobody's news; answers of a
//! node that was left out meanwhile count for nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Between an answer and the next question to the same node.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A node that does not answer within this time is asked anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An answer longer than this is none of ours.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Who is on a ring, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) digest: String,
    /// Names and lives.
    pub(crate) nodes: Vec<(String, u64)>,
}

impl Ring {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.life_of(name).is_some()
    }

    /// The life under that name.
    pub(crate) fn life_of(&self, name: &str) -> Option<u64> {
        self.nodes.iter().find(|(node, _)| node == name).map(|(_, life)| *life)
    }

    fn read(body: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(body).ok()?;
        let name = |node: &Value| Some((node["name"].as_str()?.to_owned(), node["incarnation"].as_u64()?));
        let nodes = answer["nodes"].as_array()?.iter().map(name).collect::<Option<_>>()?;
        Some(Self { digest: answer["ring_digest"].as_str()?.to_owned(), nodes })
    }
}

/// A look under way: whose, in which life, what was seen, and the connection for the next one.
type Look = Pin<Box<dyn Future<Output = (usize, u32, Option<Ring>, Option<Connection>)>>>;

type Connection = BufReader<TcpStream>;

/// All nodes' rings as last seen.
#[derive(Default)]
pub(crate) struct Watch {
    nodes: Vec<Watched>,
    /// `None`: left out, or not seen yet.
    rings: Vec<Option<Ring>>,
    looks: FuturesUnordered<Look>,
}

struct Watched {
    admin: SocketAddr,
    /// Rises when the node is left out and when it is put back.
    life: u32,
}

impl Watch {
    /// One more node to look at.
    pub(crate) fn add(&mut self, admin: SocketAddr) {
        let node = self.nodes.len();
        self.nodes.push(Watched { admin, life: 0 });
        self.rings.push(None);
        self.looks.push(look(node, 0, admin, None, Duration::ZERO));
    }

    /// Looks at `node` no more.
    pub(crate) fn leave_out(&mut self, node: usize) {
        self.nodes[node].life += 1;
        self.rings[node] = None;
    }

    /// Looks at `node` again, where it listens now.
    pub(crate) fn put_back(&mut self, node: usize, admin: SocketAddr) {
        let life = self.nodes[node].life + 1;
        self.nodes[node] = Watched { admin, life };
        self.looks.push(look(node, life, admin, None, Duration::ZERO));
    }

    /// The life of the node called `name`, as seen last by anybody.
    pub(crate) fn life_of(&self, name: &str) -> Option<u64> {
        self.rings.iter().flatten().find_map(|ring| ring.life_of(name))
    }

    /// Looks until `done`, asked after each answer; whether that was within `limit`.
    pub(crate) async fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&[Option<Ring>]) -> bool,
    ) -> bool {
        let end = Instant::now() + limit;
        loop {
            if done(&self.rings) {
                return true;
            }
            if timeout_at(end, self.next()).await.is_err() {
                return false;
            }
        }
    }

    /// Goes on looking for `time`.
    pub(crate) async fn run(&mut self, time: Duration) {
        self.until(time, |_| false).await;
    }

    /// Takes in one answer of a node that counts.
    async fn next(&mut self) {
        while let Some((node, life, ring, connection)) = self.looks.next().await {
            let watched = &self.nodes[node];
            if watched.life != life {
                continue;
            }
            self.looks.push(look(node, life, watched.admin, connection, LOOK_EVERY));
            if ring.is_some() {
                self.rings[node] = ring;
                return;
            }
        }
        // Nobody left to look at: the caller's limit ends the wait.
        std::future::pending().await
    }
}

/// One look after `pause`. A connection that fails is made anew by the next look.
fn look(node: usize, life: u32, admin: SocketAddr, connection: Option<Connection>, pause: Duration) -> Look {
    Box::pin(async move {
        sleep(pause).await;
        let seen = timeout(ANSWER_WITHIN, ask(admin, connection)).await;
        match seen {
            Ok(Ok((body, connection))) => (node, life, Ring::read(&body), Some(connection)),
            Ok(Err(_)) | Err(_) => (node, life, None, None),
        }
    })
}

/// `GET /v1/ring` without the circle.
async fn ask(admin: SocketAddr, connection: Option<Connection>) -> io::Result<(Vec<u8>, Connection)> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => {
            let stream = TcpStream::connect(admin).await?;
            stream.set_nodelay(true)?;
            BufReader::new(stream)
        }
    };
    let request = format!("GET /v1/ring?arcs=false HTTP/1.1\r\nHost: {admin}\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut length = None;
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let length = length.filter(|length| *length <= ANSWER_BYTES_MAX);
    let mut body = vec![0; length.ok_or_else(|| io::Error::other("no length"))?];
    connection.read_exact(&mut body).await?;
    Ok((body, connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_read_from_an_answer_and_from_nothing_else() {
        let body = br#"{"node":"n1","ring_digest":"0a","nodes":[{"name":"n1","incarnation":5},{"name":"n2","incarnation":6}],"arcs":[]}"#;
        let ring = Ring::read(body).unwrap();
        assert!(ring.has("n2") && !ring.has("n3") && ring.digest == "0a");
        assert_eq!(ring.life_of("n1"), Some(5));
        assert_eq!(Ring::read(br#"{"error":{"code":"x"}}"#), None);
        assert_eq!(Ring::read(b"<html>"), None);
    }
}
