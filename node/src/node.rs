//! One node from start to stop.
//!
//! Belongs here: the order in which parts start, what joins them, what ends the node.
//! Stays out: what the parts do; the order in which they start (`parts`) and stop (`stop`).
//! Owners: each part owns its state (table in `handles`); [`Running`] owns the runtime on which
//! handshakes, API and admin run, and the parts' handles.

mod doorkeeper;
mod parts;
mod serve;
mod stop;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Io};
use crate::config::secrets::{self, DevelopmentKey};
use crate::config::{Config, ConfigErrors, Sources};
use crate::handles::ViewWatch;
use crate::listener::ListenError;
use crate::mesh::MeshError;
use crate::tasks::OnPanic;
use crate::transport::tls::{CertificateError, TlsSetupError};
use crate::web::{OpenElsewhere, WeakKey};
use parts::{Listeners, Parts};

/// Threads of the runtime for handshakes, API and admin: few, because the work of a node is done by
/// its shards; two, so that one slow check of a token does not hold up the others.
const SERVING_THREADS: usize = 2;

/// Threads for the code of products, at least: one that blocks should not be the only one.
const HANDLER_THREADS_MIN: usize = 4;

/// How long the serving runtime may take to end its last tasks.
const RUNTIME_STOP_WITHIN: Duration = Duration::from_secs(1);

/// The node did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that do not work here: files of secrets. All of them.
    #[error(transparent)]
    Settings(#[from] ConfigErrors),
    /// The client port could not be opened.
    #[error(transparent)]
    Client(#[from] ListenError),
    /// Certificates of the client port.
    #[error("client.tls_certificates: {0}")]
    Certificate(#[from] CertificateError),
    /// TLS of the client port.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// Another port could not be opened.
    #[error("cannot listen for {what} on {addr}")]
    Listen {
        /// What it is for.
        what: &'static str,
        /// Which.
        addr: SocketAddr,
        /// Why: most often the address is in use.
        #[source]
        cause: io::Error,
    },
    /// The mesh port could not be opened, or its certificates not made.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// No cluster key: settings that were not checked.
    #[error("no cluster key: set mesh.key_file")]
    NoKey,
    /// The key of the API or the token of the admin listener is too short.
    #[error("api.key_file or admin.token_file does not do")]
    WeakKey(#[from] WeakKey),
    /// API or admin would be open to other hosts without a key.
    #[error(transparent)]
    Open(#[from] OpenElsewhere),
    /// The operating system gave no thread, runtime or descriptor.
    #[error("cannot start {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// How a node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was told to.
    Stopped,
    /// Another live node has its name; in words.
    NameTaken(String),
    /// A part without which it cannot keep its promises has failed.
    Failed,
    /// Told a second time: at once, leaving the rest to its peers.
    Impatient,
}

/// What is not a setting: how a node is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Serve the demonstration's page, which finds the control of its nodes at this URL.
    pub demo_control: Option<String>,
    /// The code of products, by name. A product of the settings with the same name is otherwise as they say;
    /// one that they do not have is as a product of the settings without any.
    pub apps: BTreeMap<String, App>,
    /// Where its settings come from; without it they cannot be taken over anew.
    pub sources: Option<Sources>,
}

impl Options {
    /// With the code of one more product.
    #[must_use]
    pub fn with_app(mut self, product: impl Into<String>, app: App) -> Self {
        self.apps.insert(product.into(), app);
        self
    }
}

/// Where a node listens, ports filled in. One JSON line of `meshd --supervised`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The node's name.
    pub name: String,
    /// Clients.
    pub client: SocketAddr,
    /// Clients, by TLS.
    #[serde(default)]
    pub client_tls: Option<SocketAddr>,
    /// HTTP API.
    pub api: SocketAddr,
    /// `meshctl`, health, metrics.
    pub admin: SocketAddr,
    /// Other nodes, by UDP.
    pub mesh: SocketAddr,
}

/// Starts nodes.
#[derive(Debug)]
pub struct Node;

/// A running node. Dropping it ends it without a word to anybody, as a crash would.
#[derive(Debug)]
pub struct Running {
    runtime: Runtime,
    /// For the code of products, if there is any.
    handlers: Option<Runtime>,
    parts: Parts,
    stopper: CancellationToken,
    impatient: CancellationToken,
}

impl Node {
    /// Starts a node and returns once it listens; joining goes on.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: Config, options: Options) -> Result<Running, StartError> {
        let secrets = secrets::read(&config, DevelopmentKey::Make).map_err(ConfigErrors)?;
        let listeners = Listeners::bind(&config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(SERVING_THREADS)
            .thread_name("serve")
            .enable_all()
            .build()
            .map_err(|cause| StartError::System { what: "the runtime", cause })?;
        let handlers = handlers(&options)?;
        let parts = {
            let _entered = runtime.enter();
            let handle = handlers.as_ref().map_or(runtime.handle(), Runtime::handle).clone();
            Parts::start(config, &options, &secrets, listeners, handle)?
        };
        let addresses = &parts.addresses;
        tracing::info!(
            node = addresses.name,
            client = %addresses.client,
            client_tls = addresses.client_tls.map(tracing::field::display),
            api = %addresses.api,
            admin = %addresses.admin,
            mesh = %addresses.mesh,
            "node listens"
        );
        let (stopper, impatient) = (CancellationToken::new(), CancellationToken::new());
        Ok(Running { runtime, handlers, parts, stopper, impatient })
    }
}

/// Threads of their own for the code of products, so that code that blocks holds up nothing else.
fn handlers(options: &Options) -> Result<Option<Runtime>, StartError> {
    if options.apps.is_empty() {
        return Ok(None);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.max(HANDLER_THREADS_MIN))
        .thread_name("handlers")
        .enable_all()
        .build();
    runtime.map(Some).map_err(|cause| StartError::System { what: "the runtime of handlers", cause })
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.parts.addresses
    }

    /// The settings it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.parts.config
    }

    /// The clients of a product, for code that is no handler.
    #[must_use]
    pub fn io(&self, product: &str, namespace: &str) -> Io {
        self.parts.apps.io(product, namespace)
    }

    /// The cluster as it sees it.
    #[must_use]
    pub fn view(&self) -> ViewWatch {
        self.parts.view.clone()
    }

    /// Cancel it, and the node stops in good order ([`Running::wait`] goes on).
    #[must_use]
    pub fn stopper(&self) -> CancellationToken {
        self.stopper.clone()
    }

    /// Lets SIGTERM and SIGINT stop the node, the second of them at once, and SIGHUP have it take over its
    /// settings.
    ///
    /// # Errors
    /// When the operating system gives no signal handler.
    pub fn stop_on_signals(&self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let _entered = self.runtime.enter();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let settings = self.parts.settings.clone();
        let stopping = self.parts.tasks.stopping();
        self.parts.tasks.spawn("hangups", OnPanic::EndTask, async move {
            let hang_ups = async {
                while hang_up.recv().await.is_some() {
                    // What became of it is logged, and shown by `meshctl status`.
                    let _ = settings.reload().await;
                }
            };
            tokio::select! {
                () = hang_ups => {}
                () = stopping.cancelled() => {}
            }
        });
        let (stopper, impatient) = (self.stopper.clone(), self.impatient.clone());
        let stopping = self.parts.tasks.stopping();
        self.parts.tasks.spawn("signals", OnPanic::EndTask, async move {
            for told in [stopper, impatient] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    () = stopping.cancelled() => return,
                };
                tracing::info!(signal = name, "told to stop");
                told.cancel();
            }
        });
        Ok(())
    }

    /// Runs until the node is told to stop, has been drained or cannot go on, then ends it in phases.
    #[must_use]
    pub fn wait(self) -> Ended {
        let Self { runtime, handlers, parts, stopper, impatient } = self;
        let ended = runtime.block_on(async {
            let all = async {
                let ended = tokio::select! {
                    () = stop::until_drained(&parts, &stopper) => Ended::Stopped,
                    cause = parts.cannot_go_on() => cause,
                };
                // Whatever the cause, the others are told as much as still works.
                if ended != Ended::Stopped {
                    stop::give_up(&parts).await;
                }
                stop::leave(parts, &ended).await;
                ended
            };
            tokio::select! {
                ended = all => ended,
                () = impatient.cancelled() => Ended::Impatient,
            }
        });
        if let Some(handlers) = handlers {
            handlers.shutdown_timeout(RUNTIME_STOP_WITHIN);
        }
        runtime.shutdown_timeout(RUNTIME_STOP_WITHIN);
        ended
    }
}
