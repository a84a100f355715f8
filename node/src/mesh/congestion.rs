//! Congestion control of links: Cubic, but never below a floor.
//!
//! Belongs here: the floor. Stays out: Cubic itself (quinn).
//! Why: between the hosts of one site, loss is rarely congestion. Cubic answers 1 % random loss by
//! shrinking its window until the tail of latency is waiting for the window (p99.9 25 ms against
//! 4 ms with a floor of 64 KiB, RUST-STACK §C).
//! Cost: as many floors in flight as there are peers, whatever the path says; so the floor is config.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Builds a floored Cubic for each path.
#[derive(Debug)]
pub(crate) struct FloorConfig {
    cubic: Arc<CubicConfig>,
    floor_bytes: u64,
}

impl FloorConfig {
    /// Cubic with quinn's defaults and this floor.
    pub(crate) fn new(floor_bytes: u64) -> Self {
        Self { cubic: Arc::new(CubicConfig::default()), floor_bytes }
    }
}

impl ControllerFactory for FloorConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.cubic.clone().build(now, current_mtu);
        Box::new(Floor { inner, floor_bytes: self.floor_bytes })
    }
}

/// Forwards everything, and answers for the window with at least the floor.
struct Floor {
    inner: Box<dyn Controller>,
    floor_bytes: u64,
}

impl Controller for Floor {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(self.floor_bytes)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), floor_bytes: self.floor_bytes })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().max(self.floor_bytes)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_does_not_push_the_window_below_the_floor() {
        let now = Instant::now();
        let mut controller = Arc::new(FloorConfig::new(64 << 10)).build(now, 1_200);
        for _ in 0..20 {
            controller.on_congestion_event(now, now, true, 10_000);
        }
        assert_eq!(controller.window(), 64 << 10);
        assert_eq!(controller.clone_box().window(), 64 << 10);
    }
}
