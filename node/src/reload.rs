//! Settings taken over by a node that runs: by SIGHUP, by `meshctl reload`.
//!
//! Belongs here: reading the sources again, what of it takes effect at once, what an operator is told.
//! Stays out: which settings those are (`config::live`), what they mean (`node::doorkeeper`).
//! Owner: one task; others ask it ([`ReloadControl`]) and see what it last found.
//! Invariants: settings with anything wrong in them change nothing, whatever else they hold; of a product
//! that is taken out, clients stay and nobody new comes.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::wire::{CommandFailed, Reloaded};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::reference::Shown;
use crate::config::secrets::{self, DevelopmentKey, Secrets};
use crate::config::{Config, ConfigErrors, Sources, live};

/// Requests that wait while one is carried out; more are refused as overload.
const WAITING_MAX: usize = 16;

/// Why a node without sources of its settings does nothing.
const NO_SOURCES: &str = "this program has made its settings itself: there is nothing to read them from";

/// What is known of a node's settings.
#[derive(Clone, Debug)]
pub struct Known {
    /// Every setting as it is in effect.
    pub shown: Vec<Shown>,
    /// What was wrong when they were read last; empty when they were taken over.
    pub problems: Vec<String>,
}

/// Asks a node to take over its settings. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReloadControl {
    asked: mpsc::Sender<oneshot::Sender<Reloaded>>,
    known: watch::Receiver<Known>,
}

/// The other end of a [`ReloadControl`].
#[derive(Debug)]
pub(crate) struct Asked {
    requests: mpsc::Receiver<oneshot::Sender<Reloaded>>,
    known: watch::Sender<Known>,
}

/// What carries new settings to the parts of the node; an error is why that cannot be.
pub(crate) type Apply = Box<dyn FnMut(&Config, &Secrets) -> Result<(), String> + Send>;

impl ReloadControl {
    /// Of a node that runs with these settings.
    pub(crate) fn new(shown: Vec<Shown>) -> (Self, Asked) {
        let (asked, requests) = mpsc::channel(WAITING_MAX);
        let (known_tx, known) = watch::channel(Known { shown, problems: Vec::new() });
        (Self { asked, known }, Asked { requests, known: known_tx })
    }

    /// Has the settings read and taken over.
    ///
    /// # Errors
    /// [`CommandFailed::Overloaded`] while too many ask for it.
    pub async fn reload(&self) -> Result<Reloaded, CommandFailed> {
        let (tx, rx) = oneshot::channel();
        self.asked.try_send(tx).map_err(|_| CommandFailed::Overloaded)?;
        rx.await.map_err(|_| CommandFailed::Timeout)
    }

    /// What is in effect, and what was wrong at the last try.
    #[must_use]
    pub fn known(&self) -> Known {
        self.known.borrow().clone()
    }
}

/// The settings of one node, and where they come from.
pub(crate) struct Settings {
    pub(crate) config: Config,
    pub(crate) sources: Option<Sources>,
    /// Products that have code of their own: they are there whether the sources name them or not.
    pub(crate) of_code: Vec<String>,
    pub(crate) apply: Apply,
}

impl Settings {
    /// Does what is asked until nobody can ask any more.
    pub(crate) async fn serve(mut self, mut asked: Asked) {
        while let Some(answer) = asked.requests.recv().await {
            // It reads files.
            let reading = tokio::task::spawn_blocking(move || {
                let reloaded = self.reload();
                (self, reloaded)
            });
            let Ok((settings, reloaded)) = reading.await else { return };
            self = settings;
            tell(&reloaded);
            let shown = self.config.shown();
            asked.known.send_replace(Known { shown, problems: reloaded.problems.clone() });
            // Whoever asked may have gone.
            let _ = answer.send(reloaded);
        }
    }

    fn reload(&mut self) -> Reloaded {
        let Some(sources) = &self.sources else { return failed([NO_SOURCES.to_owned()]) };
        let wanted = match Config::load(sources) {
            Ok(wanted) => wanted.with_products(&self.of_code),
            Err(errors) => return failed(lines(&errors)),
        };
        let merged = live::merged(&self.config, &wanted);
        let secrets = match secrets::read(&merged, DevelopmentKey::Leave) {
            Ok(secrets) => secrets,
            Err(errors) => return failed(lines(&ConfigErrors(errors))),
        };
        if let Err(problem) = (self.apply)(&merged, &secrets) {
            return failed([problem]);
        }
        let changed = differing(&self.config, &merged).into_iter().collect();
        let restart = differing(&merged, &wanted).into_iter().collect();
        self.config = merged;
        Reloaded { changed, restart, problems: Vec::new() }
    }
}

fn failed(problems: impl IntoIterator<Item = String>) -> Reloaded {
    Reloaded { problems: problems.into_iter().collect(), ..Reloaded::default() }
}

fn lines(errors: &ConfigErrors) -> Vec<String> {
    errors.to_string().lines().map(str::to_owned).collect()
}

/// Settings whose values differ, by name; a product that only one of them has by its own.
fn differing(one: &Config, other: &Config) -> BTreeSet<String> {
    let values = |config: &Config| {
        config.shown().into_iter().map(|shown| (shown.key, shown.value)).collect::<BTreeMap<_, _>>()
    };
    let has = |config: &Config, key: &str| {
        let name = key.strip_prefix("products.").and_then(|rest| rest.split('.').next());
        name.is_none_or(|name| config.products.0.contains_key(name))
    };
    let (these, those) = (values(one), values(other));
    let keys = these.keys().chain(those.keys()).filter(|key| these.get(*key) != those.get(*key));
    keys.map(|key| match (has(one, key) && has(other, key), key.rsplit_once('.')) {
        (false, Some((product, _))) => product.to_owned(),
        _ => key.clone(),
    })
    .collect()
}

fn tell(reloaded: &Reloaded) {
    let Reloaded { changed, restart, problems } = reloaded;
    match problems.is_empty() {
        true => tracing::info!(?changed, ?restart, "settings taken over"),
        false => tracing::error!(?problems, "settings not taken over: they stay as they were"),
    }
}
