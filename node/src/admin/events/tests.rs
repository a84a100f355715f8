use super::super::tests::{node, view_of};
use super::*;

fn words(events: &[Event]) -> Vec<(&str, &str)> {
    events.iter().map(|event| (event.kind.as_str(), event.node.as_str())).collect()
}

/// What is told of `before` becoming `after`.
fn told(before: &[NodeInfo], after: &[NodeInfo]) -> Vec<Event> {
    changes(&view_of(before), &view_of(after))
}

#[test]
fn a_join_a_death_and_a_leave_are_told_apart() {
    let active = |name| node(name, NodeState::Active);
    let joined = told(&[active("a")], &[active("a"), active("b")]);
    assert_eq!(words(&joined), [("up", "b"), ("ring", "")]);
    assert_eq!((joined[1].count, joined[1].text.contains("2 nodes")), (2, true), "{joined:?}");
    let died = told(&[active("a"), active("b")], &[active("a")]);
    assert_eq!(words(&died), [("down", "b"), ("ring", "")]);
    let draining = node("b", NodeState::Draining);
    let drains = told(&[active("a"), active("b")], &[active("a"), draining.clone()]);
    assert_eq!(words(&drains), [("state", "b"), ("ring", "")]);
    assert_eq!(words(&told(&[active("a"), draining], &[active("a")])), [("left", "b")]);
    assert_eq!(told(&[active("a")], &[active("a")]), []);
}

#[test]
fn a_restart_and_a_suspicion_are_told() {
    let (a, b) = (node("a", NodeState::Active), node("b", NodeState::Active));
    let mut again = b.clone();
    again.node.incarnation += 1;
    assert_eq!(
        words(&told(&[a.clone(), b.clone()], &[a.clone(), again])),
        [("restarted", "b"), ("ring", "")]
    );
    let suspected = NodeInfo { suspect: true, ..b.clone() };
    assert_eq!(words(&told(&[a.clone(), b.clone()], &[a.clone(), suspected.clone()])), [("suspect", "b")]);
    assert_eq!(words(&told(&[a.clone(), suspected], &[a, b])), [("trusted", "b")]);
}

#[test]
fn counts_are_told_as_what_was_added_and_the_first_ones_are_old() {
    let status = |moves_total, gaps_total, phase| {
        let safety = Safety { moves_total, gaps_total, ..Safety::default() };
        NodeStatus {
            safety,
            drain: mesh_proto::wire::DrainStatus { phase, ..Default::default() },
            ..Default::default()
        }
    };
    let mut of_b = Told::default();
    assert_eq!(of_b.changes("b", &status(100, 0, DrainPhase::Serving)), []);
    let events = of_b.changes("b", &status(103, 1, DrainPhase::Closing));
    assert_eq!(words(&events), [("drain", "b"), ("moves", "b"), ("gaps", "b")]);
    assert_eq!((events[1].count, events[2].count), (3, 1));
    assert_eq!(of_b.changes("b", &status(103, 1, DrainPhase::Closing)), []);
    // A new life counts from 0.
    assert_eq!(of_b.changes("b", &status(2, 0, DrainPhase::Closing))[0].count, 2);
}

#[tokio::test]
async fn a_slow_listener_is_told_how_many_it_has_missed() {
    let state = Arc::new(super::super::tests::state(&[node("a", NodeState::Active)], "", "", true));
    let events = Events::new();
    let heard = events.listen();
    let (writer, mut lines) = mpsc::channel(1);
    let beyond = 10;
    events.tell((0..EVENTS_KEPT + beyond).map(|n| event("state", "b", n as u64, String::new())));
    tokio::spawn(write(state, heard, writer, CancellationToken::new()));
    let mut next = async || -> Event { serde_json::from_slice(&lines.recv().await.unwrap()).unwrap() };
    assert_eq!(next().await.kind, "hello");
    let missed = next().await;
    assert_eq!((missed.kind.as_str(), missed.count), ("missed", beyond as u64));
    assert_eq!(next().await.count, beyond as u64, "the oldest that is left");
}
