//! What must hold, judged from what clients wrote down and from nothing else.
//!
//! Belongs here: the account of every client and message, the judgement of a round. Stays out: how a
//! round goes (`mod`), what the figures look like (`report`).
//! What a member is owed: every message that was handed to a socket after the member's join was answered,
//! and that was acknowledged, as long as its session goes on: on one transport, or over several if
//! each CONNECT said `recovered`. A session that is over is owed nothing more; nothing may come twice
//! or out of order within it. A cut of the network excuses what `cut` says.
//! Invariants: a message is judged once, in the round in which it was sent; the order of deliveries is
//! compared among members of a room whose session went through the whole round.
//! Units: microseconds of `journal::now_micros`. Memory: one bit per message and member of its room.

mod cut;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) use cut::Cut;

use super::journal::{Fact, Resumed};
use super::report::Round;

/// Sentences kept about broken promises of a round.
const SENTENCES_MAX: usize = 20;

/// How clients are dealt to rooms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) rooms: usize,
    /// Members of a room.
    pub(super) members: usize,
    /// Publishers of a room.
    pub(super) publishers: usize,
}

/// A node that was hurt in a round, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hurt {
    pub(super) node: usize,
    pub(super) from: u64,
    /// When it served again; `u64::MAX` while it does not.
    pub(super) until: u64,
}

/// Every client's account.
pub(super) struct Checker {
    plan: Plan,
    publishers: Vec<Publisher>,
    members: Vec<Member>,
    /// Broken promises that the journals show whatever the round: foreign and doubled events and such.
    broken: Broken,
    /// Events that came after a later one of their publisher, to be judged.
    late: Vec<Late>,
    cut_at: u64,
    /// Of this round's network; `None`: whole.
    cut: Option<Cut>,
    /// Figures of the steps of the round so far.
    measured: Round,
}

/// A message that a member is owed and has not got.
struct Missing {
    member: usize,
    publisher: usize,
    number: usize,
    /// Whether a cut excuses it.
    is_excused: bool,
}

/// An event that came to a member after one with a higher number.
struct Late {
    at: u64,
    member: usize,
    publisher: u16,
    number: u32,
    last: u32,
}

/// Broken promises since the last judgement.
#[derive(Default)]
struct Broken {
    doubled: u64,
    foreign: u64,
    sentences: Vec<String>,
}

impl Broken {
    fn say(&mut self, sentence: impl FnOnce() -> String) {
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(sentence());
        }
    }
}

/// What members and publishers have in common.
#[derive(Debug, Default)]
struct Seat {
    transport: Option<Transport>,
    /// Since the last judgement.
    disconnects: Vec<(u64, Transport)>,
    /// Since the last judgement: when, and what became of the session.
    reconnects: Vec<(u64, Resumed)>,
    /// When the last transport was lost.
    lost_at: u64,
    /// Transports left as they were: since the last judgement, and those that the server has not closed.
    left: u64,
    left_open: u64,
}

#[derive(Clone, Copy, Debug)]
struct Transport {
    node: usize,
    since: u64,
    /// Whether the client is in its room.
    joined: bool,
}

#[derive(Default)]
struct Publisher {
    seat: Seat,
    messages: Vec<Message>,
    /// Messages below are judged.
    judged: usize,
    /// Messages below are judged next.
    cut: usize,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    /// First handed to a socket.
    sent: u64,
    /// When it was answered; 0 before.
    answered: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    UnderWay,
    Acked,
    Refused,
    /// Its transport went without an answer.
    Unknown,
}

struct Member {
    seat: Seat,
    /// When the present session's join was answered.
    joined_at: u64,
    /// By publisher of the room.
    heard: Vec<Heard>,
    /// Since the last judgement: when, publisher, number.
    deliveries: Vec<(u64, u16, u32)>,
    /// When the last one before these came.
    last_before: Option<u64>,
}

/// What a session has got of one publisher.
#[derive(Clone, Debug, Default)]
struct Heard {
    seen: Vec<u64>,
    last: Option<u32>,
}

impl Heard {
    fn has(&self, number: usize) -> bool {
        self.seen.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: u32) {
        let number = number as usize;
        if self.seen.len() <= number / 64 {
            self.seen.resize(number / 64 + 1, 0);
        }
        self.seen[number / 64] |= 1 << (number % 64);
    }
}

impl Seat {
    fn take(&mut self, at: u64, fact: Fact) {
        match fact {
            Fact::Connected { node, resumed } => {
                self.transport = Some(Transport { node, since: at, joined: false });
                if resumed != Resumed::First {
                    self.reconnects.push((at.saturating_sub(self.lost_at), resumed));
                }
            }
            Fact::Joined => {
                if let Some(transport) = &mut self.transport {
                    transport.joined = true;
                }
            }
            Fact::Disconnected => self.is_lost(at),
            Fact::Left => {
                self.is_lost(at);
                self.left += 1;
                self.left_open += 1;
            }
            Fact::LeftClosed => self.left_open = self.left_open.saturating_sub(1),
            _ => {}
        }
    }

    fn is_lost(&mut self, at: u64) {
        self.lost_at = at;
        self.disconnects.extend(self.transport.take().map(|transport| (at, transport)));
    }

    fn node(&self) -> Option<usize> {
        self.transport.map(|transport| transport.node)
    }

    fn in_room(&self) -> bool {
        self.transport.is_some_and(|transport| transport.joined)
    }

    /// Whether its transport stands since before `from`, by a node that was not hurt.
    fn undisturbed(&self, from: u64, hurt: &[Hurt]) -> bool {
        self.transport.is_some_and(|now| now.joined && now.since < from && !now.by(hurt, u64::MAX))
    }
}

impl Transport {
    /// Whether it ended, at this time, by a node that had been hurt while it stood.
    fn by(&self, hurt: &[Hurt], ended_at: u64) -> bool {
        hurt.iter().any(|hurt| hurt.node == self.node && self.since < hurt.until && ended_at >= hurt.from)
    }
}

impl Checker {
    pub(super) fn new(plan: Plan) -> Self {
        let member = || Member {
            seat: Seat::default(),
            joined_at: u64::MAX,
            heard: vec![Heard::default(); plan.publishers],
            deliveries: Vec::new(),
            last_before: None,
        };
        Self {
            plan,
            publishers: std::iter::repeat_with(Publisher::default)
                .take(plan.rooms * plan.publishers)
                .collect(),
            members: std::iter::repeat_with(member).take(plan.rooms * plan.members).collect(),
            broken: Broken::default(),
            late: Vec::new(),
            cut_at: 0,
            cut: None,
            measured: Round::default(),
        }
    }

    /// Takes a line of the publishers' journal.
    pub(super) fn take_publisher(&mut self, at: u64, client: usize, fact: Fact) {
        let Some(publisher) = self.publishers.get_mut(client) else { return };
        publisher.seat.take(at, fact);
        let messages = &mut publisher.messages;
        match fact {
            Fact::Sent(number) if number as usize == messages.len() => {
                messages.push(Message { sent: at, answered: 0, state: State::UnderWay });
            }
            Fact::Sent(number) => messages[number as usize].state = State::UnderWay,
            Fact::Acked(number) => messages[number as usize].is_answered(at, State::Acked),
            Fact::Refused(number) => messages[number as usize].is_answered(at, State::Refused),
            Fact::Disconnected | Fact::Left => {
                for message in messages.iter_mut().filter(|message| message.state == State::UnderWay) {
                    message.state = State::Unknown;
                }
            }
            _ => {}
        }
    }

    /// Takes a line of the members' journal.
    pub(super) fn take_member(&mut self, at: u64, client: usize, fact: Fact) {
        let Some(member) = self.members.get_mut(client) else { return };
        member.seat.take(at, fact);
        match fact {
            Fact::Connected { resumed, .. } if resumed != Resumed::Recovered => {
                member.joined_at = u64::MAX;
                member.heard = vec![Heard::default(); self.plan.publishers];
            }
            Fact::Joined => member.joined_at = member.joined_at.min(at),
            Fact::Event(publisher, number) => {
                let room = client / self.plan.members;
                let own = usize::from(publisher).checked_sub(room * self.plan.publishers);
                let Some(heard) = own.and_then(|own| member.heard.get_mut(own)) else {
                    self.broken.foreign += 1;
                    self.broken.say(|| {
                        format!("m{client} of room {room} got p{publisher}#{number} of another room")
                    });
                    return;
                };
                if heard.has(number as usize) {
                    self.broken.doubled += 1;
                    self.broken.say(|| format!("m{client} got p{publisher}#{number} twice, again at {at}"));
                } else if let Some(last) = heard.last.filter(|last| number < *last) {
                    self.late.push(Late { at, member: client, publisher, number, last });
                }
                heard.set(number);
                heard.last = heard.last.max(Some(number));
                member.deliveries.push((at, publisher, number));
            }
            _ => {}
        }
    }

    /// Whether every client is in its room.
    pub(super) fn all_in(&self) -> bool {
        self.seats().all(Seat::in_room)
    }

    /// Every message sent so far, and it is `at` now, is to be judged next.
    pub(super) fn cut(&mut self, at: u64) {
        self.cut_at = at;
        for publisher in &mut self.publishers {
            publisher.cut = publisher.messages.len();
        }
    }

    /// Whether nothing of the round is open: all are back, all is answered, all owed has come.
    pub(super) fn is_settled(&self) -> bool {
        self.all_in()
            && self
                .publishers
                .iter()
                .all(|publisher| publisher.to_judge().all(|(_, m)| m.state != State::UnderWay))
            && self.seats().all(|seat| seat.left_open == 0)
            && self.missing().all(|missing| missing.is_excused)
    }

    fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.publishers.iter().map(|p| &p.seat).chain(self.members.iter().map(|m| &m.seat))
    }

    /// Messages of the round that a member is owed and has not got.
    fn missing(&self) -> impl Iterator<Item = Missing> {
        let Plan { members, publishers, .. } = self.plan;
        self.members.iter().enumerate().flat_map(move |(index, member)| {
            let first = index / members * publishers;
            member.heard.iter().enumerate().flat_map(move |(own, heard)| {
                self.publishers[first + own].to_judge().filter_map(move |(number, message)| {
                    let owed = message.state == State::Acked
                        && member.seat.in_room()
                        && member.joined_at < message.sent;
                    (owed && !heard.has(number)).then(|| {
                        let publisher = first + own;
                        let is_excused = self.excuses(index, publisher, message);
                        Missing { member: index, publisher, number, is_excused }
                    })
                })
            })
        })
    }

    /// Judges the round that began at `from`; `hurt` are the nodes that were hurt in it.
    pub(super) fn judge(&mut self, from: u64, hurt: &[Hurt]) -> Round {
        self.measure(from, self.cut_at, hurt);
        let mut round = std::mem::take(&mut self.measured);
        let mut broken = std::mem::take(&mut self.broken);
        for Missing { member, publisher, number, is_excused } in self.missing() {
            if is_excused {
                round.gaps += 1;
                continue;
            }
            round.lost += 1;
            broken.say(|| {
                let sent = self.publishers[publisher].messages[number].sent;
                format!("m{member} never got p{publisher}#{number}, sent at {sent} and acknowledged")
            });
        }
        self.judge_transports(from, hurt, &mut round, &mut broken);
        self.judge_late(&mut round, &mut broken);
        self.judge_order(from, &mut round, &mut broken);
        self.judge_sides(&mut round, &mut broken);
        for (index, publisher) in self.publishers.iter_mut().enumerate() {
            for (number, message) in publisher.to_judge() {
                round.published += 1;
                match message.state {
                    State::UnderWay => {
                        round.unanswered += 1;
                        broken.say(|| format!("p{index}#{number}, sent at {}, has no answer", message.sent));
                    }
                    State::Acked => round.acked += 1,
                    State::Refused => round.refused += 1,
                    State::Unknown => round.unknown += 1,
                }
            }
            publisher.judged = publisher.cut;
        }
        round.delivered = self.members.iter().map(|member| member.deliveries.len() as u64).sum();
        round.doubled = broken.doubled;
        round.foreign = broken.foreign;
        round.sentences = broken.sentences;
        for member in &mut self.members {
            member.last_before = member.deliveries.last().map(|(at, ..)| *at).or(member.last_before);
            member.deliveries.clear();
        }
        let seats = self.publishers.iter_mut().map(|p| &mut p.seat);
        for seat in seats.chain(self.members.iter_mut().map(|m| &mut m.seat)) {
            seat.disconnects.clear();
            seat.reconnects.clear();
            (seat.left, seat.left_open) = (0, 0);
        }
        self.cut = None;
        round
    }

    fn judge_transports(&self, from: u64, hurt: &[Hurt], round: &mut Round, broken: &mut Broken) {
        let publishers = self.publishers.len();
        for (index, seat) in self.seats().enumerate() {
            let name =
                || if index < publishers { format!("p{index}") } else { format!("m{}", index - publishers) };
            for (at, transport) in &seat.disconnects {
                if transport.by(hurt, *at) {
                    round.edge_lost += 1;
                } else {
                    round.disconnected += 1;
                    broken
                        .say(|| format!("{} lost its transport by n{} at {at}", name(), transport.node + 1));
                }
            }
            for (away, resumed) in &seat.reconnects {
                round.back.add(Some(Duration::from_micros(*away)));
                match resumed {
                    Resumed::Recovered => round.recovered += 1,
                    Resumed::Refused | Resumed::NotOffered => {
                        round.not_recovered += 1;
                        broken.say(|| format!("{} came back and is not recovered: {resumed:?}", name()));
                    }
                    Resumed::New | Resumed::First => round.new_sessions += 1,
                }
            }
            round.left += seat.left;
            round.left_open += seat.left_open;
            if seat.left_open > 0 {
                broken.say(|| format!("the transport that {} left is still open", name()));
            }
            if !seat.in_room() {
                round.not_back += 1;
                broken.say(|| format!("{} is not back in its room", name()));
            }
            if let Some(now) = seat.transport
                && now.since < from
                && now.by(hurt, u64::MAX)
            {
                // By a node that was stopped and went on.
                round.still_attached += 1;
            }
        }
    }

    /// One publisher's messages come in its order. What its session had under way when its edge died, and it
    /// did not repeat, may come after what its next session sends.
    fn judge_late(&mut self, round: &mut Round, broken: &mut Broken) {
        for Late { at, member, publisher, number, last } in std::mem::take(&mut self.late) {
            let message = self.publishers[usize::from(publisher)].messages.get(number as usize);
            if message.is_none_or(|message| message.state != State::Unknown) {
                round.reordered += 1;
                broken.say(|| format!("m{member} got p{publisher}#{number} at {at} after its {last}"));
            }
        }
    }

    /// All members of a room, of one side, whose session went through the round have seen one order.
    fn judge_order(&self, from: u64, round: &mut Round, broken: &mut Broken) {
        let sides: BTreeSet<_> = self.members.iter().filter_map(|m| self.side(&m.seat)).collect();
        for side in sides {
            self.judge_order_of(side, from, round, broken);
        }
    }

    fn judge_order_of(&self, side: usize, from: u64, round: &mut Round, broken: &mut Broken) {
        for (room, members) in self.members.chunks(self.plan.members).enumerate() {
            let whole =
                |m: &Member| m.joined_at < from && m.seat.in_room() && self.side(&m.seat) == Some(side);
            let mut whole = members.iter().enumerate().filter(|(_, m)| whole(m));
            let Some((first, reference)) = whole.next() else { continue };
            let places: BTreeMap<(u16, u32), usize> =
                reference.deliveries.iter().enumerate().map(|(place, &(_, p, n))| ((p, n), place)).collect();
            for (other, member) in whole {
                let mut last = 0;
                for &(at, publisher, number) in &member.deliveries {
                    if !self.has_place(side, publisher, number) {
                        continue;
                    }
                    let Some(&place) = places.get(&(publisher, number)) else { continue };
                    if place < last {
                        round.reordered += 1;
                        broken.say(|| {
                            let [first, other] = [first, other].map(|m| room * self.plan.members + m);
                            format!(
                                "m{other} got p{publisher}#{number} at {at} in another order than m{first}"
                            )
                        });
                    }
                    last = place;
                }
            }
        }
    }

    /// Measures the members that were undisturbed from `from` until now, `until`: for each step of a round
    /// in which every node is hurt in the end. [`Self::judge`] does it for the whole round.
    pub(super) fn measure(&mut self, from: u64, until: u64, hurt: &[Hurt]) {
        let rooms = self.members.chunks(self.plan.members).zip(self.publishers.chunks(self.plan.publishers));
        for (room, (members, publishers)) in rooms.enumerate() {
            for member in members.iter().filter(|member| member.seat.undisturbed(from, hurt)) {
                let side = self.side(&member.seat);
                let steady = |p: &Publisher| p.seat.undisturbed(from, hurt) && self.side(&p.seat) == side;
                let steady: Vec<bool> = publishers.iter().map(steady).collect();
                if !steady.contains(&true) {
                    continue;
                }
                self.measured.pause.add(member.longest_gap(from, until).map(Duration::from_micros));
                let delays = member.deliveries.iter().filter_map(|&(at, publisher, number)| {
                    let own = usize::from(publisher) - room * self.plan.publishers;
                    let message = publishers[own].messages.get(number as usize)?;
                    (at >= from && steady[own]).then(|| at.saturating_sub(message.sent))
                });
                self.measured.slowest.add(delays.max().map(Duration::from_micros));
            }
        }
        self.measured.undisturbed += self.seats().filter(|seat| seat.undisturbed(from, hurt)).count() as u64;
    }
}

impl Member {
    /// The longest time without a delivery that ended after `from`; the last one ends at `until`.
    fn longest_gap(&self, from: u64, until: u64) -> Option<u64> {
        let first = self.deliveries.first().map(|(at, ..)| *at);
        let mut last = self.last_before.or(first)?;
        let ends = self.deliveries.iter().map(|(at, ..)| *at).filter(|at| *at <= until).chain([until]);
        let gaps = ends.map(|end| {
            let gap = end.saturating_sub(std::mem::replace(&mut last, end));
            if end >= from { gap } else { 0 }
        });
        gaps.max()
    }
}

impl Message {
    fn is_answered(&mut self, at: u64, state: State) {
        (self.answered, self.state) = (at, state);
    }
}

impl Publisher {
    /// The messages that are judged next, with their numbers.
    fn to_judge(&self) -> impl Iterator<Item = (usize, &Message)> {
        (self.judged..).zip(&self.messages[self.judged..self.cut.max(self.judged)])
    }
}

#[cfg(test)]
mod tests;
