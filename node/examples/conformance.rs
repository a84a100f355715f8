//! The fixture of the public conformance suites for Engine.IO v4 and Socket.IO v5: heartbeats of 300 and
//! 200 ms, `auth`, `message` and `message-with-ack` in the namespaces `/` and `/custom`, and an echo at
//! `/engine.io/`. Recovery is off: the answer to a CONNECT may hold the `sid` alone.
//!
//! `cargo run -p meshd --example conformance` listens at 127.0.0.1:3000; settings as for `meshd`.

use std::error::Error;
use std::time::Duration;

use meshd::app::{App, Arguments, Event, Namespace, Socket};
use meshd::config::{Config, ProductConfig, Sources};
use meshd::node::{Node, Options};

type Done = Result<(), Box<dyn Error + Send + Sync>>;

const PRODUCT: &str = "conformance";

async fn say_auth(socket: Socket) -> Done {
    let auth: serde_json::Value = socket.auth()?;
    socket.emit("auth", (auth,))
}

async fn send_back(socket: Socket, event: Event) -> Done {
    socket.emit("message-back", event.arguments())
}

async fn answer(_: Socket, event: Event) -> Done {
    let arguments: Arguments = event.arguments();
    event.reply(arguments)
}

fn socket_io(name: &str) -> Namespace {
    Namespace::new(name).on_connect(say_auth).on("message", send_back).on("message-with-ack", answer)
}

/// Whatever comes goes back.
fn echo() -> Namespace {
    Namespace::new("/").on_any(|socket, event| async move { socket.emit("message", event.arguments()) })
}

fn main() -> Result<(), Box<dyn Error>> {
    let environment = Sources { env: std::env::vars().collect(), ..Sources::default() };
    let mut config = Config::load(&environment)?;
    if std::env::var_os("MESHD_CLIENT__LISTEN").is_none() {
        config.client.listen = ([127, 0, 0, 1], 3000).into();
    }
    config.limits.ping_interval = Duration::from_millis(300);
    config.limits.ping_timeout = Duration::from_millis(200);
    config.limits.message_bytes_max = 1_000_000;
    let product = ProductConfig {
        identity: vec!["anonymous".into()],
        recovery: "off".into(),
        ..ProductConfig::default()
    };
    config.products.0.insert(PRODUCT.into(), product);
    let app = App::new().namespace(socket_io("/")).namespace(socket_io("/custom")).engine_io(echo());
    let node = Node::start(config, Options::default().with_app(PRODUCT, app))?;
    node.stop_on_signals()?;
    println!("{}", serde_json::to_string(node.addresses())?);
    let _ = node.wait();
    Ok(())
}
