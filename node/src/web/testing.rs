//! A listener under test, and requests to it as bytes, so that malformed ones can be sent too.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Handler, serve};
use crate::tasks::Tasks;

/// A running listener; ends with the test's runtime.
pub(crate) struct Running {
    /// Where.
    pub(crate) address: SocketAddr,
    tasks: Tasks,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answered {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The status, and the error's code if it has one.
    pub(crate) fn outcome(&self) -> (u16, String) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        (self.status, body["error"]["code"].as_str().unwrap_or("").to_owned())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// Serves `handler` on a free port.
pub(crate) async fn run<H: Handler>(handler: H) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    tokio::spawn(serve(listener, Arc::new(handler), "test", tasks.clone()));
    Running { address, tasks }
}

impl Running {
    /// Sends bytes as they are and reads the answer until the connection closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Answered {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The answer may come, and the connection close, before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Answered { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// A request with `Connection: close`; `headers` are whole lines ending in CR LF.
    pub(crate) async fn ask(&self, method: &str, target: &str, headers: &str, body: &str) -> Answered {
        let host =
            if headers.contains("Host: ") { String::new() } else { format!("Host: {}\r\n", self.address) };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request =
            format!("{method} {target} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}");
        self.raw(request.as_bytes()).await
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}
