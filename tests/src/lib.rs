//! The harness of the black-box tests: real `meshd` processes, real sockets, stock clients.
//!
//! Nothing here sees a private item of the other crates: a test knows what an operator, a backend or
//! a browser knows. Ports are 0 and learnt from what a node reports; nothing sleeps, everything waits
//! on a state ([`wait`]); each test ends the processes it started and shows their logs if it fails.
//!
//! | module | holds |
//! |---|---|
//! | [`balancer`] | connections to nodes by turns |
//! | [`cluster`] | nodes of one cluster: start, kill, restart, what they say of themselves |
//! | [`process`] | one child process with its output |
//! | [`engine`] | Engine.IO by hand: polling requests and upgrades |
//! | [`http`] | requests to the HTTP API, the admin listener, the client port |
//! | [`plain`] | a client of the plain WebSocket protocol |
//! | [`js`] | JavaScript clients: the stock Socket.IO client, a browser |
//! | [`python`] | the stock Socket.IO client for Python |
//! | [`proxy`] | haproxy and nginx as the documentation has them |
//! | [`wait`] | waiting on states |

pub mod balancer;
pub mod cluster;
pub mod engine;
pub mod http;
pub mod js;
pub mod plain;
pub mod process;
pub mod proxy;
pub mod python;
pub mod wait;

pub use cluster::Cluster;
pub use wait::until;
