//! The promises of DESIGN §13, held against what clients were sent.
//!
//! Belongs here: the account of every session's deliveries; what two histories may not show.
//! Stays out: who delivers (`cluster`), what clients wanted (`client`).
//!
//! | part | holds |
//! |---|---|
//! | `kept` | what was acknowledged and to whom it is owed (I3) |
//! | `whole` | what lies between two events that a session got, also over two transports (I6) |
//! | `own` | events for one session alone (I5, I6) |
//! | `bound` | where keys are bound to, and were (I3) |

mod bound;
mod kept;
mod own;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mesh_proto::id::{Cursor, NodeId, NodeRef, PublishId, RoomKey, Term};
use mesh_proto::time::Instant;

use crate::faults::Regime;
pub use bound::{Bound, Wished};
pub use kept::{Acked, Kept, Room};
pub use own::Own;
pub use whole::Whole;

/// Whether runs are held to everything unless somebody says otherwise: see [`Checks::strict`].
pub const STRICT: bool = true;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name in DESIGN §13, or what else failed.
    pub invariant: &'static str,
    /// When it showed.
    pub at: Instant,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.invariant, self.at, self.what)
    }
}

/// One session of one client of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    /// The client.
    pub client: u32,
    /// Its connections counted from 1.
    pub session: u32,
}

/// One published event: which session, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// Who published it.
    pub publisher: SessionId,
    /// Its number, from 1.
    pub number: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}#{}", self.publisher.client, self.publisher.session, self.number)
    }
}

/// An event as a client got it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Who got it.
    pub to: SessionId,
    /// The product it was published in.
    pub product: u8,
    /// The room it was published to.
    pub room: u16,
    /// The receiver's joins of that room so far. While there is one copy, an edge and an owner that are
    /// gone take along what a session had been sent before it left and came back: promises hold within a
    /// stay.
    pub stay: u32,
    /// The receiver was told that it is in the room, and has not asked to leave it.
    pub settled: bool,
    /// Which.
    pub event: EventId,
    /// Its position, where the protocol shows it.
    pub position: Option<Cursor>,
}

#[derive(Debug, Default)]
struct Heard {
    seen: BTreeSet<EventId>,
    /// All of it, in order.
    order: Vec<EventId>,
    last_of: BTreeMap<SessionId, u32>,
    position: Option<Cursor>,
}

/// The account of one run.
#[derive(Debug, Default)]
pub struct Checks {
    heard: BTreeMap<(u8, u16, SessionId, u32), Heard>,
    /// What owners have sent to edges under each number of a log.
    logged: BTreeMap<RoomKey, BTreeMap<(Term, u64), PublishId>>,
    /// Counts changes of rings and lost lives: what was answered without one in between, was appended
    /// to one log, once.
    pub generation: u64,
    /// Living nodes disagree about the ring: a room may have two owners, and two logs.
    pub split: bool,
    /// How often a node found nobody to join and began a cluster.
    pub clusters_begun: u32,
    settled: BTreeSet<EventId>,
    /// The term under which each event was first seen to be in a log.
    terms: BTreeMap<EventId, Term>,
    /// Taken over from another history: those who had it there keep it where it was.
    appended_again: BTreeSet<EventId>,
    /// Held to what backups are for as well: nothing acknowledged is lost (I3), a session that leaves a room
    /// and comes back is not sent again what it had (I5), equal copies in the end (I8).
    pub strict: bool,
    /// What was acknowledged, and to whom it is owed.
    pub kept: Kept,
    /// One crash at a time: everything is kept.
    full: bool,
    /// What lies between two events of a session.
    pub whole: Whole,
    /// Events for one session alone.
    pub own: Own,
    /// Bindings.
    pub bound: Bound,
    /// How often sessions have gone on over another transport.
    came_back: BTreeMap<SessionId, u32>,
    /// There was a moment without a node: nothing of before is left.
    nobody_was_there: bool,
    /// Public ids of sessions.
    sids: BTreeMap<String, SessionId>,
    /// Deliveries counted.
    pub deliveries: u64,
    /// Clients that came back and went on.
    pub recovered: u64,
    /// Clients that came back with a pid and began anew.
    pub begun_anew: u64,
    /// What is broken, the first first.
    pub violations: Vec<Violation>,
}

impl Checks {
    /// An empty account.
    #[must_use]
    pub fn new(strict: bool) -> Self {
        Self { strict, ..Self::default() }
    }

    /// Whether a session may have come back to less than it had: where anything goes, owner and backup may
    /// have died together, and a third copy knows no better.
    #[must_use]
    pub fn is_uncertain(&self, session: SessionId) -> bool {
        !self.full && self.came_back.contains_key(&session)
    }

    /// A client came back for its session and was given another.
    pub fn begins_anew(&mut self, now: Instant, was: SessionId) {
        self.begun_anew += 1;
        if self.full && !self.nobody_was_there {
            let what = format!("client {}.{} could have gone on and may not", was.client, was.session);
            self.violated("P4", now, what);
        }
    }

    /// Whether what was published at `asked` may lie in a hole that the edge was told of since: its publisher
    /// is answered without it, and if another history brings it back it comes late (DESIGN §1, P8).
    #[must_use]
    pub fn may_be_in_a_hole(&self, room: Room, edge: NodeId, asked: Instant) -> bool {
        !self.full && self.kept.last_gap(room, edge).is_some_and(|gap| gap >= asked)
    }

    /// What these runs are held to.
    pub fn hold_to(&mut self, regime: Regime) {
        self.full = regime == Regime::OneAtATime;
        (self.whole.full, self.own.full, self.bound.full) = (self.full, self.full, self.full);
    }

    /// A client is told that it is connected: with a new session, or with the one it had.
    pub fn connected(&mut self, now: Instant, me: SessionId, sid: &str, recovered: bool) {
        if recovered {
            self.recovered += 1;
            *self.came_back.entry(me).or_default() += 1;
        }
        self.whole.connected(me, sid);
        let known = *self.sids.entry(sid.to_owned()).or_insert(me);
        if known != me {
            let what = format!(
                "client {}.{} begins under the id of {}.{}",
                me.client, me.session, known.client, known.session
            );
            self.violated("I6", now, what);
        }
    }

    /// The last node is gone.
    pub fn nobody_is_there(&mut self) {
        self.nobody_was_there = true;
        self.bound.begins_anew();
        self.whole.begins_anew();
    }

    /// What a session gets is one account, whatever rooms it leaves and comes back to. Where anything goes, a
    /// session that goes on elsewhere begins another: what a history that is merged appends again is known to
    /// the edge that served it, not to the next one.
    fn epoch(&self, session: SessionId, stay: u32) -> u32 {
        let came_back = self.came_back.get(&session).filter(|_| !self.full);
        came_back.map_or(0, |times| (times << 16) + stay)
    }

    /// Notes a broken promise.
    pub fn violated(&mut self, invariant: &'static str, at: Instant, what: impl Into<String>) {
        self.violations.push(Violation { invariant, at, what: what.into() });
    }

    /// A question for a binding was answered.
    pub fn bound_is(&mut self, now: Instant, number: u64, upstream: Option<u64>) {
        if self.clusters_begun > 1 {
            // The two know nothing of each other until they meet.
            self.bound.begins_anew();
        } else {
            self.bound.answers(now, number, upstream, &mut self.violations);
        }
    }

    /// A client got an event of a room.
    pub fn delivered(&mut self, now: Instant, delivery: &Delivery) {
        self.deliveries += 1;
        let Delivery { to, product, room, stay, event, position, .. } = *delivery;
        if let Some(position) = position {
            self.appended(event, position.term);
        }
        let stay = if self.strict { self.epoch(to, stay) } else { stay };
        let heard = self.heard.entry((product, room, to, stay)).or_default();
        let mut broken = Vec::new();
        if !heard.seen.insert(event) {
            broken.push(("I5", format!("event {event} of room {room} came twice")));
        } else if let Some(before) = heard.last_of.insert(event.publisher, event.number)
            && before > event.number
        {
            broken.push(("I4", format!("event {event} of room {room} came after number {before}")));
        }
        if let (Some(before), Some(after)) = (heard.position, position)
            && after <= before
        {
            let name = if after.term < before.term { "I1" } else { "I4" };
            broken
                .push((name, format!("room {room} went from position {before:?} to {after:?} with {event}")));
        }
        heard.position = position.or(heard.position);
        heard.order.push(event);
        let seen = &heard.seen;
        let hole = self.whole.delivered(delivery, |event| seen.contains(&event));
        broken.extend(hole.map(|what| ("I6", what)));
        for (invariant, what) in broken {
            self.violated(invariant, now, format!("client {}.{}: {what}", to.client, to.session));
        }
    }

    /// Under (term, number) of a room's log an owner sends this publish.
    pub fn logged(
        &mut self,
        now: Instant,
        room: &RoomKey,
        term: Term,
        number: u64,
        id: PublishId,
        event: Option<EventId>,
    ) {
        if let Some(event) = event {
            self.appended(event, term);
        }
        let log = self.logged.entry(room.clone()).or_default();
        let before = *log.entry((term, number)).or_insert(id);
        if before != id {
            let what =
                format!("{room:?} {term:?}/{number} is {before:?} for one edge and {id:?} for another");
            self.violated("I1", now, what);
        }
    }

    /// An owner has the event in its log under this term. What a shard serves to its own edge no link shows:
    /// the publisher's answer does, what backups are told, and positions where clients are told them.
    pub fn appended(&mut self, event: EventId, term: Term) {
        if *self.terms.entry(event).or_insert(term) != term {
            self.appended_again.insert(event);
        }
    }

    /// The event's publish was answered in the generation in which it was sent.
    pub fn settle(&mut self, event: EventId) {
        self.settled.insert(event);
    }

    /// Whether one order of each room explains what every session was sent (I4). With one copy, what a
    /// dead owner had sent to some edges only is appended anew by the next owner, later: those who had
    /// it keep it where it was; and what two owners took on two sides of a split is not merged yet. So
    /// this is checked for what was appended once and while all agreed; the rest is held to I5 and to
    /// rising positions like everything else.
    pub fn check_orders(&mut self, now: Instant) {
        let mut rooms = BTreeMap::<(u8, u16), Vec<Order>>::new();
        for ((product, room, session, _), heard) in &self.heard {
            let once = |event: &EventId| self.settled.contains(event) && !self.appended_again.contains(event);
            let settled = heard.order.iter().copied().filter(once);
            rooms.entry((*product, *room)).or_default().push((*session, settled.collect()));
        }
        let clashes: Vec<_> = rooms
            .iter()
            .filter_map(|((_, room), orders)| clash(orders).map(|clash| (*room, clash)))
            .collect();
        for (room, cycle) in clashes {
            let steps: Vec<String> = cycle
                .iter()
                .map(|(session, one, next)| {
                    format!("client {}.{} got {one} before {next}", session.client, session.session)
                })
                .collect();
            let what = format!("room {room}: no order explains what all were sent: {}", steps.join(", "));
            self.violated("I4", now, what);
        }
    }

    /// Whether each room had one history (I4): where only one thing fails at a time, no owner has to begin
    /// another, and nothing is appended a second time. (All seeds starting at once may begin a second cluster.)
    pub fn check_appended_once(&mut self, now: Instant) {
        if self.clusters_begun > 1 {
            return;
        }
        let again: Vec<EventId> = self.appended_again.intersection(&self.settled).copied().take(3).collect();
        for event in again {
            self.violated("I4", now, format!("{event} was appended to a second history of its room"));
        }
    }

    /// Whether everything acknowledged has reached whom it is owed (I3). `edges_of` tells where a session
    /// that is in a room now has its transport, and where it had it before its transport went over.
    ///
    /// With `excuses`, which names the nodes that live, a gap told there is one, and so is the death of the
    /// owner that took the publish: it may have been alone on its side of a partition.
    pub fn check_kept(
        &mut self,
        now: Instant,
        excuses: Option<&BTreeSet<NodeRef>>,
        edges_of: impl Fn(Room, SessionId) -> Option<[NodeId; 2]>,
    ) {
        let taken_by_living: Option<BTreeSet<EventId>> = excuses.map(|living| {
            let taken = self.terms.iter().filter(|(_, term)| living.contains(&term.owner));
            taken.map(|(event, _)| *event).collect()
        });
        let has = |(product, room): Room, member, event| {
            taken_by_living.as_ref().is_some_and(|living| !living.contains(&event))
                || self.has(product, room, member, event)
        };
        let lost: Vec<_> = self.kept.lost(excuses.is_some(), has, edges_of).take(3).collect();
        for lost in lost {
            let SessionId { client, session } = lost.member;
            let (event, room) = (lost.event, lost.room.1);
            let what =
                format!("client {client}.{session} never got {event} of room {room}, which was acknowledged");
            self.violated("I3", now, what);
        }
    }

    /// Whether a session has been sent an event.
    #[must_use]
    pub fn has(&self, product: u8, room: u16, session: SessionId, event: EventId) -> bool {
        let stays = self.heard.range((product, room, session, 0)..=(product, room, session, u32::MAX));
        stays.map(|(_, heard)| heard).any(|heard| heard.seen.contains(&event))
    }
}

/// What a session was sent, in order.
type Order = (SessionId, Vec<EventId>);

/// A cycle in the union of these orders, if there is one, as steps: a session, an event it got, and one it
/// got after that. (Kahn 1962: what is left when everything that has nothing before it has been taken
/// away, lies on or behind a cycle.)
fn clash(orders: &[Order]) -> Option<Vec<(SessionId, EventId, EventId)>> {
    let mut after = BTreeMap::<EventId, BTreeMap<EventId, SessionId>>::new();
    let mut before_count = BTreeMap::<EventId, usize>::new();
    for (session, order) in orders {
        for event in order {
            before_count.entry(*event).or_insert(0);
        }
        for pair in order.windows(2) {
            if after.entry(pair[0]).or_default().insert(pair[1], *session).is_none() {
                *before_count.entry(pair[1]).or_insert(0) += 1;
            }
        }
    }
    let mut free: Vec<EventId> = before_count.iter().filter(|(_, n)| **n == 0).map(|(e, _)| *e).collect();
    while let Some(event) = free.pop() {
        before_count.remove(&event);
        for next in after.get(&event).into_iter().flat_map(BTreeMap::keys) {
            if let Some(count) = before_count.get_mut(next) {
                *count -= 1;
                if *count == 0 {
                    free.push(*next);
                }
            }
        }
    }
    // What is left has a predecessor that is left: walking back must come round.
    let mut at = *before_count.first_key_value()?.0;
    let mut back: Vec<(SessionId, EventId, EventId)> = Vec::new();
    loop {
        let (one, session) = after.iter().find_map(|(one, next)| {
            next.get(&at).filter(|_| before_count.contains_key(one)).map(|session| (*one, *session))
        })?;
        back.push((session, one, at));
        if let Some(start) = back.iter().position(|(.., next)| *next == one) {
            back.drain(..start);
            back.reverse();
            return Some(back);
        }
        at = one;
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::id::SocketSid;

    use super::*;

    const NOW: Instant = Instant::ZERO;

    fn event(client: u32, number: u32) -> EventId {
        EventId { publisher: SessionId { client, session: 1 }, number }
    }

    fn deliver(checks: &mut Checks, to: u32, event: EventId, position: Option<Cursor>) {
        let to = SessionId { client: to, session: 1 };
        checks.delivered(NOW, &Delivery { to, product: 0, room: 1, stay: 1, settled: true, event, position });
    }

    fn at(term: u64, seq: u64) -> Cursor {
        Cursor { term: Term { number: term, ..Term::NONE }, seq }
    }

    fn broken(checks: &Checks) -> Vec<&str> {
        checks.violations.iter().map(|v| v.invariant).collect()
    }

    #[test]
    fn an_honest_history_breaks_nothing() {
        let mut checks = Checks::default();
        for to in 0..3 {
            for number in 1..5 {
                deliver(&mut checks, to, event(7, number), Some(at(1, u64::from(number))));
            }
        }
        // Another session of the same client hears it again: it has joined anew.
        let to = SessionId { client: 0, session: 2 };
        checks.delivered(
            NOW,
            &Delivery { to, product: 0, room: 1, stay: 1, settled: true, event: event(7, 4), position: None },
        );
        checks.check_orders(NOW);
        assert!(checks.violations.is_empty(), "{:?}", checks.violations);
    }

    #[test]
    fn a_doubled_event_is_seen() {
        let mut checks = Checks::default();
        deliver(&mut checks, 0, event(7, 1), None);
        deliver(&mut checks, 0, event(7, 1), None);
        assert_eq!(broken(&checks), ["I5"]);
    }

    #[test]
    fn a_publisher_out_of_order_is_seen() {
        let mut checks = Checks::default();
        deliver(&mut checks, 0, event(7, 2), None);
        deliver(&mut checks, 0, event(7, 1), None);
        assert_eq!(broken(&checks), ["I4"]);
    }

    #[test]
    fn positions_that_do_not_rise_and_lower_terms_are_seen() {
        let mut checks = Checks::default();
        deliver(&mut checks, 0, event(7, 1), Some(at(2, 5)));
        deliver(&mut checks, 0, event(8, 1), Some(at(2, 5)));
        deliver(&mut checks, 0, event(8, 2), Some(at(1, 9)));
        assert_eq!(broken(&checks), ["I4", "I1"]);
    }

    #[test]
    fn two_orders_of_one_room_are_seen_even_over_a_third_event() {
        let mut checks = Checks::default();
        [7, 8, 9].into_iter().for_each(|client| checks.settle(event(client, 1)));
        deliver(&mut checks, 0, event(7, 1), None);
        deliver(&mut checks, 0, event(8, 1), None);
        deliver(&mut checks, 1, event(8, 1), None);
        deliver(&mut checks, 1, event(9, 1), None);
        checks.check_orders(NOW);
        assert!(checks.violations.is_empty());
        deliver(&mut checks, 2, event(9, 1), None);
        deliver(&mut checks, 2, event(7, 1), None);
        checks.check_orders(NOW);
        assert_eq!(broken(&checks), ["I4"]);
    }

    #[test]
    fn what_another_owner_has_appended_again_may_come_later() {
        let mut checks = Checks::default();
        let term = |number| Term { number, owner: NodeRef { id: NodeId(number), incarnation: 1 } };
        [7, 8].into_iter().for_each(|client| checks.settle(event(client, 1)));
        deliver(&mut checks, 0, event(7, 1), None);
        deliver(&mut checks, 0, event(8, 1), None);
        deliver(&mut checks, 1, event(8, 1), None);
        deliver(&mut checks, 1, event(7, 1), None);
        // Its owner served it to its own edge only, which no link shows; another serves it anew.
        checks.appended(event(7, 1), term(1));
        let room = RoomKey::new(&"p".into(), &"/".into(), "r");
        let id = PublishId::Session { sid: SocketSid([0; 16]), number: 1, index: 0 };
        checks.logged(NOW, &room, term(1), 1, id, Some(event(7, 1)));
        checks.check_orders(NOW);
        assert_eq!(broken(&checks), ["I4"]);
        checks.logged(NOW, &room, term(2), 9, id, Some(event(7, 1)));
        checks.check_orders(NOW);
        assert_eq!(broken(&checks), ["I4"], "no more than before");
    }

    #[test]
    fn a_session_that_begins_under_a_used_id_is_seen() {
        let mut checks = Checks::default();
        let session = |session| SessionId { client: 1, session };
        checks.connected(NOW, session(1), "a", false);
        checks.connected(NOW, session(1), "a", true);
        checks.connected(NOW, session(2), "b", false);
        assert!(checks.violations.is_empty());
        checks.connected(NOW, session(3), "a", false);
        assert_eq!(broken(&checks), ["I6"]);
    }

    #[test]
    fn two_publishes_under_one_number_are_seen() {
        let mut checks = Checks::default();
        let room = RoomKey::new(&"p".into(), &"/".into(), "r");
        let term = Term { number: 1, owner: NodeRef { id: NodeId(1), incarnation: 1 } };
        let id = |number| PublishId::Session { sid: SocketSid([0; 16]), number, index: 0 };
        checks.logged(NOW, &room, term, 1, id(1), None);
        checks.logged(NOW, &room, term, 1, id(1), None);
        assert!(checks.violations.is_empty());
        checks.logged(NOW, &room, term, 1, id(2), None);
        assert_eq!(broken(&checks), ["I1"]);
    }
}
