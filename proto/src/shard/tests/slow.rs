//! Clients that take too little or send too much.

use super::*;

/// Two members of a room at one edge, the second of which does not drain.
fn with_slow_member(limits: Limits) -> (Mesh, Client, Client) {
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let (fast, slow) = (mesh.client((0, 0), "fast"), mesh.client((0, 0), "slow"));
    mesh.say(fast, "42[\"join\",\"r\"]");
    mesh.say(slow, "42[\"join\",\"r\"]");
    mesh.left_over(slow, 40_000);
    (mesh, fast, slow)
}

fn publish_big(mesh: &mut Mesh, client: Client, number: usize) {
    let filler = "x".repeat(20_000);
    mesh.say(
        client,
        &format!("42[\"publish\",\"r\",{{\"event\":\"e\",\"self\":true}},{number},\"{filler}\"]"),
    );
}

#[test]
fn a_client_that_does_not_drain_falls_behind_and_catches_up_in_order() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    for number in 0..8 {
        publish_big(&mut mesh, fast, number);
    }
    assert_eq!(events(&mesh.take(fast)).len(), 8);
    let mut got = mesh.take(slow);
    assert!(got.len() < 8 && mesh.stats(|s| s.behind_total) > 0);
    mesh.left_over(slow, 0);
    got.extend(mesh.take(slow));
    let numbers: Vec<&str> = events(&got).iter().map(|text| &text["42[\"e\",".len()..][..1]).collect();
    assert_eq!(numbers.concat(), "01234567");
    assert_eq!(mesh.closed(slow), None);
}

#[test]
fn a_client_that_the_log_has_left_is_closed_and_nobody_else() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    for number in 0..60 {
        publish_big(&mut mesh, fast, number);
    }
    mesh.left_over(slow, 0);
    assert_eq!(mesh.closed(slow), Some(CloseCode::TooSlow));
    assert_eq!(mesh.closed(fast), None);
}

#[test]
fn a_client_for_whom_nothing_drains_is_closed() {
    let (mut mesh, _, slow) = with_slow_member(Limits::default());
    mesh.wait(second() * 44);
    assert_eq!(mesh.closed(slow), None);
    mesh.wait(second() * 2);
    assert_eq!(mesh.closed(slow), Some(CloseCode::TooSlow));
}

#[test]
fn a_ping_that_waits_in_the_queue_is_not_held_against_the_client() {
    let mut mesh = Mesh::new(1, 1);
    let slow = mesh.client((0, 0), "slow");
    mesh.wait(second() * 20);
    mesh.left_over(slow, 40_000);
    mesh.wait(second() * 35);
    assert_eq!(mesh.closed(slow), None);
    mesh.left_over(slow, 0);
    mesh.wait(second() * 19);
    assert_eq!(mesh.closed(slow), None);
    mesh.wait(second() * 2);
    assert_eq!(mesh.closed(slow), Some(CloseCode::Timeout), "it reads, but never answers");
}

#[test]
fn tails_over_their_common_bound_drop_the_oldest_of_all() {
    let limits = Limits { tails_bytes_max: 50_000, ..Limits::default() };
    let (mut mesh, fast, _) = with_slow_member(limits);
    for number in 0..9 {
        publish_big(&mut mesh, fast, number);
    }
    let tails = mesh.shards[&(0, 0)].stats().tail_bytes;
    assert!((20_000..=50_000).contains(&tails), "{tails}");
}

#[test]
fn a_client_that_is_behind_can_leave_its_namespace() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    (0..3).for_each(|number| publish_big(&mut mesh, fast, number));
    assert!(mesh.stats(|s| s.behind_total) > 0);
    mesh.say(slow, "41");
    mesh.left_over(slow, 0);
    mesh.take(slow);
    mesh.say(slow, "40");
    assert!(mesh.take(slow)[0].starts_with("40{"));
}

#[test]
fn a_client_that_is_behind_can_be_disconnected_by_a_backend() {
    let (mut mesh, fast, slow) = with_slow_member(Limits::default());
    (0..3).for_each(|number| publish_big(&mut mesh, fast, number));
    // Long after the last change of the ring: what is not here is nowhere.
    mesh.wait(3 * second());
    let done = mesh.query(1, user("slow", Command::Disconnect { close: false }));
    assert_eq!(done, Ok(Answer::Done { sessions: 1 }));
    assert_eq!(
        mesh.query(1, user("slow", Command::Disconnect { close: false })),
        Ok(Answer::Done { sessions: 0 })
    );
    mesh.left_over(slow, 0);
    assert!(mesh.take(slow).contains(&"41".to_owned()));
}

#[test]
fn what_is_owed_to_one_client_is_not_forgotten_when_its_queue_fills_within_a_turn() {
    let mut mesh = Mesh::new(1, 1);
    let a = mesh.client((0, 0), "alice");
    let filler = "x".repeat(30_000);
    for number in 0..4 {
        mesh.shards
            .get_mut(&(0, 0))
            .unwrap()
            .handle(mesh.now, Input::Query(number, emit("alice", format!("[\"e\",{number},\"{filler}\"]"))));
    }
    // The driver writes all of it at once and so has nothing left over to report.
    mesh.drain((0, 0));
    mesh.settle();
    let reached = mesh.answers.values().filter(|a| **a == Ok(Answer::Done { sessions: 1 })).count();
    assert!(reached >= 3, "{:?}", mesh.answers);
    assert_eq!(mesh.take(a).len(), reached);
}

#[test]
fn too_much_unconfirmed_pauses_reading_until_the_owner_answers() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    let a = mesh.client((0, 0), &uid);
    mesh.cut = Some((0, 1));
    for _ in 0..256 {
        mesh.say(a, "42[\"rooms\"]");
    }
    assert!(mesh.is_paused(a));
    mesh.heal();
    assert!(!mesh.is_paused(a));
}

#[test]
fn a_client_whose_session_ends_while_it_waits_is_read_from_again() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    let a = mesh.client((0, 0), &uid);
    mesh.cut = Some((0, 1));
    for _ in 0..256 {
        mesh.say(a, "42[\"rooms\"]");
    }
    mesh.say(a, "41");
    assert!(!mesh.is_paused(a));
}

#[test]
fn a_client_that_sends_too_fast_is_read_more_slowly() {
    let mut mesh = Mesh::new(1, 1);
    let a = mesh.client((0, 0), "alice");
    for _ in 0..1_001 {
        mesh.say(a, "42[\"rooms\"]");
    }
    assert!(mesh.is_paused(a));
    mesh.wait(second());
    assert!(!mesh.is_paused(a) && mesh.closed(a).is_none());
}

#[test]
fn a_client_that_asks_on_and_takes_no_answers_is_closed() {
    let mut mesh = Mesh::new(1, 1);
    let plain = mesh.plain((0, 0), "bob");
    mesh.left_over(plain, 60_000);
    for _ in 0..1_000 {
        if mesh.closed(plain).is_none() {
            mesh.say(plain, "{\"type\":\"ping\"}");
        }
    }
    assert_eq!(mesh.closed(plain), Some(CloseCode::TooSlow));
}

#[test]
fn a_client_that_asks_owners_and_takes_no_answers_is_not_read_from() {
    let (mut mesh, _, slow) = with_slow_member(Limits::default());
    mesh.left_over(slow, 64 << 10);
    for ack in 0..256 {
        assert!(!mesh.is_paused(slow), "{ack}");
        mesh.say(slow, &format!("42{ack}[\"rooms\"]"));
    }
    assert!(mesh.is_paused(slow) && mesh.closed(slow).is_none());
    mesh.take(slow);
    mesh.left_over(slow, 0);
    let acks: Vec<String> =
        (0..256).map(|ack| format!("43{ack}[{{\"ok\":true,\"rooms\":[\"r\"]}}]")).collect();
    assert_eq!(mesh.take(slow), acks);
    assert!(!mesh.is_paused(slow));
}

#[test]
fn answers_far_larger_than_what_asks_for_them_are_bounded() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    let slow = mesh.client((0, 0), &uid);
    for room in 0..100 {
        mesh.say(slow, &format!("42[\"join\",\"{room}{}\"]", "x".repeat(250)));
    }
    mesh.take(slow);
    // One after the other: no more is asked for than its queue holds.
    mesh.left_over(slow, 64 << 10);
    (0..30).for_each(|_| mesh.say(slow, "421[\"rooms\"]"));
    assert_eq!(mesh.closed(slow), None);
    mesh.left_over(slow, 0);
    assert_eq!(mesh.take(slow).len(), 30);
    // All under way at once.
    mesh.cut = Some((1, 0));
    mesh.left_over(slow, 64 << 10);
    (0..60).for_each(|_| mesh.say(slow, "421[\"rooms\"]"));
    mesh.heal();
    assert_eq!(mesh.closed(slow), Some(CloseCode::TooSlow));
}
