//! Long-polling through any node, and the way from there to a WebSocket.

use super::*;
use crate::engineio::{decode_payload, encode_payload};

/// A polling client: any request may come in anywhere.
#[derive(Clone, Copy)]
struct Poller {
    sid: EngineSid,
    client: Client,
}

impl Mesh {
    fn open_polling(&mut self, at: At, uid: impl Into<Uid>) -> Poller {
        let ix = self.clients;
        self.clients += 1;
        self.requests += 1;
        let request = self.requests;
        let admission = Ok(Admission { product: self.rules.clone(), uid: uid.into() });
        let transport = Transport::Polling(RequestIx(request));
        let new =
            NewClient { protocol: ClientProtocol::SocketIo, admission, offsets: self.offsets, transport };
        self.polling.insert((at, ix));
        self.input(at, Input::ClientOpened(ClientIx(ix), new));
        let open = packets(self.responses.remove(&request).expect("a handshake is answered at once"));
        assert!(open[0].contains("\"upgrades\":[\"websocket\"]"), "{open:?}");
        let sid = EngineSid::from_text(open[0].split('"').nth(3).unwrap()).unwrap();
        Poller { sid, client: Client { at, ix } }
    }

    /// One that has connected, its answer taken.
    fn poller(&mut self, at: At, uid: &str) -> Poller {
        let poller = self.open_polling(at, uid);
        assert_eq!(self.post(at, poller, "40"), EngineResponse::Taken);
        let got = self.poll(at, poller);
        assert!(got[0].starts_with("40{\"sid\""), "{got:?}");
        poller
    }

    /// Begins a request; its answer, if there is one, is in `responses`.
    fn request(&mut self, at: At, sid: EngineSid, request: EngineRequest) -> u64 {
        self.requests += 1;
        self.input(at, Input::Request(RequestIx(self.requests), sid, request));
        self.settle();
        self.requests
    }

    fn post(&mut self, at: At, poller: Poller, body: &str) -> EngineResponse {
        let request = self.request(at, poller.sid, EngineRequest::Post(body.to_owned().into()));
        self.responses.remove(&request).expect("answered")
    }

    fn poll(&mut self, at: At, poller: Poller) -> Vec<String> {
        let request = self.request(at, poller.sid, EngineRequest::Poll);
        packets(self.responses.remove(&request).expect("there is something"))
    }

    fn held(&mut self, at: At, poller: Poller) -> u64 {
        let request = self.request(at, poller.sid, EngineRequest::Poll);
        assert!(!self.responses.contains_key(&request), "there is something: {:?}", self.responses);
        request
    }

    fn answer_to(&mut self, request: u64) -> Vec<String> {
        packets(self.responses.remove(&request).expect("answered by now"))
    }

    /// A WebSocket for a polling client.
    fn upgrading(&mut self, at: At, poller: Poller) -> Client {
        let ix = self.clients;
        self.clients += 1;
        let admission = Err(refusal());
        let transport = Transport::Upgrade(poller.sid);
        let new = NewClient { protocol: ClientProtocol::SocketIo, admission, offsets: false, transport };
        self.input(at, Input::ClientOpened(ClientIx(ix), new));
        self.settle();
        Client { at, ix }
    }

    /// As the stock client does it: probe, the last GET, then `5`.
    fn upgrade(&mut self, at: At, poller: Poller) -> Client {
        let socket = self.upgrading(at, poller);
        assert_eq!(self.ask(socket, "2probe"), ["3probe"]);
        self.say(socket, "5");
        socket
    }
}

fn packets(response: EngineResponse) -> Vec<String> {
    let EngineResponse::Packets(payload) = response else { panic!("{response:?}") };
    let text = |packet| match packet {
        Packet::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        binary @ Packet::Binary(_) => String::from_utf8(encode_payload(&[binary]).to_vec()).unwrap(),
    };
    decode_payload(&payload).unwrap().into_iter().map(text).collect()
}

#[test]
fn each_request_may_come_in_by_another_node_and_shard() {
    let mut mesh = Mesh::new(3, 2);
    let a = mesh.open_polling((0, 0), "alice");
    let places: Vec<At> = mesh.shards.keys().copied().collect();
    assert_eq!(mesh.post(places[1], a, "40"), EngineResponse::Taken);
    assert!(mesh.poll(places[2], a)[0].starts_with("40{"));
    assert_eq!(mesh.post(places[3], a, "421[\"join\",\"r\"]"), EngineResponse::Taken);
    assert_eq!(mesh.poll(places[4], a), ["431[{\"ok\":true}]"]);
    for (n, &at) in places.iter().enumerate() {
        let held = mesh.held(at, a);
        let event = format!("421[\"publish\",\"r\",{{\"event\":\"e\",\"self\":true}},{n}]\x1e422[\"rooms\"]");
        assert_eq!(mesh.post(places[n / 2], a, &event), EngineResponse::Taken);
        let mut got = mesh.answer_to(held);
        while got.len() < 3 {
            got.extend(mesh.poll(at, a));
        }
        assert!(got.contains(&format!("42[\"e\",{n}]")), "{got:?}");
    }
}

#[test]
fn a_remote_poll_costs_two_messages_whatever_the_size_of_the_mesh() {
    for nodes in [3, 7] {
        let mut mesh = Mesh::new(nodes, 1);
        let a = mesh.poller((0, 0), "alice");
        let held = mesh.held((0, 0), a);
        let ix = RequestIx(99);
        mesh.post((0, 0), a, "421[\"rooms\"]");
        assert_eq!(mesh.answer_to(held).len(), 1);
        mesh.post((0, 0), a, "422[\"rooms\"]");
        mesh.input((1, 0), Input::Request(ix, a.sid, EngineRequest::Poll));
        assert_eq!(mesh.queue.len(), 1, "one there");
        let (to, envelope) = mesh.queue.pop_front().unwrap();
        mesh.deliver(to, envelope);
        assert_eq!(mesh.queue.len(), 1, "one back");
        mesh.settle();
        assert!(mesh.responses.contains_key(&99));
    }
}

#[test]
fn two_gets_or_posts_at_once_end_the_session() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    let first = mesh.held((1, 0), a);
    let second = mesh.request((0, 0), a.sid, EngineRequest::Poll);
    assert_eq!(mesh.responses[&second], EngineResponse::Refused(EngineRefusal::BadRequest));
    assert_eq!(mesh.answer_to(first), ["1"]);
    assert_eq!(mesh.post((0, 0), a, "3"), EngineResponse::Refused(EngineRefusal::UnknownSid));
    assert_eq!(mesh.stats(|s| s.clients + s.sessions), 0);
}

#[test]
fn what_is_no_payload_ends_the_session_and_a_bad_packet_is_taken_and_ends_it() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    assert_eq!(mesh.post((1, 0), a, ""), EngineResponse::Refused(EngineRefusal::BadRequest));
    assert_eq!(mesh.post((1, 0), a, "3"), EngineResponse::Refused(EngineRefusal::UnknownSid));
    let b = mesh.poller((0, 0), "bob");
    let held = mesh.held((0, 0), b);
    assert_eq!(mesh.post((1, 0), b, "9\x1e40"), EngineResponse::Taken);
    assert_eq!(mesh.answer_to(held), ["1"]);
    let c = mesh.poller((0, 0), "carol");
    let held = mesh.held((1, 0), c);
    assert_eq!(mesh.post((0, 0), c, "1"), EngineResponse::Taken);
    assert_eq!(mesh.answer_to(held), ["6"], "it knows itself why");
    assert_eq!(mesh.stats(|s| s.clients + s.sessions), 0);
}

#[test]
fn a_goodbye_of_ours_waits_for_the_next_get_but_not_for_ever() {
    let mut mesh = Mesh::new(2, 1);
    let ends = |uid: &str| Query::User {
        product: "chat".into(),
        uid: uid.into(),
        command: Command::Disconnect { close: true },
    };
    let (a, _b) = (mesh.poller((0, 0), "alice"), mesh.poller((0, 0), "bob"));
    for uid in ["alice", "bob"] {
        mesh.query(1, ends(uid)).unwrap();
    }
    assert_eq!(mesh.poll((1, 0), a), ["41", "1"], "without it the client would come back");
    mesh.wait(second() * 11);
    assert_eq!(mesh.stats(|s| s.clients + s.sessions), 0, "nobody came for the last word");
}

#[test]
fn a_session_nobody_has_is_unknown() {
    let mut mesh = Mesh::new(3, 1);
    let a = mesh.poller((0, 0), "alice");
    let unknown = EngineResponse::Refused(EngineRefusal::UnknownSid);
    let forged = EngineSid::new(mesh.nodes[0].id, ShardIx(0), [1; 16]);
    let nowhere = EngineSid::new(NodeId(77), ShardIx(0), [1; 16]);
    let no_shard = EngineSid::new(mesh.nodes[0].id, ShardIx(9), [1; 16]);
    for sid in [forged, no_shard] {
        let request = mesh.request((1, 0), sid, EngineRequest::Poll);
        assert_eq!(mesh.responses[&request], unknown);
    }
    let request = mesh.request((1, 0), nowhere, EngineRequest::Poll);
    assert!(!mesh.responses.contains_key(&request), "such a node may have joined just now");
    mesh.wait(second());
    assert_eq!(mesh.responses[&request], unknown);
    let held = mesh.held((1, 0), a);
    mesh.alive[0] = false;
    mesh.views();
    assert_eq!(mesh.responses[&held], unknown, "its edge died under it");
    let late = mesh.request((2, 0), a.sid, EngineRequest::Post("3".into()));
    mesh.wait(second());
    assert_eq!(mesh.responses[&late], unknown);
}

#[test]
fn a_request_waits_for_news_of_the_node_that_its_session_began_at() {
    let mut mesh = Mesh::new(3, 1);
    mesh.alive[0] = false;
    mesh.views();
    mesh.alive[0] = true;
    mesh.view_at(0);
    mesh.settle();
    let a = mesh.open_polling((0, 0), "alice");
    let request = mesh.request((1, 0), a.sid, EngineRequest::Post("40".into()));
    assert!(!mesh.responses.contains_key(&request), "the node by which it came has not heard of the new one");
    mesh.views();
    assert_eq!(mesh.responses[&request], EngineResponse::Taken);
    assert!(mesh.poll((2, 0), a)[0].starts_with("40{"));
}

#[test]
fn silence_is_timed_out_and_pongs_keep_a_polling_client() {
    let mut mesh = Mesh::new(2, 1);
    let (lively, silent) = (mesh.poller((0, 0), "a"), mesh.poller((0, 0), "b"));
    for _ in 0..3 {
        let held = mesh.held((1, 0), lively);
        mesh.wait(second() * 26);
        assert_eq!(mesh.answer_to(held), ["2"]);
        assert_eq!(mesh.post((1, 0), lively, "3"), EngineResponse::Taken);
    }
    assert_eq!(mesh.closed(lively.client), None);
    mesh.wait(second() * 60);
    assert_eq!(mesh.closed(silent.client), Some(CloseCode::Timeout));
}

#[test]
fn a_get_whose_connection_breaks_ends_the_transport_and_not_the_session() {
    let mut mesh = Mesh::new(2, 1);
    mesh.offsets = true;
    let a = mesh.poller((0, 0), "alice");
    let held = mesh.held((1, 0), a);
    mesh.input((1, 0), Input::RequestGone(RequestIx(held)));
    mesh.settle();
    assert_eq!(mesh.stats(|s| s.parked_sessions), 1);
    assert_eq!(mesh.post((0, 0), a, "3"), EngineResponse::Refused(EngineRefusal::UnknownSid));
}

#[test]
fn a_stopping_node_sends_polls_it_holds_for_others_elsewhere() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    let held = mesh.held((1, 0), a);
    mesh.input((1, 0), Input::CloseClients(1));
    mesh.settle();
    assert_eq!(mesh.answer_to(held), ["6"]);
    assert_eq!(mesh.closed(a.client), None);
}

#[test]
fn too_many_packets_hold_the_post_until_they_are_done() {
    let limits = Limits { inbound_packets_max: 4, ..Limits::default() };
    let mut mesh = Mesh::with(2, 1, limits, ProductRules::open("chat"));
    let at = (mesh.owner_of_user("alice"), 0);
    let room = mesh.room_at(1 - at.0);
    let a = mesh.poller(at, "alice");
    assert_eq!(mesh.post(at, a, &format!("421[\"join\",\"{room}\"]")), EngineResponse::Taken);
    mesh.poll(at, a);
    mesh.cut = Some((1 - at.0, at.0));
    // Its owner waits for the room's.
    let body = (0..6).map(|n| format!("42{n}[\"publish\",\"{room}\",\"e\",{n}]")).collect::<Vec<_>>();
    let request = mesh.request(at, a.sid, EngineRequest::Post(body.join("\x1e").into()));
    assert!(!mesh.responses.contains_key(&request));
    mesh.heal();
    assert_eq!(mesh.responses[&request], EngineResponse::Taken);
    assert_eq!(mesh.poll(at, a).len(), 6);
}

#[test]
fn an_upgrade_at_any_node_moves_the_session_without_loss() {
    for to in [(0, 0), (0, 1), (1, 0), (2, 1)] {
        let mut mesh = Mesh::new(3, 2);
        let b = mesh.client((1, 1), "bob");
        mesh.say(b, "421[\"join\",\"r\"]");
        let a = mesh.poller((0, 0), "alice");
        mesh.post((2, 0), a, "421[\"join\",\"r\"]");
        assert_eq!(mesh.poll((1, 0), a).len(), 1);
        mesh.say(b, "422[\"publish\",\"r\",\"e\",1]");
        let socket = mesh.upgrading(to, a);
        let got = mesh.poll((1, 1), a);
        assert_eq!(got, ["42[\"e\",1]"]);
        let held = mesh.held((2, 1), a);
        assert_eq!(mesh.ask(socket, "2probe"), ["3probe"]);
        assert_eq!(mesh.answer_to(held), ["6"], "so that the client stops");
        mesh.say(b, "422[\"publish\",\"r\",\"e\",2]");
        // What comes with the 5 is handled after it, and after everything sent by polling.
        mesh.send(socket, "5");
        mesh.send(socket, "429[\"publish\",\"r\",{\"event\":\"e\",\"self\":true},3]");
        mesh.settle();
        mesh.say(b, "422[\"publish\",\"r\",\"e\",4]");
        let got = mesh.take(socket);
        assert_eq!(got[0..2], ["42[\"e\",2]", "42[\"e\",3]"], "to {to:?}");
        assert!(got[2].starts_with("439[{\"ok\":true") && got[3] == "42[\"e\",4]", "{got:?}");
        let upgraded = EngineResponse::Refused(EngineRefusal::Upgraded);
        assert_eq!(mesh.post((0, 0), a, "3"), upgraded);
        assert_eq!(mesh.stats(|s| s.clients), 2);
        mesh.gone(socket);
        mesh.gone(b);
        assert_eq!(mesh.stats(|s| s.clients + s.sessions + s.tails), 0);
    }
}

#[test]
fn what_waits_for_a_new_owner_goes_along() {
    let mut mesh = Mesh::new(3, 1);
    let owner = mesh.owner_of_user("alice");
    let (edge, to) = ((owner + 1) % 3, (owner + 2) % 3);
    let a = mesh.poller((edge, 0), "alice");
    mesh.post((edge, 0), a, "421[\"join\",\"r\"]");
    mesh.poll((edge, 0), a);
    mesh.alive[owner] = false;
    mesh.post((to, 0), a, "425[\"publish\",\"r\",{\"event\":\"e\",\"self\":true},1]");
    let socket = mesh.upgrade((to, 0), a);
    mesh.views();
    let got = mesh.take(socket);
    assert_eq!(got[0], "42[\"e\",1]");
    assert!(got[1].starts_with("435[{\"ok\":true"), "{got:?}");
    assert_eq!(got.len(), 2);
}

#[test]
fn a_binary_packet_in_two_halves_is_put_together_after_the_move() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    mesh.post((0, 0), a, "421[\"join\",\"r\"]");
    mesh.poll((0, 0), a);
    let half = "451-7[\"publish\",\"r\",{\"event\":\"e\",\"self\":true},{\"_placeholder\":true,\"num\":0}]";
    assert_eq!(mesh.post((0, 0), a, half), EngineResponse::Taken);
    let socket = mesh.upgrade((1, 0), a);
    mesh.input(socket.at, Input::ClientPacket(ClientIx(socket.ix), Packet::Binary("abc".into())));
    mesh.settle();
    let got = mesh.take(socket);
    assert_eq!(got[0..2], ["451-[\"e\",{\"_placeholder\":true,\"num\":0}]", "abc"]);
    assert!(got[2].starts_with("437["), "{got:?}");
}

#[test]
fn every_namespace_moves_and_none_is_mixed_up() {
    let rules = ProductRules { namespaces: Namespaces::new(["/", "/n"]), ..ProductRules::open("chat") };
    let mut mesh = Mesh::with(2, 2, Limits::default(), rules);
    let a = mesh.poller((0, 0), "alice");
    mesh.post((1, 0), a, "40/n,\x1e421[\"join\",\"r\"]");
    mesh.post((1, 0), a, "42/n,1[\"join\",\"r\"]");
    mesh.poll((0, 0), a);
    let socket = mesh.upgrade((1, 1), a);
    mesh.take(socket);
    let got = mesh.ask(socket, "42/n,2[\"publish\",\"r\",{\"event\":\"e\",\"self\":true}]");
    assert!(got[0] == "42/n,[\"e\"]" && got[1].starts_with("43/n,2["), "{got:?}");
    assert!(mesh.ask(socket, "423[\"rooms\"]")[0].contains("[\"r\"]"));
}

#[test]
fn an_upgrade_that_does_not_wait_for_the_answer_to_its_probe_is_one() {
    for to in [(0, 0), (1, 0)] {
        let mut mesh = Mesh::new(2, 1);
        let a = mesh.poller((0, 0), "alice");
        let held = mesh.held((1, 0), a);
        let socket = mesh.upgrading(to, a);
        for words in ["2probe", "5", "421[\"rooms\"]"] {
            mesh.send(socket, words);
        }
        mesh.settle();
        assert_eq!(mesh.answer_to(held), ["6"]);
        assert_eq!(mesh.take(socket), ["3probe", "431[{\"ok\":true,\"rooms\":[]}]"], "at {to:?}");
        let unknown = EngineResponse::Refused(EngineRefusal::Upgraded);
        assert_eq!(mesh.post((1, 0), a, "3"), unknown);
    }
}

#[test]
fn a_second_probe_and_one_for_a_session_that_is_gone_are_closed_and_the_first_goes_on() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    let first = mesh.upgrading((1, 0), a);
    mesh.say(first, "2probe");
    let second = mesh.upgrading((0, 0), a);
    mesh.say(second, "2probe");
    assert_eq!(mesh.closed(second), Some(CloseCode::ProtocolError));
    mesh.say(first, "5");
    assert_eq!(mesh.ask(first, "421[\"rooms\"]").len(), 1 + 1, "the answer to the probe, and this one");
    let late = mesh.upgrading((0, 0), a);
    mesh.say(late, "2probe");
    assert_eq!(mesh.closed(late), Some(CloseCode::ProtocolError));
    assert_eq!(mesh.closed(first), None);
}

#[test]
fn a_probe_that_comes_to_nothing_leaves_the_session_as_it_was() {
    let mut mesh = Mesh::new(2, 1);
    let a = mesh.poller((0, 0), "alice");
    let silent = mesh.upgrading((1, 0), a);
    mesh.say(silent, "2probe");
    let held = mesh.held((0, 0), a);
    mesh.wait(second() / 5);
    assert_eq!(mesh.answer_to(held), ["6"], "a GET does not hang while a WebSocket tries the way");
    mesh.wait(second() * 10);
    assert_eq!(mesh.closed(silent), Some(CloseCode::Timeout));
    let next = mesh.request((0, 0), a.sid, EngineRequest::MayUpgrade);
    assert_eq!(mesh.responses[&next], EngineResponse::Taken, "while the silent one takes its time to go");
    mesh.gone(silent);
    let held = mesh.held((0, 0), a);
    mesh.wait(second());
    assert!(!mesh.responses.contains_key(&held));
    mesh.post((0, 0), a, "421[\"rooms\"]");
    assert_eq!(mesh.answer_to(held).len(), 1);
    let wrong = mesh.upgrading((1, 0), a);
    mesh.say(wrong, "5");
    assert_eq!(mesh.closed(wrong), Some(CloseCode::ProtocolError), "an upgrade without a probe");
}

#[test]
fn a_client_that_comes_back_may_move_while_its_session_is_asked_for() {
    let mut mesh = Mesh::new(3, 1);
    mesh.offsets = true;
    let owner = mesh.owner_of_user("alice");
    let (edge, to) = ((owner + 1) % 3, (owner + 2) % 3);
    let first = mesh.open_polling((edge, 0), "alice");
    mesh.post((edge, 0), first, "40");
    let told = mesh.poll((edge, 0), first).remove(0);
    let held = mesh.held((edge, 0), first);
    mesh.input((edge, 0), Input::RequestGone(RequestIx(held)));
    mesh.settle();
    mesh.alive[owner] = false;
    let pid = told.split("\"pid\":\"").nth(1).unwrap().split('"').next().unwrap();
    let again = mesh.open_polling((edge, 0), "alice");
    mesh.post((edge, 0), again, &format!("40{{\"pid\":\"{pid}\"}}"));
    // Its owner is dead, and nobody knows yet. The client polls no more: it waits for the WebSocket.
    let socket = mesh.upgrade((to, 0), again);
    mesh.take(socket);
    mesh.wait(second());
    mesh.views();
    mesh.wait(second());
    assert!(mesh.take(socket).contains(&told), "the same session goes on");
}

#[test]
fn a_hole_is_known_to_the_next_edge_too() {
    for to in 0..2 {
        let mut mesh = Mesh::new(4, 1);
        mesh.offsets = true;
        let (uid, room) = (mesh.user_at(to), mesh.room_at(2));
        let first = mesh.open_polling((0, 0), uid.as_str());
        mesh.post((0, 0), first, &format!("40\u{1e}420[\"join\",\"{room}\"]"));
        let told = mesh.poll((0, 0), first).remove(0);
        // Owner and backup of the room at once.
        mesh.alive[2] = false;
        mesh.alive[3] = false;
        mesh.views();
        mesh.query(to, api_publish(&room, "[\"e\",1]", None)).unwrap();
        mesh.poll((0, 0), first);
        let socket = mesh.upgrade((to, 0), first);
        mesh.take(socket);
        mesh.query(to, api_publish(&room, "[\"e\",2]", None)).unwrap();
        let offset = mesh.take(socket).remove(0).split('"').nth(3).unwrap().to_owned();
        mesh.gone(socket);
        let pid = told.split("\"pid\":\"").nth(1).unwrap().split('"').next().unwrap();
        let again = mesh.open((0, 0), ClientProtocol::SocketIo, Ok(&uid));
        let got = mesh.ask(again, &format!("40{{\"pid\":\"{pid}\",\"offset\":\"{offset}\"}}"));
        assert!(got.len() == 2 && got[1].starts_with("40"), "{got:?}");
        assert_ne!(got[1], told, "there may have been a hole");
    }
}

#[test]
fn a_websocket_lost_on_the_way_parks_the_session() {
    let mut mesh = Mesh::new(2, 1);
    mesh.offsets = true;
    let a = mesh.poller((0, 0), "alice");
    let socket = mesh.upgrading((1, 0), a);
    mesh.say(socket, "2probe");
    mesh.send(socket, "5");
    // The session is on its way when its WebSocket goes.
    mesh.input(socket.at, Input::ClientClosed(ClientIx(socket.ix), ClientGone::Error));
    mesh.settle();
    assert_eq!(mesh.stats(|s| s.parked_sessions), 1);
    assert_eq!(mesh.stats(|s| s.clients), 0);
}

#[test]
fn an_edge_that_dies_with_the_session_on_its_way_leaves_a_session_to_come_back_to() {
    let mut mesh = Mesh::new(3, 1);
    mesh.offsets = true;
    let a = mesh.poller((0, 0), "alice");
    let socket = mesh.upgrading((1, 0), a);
    mesh.say(socket, "2probe");
    mesh.cut = Some((0, 1));
    mesh.say(socket, "5");
    mesh.kept_back.clear();
    mesh.reset();
    assert_eq!(mesh.closed(socket), Some(CloseCode::Normal));
    assert_eq!(mesh.stats(|s| s.parked_sessions), 1);
}

/// What node 1 asks of node 0 reaches it, and no answer comes back before node 0 is in another life.
fn asked_across_two_lives(mesh: &mut Mesh, poller: Poller, request: EngineRequest) -> u64 {
    mesh.requests += 1;
    let ix = RequestIx(mesh.requests);
    mesh.input((1, 0), Input::Request(ix, poller.sid, request));
    let (to, envelope) = mesh.queue.pop_front().unwrap();
    mesh.deliver(to, envelope);
    mesh.queue.retain(|(_, envelope)| !matches!(&envelope.body, Body::FromEngine(_)));
    mesh.settle();
    assert!(!mesh.responses.contains_key(&ix.0));
    mesh.nodes[0].incarnation = 2;
    mesh.views();
    mesh.wait(second());
    ix.0
}

#[test]
fn a_post_that_an_earlier_life_of_its_edge_has_taken_is_not_taken_again() {
    let mut mesh = Mesh::new(3, 1);
    let a = mesh.poller((0, 0), "alice");
    let member = mesh.client((2, 0), "bob");
    mesh.ask(member, "421[\"join\",\"r\"]");
    mesh.post((0, 0), a, "421[\"join\",\"r\"]");
    let post = EngineRequest::Post("421[\"publish\",\"r\",\"e\"]".into());
    let request = asked_across_two_lives(&mut mesh, a, post);
    assert_eq!(mesh.responses.remove(&request), Some(EngineResponse::Taken));
    let got = mesh.take(member);
    assert_eq!(events(&got), ["42[\"e\"]"]);
}

#[test]
fn a_get_whose_answer_is_lost_does_not_say_that_it_arrived() {
    let mut mesh = Mesh::new(3, 1);
    mesh.offsets = true;
    let a = mesh.poller((0, 0), "alice");
    mesh.post((0, 0), a, "421[\"rooms\"]");
    let request = asked_across_two_lives(&mut mesh, a, EngineRequest::Poll);
    let refused = EngineResponse::Refused(EngineRefusal::UnknownSid);
    assert_eq!(mesh.responses.remove(&request), Some(refused));
    assert_eq!(mesh.closed(a.client), Some(CloseCode::Normal), "its client comes back by its offset");
}

#[test]
fn who_is_asked_as_a_member_and_upgrades_answers_over_the_other_edge() {
    let mut mesh = Mesh::new(3, 1);
    mesh.wait(3 * second());
    let at = (0, 0);
    let a = mesh.poller(at, "alice");
    mesh.post(at, a, "420[\"join\",\"r\"]");
    mesh.poll(at, a);
    mesh.begin_query(2, 9, Query::Broadcast(Box::new(asks::broadcast(&["r"], "[\"q\"]"))));
    mesh.settle();
    let got = mesh.poll(at, a);
    let id = got[0].strip_prefix("42").and_then(|rest| rest.strip_suffix("[\"q\"]")).unwrap().to_owned();
    let socket = mesh.upgrade((1, 0), a);
    mesh.say(socket, &format!("43{id}[\"by the other\"]"));
    let Some(Ok(Answer::Gathered(all))) = mesh.answers.remove(&9) else { panic!("it has answered") };
    assert!(all.is_complete() && all.answers.len() == 1, "{all:?}");
}

#[test]
fn an_upgrade_waits_until_it_is_known_who_the_client_is_and_takes_that_along() {
    let mut mesh = Mesh::new(3, 1);
    mesh.offsets = true;
    let refusal = Refusal { code: "uid_required".into(), message: String::new() };
    let poller = mesh.open_polling((0, 0), Uid::ByAuth(Err(refusal)));
    assert_eq!(mesh.post((1, 0), poller, "40{\"token\":\"t\"}"), EngineResponse::Taken);
    let socket = mesh.upgrading((2, 0), poller);
    mesh.say(socket, "2probe");
    assert_eq!(mesh.take(socket), ["3probe"]);
    mesh.say(socket, "5");
    mesh.say(socket, "421[\"join\",\"r\"]");
    assert!(mesh.take(socket).is_empty());
    let (at, question) = mesh.identities.remove(0);
    mesh.input(at, Input::Identified(question.client, question.number, Ok(Some("alice".into()))));
    mesh.settle();
    let got = mesh.take(socket);
    assert!(got[0].starts_with("40{\"sid\"") && got[1].starts_with("431["), "{got:?}");
    let room = RoomKey::new(&"chat".into(), &"/".into(), "r");
    match mesh.query(1, Query::Members { room, list: true }) {
        Ok(Answer::Members(members)) => assert_eq!(&*members.listed[0].uid, "alice"),
        other => panic!("{other:?}"),
    }
    // Where it is now, another namespace is another question.
    mesh.say(socket, "41");
    mesh.say(socket, "40{\"token\":\"u\"}");
    let (at, question) = mesh.identities.remove(0);
    assert_eq!((at, &question.auth[..]), ((2, 0), &b"{\"token\":\"u\"}"[..]));
}
