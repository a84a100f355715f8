//! Clients that say who they are when they connect to a namespace.

use super::*;

fn mesh(nodes: usize) -> Mesh {
    let rules = ProductRules { namespaces: Namespaces::new(["/", "/admin"]), ..ProductRules::open("chat") };
    Mesh::with(nodes, 1, Limits::default(), rules)
}

fn refusal(code: &'static str) -> Refusal {
    Refusal { code: code.into(), message: "told why".into() }
}

impl Mesh {
    /// A Socket.IO client that is to say who it is, and is `otherwise` if it does not.
    fn stranger(&mut self, at: At, otherwise: Result<&str, Refusal>) -> Client {
        let uid = Uid::ByAuth(otherwise.map(Arc::from));
        let admission = Ok(Admission { product: self.rules.clone(), uid });
        let client = self.open_as(at, ClientProtocol::SocketIo, admission);
        self.take(client);
        client
    }

    /// The one question there is.
    fn question(&mut self) -> (At, AuthQuestion) {
        assert_eq!(self.identities.len(), 1, "{:?}", self.identities);
        self.identities.remove(0)
    }

    fn identify(&mut self, question: &(At, AuthQuestion), said: Result<Option<&str>, Refusal>) {
        let (at, AuthQuestion { client, number, .. }) = question;
        let said = said.map(|uid| uid.map(Arc::from));
        self.input(*at, Input::Identified(*client, *number, said));
        self.settle();
    }

    /// Connects to a namespace as whom `said` names.
    fn enter(&mut self, client: Client, connect: &str, said: Result<Option<&str>, Refusal>) -> Vec<String> {
        assert!(self.ask(client, connect).is_empty(), "let in before it is known");
        let question = self.question();
        self.identify(&question, said);
        self.take(client)
    }
}

#[test]
fn a_client_is_in_each_namespace_who_it_says_there() {
    let mut mesh = mesh(3);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    assert!(mesh.ask(a, "40{\"token\":\"t\"}").is_empty());
    let question = mesh.question();
    assert_eq!((&*question.1.product, &question.1.auth[..]), ("chat", &b"{\"token\":\"t\"}"[..]));
    mesh.identify(&question, Ok(Some("alice")));
    assert!(mesh.take(a)[0].starts_with("40{\"sid\""));
    let admin = mesh.enter(a, "40/admin,{\"token\":\"u\"}", Ok(Some("root")));
    assert!(admin[0].starts_with("40/admin,{\"sid\""), "{admin:?}");
    mesh.ask(a, "421[\"join\",\"r\"]");
    mesh.ask(a, "42/admin,1[\"join\",\"r\"]");
    let listed = |mesh: &mut Mesh, namespace: &str| {
        let room = RoomKey::new(&"chat".into(), &namespace.into(), "r");
        match mesh.query(1, Query::Members { room, list: true }) {
            Ok(Answer::Members(members)) => {
                members.listed.iter().map(|m| m.uid.to_string()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(listed(&mut mesh, "/"), ["alice"]);
    assert_eq!(listed(&mut mesh, "/admin"), ["root"]);
}

#[test]
fn who_is_not_believed_is_told_and_may_try_again() {
    let mut mesh = mesh(1);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    let told = mesh.enter(a, "40{\"token\":\"bad\"}", Err(refusal("uid_invalid")));
    assert_eq!(told, ["44{\"message\":\"told why\",\"data\":{\"code\":\"uid_invalid\"}}"]);
    let told = mesh.enter(a, "40/admin,", Ok(None));
    assert_eq!(told, ["44/admin,{\"message\":\"told why\",\"data\":{\"code\":\"uid_required\"}}"]);
    assert!(mesh.enter(a, "40{\"token\":\"good\"}", Ok(Some("alice")))[0].starts_with("40{\"sid\""));
    assert_eq!(mesh.ask(a, "40/nope,"), ["44/nope,{\"message\":\"Invalid namespace\"}"]);
    assert!(mesh.identities.is_empty(), "nobody is asked about what there is not");
    assert_eq!((mesh.closed(a), mesh.stats(|s| s.sessions)), (None, 1));
}

#[test]
fn who_says_nothing_is_whom_the_handshake_has_found() {
    let mut mesh = mesh(1);
    let a = mesh.stranger((0, 0), Ok("~anonymous"));
    assert!(mesh.enter(a, "40", Ok(None))[0].starts_with("40{\"sid\""));
    assert!(mesh.enter(a, "40/admin,{\"token\":\"t\"}", Ok(Some("alice")))[0].starts_with("40/admin,"));
    // Without CONNECT packets there is nothing to ask.
    let uid = || Uid::ByAuth(Ok("bob".into()));
    let admission = |uid| Ok(Admission { product: Arc::new(ProductRules::open("chat")), uid });
    let plain = mesh.open_as((0, 0), ClientProtocol::Plain, admission(uid()));
    assert!(mesh.take(plain)[0].contains("bob"));
    let nobody = Uid::ByAuth(Err(refusal("uid_required")));
    let plain = mesh.open_as((0, 0), ClientProtocol::Plain, admission(nobody));
    assert!(mesh.take(plain)[0].contains("uid_required"));
    assert_eq!(mesh.closed(plain), Some(CloseCode::Refused));
}

#[test]
fn what_is_sent_meanwhile_is_handled_after_in_its_order_and_holds_up_nobody_else() {
    let mut mesh = mesh(2);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    assert!(mesh.enter(a, "40/admin,{}", Ok(Some("root")))[0].starts_with("40/admin,"));
    for packet in ["40{}", "421[\"join\",\"r\"]", "422[\"publish\",\"r\",\"e\",1]", "423[\"rooms\"]"] {
        assert!(mesh.ask(a, packet).is_empty(), "{packet}");
    }
    assert_eq!(mesh.ask(a, "42/admin,9[\"rooms\"]").len(), 1, "another namespace goes on");
    let question = mesh.question();
    mesh.identify(&question, Ok(Some("alice")));
    let got = mesh.take(a);
    // A publish is answered when it is safe, which may be after what came behind it.
    assert!(got.iter().any(|packet| packet.starts_with("432[{\"ok\":true")), "{got:?}");
    let places = ["40{\"sid\"", "431[", "433[{\"ok\":true,\"rooms\":[\"r\"]"].map(|beginning| {
        let place = got.iter().position(|packet| packet.starts_with(beginning));
        place.unwrap_or_else(|| panic!("no {beginning} in {got:?}"))
    });
    assert!(places.is_sorted(), "{got:?}");
    // What is for somebody who is refused is for nobody.
    let b = mesh.stranger((0, 0), Err(refusal("uid_required")));
    mesh.say(b, "40{}");
    mesh.say(b, "421[\"join\",\"r\"]");
    let question = mesh.question();
    mesh.identify(&question, Err(refusal("uid_invalid")));
    assert_eq!(mesh.take(b).len(), 1);
    assert_eq!(mesh.closed(b), None);
    mesh.say(b, "42[\"late\"]");
    assert_eq!(mesh.closed(b), Some(CloseCode::ProtocolError), "an event without a namespace");
}

#[test]
fn a_client_that_sends_too_much_meanwhile_is_not_read_from() {
    let mut mesh = mesh(1);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    mesh.say(a, "40{}");
    let max = Limits::default().inbound_packets_max;
    for n in 1..max {
        mesh.send(a, &format!("42{n}[\"rooms\"]"));
        assert!(!mesh.is_paused(a), "{n}");
    }
    mesh.send(a, "42[\"rooms\"]");
    assert!(mesh.is_paused(a));
    let question = mesh.question();
    mesh.identify(&question, Ok(Some("alice")));
    assert!(!mesh.is_paused(a));
    assert_eq!(mesh.take(a).iter().filter(|packet| packet.starts_with("43")).count(), max - 1);
    // The same for one that is refused.
    let b = mesh.stranger((0, 0), Err(refusal("uid_required")));
    mesh.say(b, "40{}");
    for _ in 0..max {
        mesh.send(b, "42[\"rooms\"]");
    }
    assert!(mesh.is_paused(b));
    let question = mesh.question();
    mesh.identify(&question, Ok(None));
    assert!(!mesh.is_paused(b));
}

#[test]
fn who_connects_twice_is_closed_and_who_leaves_is_not_let_in() {
    let mut mesh = mesh(1);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    mesh.say(a, "40{}");
    let first = mesh.question();
    mesh.say(a, "41");
    mesh.identify(&first, Ok(Some("alice")));
    assert!(mesh.take(a).is_empty() && mesh.stats(|s| s.sessions) == 0);
    mesh.say(a, "40{}");
    let second = mesh.question();
    mesh.identify(&first, Ok(Some("mallory")));
    assert!(mesh.take(a).is_empty(), "an answer to another question");
    mesh.identify(&second, Ok(Some("alice")));
    assert!(mesh.take(a)[0].starts_with("40{\"sid\""));
    mesh.say(a, "40/admin,");
    let third = mesh.question();
    mesh.say(a, "40/admin,");
    assert_eq!(mesh.closed(a), Some(CloseCode::ProtocolError));
    mesh.identify(&third, Ok(Some("alice")));
    assert!(mesh.take(a).is_empty(), "an answer for a client that is gone");
}

#[test]
fn a_client_about_whom_nobody_answers_is_closed_in_time() {
    let mut mesh = mesh(1);
    let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
    mesh.say(a, "40{}");
    mesh.wait(Limits::default().connect_timeout);
    assert_eq!(mesh.closed(a), Some(CloseCode::Timeout));
}

#[test]
fn a_client_comes_back_to_its_session_by_who_it_says_it_is() {
    for (uid, goes_on) in [("alice", true), ("mallory", false)] {
        let mut mesh = mesh(3);
        mesh.offsets = true;
        let a = mesh.stranger((0, 0), Err(refusal("uid_required")));
        let first = mesh.enter(a, "40{\"token\":\"t\"}", Ok(Some("alice")));
        let [sid, pid] = [3, 7].map(|at| first[0].split('"').nth(at).unwrap().to_owned());
        mesh.input(a.at, Input::ClientClosed(ClientIx(a.ix), ClientGone::Error));
        mesh.settle();
        let again = mesh.stranger((1, 0), Err(refusal("uid_required")));
        let connect = format!("40{{\"pid\":\"{pid}\",\"token\":\"t\"}}");
        let got = mesh.enter(again, &connect, Ok(Some(uid)));
        assert_eq!(got[0].contains(&sid), goes_on, "{uid}: {got:?}");
        assert!(got[0].starts_with("40{\"sid\""), "{got:?}");
    }
}
