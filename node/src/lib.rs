//! The node: drivers with no opinions around the machines of `mesh-proto`.
//!
//! The binary `meshd` is a thin wrapper around this library, so that a Rust program can embed a node.

pub mod admin;
pub mod admission;
pub mod api;
pub mod app;
pub mod clock;
pub mod config;
pub mod demo;
pub mod drain;
pub mod fd_limit;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod handles;
pub mod identity;
pub mod listener;
pub mod logs;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod proxy;
pub mod reload;
pub mod shard;
pub mod tasks;
pub mod transport;
pub mod web;
