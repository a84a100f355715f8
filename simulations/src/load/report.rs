//! The figures of one run, as a line of a table.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::process::CpuNanos;

/// Longest latency told apart, in microseconds.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// A histogram of microseconds with three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are constant"))
}

/// What one run of rooms has shown.
pub(super) struct Outcome {
    pub(super) name: String,
    /// Of the measured part.
    pub(super) took: Duration,
    pub(super) messages: u64,
    pub(super) deliveries: u64,
    /// `None` without `--pid`.
    pub(super) cpu: Option<CpuNanos>,
    pub(super) by_thread: Vec<(String, CpuNanos)>,
    pub(super) latency: Histogram<u64>,
    /// Of the whole run, warm-up included.
    pub(super) faults: Faults,
}

/// What must be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Publishes answered with an error.
    pub(super) refused: u64,
    /// Publishes never answered.
    pub(super) unanswered: u64,
    /// Deliveries that never came.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) reordered: u64,
    /// Receivers whose order differs from that of the first of their room.
    pub(super) other_orders: u64,
    /// Clients whose connection ended.
    pub(super) closed: u64,
}

impl Outcome {
    /// Prints the table's head.
    pub(super) fn print_head() {
        println!(
            "{:<22} {:>9} {:>11} {:>11} {:>9} {:>9} {:>8} {:>8} {:>8}",
            "", "messages", "deliveries", "deliveries", "CPU us", "CPU us", "p50", "p99", "p99.9"
        );
        println!(
            "{:<22} {:>9} {:>11} {:>11} {:>9} {:>9} {:>8} {:>8} {:>8}",
            "", "/s", "/s", "/CPU-s", "/delivery", "/message", "ms", "ms", "ms"
        );
    }

    /// Prints its line, and what must be zero and is not.
    pub(super) fn print(&self) {
        let seconds = self.took.as_secs_f64();
        let (per_cpu_second, per_delivery, per_message) = match self.cpu {
            Some(CpuNanos(nanos)) if nanos > 0 => (
                format!("{:.0}", float(self.deliveries) * 1e9 / float(nanos)),
                format!("{:.2}", float(nanos) / 1e3 / float(self.deliveries.max(1))),
                format!("{:.1}", float(nanos) / 1e3 / float(self.messages.max(1))),
            ),
            _ => ("-".into(), "-".into(), "-".into()),
        };
        println!(
            "{:<22} {:>9.0} {:>11.0} {:>11} {:>9} {:>9} {:>8} {:>8} {:>8}",
            self.name,
            float(self.messages) / seconds,
            float(self.deliveries) / seconds,
            per_cpu_second,
            per_delivery,
            per_message,
            millis(&self.latency, 0.5),
            millis(&self.latency, 0.99),
            millis(&self.latency, 0.999),
        );
        if !self.by_thread.is_empty() {
            let parts = self.by_thread.iter().map(|(name, cpu)| format!("{name} {:.2}", float(cpu.0) / 1e9));
            println!("{:<22} CPU seconds by thread: {}", "", parts.collect::<Vec<_>>().join(", "));
        }
        if self.faults == Faults::default() {
            println!("{:<22} nothing lost, doubled or reordered; one order", "");
        } else {
            println!("{:<22} FAULTS {:?}", "", self.faults);
        }
    }
}

/// A quantile in milliseconds.
pub(super) fn millis(latency: &Histogram<u64>, quantile: f64) -> String {
    format!("{:.2}", float(latency.value_at_quantile(quantile)) / 1e3)
}

/// For figures that are shown with three digits.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
