//! What a node serves over HTTP beside its clients: API, admin, and in the demonstration a page.
//!
//! Belongs here: what each of them is given. Stays out: what they answer (`api`, `admin`, `demo`).

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use mesh_proto::wire::{Answer, Query};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Addresses, StartError};
use crate::admin::{self, AdminState, Board};
use crate::admission::Admission;
use crate::api::{self, Api, Counters};
use crate::config::{Config, SecretText};
use crate::demo::site;
use crate::drain::DrainControl;
use crate::handles::Shards;
use crate::identity::{Identities, ProductsWatch};
use crate::mesh::MeshHandle;
use crate::metrics::Source;
use crate::proxy::Proxies;
use crate::reload::ReloadControl;
use crate::tasks::{OnPanic, Tasks};
use crate::transport::Site;
use crate::web::{Access, BearerKeys};
use crate::{fd_limit, logs};

/// What API and admin are told of the node.
pub(super) struct Serving<'n> {
    pub(super) config: &'n Config,
    pub(super) proxies: &'n Arc<Proxies>,
    pub(super) addresses: &'n Addresses,
    pub(super) mesh: &'n MeshHandle,
    pub(super) shards: &'n Shards,
    pub(super) products: &'n ProductsWatch,
    pub(super) settings: &'n ReloadControl,
    pub(super) admission: &'n Arc<Admission>,
    pub(super) board: &'n Board,
    pub(super) drain: &'n DrainControl,
    pub(super) connections_max: usize,
    pub(super) tasks: &'n Tasks,
    pub(super) identities: &'n Arc<Identities>,
}

impl Serving<'_> {
    /// Starts the HTTP API; its counters.
    pub(super) fn api(
        &self,
        listener: TcpListener,
        key: Option<&SecretText>,
    ) -> Result<Arc<Counters>, StartError> {
        let (listener, access) = open(listener, self.addresses.api, key)?;
        let counters = Arc::new(Counters::default());
        let (shards, products, limits) =
            (self.shards.clone(), self.products.clone(), self.config.limits.clone());
        let api = Api::new(shards, self.mesh.view(), products, limits, access, counters.clone());
        self.tasks.spawn("api-listener", OnPanic::EndNode, api::serve(listener, api, self.tasks.clone()));
        Ok(counters)
    }

    /// Starts the admin listener.
    pub(super) fn admin(
        &self,
        listener: TcpListener,
        token: Option<&SecretText>,
        api: Arc<Counters>,
    ) -> Result<(), StartError> {
        let (listener, access) = open(listener, self.addresses.admin, token)?;
        let sources: Vec<Arc<dyn Source>> =
            vec![api, self.proxies.clone(), Arc::new(logs::Dropped), self.identities.clone()];
        let state = AdminState {
            name: self.addresses.name.clone(),
            software: env!("CARGO_PKG_VERSION").into(),
            started: Instant::now(),
            shards: self.shards.clone(),
            view: self.mesh.view(),
            cluster: Arc::new(self.mesh.clone()),
            board: self.board.clone(),
            drain: self.drain.clone(),
            proxies: self.proxies.clone(),
            admission: self.admission.clone(),
            connections_max: self.connections_max,
            fd_limit: fd_limit::raise().unwrap_or(u64::MAX),
            limits: self.config.limits.clone(),
            settings: self.settings.clone(),
            sources,
        };
        let serve = admin::serve(listener, state, access, self.tasks.clone());
        self.tasks.spawn("admin-listener", OnPanic::EndNode, serve);
        Ok(())
    }

    /// The demonstration's page, with counts of all nodes kept fresh for it.
    pub(super) fn demo_site(&self, control_url: &str) -> Site {
        let (counts, latest) = watch::channel(Arc::default());
        let (mesh, stopping) = (self.mesh.clone(), self.tasks.stopping());
        self.tasks.spawn("demo-counts", OnPanic::EndTask, async move {
            let ask = |node| {
                let mesh = mesh.clone();
                async move {
                    match mesh.ask_node(node, Query::NodeStatus).await {
                        Ok(Answer::NodeStatus(status)) => Some(status),
                        _ => None,
                    }
                }
            };
            tokio::select! {
                () = site::keep_counts(mesh.view(), counts, ask) => {}
                () = stopping.cancelled() => {}
            }
        });
        site::site(self.mesh.view(), latest, Some(control_url.to_owned()))
    }
}

/// A bound listener on the serving runtime, and who may ask there.
fn open(
    listener: TcpListener,
    address: SocketAddr,
    key: Option<&SecretText>,
) -> Result<(tokio::net::TcpListener, Access), StartError> {
    let keys = key.map(|key| BearerKeys::new([key.expose()])).transpose()?;
    let access = Access::at(address, keys)?;
    let listener = tokio::net::TcpListener::from_std(listener);
    let listener = listener.map_err(|cause| StartError::System { what: "a listener", cause })?;
    Ok((listener, access))
}
