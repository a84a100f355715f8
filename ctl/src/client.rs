//! One question to a node's admin listener.
//!
//! Belongs here: the connection, the token, failures as one line each.
//! Stays out: what is asked. Units: a question takes at most [`WITHIN`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use meshd::admin::answers::ErrorAnswer;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::read;

/// A node answers within about a second; silent peers are named in its answer.
const WITHIN: Duration = Duration::from_secs(5);

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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, self.answer(path)).await });
        let (status, body) = asked
            .with_context(|| format!("{} does not answer within {} s", self.admin, WITHIN.as_secs()))??;
        if status == hyper::StatusCode::OK {
            return read(&body);
        }
        let error = serde_json::from_slice::<ErrorAnswer>(&body).unwrap_or_default().error;
        let hint = match (status.as_u16(), &self.token) {
            (401, None) => " (--token-file names the file with it)",
            _ => "",
        };
        if error.message.is_empty() {
            bail!("{} answered {status}: is it an admin address?", self.admin);
        }
        bail!("{} answered {}: {}{hint}", self.admin, status.as_u16(), error.message)
    }

    async fn answer(&self, path: &str) -> anyhow::Result<(hyper::StatusCode, Bytes)> {
        let unreachable =
            || format!("cannot reach {}: is meshd running there? (--admin ADDR names another)", self.admin);
        let stream = TcpStream::connect(&self.admin).await.with_context(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::get(path).header("host", &self.admin);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        // The builder's own error would show the header.
        let Ok(request) = request.body(Empty::<Bytes>::new()) else {
            bail!("the address or the token has characters that HTTP does not carry");
        };
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let not_http =
            || format!("{} does not speak HTTP as meshd does: is it an admin address?", self.admin);
        tokio::select! {
            answer = exchange => answer.with_context(not_http),
            ended = connection => {
                ended.with_context(not_http)?;
                bail!("{} closed the connection without an answer", self.admin)
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
