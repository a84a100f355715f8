//! Questions to the members of rooms, at the edge of those who are to answer.
//!
//! Belongs here: who is asked what, under which id on the wire, what is told to the shard that asks.
//! Stays out: writing to clients (`deliver`, `readers`), carrying actions out (`actions`).
//! Units: a question is kept as long as its asker waits; [`WAITS_MAX`] sessions of all questions.
//! Invariants: a session is asked once by a question, and told of once; ids of questions are odd, those of
//! events of a session's own log even, so that an answer says what it is for.
//! When it breaks: a session that goes is told as gone. What an asker that is gone has asked is asked all the
//! same, of those who are behind too: it is an event. At the bound the oldest question is given up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{Address, Placement, RoomKey, SocketSid};
use crate::shard::Ctx;
use crate::time::Instant;
use crate::wire::{Ask, AskRef, Body, MovedAsk, Payload, ToAsker};

/// Sessions that are to answer, over all questions of a shard.
const WAITS_MAX: usize = 100_000;

/// Answers that go into one envelope.
const ENVELOPE_ANSWERS_BYTES: usize = 256 << 10;

/// Ids on the wire are below 2³¹: clients in several languages read them into so much.
const IDS: u64 = 1 << 30;

/// What one edge shard is asked.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: BTreeMap<AskRef, Open>,
    by_age: BTreeMap<u64, AskRef>,
    opened: u64,
    /// Who was asked under which id.
    put: BTreeMap<(SocketSid, u64), AskRef>,
    waits: usize,
    ready: BTreeMap<AskRef, Ready>,
}

#[derive(Debug)]
struct Open {
    id: u64,
    age: u64,
    due: Instant,
    /// Who is to answer, and under which id it has been asked.
    waits: BTreeMap<SocketSid, Option<u64>>,
}

/// What an asker is told next.
#[derive(Debug, Default)]
struct Ready {
    answers: Vec<(SocketSid, Option<Payload>)>,
    gone: Vec<SocketSid>,
    bytes: usize,
}

impl Ready {
    fn is_full(&self) -> bool {
        self.bytes >= ENVELOPE_ANSWERS_BYTES
    }
}

/// Id on the wire of own-log entry `seq`.
pub(super) fn own_id(seq: u64) -> u64 {
    2 * seq
}

/// The own-log entry that an answer under `id` is for; `None`: it is for a question to a room.
pub(super) fn own_seq_of(id: u64) -> Option<u64> {
    id.is_multiple_of(2).then_some(id / 2)
}

impl Asks {
    /// Ids begin anywhere: an answer to what an edge of before had asked is hardly taken for another.
    pub(super) fn new(random: u32) -> Self {
        Self { opened: u64::from(random) % IDS, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A session is to answer, unless it is to already; whether it was not.
    pub(super) fn expect(&mut self, now: Instant, ask: &Ask, sid: SocketSid) -> bool {
        if ask.name.number == 0 {
            return false;
        }
        let (by_age, opened) = (&mut self.by_age, &mut self.opened);
        let open = self.open.entry(ask.name).or_insert_with(|| {
            *opened += 1;
            by_age.insert(*opened, ask.name);
            let due = now + Duration::from_millis(ask.within_ms.into());
            Open { id: 2 * (*opened % IDS) + 1, age: *opened, due, waits: BTreeMap::new() }
        });
        if open.waits.contains_key(&sid) {
            return false;
        }
        open.waits.insert(sid, None);
        self.waits += 1;
        while self.waits > WAITS_MAX
            && let Some(oldest) = self.by_age.first_key_value().map(|(_, name)| *name)
        {
            self.give_up(oldest);
        }
        true
    }

    /// The id to ask a session under, if it is to be asked and has not been.
    pub(super) fn id_for(&self, name: AskRef, sid: SocketSid) -> Option<u64> {
        let open = self.open.get(&name)?;
        open.waits.get(&sid).filter(|put| put.is_none()).map(|_| open.id)
    }

    /// A session has been asked.
    pub(super) fn was_put(&mut self, name: AskRef, sid: SocketSid, id: u64) {
        if let Some(put) = self.open.get_mut(&name).and_then(|open| open.waits.get_mut(&sid)) {
            *put = Some(id);
            self.put.insert((sid, id), name);
        }
    }

    /// A client's answer; one that nobody waits for is of no use.
    pub(super) fn answered(&mut self, sid: SocketSid, id: u64, answer: Payload) {
        if let Some(&name) = self.put.get(&(sid, id)) {
            self.told(name, sid, Some(answer));
        }
    }

    /// An action has had its effect on a session.
    pub(super) fn done(&mut self, name: AskRef, sid: SocketSid) {
        self.told(name, sid, None);
    }

    fn told(&mut self, name: AskRef, sid: SocketSid, answer: Option<Payload>) {
        if self.ends(name, sid) {
            let ready = self.ready.entry(name).or_default();
            ready.bytes += answer.as_ref().map_or(0, Payload::len);
            ready.answers.push((sid, answer));
        }
    }

    /// A session will not answer one question.
    pub(super) fn refused(&mut self, name: AskRef, sid: SocketSid) {
        if self.ends(name, sid) {
            self.ready.entry(name).or_default().gone.push(sid);
        }
    }

    /// A session is not here any more.
    pub(super) fn gone(&mut self, sid: SocketSid) {
        for name in self.of(sid) {
            self.refused(name, sid);
        }
    }

    fn of(&self, sid: SocketSid) -> Vec<AskRef> {
        let to = self.open.iter().filter(|(_, open)| open.waits.contains_key(&sid));
        to.map(|(name, _)| *name).collect()
    }

    /// Nothing is waited for from a session; whether it was.
    fn ends(&mut self, name: AskRef, sid: SocketSid) -> bool {
        let Some(put) = self.open.get_mut(&name).and_then(|open| open.waits.remove(&sid)) else {
            return false;
        };
        if let Some(id) = put {
            self.put.remove(&(sid, id));
        }
        self.waits -= 1;
        true
    }

    /// What a session is still to answer goes with it to another edge.
    pub(super) fn take(&mut self, now: Instant, sid: SocketSid) -> Vec<MovedAsk> {
        let mut moved = Vec::new();
        for name in self.of(sid) {
            let Some(open) = self.open.get(&name) else { continue };
            let within_ms = u32::try_from(open.due.since(now).as_millis()).unwrap_or(u32::MAX);
            moved.push(MovedAsk { name, within_ms, put: open.waits.get(&sid).copied().flatten() });
            self.ends(name, sid);
        }
        moved
    }

    /// A session that another edge has asked is here.
    pub(super) fn give(&mut self, now: Instant, sid: SocketSid, moved: Vec<MovedAsk>) {
        for MovedAsk { name, within_ms, put } in moved {
            self.expect(now, &Ask { name, within_ms, action: None }, sid);
            if let Some(id) = put {
                self.was_put(name, sid, id);
            }
        }
    }

    /// Those who have not answered will not.
    fn give_up(&mut self, name: AskRef) {
        let waits = self.open.get(&name).map(|open| open.waits.keys().copied().collect::<Vec<_>>());
        waits.into_iter().flatten().for_each(|sid| self.refused(name, sid));
        self.forget(name);
    }

    fn forget(&mut self, name: AskRef) {
        if let Some(open) = self.open.remove(&name) {
            self.by_age.remove(&open.age);
            self.waits -= open.waits.len();
            for (sid, id) in open.waits {
                id.map(|id| self.put.remove(&(sid, id)));
            }
        }
    }

    /// Forgets questions that nobody waits for any more.
    pub(super) fn expire(&mut self, now: Instant) {
        let due: Vec<AskRef> =
            self.open.iter().filter(|(_, open)| open.due <= now).map(|(name, _)| *name).collect();
        due.into_iter().for_each(|name| self.forget(name));
    }

    /// Tells askers that are there what there is to tell; all of it at the end of a turn. Whether there was
    /// anything.
    pub(super) fn flush(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let ready = std::mem::take(&mut self.ready);
        let any = !ready.is_empty();
        for (AskRef { by, number }, Ready { answers, gone, .. }) in ready {
            if ctx.view.is_up(by.node) {
                tell(ctx, by, Placement(number << 48), ToAsker::Answers { number, answers, gone });
            }
        }
        any
    }

    /// Answers enough wait for one envelope.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.values().any(Ready::is_full)
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.waits, self.open.values().map(|open| open.waits.len()).sum::<usize>());
        assert_eq!(self.by_age.len(), self.open.len(), "questions without an age");
        assert!(self.waits <= WAITS_MAX, "{} sessions are to answer", self.waits);
        for ((sid, id), name) in &self.put {
            let waits = self.open.get(name).and_then(|open| open.waits.get(sid));
            assert_eq!(waits, Some(&Some(*id)), "asked for nobody");
        }
    }
}

/// Tells an asker how many sessions of a room are asked here.
pub(super) fn tell_reached(ctx: &mut Ctx<'_>, ask: &Ask, room: &RoomKey, clients: usize) {
    let AskRef { by, number } = ask.name;
    if number > 0 {
        let clients = u32::try_from(clients).unwrap_or(u32::MAX);
        tell(ctx, by, Placement(number << 48), ToAsker::Reached { number, room: room.clone(), clients });
    }
}

/// All about one question on one lane.
fn tell(ctx: &mut Ctx<'_>, by: Address, lane: Placement, message: ToAsker) {
    ctx.out.send_to_address(by, lane, Body::ToAsker(message));
}
