//! Joining, rejoining, agreeing: everything done by full exchanges.
//!
//! Belongs here: asking and answering questions, becoming a member, taking another life, names held
//! twice.
//! Stays out: who begins a cluster (`join`), pages (`sync`).
//! Invariants: nothing of an exchange is applied before all of it is here; a node becomes a member
//! under an incarnation above all that the cluster remembers of its name.
//!
//! **Names.** A node that joins looks for its own name in the exchange. At its own address it is an
//! earlier life, and the node goes on as the next one at once. At another address the holder has
//! `name_waited_for` to be down, and is probed directly meanwhile: if it still answers at the end the
//! name is taken, and this node stops; if not, it is gone and the name is this node's. Two nodes that
//! became members under one name all the same (both started alone) find each other in gossip; the one
//! with the higher address stops.
//!
//! **Another life.** A node that was declared down (it was paused, or cut off) goes on under the next
//! incarnation. It owns nothing until it has made an exchange with somebody, or for
//! [`REJOIN_WAITED_FOR`] when nobody answers: then it is alone, and serves alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{Member, State};
use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

use super::identity::INCARNATION_MAX;
use super::join::{Join, NameWait, Round};
use super::machine::{Membership, Phase, Up};
use super::outbound::INNER_HEADER_BYTES;
use super::seal::PLAIN_BYTES_MAX;
use super::swim::Swim;
use super::sync::{Ask, Entry, PAGES_MAX, Page, Progress, Pull, Purpose, Word, pages};
use super::views::Dirty;
use super::{Identity, Notice};
use crate::id::NodeId;
use crate::time::Instant;

/// Exchanges under way that this node asked for.
pub(super) const PULLS_MAX: usize = 8;

/// Exchanges because rings differ: not more often. (Longer in large clusters.)
pub(super) const AGREE_PERIOD: Duration = Duration::from_secs(1);

/// How long a node declared down waits for an exchange before it serves alone.
const REJOIN_WAITED_FOR: Duration = Duration::from_secs(3);

/// Between two looks at whether a name is free.
const NAME_ROUND: Duration = Duration::from_millis(250);

/// A holder that answered within this time is alive.
const NAME_ANSWER_FRESH: Duration = Duration::from_secs(1);

/// Room for one word.
const WORD_BYTES_MAX: usize = PLAIN_BYTES_MAX - INNER_HEADER_BYTES - 2;

/// Room for foca in a packet: the rest is the header, and the length before it.
const SWIM_BYTES_MAX: usize = PLAIN_BYTES_MAX - INNER_HEADER_BYTES - 2;

impl Membership {
    pub(super) fn word(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sender: NodeId,
        word: Word,
    ) -> Result<(), &'static str> {
        match word {
            Word::Ask(ask) => self.asked(now, from, sender, &ask)?,
            Word::Page(page) => {
                let all = page.entries.iter().map(|e| e.member.id()).chain([&page.from]);
                if let Some(what) = all.into_iter().find_map(Identity::nonsense) {
                    return Err(what);
                }
                self.page(now, from, page);
            }
            Word::NotYet { claims, .. } => {
                if let Phase::Joining(join) = &mut self.phase {
                    join.heard_starting(now, from, sender, &claims);
                }
            }
            Word::NameProbe { id, nonce } => {
                if id == self.identity.node.id && matches!(self.phase, Phase::Up(_)) {
                    self.say(from, &Word::NameAnswer { holder: self.identity, nonce });
                }
            }
            Word::NameAnswer { holder, nonce } => {
                if nonce == self.name_nonce && holder.node.id == self.identity.node.id {
                    self.name_answered(now, from);
                }
            }
            Word::Superseded { incarnation } => {
                if incarnation >= self.identity.node.incarnation
                    && incarnation < INCARNATION_MAX - 1
                    && self.may_renew(now, from)
                {
                    self.rename(now, incarnation + 1, from);
                }
            }
        }
        Ok(())
    }

    /// A round of the join: ask the seeds, or begin.
    pub(super) fn round(&mut self, now: Instant) {
        let me = self.identity.node.id;
        let exchanging = self.pulls.values().any(|pull| pull.purpose == Purpose::Join);
        let Phase::Joining(join) = &mut self.phase else { return };
        if exchanging {
            join.next_round = now + self.config.timing.join_round;
            return;
        }
        let held_by = join.name.as_ref().map(|name| name.holder.addr);
        match join.round(now, me, &self.config.timing) {
            Round::Begin => {
                self.become_member(now, self.identity, Vec::new());
                self.notice(Notice::Began);
            }
            Round::Ask(seeds) => {
                if held_by.is_some() {
                    join.next_round = now + NAME_ROUND;
                }
                let claims = join.claims(now, me, &self.config.timing);
                self.rounds += 1;
                self.open_round = self.rounds;
                let ask = Ask {
                    round: self.rounds,
                    me: self.identity,
                    joining: true,
                    back: false,
                    after: None,
                    pages: 1,
                    claims,
                };
                for seed in seeds {
                    self.say(seed, &Word::Ask(ask.clone()));
                }
                if let Some(holder) = held_by {
                    let nonce = self.new_name_nonce();
                    self.say(holder, &Word::NameProbe { id: me, nonce });
                }
            }
        }
    }

    fn is_up_at(&self, addr: SocketAddr) -> bool {
        addr == self.identity.addr
            || self.known.values().any(|m| m.state() != State::Down && m.id().addr == addr)
    }

    /// How long seeds that are no members here are left alone. Should no seed be one, they may start
    /// together any time, and begin a cluster that does not know of this one: they are to hear of it first.
    pub(super) fn seed_pause(&self) -> Duration {
        let seeds = &self.config.seeds;
        match seeds.is_empty() || seeds.iter().any(|seed| self.is_up_at(*seed)) {
            true => self.config.timing.seed_period,
            false => self.config.timing.ask_again_after,
        }
    }

    /// Asks the seeds that are no member here: perhaps there is another cluster.
    pub(super) fn ask_strange_seeds(&mut self, now: Instant) {
        let strange: Vec<SocketAddr> =
            self.config.seeds.iter().copied().filter(|seed| !self.is_up_at(*seed)).collect();
        if strange.is_empty() {
            return;
        }
        self.rounds += 1;
        self.open_round = self.rounds;
        for seed in strange {
            let ask = self.question(self.open_round, Purpose::Agree { back: true }, None, 1);
            self.say(seed, &Word::Ask(ask));
        }
        tracing::trace!(%now, "asked seeds that are not members");
    }

    /// Starts an exchange, unless enough are under way.
    pub(super) fn start_pull(&mut self, now: Instant, peer: SocketAddr, purpose: Purpose) {
        let same = self.pulls.values().any(|pull| pull.peer == peer && pull.purpose != Purpose::Join);
        if self.pulls.len() >= PULLS_MAX || same {
            return;
        }
        self.rounds += 1;
        let again_at = now + self.config.timing.ask_again_after;
        self.pulls.insert(self.rounds, Pull::new(peer, purpose, again_at));
        let ask = self.question(self.rounds, purpose, None, PAGES_MAX);
        self.say(peer, &Word::Ask(ask));
    }

    /// Repeats questions that nobody answered.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let again_at = now + self.config.timing.ask_again_after;
        let due: Vec<u32> =
            self.pulls.iter().filter(|(_, p)| p.again_at <= now).map(|(round, _)| *round).collect();
        for round in due {
            let Some(pull) = self.pulls.get_mut(&round) else { continue };
            let (peer, purpose) = (pull.peer, pull.purpose);
            if let Some(after) = pull.overdue(again_at) {
                let ask = self.question(round, purpose, after, PAGES_MAX);
                self.say(peer, &Word::Ask(ask));
                continue;
            }
            self.pulls.remove(&round);
            match purpose {
                Purpose::Join => self.round(now),
                Purpose::Rejoin => self.rejoin_through_anybody(now),
                Purpose::Agree { .. } => {}
            }
        }
    }

    fn question(&self, round: u32, purpose: Purpose, after: Option<NodeId>, pages: u8) -> Ask {
        Ask {
            round,
            me: self.identity,
            joining: matches!(self.phase, Phase::Joining(_)),
            back: purpose == Purpose::Agree { back: true } && after.is_none(),
            after,
            pages,
            claims: Vec::new(),
        }
    }

    fn asked(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sender: NodeId,
        ask: &Ask,
    ) -> Result<(), &'static str> {
        if ask.me.node.id != sender {
            return Err("asks for another node");
        }
        if let Some(what) = ask.me.nonsense() {
            return Err(what);
        }
        let me = self.identity.node.id;
        match &mut self.phase {
            Phase::Joining(join) if ask.joining => {
                join.heard_starting(now, from, sender, &ask.claims);
                let claims = join.claims(now, me, &self.config.timing);
                self.say(from, &Word::NotYet { round: ask.round, claims });
            }
            // A member asks: as good as a seed that answers.
            Phase::Joining(_) => {
                if self.pulls.is_empty() {
                    self.start_pull(now, from, Purpose::Join);
                }
            }
            Phase::Up(_) => {
                for page in pages(ask, self.identity, self.entries_after(ask.after), WORD_BYTES_MAX) {
                    self.say(from, &Word::Page(page));
                }
                if !ask.joining && ask.me.node.id != me {
                    self.member_asks(now, from, ask);
                }
            }
            Phase::Leaving { .. } | Phase::Stopped => {}
        }
        Ok(())
    }

    fn member_asks(&mut self, now: Instant, from: SocketAddr, ask: &Ask) {
        let stranger = usize::from(!self.known.contains_key(&ask.me.node.id));
        if !self.may_take_in(now, from, stranger) {
            return;
        }
        if let Phase::Up(up) = &mut self.phase {
            up.swim.apply(now, std::iter::once(Member::alive(ask.me)), true);
        }
        if ask.back {
            self.start_pull(now, from, Purpose::Agree { back: false });
        }
    }

    /// All this node knows of ids after `after`, itself included, in order.
    fn entries_after(&self, after: Option<NodeId>) -> impl Iterator<Item = Entry> {
        let later = move |id: NodeId| after.is_none_or(|after| id > after);
        let me = self.identity.node.id;
        let own = Entry { member: Member::alive(self.identity), record: Some(self.own.clone()) };
        let entry = |member: &Member<Identity>| Entry {
            member: member.clone(),
            record: self.records.of(member.id().node).filter(|_| member.state() != State::Down).cloned(),
        };
        let before: Vec<Entry> =
            self.known.range(..me).filter(|(id, _)| later(**id)).map(|(_, m)| entry(m)).collect();
        let behind: Vec<Entry> =
            self.known.range(me..).filter(|(id, _)| later(**id)).map(|(_, m)| entry(m)).collect();
        before.into_iter().chain(later(me).then_some(own)).chain(behind)
    }

    fn page(&mut self, now: Instant, from: SocketAddr, page: Page) {
        let (round, from_node) = (page.round, page.from);
        let again_at = now + self.config.timing.ask_again_after;
        if round == self.open_round && !self.pulls.contains_key(&round) && self.pulls.len() < PULLS_MAX {
            let purpose = match self.phase {
                Phase::Joining(_) if self.pulls.values().all(|p| p.purpose != Purpose::Join) => Purpose::Join,
                Phase::Up(_) => Purpose::Agree { back: false },
                _ => return,
            };
            self.open_round = 0;
            self.pulls.insert(round, Pull::new(from, purpose, again_at));
        }
        let Some(pull) = self.pulls.get_mut(&round).filter(|pull| pull.peer == from) else { return };
        let purpose = pull.purpose;
        match pull.page(page, again_at) {
            Progress::Wait => {}
            Progress::AskAfter(after) => {
                let ask = self.question(round, purpose, after, PAGES_MAX);
                self.say(from, &Word::Ask(ask));
            }
            Progress::Done => {
                let entries = self.pulls.remove(&round).into_iter().flat_map(Pull::into_entries).collect();
                self.stats.exchanges += 1;
                match purpose {
                    Purpose::Join => self.join_with(now, from_node, from, entries),
                    Purpose::Rejoin => {
                        self.merge(now, from, entries, true);
                        self.rejoined(now);
                    }
                    Purpose::Agree { .. } => self.merge(now, from, entries, true),
                }
            }
        }
    }

    /// The whole membership is here: settle the name, then become a member.
    fn join_with(&mut self, now: Instant, via: Identity, from: SocketAddr, entries: Vec<Entry>) {
        let Phase::Joining(join) = &mut self.phase else { return };
        let me = self.identity.node.id;
        let namesake = entries.iter().map(|e| &e.member).find(|m| m.id().node.id == me);
        if let Some(held) = namesake.filter(|m| m.state() != State::Down && m.id().addr != self.identity.addr)
        {
            let wait = join.name.get_or_insert(NameWait {
                holder: *held.id(),
                until: now + self.config.timing.name_waited_for,
                answered_at: None,
            });
            wait.holder = *held.id();
            let alive = wait.answered_at.is_some_and(|at| now.since(at) <= NAME_ANSWER_FRESH);
            if now < wait.until {
                join.next_round = now + NAME_ROUND;
                if wait.answered_at.is_none() {
                    let (holder, nonce) = (held.id().addr, self.new_name_nonce());
                    self.say(holder, &Word::NameProbe { id: me, nonce });
                }
                return;
            }
            if alive {
                let holder = wait.holder.addr;
                self.name_taken(holder);
                return;
            }
        }
        let seen = namesake.map_or(0, |m| m.id().node.incarnation + 1);
        let identity = self.identity.in_life(self.identity.node.incarnation.max(seen));
        let others = entries.into_iter().filter(|e| e.member.id().node.id != me).collect();
        self.become_member(now, identity, others);
        if let Phase::Up(up) = &mut self.phase {
            up.swim.announce(now, via);
            up.swim.gossip(now);
        }
        let nodes = self.view().nodes.len();
        self.notice(Notice::Joined { via: from, nodes });
    }

    fn become_member(&mut self, now: Instant, identity: Identity, entries: Vec<Entry>) {
        self.identity = identity;
        Arc::make_mut(&mut self.own).node = identity.node;
        let seed = self.rng.random();
        let swim = Box::new(Swim::new(identity, &self.config.timing, SWIM_BYTES_MAX, seed));
        self.phase = Phase::Up(Up { swim, rejoining_until: None });
        self.pulls.clear();
        if let Some(first) = entries.first().map(|e| e.member.id().addr) {
            self.merge(now, first, entries, false);
        }
        self.announce_state(now);
        self.learn();
        self.publish(now);
    }

    /// Takes over what an exchange brought. `news`: tell others what was new here.
    fn merge(&mut self, now: Instant, from: SocketAddr, entries: Vec<Entry>, news: bool) {
        let me = self.identity.node.id;
        for entry in entries.iter().filter(|e| e.member.id().node.id == me) {
            if *entry.member.id() != self.identity {
                self.claimed(now, from, entry.member.id());
            }
        }
        let ends_us = |m: &Member<Identity>| m.state() == State::Down && *m.id() == self.identity;
        if entries.iter().any(|e| ends_us(&e.member)) && !self.may_renew(now, from) {
            return;
        }
        let strangers = entries.iter().map(|e| &e.member).filter(|m| {
            m.state() != State::Down && m.id().node.id != me && !self.known.contains_key(&m.id().node.id)
        });
        let strangers = strangers.count();
        if !self.may_take_in(now, from, strangers) {
            return;
        }
        for record in entries.iter().filter_map(|e| e.record.clone()).filter(|r| r.node.id != me) {
            if self.records.offer(now, record, news) {
                self.mark(Dirty::Soon);
            }
        }
        if let Phase::Up(up) = &mut self.phase {
            up.swim.apply(now, entries.into_iter().map(|e| e.member), news);
        }
    }

    /// This node goes on as another life.
    pub(super) fn renewed(&mut self, now: Instant, identity: Identity, told_by: Option<SocketAddr>) {
        let old = std::mem::replace(&mut self.identity, identity).node;
        let Phase::Up(up) = &mut self.phase else { return };
        up.rejoining_until = Some(now + REJOIN_WAITED_FOR);
        let own = Arc::make_mut(&mut self.own);
        own.node = identity.node;
        own.version = 0;
        own.state = crate::view::NodeState::Joining;
        self.announce_state(now);
        self.stats.rejoins += 1;
        self.notice(Notice::Rejoined { old, new: identity.node });
        match told_by {
            Some(peer) => self.start_pull(now, peer, Purpose::Rejoin),
            None => self.rejoin_through_anybody(now),
        }
    }

    /// Two nodes that declared each other down know nobody at first when both are reborn.
    pub(super) fn rejoin_if_alone_no_more(&mut self, now: Instant) {
        if matches!(&self.phase, Phase::Up(Up { rejoining_until: Some(_), .. }))
            && self.pulls.values().all(|pull| pull.purpose != Purpose::Rejoin)
        {
            self.rejoin_through_anybody(now);
        }
    }

    fn rejoin_through_anybody(&mut self, now: Instant) {
        if !matches!(&self.phase, Phase::Up(Up { rejoining_until: Some(_), .. })) {
            return;
        }
        let up = self.known.values().filter(|m| m.state() != State::Down).map(|m| m.id().addr);
        if let Some(peer) = up.choose(&mut self.rng) {
            self.start_pull(now, peer, Purpose::Rejoin);
        }
    }

    /// The exchange after having been declared down is done, or was waited for long enough.
    pub(super) fn rejoined(&mut self, now: Instant) {
        if let Phase::Up(up) = &mut self.phase
            && up.rejoining_until.take().is_some()
        {
            self.announce_state(now);
        }
    }

    pub(super) fn new_name_nonce(&mut self) -> u64 {
        if self.name_nonce == 0 {
            self.name_nonce = self.rng.random::<u64>() | 1;
        }
        self.name_nonce
    }

    fn name_answered(&mut self, now: Instant, from: SocketAddr) {
        match &mut self.phase {
            Phase::Joining(Join { name: Some(name), .. }) => name.answered_at = Some(now),
            Phase::Up(_) if from != self.identity.addr && self.identity.addr > from => self.name_taken(from),
            _ => {}
        }
    }

    fn name_taken(&mut self, holder: SocketAddr) {
        self.phase = Phase::Stopped;
        self.pulls.clear();
        self.notice(Notice::NameTaken { name: self.config.name.clone(), holder });
    }
}
