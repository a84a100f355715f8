use super::super::journal::Fact::{Acked, Connected, Disconnected, Event, Joined, Sent};
use super::*;

/// One room of two members and one publisher, all by node 0, in since 10; messages 0..`sent` published
/// and acknowledged, one every 100 from 100 on.
fn story(sent: u32) -> Checker {
    let mut checker = Checker::new(Plan { rooms: 1, members: 2, publishers: 1 });
    let first = Connected { node: 0, resumed: Resumed::First };
    for fact in [first, Joined] {
        checker.take_publisher(10, 0, fact);
        checker.take_member(10, 0, fact);
        checker.take_member(10, 1, fact);
    }
    for number in 0..sent {
        let at = 100 + u64::from(number) * 100;
        checker.take_publisher(at, 0, Sent(number));
        checker.take_publisher(at + 5, 0, Acked(number));
    }
    checker
}

fn deliver(checker: &mut Checker, member: usize, numbers: &[u32]) {
    for &number in numbers {
        checker.take_member(101 + u64::from(number) * 100, member, Event(0, number));
    }
}

fn judged(checker: &mut Checker, hurt: &[Hurt]) -> Round {
    checker.cut(2_000);
    checker.judge(50, hurt)
}

const HURT: Hurt = Hurt { node: 0, from: 200, until: 1_000 };

#[test]
fn a_clean_round_is_clean() {
    let mut checker = story(3);
    deliver(&mut checker, 0, &[0, 1, 2]);
    deliver(&mut checker, 1, &[0, 1, 2]);
    checker.cut(2_000);
    assert!(checker.is_settled());
    let round = checker.judge(50, &[]);
    assert_eq!(round.broken(), "");
    assert_eq!((round.undisturbed, round.acked, round.delivered), (3, 3, 6));
}

#[test]
fn what_was_acknowledged_and_did_not_come_is_lost_once() {
    let mut checker = story(3);
    deliver(&mut checker, 0, &[0, 1, 2]);
    deliver(&mut checker, 1, &[0, 2]);
    checker.cut(2_000);
    assert!(!checker.is_settled());
    let round = judged(&mut checker, &[]);
    assert_eq!(round.broken(), "1 lost");
    assert!(round.sentences[0].contains("m1 never got p0#1"), "{:?}", round.sentences);
    assert_eq!(judged(&mut checker, &[]).broken(), "", "it is judged once");
}

#[test]
fn repeats_late_and_foreign_events_are_told_apart() {
    let mut checker = story(4);
    deliver(&mut checker, 0, &[0, 1, 1, 2, 3]);
    deliver(&mut checker, 1, &[0, 2, 1, 3]);
    checker.take_member(600, 1, Event(7, 0));
    let round = judged(&mut checker, &[]);
    // Late for its publisher, and in another order than the other member's.
    assert_eq!((round.doubled, round.reordered, round.foreign, round.lost), (1, 2, 1, 0));
}

#[test]
fn what_was_under_way_when_a_publishers_edge_died_may_come_late() {
    let mut checker = story(1);
    checker.take_publisher(250, 0, Sent(1));
    checker.take_publisher(260, 0, Disconnected);
    checker.take_publisher(400, 0, Connected { node: 1, resumed: Resumed::New });
    checker.take_publisher(401, 0, Joined);
    checker.take_publisher(410, 0, Sent(2));
    checker.take_publisher(415, 0, Acked(2));
    for member in 0..2 {
        deliver(&mut checker, member, &[0, 2, 1]);
    }
    assert_eq!(judged(&mut checker, &[HURT]).broken(), "");
}

#[test]
fn two_members_see_one_order_of_two_publishers() {
    let mut checker = Checker::new(Plan { rooms: 1, members: 2, publishers: 2 });
    for member in 0..2 {
        checker.take_member(10, member, Connected { node: 0, resumed: Resumed::First });
        checker.take_member(10, member, Joined);
    }
    for (member, publishers) in [(0, [0, 1]), (1, [1, 0])] {
        for publisher in publishers {
            checker.take_member(100, member, Event(publisher, 0));
        }
    }
    assert_eq!(judged(&mut checker, &[]).reordered, 1);
}

#[test]
fn a_lost_transport_breaks_a_promise_unless_its_node_was_hurt() {
    for (hurt, broken) in [(vec![HURT], ""), (vec![], "1 disconnected, 1 not back")] {
        let mut checker = story(0);
        checker.take_member(300, 0, Disconnected);
        if !hurt.is_empty() {
            checker.take_member(400, 0, Connected { node: 1, resumed: Resumed::New });
            checker.take_member(401, 0, Joined);
        }
        let round = judged(&mut checker, &hurt);
        assert_eq!(round.broken(), broken);
        assert_eq!(round.edge_lost, hurt.len() as u64);
    }
    // Before the node was hurt, it counts all the same.
    let mut checker = story(0);
    checker.take_member(150, 0, Disconnected);
    assert_eq!(judged(&mut checker, &[HURT]).disconnected, 1);
}

#[test]
fn a_new_session_is_owed_what_was_sent_after_its_join() {
    for (resumed, lost) in [(Resumed::New, 0), (Resumed::Refused, 0), (Resumed::Recovered, 1)] {
        let mut checker = story(4);
        deliver(&mut checker, 0, &[0, 1, 2, 3]);
        deliver(&mut checker, 1, &[0]);
        checker.take_member(150, 1, Disconnected);
        checker.take_member(250, 1, Connected { node: 1, resumed });
        checker.take_member(251, 1, Joined);
        deliver(&mut checker, 1, &[2, 3]);
        assert_eq!(judged(&mut checker, &[Hurt { from: 100, ..HURT }]).lost, lost, "{resumed:?}");
    }
}

#[test]
fn a_recovered_session_may_get_nothing_twice() {
    for (resumed, doubled) in [(Resumed::New, 0), (Resumed::Recovered, 1)] {
        let mut checker = story(1);
        deliver(&mut checker, 1, &[0]);
        checker.take_member(250, 1, Disconnected);
        checker.take_member(260, 1, Connected { node: 1, resumed });
        checker.take_member(270, 1, Event(0, 0));
        assert_eq!(judged(&mut checker, &[HURT]).doubled, doubled, "{resumed:?}");
    }
}

#[test]
fn an_answer_is_owed_on_a_transport_that_stands() {
    let mut checker = story(1);
    deliver(&mut checker, 0, &[0]);
    deliver(&mut checker, 1, &[0]);
    checker.take_publisher(500, 0, Sent(1));
    checker.cut(2_000);
    assert!(!checker.is_settled());
    assert_eq!(judged(&mut checker, &[]).broken(), "1 unanswered");
    let mut checker = story(0);
    checker.take_publisher(500, 0, Sent(0));
    checker.take_publisher(600, 0, Disconnected);
    let round = judged(&mut checker, &[HURT]);
    assert_eq!((round.unanswered, round.unknown), (0, 1));
}

#[test]
fn a_pause_reaches_over_the_edges_of_a_round() {
    let mut checker = story(10);
    deliver(&mut checker, 0, &[0]);
    deliver(&mut checker, 1, &[0]);
    checker.cut(150);
    let _ = checker.judge(50, &[]);
    // Nothing from 101 to 801.
    deliver(&mut checker, 0, &[7, 8, 9]);
    deliver(&mut checker, 1, &[7, 8, 9]);
    checker.cut(1_050);
    let [p50] = checker.judge(160, &[]).pause.percentiles([50]);
    assert!((p50 - 0.0007).abs() < 1e-9, "{p50}");
}
