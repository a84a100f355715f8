//! Requests of products of kind `proxy`: handed over with their connection, which comes back for the next.
//!
//! Belongs here: what is handed over. Stays out: what becomes of it (`proxy`).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use super::Door;
use crate::admission::{ClientPlace, Reason};
use crate::identity::{Identified, Product};
use crate::transport::stream::ClientStream;

/// A request whose head has been read and checked, and whose sender is known.
#[derive(Debug)]
pub struct Proxied {
    /// What it is for.
    pub product: Arc<Product>,
    /// Who sent it.
    pub identified: Identified,
    /// Its head, whole; `RequestHead::parse` takes it.
    pub head: Vec<u8>,
    /// What has been read behind the head: of its body, or of the next request.
    pub rest: Vec<u8>,
    /// The client's connection.
    pub stream: ClientStream,
    /// The other end of it.
    pub peer: SocketAddr,
    /// The client: `peer`, or whom a trusted proxy names (then port 0).
    pub remote: SocketAddr,
    /// Whether `peer` is a trusted proxy.
    pub is_from_proxy: bool,
    /// Held while the client is connected.
    pub place: ClientPlace,
}

/// A connection whose request has been answered, ready for the next.
#[derive(Debug)]
pub struct Forwarded {
    /// The client's connection.
    pub stream: ClientStream,
    /// What has been read of the next request.
    pub rest: Vec<u8>,
    /// Held while the client is connected.
    pub place: ClientPlace,
}

/// Takes requests to the servers of their product.
pub trait Forward: Send + Sync {
    /// Answers one request; `None` where its connection is over.
    fn forward(&self, request: Proxied) -> Pin<Box<dyn Future<Output = Option<Forwarded>> + Send>>;
}

impl Door {
    pub(super) async fn forward(&self, request: Proxied) -> Option<Forwarded> {
        if let Some(proxy) = &self.port.proxy {
            return proxy.forward(request).await;
        }
        self.answer_busy(request.stream, Reason::NoUpstream, request.remote.ip()).await;
        None
    }
}
