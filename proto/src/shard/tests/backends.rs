//! What backends and operators ask.

use super::*;

#[test]
fn backends_publish_ask_and_command() {
    let mut mesh = Mesh::new(3, 2);
    let a = mesh.client((0, 0), "alice");
    assert_eq!(mesh.query(1, user("alice", Command::Join("r".into()))), Ok(Answer::Done { sessions: 1 }));
    let first = mesh.query(1, api_publish("r", "[\"e\",1]", Some("k")));
    assert!(matches!(first, Ok(Answer::Published { duplicate: false, .. })));
    let again = mesh.query(2, api_publish("r", "[\"e\",1]", Some("k")));
    assert!(matches!(again, Ok(Answer::Published { duplicate: true, .. })));
    assert_eq!(mesh.take(a), ["42[\"e\",1]"]);
    let Ok(Answer::Members(members)) = mesh.query(2, Query::Members { room: room_key("r"), list: true })
    else {
        panic!("no members");
    };
    assert_eq!((members.sessions, members.listed.len(), members.silent.len()), (1, 1, 0));
    let Ok(Answer::History(history)) = mesh.query(0, Query::History { room: room_key("r"), count: 9 }) else {
        panic!("no history");
    };
    assert_eq!(history.len(), 1);
    let sid = members.listed[0].sid;
    let command = Command::Emit {
        payload: Payload::json("[\"m\"]"),
        except_rooms: vec![],
        except_sids: vec![],
        dedupe: None,
    };
    let to_sid = Query::Session { product: "chat".into(), sid, command };
    assert_eq!(mesh.query(2, to_sid), Ok(Answer::Done { sessions: 1 }));
    assert_eq!(mesh.take(a), ["42[\"m\"]"]);
    let Ok(Answer::User(facts)) =
        mesh.query(1, Query::ExplainUser { product: "chat".into(), uid: "alice".into() })
    else {
        panic!("no facts");
    };
    assert_eq!(facts[0].rooms, 1);
    assert!(matches!(mesh.query(1, Query::ExplainRoom(room_key("r"))), Ok(Answer::Room(_))));
    assert_eq!(mesh.query(1, Query::ExplainRoom(room_key("no"))), Err(CommandFailed::NotFound));
}

#[test]
fn a_call_without_an_answer_ends_in_time() {
    let mut mesh = Mesh::new(2, 1);
    let uid = mesh.user_at(1);
    mesh.cut = Some((0, 1));
    mesh.begin_query(0, 7, user(&uid, Command::Join("r".into())));
    mesh.wait(second() * 6);
    assert_eq!(mesh.answers[&7], Err(CommandFailed::Timeout));
}

#[test]
fn publishes_of_a_backend_keep_their_order_through_a_bounce() {
    let mut mesh = Mesh::new(3, 1);
    let room = mesh.room_at(2);
    mesh.alive[2] = false;
    let owner = mesh.owner_of_room(&room);
    let asker = 1 - owner;
    mesh.view_at(asker);
    // The new owner does not know yet: the first bounces; then it does, and the second arrives.
    mesh.begin_query(asker, 11, api_publish(&room, "[\"e\",1]", None));
    let (to, envelope) = mesh.queue.pop_front().unwrap();
    mesh.deliver(to, envelope);
    mesh.view_at(owner);
    mesh.begin_query(asker, 12, api_publish(&room, "[\"e\",2]", None));
    mesh.wait(second());
    assert_eq!(mesh.answers.len(), 2);
    assert!(mesh.answers.values().all(|a| matches!(a, Ok(Answer::Published { duplicate: false, .. }))));
    let history = mesh.query(asker, Query::History { room: room_key(&room), count: 9 });
    let Ok(Answer::History(history)) = history else { panic!("{history:?}") };
    let texts: Vec<&[u8]> = history.iter().map(|(_, payload)| &payload.json[..]).collect();
    assert_eq!(texts, [b"[\"e\",1]", b"[\"e\",2]"]);
}

#[test]
fn clients_are_closed_at_the_pace_asked_for() {
    let mut mesh = Mesh::new(1, 1);
    let clients: Vec<Client> = (0..5).map(|i| mesh.client((0, 0), &format!("u{i}"))).collect();
    let closed =
        |mesh: &Mesh| clients.iter().filter(|c| mesh.closed(**c) == Some(CloseCode::Restart)).count();
    for expected in [2, 4, 5] {
        mesh.input((0, 0), Input::CloseClients(2));
        assert_eq!(closed(&mesh), expected);
    }
}

#[test]
fn old_marks_of_a_busy_room_do_not_trim_what_is_young() {
    let limits = Limits { room_log_entries_max: 10, ..Limits::default() };
    let mut mesh = Mesh::with(1, 1, limits, ProductRules::open("chat"));
    for _ in 0..30 {
        mesh.query(0, api_publish("r", "[\"old\"]", None)).unwrap();
    }
    mesh.wait(second() * 60);
    for _ in 0..10 {
        mesh.query(0, api_publish("r", "[\"young\"]", None)).unwrap();
    }
    mesh.wait(second() * 62);
    let history = mesh.query(0, Query::History { room: room_key("r"), count: 99 });
    assert!(matches!(history, Ok(Answer::History(entries)) if entries.len() == 10));
}

fn keyed(json: &str, key: &str) -> Command {
    Command::Emit {
        payload: Payload::json(json.to_owned()),
        except_rooms: vec![],
        except_sids: vec![],
        dedupe: Some(DedupeKey { uid: None, key: key.into() }),
    }
}

#[test]
fn an_emit_that_is_repeated_after_its_owners_death_reaches_each_session_once() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    let (first, done) = (mesh.client((0, 0), &uid), |sessions| Ok(Answer::Done { sessions }));
    assert_eq!(mesh.query(0, user(&uid, keyed("[\"paid\"]", "order-1"))), done(1));
    assert_eq!(events(&mesh.take(first)), ["42[\"paid\"]"]);
    let other = mesh.client((1, 0), &uid);
    mesh.alive[2] = false;
    mesh.views();
    mesh.wait(second());
    for _ in 0..2 {
        assert_eq!(mesh.query(1, user(&uid, keyed("[\"paid\"]", "order-1"))), done(2));
    }
    assert!(mesh.take(first).is_empty(), "it had it from the owner of before");
    assert_eq!(events(&mesh.take(other)), ["42[\"paid\"]"]);
    // Another key, and one session by its id.
    assert_eq!(mesh.query(1, user(&uid, keyed("[\"sent\"]", "order-2"))), done(2));
    let explain = Query::ExplainUser { product: "chat".into(), uid: uid.as_str().into() };
    let Ok(Answer::User(facts)) = mesh.query(0, explain) else { panic!("no facts") };
    for session in facts {
        let command = keyed("[\"sent\"]", "order-2");
        let to_sid = Query::Session { product: "chat".into(), sid: session.sid, command };
        assert_eq!(mesh.query(0, to_sid), done(1));
    }
    for client in [first, other] {
        assert_eq!(events(&mesh.take(client)), ["42[\"sent\"]"]);
    }
}

#[test]
fn an_emit_whose_owner_died_before_it_was_safe_is_carried_out_when_it_is_repeated() {
    let mut mesh = Mesh::new(3, 1);
    let uid = mesh.user_at(2);
    let a = mesh.client((0, 0), &uid);
    // Its backup hears nothing any more.
    let backup = {
        mesh.alive[2] = false;
        let backup = mesh.owner_of_user(&uid);
        mesh.alive[2] = true;
        backup
    };
    mesh.cut = Some((2, backup));
    mesh.begin_query(2, 7, user(&uid, keyed("[\"paid\"]", "order-1")));
    mesh.settle();
    assert!(mesh.take(a).is_empty() && mesh.answers.is_empty());
    mesh.alive[2] = false;
    mesh.cut = None;
    mesh.kept_back.clear();
    mesh.views();
    assert_eq!(mesh.query(1, user(&uid, keyed("[\"paid\"]", "order-1"))), Ok(Answer::Done { sessions: 1 }));
    assert_eq!(events(&mesh.take(a)), ["42[\"paid\"]"]);
}

#[test]
fn a_key_of_an_emit_counts_for_its_window_under_every_owner() {
    let limits = Limits { dedupe_window: second() * 10, ..Limits::default() };
    let mut mesh = Mesh::with(3, 1, limits, ProductRules::open("chat"));
    let uid = mesh.user_at(2);
    let a = mesh.client((0, 0), &uid);
    let emit = |mesh: &mut Mesh, key: &str| {
        mesh.query(0, user(&uid, keyed("[\"e\"]", key))).unwrap();
        events(&mesh.take(a)).len()
    };
    assert_eq!([emit(&mut mesh, "one"), emit(&mut mesh, "one")], [1, 0]);
    mesh.wait(second() * 5);
    mesh.alive[2] = false;
    mesh.views();
    mesh.wait(second() * 5);
    assert_eq!([emit(&mut mesh, "one"), emit(&mut mesh, "two")], [0, 1], "known since the takeover");
    mesh.wait(second() * 6);
    assert_eq!([emit(&mut mesh, "two"), emit(&mut mesh, "one")], [0, 1]);
    mesh.wait(second() * 5);
    assert_eq!([emit(&mut mesh, "two"), emit(&mut mesh, "one")], [1, 0]);
}
