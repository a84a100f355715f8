//! Links to one product's upstreams that are kept for the next request, and the addresses of their names.
//!
//! Belongs here: opening links; keeping those without a request, within their bound and time.
//! Stays out: requests (`exchange`), health (`mesh_proto::upstream`).
//! What filling up means: a link for which there is no place is closed.
//! Invariants: a link that is taken is open as far as can be known without asking; nothing is kept longer than
//! its upstream has said.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::link::Link;
pub use super::link::Stream;

/// A link without a request is kept so long, or shorter where its upstream says so.
const KEPT: Duration = Duration::from_secs(60);

/// What is subtracted from an upstream's own time: it closes the link then, perhaps as a request is on its way.
const MARGIN: Duration = Duration::from_secs(1);

/// An upstream that says nothing about it closes after 5 s where it is Node's HTTP server.
const KEPT_BY_DEFAULT: Duration = Duration::from_secs(4);

/// A name's addresses are looked up again after this time, when a link is opened.
const RESOLVED: Duration = Duration::from_secs(10);

/// A peer that is gone without a word is noticed after `KEEPALIVE_IDLE` and a few probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A stream on its way.
pub type Dialling<'d> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'd>>;

/// How an upstream is reached.
pub trait Dial: Send + Sync {
    /// Opens a byte stream to the upstream of this name. The caller bounds the time.
    fn dial<'d>(&'d self, name: &'d Arc<str>) -> Dialling<'d>;
}

/// By TCP, to `HOST:PORT`.
#[derive(Debug, Default)]
pub struct ByTcp {
    resolved: Mutex<HashMap<Arc<str>, Resolved>>,
}

/// The addresses of a name, and until when they are not looked up again.
type Resolved = (Vec<SocketAddr>, Instant);

impl ByTcp {
    /// The addresses of a name: those of a moment ago, else looked up; where that fails, the last that were known.
    async fn addresses(&self, name: &Arc<str>) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let known = lock(&self.resolved).get(name).cloned();
        if let Some((addresses, until)) = &known
            && Instant::now() < *until
        {
            return Ok(addresses.clone());
        }
        match tokio::net::lookup_host(&**name).await {
            Ok(found) => {
                let addresses: Vec<SocketAddr> = found.collect();
                let until = Instant::now() + RESOLVED;
                lock(&self.resolved).insert(name.clone(), (addresses.clone(), until));
                Ok(addresses)
            }
            Err(error) => known.map(|(addresses, _)| addresses).ok_or(error),
        }
    }
}

impl Dial for ByTcp {
    fn dial<'d>(&'d self, name: &'d Arc<str>) -> Dialling<'d> {
        Box::pin(async move {
            let addresses = self.addresses(name).await?;
            let stream = TcpStream::connect(&*addresses).await?;
            prepared(&stream);
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Small writes leave at once, and a peer that is gone is noticed.
pub(super) fn prepared(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The kept links.
pub(super) struct Pool {
    dial: Box<dyn Dial>,
    connect_timeout: Duration,
    idle_max: usize,
    idle: Mutex<HashMap<Arc<str>, Vec<Idle>>>,
}

struct Idle {
    link: Link,
    until: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// At most `idle_max` links are kept of each upstream.
    pub(super) fn new(dial: Box<dyn Dial>, connect_timeout: Duration, idle_max: usize) -> Self {
        Self { dial, connect_timeout, idle_max, idle: Mutex::default() }
    }

    /// A link that is kept, if one is still open.
    pub(super) async fn kept(&self, name: &Arc<str>) -> Option<Link> {
        loop {
            let Idle { mut link, until } = lock(&self.idle).get_mut(name)?.pop()?;
            if until <= Instant::now() {
                continue;
            }
            // One look: an end that has arrived is seen, a request that it crosses is another matter.
            let open = poll_fn(|cx| Poll::Ready(link.is_ready(cx))).await;
            if open {
                return Some(link);
            }
        }
    }

    /// A new link.
    ///
    /// # Errors
    /// When none could be opened in time.
    pub(super) async fn opened(&self, name: &Arc<str>) -> io::Result<Link> {
        let opening = async { Link::over(self.dial.dial(name).await?).await };
        timeout(self.connect_timeout, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether a connection is taken; for checks.
    ///
    /// # Errors
    /// When none was.
    pub(super) async fn dialled(&self, name: &Arc<str>) -> io::Result<Box<dyn Stream>> {
        self.dial.dial(name).await
    }

    /// Keeps a link whose request has been answered, if it can be used again.
    pub(super) async fn keep(&self, name: &Arc<str>, mut link: Link) {
        let ready = poll_fn(|cx| Poll::Ready(link.is_ready(cx))).await;
        let told = link.kept_for.map_or(KEPT_BY_DEFAULT, |told| told.saturating_sub(MARGIN)).min(KEPT);
        if !ready || told.is_zero() {
            return;
        }
        link.reused = true;
        let mut idle = lock(&self.idle);
        let kept = idle.entry(name.clone()).or_default();
        if kept.len() < self.idle_max {
            kept.push(Idle { link, until: Instant::now() + told });
        }
    }

    /// Closes what has been kept for its time, and everything of upstreams that are not `listed`.
    pub(super) fn sweep(&self, listed: impl Fn(&str) -> bool) {
        let now = Instant::now();
        lock(&self.idle).retain(|name, kept| {
            kept.retain(|idle| idle.until > now);
            !kept.is_empty() && listed(name)
        });
    }
}

/// What `Keep-Alive: timeout=` says.
pub(super) fn keep_alive_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|item| item.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}
