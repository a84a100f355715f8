//! Clients that say who they are when they connect to a namespace.
//!
//! Belongs here: the question about it, what waits for the answer, who the client is there.
//! Stays out: reading what was said and believing it: the driver's, for it takes keys and time.
//! Invariants: nobody enters before the answer; what a client sends to the namespace meanwhile is kept in its
//! order and handled after; each namespace has an answer of its own. A client that waits has `connect_timeout`
//! in all, as one that says nothing.
//! What filling up means: with as much waiting as a session may have unconfirmed, the client is not read from.
//! Source: Socket.IO v5, "Connection to a namespace": the `auth` of CONNECT.

use std::sync::Arc;

use bytes::Bytes;

use super::Edge;
use crate::id::ClientIx;
use crate::shard::{Admission, AuthQuestion, CloseCode, Ctx, Output, Refusal, Uid};
use crate::socketio::ClientPacket;

/// A namespace that a client is to enter.
#[derive(Debug)]
pub(super) struct Identifying {
    number: u64,
    namespace: Arc<str>,
    auth: Bytes,
    /// What it has sent there since, and its bytes.
    waiting: Vec<ClientPacket>,
    waiting_bytes: usize,
}

impl Edge {
    /// Asks who a client is in a namespace.
    pub(super) fn ask_identity(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        namespace: Arc<str>,
        auth: Option<&[u8]>,
    ) {
        self.identities_asked += 1;
        let number = self.identities_asked;
        let auth = Bytes::copy_from_slice(auth.unwrap_or_default());
        let Some(client) = self.client(ix) else { return };
        let Ok(Admission { product, .. }) = &client.admission else { return };
        let question = AuthQuestion { client: ix, number, product: product.name.clone(), auth: auth.clone() };
        let waiting = Vec::new();
        client.identifying.push(Identifying { number, namespace, auth, waiting, waiting_bytes: 0 });
        ctx.out.push(Output::Identify(question));
    }

    pub(super) fn is_identifying_in(&self, ix: ClientIx, namespace: &str) -> bool {
        let client = self.clients.get(ix.0 as usize).and_then(|client| client.as_deref());
        client.is_some_and(|client| client.identifying.iter().any(|it| *it.namespace == *namespace))
    }

    /// Keeps a packet for a namespace that its client is about to enter; gives back one for another.
    pub(super) fn keep_for_identity(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        packet: ClientPacket,
    ) -> Option<ClientPacket> {
        let limits = self.limits.clone();
        let Some(client) = self.client(ix) else { return Some(packet) };
        let (name, len) = match &packet {
            ClientPacket::Event { namespace, payload, .. } | ClientPacket::Ack { namespace, payload, .. } => {
                (namespace, payload.len())
            }
            ClientPacket::Connect { namespace, .. } | ClientPacket::Disconnect { namespace } => {
                (namespace, 0)
            }
        };
        let place = client.identifying.iter().position(|it| *it.namespace == **name);
        let Some(place) = place else { return Some(packet) };
        if matches!(packet, ClientPacket::Disconnect { .. }) {
            // The answer will find nobody.
            client.identifying.remove(place);
            if client.identifying.is_empty() && client.owner_confirmed() {
                self.resume_reading(ctx, ix);
            }
            return None;
        }
        let it = &mut client.identifying[place];
        it.waiting.push(packet);
        it.waiting_bytes += len;
        let is_full =
            it.waiting.len() >= limits.inbound_packets_max || it.waiting_bytes >= limits.inbound_bytes_max;
        if is_full && client.wait_for_owner(ctx.now) {
            self.pause_reading(ctx, ix);
        }
        None
    }

    /// It is known who a client is, or why it is not let in.
    pub(crate) fn identified(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        number: u64,
        said: Result<Option<Arc<str>>, Refusal>,
    ) {
        let Some(client) = self.client(ix) else { return };
        let Some(place) = client.identifying.iter().position(|it| it.number == number) else { return };
        let Identifying { namespace, auth, waiting, .. } = client.identifying.remove(place);
        let otherwise = match &client.admission {
            Ok(Admission { uid: Uid::ByAuth(otherwise), .. }) => otherwise.clone(),
            Ok(Admission { uid: Uid::Known(uid), .. }) => Ok(uid.clone()),
            Err(refusal) => Err(refusal.clone()),
        };
        let goes_on = client.identifying.is_empty() && client.owner_confirmed();
        if goes_on {
            self.resume_reading(ctx, ix);
        }
        match said.and_then(|uid| uid.map_or(otherwise, Ok)) {
            Ok(uid) => {
                let Some(client) = self.client(ix) else { return };
                let mut identified = std::mem::take(&mut client.identified);
                // Those it has left are forgotten: what is kept is bounded by the namespaces it is in.
                identified.retain(|(name, _)| {
                    *name != namespace
                        && (self.session_in(ix, name).is_some() || self.is_resuming_in(ix, name))
                });
                identified.push((namespace.clone(), uid));
                if let Some(client) = self.client(ix) {
                    client.identified = identified;
                }
                let auth = Some(&auth[..]).filter(|auth| !auth.is_empty());
                self.let_in(ctx, ix, namespace, auth);
                for packet in waiting {
                    if self.client(ix).is_some() {
                        self.socket_inbound(ctx, ix, packet);
                    }
                }
            }
            Err(refusal) => self.refuse_connect(ctx, ix, &namespace, &refusal),
        }
        self.arm(ctx, ix);
    }

    /// The end of a client that says what makes no sense.
    pub(super) fn connects_twice(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, namespace: &str) -> bool {
        let twice = self.session_in(ix, namespace).is_some()
            || self.is_resuming_in(ix, namespace)
            || self.is_identifying_in(ix, namespace);
        if twice {
            self.misbehaved(ctx, ix, CloseCode::ProtocolError);
        }
        twice
    }
}
