//! A web application that is asked who sent a request.
//!
//! Belongs here: the question, the answer, connections to whoever answers, and what is done without one.
//! Stays out: what else a product believes (`sources`).
//! Owner: one [`Hook`] for each product; its lock is held for a look into a table, never across a wait.
//! What filling up means: more questions than [`ASKING_MAX`] at once wait, within the time of a question;
//! of more answers than [`CACHED_MAX`] the oldest are forgotten.
//! Invariants: a question ends within its time; no answer is a refusal for the moment, never an
//! anonymous user; neither question nor answer is logged.

mod breaker;
mod cache;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Denied, RequestFacts};
use crate::clock::Clock;
use crate::metrics::{Exposition, Kind};
use crate::tasks::{OnPanic, Tasks};
use crate::transport::{percent_decoded, query_values};
use breaker::{Breaker, Ended};
use cache::{Asked, Cache};

/// Questions under way at once.
const ASKING_MAX: usize = 64;

/// Answers kept.
const CACHED_MAX: usize = 10_000;

/// Connections kept without a question.
const IDLE_MAX: usize = 16;

/// The longest answer.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What a refusal may say.
const MESSAGE_CHARS_MAX: usize = 256;

/// Where to ask, what to tell, how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSettings {
    /// Who is asked.
    pub url: HookUrl,
    /// Headers that it is told, in lower case.
    pub headers: Vec<String>,
    /// Query parameters that it is told.
    pub query: Vec<String>,
    /// A question takes at most this long.
    pub timeout: Duration,
    /// An answer counts for as long.
    pub cache: Duration,
    /// After so many failures in a row it is left alone.
    pub break_after: u32,
    /// For as long.
    pub break_for: Duration,
}

/// `http://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookUrl {
    authority: String,
    address: String,
    path: String,
}

impl HookUrl {
    /// Reads a URL; `None` for what is none, or is no plain `http`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uri: http::Uri = text.parse().ok()?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if uri.scheme_str() != Some("http") || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(80);
        Some(Self {
            authority: authority.to_string(),
            address: format!("{}:{port}", authority.host()),
            path: uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string),
        })
    }
}

/// What is asked: the whole of it is the key of the cache.
#[derive(Debug, Serialize)]
struct Question<'q> {
    product: &'q str,
    method: &'q str,
    path: &'q str,
    ip: IpAddr,
    headers: Vec<(&'q str, Cow<'q, str>)>,
    query: Vec<(&'q str, Cow<'q, str>)>,
}

/// What is answered, with status 200 or 4xx.
#[derive(Debug, Deserialize)]
struct Answer {
    uid: Option<String>,
    refuse: Option<Refuse>,
}

#[derive(Debug, Deserialize)]
struct Refuse {
    status: Option<u16>,
    code: Option<String>,
    message: Option<String>,
}

/// What a hook has said: a uid, still to be checked for its form, nothing, or no.
pub(super) type Said = Result<Option<String>, Denied>;

/// One product's hook.
pub struct Hook {
    product: Arc<str>,
    settings: HookSettings,
    clock: Clock,
    tasks: Tasks,
    asking: Semaphore,
    shared: Mutex<Shared>,
    counts: [AtomicU64; OUTCOMES.len()],
}

struct Shared {
    breaker: Breaker,
    cache: Cache<Said>,
    idle: Vec<Sender>,
}

type Sender = SendRequest<Full<Bytes>>;

/// Labels of the counter, in the order of [`Outcome`].
const OUTCOMES: [&str; 5] = ["known", "refused", "failed", "cached", "left_alone"];

#[derive(Clone, Copy)]
enum Outcome {
    Known,
    Refused,
    Failed,
    Cached,
    LeftAlone,
}

/// Why there is no answer. The word is for the log.
#[derive(Debug)]
struct NoAnswer(&'static str);

impl Hook {
    /// Connections live among `tasks`.
    #[must_use]
    pub fn new(product: Arc<str>, settings: HookSettings, clock: Clock, tasks: Tasks) -> Self {
        let shared = Shared {
            breaker: Breaker::new(settings.break_after, settings.break_for),
            cache: Cache::new(settings.cache, CACHED_MAX),
            idle: Vec::new(),
        };
        let asking = Semaphore::new(ASKING_MAX);
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { product, settings, clock, tasks, asking, shared: Mutex::new(shared), counts }
    }

    /// The question about a request, as it is sent.
    pub(super) fn question(&self, facts: &RequestFacts<'_>) -> Bytes {
        let head = facts.head;
        let headers = self.settings.headers.iter().flat_map(|name| {
            let text = |value| String::from_utf8_lossy(value);
            head.values(name).map(move |value| (name.as_str(), text(value)))
        });
        let query = self.settings.query.iter().flat_map(|name| {
            let text = |value: &'_ str| percent_decoded(value).map(|text| text.into_owned());
            query_values(head.query, name)
                .filter_map(move |value| Some((name.as_str(), Cow::Owned(text(value)?))))
        });
        let question = Question {
            product: &self.product,
            method: head.method,
            path: head.path,
            ip: facts.remote.ip(),
            headers: headers.collect(),
            query: query.collect(),
        };
        serde_json::to_vec(&question).unwrap_or_default().into()
    }

    /// Asks, unless the answer is known or nobody would answer.
    pub(super) async fn ask(&self, question: Bytes) -> Said {
        let mut asked: Asked = [0; 32];
        asked.copy_from_slice(digest(&SHA256, &question).as_ref());
        let begun = {
            let mut shared = self.lock();
            if let Some(said) = shared.cache.find(self.clock.now(), &asked) {
                drop(shared);
                self.count(Outcome::Cached);
                return said;
            }
            shared.breaker.begin(self.clock.now())
        };
        if let Err(pause) = begun {
            self.count(Outcome::LeftAlone);
            return Err(unavailable(pause));
        }
        let mut attempt = Attempt { hook: self, ended: Ended::Unknown };
        let answer = timeout(self.settings.timeout, self.exchange(question)).await;
        match answer.unwrap_or(Err(NoAnswer("no answer in time"))) {
            Ok(said) => {
                attempt.ended = Ended::Answered;
                self.count(if said.is_ok() { Outcome::Known } else { Outcome::Refused });
                self.lock().cache.keep(self.clock.now(), asked, said.clone());
                said
            }
            Err(NoAnswer(why)) => {
                attempt.ended = Ended::Failed;
                self.count(Outcome::Failed);
                tracing::debug!(product = %self.product, why, "hook failed");
                Err(unavailable(Duration::from_secs(1)))
            }
        }
    }

    async fn exchange(&self, question: Bytes) -> Result<Said, NoAnswer> {
        let _permit = self.asking.acquire().await.map_err(|_| NoAnswer("closed"))?;
        while let Some(sender) = self.idle() {
            // One that has been closed meanwhile has not taken the question.
            if let Ok(said) = self.exchange_on(sender, question.clone()).await {
                return said;
            }
        }
        let sender = self.connect().await?;
        self.exchange_on(sender, question).await.map_err(|()| NoAnswer("closed before an answer"))?
    }

    fn idle(&self) -> Option<Sender> {
        let mut shared = self.lock();
        while let Some(sender) = shared.idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Sender, NoAnswer> {
        let stream = TcpStream::connect(&self.settings.url.address).await;
        let stream = stream.map_err(|_| NoAnswer("cannot connect"))?;
        let _ = stream.set_nodelay(true);
        let connected = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = connected.map_err(|_| NoAnswer("cannot connect"))?;
        let stopping = self.tasks.stopping();
        self.tasks.spawn("hook-connection", OnPanic::EndTask, async move {
            tokio::select! {
                // Its end is told to whoever waits for an answer on it.
                _ = connection => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(sender)
    }

    /// `Err(())`: the connection was closed before an answer began.
    async fn exchange_on(&self, mut sender: Sender, question: Bytes) -> Result<Result<Said, NoAnswer>, ()> {
        sender.ready().await.map_err(drop)?;
        let request = Request::post(&self.settings.url.path)
            .header("Host", &self.settings.url.authority)
            .header("Content-Type", "application/json")
            .header("Accept", "application/json")
            .body(Full::new(question));
        let Ok(request) = request else { return Ok(Err(NoAnswer("no request"))) };
        let response = sender.send_request(request).await.map_err(drop)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let Ok(body) = body else { return Ok(Err(NoAnswer("the answer breaks off or is too long"))) };
        let body = body.to_bytes();
        let mut shared = self.lock();
        if shared.idle.len() < IDLE_MAX {
            shared.idle.push(sender);
        }
        drop(shared);
        Ok(said(status.as_u16(), &body))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // What it guards is whole between any two statements.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, outcome: Outcome) {
        self.counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the numbers of all hooks.
    pub(super) fn write_all<'h>(hooks: impl Iterator<Item = &'h Self> + Clone, out: &mut Exposition) {
        let help = "Questions to the hooks of products about who sent a request.";
        out.family("meshd_hook_requests_total", Kind::Counter, help);
        for hook in hooks.clone() {
            for (outcome, count) in OUTCOMES.iter().zip(&hook.counts) {
                let labels = [("product", &*hook.product), ("outcome", outcome)];
                out.sample(&labels, count.load(Ordering::Relaxed));
            }
        }
        let help = "Hooks that are left alone for having failed too often in a row.";
        out.family("meshd_hook_left_alone", Kind::Gauge, help);
        for hook in hooks {
            out.sample(&[("product", &*hook.product)], u8::from(hook.lock().breaker.is_open()));
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("product", &self.product).finish_non_exhaustive()
    }
}

/// Says how an attempt ended, however it does.
struct Attempt<'h> {
    hook: &'h Hook,
    ended: Ended,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut shared = self.hook.lock();
        if shared.breaker.ended(self.hook.clock.now(), self.ended) {
            let (product, open) = (&self.hook.product, shared.breaker.is_open());
            drop(shared);
            match open {
                true => tracing::warn!(%product, "hook does not answer: left alone for a while"),
                false => tracing::info!(%product, "hook answers again"),
            }
        }
    }
}

fn unavailable(retry_after: Duration) -> Denied {
    Denied {
        status: 503,
        code: Cow::Borrowed("hook_failed"),
        message: "who you are cannot be found out just now: come back in a moment".into(),
        retry_after: Some(retry_after),
    }
}

/// What an answer means.
fn said(status: u16, body: &[u8]) -> Result<Said, NoAnswer> {
    let answer =
        || serde_json::from_slice::<Answer>(body).map_err(|_| NoAnswer("the answer is no JSON of ours"));
    match status {
        200 => {
            let answer = answer()?;
            Ok(match answer.refuse {
                Some(refuse) => Err(refusal(refuse.status.unwrap_or(403), Some(refuse))),
                None => Ok(answer.uid),
            })
        }
        // It has too much to do: that says nothing about who asks.
        408 | 429 => Err(NoAnswer("it has too much to do")),
        400..=499 => {
            let refuse = answer().ok().and_then(|answer| answer.refuse);
            let status = refuse.as_ref().and_then(|refuse| refuse.status).unwrap_or(status);
            Ok(Err(refusal(status, refuse)))
        }
        _ => Err(NoAnswer("the answer has another status than 200 and 4xx")),
    }
}

fn refusal(status: u16, refuse: Option<Refuse>) -> Denied {
    let (code, message) = refuse.map_or((None, None), |refuse| (refuse.code, refuse.message));
    let is_word = |code: &String| {
        (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let message = message.unwrap_or_else(|| "you are not let in".into());
    Denied {
        status: if (400..=499).contains(&status) { status } else { 403 },
        code: code.filter(is_word).map_or(Cow::Borrowed("refused"), Cow::Owned),
        message: message.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect(),
        retry_after: None,
    }
}
