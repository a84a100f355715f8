//! The admin listener: what an operator, a balancer and Prometheus ask a node.
//!
//! Belongs here: paths, who may ask, the task that watches the node.
//! Stays out: commands to rooms and users (`api`); the runtime, which is not the shards', so that
//! this answers while the data plane is overloaded.
//! Invariants: every answer comes within about two seconds, with what is silent named in it; nothing
//! here changes a node but `POST /v1/drain`; secrets show as `***`.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | the process runs (no key asked) |
//! | `/readyz` | clients may be sent here, else 503 with reasons (no key asked) |
//! | `/metrics` | Prometheus text (no key asked) |
//! | `/v1/status` `/v1/ring[?arcs=false]` `/v1/config` | [`answers`] |
//! | `/v1/explain?product=&uid=`, `…&room=[&namespace=]`, `…&sid=`, `…&upstream=` | [`answers::Explained`] |
//! | `/v1/watch` | [`answers::Event`], one a line, until the other side goes |
//! | `/v1/drain[?node=]` | [`answers::DrainLine`] of that node, this one if none is named |
//! | `POST /v1/drain[?node=][&force=true \| &cancel=true]` | the same, after having that node drain, or serve again |

pub mod answers;
mod board;
mod cluster;
mod drain;
mod events;
mod numbers;
mod problems;
mod reload;
mod status;
mod upstreams;
mod watcher;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use hyper::body::Incoming;
use mesh_proto::binding::BindingClass;
use mesh_proto::limits::Limits;
use tokio::net::TcpListener;
use tokio::time::Instant;

pub use board::Board;
pub(crate) use cluster::to_hand_over;
pub use cluster::{Answering, Cluster, LinkFact, MeshFacts, OwnAnswers};

use crate::admission::Admission;
use crate::drain::DrainControl;
use crate::handles::{Shards, ViewWatch};
use crate::metrics::{self, Source};
use crate::proxy::Proxies;
use crate::reload::ReloadControl;
use crate::tasks::{OnPanic, Tasks};
use crate::web::{self, Access, Answer, Failure, Guard, Handler, Lines, Reply};

use answers::{ConfigAnswer, ConfigValue};
use board::Snapshot;
use events::Events;
use problems::Descriptors;
use status::Key;

/// What the admin listener needs of its node.
pub struct AdminState {
    /// The node's name.
    pub name: String,
    /// The program's version.
    pub software: String,
    /// When the node started.
    pub started: Instant,
    /// The shards.
    pub shards: Shards,
    /// The newest view.
    pub view: ViewWatch,
    /// The mesh.
    pub cluster: Arc<dyn Cluster>,
    /// What the last look at the node has found.
    pub board: Board,
    /// The node's drain.
    pub drain: DrainControl,
    /// Its proxied products.
    pub proxies: Arc<Proxies>,
    /// Counts of the client port.
    pub admission: Arc<Admission>,
    /// Clients there may be.
    pub connections_max: usize,
    /// Files and sockets the process may have.
    pub fd_limit: u64,
    /// Bounds of what may be asked about.
    pub limits: Limits,
    /// Its settings, and how they are taken over anew.
    pub settings: ReloadControl,
    /// More numbers for `/metrics`.
    pub sources: Vec<Arc<dyn Source>>,
}

impl AdminState {
    fn descriptors(&self) -> Descriptors {
        Descriptors {
            connections: self.admission.open() as u64,
            connections_max: self.connections_max as u64,
            fd_limit: self.fd_limit,
        }
    }
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Answers the admin listener's requests.
struct Admin {
    state: Arc<AdminState>,
    guard: Guard,
    events: Events,
    tasks: Tasks,
}

/// Serves the admin listener until `tasks` is told to stop. `access` from [`Access::at`].
pub async fn serve(listener: TcpListener, state: AdminState, access: Access, tasks: Tasks) {
    let admin = Arc::new(Admin::new(state, access, tasks.clone()));
    admin.start();
    web::serve(listener, admin, "admin", tasks).await;
}

impl Handler for Admin {
    type Answer = Answer;

    async fn handle(self: Arc<Self>, peer: SocketAddr, request: http::Request<Incoming>) -> Answer {
        self.answer(peer, &request).await.unwrap_or_else(|failure| Reply::from(failure).into())
    }
}

/// What is served, by which methods.
const PATHS: [(&str, bool); 11] = [
    ("/healthz", false),
    ("/readyz", false),
    ("/metrics", false),
    ("/v1/status", false),
    ("/v1/ring", false),
    ("/v1/config", false),
    ("/v1/explain", false),
    ("/v1/watch", false),
    ("/v1/drain", true),
    ("/v1/reload", true),
    ("/v1/upstreams", true),
];

impl Admin {
    fn new(state: AdminState, access: Access, tasks: Tasks) -> Self {
        Self { state: Arc::new(state), guard: Guard::new(access), events: Events::new(), tasks }
    }

    /// Starts to look at the node, and to tell what happens.
    fn start(&self) {
        let watch = watcher::watch_node(self.state.clone());
        let tell = events::tell_all(self.state.clone(), self.events.clone());
        let stopping = self.tasks.stopping();
        self.tasks.spawn("admin-watcher", OnPanic::EndTask, async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = watch => {}
            }
        });
        let stopping = self.tasks.stopping();
        self.tasks.spawn("admin-events", OnPanic::EndTask, async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tell => {}
            }
        });
    }

    async fn answer(&self, peer: SocketAddr, request: &http::Request<Incoming>) -> Result<Answer, Failure> {
        let (path, query) = (request.uri().path(), request.uri().query());
        if matches!(path, "/healthz" | "/readyz" | "/metrics") {
            self.guard.check_page(request.headers())?;
        } else {
            self.guard.check(peer, request.headers())?;
        }
        let known = PATHS.iter().find(|(known, _)| *known == path);
        let (_, acts) = known.ok_or_else(Failure::no_such_path)?;
        match (request.method(), acts) {
            (&Method::GET | &Method::HEAD, _) | (&Method::POST, true) => {}
            (_, true) => return Err(Failure::wrong_method("GET, HEAD, POST")),
            (_, false) => return Err(Failure::wrong_method("GET, HEAD")),
        }
        let reply = match path {
            "/healthz" => Reply::text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
            "/readyz" => self.ready(&self.state.board.latest()),
            "/metrics" => {
                let text = numbers::exposition(&self.state, &self.state.board.latest()).await;
                Reply::text(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            "/v1/status" => Reply::json(StatusCode::OK, &status::status(&self.state).await),
            "/v1/ring" => Reply::json(StatusCode::OK, &status::ring(&self.state, wants_arcs(query)?)),
            "/v1/config" => {
                let values = self.state.settings.known().shown.into_iter().map(Into::into).collect();
                let answer = ConfigAnswer { node: self.state.name.clone(), values };
                Reply::json(StatusCode::OK, &answer)
            }
            "/v1/explain" => {
                let key = explain_key(&self.state.limits, query)?;
                Reply::json(StatusCode::OK, &status::explain(&self.state, key).await)
            }
            "/v1/drain" => {
                let asked = drain::asked(request.method(), query)?;
                Reply::json(StatusCode::OK, &drain::answer(&self.state, asked).await?)
            }
            "/v1/reload" => {
                let asked = reload::asked(request.method(), query)?;
                Reply::json(StatusCode::OK, &reload::answer(&self.state, asked).await?)
            }
            "/v1/upstreams" => {
                let answer = upstreams::answer(&self.state, request.method(), query).await?;
                Reply::json(StatusCode::OK, &answer)
            }
            "/v1/watch" => return Ok(Answer::Lines(self.watch(request.method() == Method::HEAD))),
            _ => return Err(Failure::no_such_path()),
        };
        Ok(reply.into())
    }

    /// What happens from now on, as lines.
    fn watch(&self, head_only: bool) -> Lines {
        let (writer, lines) = Lines::new("application/x-ndjson");
        if !head_only {
            let heard = self.events.listen();
            let write = events::write(self.state.clone(), heard, writer, self.tasks.stopping());
            self.tasks.spawn("admin-watch", OnPanic::EndTask, write);
        }
        lines
    }

    fn ready(&self, snapshot: &Snapshot) -> Reply {
        let phase = self.state.drain.status().phase;
        let ready = status::ready(&self.state.view.borrow(), snapshot, phase);
        let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Reply::json(status, &ready)
    }
}

/// Reads `arcs`: the circle is most of an answer, and those who only watch who is on it leave it out.
fn wants_arcs(query: Option<&str>) -> Result<bool, Failure> {
    match web::query_pairs(query)?
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect::<Vec<_>>()[..]
    {
        [] | [("arcs", "true")] => Ok(true),
        [("arcs", "false")] => Ok(false),
        _ => Err(Failure::bad_request("query", "the only parameter is arcs, true or false")),
    }
}

/// Reads `product`, and `uid`, `room` with an optional `namespace`, `sid` or `upstream`.
fn explain_key(limits: &Limits, query: Option<&str>) -> Result<Key, Failure> {
    let (mut product, mut uid, mut room, mut namespace) = (None, None, None, None);
    let (mut sid, mut upstream) = (None, None);
    for (name, value) in web::query_pairs(query)? {
        let slot = match name.as_str() {
            "product" => &mut product,
            "uid" => &mut uid,
            "room" => &mut room,
            "namespace" => &mut namespace,
            "sid" => &mut sid,
            "upstream" => &mut upstream,
            _ => {
                let message = "parameters are product, uid, room, namespace, sid and upstream";
                return Err(Failure::bad_request("query", message));
            }
        };
        *slot = Some(value);
    }
    let product = product.filter(|product| !product.is_empty());
    let product = product.ok_or_else(|| Failure::bad_request("product", "name the product"))?;
    let bound = match (sid, upstream) {
        (None, None) => None,
        (Some(sid), None) => Some((BindingClass::Sid, sid)),
        (None, Some(upstream)) => Some((BindingClass::Upstream, upstream)),
        (Some(_), Some(_)) => return Err(no_target()),
    };
    if let Some((class, text)) = bound {
        if uid.is_some() || room.is_some() || namespace.is_some() || text.is_empty() {
            return Err(no_target());
        }
        return Ok(Key::Binding { product, class, text });
    }
    match (uid, room) {
        (Some(uid), None) if namespace.is_none() => {
            let uid = crate::identity::normal_uid(&uid, limits.uid_bytes_max)
                .map_err(|refusal| Failure::bad_request(refusal.code, refusal.message))?;
            Ok(Key::User { product, uid: uid.to_string() })
        }
        (None, Some(room)) if room.len() <= limits.room_name_bytes_max => {
            Ok(Key::Room { product, namespace: namespace.unwrap_or_else(|| "/".into()), room })
        }
        (None, Some(_)) => {
            let message = format!("a room's name is at most {} bytes", limits.room_name_bytes_max);
            Err(Failure::bad_request("room", message))
        }
        _ => Err(no_target()),
    }
}

fn no_target() -> Failure {
    Failure::bad_request("target", "name one: uid, room with an optional namespace, sid or upstream")
}

impl From<crate::config::reference::Shown> for ConfigValue {
    fn from(shown: crate::config::reference::Shown) -> Self {
        let crate::config::reference::Shown { key, value, origin, restart } = shown;
        Self { key, value, origin, restart }
    }
}

#[cfg(test)]
pub(crate) mod tests;
