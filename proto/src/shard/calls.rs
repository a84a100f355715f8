//! Questions and commands from outside: the HTTP API, `meshctl explain`.
//!
//! Belongs here: finding the owner, asking again where that is safe, giving up in time; gathering what
//! the edges know for a room's owner.
//! Stays out: what the answers are (`session`, `room`, `edge`).
//! Units: at most `api_calls_max` under way; each ends within `api_timeout`.
//! Invariants: one answer per call. A command to sessions is carried out at most once; a publish is
//! repeated under one id, so it is appended once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Ctx, Output, TimerKey};
use crate::id::{Address, NodeRef, Placement, PublishId, RoomKey};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::session::RETRY_AFTER;
use crate::time::Instant;
use crate::wire::{Answer, Body, CommandFailed, Members, Query};

/// Edges answer a room's owner within this time, or are named as silent.
const GATHER_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Calls {
    me: Address,
    limits: Limits,
    ids: IdKey,
    number: u64,
    calls: BTreeMap<u64, Call>,
    /// Calls that are to be sent, now or at the next retry.
    held: BTreeSet<u64>,
    /// Publishes without an answer: a room takes those of one shard in their order.
    publishes: BTreeMap<RoomKey, BTreeSet<u64>>,
    gathers: BTreeMap<u64, Gather>,
}

/// One call by this node's API.
#[derive(Debug)]
struct Call {
    token: u64,
    query: Query,
    placement: Placement,
    /// Whom it was sent to; `None` while it is to be sent again.
    sent_to: Option<NodeRef>,
    deadline: Instant,
}

/// A question to all edges of a room, on behalf of a caller.
#[derive(Debug)]
struct Gather {
    asker: Address,
    call: u64,
    placement: Placement,
    missing: BTreeSet<Address>,
    members: Members,
    deadline: Instant,
}

impl Calls {
    pub(super) fn new(me: Address, limits: &Limits, ids: IdKey) -> Self {
        Self {
            me,
            limits: limits.clone(),
            ids,
            number: 0,
            calls: BTreeMap::new(),
            held: BTreeSet::new(),
            publishes: BTreeMap::new(),
            gathers: BTreeMap::new(),
        }
    }

    pub(super) fn begin(&mut self, ctx: &mut Ctx<'_>, token: u64, mut query: Query) {
        if self.calls.len() >= self.limits.api_calls_max {
            return ctx.out.push(Output::Answer(token, Err(CommandFailed::Overloaded)));
        }
        let Some(placement) = query.placement(&self.ids) else {
            return ctx.out.push(Output::Answer(token, Err(CommandFailed::NotFound)));
        };
        self.number += 1;
        if let Query::Publish(publish) = &mut query {
            publish.id = PublishId::Api { via: self.me, number: self.number };
            // A volatile event is in no log: nothing can come after it.
            if !publish.event.volatile {
                self.publishes.entry(publish.room.clone()).or_default().insert(self.number);
            }
        }
        let deadline = ctx.now + self.limits.api_timeout;
        ctx.timers.set(deadline, TimerKey::Calls);
        self.calls.insert(self.number, Call { token, query, placement, sent_to: None, deadline });
        self.send(ctx, self.number);
    }

    /// Sends every call that is not under way to the owner of this moment.
    pub(super) fn send_held(&mut self, ctx: &mut Ctx<'_>) {
        for call in std::mem::take(&mut self.held) {
            self.send(ctx, call);
        }
    }

    fn send(&mut self, ctx: &mut Ctx<'_>, call: u64) {
        let Some(c) = self.calls.get_mut(&call) else { return };
        c.sent_to = ctx.view.owner(c.placement);
        let Some(owner) = c.sent_to else {
            self.held.insert(call);
            return;
        };
        if let Query::Publish(publish) = &mut c.query {
            let before = self.publishes.get(&publish.room).and_then(|open| open.range(..call).next_back());
            publish.after = before.filter(|_| !publish.event.volatile).map(|number| (*number, 0));
        }
        ctx.out.send_to_host(owner, c.placement, Body::Query { call, query: c.query.clone() });
    }

    /// The node asked does not own it: nothing was done, ask again soon.
    pub(super) fn on_bounced(&mut self, ctx: &mut Ctx<'_>, call: u64) {
        if let Some(c) = self.calls.get_mut(&call) {
            c.sent_to = None;
            self.held.insert(call);
            ctx.timers.set(ctx.now + RETRY_AFTER, TimerKey::Retry);
        }
    }

    /// The answer may not come any more from nodes for which `lost` holds.
    pub(super) fn on_lost(&mut self, ctx: &mut Ctx<'_>, lost: impl Fn(NodeRef, Placement) -> bool) {
        let lost: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, c)| c.sent_to.is_some_and(|node| lost(node, c.placement)))
            .map(|(&call, _)| call)
            .collect();
        for call in lost {
            let repeatable = match &self.calls[&call].query {
                // It may have been carried out: doing it twice is worse than saying so.
                Query::User { .. } | Query::Session { .. } => false,
                _ => true,
            };
            if repeatable {
                if let Some(c) = self.calls.get_mut(&call) {
                    c.sent_to = None;
                    self.held.insert(call);
                }
            } else {
                self.end(ctx, call, Err(CommandFailed::Timeout));
            }
        }
        self.send_held(ctx);
    }

    fn end(&mut self, ctx: &mut Ctx<'_>, call: u64, answer: Result<Answer, CommandFailed>) {
        if let Some(c) = self.calls.remove(&call) {
            self.held.remove(&call);
            if let Query::Publish(publish) = &c.query
                && let Some(open) = self.publishes.get_mut(&publish.room)
            {
                open.remove(&call);
                if open.is_empty() {
                    self.publishes.remove(&publish.room);
                }
            }
            ctx.out.push(Output::Answer(c.token, answer));
        }
    }

    pub(super) fn on_answer(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: Address,
        call: u64,
        answer: Result<Answer, CommandFailed>,
    ) {
        if let Some(gather) = self.gathers.get_mut(&call) {
            if gather.missing.remove(&from)
                && let Ok(Answer::Members(members)) = answer
            {
                gather.members.sessions += members.sessions;
                gather.members.listed.extend(members.listed);
            }
            if gather.missing.is_empty() {
                self.end_gather(ctx, call);
            }
            return;
        }
        self.end(ctx, call, answer);
    }

    /// Asks every edge of a room who is there.
    pub(super) fn gather(
        &mut self,
        ctx: &mut Ctx<'_>,
        asker: Address,
        call: u64,
        room: &RoomKey,
        list: bool,
        edges: Vec<Address>,
    ) {
        let placement = room.placement();
        if self.gathers.len() >= self.limits.api_calls_max {
            let answer = Err(CommandFailed::Overloaded);
            return ctx.out.send_to_address(asker, placement, Body::Answer { call, answer });
        }
        self.number += 1;
        for &edge in &edges {
            let query = Query::LocalMembers { room: room.clone(), list };
            ctx.out.send_to_address(edge, placement, Body::Query { call: self.number, query });
        }
        let deadline = ctx.now + GATHER_MAX;
        ctx.timers.set(deadline, TimerKey::Calls);
        let missing: BTreeSet<Address> = edges.into_iter().collect();
        let done = missing.is_empty();
        let members = Members::default();
        self.gathers.insert(self.number, Gather { asker, call, placement, missing, members, deadline });
        if done {
            self.end_gather(ctx, self.number);
        }
    }

    fn end_gather(&mut self, ctx: &mut Ctx<'_>, number: u64) {
        let Some(gather) = self.gathers.remove(&number) else { return };
        let mut members = gather.members;
        members.listed.sort_unstable();
        members.listed.truncate(self.limits.members_listed_max);
        members.silent = gather.missing.iter().map(|address| address.node).collect();
        members.silent.dedup();
        let answer = Ok(Answer::Members(members));
        ctx.out.send_to_address(gather.asker, gather.placement, Body::Answer { call: gather.call, answer });
    }

    /// Gives up what is overdue.
    pub(super) fn expire(&mut self, ctx: &mut Ctx<'_>) {
        let due = |deadline: Instant| deadline <= ctx.now;
        let overdue: Vec<(u64, bool)> = self
            .calls
            .iter()
            .filter(|(_, c)| due(c.deadline))
            .map(|(&call, c)| (call, c.sent_to.is_some()))
            .collect();
        let silent: Vec<u64> =
            self.gathers.iter().filter(|(_, g)| due(g.deadline)).map(|(&number, _)| number).collect();
        for (call, was_sent) in overdue {
            let failed = if was_sent { CommandFailed::Timeout } else { CommandFailed::NoOwner };
            self.end(ctx, call, Err(failed));
        }
        for number in silent {
            self.end_gather(ctx, number);
        }
    }

    pub(super) fn on_rebirth(&mut self, me: Address) {
        self.me = me;
        for (number, call) in &mut self.calls {
            call.sent_to = None;
            self.held.insert(*number);
        }
        self.gathers.clear();
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.calls.len() <= self.limits.api_calls_max);
        assert!(self.gathers.len() <= self.limits.api_calls_max);
        let held = self.calls.iter().filter(|(_, c)| c.sent_to.is_none()).map(|(number, _)| number);
        assert!(held.eq(&self.held), "a call to be sent is not filed");
    }
}
