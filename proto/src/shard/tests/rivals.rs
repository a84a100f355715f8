//! One session with two transports: each side of a cut has given it one.

use super::recovery::Carrier;
use super::*;

/// Four nodes in two sides, `[0, 0, 1, 1]`; the session's owner is node 2, its backup node 0.
fn cut() -> (Mesh, Carrier) {
    let mut mesh = Mesh::new(4, 1);
    let is_owned_at_2_and_0 = |uid: &String| {
        mesh.view(0).ring.replicas(Placement::of_user("chat", uid), 2)[..] == [mesh.nodes[2], mesh.nodes[0]]
    };
    let uid = (0..).map(|i| format!("user{i}")).find(is_owned_at_2_and_0).unwrap();
    let carrier = Carrier::new(&mut mesh, (3, 0), &uid);
    mesh.seen = Some((0..4).map(|n| (n / 2 * 2..n / 2 * 2 + 2).map(|other| (other, 1)).collect()).collect());
    mesh.sides = vec![0, 0, 1, 1];
    (0..4).for_each(|n| mesh.show(n));
    mesh.wait(second());
    (mesh, carrier)
}

/// All see all again, as the lives that they had.
fn mend(mesh: &mut Mesh) {
    mesh.sides = vec![0; 4];
    for n in 0..4 {
        mesh.seen.as_mut().unwrap()[n] = (0..4).map(|other| (other, 1)).collect();
        mesh.show(n);
    }
    mesh.wait(second());
}

/// The client that has been at `left` is at `carrier.client` now, whatever either side has counted.
fn stays(mesh: &mut Mesh, carrier: &mut Carrier, left: Client) {
    assert!(carrier.recovered);
    mend(mesh);
    carrier.read(mesh);
    mesh.wait(second());
    assert_eq!(mesh.closed(carrier.client), None);
    emit_to(mesh, carrier, 100);
    assert_eq!(carrier.seen(mesh), [100]);
    carrier.join(mesh, "late");
    mesh.query(0, api_publish("late", "[\"e\",1]", None)).unwrap();
    assert_eq!(carrier.seen(mesh), [1]);
    // Nobody answers there.
    for _ in 0..50 {
        mesh.wait(second());
        carrier.read(mesh);
    }
    assert!(mesh.closed(left).is_some());
    assert_eq!(mesh.stats(|s| s.sessions), 1);
    mesh.gone(carrier.client);
    carrier.come_back(mesh, (1, 0));
    assert!(carrier.recovered);
    mesh.query(0, api_publish("late", "[\"e\",2]", None)).unwrap();
    assert_eq!(carrier.seen(mesh), [2]);
}

fn emit_to(mesh: &mut Mesh, carrier: &Carrier, number: i64) {
    let answer = mesh.query(0, emit(&carrier.uid, format!("[\"own\",{number}]")));
    assert_eq!(answer, Ok(Answer::Done { sessions: 1 }));
}

#[test]
fn a_client_stays_at_the_side_it_has_gone_to() {
    for is_noticed in [false, true] {
        let (mut mesh, mut carrier) = cut();
        let left = carrier.client;
        if is_noticed {
            mesh.gone(left);
        }
        carrier.come_back(&mut mesh, (1, 0));
        if is_noticed {
            mesh.closed.insert((left.at, left.ix), CloseCode::Normal);
        }
        stays(&mut mesh, &mut carrier, left);
    }
}

#[test]
fn a_client_that_was_at_both_sides_stays_where_it_is() {
    for there_and_back in [1, 2, 3] {
        let (mut mesh, mut carrier) = cut();
        let mut left = carrier.client;
        for round in 0..there_and_back {
            for at in [(1, 0), (3, 0)] {
                left = carrier.client;
                carrier.come_back(&mut mesh, at);
                assert!(carrier.recovered, "round {round}");
            }
        }
        stays(&mut mesh, &mut carrier, left);
    }
}

#[test]
fn a_client_that_asked_more_often_at_the_other_side_stays_where_it_is() {
    for last in [(1, 0), (3, 0)] {
        let (mut mesh, mut carrier) = cut();
        let mut left = carrier.client;
        let other = if last == (1, 0) { [(2, 0), (3, 0)] } else { [(0, 0), (1, 0)] };
        for at in other.into_iter().chain(other).chain([last]) {
            left = carrier.client;
            carrier.come_back(&mut mesh, at);
            assert!(carrier.recovered);
        }
        stays(&mut mesh, &mut carrier, left);
    }
}

#[test]
fn what_the_other_side_had_for_a_client_does_not_stand_for_what_it_has() {
    let (mut mesh, mut carrier) = cut();
    // Emitted at the side where it is not; joined at the one where it is. Both are the first of its own log.
    let answer = mesh.query(0, emit(&carrier.uid, "[\"own\",7]".into()));
    assert_eq!(answer, Ok(Answer::Done { sessions: 1 }));
    carrier.join(&mut mesh, "here");
    mend(&mut mesh);
    carrier.read(&mut mesh);
    let got = mesh.ask(carrier.client, "428[\"publish\",\"here\",{\"event\":\"e\",\"self\":true},3]");
    assert!(got.iter().any(|text| text.starts_with("438[{\"ok\":true")), "{got:?}");
}
