//! What has become of proxied requests.
//!
//! Belongs here: counts by outcome. Stays out: the state of upstreams (`mesh_proto::upstream`).

use std::sync::atomic::{AtomicU64, Ordering};

/// How a proxied request ended. A closed set: it is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Ended {
    /// With an answer below 500.
    Answered,
    /// With the upstream's own error.
    ServerError,
    /// With a WebSocket.
    Switched,
    /// No upstream was fit, or the mesh did not say where to.
    Unavailable,
    /// The upstream could not be reached, or closed without an answer.
    Unreachable,
    /// The upstream did not answer in time.
    TimedOut,
    /// The answer broke off.
    Broken,
    /// The client went.
    ClientGone,
    /// The request could not be passed on.
    Refused,
}

impl Ended {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Answered, "answered"),
        (Self::ServerError, "server_error"),
        (Self::Switched, "switched"),
        (Self::Unavailable, "unavailable"),
        (Self::Unreachable, "unreachable"),
        (Self::TimedOut, "timed_out"),
        (Self::Broken, "broken"),
        (Self::ClientGone, "client_gone"),
        (Self::Refused, "refused"),
    ];
}

/// Counts of one product.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    ended: [AtomicU64; Ended::ALL.len()],
    /// Requests sent a second time.
    pub(crate) retried: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, ended: Ended) {
        self.ended[ended as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every outcome's word and count.
    pub(crate) fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Ended::ALL.into_iter().map(|(ended, word)| (word, self.ended[ended as usize].load(Ordering::Relaxed)))
    }
}
