//! What operators have said of upstreams, to all nodes: that nothing new is to go there.
//!
//! Belongs here: the words, and following them. Stays out: where they are kept (`mesh_proto::binding`, by the
//! upstream's name, without an end), what they do (`mesh_proto::upstream`).
//! Units: every node looks each [`LOOK_EVERY`]. A deadline runs at each node from the moment it has heard of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::binding::{BindingClass, BindingKey};
use mesh_proto::wire::Wish;
use tokio::time::sleep;

use super::Proxy;
use super::bindings::NoWord;

/// How soon every node has heard.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The word for a drain; the seconds of its deadline may follow.
const DRAIN: &str = "drain";

fn word(within: Option<Duration>) -> Arc<str> {
    within.map_or_else(|| DRAIN.into(), |within| format!("{DRAIN} {}", within.as_secs()).into())
}

fn within(word: &str) -> Option<Duration> {
    word.strip_prefix(DRAIN)?.trim().parse().ok().map(Duration::from_secs)
}

/// An operator's word did not arrive, or there is no such upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSaid {
    /// The list of upstreams has no such name.
    #[error("there is no such upstream")]
    Unknown,
    /// The cluster did not answer in time.
    #[error("the cluster did not answer in time")]
    NoWord,
}

impl Proxy {
    fn mark(&self, upstream: &str) -> BindingKey {
        BindingKey::new(&self.name, BindingClass::Upstream, upstream)
    }

    /// Tells every node to send nothing new to an upstream, and to close what is open there after `within`;
    /// without `drain`, to use it again.
    ///
    /// # Errors
    /// [`NotSaid`].
    pub async fn say(&self, upstream: &str, drain: Option<Option<Duration>>) -> Result<(), NotSaid> {
        if !self.facts().iter().any(|facts| *facts.name == *upstream) {
            return Err(NotSaid::Unknown);
        }
        let key = self.mark(upstream);
        let ask = |wish, keep| self.bindings.ask(&key, wish, keep);
        let said = async {
            let before = ask(Wish::Find, Duration::ZERO).await?;
            match (drain, before) {
                (Some(within), before) => {
                    let wish = Wish::Choose { upstream: word(within), instead_of: before };
                    ask(wish, Duration::MAX).await?;
                }
                (None, Some(before)) => {
                    ask(Wish::Forget { upstream: before }, Duration::ZERO).await?;
                }
                (None, None) => {}
            }
            Ok::<(), NoWord>(())
        };
        said.await.map_err(|_| NotSaid::NoWord)?;
        // Here at once; elsewhere when they look.
        match drain {
            Some(within) => self.drain(upstream, within),
            None => self.resume(upstream),
        };
        Ok(())
    }
}

/// Does what operators have said, for ever.
pub(super) async fn follow(proxy: Arc<Proxy>) {
    let mut heard: HashMap<Arc<str>, Option<Arc<str>>> = HashMap::new();
    loop {
        sleep(LOOK_EVERY).await;
        let names: Vec<Arc<str>> = proxy.facts().into_iter().map(|facts| facts.name).collect();
        heard.retain(|name, _| names.contains(name));
        for name in names {
            let Ok(word) = proxy.bindings.ask(&proxy.mark(&name), Wish::Find, Duration::ZERO).await else {
                continue;
            };
            let before = heard.insert(name.clone(), word.clone()).flatten();
            if before == word {
                continue;
            }
            match &word {
                Some(word) => proxy.drain(&name, within(word)),
                None => proxy.resume(&name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_survives_its_word() {
        for time in [None, Some(Duration::from_secs(60))] {
            assert_eq!(within(&word(time)), time);
        }
    }
}
