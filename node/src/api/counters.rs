//! How many requests were answered, and how.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

use crate::metrics::{Exposition, Kind, Source};

/// What was asked, for a label.
#[derive(Clone, Copy, Debug)]
pub(super) enum Endpoint {
    Publish,
    Batch,
    Join,
    Leave,
    Disconnect,
    Room,
    User,
    /// Refused before the path was known.
    Other,
}

const ENDPOINTS: [&str; 8] = ["publish", "batch", "join", "leave", "disconnect", "room", "user", "other"];
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

/// Requests answered since the start.
#[derive(Debug, Default)]
pub struct Counters([[AtomicU64; CLASSES.len()]; ENDPOINTS.len()]);

impl Counters {
    pub(super) fn count(&self, endpoint: Endpoint, status: StatusCode) {
        let class = match status.as_u16() {
            0..=399 => 0,
            400..=499 => 1,
            _ => 2,
        };
        self.0[endpoint as usize][class].fetch_add(1, Ordering::Relaxed);
    }
}

impl Source for Counters {
    fn write(&self, out: &mut Exposition) {
        out.family(
            "meshd_api_requests_total",
            Kind::Counter,
            "Requests to the HTTP API answered, by endpoint and status. Not counted: items of a batch, \
             connections without a request, malformed HTTP.",
        );
        for (endpoint, classes) in ENDPOINTS.iter().zip(&self.0) {
            for (class, count) in CLASSES.iter().zip(classes) {
                let labels = [("endpoint", *endpoint), ("status", *class)];
                out.sample(&labels, count.load(Ordering::Relaxed));
            }
        }
    }
}
