//! What survives an owner: backups, hand-over, takeover.

use super::*;
use crate::wire::Version;

pub(super) fn history(mesh: &mut Mesh, n: usize, room: &str) -> Vec<String> {
    let answer = mesh.query(n, Query::History { room: room_key(room), count: 1_000 });
    let Ok(Answer::History(entries)) = answer else { panic!("{answer:?}") };
    entries.iter().map(|(_, payload)| String::from_utf8(payload.json.to_vec()).unwrap()).collect()
}

/// Every copy of a room: node, whether it owns it, version, digest.
fn copies(mesh: &Mesh, room: &str) -> Vec<(usize, bool, Version, u64)> {
    let key = room_key(room);
    let mut found = Vec::new();
    for (at, shard) in mesh.shards.iter().filter(|(at, _)| mesh.alive[at.0]) {
        let held = shard.holdings().into_iter().filter(|held| held.name == format!("{key:?}"));
        found.extend(held.map(|held| (at.0, held.owned, held.version, held.digest)));
    }
    found
}

/// The room's owner by the ring, one equal copy at its backup, and nobody else.
pub(super) fn assert_settled(mesh: &Mesh, room: &str) {
    let found = copies(mesh, room);
    let [one, other] = found[..] else { panic!("{room}: {found:?}") };
    let (owner, backup) = if one.1 { (one, other) } else { (other, one) };
    assert!(owner.1 && !backup.1, "{found:?}");
    assert_eq!(owner.0, mesh.owner_of_room(room));
    assert_eq!((owner.2, owner.3), (backup.2, backup.3), "the copies differ");
}

#[test]
fn an_ack_waits_for_the_backup_and_a_silent_one_is_reported() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    mesh.cut = Some((0, 1));
    mesh.begin_query(0, 5, api_publish(&room, "[\"e\"]", None));
    mesh.settle();
    assert!(mesh.answers.is_empty(), "acked before the backup had it");
    assert!(mesh.take(a).is_empty(), "seen before the backup had it");
    mesh.wait(Duration::from_millis(1_300));
    assert_eq!(mesh.stats(|s| s.backups_silent), 1);
    mesh.heal();
    assert!(mesh.answers.remove(&5).unwrap().is_ok());
    assert_eq!(events(&mesh.take(a)), ["42[\"e\"]"]);
    assert_eq!(mesh.stats(|s| s.backups_silent), 0);
}

#[test]
fn a_history_survives_its_owner_and_the_next() {
    let mut mesh = Mesh::new(4, 2);
    let room = mesh.room_at(3);
    let mut wanted = Vec::new();
    for round in 0..3 {
        for number in 0..5 {
            let json = format!("[\"e\",{round},{number}]");
            mesh.query(0, api_publish(&room, &json, None)).unwrap();
            wanted.push(json);
        }
        assert_settled(&mesh, &room);
        let owner = mesh.owner_of_room(&room);
        if owner == 0 || round == 2 {
            break;
        }
        mesh.alive[owner] = false;
        mesh.views();
        mesh.wait(second());
        assert_eq!(history(&mut mesh, 0, &room), wanted);
    }
    assert!(mesh.stats(|s| s.takeovers_total) >= 1);
    assert_eq!(mesh.stats(|s| s.gaps_total), 0);
}

#[test]
fn a_repeat_after_the_owners_death_is_seen_by_the_backup() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    let publish = api_publish(&room, "[\"once\"]", Some("key"));
    mesh.query(0, publish.clone()).unwrap();
    mesh.alive[2] = false;
    mesh.views();
    let again = mesh.query(1, publish);
    assert!(matches!(again, Ok(Answer::Published { duplicate: true, .. })), "{again:?}");
    assert_eq!(history(&mut mesh, 0, &room).len(), 1);
}

#[test]
fn a_room_moves_to_a_node_that_joins_and_nobody_notices() {
    let mut mesh = Mesh::new(3, 2);
    mesh.alive[2] = false;
    mesh.views();
    // What the third will own.
    mesh.alive[2] = true;
    let room = mesh.room_at(2);
    mesh.alive[2] = false;
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 1), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    for number in 0..5 {
        mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",{number}]"));
    }
    mesh.alive[2] = true;
    mesh.views();
    for number in 5..10 {
        mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",{number}]"));
    }
    mesh.wait(3 * second());
    let wanted: Vec<String> = (0..10).map(|n| format!("42[\"e\",{n}]")).collect();
    assert_eq!(events(&mesh.take(b)), wanted);
    assert_eq!(mesh.owner_of_room(&room), 2);
    assert_settled(&mesh, &room);
    assert_eq!(mesh.stats(|s| s.gaps_total), 0);
    assert!(mesh.stats(|s| s.moves_total) >= 1);
}

#[test]
fn publishes_in_the_middle_of_a_hand_over_are_kept_in_order() {
    let mut mesh = Mesh::new(3, 1);
    mesh.alive[2] = true;
    let room = mesh.room_at(2);
    mesh.alive[2] = false;
    mesh.views();
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    mesh.alive[2] = true;
    // Views come one by one, with a publish between any two.
    let mut number = 0;
    for n in [2, 0, 1] {
        mesh.view_at(n);
        for _ in 0..3 {
            mesh.send(a, &format!("42{number}[\"publish\",\"{room}\",\"e\",{number}]"));
            number += 1;
            if let Some((to, envelope)) = mesh.queue.pop_front() {
                mesh.deliver(to, envelope);
            }
        }
    }
    mesh.wait(3 * second());
    let wanted: Vec<String> = (0..number).map(|n| format!("42[\"e\",{n}]")).collect();
    assert_eq!(events(&mesh.take(b)), wanted);
    assert_settled(&mesh, &room);
    assert_eq!(mesh.stats(|s| s.gaps_total), 0);
}

#[test]
fn a_backup_that_lost_its_link_gets_all_of_it() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    mesh.query(0, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.cut = Some((0, 1));
    mesh.begin_query(0, 5, api_publish(&room, "[\"e\",2]", None));
    mesh.settle();
    mesh.reset();
    assert!(mesh.answers.remove(&5).unwrap().is_ok());
    assert_settled(&mesh, &room);
}

#[test]
fn two_histories_become_one_after_a_partition() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    mesh.query(0, api_publish(&room, "[\"both\"]", None)).unwrap();
    // Each side alone.
    for n in [0, 1] {
        mesh.alive[1 - n] = false;
        mesh.view_at(n);
        mesh.alive[1 - n] = true;
    }
    mesh.queue.clear();
    for n in [0, 1] {
        mesh.query(n, api_publish(&room, &format!("[\"side\",{n}]"), None)).unwrap();
    }
    mesh.views();
    mesh.wait(3 * second());
    assert_settled(&mesh, &room);
    let mut merged = history(&mut mesh, 1, &room);
    assert_eq!(merged[0], "[\"both\"]");
    merged.sort();
    assert_eq!(merged, ["[\"both\"]", "[\"side\",0]", "[\"side\",1]"]);
}

#[test]
fn a_room_that_ends_leaves_no_copy() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(0);
    mesh.query(0, api_publish(&room, "[\"e\"]", None)).unwrap();
    assert_eq!(copies(&mesh, &room).len(), 2);
    mesh.wait(400 * second());
    assert!(copies(&mesh, &room).is_empty());
    assert_eq!(mesh.stats(|s| s.copies), 0);
}

#[test]
fn a_client_goes_on_when_its_owner_begins_above_another() {
    let mut mesh = Mesh::new(2, 1);
    let (uid, room) = (mesh.user_at(0), mesh.room_at(0));
    let a = mesh.client((0, 0), &uid);
    // The other side believes this one dead for a while, and takes over.
    mesh.alive[0] = false;
    mesh.view_at(1);
    mesh.alive[0] = true;
    mesh.queue.clear();
    mesh.views();
    mesh.wait(3 * second());
    let got = mesh.ask(a, &format!("421[\"join\",\"{room}\"]"));
    assert_eq!(got, ["431[{\"ok\":true}]"]);
    assert_eq!(mesh.closed(a), None);
}

#[test]
fn a_client_that_goes_while_its_owner_dies_leaves_no_session() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    let a = mesh.client((0, 0), &uid);
    // The owner is dead, and nobody knows: the edge's word for the end of the session is lost.
    mesh.alive[2] = false;
    mesh.gone(a);
    mesh.views();
    mesh.wait(5 * second());
    assert_eq!(mesh.stats(|s| s.sessions) - mesh.shards[&(2, 0)].stats().sessions, 0);
    let held = |n: usize| mesh.shards[&(n, 0)].holdings().len();
    let rooms = |n: usize| mesh.shards[&(n, 0)].holdings().iter().filter(|h| h.name.contains('#')).count();
    assert_eq!([held(0), held(1)], [rooms(0), rooms(1)], "a session is still held");
}

#[test]
fn two_owners_of_a_room_without_events_become_one() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(0);
    let clients = [0, 1, 2].map(|n| mesh.client((n, 0), &format!("user{n}")));
    // Each node believes itself alone, and owns the room.
    for n in 0..3 {
        (0..3).filter(|other| *other != n).for_each(|other| mesh.alive[other] = false);
        mesh.view_at(n);
        mesh.alive = vec![true; 3];
    }
    mesh.queue.clear();
    for client in clients {
        mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
    }
    mesh.views();
    mesh.wait(5 * second());
    assert_settled(&mesh, &room);
    assert_eq!(mesh.stats(|s| s.to_hand_over), 0);
    clients.into_iter().for_each(|client| assert!(!mesh.take(client).is_empty()));
    mesh.query(0, api_publish(&room, "[\"e\"]", None)).unwrap();
    clients.into_iter().for_each(|client| assert_eq!(events(&mesh.take(client)), ["42[\"e\"]"]));
}
