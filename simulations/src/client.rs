//! A client of the simulation: joins rooms, publishes, comes back when its transport is gone.
//!
//! Belongs here: what one client wants and what it has been told. Stays out: how bytes get there
//! (`cluster`), whether what it was sent may be (`checks`).
//! A client that loses its transport connects anywhere as a new session: resuming is not part of
//! this version.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_proto::id::Term;
use mesh_proto::shard::{ClientProtocol, Packet};
use mesh_proto::time::Instant;

use crate::checks::{Acked, Checks, Delivery, EventId, SessionId};
use crate::random::Random;
use crate::speech::{self, Heard, Request};

/// Requests a client has under way at most.
const PENDING_MAX: usize = 32;

/// An answer to one's own publish may overtake the event when the edge has waited this long.
const OWN_ORDER_HELD: Duration = Duration::from_secs(1);

/// A request without an answer for this long is forgotten by somebody.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// Codes of refusals that a cluster in trouble may give.
const REFUSALS_IN_TROUBLE: [&str; 3] = ["timeout", "overloaded", "rate"];

/// How far a session is in a room, by what its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Joining,
    In,
    Leaving,
}

/// A session that stands or is being opened.
#[derive(Debug)]
struct Session {
    transport: u64,
    connected: bool,
    places: BTreeMap<u16, Place>,
    /// Joins of each room so far.
    stays: BTreeMap<u16, u32>,
    pending: BTreeMap<u64, (Request, Instant)>,
    /// Generation of the cluster in which each of them was sent.
    generations: BTreeMap<u64, u64>,
    requests: u64,
    published: u32,
    /// Own events that are not to come back.
    not_to_self: BTreeSet<EventId>,
    /// Own events answered early, before they came back.
    answered_unseen: BTreeSet<EventId>,
    seen: BTreeSet<EventId>,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub id: u32,
    /// What it speaks.
    pub protocol: ClientProtocol,
    /// The product it uses.
    pub product: u8,
    /// Its user.
    pub uid: String,
    /// Whether its reading is slow.
    pub slow: bool,
    /// Neither leaves a room nor closes its transport of its own accord: it is owed everything.
    pub loyal: bool,
    rooms: Vec<u16>,
    sessions: u32,
    generation: u64,
    session: Option<Session>,
    random: Random,
}

/// What a client does.
#[derive(Debug)]
pub enum Action {
    /// Sends this.
    Send(Packet),
    /// Closes its transport.
    Close,
}

impl Client {
    /// A client that is not connected and wants to be in `rooms`.
    #[must_use]
    pub fn new(
        id: u32,
        protocol: ClientProtocol,
        product: u8,
        uid: String,
        rooms: Vec<u16>,
        random: Random,
    ) -> Self {
        Self {
            id,
            protocol,
            product,
            uid,
            slow: false,
            loyal: false,
            rooms,
            sessions: 0,
            generation: 0,
            session: None,
            random,
        }
    }

    /// Its present session.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        SessionId { client: self.id, session: self.sessions }
    }

    /// The transport it uses.
    #[must_use]
    pub fn transport(&self) -> Option<u64> {
        self.session.as_ref().map(|session| session.transport)
    }

    /// Connected, and in every room it wants.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.connected && self.rooms.iter().all(|room| session.places.get(room) == Some(&Place::In))
        })
    }

    /// Where it stands, for people.
    #[must_use]
    pub fn standing(&self) -> String {
        match &self.session {
            None => "not connected".into(),
            Some(session) if !session.connected => "waits for its CONNECT".into(),
            Some(session) => {
                format!("rooms {:?}, {} requests unanswered", session.places, session.pending.len())
            }
        }
    }

    /// The rooms it wants to be in.
    #[must_use]
    pub fn rooms(&self) -> &[u16] {
        &self.rooms
    }

    /// Whether it is in this room, by what it was told.
    #[must_use]
    pub fn is_in(&self, room: u16) -> bool {
        self.session.as_ref().is_some_and(|session| session.places.get(&room) == Some(&Place::In))
    }

    /// It has a new transport.
    pub fn opened(&mut self, transport: u64) {
        self.sessions += 1;
        self.session = Some(Session {
            transport,
            connected: false,
            places: BTreeMap::new(),
            stays: BTreeMap::new(),
            pending: BTreeMap::new(),
            generations: BTreeMap::new(),
            requests: 0,
            published: 0,
            not_to_self: BTreeSet::new(),
            answered_unseen: BTreeSet::new(),
            seen: BTreeSet::new(),
        });
    }

    /// Its transport is gone.
    pub fn closed(&mut self) {
        self.session = None;
    }

    /// A request that somebody has forgotten.
    #[must_use]
    pub fn unanswered(&self, now: Instant) -> Option<Request> {
        let session = self.session.as_ref()?;
        let old = session.pending.values().find(|(_, asked)| now.since(*asked) > ANSWERED_WITHIN);
        old.map(|(request, _)| *request)
    }

    /// The present generation of the cluster, before it asks anything.
    pub fn in_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// What it does of its own accord. `calm`: it only gets where it wants to be.
    pub fn act(&mut self, now: Instant, calm: bool) -> Vec<Action> {
        let Some(session) = &mut self.session else { return Vec::new() };
        if !session.connected || session.pending.len() >= PENDING_MAX {
            return Vec::new();
        }
        let mut requests: Vec<Request> = Vec::new();
        let missing = self.rooms.iter().filter(|room| !session.places.contains_key(room));
        if calm {
            requests.extend(missing.map(|room| Request::Join(*room)));
        } else {
            match self.random.below(100) {
                0..=9 if self.loyal => requests.extend(missing.map(|room| Request::Join(*room))),
                0..=1 => return vec![Action::Close],
                2..=9 => {
                    let room =
                        self.random.pick(&self.rooms).filter(|r| session.places.get(r) == Some(&Place::In));
                    requests.extend(room.map(Request::Leave));
                }
                10..=39 => requests.extend(missing.map(|room| Request::Join(*room))),
                _ => {
                    let burst = if self.random.per_mille(100) { 1 + self.random.below(8) } else { 1 };
                    for _ in 0..burst {
                        requests.extend(Self::publish(
                            session,
                            self.id,
                            self.sessions,
                            self.product,
                            &mut self.random,
                        ));
                    }
                }
            }
        }
        requests.into_iter().map(|request| Action::Send(self.ask(now, request))).collect()
    }

    fn publish(
        session: &mut Session,
        client: u32,
        sessions: u32,
        product: u8,
        random: &mut Random,
    ) -> Option<Request> {
        let inside: Vec<u16> =
            session.places.iter().filter(|(_, p)| **p == Place::In).map(|(r, _)| *r).collect();
        let room = random.pick(&inside)?;
        session.published += 1;
        let publisher = SessionId { client, session: sessions };
        let event = EventId { publisher, number: session.published };
        Some(Request::Publish { room, product, event, to_self: random.per_mille(500) })
    }

    /// Publishes one event to `room` and gets it too; which.
    pub fn probe(&mut self, now: Instant, room: u16) -> Option<(EventId, Packet)> {
        let publisher = self.session_id();
        let session = self.session.as_mut()?;
        session.published += 1;
        let event = EventId { publisher, number: session.published };
        let packet = self.ask(now, Request::Publish { room, product: self.product, event, to_self: true });
        Some((event, packet))
    }

    fn ask(&mut self, now: Instant, request: Request) -> Packet {
        let Some(session) = &mut self.session else { unreachable!("only a client with a session asks") };
        let id = session.requests;
        session.requests += 1;
        session.pending.insert(id, (request, now));
        session.generations.insert(id, self.generation);
        match request {
            Request::Join(room) => {
                session.places.insert(room, Place::Joining);
                *session.stays.entry(room).or_default() += 1;
            }
            Request::Leave(room) => drop(session.places.insert(room, Place::Leaving)),
            Request::Publish { event, to_self: false, .. } => drop(session.not_to_self.insert(event)),
            Request::Publish { .. } => {}
        }
        speech::request(self.protocol, id, request)
    }

    /// Takes a message of the server; what to say to it.
    pub fn hear(&mut self, now: Instant, packet: &Packet, checks: &mut Checks) -> Option<Packet> {
        let me = self.session_id();
        let session = self.session.as_mut()?;
        match speech::hear(self.protocol, packet) {
            Heard::Open => return Some(speech::connect()),
            Heard::Ping => return Some(speech::pong(self.protocol)),
            Heard::Connected => session.connected = true,
            Heard::Answer { id, refused, term } => {
                Self::answered(session, (self.product, me), now, (id, refused, term), checks)
            }
            Heard::Event { event, product, room, position, room_told } => {
                let in_room = session.places.contains_key(&room);
                let not_asked_for = session.not_to_self.contains(&event);
                let told_right = room_told.is_none_or(|told| told == speech::room_name(room));
                if product != self.product || !in_room || !told_right || not_asked_for {
                    let what = format!(
                        "client {}.{} got {event} of product {product} room {room}",
                        me.client, me.session
                    );
                    checks.violated("I7", now, what);
                }
                if session.answered_unseen.contains(&event) {
                    let what =
                        format!("client {}.{} got the answer before its own {event}", me.client, me.session);
                    checks.violated("I4", now, what);
                }
                session.seen.insert(event);
                let stay = session.stays.get(&room).copied().unwrap_or(0);
                checks.delivered(now, &Delivery { to: me, product, room, stay, event, position });
            }
            Heard::Ended(words) => {
                checks.violated(
                    "I2",
                    now,
                    format!("client {}.{} was ended by {words}", me.client, me.session),
                );
            }
            Heard::Strange(words) => {
                checks.violated("protocol", now, format!("client {}.{} got {words}", me.client, me.session));
            }
        }
        None
    }

    fn answered(
        session: &mut Session,
        (product, me): (u8, SessionId),
        now: Instant,
        (id, refused, term): (u64, Option<String>, Option<Term>),
        checks: &mut Checks,
    ) {
        let Some((request, asked)) = session.pending.remove(&id) else {
            let what = format!(
                "client {}.{} got an answer to request {id}, which has none due",
                me.client, me.session
            );
            return checks.violated("protocol", now, what);
        };
        let sent_in = session.generations.remove(&id);
        if let (Request::Publish { event, .. }, Some(term)) = (request, term) {
            checks.appended(event, term);
        }
        if let (Request::Publish { room, event, to_self, .. }, None) = (request, &refused) {
            let except = (!to_self).then_some(me);
            checks.kept.acked(Acked { event, room: (product, room), asked, except });
        }
        if let (Request::Publish { event, .. }, None) = (request, &refused)
            && sent_in == Some(checks.generation)
            && !checks.split
        {
            checks.settle(event);
        }
        if let Some(code) = &refused
            && !REFUSALS_IN_TROUBLE.contains(&code.as_str())
        {
            checks.violated(
                "refused",
                now,
                format!("client {}.{} {request:?}: {code}", me.client, me.session),
            );
        }
        match request {
            Request::Join(room) if refused.is_none() => {
                session.places.insert(room, Place::In);
                checks.kept.joined(now, (product, room), me);
            }
            Request::Leave(room) if refused.is_some() => drop(session.places.insert(room, Place::In)),
            Request::Join(room) | Request::Leave(room) => drop(session.places.remove(&room)),
            Request::Publish { event, to_self, .. } => {
                let early = refused.is_none() && to_self && now.since(asked) < OWN_ORDER_HELD;
                if early && !session.seen.contains(&event) {
                    session.answered_unseen.insert(event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const NOW: Instant = Instant::ZERO;

    fn heard_after_join(words: &[&str]) -> Checks {
        let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
        let mut checks = Checks::default();
        client.opened(9);
        for words in ["40{}"].iter().chain(words) {
            let _ = client.act(NOW, true);
            client.hear(NOW, &Packet::Text(Bytes::copy_from_slice(words.as_bytes())), &mut checks);
        }
        checks
    }

    fn broken(checks: &Checks) -> Vec<&str> {
        checks.violations.iter().map(|v| v.invariant).collect()
    }

    #[test]
    fn an_event_of_another_room_or_product_is_seen() {
        let joined = r#"430[{"ok":true}]"#;
        assert!(
            broken(&heard_after_join(&["40{}", joined, r#"42["m",{"by":[3,1,1],"to":[0,4]}]"#])).is_empty()
        );
        assert_eq!(
            broken(&heard_after_join(&["40{}", joined, r#"42["m",{"by":[3,1,1],"to":[0,5]}]"#])),
            ["I7"]
        );
        assert_eq!(
            broken(&heard_after_join(&["40{}", joined, r#"42["m",{"by":[3,1,1],"to":[1,4]}]"#])),
            ["I7"]
        );
    }

    #[test]
    fn an_ended_session_a_refusal_and_a_strange_word_are_seen() {
        assert_eq!(broken(&heard_after_join(&["41"])), ["I2"]);
        assert_eq!(
            broken(&heard_after_join(&["40{}", r#"430[{"ok":false,"code":"not_member"}]"#])),
            ["refused"]
        );
        assert_eq!(broken(&heard_after_join(&[r#"4399[{"ok":true}]"#])), ["protocol"]);
        assert_eq!(broken(&heard_after_join(&["hm"])), ["protocol"]);
    }

    #[test]
    fn an_answer_before_ones_own_event_is_seen() {
        let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
        let mut checks = Checks::default();
        client.opened(9);
        let mut hear = |client: &mut Client, words: &str| {
            client.hear(NOW, &Packet::Text(Bytes::copy_from_slice(words.as_bytes())), &mut checks);
        };
        hear(&mut client, "40{}");
        let _ = client.act(NOW, true);
        hear(&mut client, r#"430[{"ok":true}]"#);
        assert!(client.is_settled());
        client.probe(NOW, 4).unwrap();
        hear(&mut client, r#"431[{"ok":true}]"#);
        hear(&mut client, r#"42["m",{"by":[1,1,1],"to":[0,4]}]"#);
        assert_eq!(broken(&checks), ["I4"]);
    }
}
