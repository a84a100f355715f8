//! Requests of polling clients that have come in here, wherever their sessions are.
//!
//! Belongs here: finding the edge of a session, passing requests on and answers back.
//! Stays out: what is done with them at that edge (`polling`, `upgrade`), HTTP (`node`).
//! Units: a request costs two messages, or none but this shard's own where the edge is here.
//! Invariants: every request is answered once, unless its connection breaks first.
//! When it breaks: if the edge dies, or a link to it loses what was under way, nobody knows what became
//! of the request: the session is unknown then, and the client comes back to it by its offset.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Edge;
use crate::id::{Address, EngineSid, NodeRef, Placement};
use crate::shard::{Ctx, Output, RequestIx, TimerKey};
use crate::time::Instant;
use crate::view::View;
use crate::wire::{Body, EngineRefusal, EngineRequest, EngineResponse, ToEngine};

/// A request for a session of a node that nobody here has heard of waits so long for the news: a node that
/// has just joined answers handshakes before all others know it.
const UNKNOWN_HELD: Duration = Duration::from_secs(1);

/// More of them are refused at once: they may be forged.
const UNKNOWN_MAX: usize = 1_024;

/// Requests whose answers are awaited.
#[derive(Debug, Default)]
pub(super) struct Requests {
    asked: BTreeMap<RequestIx, Asked>,
    /// For sessions of nodes that are not known (yet).
    unknown: BTreeMap<RequestIx, Unknown>,
}

#[derive(Debug)]
struct Asked {
    edge: Address,
    /// Who we were when we asked first.
    first: Address,
    sid: EngineSid,
    request: EngineRequest,
    since: Instant,
}

#[derive(Debug)]
struct Unknown {
    sid: EngineSid,
    request: EngineRequest,
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
            let may_come = ctx.view.nodes.iter().all(|node| node.node.id != sid.edge());
            if !may_come || self.requests.unknown.len() >= UNKNOWN_MAX {
                return refuse(ctx, ix);
            }
            self.requests.unknown.insert(ix, Unknown { sid, request, since: ctx.now });
            return ctx.timers.set(ctx.now + UNKNOWN_HELD, TimerKey::Retry);
        };
        self.pass_on(ctx, ix, edge, sid, request, None);
    }

    fn pass_on(
        &mut self,
        ctx: &mut Ctx<'_>,
        ix: RequestIx,
        edge: Address,
        sid: EngineSid,
        request: EngineRequest,
        again: Option<Address>,
    ) {
        let first = again.unwrap_or(self.me);
        let asked = Asked { edge, first, sid, request: request.clone(), since: ctx.now };
        self.requests.asked.insert(ix, asked);
        let request = ToEngine::Request { call: ix.0, sid, request, again };
        ctx.out.send_to_address(edge, lane_of(&sid), Body::ToEngine(request));
    }

    /// Passes on what waits for a node that is known now; what has waited long enough is refused.
    pub(super) fn place_requests(&mut self, ctx: &mut Ctx<'_>) {
        for (ix, Unknown { sid, request, since }) in std::mem::take(&mut self.requests.unknown) {
            match edge_of(ctx.view, &sid) {
                Some(edge) => self.pass_on(ctx, ix, edge, sid, request, None),
                None if ctx.now.since(since) >= UNKNOWN_HELD => refuse(ctx, ix),
                None => drop(self.requests.unknown.insert(ix, Unknown { sid, request, since })),
            }
        }
    }

    /// Its connection broke.
    pub(crate) fn request_gone(&mut self, ctx: &mut Ctx<'_>, ix: RequestIx) {
        self.requests.unknown.remove(&ix);
        if let Some(Asked { edge, sid, .. }) = self.requests.asked.remove(&ix) {
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
        if self.requests.asked.get(&ix).is_some_and(|asked| asked.edge == from) {
            self.requests.asked.remove(&ix);
            ctx.out.push(Output::Respond(ix, response));
        }
    }

    /// Ends the requests for which `lost` holds. Where another life of the node is known, that is asked: the
    /// session is of that life, unknown to it, or has had the request.
    pub(super) fn requests_lost(&mut self, ctx: &mut Ctx<'_>, lost: impl Fn(NodeRef) -> bool) {
        let edges = self.requests.asked.iter().filter(|(_, asked)| lost(asked.edge.node));
        let gone: Vec<RequestIx> = edges.map(|(ix, _)| *ix).collect();
        for ix in gone {
            let Some(asked) = self.requests.asked.remove(&ix) else { continue };
            let Asked { edge, first, sid, request, .. } = asked;
            match edge_of(ctx.view, &sid).filter(|next| next.node != edge.node && !lost(next.node)) {
                Some(next) => self.pass_on(ctx, ix, next, sid, request, Some(first)),
                None => refuse(ctx, ix),
            }
        }
    }

    /// Ends requests that no edge holds for so long: their answers are lost.
    pub(super) fn requests_expire(&mut self, ctx: &mut Ctx<'_>) {
        let held = self.limits.ping_interval + self.limits.ping_timeout + self.limits.upgrade_timeout;
        let now = ctx.now;
        // They were asked in the order of their names.
        while let Some((&ix, asked)) = self.requests.asked.first_key_value()
            && now.since(asked.since) >= held
        {
            self.requests.asked.remove(&ix);
            refuse(ctx, ix);
        }
    }

    /// This node stops: what is held here for other edges ends with what there is, so that its clients
    /// come back by another node.
    pub(super) fn release_requests(&mut self, ctx: &mut Ctx<'_>) {
        for (ix, asked) in self.requests.asked.iter().filter(|(_, asked)| asked.edge.node != self.me.node) {
            let release = ToEngine::Release { call: ix.0, sid: asked.sid };
            ctx.out.send_to_address(asked.edge, lane_of(&asked.sid), Body::ToEngine(release));
        }
    }

    /// No more wait for unknown nodes than may.
    pub(super) fn check_requests(&self) {
        assert!(self.requests.unknown.len() <= UNKNOWN_MAX);
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.asked.is_empty()
    }
}

fn refuse(ctx: &mut Ctx<'_>, ix: RequestIx) {
    ctx.out.push(Output::Respond(ix, EngineResponse::Refused(EngineRefusal::UnknownSid)));
}
