//! Rooms of a cluster that was cut in two: what one side had appended reaches the other, or a gap is told.
//!
//! Both sides go on with a room, then the nodes see each other again, each in its own time and most of them
//! in another life, while messages overtake each other and publishing goes on. Every order is drawn from a
//! seed.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

struct Draw(StdRng);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }
}

/// A client of one node that publishes into the room and is a member of it.
struct Member {
    client: Client,
    /// Publishes asked for so far.
    asked: u32,
    got: Vec<String>,
}

/// What was asked for, and what was known then.
struct Published {
    text: String,
    ack: String,
    by: usize,
    /// Holes told so far at each node.
    holes: Vec<u64>,
}

struct Story {
    mesh: Mesh,
    draw: Draw,
    room: String,
    members: Vec<Member>,
    published: Vec<Published>,
}

impl Story {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut mesh = Mesh::new(nodes, 1);
        let mut draw = Draw(StdRng::seed_from_u64(seed));
        let room = mesh.room_at(draw.below(nodes));
        let mut members = Vec::new();
        for n in 0..nodes {
            let uid = mesh.user_at(draw.below(nodes)) + &format!("-{n}");
            let client = mesh.client((n, 0), &uid);
            mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
            mesh.take(client);
            members.push(Member { client, asked: 0, got: Vec::new() });
        }
        let all: BTreeMap<usize, u64> = (0..nodes).map(|n| (n, 1)).collect();
        mesh.seen = Some(vec![all; nodes]);
        Self { mesh, draw, room, members, published: Vec::new() }
    }

    fn seen(&mut self, n: usize) -> &mut BTreeMap<usize, u64> {
        &mut self.mesh.seen.as_mut().unwrap()[n]
    }

    fn holes(&self) -> Vec<u64> {
        let key = room_key(&self.room);
        (0..self.members.len()).map(|n| self.mesh.shards[&(n, 0)].holes_told(&key)).collect()
    }

    fn publish(&mut self, n: usize) {
        let holes = self.holes();
        let member = &mut self.members[n];
        member.asked += 1;
        let (client, id, text) =
            (member.client, 100 + member.asked, format!("[\"e\",\"{n}-{}\"]", member.asked));
        let say = format!("42{id}[\"publish\",\"{}\",{}", self.room, &text[1..]);
        self.published.push(Published { text: format!("42{text}"), ack: format!("43{id}["), by: n, holes });
        self.mesh.send(client, &say);
    }

    /// Delivers one message, in order for each pair of nodes.
    fn deliver_one(&mut self) {
        let pairs: BTreeSet<_> = self.mesh.queue.iter().map(|(to, e)| (e.from.node, *to)).collect();
        let Some(&pair) = pairs.iter().nth(self.draw.below(pairs.len().max(1))) else { return };
        let at = self.mesh.queue.iter().position(|(to, e)| (e.from.node, *to) == pair).unwrap();
        let (to, envelope) = self.mesh.queue.remove(at).unwrap();
        self.mesh.deliver(to, envelope);
    }

    /// Cuts the nodes into two sides, each of which sees that.
    fn cut(&mut self, sides: &[usize]) {
        self.mesh.sides = sides.to_vec();
        for n in 0..sides.len() {
            self.seen(n).retain(|other, _| sides[*other] == sides[n]);
        }
        for n in 0..sides.len() {
            self.mesh.show(n);
            for _ in 0..self.draw.below(4) {
                self.deliver_one();
            }
        }
        self.mesh.wait(Duration::from_millis(200));
    }

    /// All see all again, in some order; publishing goes on.
    fn mend(&mut self) {
        let nodes = self.members.len();
        self.mesh.sides = vec![0; nodes];
        let mut reborn: Vec<usize> = (0..nodes).filter(|_| self.draw.below(4) > 0).collect();
        let now_known: Vec<u64> = (0..nodes).map(|n| 1 + u64::from(reborn.contains(&n))).collect();
        let mut to_learn: Vec<(usize, usize)> = Vec::new();
        for n in 0..nodes {
            to_learn.extend((0..nodes).filter(|other| *other != n).map(|other| (n, other)));
        }
        while !reborn.is_empty() || !to_learn.is_empty() {
            match self.draw.below(8) {
                0 if !reborn.is_empty() => {
                    let n = reborn.swap_remove(self.draw.below(reborn.len()));
                    self.mesh.nodes[n].incarnation = now_known[n];
                    self.seen(n).insert(n, now_known[n]);
                    self.mesh.show(n);
                }
                1 | 2 if !to_learn.is_empty() => {
                    let at = self.draw.below(to_learn.len());
                    let (n, other) = to_learn[at];
                    if !reborn.contains(&other) {
                        to_learn.swap_remove(at);
                        if self.seen(n).insert(other, now_known[other]) != Some(now_known[other]) {
                            self.mesh.show(n);
                        }
                    }
                }
                3 if self.published.len() < 60 => {
                    let n = self.draw.below(nodes);
                    self.publish(n);
                }
                4 => {
                    self.mesh.now = self.mesh.now + Duration::from_millis(self.draw.below(30) as u64);
                    for n in 0..nodes {
                        if self.mesh.shards[&(n, 0)].next_deadline().is_some_and(|due| due <= self.mesh.now) {
                            self.mesh.input((n, 0), Input::Timer);
                        }
                    }
                }
                _ => self.deliver_one(),
            }
        }
        self.mesh.wait(3 * second());
    }

    fn check(&mut self) {
        let holes = self.holes();
        for member in &mut self.members {
            member.got.extend(self.mesh.take(member.client));
            assert_eq!(self.mesh.closed(member.client), None);
        }
        for (n, member) in self.members.iter().enumerate() {
            for published in &self.published {
                let acked =
                    self.members[published.by].got.iter().any(|text| text.starts_with(&published.ack));
                let times = member.got.iter().filter(|text| **text == published.text).count();
                if n == published.by {
                    assert_eq!(times, 0, "{} is not for its publisher", published.text);
                    continue;
                }
                assert!(times <= 1, "{} came {times} times at node {n}", published.text);
                let told = holes[n] > published.holes[n];
                assert!(
                    times == 1 || told || !acked,
                    "{} is missing at node {n}, where no gap was told; got {:?}",
                    published.text,
                    member.got
                );
                assert!(acked, "{} was never answered", published.text);
            }
        }
    }
}

/// Cuts, publishes on both sides, mends; `sides` by node.
fn cut_and_mended(seed: u64, sides: &[usize]) {
    let mut story = Story::new(seed, sides.len());
    for _ in 0..story.draw.below(4) {
        let n = story.draw.below(sides.len());
        story.publish(n);
        story.mesh.settle();
    }
    // What is under way when the cut comes is lost, or not.
    for _ in 0..story.draw.below(3) {
        let n = story.draw.below(sides.len());
        story.publish(n);
        for _ in 0..story.draw.below(6) {
            story.deliver_one();
        }
    }
    story.cut(sides);
    for _ in 0..story.draw.below(12) {
        let n = story.draw.below(sides.len());
        story.publish(n);
        for _ in 0..story.draw.below(6) {
            story.deliver_one();
        }
    }
    if story.draw.below(2) == 0 {
        story.mesh.settle();
    }
    story.mend();
    story.check();
}

#[test]
fn what_one_side_appended_reaches_the_other_or_is_told_as_a_gap() {
    for seed in 0..400 {
        let alone = usize::try_from(seed % 3).unwrap();
        let three: Vec<usize> = (0..3).map(|n| usize::from(n == alone)).collect();
        eprintln!("seed {seed}");
        match seed % 4 {
            0 | 2 => cut_and_mended(seed, &three),
            1 => cut_and_mended(seed, &[0, 0, 1, 1]),
            _ => cut_and_mended(seed, &[1, 0, 0, 0]),
        }
    }
}

#[test]
fn a_gap_is_told_to_who_subscribes_after_the_merge() {
    let mut mesh = Mesh::new(3, 1);
    let (room, uid) = (mesh.room_at(1), mesh.user_at(2));
    let (alice, bob) = (mesh.client((0, 0), &uid), mesh.client((2, 0), "bob"));
    for client in [alice, bob] {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    let publish = |n: u32| format!("421[\"publish\",\"{room}\",\"e\",{n}]");
    mesh.seen = Some(vec![[(0, 1)].into(), [(1, 1), (2, 1)].into(), [(1, 1), (2, 1)].into()]);
    mesh.sides = vec![1, 0, 0];
    (0..3).for_each(|n| mesh.show(n));
    mesh.settle();
    mesh.say(alice, &publish(1));
    assert!(mesh.take(alice)[0].starts_with("431["), "served by its side");
    // Both see each other; what alice says next is there before the copy of node 0 has been merged.
    mesh.sides = vec![0; 3];
    mesh.seen = Some(vec![(0..3).map(|n| (n, 1)).collect(); 3]);
    mesh.cut = Some((0, 1));
    (0..3).for_each(|n| mesh.show(n));
    mesh.wait(second());
    mesh.say(alice, &publish(2));
    assert_eq!(events(&mesh.take(bob)), ["42[\"e\",2]"]);
    // When it is, node 2 is between two lives: its edge is not subscribed.
    mesh.nodes[2].incarnation = 2;
    mesh.seen = Some(vec![[(0, 1), (1, 1), (2, 2)].into(); 3]);
    mesh.show(0);
    mesh.show(1);
    mesh.heal();
    mesh.wait(3 * second());
    assert_eq!(mesh.shards[&(2, 0)].holes_told(&room_key(&room)), 0);
    mesh.show(2);
    mesh.wait(second());
    assert!(events(&mesh.take(bob)).is_empty(), "its publisher has gone on since");
    assert_eq!(mesh.shards[&(2, 0)].holes_told(&room_key(&room)), 1);
}

#[test]
fn a_gap_is_told_where_the_log_has_let_go_of_all_that_both_sides_had() {
    let limits = Limits { room_log_entries_max: 4, ..Limits::default() };
    let mut mesh = Mesh::with(3, 1, limits, ProductRules::open("chat"));
    let (room, uid) = (mesh.room_at(1), mesh.user_at(2));
    let (alice, bob) = (mesh.client((0, 0), &uid), mesh.client((2, 0), "bob"));
    for client in [alice, bob] {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    let publish = |n: u32| format!("421[\"publish\",\"{room}\",\"e\",{n}]");
    mesh.seen = Some(vec![[(0, 1)].into(), [(1, 1), (2, 1)].into(), [(1, 1), (2, 1)].into()]);
    mesh.sides = vec![1, 0, 0];
    (0..3).for_each(|n| mesh.show(n));
    mesh.settle();
    mesh.say(alice, &publish(1));
    assert!(mesh.take(alice)[0].starts_with("431["), "served by its side");
    // The other side has had three terms when both see each other again.
    for life in 2..4 {
        mesh.nodes[1].incarnation = life;
        mesh.seen = Some(vec![[(0, 1)].into(), [(1, life), (2, 1)].into(), [(1, life), (2, 1)].into()]);
        mesh.show(2);
        mesh.show(1);
        mesh.wait(second());
    }
    // Before the copy of node 0 has been merged, its publisher goes on, and so much is published that nothing
    // is left of what was before the cut.
    mesh.sides = vec![0; 3];
    mesh.seen = Some(vec![[(0, 1), (1, 3), (2, 1)].into(); 3]);
    mesh.cut = Some((0, 1));
    (0..3).for_each(|n| mesh.show(n));
    mesh.wait(second());
    mesh.say(alice, &publish(2));
    for n in 3..9 {
        mesh.query(2, api_publish(&room, &format!("[\"e\",{n}]"), None)).unwrap();
    }
    let got = mesh.take(bob);
    assert_eq!(events(&got).len(), 7);
    let told = |mesh: &Mesh| mesh.shards[&(2, 0)].holes_told(&room_key(&room));
    let before = told(&mesh);
    mesh.heal();
    mesh.wait(3 * second());
    assert!(events(&mesh.take(bob)).is_empty(), "its publisher has gone on since");
    assert_eq!(told(&mesh), before + 1);
}
