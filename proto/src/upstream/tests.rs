//! What upstreams are chosen, how they fall and rise, by hand and over many random stories.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const T0: Instant = Instant::from_micros(1_000_000);

fn names(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|n| format!("10.0.0.{n}:3000").into()).collect()
}

/// Without checks: only requests speak.
fn quiet(count: usize) -> UpstreamConfig {
    UpstreamConfig { names: names(count), interval: Duration::ZERO, ..UpstreamConfig::default() }
}

fn checked(count: usize) -> UpstreamConfig {
    UpstreamConfig { names: names(count), ..UpstreamConfig::default() }
}

fn key(n: u32) -> Placement {
    Placement::of_user("shop", &format!("u{n}"))
}

fn second() -> Duration {
    Duration::from_secs(1)
}

fn state(upstreams: &Upstreams, n: usize) -> UpstreamState {
    upstreams.by_name(&names(n + 1)[n]).expect("on the list").1
}

/// One request to whichever upstream the key is for.
fn request(upstreams: &mut Upstreams, now: Instant, n: u32, outcome: Outcome) -> UpstreamIx {
    let ix = upstreams.choose_by_hash(now, key(n), None).expect("one is fit");
    let ticket = upstreams.began(now, ix);
    upstreams.ended(now, ticket, outcome);
    upstreams.check_invariants();
    ix
}

fn repeat(upstreams: &mut Upstreams, now: Instant, count: u32, outcome: Outcome) {
    (0..count).for_each(|_| {
        request(upstreams, now, 1, outcome);
    });
}

/// Makes the checks that are due up to `until`; each is answered by `answer(name)`: `None` hangs.
fn run(upstreams: &mut Upstreams, from: Instant, until: Instant, answer: impl Fn(&str) -> Option<bool>) {
    let mut now = from;
    loop {
        while let Some(output) = upstreams.poll(now) {
            if let UpstreamOutput::Check(check) = output
                && let Some(ok) = answer(&check.name)
            {
                upstreams.checked(now, &check, ok);
            }
        }
        upstreams.check_invariants();
        match upstreams.next_deadline().filter(|next| *next <= until) {
            Some(next) => {
                assert!(next > now, "a deadline that poll does not end");
                now = next;
            }
            None => return,
        }
    }
}

#[test]
fn five_from_four_take_a_fifth_of_the_keys_and_none_move_between_the_old_ones() {
    let mut upstreams = Upstreams::new(quiet(4), T0, 1);
    let keys = 0..20_000;
    let before: Vec<_> = keys.clone().map(|n| upstreams.choose_by_hash(T0, key(n), None)).collect();
    upstreams.set_names(&names(5), T0);
    upstreams.check_invariants();
    let (fifth, _) = upstreams.by_name(&names(5)[4]).unwrap();
    let mut moved = 0;
    for (n, before) in keys.zip(before) {
        let after = upstreams.choose_by_hash(T0, key(n), None);
        if after != before {
            assert_eq!(after, Some(fifth), "key {n} moved between old ones");
            moved += 1;
        }
    }
    assert!((3_400..4_600).contains(&moved), "{moved} of 20,000 keys moved, 4,000 are a fifth");
}

#[test]
fn keys_of_an_upstream_that_is_down_go_elsewhere_and_come_back() {
    let mut upstreams = Upstreams::new(checked(4), T0, 1);
    let dead = names(4)[2].clone();
    let before: Vec<_> = (0..1_000).map(|n| upstreams.choose_by_hash(T0, key(n), None).unwrap()).collect();
    let (dead_ix, _) = upstreams.by_name(&dead).unwrap();
    let later = T0 + 20 * second();
    run(&mut upstreams, T0, later, |name| Some(*name != *dead));
    assert_eq!(state(&upstreams, 2), UpstreamState::Down);
    for (n, before) in (0..).zip(&before) {
        let now = upstreams.choose_by_hash(later, key(n), None).unwrap();
        assert!(now != dead_ix && (now == *before || *before == dead_ix), "key {n}");
    }
    let back = later + 20 * second();
    run(&mut upstreams, later, back, |_| Some(true));
    assert_eq!(state(&upstreams, 2), UpstreamState::Up);
    for (n, before) in (0..).zip(before) {
        assert_eq!(upstreams.choose_by_hash(back, key(n), None), Some(before));
    }
}

#[test]
fn a_few_requests_at_once_stay_together_and_many_spread() {
    let mut upstreams = Upstreams::new(quiet(4), T0, 1);
    let mut loads: BTreeMap<UpstreamIx, u32> = BTreeMap::new();
    let mut tickets = Vec::new();
    for _ in 0..200 {
        let ix = upstreams.choose_by_hash(T0, key(7), None).unwrap();
        tickets.push(upstreams.began(T0, ix));
        *loads.entry(ix).or_default() += 1;
    }
    let mut loads: Vec<u32> = loads.into_values().collect();
    loads.sort_unstable();
    assert_eq!(loads.len(), 4, "one key's load is spread over all: {loads:?}");
    assert!(*loads.last().unwrap() <= 63, "{loads:?}");
    tickets.into_iter().for_each(|ticket| upstreams.ended(T0, ticket, Outcome::Answered));
    let first = upstreams.choose_by_hash(T0, key(7), None).unwrap();
    for _ in 0..32 {
        assert_eq!(upstreams.choose_by_hash(T0, key(7), None), Some(first));
        tickets_leak(upstreams.began(T0, first));
    }
    assert_ne!(upstreams.choose_by_hash(T0, key(7), None), Some(first), "the floor is a bound");
}

/// Stays open until the end of the test.
fn tickets_leak(ticket: Ticket) {
    assert!(!ticket.answered);
}

#[test]
fn the_least_loaded_is_the_least_loaded_and_equals_share() {
    let mut upstreams = Upstreams::new(quiet(5), T0, 3);
    let mut open = Vec::new();
    for round in 1..=20_u32 {
        for _ in 0..5 {
            let ix = upstreams.least_loaded(T0, None).unwrap();
            open.push(upstreams.began(T0, ix));
        }
        assert!(upstreams.facts().iter().all(|facts| facts.open == round));
    }
    let orders = |seed| {
        let mut upstreams = Upstreams::new(quiet(5), T0, seed);
        (0..20).map(|_| upstreams.least_loaded(T0, None).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(orders(4), orders(4), "the same seed, the same story");
    assert_ne!(orders(4), orders(5), "nodes do not all begin with the same one");
}

#[test]
fn an_upstream_is_used_before_its_first_check_and_one_good_check_is_enough() {
    let mut upstreams = Upstreams::new(checked(1), T0, 1);
    assert_eq!(state(&upstreams, 0), UpstreamState::Unknown);
    assert!(upstreams.choose_by_hash(T0, key(1), None).is_some());
    run(&mut upstreams, T0, T0 + second(), |_| Some(true));
    assert_eq!(state(&upstreams, 0), UpstreamState::Up);
}

#[test]
fn an_upstream_that_hangs_is_down_when_its_checks_time_out() {
    let config = UpstreamConfig { timeout: Duration::from_millis(700), ..checked(2) };
    let (fall, interval, timeout) = (config.fall, config.interval, config.timeout);
    let hanging = names(2)[0].clone();
    let mut upstreams = Upstreams::new(config, T0, 1);
    let answer = |name: &str| (*name != *hanging).then_some(true);
    // Its first check is within a quarter of the interval; the last one that counts ends by its timeout.
    let latest = T0 + interval / 4 + interval * (fall - 1) + timeout;
    let almost = T0 + interval * (fall - 1) + timeout - T0;
    run(&mut upstreams, T0, T0 + (almost - Duration::from_micros(1)), answer);
    assert_eq!(state(&upstreams, 0), UpstreamState::Unknown, "fall - 1 checks are not enough");
    run(&mut upstreams, T0 + almost, latest, answer);
    assert_eq!(state(&upstreams, 0), UpstreamState::Down);
    assert_eq!(state(&upstreams, 1), UpstreamState::Up);
    assert_eq!(upstreams.facts()[0].checks_failed_total, u64::from(fall));
}

#[test]
fn an_answer_after_the_timeout_does_not_count() {
    let mut upstreams = Upstreams::new(UpstreamConfig { fall: 1, ..checked(1) }, T0, 1);
    let at = upstreams.next_deadline().unwrap();
    let Some(UpstreamOutput::Check(check)) = upstreams.poll(at) else { panic!("a check is due") };
    let late = at + second();
    upstreams.checked(late, &check, true);
    assert_eq!(state(&upstreams, 0), UpstreamState::Down);
    upstreams.checked(late, &check, true);
    assert_eq!(state(&upstreams, 0), UpstreamState::Down, "a check has one answer");
    upstreams.check_invariants();
}

#[test]
fn it_takes_fall_failures_to_go_down_and_rise_successes_to_come_up() {
    let config = UpstreamConfig { rise: 3, fall: 2, ..checked(1) };
    let mut upstreams = Upstreams::new(config, T0, 1);
    let mut now = T0;
    let mut check = |upstreams: &mut Upstreams, ok| {
        now = upstreams.next_deadline().unwrap().max(now);
        loop {
            match upstreams.poll(now) {
                Some(UpstreamOutput::Check(check)) => break upstreams.checked(now, &check, ok),
                Some(_) => {}
                None => panic!("a check is due"),
            }
        }
        state(upstreams, 0)
    };
    use UpstreamState::{Down, Up};
    let story = [
        (true, Up),
        (false, Up),
        (true, Up),
        (false, Up),
        (false, Down),
        (true, Down),
        (true, Down),
        (false, Down),
        (true, Down),
        (true, Down),
        (true, Up),
    ];
    for (step, (ok, expected)) in story.into_iter().enumerate() {
        assert_eq!(check(&mut upstreams, ok), expected, "step {step}");
    }
}

#[test]
fn changes_are_told_once() {
    let mut upstreams = Upstreams::new(UpstreamConfig { fall: 1, ..checked(1) }, T0, 1);
    let mut now = upstreams.next_deadline().unwrap();
    let mut told = Vec::new();
    for ok in [true, true, false, false, true, true] {
        while let Some(output) = upstreams.poll(now) {
            match output {
                UpstreamOutput::Check(check) => upstreams.checked(now, &check, ok),
                UpstreamOutput::Changed { before, now, .. } => told.push((before.word(), now.word())),
                UpstreamOutput::DrainOver(_) => panic!("nothing drains"),
            }
        }
        now = upstreams.next_deadline().unwrap();
    }
    assert_eq!(told, [("unknown", "up"), ("up", "down"), ("down", "up")]);
}

#[test]
fn a_draining_upstream_keeps_what_is_bound_and_gets_nothing_new() {
    let mut upstreams = Upstreams::new(quiet(3), T0, 1);
    let leaving = names(3)[1].clone();
    let (ix, _) = upstreams.by_name(&leaving).unwrap();
    let ticket = upstreams.began(T0, ix);
    let until = T0 + 30 * second();
    assert!(upstreams.drain(&leaving, Some(until)) && !upstreams.drain("nobody", None));
    assert_eq!(state(&upstreams, 1), UpstreamState::Draining);
    assert!(upstreams.takes_bound(T0, ix));
    for n in 0..1_000 {
        assert_ne!(upstreams.choose_by_hash(T0, key(n), None), Some(ix));
        assert_ne!(upstreams.least_loaded(T0, None), Some(ix));
    }
    assert_eq!(upstreams.next_deadline(), Some(until));
    // Told again with the same end, the drain goes on.
    assert!(upstreams.drain(&leaving, Some(until)));
    let mut over = |now| std::iter::from_fn(|| upstreams.poll(now)).collect::<Vec<_>>();
    assert!(!over(T0).contains(&UpstreamOutput::DrainOver(ix)));
    assert_eq!(over(until), [UpstreamOutput::DrainOver(ix)]);
    assert_eq!(over(until + second()), []);
    upstreams.ended(until, ticket, Outcome::ClientGone);
    assert!(upstreams.resume(&leaving));
    assert!((0..1_000).any(|n| upstreams.choose_by_hash(until, key(n), None) == Some(ix)));
}

#[test]
fn with_all_down_there_is_none() {
    let mut upstreams = Upstreams::new(checked(3), T0, 1);
    let later = T0 + 20 * second();
    run(&mut upstreams, T0, later, |_| Some(false));
    assert_eq!(upstreams.choose_by_hash(later, key(1), None), None);
    assert_eq!(upstreams.least_loaded(later, None), None);
    let again = upstreams.fit_again_at(later).expect("they are checked");
    assert!(again > later && again <= later + 2 * second(), "{again}");
    assert_eq!(Upstreams::new(quiet(0), T0, 1).choose_by_hash(T0, key(1), None), None);
}

#[test]
fn failed_requests_eject_for_a_doubling_time_and_one_request_ends_it() {
    let config = UpstreamConfig { eject_after: 3, ..quiet(1) };
    let (first, longest) = (config.eject_for, config.eject_max);
    let mut upstreams = Upstreams::new(config, T0, 1);
    let mut now = T0;
    for failure in [Outcome::ConnectFailed, Outcome::Reset, Outcome::TimedOut] {
        assert!(upstreams.facts()[0].ejected_until.is_none());
        request(&mut upstreams, now, 1, failure);
    }
    let mut expected = first;
    for _ in 0..6 {
        assert_eq!(upstreams.facts()[0].ejected_until, Some(now + expected));
        assert_eq!(state(&upstreams, 0), UpstreamState::Ejected);
        assert_eq!(upstreams.choose_by_hash(now, key(1), None), None);
        assert_eq!(upstreams.fit_again_at(now), Some(now + expected));
        now = now + expected;
        // One request tries it, and no other meanwhile.
        let ix = upstreams.choose_by_hash(now, key(1), None).expect("it is tried");
        let ticket = upstreams.began(now, ix);
        assert_eq!(upstreams.choose_by_hash(now, key(1), None), None);
        upstreams.ended(now, ticket, Outcome::ConnectFailed);
        expected = (expected * 2).min(longest);
    }
    assert_eq!(expected, longest);
    now = now + longest;
    // A client that goes away leaves the try to the next one; a WebSocket is in when it is open.
    request(&mut upstreams, now, 1, Outcome::ClientGone);
    assert_eq!(state(&upstreams, 0), UpstreamState::Ejected);
    let ix = upstreams.choose_by_hash(now, key(1), None).unwrap();
    let mut ticket = upstreams.began(now, ix);
    upstreams.answered(now, &mut ticket);
    assert_eq!(state(&upstreams, 0), UpstreamState::Up);
    // It relapses at once: out for long; later: for a short time again.
    repeat(&mut upstreams, now, 3, Outcome::Reset);
    assert_eq!(upstreams.facts()[0].ejected_until, Some(now + longest));
    now = now + longest;
    request(&mut upstreams, now, 1, Outcome::Answered);
    now = now + longest;
    repeat(&mut upstreams, now, 3, Outcome::Reset);
    assert_eq!(upstreams.facts()[0].ejected_until, Some(now + first));
    upstreams.ended(now, ticket, Outcome::Answered);
    assert_eq!(upstreams.facts()[0].open, 0);
}

#[test]
fn an_answer_between_failures_and_clients_that_leave_eject_nobody() {
    let mut upstreams = Upstreams::new(UpstreamConfig { eject_after: 2, ..quiet(1) }, T0, 1);
    for _ in 0..10 {
        request(&mut upstreams, T0, 1, Outcome::Reset);
        request(&mut upstreams, T0, 1, Outcome::ClientGone);
        request(&mut upstreams, T0, 1, Outcome::Answered);
    }
    repeat(&mut upstreams, T0, 10, Outcome::ClientGone);
    assert_eq!(state(&upstreams, 0), UpstreamState::Up);
}

#[test]
fn an_upstream_that_its_checks_see_come_back_is_not_ejected_any_more() {
    let mut upstreams = Upstreams::new(UpstreamConfig { eject_after: 1, ..checked(1) }, T0, 1);
    request(&mut upstreams, T0, 1, Outcome::ConnectFailed);
    assert_eq!(state(&upstreams, 0), UpstreamState::Ejected);
    let down = T0 + 10 * second();
    run(&mut upstreams, T0, down, |_| Some(false));
    assert_eq!(state(&upstreams, 0), UpstreamState::Down);
    let up = down + 5 * second();
    run(&mut upstreams, down, up, |_| Some(true));
    assert_eq!(state(&upstreams, 0), UpstreamState::Up);
    assert!(upstreams.choose_by_hash(up, key(1), None).is_some());
}

#[test]
fn an_upstream_off_the_list_keeps_what_is_open_until_it_ends() {
    let mut upstreams = Upstreams::new(checked(2), T0, 1);
    let (ix, _) = upstreams.by_name(&names(2)[1]).unwrap();
    let ticket = upstreams.began(T0, ix);
    upstreams.set_names(&names(1), T0);
    upstreams.check_invariants();
    assert_eq!(upstreams.by_name(&names(2)[1]), None);
    assert!(!upstreams.takes_bound(T0, ix));
    assert_eq!(upstreams.facts().len(), 2);
    assert!((0..1_000).all(|n| upstreams.choose_by_hash(T0, key(n), None) != Some(ix)));
    // Back on the list it is the one it was, and its load was never forgotten.
    upstreams.set_names(&names(2), T0);
    assert_eq!(upstreams.by_name(&names(2)[1]).map(|(ix, _)| ix), Some(ix));
    assert_eq!(upstreams.facts()[1].open, 1);
    upstreams.set_names(&names(1), T0);
    upstreams.ended(T0, ticket, Outcome::Answered);
    upstreams.check_invariants();
    assert_eq!(upstreams.facts().len(), 1);
}

#[test]
fn without_checks_nothing_stays_down() {
    let mut upstreams = Upstreams::new(checked(2), T0, 1);
    let later = T0 + 20 * second();
    run(&mut upstreams, T0, later, |_| Some(false));
    assert_eq!(state(&upstreams, 0), UpstreamState::Down);
    upstreams.set_config(quiet(2), later);
    upstreams.check_invariants();
    assert_eq!(state(&upstreams, 0), UpstreamState::Unknown);
    assert_eq!(upstreams.next_deadline(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Request(u32, u8),
    End(usize, u8),
    Wait(u16),
    Checked(u8),
    Names(u8),
    Drain(u8, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..50_u32, any::<u8>()).prop_map(|(key, how)| Step::Request(key, how)),
        5 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Step::End(which, how)),
        3 => (0..3_000_u16).prop_map(Step::Wait),
        3 => any::<u8>().prop_map(Step::Checked),
        1 => (0..7_u8).prop_map(Step::Names),
        1 => (0..7_u8, any::<bool>()).prop_map(|(which, on)| Step::Drain(which, on)),
    ];
    proptest::collection::vec(step, 1..200)
}

fn outcome(how: u8) -> Outcome {
    match how % 8 {
        0..4 => Outcome::Answered,
        4 => Outcome::ConnectFailed,
        5 => Outcome::Reset,
        6 => Outcome::TimedOut,
        _ => Outcome::ClientGone,
    }
}

proptest! {
    /// Whatever happens: who is chosen is fit and under its share; what is open is counted; deadlines pass.
    #[test]
    fn any_story_keeps_to_the_bounds(steps in steps(), floor in prop_oneof![Just(0_u32), Just(8)]) {
        let config = UpstreamConfig { eject_after: 2, load_floor: floor, ..checked(4) };
        let mut upstreams = Upstreams::new(config, T0, 9);
        let mut now = T0;
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut checks: Vec<Check> = Vec::new();
        for step in steps {
            match step {
                Step::Request(n, how) => {
                    let by_hash = how % 2 == 0;
                    let chosen = match by_hash {
                        true => upstreams.choose_by_hash(now, key(n), None),
                        false => upstreams.least_loaded(now, None),
                    };
                    let fit: Vec<u32> = upstreams
                        .iter()
                        .filter(|(_, upstream)| upstream.takes_new(now))
                        .map(|(_, upstream)| upstream.open)
                        .collect();
                    prop_assert_eq!(chosen.is_some(), !fit.is_empty());
                    if let Some(ix) = chosen {
                        prop_assert!(upstreams.takes_bound(now, ix));
                        tickets.push(upstreams.began(now, ix));
                        let load = u64::from(upstreams.upstream(ix).unwrap().open);
                        let all = fit.iter().map(|open| u64::from(*open)).sum::<u64>() + 1;
                        let share = (125 * all).div_ceil(100 * fit.len() as u64);
                        prop_assert!(load <= share.max(u64::from(floor)), "{load} of {all} at one of {}", fit.len());
                    }
                }
                Step::End(which, how) => {
                    if !tickets.is_empty() {
                        let ticket = tickets.swap_remove(which % tickets.len());
                        upstreams.ended(now, ticket, outcome(how));
                    }
                }
                Step::Wait(millis) => now = now + Duration::from_millis(u64::from(millis)),
                Step::Checked(how) => {
                    if !checks.is_empty() {
                        let check = checks.swap_remove(usize::from(how) % checks.len());
                        upstreams.checked(now, &check, how % 3 != 0);
                    }
                }
                Step::Names(count) => upstreams.set_names(&names(usize::from(count)), now),
                Step::Drain(which, on) => {
                    let name = &names(7)[usize::from(which)];
                    let until = now + second();
                    let known = if on { upstreams.drain(name, Some(until)) } else { upstreams.resume(name) };
                    prop_assert_eq!(known, upstreams.by_name(name).is_some());
                }
            }
            for _ in 0..100 {
                match upstreams.poll(now) {
                    Some(UpstreamOutput::Check(check)) => checks.push(check),
                    Some(_) => {}
                    None => break,
                }
            }
            prop_assert_eq!(upstreams.poll(now), None, "there is no end to what is to do");
            prop_assert!(upstreams.next_deadline().is_none_or(|next| next > now));
            upstreams.check_invariants();
            let open: u32 = upstreams.facts().iter().map(|facts| facts.open).sum();
            prop_assert_eq!(open as usize, tickets.len());
        }
    }
}
