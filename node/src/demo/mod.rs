//! `meshd demo`: three nodes on this machine and a page to play with them.
//!
//! Belongs here: what only the demo has. Nothing of it runs in a node started any other way.
//! Stays out: the node itself; the demo's nodes are ordinary ones.
//!
//! | module | answers |
//! |---|---|
//! | [`supervisor`] | starting the nodes, and ending them together |
//! | `control` | killing and starting one at the page's request |
//! | [`site`] | the page, and the state of the cluster it draws |

mod control;
pub mod site;
pub mod supervisor;
