//! The HTTP API: what a backend does to rooms and users.
//!
//! Belongs here: requests into [`Query`]s, answers and failures into JSON (`docs/http-api.md`).
//! Stays out: who owns a key (any shard takes a query and the machine routes it), the HTTP server
//! (`web`), operators' questions (`admin`).
//! Invariants: an event's bytes are sliced out of the body and never re-encoded; nothing passes that
//! the ingest gate refuses; every request ends within [`Limits::api_timeout`] and a grace second.
//!
//! | module | answers |
//! |---|---|
//! | [`body`] | what a body may hold |
//! | [`call`] | the queries that come of it |
//! | [`answers`] | what is answered |
//! | [`counters`] | how often |

pub mod answers;
mod body;
mod call;
mod counters;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use mesh_proto::id::{Address, PublishId, RoomKey, ShardIx};
use mesh_proto::limits::Limits;
use mesh_proto::shard::ProductRules;
use mesh_proto::wire::{Answer, CommandFailed, Query};
use tokio::net::TcpListener;

pub use counters::Counters;

use crate::handles::{Shards, ViewWatch};
use crate::identity::{ProductsWatch, normal_uid};
use crate::tasks::Tasks;
use crate::web::{self, Access, Failure, Guard, Handler, Reply};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use body::check_bodies;
use body::{Batch, Item, Session};
use counters::Endpoint;

/// Items of one batch.
pub const BATCH_ITEMS_MAX: usize = 100;

/// Items of one batch under way at a time: half of what one shard takes from all requests.
const BATCH_CONCURRENCY: usize = 16;

/// Bytes of a batch's body.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What a body may hold beside its event.
const BODY_BYTES_EXTRA: usize = 64 << 10;

/// Entries of one answer of history.
const HISTORY_ENTRIES_MAX: u32 = 1_000;

/// A shard ends its calls itself; this is for a shard that hangs.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// What the API needs of its node.
#[derive(Debug)]
pub struct Api {
    shards: Shards,
    view: ViewWatch,
    products: ProductsWatch,
    limits: Limits,
    guard: Guard,
    counters: Arc<Counters>,
    next_shard: AtomicUsize,
    next_number: AtomicU64,
}

impl Api {
    /// An API that has answered nothing yet.
    #[must_use]
    pub fn new(
        shards: Shards,
        view: ViewWatch,
        products: ProductsWatch,
        limits: Limits,
        access: Access,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            shards,
            view,
            products,
            limits,
            guard: Guard::new(access),
            counters,
            next_shard: AtomicUsize::new(0),
            next_number: AtomicU64::new(1),
        }
    }

    async fn answer(
        &self,
        peer: SocketAddr,
        request: http::Request<Incoming>,
    ) -> (Endpoint, Result<Reply, Failure>) {
        if let Err(failure) = self.guard.check(peer, request.headers()) {
            return (Endpoint::Other, Err(failure));
        }
        let route = match Route::of(request.uri().path()) {
            Ok(route) => route,
            Err(failure) => return (Endpoint::Other, Err(failure)),
        };
        let endpoint = route.what.endpoint();
        (endpoint, self.answer_route(route, request).await)
    }

    async fn answer_route(&self, route: Route, request: http::Request<Incoming>) -> Result<Reply, Failure> {
        let (allow, is_read) = match route.what {
            What::Publish | What::Batch | What::Join | What::Leave | What::Disconnect => ("POST", false),
            _ => ("GET, HEAD", true),
        };
        let fits = match *request.method() {
            Method::GET | Method::HEAD => is_read,
            Method::POST => !is_read,
            _ => false,
        };
        if !fits {
            return Err(Failure::wrong_method(allow));
        }
        let products = self.products.borrow().clone();
        let product =
            products.named(&route.product).and_then(|product| product.rules()).ok_or_else(|| {
                Failure::new(StatusCode::NOT_FOUND, "product_unknown", "this node has no such product")
            })?;
        if is_read {
            let asked = ReadParams::of(request.uri().query())?;
            return self.read(product, route.what, asked).await;
        }
        let key = idempotency_key(request.headers())?;
        let bytes_max = match route.what {
            What::Batch => BATCH_BYTES_MAX,
            _ => self.limits.message_bytes_max + BODY_BYTES_EXTRA,
        };
        let body = web::read_body(request.into_body(), bytes_max).await?;
        let item = match route.what {
            What::Publish => Item::Publish(body::parse(&body)?),
            What::Join => Item::Join(body::parse(&body)?),
            What::Leave => Item::Leave(body::parse(&body)?),
            What::Disconnect => Item::Disconnect(body::parse(&body)?),
            _ => return self.batch(product, body::parse(&body)?, key.as_deref()).await,
        };
        if key.is_some() && !matches!(item, Item::Publish(_)) {
            return Err(Failure::bad_request(
                "idempotency_key",
                "an Idempotency-Key goes with a publish: other commands may be repeated as they are",
            ));
        }
        self.item(product, item, key.as_deref()).await
    }

    async fn read(&self, product: &ProductRules, what: What, asked: ReadParams) -> Result<Reply, Failure> {
        let namespace: Arc<str> = asked.namespace.as_deref().unwrap_or("/").into();
        let room_key = |room: &str| RoomKey::new(&product.name, &namespace, room);
        match what {
            What::Count(room) | What::Members(room) if room.len() > self.limits.room_name_bytes_max => {
                Err(self.room_too_long())
            }
            What::Count(room) => {
                let query = Query::Members { room: room_key(&room), list: false };
                call::members(self, self.ask(query).await, false)
            }
            What::Members(room) => {
                let query = Query::Members { room: room_key(&room), list: true };
                call::members(self, self.ask(query).await, true)
            }
            What::History(room) => {
                let count = asked.limit.unwrap_or(100).min(HISTORY_ENTRIES_MAX);
                call::history(self.ask(Query::History { room: room_key(&room), count }).await)
            }
            What::User(uid) => {
                let uid = self.uid(&uid)?;
                let query = Query::ExplainUser { product: product.name.clone(), uid: uid.clone() };
                call::user(&uid, self.ask(query).await)
            }
            _ => Err(Failure::no_such_path()),
        }
    }

    /// One command. Answers of a batch hold the same.
    async fn item(
        &self,
        product: &ProductRules,
        item: Item<'_>,
        key: Option<&str>,
    ) -> Result<Reply, Failure> {
        match item {
            Item::Publish(publish) => {
                let call = call::publish(self, product, &publish, key)?;
                call::published(self.ask(call.query).await, call.to_room)
            }
            Item::Join(membership) | Item::Leave(membership) if membership.room.is_empty() => {
                Err(Failure::bad_request("room", "room is empty: name one"))
            }
            Item::Join(membership) => {
                let command = call::join(self, &membership)?;
                self.command(product, &membership.who, command).await
            }
            Item::Leave(membership) => {
                let command = call::leave(self, &membership)?;
                self.command(product, &membership.who, command).await
            }
            Item::Disconnect(disconnect) => {
                let close = disconnect.close.unwrap_or(true);
                let command = mesh_proto::wire::Command::Disconnect { close };
                self.command(product, &disconnect.who, command).await
            }
        }
    }

    async fn command(
        &self,
        product: &ProductRules,
        who: &Session<'_>,
        command: mesh_proto::wire::Command,
    ) -> Result<Reply, Failure> {
        let query = call::to_sessions(self, product, who, command)?;
        if matches!(query, Query::Broadcast(_)) {
            return call::acted(self, self.ask(query).await);
        }
        call::done(self.ask(query).await)
    }

    /// Runs the items side by side; one answer per item, in their order. The batch as a whole fails
    /// only when it cannot be read.
    async fn batch(
        &self,
        product: &Arc<ProductRules>,
        batch: Batch<'_>,
        key: Option<&str>,
    ) -> Result<Reply, Failure> {
        if batch.items.len() > BATCH_ITEMS_MAX {
            let message = format!("a batch has at most {BATCH_ITEMS_MAX} items");
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        // Made before they are run: a closure inside the stream would tie the lifetimes of the items.
        let calls: Vec<_> = (batch.items.iter().enumerate())
            .map(|(index, item)| self.batch_item(product, item, key.map(|key| format!("{key}#{index}"))))
            .collect();
        let results = stream::iter(calls).buffered(BATCH_CONCURRENCY).collect().await;
        Ok(Reply::json(StatusCode::OK, &answers::BatchAnswer { results }))
    }

    async fn batch_item(
        &self,
        product: &ProductRules,
        item: &serde_json::value::RawValue,
        key: Option<String>,
    ) -> answers::BatchResult {
        let outcome = match body::parse::<Item<'_>>(item.get().as_bytes()) {
            Ok(item) => self.item(product, item, key.as_deref()).await,
            Err(failure) => Err(failure),
        };
        answers::BatchResult::of(outcome)
    }

    /// Asks a shard, each in turn: any of them finds the owner.
    async fn ask(&self, query: Query) -> Result<Answer, CommandFailed> {
        let shard = self.turn();
        let asked = self.shards.ask(shard, query);
        let limit = self.limits.api_timeout + ANSWER_GRACE;
        tokio::time::timeout(limit, asked).await.unwrap_or(Err(CommandFailed::Timeout))
    }

    fn turn(&self) -> ShardIx {
        let count = self.shards.0.len().max(1);
        let turn = self.next_shard.fetch_add(1, Ordering::Relaxed) % count;
        ShardIx(u16::try_from(turn).unwrap_or(0))
    }

    fn publish_id(&self) -> PublishId {
        let via = Address { node: self.view.borrow().me, shard: ShardIx(0) };
        PublishId::Api { via, number: self.next_number.fetch_add(1, Ordering::Relaxed) }
    }

    fn uid(&self, uid: &str) -> Result<Arc<str>, Failure> {
        normal_uid(uid, self.limits.uid_bytes_max)
            .map_err(|refusal| Failure::bad_request(refusal.code, refusal.message))
    }

    fn room_too_long(&self) -> Failure {
        let message = format!("a room's name is at most {} bytes", self.limits.room_name_bytes_max);
        Failure::bad_request("room", message)
    }
}

impl Handler for Api {
    type Answer = Reply;

    async fn handle(self: Arc<Self>, peer: SocketAddr, request: http::Request<Incoming>) -> Reply {
        let (endpoint, outcome) = self.answer(peer, request).await;
        let reply = outcome.unwrap_or_else(Reply::from);
        self.counters.count(endpoint, reply.status);
        reply
    }
}

/// Serves the API until `tasks` is told to stop.
pub async fn serve(listener: TcpListener, api: Api, tasks: Tasks) {
    web::serve(listener, Arc::new(api), "api", tasks).await;
}

fn idempotency_key(headers: &http::HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) => Ok(Some(key.to_owned())),
        Err(_) => Err(Failure::bad_request("idempotency_key", "the Idempotency-Key is not ASCII")),
    }
}

/// What a path names.
struct Route {
    product: String,
    what: What,
}

/// Rooms are named; the empty name is everyone.
enum What {
    Publish,
    Batch,
    Join,
    Leave,
    Disconnect,
    Count(String),
    Members(String),
    History(String),
    User(String),
}

impl Route {
    fn of(path: &str) -> Result<Self, Failure> {
        let segments = web::path_segments(path)
            .ok_or_else(|| Failure::bad_request("path", "the path is not UTF-8: percent-encode it"))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let ["v1", "products", product, rest @ ..] = segments.as_slice() else {
            return Err(Failure::no_such_path());
        };
        let what = match *rest {
            ["publish"] => What::Publish,
            ["batch"] => What::Batch,
            ["join"] => What::Join,
            ["leave"] => What::Leave,
            ["disconnect"] => What::Disconnect,
            ["all"] => What::Count(String::new()),
            ["all", "members"] => What::Members(String::new()),
            ["all", "history"] => What::History(String::new()),
            ["rooms", room] if !room.is_empty() => What::Count(room.to_owned()),
            ["rooms", room, "members"] if !room.is_empty() => What::Members(room.to_owned()),
            ["rooms", room, "history"] if !room.is_empty() => What::History(room.to_owned()),
            ["users", uid] => What::User(uid.to_owned()),
            _ => return Err(Failure::no_such_path()),
        };
        Ok(Self { product: (*product).to_owned(), what })
    }
}

impl What {
    fn endpoint(&self) -> Endpoint {
        match self {
            Self::Publish => Endpoint::Publish,
            Self::Batch => Endpoint::Batch,
            Self::Join => Endpoint::Join,
            Self::Leave => Endpoint::Leave,
            Self::Disconnect => Endpoint::Disconnect,
            Self::Count(_) | Self::Members(_) | Self::History(_) => Endpoint::Room,
            Self::User(_) => Endpoint::User,
        }
    }
}

/// Parameters of a GET.
#[derive(Default)]
struct ReadParams {
    namespace: Option<String>,
    limit: Option<u32>,
}

impl ReadParams {
    fn of(query: Option<&str>) -> Result<Self, Failure> {
        let mut params = Self::default();
        for (name, value) in web::query_pairs(query)? {
            match name.as_str() {
                "namespace" => params.namespace = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=HISTORY_ENTRIES_MAX).contains(limit));
                    let message = format!("limit is a number from 1 to {HISTORY_ENTRIES_MAX}");
                    params.limit = Some(limit.ok_or_else(|| Failure::bad_request("limit", message))?);
                }
                _ => return Err(Failure::bad_request("query", "parameters are namespace and limit")),
            }
        }
        Ok(params)
    }
}

#[cfg(test)]
mod tests;
