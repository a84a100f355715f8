//! Following the ring: sessions and tails whose owners have changed, a part of them in each turn.
//!
//! Belongs here: who is asked anew, in which order, how many at a time.
//! Stays out: what is asked (`attach`).
//! How: after a change of the cluster every session and tail is looked at once; those whose owner is another
//! queue for the new one, and so many at a time are asked for until they are answered: the new owner has others to
//! serve. Until its turn comes each is as if the change had not been heard of, as it is anyway for as long as
//! gossip takes: what the former owner says still counts. Whatever something is said about goes first, and
//! without a bound ([`Edge::place_session`], [`Edge::place_tail`]).
//! Units: a turn looks at `placed_per_turn`; a 16th of that is asked for in one turn, and a 32nd is under way to
//! one owner: every shard of every edge asks it, and its live traffic waits behind that.
//! When it breaks: an owner that does not answer holds up others that are for it for `UNANSWERED_MAX`.
//! Invariants: whose owner is not the ring's is queued, or still to be looked at.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Edge;
use crate::host::CHANGE_COSTS;
use crate::id::{NodeRef, RoomKey};
use crate::shard::{Ctx, Round, TimerKey};
use crate::time::Instant;
use crate::view::View;

/// An owner that has not answered for so long may itself wait for somebody: others are asked for as well.
const UNANSWERED_MAX: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Moving {
    sessions: Round,
    tails: Round,
    /// Tails that keep entries come before all others: those after this mark are still to be looked at; `None` in
    /// here: all of them.
    busy_after: Option<Option<(Instant, u32)>>,
    queues: BTreeMap<NodeRef, Queue>,
    asked_in_turn: usize,
    /// Somebody has not answered: looked at again then.
    wakes_at: Option<Instant>,
    /// Tails that are asked for at the end of this turn, however many.
    first: Vec<u32>,
}

/// What is to be asked of one owner.
#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<What>,
    under_way: Vec<Asked>,
}

/// Asked and not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    what: What,
    /// Of a tail: by which question.
    number: u64,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Session(u32),
    Tail(u32),
}

impl Moving {
    fn is_under_way(&self) -> bool {
        self.is_looking() || !self.queues.is_empty() || !self.first.is_empty()
    }

    /// Its former owner has given the room away: somebody speaks of it.
    pub(super) fn ask_first(&mut self, tail: u32) {
        self.first.push(tail);
    }

    fn is_looking(&self) -> bool {
        self.sessions.left() > 0 || self.tails.left() > 0 || self.busy_after.is_some()
    }
}

impl Edge {
    /// Every session and tail is to be looked at.
    pub(super) fn look_at_all(&mut self, ctx: &mut Ctx<'_>) {
        self.moving.sessions.begin(self.sessions.capacity());
        self.moving.tails.begin(self.tails.capacity());
        self.moving.busy_after = Some(None);
        self.moving.queues.retain(|owner, queue| {
            queue.items.clear();
            ctx.view.is_up(*owner) && !queue.under_way.is_empty()
        });
        // Those who were sent away have waited for this.
        let sessions: Vec<u32> =
            self.bounced_sessions.iter().filter_map(|sid| self.by_sid.get(sid).copied()).collect();
        let tails: Vec<u32> =
            self.bounced_rooms.iter().filter_map(|room| self.by_room.get(room).copied()).collect();
        sessions.into_iter().for_each(|index| self.look_at_session(ctx, index as usize));
        tails.into_iter().for_each(|tail| self.look_at_tail(ctx, tail));
    }

    /// How many may be asked for in one turn.
    fn turn_max(&self) -> usize {
        (self.limits.placed_per_turn / CHANGE_COSTS).max(1)
    }

    /// How many may be under way to one owner.
    fn window(&self) -> usize {
        (self.limits.placed_per_turn / CHANGE_COSTS / 2).max(1)
    }

    /// Looks at as many as one turn may.
    pub(crate) fn place_some(&mut self, ctx: &mut Ctx<'_>) {
        for _ in 0..self.limits.placed_per_turn {
            if let Some(at) = self.moving.sessions.next(self.sessions.capacity()) {
                self.look_at_session(ctx, at);
            } else if let Some(after) = self.moving.busy_after {
                let next = self.by_age.next_after(after);
                self.moving.busy_after = next.map(Some);
                if let Some((_, tail)) = next {
                    self.look_at_tail(ctx, tail);
                }
            } else if let Some(at) = self.moving.tails.next(self.tails.capacity()) {
                self.look_at_tail(ctx, u32::try_from(at).unwrap_or(u32::MAX));
            } else {
                return;
            }
        }
    }

    fn look_at_session(&mut self, ctx: &mut Ctx<'_>, at: usize) {
        let Some(session) = self.sessions.get(at) else { return };
        let (owner, is_busy) = (ctx.view.owner(session.placement), session.is_busy() || !session.attached);
        let index = u32::try_from(at).expect("sessions of one shard are far fewer");
        match owner {
            _ if owner == session.owner => {}
            // Its client waits for an answer.
            Some(owner) if is_busy => {
                self.moving.queues.entry(owner).or_default().items.push_front(What::Session(index));
            }
            Some(owner) => self.moving.queues.entry(owner).or_default().items.push_back(What::Session(index)),
            None => self.attach(ctx, index),
        }
    }

    fn look_at_tail(&mut self, ctx: &mut Ctx<'_>, tail: u32) {
        let Some(t) = self.tails.get(tail as usize) else { return };
        let owner = ctx.view.owner(t.key.placement());
        match owner {
            _ if owner == t.owner => {}
            Some(owner) => self.moving.queues.entry(owner).or_default().items.push_back(What::Tail(tail)),
            None => self.subscribe(ctx, [tail]),
        }
    }

    /// Asks for as much of what is queued as may be under way.
    pub(super) fn ask_moved(&mut self, ctx: &mut Ctx<'_>) {
        let mut tails = Vec::new();
        for tail in std::mem::take(&mut self.moving.first) {
            if self.is_misplaced(ctx, tail) && !tails.contains(&tail) {
                tails.push(tail);
            }
        }
        self.subscribe(ctx, tails);
        self.ask_queued(ctx);
    }

    fn ask_queued(&mut self, ctx: &mut Ctx<'_>) {
        if self.moving.queues.is_empty() {
            return;
        }
        let (window, turn_max) = (self.window(), self.turn_max());
        let mut tails = Vec::new();
        let mut queues = std::mem::take(&mut self.moving.queues);
        for (&owner, queue) in &mut queues {
            queue
                .under_way
                .retain(|asked| ctx.now.since(asked.at) < UNANSWERED_MAX && self.is_under_way(owner, *asked));
            let mut left = window.saturating_sub(queue.under_way.len());
            while left > 0
                && self.moving.asked_in_turn < turn_max
                && let Some(what) = queue.items.pop_front()
            {
                let asks = match what {
                    What::Session(index) => self.attach_if_moved(ctx, index),
                    What::Tail(tail) if self.is_misplaced(ctx, tail) => {
                        // It may be queued twice: as one that keeps entries, and as one of all.
                        self.tails[tail as usize].asks(Some(owner));
                        tails.push(tail);
                        true
                    }
                    What::Tail(_) => false,
                };
                if asks {
                    left -= 1;
                    self.moving.asked_in_turn += 1;
                    let number = self.asked + tails.len() as u64;
                    queue.under_way.push(Asked { what, number, at: ctx.now });
                }
            }
            let wakes = self.moving.wakes_at.is_some_and(|at| ctx.now < at);
            if !queue.items.is_empty() && !wakes {
                let at = ctx.now + UNANSWERED_MAX;
                self.moving.wakes_at = Some(at);
                ctx.timers.set(at, TimerKey::Retry);
            }
        }
        // In this order they get their numbers.
        self.subscribe(ctx, tails);
        queues.retain(|_, queue| !queue.items.is_empty() || !queue.under_way.is_empty());
        self.moving.queues = queues;
    }

    /// Whether a question has neither been answered nor bounced, nor asked anew.
    fn is_under_way(&self, owner: NodeRef, asked: Asked) -> bool {
        match asked.what {
            What::Session(index) => self.sessions.get(index as usize).is_some_and(|session| {
                !session.attached
                    && session.owner == Some(owner)
                    && !self.bounced_sessions.contains(&session.identity.sid)
            }),
            What::Tail(tail) => self.tails.get(tail as usize).is_some_and(|t| {
                !t.live
                    && t.owner == Some(owner)
                    && t.asked == asked.number
                    && !self.bounced_rooms.contains(&t.key)
            }),
        }
    }

    /// Attaches a session to the owner the ring names, if that is another.
    pub(super) fn place_session(&mut self, ctx: &mut Ctx<'_>, index: u32) {
        if self.moving.is_under_way() {
            self.attach_if_moved(ctx, index);
        }
    }

    /// Whether it had moved.
    pub(super) fn attach_if_moved(&mut self, ctx: &mut Ctx<'_>, index: u32) -> bool {
        let Some(session) = self.sessions.get(index as usize) else { return false };
        if session.owner == ctx.view.owner(session.placement) {
            return false;
        }
        ctx.stats.reattached_total += u64::from(session.welcomed);
        self.bounced_sessions.remove(&session.identity.sid);
        self.attach(ctx, index);
        true
    }

    /// Whether a tail is not asked for at the owner that the ring names.
    fn is_misplaced(&self, ctx: &Ctx<'_>, tail: u32) -> bool {
        let tail = self.tails.get(tail as usize);
        tail.is_some_and(|t| t.owner != ctx.view.owner(t.key.placement()))
    }

    /// Subscribes a tail at the owner the ring names, if that is another.
    pub(super) fn place_tail(&mut self, ctx: &mut Ctx<'_>, tail: u32) {
        if self.moving.is_under_way() && self.is_misplaced(ctx, tail) {
            self.subscribe(ctx, [tail]);
        }
    }

    /// Something is under way to the present owners of these rooms: their tails go first.
    pub(crate) fn place_rooms(&mut self, ctx: &mut Ctx<'_>, rooms: &[RoomKey]) {
        let tails: Vec<u32> = rooms.iter().filter_map(|room| self.by_room.get(room).copied()).collect();
        for tail in tails {
            self.place_tail(ctx, tail);
        }
    }

    pub(super) fn moving_turn_ends(&mut self) {
        self.moving.asked_in_turn = 0;
    }

    /// Whether the last turn has left something that the next can do without hearing anything.
    pub(crate) fn has_more(&self) -> bool {
        let window = self.window();
        self.moving.is_looking()
            || self.moving.queues.values().any(|q| !q.items.is_empty() && q.under_way.len() < window)
    }

    /// Asserts that nobody is left behind at a former owner.
    pub(crate) fn check_moving(&self, view: &View) {
        if self.moving.is_under_way() {
            return;
        }
        for (_, session) in &self.sessions {
            let (sid, owner) = (session.identity.sid, view.owner(session.placement));
            assert_eq!(session.owner, owner, "{sid:?}: left behind at a former owner");
        }
        for (_, tail) in &self.tails {
            let owner = view.owner(tail.key.placement());
            assert_eq!(tail.owner, owner, "{:?}: left behind at a former owner", tail.key);
        }
    }
}
