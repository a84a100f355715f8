//! A node that stood still and goes on: nobody is told there that it goes on and misses something.
//!
//! The others have declared it down and go on without it. It wakes with what had reached it before, handles
//! that in the life that is over, and hears of its next one in between; its clients come back to it or
//! elsewhere meanwhile. Every order is drawn from a seed.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::recovery::Carrier;
use super::*;

const WOKEN: usize = 2;

struct Story {
    mesh: Mesh,
    draw: StdRng,
    room: String,
    published: i64,
}

impl Story {
    fn below(&mut self, bound: usize) -> usize {
        self.draw.random_range(0..bound)
    }

    fn publish(&mut self, via: usize) {
        self.published += 1;
        let say = api_publish(&self.room, &format!("[\"e\",{}]", self.published), None);
        self.mesh.begin_query(via, u64::try_from(self.published).unwrap(), say);
    }

    /// Delivers one message, in order for each pair of nodes; to the woken one only if it runs.
    fn deliver_one(&mut self, runs: bool) -> bool {
        let may = |to: NodeRef| runs || to.id != self.mesh.nodes[WOKEN].id;
        let pairs: BTreeSet<_> =
            self.mesh.queue.iter().filter(|(to, _)| may(*to)).map(|(to, e)| (e.from.node, *to)).collect();
        if pairs.is_empty() {
            return false;
        }
        let nth = self.below(pairs.len());
        let pair = *pairs.iter().nth(nth).unwrap();
        let at = self.mesh.queue.iter().position(|(to, e)| (e.from.node, *to) == pair).unwrap();
        let (to, envelope) = self.mesh.queue.remove(at).unwrap();
        self.mesh.deliver(to, envelope);
        true
    }

    fn deliver_all(&mut self, runs: bool) {
        while self.deliver_one(runs) {}
    }

    fn see(&mut self, n: usize, whom: &[(usize, u64)]) {
        self.mesh.seen.as_mut().unwrap()[n] = whom.iter().copied().collect();
        self.mesh.show(n);
    }
}

/// Whether the client was told that it goes on.
fn woken(seed: u64) -> bool {
    let mut mesh = Mesh::new(3, 1);
    let mut draw = StdRng::seed_from_u64(seed);
    let room = mesh.room_at(draw.random_range(0..3));
    let uid = mesh.user_at(draw.random_range(0..3));
    let mut client = Carrier::new(&mut mesh, (WOKEN, 0), &uid);
    client.join(&mut mesh, &room);
    if draw.random_bool(0.5) {
        let other = Carrier::new(&mut mesh, (WOKEN, 0), "other");
        other.join(&mut mesh, &room);
    }
    mesh.seen = Some(vec![(0..3).map(|n| (n, 1)).collect(); 3]);
    let mut story = Story { mesh, draw, room, published: 0 };
    for _ in 0..3 {
        story.publish(0);
    }
    story.mesh.settle();
    let mut got = client.seen(&mut story.mesh);
    // It stands still: the others do not know yet.
    for _ in 0..story.below(4) {
        let via = story.below(2);
        story.publish(via);
        for _ in 0..story.below(8) {
            story.deliver_one(false);
        }
    }
    // A client that leaves at once may have the question for its session wait in the node that stands still.
    let mut asked = story.below(3) == 0;
    let at = if asked || story.below(3) == 0 { 0 } else { WOKEN };
    if asked {
        client.ask(&mut story.mesh, (at, 0));
    }
    for _ in 0..story.below(8) {
        story.deliver_one(false);
    }
    // Now they do: what is new they say to each other only.
    story.see(0, &[(0, 1), (1, 1)]);
    story.see(1, &[(0, 1), (1, 1)]);
    story.deliver_all(false);
    for _ in 0..4 {
        let via = story.below(2);
        story.publish(via);
    }
    for _ in 0..40 {
        story.mesh.now = story.mesh.now + Duration::from_millis(10);
        for n in 0..2 {
            story.mesh.input((n, 0), Input::Timer);
        }
        story.deliver_all(false);
    }
    // It wakes, and its clients come back.
    let mut steps = vec![0, 1, 2, 3, 4];
    while !steps.is_empty() || !asked {
        match story.below(9) {
            0 if !asked => {
                client.ask(&mut story.mesh, (at, 0));
                asked = true;
            }
            1 if !steps.is_empty() => match steps.remove(0) {
                0 => {
                    story.mesh.nodes[WOKEN].incarnation = 2;
                    story.mesh.joining = Some(WOKEN);
                    story.see(WOKEN, &[(0, 1), (1, 1), (2, 2)]);
                }
                1 => {
                    let first = story.below(2);
                    story.see(first, &[(0, 1), (1, 1), (2, 2)]);
                    story.deliver_one(true);
                    story.see(1 - first, &[(0, 1), (1, 1), (2, 2)]);
                }
                step => {
                    story.mesh.joining = None;
                    let n = [2, 0, 1][step - 2];
                    story.see(n, &[(0, 1), (1, 1), (2, 2)]);
                }
            },
            2 => {
                story.mesh.now = story.mesh.now + Duration::from_millis(10);
                for n in 0..3 {
                    story.mesh.input((n, 0), Input::Timer);
                }
            }
            _ => {
                story.deliver_one(true);
            }
        }
    }
    story.mesh.wait(3 * second());
    story.publish(1);
    story.mesh.wait(second());
    got.extend(client.seen(&mut story.mesh));
    if client.recovered {
        let want: Vec<i64> = (1..=story.published).collect();
        let mut sorted = got.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, want, "missed or doubled; came as {got:?}");
        assert_eq!(story.mesh.closed(client.client), None);
    }
    client.recovered
}

#[test]
fn who_goes_on_at_a_woken_node_or_elsewhere_misses_nothing() {
    let recovered = (0..600).filter(|seed| {
        eprintln!("seed {seed}");
        woken(*seed)
    });
    assert!(recovered.count() > 300, "most go on");
}
