//! Questions to the members of rooms and actions on them: the stock client at three nodes with code of their own.
//!
//! The scenarios are in `tests/js/asks.mjs`.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_tests::{js, until};
use meshd::app::{App, Incomplete, Namespace};
use meshd::config::Config;
use meshd::node::{Node, Options, Running};

const PATIENCE: Duration = Duration::from_millis(1_500);

fn app() -> App {
    let namespace = Namespace::new("/")
        .on_connect(|socket| async move {
            socket.join("r");
            Ok(())
        })
        .on("ask", |socket, event| async move {
            let (text,) = event.args::<(String,)>()?;
            let answers = socket.within("r").emit_with_ack("what", (text,), PATIENCE).await?;
            let read = |answer: &meshd::app::Answer| {
                let (text, _) = answer.args::<(String, serde_json::Value)>().ok()?;
                Some((text, answer.binary(0)?.len()))
            };
            let mut all: Vec<(String, usize)> = answers.answers.iter().filter_map(read).collect();
            all.sort();
            let missing = answers.missing;
            let told = match answers.all::<(String, serde_json::Value)>() {
                Ok(_) => serde_json::json!({ "complete": true, "all": all }),
                Err(error) => {
                    assert!(error.is::<Incomplete>());
                    let error = error.to_string();
                    let error = error.split(':').next();
                    serde_json::json!({ "complete": false, "all": all, "missing": missing, "error": error })
                }
            };
            event.reply((told,))
        })
        .on("join all", |socket, event| async move {
            let (room,) = event.args::<(String,)>()?;
            let acted = socket.io().to("r").join(&room).await?;
            event.reply((acted.sessions,))
        })
        .on("say", |socket, event| async move {
            let (room, n) = event.args::<(String, u32)>()?;
            socket.within(&room).emit("said", (n,))?;
            event.reply(())
        })
        .on("say, leave, say", |socket, event| async move {
            let (room,) = event.args::<(String,)>()?;
            socket.within(&room).emit("said", (2,))?;
            socket.to(&room).leave(&room)?;
            socket.within(&room).emit("said", (3,))?;
            event.reply(())
        })
        .on("end others", |socket, event| async move {
            let acted = socket.io().to("r").except(&socket.id()).disconnect(true).await?;
            event.reply((acted.sessions,))
        })
        .on("who", |socket, event| async move {
            let members = socket.io().to("r").and("new").members().await?;
            let uids: Vec<String> = members.listed.iter().map(|(uid, _)| uid.to_string()).collect();
            event.reply((uids,))
        });
    App::new().namespace(namespace)
}

fn start(count: usize) -> Vec<Running> {
    let mut nodes: Vec<Running> = Vec::new();
    for n in 0..count {
        let mut config = Config::default();
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.client.listen, config.api.listen) = (free, free);
        (config.admin.listen, config.mesh.listen) = (free, free);
        config.node.name = format!("asks-{}-{n}", std::process::id());
        config.node.shards = 1 + u16::from(n == 0);
        config.mesh.seeds = nodes.iter().map(|node| node.addresses().mesh.to_string()).collect();
        let options = Options::default().with_app("chat", app());
        nodes.push(Node::start(config, options).expect("it starts"));
    }
    nodes
}

fn run(scenario: &str) {
    let nodes = start(3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        until("the nodes find each other", || {
            let seen: Vec<usize> = nodes.iter().map(|node| node.view().borrow().ring.nodes().len()).collect();
            let all = seen.iter().all(|count| *count == nodes.len());
            async move { if all { Ok(()) } else { Err(format!("{seen:?}")) } }
        })
        .await;
        let ports: Vec<String> = nodes.iter().map(|node| node.addresses().client.to_string()).collect();
        let args: Vec<&str> = std::iter::once(scenario).chain(ports.iter().map(String::as_str)).collect();
        let mut clients = js::start("asks.mjs", &args).await;
        let status = clients.ended().await;
        assert!(status.success(), "{scenario}: {status}");
    });
    // Nodes end outside of any runtime.
    drop(nodes);
}

#[test]
fn every_member_answers_once_by_any_transport() {
    run("answers");
}

#[test]
fn answers_that_are_there_come_without_those_that_are_not() {
    run("partial");
}

#[test]
fn members_are_moved_and_sent_away_in_the_order_of_the_room() {
    run("actions");
}
