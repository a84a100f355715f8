//! Who is let in: incoming QUIC handshakes, up to the hello, and on to the link they are for.
//!
//! Belongs here: bounds on handshakes, finding the link task of a greeted peer.
//! Stays out: what is said (`hello`), the life of a connection (`link`).
//! Invariants: whatever knocks, at most [`HANDSHAKES_MAX`] handshakes and one per peer are under way
//! at once, and at most one line per second is logged about failed ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::NodeRef;
use quinn::{Connection, Incoming};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::hello::{self, CloseReason, Greeted, HelloError, Local};
use super::peers::{Peer, Peers};
use super::tunnel::{self, TunnelSink};
use crate::tasks::{OnPanic, Tasks};

/// Handshakes of strangers under way at once; more are refused, and their diallers try again.
const HANDSHAKES_MAX: usize = 64;

/// From so many on, a dialler must first show that it can read at its address (QUIC's retry).
const HANDSHAKES_UNPROVEN_MAX: usize = 16;

/// From the first datagram to the peer's hello.
const HELLO_WITHIN: Duration = Duration::from_secs(3);

/// How long a greeted peer may be missing in our view. Its hello can overtake the gossip about it.
const IN_VIEW_WITHIN: Duration = Duration::from_secs(5);

/// One line per so long about handshakes that failed.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Takes in connections until the node stops.
pub(crate) async fn run(
    endpoint: quinn::Endpoint,
    local: Local,
    peers: watch::Receiver<Arc<Peers>>,
    tunnels: TunnelSink,
    tasks: Tasks,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut failures = Failures::default();
    let (failed_tx, mut failed) = tokio::sync::mpsc::channel(HANDSHAKES_MAX);
    let stopping = tasks.stopping();
    loop {
        let incoming = tokio::select! {
            () = stopping.cancelled() => return,
            incoming = endpoint.accept() => incoming,
            Some((from, error)) = failed.recv() => {
                failures.log(from, &error);
                continue;
            }
        };
        let Some(incoming) = incoming else { return };
        let busy = HANDSHAKES_MAX - places.available_permits() >= HANDSHAKES_UNPROVEN_MAX;
        if busy && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        // Peers dial from their mesh port. Strangers that hold all places do not keep them out.
        let known = peers.borrow().has_addr(incoming.remote_address());
        let place = places.clone().try_acquire_owned().ok();
        if place.is_none() && !known {
            incoming.refuse();
            continue;
        }
        let (local, mut peers, failed) = (local.clone(), peers.clone(), failed_tx.clone());
        let tunnels = tunnels.clone();
        tasks.spawn("handshake", OnPanic::EndTask, async move {
            let from = incoming.remote_address();
            let greeted = timeout(HELLO_WITHIN, greet(incoming, &local)).await;
            drop(place);
            match greeted.unwrap_or(Err(HelloError::TimedOut)) {
                Ok(Comes::Peer(greeted)) => hand_over(*greeted, &mut peers).await,
                Ok(Comes::Tunnels(connection)) => match tunnels.get() {
                    Some(serve) => serve(connection),
                    None => CloseReason::NotInView.close(&connection),
                },
                // A full channel means that there is a line about another one anyway.
                Err(error) => drop(failed.try_send((from, error))),
            }
        });
    }
}

/// What a connection is for.
enum Comes {
    Peer(Box<Greeted>),
    Tunnels(Connection),
}

async fn greet(incoming: Incoming, local: &Local) -> Result<Comes, HelloError> {
    let connection = incoming.await?;
    if tunnel::is_wanted(&connection) {
        return Ok(Comes::Tunnels(connection));
    }
    hello::greet_accepting(connection, local).await.map(|greeted| Comes::Peer(Box::new(greeted)))
}

/// Gives the connection to the link task of its peer, waiting until the view has it.
async fn hand_over(greeted: Greeted, peers: &mut watch::Receiver<Arc<Peers>>) {
    let whom = greeted.peer.node;
    match timeout(IN_VIEW_WITHIN, wait_for(whom, peers)).await {
        Ok(Some(peer)) => drop(peer.greeted.try_send(greeted)),
        _ => {
            tracing::info!(peer = ?whom, name = greeted.peer.name, "dialled by a node that is not in the view");
            CloseReason::NotInView.close(&greeted.connection);
        }
    }
}

async fn wait_for(whom: NodeRef, peers: &mut watch::Receiver<Arc<Peers>>) -> Option<Peer> {
    let found = peers.wait_for(|peers| peers.find(whom).is_some()).await.ok()?;
    found.find(whom).cloned()
}

/// Handshakes that failed since the last line about one.
#[derive(Default)]
struct Failures {
    last: Option<Instant>,
    unsaid: u64,
}

impl Failures {
    fn log(&mut self, from: SocketAddr, error: &HelloError) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now < last + LOG_EVERY) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(%from, %error, unsaid = self.unsaid, "mesh handshake failed");
        (self.last, self.unsaid) = (Some(now), 0);
    }
}
