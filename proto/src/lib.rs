//! The state machines of meshd, without IO.
//!
//! Nothing here reads a clock, a random source of the operating system, a socket or a file. Every
//! machine takes what happened and the time it happened (`handle(now, input)`), and is then polled
//! for what to do (`poll() -> Option<Output>`) and when to be woken (`next_deadline()`). `node`
//! drives them with tokio and quinn, `simulations` drives the very same ones on virtual time.
//!
//! Layers, each knowing only those below it:
//!
//! | module | answers |
//! |---|---|
//! | [`shard`] | joins the machines below for one thread |
//! | [`edge`], [`session`], [`room`] | who gets which packet, in which order |
//! | [`binding`] | which upstream a user of a proxied product is at |
//! | [`host`], [`entity`] | who owns and backs up what; when an owner may let an effect out |
//! | [`upstream`] | which server behind a proxied product takes a request |
//! | [`link`] | ordered, lossless envelopes to one incarnation of a peer |
//! | [`membership`], [`view`], [`ring`] | who is there, who owns what |
//! | [`engineio`], [`socketio`], [`plain`], [`wire`] | bytes |
//! | [`id`], [`time`], [`keys`], [`collections`], [`limits`] | words |
//! | [`mutant`] | planted bugs that the simulator must find |
//! | `fuzz` | what must hold for any bytes from outside (feature `fuzz`) |

pub mod binding;
pub mod births;
pub mod collections;
mod edge;
pub mod engineio;
pub mod entity;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod gate;
mod host;
pub mod id;
pub mod json;
pub mod keys;
pub mod limits;
pub mod link;
mod marks;
pub mod membership;
pub mod mutant;
pub mod plain;
pub mod product;
pub mod recovery;
pub mod ring;
mod room;
mod session;
pub mod shard;
mod small;
pub mod socketio;
pub mod time;
pub mod upstream;
pub mod view;
pub mod wire;
