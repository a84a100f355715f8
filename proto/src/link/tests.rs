use std::collections::VecDeque;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

/// One end with the bytes it has put on the present connection and what its upper layer saw.
struct End {
    link: Link,
    wire: [VecDeque<Bytes>; Lane::COUNT],
    delivered: [Vec<u64>; Lane::COUNT],
    resets: usize,
    misbehaved: Option<Misbehaviour>,
}

impl End {
    fn new(instance: u64, limits: LinkLimits) -> Self {
        Self {
            link: Link::new(instance, limits),
            wire: Default::default(),
            delivered: Default::default(),
            resets: 0,
            misbehaved: None,
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.link.poll() {
            match output {
                Output::Transmit { lane, bytes } => self.wire[usize::from(lane.0)].push_back(bytes),
                Output::Deliver { lane, envelope } => {
                    let number = u64::from_le_bytes(envelope[..8].try_into().unwrap());
                    self.delivered[usize::from(lane.0)].push(number);
                }
                Output::Reset => {
                    self.resets += 1;
                    self.delivered = Default::default();
                }
                Output::Misbehaved(how) => self.misbehaved = Some(how),
            }
        }
        self.link.check_invariants();
    }
}

/// Two ends and the connection between them.
struct Pair {
    now: Instant,
    ends: [End; 2],
}

const A: usize = 0;
const B: usize = 1;

impl Pair {
    fn new(limits: LinkLimits) -> Self {
        Self { now: Instant::from_micros(1_000), ends: [End::new(11, limits), End::new(22, limits)] }
    }

    fn handle(&mut self, end: usize, input: Input) {
        self.ends[end].link.handle(self.now, input);
        self.ends[end].drain();
    }

    fn send(&mut self, from: usize, lane: u8, number: u64) {
        self.send_sized(from, lane, number, 8);
    }

    fn send_sized(&mut self, from: usize, lane: u8, number: u64, len: usize) {
        let mut envelope = number.to_le_bytes().to_vec();
        envelope.resize(len, 0);
        self.handle(from, Input::Send { lane: Lane(lane), envelope: envelope.into() });
    }

    /// A new connection: what was put on an earlier one is gone.
    fn connect(&mut self) {
        self.cut();
        let resumes = [A, B].map(|end| self.ends[end].link.resume());
        self.handle(A, Input::Connected(resumes[B]));
        self.handle(B, Input::Connected(resumes[A]));
    }

    /// The connection breaks; bytes in flight are gone.
    fn cut(&mut self) {
        for end in [A, B] {
            self.ends[end].wire = Default::default();
            self.handle(end, Input::Disconnected);
        }
    }

    /// Moves up to `len` bytes of what `from` put on `lane`; whether there were any.
    fn carry(&mut self, from: usize, lane: usize, len: usize) -> bool {
        let Some(mut bytes) = self.ends[from].wire[lane].pop_front() else { return false };
        if bytes.len() > len {
            let rest = bytes.split_off(len);
            self.ends[from].wire[lane].push_front(rest);
        }
        self.handle(1 - from, Input::Received { lane: Lane(lane as u8), bytes });
        true
    }

    /// Carries everything both ways and passes time until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let moved = [A, B].map(|from| (0..Lane::COUNT).any(|lane| self.carry(from, lane, usize::MAX)));
            if moved.contains(&true) {
                continue;
            }
            let Some(next) = [A, B].iter().filter_map(|&end| self.ends[end].link.next_deadline()).min()
            else {
                return;
            };
            self.now = self.now.max(next);
            self.handle(A, Input::Timer);
            self.handle(B, Input::Timer);
        }
        panic!("the pair never comes to rest");
    }
}

#[test]
fn envelopes_arrive_in_order_and_are_confirmed() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    for number in 0..5_000 {
        pair.send(A, (number % 5) as u8, number);
    }
    pair.settle();
    for lane in 0..5 {
        let expected: Vec<u64> = (0..5_000).filter(|n| n % 5 == lane).collect();
        assert_eq!(pair.ends[B].delivered[lane as usize], expected);
    }
    assert_eq!(pair.ends[A].link.stats().unconfirmed_len, 0);
}

#[test]
fn what_is_queued_leaves_in_one_frame() {
    let mut pair = Pair::new(LinkLimits::default());
    for number in 0..1_000 {
        pair.send(A, 0, number);
    }
    pair.connect();
    assert_eq!(pair.ends[A].wire[0].len(), 1);
    pair.settle();
    assert_eq!(pair.ends[B].delivered[0].len(), 1_000);
}

#[test]
fn an_idle_link_has_no_deadline() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    pair.settle();
    pair.send(A, 0, 1);
    pair.carry(A, 0, usize::MAX);
    assert_eq!(pair.ends[B].link.next_deadline(), Some(pair.now + CONFIRM_DELAY));
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].link.next_deadline()), [None, None]);
    assert_eq!([A, B].map(|end| pair.ends[end].link.poll()), [None, None]);
}

#[test]
fn a_confirmation_rides_on_an_answer() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    pair.send(A, 0, 1);
    pair.carry(A, 0, usize::MAX);
    pair.send(B, 3, 2);
    assert_eq!(pair.ends[B].link.next_deadline(), None);
    pair.carry(B, 3, usize::MAX);
    assert_eq!(pair.ends[A].link.stats().unconfirmed_len, 0);
}

#[test]
fn a_blocked_lane_waits_and_the_others_go_on() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    pair.handle(A, Input::Blocked(Lane(1)));
    pair.send(A, 1, 1);
    pair.send(A, 2, 2);
    pair.settle();
    assert_eq!((pair.ends[B].delivered[1].len(), pair.ends[B].delivered[2].len()), (0, 1));
    pair.handle(A, Input::Writable(Lane(1)));
    pair.settle();
    assert_eq!(pair.ends[B].delivered[1], [1]);
}

#[test]
fn overflow_is_told_to_both_ends_and_what_is_sent_after_it_arrives() {
    let mut pair = Pair::new(LinkLimits { unconfirmed_bytes_max: 1 << 20, unconfirmed_len_max: 100 });
    pair.connect();
    pair.settle();
    for number in 0..150 {
        pair.send(A, 0, number);
    }
    assert_eq!(pair.ends[A].link.stats().unconfirmed_len, 0, "nothing is kept for what was given up");
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].resets), [1, 1]);
    pair.send(A, 0, 900);
    pair.send(B, 0, 901);
    pair.settle();
    assert_eq!(pair.ends[B].delivered[0], [900]);
    assert_eq!(pair.ends[A].delivered[0], [901]);
}

#[test]
fn overflow_without_a_connection_resets_once_there_is_one() {
    let mut pair = Pair::new(LinkLimits { unconfirmed_bytes_max: 1_000, unconfirmed_len_max: 1_000 });
    pair.connect();
    pair.settle();
    pair.cut();
    for number in 0..10 {
        pair.send_sized(A, 0, number, 400);
    }
    assert_eq!(pair.ends[A].link.next_deadline(), None);
    assert_eq!(pair.ends[A].resets, 0);
    pair.now = pair.now + RESET_PAUSE;
    pair.connect();
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].resets), [1, 1]);
    pair.send(A, 0, 900);
    pair.settle();
    assert_eq!(pair.ends[B].delivered[0], [900]);
}

#[test]
fn a_peer_that_forgot_the_link_resets_it() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    pair.send(A, 0, 1);
    pair.settle();
    pair.cut();
    pair.send(A, 0, 2);
    pair.ends[B] = End::new(23, LinkLimits::default());
    // The first try breaks before the new object has heard of the old one.
    let resume = pair.ends[A].link.resume();
    pair.handle(B, Input::Connected(resume));
    pair.cut();
    pair.send(B, 0, 7);
    pair.connect();
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].resets), [1, 0]);
    pair.send(A, 0, 3);
    pair.settle();
    assert_eq!(pair.ends[B].delivered[0], [3]);
    assert_eq!(pair.ends[A].delivered[0], [7]);
}

#[test]
fn bytes_that_are_no_frames_end_the_connection_and_the_next_one_starts_over() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    let garbage = Bytes::from_static(&[3, 1, 0xff, 1]);
    pair.handle(A, Input::Received { lane: Lane(2), bytes: garbage });
    assert!(matches!(pair.ends[A].misbehaved, Some(Misbehaviour::Frame { lane: Lane(2), .. })));
    pair.cut();
    pair.now = pair.now + RESET_PAUSE;
    pair.connect();
    pair.send(B, 0, 5);
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].resets), [1, 1]);
    pair.send(B, 0, 6);
    pair.settle();
    assert_eq!(pair.ends[A].delivered[0], [6]);
}

#[test]
fn a_hole_or_a_confirmation_of_nothing_is_misbehaviour() {
    let mut pair = Pair::new(LinkLimits::default());
    pair.connect();
    let mut hole = FrameBuilder::new(1, [None; Lane::COUNT], 2, 0);
    hole.push(b"x");
    pair.handle(A, Input::Received { lane: Lane(0), bytes: hole.finish() });
    let expected = Misbehaviour::Hole { lane: Lane(0), expected: 1, got: 2 };
    assert_eq!(pair.ends[A].misbehaved, Some(expected));
    let too_much = FrameBuilder::new(1, [Some(1), None, None, None, None], 1, 0);
    pair.handle(B, Input::Received { lane: Lane(0), bytes: too_much.finish() });
    assert!(matches!(pair.ends[B].misbehaved, Some(Misbehaviour::Confirmation { got: 1, sent: 0, .. })));
}

/// Traffic both ways with cuts in the middle of frames, lopsided connects, stalls: per lane and
/// epoch everything arrives once and in order, and at rest nothing is missing.
fn random_walk(seed: u64, limits: LinkLimits) -> [usize; 2] {
    println!("seed={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut pair = Pair::new(limits);
    let mut sent: [[u64; Lane::COUNT]; 2] = Default::default();
    let mut connected = false;
    for _ in 0..2_000 {
        let end = random.random_range(0..2);
        let lane = random.random_range(0..Lane::COUNT);
        match random.random_range(0..100) {
            0..50 => {
                sent[end][lane] += 1;
                let len = random.random_range(8..200);
                pair.send_sized(end, lane as u8, sent[end][lane], len);
            }
            50..90 => {
                let len = random.random_range(1..300);
                pair.carry(end, lane, len);
            }
            90..93 => {
                pair.cut();
                connected = false;
            }
            93 if !connected => {
                // One side believes in the connection, the other never heard of it.
                pair.cut();
                let resume = pair.ends[1 - end].link.resume();
                pair.handle(end, Input::Connected(resume));
            }
            94..97 if !connected => {
                pair.connect();
                connected = true;
            }
            97 => pair.handle(end, Input::Blocked(Lane(lane as u8))),
            _ => {
                pair.handle(end, Input::Writable(Lane(lane as u8)));
                pair.now = pair.now + Duration::from_millis(random.random_range(0..40));
                pair.handle(A, Input::Timer);
                pair.handle(B, Input::Timer);
            }
        }
        for end in &pair.ends {
            for numbers in &end.delivered {
                assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]), "a hole or a repeat: {numbers:?}");
            }
        }
    }
    pair.cut();
    pair.now = pair.now + RESET_PAUSE;
    pair.connect();
    pair.settle();
    assert_eq!([A, B].map(|end| pair.ends[end].misbehaved), [None, None]);
    assert_eq!([A, B].map(|end| pair.ends[end].link.stats().unconfirmed_len), [0, 0]);
    let resets = [A, B].map(|end| pair.ends[end].resets);
    if resets == [0, 0] {
        for end in [A, B] {
            let got = pair.ends[1 - end].delivered.each_ref().map(|numbers| numbers.len() as u64);
            assert_eq!(got, sent[end], "everything arrived");
        }
    }
    resets
}

#[test]
fn random_cuts_lose_and_double_nothing() {
    for seed in 0..200 {
        assert_eq!(random_walk(seed, LinkLimits::default()), [0, 0]);
    }
}

#[test]
fn random_cuts_with_overflows_keep_order_and_tell_both_ends() {
    let limits = LinkLimits { unconfirmed_bytes_max: 3_000, unconfirmed_len_max: 20 };
    let mut seen = 0;
    for seed in 0..200 {
        let resets = random_walk(seed, limits);
        assert_eq!(resets[A].min(1), resets[B].min(1), "both ends see resets");
        seen += resets[A];
    }
    assert!(seen > 100, "the walks meet overflows");
}

proptest! {
    #[test]
    fn any_bytes_from_a_peer_are_refused_without_a_panic(
        chunks in prop::collection::vec((0..Lane::COUNT, prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        resume in any::<[u64; Lane::COUNT]>(),
        epoch in any::<u64>(),
    ) {
        let mut pair = Pair::new(LinkLimits::default());
        pair.send(A, 0, 1);
        let resume = Resume { instance: 22, peer_instance: 11, epoch, received: resume };
        pair.handle(A, Input::Connected(resume));
        for (lane, bytes) in chunks {
            pair.handle(A, Input::Received { lane: Lane(lane as u8), bytes: bytes.into() });
        }
        pair.connect();
        pair.now = pair.now + RESET_PAUSE;
        pair.handle(A, Input::Timer);
    }
}
