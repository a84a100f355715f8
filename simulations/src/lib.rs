//! Whole clusters in one thread on virtual time, and the load generator.
//!
//! | module | answers |
//! |---|---|
//! | [`scenarios`] | does a cluster keep its promises through the faults of a seed |
//! | [`cluster`] | what can happen: nodes, network, clients in one loop |
//! | [`node`], [`network`], [`client`], [`speech`] | the parts of a cluster |
//! | [`faults`] | what goes wrong, and when |
//! | [`checks`] | what may not happen |
//! | [`clock`], [`random`], [`trace`], [`plot`] | time, chance, the record of both, and a picture of it |
//! | [`churn`] | how fast a cluster notices, agrees and settles; how keys move |
//! | [`drill`] | how fast real processes notice that one of them was killed, and agree |
//! | [`kill9`] | what clients of real processes see when nodes are killed, stopped, restarted |
//! | [`load`] | what running nodes cost per delivery, message, connection; what they lose |

pub mod checks;
pub mod churn;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod drill;
pub mod faults;
pub mod kill9;
pub mod load;
pub mod network;
pub mod node;
pub mod plot;
mod processes;
pub mod random;
mod relay;
pub mod scenarios;
pub mod speech;
mod times;
pub mod trace;
