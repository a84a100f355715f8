//! A chat: rooms, who is there, private messages. Clients are stock Socket.IO clients.
//!
//! `cargo run -p meshd --example chat` starts one node at 127.0.0.1:4080; settings as for `meshd`
//! (`MESHD_CLIENT__LISTEN=…`). Connect with `?uid=NAME`.

use std::error::Error;

use meshd::app::{App, Event, EventRefused, Namespace, Refused, Socket};
use meshd::config::{Config, Sources};
use meshd::node::{Node, Options};

type Done = Result<(), Box<dyn Error + Send + Sync>>;

/// Says hello, and tells the others.
async fn connected(socket: Socket) -> Done {
    socket.join("lobby");
    socket.emit("welcome", (socket.uid(), "lobby"))?;
    socket.to("lobby").emit("came", (socket.uid(),))
}

/// `say(room, text)`, acknowledged once nothing can lose it.
async fn say(socket: Socket, event: Event) -> Done {
    let (room, text) = event.args::<(String, String)>()?;
    if !socket.rooms().any(|known| known == room) {
        return Err(EventRefused(format!("you are not in {room}")).into());
    }
    socket.within(&room).emit("said", (&room, socket.uid(), text))?;
    event.reply(("delivered",))
}

/// `join(room)`, answered with who is there.
async fn join(socket: Socket, event: Event) -> Done {
    let (room,) = event.args::<(String,)>()?;
    socket.join(&room);
    let members = socket.io().members(&room).await?;
    let uids: Vec<&str> = members.listed.iter().map(|(uid, _)| &**uid).collect();
    event.reply((uids, members.silent))
}

/// `whisper(uid, text)`, answered with how many sessions it went to.
async fn whisper(socket: Socket, event: Event) -> Done {
    let (uid, text) = event.args::<(String, String)>()?;
    let reached = socket.io().emit_to_user(&uid, "whispered", (socket.uid(), text)).await?;
    event.reply((reached,))
}

fn chat() -> Namespace {
    Namespace::new("/")
        .authorize(|asked| async move {
            let auth: serde_json::Value = asked.auth().unwrap_or_default();
            match auth["banned"].as_bool() {
                Some(true) => Err(Refused::new("you are banned").with_data(&"for ever")),
                _ => Ok(()),
            }
        })
        .on_connect(connected)
        .on("say", say)
        .on("join", join)
        .on("whisper", whisper)
        .on_disconnect(|socket, reason| async move {
            socket.io().emit_to("lobby", "left", (socket.uid(), reason.as_str())).await
        })
}

fn main() -> Result<(), Box<dyn Error>> {
    let environment = Sources { env: std::env::vars().collect(), ..Sources::default() };
    let config = Config::load(&environment)?;
    let node = Node::start(config, Options::default().with_app("chat", App::new().namespace(chat())))?;
    node.stop_on_signals()?;
    println!("clients connect to {}", node.addresses().client);
    let _ = node.wait();
    Ok(())
}
