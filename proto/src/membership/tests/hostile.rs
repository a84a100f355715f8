//! Datagrams that no honest node sends: from outsiders, and from somebody who has the key.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Header, Member, Message, State};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::net::{addr, config};
use crate::id::{NodeId, NodeRef};
use crate::membership::outbound::{KIND_RECORDS, KIND_SWIM, KIND_WORD};
use crate::membership::seal::{PLAIN_BYTES_MAX, Sealer, Terms};
use crate::membership::sync::{Ask, Claim, Entry, Page, Word};
use crate::membership::{Identity, Input, Membership, NODES_MAX, Notice, Output};
use crate::time::Instant;
use crate::view::{NodeRecord, NodeState};
use crate::wire::{self, ProtocolRange};

/// A machine, and somebody with its key who calls himself `n2`.
struct Insider {
    machine: Membership,
    now: Instant,
    sealer: Sealer,
    rng: StdRng,
}

impl Insider {
    fn new(seed: u64, joining: bool) -> Self {
        let now = Instant::from_micros(1_000_000);
        let config = config(1, "n1", if joining { &[2] } else { &[] });
        let key = config.cluster_key.clone();
        let terms = Terms { fingerprint: key.fingerprint(), cluster_id: 1, protocol: ProtocolRange::OURS };
        let sealer = Sealer::new(&key, terms, NodeId::of_name("n2"), 77);
        Self { machine: Membership::new(now, config), now, sealer, rng: StdRng::seed_from_u64(seed) }
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut plain = 5_u64.to_le_bytes().to_vec();
        plain.push(kind);
        plain.extend_from_slice(body);
        plain.truncate(PLAIN_BYTES_MAX);
        let mut packet = self.sealer.seal(&plain).to_vec();
        self.machine.handle(self.now, Input::Datagram { from: addr(2), bytes: &mut packet });
        self.settle();
    }

    fn send_swim(&mut self, header: &Header<Identity>, updates: &[Member<Identity>]) {
        let mut swim = wire::encode(header).to_vec();
        if !matches!(header.message, Message::Announce) {
            swim.extend_from_slice(&u16::try_from(updates.len()).unwrap().to_be_bytes());
            for update in updates {
                swim.extend_from_slice(&wire::encode(update));
            }
        }
        let mut body = u16::try_from(swim.len()).unwrap().to_le_bytes().to_vec();
        body.extend_from_slice(&swim);
        self.send(KIND_SWIM, &body);
    }

    /// Lets the machine do what it wants, and sometimes lets time pass.
    fn settle(&mut self) -> Vec<Notice> {
        self.machine.check_invariants();
        if self.rng.random_bool(0.3) {
            self.now = self.now + Duration::from_millis(self.rng.random_range(0..700));
            self.machine.handle(self.now, Input::Timer);
            self.machine.check_invariants();
        }
        let mut notices = Vec::new();
        while let Some(output) = self.machine.poll() {
            if let Output::Notice(notice) = output {
                notices.push(notice);
            }
        }
        notices
    }

    fn identity(&mut self) -> Identity {
        let n = self.rng.random_range(1..6);
        let incarnation = [0, 1, 2, 3, 1 << 61, (1 << 62) - 1, u64::MAX][self.rng.random_range(0..7)];
        Identity {
            node: NodeRef { id: NodeId::of_name(&format!("n{n}")), incarnation },
            addr: if self.rng.random_bool(0.8) { addr(n) } else { SocketAddr::from(([0, 0, 0, 0], n - 1)) },
            zone: 0,
            weight: if self.rng.random_bool(0.9) { 1 } else { u16::MAX },
            protocol_min: 1,
            protocol_max: 1,
        }
    }

    fn member(&mut self) -> Member<Identity> {
        let state = [State::Alive, State::Suspect, State::Down][self.rng.random_range(0..3)];
        let incarnation = [0, 1, u16::MAX][self.rng.random_range(0..3)];
        Member::new(self.identity(), incarnation, state)
    }

    fn record(&mut self) -> NodeRecord {
        let n = self.rng.random_range(1..6);
        let incarnation = self.rng.random_range(0..4);
        NodeRecord {
            node: NodeRef { id: NodeId::of_name(&format!("n{n}")), incarnation },
            version: self.rng.random_range(0..4),
            name: format!("n{}", if self.rng.random_bool(0.9) { n } else { n + 1 }),
            state: [NodeState::Joining, NodeState::Active, NodeState::Draining][self.rng.random_range(0..3)],
            client_addr: "x".repeat(self.rng.random_range(0..300)),
            admin_addr: String::new(),
            api_addr: String::new(),
            shards: self.rng.random_range(0..70),
            software: String::new(),
        }
    }

    fn word(&mut self) -> Word {
        let round = self.rng.random_range(0..6);
        let id = |n: u16| NodeId::of_name(&format!("n{n}"));
        let after = self.rng.random_bool(0.5).then(|| NodeId(self.rng.random()));
        match self.rng.random_range(0..6) {
            0 => Word::Ask(Ask {
                round,
                me: Identity { node: NodeRef { id: id(2), incarnation: 1 }, ..self.identity() },
                joining: self.rng.random(),
                back: self.rng.random(),
                after,
                pages: self.rng.random(),
                claims: vec![self.claim()],
            }),
            1 => Word::Page(Page {
                round,
                from: self.identity(),
                after: None,
                upto: after,
                last: self.rng.random(),
                entries: (0..self.rng.random_range(0..4))
                    .map(|_| Entry { member: self.member(), record: Some(self.record().into()) })
                    .collect(),
            }),
            2 => Word::NotYet { round, claims: vec![self.claim(), self.claim()] },
            3 => Word::NameProbe { id: id(self.rng.random_range(1..3)), nonce: 1 },
            4 => Word::NameAnswer { holder: self.identity(), nonce: 1 },
            _ => Word::Superseded { incarnation: self.identity().node.incarnation },
        }
    }

    fn claim(&mut self) -> Claim {
        let id = |n: u16| NodeId::of_name(&format!("n{n}"));
        Claim {
            node: id(self.rng.random_range(1..6)),
            waits_for: (0..self.rng.random_range(0..3)).map(id).collect(),
            content: self.rng.random(),
            age_millis: self.rng.random_range(0..3_000),
        }
    }

    fn swim_header(&mut self) -> Header<Identity> {
        let third = self.identity();
        let message = match self.rng.random_range(0..10) {
            0 => Message::Ping(1),
            1 => Message::Ack(1),
            2 => Message::PingReq { target: third, probe_number: 1 },
            3 => Message::IndirectPing { origin: third, probe_number: 1 },
            4 => Message::IndirectAck { target: third, probe_number: 1 },
            5 => Message::ForwardedAck { origin: third, probe_number: 1 },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::TurnUndead,
            _ => Message::Gossip,
        };
        let mut src = self.identity();
        src.node.id = NodeId::of_name("n2");
        let dst = Identity { node: self.machine.view().me, addr: addr(1), ..src };
        Header { src, src_incarnation: 0, dst: Identity { weight: 1, ..dst }, message }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_dropped_or_taken_never_a_panic(
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1_400), 1..20),
        first in 0_u8..4,
    ) {
        let mut insider = Insider::new(1, false);
        for mut bytes in datagrams {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let now = insider.now;
            insider.machine.handle(now, Input::Datagram { from: addr(9), bytes: &mut bytes });
            insider.settle();
        }
        prop_assert_eq!(insider.machine.view().nodes.len(), 1);
    }

    #[test]
    fn any_bytes_under_the_right_key_never_panic(
        bodies in prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..400)), 1..30),
        joining: bool,
    ) {
        let mut insider = Insider::new(2, joining);
        for (kind, body) in bodies {
            insider.send(kind, &body);
        }
    }

    #[test]
    fn any_sequence_of_well_formed_lies_keeps_the_invariants(seed: u64, joining: bool) {
        let mut insider = Insider::new(seed, joining);
        for _ in 0..80 {
            match insider.rng.random_range(0..4) {
                0 => {
                    let record = wire::encode(&insider.record());
                    let mut body = u16::try_from(record.len()).unwrap().to_le_bytes().to_vec();
                    body.extend_from_slice(&record);
                    insider.send(KIND_RECORDS, &body);
                }
                1 => {
                    let word = insider.word();
                    insider.send(KIND_WORD, &wire::encode(&word));
                }
                _ => {
                    let header = insider.swim_header();
                    let updates: Vec<_> = (0..insider.rng.random_range(0..5)).map(|_| insider.member()).collect();
                    insider.send_swim(&header, &updates);
                }
            }
        }
        prop_assert!(insider.machine.stats().rejoins <= 80, "a new life a second at most");
    }
}

#[test]
fn more_nodes_than_there_may_be_are_not_taken_in() {
    let mut insider = Insider::new(3, false);
    let me = insider.machine.view().me;
    let like = |id: NodeId, incarnation| Identity {
        node: NodeRef { id, incarnation },
        addr: addr(2),
        zone: 0,
        weight: 1,
        protocol_min: 1,
        protocol_max: 1,
    };
    let mut told = 0;
    for batch in 0..80 {
        let header = Header {
            src: like(NodeId::of_name("n2"), 1),
            src_incarnation: 0,
            dst: Identity { addr: addr(1), ..like(me.id, me.incarnation) },
            message: Message::Gossip,
        };
        let strangers: Vec<_> = (0..25).map(|n| Member::alive(like(NodeId(batch * 100 + n), 1))).collect();
        insider.send_swim(&header, &strangers);
        told += 25;
    }
    insider.now = insider.now + Duration::from_secs(1);
    insider.machine.handle(insider.now, Input::Timer);
    assert!(told > NODES_MAX as u64);
    assert!(insider.machine.view().nodes.len() <= NODES_MAX + 1);
    assert!(insider.machine.stats().refused > 0);
    insider.machine.check_invariants();
}

#[test]
fn being_declared_down_costs_at_most_one_life_a_second() {
    let mut insider = Insider::new(4, false);
    for _ in 0..200 {
        let me = insider.machine.view().me;
        let mut header = insider.swim_header();
        header.src = Identity {
            node: NodeRef { id: NodeId::of_name("n2"), incarnation: 1 },
            addr: addr(2),
            zone: 0,
            weight: 1,
            protocol_min: 1,
            protocol_max: 1,
        };
        header.dst = Identity { node: me, addr: addr(1), ..header.src };
        header.message = Message::TurnUndead;
        insider.send_swim(&header, &[]);
    }
    let seconds = insider.now.as_micros() / 1_000_000;
    let rejoins = insider.machine.stats().rejoins;
    assert!(rejoins > 0 && rejoins <= seconds, "{rejoins} lives in {seconds} s");
}
