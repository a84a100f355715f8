//! Whole clusters in one thread on virtual time, and the load generator.
//!
//! | module | answers |
//! |---|---|
//! | [`load`] | what running nodes cost per delivery, message, connection; what they lose |

pub mod load;
