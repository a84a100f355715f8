//! Clients that come back after their transport or their edge is gone, as the stock client does.

use super::*;
use crate::keys::IdKey;

/// What a stock client keeps.
pub(super) struct Carrier {
    pub(super) uid: String,
    pub(super) client: Client,
    sid: String,
    pid: String,
    offset: Option<String>,
    pub(super) recovered: bool,
    /// The first argument of each event.
    seen: Vec<i64>,
}

impl Carrier {
    pub(super) fn new(mesh: &mut Mesh, at: At, uid: &str) -> Self {
        let mut carrier = Self {
            uid: uid.to_owned(),
            client: Client { at, ix: u32::MAX },
            sid: String::new(),
            pid: String::new(),
            offset: None,
            recovered: false,
            seen: Vec::new(),
        };
        carrier.come_back(mesh, at);
        assert!(!carrier.recovered && !carrier.pid.is_empty());
        carrier
    }

    /// CONNECT over a new transport; what it leads to is not awaited.
    pub(super) fn ask(&mut self, mesh: &mut Mesh, at: At) {
        mesh.offsets = true;
        self.client = mesh.open(at, ClientProtocol::SocketIo, Ok(&self.uid));
        mesh.offsets = false;
        let offset =
            self.offset.as_ref().map(|offset| format!(",\"offset\":\"{offset}\"")).unwrap_or_default();
        let connect = match self.pid.is_empty() {
            true => "40".to_owned(),
            false => format!("40{{\"pid\":\"{}\"{offset}}}", self.pid),
        };
        mesh.send(self.client, &connect);
    }

    pub(super) fn come_back(&mut self, mesh: &mut Mesh, at: At) {
        self.recovered = false;
        self.ask(mesh, at);
        mesh.settle();
        self.read(mesh);
        assert!(!self.sid.is_empty(), "not connected");
    }

    /// Takes what has come, and answers pings.
    pub(super) fn read(&mut self, mesh: &mut Mesh) {
        let mut pinged = self.take(mesh);
        while pinged {
            mesh.say(self.client, "3");
            pinged = self.take(mesh);
        }
    }

    /// Takes what has come. Whether a ping was among it.
    fn take(&mut self, mesh: &mut Mesh) -> bool {
        let mut pinged = false;
        for text in mesh.take(self.client) {
            pinged |= text == "2";
            if let Some(connect) = text.strip_prefix("40") {
                let connect: serde_json::Value = serde_json::from_str(connect).unwrap();
                let of = |key: &str| connect[key].as_str().unwrap_or_default().to_owned();
                let (sid, pid) = (of("sid"), of("pid"));
                self.recovered = pid == self.pid;
                assert!(!self.recovered || sid == self.sid, "another id");
                (self.sid, self.pid) = (sid, pid);
            } else if let Some(event) = text.strip_prefix("42") {
                let event: serde_json::Value = serde_json::from_str(event).unwrap();
                let args = event.as_array().unwrap();
                let offset = args.last().unwrap().as_str().expect("every event carries an offset");
                self.offset = Some(offset.to_owned());
                self.seen.push(args[1].as_i64().expect("a number"));
            }
        }
        pinged
    }

    pub(super) fn join(&self, mesh: &mut Mesh, room: &str) {
        mesh.say(self.client, &format!("427[\"join\",\"{room}\"]"));
        let got = mesh.take(self.client);
        assert!(got.iter().any(|text| text.starts_with("437")), "{got:?}");
    }

    pub(super) fn seen(&mut self, mesh: &mut Mesh) -> Vec<i64> {
        self.read(mesh);
        std::mem::take(&mut self.seen)
    }
}

fn publish(mesh: &mut Mesh, room: &str, numbers: std::ops::Range<i64>) {
    let via = mesh.alive.iter().position(|alive| *alive).unwrap();
    for number in numbers {
        let answer = mesh.query(via, api_publish(room, &format!("[\"e\",{number}]"), None));
        assert!(matches!(answer, Ok(Answer::Published { .. })), "{answer:?}");
    }
}

fn emit_to(mesh: &mut Mesh, uid: &str, number: i64) {
    let via = mesh.alive.iter().position(|alive| *alive).unwrap();
    let answer = mesh.query(via, emit(uid, format!("[\"own\",{number}]")));
    assert_eq!(answer, Ok(Answer::Done { sessions: 1 }));
}

fn kill(mesh: &mut Mesh, n: usize) {
    mesh.alive[n] = false;
    mesh.views();
}

fn range(numbers: std::ops::Range<i64>) -> Vec<i64> {
    numbers.collect()
}

/// Four nodes; the session is owned by node 1, its rooms by nodes 1 and 2, its edge is node 0.
fn story() -> (Mesh, Carrier, String, String) {
    let mut mesh = Mesh::new(4, 1);
    let (uid, one, two) = (mesh.user_at(1), mesh.room_at(1), mesh.room_at(2));
    let carrier = Carrier::new(&mut mesh, (0, 0), &uid);
    for room in [&one, &two] {
        carrier.join(&mut mesh, room);
    }
    (mesh, carrier, one, two)
}

#[test]
fn a_client_whose_edge_died_goes_on_anywhere_with_all_it_has_missed() {
    let (mut mesh, mut carrier, one, two) = story();
    let sid = carrier.sid.clone();
    publish(&mut mesh, &one, 0..3);
    publish(&mut mesh, &two, 10..12);
    emit_to(&mut mesh, &carrier.uid.clone(), 100);
    assert_eq!(carrier.seen(&mut mesh), [0, 1, 2, 10, 11, 100]);
    kill(&mut mesh, 0);
    publish(&mut mesh, &one, 3..5);
    publish(&mut mesh, &two, 12..15);
    emit_to(&mut mesh, &carrier.uid.clone(), 101);
    carrier.come_back(&mut mesh, (3, 0));
    assert!(carrier.recovered && carrier.sid == sid);
    let mut missed = carrier.seen(&mut mesh);
    missed.sort_unstable();
    assert_eq!(missed, [3, 4, 12, 13, 14, 101]);
    // It is in its rooms, and numbers its packets anew.
    publish(&mut mesh, &one, 5..6);
    assert_eq!(carrier.seen(&mut mesh), [5]);
    let got = mesh.ask(carrier.client, &format!("428[\"publish\",\"{two}\",\"e\",15]"));
    assert!(got.iter().any(|text| text.starts_with("438[{\"ok\":true")), "{got:?}");
    assert_eq!(mesh.stats(|s| s.resumed_total), 1);
}

#[test]
fn a_client_goes_on_again_and_again_and_without_any_event() {
    let (mut mesh, mut carrier, one, two) = story();
    let mut next = 0;
    for round in 0..6 {
        mesh.gone(carrier.client);
        if round % 3 == 1 {
            publish(&mut mesh, &one, next..next + 2);
            publish(&mut mesh, &two, next + 2..next + 3);
            next += 3;
        }
        carrier.come_back(&mut mesh, (round % 4, 0));
        assert!(carrier.recovered, "round {round}");
        if round % 3 == 2 {
            publish(&mut mesh, &two, next..next + 1);
            next += 1;
        }
    }
    let mut seen = carrier.seen(&mut mesh);
    seen.sort_unstable();
    assert_eq!(seen, range(0..next));
}

#[test]
fn an_offset_of_an_earlier_session_means_that_nothing_has_been_seen() {
    let (mut mesh, mut carrier, one, _) = story();
    publish(&mut mesh, &one, 0..5);
    assert_eq!(carrier.seen(&mut mesh).len(), 5);
    let old = carrier.offset.clone();
    carrier.pid.clear();
    carrier.come_back(&mut mesh, (2, 0));
    carrier.join(&mut mesh, &one);
    carrier.offset = old;
    mesh.gone(carrier.client);
    publish(&mut mesh, &one, 5..8);
    carrier.come_back(&mut mesh, (3, 0));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(&mut mesh), [5, 6, 7], "nothing from before its join");
}

#[test]
fn who_does_not_know_the_secret_begins_anew() {
    let (mut mesh, mut carrier, one, _) = story();
    let (sid, mut pid) = (carrier.sid.clone(), carrier.pid.clone());
    publish(&mut mesh, &one, 0..2);
    carrier.read(&mut mesh);
    let last = if pid.ends_with('A') { 'E' } else { 'A' };
    pid.pop();
    pid.push(last);
    let mut thief = Carrier::new(&mut mesh, (3, 0), &carrier.uid.clone());
    for pid in [
        pid,
        "no pid".into(),
        IdKey::new(&ClusterKey::new([9; 32])).seal_pid(Placement(1), 2, [3; 16]).expose_text(),
    ] {
        thief.pid = pid;
        mesh.gone(thief.client);
        thief.come_back(&mut mesh, (3, 0));
        assert!(!thief.recovered && thief.sid != sid);
    }
    // Another user with the right secret.
    let mut other = Carrier::new(&mut mesh, (3, 0), "mallory");
    mesh.gone(other.client);
    (other.pid, other.offset) = (carrier.pid.clone(), carrier.offset.clone());
    other.come_back(&mut mesh, (3, 0));
    assert!(!other.recovered && other.sid != sid);
    assert_eq!(mesh.closed(carrier.client), None, "it is where it was");
    publish(&mut mesh, &one, 2..3);
    assert_eq!(carrier.seen(&mut mesh), [0, 1, 2]);
}

#[test]
fn after_the_window_and_after_a_goodbye_a_client_begins_anew() {
    let (mut mesh, mut carrier, ..) = story();
    mesh.gone(carrier.client);
    mesh.wait(second() * 122);
    let sessions = mesh.stats(|s| s.sessions);
    assert_eq!(sessions, 0, "nobody came back");
    carrier.come_back(&mut mesh, (3, 0));
    assert!(!carrier.recovered);
    mesh.say(carrier.client, "41");
    mesh.gone(carrier.client);
    assert_eq!(mesh.stats(|s| s.sessions), 0, "it has left");
    carrier.come_back(&mut mesh, (3, 0));
    assert!(!carrier.recovered);
}

#[test]
fn a_newer_transport_beats_an_older_one() {
    let (mut mesh, mut carrier, one, _) = story();
    let former = carrier.client;
    for at in [(3, 0), (3, 0), (0, 0)] {
        let before = carrier.client;
        carrier.come_back(&mut mesh, at);
        assert!(carrier.recovered);
        assert_eq!(mesh.closed(before), Some(CloseCode::Ended));
    }
    publish(&mut mesh, &one, 0..2);
    assert_eq!(carrier.seen(&mut mesh), [0, 1]);
    // The old edge hears of it later, and that changes nothing.
    mesh.gone(former);
    publish(&mut mesh, &one, 2..3);
    assert_eq!(carrier.seen(&mut mesh), [2]);
    assert_eq!(mesh.stats(|s| s.sessions), 1);
}

#[test]
fn a_woken_edge_does_not_take_back_a_client_that_came_back_elsewhere() {
    let (mut mesh, mut carrier, one, _) = story();
    let former = carrier.client;
    // Node 0 stands still: the others go on without it, its client comes back by another node.
    kill(&mut mesh, 0);
    carrier.come_back(&mut mesh, (3, 0));
    assert!(carrier.recovered);
    // It wakes in a new life, its old transports still open.
    mesh.alive[0] = true;
    mesh.nodes[0].incarnation = 2;
    mesh.views();
    mesh.wait(second());
    assert_eq!(mesh.closed(former), Some(CloseCode::Ended));
    assert_eq!(mesh.closed(carrier.client), None);
    publish(&mut mesh, &one, 0..1);
    emit_to(&mut mesh, &carrier.uid.clone(), 100);
    mesh.gone(former);
    emit_to(&mut mesh, &carrier.uid.clone(), 101);
    assert_eq!(carrier.seen(&mut mesh), [0, 100, 101]);
    assert_eq!(mesh.stats(|s| s.sessions), 1);
}

#[test]
fn edge_and_owner_and_a_rooms_owner_may_die() {
    let (mut mesh, mut carrier, one, two) = story();
    publish(&mut mesh, &one, 0..2);
    publish(&mut mesh, &two, 10..12);
    carrier.read(&mut mesh);
    mesh.gone(carrier.client);
    publish(&mut mesh, &one, 2..4);
    emit_to(&mut mesh, &carrier.uid.clone(), 100);
    // Owner of the session and of one room.
    kill(&mut mesh, 1);
    publish(&mut mesh, &one, 4..5);
    emit_to(&mut mesh, &carrier.uid.clone(), 101);
    carrier.come_back(&mut mesh, (3, 0));
    assert!(carrier.recovered);
    publish(&mut mesh, &one, 5..6);
    let mut seen = carrier.seen(&mut mesh);
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 10, 11, 100, 101]);
    // Its edge, and the owner of the other room.
    kill(&mut mesh, 3);
    publish(&mut mesh, &two, 12..13);
    mesh.wait(second() * 3);
    kill(&mut mesh, 2);
    publish(&mut mesh, &two, 13..14);
    publish(&mut mesh, &one, 6..7);
    carrier.come_back(&mut mesh, (0, 0));
    assert!(carrier.recovered);
    let mut seen = carrier.seen(&mut mesh);
    seen.sort_unstable();
    assert_eq!(seen, [6, 12, 13]);
}

#[test]
fn one_node_may_be_edge_and_owner_of_all() {
    let mut mesh = Mesh::new(3, 2);
    let (uid, room) = (mesh.user_at(0), mesh.room_at(0));
    let mut carrier = Carrier::new(&mut mesh, (0, 1), &uid);
    carrier.join(&mut mesh, &room);
    publish(&mut mesh, &room, 0..3);
    carrier.read(&mut mesh);
    kill(&mut mesh, 0);
    publish(&mut mesh, &room, 3..6);
    carrier.come_back(&mut mesh, (2, 1));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(&mut mesh), range(0..6));
}

#[test]
fn a_history_that_is_gone_is_told() {
    let mut mesh = Mesh::new(3, 1);
    let (uid, room) = (mesh.user_at(0), mesh.room_at(1));
    let mut carrier = Carrier::new(&mut mesh, (0, 0), &uid);
    carrier.join(&mut mesh, &room);
    publish(&mut mesh, &room, 0..3);
    carrier.read(&mut mesh);
    // Owner and backup of the room at once, while the client is connected.
    mesh.alive[1] = false;
    mesh.alive[2] = false;
    mesh.views();
    publish(&mut mesh, &room, 3..5);
    carrier.read(&mut mesh);
    mesh.gone(carrier.client);
    carrier.come_back(&mut mesh, (0, 0));
    assert!(!carrier.recovered, "there may have been a hole");
}

#[test]
fn what_the_log_has_let_go_is_told() {
    let limits = Limits { room_log_entries_max: 5, ..Limits::default() };
    let mut mesh = Mesh::with(3, 1, limits, ProductRules::open("chat"));
    let (uid, room) = (mesh.user_at(0), mesh.room_at(1));
    let mut carrier = Carrier::new(&mut mesh, (0, 0), &uid);
    carrier.join(&mut mesh, &room);
    publish(&mut mesh, &room, 0..3);
    carrier.read(&mut mesh);
    let sid = carrier.sid.clone();
    mesh.gone(carrier.client);
    publish(&mut mesh, &room, 3..8);
    carrier.come_back(&mut mesh, (2, 0));
    assert!(carrier.recovered, "just enough is kept");
    assert_eq!(carrier.seen(&mut mesh), range(0..8));
    mesh.gone(carrier.client);
    publish(&mut mesh, &room, 8..14);
    carrier.come_back(&mut mesh, (0, 0));
    assert!(!carrier.recovered && carrier.sid != sid);
    assert!(carrier.seen(&mut mesh).is_empty(), "nothing of it");
    assert_eq!(mesh.stats(|s| s.sessions), 1, "the former session is over");
}

#[test]
fn a_link_cut_in_the_middle_of_the_replay_loses_and_doubles_nothing() {
    let (mut mesh, mut carrier, one, _) = story();
    mesh.gone(carrier.client);
    let filler = "x".repeat(20_000);
    for number in 0..30 {
        let json = format!("[\"e\",{number},\"{filler}\"]");
        assert!(mesh.query(0, api_publish(&one, &json, None)).is_ok());
    }
    for round in 0..20 {
        // It takes one queue full, then its link is cut.
        carrier.ask(&mut mesh, (usize::from(round % 2 == 0) * 3, 0));
        let client = (carrier.client.at, carrier.client.ix);
        for _ in 0..1_000 {
            if let Some((to, envelope)) = mesh.queue.pop_front() {
                mesh.deliver(to, envelope);
            } else if mesh.got.get(&client).is_some_and(|got| got.len() > 2) {
                break;
            } else {
                mesh.input(client.0, Input::Timer);
            }
        }
        carrier.read(&mut mesh);
        assert!(carrier.recovered, "round {round}");
        mesh.gone(carrier.client);
    }
    assert_eq!(carrier.seen(&mut mesh), range(0..30));
}

#[test]
fn rooms_joined_and_left_go_along() {
    let (mut mesh, mut carrier, one, two) = story();
    publish(&mut mesh, &one, 0..2);
    publish(&mut mesh, &two, 10..11);
    carrier.read(&mut mesh);
    let offset = carrier.offset.clone();
    // One is left, another joined: the client has an offset from before.
    mesh.say(carrier.client, &format!("429[\"leave\",\"{one}\"]"));
    let three = (0..).map(|i| format!("more{i}")).find(|room| mesh.owner_of_room(room) == 3).unwrap();
    carrier.join(&mut mesh, &three);
    carrier.offset = offset;
    mesh.gone(carrier.client);
    publish(&mut mesh, &one, 2..3);
    publish(&mut mesh, &two, 11..12);
    publish(&mut mesh, &three, 20..21);
    let uid = carrier.uid.clone();
    let four = (0..).map(|i| format!("by{i}")).find(|room| mesh.owner_of_room(room) == 2).unwrap();
    let join = user(&uid, Command::Join(four.as_str().into()));
    assert_eq!(mesh.query(0, join), Ok(Answer::Done { sessions: 1 }));
    for round in 0..3 {
        carrier.come_back(&mut mesh, (round, 0));
        assert!(carrier.recovered, "round {round}");
        publish(&mut mesh, &four, 30 + round as i64..31 + round as i64);
        carrier.read(&mut mesh);
        mesh.gone(carrier.client);
    }
    let mut seen = carrier.seen(&mut mesh);
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 10, 11, 20, 30, 31, 32]);
}

#[test]
fn a_session_that_nobody_uses_goes_before_one_in_use() {
    let mut mesh = Mesh::new(2, 1);
    let mut carriers: Vec<Carrier> = (0..16).map(|_| Carrier::new(&mut mesh, (0, 0), "alice")).collect();
    mesh.gone(carriers[7].client);
    let more = Carrier::new(&mut mesh, (1, 0), "alice");
    for (n, carrier) in carriers.iter().enumerate().filter(|(n, _)| *n != 7) {
        assert_eq!(mesh.closed(carrier.client), None, "{n}");
    }
    assert_eq!(mesh.closed(more.client), None);
    carriers[7].come_back(&mut mesh, (0, 0));
    assert!(!carriers[7].recovered);
}

#[test]
fn more_events_than_are_kept_end_what_can_be_resumed() {
    let (mut mesh, mut carrier, ..) = story();
    let uid = carrier.uid.clone();
    emit_to(&mut mesh, &uid, 0);
    carrier.read(&mut mesh);
    mesh.wait(second() * 2);
    mesh.gone(carrier.client);
    for number in 1..=256 {
        emit_to(&mut mesh, &uid, number);
    }
    carrier.come_back(&mut mesh, (3, 0));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(&mut mesh), range(0..257));
    mesh.wait(second() * 2);
    mesh.gone(carrier.client);
    for number in 0..256 {
        emit_to(&mut mesh, &uid, number);
    }
    let answer = mesh.query(0, emit(&uid, "[\"own\",1]".into()));
    assert_eq!(answer, Ok(Answer::Done { sessions: 0 }), "it cannot be owed more");
    carrier.come_back(&mut mesh, (3, 0));
    assert!(!carrier.recovered);
}

#[test]
fn clients_without_offsets_get_events_as_they_are_and_begin_anew() {
    let mut mesh = Mesh::new(2, 1);
    let room = mesh.room_at(1);
    let client = mesh.client((0, 0), "alice");
    mesh.say(client, &format!("421[\"join\",\"{room}\"]"));
    mesh.take(client);
    publish(&mut mesh, &room, 0..1);
    assert_eq!(events(&mesh.take(client)), ["42[\"e\",0]"]);
    mesh.gone(client);
    assert_eq!(mesh.stats(|s| s.sessions), 0);
}

#[test]
fn a_question_that_is_answered_twice_leaves_no_client_that_its_owner_does_not_know() {
    let mut mesh = Mesh::new(4, 1);
    let is_backed_up_elsewhere = |uid: &String| {
        let replicas = mesh.view(0).ring.replicas(Placement::of_user("chat", uid), 2);
        replicas[0] == mesh.nodes[1] && replicas[1] != mesh.nodes[0]
    };
    let uid = (0..).map(|i| format!("user{i}")).find(is_backed_up_elsewhere).unwrap();
    let one = mesh.room_at(2);
    let mut carrier = Carrier::new(&mut mesh, (0, 0), &uid);
    carrier.join(&mut mesh, &one);
    mesh.gone(carrier.client);
    // The owner has answered, and the answer is slow; the edge believes it lost and asks again.
    mesh.cut = Some((1, 0));
    carrier.ask(&mut mesh, (0, 0));
    mesh.settle();
    assert!(!mesh.kept_back.is_empty());
    let owner = mesh.nodes[1];
    mesh.input((0, 0), Input::LinkReset(owner));
    mesh.settle();
    mesh.heal();
    carrier.read(&mut mesh);
    if mesh.closed(carrier.client).is_some() {
        mesh.gone(carrier.client);
        carrier.come_back(&mut mesh, (3, 0));
    }
    assert!(carrier.recovered);
    emit_to(&mut mesh, &carrier.uid.clone(), 100);
    publish(&mut mesh, &one, 0..1);
    let mut seen = carrier.seen(&mut mesh);
    seen.sort_unstable();
    assert_eq!(seen, [0, 100]);
}

#[test]
fn what_was_fetched_for_a_client_does_not_come_again_with_another_history() {
    let mut mesh = Mesh::new(3, 1);
    let room = histories::room_of(&mesh, [false, false, true], 2);
    let uid = mesh.user_at(2);
    let mut carrier = Carrier::new(&mut mesh, (1, 0), &uid);
    carrier.join(&mut mesh, &room);
    let publish = |mesh: &mut Mesh, via, number: i64| {
        mesh.query(via, api_publish(&room, &format!("[\"e\",{number}]"), None)).unwrap();
    };
    publish(&mut mesh, 1, 1);
    assert_eq!(carrier.seen(&mut mesh), [1]);
    let client = carrier.client;
    mesh.gone(client);
    publish(&mut mesh, 1, 2);
    carrier.come_back(&mut mesh, (2, 0));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(&mut mesh), [2]);
    // Owner and backup are gone together, and the owner comes back with its copy.
    histories::back_and_not_on_the_ring(&mut mesh);
    publish(&mut mesh, 2, 3);
    mesh.joining = None;
    mesh.view_at(2);
    mesh.view_at(0);
    mesh.wait(second());
    publish(&mut mesh, 2, 4);
    assert_eq!(carrier.seen(&mut mesh), [3, 4]);
    assert_eq!(backups::history(&mut mesh, 0, &room).len(), 4, "what it had has been taken over");
}

/// The client of `carrier` comes back by node 2 and gets an event; then arrives what node 3 has said for it.
fn late_words_change_nothing(mesh: &mut Mesh, carrier: &mut Carrier) {
    assert!(!mesh.kept_back.is_empty());
    mesh.wait(second());
    carrier.come_back(mesh, (2, 0));
    assert!(carrier.recovered);
    emit_to(mesh, &carrier.uid.clone(), 101);
    assert_eq!(carrier.seen(mesh), [101]);
    mesh.heal();
    mesh.wait(second());
    assert_eq!(mesh.closed(carrier.client), None);
    emit_to(mesh, &carrier.uid.clone(), 102);
    assert_eq!(carrier.seen(mesh), [102]);
    // What a former transport was taken for is not what the client has seen.
    mesh.gone(carrier.client);
    carrier.come_back(mesh, (0, 0));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(mesh), [0; 0]);
}

#[test]
fn a_question_asked_twice_is_answered_the_same() {
    for is_lost in [false, true] {
        let (mut mesh, mut carrier, one, _) = story();
        publish(&mut mesh, &one, 0..1);
        assert_eq!(carrier.seen(&mut mesh), [0]);
        mesh.gone(carrier.client);
        carrier.recovered = false;
        mesh.cut = Some((3, 1));
        carrier.ask(&mut mesh, (3, 0));
        mesh.settle();
        let question = mesh.kept_back[0].clone();
        mesh.cut = is_lost.then_some((1, 3));
        let (once, again) = (question.clone(), question);
        mesh.queue.push_back(once);
        if is_lost {
            // The first answer is.
            mesh.settle();
            assert!(!mesh.kept_back.is_empty());
            mesh.cut = None;
        }
        mesh.kept_back.clear();
        mesh.queue.push_back(again);
        mesh.settle();
        carrier.read(&mut mesh);
        assert!(carrier.recovered);
        assert_eq!(mesh.closed(carrier.client), None);
        publish(&mut mesh, &one, 1..2);
        emit_to(&mut mesh, &carrier.uid.clone(), 100);
        assert_eq!(carrier.seen(&mut mesh), [1, 100]);
    }
}

#[test]
fn a_question_long_under_way_does_not_take_the_session_from_a_newer_transport() {
    for is_noticed in [false, true] {
        let (mut mesh, mut carrier, _, _) = story();
        emit_to(&mut mesh, &carrier.uid.clone(), 100);
        assert_eq!(carrier.seen(&mut mesh), [100]);
        mesh.gone(carrier.client);
        mesh.cut = Some((3, 1));
        carrier.ask(&mut mesh, (3, 0));
        mesh.settle();
        if is_noticed {
            mesh.gone(carrier.client);
        }
        late_words_change_nothing(&mut mesh, &mut carrier);
    }
}

#[test]
fn a_question_asked_again_long_ago_does_not_take_the_session_either() {
    let (mut mesh, mut carrier, _, _) = story();
    // It has had no event since it came back: its owner asks whether it is there, and it is.
    mesh.gone(carrier.client);
    carrier.come_back(&mut mesh, (0, 0));
    mesh.gone(carrier.client);
    mesh.cut = Some((3, 1));
    carrier.ask(&mut mesh, (3, 0));
    mesh.settle();
    let asked = std::mem::take(&mut mesh.kept_back);
    mesh.cut = None;
    mesh.queue.extend(asked);
    mesh.settle();
    mesh.cut = Some((3, 1));
    carrier.read(&mut mesh);
    late_words_change_nothing(&mut mesh, &mut carrier);
}

#[test]
fn a_connect_that_comes_late_takes_nothing_away() {
    let (mut mesh, mut carrier, _, _) = story();
    mesh.gone(carrier.client);
    // A POST is long under way to its edge, or what a socket has sent is.
    let uid = carrier.uid.clone();
    mesh.offsets = true;
    let late = mesh.open((3, 0), ClientProtocol::SocketIo, Ok(&uid));
    mesh.offsets = false;
    let connect = format!("40{{\"pid\":\"{}\"}}", carrier.pid);
    carrier.come_back(&mut mesh, (2, 0));
    emit_to(&mut mesh, &uid, 100);
    assert_eq!(carrier.seen(&mut mesh), [100]);
    mesh.say(late, &connect);
    mesh.wait(second());
    assert_eq!(mesh.closed(carrier.client), None);
    emit_to(&mut mesh, &uid, 101);
    assert_eq!(carrier.seen(&mut mesh), [101]);
    mesh.gone(carrier.client);
    mesh.gone(late);
    carrier.come_back(&mut mesh, (0, 0));
    assert!(carrier.recovered);
    assert_eq!(carrier.seen(&mut mesh), [0; 0]);
}

#[test]
fn who_has_seen_nothing_over_its_last_transport_goes_on_once_it_answers() {
    let (mut mesh, mut carrier, one, _) = story();
    mesh.gone(carrier.client);
    carrier.come_back(&mut mesh, (0, 0));
    let former = carrier.client;
    carrier.recovered = false;
    carrier.ask(&mut mesh, (3, 0));
    mesh.wait(second());
    assert_eq!(mesh.closed(former), None, "nobody has shown to be at the other");
    assert!(mesh.take(carrier.client).contains(&"2".to_owned()));
    mesh.say(carrier.client, "3");
    carrier.read(&mut mesh);
    assert!(carrier.recovered);
    assert_eq!(mesh.closed(former), Some(CloseCode::Ended));
    publish(&mut mesh, &one, 0..1);
    assert_eq!(carrier.seen(&mut mesh), [0]);
}

#[test]
fn a_transport_is_given_up_once_the_backup_knows_of_the_next() {
    let mut mesh = Mesh::new(4, 1);
    let is_backed_up_at_2 = |uid: &String| {
        let replicas = mesh.view(0).ring.replicas(Placement::of_user("chat", uid), 2);
        replicas[..] == [mesh.nodes[1], mesh.nodes[2]]
    };
    let uid = (0..).map(|i| format!("user{i}")).find(is_backed_up_at_2).unwrap();
    let mut carrier = Carrier::new(&mut mesh, (0, 0), &uid);
    let former = carrier.client;
    mesh.cut = Some((1, 2));
    carrier.ask(&mut mesh, (3, 0));
    mesh.settle();
    assert_eq!(mesh.closed(former), None);
    mesh.heal();
    assert_eq!(mesh.closed(former), Some(CloseCode::Ended));
    carrier.read(&mut mesh);
    assert!(carrier.recovered);
}
