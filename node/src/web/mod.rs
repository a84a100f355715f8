//! What the HTTP API and the admin listener have in common: a small HTTP/1.1 server.
//!
//! Belongs here: connections and their bounds, reading bodies, who may ask, answers.
//! Stays out: what is asked (`api`, `admin`); the client port, which never enters hyper (`transport`).
//! Invariants: every wait has an end; a handler that panics closes its connection and no other.

mod access;
mod lines;
mod reply;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub use access::{Access, BEARER_KEY_BYTES_MIN, BearerKeys, Guard, OpenElsewhere, WeakKey};
pub use lines::{Answer, LINES_WAITING_MAX, Lines};
pub use reply::{Failure, Reply};

use crate::tasks::{OnPanic, Tasks};

/// Connections of one such listener. Full: further ones wait in the kernel's backlog, unanswered,
/// until one closes.
const CONNECTIONS_MAX: usize = 512;

/// A request head, and a connection without requests, may take this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A body may take this long.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections busy when the listener stops get so long to end their request.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to leave a listener alone that cannot accept (no file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// [`Reply`], or [`Answer`] where some answers go on.
    type Answer: Into<Answer> + Send;

    /// Answers one request of `peer`.
    fn handle(
        self: Arc<Self>,
        peer: SocketAddr,
        request: http::Request<Incoming>,
    ) -> impl Future<Output = Self::Answer> + Send;
}

/// Accepts until `tasks` is told to stop. Each connection is one task called `name`.
pub async fn serve<H: Handler>(listener: TcpListener, handler: Arc<H>, name: &'static str, tasks: Tasks) {
    let stopping = tasks.stopping();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stopping.cancelled() => return,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, listener = name, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handler = handler.clone();
        let stopping = stopping.clone();
        tasks.spawn(name, OnPanic::EndTask, async move {
            let _place = place;
            let connection = connection(stream, peer, handler);
            let mut connection = pin!(connection);
            tokio::select! {
                () = &mut connection => {}
                () = stopping.cancelled() => {
                    let _ = tokio::time::timeout(STOP_TIMEOUT, connection).await;
                }
            }
        });
    }
}

async fn connection<H: Handler>(stream: TcpStream, peer: SocketAddr, handler: Arc<H>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let handler = handler.clone();
        async move {
            let head_only = request.method() == http::Method::HEAD;
            let answer: Answer = handler.handle(peer, request).await.into();
            Ok::<_, Infallible>(answer.into_response(head_only))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "HTTP connection ended");
    }
}

/// Reads a body of at most `bytes_max`.
///
/// # Errors
/// 413 when it is longer, 408 when it is not whole in time, 400 when it breaks off.
pub async fn read_body(body: Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    let too_large = || {
        let message = format!("the body is over {bytes_max} bytes");
        Failure::new(http::StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    };
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::bad_request("body", "the body breaks off")),
        Err(_) => {
            Err(Failure::new(http::StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time"))
        }
    }
}

/// The segments of a path, percent-decoded; `None` when one is not UTF-8.
pub(crate) fn path_segments(path: &str) -> Option<Vec<String>> {
    let segments = path.strip_prefix('/').unwrap_or(path).split('/');
    segments.map(decoded_segment).collect()
}

/// Unlike in a query, `+` in a path is a plus.
fn decoded_segment(segment: &str) -> Option<String> {
    crate::transport::percent_decoded(&segment.replace('+', "%2B")).map(std::borrow::Cow::into_owned)
}

/// The parameters of a query, percent-decoded, in order.
///
/// # Errors
/// 400 when one is not UTF-8.
pub(crate) fn query_pairs(query: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
    let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = |text| crate::transport::percent_decoded(text).map(std::borrow::Cow::into_owned);
        decoded(name).zip(decoded(value))
    });
    pairs.collect::<Option<_>>().ok_or_else(|| Failure::bad_request("query", "the query is not UTF-8"))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
