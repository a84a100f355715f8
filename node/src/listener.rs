//! The client port: accepts, admits, reads the request head and hands the stream to a shard.
//!
//! Belongs here: the listening socket, half-open handshakes and their deadline, short HTTP answers.
//! Stays out: counts and rates (`admission`), what a request means (`transport`), who asks
//! (`identity`), everything after the handshake (`shard`).
//! Owner: one acceptor task owns the socket; each half-open handshake is a task that owns its stream
//! until a shard takes it. A panic in one ends that one.
//! What filling up means: no place → 503 or 429 before the request is read; shard queues full → 503;
//! no file descriptors → the acceptor waits 100 ms, the kernel's backlog holds the rest.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mesh_proto::id::EngineSid;
use mesh_proto::shard::Transport;
use mesh_proto::wire::{EngineRefusal, EngineRequest, EngineResponse};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::admission::{Admission, ClientPlace, Reason};
use crate::clock::Clock;
use crate::handles::{OpenedClient, Shards, ToShard};
use crate::identity::{Admitted, Deciding, Denied, Doorkeeper, Products, RequestFacts};
use crate::tasks::{OnPanic, Tasks};
use crate::transport::head::{HeadBuffer, HeadError, RequestHead};
use crate::transport::route::{self, PollingRequest, Route, RoutePolicy};
use crate::transport::stream::ClientStream;
use crate::transport::tls::TlsAcceptor;
use crate::transport::{Response, Site, websocket};
use polling::{Answered, Asked, Next, response_of};

pub use proxied::{Forward, Forwarded, Proxied};

/// Connections the kernel completes while the acceptor is busy.
const BACKLOG: i32 = 4_096;

/// Pause after running out of file descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A connection without a request is kept so long for the next.
const KEPT_IDLE: Duration = Duration::from_secs(75);

/// The first byte of a TLS session: the type of the record that holds its hello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

/// One read of a request head.
const READ_BYTES: usize = 4 << 10;

/// How long a refused client may go on sending before its stream is closed under it. Closing with
/// unread bytes resets the connection, and the answer would be lost with it.
const LINGER: Duration = Duration::from_secs(1);

/// Refused clients that are lingered for. Beyond it they may lose their answer.
const LINGERING_MAX: usize = 512;

/// The client port could not be opened. Nothing listens.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for clients on {addr}")]
pub struct ListenError {
    /// Where.
    pub addr: SocketAddr,
    /// Why: most often the address is in use.
    #[source]
    pub cause: io::Error,
}

/// Everything the client port asks.
#[derive(Clone)]
pub struct ClientPort {
    /// Where clients go.
    pub shards: Shards,
    /// What an operator may change meanwhile; each request goes by the newest.
    pub settings: watch::Receiver<Arc<PortSettings>>,
    /// Takes requests of products of kind `proxy`; without it they are answered 503.
    pub proxy: Option<Arc<dyn Forward>>,
    /// Answers what is for no client transport.
    pub site: Option<Site>,
    /// Who may come in.
    pub admission: Arc<Admission>,
    /// A whole request head must arrive within this time.
    pub head_timeout: Duration,
    /// The largest body of a request.
    pub message_bytes_max: usize,
    /// Names requests of polling clients.
    pub requests: Arc<AtomicU64>,
    /// The node's clock.
    pub clock: Clock,
}

/// What a running client port can be told anew.
#[derive(Clone)]
pub struct PortSettings {
    /// What clients are for.
    pub products: Arc<Products>,
    /// Who they are.
    pub doorkeeper: Arc<dyn Doorkeeper>,
    /// What a handshake may carry.
    pub policy: RoutePolicy,
}

/// A bound client port.
#[derive(Debug)]
pub struct ClientListener {
    socket: std::net::TcpListener,
    addr: SocketAddr,
}

impl ClientListener {
    /// Binds, so that a port in use is known before anything else starts. Port 0 picks one.
    ///
    /// # Errors
    /// [`ListenError`] naming the address.
    pub fn bind(addr: SocketAddr) -> Result<Self, ListenError> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            // A restarted node must not wait for the last life's connections to time out.
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            let socket = std::net::TcpListener::from(socket);
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr })
        };
        bind().map_err(|cause| ListenError { addr, cause })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until the tasks are told to stop; with `tls`, only that is spoken. To be called on the runtime that handshakes run on.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn start(self, port: ClientPort, tls: Option<TlsAcceptor>, tasks: &Tasks) -> io::Result<()> {
        let listener = TcpListener::from_std(self.socket)?;
        let door = Arc::new(Door { lingering: Semaphore::new(LINGERING_MAX), tls, port });
        let (group, stopping) = (tasks.clone(), tasks.stopping());
        tasks.spawn("acceptor", OnPanic::EndNode, async move {
            tokio::select! {
                () = accept(listener, door, group) => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(())
    }
}

/// What handshakes share.
struct Door {
    port: ClientPort,
    /// Begins sessions where the port speaks TLS.
    tls: Option<TlsAcceptor>,
    /// Places for refused clients that are lingered for.
    lingering: Semaphore,
}

async fn accept(listener: TcpListener, door: Arc<Door>, tasks: Tasks) {
    let mut exhausted = false;
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer gave up before we got to it.
            Err(error) if is_of_the_peer(&error) => continue,
            Err(error) => {
                // Once for each time of want, however long it lasts.
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::warn!(%error, "cannot accept clients for the moment");
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        exhausted = false;
        let door = door.clone();
        let admission = &door.port.admission;
        let admitted = match door.settings().policy.proxies.contain(remote.ip()) {
            // For whom it stands is known when the head is read.
            true => admission.admit_proxy(door.port.clock.now()),
            false => admission.admit(remote.ip(), door.port.clock.now()),
        };
        match admitted {
            Ok(place) => {
                tasks.spawn("handshake", OnPanic::EndTask, async move {
                    if let Some(stream) = door.begin(stream, remote).await {
                        connection(&door, stream, remote, place).await;
                    }
                });
            }
            Err(reason) => {
                door.count(reason, remote.ip());
                // Without a place in the lingering there is no task either: a storm costs one write.
                if door.tls.is_some() {
                    // A handshake to say no in costs as much as one to let somebody in.
                    continue;
                }
                let answer = reason.busy_response().to_bytes(false);
                let _ = stream.try_write(&answer);
                if door.lingering.available_permits() > 0 {
                    tasks.spawn("refusal", OnPanic::EndTask, async move {
                        door.linger(ClientStream::plain(stream)).await
                    });
                }
            }
        }
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// One connection, from its first byte to the shard that takes it, or to its last short answer. Requests of
/// polling clients follow one another on it.
async fn connection(door: &Door, mut stream: ClientStream, peer: SocketAddr, mut place: ClientPlace) {
    let mut rest = Vec::new();
    let mut is_first = true;
    loop {
        let (buffer, whole) = match door.next_head(&mut stream, rest, is_first).await {
            Ok(read) => read,
            // Gone before it had asked for anything (more): a port scan, a balancer's check.
            Err(ReadError::Gone) => return,
            Err(ReadError::Head(error)) => return door.refuse_head(stream, peer, error).await,
        };
        is_first = false;
        let mut head = match RequestHead::parse(&buffer.bytes()[..whole]) {
            Ok(head) => head,
            Err(error) => return door.refuse_head(stream, peer, error).await,
        };
        let settings = door.settings();
        let remote = match door.client_of(&settings.policy, peer, &head, &mut place) {
            Ok(remote) => remote,
            Err((reason, answer)) => {
                door.count(reason, peer.ip());
                return door.answer(stream, &answer, false).await;
            }
        };
        let head_only = head.method == "HEAD";
        let chosen = settings.products.chosen(&head);
        if let Ok(chosen) = &chosen
            && chosen.product.rules().is_none()
        {
            let product = chosen.product.clone();
            let facts = door.facts(&settings.policy, &head, peer, remote);
            let deciding = settings.doorkeeper.identify(&product, &facts);
            let is_from_proxy = facts.is_from_proxy;
            drop(head);
            let identified = match deciding.await {
                Ok(identified) => identified,
                Err(denied) => return door.deny(stream, remote, &denied, head_only).await,
            };
            let request = Proxied {
                product,
                identified,
                head: buffer.bytes()[..whole].to_vec(),
                rest: buffer.into_read_ahead(whole),
                stream,
                peer,
                remote,
                is_from_proxy,
                place,
            };
            match door.forward(request).await {
                Forwarded::Kept { stream: kept, rest: behind, place: held } => {
                    (stream, rest, place) = (kept, behind, held);
                }
                Forwarded::Linger(stream) => return door.linger(stream).await,
                Forwarded::Over => return,
            }
            continue;
        }
        if let Ok(chosen) = &chosen {
            head.path = &head.path[chosen.prefix_len..];
        }
        let cors = route::cors(&head, &settings.policy);
        let admitting = |head: &RequestHead<'_>, protocol| {
            let product = chosen.as_ref().map(|chosen| &*chosen.product).map_err(Denied::clone);
            let facts = door.facts(&settings.policy, head, peer, remote);
            settings.doorkeeper.admit(product, protocol, &facts)
        };
        let answer = match route::route(&head, &settings.policy) {
            Route::WebSocket { protocol, accept_key, upgrades } => {
                let admitting = admitting(&head, protocol);
                drop(head);
                let read_ahead = buffer.into_read_ahead(whole);
                let opening = Opening { remote, admitting, accept_key, upgrades, read_ahead };
                return door.open(stream, place, opening).await;
            }
            Route::Polling(request, protocol) => {
                let admitting = (request == PollingRequest::Open).then(|| admitting(&head, protocol));
                let bytes_max = door.port.message_bytes_max;
                let asked = Asked::new(&head, request, cors, remote, admitting, bytes_max);
                drop(head);
                rest = buffer.into_read_ahead(whole);
                match door.polling(&mut stream, &mut rest, asked).await {
                    Next::Request => continue,
                    Next::Linger => return door.linger(stream).await,
                    Next::Nothing => return,
                }
            }
            Route::Refused(mut answer) => {
                if answer.status >= 400 {
                    door.count(Reason::BadHandshake, remote.ip());
                }
                if head.path.starts_with("/socket.io") {
                    answer.headers.extend(cors);
                }
                answer
            }
            Route::Site if chosen.is_err() => {
                door.count(Reason::NotFound, remote.ip());
                chosen.map_or_else(|denied| denied.response(), |_| route::not_found())
            }
            Route::Site => match door.port.site.as_ref().and_then(|site| site(&head)) {
                Some(answer) => answer,
                None => {
                    door.count(Reason::NotFound, remote.ip());
                    route::not_found()
                }
            },
        };
        drop(head);
        return door.answer(stream, &answer, head_only).await;
    }
}

enum ReadError {
    Gone,
    Head(HeadError),
}

/// Reads until the head is whole. Only what has arrived is kept while waiting.
async fn read_head(stream: &mut ClientStream, buffer: &mut HeadBuffer) -> Result<usize, ReadError> {
    loop {
        stream.readable().await.map_err(|_| ReadError::Gone)?;
        if let Some(bytes) = read_some(stream)?
            && let Some(whole) = buffer.push(&bytes).map_err(ReadError::Head)?
        {
            return Ok(whole);
        }
    }
}

/// One read. Its own function, so that the bytes on its stack are not kept across the wait.
fn read_some(stream: &mut ClientStream) -> Result<Option<Vec<u8>>, ReadError> {
    let mut bytes = [0; READ_BYTES];
    match stream.try_read(&mut bytes) {
        Ok(0) => Err(ReadError::Gone),
        Ok(len) => Ok(Some(bytes[..len].to_vec())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(ReadError::Gone),
    }
}

/// A WebSocket handshake in order.
struct Opening {
    remote: SocketAddr,
    admitting: Deciding<Admitted>,
    accept_key: String,
    upgrades: Option<EngineSid>,
    read_ahead: Vec<u8>,
}

impl Door {
    fn settings(&self) -> Arc<PortSettings> {
        self.port.settings.borrow().clone()
    }

    fn count(&self, reason: Reason, ip: IpAddr) {
        self.port.admission.count_refusal(reason, ip, self.port.clock.now());
    }

    /// The stream of a connection, once its TLS handshake is done.
    async fn begin(&self, tcp: TcpStream, remote: SocketAddr) -> Option<ClientStream> {
        let Some(tls) = &self.tls else { return Some(ClientStream::plain(tcp)) };
        let handshake = async {
            let mut first = [0];
            if tcp.peek(&mut first).await? != 0 && first[0] != TLS_HANDSHAKE {
                return Ok(Err(ClientStream::plain(tcp)));
            }
            let mut stream = tls.begin(tcp).map_err(io::Error::other)?;
            stream.handshake().await?;
            io::Result::Ok(Ok(stream))
        };
        match timeout(self.port.head_timeout, handshake).await {
            Ok(Ok(Ok(stream))) => return Some(stream),
            Ok(Ok(Err(plain))) => {
                self.count(Reason::Malformed, remote.ip());
                let body =
                    r#"{"error":{"code":"tls_required","message":"this port speaks TLS: use https or wss"}}"#;
                self.answer(plain, &Response::json(400, body), false).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "TLS handshake failed");
                self.count(Reason::BadHandshake, remote.ip());
            }
            Err(_) => self.count(Reason::HeadTimeout, remote.ip()),
        }
        None
    }

    /// Whom a request comes from; its connection counts for that address from now on.
    fn client_of(
        &self,
        policy: &RoutePolicy,
        peer: SocketAddr,
        head: &RequestHead<'_>,
        place: &mut ClientPlace,
    ) -> Result<SocketAddr, (Reason, Response)> {
        let Ok(origin) = policy.proxies.origin(peer.ip(), head, &policy.identity_headers) else {
            let body = r#"{"error":{"code":"forwarded","message":"more than 10 hops in X-Forwarded-For"}}"#;
            return Err((Reason::Malformed, Response::json(400, body)));
        };
        if origin.ignored {
            self.port.admission.count_forwarded_ignored();
        }
        if origin.ip == peer.ip() {
            return Ok(peer);
        }
        match place.stand_for(origin.ip, self.port.clock.now()) {
            Ok(()) => Ok(SocketAddr::new(origin.ip, 0)),
            Err(reason) => Err((reason, reason.busy_response())),
        }
    }

    fn facts<'r>(
        &self,
        policy: &RoutePolicy,
        head: &'r RequestHead<'r>,
        peer: SocketAddr,
        remote: SocketAddr,
    ) -> RequestFacts<'r> {
        let is_from_proxy = policy.proxies.contain(peer.ip());
        let is_said = is_from_proxy && head.header("x-forwarded-proto") == Some(b"https");
        let is_secure = self.tls.is_some() || is_said;
        RequestFacts { head, remote, is_from_proxy, is_secure }
    }

    /// The next request of a connection: what has come of it so far, and the length of its head.
    async fn next_head(
        &self,
        stream: &mut ClientStream,
        rest: Vec<u8>,
        is_first: bool,
    ) -> Result<(HeadBuffer, usize), ReadError> {
        let mut buffer = HeadBuffer::default();
        if let Some(whole) = buffer.push(&rest).map_err(ReadError::Head)? {
            return Ok((buffer, whole));
        }
        if !is_first && rest.is_empty() && timeout(KEPT_IDLE, stream.readable()).await.is_err() {
            return Err(ReadError::Gone);
        }
        match timeout(self.port.head_timeout, read_head(stream, &mut buffer)).await {
            Ok(whole) => Ok((buffer, whole?)),
            Err(_) => Err(ReadError::Head(HeadError::Timeout)),
        }
    }

    /// Finds out who it is and hands the stream to the shard with the fewest clients.
    async fn open(&self, mut stream: ClientStream, mut place: ClientPlace, opening: Opening) {
        let Opening { remote, admitting, accept_key, upgrades, read_ahead } = opening;
        let ip = remote.ip();
        if let Some(sid) = upgrades {
            let asked = self.ask(&mut stream, &mut Vec::new(), sid, EngineRequest::MayUpgrade).await;
            match asked {
                Answered::With(EngineResponse::Taken) => {}
                // As the reference server: opened and closed at once.
                Answered::With(EngineResponse::Refused(EngineRefusal::Upgraded)) => {
                    self.count(Reason::BadHandshake, ip);
                    let mut closed = route::switching_protocols(&accept_key, None).into_bytes();
                    websocket::append_close(&mut closed, None, "");
                    if let Ok(Ok(())) = timeout(self.port.head_timeout, stream.write_answer(&closed)).await {
                        self.linger(stream).await;
                    }
                    return;
                }
                Answered::With(response) => {
                    self.count(Reason::BadHandshake, ip);
                    return self.answer(stream, &response_of(response), false).await;
                }
                Answered::Busy(reason) => return self.answer_busy(stream, reason, ip).await,
                Answered::Denied(denied) => return self.deny(stream, remote, &denied, false).await,
                Answered::Nobody => return,
            }
        } else if self.port.admission.is_draining() {
            return self.answer_busy(stream, Reason::Draining, ip).await;
        }
        let Admitted { mut client, set_cookie } = match admitting.await {
            Ok(admitted) => admitted,
            Err(denied) => return self.deny(stream, remote, &denied, false).await,
        };
        if let Some(sid) = upgrades {
            client.transport = Transport::Upgrade(sid);
        }
        let shard = self.port.admission.emptiest_shard();
        let Some(Ok(permit)) = self.port.shards.0.get(usize::from(shard.0)).map(|s| s.tx.try_reserve())
        else {
            return self.answer_busy(stream, Reason::ShardBusy, ip).await;
        };
        stream.set_nodelay();
        let Ok(stream) = stream.detach() else { return };
        place.enter(shard);
        let greeting = route::switching_protocols(&accept_key, set_cookie.as_deref()).into();
        permit.send(ToShard::Client(OpenedClient { stream, greeting, read_ahead, client, place }));
    }

    async fn deny(&self, stream: ClientStream, remote: SocketAddr, denied: &Denied, head_only: bool) {
        self.count(Reason::Denied, remote.ip());
        self.answer(stream, &denied.response(), head_only).await;
    }

    async fn answer_busy(&self, stream: ClientStream, reason: Reason, ip: IpAddr) {
        self.count(reason, ip);
        self.answer(stream, &reason.busy_response(), false).await;
    }

    async fn refuse_head(&self, stream: ClientStream, remote: SocketAddr, error: HeadError) {
        let reason = match error {
            HeadError::Malformed(_) => Reason::Malformed,
            HeadError::TargetTooLong | HeadError::TooLarge => Reason::HeadTooLarge,
            HeadError::Timeout => Reason::HeadTimeout,
        };
        self.count(reason, remote.ip());
        self.answer(stream, &error.response(), false).await;
    }

    /// Writes a short answer and closes.
    async fn answer(&self, mut stream: ClientStream, answer: &Response, head_only: bool) {
        let bytes = answer.to_bytes(head_only);
        if let Ok(Ok(())) = timeout(self.port.head_timeout, stream.write_answer(&bytes)).await {
            self.linger(stream).await;
        }
    }

    /// Takes what the client still sends until it closes, for a moment.
    async fn linger(&self, mut stream: ClientStream) {
        let Ok(_permit) = self.lingering.try_acquire() else { return };
        stream.close_write();
        let drain = async {
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut [0; READ_BYTES]) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => break,
                }
            }
        };
        let _ = timeout(LINGER, drain).await;
    }
}

mod polling;
mod proxied;
#[cfg(test)]
mod tests;
