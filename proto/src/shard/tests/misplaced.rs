//! Copies in the wrong place: joins, drains and rebirths one after the other, word that comes late.

use super::backups::{assert_settled, history};
use super::*;

fn replicas(mesh: &Mesh, room: &str) -> Vec<usize> {
    let n = mesh.alive.iter().position(|alive| *alive).unwrap();
    let found = mesh.view(n).ring.replicas(room_key(room).placement(), mesh.nodes.len());
    found.into_iter().map(|node| mesh.nodes.iter().position(|n| *n == node).unwrap()).collect()
}

fn with_alive<T>(mesh: &mut Mesh, alive: &[bool], f: impl FnOnce(&mut Mesh) -> T) -> T {
    let before = std::mem::replace(&mut mesh.alive, alive.to_vec());
    let out = f(mesh);
    mesh.alive = before;
    out
}

/// A room with these replicas first for each set of live nodes.
fn room_with(mesh: &mut Mesh, wanted: &[(&[bool], &[usize])]) -> String {
    (0..200_000)
        .map(|i| format!("r{i}"))
        .find(|room| {
            wanted
                .iter()
                .all(|(alive, first)| with_alive(mesh, alive, |mesh| replicas(mesh, room)).starts_with(first))
        })
        .expect("such a room")
}

fn owners(mesh: &Mesh, room: &str) -> Vec<(usize, bool)> {
    let key = room_key(room);
    let mut found = Vec::new();
    for (at, shard) in mesh.shards.iter().filter(|(at, _)| mesh.alive[at.0]) {
        let held = shard.holdings().into_iter().filter(|held| held.name == format!("{key:?}"));
        found.extend(held.map(|held| (at.0, held.owned)));
    }
    found
}

#[test]
fn an_old_backup_is_dropped_when_the_new_one_has_all() {
    let mut mesh = Mesh::new(3, 1);
    let room = room_with(&mut mesh, &[(&[true, true, false], &[0, 1]), (&[true, true, true], &[0, 2, 1])]);
    mesh.alive[2] = false;
    mesh.views();
    mesh.query(1, api_publish(&room, "[\"acked\"]", None)).unwrap();
    mesh.alive[2] = true;
    // The link to the one that joins is slow.
    mesh.cut = Some((0, 2));
    mesh.views();
    mesh.wait(2 * second());
    // Kill -9 of the owner.
    mesh.alive[0] = false;
    mesh.cut = None;
    mesh.kept_back.clear();
    mesh.views();
    mesh.wait(2 * second());
    // Somebody wants it.
    mesh.query(1, api_publish(&room, "[\"later\"]", None)).unwrap();
    assert_eq!(history(&mut mesh, 1, &room), ["[\"acked\"]", "[\"later\"]"]);
}

#[test]
fn a_stale_copy_that_is_offered_starts_no_term() {
    // A = 0, J = 1 (old backup), B = 2 (joins, the new backup), N = 3 (joins, the new owner).
    let mut mesh = Mesh::new(4, 1);
    let room = room_with(
        &mut mesh,
        &[
            (&[true, true, false, false], &[0, 1]),
            (&[true, true, true, false], &[0, 2, 1]),
            (&[true, true, true, true], &[3, 0, 2, 1]),
        ],
    );
    mesh.alive = vec![true, true, false, false];
    mesh.views();
    let member = mesh.client((0, 0), "bob");
    mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(member);
    mesh.query(0, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.alive[2] = true;
    // What the old backup says to the owner takes a while.
    mesh.cut = Some((1, 0));
    mesh.views();
    mesh.query(0, api_publish(&room, "[\"e\",2]", None)).unwrap();
    mesh.alive[3] = true;
    for n in [3, 1] {
        mesh.view_at(n);
    }
    mesh.settle();
    mesh.view_at(2);
    mesh.view_at(0);
    mesh.begin_query(0, 7, api_publish(&room, "[\"e\",3]", None));
    while let Some((to, e)) = mesh.queue.pop_front() {
        mesh.deliver(to, e);
    }
    mesh.settle();
    mesh.heal();
    mesh.wait(4 * second());
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
    assert_eq!(history(&mut mesh, 0, &room), ["[\"e\",1]", "[\"e\",2]", "[\"e\",3]"]);
}

#[test]
fn a_merge_keeps_what_was_acked_before_a_later_publish() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    let member = mesh.client((0, 0), "bob");
    mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    mesh.query(0, api_publish(&room, "[\"both\"]", None)).unwrap();
    for n in [0, 1] {
        mesh.alive[1 - n] = false;
        mesh.view_at(n);
        mesh.alive[1 - n] = true;
    }
    mesh.queue.clear();
    mesh.query(1, api_publish(&room, "[\"side\",1]", None)).unwrap();
    mesh.view_at(0);
    mesh.view_at(1);
    mesh.begin_query(1, 7, api_publish(&room, "[\"later\"]", None));
    mesh.wait(3 * second());
    assert_settled(&mesh, &room);
    let mut merged = history(&mut mesh, 1, &room);
    merged.sort();
    assert_eq!(merged, ["[\"both\"]", "[\"later\"]", "[\"side\",1]"]);
}

fn sessions_of(mesh: &mut Mesh, n: usize, uid: &str) -> usize {
    match mesh.query(n, Query::ExplainUser { product: "chat".into(), uid: uid.into() }) {
        Ok(Answer::User(facts)) => facts.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_goes_while_its_owner_is_dead_is_gone() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    let a = mesh.client((0, 0), &uid);
    mesh.alive[2] = false;
    // Nobody has noticed yet.
    mesh.gone(a);
    mesh.views();
    mesh.wait(600 * second());
    assert_eq!(sessions_of(&mut mesh, 1, &uid), 0);
}

#[test]
fn who_goes_while_its_session_moves_is_gone() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    mesh.alive[2] = false;
    mesh.views();
    let owner = mesh.owner_of_user(&uid);
    let edge = 1 - owner;
    let a = mesh.client((edge, 0), &uid);
    mesh.alive[2] = true;
    // The edge's view comes last.
    mesh.view_at(2);
    mesh.view_at(owner);
    mesh.settle();
    mesh.gone(a);
    mesh.views();
    mesh.wait(600 * second());
    assert_eq!(sessions_of(&mut mesh, 1, &uid), 0);
}

#[test]
fn an_emit_is_acked_when_it_is_safe() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    let a = mesh.client((0, 0), &uid);
    let placement = Placement::of_user("chat", &uid);
    let backup = mesh.view(0).ring.backup(placement).unwrap();
    let backup = mesh.nodes.iter().position(|n| *n == backup).unwrap();
    mesh.cut = Some((2, backup));
    mesh.begin_query(1 - backup, 5, emit(&uid, "[\"e\"]".into()));
    mesh.settle();
    let acked = mesh.answers.remove(&5);
    mesh.alive[2] = false;
    mesh.cut = None;
    mesh.kept_back.clear();
    mesh.views();
    mesh.wait(2 * second());
    let got = mesh.take(a);
    assert!(acked.is_none_or(|a| a.is_err()) || !got.is_empty(), "acked, and lost");
}

#[test]
fn an_owner_that_is_told_to_drop_steps_down() {
    // Two join at once: the first is the owner, the second its backup.
    let mut mesh = Mesh::new(4, 1);
    let room = room_with(&mut mesh, &[(&[true, true, false, false], &[0, 1]), (&[true; 4], &[2, 3])]);
    mesh.alive = vec![true, true, false, false];
    mesh.views();
    mesh.query(1, api_publish(&room, "[\"e\"]", None)).unwrap();
    mesh.alive = vec![true; 4];
    // The old owner's view comes last.
    for n in [2, 3, 1] {
        mesh.view_at(n);
    }
    mesh.settle();
    mesh.view_at(0);
    mesh.wait(30 * second());
    assert_settled(&mesh, &room);
}

#[test]
fn what_waits_for_the_backup_is_not_trimmed() {
    let limits = Limits { room_log_entries_max: 8, ..Limits::default() };
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let room = mesh.room_at(0);
    let a = mesh.client((0, 0), "bob");
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(a);
    mesh.cut = Some((0, 1));
    for n in 0..20 {
        mesh.begin_query(0, 100 + n, api_publish(&room, &format!("[\"e\",{n}]"), None));
    }
    mesh.settle();
    // The backup is dead, and dropped.
    mesh.alive[1] = false;
    mesh.cut = None;
    mesh.views();
    mesh.wait(second());
    let acked = mesh.answers.values().filter(|a| a.is_ok()).count();
    let got = mesh.take(a);
    assert_eq!((acked, events(&got).len()), (20, 20), "gaps {}", mesh.stats(|s| s.gaps_total));
}

#[test]
fn a_copy_of_what_has_ended_meanwhile_goes() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    let uid = mesh.user_at(0);
    let a = mesh.client((0, 0), &uid);
    mesh.query(0, api_publish(&room, "[\"e\"]", None)).unwrap();
    mesh.alive[1] = false;
    mesh.view_at(0);
    mesh.gone(a);
    mesh.wait(400 * second());
    assert!(owners(&mesh, &room).is_empty());
    mesh.alive[1] = true;
    mesh.nodes[1].incarnation = 2;
    mesh.views();
    mesh.wait(400 * second());
    assert_eq!(mesh.stats(|s| s.copies), 0);
}

#[test]
fn a_session_that_has_ended_is_none_when_its_owner_dies() {
    let mut mesh = Mesh::new(3, 1);
    let uid = (0..).map(|i| format!("u{i}")).find(|uid| {
        mesh.view(0).ring.replicas(Placement::of_user("chat", uid), 2) == [mesh.nodes[0], mesh.nodes[1]]
    });
    let uid = uid.unwrap();
    let a = mesh.client((2, 0), &uid);
    mesh.alive[1] = false;
    mesh.view_at(0);
    mesh.view_at(2);
    mesh.settle();
    mesh.gone(a);
    mesh.wait(10 * second());
    mesh.alive[1] = true;
    mesh.nodes[1].incarnation = 2;
    mesh.views();
    mesh.wait(400 * second());
    mesh.alive[0] = false;
    mesh.views();
    mesh.wait(400 * second());
    assert_eq!(sessions_of(&mut mesh, 1, &uid), 0);
}

#[test]
fn an_old_event_does_not_come_again_after_a_rebirth() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    mesh.alive[0] = false;
    mesh.views();
    mesh.query(1, api_publish(&room, "[\"old\"]", None)).unwrap();
    mesh.wait(100 * second());
    mesh.alive[0] = true;
    mesh.views();
    mesh.wait(30 * second());
    let a = mesh.client((1, 0), "bob");
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(a);
    // Node 0 pauses for some seconds, and is declared down.
    mesh.alive[0] = false;
    mesh.view_at(1);
    mesh.settle();
    mesh.say(a, &format!("42[\"publish\",\"{room}\",{{\"event\":\"new\",\"self\":true}}]"));
    mesh.alive[0] = true;
    mesh.nodes[0].incarnation = 2;
    mesh.views();
    mesh.wait(5 * second());
    let got = mesh.take(a);
    assert_eq!(events(&got), ["42[\"new\"]"], "old is from two minutes ago");
}

#[test]
fn an_emit_during_a_hand_over_reaches_its_user() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    mesh.alive[2] = false;
    mesh.views();
    let a = mesh.client((0, 0), &uid);
    mesh.alive[2] = true;
    mesh.view_at(2);
    mesh.view_at(1);
    // Owner and edge learn of it a moment later.
    mesh.begin_query(1, 5, emit(&uid, "[\"e\"]".into()));
    mesh.settle();
    mesh.view_at(0);
    mesh.wait(5 * second());
    let answer = mesh.answers.remove(&5);
    assert_eq!(mesh.take(a), ["42[\"e\"]"], "{answer:?}");
}

#[test]
fn a_draining_node_that_has_all_is_asked_first() {
    // A = 0, J = 1 (old backup, stale), B = 2 (the backup, drains).
    let mut mesh = Mesh::new(3, 1);
    let room = room_with(&mut mesh, &[(&[true, true, false], &[0, 1]), (&[true, true, true], &[0, 2, 1])]);
    mesh.alive[2] = false;
    mesh.views();
    mesh.query(1, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.alive[2] = true;
    mesh.cut = Some((1, 0));
    mesh.views();
    mesh.query(2, api_publish(&room, "[\"e\",2]", None)).unwrap();
    // B drains; the whole copy for J is under way when A dies.
    mesh.cut = Some((0, 1));
    mesh.draining = Some(2);
    mesh.views();
    mesh.alive[0] = false;
    mesh.cut = None;
    mesh.kept_back.clear();
    mesh.view_at(1);
    mesh.view_at(2);
    mesh.begin_query(2, 7, api_publish(&room, "[\"e\",3]", None));
    mesh.wait(4 * second());
    assert!(mesh.answers.remove(&7).unwrap().is_ok());
    let got = history(&mut mesh, 1, &room);
    assert_eq!(got, ["[\"e\",1]", "[\"e\",2]", "[\"e\",3]"]);
}

#[test]
fn a_backup_that_was_given_another_owners_copy_gets_ours() {
    // The owner, its backup, and one that believes itself alone and has begun many terms.
    let mut mesh = Mesh::new(3, 1);
    let room = room_with(&mut mesh, &[(&[true; 3], &[0, 1, 2])]);
    mesh.alive = vec![false, false, true];
    mesh.view_at(2);
    for other in 0..4 {
        mesh.query(2, api_publish(&format!("other{other}"), "[\"e\"]", None)).unwrap();
    }
    let guest = mesh.client((2, 0), "carol");
    mesh.say(guest, &format!("421[\"join\",\"{room}\"]"));
    mesh.gone(guest);
    mesh.alive = vec![true, true, false];
    mesh.views();
    let member = mesh.client((0, 0), "bob");
    mesh.say(member, &format!("421[\"join\",\"{room}\"]"));
    assert_eq!(owners(&mesh, &room), [(0, true), (1, false)]);
    // It sees the backup again, before anybody sees everybody: it is to hand over to it.
    mesh.alive = vec![false, true, true];
    mesh.view_at(2);
    mesh.alive = vec![true; 3];
    mesh.settle();
    mesh.views();
    mesh.wait(5 * second());
    assert_settled(&mesh, &room);
    assert_eq!(mesh.stats(|s| s.to_hand_over), 0, "still offered");
}
