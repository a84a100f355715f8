//! Every crash of one party between any two messages of a small story, with the last words to any one
//! other arriving, and what must hold after it.

use super::backups::{assert_settled, history};
use super::*;

/// What goes on while a node may crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// Backends publish, a client listens.
    Traffic,
    /// The same, while a node joins that is to own the room.
    Join,
    /// The same, and the node that owns the room is taken off the ring, but lives.
    Leave,
}

/// Events published while messages are under way.
const EVENTS: usize = 6;

/// A node dies.
#[derive(Clone, Copy, Debug)]
struct Crash {
    /// After so many deliveries.
    step: usize,
    who: usize,
    /// What it has said to this one still arrives; everything else under way is lost.
    heard_by: usize,
}

/// Plays a story. Returns how many deliveries there were.
fn play(story: Story, crash: Option<Crash>) -> usize {
    let mut mesh = Mesh::new(4, 1);
    let (room, owner) = (mesh.room_at(3), 3);
    if story == Story::Join {
        mesh.alive[owner] = false;
        mesh.views();
    }
    // Where the client and the backend are, nothing crashes.
    let here = usize::from(crash.is_some_and(|crash| crash.who == 0));
    let client = mesh.client((here, 0), "bob");
    mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(client);
    let mut wanted = Vec::new();
    for number in 0..2 {
        let json = format!("[\"before\",{number}]");
        mesh.query(here, api_publish(&room, &json, None)).unwrap();
        wanted.push(json);
    }
    match story {
        Story::Traffic => {}
        Story::Join => {
            mesh.alive[owner] = true;
            [owner, 0, 1, 2].into_iter().for_each(|n| mesh.view_at(n));
        }
        Story::Leave => {
            mesh.draining = Some(owner);
            (0..4).for_each(|n| mesh.view_at(n));
        }
    }
    let mut steps = 0;
    let mut published = 0;
    loop {
        if let Some(crash) = crash.filter(|crash| crash.step == steps) {
            mesh.alive[crash.who] = false;
            mesh.last_words = Some((crash.who, crash.heard_by));
        }
        if published < EVENTS && steps % 4 == 0 {
            let json = format!("[\"during\",{published}]");
            mesh.begin_query(here, 100 + published as u64, api_publish(&room, &json, None));
            wanted.push(json);
            published += 1;
        }
        let Some((to, envelope)) = mesh.queue.pop_front() else { break };
        mesh.deliver(to, envelope);
        steps += 1;
    }
    while published < EVENTS {
        let json = format!("[\"during\",{published}]");
        mesh.begin_query(here, 100 + published as u64, api_publish(&room, &json, None));
        wanted.push(json);
        published += 1;
    }
    mesh.settle();
    mesh.views();
    mesh.wait(4 * second());
    for number in 0..EVENTS {
        let answer = mesh.answers.remove(&(100 + number as u64));
        assert!(matches!(answer, Some(Ok(_))), "{story:?} {crash:?}: event {number} got {answer:?}");
    }
    let got: Vec<String> = events(&mesh.take(client)).iter().map(|text| text[2..].to_owned()).collect();
    assert_eq!(got, wanted, "{story:?} {crash:?}");
    assert_eq!(history(&mut mesh, here, &room), wanted, "{story:?} {crash:?}");
    assert_eq!(mesh.closed(client), None);
    assert_settled(&mesh, &room);
    let gaps: u64 = (0..4).filter(|n| mesh.alive[*n]).map(|n| mesh.shards[&(n, 0)].stats().gaps_total).sum();
    assert_eq!(gaps, 0, "{story:?} {crash:?}: a gap was told");
    steps
}

fn play_all(story: Story) {
    let steps = play(story, None);
    assert!(steps > 20, "{steps} messages are no story");
    for step in 0..=steps {
        for who in 0..4 {
            for heard_by in (0..4).filter(|heard_by| *heard_by != who) {
                play(story, Some(Crash { step, who, heard_by }));
            }
        }
    }
}

#[test]
fn any_one_crash_under_traffic_loses_nothing() {
    play_all(Story::Traffic);
}

#[test]
fn any_one_crash_during_a_join_loses_nothing() {
    play_all(Story::Join);
}

#[test]
fn any_one_crash_while_a_node_leaves_loses_nothing() {
    play_all(Story::Leave);
}
