use super::super::journal::Fact::{Acked, Connected, Disconnected, Event, Joined, Left, LeftClosed, Sent};
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

#[test]
fn a_client_that_comes_back_without_its_session_breaks_a_promise_if_its_protocol_has_recovery() {
    for (resumed, broken) in [
        (Resumed::Recovered, ""),
        (Resumed::New, ""),
        (Resumed::Refused, "1 not recovered"),
        (Resumed::NotOffered, "1 not recovered"),
    ] {
        let mut checker = story(0);
        checker.take_member(300, 0, Disconnected);
        checker.take_member(400, 0, Connected { node: 1, resumed });
        checker.take_member(401, 0, Joined);
        assert_eq!(judged(&mut checker, &[HURT]).broken(), broken, "{resumed:?}");
    }
}

#[test]
fn a_transport_that_was_left_is_to_be_closed() {
    for (closed, broken) in [(true, ""), (false, "1 left open")] {
        let mut checker = story(0);
        checker.take_member(300, 0, Left);
        checker.take_member(400, 0, Connected { node: 1, resumed: Resumed::Recovered });
        checker.take_member(401, 0, Joined);
        if closed {
            checker.take_member(500, 0, LeftClosed);
        }
        checker.cut(2_000);
        assert_eq!(checker.is_settled(), closed);
        let round = checker.judge(50, &[HURT]);
        assert_eq!((round.broken().as_str(), round.left, round.edge_lost), (broken, 1, 1));
    }
}

/// Member 0 and the publisher by node 0, member 1 by node 1; cut from 200 on, apart from 300 to 800, whole
/// from 1,000 on. Messages at 100, 200, … 1,200; a gap told at `gap`.
fn cut_story(gap: Option<usize>) -> Checker {
    let mut checker = story(0);
    checker.take_member(20, 1, Disconnected);
    checker.take_member(30, 1, Connected { node: 1, resumed: Resumed::First });
    checker.take_member(40, 1, Joined);
    for number in 0..12 {
        let at = 100 + u64::from(number) * 100;
        checker.take_publisher(at, 0, Sent(number));
        checker.take_publisher(at + 5, 0, Acked(number));
    }
    let gaps = gap.map(|node| (node, 0)).into_iter().collect();
    let sides = vec![0, 1];
    checker.was_cut(Cut { sides, half: None, from: 200, split: 300, mended: 800, healed: 1_000, gaps });
    checker
}

#[test]
fn a_gap_excuses_what_went_across_a_cut_and_nothing_else() {
    let all: Vec<u32> = (0..12).collect();
    let without = |left_out: &[u32]| -> Vec<u32> {
        all.iter().copied().filter(|number| !left_out.contains(number)).collect()
    };
    for (case, gap, at_own, at_other, lost, excused) in [
        ("all has come", None, vec![], vec![], 0, 0),
        ("across, untold", None, vec![], vec![4], 1, 0),
        ("across, told elsewhere", Some(0), vec![], vec![4], 1, 0),
        ("across, told", Some(1), vec![], vec![4, 5], 0, 2),
        ("its own side's, while alone", Some(0), vec![4], vec![], 1, 0),
        ("its own side's, while owners changed", Some(0), vec![8], vec![], 0, 1),
        ("after all is whole", Some(1), vec![], vec![11], 1, 0),
    ] {
        let mut checker = cut_story(gap);
        deliver(&mut checker, 0, &without(&at_own));
        deliver(&mut checker, 1, &without(&at_other));
        let round = judged(&mut checker, &[Hurt { node: 1, from: 15, until: 35 }]);
        assert_eq!((round.lost, round.gaps, round.doubled, round.reordered), (lost, excused, 0, 0), "{case}");
    }
}

#[test]
fn publishers_have_answers_while_their_side_stands_alone() {
    assert_eq!(judged(&mut cut_story(None), &[]).not_served, 0);
    let mut checker = cut_story(None);
    checker.was_cut(Cut {
        sides: vec![0, 1],
        from: 200,
        split: 310,
        mended: 320,
        healed: 330,
        ..Cut::default()
    });
    assert_eq!(judged(&mut checker, &[]).not_served, 1);
}
