//! A client of the simulation: joins rooms, publishes, comes back when its transport is gone.
//!
//! Belongs here: what one client wants and what it has been told. Stays out: how bytes get there
//! (`cluster`), whether what it was sent may be (`checks`).
//! A client that loses its transport connects anywhere. One that carries its cursors behaves as the stock
//! client does: it keeps the pid of its last CONNECT and, also across pids, the last string argument of its
//! last event, and sends both in the next CONNECT. The others begin anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_proto::id::{NodeId, Term};
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

/// A node that looks for a session gives up after this time, answers that are under way included.
const QUESTION_MAX: Duration = Duration::from_secs(12);

/// Codes of refusals that a cluster in trouble may give.
const REFUSALS_IN_TROUBLE: [&str; 3] = ["timeout", "overloaded", "rate"];

/// How far a session is in a room, by what its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Joining,
    In,
    Leaving,
    /// The answer to its join or leave went with its transport: only asking again tells.
    Unknown,
}

/// A session that stands, is being opened, or has lost its transport.
#[derive(Debug, Default)]
struct Session {
    transport: u64,
    connected: bool,
    /// Its public id, once it has stood.
    sid: Option<String>,
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

impl Session {
    /// Its transport is gone: nobody answers what was asked over it.
    fn loses_transport(&mut self) {
        self.connected = false;
        self.pending.clear();
        self.generations.clear();
        for place in self.places.values_mut().filter(|place| **place != Place::In) {
            *place = Place::Unknown;
        }
    }
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
    /// It carries its cursors from one transport to the next, as the stock client does.
    pub carries: bool,
    /// It begins by polling.
    pub polls: bool,
    /// It goes over to a WebSocket then.
    pub upgrades: bool,
    rooms: Vec<u16>,
    sessions: u32,
    generation: u64,
    session: Option<Session>,
    /// Where its transport ends, or did.
    edge: NodeId,
    /// The session that its next transport may go on with.
    parked: Option<Session>,
    /// Until then a node may still look for its session on behalf of a transport it has lost.
    asked_until: Instant,
    /// What the stock client stores.
    pid: Option<String>,
    offset: Option<String>,
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
            carries: false,
            polls: false,
            upgrades: false,
            rooms,
            sessions: 0,
            generation: 0,
            session: None,
            edge: NodeId(0),
            parked: None,
            asked_until: Instant::ZERO,
            pid: None,
            offset: None,
            random,
        }
    }

    /// Its present session.
    #[must_use]
    pub fn session_id(&self) -> SessionId {
        SessionId { client: self.id, session: self.sessions }
    }

    /// Whether a node may still look for its session on behalf of a transport that it has lost: such a
    /// question takes the session away from the newer transport.
    #[must_use]
    pub fn is_asked_for(&self, now: Instant) -> bool {
        self.carries && now < self.asked_until
    }

    /// The transport it uses.
    #[must_use]
    pub fn transport(&self) -> Option<u64> {
        self.session.as_ref().map(|session| session.transport)
    }

    /// Whether it has been told that it is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.connected)
    }

    /// Its present session, or the one that it may go on with, and the public id of that.
    #[must_use]
    pub fn last_session(&self) -> Option<(SessionId, &str)> {
        let session = self.session.as_ref().or(self.parked.as_ref())?;
        Some((self.session_id(), session.sid.as_deref()?))
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
        let session = self.session.as_ref().filter(|session| session.connected);
        session.is_some_and(|session| session.places.get(&room) == Some(&Place::In))
    }

    /// It has a new transport, to this node.
    pub fn opened(&mut self, transport: u64, edge: NodeId) {
        self.edge = edge;
        self.sessions += u32::from(self.parked.is_none());
        let session = self.parked.take().unwrap_or_default();
        self.session = Some(Session { transport, ..session });
    }

    /// It goes on over another transport, to this node.
    pub fn moves_to(&mut self, transport: u64, edge: Option<NodeId>) {
        self.edge = edge.unwrap_or(self.edge);
        if let Some(session) = &mut self.session {
            session.transport = transport;
        }
    }

    /// Its transport is gone.
    pub fn closed(&mut self, now: Instant) {
        if self.session.as_ref().is_some_and(|session| !session.connected) {
            self.asked_until = now + QUESTION_MAX;
        }
        let lost = self.session.take().filter(|session| self.carries && session.sid.is_some());
        if let Some(mut lost) = lost {
            lost.loses_transport();
            self.parked = Some(lost);
        }
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
        let absent = |room: &&u16| matches!(session.places.get(room), None | Some(Place::Unknown));
        let missing = self.rooms.iter().filter(absent);
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
        let heard = speech::hear(self.protocol, packet);
        if let Heard::Event { offset, .. } | Heard::Own { offset, .. } = &heard {
            self.takes_event(now, offset.clone(), checks);
        }
        let session = self.session.as_mut()?;
        match heard {
            Heard::Open => return Some(speech::connect(self.pid.as_deref(), self.offset.as_deref())),
            Heard::Ping => return Some(speech::pong(self.protocol)),
            Heard::Connected { sid, pid } => self.connected(now, sid, pid, checks),
            Heard::Answer { id, refused, term } => {
                Self::answered(session, (self.product, me, self.edge), now, (id, refused, term), checks)
            }
            Heard::Own { number, .. } => checks.own.delivered(now, me, number, &mut checks.violations),
            Heard::Event { event, product, room, position, room_told, .. } => {
                let was_in = checks.is_uncertain(me) && session.stays.contains_key(&room);
                let in_room = session.places.contains_key(&room) || was_in;
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
                let settled = session.places.get(&room) == Some(&Place::In);
                checks.delivered(now, &Delivery { to: me, product, room, stay, settled, event, position });
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

    /// A CONNECT: the session of before goes on, or another begins.
    fn connected(&mut self, now: Instant, sid: String, pid: Option<String>, checks: &mut Checks) {
        let Some(session) = &mut self.session else { return };
        let (client, number) = (self.id, self.sessions);
        let mut broken = |what: &str| {
            checks.violated("I6", now, format!("client {client}.{number} {what}"));
        };
        if session.connected {
            broken("is told twice that it is connected");
        }
        if pid.is_some() != self.carries {
            broken("is not offered what it asked for");
        }
        let recovered = pid.is_some() && pid == self.pid;
        if recovered && session.sid.as_ref() != Some(&sid) {
            broken("goes on under another id");
        }
        if !recovered && session.sid.is_some() {
            // The client sees `recovered === false`: it starts anew.
            checks.begins_anew(now, SessionId { client, session: number });
            self.sessions += 1;
            *session = Session { transport: session.transport, ..Session::default() };
        }
        (session.connected, session.sid) = (true, Some(sid.clone()));
        self.pid = pid;
        checks.connected(now, self.session_id(), &sid, recovered);
    }

    /// An event is there: nothing comes before the CONNECT, and who carries its cursors gets them.
    fn takes_event(&mut self, now: Instant, offset: Option<String>, checks: &mut Checks) {
        let (client, number) = (self.id, self.sessions);
        if !self.session.as_ref().is_some_and(|session| session.connected) {
            checks.violated("I6", now, format!("client {client}.{number} got an event before its CONNECT"));
        }
        if offset.is_some() != self.carries {
            checks.violated("I6", now, format!("client {client}.{number} got an event with {offset:?}"));
        }
        self.offset = offset.or(self.offset.take());
    }

    fn answered(
        session: &mut Session,
        (product, me, edge): (u8, SessionId, NodeId),
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
        if let (Request::Publish { room, .. }, Some("not_member")) = (request, refused.as_deref())
            && checks.is_uncertain(me)
        {
            session.places.insert(room, Place::Unknown);
        } else if let Some(code) = &refused
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
            Request::Publish { room, event, to_self, .. } => {
                let early = refused.is_none()
                    && to_self
                    && now.since(asked) < OWN_ORDER_HELD
                    && !checks.may_be_in_a_hole((product, room), edge, asked);
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
    const CONNECT: &str = r#"40{"sid":"a"}"#;

    fn heard_after_join(words: &[&str]) -> Checks {
        let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
        let mut checks = Checks::default();
        client.opened(9, NodeId(1));
        for words in [CONNECT].iter().chain(words) {
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
        assert!(broken(&heard_after_join(&[joined, r#"42["m",{"by":[3,1,1],"to":[0,4]}]"#])).is_empty());
        assert_eq!(broken(&heard_after_join(&[joined, r#"42["m",{"by":[3,1,1],"to":[0,5]}]"#])), ["I7"]);
        assert_eq!(broken(&heard_after_join(&[joined, r#"42["m",{"by":[3,1,1],"to":[1,4]}]"#])), ["I7"]);
    }

    #[test]
    fn an_ended_session_a_refusal_and_a_strange_word_are_seen() {
        assert_eq!(broken(&heard_after_join(&["41"])), ["I2"]);
        assert_eq!(broken(&heard_after_join(&[r#"430[{"ok":false,"code":"not_member"}]"#])), ["refused"]);
        assert_eq!(broken(&heard_after_join(&[r#"4399[{"ok":true}]"#])), ["protocol"]);
        assert_eq!(broken(&heard_after_join(&["hm"])), ["protocol"]);
    }

    #[test]
    fn an_answer_before_ones_own_event_is_seen() {
        let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
        let mut checks = Checks::default();
        client.opened(9, NodeId(1));
        let mut hear = |client: &mut Client, words: &str| {
            client.hear(NOW, &Packet::Text(Bytes::copy_from_slice(words.as_bytes())), &mut checks);
        };
        hear(&mut client, CONNECT);
        let _ = client.act(NOW, true);
        hear(&mut client, r#"430[{"ok":true}]"#);
        assert!(client.is_settled());
        client.probe(NOW, 4).unwrap();
        hear(&mut client, r#"431[{"ok":true}]"#);
        hear(&mut client, r#"42["m",{"by":[1,1,1],"to":[0,4]}]"#);
        assert_eq!(broken(&checks), ["I4"]);
    }

    /// A client that carries its cursors, at its first CONNECT and after each word; what it says.
    fn carrier(words: &[&str]) -> (Checks, Vec<String>) {
        let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
        client.carries = true;
        let (mut checks, mut said) = (Checks::default(), Vec::new());
        for (transport, words) in words.split(|words| *words == "lost").enumerate() {
            client.opened(transport as u64, NodeId(1));
            for words in words {
                let packet = Packet::Text(Bytes::copy_from_slice(words.as_bytes()));
                if let Some(Packet::Text(answer)) = client.hear(NOW, &packet, &mut checks) {
                    said.push(String::from_utf8(answer.to_vec()).unwrap());
                }
            }
            client.closed(NOW);
        }
        (checks, said)
    }

    const OPEN: &str = "0{}";
    const FIRST: &str = r#"40{"sid":"a","pid":"p"}"#;
    const EVENT: &str = r#"42["own",{"n":1},"o"]"#;

    fn carrier_broke(words: &[&str]) -> Vec<&'static str> {
        let mut checks = carrier(words).0;
        checks.violations.retain(|violation| violation.invariant != "I7");
        checks.violations.iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn pid_and_offset_are_kept_as_the_stock_client_keeps_them() {
        let second = r#"40{"sid":"b","pid":"q"}"#;
        let (checks, said) =
            carrier(&[OPEN, FIRST, "lost", OPEN, FIRST, EVENT, "lost", OPEN, second, "lost", OPEN]);
        assert_eq!(
            said,
            ["40", r#"40{"pid":"p"}"#, r#"40{"offset":"o","pid":"p"}"#, r#"40{"offset":"o","pid":"q"}"#]
        );
        assert_eq!((checks.recovered, checks.begun_anew), (1, 1));
    }

    #[test]
    fn an_event_before_the_connect_or_without_an_offset_is_seen() {
        assert!(carrier_broke(&[FIRST, EVENT]).is_empty());
        assert_eq!(carrier_broke(&[EVENT, FIRST]), ["I6"]);
        assert_eq!(carrier_broke(&[FIRST, "lost", EVENT, FIRST]), ["I6"]);
        assert_eq!(carrier_broke(&[FIRST, r#"42["own",{"n":1}]"#]), ["I6"]);
    }

    #[test]
    fn going_on_under_another_id_and_a_second_connect_are_seen() {
        assert!(carrier_broke(&[FIRST, "lost", FIRST]).is_empty());
        assert_eq!(carrier_broke(&[FIRST, "lost", r#"40{"sid":"b","pid":"p"}"#]), ["I6"]);
        assert_eq!(carrier_broke(&[FIRST, "lost", r#"40{"sid":"a","pid":"q"}"#]), ["I6"]);
        assert_eq!(carrier_broke(&[FIRST, FIRST]), ["I6"]);
        assert_eq!(carrier_broke(&[r#"40{"sid":"a"}"#]), ["I6"]);
    }

    #[test]
    fn a_session_that_goes_on_is_in_its_rooms_and_one_that_began_anew_is_not() {
        let joined = r#"430[{"ok":true}]"#;
        let event = r#"42["m",{"by":[3,1,1],"to":[0,4]},"o"]"#;
        let broken = |second: &str| {
            let mut client = Client::new(1, ClientProtocol::SocketIo, 0, "u".into(), vec![4], Random::new(1));
            client.carries = true;
            let mut checks = Checks::default();
            let mut hear = |client: &mut Client, words: &str| {
                client.hear(NOW, &Packet::Text(Bytes::copy_from_slice(words.as_bytes())), &mut checks);
            };
            client.opened(1, NodeId(1));
            hear(&mut client, FIRST);
            let _ = client.act(NOW, true);
            hear(&mut client, joined);
            client.closed(NOW);
            assert!(!client.is_in(4));
            client.opened(2, NodeId(1));
            hear(&mut client, second);
            hear(&mut client, event);
            (checks.violations.len(), client.session_id().session, client.is_in(4))
        };
        assert_eq!(broken(FIRST), (0, 1, true));
        assert_eq!(broken(r#"40{"sid":"b","pid":"q"}"#), (1, 2, false));
    }
}
