//! Threads that keep every core busy.
//!
//! Invariants: they end with their [`Burn`]; ordinary priority, like any busy program beside a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// One busy thread per core, until dropped.
pub(super) struct Burn {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burn {
    pub(super) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores).map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut work = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100_000 {
                        work = std::hint::black_box(work.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
                    }
                }
            })
        });
        Self { stop: stop.clone(), threads: threads.collect() }
    }
}

impl Drop for Burn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
