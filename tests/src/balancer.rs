//! The dumbest balancer there is: each TCP connection goes to the next node.
//!
//! A polling client without keep-alive has a connection for each request, so that each request of it
//! goes through another node than the one before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Balancer {
    /// In front of `nodes`. A node that refuses is passed over for the next one.
    ///
    /// # Panics
    /// When nothing can be bound on loopback.
    pub async fn start(nodes: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let addr = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let first = count.fetch_add(1, Ordering::Relaxed);
                let nodes = nodes.clone();
                tokio::spawn(async move { relay(client, &nodes, first).await });
            }
        });
        Self { addr, connections, task }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, nodes: &[SocketAddr], first: usize) {
    let _ = client.set_nodelay(true);
    for offset in 0..nodes.len() {
        if let Ok(mut node) = TcpStream::connect(nodes[(first + offset) % nodes.len()]).await {
            let _ = node.set_nodelay(true);
            // Either end may break; the other one is closed then.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
            return;
        }
    }
}
