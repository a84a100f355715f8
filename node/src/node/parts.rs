//! The parts of a node, and the order in which they start.
//!
//! Belongs here: binding every port before anything runs, so that a taken one ends the start with
//! nothing to undo; then mesh → shards → API and admin → clients, each needing the one before.
//! Stays out: stopping (`stop`).

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use mesh_proto::id::{Address, NodeId, NodeRef, ShardIx};
use mesh_proto::keys::{ClusterKey, IdKey};
use mesh_proto::link::LinkLimits;
use mesh_proto::membership::MembershipConfig;
use mesh_proto::shard::ShardConfig;
use mesh_proto::time::Instant;
use mesh_proto::wire::CommandFailed;
use tokio::sync::{mpsc, watch};

use super::doorkeeper::{identity, identity_headers, products};
use super::serve::Serving;
use super::{Addresses, Ended, Options, StartError};
use crate::admin::{Board, OwnAnswers};
use crate::admission::{Admission, AdmissionLimits};
use crate::app::App;
use crate::app::runtime::Apps;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::secrets::Secrets;
use crate::drain::DrainControl;
use crate::handles::{SHARD_QUEUE_LEN, ShardHandle, Shards, ToShard, ViewWatch};
use crate::identity::{Identities, Identity};
use crate::listener::{ClientListener, ClientPort, PortSettings};
use crate::mesh::{EndpointConfig, Mesh, MeshConfig, MeshHandle, NodeStatusSource};
use crate::proxy::{ByTcp, Dial, Local, Proxies, Proxy, ProxyParts, Settings, follow};
use crate::reload::{self, Apply, ReloadControl};
use crate::shard::ShardParts;
use crate::tasks::{OnPanic, Tasks};
use crate::transport::proxies::TrustedProxies;
use crate::transport::route::{Origins, RoutePolicy};
use crate::transport::tls::{CertificateError, CertificateFiles, CertificateSwitch, Certificates};
use crate::{fd_limit, shard};

/// Every TCP port, bound.
#[derive(Debug)]
pub(super) struct Listeners {
    client: ClientListener,
    client_tls: Option<ClientListener>,
    api: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    /// # Errors
    /// [`StartError`] naming the first port that could not be bound.
    pub(super) fn bind(config: &Config) -> Result<Self, StartError> {
        let client = ClientListener::bind(config.client.listen)?;
        let client_tls = config.client.tls_listen.map(ClientListener::bind).transpose()?;
        let api = bind("the HTTP API", config.api.listen)?;
        let admin = bind("meshctl", config.admin.listen)?;
        Ok(Self { client, client_tls, api, admin })
    }

    /// Where they listen; the mesh port is still the configured one.
    fn addresses(&self, config: &Config) -> Addresses {
        let bound = |listener: &TcpListener, configured| listener.local_addr().unwrap_or(configured);
        Addresses {
            name: node_name(config),
            client: self.client.local_addr(),
            client_tls: self.client_tls.as_ref().map(ClientListener::local_addr),
            api: bound(&self.api, config.api.listen),
            admin: bound(&self.admin, config.admin.listen),
            mesh: config.mesh.listen,
        }
    }
}

fn bind(what: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let listen = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|cause| StartError::Listen { what, addr, cause })
}

/// What runs.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) addresses: Addresses,
    pub(super) view: ViewWatch,
    pub(super) mesh: Mesh,
    pub(super) shards: Shards,
    pub(super) admission: Arc<Admission>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) drain: DrainControl,
    pub(super) apps: Arc<Apps>,
    pub(super) settings: ReloadControl,
    /// Acceptor and handshakes: the first to stop.
    pub(super) client_tasks: Tasks,
    /// The rest of the serving runtime, and the shards' threads: the last to stop.
    pub(super) tasks: Tasks,
}

impl Parts {
    /// Starts everything. To be called within the serving runtime.
    pub(super) fn start(
        config: Config,
        options: &Options,
        secrets: &Secrets,
        listeners: Listeners,
        handlers: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let of_code: Vec<String> = options.apps.keys().cloned().collect();
        let config = config.with_products(&of_code);
        let clock = Clock::start();
        let tasks = Tasks::new();
        let client_tasks = tasks.child();
        let (shards, inboxes) = shard_channels(shard_count(config.node.shards));
        let cluster_key = secrets.cluster.clone().ok_or(StartError::NoKey)?;
        let addresses = listeners.addresses(&config);

        let limits = admission_limits(&config);
        let connections_max = limits.connections_max;
        let admission = Admission::new(limits, shards.0.len());
        let (board, drain) = (Board::new(), DrainControl::new(admission.clone()));
        let (settings, reloads) = ReloadControl::new(config.shown());
        let (status, view_known) = own_answers(&shards, &board, &drain, &settings, clock);
        let mesh_config = mesh_config(&config, &addresses, cluster_key.clone(), shards.0.len());
        let me = mesh_config.membership.me;
        let mesh = Mesh::start(mesh_config, shards.clone(), status)?;
        let view = mesh.handle().view();
        let _ = view_known.set(view.clone());
        let addresses = Addresses { mesh: mesh.handle().bound(), ..addresses };

        let apps_of_products = options.apps.clone();
        let who = Arc::new(identity(&config, secrets, clock, &tasks));
        let first = Arc::new(port_settings(&config, &apps_of_products, &who));
        let (identity_tx, identity_watch) = watch::channel(who);
        let products = first.products.clone();
        let (products_tx, products_watch) = watch::channel(products.clone());
        let (port_tx, port_watch) = watch::channel(first);
        let limits = config.limits.clone();
        let apps =
            Apps::new(options.apps.clone(), shards.clone(), view.clone(), limits, tasks.clone(), handlers);
        let apps = Arc::new(apps);
        let identities =
            Identities::new(identity_watch, shards.clone(), tasks.clone(), tokio::runtime::Handle::current());
        let identities = Arc::new(identities);
        let ids = IdKey::new(&cluster_key);
        for (handle, inbox) in shards.0.iter().zip(inboxes) {
            let parts = ShardParts {
                config: ShardConfig {
                    me: Address { node: me, shard: handle.shard },
                    shards: u16::try_from(shards.0.len()).unwrap_or(u16::MAX),
                    node_name: addresses.name.as_str().into(),
                    products: products.rooms().cloned().collect(),
                    limits: config.limits.clone(),
                    ids: ids.clone(),
                    seed: rand::random(),
                },
                clock,
                inbox,
                view: view.clone(),
                shards: shards.clone(),
                outbound: Box::new(mesh.handle().clone()),
                apps: apps.clone(),
                identities: identities.clone(),
            };
            shard::start(parts, &tasks).map_err(|cause| StartError::System { what: "a shard", cause })?;
        }

        let proxies =
            proxies(&config, &addresses.name, mesh.handle(), &shards, &admission, clock, &client_tasks);
        let serving = Serving {
            config: &config,
            proxies: &proxies,
            addresses: &addresses,
            mesh: mesh.handle(),
            shards: &shards,
            products: &products_watch,
            settings: &settings,
            admission: &admission,
            board: &board,
            drain: &drain,
            connections_max,
            tasks: &tasks,
            identities: &identities,
        };
        let api = serving.api(listeners.api, secrets.api_key.as_ref())?;
        serving.admin(listeners.admin, secrets.admin_token.as_ref(), api)?;
        let port = ClientPort {
            shards: shards.clone(),
            settings: port_watch,
            proxy: Some(proxies.clone()),
            site: options.demo_control.as_ref().map(|url| serving.demo_site(url)),
            admission: admission.clone(),
            head_timeout: config.client.head_timeout,
            message_bytes_max: config.limits.message_bytes_max,
            requests: Arc::default(),
            clock,
        };
        let not_started = |cause| StartError::System { what: "the client port", cause };
        let shown = match listeners.client_tls {
            Some(listener) => {
                let (switch, acceptor) = CertificateSwitch::new(certificates(&config)?)?;
                listener.start(port.clone(), Some(acceptor), &client_tasks).map_err(not_started)?;
                Some(switch)
            }
            None => None,
        };
        listeners.client.start(port, None, &client_tasks).map_err(not_started)?;
        let (told, proxied, hook_tasks) = (shards.clone(), proxies.clone(), tasks.clone());
        let start = start_proxy(&addresses.name, mesh.handle(), &shards, clock, &client_tasks);
        let apply: Apply = Box::new(move |config, secrets| {
            let who = Arc::new(identity(config, secrets, clock, &hook_tasks));
            let settings = port_settings(config, &apps_of_products, &who);
            if let Some(shown) = &shown {
                let read = certificates(config).map_err(|e| e.to_string())?;
                shown.switch(read).map_err(|e| e.to_string())?;
            }
            let products = settings.products.clone();
            for shard in told.0.iter() {
                // Shards know a product before its first client comes. One that is gone takes the node with it.
                let _ = shard.tx.blocking_send(ToShard::Products(products.rooms().cloned().collect()));
            }
            proxied.take_over(proxy_settings(config), &start);
            products_tx.send_replace(products);
            identity_tx.send_replace(who);
            port_tx.send_replace(Arc::new(settings));
            Ok(())
        });
        let sources = options.sources.clone();
        let reading = reload::Settings { config: config.clone(), sources, of_code, apply };
        let stopping = tasks.stopping();
        tasks.spawn("reload", OnPanic::EndTask, async move {
            tokio::select! {
                () = reading.serve(reloads) => {}
                () = stopping.cancelled() => {}
            }
        });
        Ok(Self {
            config,
            addresses,
            view,
            mesh,
            shards,
            admission,
            proxies,
            drain,
            apps,
            settings,
            client_tasks,
            tasks,
        })
    }

    /// Completes when the node must end without having been told to.
    pub(super) async fn cannot_go_on(&self) -> Ended {
        let mut standing = self.mesh.handle().standing();
        let failed = self.tasks.failed();
        tokio::select! {
            Ok(standing) = standing.wait_for(|standing| standing.name_taken_by.is_some()) => {
                let holder = standing.name_taken_by.map(|at| at.to_string()).unwrap_or_default();
                let name = &self.addresses.name;
                Ended::NameTaken(format!(
                    "another node called {name} lives at {holder}: give this one another name (--name, node.name)"
                ))
            }
            () = failed.cancelled() => Ended::Failed,
            () = self.mesh.failed() => Ended::Failed,
        }
    }
}

/// The products that are answered by servers of their owner's.
fn proxies(
    config: &Config,
    me: &str,
    mesh: &MeshHandle,
    shards: &Shards,
    admission: &Arc<Admission>,
    clock: Clock,
    tasks: &Tasks,
) -> Arc<Proxies> {
    let start = start_proxy(me, mesh, shards, clock, tasks);
    let proxies = proxy_settings(config).into_iter().map(|(name, settings)| start(name, settings));
    let proxies = Proxies::new(proxies, admission.clone(), tasks.clone());
    let (runtime, group, served) = (tokio::runtime::Handle::current(), tasks.clone(), proxies.clone());
    mesh.tunnels().serve(
        move |product| served.named(product)?.local_port(),
        move |task| {
            let (_entered, stopping) = (runtime.enter(), group.stopping());
            group.spawn_small("tunnel", async move {
                tokio::select! {
                    () = task => {}
                    () = stopping.cancelled() => {}
                }
            });
        },
    );
    proxies
}

fn proxy_settings(config: &Config) -> Vec<(Arc<str>, Settings)> {
    let headers = identity_headers(config);
    let products = config.products.0.iter().filter(|(_, product)| product.is_proxy());
    products.map(|(name, product)| (name.as_str().into(), Settings::of(product, &headers))).collect()
}

/// How a proxied product begins at this node.
fn start_proxy(
    me: &str,
    mesh: &MeshHandle,
    shards: &Shards,
    clock: Clock,
    tasks: &Tasks,
) -> impl Fn(Arc<str>, Settings) -> Arc<Proxy> + use<> {
    let (me, mesh, shards, tasks) = (Arc::<str>::from(me), mesh.clone(), shards.clone(), tasks.clone());
    move |name, settings| {
        let local = settings.local;
        let dial: Box<dyn Dial> = match local {
            None => Box::new(ByTcp::default()),
            Some(port) => {
                let tunnels = mesh.tunnels().clone();
                Box::new(Local { me: me.clone(), port, product: name.clone(), tunnels })
            }
        };
        let near = local.map(|_| me.clone());
        let parts = ProxyParts { settings, dial, near, shards: Some(shards.clone()), clock, tasks: &tasks };
        let proxy = Proxy::start(name, parts);
        if local.is_some() {
            let following = follow(proxy.clone(), mesh.tunnels().clone(), mesh.view());
            let retired = proxy.retired();
            tasks.spawn("local-upstreams", OnPanic::EndNode, async move {
                tokio::select! {
                    () = following => {}
                    () = retired.cancelled() => {}
                }
            });
        }
        proxy
    }
}

/// One per core, unless told otherwise; at most 64.
fn shard_count(configured: u16) -> u16 {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = if configured == 0 { cores() } else { usize::from(configured) };
    u16::try_from(count.min(64)).unwrap_or(64)
}

fn shard_channels(count: u16) -> (Shards, Vec<mpsc::Receiver<ToShard>>) {
    let channels = (0..count).map(|shard| {
        let (tx, rx) = mpsc::channel(SHARD_QUEUE_LEN);
        (ShardHandle { shard: ShardIx(shard), tx }, rx)
    });
    let (handles, inboxes): (Vec<_>, Vec<_>) = channels.unzip();
    (Shards(handles.into()), inboxes)
}

/// Peers and this node itself ask about it; the view that the answers need is known a moment later.
fn own_answers(
    shards: &Shards,
    board: &Board,
    drain: &DrainControl,
    settings: &ReloadControl,
    clock: Clock,
) -> (NodeStatusSource, Arc<OnceLock<ViewWatch>>) {
    let view = Arc::new(OnceLock::<ViewWatch>::new());
    let (known, shards, board) = (view.clone(), shards.clone(), board.clone());
    let (drain, settings) = (drain.clone(), settings.clone());
    let source = move |query| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
        let uptime = clock.now().since(Instant::ZERO);
        let Some(view) = known.get().cloned() else {
            return Box::pin(std::future::ready(Err(CommandFailed::Overloaded)));
        };
        let (shards, board, drain, settings) =
            (shards.clone(), board.clone(), drain.clone(), settings.clone());
        Box::pin(OwnAnswers { shards, view, board, drain, settings }.answer(query, uptime))
    };
    (Arc::new(source), view)
}

/// The name people gave it, else one that other nodes of this host will not have.
fn node_name(config: &Config) -> String {
    if !config.node.name.is_empty() {
        return config.node.name.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(48).collect();
    let host = if host.is_empty() { "node".to_owned() } else { host };
    match config.mesh.listen.port() {
        0 => format!("{host}-p{}", std::process::id()),
        port => format!("{host}-{port}"),
    }
}

fn mesh_config(config: &Config, addresses: &Addresses, cluster_key: ClusterKey, shards: usize) -> MeshConfig {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let incarnation = u64::try_from(since_1970.as_millis()).unwrap_or(1);
    let name = addresses.name.clone();
    let client_addr = match config.client.advertise.as_str() {
        "" => addresses.client.to_string(),
        advertised => advertised.to_owned(),
    };
    MeshConfig {
        endpoint: EndpointConfig::new(config.mesh.listen),
        seeds: config.mesh.seeds.clone(),
        membership: MembershipConfig {
            me: NodeRef { id: NodeId::of_name(&name), incarnation },
            name,
            mesh_addr: config.mesh.advertise.unwrap_or(config.mesh.listen),
            zone: config.node.zone,
            weight: config.node.weight,
            client_addr,
            admin_addr: addresses.admin.to_string(),
            api_addr: addresses.api.to_string(),
            shards: u16::try_from(shards).unwrap_or(u16::MAX),
            software: env!("CARGO_PKG_VERSION").into(),
            seeds: Vec::new(),
            vnodes: config.mesh.vnodes,
            timing: config.mesh.timing(),
            cluster_key,
            cluster_id: NodeId::of_name(&config.mesh.cluster).0,
            boot_id: rand::random(),
            seed: rand::random(),
        },
        limits: LinkLimits::default(),
    }
}

/// What the client port goes by.
fn port_settings(config: &Config, apps: &BTreeMap<String, App>, who: &Arc<Identity>) -> PortSettings {
    let policy = RoutePolicy {
        origins: Origins::from_list(&config.client.allowed_origins),
        identity_headers: identity_headers(config),
        engine_io: apps.values().any(App::is_engine_io),
        // Checked with the rest of the configuration.
        proxies: TrustedProxies::from_list(&config.client.trusted_proxies).unwrap_or_default(),
    };
    let products = Arc::new(products(config, apps));
    PortSettings { products, doorkeeper: who.clone(), policy }
}

/// Read again: since the settings were checked somebody may have changed the files.
fn certificates(config: &Config) -> Result<Certificates, CertificateError> {
    let listed = config.client.tls_certificates.iter();
    Certificates::read(&listed.map(|text| CertificateFiles::from_text(text)).collect::<Vec<_>>())
}

/// As configured, and no more clients than descriptors for them.
fn admission_limits(config: &Config) -> AdmissionLimits {
    let client = &config.client;
    let descriptors = fd_limit::raise().unwrap_or(u64::MAX).saturating_sub(fd_limit::RESERVED);
    let connections_max = client.connections_max.min(usize::try_from(descriptors).unwrap_or(usize::MAX));
    if connections_max < client.connections_max {
        tracing::info!(connections_max, "fewer clients than configured: file descriptors (ulimit -Hn)");
    }
    AdmissionLimits {
        connections_max,
        connections_per_ip_max: client.connections_per_ip_max,
        handshakes_per_second: client.handshakes_per_second,
        handshakes_per_ip_per_second: client.handshakes_per_ip_per_second,
    }
}
