//! Questions to the members of rooms, and actions on them.

use super::*;
use crate::wire::{Action, Broadcast, Gathered};

const WITHIN: Duration = Duration::from_secs(3);

/// One who joins rooms by events of the built-in product.
fn member(mesh: &mut Mesh, at: At, uid: &str, rooms: &[&str]) -> Client {
    let client = mesh.client(at, uid);
    for room in rooms {
        let got = mesh.ask(client, &format!("420[\"join\",\"{room}\"]"));
        assert!(got[0].starts_with("430[{\"ok\":true"), "{got:?}");
    }
    client
}

pub(super) fn broadcast(rooms: &[&str], json: &str) -> Broadcast {
    Broadcast {
        rooms: rooms.iter().map(|room| room_key(room)).collect(),
        event: RoomEvent::new(Payload::json(json.to_owned())),
        action: None,
        within_ms: Some(u32::try_from(WITHIN.as_millis()).unwrap()),
    }
}

fn action(rooms: &[&str], action: Action) -> Broadcast {
    Broadcast { action: Some(action), ..broadcast(rooms, "[]") }
}

fn join(room: &str) -> Action {
    Action::Join(vec![room.into()])
}

fn leave(room: &str) -> Action {
    Action::Leave(vec![room.into()])
}

/// Begins under token 9; nothing is delivered yet.
fn begin(mesh: &mut Mesh, n: usize, broadcast: Broadcast) {
    mesh.begin_query(n, 9, Query::Broadcast(Box::new(broadcast)));
}

fn gathered(mesh: &mut Mesh) -> Option<Gathered> {
    match mesh.answers.remove(&9)? {
        Ok(Answer::Gathered(gathered)) => Some(gathered),
        other => panic!("{other:?}"),
    }
}

/// Waits for what is not told at once: just after a ring has changed, edges may still come.
fn wait_gathered(mesh: &mut Mesh) -> Gathered {
    for _ in 0..40 {
        if let Some(gathered) = gathered(mesh) {
            return gathered;
        }
        mesh.wait(Duration::from_millis(100));
    }
    panic!("a question without an end");
}

/// A mesh whose ring has been the same for a while.
fn calm(nodes: usize, shards: u16) -> Mesh {
    let mut mesh = Mesh::new(nodes, shards);
    mesh.wait(3 * second());
    mesh
}

/// The id that a client is asked under by its last event.
fn asked(mesh: &mut Mesh, client: Client, json: &str) -> Option<String> {
    let got = mesh.take(client);
    let mut ids = got.iter().filter_map(|text| text.strip_prefix("42")?.strip_suffix(json));
    ids.next_back().filter(|id| !id.is_empty()).map(str::to_owned)
}

fn answers(mesh: &mut Mesh, client: Client, json: &str, answer: &str) {
    let id = asked(mesh, client, json).expect("it is asked");
    mesh.say(client, &format!("43{id}{answer}"));
}

fn texts(gathered: &Gathered) -> Vec<String> {
    let text = |payload: &Payload| String::from_utf8(payload.json.to_vec()).unwrap();
    let mut texts: Vec<String> =
        gathered.answers.iter().filter_map(|(_, answer)| answer.as_ref().map(text)).collect();
    texts.sort();
    texts
}

#[test]
fn every_member_at_any_node_answers_once_and_then_it_is_over() {
    let mut mesh = calm(3, 2);
    let a = member(&mut mesh, (0, 0), "alice", &["r", "s"]);
    let b = member(&mut mesh, (1, 1), "bob", &["r"]);
    let c = member(&mut mesh, (2, 0), "carol", &["s"]);
    let d = member(&mut mesh, (2, 1), "dora", &["t"]);
    begin(&mut mesh, 0, broadcast(&["r", "s"], "[\"q\",1]"));
    mesh.settle();
    answers(&mut mesh, b, "[\"q\",1]", "[\"b\",{\"n\":2}]");
    answers(&mut mesh, c, "[\"q\",1]", "[]");
    assert_eq!(gathered(&mut mesh), None, "one is missing");
    answers(&mut mesh, a, "[\"q\",1]", "[\"a\"]");
    let all = gathered(&mut mesh).expect("all have answered");
    assert!(all.is_complete(), "{all:?}");
    assert_eq!(texts(&all), ["[\"a\"]", "[\"b\",{\"n\":2}]", "[]"]);
    assert!(mesh.take(d).is_empty() && mesh.take(a).is_empty(), "who is in both rooms is asked once");
    // Nobody there is answered at once.
    begin(&mut mesh, 1, broadcast(&["empty"], "[\"q\"]"));
    mesh.settle();
    assert_eq!(gathered(&mut mesh), Some(Gathered::default()));
}

#[test]
fn who_is_excepted_is_not_asked_and_everyone_is_a_room() {
    let mut mesh = calm(2, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["quiet"]);
    let mut all = broadcast(&[""], "[\"q\"]");
    all.event.except_rooms = vec!["quiet".into()];
    begin(&mut mesh, 1, all);
    mesh.settle();
    answers(&mut mesh, a, "[\"q\"]", "[1]");
    assert_eq!(texts(&gathered(&mut mesh).unwrap()), ["[1]"]);
    assert!(mesh.take(b).is_empty());
}

#[test]
fn who_does_not_answer_is_missing_in_time_and_late_or_double_answers_are_ignored() {
    let mut mesh = calm(2, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["r"]);
    begin(&mut mesh, 0, broadcast(&["r"], "[\"q\"]"));
    mesh.settle();
    let (id_a, id_b) = (asked(&mut mesh, a, "[\"q\"]").unwrap(), asked(&mut mesh, b, "[\"q\"]").unwrap());
    for _ in 0..2 {
        mesh.say(a, &format!("43{id_a}[1]"));
    }
    mesh.wait(WITHIN);
    let partial = gathered(&mut mesh).expect("it is over by now");
    assert_eq!((texts(&partial), partial.missing, partial.is_complete()), (vec!["[1]".into()], 1, false));
    assert!(partial.silent.is_empty(), "its edge has said whom it asks");
    mesh.say(b, &format!("43{id_b}[2]"));
    assert_eq!(mesh.ask(b, "421[\"rooms\"]"), ["431[{\"ok\":true,\"rooms\":[\"r\"]}]"], "it goes on");
}

#[test]
fn who_goes_is_missing_at_once() {
    let mut mesh = calm(2, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["r"]);
    begin(&mut mesh, 0, broadcast(&["r"], "[\"q\"]"));
    mesh.settle();
    answers(&mut mesh, a, "[\"q\"]", "[1]");
    mesh.gone(b);
    let partial = gathered(&mut mesh).expect("nothing more can come");
    assert_eq!((texts(&partial), partial.missing), (vec!["[1]".into()], 1));
}

#[test]
fn an_edge_that_dies_is_named_and_what_its_members_had_said_counts() {
    let mut mesh = calm(3, 1);
    let room = mesh.room_at(0);
    let a = member(&mut mesh, (0, 0), "alice", &[&room]);
    let b = member(&mut mesh, (2, 0), "bob", &[&room]);
    let c = member(&mut mesh, (2, 0), "carol", &[&room]);
    begin(&mut mesh, 1, broadcast(&[&room], "[\"q\"]"));
    mesh.settle();
    answers(&mut mesh, a, "[\"q\"]", "[1]");
    answers(&mut mesh, b, "[\"q\"]", "[2]");
    assert!(asked(&mut mesh, c, "[\"q\"]").is_some());
    mesh.alive[2] = false;
    mesh.views();
    let partial = gathered(&mut mesh).expect("nothing more can come");
    assert_eq!((texts(&partial), partial.missing), (vec!["[1]".into(), "[2]".into()], 1));
    assert_eq!(partial.silent, [mesh.nodes[2]]);
}

#[test]
fn a_rooms_owner_that_dies_at_any_message_leaves_everybody_asked_once() {
    let steps = |kill_after: Option<usize>| {
        let mut mesh = calm(4, 1);
        let room = mesh.room_at(3);
        let uids = [0, 1, 2].map(|n| mesh.user_at(n));
        let clients = [0, 1, 2].map(|n| member(&mut mesh, (n, 0), &uids[n], &[&room]));
        begin(&mut mesh, 0, broadcast(&[&room], "[\"q\"]"));
        let mut delivered = 0;
        while let Some((to, envelope)) = mesh.queue.pop_front() {
            if kill_after == Some(delivered) {
                mesh.queue.push_front((to, envelope));
                mesh.alive[3] = false;
                mesh.views();
                break;
            }
            mesh.deliver(to, envelope);
            delivered += 1;
        }
        mesh.settle();
        for client in &clients {
            let got = mesh.take(*client);
            let asked: Vec<&String> = got.iter().filter(|text| text.ends_with("[\"q\"]")).collect();
            assert_eq!(asked.len(), 1, "killed after {kill_after:?}: {got:?}");
            let id = asked[0].strip_prefix("42").unwrap().strip_suffix("[\"q\"]").unwrap();
            mesh.say(*client, &format!("43{id}[0]"));
        }
        let all = wait_gathered(&mut mesh);
        assert!(all.is_complete() && all.answers.len() == 3, "killed after {kill_after:?}: {all:?}");
        delivered
    };
    let all = steps(None);
    (0..all).for_each(|after| {
        steps(Some(after));
    });
}

#[test]
fn a_polling_client_is_asked_and_who_is_behind_is_asked_when_it_comes_to_it() {
    let mut mesh = calm(2, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["r"]);
    mesh.left_over(b, 100_000);
    begin(&mut mesh, 0, broadcast(&["r"], "[\"q\"]"));
    mesh.settle();
    answers(&mut mesh, a, "[\"q\"]", "[1]");
    assert!(asked(&mut mesh, b, "[\"q\"]").is_none() && gathered(&mut mesh).is_none());
    mesh.left_over(b, 0);
    answers(&mut mesh, b, "[\"q\"]", "[2]");
    assert_eq!(texts(&gathered(&mut mesh).unwrap()), ["[1]", "[2]"]);
}

#[test]
fn what_asks_is_never_replayed() {
    let mut mesh = calm(2, 1);
    mesh.offsets = true;
    let a = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(a);
    let pid = mesh.ask(a, "40{}")[0].split('"').nth(7).unwrap().to_owned();
    mesh.ask(a, "420[\"join\",\"r\"]");
    mesh.gone(a);
    begin(&mut mesh, 0, broadcast(&["r"], "[\"q\"]"));
    mesh.settle();
    assert_eq!(gathered(&mut mesh), Some(Gathered::default()), "nobody is there");
    mesh.query(0, api_publish("r", "[\"later\"]", None)).unwrap();
    let back = mesh.open((1, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(back);
    let got = mesh.ask(back, &format!("40{{\"pid\":\"{pid}\"}}"));
    assert!(got[0].contains(&pid), "it goes on: {got:?}");
    assert!(got.len() == 2 && got[1].starts_with("42[\"later\""), "{got:?}");
}

#[test]
fn answers_beyond_the_bound_are_counted_and_the_rest_is_kept() {
    let mut mesh = calm(2, 1);
    let clients: Vec<Client> =
        (0..6).map(|n| member(&mut mesh, (n % 2, 0), &format!("user{n}"), &["r"])).collect();
    begin(&mut mesh, 0, broadcast(&["r"], "[\"q\"]"));
    mesh.settle();
    let large = format!("[\"{}\"]", "x".repeat(900_000));
    for client in clients {
        answers(&mut mesh, client, "[\"q\"]", &large);
    }
    let partial = gathered(&mut mesh).expect("all have answered");
    assert_eq!((partial.answers.len(), partial.dropped, partial.missing), (4, 2, 0));
    assert!(!partial.is_complete());
}

#[test]
fn members_join_another_room_in_force_when_it_is_told() {
    let mut mesh = calm(3, 2);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 1), "bob", &["r", "s"]);
    let c = member(&mut mesh, (2, 0), "carol", &["s"]);
    begin(&mut mesh, 2, action(&["r"], join("vip")));
    mesh.settle();
    let done = gathered(&mut mesh).expect("it is in force");
    assert!(done.is_complete() && done.answers.len() == 2, "{done:?}");
    mesh.query(1, api_publish("vip", "[\"for vips\"]", None)).unwrap();
    for (client, expected) in [(a, 1), (b, 1), (c, 0)] {
        assert_eq!(events(&mesh.take(client)).len(), expected);
    }
    assert_eq!(mesh.ask(b, "421[\"rooms\"]"), ["431[{\"ok\":true,\"rooms\":[\"r\",\"s\",\"vip\"]}]"]);
}

#[test]
fn an_action_keeps_its_place_among_the_events_of_the_room() {
    let mut mesh = calm(3, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["r", "keep"]);
    let c = member(&mut mesh, (2, 0), "carol", &["r"]);
    // All under way at once.
    mesh.begin_query(0, 3, api_publish("r", "[\"before\"]", None));
    let mut out = action(&["r"], leave("r"));
    out.event.except_rooms = vec!["keep".into()];
    begin(&mut mesh, 0, out);
    mesh.begin_query(0, 2, api_publish("r", "[\"after\"]", None));
    mesh.settle();
    assert_eq!(events(&mesh.take(a)), ["42[\"before\"]"]);
    assert_eq!(events(&mesh.take(b)), ["42[\"before\"]", "42[\"after\"]"]);
    assert_eq!(events(&mesh.take(c)), ["42[\"before\"]"]);
    assert_eq!(gathered(&mut mesh).unwrap().answers.len(), 2);
    assert_eq!(mesh.ask(a, "421[\"rooms\"]"), ["431[{\"ok\":true,\"rooms\":[]}]"]);
    let history = mesh.query(1, Query::History { room: room_key("r"), count: 10 }).unwrap();
    let Answer::History(history) = history else { panic!("{history:?}") };
    assert_eq!(history.len(), 2, "an action is no event");
}

#[test]
fn members_are_disconnected_after_what_came_before() {
    let mut mesh = calm(3, 1);
    let a = member(&mut mesh, (0, 0), "alice", &["r"]);
    let b = member(&mut mesh, (1, 0), "bob", &["r"]);
    let p = mesh.plain((2, 0), "paul");
    mesh.say(p, "{\"type\":\"join\",\"id\":1,\"room\":\"r\"}");
    mesh.take(p);
    mesh.begin_query(0, 1, api_publish("r", "[\"last words\"]", None));
    begin(&mut mesh, 0, action(&["r"], Action::Disconnect { close: true }));
    mesh.begin_query(0, 2, api_publish("r", "[\"not for you\"]", None));
    mesh.settle();
    for client in [a, b] {
        assert_eq!(mesh.take(client), ["42[\"last words\"]", "41"]);
        assert_eq!(mesh.closed(client), Some(CloseCode::Ended));
        mesh.gone(client);
    }
    let done = gathered(&mut mesh).unwrap();
    assert!(done.is_complete() && done.answers.len() == 3, "{done:?}");
    let got = mesh.take(p);
    assert!(got.len() == 2 && got[0].contains("last words") && got[1].contains("closed"), "{got:?}");
    mesh.gone(p);
    assert_eq!(mesh.stats(|s| s.sessions), 0, "nobody may come back");
}

#[test]
fn who_is_away_meets_the_action_when_it_is_back() {
    let mut mesh = calm(3, 1);
    mesh.offsets = true;
    let a = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(a);
    let pid = mesh.ask(a, "40{}")[0].split('"').nth(7).unwrap().to_owned();
    mesh.ask(a, "420[\"join\",\"r\"]");
    mesh.gone(a);
    mesh.query(0, api_publish("r", "[\"before\"]", None)).unwrap();
    begin(&mut mesh, 0, action(&["r"], leave("r")));
    mesh.settle();
    assert_eq!(gathered(&mut mesh), Some(Gathered::default()), "nobody is there");
    mesh.query(0, api_publish("r", "[\"after\"]", None)).unwrap();
    let back = mesh.open((1, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(back);
    let got = mesh.ask(back, &format!("40{{\"pid\":\"{pid}\"}}"));
    assert!(got[0].contains(&pid), "it goes on: {got:?}");
    assert!(got.len() == 2 && got[1].starts_with("42[\"before\""), "{got:?}");
    assert_eq!(mesh.ask(back, "421[\"rooms\"]"), ["431[{\"ok\":true,\"rooms\":[]}]"]);
}

#[test]
fn an_action_met_again_has_no_second_effect() {
    let mut mesh = calm(3, 1);
    mesh.offsets = true;
    let a = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(a);
    let pid = mesh.ask(a, "40{}")[0].split('"').nth(7).unwrap().to_owned();
    mesh.ask(a, "420[\"join\",\"r\"]");
    begin(&mut mesh, 1, action(&["r"], join("x")));
    mesh.settle();
    assert_eq!(gathered(&mut mesh).unwrap().answers.len(), 1);
    mesh.ask(a, "421[\"leave\",\"x\"]");
    mesh.gone(a);
    // It has seen no event, so that it goes on from its join and meets the action again.
    let back = mesh.open((2, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(back);
    let got = mesh.ask(back, &format!("40{{\"pid\":\"{pid}\"}}"));
    assert!(got[0].contains(&pid), "it goes on: {got:?}");
    assert_eq!(mesh.ask(back, "422[\"rooms\"]"), ["432[{\"ok\":true,\"rooms\":[\"r\"]}]"]);
    mesh.query(0, api_publish("r", "[\"on\"]", None)).unwrap();
    assert_eq!(events(&mesh.take(back)).len(), 1, "it is served on");
}

#[test]
fn a_node_that_dies_at_any_message_leaves_an_action_done_once_for_all_who_are_left() {
    // Everybody is owned, and the room, by one node or another; the edges of both members live.
    let steps = |victim: usize, kill_after: Option<usize>| {
        let mut mesh = calm(4, 1);
        let room = mesh.room_at(if victim == 3 { 3 } else { 1 });
        let uids = [victim, 0].map(|n| mesh.user_at(n));
        let [a, b] = [0, 1].map(|n| member(&mut mesh, (n, 0), &uids[n], &[&room]));
        mesh.begin_query(0, 1, api_publish(&room, "[\"before\"]", None));
        begin(&mut mesh, 0, action(&[&room], leave(&room)));
        mesh.begin_query(0, 2, api_publish(&room, "[\"after\"]", None));
        let mut delivered = 0;
        while let Some((to, envelope)) = mesh.queue.pop_front() {
            if kill_after == Some(delivered) {
                mesh.queue.push_front((to, envelope));
                mesh.alive[victim] = false;
                mesh.views();
                break;
            }
            mesh.deliver(to, envelope);
            delivered += 1;
        }
        mesh.settle();
        mesh.wait(second());
        for client in [a, b] {
            let got = mesh.take(client);
            assert_eq!(events(&got), ["42[\"before\"]"], "{victim} killed after {kill_after:?}: {got:?}");
            assert_eq!(mesh.ask(client, "421[\"rooms\"]"), ["431[{\"ok\":true,\"rooms\":[]}]"]);
        }
        let done = wait_gathered(&mut mesh);
        assert!(
            done.is_complete() && done.answers.len() == 2,
            "{victim} killed after {kill_after:?}: {done:?}"
        );
        delivered
    };
    for victim in [2, 3] {
        let all = steps(victim, None);
        for after in 0..all {
            steps(victim, Some(after));
        }
    }
}

#[test]
fn an_edge_that_dies_at_any_message_lets_nobody_past_an_action() {
    let steps = |kill_after: Option<usize>| {
        let mut mesh = calm(4, 1);
        mesh.offsets = true;
        let room = mesh.room_at(1);
        let a = mesh.open((3, 0), ClientProtocol::SocketIo, Ok(&mesh.user_at(0)));
        mesh.take(a);
        let pid = mesh.ask(a, "40{}")[0].split('"').nth(7).unwrap().to_owned();
        mesh.ask(a, &format!("420[\"join\",\"{room}\"]"));
        begin(&mut mesh, 0, action(&[&room], join("x")));
        mesh.begin_query(0, 2, api_publish(&room, "[\"after\"]", None));
        let mut delivered = 0;
        while let Some((to, envelope)) = mesh.queue.pop_front() {
            if kill_after == Some(delivered) {
                mesh.queue.push_front((to, envelope));
                mesh.alive[3] = false;
                mesh.views();
                break;
            }
            mesh.deliver(to, envelope);
            delivered += 1;
        }
        mesh.settle();
        if kill_after.is_none() {
            return delivered;
        }
        // It has got what the dead edge had written, and comes back with the offset of that.
        let got = mesh.take(a);
        let event = events(&got).last().map(|text| text.to_string());
        let offset = event.as_ref().map(|text| text.split('"').nth(3).unwrap().to_owned());
        let seen = offset.map_or(String::new(), |offset| format!(",\"offset\":\"{offset}\""));
        let back = mesh.open((2, 0), ClientProtocol::SocketIo, Ok(&mesh.user_at(0)));
        mesh.take(back);
        let got = mesh.ask(back, &format!("40{{\"pid\":\"{pid}\"{seen}}}"));
        assert!(got[0].contains(&pid), "killed after {kill_after:?}: it goes on: {got:?}");
        let missed = usize::from(event.is_none());
        assert_eq!(events(&got).len(), missed, "killed after {kill_after:?}: {got:?}");
        let rooms = mesh.ask(back, "422[\"rooms\"]");
        let both = format!("432[{{\"ok\":true,\"rooms\":[\"{room}\",\"x\"]}}]");
        assert_eq!(rooms, [both], "killed after {kill_after:?}");
        delivered
    };
    let all = steps(None);
    (0..all).for_each(|after| {
        steps(Some(after));
    });
}

fn members_of(mesh: &mut Mesh, n: usize, rooms: &[&str], except: &[&str]) -> crate::wire::Members {
    let rooms = rooms.iter().map(|room| room_key(room)).collect();
    let except_rooms = except.iter().map(|room| (*room).into()).collect();
    mesh.begin_query(n, 9, Query::MembersOf { rooms, except_sids: Vec::new(), except_rooms });
    mesh.wait(second());
    match mesh.answers.remove(&9) {
        Some(Ok(Answer::Members(members))) => members,
        other => panic!("{other:?}"),
    }
}

fn uids(members: &crate::wire::Members) -> Vec<&str> {
    members.listed.iter().map(|member| &*member.uid).collect()
}

#[test]
fn members_of_several_rooms_are_listed_once_and_silent_nodes_are_named() {
    let mut mesh = calm(3, 2);
    member(&mut mesh, (0, 0), "alice", &["r", "s"]);
    member(&mut mesh, (1, 1), "bob", &["s"]);
    member(&mut mesh, (2, 0), "carol", &["r", "quiet"]);
    member(&mut mesh, (2, 1), "dora", &["r"]);
    let all = members_of(&mut mesh, 0, &["r", "s"], &[]);
    assert_eq!((all.sessions, uids(&all), all.silent.len()), (4, vec!["alice", "bob", "carol", "dora"], 0));
    let some = members_of(&mut mesh, 1, &["r", "s"], &["quiet"]);
    assert_eq!((some.sessions, uids(&some)), (3, vec!["alice", "bob", "dora"]));
    mesh.cut = Some((2, 0));
    let partial = members_of(&mut mesh, 0, &["r", "s"], &[]);
    assert_eq!((uids(&partial), partial.silent.clone()), (vec!["alice", "bob"], vec![mesh.nodes[2]]));
}

#[test]
fn who_is_in_a_room_is_known_while_its_owner_moves_and_without_its_owner() {
    let mut mesh = calm(3, 1);
    let room = mesh.room_at(2);
    member(&mut mesh, (0, 0), "alice", &[&room]);
    member(&mut mesh, (1, 0), "bob", &[&room]);
    let query = Query::Members { room: room_key(&room), list: true };
    // The owner dies; the next one is asked before anybody has subscribed there.
    mesh.alive[2] = false;
    let next = mesh.owner_of_room(&room);
    mesh.view_at(next);
    mesh.begin_query(next, 9, query.clone());
    mesh.views();
    mesh.wait(second());
    let Some(Ok(Answer::Members(members))) = mesh.answers.remove(&9) else { panic!("no answer") };
    assert_eq!((uids(&members), members.silent.len()), (vec!["alice", "bob"], 0));
    // The owner hears nothing, and nobody takes it for dead.
    mesh.wait(5 * second());
    let other = 1 - next;
    mesh.cut = Some((other, next));
    mesh.begin_query(other, 9, query);
    mesh.wait(6 * second());
    let Some(Ok(Answer::Members(members))) = mesh.answers.remove(&9) else { panic!("no answer") };
    assert_eq!((members.sessions, members.silent), (0, vec![mesh.nodes[next]]));
}
