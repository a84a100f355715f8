//! Questions to the members of rooms, at the shard that waits for the answers.
//!
//! Belongs here: who is still to say something, what has been answered, when a question is over.
//! Stays out: putting questions (`edge::asks`), the rooms' logs, publishing (`session`, `calls`).
//! Units: at most [`OPEN_MAX`] questions; [`KEPT_BYTES_MAX`] of answers for each, [`ALL_BYTES_MAX`] for all.
//! Invariants: a question ends once; each session counts once in it; what is not known is not taken for complete.
//! When it breaks: edges that are gone are named as silent and what their members have not answered is
//! missing; a word that is lost is missing at the deadline. With this node the question is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Ctx, Output, TimerKey};
use crate::id::{Address, NodeRef, RoomKey, SocketSid};
use crate::time::Instant;
use crate::wire::{Answer, AskRef, Gathered, Payload, ToAsker};

/// Questions under way in one shard; more are refused.
const OPEN_MAX: usize = 1_024;

/// Answers kept for one question, and for all of a shard. What is beyond is counted as dropped.
const KEPT_BYTES_MAX: usize = 4 << 20;
const ALL_BYTES_MAX: usize = 64 << 20;

/// Bookkeeping of one answer.
const ANSWER_OVERHEAD_BYTES: usize = 64;

/// Edges that were served by a former owner have subscribed at the present one after this time.
const GATHER_MIN: Duration = Duration::from_secs(1);

/// Who waits for the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A product's code.
    App(u64),
    /// Whoever has put the question from outside.
    Token(u64),
}

/// The questions of one shard.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    number: u64,
    open: BTreeMap<u64, Question>,
    bytes: usize,
}

#[derive(Debug)]
struct Question {
    asker: Asker,
    deadline: Instant,
    /// It is not over before, though everybody known of has answered.
    not_before: Instant,
    /// Rooms whose owners have not said whom they serve.
    unserved: BTreeSet<RoomKey>,
    /// Rooms that will not be served for this question.
    refused: u32,
    /// Edge shards that are to say how many they ask, and those that have.
    expected: BTreeSet<(RoomKey, Address)>,
    reached: BTreeSet<(RoomKey, Address)>,
    /// Members asked by each edge shard, less those it has told of.
    left: BTreeMap<Address, i64>,
    answers: BTreeMap<SocketSid, Option<Payload>>,
    gone: BTreeSet<SocketSid>,
    /// Asked by edges that are gone.
    lost: u64,
    dropped: u64,
    silent: BTreeSet<NodeRef>,
    bytes: usize,
}

impl Asks {
    /// Opens a question to these rooms; its number and deadline, or `None` if there are too many.
    fn begin(
        &mut self,
        now: Instant,
        asker: Asker,
        rooms: impl Iterator<Item = RoomKey>,
        within: Duration,
    ) -> Option<(u64, Instant)> {
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        self.number += 1;
        let deadline = now + within;
        let question = Question {
            asker,
            deadline,
            not_before: now,
            unserved: rooms.collect(),
            refused: 0,
            expected: BTreeSet::new(),
            reached: BTreeSet::new(),
            left: BTreeMap::new(),
            answers: BTreeMap::new(),
            gone: BTreeSet::new(),
            lost: 0,
            dropped: 0,
            silent: BTreeSet::new(),
            bytes: 0,
        };
        self.open.insert(self.number, question);
        Some((self.number, deadline))
    }

    /// A room will not be served for this question.
    fn refused(&mut self, now: Instant, number: u64, room: &RoomKey) -> Vec<Output> {
        if let Some(question) = self.open.get_mut(&number)
            && question.unserved.remove(room)
        {
            question.refused += 1;
        }
        self.end_if_over(now, number)
    }

    /// A word from a room's owner or an edge.
    fn take(&mut self, now: Instant, from: Address, is_up: bool, message: ToAsker) -> Vec<Output> {
        let number = match message {
            ToAsker::Served { number, room, edges, may_be_more } => {
                let Some(question) = self.open.get_mut(&number) else { return Vec::new() };
                question.served(now, &room, edges, may_be_more);
                number
            }
            ToAsker::Reached { number, room, clients } => {
                let Some(question) = self.open.get_mut(&number) else { return Vec::new() };
                question.expected.remove(&(room.clone(), from));
                // Of one that is gone nothing more can come.
                if is_up && question.reached.insert((room, from)) {
                    *question.left.entry(from).or_default() += i64::from(clients);
                }
                number
            }
            ToAsker::Answers { number, answers, gone } => {
                let Some(question) = self.open.get_mut(&number) else { return Vec::new() };
                for (sid, answer) in answers {
                    self.bytes += question.answered(from, sid, answer, ALL_BYTES_MAX - self.bytes);
                }
                for sid in gone {
                    if !question.answers.contains_key(&sid) && question.gone.insert(sid) {
                        *question.left.entry(from).or_default() -= 1;
                    }
                }
                number
            }
        };
        self.end_if_over(now, number)
    }

    fn end_if_over(&mut self, now: Instant, number: u64) -> Vec<Output> {
        let is_over = self.open.get(&number).is_some_and(|question| question.is_over(now));
        if is_over { self.end(number).into_iter().collect() } else { Vec::new() }
    }

    fn end(&mut self, number: u64) -> Option<Output> {
        let question = self.open.remove(&number)?;
        self.bytes -= question.bytes;
        let (asker, gathered) = question.into_gathered();
        Some(match asker {
            Asker::App(name) => Output::AppGathered(name, gathered),
            Asker::Token(token) => Output::Answer(token, Ok(Answer::Gathered(gathered))),
        })
    }

    /// Nodes for which `is_up` does not hold say nothing any more.
    fn lost(&mut self, now: Instant, is_up: impl Fn(NodeRef) -> bool) -> Vec<Output> {
        self.open.values_mut().for_each(|question| question.lost(&is_up));
        let numbers: Vec<u64> = self.open.keys().copied().collect();
        numbers.into_iter().flat_map(|number| self.end_if_over(now, number)).collect()
    }

    fn expire(&mut self, now: Instant) -> Vec<Output> {
        let due = |question: &Question| now >= question.deadline || question.is_over(now);
        let due: Vec<u64> = self.open.iter().filter(|(_, q)| due(q)).map(|(number, _)| *number).collect();
        due.into_iter().filter_map(|number| self.end(number)).collect()
    }

    /// What this node has asked in a life that is over nobody answers any more.
    fn give_up_all(&mut self) -> Vec<Output> {
        let numbers: Vec<u64> = self.open.keys().copied().collect();
        numbers.into_iter().filter_map(|number| self.end(number)).collect()
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.open.len() <= OPEN_MAX);
        assert_eq!(self.bytes, self.open.values().map(|question| question.bytes).sum::<usize>());
        assert!(self.bytes <= ALL_BYTES_MAX, "answers of {} bytes are kept", self.bytes);
        for question in self.open.values() {
            assert!(question.bytes <= KEPT_BYTES_MAX);
            assert!(question.answers.keys().all(|sid| !question.gone.contains(sid)), "it counts twice");
        }
    }
}

impl Ctx<'_> {
    /// Opens a question to these rooms: its name for their events. `None`: too many are under way.
    pub(crate) fn ask(
        &mut self,
        asker: Asker,
        rooms: impl Iterator<Item = RoomKey>,
        within: Duration,
    ) -> Option<AskRef> {
        let (number, deadline) = self.asks.begin(self.now, asker, rooms, within)?;
        self.timers.set(deadline, TimerKey::Asks);
        Some(AskRef { by: self.out.me, number })
    }

    /// A room will not be served for a question of this shard.
    pub(crate) fn ask_refused(&mut self, name: AskRef, room: &RoomKey) {
        if name.by == self.out.me {
            let over = self.asks.refused(self.now, name.number, room);
            self.out.outputs.extend(over);
        }
    }

    pub(super) fn on_asked(&mut self, from: Address, message: ToAsker) {
        if matches!(message, ToAsker::Served { may_be_more: true, .. }) {
            self.timers.set(self.now + GATHER_MIN, TimerKey::Asks);
        }
        let is_up = self.view.is_up(from.node);
        let over = self.asks.take(self.now, from, is_up, message);
        self.out.outputs.extend(over);
    }

    /// The cluster has changed.
    pub(super) fn asks_on_view(&mut self) {
        let over = self.asks.lost(self.now, |node| self.view.is_up(node));
        self.out.outputs.extend(over);
    }

    /// Another life of this node: what was asked in the former one nobody answers.
    pub(super) fn asks_on_rebirth(&mut self) {
        self.out.outputs.extend(self.asks.give_up_all());
    }

    pub(super) fn asks_expire(&mut self) {
        let over = self.asks.expire(self.now);
        self.out.outputs.extend(over);
    }
}

impl Question {
    fn served(&mut self, now: Instant, room: &RoomKey, edges: Option<Vec<Address>>, may_be_more: bool) {
        let is_first = self.unserved.remove(room);
        let Some(edges) = edges else {
            self.refused += u32::from(is_first);
            return;
        };
        let unheard = |edge: &Address| !self.reached.contains(&(room.clone(), *edge));
        self.expected.extend(edges.into_iter().filter(unheard).map(|edge| (room.clone(), edge)));
        if may_be_more {
            self.not_before = self.not_before.max(now + GATHER_MIN);
        }
    }

    /// Bytes kept of it.
    fn answered(&mut self, from: Address, sid: SocketSid, answer: Option<Payload>, room: usize) -> usize {
        if self.answers.contains_key(&sid) {
            return 0;
        }
        // It had been given up, and has come back and answered elsewhere.
        if !self.gone.remove(&sid) {
            *self.left.entry(from).or_default() -= 1;
        }
        let bytes = ANSWER_OVERHEAD_BYTES + answer.as_ref().map_or(0, Payload::len);
        if bytes > room || self.bytes + bytes > KEPT_BYTES_MAX {
            self.dropped += 1;
            return 0;
        }
        self.answers.insert(sid, answer);
        self.bytes += bytes;
        bytes
    }

    fn lost(&mut self, is_up: impl Fn(NodeRef) -> bool) {
        let silent = &mut self.silent;
        self.expected.retain(|(_, edge)| {
            let up = is_up(edge.node);
            if !up {
                silent.insert(edge.node);
            }
            up
        });
        let lost = &mut self.lost;
        self.left.retain(|edge, left| {
            let up = is_up(edge.node);
            if !up && *left > 0 {
                *lost += left.unsigned_abs();
                silent.insert(edge.node);
            }
            up
        });
    }

    fn left(&self) -> u64 {
        self.left.values().sum::<i64>().try_into().unwrap_or(0)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.unserved.is_empty() && self.expected.is_empty() && self.left() == 0 && now >= self.not_before
    }

    fn into_gathered(mut self) -> (Asker, Gathered) {
        let missing = self.left() + self.lost + self.gone.len() as u64;
        self.silent.extend(self.expected.iter().map(|(_, edge)| edge.node));
        let gathered = Gathered {
            answers: self.answers.into_iter().collect(),
            missing,
            dropped: self.dropped,
            unserved: self.refused + u32::try_from(self.unserved.len()).unwrap_or(u32::MAX),
            silent: self.silent.into_iter().collect(),
        };
        (self.asker, gathered)
    }
}
