//! Several namespaces over one transport: each a session of its own.

use super::*;

fn mesh(nodes: usize, shards: u16) -> Mesh {
    let rules = ProductRules {
        namespaces: Namespaces::new(["/", "/admin", "/team-*"]),
        ..ProductRules::open("chat")
    };
    Mesh::with(nodes, shards, Limits::default(), rules)
}

fn sid_of(connect: &str) -> String {
    connect.split('"').nth(3).unwrap().to_owned()
}

#[test]
fn each_namespace_is_a_session_with_rooms_of_its_own() {
    let mut mesh = mesh(3, 2);
    let a = mesh.client((0, 0), "alice");
    let admin = mesh.ask(a, "40/admin,{\"token\":1}");
    assert!(admin[0].starts_with("40/admin,{\"sid\""), "{admin:?}");
    let team = mesh.ask(a, "40/team-7,");
    assert_ne!(sid_of(&admin[0]), sid_of(&team[0]));
    assert_eq!(mesh.stats(|s| s.sessions), 3);
    assert_eq!(mesh.ask(a, "42/admin,1[\"join\",\"r\"]"), ["43/admin,1[{\"ok\":true}]"]);
    assert!(mesh.ask(a, "421[\"publish\",\"r\",\"e\"]")[0].contains("not_member"));
    let b = mesh.client((1, 0), "bob");
    mesh.say(b, "40/admin,");
    mesh.say(b, "42/admin,1[\"join\",\"r\"]");
    mesh.take(b);
    let got = mesh.ask(b, "42/admin,2[\"publish\",\"r\",\"e\",1]");
    assert!(got[0].starts_with("43/admin,2[{\"ok\":true"), "{got:?}");
    assert_eq!(mesh.take(a), ["42/admin,[\"e\",1]"]);
}

#[test]
fn what_the_product_does_not_have_is_refused_and_the_client_stays() {
    let mut mesh = mesh(1, 1);
    let a = mesh.client((0, 0), "alice");
    for name in ["/nope", "/adminx", "/team", ""] {
        if !name.is_empty() {
            let refused = format!("44{name},{{\"message\":\"Invalid namespace\"}}");
            assert_eq!(mesh.ask(a, &format!("40{name},")), [refused]);
        }
    }
    assert_eq!(mesh.ask(a, "421[\"rooms\"]").len(), 1);
    mesh.say(a, "42/admin,[\"rooms\"]");
    assert_eq!(mesh.closed(a), Some(CloseCode::ProtocolError), "an event before its CONNECT");
}

#[test]
fn only_so_many_namespaces_for_one_client() {
    let mut mesh = mesh(1, 1);
    let a = mesh.client((0, 0), "alice");
    for n in 1..16 {
        assert!(mesh.ask(a, &format!("40/team-{n},"))[0].starts_with("40/team-"));
    }
    mesh.say(a, "40/team-16,");
    assert_eq!(mesh.closed(a), Some(CloseCode::Policy));
}

#[test]
fn one_namespace_ends_and_the_others_go_on() {
    let mut mesh = mesh(2, 2);
    let a = mesh.client((0, 0), "alice");
    mesh.say(a, "40/admin,");
    mesh.say(a, "40/team-1,");
    mesh.take(a);
    mesh.say(a, "41/admin,");
    assert_eq!(mesh.closed(a), None);
    assert_eq!(mesh.stats(|s| s.sessions), 2);
    assert!(mesh.ask(a, "42/team-1,1[\"rooms\"]")[0].starts_with("43/team-1,1["));
    assert!(
        mesh.ask(a, "40/admin,")[0].starts_with("40/admin,{"),
        "it may come back over the same transport"
    );
    mesh.gone(a);
    assert_eq!(mesh.stats(|s| s.sessions + s.clients), 0);
}

#[test]
fn a_backend_that_closes_the_transport_tells_every_namespace() {
    let mut mesh = mesh(2, 1);
    let a = mesh.client((0, 0), "alice");
    let admin = sid_of(&mesh.ask(a, "40/admin,")[0]);
    let sid = crate::id::SocketSid::from_text(&admin).unwrap();
    let end = |close| Query::Session { product: "chat".into(), sid, command: Command::Disconnect { close } };
    mesh.query(1, end(true)).unwrap();
    assert_eq!(mesh.take(a), ["41", "41/admin,"]);
    assert_eq!(mesh.closed(a), Some(CloseCode::Ended));
}

#[test]
fn the_bound_of_a_user_counts_each_namespace_alone() {
    let mut mesh = mesh(1, 1);
    let clients: Vec<Client> = (0..16).map(|_| mesh.client((0, 0), "alice")).collect();
    for &client in &clients {
        mesh.say(client, "40/admin,");
    }
    assert!(clients.iter().all(|client| mesh.closed(*client).is_none()));
    let one_more = mesh.client((0, 0), "alice");
    assert_eq!(mesh.closed(clients[0]), Some(CloseCode::Ended));
    assert_eq!(mesh.closed(one_more), None);
}

#[test]
fn a_slow_client_gets_everything_of_every_namespace_in_order() {
    let mut mesh = mesh(2, 1);
    let (a, b) = (mesh.client((0, 0), "alice"), mesh.client((1, 0), "bob"));
    for client in [a, b] {
        mesh.say(client, "421[\"join\",\"r\"]");
        mesh.say(client, "40/admin,");
        mesh.say(client, "42/admin,1[\"join\",\"r\"]");
        mesh.take(client);
    }
    mesh.left_over(a, 70_000);
    for n in 0..20 {
        mesh.say(b, &format!("422[\"publish\",\"r\",\"m\",{n}]"));
        mesh.say(b, &format!("42/admin,2[\"publish\",\"r\",\"m\",{n}]"));
    }
    assert!(mesh.take(a).is_empty());
    mesh.left_over(a, 0);
    let got = mesh.take(a);
    for begin in ["42[\"m\"", "42/admin,[\"m\""] {
        let of: Vec<&String> = got.iter().filter(|text| text.starts_with(begin)).collect();
        let expected: Vec<String> = (0..20).map(|n| format!("{begin},{n}]")).collect();
        assert!(of.iter().map(|text| text.as_str()).eq(expected.iter().map(String::as_str)), "{got:?}");
    }
}
