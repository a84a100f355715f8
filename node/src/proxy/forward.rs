//! One request: to which upstream, again where that is safe, and what its client is told.
//!
//! Belongs here: the order of attempts, and their ends.
//! Stays out: bytes (`exchange`), fields (`head`), fitness (`mesh_proto::upstream`).
//! Invariants: a request is sent a second time only if the upstream cannot have seen it, or if it may be
//! repeated and nothing of its body is gone; to another upstream once.
//! Source: RFC 9110 §9.2.2 (idempotent methods), RFC 9112 §9.3.1 (retrying on a kept connection).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use mesh_proto::binding::{BindingClass, BindingKey};
use mesh_proto::upstream::{Outcome, UpstreamIx};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::answers::Refused;
use super::body::RequestBody;
use super::client::{Client, ClientEnd};
use super::counters::Ended;
use super::exchange::{self, Beginning, Broken, NoAnswer};
use super::head::{self, Facts, Framing, Unusable};
use super::link::{Link, Switched as SwitchedLink};
use super::pipe::Pipe;
use super::pool::keep_alive_timeout;
use super::sid::{self, EngineRequest, engine_request};
use super::{Open, Proxy};
use crate::transport::Response as Refusal;
use crate::transport::body::{BodyError, BodyLength, BodyPieces};
use crate::transport::head::RequestHead;

/// When nothing is known of when an upstream will be fit again.
const COME_BACK: Duration = Duration::from_secs(1);

/// Methods that may be repeated (RFC 9110 §9.2.2).
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// A request to be passed on.
pub(crate) struct Asking<'r> {
    /// Its head.
    pub(crate) head: &'r RequestHead<'r>,
    /// The other end of its connection.
    pub(crate) peer: IpAddr,
    /// Whether that is a trusted proxy.
    pub(crate) trusted: bool,
    /// Whether the connection is encrypted.
    pub(crate) secure: bool,
    /// Whose it is.
    pub(crate) uid: Option<Arc<str>>,
    /// A cookie for the client, as the value of `Set-Cookie`.
    pub(crate) set_cookie: Option<String>,
    /// Whether the connection may be kept after the answer.
    pub(crate) keeps: bool,
}

/// What becomes of the client's connection.
pub(crate) enum Served {
    /// It takes the next request.
    Kept,
    /// It is to be closed in good order.
    Close,
    /// It is to be broken off: its answer is not whole.
    Abort,
    /// It is gone.
    Gone,
    /// It is to be told this, and is kept after that where `true`.
    Refused(Refusal, bool),
    /// It speaks another protocol from now on.
    Switched(Box<Switched>),
}

/// A client's connection that speaks another protocol from now on.
pub(crate) struct Switched {
    /// What the client is sent first.
    greeting: Vec<u8>,
    stream: SwitchedLink,
    open: Open,
}

impl Switched {
    /// Moves bytes until one side has ended. `rest` has been read of the client already.
    ///
    /// It is closed early where its upstream is to have nothing open any more, and by `closing`.
    pub(crate) async fn run<C: AsyncRead + AsyncWrite + Unpin>(
        self: Box<Self>,
        client: C,
        rest: Vec<u8>,
        closing: Arc<Notify>,
    ) {
        let Self { greeting, stream, open } = *self;
        let pipe = Pipe::new(client, stream, rest, greeting);
        let ends = open.ends.clone();
        tokio::select! {
            _ = pipe => {}
            () = ends.cancelled() => {}
            () = closing.notified() => {}
        }
        // How a WebSocket ends says nothing about its upstream: clients go, servers restart.
        open.end(Outcome::ClientGone);
    }
}

struct Answered {
    answer: Response<Incoming>,
    link: Link,
    open: Open,
}

impl Proxy {
    /// Passes one request on and gives its client the answer.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        stream: &mut S,
        rest: &mut Vec<u8>,
        asking: Asking<'_>,
    ) -> Served {
        let pieces = match BodyPieces::new(asking.head, self.settings.body_bytes_max) {
            Ok(pieces) => pieces,
            Err(error) => return self.refused(&asking, of_body(error), false),
        };
        let mut client = Client::new(stream, rest);
        let has_body = !matches!(pieces.length(), BodyLength::None | BodyLength::Exact(0));
        let mut run = Run {
            proxy: self,
            asking: &asking,
            length: pieces.length(),
            pieces: has_body.then_some(pieces),
            upgrade: is_websocket(asking.head) && !has_body,
            belongs: self.belongs(&asking),
            request_id: format!("{:032x}", rand::random::<u128>()),
        };
        let served = run.attempts(&mut client).await;
        match served {
            Ok(answered) => run.give(client, *answered).await,
            Err(served) => served,
        }
    }

    fn refused(&self, asking: &Asking<'_>, why: Refused, keeps: bool) -> Served {
        self.counters.count(match why {
            Refused::NoUpstream(_) | Refused::NoBinding => Ended::Unavailable,
            Refused::Unreachable | Refused::Malformed => Ended::Unreachable,
            Refused::TimedOut => Ended::TimedOut,
            _ => Ended::Refused,
        });
        tracing::debug!(product = &*self.name, why = why.word(), "request refused");
        Served::Refused(why.response(asking.head), keeps && asking.keeps)
    }
}

/// One request under way.
struct Run<'r> {
    proxy: &'r Arc<Proxy>,
    asking: &'r Asking<'r>,
    length: BodyLength,
    /// The body, while no upstream is given it.
    pieces: Option<BodyPieces>,
    upgrade: bool,
    belongs: Belongs,
    request_id: String,
}

/// What decides where a request goes.
enum Belongs {
    /// Its user.
    User(BindingKey),
    /// Its Engine.IO session.
    Session(BindingKey),
    /// Nothing yet: it opens such a session, whose name its answer tells.
    Opens,
    /// An upstream's cookie.
    Upstream(Arc<str>),
    /// Nothing.
    Anywhere,
}

impl Proxy {
    fn belongs(&self, asking: &Asking<'_>) -> Belongs {
        let key = |class, text: &str| BindingKey::new(&self.name, class, text);
        if let Some(uid) = asking.uid.as_deref().filter(|_| self.settings.by_uid) {
            return Belongs::User(key(BindingClass::Uid, uid));
        }
        match engine_request(asking.head) {
            EngineRequest::Of(sid) => return Belongs::Session(key(BindingClass::Sid, &sid)),
            EngineRequest::Opens => return Belongs::Opens,
            EngineRequest::Other => {}
        }
        let cookie = self.settings.sticky_cookie.as_deref();
        let named = cookie.and_then(|cookie| cookie_value(asking.head, cookie));
        let upstream = named.and_then(|value| {
            let facts = self.facts().into_iter().map(|facts| facts.name);
            facts.into_iter().find(|name| self.cookie_of(name) == value)
        });
        upstream.map_or(Belongs::Anywhere, Belongs::Upstream)
    }

    /// What a client's cookie calls an upstream: nobody outside is told its address.
    fn cookie_of(&self, upstream: &str) -> String {
        format!("{:016x}", BindingKey::new(&self.name, BindingClass::Upstream, upstream).placement().0)
    }
}

/// The first cookie of that name (RFC 6265 §4.2).
fn cookie_value<'h>(head: &RequestHead<'h>, name: &str) -> Option<&'h str> {
    let lines = head.values("cookie").collect::<Vec<_>>();
    let pairs =
        lines.into_iter().filter_map(|line| std::str::from_utf8(line).ok()).flat_map(|line| line.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

impl Run<'_> {
    /// Tries until there is an answer, or no safe way to get one.
    async fn attempts<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut Client<'_, S>,
    ) -> Result<Box<Answered>, Served> {
        let mut not_there: Option<UpstreamIx> = None;
        let mut kept_links = !self.upgrade;
        let has_body = self.pieces.is_some();
        loop {
            let open = self.choose(not_there).await.map_err(|why| self.refused(why))?;
            let kept = if kept_links { self.proxy.pool.kept(&open.name).await } else { None };
            let (link, was_kept) = match kept {
                Some(link) => (Ok(link), true),
                None => (self.proxy.pool.opened(&open.name).await, false),
            };
            let Ok(link) = link else {
                let there = open.upstream();
                open.end(Outcome::ConnectFailed);
                kept_links = !self.upgrade;
                if not_there.is_some() {
                    return Err(self.refused(Refused::Unreachable));
                }
                self.proxy.counters.retried.fetch_add(1, Ordering::Relaxed);
                not_there = there;
                continue;
            };
            let (why, open) = match self.attempt(client, link, open).await? {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            let unsent = match why {
                NoAnswer::Client(end) => {
                    drop(open);
                    return Err(self.client_end(end));
                }
                NoAnswer::TimedOut => {
                    open.end(Outcome::TimedOut);
                    return Err(self.refused(Refused::TimedOut));
                }
                NoAnswer::Malformed => {
                    open.end(Outcome::Reset);
                    return Err(self.refused(Refused::Malformed));
                }
                NoAnswer::Closed { unsent } => unsent,
            };
            self.pieces = if has_body { client.take_back() } else { None };
            let untouched = !has_body || self.pieces.is_some();
            let safe = untouched && (unsent || IDEMPOTENT.contains(&self.asking.head.method));
            let there = open.upstream();
            // A kept link ends when its upstream likes: that says nothing about the upstream.
            open.end(if was_kept { Outcome::ClientGone } else { Outcome::Reset });
            if !safe || (!was_kept && not_there.is_some()) {
                return Err(self.refused(Refused::Unreachable));
            }
            self.proxy.counters.retried.fetch_add(1, Ordering::Relaxed);
            if was_kept {
                kept_links = false;
            } else {
                not_there = there;
            }
        }
    }

    /// One attempt on one link.
    async fn attempt<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut Client<'_, S>,
        mut link: Link,
        open: Open,
    ) -> Result<Result<Box<Answered>, (NoAnswer, Open)>, Served> {
        let head = self.made(&open.name).map_err(|why| self.refused(why))?;
        let (body, giver) = match &self.pieces {
            Some(pieces) => RequestBody::streamed(pieces.length()),
            None => (RequestBody::none(), None),
        };
        let held = head.headers.contains_key(http::header::EXPECT);
        if let (Some(pieces), Some(giver)) = (self.pieces.take(), giver) {
            client.upload(pieces, giver, held);
        }
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.headers_mut() = head.headers;
        let patience = self.proxy.settings.answer_timeout;
        let interim = self.asking.head.http11;
        Ok(match exchange::ask(client, &mut link, request, interim, patience).await {
            Ok(answer) => Ok(Box::new(Answered { answer, link, open })),
            Err(why) => Err((why, open)),
        })
    }

    /// The head for an upstream.
    fn made(&self, upstream: &str) -> Result<head::UpstreamHead, Refused> {
        let settings = &self.proxy.settings;
        let facts = Facts {
            peer: self.asking.peer,
            trusted: self.asking.trusted,
            secure: self.asking.secure,
            uid: self.asking.uid.as_deref(),
            uid_query: settings.uid_query.as_deref(),
            identity_headers: &settings.identity_headers,
            host: settings.own_host.then_some(upstream),
            request_id: &self.request_id,
            plain_answer: matches!(self.belongs, Belongs::Opens),
        };
        head::for_upstream(self.asking.head, &facts, self.length, self.upgrade).map_err(|why| match why {
            Unusable::Target => Refused::BadTarget,
            Unusable::Loop => Refused::Loop,
        })
    }

    /// The upstream for the next attempt; not `not_there`, where one has just failed.
    async fn choose(&self, not_there: Option<UpstreamIx>) -> Result<Open, Refused> {
        let proxy = self.proxy;
        match &self.belongs {
            Belongs::User(key) => self.choose_for_user(key, not_there).await,
            Belongs::Session(key) => {
                let bound = proxy.bindings.use_bound(key).await.map_err(|_| Refused::NoBinding)?;
                let Some(bound) = bound else { return Err(Refused::UnknownSid) };
                match proxy.open_bound(&bound, not_there) {
                    Some(open) => Ok(open.holding(key)),
                    None => {
                        // Nobody else knows the session: its client begins another one.
                        proxy.bindings.forget(key, &bound).await;
                        Err(if not_there.is_some() { Refused::Unreachable } else { Refused::UnknownSid })
                    }
                }
            }
            Belongs::Upstream(name) => {
                let bound = proxy.open_bound(name, not_there);
                bound.or_else(|| self.least_loaded(not_there)).ok_or_else(|| self.nobody(not_there))
            }
            Belongs::Anywhere | Belongs::Opens => {
                self.least_loaded(not_there).ok_or_else(|| self.nobody(not_there))
            }
        }
    }

    fn least_loaded(&self, not_there: Option<UpstreamIx>) -> Option<Open> {
        let near = self.proxy.near.as_ref();
        let near = near.filter(|near| !self.proxy.is_draining(near));
        let near = near.and_then(|near| self.proxy.open_bound(near, not_there));
        near.or_else(|| self.proxy.open(|upstreams, now| upstreams.least_loaded(now, not_there)))
    }

    /// Where the user is pinned; else where it is bound; else what its hash says, which for a WebSocket is
    /// told to all.
    async fn choose_for_user(
        &self,
        key: &BindingKey,
        not_there: Option<UpstreamIx>,
    ) -> Result<Open, Refused> {
        let proxy = self.proxy;
        let pinned = proxy.settings.pins.get(key.expose_text());
        if let Some(open) = pinned.and_then(|name| proxy.open_bound(name, not_there)) {
            return Ok(open);
        }
        // Without a word of the mesh the hash decides: mostly as it would have been.
        let bound = proxy.bindings.find(key).await.unwrap_or_default();
        if let Some(open) = bound.as_ref().and_then(|name| proxy.open_bound(name, not_there)) {
            return Ok(open.holding(key));
        }
        let hashed = proxy.open(|upstreams, now| upstreams.choose_by_hash(now, key.placement(), not_there));
        let hashed = hashed.ok_or_else(|| self.nobody(not_there))?;
        if self.upgrade
            && let Ok(Some(decided)) = proxy.bindings.choose(key, &hashed.name, bound).await
            && decided != hashed.name
            && let Some(open) = proxy.open_bound(&decided, not_there)
        {
            return Ok(open.holding(key));
        }
        Ok(hashed.holding(key))
    }

    fn nobody(&self, not_there: Option<UpstreamIx>) -> Refused {
        if not_there.is_some() { Refused::Unreachable } else { Refused::NoUpstream(self.retry_after()) }
    }

    fn retry_after(&self) -> Duration {
        let now = self.proxy.clock.now();
        let again = self.proxy.lock().upstreams.fit_again_at(now);
        again.map_or(COME_BACK, |at| at.since(now))
    }

    fn refused(&self, why: Refused) -> Served {
        // The next request on this connection begins behind this one's body: only one without can be skipped.
        self.proxy.refused(self.asking, why, self.length == BodyLength::None && !self.closes())
    }

    fn client_end(&self, end: ClientEnd) -> Served {
        match end {
            ClientEnd::Gone => {
                self.proxy.counters.count(Ended::ClientGone);
                Served::Gone
            }
            ClientEnd::Slow => self.refused(Refused::SlowBody),
            ClientEnd::Body(error) => self.refused(of_body(error)),
        }
    }

    /// Whether the client's connection ends after this request whatever the answer.
    fn closes(&self) -> bool {
        let head = self.asking.head;
        !self.asking.keeps || !head.http11 || head.has_token("connection", "close")
    }

    /// Gives the client its answer.
    async fn give<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut client: Client<'_, S>,
        answered: Answered,
    ) -> Served {
        let Answered { answer, mut link, open } = answered;
        let (parts, body) = answer.into_parts();
        let settings = &self.proxy.settings;
        let name = open.name.clone();
        let sticky = match (&self.belongs, &settings.sticky_cookie) {
            (Belongs::Anywhere | Belongs::Opens, Some(sticky)) => {
                Some(format!("{sticky}={}; Path=/; HttpOnly; SameSite=Lax", self.proxy.cookie_of(&name)))
            }
            _ => None,
        };
        let cookie = settings.owner_cookie.as_ref().map(|cookie| format!("{cookie}={name}; Path=/"));
        let mut more: Vec<(&str, &str)> = Vec::new();
        more.extend(settings.owner_header.as_deref().map(|header| (header, &*name)));
        more.extend(cookie.as_deref().map(|cookie| ("set-cookie", cookie)));
        more.extend(sticky.as_deref().map(|cookie| ("set-cookie", cookie)));
        more.extend(self.asking.set_cookie.as_deref().map(|cookie| ("set-cookie", cookie)));
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(link, open, &parts.headers, &more).await;
        }
        if has_odd_coding(&parts.headers) {
            open.end(Outcome::Reset);
            return self.refused(Refused::Malformed);
        }
        let http11 = self.asking.head.http11;
        let to_head = self.asking.head.method == "HEAD";
        let framing = head::framing(to_head, parts.status, body.size_hint().exact(), http11);
        let mut beginning = Beginning { bytes: Vec::new(), body: Some(body) };
        if matches!(self.belongs, Belongs::Opens)
            && parts.status == StatusCode::OK
            && framing != Framing::None
        {
            beginning = match self.opened(&mut client, &mut link, beginning, &parts.headers, &name).await {
                Ok(beginning) => beginning,
                Err(served) => return served,
            };
        }
        let closes = self.closes() || framing == Framing::Close || !client.is_read();
        let reason = parts.extensions.get::<hyper::ext::ReasonPhrase>();
        let reason = reason.map(hyper::ext::ReasonPhrase::as_bytes);
        let head = head::for_client(parts.status, reason, &parts.headers, framing, &more, closes);
        link.kept_for = keep_alive_timeout(&parts.headers);
        let given =
            exchange::give(&mut client, &mut link, head, beginning, framing, settings.stream_timeout).await;
        let is_read = client.is_read();
        let counters = &self.proxy.counters;
        match given {
            Ok(()) => {
                counters.count(if parts.status.is_server_error() {
                    Ended::ServerError
                } else {
                    Ended::Answered
                });
                open.end(Outcome::Answered);
                if is_read {
                    self.proxy.pool.keep(&name, link).await;
                }
                if closes { Served::Close } else { Served::Kept }
            }
            Err(Broken::Client(_) | Broken::ClientStalled) => {
                counters.count(Ended::ClientGone);
                Served::Gone
            }
            Err(Broken::Upstream | Broken::UpstreamStalled) => {
                counters.count(Ended::Broken);
                open.end(Outcome::Reset);
                Served::Abort
            }
        }
    }

    /// Reads the answer to a handshake of Engine.IO, and tells the mesh where the session is before its client
    /// knows of it.
    async fn opened<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        client: &mut Client<'_, S>,
        link: &mut Link,
        beginning: Beginning,
        headers: &HeaderMap,
        upstream: &Arc<str>,
    ) -> Result<Beginning, Served> {
        let Some(body) = beginning.body else { return Ok(beginning) };
        let patience = self.proxy.settings.answer_timeout;
        let read = exchange::beginning(client, link, body, sid::ANSWER_BYTES_MAX, patience).await;
        let beginning = read.map_err(|broken| match broken {
            Broken::Client(end) => self.client_end(end),
            Broken::ClientStalled => self.client_end(ClientEnd::Gone),
            Broken::Upstream => self.refused(Refused::Unreachable),
            Broken::UpstreamStalled => self.refused(Refused::TimedOut),
        })?;
        if beginning.body.is_none()
            && let Some(sid) = sid::of_answer(headers, &beginning.bytes)
        {
            let key = BindingKey::new(&self.proxy.name, BindingClass::Sid, &sid);
            let bound = self.proxy.bindings.choose(&key, upstream, None).await;
            bound.map_err(|_| self.refused(Refused::NoBinding))?;
        }
        Ok(beginning)
    }

    async fn switched(
        &self,
        link: Link,
        mut open: Open,
        headers: &HeaderMap,
        more: &[(&str, &str)],
    ) -> Served {
        if !self.upgrade {
            open.end(Outcome::Reset);
            return self.refused(Refused::Malformed);
        }
        open.answered();
        self.proxy.counters.count(Ended::Switched);
        let greeting = head::switching(headers, more);
        Served::Switched(Box::new(Switched { greeting, stream: link.switched().await, open }))
    }
}

/// A WebSocket handshake, which alone may change the protocol.
fn is_websocket(head: &RequestHead<'_>) -> bool {
    head.http11
        && head.method == "GET"
        && head.has_token("connection", "upgrade")
        && head.has_token("upgrade", "websocket")
}

/// A transfer coding that we did not ask for, and that would be lost.
fn has_odd_coding(headers: &HeaderMap) -> bool {
    headers
        .get_all(http::header::TRANSFER_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

fn of_body(error: BodyError) -> Refused {
    match error {
        BodyError::TooLarge => Refused::BodyTooLarge,
        BodyError::Malformed => Refused::BadBody,
    }
}
