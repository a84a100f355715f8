//! The one clock of a node, in the time type of the machines.
//!
//! Belongs here: reading tokio's clock (paused in tests) and turning deadlines into its instants.
//! Stays out: timers. Wall-clock time plays no part in the mesh.

use std::time::Duration;

use mesh_proto::time::Instant;

/// What counts as a long time.
const FAR: Duration = Duration::from_secs(3_600);

/// Microseconds since the node started. Copied to whoever drives a machine, so that all threads of
/// a node count from the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: tokio::time::Instant,
}

impl Clock {
    /// A clock that shows zero now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: tokio::time::Instant::now() }
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.started.elapsed()
    }

    /// The moment of tokio's clock at which this one shows `at`.
    #[must_use]
    pub fn at(&self, at: Instant) -> tokio::time::Instant {
        self.started + Duration::from_micros(at.as_micros())
    }

    /// Where a timer is set while no deadline is known; a turn for nothing so seldom costs nothing.
    #[must_use]
    pub fn far(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + FAR
    }
}
