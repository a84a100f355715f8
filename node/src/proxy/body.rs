//! A request's body on its way from the client's connection to hyper's.
//!
//! Belongs here: the place for one frame between them.
//! Stays out: reading it (`transport::body`, `client`), sending it (hyper).
//! What filling up means: one frame waits at most; whoever reads the client's connection stops then, and so,
//! through TCP, does the client.
//! Invariants: a body that was not given to its end fails: hyper closes the connection instead of making up an
//! end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};

use crate::transport::body::BodyLength;

/// The client did not send all of its body.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client's body ended early")]
pub(super) struct Cut;

#[derive(Debug, Default)]
struct Slot {
    frame: Option<Frame<Bytes>>,
    /// Nothing more is given; `true` when that is the body's end.
    given: Option<bool>,
    /// Nobody takes any more.
    closed: bool,
    taker: Option<Waker>,
    giver: Option<Waker>,
}

impl Slot {
    fn wake_taker(&mut self) {
        if let Some(taker) = self.taker.take() {
            taker.wake();
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What hyper takes frames from.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` where there is no body.
    slot: Option<Arc<Mutex<Slot>>>,
    length: Option<u64>,
}

/// Where frames are put.
#[derive(Debug)]
pub(super) struct BodyGiver(Arc<Mutex<Slot>>);

impl RequestBody {
    /// None.
    pub(super) fn none() -> Self {
        Self { slot: None, length: Some(0) }
    }

    /// One that ends as `length` says, and where to put it.
    pub(super) fn streamed(length: BodyLength) -> (Self, Option<BodyGiver>) {
        let length = match length {
            BodyLength::None => return (Self::none(), None),
            BodyLength::Exact(length) => Some(length),
            BodyLength::Chunked => None,
        };
        let slot = Arc::<Mutex<Slot>>::default();
        (Self { slot: Some(slot.clone()), length }, Some(BodyGiver(slot)))
    }
}

impl BodyGiver {
    /// Ready when there is room: `true`, or `false` when nobody takes any more.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut slot = lock(&self.0);
        if slot.closed {
            return Poll::Ready(false);
        }
        if slot.frame.is_some() {
            slot.giver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(true)
    }

    /// Puts some bytes where [`Self::poll_room`] found room.
    pub(super) fn give(&self, data: Bytes) {
        let mut slot = lock(&self.0);
        slot.frame = Some(Frame::data(data));
        slot.wake_taker();
    }

    /// The body is whole.
    pub(super) fn end(self, trailers: HeaderMap) {
        let mut slot = lock(&self.0);
        if !trailers.is_empty() {
            slot.frame = Some(Frame::trailers(trailers));
        }
        slot.given = Some(true);
        slot.wake_taker();
    }
}

impl Drop for BodyGiver {
    fn drop(&mut self) {
        let mut slot = lock(&self.0);
        if slot.given.is_none() {
            slot.given = Some(false);
            slot.wake_taker();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(slot) = &self.slot else { return Poll::Ready(None) };
        let mut slot = lock(slot);
        if let Some(frame) = slot.frame.take() {
            if let Some(giver) = slot.giver.take() {
                giver.wake();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        match slot.given {
            Some(true) => Poll::Ready(None),
            Some(false) => Poll::Ready(Some(Err(Cut))),
            None => {
                slot.taker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| {
            let slot = lock(slot);
            slot.frame.is_none() && slot.given == Some(true)
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(slot) = &self.slot else { return };
        let mut slot = lock(slot);
        slot.closed = true;
        slot.frame = None;
        if let Some(giver) = slot.giver.take() {
            giver.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_body_that_is_not_given_to_its_end_fails() {
        let mut cx = Context::from_waker(Waker::noop());
        let (body, giver) = RequestBody::streamed(BodyLength::Chunked);
        let (mut body, giver) = (Box::pin(body), giver.unwrap());
        assert!(body.as_mut().poll_frame(&mut cx).is_pending());
        assert_eq!(giver.poll_room(&cx), Poll::Ready(true));
        giver.give("abc".into());
        assert!(giver.poll_room(&cx).is_pending(), "one frame waits at most");
        assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
        drop(giver);
        assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Err(Cut)))));
        assert!(!body.is_end_stream());
    }

    #[test]
    fn a_whole_body_ends_and_one_nobody_takes_is_known() {
        let mut cx = Context::from_waker(Waker::noop());
        let (body, giver) = RequestBody::streamed(BodyLength::Exact(3));
        let mut body = Box::pin(body);
        giver.unwrap().end(HeaderMap::new());
        assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(None)));
        let (body, giver) = RequestBody::streamed(BodyLength::Exact(3));
        drop(body);
        assert_eq!(giver.unwrap().poll_room(&cx), Poll::Ready(false));
        assert!(RequestBody::none().is_end_stream());
    }
}
