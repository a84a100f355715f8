//! Handlers in Rust: what a program does with its clients' events when it embeds a node.
//!
//! A session's handlers run at the node that owns the session, off the shards' threads, one event of a
//! session after the other. What they do to rooms and to their own socket is collected and takes effect
//! when they return, or when they wait for a client's answer: in order, and once, also when the owner dies
//! in between and another node runs the handler again. The answer to the event follows when all of that
//! is safe.
//!
//! ```no_run
//! use meshd::app::{App, Namespace, Refused};
//! use meshd::config::Config;
//! use meshd::node::{Node, Options};
//!
//! let chat = Namespace::new("/")
//!     .authorize(|asked| async move {
//!         match asked.auth::<serde_json::Value>() {
//!             Ok(auth) if auth["banned"] == true => Err(Refused::new("you are banned")),
//!             _ => Ok(()),
//!         }
//!     })
//!     .on_connect(|socket| async move {
//!         socket.join("lobby");
//!         socket.to("lobby").emit("joined", (socket.uid(),))?;
//!         Ok(())
//!     })
//!     .on("say", |socket, event| async move {
//!         let (text,) = event.args::<(String,)>()?;
//!         socket.to("lobby").emit("said", (socket.uid(), text))?;
//!         event.reply(("delivered",))
//!     });
//! let options = Options::default().with_app("chat", App::new().namespace(chat));
//! let node = Node::start(Config::default(), options).expect("it starts");
//! node.stop_on_signals().expect("signals");
//! let _ = node.wait();
//! ```
//!
//! Belongs here: the names of namespaces and events, who handles them. Stays out: threads (`runtime`), what
//! commands do (`mesh_proto::session`).
//!
//! | module | holds |
//! |---|---|
//! | `socket` | one client, as a handler sees it |
//! | `event` | what a client sent, what a client is sent |
//! | `io` | the same from outside handlers |
//! | `audience` | members of rooms, from outside handlers |
//! | `runtime` | questions of shards, run as tasks |

mod audience;
mod event;
mod io;
pub(crate) mod runtime;
mod socket;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mesh_proto::engineio::BARE_NAMESPACE;
use mesh_proto::wire::DetachReason;

pub use audience::Audience;
pub use event::{Acted, Answer, Answers, Args, Arguments, Event, Incomplete};
pub use io::{Io, Members};
pub use socket::{Asked, Socket, Target};

/// What a handler may fail with. A client that waits for the answer is told `internal`, or what an
/// [`EventRefused`] says; the node logs it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

type Done = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;
type Handler = Arc<dyn Fn(Socket, Event) -> Done + Send + Sync>;
type Authorizer =
    Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Result<(), Refused>> + Send>> + Send + Sync>;
type Hook = Arc<dyn Fn(Socket) -> Done + Send + Sync>;
type EndHook = Arc<dyn Fn(Socket, DetachReason) -> Done + Send + Sync>;
type Filter = Arc<dyn Fn(&Socket, &Event) -> Result<(), EventRefused> + Send + Sync>;

/// A client that may not connect: told as Socket.IO's connect error, after which it does not try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub(crate) message: String,
    pub(crate) data: Option<Vec<u8>>,
}

impl Refused {
    /// With a sentence for people.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), data: None }
    }

    /// With `data` for programs.
    ///
    /// # Panics
    /// When `data` does not serialise as JSON.
    #[must_use]
    pub fn with_data(self, data: &impl serde::Serialize) -> Self {
        Self { data: Some(serde_json::to_vec(data).expect("data of a refusal is JSON")), ..self }
    }
}

/// An event that is not handled; whoever waits for its answer is told why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EventRefused(pub String);

/// The code of one product: its namespaces.
#[derive(Clone, Debug, Default)]
pub struct App {
    namespaces: Vec<Arc<Namespace>>,
    engine_io: bool,
}

impl App {
    /// One without namespaces: nobody gets in.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more namespace. Of several that fit a name the first one has it.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespaces.push(Arc::new(namespace));
        self
    }

    /// Also takes clients of Engine.IO alone, at `/engine.io/`. Each is connected at once; what it sends is
    /// an event `message` with the text as its argument, or the bytes as placeholder 0, and what it is
    /// sent is its first argument, whatever the event's name.
    #[must_use]
    pub fn engine_io(mut self, namespace: Namespace) -> Self {
        self.namespaces.push(Arc::new(Namespace { name: BARE_NAMESPACE.into(), ..namespace }));
        self.engine_io = true;
        self
    }

    pub(crate) fn is_engine_io(&self) -> bool {
        self.engine_io
    }

    /// Their names and patterns.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|namespace| &*namespace.name)
    }

    fn find(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.iter().find(|namespace| match namespace.name.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => namespace.name == name,
        })
    }
}

/// The handlers of one namespace, or of all whose names begin alike.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    authorizers: Vec<Authorizer>,
    connect: Option<Hook>,
    attach: Option<Hook>,
    detach: Option<EndHook>,
    disconnect: Option<EndHook>,
    filters: Vec<Filter>,
    handlers: HashMap<String, Handler>,
    any: Option<Handler>,
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Namespace {
    /// `name` as `/chat`; `/team-*` stands for all names that begin so.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            authorizers: Vec::new(),
            connect: None,
            attach: None,
            detach: None,
            disconnect: None,
            filters: Vec::new(),
            handlers: HashMap::new(),
            any: None,
        }
    }

    /// Decides whether a client may connect, before anything of it is told to anybody. Several are asked
    /// in turn.
    #[must_use]
    pub fn authorize<F>(mut self, authorizer: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Refused>> + Send + 'static,
    {
        self.authorizers.push(Arc::new(move |asked| Box::pin(authorizer(asked))));
        self
    }

    /// Runs when a client has been let in. Its events wait until it returns.
    #[must_use]
    pub fn on_connect<F>(mut self, hook: impl Fn(Socket) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.connect = Some(Arc::new(move |socket| Box::pin(hook(socket))));
        self
    }

    /// Runs when a client is back that had lost its transport, and goes on where it was.
    #[must_use]
    pub fn on_attach<F>(mut self, hook: impl Fn(Socket) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.attach = Some(Arc::new(move |socket| Box::pin(hook(socket))));
        self
    }

    /// Runs when a client has lost its transport and may come back.
    #[must_use]
    pub fn on_detach<F>(mut self, hook: impl Fn(Socket, DetachReason) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.detach = Some(Arc::new(move |socket, reason| Box::pin(hook(socket, reason))));
        self
    }

    /// Runs when a session is over; the reason in Socket.IO's words is [`DetachReason::as_str`].
    #[must_use]
    pub fn on_disconnect<F>(
        mut self,
        hook: impl Fn(Socket, DetachReason) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.disconnect = Some(Arc::new(move |socket, reason| Box::pin(hook(socket, reason))));
        self
    }

    /// Looks at each event before its handler. Several are asked in turn; the first refusal ends it.
    #[must_use]
    pub fn filter(
        mut self,
        filter: impl Fn(&Socket, &Event) -> Result<(), EventRefused> + Send + Sync + 'static,
    ) -> Self {
        self.filters.push(Arc::new(filter));
        self
    }

    /// Handles events called `name`. The last one given counts.
    #[must_use]
    pub fn on<F>(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(Socket, Event) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.handlers.insert(name.into(), Arc::new(move |socket, event| Box::pin(handler(socket, event))));
        self
    }

    /// Handles events that nobody else does.
    #[must_use]
    pub fn on_any<F>(mut self, handler: impl Fn(Socket, Event) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.any = Some(Arc::new(move |socket, event| Box::pin(handler(socket, event))));
        self
    }

    fn handler(&self, event: &str) -> Option<&Handler> {
        self.handlers.get(event).or(self.any.as_ref())
    }
}

/// The examples of the handbook compile.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/handlers.md")]
struct Handbook;
