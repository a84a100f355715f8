//! Requests of polling clients that have come in here, wherever their sessions are.
//!
//! Belongs here: finding the edge of a session, passing requests on and answers back.
//! Stays out: what is done with them at that edge (`polling`, `upgrade`), HTTP (`node`).
//! Units: a request costs two messages, or none but this shard's own where the edge is here.
//! Invariants: every request is answered once, unless its connection breaks first.
//! When it breaks: if the edge dies, or a link to it loses what was under way, nobody knows what became
//! of the request: the session is unknown then, and the client comes back to it by its offset.

use std::collections::BTreeMap;

use super::Edge;
use crate::id::{Address, EngineSid, NodeRef, Placement};
use crate::shard::{Ctx, Output, RequestIx};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{Body, EngineRefusal, EngineRequest, EngineResponse, ToEngine};

/// Requests whose answers are awaited.
#[derive(Debug, Default)]
pub(super) struct Requests(BTreeMap<RequestIx, Asked>);

#[derive(Debug)]
struct Asked {
    edge: Address,
    sid: EngineSid,
    since: Instant,
}

/// The lane of everything about one Engine.IO session: what is said first comes first.
pub(super) fn lane_of(sid: &EngineSid) -> Placement {
    Placement(sid.spread())
}

/// The shard that made the session, if its node is up.
pub(super) fn edge_of(view: &View, sid: &EngineSid) -> Option<Address> {
    let id = sid.edge();
    let node = view.nodes.iter().rev().find(|n| n.node.id == id)?;
    let exists = node.record.as_ref().is_none_or(|record| sid.shard().0 < record.shards);
    exists.then_some(Address { node: node.node, shard: sid.shard() })
}

impl Edge {
    /// A request has come in.
    pub(crate) fn request(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: RequestIx,
        sid: EngineSid,
        request: EngineRequest,
    ) {
        let Some(edge) = edge_of(ctx.view, &sid) else {
            return ctx.out.push(Output::Respond(ix, EngineResponse::Refused(EngineRefusal::UnknownSid)));
        };
        self.requests.0.insert(ix, Asked { edge, sid, since: ctx.now });
        let request = ToEngine::Request { call: ix.0, sid, request };
        ctx.out.send_to_address(edge, lane_of(&sid), Body::ToEngine(request));
    }

    /// Its connection broke.
    pub(crate) fn request_gone(&mut self, ctx: &mut Ctx<'_>, ix: RequestIx) {
        if let Some(Asked { edge, sid, .. }) = self.requests.0.remove(&ix) {
            let gone = ToEngine::Gone { call: ix.0, sid };
            ctx.out.send_to_address(edge, lane_of(&sid), Body::ToEngine(gone));
        }
    }

    pub(super) fn answered_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        call: u64,
        response: EngineResponse,
    ) {
        let ix = RequestIx(call);
        if self.requests.0.get(&ix).is_some_and(|asked| asked.edge == from) {
            self.requests.0.remove(&ix);
            ctx.out.push(Output::Respond(ix, response));
        }
    }

    /// Ends the requests for which `lost` holds.
    pub(super) fn requests_lost(&mut self, ctx: &mut Ctx<'_>, lost: impl Fn(NodeRef) -> bool) {
        let edges = self.requests.0.iter().filter(|(_, asked)| lost(asked.edge.node));
        let lost: Vec<RequestIx> = edges.map(|(ix, _)| *ix).collect();
        for ix in lost {
            self.requests.0.remove(&ix);
            ctx.out.push(Output::Respond(ix, EngineResponse::Refused(EngineRefusal::UnknownSid)));
        }
    }

    /// Ends requests that no edge holds for so long: their answers are lost.
    pub(super) fn requests_expire(&mut self, ctx: &mut Ctx<'_>) {
        let held = self.limits.ping_interval + self.limits.ping_timeout + self.limits.upgrade_timeout;
        let now = ctx.now;
        // They were asked in the order of their names.
        while let Some((&ix, asked)) = self.requests.0.first_key_value()
            && now.since(asked.since) >= held
        {
            self.requests.0.remove(&ix);
            ctx.out.push(Output::Respond(ix, EngineResponse::Refused(EngineRefusal::UnknownSid)));
        }
    }

    /// This node stops: what is held here for other edges ends with what there is, so that its clients
    /// come back by another node.
    pub(super) fn release_requests(&mut self, ctx: &mut Ctx<'_>) {
        for (ix, asked) in self.requests.0.iter().filter(|(_, asked)| asked.edge.node != self.me.node) {
            let release = ToEngine::Release { call: ix.0, sid: asked.sid };
            ctx.out.send_to_address(asked.edge, lane_of(&asked.sid), Body::ToEngine(release));
        }
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.0.is_empty()
    }
}
