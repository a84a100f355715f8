//! Questions to a node's admin listener.
//!
//! Belongs here: the connection, the token, failures as one line each, answers that go on.
//! Stays out: what is asked. Units: a question takes at most [`WITHIN`]; an answer that goes on is silent
//! for at most [`SILENT_MAX`].

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use meshd::admin::answers::ErrorAnswer;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::read;

/// A node answers within about a second; silent peers are named in its answer.
const WITHIN: Duration = Duration::from_secs(5);

/// A node that has nothing to tell sends an empty line three times within this time.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// The longest line of an answer that goes on.
const LINE_BYTES_MAX: usize = 1 << 20;

type Conn = Connection<TokioIo<TcpStream>, Empty<Bytes>>;

/// Nobody answers there: the node has ended, or there is none.
#[derive(Debug)]
pub(crate) struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Where to ask, and with what token.
pub(crate) struct Client {
    admin: String,
    token: Option<String>,
}

impl Client {
    /// Reads the token, if there is a file for one.
    pub(crate) fn new(admin: &str, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let token = match token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                Some(text.with_context(|| format!("cannot read {}", file.display()))?.trim().to_owned())
            }
            None => None,
        };
        Ok(Self { admin: admin.to_owned(), token })
    }

    /// Asks and reads the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.exchange(Method::GET, path)
    }

    /// Has something done and reads the answer.
    pub(crate) fn tell<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.exchange(Method::POST, path)
    }

    fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, self.answer(method, path)).await });
        let (status, body) = asked
            .with_context(|| format!("{} does not answer within {} s", self.admin, WITHIN.as_secs()))??;
        if status == StatusCode::OK {
            return read(&body);
        }
        Err(self.refusal(status, &body))
    }

    /// Asks for an answer that goes on and gives each of its lines to `take`, until that says to stop.
    /// Ends with an error when the node does.
    pub(crate) fn follow(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (sender, connection) = self.connect().await?;
            // Ends with the runtime.
            tokio::spawn(connection);
            let mut sender = sender;
            let response = sender.send_request(self.request(Method::GET, path)?).await;
            let response = response.with_context(|| self.not_http())?;
            let (status, mut body) = (response.status(), response.into_body());
            if status != StatusCode::OK {
                return Err(self.refusal(status, &body.collect().await?.to_bytes()));
            }
            let mut waiting = Vec::new();
            loop {
                let frame = tokio::time::timeout(SILENT_MAX, body.frame()).await;
                let frame = frame
                    .with_context(|| format!("no word of {} for {} s", self.admin, SILENT_MAX.as_secs()))?;
                let Some(Ok(frame)) = frame else { bail!("{} has ended the stream: it stops", self.admin) };
                waiting.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = waiting.drain(..=end).collect();
                    if line.len() > 1 && take(&line[..end])?.is_break() {
                        return Ok(());
                    }
                }
                if waiting.len() > LINE_BYTES_MAX {
                    bail!("{} sends a line without end: is it an admin address?", self.admin);
                }
            }
        })
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> anyhow::Error {
        let error = serde_json::from_slice::<ErrorAnswer>(body).unwrap_or_default().error;
        let hint = match (status.as_u16(), &self.token) {
            (401, None) => " (--token-file names the file with it)",
            _ => "",
        };
        match (error.code.as_str(), error.message.as_str()) {
            (_, "") => anyhow!("{} answered {status}: is it an admin address?", self.admin),
            ("refused" | "no_such_node", message) => anyhow!("{message}"),
            (_, message) => anyhow!("{} answered {}: {message}{hint}", self.admin, status.as_u16()),
        }
    }

    fn not_http(&self) -> String {
        format!("{} does not speak HTTP as meshd does: is it an admin address?", self.admin)
    }

    async fn connect(&self) -> anyhow::Result<(SendRequest<Empty<Bytes>>, Conn)> {
        let stream = TcpStream::connect(&self.admin).await.map_err(|error| {
            Unreachable(format!(
                "cannot reach {}: is meshd running there? (--admin ADDR names another): {error}",
                self.admin
            ))
        })?;
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    }

    fn request(&self, method: Method, path: &str) -> anyhow::Result<Request<Empty<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header("host", &self.admin);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        // The builder's own error would show the header.
        let Ok(request) = request.body(Empty::<Bytes>::new()) else {
            bail!("the address or the token has characters that HTTP does not carry");
        };
        Ok(request)
    }

    async fn answer(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let (mut sender, connection) = self.connect().await?;
        let request = self.request(method, path)?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let unanswered = || Unreachable(format!("{} closed the connection without an answer", self.admin));
        tokio::select! {
            biased;
            answer = exchange => match answer {
                Err(error) if error.is_incomplete_message() || error.is_canceled() => {
                    Err(unanswered().into())
                }
                answer => answer.with_context(|| self.not_http()),
            },
            ended = connection => {
                ended.with_context(|| self.not_http())?;
                Err(unanswered().into())
            }
        }
    }
}

/// A query of these parameters, percent-encoded.
pub(crate) fn query(params: &[(&str, &str)]) -> String {
    let pairs = params.iter().map(|(name, value)| format!("{name}={}", encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
