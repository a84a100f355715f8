//! Handlers in Rust, by nodes embedded in this process and clients over real sockets.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::app::{App, EventRefused, Incomplete, Namespace, Refused};
use meshd::config::Config;
use meshd::node::{Node, Options, Running};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const PATIENCE: Duration = Duration::from_secs(20);

/// Nodes of one cluster, all with the same code.
struct Nodes(Vec<Running>);

impl Nodes {
    fn start(count: usize, app: &App) -> Self {
        let mut nodes: Vec<Running> = Vec::new();
        for n in 0..count {
            let mut config = Config::default();
            let free = SocketAddr::from(([127, 0, 0, 1], 0));
            (config.client.listen, config.api.listen) = (free, free);
            (config.admin.listen, config.mesh.listen) = (free, free);
            config.node.name = format!("handlers-{}-{n}", std::process::id());
            config.node.shards = 1;
            config.mesh.seeds = nodes.iter().map(|node| node.addresses().mesh.to_string()).collect();
            let options = Options::default().with_app("chat", app.clone());
            nodes.push(Node::start(config, options).expect("it starts"));
        }
        let began = Instant::now();
        while nodes.iter().any(|node| node.view().borrow().ring.nodes().len() < count) {
            assert!(began.elapsed() < PATIENCE, "the nodes do not find each other");
            std::thread::yield_now();
        }
        Self(nodes)
    }

    fn client_port(&self, node: usize) -> SocketAddr {
        self.0[node].addresses().client
    }
}

/// A Socket.IO client, packet by packet.
struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn open(port: SocketAddr, uid: &str) -> Self {
        let url = format!("ws://{port}/socket.io/?EIO=4&transport=websocket&product=chat&uid={uid}");
        let (socket, _) = connect_async(url).await.unwrap();
        let mut client = Self(socket);
        assert!(client.next().await.starts_with('0'));
        client
    }

    async fn connect(port: SocketAddr, uid: &str) -> Self {
        let mut client = Self::open(port, uid).await;
        client.say("40").await;
        assert!(client.next().await.starts_with("40{\"sid\""));
        client
    }

    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text.to_owned())).await.unwrap();
    }

    /// The next packet that is no ping.
    async fn next(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await;
            match message.expect("nothing comes").expect("the end").unwrap() {
                Message::Text(text) if text.as_str() == "2" => self.say("3").await,
                Message::Text(text) => return text.to_string(),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn ask(&mut self, text: &str) -> String {
        self.say(text).await;
        self.next().await
    }

    /// Takes the event `json`, which asks for an answer, and gives it.
    async fn answer(&mut self, json: &str, answer: &str) {
        let got = self.next().await;
        let id = got.strip_prefix("42").and_then(|rest| rest.strip_suffix(json));
        let id = id.unwrap_or_else(|| panic!("no question {json}: {got}"));
        self.say(&format!("43{id}{answer}")).await;
    }
}

/// Runs a test's clients; the nodes end after it, outside of any runtime.
fn run(nodes: Nodes, clients: impl AsyncFnOnce(&Nodes)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(clients(&nodes));
    drop(nodes);
}

#[test]
fn an_authorizer_refuses_with_data_and_a_filter_by_the_answer() {
    let app = App::new().namespace(
        Namespace::new("/")
            .authorize(|asked| async move {
                let auth: serde_json::Value = asked.auth().unwrap_or_default();
                if auth["banned"] == true {
                    return Err(Refused::new("banned").with_data(&[1, 2]));
                }
                Ok(())
            })
            .filter(|_, event| match event.name() {
                "secret" => Err(EventRefused("not for you".into())),
                _ => Ok(()),
            })
            .on("secret", |_, event| async move { event.reply(("told",)) })
            .on("fails", |_, _| async move { Err("a word for the log only".into()) })
            .on("panics", |_, _| async move { panic!("so it says") })
            .on("plus", |_, event| async move {
                let (a, b) = event.args::<(i64, i64)>()?;
                event.reply((a + b,))
            }),
    );
    run(Nodes::start(1, &app), async |nodes| {
        let mut client = Client::open(nodes.client_port(0), "alice").await;
        let refused = client.ask("40{\"banned\":true}").await;
        assert_eq!(refused, "44{\"message\":\"banned\",\"data\":[1,2]}");
        assert!(client.ask("40").await.starts_with("40{\"sid\""));
        assert_eq!(client.ask("421[\"plus\",2,3]").await, "431[5]");
        let told = client.ask("422[\"secret\"]").await;
        assert_eq!(told, "432[{\"ok\":false,\"code\":\"forbidden\",\"message\":\"not for you\"}]");
        assert!(
            client.ask("423[\"plus\",\"x\"]").await.starts_with("433[{\"ok\":false,\"code\":\"forbidden\"")
        );
        for event in ["fails", "panics"] {
            let told = client.ask(&format!("424[\"{event}\"]")).await;
            assert_eq!(told, "434[{\"ok\":false,\"code\":\"internal\",\"message\":\"the handler failed\"}]");
        }
        client.say("425[\"nobody handles this\"]").await;
        assert_eq!(client.ask("426[\"plus\",1,1]").await, "436[2]", "nobody answers, and the next goes on");
    });
}

#[test]
fn rooms_data_and_answers_reach_across_nodes() {
    let app = App::new().namespace(
        Namespace::new("/")
            .on_connect(|socket| async move {
                socket.set_data(&0)?;
                socket.join("all");
                Ok(())
            })
            .on("count", |socket, event| async move {
                let count = socket.data::<u32>()? + 1;
                socket.set_data(&count)?;
                event.reply((count,))
            })
            .on("tell", |socket, event| async move {
                socket.join("some");
                socket.within("all").and("some").except("none").emit("told", event.arguments())?;
                event.reply(())
            })
            .on("ask", |socket, event| async move {
                let patience = Duration::from_secs(10);
                let (answer,) = socket.emit_with_ack::<(String,)>("what", (1,), patience).await?;
                event.reply((answer,))
            })
            .on("who", |socket, event| async move {
                let members = socket.io().members("all").await?;
                let mut uids: Vec<String> = members.listed.iter().map(|(uid, _)| uid.to_string()).collect();
                uids.sort();
                event.reply((members.count, uids, members.silent))
            }),
    );
    run(Nodes::start(2, &app), async |nodes| {
        let mut alice = Client::connect(nodes.client_port(0), "alice").await;
        let mut bob = Client::connect(nodes.client_port(1), "bob").await;
        for n in 1..=3 {
            assert_eq!(bob.ask("421[\"count\"]").await, format!("431[{n}]"));
        }
        assert_eq!(alice.ask("421[\"count\"]").await, "431[1]");
        let told = alice.ask("422[\"tell\",{\"n\":1},\"x\"]").await;
        assert_eq!(told, "42[\"told\",{\"n\":1},\"x\"]", "once, though it is in both rooms");
        assert_eq!(alice.next().await, "432[]");
        assert_eq!(bob.next().await, "42[\"told\",{\"n\":1},\"x\"]");
        let asked = bob.ask("423[\"ask\"]").await;
        let id = asked.strip_prefix("42").and_then(|rest| rest.strip_suffix("[\"what\",1]")).unwrap();
        assert_eq!(bob.ask(&format!("43{id}[\"that\"]")).await, "433[\"that\"]");
        assert_eq!(bob.ask("424[\"who\"]").await, "434[2,[\"alice\",\"bob\"],[]]");
        let io = nodes.0[0].io("chat", "/");
        assert_eq!(io.emit_to_user("bob", "psst", ("hey",)).await.unwrap(), 1);
        assert_eq!(bob.next().await, "42[\"psst\",\"hey\"]");
        io.emit_to("all", "everyone", ()).await.unwrap();
        assert_eq!(alice.next().await, "42[\"everyone\"]");
        assert_eq!(bob.next().await, "42[\"everyone\"]");
        assert!(io.emit("disconnect", ()).await.is_err(), "a reserved name");
    });
}

/// Every handler's event is for the members of room `r`.
fn for_members() -> App {
    let patience = Duration::from_secs(4);
    App::new().namespace(
        Namespace::new("/")
            .on_connect(|socket| async move {
                socket.join("r");
                Ok(())
            })
            .on("ask", move |socket, event| async move {
                let (text,) = event.args::<(String,)>()?;
                let answers = socket.within("r").emit_with_ack("what", (text,), patience).await?;
                let mut all: Vec<(String,)> = answers.all()?;
                all.sort();
                event.reply((all,))
            })
            .on("ask others briefly", |socket, event| async move {
                let brief = Duration::from_millis(300);
                let answers = socket.to("r").and("none").emit_with_ack("what", ("now",), brief).await?;
                let missing = answers.missing;
                let error = answers.all::<(String,)>().unwrap_err();
                let partial = error.downcast_ref::<Incomplete>().map(|i| i.0.answers.len());
                event.reply((missing, partial, error.to_string()))
            })
            .on("move", |socket, event| async move {
                socket.within("r").join("moved")?;
                // The session of this very handler is among them.
                let acted = socket.io().to("r").join("in force").await?;
                event.reply((acted.sessions, acted.is_complete()))
            })
            .on("tell", |socket, event| async move {
                socket.within("in force").and("moved").emit("told", event.arguments())?;
                event.reply(())
            })
            .on("who", |socket, event| async move {
                let io = socket.io();
                let others = io.to("moved").and("in force").except(&socket.id()).members().await?;
                event.reply((others.count, others.silent))
            })
            .on("clear", |socket, event| async move {
                socket.to("r").leave("moved")?;
                socket.to("r").disconnect(true)?;
                event.reply(())
            }),
    )
}

#[test]
fn members_of_a_room_answer_and_are_moved_across_nodes() {
    run(Nodes::start(3, &for_members()), async |nodes| {
        let mut clients = Vec::new();
        for (n, uid) in ["alice", "bob", "carol"].into_iter().enumerate() {
            clients.push(Client::connect(nodes.client_port(n), uid).await);
        }
        let [alice, bob, carol] = &mut clients[..] else { unreachable!() };
        alice.say("421[\"ask\",\"name\"]").await;
        for (client, name) in [(&mut *carol, "c"), (&mut *alice, "a"), (&mut *bob, "b")] {
            client.answer("[\"what\",\"name\"]", &format!("[\"{name}\"]")).await;
        }
        assert_eq!(alice.next().await, "431[[[\"a\"],[\"b\"],[\"c\"]]]");
        // Carol says nothing.
        alice.say("422[\"ask others briefly\"]").await;
        bob.answer("[\"what\",\"now\"]", "[\"b\"]").await;
        let told = alice.next().await;
        assert_eq!(told, "432[1,1,\"operation has timed out: 1 have answered, 1 have not\"]");
        assert!(carol.next().await.ends_with("[\"what\",\"now\"]"));
        assert_eq!(bob.ask("423[\"move\"]").await, "433[3,true]");
        carol.say("424[\"tell\",1]").await;
        for client in [&mut *alice, &mut *bob, &mut *carol] {
            assert_eq!(client.next().await, "42[\"told\",1]", "once, in force");
        }
        assert_eq!(carol.next().await, "434[]");
        assert_eq!(carol.ask("425[\"who\"]").await, "435[2,[]]");
        assert_eq!(alice.ask("426[\"clear\"]").await, "436[]");
        for client in [bob, carol] {
            assert_eq!(client.next().await, "41");
        }
        let io = nodes.0[1].io("chat", "/");
        let answers = io.everyone().emit_with_ack("what", ("last",), PATIENCE);
        let (answers, ()) = tokio::join!(answers, alice.answer("[\"what\",\"last\"]", "[7]"));
        assert_eq!(answers.unwrap().all::<(u8,)>().unwrap(), [(7,)]);
        assert_eq!(io.everyone().disconnect(true).await.unwrap().sessions, 1);
        assert_eq!(alice.next().await, "41");
        assert_eq!(io.everyone().members().await.unwrap().count, 0);
        let too_long = io.to("r").emit_with_ack("what", (), Duration::from_secs(61)).await;
        assert!(too_long.unwrap_err().to_string().contains("60 s at most"));
    });
}

#[test]
fn a_disconnect_is_told_with_its_reason_and_bytes_pass_as_bytes() {
    let (told, heard) = mpsc::channel();
    let app = App::new().namespace(
        Namespace::new("/team-*")
            .on("bytes", |_, event| async move {
                let bytes = event.binary(0).map_or(0, |bytes| bytes.len());
                event.reply((bytes,))
            })
            .on_disconnect(move |socket, reason| {
                let told = told.clone();
                async move {
                    let _ = told.send((socket.namespace().to_owned(), reason.as_str()));
                    Ok(())
                }
            }),
    );
    run(Nodes::start(1, &app), async |nodes| {
        let mut client = Client::open(nodes.client_port(0), "alice").await;
        assert_eq!(client.ask("40").await, "44{\"message\":\"Invalid namespace\"}");
        assert!(client.ask("40/team-7,").await.starts_with("40/team-7,{\"sid\""));
        client.say("451-/team-7,1[\"bytes\",{\"_placeholder\":true,\"num\":0}]").await;
        client.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
        assert_eq!(client.next().await, "43/team-7,1[3]");
        client.say("41/team-7,").await;
        let said = tokio::task::spawn_blocking(move || heard.recv_timeout(PATIENCE)).await.unwrap();
        assert_eq!(said.unwrap(), ("/team-7".to_owned(), "client namespace disconnect"));
    });
}

#[test]
fn a_handler_that_blocks_holds_up_nobody_else() {
    let app = App::new().namespace(
        Namespace::new("/")
            .on("block", |_, event| async move {
                // As code does that knows nothing of runtimes.
                std::thread::sleep(Duration::from_secs(2));
                event.reply(("done",))
            })
            .on("echo", |_, event| async move { event.reply(event.arguments()) }),
    );
    run(Nodes::start(1, &app), async |nodes| {
        let mut blocked = Client::connect(nodes.client_port(0), "alice").await;
        let mut other = Client::connect(nodes.client_port(0), "bob").await;
        blocked.say("421[\"block\"]").await;
        let began = Instant::now();
        for n in 0..200 {
            assert_eq!(other.ask(&format!("42{n}[\"echo\",{n}]")).await, format!("43{n}[{n}]"));
        }
        let took = began.elapsed();
        assert_eq!(blocked.next().await, "431[\"done\"]");
        assert!(
            began.elapsed() >= Duration::from_secs(2) && took < began.elapsed(),
            "200 answers in {took:?}"
        );
    });
}
