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

/// What becomes of a connection whose request has been answered.
#[derive(Debug)]
pub enum Forwarded {
    /// It is ready for the next request.
    Kept {
        /// The client's connection.
        stream: ClientStream,
        /// What has been read of the next request.
        rest: Vec<u8>,
        /// Held while the client is connected.
        place: ClientPlace,
    },
    /// It is to be closed in good order.
    Linger(ClientStream),
    /// It is over here.
    Over,
}

/// Takes requests to the servers of their product.
pub trait Forward: Send + Sync {
    /// Answers one request.
    fn forward<'f>(&'f self, request: Proxied) -> Pin<Box<dyn Future<Output = Forwarded> + Send + 'f>>;
}

impl Door {
    pub(super) async fn forward(&self, request: Proxied) -> Forwarded {
        if let Some(proxy) = &self.port.proxy {
            return proxy.forward(request).await;
        }
        self.answer_busy(request.stream, Reason::NoUpstream, request.remote.ip()).await;
        Forwarded::Over
    }
}
