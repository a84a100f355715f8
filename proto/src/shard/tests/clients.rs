//! Clients of both protocols: connecting, rooms, order, limits per user.

use super::*;

#[test]
fn clients_of_both_protocols_connect_and_are_welcomed() {
    let mut mesh = Mesh::new(3, 2);
    mesh.client((0, 0), "alice");
    let plain = mesh.plain((1, 1), "bob");
    let got = mesh.take(plain);
    assert!(got[0].starts_with("{\"type\":\"welcome\"") && got[0].contains("\"uid\":\"bob\""), "{got:?}");
    assert_eq!(mesh.stats(|s| s.sessions), 2);
}

#[test]
fn refusals_speak_the_clients_protocol() {
    let mut mesh = Mesh::new(1, 1);
    let client = mesh.open((0, 0), ClientProtocol::SocketIo, Err(refusal()));
    mesh.take(client);
    assert!(mesh.ask(client, "40")[0].contains("\"data\":{\"code\":\"uid_required\"}"));
    assert_eq!(mesh.closed(client), None);
    let plain = mesh.open((0, 0), ClientProtocol::Plain, Err(refusal()));
    assert!(mesh.take(plain)[0].contains("uid_required"));
    assert_eq!(mesh.closed(plain), Some(CloseCode::Refused));
}

#[test]
fn a_second_connect_and_an_event_before_the_first_close() {
    let mut mesh = Mesh::new(1, 1);
    let twice = mesh.client((0, 0), "alice");
    mesh.say(twice, "40");
    assert_eq!(mesh.closed(twice), Some(CloseCode::ProtocolError));
    let early = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("bob"));
    mesh.say(early, "42[\"rooms\"]");
    assert_eq!(mesh.closed(early), Some(CloseCode::ProtocolError));
    mesh.gone(twice);
    mesh.gone(early);
    assert_eq!(mesh.stats(|s| s.sessions + s.clients), 0);
}

#[test]
fn silence_is_timed_out_and_answers_keep_a_client() {
    let mut mesh = Mesh::new(1, 1);
    let (lively, silent) = (mesh.client((0, 0), "a"), mesh.client((0, 0), "b"));
    let never = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("c"));
    mesh.wait(second() * 26);
    assert_eq!(mesh.closed(never), Some(CloseCode::Timeout));
    assert_eq!(mesh.take(lively), ["2"]);
    mesh.say(lively, "3");
    mesh.wait(second() * 20);
    assert_eq!(mesh.closed(silent), Some(CloseCode::Timeout));
    assert_eq!(mesh.closed(lively), None);
}

#[test]
fn requests_are_answered_and_reserved_names_reach_no_log() {
    let mut mesh = Mesh::new(3, 1);
    let a = mesh.client((0, 0), "alice");
    assert!(mesh.ask(a, "421[\"publish\",\"r\",\"e\"]")[0].contains("\"code\":\"not_member\""));
    assert_eq!(mesh.ask(a, "422[\"join\",\"r\"]"), ["432[{\"ok\":true}]"]);
    assert!(mesh.ask(a, "423[\"rooms\"]")[0].contains("[\"r\"]"));
    assert!(mesh.ask(a, "424[\"publish\",\"r\",\"disconnect\"]")[0].contains("\"ok\":false"));
    assert_eq!(mesh.stats(|s| s.publishes_total), 0);
    assert!(mesh.ask(a, "425[\"publish\",\"r\",\"e\"]")[0].contains("\"pos\""));
    assert_eq!(mesh.ask(a, "426[\"leave\",\"r\"]"), ["436[{\"ok\":true}]"]);
    assert!(mesh.ask(a, "427[\"publish\",\"r\",\"e\"]")[0].contains("\"code\":\"not_member\""));
}

#[test]
fn a_publisher_sees_its_own_event_before_the_ack() {
    let mut mesh = Mesh::new(3, 2);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.plain((1, 1), "bob"));
    mesh.say(a, "421[\"join\",\"r\"]");
    mesh.say(b, "{\"type\":\"join\",\"id\":1,\"room\":\"r\"}");
    mesh.take(a);
    mesh.take(b);
    let got = mesh.ask(a, "422[\"publish\",\"r\",{\"event\":\"e\",\"self\":true,\"id\":\"x\"},1]");
    assert_eq!(got[0], "42[\"e\",1]");
    assert!(got[1].starts_with("432[{\"ok\":true,\"pos\""), "{got:?}");
    assert!(mesh.take(b)[0].contains("\"event\":\"e\",\"args\":[1]"));
    let again = mesh.ask(a, "423[\"publish\",\"r\",{\"event\":\"e\",\"self\":true,\"id\":\"x\"},1]");
    assert!(again.len() == 1 && again[0].starts_with("433[{\"ok\":true"), "{again:?}");
    assert!(mesh.take(b).is_empty());
}

/// An answer whose event never comes is given after a second; twenty of them took twenty.
#[test]
fn answers_that_wait_for_a_room_wait_together() {
    let mut mesh = Mesh::new(3, 1);
    let at = |mesh: &Mesh, placement, first: [usize; 2]| {
        mesh.view(0).ring.replicas(placement, 2) == first.map(|n| mesh.nodes[n])
    };
    let names = |kind| (0..).map(move |i| format!("{kind}{i}"));
    let room = names("room").find(|room| at(&mesh, room_key(room).placement(), [1, 2])).unwrap();
    let uid = names("user").find(|uid| at(&mesh, Placement::of_user("chat", uid), [2, 1])).unwrap();
    let a = mesh.client((0, 0), &uid);
    mesh.say(a, &format!("420[\"join\",\"{room}\"]"));
    mesh.take(a);
    // Nothing comes from the room's owner to the edge; acks come from the session's.
    mesh.cut = Some((1, 0));
    for id in 1..=20 {
        mesh.say(a, &format!("42{id}[\"publish\",\"{room}\",\"e\"]"));
    }
    mesh.wait(second() / 2);
    assert_eq!(mesh.take(a), [""; 0]);
    mesh.wait(second() / 2);
    assert_eq!(mesh.take(a).len(), 20);
}

#[test]
fn members_of_an_excepted_room_are_left_out() {
    let mut mesh = Mesh::new(2, 1);
    let [a, b, c] = [(0, "a"), (0, "b"), (1, "c")].map(|(n, uid)| mesh.client((n, 0), uid));
    for client in [a, b, c] {
        mesh.say(client, "42[\"join\",\"r\"]");
    }
    mesh.say(c, "42[\"join\",\"out\"]");
    mesh.say(a, "42[\"publish\",\"r\",{\"event\":\"e\",\"except\":[\"out\"]}]");
    assert_eq!(mesh.take(b), ["42[\"e\"]"]);
    assert!(mesh.take(c).is_empty() && mesh.take(a).is_empty());
}

#[test]
fn all_members_see_one_order() {
    let mut mesh = Mesh::new(3, 2);
    let clients: Vec<Client> =
        (0..6).map(|i| mesh.client((i % 3, u16::try_from(i / 3).unwrap()), &format!("u{i}"))).collect();
    for client in &clients {
        mesh.say(*client, "42[\"join\",\"r\"]");
    }
    for round in 0..20 {
        for (i, client) in clients.iter().enumerate() {
            mesh.send(
                *client,
                &format!("42[\"publish\",\"r\",{{\"event\":\"e\",\"self\":true}},{i},{round}]"),
            );
        }
    }
    mesh.settle();
    let first = mesh.take(clients[0]);
    assert_eq!(events(&first).len(), 120);
    assert!(clients[1..].iter().all(|client| mesh.take(*client) == first));
}

#[test]
fn the_seventeenth_session_of_a_user_ends_the_oldest() {
    let mut mesh = Mesh::new(3, 1);
    let clients: Vec<Client> = (0..17).map(|i| mesh.client((i % 3, 0), "alice")).collect();
    assert_eq!(mesh.take(clients[0]), ["41"]);
    assert_eq!(mesh.closed(clients[0]), Some(CloseCode::Ended));
    assert!(clients[1..].iter().all(|client| mesh.closed(*client).is_none()));
    assert_eq!(mesh.stats(|s| s.sessions), 16);
}
