//! Faults of time and network, carried out; and the end of all faults.

use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::{Address, PublishId, RoomKey, ShardIx};
use mesh_proto::shard::Input;
use mesh_proto::view::NodeState;
use mesh_proto::wire::{Payload, Publish, Query, RoomEvent};

use super::{Cluster, Event, NodeEvent};
use crate::checks::{Acked, EventId, SessionId};
use crate::faults::{Kind, Regime, short_pause, span};
use crate::network::Weather;
use crate::node::Life;
use crate::plot::Mark;
use crate::speech::room_name;

/// After a cut or a pause others may still act on what they saw in it.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Publishers above this number are backends.
const BACKENDS_FROM: u32 = 1_000_000;

/// The end of a fault, or of a part of it.
#[derive(Clone, Debug)]
pub(super) enum Relief {
    /// A node starts here, if none does.
    Start(usize),
    /// SIGCONT to this life.
    Continue(usize, u64),
    /// These directions are open again.
    Unblock(Vec<(usize, usize)>),
    /// The weather is fine again.
    Calm,
    /// A life that was to leave ends, come what may.
    End(usize, u64),
    /// No more faults, and everything is mended.
    All,
}

impl Cluster {
    pub(super) fn strike(&mut self, kind: Kind) {
        let now = self.clock.now();
        if now >= self.trouble_ends {
            return;
        }
        if self.must_wait(kind) {
            return self.strike_later(kind);
        }
        let struck = match kind {
            Kind::Crash | Kind::QuickRestart | Kind::DoubleCrash => self.crash(kind),
            Kind::Flap => self.flap(),
            Kind::RollingRestart => self.rolling_restart(),
            Kind::Pause => self.pause(),
            Kind::Partition | Kind::EarlyPartition | Kind::OneWay | Kind::Pair => self.cut(kind),
            Kind::LinkBreak => self.break_link(),
            Kind::Join => self.join(false),
            Kind::Joins => self.join(true),
            Kind::Drain | Kind::DrainCrash => self.drain(kind),
            Kind::SlowClient => self.slow_client(),
            Kind::Weather => self.storm(),
            Kind::Backend => self.backend_publishes(),
            Kind::Cut | Kind::HalfOpen | Kind::EdgeAndOwner | Kind::Emit => self.strike_sessions(kind),
        };
        if struck {
            *self.faults.entry(kind).or_default() += 1;
        }
    }

    pub(super) fn relieve(&mut self, relief: Relief) {
        let now = self.clock.now();
        match relief {
            Relief::Start(slot) => self.start(slot),
            Relief::Continue(slot, life) => self.resume(slot, life),
            Relief::Unblock(directions) => self.unblock(&directions),
            Relief::Calm => self.network.weather = Weather::calm(),
            Relief::End(slot, life) => {
                if self.slots[slot].life.as_ref().is_some_and(|current| current.number == life) {
                    self.end_life(slot, true);
                }
            }
            Relief::All => {
                self.trace.note(now, &[20], || "all faults are mended".to_owned());
                self.timeline.mended(now);
                self.calm = true;
                self.network.weather = Weather::calm();
                let blocks = self.network.blocks();
                self.unblock(&blocks);
                self.end_stalls();
                self.end_half_open();
                for slot in 0..self.slots.len() {
                    if let Some(life) = &self.slots[slot].life {
                        let number = life.number;
                        self.resume(slot, number);
                    } else if self.slots[slot].ever
                        && (!self.slots[slot].left || self.common.seeds.contains(&slot))
                    {
                        // Without most of its seeds a node that starts rightly waits.
                        self.start(slot);
                    }
                }
            }
        }
    }

    fn start(&mut self, slot: usize) {
        let now = self.clock.now();
        if self.slots[slot].life.is_some() {
            return;
        }
        self.lives += 1;
        self.lives_changed = now;
        let at = &mut self.slots[slot];
        (at.left, at.ever) = (false, true);
        at.held.clear();
        let life = Life::start(self.lives, slot, now, at.shards, &self.common, &mut self.random);
        at.life = Some(life);
        self.trace.note(now, &[21, slot as u64], || format!("n{slot} starts"));
        self.timeline.mark(now, slot, Mark::Starts);
        self.generation_ends();
        self.drain_membership(slot);
    }

    /// The process is gone, and all it held.
    pub(super) fn end_life(&mut self, slot: usize, left: bool) {
        let now = self.clock.now();
        let Some(life) = self.slots[slot].life.take() else { return };
        if self.slots.iter().all(|slot| slot.life.is_none()) {
            self.checks.nobody_is_there();
        }
        self.generation_ends();
        self.lives_changed = now;
        if !left {
            self.crashed_at = now;
        }
        self.trace.note(now, &[22, slot as u64], || format!("n{slot} is gone"));
        self.timeline.mark(now, slot, if left { Mark::Left } else { Mark::Killed });
        self.slots[slot].left = left;
        self.slots[slot].held.clear();
        for link in life.links.values() {
            if let Some(connection) = link.connection {
                // Peers notice when membership tells them, or when a new life answers for it.
                self.network.sever(connection);
            }
        }
        self.cut_transports(slot, life.number);
    }

    fn pause(&mut self) -> bool {
        let living = self.living(|life| !life.paused);
        let Some(slot) = self.random.pick(&living).filter(|_| living.len() > 1) else { return false };
        let span = match self.regime {
            Regime::OneAtATime => short_pause(&mut self.random),
            Regime::AnythingGoes => span(&mut self.random),
        };
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return false };
        life.paused = true;
        let number = life.number;
        self.trace.note(now, &[23, slot as u64], || format!("n{slot} is stopped for {span:?}"));
        self.timeline.mark(now, slot, Mark::Stopped);
        self.clock.after(span, Event::Relief(Relief::Continue(slot, number)));
        true
    }

    fn resume(&mut self, slot: usize, number: u64) {
        let now = self.clock.now();
        let Some(life) = &mut self.slots[slot].life else { return };
        if life.number != number || !life.paused {
            return;
        }
        life.paused = false;
        let at = &mut self.slots[slot];
        at.impaired_until = at.impaired_until.max(now + AFTERMATH);
        self.trace.note(now, &[24, slot as u64], || format!("n{slot} goes on"));
        self.timeline.mark(now, slot, Mark::GoesOn);
        // As the drivers do: what waits in sockets is read before timers fire.
        let held = std::mem::take(&mut self.slots[slot].held);
        let (timers, inputs): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|event| matches!(event, NodeEvent::MembershipWake));
        // At once: what arrives at this very moment comes after what has waited.
        for event in inputs.into_iter().chain(timers) {
            self.happen(Event::Node { slot, life: number, event });
        }
    }

    fn cut(&mut self, kind: Kind) -> bool {
        let living = self.living(|_| true);
        if living.len() < 2 && kind != Kind::EarlyPartition {
            return false;
        }
        let all = 0..self.slots.len();
        let mut directions: Vec<(usize, usize)> = match kind {
            Kind::Pair => {
                let one = living[self.random.index(living.len())];
                let others: Vec<usize> = living.into_iter().filter(|slot| *slot != one).collect();
                let other = others[self.random.index(others.len())];
                vec![(one, other), (other, one)]
            }
            Kind::OneWay => {
                let one = living[self.random.index(living.len())];
                let deaf = self.random.per_mille(500);
                all.filter(|slot| *slot != one)
                    .map(|slot| if deaf { (slot, one) } else { (one, slot) })
                    .collect()
            }
            _ => {
                let side: Vec<bool> = all.clone().map(|_| self.random.per_mille(500)).collect();
                all.clone()
                    .flat_map(|a| all.clone().map(move |b| (a, b)))
                    .filter(|(a, b)| side[*a] != side[*b])
                    .collect()
            }
        };
        directions.retain(|(from, to)| self.network.passes(*from, *to));
        let span = span(&mut self.random);
        let now = self.clock.now();
        self.trace.note(now, &[25], || format!("{kind:?} for {span:?}: nothing passes {directions:?}"));
        if !directions.is_empty() {
            self.timeline.span(now, now + span, format!("{kind:?} {}", told(&directions)));
        }
        directions.iter().for_each(|(from, to)| self.network.block(*from, *to));
        for connection in self.network.stalled() {
            // QUIC gives up a silent connection at some time.
            if span > Duration::from_secs(3) && self.random.per_mille(500) {
                self.sever(connection);
            }
        }
        self.clock.after(span, Event::Relief(Relief::Unblock(directions)));
        true
    }

    fn unblock(&mut self, directions: &[(usize, usize)]) {
        let now = self.clock.now();
        self.trace.note(now, &[26], || format!("open again: {directions:?}"));
        for (from, to) in directions {
            for slot in [*from, *to] {
                let at = &mut self.slots[slot];
                at.impaired_until = at.impaired_until.max(now + AFTERMATH);
            }
        }
        for bytes in self.network.unblock(now, directions) {
            if let Some(ends) = self.network.connection(bytes.connection).map(|c| c.ends) {
                self.arrive(bytes.connection, ends, bytes.end, bytes.lane, bytes.bytes, bytes.arrival);
            }
        }
    }

    fn break_link(&mut self) -> bool {
        let standing = self.network.standing();
        let Some(connection) = self.random.pick(&standing) else { return false };
        let now = self.clock.now();
        self.trace.note(now, &[27, connection], || format!("connection {connection} breaks"));
        self.sever(connection);
        true
    }

    fn slow_client(&mut self) -> bool {
        let index = self.random.index(self.clients.len());
        if self.clients.is_empty() {
            return false;
        }
        let span = self.random.millis(100, 6_000);
        self.stall_client(index, span);
        true
    }

    fn storm(&mut self) -> bool {
        let now = self.clock.now();
        self.network.weather = Weather {
            loss_per_mille: u32::try_from(self.random.below(201)).unwrap_or(0),
            repeat_per_mille: u32::try_from(self.random.below(50)).unwrap_or(0),
            jitter_per_mille: u32::try_from(self.random.below(300)).unwrap_or(0),
            ..Weather::calm()
        };
        let weather = self.network.weather;
        self.trace.note(now, &[29], || format!("{weather:?}"));
        let span = span(&mut self.random) * 2;
        let lost = f64::from(weather.loss_per_mille) / 10.0;
        self.timeline.span(now, now + span, format!("Weather: {lost} % lost"));
        self.clock.after(span, Event::Relief(Relief::Calm));
        true
    }

    /// One publish through the entrance of the HTTP API.
    fn backend_publishes(&mut self) -> bool {
        let now = self.clock.now();
        let active = self.living(|life| !life.paused && life.state() == NodeState::Active);
        let Some(slot) = self.random.pick(&active) else { return false };
        self.queries += 1;
        let number = self.queries;
        let product = self.random.index(self.common.products.len());
        let room = u16::try_from(self.random.below(4)).unwrap_or(0);
        let Some(life) = &self.slots[slot].life else { return false };
        let shard = self.random.index(life.shards.len());
        let via = Address { node: life.view.me, shard: ShardIx(u16::try_from(shard).unwrap_or(0)) };
        let json = format!(r#"["m",{{"by":[{BACKENDS_FROM},{number},1],"to":[{product},{room}]}}]"#);
        let publisher =
            SessionId { client: BACKENDS_FROM, session: u32::try_from(number).unwrap_or(u32::MAX) };
        let acked = Acked {
            event: EventId { publisher, number: 1 },
            room: (u8::try_from(product).unwrap_or(0), room),
            asked: now,
            except: None,
        };
        self.asked_by_backends.insert(number, acked);
        let publish = Publish {
            room: RoomKey::new(&self.common.products[product].name, &"/".into(), &room_name(room)),
            id: PublishId::Api { via, number },
            dedupe: None,
            event: RoomEvent::new(Payload::json(Bytes::from(json))),
            after: None,
        };
        self.trace
            .note(now, &[30, number], || format!("a backend publishes {number} to r{room} through n{slot}"));
        self.feed(slot, shard, Input::Query(number, Query::Publish(publish)));
        true
    }
}

/// Directions that are blocked, for people: few are named, many are counted.
fn told(directions: &[(usize, usize)]) -> String {
    match directions {
        [(one, other), (back, _)] if one != back => format!("n{one} – n{other}"),
        [..] if directions.len() <= 6 => {
            let arrows: Vec<String> = directions.iter().map(|(from, to)| format!("{from}→{to}")).collect();
            arrows.join(" ")
        }
        [..] => format!("{} directions", directions.len()),
    }
}
