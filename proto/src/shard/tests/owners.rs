//! Owners that die, move, bounce or are cut off.

use super::*;

#[test]
fn a_room_goes_on_when_its_owner_dies() {
    let mut mesh = Mesh::new(3, 2);
    let room = mesh.room_at(2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 1), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    for number in 0..5 {
        mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",{number}]"));
    }
    // Published into the dead node, and again to the new owner.
    mesh.alive[2] = false;
    mesh.say(a, &format!("429[\"publish\",\"{room}\",\"e\",5]"));
    assert!(mesh.take(a).is_empty());
    mesh.views();
    mesh.wait(second());
    let got = mesh.take(b);
    assert_eq!(events(&got).len(), 6, "{got:?}");
    assert!(mesh.take(a)[0].starts_with("439[{\"ok\":true"));
    mesh.say(b, &format!("42[\"publish\",\"{room}\",\"f\"]"));
    assert_eq!(mesh.take(a), ["42[\"f\"]"]);
}

#[test]
fn what_a_new_owner_took_before_the_edges_asked_reaches_them() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    // A busy old owner has high terms.
    for i in 0..40 {
        mesh.query(2, api_publish(&format!("other{i}"), "[\"e\"]", None)).unwrap();
    }
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",0]"));
    mesh.alive[2] = false;
    let new_owner = mesh.owner_of_room(&room);
    mesh.view_at(new_owner);
    mesh.query(new_owner, api_publish(&room, "[\"e\",1]", None)).unwrap();
    mesh.views();
    let got = mesh.take(b);
    assert_eq!(events(&got), ["42[\"e\",0]", "42[\"e\",1]"]);
    assert_eq!(events(&mesh.take(a)), ["42[\"e\",1]"]);
}

#[test]
fn a_session_goes_on_when_its_owner_dies() {
    let mut mesh = Mesh::new(3, 2);
    let uid = mesh.user_at(2);
    let (a, room) = (mesh.client((0, 0), &uid), mesh.room_at(1));
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(a);
    mesh.alive[2] = false;
    for number in 0..5 {
        mesh.say(
            a,
            &format!("42{number}[\"publish\",\"{room}\",{{\"event\":\"e\",\"self\":true}},{number}]"),
        );
    }
    assert!(mesh.take(a).is_empty());
    mesh.views();
    mesh.wait(second());
    let got = mesh.take(a);
    assert_eq!(events(&got).len(), 5, "{got:?}");
    assert_eq!(got.iter().filter(|text| text.starts_with("43")).count(), 5);
    assert!(mesh.ask(a, "428[\"rooms\"]")[0].contains(&room));
    assert_eq!(mesh.closed(a), None);
}

#[test]
fn a_bounce_is_asked_again_until_the_views_agree() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    let a = mesh.client((0, 0), "alice");
    mesh.alive[2] = false;
    mesh.view_at(0);
    if mesh.owner_of_room(&room) == 0 {
        mesh.view_at(1);
    }
    mesh.settle();
    mesh.say(a, &format!("421[\"join\",\"{room}\"]"));
    mesh.view_at(1);
    mesh.wait(second());
    assert_eq!(mesh.take(a), ["431[{\"ok\":true}]"]);
}

#[test]
fn what_a_link_lost_is_repeated_and_done_once() {
    let mut mesh = Mesh::new(2, 2);
    let uid = mesh.user_at(1);
    let room = mesh.room_at(1);
    for cut in [(0, 1), (1, 0)] {
        let a = mesh.client((0, 1), &uid);
        mesh.say(a, &format!("420[\"join\",\"{room}\"]"));
        mesh.take(a);
        mesh.cut = Some(cut);
        for number in 1..4 {
            mesh.say(
                a,
                &format!("42{number}[\"publish\",\"{room}\",{{\"event\":\"e\",\"self\":true}},{number}]"),
            );
        }
        mesh.reset();
        mesh.wait(second());
        let got = mesh.take(a);
        assert_eq!(events(&got), ["42[\"e\",1]", "42[\"e\",2]", "42[\"e\",3]"], "{cut:?}");
        assert_eq!(got.iter().filter(|text| text.starts_with("43")).count(), 3, "{got:?}");
        mesh.gone(a);
    }
}

#[test]
fn a_subscribers_window_opens_again_whatever_the_size_of_entries() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(0);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, &format!("42[\"join\",\"{room}\"]"));
    }
    mesh.take(b);
    for size in [100, 5_000, 300_000, 10, 70_000, 400_000, 1] {
        for _ in 0..8 {
            mesh.say(a, &format!("42[\"publish\",\"{room}\",\"e\",\"{}\"]", "x".repeat(size)));
            mesh.left_over(b, 0);
        }
        let got = mesh.take(b);
        assert_eq!(events(&got).len(), 8, "entries of {size} bytes");
    }
}

#[test]
fn clients_of_a_reborn_node_go_on() {
    let mut mesh = Mesh::new(3, 2);
    let clients: Vec<Client> = (0..6).map(|i| mesh.client((i % 3, 0), &format!("u{i}"))).collect();
    for client in &clients {
        mesh.say(*client, "42[\"join\",\"r\"]");
    }
    mesh.nodes[1].incarnation = 2;
    mesh.views();
    mesh.wait(second());
    mesh.say(clients[1], "429[\"publish\",\"r\",{\"event\":\"e\",\"self\":true}]");
    mesh.wait(second());
    for client in &clients {
        let got = mesh.take(*client);
        assert_eq!(events(&got), ["42[\"e\"]"], "{client:?} {got:?}");
        assert_eq!(mesh.closed(*client), None);
    }
}

#[test]
fn words_of_a_peer_that_cannot_be_are_ignored() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(0);
    let from = Address { node: mesh.nodes[1], shard: ShardIx(0) };
    let odd = Address { node: mesh.nodes[1], shard: ShardIx(700) };
    let room = room_key(&mesh.room_at(0));
    let ids = IdKey::new(&ClusterKey::new([7; 32]));
    let identity = SessionIdentity {
        sid: ids.seal_sid(Placement::of_user("chat", &uid), 1),
        pid: ids.seal_pid(Placement::of_user("chat", &uid), 1, [0; 16]),
        product: "chat".into(),
        uid: uid.as_str().into(),
        namespace: "/".into(),
        resumable: false,
    };
    let shadow = |inbound_confirmed| Shadow {
        term: crate::id::Term::NONE,
        attached: [1, 0],
        inbound_confirmed,
        inbound_sent: inbound_confirmed,
        own_seq: 0,
        rooms: Vec::new(),
        everyone: None,
    };
    let attach = |edge, inbound| {
        let edge = EdgeRef { attachment: 1, edge, client: ClientIx(0) };
        let identity = identity.clone();
        let shadow = Box::new(shadow(inbound));
        Body::ToSession(ToSession::Attach { identity, edge, shadow, hello: None, instead_of: None })
    };
    let subscription = Subscription {
        room: room.clone(),
        after: crate::id::Cursor::NONE,
        at_head: true,
        asked: 0,
        term: crate::id::Term::NONE,
    };
    let cursor = crate::id::Cursor { term: crate::id::Term::NONE, seq: u64::MAX };
    for (from, body) in [
        (odd, Body::ToRoom(ToRoom::Subscribe(vec![subscription.clone()]))),
        (from, attach(odd, 0)),
        (from, attach(from, u64::MAX)),
        (from, Body::ToRoom(ToRoom::Subscribe(vec![subscription]))),
        (from, Body::ToRoom(ToRoom::Taken { room: room.clone(), cursor })),
    ] {
        mesh.input((0, 0), Input::Envelope(Envelope { from, to: To::Shard(ShardIx(0)), body }));
    }
    mesh.query(0, api_publish(room.room(), "[\"e\"]", None)).unwrap();
    assert_eq!(mesh.stats(|s| s.sessions), 0);
}
