//! The proxied products of a node, and the client port's requests for them.
//!
//! Belongs here: from a request of the client port to its product, and what becomes of the connection.
//! Stays out: what becomes of the request (`forward`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::upstream::UpstreamState;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Asking, Proxy, Served, Settings};
use crate::admission::Admission;
use crate::listener::{Forward, Forwarded, Proxied};
use crate::metrics::{Exposition, Kind, Source};
use crate::tasks::Tasks;
use crate::transport::head::RequestHead;

/// A refusal that is not taken for so long is for nobody.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

type ByName = BTreeMap<Arc<str>, Arc<Proxy>>;

/// Every proxied product of a node.
pub struct Proxies {
    /// Replaced as a whole when settings change.
    by_name: Mutex<Arc<ByName>>,
    admission: Arc<Admission>,
    /// Where connections run that speak another protocol.
    tasks: Tasks,
    /// Closes one of them for each time it is told.
    closing: Arc<Notify>,
    switched: Arc<AtomicUsize>,
}

/// Counts one connection while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Proxies {
    /// These products. `tasks` are those of the client port.
    #[must_use]
    pub fn new(
        products: impl IntoIterator<Item = Arc<Proxy>>,
        admission: Arc<Admission>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let by_name = products.into_iter().map(|proxy| (proxy.name().clone(), proxy)).collect();
        let by_name = Mutex::new(Arc::new(by_name));
        Arc::new(Self { by_name, admission, tasks, closing: Arc::default(), switched: Arc::default() })
    }

    /// The product of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<Proxy>> {
        self.all().get(name).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Arc<BTreeMap<Arc<str>, Arc<Proxy>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over new settings. A product of which only the list of upstreams is another goes on; others are
    /// begun anew by `start`, while what is open at those before goes on.
    pub(crate) fn take_over(
        &self,
        wanted: impl IntoIterator<Item = (Arc<str>, Settings)>,
        start: impl Fn(Arc<str>, Settings) -> Arc<Proxy>,
    ) {
        let mut present = ByName::clone(&self.all());
        let mut next = ByName::new();
        for (name, settings) in wanted {
            let proxy = match present.remove(&name) {
                Some(proxy) if proxy.has(&settings) => {
                    // Those beside the nodes follow from the cluster.
                    if !settings.upstreams.names.is_empty() {
                        proxy.set_upstreams(&settings.upstreams.names);
                    }
                    proxy
                }
                other => {
                    other.inspect(|proxy| proxy.retire());
                    start(name.clone(), settings)
                }
            };
            next.insert(name, proxy);
        }
        present.values().for_each(|proxy| proxy.retire());
        *self.by_name.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Closes so many WebSockets, those that have been open longest.
    pub fn close(&self, count: usize) {
        for _ in 0..count.min(self.switched.load(Ordering::Relaxed)) {
            self.closing.notify_one();
        }
    }

    async fn served(&self, request: Proxied) -> Forwarded {
        let Proxied { product, identified, head, mut rest, mut stream, peer, is_from_proxy, place, .. } =
            request;
        let (Some(proxy), Ok(head)) = (self.named(&product.name), RequestHead::parse(&head)) else {
            return Forwarded::Over;
        };
        let asking = Asking {
            head: &head,
            peer: peer.ip(),
            trusted: is_from_proxy,
            secure: stream.is_secure(),
            uid: identified.uid,
            set_cookie: identified.set_cookie,
            keeps: !self.admission.is_draining(),
        };
        // An answer's last bytes must not wait for the acknowledgement of those before (RFC 896).
        stream.set_nodelay();
        match proxy.serve(&mut stream, &mut rest, asking).await {
            Served::Kept => Forwarded::Kept { stream, rest, place },
            Served::Close => Forwarded::Linger(stream),
            Served::Gone => Forwarded::Over,
            Served::Abort => {
                stream.abort();
                Forwarded::Over
            }
            Served::Refused(response, keeps) => {
                let keeps = keeps && head.method != "HEAD";
                let bytes =
                    if keeps { response.to_kept_bytes() } else { response.to_bytes(head.method == "HEAD") };
                match timeout(REFUSAL_TIMEOUT, stream.write_answer(&bytes)).await {
                    Ok(Ok(())) if keeps => Forwarded::Kept { stream, rest, place },
                    Ok(Ok(())) => Forwarded::Linger(stream),
                    _ => Forwarded::Over,
                }
            }
            Served::Switched(switched) => {
                self.switched.fetch_add(1, Ordering::Relaxed);
                let (counted, closing) = (Counted(self.switched.clone()), self.closing.clone());
                self.tasks.spawn_small("websocket", async move {
                    switched.run(stream, rest, closing).await;
                    drop((counted, place));
                });
                Forwarded::Over
            }
        }
    }
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all().keys()).finish()
    }
}

impl Forward for Proxies {
    fn forward<'f>(&'f self, request: Proxied) -> Pin<Box<dyn Future<Output = Forwarded> + Send + 'f>> {
        Box::pin(self.served(request))
    }
}

impl Source for Proxies {
    fn write(&self, out: &mut Exposition) {
        let switched = self.switched.load(Ordering::Relaxed);
        out.single("meshd_proxied_websockets", Kind::Gauge, "WebSockets open to upstreams.", switched);
        let all = self.all();
        if all.is_empty() {
            return;
        }
        let help = "Proxied requests by their end. Not counted: those refused before a product was chosen or \
                    for want of a uid.";
        out.family("meshd_proxied_requests_total", Kind::Counter, help);
        for proxy in all.values() {
            for (outcome, count) in proxy.counters.ended() {
                out.sample(&[("product", proxy.name()), ("outcome", outcome)], count);
            }
        }
        let help = "Requests sent a second time, on another connection or to another upstream.";
        out.family("meshd_proxied_retries_total", Kind::Counter, help);
        for proxy in all.values() {
            let retried = proxy.counters.retried.load(Ordering::Relaxed);
            out.sample(&[("product", proxy.name())], retried);
        }
        out.family("meshd_upstreams", Kind::Gauge, "Upstreams by state, as this node sees them.");
        for proxy in all.values() {
            let facts = proxy.facts();
            for state in UpstreamState::ALL {
                let count = facts.iter().filter(|facts| facts.state == state).count();
                out.sample(&[("product", proxy.name()), ("state", state.word())], count);
            }
        }
        let help = "Requests and WebSockets open at upstreams, from this node.";
        out.family("meshd_upstream_open", Kind::Gauge, help);
        for proxy in all.values() {
            let open: u64 = proxy.facts().iter().map(|facts| u64::from(facts.open)).sum();
            out.sample(&[("product", proxy.name())], open);
        }
    }
}
