//! Questions of shards about who their clients are.
//!
//! Belongs here: taking a question away from a shard's thread, bringing back the answer.
//! Stays out: the answer (`Identity::of_auth`), what waits for it (`mesh_proto::edge`).
//! Owner: each question is a task of its own on the serving runtime. There are at most as many as clients
//! connect to namespaces at once, which their limits bound.

use std::sync::Arc;

use mesh_proto::id::ShardIx;
use mesh_proto::shard::AuthQuestion;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Identity;
use crate::handles::{Shards, ToShard};
use crate::metrics::{Exposition, Source};
use crate::tasks::{OnPanic, Tasks};

/// Answers shards.
#[derive(Debug)]
pub(crate) struct Identities {
    identity: watch::Receiver<Arc<Identity>>,
    shards: Shards,
    tasks: Tasks,
    runtime: Handle,
}

impl Identities {
    pub(crate) fn new(
        identity: watch::Receiver<Arc<Identity>>,
        shards: Shards,
        tasks: Tasks,
        runtime: Handle,
    ) -> Self {
        Self { identity, shards, tasks, runtime }
    }

    /// A question of a shard, answered by [`ToShard::Identified`].
    pub(crate) fn ask(&self, shard: ShardIx, question: AuthQuestion) {
        let Some(shard) = self.shards.0.get(usize::from(shard.0)) else { return };
        let (tx, identity) = (shard.tx.clone(), self.identity.borrow().clone());
        self.tasks.spawn_on(&self.runtime, "identity", OnPanic::EndTask, async move {
            let AuthQuestion { client, number, product, auth } = question;
            let said = identity.of_auth(&product, &auth);
            // A full queue is waited for; a shard that is gone takes the node with it.
            let _ = tx.send(ToShard::Identified(client, number, said)).await;
        });
    }
}

impl Source for Identities {
    fn write(&self, out: &mut Exposition) {
        self.identity.borrow().write_numbers(out);
    }
}
