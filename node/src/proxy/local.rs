//! Upstreams that are the servers beside the nodes: one each, called as its node.
//!
//! Belongs here: reaching them, and the list of them as the cluster changes.
//! Stays out: the tunnel to another node (`mesh::tunnel`).

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_proto::view::{NodeState, View};
use tokio::net::TcpStream;

use super::Proxy;
use super::pool::{Dial, Dialling, Stream, prepared};
use crate::handles::ViewWatch;
use crate::mesh::Tunnels;

/// Reaches the server beside a node: this one's by TCP, another's by a tunnel.
pub(crate) struct Local {
    /// This node's name.
    pub(crate) me: Arc<str>,
    /// Where its server listens on the loopback address.
    pub(crate) port: u16,
    /// The product, by which the other node knows its server.
    pub(crate) product: Arc<str>,
    /// The way to other nodes.
    pub(crate) tunnels: Tunnels,
}

impl Dial for Local {
    fn dial<'d>(&'d self, name: &'d Arc<str>) -> Dialling<'d> {
        Box::pin(async move {
            if *name == self.me {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
                prepared(&stream);
                return Ok(Box::new(stream) as Box<dyn Stream>);
            }
            let tunnel = self.tunnels.open(name, &self.product).await?;
            Ok(Box::new(tunnel) as Box<dyn Stream>)
        })
    }
}

/// The names of the nodes that take users.
fn names(view: &View) -> Vec<Arc<str>> {
    let active = view.nodes.iter().filter(|node| node.state() == NodeState::Active);
    active.map(|node| node.name().into()).collect()
}

/// Keeps the list of a product's upstreams as the cluster is, and no tunnels to nodes that are down.
pub(crate) async fn follow(proxy: Arc<Proxy>, tunnels: Tunnels, mut view: ViewWatch) {
    loop {
        let names = {
            let view = view.borrow_and_update();
            tunnels.keep_to(&view);
            names(&view)
        };
        proxy.set_upstreams(&names);
        if view.changed().await.is_err() {
            return;
        }
    }
}
