//! The admin listener: what an operator, a balancer and Prometheus ask a node.
//!
//! Belongs here: paths, who may ask, the task that watches the node.
//! Stays out: commands to rooms and users (`api`); the runtime, which is not the shards', so that
//! this answers while the data plane is overloaded.
//! Invariants: every answer comes within about a second, with what is silent named in it; nothing
//! here changes the node; secrets show as `***`.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | the process runs (no key asked) |
//! | `/readyz` | clients may be sent here, else 503 with reasons (no key asked) |
//! | `/metrics` | Prometheus text (no key asked) |
//! | `/v1/status` `/v1/ring[?arcs=false]` `/v1/config` | [`answers`] |
//! | `/v1/explain?product=&uid=`, `…&room=[&namespace=]` | [`answers::Explained`] |

pub mod answers;
mod cluster;
mod numbers;
mod problems;
mod status;
mod watcher;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use hyper::body::Incoming;
use mesh_proto::limits::Limits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

pub use cluster::{Answering, Cluster, LinkFact, MeshFacts, own_status};

use crate::admission::Admission;
use crate::handles::{Shards, ViewWatch};
use crate::metrics::{self, Source};
use crate::tasks::{OnPanic, Tasks};
use crate::web::{self, Access, Failure, Guard, Handler, Reply};

use answers::{ConfigAnswer, ConfigValue};
use problems::Descriptors;
use status::Key;
use watcher::Snapshot;

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
    /// Counts of the client port.
    pub admission: Arc<Admission>,
    /// Clients there may be.
    pub connections_max: usize,
    /// Files and sockets the process may have.
    pub fd_limit: u64,
    /// Bounds of what may be asked about.
    pub limits: Limits,
    /// Every setting, for `/v1/config`.
    pub config: Vec<ConfigValue>,
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
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// Serves the admin listener until `tasks` is told to stop. `access` from [`Access::at`].
pub async fn serve(listener: TcpListener, state: AdminState, access: Access, tasks: Tasks) {
    let (snapshots, snapshot) = watch::channel(Arc::default());
    let state = Arc::new(state);
    let (watched, stopping) = (state.clone(), tasks.stopping());
    tasks.spawn("admin-watcher", OnPanic::EndTask, async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = watcher::watch_node(watched, snapshots) => {}
        }
    });
    let admin = Admin { state, guard: Guard::new(access), snapshot };
    web::serve(listener, Arc::new(admin), "admin", tasks).await;
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, peer: SocketAddr, request: http::Request<Incoming>) -> Reply {
        self.answer(peer, &request).await.unwrap_or_else(Reply::from)
    }
}

impl Admin {
    async fn answer(&self, peer: SocketAddr, request: &http::Request<Incoming>) -> Result<Reply, Failure> {
        let path = request.uri().path();
        if matches!(path, "/healthz" | "/readyz" | "/metrics") {
            self.guard.check_page(request.headers())?;
        } else {
            self.guard.check(peer, request.headers())?;
        }
        if !matches!(
            path,
            "/healthz" | "/readyz" | "/metrics" | "/v1/status" | "/v1/ring" | "/v1/config" | "/v1/explain"
        ) {
            return Err(Failure::no_such_path());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Failure::wrong_method("GET, HEAD"));
        }
        let key = match path {
            "/v1/explain" => Some(explain_key(&self.state.limits, request.uri().query())?),
            _ => None,
        };
        let snapshot = self.snapshot.borrow().clone();
        Ok(match path {
            "/healthz" => Reply::text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
            "/readyz" => self.ready(&snapshot),
            "/metrics" => {
                let text = numbers::exposition(&self.state, &snapshot).await;
                Reply::text(StatusCode::OK, metrics::CONTENT_TYPE, text)
            }
            "/v1/status" => Reply::json(StatusCode::OK, &status::status(&self.state, &self.snapshot).await),
            "/v1/ring" => {
                let with_arcs = wants_arcs(request.uri().query())?;
                Reply::json(StatusCode::OK, &status::ring(&self.state, with_arcs))
            }
            "/v1/config" => {
                let answer =
                    ConfigAnswer { node: self.state.name.clone(), values: self.state.config.clone() };
                Reply::json(StatusCode::OK, &answer)
            }
            _ => match key {
                Some(key) => Reply::json(StatusCode::OK, &status::explain(&self.state, key).await),
                None => return Err(Failure::no_such_path()),
            },
        })
    }

    fn ready(&self, snapshot: &Snapshot) -> Reply {
        let ready = status::ready(&self.state.view.borrow(), snapshot);
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

/// Reads `product`, and `uid` or `room` with an optional `namespace`.
fn explain_key(limits: &Limits, query: Option<&str>) -> Result<Key, Failure> {
    let (mut product, mut uid, mut room, mut namespace) = (None, None, None, None);
    for (name, value) in web::query_pairs(query)? {
        let slot = match name.as_str() {
            "product" => &mut product,
            "uid" => &mut uid,
            "room" => &mut room,
            "namespace" => &mut namespace,
            _ => {
                return Err(Failure::bad_request("query", "parameters are product, uid, room and namespace"));
            }
        };
        *slot = Some(value);
    }
    let product = product.filter(|product| !product.is_empty());
    let product = product.ok_or_else(|| Failure::bad_request("product", "name the product"))?;
    match (uid, room) {
        (Some(uid), None) if namespace.is_none() => {
            crate::identity::check_uid(&uid, limits.uid_bytes_max)
                .map_err(|refusal| Failure::bad_request(refusal.code, refusal.message))?;
            Ok(Key::User { product, uid })
        }
        (None, Some(room)) if room.len() <= limits.room_name_bytes_max => {
            Ok(Key::Room { product, namespace: namespace.unwrap_or_else(|| "/".into()), room })
        }
        (None, Some(_)) => {
            let message = format!("a room's name is at most {} bytes", limits.room_name_bytes_max);
            Err(Failure::bad_request("room", message))
        }
        _ => Err(Failure::bad_request("target", "name either uid, or room with an optional namespace")),
    }
}

impl From<crate::config::reference::Shown> for ConfigValue {
    fn from(shown: crate::config::reference::Shown) -> Self {
        let crate::config::reference::Shown { key, value, origin, restart } = shown;
        Self { key, value, origin, restart }
    }
}

#[cfg(test)]
mod tests;
