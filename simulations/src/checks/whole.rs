//! No hole and no past: what lies between two events that a session got (I6).
//!
//! Belongs here: the rooms' logs as owners send them, how far each session is in each, where its joins took
//! effect. Stays out: who is owed what in the end (`kept`).
//! A session that recovers is the same session: what it got last over the old transport and what comes first
//! over the new one are neighbours in the log, or all between them is not for it. So it is for members that
//! keep their transport.
//! Where anything goes, logs part, and what an owner serves on its own shard is not seen here: an event has no
//! one place to be compared by. There the account of what was acknowledged (`kept`) says what may not miss.

use std::collections::BTreeMap;

use mesh_proto::id::{Cursor, SocketSid, Term};

use super::{Delivery, EventId, Room, SessionId};

/// A place in a room's log.
type Place = (Term, u64);

#[derive(Debug)]
struct Entry {
    event: EventId,
    except: Vec<SocketSid>,
}

/// How far a session is in a room: the stay, and the last place.
#[derive(Clone, Copy, Debug)]
struct At {
    stay: u32,
    place: Place,
}

/// The account of one run.
#[derive(Debug, Default)]
pub struct Whole {
    /// Logs do not part: one crash at a time.
    pub(super) full: bool,
    logs: BTreeMap<Room, BTreeMap<Place, Entry>>,
    /// Where each event stands; `None`: in more than one place, for logs have parted.
    places: BTreeMap<EventId, Option<Place>>,
    sids: BTreeMap<SessionId, SocketSid>,
    at: BTreeMap<(Room, SessionId), At>,
    /// Own-log entries that ask edges for a join.
    asked: BTreeMap<(SocketSid, u64), Room>,
    /// Where a session's last join of a room took effect, if that was said between shards.
    joined: BTreeMap<(SocketSid, Room), Cursor>,
}

impl Whole {
    /// A client is told that it is connected, or that it goes on.
    pub fn connected(&mut self, session: SessionId, sid: &str) {
        self.sids.extend(SocketSid::from_text(sid).map(|sid| (session, sid)));
    }

    /// All logs are gone.
    pub fn begins_anew(&mut self) {
        (self.logs, self.places, self.at) = Default::default();
    }

    /// An owner sends this entry of a room's log.
    pub fn logged(&mut self, room: Room, place: Place, event: EventId, except: &[SocketSid]) {
        let known = self.places.entry(event).or_insert(Some(place));
        *known = known.filter(|known| *known == place);
        let log = self.logs.entry(room).or_default();
        log.entry(place).or_insert_with(|| Entry { event, except: except.to_vec() });
    }

    /// An owner asks an edge to put a join in force.
    pub fn join_asked(&mut self, sid: SocketSid, own_seq: u64, room: Room) {
        self.asked.insert((sid, own_seq), room);
    }

    /// The edge has.
    pub fn joined(&mut self, sid: SocketSid, own_seq: u64, at: Cursor) {
        if let Some(room) = self.asked.get(&(sid, own_seq)) {
            self.joined.insert((sid, *room), at);
        }
    }

    /// A session gets an event. `has` tells what it has got. What is wrong with it, in words.
    pub fn delivered(&mut self, delivery: &Delivery, has: impl Fn(EventId) -> bool) -> Option<String> {
        let Delivery { to, stay, event, .. } = *delivery;
        let room = (delivery.product, delivery.room);
        let before = self.at.remove(&(room, to)).filter(|at| at.stay == stay);
        let place = self.places.get(&event).copied().flatten();
        let place = place.filter(|_| delivery.settled && self.full)?;
        self.at.insert((room, to), At { stay, place });
        let sid = self.sids.get(&to)?;
        if let Some(joined) = self.joined.get(&(*sid, room)).filter(|at| place <= (at.term, at.seq)) {
            return Some(format!("got {event} at {place:?} of a room it has joined at {joined:?}"));
        }
        let before = before.map(|at| at.place).filter(|before| *before < place)?;
        let between = self.logs.get(&room)?.range(before..place).skip(1);
        let mut missed =
            between.filter(|(_, entry)| !entry.except.contains(sid)).map(|(_, entry)| entry.event);
        let missed = missed.find(|event| !has(*event))?;
        Some(format!("got {event} of room {} without {missed} before it", room.1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_proto::id::{NodeId, NodeRef};

    use super::*;

    const ROOM: Room = (0, 1);
    const ME: SessionId = SessionId { client: 1, session: 1 };
    const SID: SocketSid = SocketSid([7; 16]);

    fn event(number: u32) -> EventId {
        EventId { publisher: SessionId { client: 9, session: 1 }, number }
    }

    fn term(number: u64) -> Term {
        Term { number, owner: NodeRef { id: NodeId(1), incarnation: 1 } }
    }

    /// A log with five events, the last two under another term; the third is not for us.
    fn whole(full: bool) -> Whole {
        let mut whole = Whole { full, ..Whole::default() };
        whole.connected(ME, &SID.to_text());
        for number in 1..6 {
            let except = if number == 3 { vec![SID] } else { Vec::new() };
            whole.logged(ROOM, place(number), event(number), &except);
        }
        whole
    }

    fn place(number: u32) -> Place {
        (term(if number < 4 { 1 } else { 2 }), u64::from(number))
    }

    /// What is wrong when we get these, each in this stay of the room.
    fn wrong(whole: &mut Whole, got: &[(u32, u32)]) -> Option<String> {
        let mut seen = BTreeSet::new();
        got.iter().find_map(|(number, stay)| {
            let (to, stay, event) = (ME, *stay, event(*number));
            seen.insert(event);
            let delivery = Delivery { to, product: 0, room: 1, stay, settled: true, event, position: None };
            whole.delivered(&delivery, |event| seen.contains(&event))
        })
    }

    #[test]
    fn everything_in_order_is_whole_and_what_is_excepted_is_no_hole() {
        assert_eq!(wrong(&mut whole(true), &[(1, 1), (2, 1), (4, 1), (5, 1)]), None);
    }

    #[test]
    fn a_hole_is_seen_within_a_stay_and_across_transports() {
        assert!(wrong(&mut whole(true), &[(1, 1), (4, 1)]).is_some());
        let mut back = whole(true);
        assert_eq!(wrong(&mut back, &[(1, 1)]), None);
        back.connected(ME, &SID.to_text());
        assert!(wrong(&mut back, &[(4, 1)]).is_some());
        assert_eq!(wrong(&mut whole(true), &[(1, 1), (4, 2)]), None, "it had left");
    }

    #[test]
    fn an_event_that_stands_in_two_places_is_compared_with_nothing() {
        let mut parted = whole(true);
        parted.logged(ROOM, (term(3), 9), event(3), &[]);
        assert_eq!(wrong(&mut parted, &[(1, 1), (3, 1), (5, 1)]), None);
        assert_eq!(wrong(&mut whole(false), &[(1, 1), (4, 1)]), None, "where logs part");
    }

    #[test]
    fn logs_that_are_all_gone_leave_no_hole() {
        let mut gone = whole(true);
        assert_eq!(wrong(&mut gone, &[(1, 1)]), None);
        gone.begins_anew();
        gone.logged(ROOM, place(4), event(4), &[]);
        assert_eq!(wrong(&mut gone, &[(4, 1)]), None);
    }

    #[test]
    fn an_event_from_before_the_join_is_seen() {
        let mut joined = whole(true);
        joined.join_asked(SID, 3, ROOM);
        joined.joined(SID, 3, Cursor { term: term(1), seq: 2 });
        assert_eq!(wrong(&mut joined, &[(4, 1)]), None);
        assert!(wrong(&mut joined, &[(2, 1)]).is_some());
    }
}
