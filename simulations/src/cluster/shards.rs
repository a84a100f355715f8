//! Turns of shards: what `node::shard` does in its thread.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_proto::id::NodeRef;
use mesh_proto::link;
use mesh_proto::shard::{Input, Output};
use mesh_proto::wire::{
    self, Answer, Body, Envelope, Lane, News, OwnEntry, Replication, RoomCopy, RoomEntry, RoomOp, RoomToEdge,
    SessionToEdge, ToSession,
};

use super::{Cluster, EntityName, NodeEvent};
use crate::plot::Mark;

/// A machine's promises are asserted every so many turns of all shards.
const CHECKED_EVERY: u64 = 8;

/// What one turn leaves over the next goes on with after this long: others have theirs in between.
const BETWEEN_TURNS: Duration = Duration::from_micros(200);

/// Turns in a row at one moment before a shard counts as spinning.
const TURNS_AT_ONCE_MAX: u32 = 10_000;

impl Cluster {
    /// Puts an input into a shard's inbox.
    pub(super) fn feed(&mut self, slot: usize, shard: usize, input: Input) {
        let Some(life) = &mut self.slots[slot].life else { return };
        let at = &mut life.shards[shard];
        at.inbox.push_back(input);
        if !at.turn_due {
            at.turn_due = true;
            let delay = life.random.micros(2, 120);
            self.node_after(slot, delay, NodeEvent::Turn { shard });
        }
    }

    pub(super) fn route(&mut self, slot: usize, envelope: Envelope) {
        let named = self.slots[slot].life.as_ref().map(|life| life.named(envelope.to)).unwrap_or_default();
        for shard in named {
            self.feed(slot, shard, Input::Envelope(envelope.clone()));
        }
    }

    pub(super) fn view_reaches_shard(&mut self, slot: usize, shard: usize) {
        if let Some(life) = &mut self.slots[slot].life {
            life.shards[shard].view_due = true;
            self.turn(slot, shard);
        }
    }

    /// One turn: the view, everything in the inbox, the timer; then whatever the machine wants done.
    pub(super) fn turn(&mut self, slot: usize, shard: usize) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let local = life.local(now);
        let (view, me) = (life.view.clone(), life.view.me);
        let at = &mut life.shards[shard];
        at.turn_due = false;
        at.wake_at.take_if(|wake_at| *wake_at <= now);
        let mut gone = Vec::new();
        // Links of another life are made after the shards can see its view.
        let is_reborn = std::mem::replace(&mut at.me, me) != me;
        if std::mem::take(&mut at.view_due) || is_reborn {
            at.shard.handle(local, Input::View(view));
        }
        for input in std::mem::take(&mut at.inbox) {
            if let Input::ClientClosed(index, _) = input {
                gone.push(index);
            }
            at.shard.handle(local, input);
        }
        if at.shard.next_deadline().is_some_and(|deadline| deadline <= local) {
            at.shard.handle(local, Input::Timer);
        }
        let outputs: Vec<Output> = std::iter::from_fn(|| at.shard.poll()).collect();
        let gaps = at.shard.gaps_told();
        let outside = outputs.iter().filter(|output| is_gap(output)).count() as u64;
        if gaps > at.gaps_told + outside {
            self.checks.kept.gap_within(now, me.id);
        }
        at.gaps_told = gaps;
        gone.into_iter().for_each(|index| at.free_index(index));
        self.turns += 1;
        if self.turns.is_multiple_of(CHECKED_EVERY) {
            at.shard.check_invariants();
        }
        let mut written = BTreeSet::new();
        let mut linked = BTreeSet::new();
        for output in outputs {
            self.output(slot, shard, output, &mut written, &mut linked);
        }
        for peer in linked {
            self.drain_link(slot, peer);
        }
        for transport in written {
            self.report_queue(slot, transport);
        }
        self.schedule_wake(slot, shard);
    }

    fn schedule_wake(&mut self, slot: usize, shard: usize) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        let at = &life.shards[shard].shard;
        let earliest = if at.has_more() { now + BETWEEN_TURNS } else { now };
        let wake_at = at.next_deadline().map(|at| life.global(at).max(earliest));
        let at = &mut life.shards[shard];
        at.spinning = if wake_at == Some(now) { at.spinning + 1 } else { 0 };
        if at.spinning > TURNS_AT_ONCE_MAX {
            at.spinning = 0;
            self.checks.violated(
                "timer",
                now,
                format!("shard {shard} of n{slot} asks for its timer again and again"),
            );
            return;
        }
        if at.wake_at != wake_at {
            at.wake_at = wake_at;
            if let Some(wake_at) = wake_at {
                self.node_at(slot, wake_at, NodeEvent::Turn { shard });
            }
        }
    }

    fn output(
        &mut self,
        slot: usize,
        shard: usize,
        output: Output,
        written: &mut BTreeSet<u64>,
        linked: &mut BTreeSet<NodeRef>,
    ) {
        let Some(life) = &self.slots[slot].life else { return };
        let clients = &life.shards[shard].clients;
        match output {
            Output::Respond(request, response) => self.responded(slot, request, response),
            // No product of a simulation has code of its own.
            Output::App(_) | Output::AppAnswered(..) | Output::AppGathered(..) => {}
            // All clients of a simulation say who they are in their handshake.
            Output::Identify(_) => {}
            Output::Write(index, packet) => {
                if let Some(transport) = clients.get(&index).copied() {
                    self.write(transport, packet);
                    written.insert(transport);
                }
            }
            Output::Fanout(packets, indexes) => {
                let transports: Vec<u64> =
                    indexes.iter().filter_map(|index| clients.get(index).copied()).collect();
                for transport in transports {
                    packets.iter().for_each(|packet| self.write(transport, packet.clone()));
                    written.insert(transport);
                }
            }
            Output::FanoutEach(each) => {
                let whole = |(index, tail)| Some((clients.get(&index).copied()?, each.whole(tail)));
                let messages: Vec<_> = each.tails().filter_map(whole).collect();
                for (transport, packets) in messages {
                    packets.iter().for_each(|packet| self.write(transport, packet.clone()));
                    written.insert(transport);
                }
            }
            Output::Close(index, code) => {
                if let Some(transport) = clients.get(&index).copied() {
                    self.close(slot, transport, code);
                }
            }
            Output::PauseReading(index) => {
                if let Some(transport) = clients.get(&index).copied() {
                    self.set_reading(transport, false);
                }
            }
            Output::ResumeReading(index) => {
                if let Some(transport) = clients.get(&index).copied() {
                    self.set_reading(transport, true);
                }
            }
            Output::Send { to, lane, envelope } => self.send(slot, to, lane, envelope, linked),
            Output::Answer(token, answer) => {
                let now = self.clock.now();
                self.trace.note(now, &[5, slot as u64, token], || {
                    format!("n{slot} answers the backend's call {token}: {answer:?}")
                });
                let asked = self.asked_by_backends.remove(&token);
                if let (Some(acked), Ok(Answer::Published { .. })) = (asked, &answer) {
                    self.checks.kept.acked(acked);
                }
                self.bound(token, &answer);
                self.emitted(token, matches!(answer, Ok(Answer::Done { sessions: 1 })));
            }
        }
    }

    fn send(
        &mut self,
        slot: usize,
        to: NodeRef,
        lane: Lane,
        envelope: Envelope,
        linked: &mut BTreeSet<NodeRef>,
    ) {
        let now = self.clock.now();
        if let Body::RoomToEdge(RoomToEdge::Entries { room, first, entries, .. }) = &envelope.body {
            for (number, entry) in (*first..).zip(entries) {
                let event = crate::speech::logged_event(&entry.event.payload.json);
                self.checks.logged(now, room, entry.term, number, entry.id, event);
                if let (Some(event), Some(room)) = (event, self.room_of(room)) {
                    self.checks.whole.logged(room, (entry.term, number), event, &entry.event.except_sids);
                }
            }
        }
        if let Body::Rooms(Replication::Replicate { items, .. }) = &envelope.body {
            for entry in items.iter().flat_map(|item| entries_of(&item.news)) {
                if let Some(event) = crate::speech::logged_event(&entry.event.payload.json) {
                    self.checks.appended(event, entry.term);
                }
            }
        }
        match &envelope.body {
            Body::SessionToEdge(SessionToEdge::Own { sid, first, entries, .. }) => {
                for (number, entry) in (*first..).zip(entries) {
                    if let OwnEntry::Join(room, _) = entry
                        && let Some(room) = self.room_of(room)
                    {
                        self.checks.whole.join_asked(*sid, number, room);
                    }
                }
            }
            Body::ToSession(ToSession::Joined { sid, own_seq, at }) => {
                self.checks.whole.joined(*sid, *own_seq, *at);
            }
            _ => {}
        }
        if let Body::RoomToEdge(RoomToEdge::Subscribed { room, gap: true, .. }) = &envelope.body
            && let Some(room) = self.room_of(room)
        {
            self.checks.kept.gap(now, room, to.id);
            self.timeline.mark(now, slot, Mark::Gap);
        }
        let begun = match &envelope.body {
            Body::RoomToEdge(RoomToEdge::Subscribed { room, term, .. }) => {
                Some((EntityName::Room(room.clone()), *term))
            }
            Body::SessionToEdge(SessionToEdge::Attached { sid, term, .. }) => {
                Some((EntityName::Session(*sid), *term))
            }
            _ => None,
        };
        if let Some((name, term)) = begun
            && self.terms.insert(name, term) != Some(term)
        {
            self.timeline.mark(now, slot, Mark::Moves);
        }
        let Some(life) = &mut self.slots[slot].life else { return };
        let me = life.view.me;
        self.trace.note(now, &[6, slot as u64, to.incarnation, u64::from(lane.0)], || {
            format!("n{slot}.{} -> {to:?} {:?} {:?}", envelope.from.shard.0, envelope.to, envelope.body)
        });
        let Some(life) = &mut self.slots[slot].life else { return };
        if to == me {
            self.route(slot, envelope);
        } else {
            let local = life.local(now);
            // No link: the view that says so is on its way to the shard, which will send elsewhere.
            let Some(link) = life.links.get_mut(&to) else { return };
            link.link.handle(local, link::Input::Send { lane, envelope: wire::encode(&envelope) });
            linked.insert(to);
        }
    }
}

/// Whether an edge of another shard is told of a hole.
fn is_gap(output: &Output) -> bool {
    let Output::Send { envelope, .. } = output else { return false };
    matches!(envelope.body, Body::RoomToEdge(RoomToEdge::Subscribed { gap: true, .. }))
}

/// The entries of a room's log that a backup is told of.
fn entries_of<'a>(news: &'a News<RoomOp, RoomCopy>) -> Vec<&'a RoomEntry> {
    let appended = |op: &'a RoomOp| match op {
        RoomOp::Append { entry, .. } => Some(entry),
        RoomOp::Hole | RoomOp::Merged { .. } | RoomOp::Remember { .. } => None,
    };
    match news {
        News::Ops { ops, .. } => ops.iter().filter_map(appended).collect(),
        News::Copy { copy, .. } => copy.entries.iter().collect(),
        News::Ended => Vec::new(),
    }
}
