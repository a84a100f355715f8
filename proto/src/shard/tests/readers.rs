//! Readers before the tail: slow clients and those put at a cursor, served from what is fetched.

use super::*;
use crate::id::{Cursor, Term};

const BIG: usize = 20_000;

/// A room that node 1 owns, a publisher there, and members at node 0 of whom all take nothing.
struct Story {
    mesh: Mesh,
    room: String,
    publisher: Client,
    slow: Vec<Client>,
    published: usize,
}

impl Story {
    fn new(nodes: usize, slow: usize) -> Self {
        Self::with(nodes, slow, Limits::default())
    }

    fn with(nodes: usize, slow: usize, limits: Limits) -> Self {
        Self::of(Mesh::with(nodes, 1, limits, ProductRules::open("chat")), slow)
    }

    /// Without backups: a new owner begins anew.
    fn of_one_copy(nodes: usize, slow: usize) -> Self {
        let rules = ProductRules { durable: false, ..ProductRules::open("chat") };
        Self::of(Mesh::with(nodes, 1, Limits::default(), rules), slow)
    }

    fn of(mut mesh: Mesh, slow: usize) -> Self {
        let room = mesh.room_at(1);
        let publisher = mesh.client((1, 0), "publisher");
        mesh.say(publisher, &format!("42[\"join\",\"{room}\"]"));
        let slow: Vec<Client> = (0..slow).map(|n| mesh.client((0, 0), &format!("slow{n}"))).collect();
        for client in &slow {
            mesh.say(*client, &format!("42[\"join\",\"{room}\"]"));
        }
        for client in &slow {
            mesh.left_over(*client, 60_000);
        }
        Self { mesh, room, publisher, slow, published: 0 }
    }

    fn publish(&mut self, count: usize, size: usize) {
        for _ in 0..count {
            let (room, number, filler) = (&self.room, self.published, "x".repeat(size));
            self.published += 1;
            let text = format!("42[\"publish\",\"{room}\",\"e\",{number},\"{filler}\"]");
            self.mesh.say(self.publisher, &text);
        }
    }

    /// All take everything from here on.
    fn drain(&mut self) {
        for client in self.slow.clone() {
            self.mesh.stuck.remove(&(client.at, client.ix));
            self.mesh.input(client.at, Input::ClientQueue(ClientIx(client.ix), 0));
        }
        self.mesh.settle();
    }

    fn numbers(&mut self, client: Client) -> Vec<usize> {
        numbers(&self.mesh.take(client))
    }

    fn cursors(&mut self) -> Vec<Cursor> {
        let query = Query::History { room: room_key(&self.room), count: 1_000 };
        let Ok(Answer::History(entries)) = self.mesh.query(1, query) else { panic!("no history") };
        entries.into_iter().map(|(cursor, _)| cursor).collect()
    }

    fn read_from(&mut self, client: Client, cursor: Cursor) {
        let shard = self.mesh.shards.get_mut(&client.at).unwrap();
        shard.read_from(self.mesh.now, ClientIx(client.ix), &room_key(&self.room), cursor);
        self.mesh.drain(client.at);
        self.mesh.settle();
    }

    fn fetches(&self) -> u64 {
        self.mesh.stats(|s| s.fetches_total)
    }
}

/// The number that each event carries as its first argument.
fn numbers(got: &[String]) -> Vec<usize> {
    let number = |text: &&str| {
        text.strip_prefix("42[\"e\",").and_then(|rest| rest.split([',', ']']).next()?.parse().ok())
    };
    events(got).iter().filter_map(number).collect()
}

fn all(count: usize) -> Vec<usize> {
    (0..count).collect()
}

#[test]
fn a_reader_that_the_tail_has_left_loses_nothing_that_the_log_holds() {
    let mut story = Story::new(2, 1);
    story.publish(45, BIG);
    assert_eq!(story.fetches(), 0, "nothing is fetched for who does not read");
    story.drain();
    let slow = story.slow[0];
    assert_eq!(story.numbers(slow), all(45));
    assert_eq!(story.mesh.closed(slow), None);
    assert!(story.fetches() > 5);
    story.publish(3, 10);
    assert_eq!(story.numbers(slow), [45, 46, 47]);
}

#[test]
fn a_reader_goes_on_in_order_while_the_room_does() {
    let mut story = Story::new(2, 1);
    story.publish(30, BIG);
    let slow = story.slow[0];
    let mut got = Vec::new();
    // It takes a little at a time, and the tail moves on meanwhile.
    for _ in 0..60 {
        story.mesh.stuck.insert((slow.at, slow.ix), 0);
        story.mesh.input(slow.at, Input::ClientQueue(ClientIx(slow.ix), 0));
        story.mesh.settle();
        got.extend(story.numbers(slow));
        story.publish(1, 8_000);
    }
    story.drain();
    got.extend(story.numbers(slow));
    assert_eq!(got, all(90));
    assert_eq!(story.mesh.closed(slow), None);
}

#[test]
fn a_thousand_readers_at_one_place_cost_one_fetch_per_chunk() {
    let mut story = Story::new(2, 1_000);
    story.publish(30, BIG);
    story.drain();
    for client in story.slow.clone() {
        assert_eq!(story.numbers(client), all(30));
    }
    // 3 entries fit an answer, 12 or 13 the tail.
    assert!((6..=7).contains(&story.fetches()), "{} fetches", story.fetches());
    story.mesh.wait(second() * 12);
    let tail = story.mesh.shards[&(0, 0)].stats().tail_bytes;
    assert!(tail <= 262_144, "{tail} bytes: what was fetched goes when nobody needs it");
}

#[test]
fn readers_at_many_places_keep_to_the_bound() {
    let limits = Limits { tail_bytes_max: 100_000, tails_bytes_max: 150_000, ..Limits::default() };
    let mut story = Story::with(2, 0, limits);
    let mut got = Vec::new();
    for number in 0..8 {
        let client = story.mesh.client((0, 0), &format!("late{number}"));
        story.mesh.say(client, &format!("42[\"join\",\"{}\"]", story.room));
        story.mesh.left_over(client, 60_000);
        story.slow.push(client);
        got.push((client, story.published));
        story.publish(4, BIG);
    }
    for _ in 0..3 {
        for (client, _) in &got {
            story.mesh.stuck.insert((client.at, client.ix), 0);
            story.mesh.input(client.at, Input::ClientQueue(ClientIx(client.ix), 0));
        }
        story.mesh.settle();
        let bytes = story.mesh.shards[&(0, 0)].stats().tail_bytes;
        assert!(bytes <= 150_000, "{bytes}");
    }
    story.drain();
    for (client, first) in got {
        assert_eq!(story.numbers(client), (first..32).collect::<Vec<_>>());
    }
}

#[test]
fn a_reader_is_not_shown_what_it_is_excepted_from() {
    let mut story = Story::new(2, 2);
    let [slow, other] = [story.slow[0], story.slow[1]];
    story.mesh.say(other, "42[\"join\",\"quiet\"]");
    story.publish(5, BIG);
    let room = story.room.clone();
    let text = format!("42[\"publish\",\"{room}\",{{\"event\":\"e\",\"except\":[\"quiet\"]}},5]");
    story.mesh.say(story.publisher, &text);
    story.published += 1;
    story.publish(24, BIG);
    story.drain();
    assert_eq!(story.numbers(slow), all(30));
    assert_eq!(story.numbers(other), all(30).into_iter().filter(|n| *n != 5).collect::<Vec<_>>());
}

#[test]
fn a_fetch_that_a_link_has_lost_is_repeated() {
    for cut in [(0, 1), (1, 0)] {
        let mut story = Story::new(2, 3);
        story.publish(40, BIG);
        story.mesh.cut = Some(cut);
        story.drain();
        story.mesh.reset();
        story.mesh.wait(second());
        for client in story.slow.clone() {
            assert_eq!(story.numbers(client), all(40), "{cut:?}");
        }
    }
}

#[test]
fn a_reader_goes_on_from_the_new_owner_by_its_cursor() {
    // The fetch is lost with the old owner, or its answer.
    for cut in [(0, 1), (1, 0)] {
        let mut story = Story::new(3, 2);
        story.publish(35, BIG);
        story.mesh.cut = Some(cut);
        story.drain();
        for client in story.slow.clone() {
            assert!(story.numbers(client).is_empty(), "its fetch is under way");
        }
        let fetches = story.fetches();
        story.mesh.alive[1] = false;
        story.mesh.views();
        story.mesh.wait(second());
        assert!(story.fetches() > fetches);
        story.publisher = story.mesh.client((2, 0), "another");
        story.mesh.say(story.publisher, &format!("42[\"join\",\"{}\"]", story.room));
        story.publish(2, 10);
        for client in story.slow.clone() {
            assert_eq!(story.numbers(client), all(37), "{cut:?}");
        }
    }
}

#[test]
fn a_new_owner_without_the_history_has_a_reader_come_back() {
    let mut story = Story::of_one_copy(3, 1);
    story.publish(30, BIG);
    story.mesh.cut = Some((1, 0));
    story.drain();
    let slow = story.slow[0];
    assert!(story.numbers(slow).is_empty(), "its fetch is under way");
    story.mesh.alive[1] = false;
    story.mesh.views();
    story.mesh.wait(second());
    assert_eq!(story.mesh.closed(slow), Some(CloseCode::TooSlow));
}

#[test]
fn a_reader_in_the_tail_goes_on_over_a_hole() {
    let mut story = Story::of_one_copy(3, 1);
    story.publish(8, BIG);
    let gaps = story.mesh.stats(|s| s.gaps_total);
    story.mesh.alive[1] = false;
    story.mesh.views();
    story.mesh.wait(second());
    story.publisher = story.mesh.client((2, 0), "another");
    story.mesh.say(story.publisher, &format!("42[\"join\",\"{}\"]", story.room));
    story.publish(2, 10);
    assert!(story.mesh.stats(|s| s.gaps_total) > gaps);
    story.drain();
    let slow = story.slow[0];
    assert_eq!(story.numbers(slow), all(10));
    // Whoever is put where the new history begins gets nothing of the old one.
    let query = Query::History { room: room_key(&story.room), count: 1_000 };
    let Ok(Answer::History(entries)) = story.mesh.query(2, query) else { panic!("no history") };
    let first = entries[0].0;
    story.read_from(slow, Cursor { seq: first.seq - 1, ..first });
    assert_eq!(story.numbers(slow), [8, 9]);
}

#[test]
fn what_the_tail_has_trimmed_is_not_served_again_in_another_history() {
    let limits = Limits { tail_bytes_max: 50_000, ..Limits::default() };
    let rules = ProductRules { durable: false, ..ProductRules::open("chat") };
    let mut mesh = Mesh::with(3, 1, limits, rules);
    let (room, uid) = (mesh.room_at(1), mesh.user_at(2));
    let (reader, other, publisher) =
        (mesh.client((0, 0), "reader"), mesh.client((0, 0), "other"), mesh.client((2, 0), &uid));
    for client in [reader, other, publisher] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    // It is served, but its publisher does not hear of it and repeats it to the next owner.
    mesh.cut = Some((1, 2));
    mesh.say(publisher, &format!("42[\"publish\",\"{room}\",\"e\",0]"));
    for number in 1..6 {
        let filler = "x".repeat(BIG);
        mesh.say(other, &format!("42[\"publish\",\"{room}\",\"e\",{number},\"{filler}\"]"));
    }
    mesh.alive[1] = false;
    mesh.views();
    mesh.wait(second());
    mesh.say(publisher, &format!("42[\"publish\",\"{room}\",\"e\",6]"));
    assert_eq!(numbers(&mesh.take(reader)), all(7));
}

#[test]
fn a_session_put_at_a_cursor_reads_on_from_there() {
    let mut story = Story::new(2, 0);
    story.publish(50, 100);
    let cursors = story.cursors();
    let fresh = story.mesh.client((0, 0), "fresh");
    story.mesh.say(fresh, &format!("42[\"join\",\"{}\"]", story.room));
    story.mesh.take(fresh);
    story.publish(3, 100);
    assert_eq!(story.numbers(fresh), [50, 51, 52]);
    // Before its tail, within it, at its end.
    for (index, from) in [(9, 10), (48, 49), (49, 50)] {
        story.read_from(fresh, cursors[index]);
        assert_eq!(story.numbers(fresh), (from..53).collect::<Vec<_>>());
    }
    let last = *story.cursors().last().unwrap();
    story.read_from(fresh, last);
    assert!(story.numbers(fresh).is_empty());
    story.publish(1, 100);
    assert_eq!(story.numbers(fresh), [53]);
    assert_eq!(story.mesh.closed(fresh), None);
}

#[test]
fn a_session_put_before_everything_reads_the_whole_log() {
    let mut story = Story::new(2, 0);
    story.publish(40, BIG);
    let fresh = story.mesh.client((0, 0), "fresh");
    story.mesh.say(fresh, &format!("42[\"join\",\"{}\"]", story.room));
    story.mesh.left_over(fresh, 1_000);
    let first = story.cursors()[0];
    story.read_from(fresh, Cursor { seq: 0, ..first });
    story.mesh.left_over(fresh, 0);
    assert_eq!(story.numbers(fresh), all(40));
}

#[test]
fn a_cursor_of_another_history_is_not_read_from() {
    for odd in [0, 1, 2] {
        let mut story = Story::new(2, 0);
        story.publish(20, 100);
        let cursors = story.cursors();
        let fresh = story.mesh.client((0, 0), "fresh");
        story.mesh.say(fresh, &format!("42[\"join\",\"{}\"]", story.room));
        let other = Term { number: cursors[9].term.number, owner: story.mesh.nodes[0] };
        let above = Term { number: cursors[9].term.number + 7, owner: story.mesh.nodes[0] };
        let cursor = match odd {
            0 => Cursor { term: other, ..cursors[9] },
            1 => Cursor { term: above, ..cursors[9] },
            _ => Cursor { seq: 1_000, ..cursors[9] },
        };
        story.read_from(fresh, cursor);
        assert_eq!(story.mesh.closed(fresh), Some(CloseCode::TooSlow), "{cursor:?}");
    }
}
