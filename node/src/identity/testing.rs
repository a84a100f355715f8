//! Requests for tests of whoever decides on them.

use futures_util::FutureExt as _;
use mesh_proto::shard::ClientProtocol;

use super::{Admitted, Denied, Doorkeeper as _, Identified, Identity, Products, RequestFacts};
use crate::transport::head::RequestHead;

/// A request, as it would come in.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) target: String,
    /// Lines that end in CRLF.
    pub(crate) headers: String,
    pub(crate) is_from_proxy: bool,
    pub(crate) is_secure: bool,
}

impl Asking {
    pub(crate) fn by_query(query: &str) -> Self {
        let target = format!("/ws?{query}");
        let (is_from_proxy, is_secure) = (false, false);
        Self { target, headers: String::new(), is_from_proxy, is_secure }
    }

    pub(crate) fn by_header(line: &str) -> Self {
        Self { headers: format!("{line}\r\n"), ..Self::by_query("") }
    }

    pub(crate) fn of<T>(&self, decide: impl FnOnce(&RequestFacts<'_>) -> T) -> T {
        let text = format!("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", self.target, self.headers);
        let head = RequestHead::parse(text.as_bytes()).unwrap();
        let Self { is_from_proxy, is_secure, .. } = *self;
        let remote = ([127, 0, 0, 1], 1).into();
        decide(&RequestFacts { head: &head, remote, is_from_proxy, is_secure })
    }
}

/// The client that a plain WebSocket handshake makes, decided without anybody being asked.
pub(crate) fn admitted(products: &Products, identity: &Identity, asking: &Asking) -> Admitted {
    admitted_as(products, identity, asking, ClientProtocol::Plain)
}

/// The client that a handshake of this protocol makes.
pub(crate) fn admitted_as(
    products: &Products,
    identity: &Identity,
    asking: &Asking,
    protocol: ClientProtocol,
) -> Admitted {
    asking.of(|facts| {
        let chosen = products.chosen(facts.head);
        let product = chosen.as_ref().map(|chosen| &*chosen.product).map_err(Denied::clone);
        let admitting = identity.admit(product, protocol, facts);
        admitting.now_or_never().expect("decided at once").expect("told in its own protocol")
    })
}

/// Who a request of whatever product is of, decided without anybody being asked.
pub(crate) fn identified(
    products: &Products,
    identity: &Identity,
    asking: &Asking,
) -> Result<Identified, Denied> {
    asking.of(|facts| {
        let chosen = products.chosen(facts.head)?;
        identity.identify(&chosen.product, facts).now_or_never().expect("decided at once")
    })
}
