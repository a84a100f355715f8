//! Requests of the demo page to kill and start nodes.
//!
//! Belongs here: a port of the supervisor's own, who may ask, the answers.
//! Stays out: the nodes (`supervisor`). Exists in `meshd demo` only, on loopback.
//! Invariants: only pages served from a loopback address, and programs of this host that name one,
//! are listened to: a page of the internet cannot kill anything through a visitor's browser.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::site::names_loopback;
use super::supervisor::Done;
use crate::tasks::{OnPanic, Tasks};
use crate::transport::head::{HeadBuffer, RequestHead};
use crate::transport::{Response, percent_decoded, query_values};

/// A request must be whole, and taken, within this time.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// One read of a request's head.
const READ_BYTES: usize = 4 << 10;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// As by `kill -9`.
    Kill,
    /// Start it again.
    Start,
}

/// A request of the page.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) act: Act,
    pub(super) node: String,
    pub(super) answer: Done,
}

/// Listens on a free port; its URL.
pub(super) async fn start(requests: mpsc::Sender<Asked>, tasks: &Tasks) -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}/demo", listener.local_addr()?);
    let (group, stopping) = (tasks.clone(), tasks.stopping());
    tasks.spawn("control", OnPanic::EndTask, async move {
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            if let Ok((stream, _)) = accepted {
                let requests = requests.clone();
                group.spawn("control-request", OnPanic::EndTask, async move {
                    let _ = serve(stream, &requests).await;
                });
            }
        }
    });
    Ok(url)
}

async fn serve(mut stream: TcpStream, requests: &mpsc::Sender<Asked>) -> io::Result<()> {
    let mut buffer = HeadBuffer::default();
    let mut bytes = [0; READ_BYTES];
    let whole = loop {
        let len = timeout(REQUEST_WITHIN, stream.read(&mut bytes)).await??;
        match buffer.push(&bytes[..len]) {
            Ok(Some(whole)) => break whole,
            Ok(None) if len > 0 => {}
            _ => return Ok(()),
        }
    };
    let answer = match RequestHead::parse(&buffer.bytes()[..whole]) {
        Ok(head) => match understood(&head) {
            Ok((act, node)) => carried_out(act, node, requests).await,
            Err(refused) => refused,
        }
        .with_header("Vary", "Origin")
        .with_header("Access-Control-Allow-Origin", origin(&head).unwrap_or_default()),
        Err(error) => error.response(),
    };
    stream.write_all(&answer.to_bytes(false)).await?;
    stream.shutdown().await
}

/// What is asked, if whoever asks may.
fn understood(head: &RequestHead<'_>) -> Result<(Act, String), Response> {
    if !head.header_text("host").is_some_and(names_loopback) || origin(head).is_none() {
        return Err(text(403, "only pages of this host"));
    }
    let act = match head.path {
        "/demo/kill" => Act::Kill,
        "/demo/start" => Act::Start,
        _ => return Err(text(404, "no such path")),
    };
    if head.method != "POST" {
        return Err(text(405, "POST only").with_header("Allow", "POST"));
    }
    let node = query_values(head.query, "node").next().and_then(percent_decoded);
    let node = node.ok_or_else(|| text(400, "node is missing"))?;
    Ok((act, node.into_owned()))
}

/// The page's origin if it is this host's; empty where there is none: no browser asks then.
fn origin(head: &RequestHead<'_>) -> Option<String> {
    let Some(origin) = head.header_text("origin") else {
        return head.values("origin").next().is_none().then(String::new);
    };
    let local = origin.strip_prefix("http://").is_some_and(names_loopback);
    (local && origin.bytes().all(|byte| byte.is_ascii_graphic())).then(|| origin.to_owned())
}

async fn carried_out(act: Act, node: String, requests: &mpsc::Sender<Asked>) -> Response {
    let (answer, done) = oneshot::channel();
    if requests.try_send(Asked { act, node, answer }).is_err() {
        return text(503, "busy, come back");
    }
    match done.await {
        Ok(Ok(())) => text(200, "done"),
        Ok(Err(why)) => Response { body: why.into_bytes().into(), ..text(409, "") },
        Err(_) => text(503, "the demo ends"),
    }
}

fn text(status: u16, body: &'static str) -> Response {
    Response {
        status,
        content_type: "text/plain; charset=utf-8",
        body: body.as_bytes().into(),
        headers: Vec::new(),
    }
}
