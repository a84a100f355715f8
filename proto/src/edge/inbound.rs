//! What clients send.
//!
//! Belongs here: packets of both client protocols, up to a numbered packet for the session's owner.
//! Stays out: reading bytes (`engineio`, `socketio`, `plain`), what events mean (`session`).
//! Source: Engine.IO v4, Socket.IO v5; answers to bad input as FAULTS §3 rows 42–63.

use std::sync::Arc;

use bytes::Bytes;

use super::client::Carrier;
use super::{Edge, asks};
use crate::engineio::{self, EnginePacket};
use crate::id::{ClientIx, Placement};
use crate::plain::{self, PlainRequest};
use crate::shard::{Admission, ClientProtocol, CloseCode, Ctx, Packet, Refusal, Uid};
use crate::socketio::{self, ClientPacket, SocketError};
use crate::wire::{DetachReason, Inbound, Payload, SessionIdentity};

impl Edge {
    pub(crate) fn packet(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, packet: Packet) {
        ctx.stats.packets_received_total += 1;
        let Some(client) = self.client(ix) else { return };
        client.heard();
        let is_asked_for = !client.resuming.is_empty();
        if matches!(client.carrier, Carrier::Upgrading(_)) {
            return self.upgrade_packet(ctx, ix, packet);
        }
        match (client.protocol, packet) {
            (ClientProtocol::SocketIo | ClientProtocol::EngineIo, Packet::Text(text)) => {
                self.engine_text(ctx, ix, &text);
            }
            (ClientProtocol::EngineIo, Packet::Binary(bytes)) => {
                self.engine_message(ctx, ix, engineio::read_bytes_event(bytes));
            }
            (ClientProtocol::SocketIo, Packet::Binary(bytes)) => {
                let limits = &self.limits;
                let client = self.clients[ix.0 as usize].as_deref_mut().expect("just seen");
                let whole = client.reassembly.binary(bytes, limits);
                self.socket_packet(ctx, ix, whole);
            }
            (ClientProtocol::Plain, Packet::Text(text)) => self.plain_text(ctx, ix, &text),
            (ClientProtocol::Plain, Packet::Binary(_)) => self.misbehaved(ctx, ix, CloseCode::ProtocolError),
        }
        if is_asked_for {
            self.send_resumes(ctx);
        }
        self.arm(ctx, ix);
    }

    pub(super) fn misbehaved(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, code: CloseCode) {
        ctx.stats.protocol_errors_total += 1;
        self.close(ctx, ix, code, DetachReason::ParseError);
    }

    fn engine_text(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, text: &Bytes) {
        match engineio::decode_text(text) {
            Ok(EnginePacket::Message(text)) if self.is_engine(ix) => {
                self.engine_message(ctx, ix, engineio::read_text_event(&text));
            }
            Ok(EnginePacket::Message(text)) => {
                let limits = &self.limits;
                let client = self.clients[ix.0 as usize].as_deref_mut().expect("checked by the caller");
                let whole = client.reassembly.text(&text, limits);
                self.socket_packet(ctx, ix, whole);
            }
            // Answers to our pings; what only servers say; an upgrade of what is not polling.
            Ok(EnginePacket::Pong(_)) => self.ponged(ctx, ix),
            Ok(EnginePacket::Open | EnginePacket::Upgrade | EnginePacket::Noop) => {}
            Ok(EnginePacket::Close) => {
                self.close(ctx, ix, CloseCode::Normal, DetachReason::TransportClose);
            }
            // In version 4 only the server pings, outside the probe of an upgrade.
            Ok(EnginePacket::Ping(_)) | Err(_) => self.misbehaved(ctx, ix, CloseCode::ProtocolError),
        }
    }

    fn is_engine(&self, ix: ClientIx) -> bool {
        let client = self.clients[ix.0 as usize].as_deref();
        client.is_some_and(|client| client.protocol == ClientProtocol::EngineIo)
    }

    fn engine_message(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, payload: Payload) {
        if let Some(&index) = self.sessions_of(ix).first() {
            self.inbound(ctx, index, Inbound::Event { ack: None, payload });
        }
    }

    fn socket_packet(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        packet: Result<Option<ClientPacket>, SocketError>,
    ) {
        let limits = &self.limits;
        let client = self.clients[ix.0 as usize].as_deref_mut().expect("checked by the caller");
        let awaits = client.reassembly.is_awaiting();
        client.awaits_attachments(ctx.now, awaits, limits);
        match packet {
            Err(error) => self.misbehaved(ctx, ix, error.close_code()),
            Ok(None) => {}
            Ok(Some(ClientPacket::Connect { namespace, auth })) => {
                self.socket_connect(ctx, ix, &namespace, auth.as_deref());
            }
            Ok(Some(packet)) => self.socket_inbound(ctx, ix, packet),
        }
    }

    fn socket_connect(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, namespace: &str, auth: Option<&[u8]>) {
        let client = self.clients[ix.0 as usize].as_deref_mut().expect("checked by the caller");
        let refusal = client.admission.as_ref().err().cloned();
        if let Some(refusal) = refusal {
            self.refuse_connect(ctx, ix, namespace, &refusal);
        } else if !self.connects_twice(ctx, ix, namespace) {
            self.enter(ctx, ix, namespace, auth);
        }
    }

    pub(super) fn refuse_connect(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        namespace: &str,
        refusal: &Refusal,
    ) {
        let mut data = b"{\"code\":".to_vec();
        crate::json::push_string(&mut data, &refusal.code);
        data.push(b'}');
        let data = String::from_utf8(data).unwrap_or_default();
        let packet = socketio::encode_connect_error(namespace, &refusal.message, Some(&data));
        self.reply(ctx, ix, packet);
    }

    /// Lets a client into a namespace that its product has.
    fn enter(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, name: &str, auth: Option<&[u8]>) {
        let limits = self.limits.clone();
        let Some(client) = self.client(ix) else { return };
        let Ok(Admission { product, uid }) = &client.admission else { return };
        let by_auth = matches!(uid, Uid::ByAuth(_));
        let Some(namespace) = product.namespaces.find(name) else {
            let packet = socketio::encode_connect_error(name, "Invalid namespace", None);
            return self.reply(ctx, ix, packet);
        };
        let taken = client.sessions.len() + client.resuming.len() + client.identifying.len();
        if taken >= limits.namespaces_max {
            self.misbehaved(ctx, ix, CloseCode::Policy);
        } else if by_auth {
            self.ask_identity(ctx, ix, namespace, auth);
        } else {
            self.let_in(ctx, ix, namespace, auth);
        }
    }

    /// A client enters a namespace as who it is there.
    pub(super) fn let_in(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: ClientIx,
        namespace: Arc<str>,
        auth: Option<&[u8]>,
    ) {
        let Some(client) = self.client(ix) else { return };
        match Self::resume_asked(auth).filter(|_| client.offsets) {
            Some((pid, offset)) => self.ask_resume(ctx, ix, namespace, pid, offset),
            None => self.connect_with(ctx, ix, &namespace, auth),
        }
    }

    pub(super) fn socket_inbound(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, packet: ClientPacket) {
        let Some(packet) = self.keep_for_identity(ctx, ix, packet) else { return };
        let (namespace, inbound) = match packet {
            ClientPacket::Event { namespace, ack, payload } => (namespace, Inbound::Event { ack, payload }),
            ClientPacket::Ack { namespace, id, payload } => (namespace, Inbound::Ack { id, payload }),
            ClientPacket::Disconnect { namespace } => (namespace, Inbound::Disconnect),
            ClientPacket::Connect { .. } => return,
        };
        let Some(index) = self.session_in(ix, &namespace) else {
            return self.misbehaved(ctx, ix, CloseCode::ProtocolError);
        };
        let inbound = match inbound {
            Inbound::Ack { id, payload } => match asks::own_seq_of(id) {
                Some(id) => Inbound::Ack { id, payload },
                None => return self.room_answered(ctx, index, id, payload),
            },
            inbound => inbound,
        };
        if inbound == Inbound::Disconnect {
            // The stock client may connect to the namespace again over the same transport.
            return self.end_namespace(ctx, index, DetachReason::ClientDisconnect);
        }
        self.inbound(ctx, index, inbound);
    }

    /// The answer to what a room's members are asked: for whoever asks, and for no owner.
    fn room_answered(&mut self, ctx: &mut Ctx<'_>, index: u32, id: u64, payload: Payload) {
        let session = &self.sessions[index as usize];
        let (sid, ix) = (session.identity.sid, session.client);
        self.asks.answered(sid, id, payload);
        if self.asks.is_ready() {
            self.asks.flush(ctx);
        }
        let limits = self.limits.clone();
        if self.client_of(index).count_event(ctx.now, &limits) {
            self.pause_reading(ctx, ix);
        }
    }

    fn plain_text(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, text: &Bytes) {
        match plain::decode(text, &self.limits) {
            Ok(PlainRequest::Event { id, payload }) => {
                let Some(&index) = self.sessions_of(ix).first() else { return };
                self.inbound(ctx, index, Inbound::Event { ack: id, payload });
            }
            Ok(PlainRequest::Ping) => self.reply(ctx, ix, plain::PONG),
            Ok(PlainRequest::Pong) => self.ponged(ctx, ix),
            Err(error) => self.reply(ctx, ix, error.to_packet()),
        }
    }

    /// The client has answered a ping: it has what was written before. Of a polling client each GET says
    /// so, and its answer may be late.
    fn ponged(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx) {
        let Some(client) = self.client(ix) else { return };
        client.ponged();
        if client.polling().is_none() && client.has_answered_all() {
            self.shown(ix);
        }
        self.outbid_rivals(ctx, ix);
    }

    /// The client has what was written before the last [`Self::pinged`].
    pub(super) fn shown(&mut self, ix: ClientIx) {
        let client = self.clients.get(ix.0 as usize).and_then(|c| c.as_deref());
        for &index in client.map_or(&[][..], |client| &client.sessions) {
            if self.sessions[index as usize].ponged() {
                self.unreported.insert(index);
            }
        }
    }

    /// Numbers a packet and keeps it until the owner has confirmed it.
    fn inbound(&mut self, ctx: &mut Ctx<'_>, index: u32, packet: Inbound) {
        let limits = self.limits.clone();
        let session = &mut self.sessions[index as usize];
        let ix = session.client;
        session.push_inbound(packet);
        let over = session.is_over_inbound_bound(&limits);
        let client = self.client_of(index);
        let mut stop = client.count_event(ctx.now, &limits);
        if over {
            stop |= client.wait_for_owner(ctx.now);
        }
        if stop {
            self.pause_reading(ctx, ix);
        }
        self.dirty.insert(index);
    }

    /// A new session for a client that may have one.
    pub(super) fn connect(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, namespace: &Arc<str>) {
        self.connect_with(ctx, ix, namespace, None);
    }

    fn connect_with(&mut self, ctx: &mut Ctx<'_>, ix: ClientIx, namespace: &Arc<str>, auth: Option<&[u8]>) {
        let random = self.random();
        let secret = self.random();
        let namespace = namespace.clone();
        let Some(client) = self.client(ix) else { return };
        client.connected();
        let (protocol, resumable) = (client.protocol, client.offsets);
        let (Ok(Admission { product, .. }), Some(uid)) =
            (client.admission.clone(), client.uid_in(&namespace))
        else {
            return;
        };
        let hello = product.is_app.then(|| Bytes::copy_from_slice(auth.unwrap_or_default()));
        let placement = Placement::of_user(&product.name, &uid);
        let mut number = [0; 8];
        number.copy_from_slice(&random[..8]);
        let number = u64::from_be_bytes(number);
        let (sid, pid) = self.ids.seal_session(placement, number, secret);
        let product = product.name.clone();
        let identity = SessionIdentity { sid, pid, product, uid, namespace, resumable };
        self.begin_session(ctx, ix, identity, placement, protocol, hello);
    }
}
