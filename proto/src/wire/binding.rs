//! Bindings on the wire: what is wanted of one, and how its holders keep it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{OwnershipFacts, Replication};
use crate::binding::BindingKey;
use crate::id::Cursor;

/// What is wanted of a binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Where it is bound to, if it is.
    Find,
    /// Bind it to this upstream, unless it is bound already: who comes first decides. The answer says to
    /// what it is bound then.
    Choose {
        /// To which.
        upstream: Arc<str>,
        /// The binding found unfit: if it is bound to that one, it is bound anew.
        instead_of: Option<Arc<str>>,
    },
    /// It is not to be bound to this upstream any more.
    Forget {
        /// From which.
        upstream: Arc<str>,
    },
}

/// A change of a binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindingOp {
    /// It is decided.
    Decide(Decision),
    /// It is in use: it ends so long after this.
    Touch(Duration),
}

/// What it is bound to. Of two the one with the higher place stands, wherever they meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The term it was decided under, and its number among the decisions about this binding.
    pub at: Cursor,
    /// To what; `None`: it is bound no more.
    pub upstream: Option<Arc<str>>,
    /// It ends when it has not been used for so long.
    pub keep: Duration,
}

/// Replication of bindings. A copy of one is what was decided last.
pub type BindingReplication = Replication<BindingKey, BindingOp, Decision>;

/// What an owner knows of a binding, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BindingFacts {
    /// To what it is bound.
    pub upstream: Arc<str>,
    /// The place of the decision.
    pub at: Cursor,
    /// Seconds until it ends, unless it is used; `None`: it stays until it is lifted.
    pub ends_in_secs: Option<u64>,
    /// Who owns and backs it up, how and since when.
    pub ownership: OwnershipFacts,
}
