//! Where users and sessions of proxied products are bound to: who decides, what survives whom, what ends.

use super::*;
use crate::binding::{BINDING_TEXT_BYTES_MAX, BindingClass, BindingKey};
use crate::id::Cursor;
use crate::wire::Wish;

const LONG: Duration = Duration::from_secs(3_600);

fn key(uid: &str) -> BindingKey {
    BindingKey::new(&"chat".into(), BindingClass::Uid, uid)
}

fn bind(uid: &str, wish: Wish, keep: Duration) -> Query {
    Query::Bind { key: key(uid), wish, keep }
}

fn find(uid: &str) -> Query {
    bind(uid, Wish::Find, Duration::ZERO)
}

fn choose(uid: &str, upstream: &str, instead_of: Option<&str>) -> Query {
    let wish = Wish::Choose { upstream: upstream.into(), instead_of: instead_of.map(Into::into) };
    bind(uid, wish, LONG)
}

fn forget(uid: &str, upstream: &str) -> Query {
    bind(uid, Wish::Forget { upstream: upstream.into() }, LONG)
}

fn at(upstream: &str) -> Result<Answer, CommandFailed> {
    Ok(Answer::Bound(upstream.into()))
}

const NOWHERE: Result<Answer, CommandFailed> = Ok(Answer::NotBound);

/// Every copy of a user's binding: node, whether it owns it, ops so far, digest.
fn copies(mesh: &Mesh, uid: &str) -> Vec<(usize, bool, u64, u64)> {
    let name = format!("{:?}", key(uid));
    let mut found = Vec::new();
    for (at, shard) in mesh.shards.iter().filter(|(at, _)| mesh.alive[at.0]) {
        let held = shard.holdings().into_iter().filter(|held| held.name == name);
        found.extend(held.map(|held| (at.0, held.owned, held.version.op, held.digest)));
    }
    found
}

/// One owner, by the ring; an equal copy at its backup; the same answer everywhere.
fn assert_settled(mesh: &mut Mesh, uid: &str, expected: &Result<Answer, CommandFailed>) {
    let found = copies(mesh, uid);
    let [one, other] = found[..] else { panic!("{uid}: {found:?}") };
    assert!(one.1 != other.1 && (one.2, one.3) == (other.2, other.3), "{found:?}");
    let owner = if one.1 { one.0 } else { other.0 };
    assert_eq!(owner, mesh.owner_of_user(uid));
    for n in 0..mesh.nodes.len() {
        if mesh.alive[n] {
            assert_eq!(&mesh.query(n, find(uid)), expected, "asked at {n}");
        }
    }
}

#[test]
fn who_asks_first_decides_for_all() {
    let mut mesh = Mesh::new(3, 2);
    let uid = mesh.user_at(0);
    assert_eq!(mesh.query(1, find(&uid)), NOWHERE);
    assert!(copies(&mesh, &uid).is_empty(), "to look makes nothing");
    mesh.begin_query(1, 11, choose(&uid, "a", None));
    mesh.begin_query(2, 12, choose(&uid, "b", None));
    mesh.settle();
    let answers = [11, 12].map(|token| mesh.answers.remove(&token).unwrap());
    assert!(answers[0] == answers[1] && [at("a"), at("b")].contains(&answers[0]), "{answers:?}");
    assert_settled(&mut mesh, &uid, &answers[0]);
    assert_eq!(mesh.stats(|s| s.bindings), 1);
}

#[test]
fn a_binding_is_chosen_anew_only_by_who_found_it_unfit_or_after_it_is_forgotten() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(0);
    assert_eq!(mesh.query(0, choose(&uid, "a", Some("x"))), at("a"));
    assert_eq!(mesh.query(1, choose(&uid, "b", Some("x"))), at("a"), "unfit is another one");
    assert_eq!(mesh.query(1, choose(&uid, "b", Some("a"))), at("b"));
    assert_eq!(mesh.query(2, choose(&uid, "c", Some("a"))), at("b"), "who is late learns it");
    assert_eq!(mesh.query(2, choose(&uid, "b", Some("b"))), at("b"));
    assert_eq!(mesh.query(2, forget(&uid, "a")), at("b"), "it is at another one");
    assert_settled(&mut mesh, &uid, &at("b"));
    assert_eq!(mesh.query(2, forget(&uid, "b")), NOWHERE);
    assert_settled(&mut mesh, &uid, &NOWHERE);
    assert_eq!(mesh.query(1, forget(&uid, "b")), NOWHERE);
    assert_eq!(mesh.query(1, choose(&uid, "d", None)), at("d"));
    assert_settled(&mut mesh, &uid, &at("d"));
}

#[test]
fn kinds_of_names_and_products_are_apart() {
    let mut mesh = Mesh::new(2, 3);
    let ask = |product: &str, class, wish| {
        let key = BindingKey::new(&product.into(), class, "x");
        Query::Bind { key, wish, keep: LONG }
    };
    let choose = |name: &str| Wish::Choose { upstream: name.into(), instead_of: None };
    let classes = [BindingClass::Uid, BindingClass::Sid, BindingClass::Upstream];
    let all: Vec<_> = ["p", "q"].into_iter().flat_map(|p| classes.map(|class| (p, class))).collect();
    for (product, class) in &all {
        let name = format!("{product} {}", class.word());
        assert_eq!(mesh.query(0, ask(product, *class, choose(&name))), at(&name));
    }
    for (product, class) in all {
        let name = format!("{product} {}", class.word());
        assert_eq!(mesh.query(1, ask(product, class, Wish::Find)), at(&name));
    }
}

#[test]
fn a_binding_ends_when_it_is_not_used_and_only_then() {
    let mut mesh = Mesh::new(3, 1);
    let (uid, keep) = (mesh.user_at(0), 9 * second());
    let wish = Wish::Choose { upstream: "a".into(), instead_of: None };
    assert_eq!(mesh.query(1, bind(&uid, wish, keep)), at("a"));
    for _ in 0..10 {
        mesh.wait(3 * second());
        assert_eq!(mesh.query(2, bind(&uid, Wish::Find, keep)), at("a"));
    }
    let ops = copies(&mesh, &uid)[0].2;
    for _ in 0..20 {
        assert_eq!(mesh.query(2, bind(&uid, Wish::Find, keep)), at("a"));
    }
    assert_eq!(copies(&mesh, &uid)[0].2, ops, "uses that move its end by little are not told to the backup");
    // To look is no use of it.
    mesh.wait(8 * second());
    assert_eq!(mesh.query(2, find(&uid)), at("a"));
    mesh.wait(second());
    assert_eq!(mesh.query(2, find(&uid)), NOWHERE);
    assert_eq!(mesh.query(2, choose(&uid, "b", None)), at("b"), "what has ended is chosen anew at once");
    mesh.query(2, forget(&uid, "b")).unwrap();
    mesh.wait(31 * second());
    assert!(copies(&mesh, &uid).is_empty(), "{:?}", copies(&mesh, &uid));
    let wish = Wish::Choose { upstream: "a".into(), instead_of: None };
    mesh.query(1, bind(&uid, wish, keep)).unwrap();
    mesh.wait(11 * second());
    assert!(copies(&mesh, &uid).is_empty());
}

#[test]
fn a_word_about_an_upstream_stays_until_it_is_lifted() {
    let mut mesh = Mesh::new(3, 1);
    let key = BindingKey::new(&"chat".into(), BindingClass::Upstream, "10.0.0.1:3000");
    let ask = |wish| Query::Bind { key: key.clone(), wish, keep: Duration::MAX };
    let wish = Wish::Choose { upstream: "draining".into(), instead_of: None };
    assert_eq!(mesh.query(0, ask(wish)), at("draining"));
    mesh.wait(Duration::from_secs(100_000));
    let owner = mesh.owner(key.placement());
    mesh.alive[owner] = false;
    mesh.views();
    let here = usize::from(owner == 0);
    assert_eq!(mesh.query(here, ask(Wish::Find)), at("draining"));
    let Ok(Answer::Binding(facts)) = mesh.query(here, Query::ExplainBinding(key.clone())) else {
        panic!("not explained")
    };
    assert_eq!((&*facts.upstream, facts.ends_in_secs), ("draining", None));
    assert_eq!(mesh.query(here, ask(Wish::Forget { upstream: "draining".into() })), NOWHERE);
    assert_eq!(mesh.query(here, Query::ExplainBinding(key.clone())), Err(CommandFailed::NotFound));
}

#[test]
fn an_answer_waits_for_the_backup() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(0);
    mesh.cut = Some((0, 1));
    mesh.begin_query(0, 5, choose(&uid, "a", None));
    mesh.settle();
    mesh.begin_query(0, 6, find(&uid));
    mesh.settle();
    assert!(mesh.answers.is_empty(), "told before the backup had it");
    mesh.reset();
    assert_eq!(mesh.answers.remove(&5), Some(at("a")));
    assert_eq!(mesh.answers.remove(&6), Some(at("a")));
    assert_settled(&mut mesh, &uid, &at("a"));
    // What is only used more is told at once.
    mesh.wait(LONG / 2);
    mesh.cut = Some((0, 1));
    assert_eq!(mesh.query(0, bind(&uid, Wish::Find, LONG)), at("a"));
    mesh.heal();
}

#[test]
fn bindings_survive_one_owner_after_the_other() {
    let mut mesh = Mesh::new(4, 2);
    let uids: Vec<String> = (0..40).map(|n| format!("user{n}")).collect();
    for (n, uid) in uids.iter().enumerate() {
        assert_eq!(mesh.query(n % 4, choose(uid, &format!("up{n}"), None)), at(&format!("up{n}")));
    }
    for dead in [3, 1] {
        mesh.alive[dead] = false;
        mesh.views();
        mesh.wait(3 * second());
        for (n, uid) in uids.iter().enumerate() {
            assert_settled(&mut mesh, uid, &at(&format!("up{n}")));
        }
    }
}

/// What goes on while a node may crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Quiet,
    /// A node joins that is to own the binding.
    Join,
    /// The owner is taken off the ring, but lives.
    Leave,
}

/// A node dies after so many deliveries; what it has said to one other still arrives.
#[derive(Clone, Copy, Debug)]
struct Crash {
    step: usize,
    who: usize,
    heard_by: usize,
}

/// One has chosen, another finds that unfit, a third wants its own; and it is looked for. Returns how many
/// deliveries there were.
fn play(story: Story, crash: Option<Crash>) -> usize {
    let mut mesh = Mesh::new(4, 1);
    let (uid, owner) = (mesh.user_at(3), 3);
    if story == Story::Join {
        mesh.alive[owner] = false;
        mesh.views();
    }
    // Where askers are, nothing crashes.
    let here = usize::from(crash.is_some_and(|crash| crash.who == 0));
    assert_eq!(mesh.query(here, choose(&uid, "a", None)), at("a"));
    match story {
        Story::Quiet => {}
        Story::Join => {
            mesh.alive[owner] = true;
            [owner, 0, 1, 2].into_iter().for_each(|n| mesh.view_at(n));
        }
        Story::Leave => {
            mesh.draining = Some(owner);
            (0..4).for_each(|n| mesh.view_at(n));
        }
    }
    let asked =
        [(0, find(&uid)), (3, choose(&uid, "b", Some("a"))), (4, choose(&uid, "c", None)), (8, find(&uid))];
    let (mut steps, mut next) = (0, 0);
    loop {
        if let Some(crash) = crash.filter(|crash| crash.step == steps) {
            mesh.alive[crash.who] = false;
            mesh.last_words = Some((crash.who, crash.heard_by));
        }
        if let Some((step, query)) = asked.get(next)
            && (*step <= steps || mesh.queue.is_empty())
        {
            mesh.begin_query(here, 100 + next as u64, query.clone());
            next += 1;
        }
        match mesh.queue.pop_front() {
            Some((to, envelope)) => mesh.deliver(to, envelope),
            None if next < asked.len() => continue,
            None => break,
        }
        steps += 1;
    }
    mesh.settle();
    mesh.views();
    mesh.wait(4 * second());
    let answers = [100, 101, 102, 103].map(|token| mesh.answers.remove(&token).expect("not answered"));
    assert!([at("a"), at("b")].contains(&answers[0]), "{story:?} {crash:?}: {answers:?}");
    assert_eq!(answers[1], at("b"), "{story:?} {crash:?}");
    assert!(answers[2..].iter().all(|answer| [at("a"), at("b")].contains(answer)), "{crash:?}: {answers:?}");
    assert_settled(&mut mesh, &uid, &at("b"));
    steps
}

fn play_all(story: Story) {
    let steps = play(story, None);
    assert!(steps > 8, "{steps} messages are no story");
    for step in 0..=steps {
        for who in 0..4 {
            for heard_by in (0..4).filter(|heard_by| *heard_by != who) {
                play(story, Some(Crash { step, who, heard_by }));
            }
        }
    }
}

#[test]
fn any_one_crash_leaves_what_was_answered() {
    play_all(Story::Quiet);
}

#[test]
fn any_one_crash_during_a_join_leaves_what_was_answered() {
    play_all(Story::Join);
}

#[test]
fn any_one_crash_while_its_owner_leaves_leaves_what_was_answered() {
    play_all(Story::Leave);
}

#[test]
fn what_is_forgotten_is_forgotten_through_a_crash_of_its_owner() {
    for step in 0..8 {
        let mut mesh = Mesh::new(3, 1);
        let uid = mesh.user_at(2);
        mesh.query(0, choose(&uid, "a", None)).unwrap();
        mesh.begin_query(0, 7, forget(&uid, "a"));
        for _ in 0..step {
            let Some((to, envelope)) = mesh.queue.pop_front() else { break };
            mesh.deliver(to, envelope);
        }
        mesh.alive[2] = false;
        mesh.settle();
        mesh.views();
        mesh.wait(2 * second());
        assert_eq!(mesh.answers.remove(&7), Some(NOWHERE), "after {step} messages");
        assert_eq!(mesh.query(1, find(&uid)), NOWHERE, "after {step} messages");
        mesh.wait(31 * second());
        assert!(copies(&mesh, &uid).is_empty(), "after {step} messages: {:?}", copies(&mesh, &uid));
    }
}

#[test]
fn a_join_hands_bindings_over_and_nobody_is_told_otherwise() {
    let mut mesh = Mesh::new(3, 2);
    mesh.alive[2] = false;
    mesh.views();
    let uids: Vec<String> = (0..60).map(|n| format!("user{n}")).collect();
    for (n, uid) in uids.iter().enumerate() {
        mesh.query(n % 2, choose(uid, &format!("up{n}"), None)).unwrap();
    }
    mesh.alive[2] = true;
    (0..3).for_each(|n| mesh.view_at(n));
    for (n, uid) in uids.iter().enumerate() {
        mesh.begin_query(n % 3, 1_000 + n as u64, choose(uid, "another", None));
    }
    mesh.settle();
    mesh.wait(3 * second());
    let moved = uids.iter().filter(|uid| mesh.owner_of_user(uid) == 2).count();
    assert!(moved > 5, "{moved} moved");
    for (n, uid) in uids.iter().enumerate() {
        let up = at(&format!("up{n}"));
        assert_eq!(mesh.answers.remove(&(1_000 + n as u64)).as_ref(), Some(&up));
        assert_settled(&mut mesh, uid, &up);
    }
}

/// The place of the decision that a node knows of.
fn decided_at(mesh: &mut Mesh, n: usize, uid: &str) -> Cursor {
    match mesh.query(n, Query::ExplainBinding(key(uid))) {
        Ok(Answer::Binding(facts)) => facts.at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_partition_the_decision_of_the_higher_place_stands() {
    let mut won_by_the_owner = [0, 0];
    for case in 0..24 {
        let mut mesh = Mesh::new(2, 1);
        let uid = mesh.user_at(case % 2);
        if case % 4 < 2 {
            // Both sides have it from before, and find it unfit.
            mesh.query(0, choose(&uid, "before", None)).unwrap();
        }
        // Each side alone.
        for n in [0, 1] {
            mesh.alive[1 - n] = false;
            mesh.view_at(n);
            mesh.alive[1 - n] = true;
        }
        mesh.queue.clear();
        for n in [0, 1] {
            // Other terms make one side's higher.
            for other in 0..(case / 4 * n) + (5 - case / 4) * (1 - n) {
                mesh.query(n, choose(&format!("other{n}{other}"), "x", None)).unwrap();
            }
            assert_eq!(
                mesh.query(n, choose(&uid, &format!("side{n}"), Some("before"))),
                at(&format!("side{n}"))
            );
        }
        let places = [0, 1].map(|n| decided_at(&mut mesh, n, &uid));
        let wins = usize::from(places[1] > places[0]);
        won_by_the_owner[usize::from(wins == case % 2)] += 1;
        mesh.views();
        mesh.wait(3 * second());
        assert_settled(&mut mesh, &uid, &at(&format!("side{wins}")));
    }
    assert!(won_by_the_owner.iter().all(|count| *count > 4), "{won_by_the_owner:?}");
}

#[test]
fn what_one_side_of_a_partition_forgets_the_other_may_have_chosen_since() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(0);
    mesh.query(0, choose(&uid, "a", None)).unwrap();
    for n in [0, 1] {
        mesh.alive[1 - n] = false;
        mesh.view_at(n);
        mesh.alive[1 - n] = true;
    }
    mesh.queue.clear();
    assert_eq!(mesh.query(0, forget(&uid, "a")), NOWHERE);
    assert_eq!(mesh.query(1, choose(&uid, "b", Some("a"))), at("b"));
    mesh.views();
    mesh.wait(3 * second());
    assert_settled(&mut mesh, &uid, &at("b"));
}

#[test]
fn a_node_keeps_so_many_bindings_and_those_that_end_first_go() {
    let limits = Limits { bindings_per_node_max: 10, ..Limits::default() };
    let mut mesh = Mesh::with(1, 1, limits, ProductRules::open("chat"));
    let mark = BindingKey::new(&"chat".into(), BindingClass::Upstream, "up");
    let wish = Wish::Choose { upstream: "draining".into(), instead_of: None };
    mesh.query(0, Query::Bind { key: mark.clone(), wish, keep: Duration::MAX }).unwrap();
    for n in 0..30 {
        let wish = Wish::Choose { upstream: format!("up{n}").into(), instead_of: None };
        // Those with an even number stay longer.
        let keep = (100 + n + 1_000 * (1 - n % 2)) * second();
        assert_eq!(mesh.query(0, bind(&format!("u{n}"), wish, keep)), at(&format!("up{n}")));
        assert!(mesh.stats(|s| s.bindings) <= 10);
    }
    assert_eq!(mesh.stats(|s| s.bindings_evicted_total), 21);
    let left: Vec<u32> = (0..30).filter(|n| mesh.query(0, find(&format!("u{n}"))) != NOWHERE).collect();
    assert_eq!(left, [14, 16, 18, 20, 22, 24, 26, 28, 29]);
    assert_eq!(mesh.query(0, Query::Bind { key: mark, wish: Wish::Find, keep: LONG }), at("draining"));
}

#[test]
fn bindings_that_come_without_asking_keep_to_the_bound_as_well() {
    let limits = Limits { bindings_per_node_max: 10, ..Limits::default() };
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let uids: Vec<String> = (0..30).map(|n| format!("user{n}")).collect();
    for uid in &uids {
        mesh.query(0, choose(uid, "a", None)).unwrap();
    }
    let held = mesh.stats(|s| s.bindings);
    assert!((15..=20).contains(&held), "{held}");
    mesh.alive[1] = false;
    mesh.views();
    mesh.wait(2 * second());
    assert_eq!(mesh.shards[&(0, 0)].stats().bindings, 10);
}

#[test]
fn names_that_are_too_long_are_refused() {
    let mut mesh = Mesh::new(1, 1);
    let long = "x".repeat(BINDING_TEXT_BYTES_MAX + 1);
    for query in [choose(&long, "a", None), choose("a", &long, None), find(&long), forget("a", &long)] {
        assert!(matches!(mesh.query(0, query), Err(CommandFailed::Refused(_))));
    }
    assert_eq!(mesh.query(0, choose(&long[1..], &long[1..], None)), at(&long[1..]));
}

#[test]
fn another_life_of_the_owner_finds_what_it_had() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(0);
    mesh.query(1, choose(&uid, "a", None)).unwrap();
    mesh.nodes[0].incarnation = 2;
    mesh.views();
    mesh.wait(3 * second());
    assert_settled(&mut mesh, &uid, &at("a"));
    assert_eq!(mesh.query(1, choose(&uid, "b", None)), at("a"));
}

#[test]
fn what_is_forgotten_does_not_come_back_from_an_older_copy() {
    let mut mesh = Mesh::new(3, 1);
    let uid = (0..).map(|n| format!("user{n}")).find(|uid| {
        let replicas = mesh.view(0).ring.replicas(key(uid).placement(), 2);
        replicas == [mesh.nodes[0], mesh.nodes[2]]
    });
    let uid = uid.unwrap();
    mesh.alive[2] = false;
    mesh.views();
    mesh.query(0, choose(&uid, "a", None)).unwrap();
    // The third joins and is the backup from here on; what the old one says to the owner takes a while.
    mesh.alive[2] = true;
    mesh.cut = Some((1, 0));
    mesh.views();
    mesh.wait(second());
    assert_eq!(mesh.query(2, forget(&uid, "a")), NOWHERE);
    mesh.wait(2 * second());
    mesh.heal();
    mesh.wait(2 * second());
    assert_eq!(mesh.query(2, find(&uid)), NOWHERE);
    assert_settled(&mut mesh, &uid, &NOWHERE);
}
