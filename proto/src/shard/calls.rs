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

use super::{Asker, Ctx, Output, TimerKey};
use crate::id::{Address, NodeRef, Placement, PublishId, RoomKey, ShardIx};
use crate::keys::IdKey;
use crate::limits::Limits;
use crate::session::RETRY_AFTER;
use crate::time::Instant;
use crate::wire::{Action, Answer, Ask, AskRef, Body, Broadcast, CommandFailed, Members, Publish, Query};

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
    groups: BTreeMap<u64, Group>,
}

/// One call by this node's API, or a part of one.
#[derive(Debug)]
struct Call {
    whose: Whose,
    query: Query,
    placement: Placement,
    /// Whom it was sent to; `None` while it is to be sent again.
    sent_to: Option<NodeRef>,
    deadline: Instant,
}

/// Who wants to know what edges know.
#[derive(Clone, Copy, Debug)]
enum Asking {
    /// Whoever has asked a room's owner.
    Owner { asker: Address, call: u64, placement: Placement },
    /// Whoever has asked this shard.
    Token(u64),
}

/// Who is answered.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Token(u64),
    Broadcast(u64),
}

/// A broadcast: a publish to each of its rooms.
#[derive(Debug)]
struct Group {
    token: u64,
    /// Rooms that have not answered.
    left: usize,
    /// What the first has answered, or one that has failed.
    outcome: Option<Result<Answer, CommandFailed>>,
    /// Its members are asked: who answers is told by that.
    question: Option<AskRef>,
}

/// A question to edges, on behalf of a caller.
#[derive(Debug)]
struct Gather {
    asking: Asking,
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
            groups: BTreeMap::new(),
        }
    }

    pub(super) fn begin(&mut self, ctx: &mut Ctx<'_>, token: u64, query: Query) {
        let parts = if let Query::Broadcast(broadcast) = &query { broadcast.rooms.len() } else { 1 };
        let is_full = self.gathers.len() >= self.limits.api_calls_max;
        if is_full || self.calls.len() + parts > self.limits.api_calls_max {
            return ctx.out.push(Output::Answer(token, Err(CommandFailed::Overloaded)));
        }
        match query {
            Query::Broadcast(broadcast) => self.begin_broadcast(ctx, token, *broadcast),
            Query::MembersOf { rooms, except_sids, except_rooms } => {
                let query = Query::LocalMembers { rooms, except_sids, except_rooms, list: true };
                let edges = all_edges(ctx, self.me);
                self.gather(ctx, Asking::Token(token), &query, edges);
            }
            query => self.begin_one(ctx, token, query),
        }
    }

    /// Publishes to each room under one id: the rooms' dedupe tells repeats of each.
    fn begin_broadcast(&mut self, ctx: &mut Ctx<'_>, token: u64, broadcast: Broadcast) {
        let Broadcast { rooms, mut event, action, within_ms } = broadcast;
        if rooms.is_empty() {
            return ctx.out.push(Output::Answer(token, Err(CommandFailed::NotFound)));
        }
        let within = Duration::from_millis(within_ms.unwrap_or(0).into());
        let name = within_ms.map(|_| ctx.ask(Asker::Token(token), rooms.iter().cloned(), within));
        let question = match name {
            Some(None) => return ctx.out.push(Output::Answer(token, Err(CommandFailed::Overloaded))),
            Some(question) => question,
            None => None,
        };
        event.asks = asks_of(self.me, question, within_ms.unwrap_or(0), action);
        // Who is to answer has to be known: a volatile event is in no log.
        event.volatile &= event.asks.is_none();
        if rooms.len() > 1 {
            event.also = rooms.iter().map(|room| room.room().into()).collect();
        }
        self.number += 1;
        let group = self.number;
        self.groups.insert(group, Group { token, left: rooms.len(), outcome: None, question });
        for room in rooms {
            self.publishes.entry(room.clone()).or_default().insert(group);
            let id = PublishId::Api { via: self.me, number: group };
            let publish = Publish { room, id, dedupe: None, event: event.clone(), after: None };
            let placement = publish.room.placement();
            self.file(ctx, Whose::Broadcast(group), Query::Publish(publish), placement);
        }
    }

    fn begin_one(&mut self, ctx: &mut Ctx<'_>, token: u64, mut query: Query) {
        let Some(placement) = query.placement(&self.ids) else {
            return ctx.out.push(Output::Answer(token, Err(CommandFailed::NotFound)));
        };
        if let Query::Publish(publish) = &mut query {
            let number = self.number + 1;
            publish.id = PublishId::Api { via: self.me, number };
            // A volatile event is in no log: nothing can come after it.
            if !publish.event.volatile {
                self.publishes.entry(publish.room.clone()).or_default().insert(number);
            }
        }
        self.file(ctx, Whose::Token(token), query, placement);
    }

    fn file(&mut self, ctx: &mut Ctx<'_>, whose: Whose, query: Query, placement: Placement) {
        self.number += 1;
        let deadline = ctx.now + self.limits.api_timeout;
        ctx.timers.set(deadline, TimerKey::Calls);
        self.calls.insert(self.number, Call { whose, query, placement, sent_to: None, deadline });
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
            let PublishId::Api { number, .. } = publish.id else { return };
            let before = self.publishes.get(&publish.room).and_then(|open| open.range(..number).next_back());
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
                && let PublishId::Api { number, .. } = publish.id
                && let Some(open) = self.publishes.get_mut(&publish.room)
            {
                open.remove(&number);
                if open.is_empty() {
                    self.publishes.remove(&publish.room);
                }
            }
            match (c.whose, c.query) {
                (Whose::Token(token), _) => ctx.out.push(Output::Answer(token, answer)),
                (Whose::Broadcast(group), Query::Publish(publish)) => {
                    self.part_ended(ctx, group, &publish.room, answer);
                }
                (Whose::Broadcast(_), _) => {}
            }
        }
    }

    /// One room of a broadcast has answered. Of several, one that has failed says how.
    fn part_ended(
        &mut self,
        ctx: &mut Ctx<'_>,
        number: u64,
        room: &RoomKey,
        answer: Result<Answer, CommandFailed>,
    ) {
        let Some(group) = self.groups.get_mut(&number) else { return };
        if let (Some(question), true) = (group.question, answer.is_err()) {
            ctx.ask_refused(question, room);
        }
        if group.outcome.is_none() || answer.is_err() {
            group.outcome = Some(answer);
        }
        group.left -= 1;
        if group.left == 0
            && let Some(Group { token, outcome: Some(outcome), question: None, .. }) =
                self.groups.remove(&number)
        {
            ctx.out.push(Output::Answer(token, outcome));
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

    /// Asks every edge of a room who is there. Just after a change of the ring, edges may not have subscribed
    /// at the room's new owner yet: then all are asked.
    pub(super) fn gather_room(
        &mut self,
        ctx: &mut Ctx<'_>,
        asker: Address,
        call: u64,
        room: RoomKey,
        list: bool,
        edges: Vec<Address>,
    ) {
        let placement = room.placement();
        if self.gathers.len() >= self.limits.api_calls_max {
            let answer = Err(CommandFailed::Overloaded);
            return ctx.out.send_to_address(asker, placement, Body::Answer { call, answer });
        }
        let edges = if ctx.pace.is_moving(ctx.now) { all_edges(ctx, self.me) } else { edges };
        let (except_sids, except_rooms) = (Vec::new(), Vec::new());
        let query = Query::LocalMembers { rooms: vec![room], except_sids, except_rooms, list };
        self.gather(ctx, Asking::Owner { asker, call, placement }, &query, edges);
    }

    fn gather(&mut self, ctx: &mut Ctx<'_>, asking: Asking, query: &Query, edges: Vec<Address>) {
        self.number += 1;
        for &edge in &edges {
            let query = Body::Query { call: self.number, query: query.clone() };
            ctx.out.send_to_address(edge, Placement(0), query);
        }
        let deadline = ctx.now + GATHER_MAX;
        ctx.timers.set(deadline, TimerKey::Calls);
        let missing: BTreeSet<Address> = edges.into_iter().collect();
        let done = missing.is_empty();
        let members = Members::default();
        self.gathers.insert(self.number, Gather { asking, missing, members, deadline });
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
        match gather.asking {
            Asking::Owner { asker, call, placement } => {
                ctx.out.send_to_address(asker, placement, Body::Answer { call, answer });
            }
            Asking::Token(token) => ctx.out.push(Output::Answer(token, answer)),
        }
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
            let answer = match &self.calls[&call] {
                // Who is in the room is known to the silent node alone: that is an answer.
                Call { query: Query::Members { .. }, sent_to: Some(owner), .. } => {
                    Ok(Answer::Members(Members { silent: vec![*owner], ..Members::default() }))
                }
                _ if was_sent => Err(CommandFailed::Timeout),
                _ => Err(CommandFailed::NoOwner),
            };
            self.end(ctx, call, answer);
        }
        for number in silent {
            self.end_gather(ctx, number);
        }
    }

    pub(super) fn on_rebirth(&mut self, ctx: &mut Ctx<'_>, me: Address) {
        // What edges say to the former life does not come.
        let gathers: Vec<u64> = self.gathers.keys().copied().collect();
        gathers.into_iter().for_each(|number| self.end_gather(ctx, number));
        self.me = me;
        for (number, call) in &mut self.calls {
            call.sent_to = None;
            self.held.insert(*number);
        }
    }

    pub(super) fn check_invariants(&self) {
        let parts = self.calls.values().filter(|c| matches!(c.whose, Whose::Broadcast(_))).count();
        assert_eq!(parts, self.groups.values().map(|g| g.left).sum::<usize>(), "a broadcast is miscounted");
        assert!(self.calls.len() <= self.limits.api_calls_max);
        assert!(self.gathers.len() <= self.limits.api_calls_max);
        let held = self.calls.iter().filter(|(_, c)| c.sent_to.is_none()).map(|(number, _)| number);
        assert!(held.eq(&self.held), "a call to be sent is not filed");
    }
}

/// Every shard of every node that is up.
fn all_edges(ctx: &Ctx<'_>, me: Address) -> Vec<Address> {
    let shards = |node: NodeRef| {
        let own = (node == me.node).then_some(ctx.out.shards);
        own.or_else(|| Some(ctx.view.node(node)?.record.as_ref()?.shards)).unwrap_or(1)
    };
    let nodes = ctx.view.nodes.iter().map(|info| info.node);
    nodes.flat_map(|node| (0..shards(node)).map(move |n| Address { node, shard: ShardIx(n) })).collect()
}

/// What an event asks of its members: `question` is `None` where nobody waits.
pub(crate) fn asks_of(
    me: Address,
    question: Option<AskRef>,
    within_ms: u32,
    action: Option<Action>,
) -> Option<Box<Ask>> {
    if question.is_none() && action.is_none() {
        return None;
    }
    let name = question.unwrap_or(AskRef { by: me, number: 0 });
    Some(Box::new(Ask { name, within_ms, action }))
}
