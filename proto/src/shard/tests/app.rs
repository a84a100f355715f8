//! Products with code of their own: what it is asked, and that its commands take effect once.

use bytes::Bytes;

use super::*;
use crate::wire::{Action, Broadcast, DetachReason};

fn mesh(nodes: usize, shards: u16, app: fn(&AppCall) -> AppOutcome) -> Mesh {
    let rules = ProductRules { is_app: true, ..ProductRules::open("chat") };
    let mut mesh = Mesh::with(nodes, shards, Limits::default(), rules);
    mesh.app = Some(app);
    mesh
}

fn done(commands: Vec<AppCommand>, answer: Option<&str>) -> AppOutcome {
    AppOutcome { commands, then: AppThen::Done(answer.map(|json| Payload::json(json.to_owned()))) }
}

fn emit(json: &str) -> AppCommand {
    AppCommand::Emit { payload: Payload::json(json.to_owned()), volatile: false, asks: None }
}

fn publish(rooms: &[&str], json: &str) -> AppCommand {
    AppCommand::Publish {
        rooms: rooms.iter().map(|room| (*room).into()).collect(),
        payload: Payload::json(json.to_owned()),
        except_sids: Vec::new(),
        except_rooms: Vec::new(),
        volatile: false,
        asks: None,
    }
}

/// An event whose answers go to whoever waits under 55.
fn asking_publish(rooms: &[&str], json: &str) -> AppCommand {
    match publish(rooms, json) {
        AppCommand::Publish { rooms, payload, except_sids, except_rooms, volatile, .. } => {
            let asks = Some((55, Duration::from_secs(3)));
            AppCommand::Publish { rooms, payload, except_sids, except_rooms, volatile, asks }
        }
        other => other,
    }
}

/// Says who is there, joins two rooms, and does what events ask for.
fn chat(call: &AppCall) -> AppOutcome {
    match &call.event {
        AppEvent::Connect { auth } if auth == "{\"no\":1}" => AppOutcome {
            commands: Vec::new(),
            then: AppThen::Refuse("not you".into(), Some("{\"why\":1}".into())),
        },
        AppEvent::Connect { auth } => {
            let data = AppCommand::SetData(auth.clone());
            let join = |room: &str| AppCommand::Join(room.into());
            done(vec![data, join("a"), join("b"), emit("[\"hello\"]"), publish(&["a"], "[\"came\"]")], None)
        }
        AppEvent::Event { payload, wants_ack } => {
            let echo = [b"[\"echo\",", &payload.json[1..]].concat();
            let echo = Payload::json(Bytes::from(echo));
            let commands = if payload.json.starts_with(b"[\"both\"") {
                vec![publish(&["a", "b", "c"], "[\"both\"]")]
            } else if payload.json.starts_with(b"[\"all\"") {
                vec![publish(&[], "[\"all\"]")]
            } else if payload.json.starts_with(b"[\"leave\"") {
                vec![AppCommand::Leave("a".into())]
            } else if payload.json.starts_with(b"[\"bye\"") {
                vec![emit("[\"last\"]"), AppCommand::Disconnect { close: false }]
            } else if payload.json.starts_with(b"[\"who\"") {
                vec![asking_publish(&["a", "b"], "[\"who\"]")]
            } else if payload.json.starts_with(b"[\"move\"") {
                let action = Action::Join(vec!["new".into()]);
                let (except_sids, except_rooms) = (Vec::new(), Vec::new());
                let act = AppCommand::Act { rooms: vec!["a".into()], action, except_sids, except_rooms };
                vec![act, emit("[\"moved\"]")]
            } else if payload.json.starts_with(b"[\"new\"") {
                vec![publish(&["new"], "[\"new\"]")]
            } else if payload.json.starts_with(b"[\"ask\"") {
                let payload = Payload::json("[\"what\"]");
                vec![AppCommand::Emit { payload, volatile: false, asks: Some(77) }]
            } else {
                vec![AppCommand::Emit { payload: echo, volatile: false, asks: None }]
            };
            let data = format!("[{}]", String::from_utf8_lossy(&call.data));
            done(commands, wants_ack.then_some(&*data))
        }
        other => panic!("nobody answers {other:?}"),
    }
}

fn enter(mesh: &mut Mesh, at: At, uid: &str) -> Client {
    let client = mesh.open(at, ClientProtocol::SocketIo, Ok(uid));
    mesh.take(client);
    let got = mesh.ask(client, "40{\"token\":1}");
    assert!(got[0].starts_with("40{\"sid\""), "{got:?}");
    assert_eq!(
        got[1..],
        ["42[\"hello\"]", "42[\"came\"]"],
        "what the code said while it let it in comes after"
    );
    client
}

#[test]
fn the_code_lets_in_and_what_it_says_comes_after_the_welcome() {
    let mut mesh = mesh(3, 2, chat);
    let a = enter(&mut mesh, (0, 0), "alice");
    let b = enter(&mut mesh, (1, 1), "bob");
    assert_eq!(mesh.take(a), ["42[\"came\"]"]);
    assert_eq!(mesh.ask(b, "427[\"x\",{\"n\":1}]"), ["42[\"echo\",\"x\",{\"n\":1}]", "437[{\"token\":1}]"]);
    assert_eq!(mesh.ask(b, "42[\"x\"]"), ["42[\"echo\",\"x\"]"]);
    assert_eq!(mesh.ask(b, "42[\"all\"]"), ["42[\"all\"]"]);
    assert_eq!(mesh.take(a), ["42[\"all\"]"]);
}

#[test]
fn the_code_refuses_and_the_client_may_try_again_over_the_same_transport() {
    let mut mesh = mesh(2, 1, chat);
    let a = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(a);
    assert_eq!(mesh.ask(a, "40{\"no\":1}"), ["44{\"message\":\"not you\",\"data\":{\"why\":1}}"]);
    assert_eq!(mesh.stats(|s| s.sessions), 0);
    assert!(mesh.ask(a, "40")[0].starts_with("40{"));
    assert!(mesh.asked.iter().all(|(_, call)| call.call.is_some()), "who never came in does not leave");
}

#[test]
fn who_is_in_several_of_the_rooms_gets_it_once() {
    let mut mesh = mesh(3, 1, chat);
    let (a, b) = (enter(&mut mesh, (0, 0), "alice"), enter(&mut mesh, (1, 0), "bob"));
    mesh.take(a);
    mesh.say(b, "42[\"leave\"]");
    for n in 1..=3 {
        let got = mesh.ask(b, &format!("42{n}[\"both\"]"));
        assert_eq!(got, ["42[\"both\"]".to_owned(), format!("43{n}[{{\"token\":1}}]")]);
        assert_eq!(mesh.take(a), ["42[\"both\"]"]);
    }
}

#[test]
fn a_client_answers_what_it_is_asked_or_is_gone() {
    let mut mesh = mesh(2, 1, chat);
    let a = enter(&mut mesh, (0, 0), "alice");
    let got = mesh.ask(a, "42[\"ask\"]");
    let id = got[0].strip_prefix("42").unwrap().split('[').next().unwrap().to_owned();
    assert_eq!(got, [format!("42{id}[\"what\"]")]);
    mesh.say(a, &format!("43{id}[\"this\"]"));
    assert_eq!(mesh.app_answered, [(77, Some(Payload::json("[\"this\"]")))]);
    mesh.say(a, &format!("43{id}[\"again\"]"));
    mesh.say(a, "42[\"ask\"]");
    mesh.gone(a);
    assert_eq!(mesh.app_answered[1..], [(77, None)]);
}

/// The id that the last event asks under.
fn asked_under(got: &[String], json: &str) -> String {
    let id = got.iter().rev().find_map(|text| text.strip_prefix("42")?.strip_suffix(json));
    id.unwrap_or_else(|| panic!("nobody asks: {got:?}")).to_owned()
}

#[test]
fn the_members_of_rooms_answer_the_code() {
    let mut mesh = mesh(3, 1, chat);
    let (a, b) = (enter(&mut mesh, (0, 0), "alice"), enter(&mut mesh, (1, 0), "bob"));
    mesh.wait(3 * second());
    mesh.take(a);
    let got = mesh.ask(b, "421[\"who\"]");
    let id = asked_under(&got, "[\"who\"]");
    mesh.say(b, &format!("43{id}[\"bob\"]"));
    assert_eq!(mesh.app_gathered, [], "one is missing");
    let id = asked_under(&mesh.take(a), "[\"who\"]");
    mesh.say(a, &format!("43{id}[\"alice\"]"));
    let (name, all) = mesh.app_gathered.pop().expect("all have answered");
    assert!(name == 55 && all.is_complete() && all.answers.len() == 2, "{all:?}");
}

#[test]
fn what_the_code_waits_for_overtakes_events_that_wait_for_the_code() {
    let mut mesh = mesh(2, 1, |call| match &call.event {
        AppEvent::Event { payload, .. } if payload.json.starts_with(b"[\"ask\"") => {
            let payload = Payload::json("[\"what\"]");
            let ask = AppCommand::Emit { payload, volatile: false, asks: Some(77) };
            AppOutcome { commands: vec![ask], then: AppThen::More }
        }
        _ => chat(call),
    });
    let a = enter(&mut mesh, (0, 0), "alice");
    let got = mesh.ask(a, "42[\"ask\"]");
    let id = asked_under(&got, "[\"what\"]");
    // The code is still at the first event; the next ones wait for it.
    mesh.say(a, "42[\"x\"]");
    mesh.say(a, &format!("43{id}[\"this\"]"));
    assert_eq!(mesh.app_answered, [(77, Some(Payload::json("[\"this\"]")))]);
    let act = Broadcast {
        rooms: vec![room_key("a")],
        event: RoomEvent::new(Payload::json("[]")),
        action: Some(Action::Join(vec!["z".into()])),
        within_ms: Some(3_000),
    };
    mesh.begin_query(1, 9, Query::Broadcast(Box::new(act)));
    mesh.wait(2 * second());
    let Some(Ok(Answer::Gathered(done))) = mesh.answers.remove(&9) else { panic!("it waits for the code") };
    assert!(done.is_complete() && done.answers.len() == 1, "{done:?}");
    assert!(mesh.take(a).is_empty(), "the second event waits");
    let call = mesh.asked.iter().rev().find_map(|(_, c)| Some((c.identity.sid, c.call?))).unwrap();
    let owner = mesh.owner_of_user("alice");
    mesh.input((owner, 0), Input::App(call.0, call.1, done_with_nothing()));
    mesh.settle();
    assert_eq!(mesh.take(a), ["42[\"echo\",\"x\"]"]);
}

fn done_with_nothing() -> AppOutcome {
    done(Vec::new(), None)
}

#[test]
fn an_owner_that_dies_at_any_message_leaves_actions_of_the_code_done_and_nobody_asked_twice() {
    let steps = |kill_after: Option<usize>| {
        let mut mesh = mesh(4, 1, chat);
        let owner = mesh.owner_of_user("alice");
        let (a, b) = (
            enter(&mut mesh, ((owner + 1) % 4, 0), "alice"),
            enter(&mut mesh, ((owner + 2) % 4, 0), &mesh_user(owner)),
        );
        mesh.wait(3 * second());
        mesh.take(a);
        mesh.send(a, "421[\"move\"]");
        mesh.send(a, "422[\"who\"]");
        let mut delivered = 0;
        while let Some((to, envelope)) = mesh.queue.pop_front() {
            if kill_after == Some(delivered) {
                mesh.alive[owner] = false;
                mesh.queue.push_front((to, envelope));
                mesh.views();
                break;
            }
            mesh.deliver(to, envelope);
            delivered += 1;
        }
        mesh.settle();
        mesh.wait(second());
        let got = [mesh.take(a), mesh.take(b)];
        for got in &got {
            let asked = got.iter().filter(|text| text.ends_with("[\"who\"]")).count();
            assert_eq!(asked, 1, "killed after {kill_after:?}: {got:?}");
        }
        let own = events(&got[0]).iter().filter(|text| **text == "42[\"moved\"]").count();
        assert_eq!(own, 1, "killed after {kill_after:?}: {got:?}");
        mesh.ask(a, "423[\"new\"]");
        assert_eq!(events(&mesh.take(b)), ["42[\"new\"]"], "killed after {kill_after:?}: it has joined");
        delivered
    };
    let all = steps(None);
    for after in 0..all {
        steps(Some(after));
    }
}

/// A user whose owner lives when node `dead` does not.
fn mesh_user(dead: usize) -> String {
    let mesh = Mesh::new(4, 1);
    mesh.user_at((dead + 3) % 4)
}

#[test]
fn the_code_is_told_of_comings_and_goings_in_order_and_once() {
    let mut mesh = mesh(2, 1, chat);
    mesh.offsets = true;
    let a = mesh.open((0, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(a);
    let pid = mesh.ask(a, "40{}")[0].split('"').nth(7).unwrap().to_owned();
    mesh.gone(a);
    let back = mesh.open((1, 0), ClientProtocol::SocketIo, Ok("alice"));
    mesh.take(back);
    let got = mesh.ask(back, &format!("40{{\"pid\":\"{pid}\"}}"));
    assert!(got[0].contains(&pid), "{got:?}");
    assert_eq!(
        got[1..],
        ["42[\"hello\"", "42[\"came\""].map(|begin| got
            .iter()
            .find(|t| t.starts_with(begin))
            .unwrap()
            .clone())
    );
    mesh.say(back, "42[\"bye\"]");
    let told: Vec<AppEvent> =
        mesh.asked.iter().filter(|(_, c)| c.call.is_none()).map(|(_, c)| c.event.clone()).collect();
    let expected = [
        AppEvent::Detach(DetachReason::TransportClose),
        AppEvent::Attach,
        AppEvent::Disconnect(DetachReason::ServerDisconnect),
    ];
    assert_eq!(told, expected);
}

#[test]
fn an_owner_that_dies_at_any_message_leaves_each_command_done_once() {
    // How many messages go until everything has come to rest, without a crash.
    let steps = |kill_after: Option<usize>| {
        let mut mesh = mesh(3, 1, chat);
        let owner = mesh.owner_of_user("alice");
        let at = ((owner + 1) % 3, 0);
        let a = enter(&mut mesh, at, "alice");
        mesh.send(a, "42[\"x\",1]");
        mesh.send(a, "425[\"both\"]");
        mesh.send(a, "42[\"x\",2]");
        let mut delivered = 0;
        while let Some((to, envelope)) = mesh.queue.pop_front() {
            if kill_after == Some(delivered) {
                mesh.alive[owner] = false;
                mesh.queue.push_front((to, envelope));
                mesh.views();
                break;
            }
            mesh.deliver(to, envelope);
            delivered += 1;
        }
        mesh.settle();
        let got = mesh.take(a);
        let (first, both, answer, second) =
            ("42[\"echo\",\"x\",1]", "42[\"both\"]", "435[{\"token\":1}]", "42[\"echo\",\"x\",2]");
        // What is for the client alone keeps its order; its own event comes before the answer to it.
        let own: Vec<&str> = got.iter().map(String::as_str).filter(|text| *text != both).collect();
        assert_eq!(own, [first, answer, second], "killed after {kill_after:?} of the messages");
        let place = |wanted: &str| got.iter().position(|text| text == wanted);
        assert!(got.len() == 4 && place(both) < place(answer), "killed after {kill_after:?}: {got:?}");
        delivered
    };
    let all = steps(None);
    for after in 0..all {
        steps(Some(after));
    }
}
