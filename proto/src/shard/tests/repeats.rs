//! What is repeated because its outcome was lost: carried out once, answered once.

use super::*;
use crate::wire::{SessionFacts, SessionToEdge};

/// Two nodes: the client at the first, in a room; its owner at the second.
fn with_member() -> (Mesh, Client, String, String) {
    let mut mesh = Mesh::new(2, 1);
    let (uid, room) = (mesh.user_at(1), mesh.room_at(0));
    let a = mesh.client((0, 0), &uid);
    mesh.say(a, &format!("420[\"join\",\"{room}\"]"));
    mesh.take(a);
    (mesh, a, uid, room)
}

fn facts(mesh: &mut Mesh, uid: &str) -> SessionFacts {
    let query = Query::ExplainUser { product: "chat".into(), uid: uid.into() };
    match mesh.query(1, query) {
        Ok(Answer::User(facts)) => facts[0].clone(),
        other => panic!("{other:?}"),
    }
}

fn is_done(envelope: &Envelope) -> bool {
    matches!(envelope.body, Body::SessionToEdge(SessionToEdge::Done { .. }))
}

#[test]
fn an_owner_that_dies_between_the_commit_and_done_leaves_one_event_and_one_ack() {
    let mut mesh = Mesh::new(3, 1);
    let (uid, room) = (mesh.user_at(2), mesh.room_at(1));
    let (a, b) = (mesh.client((0, 0), &uid), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("420[\"join\",\"{room}\"]"));
        mesh.take(client);
    }
    mesh.cut = Some((2, 0));
    let publish = format!("421[\"publish\",\"{room}\",{{\"event\":\"e\",\"self\":true}},1]");
    assert_eq!(mesh.ask(a, &publish), ["42[\"e\",1]"], "published, not answered");
    assert!(mesh.kept_back.iter().any(|(_, envelope)| is_done(envelope)));
    mesh.alive[2] = false;
    mesh.views();
    mesh.wait(second());
    let got = mesh.take(a);
    assert!(got.len() == 1 && got[0].starts_with("431[{\"ok\":true,\"pos\""), "{got:?}");
    assert_eq!(mesh.take(b), ["42[\"e\",1]"]);
}

#[test]
fn a_leave_and_a_join_that_are_repeated_do_not_leave_again() {
    let (mut mesh, a, uid, room) = with_member();
    let before = facts(&mut mesh, &uid).own_seq;
    mesh.cut = Some((1, 0));
    mesh.say(a, &format!("421[\"leave\",\"{room}\"]"));
    mesh.say(a, &format!("422[\"join\",\"{room}\"]"));
    mesh.reset();
    mesh.wait(second());
    assert_eq!(mesh.take(a), ["431[{\"ok\":true}]", "432[{\"ok\":true}]"]);
    assert_eq!(facts(&mut mesh, &uid).own_seq, before + 2, "one leave and one join");
    mesh.query(0, api_publish(&room, "[\"e\"]", None)).unwrap();
    assert_eq!(mesh.take(a), ["42[\"e\"]"]);
}

#[test]
fn a_publish_repeated_after_a_leave_is_judged_as_it_was() {
    for by_backend in [false, true] {
        let (mut mesh, a, uid, room) = with_member();
        mesh.cut = Some((1, 0));
        mesh.say(a, &format!("421[\"publish\",\"{room}\",\"e\"]"));
        if by_backend {
            mesh.begin_query(1, 9, user(&uid, Command::Leave(room.as_str().into())));
            mesh.settle();
        } else {
            mesh.say(a, &format!("42[\"leave\",\"{room}\"]"));
        }
        mesh.reset();
        mesh.wait(second());
        let got = mesh.take(a);
        assert!(got.len() == 1 && got[0].starts_with("431[{\"ok\":true,\"pos\""), "{got:?}");
        let got = mesh.ask(a, &format!("422[\"publish\",\"{room}\",\"e\"]"));
        assert!(got[0].contains("not_member"), "{got:?}");
    }
}

#[test]
fn a_done_that_is_repeated_does_not_ack_twice() {
    let (mut mesh, a, ..) = with_member();
    mesh.send(a, "421[\"rooms\"]");
    let mut repeated = 0;
    while let Some((to, envelope)) = mesh.queue.pop_front() {
        if is_done(&envelope) {
            repeated += 1;
            mesh.deliver(to, envelope.clone());
        }
        mesh.deliver(to, envelope);
    }
    assert_eq!(repeated, 1);
    assert_eq!(mesh.take(a).len(), 1);
    assert_eq!(mesh.ask(a, "422[\"rooms\"]").len(), 1);
}

#[test]
fn numbers_go_on_when_an_edge_is_reborn() {
    let (mut mesh, a, ..) = with_member();
    let sent = |mesh: &mut Mesh| {
        mesh.send(a, "42[\"rooms\"]");
        let first = mesh.queue.iter().find_map(|(_, envelope)| match &envelope.body {
            Body::ToSession(ToSession::Inbound { first, .. }) => Some(*first),
            _ => None,
        });
        mesh.settle();
        first.unwrap()
    };
    let before = sent(&mut mesh);
    mesh.nodes[0].incarnation = 2;
    mesh.views();
    mesh.wait(second());
    assert_eq!(sent(&mut mesh), before + 1);
}

#[test]
fn a_join_that_is_repeated_after_a_backends_leave_does_not_join_again() {
    let (mut mesh, a, uid, _) = with_member();
    let room = format!("{}2", mesh.room_at(0));
    mesh.cut = Some((1, 0));
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.begin_query(1, 9, user(&uid, Command::Leave(room.as_str().into())));
    mesh.settle();
    mesh.reset();
    mesh.wait(second());
    assert_eq!(mesh.take(a), ["431[{\"ok\":true}]"]);
    assert_eq!(facts(&mut mesh, &uid).rooms, 1);
    assert!(!mesh.ask(a, "422[\"rooms\"]")[0].contains(&room));
}
