//! What the mesh knows of where a user or a session is, as far as this node needs it.
//!
//! Belongs here: asking, remembering for a moment, keeping bindings alive while something is open here.
//! Stays out: what a binding is and who decides (`mesh_proto::binding`).
//! Units: at most [`KNOWN_MAX`] are remembered; what has nothing open is forgotten after [`KNOWN_FOR`].
//! What filling up means: more than that are not remembered: each request of theirs asks.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::binding::{BindingClass, BindingKey};
use mesh_proto::wire::{Answer, Query, Wish};
use tokio::time::{Instant, timeout};

use crate::handles::Shards;
use crate::tasks::Tasks;

/// What was heard of a binding holds so long.
const KNOWN_FOR: Duration = Duration::from_secs(2);

/// Bindings that are remembered.
const KNOWN_MAX: usize = 100_000;

/// A request that is open for so long holds its binding, as a WebSocket does.
const HOLD_AFTER: Duration = Duration::from_secs(1);

/// Bindings that are renewed at once.
const RENEWED_MAX: usize = 256;

/// An owner that does not answer in time is given up; who asks has something better to do.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The mesh has not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoWord;

/// The bindings of one product, as known here.
pub(super) struct Bindings {
    shards: Option<Shards>,
    keep: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    of: HashMap<BindingKey, Place>,
    /// What is open here and is to be renewed, by time.
    due: BTreeSet<(Instant, BindingKey)>,
}

struct Place {
    /// Where it is bound; `None`: it is not.
    upstream: Option<Arc<str>>,
    until: Instant,
    /// Requests and WebSockets that are open here.
    open: u32,
    /// Where the last of them was opened.
    at: Option<Arc<str>>,
    due: Option<Instant>,
}

/// Something is open here of what a binding is of.
pub(super) struct Held {
    bindings: Arc<Bindings>,
    key: BindingKey,
}

impl Bindings {
    /// A binding ends when nobody has used it for `keep`. Without shards nothing is bound.
    pub(super) fn new(shards: Option<Shards>, keep: Duration) -> Arc<Self> {
        Arc::new(Self { shards, keep, known: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks its owner.
    pub(super) async fn ask(
        &self,
        key: &BindingKey,
        wish: Wish,
        keep: Duration,
    ) -> Result<Option<Arc<str>>, NoWord> {
        let Some(shards) = &self.shards else {
            return Ok(match wish {
                Wish::Choose { upstream, .. } => Some(upstream),
                Wish::Find | Wish::Forget { .. } => None,
            });
        };
        let count = u16::try_from(shards.0.len()).unwrap_or(u16::MAX);
        let query = Query::Bind { key: key.clone(), wish, keep };
        let answer = timeout(ANSWER_WITHIN, shards.ask(key.placement().shard(count), query)).await;
        let upstream = match answer {
            Ok(Ok(Answer::Bound(upstream))) => Some(upstream),
            Ok(Ok(Answer::NotBound)) => None,
            _ => return Err(NoWord),
        };
        self.learn(key, upstream.clone());
        Ok(upstream)
    }

    /// Where it is bound, by what is known or by asking. Nothing is kept alive by that.
    pub(super) async fn find(&self, key: &BindingKey) -> Result<Option<Arc<str>>, NoWord> {
        if let Some(place) = self.lock().of.get(key)
            && (place.open > 0 && place.upstream.is_some() || Instant::now() < place.until)
        {
            return Ok(place.upstream.clone());
        }
        self.ask(key, Wish::Find, Duration::ZERO).await
    }

    /// As [`Self::find`], and the binding lives on.
    pub(super) async fn use_bound(&self, key: &BindingKey) -> Result<Option<Arc<str>>, NoWord> {
        self.ask(key, Wish::Find, self.keep).await
    }

    /// Binds it to `upstream`, or says to what it is bound already.
    pub(super) async fn choose(
        &self,
        key: &BindingKey,
        upstream: &Arc<str>,
        instead_of: Option<Arc<str>>,
    ) -> Result<Option<Arc<str>>, NoWord> {
        self.ask(key, Wish::Choose { upstream: upstream.clone(), instead_of }, self.keep).await
    }

    /// It is not there any more. Nobody waits for that.
    pub(super) async fn forget(&self, key: &BindingKey, upstream: &Arc<str>) {
        let _ = self.ask(key, Wish::Forget { upstream: upstream.clone() }, Duration::ZERO).await;
    }

    fn learn(&self, key: &BindingKey, upstream: Option<Arc<str>>) {
        let until = Instant::now() + KNOWN_FOR;
        let mut known = self.lock();
        let has_room = known.of.len() < KNOWN_MAX;
        match known.of.get_mut(key) {
            Some(place) => (place.upstream, place.until) = (upstream, until),
            None if has_room => {
                known.of.insert(key.clone(), Place { upstream, until, open: 0, at: None, due: None });
            }
            None => {}
        }
    }

    /// Something is open here from now on, at `upstream`.
    pub(super) fn hold(self: &Arc<Self>, key: BindingKey, upstream: &Arc<str>) -> Held {
        let now = Instant::now();
        let mut known = self.lock();
        let place = known.of.entry(key.clone());
        let place = place.or_insert(Place { upstream: None, until: now, open: 0, at: None, due: None });
        place.open += 1;
        place.at = Some(upstream.clone());
        if place.due.is_none() {
            let due = now + HOLD_AFTER;
            place.due = Some(due);
            known.due.insert((due, key.clone()));
        }
        drop(known);
        Held { bindings: self.clone(), key }
    }

    /// Renews what has been open for a while. A user that is bound nowhere is bound to where it has something
    /// open; a session that is forgotten stays so.
    pub(super) fn renew(self: &Arc<Self>, tasks: &Tasks) {
        for (key, at) in self.due() {
            let bindings = self.clone();
            tasks.spawn_small("binding", async move {
                // Not heard: the next time comes before the binding ends.
                let _ = match key.class() {
                    BindingClass::Uid => bindings.choose(&key, &at, None).await,
                    BindingClass::Sid | BindingClass::Upstream => bindings.use_bound(&key).await,
                };
            });
        }
    }

    /// What is to be renewed now, and where it has something open.
    fn due(&self) -> Vec<(BindingKey, Arc<str>)> {
        let now = Instant::now();
        let mut known = self.lock();
        let mut keys = Vec::new();
        while keys.len() < RENEWED_MAX
            && known.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, key)) = known.due.pop_first()
        {
            let due = now + self.keep / 3;
            let Some(place) = known.of.get_mut(&key) else { continue };
            place.due = Some(due);
            keys.extend(place.at.clone().map(|at| (key.clone(), at)));
            known.due.insert((due, key));
        }
        keys
    }

    /// Forgets what nobody has asked about.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.lock().of.retain(|_, place| place.open > 0 || place.until > now);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut known = self.bindings.lock();
        let Some(place) = known.of.get_mut(&self.key) else { return };
        place.open -= 1;
        if place.open == 0 {
            // Others may find it elsewhere from now on.
            place.until = place.until.min(Instant::now() + KNOWN_FOR);
            if let Some(due) = place.due.take() {
                known.due.remove(&(due, self.key.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_stays_open_is_renewed_and_again_and_again() {
        let bindings = Bindings::new(None, Duration::from_secs(30));
        let key = |uid| BindingKey::new(&"app".into(), BindingClass::Uid, uid);
        let at: Arc<str> = "a:1".into();
        drop(bindings.hold(key("short"), &at));
        let held = bindings.hold(key("long"), &at);
        let also = bindings.hold(key("long"), &at);
        assert!(bindings.due().is_empty());
        tokio::time::advance(HOLD_AFTER).await;
        assert_eq!(bindings.due(), [(key("long"), at.clone())]);
        assert!(bindings.due().is_empty());
        drop(also);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(bindings.due(), [(key("long"), at.clone())]);
        drop(held);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(bindings.due().is_empty());
        bindings.sweep();
        assert!(bindings.lock().of.is_empty() && bindings.lock().due.is_empty());
    }
}
