//! Which lanes of a connection may have something to read.
//!
//! Belongs here: a waker for each lane that marks it and then wakes the link task.
//! Stays out: reading (`link`).
//! Why: a task has one waker, so it would have to ask all its lanes whenever anything happens, and
//! each question locks the connection. That was seen to be 15 questions a datagram where 2 are enough.
//! Invariants: a lane is marked before its task is woken; whoever unmarks it reads it afterwards, with
//! its own waker, so no wake-up is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;
use mesh_proto::wire::Lane;

const _: () = assert!(Lane::COUNT <= 8, "one bit per lane");

/// The marks of all lanes.
#[derive(Debug)]
pub(crate) struct Readable {
    marks: Arc<Marks>,
    wakers: [Waker; Lane::COUNT],
}

#[derive(Debug, Default)]
struct Marks {
    lanes: AtomicU8,
    task: AtomicWaker,
}

struct LaneWaker {
    lane: usize,
    marks: Arc<Marks>,
}

impl Default for Readable {
    fn default() -> Self {
        let marks = Arc::<Marks>::default();
        let wakers = std::array::from_fn(|lane| Arc::new(LaneWaker { lane, marks: marks.clone() }).into());
        Self { marks, wakers }
    }
}

impl Readable {
    /// The task to wake; to be called in each of its polls before it looks at the marks.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.marks.task.register(cx.waker());
    }

    /// Whether a lane is marked.
    pub(crate) fn has(&self, lane: usize) -> bool {
        self.marks.lanes.load(Ordering::Acquire) & 1 << lane != 0
    }

    /// Marks a lane that has not been read dry.
    pub(crate) fn mark(&self, lane: usize) {
        self.marks.mark(lane);
    }

    /// Marks all: the connection is new.
    pub(crate) fn mark_all(&self) {
        self.marks.lanes.store(u8::MAX, Ordering::Release);
    }

    /// Takes the mark off a lane that is about to be read.
    pub(crate) fn unmark(&self, lane: usize) {
        self.marks.lanes.fetch_and(!(1 << lane), Ordering::AcqRel);
    }

    /// What to read a lane with.
    pub(crate) fn waker(&self, lane: usize) -> &Waker {
        &self.wakers[lane]
    }
}

impl Marks {
    fn mark(&self, lane: usize) {
        self.lanes.fetch_or(1 << lane, Ordering::AcqRel);
    }
}

impl Wake for LaneWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.marks.mark(self.lane);
        self.marks.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_lane_that_wakes_is_marked_and_its_task_woken() {
        let woken = Arc::<Woken>::default();
        let task = Waker::from(woken.clone());
        let readable = Readable::default();
        readable.register(&Context::from_waker(&task));
        readable.waker(3).wake_by_ref();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!((0..Lane::COUNT).filter(|&lane| readable.has(lane)).collect::<Vec<_>>(), [3]);
        readable.unmark(3);
        assert!(!readable.has(3));
        readable.mark_all();
        assert!((0..Lane::COUNT).all(|lane| readable.has(lane)));
    }
}
