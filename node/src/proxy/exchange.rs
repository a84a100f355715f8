//! One request and its answer on one link.
//!
//! Belongs here: everything between a request's head and the last byte of its answer, and its ends.
//! Stays out: which upstream, another attempt (`forward`); what fields mean (`head`).
//! Invariants: it ends: with an answer, with the client's end, or when the side that is waited for has done
//! nothing for its time. An answer that broke off is never given an end.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::RequestBody;
use super::client::{Client, ClientEnd};
use super::head::{self, Framing};
use super::link::Link;

/// An answer that the client does not take for so long is for nobody (docs/decisions/009).
const CLIENT_STALL: Duration = Duration::from_secs(45);

/// Bytes of interim answers that wait for the client; more are left out.
const INTERIM_BYTES_MAX: usize = 8 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The client's side has ended.
    Client(ClientEnd),
    /// The link ended before an answer, perhaps without having taken the request.
    Closed {
        /// Whether the upstream cannot have seen any of it.
        unsent: bool,
    },
    /// What came is no answer.
    Malformed,
    /// Nothing came in time.
    TimedOut,
}

/// Why an answer broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client's side has ended.
    Client(ClientEnd),
    /// The client did not take it.
    ClientStalled,
    /// The upstream ended it early.
    Upstream,
    /// Nothing more came in time.
    UpstreamStalled,
}

/// Interim answers on their way from hyper to the client.
#[derive(Debug, Default)]
struct Interim {
    bytes: Vec<u8>,
    wants_body: bool,
}

fn watched(request: &mut Request<RequestBody>) -> Arc<Mutex<Interim>> {
    let interim = Arc::<Mutex<Interim>>::default();
    let told = interim.clone();
    hyper::ext::on_informational(request, move |answer| {
        let mut interim = told.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        interim.wants_body |= answer.status() == StatusCode::CONTINUE;
        let bytes = head::interim(answer.status(), answer.headers());
        if interim.bytes.len() + bytes.len() <= INTERIM_BYTES_MAX {
            interim.bytes.extend_from_slice(&bytes);
        }
    });
    interim
}

/// Sends a request and waits for the head of its answer, while the body goes up. With `interim`, interim
/// answers are passed on; `patience` is how long the upstream may neither answer nor take anything.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<'_, S>,
    link: &mut Link,
    mut request: Request<RequestBody>,
    interim: bool,
    patience: Duration,
) -> Result<Response<Incoming>, NoAnswer> {
    let interim = interim.then(|| watched(&mut request));
    let mut answer = pin!(link.send(request));
    let mut deadline = pin!(sleep_until(Instant::now() + patience));
    poll_fn(|cx| {
        loop {
            link.poll(cx);
            if let Some(interim) = &interim {
                pass_on(client, interim);
            }
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(|error| {
                    let (unsent, error) = (error.message().is_some(), error.error());
                    if error.is_parse() { NoAnswer::Malformed } else { NoAnswer::Closed { unsent } }
                }));
            }
            let upload = client.poll_upload(cx);
            while !client.is_flushed() {
                match client.poll_write(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(NoAnswer::Client(end))),
                    Poll::Pending => break,
                }
            }
            match upload {
                Poll::Ready(Ok(_)) => deadline.as_mut().reset(Instant::now() + patience),
                Poll::Ready(Err(end)) => return Poll::Ready(Err(NoAnswer::Client(end))),
                Poll::Pending => break,
            }
        }
        deadline.as_mut().poll(cx).map(|()| Err(NoAnswer::TimedOut))
    })
    .await
}

fn pass_on<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<'_, S>, interim: &Mutex<Interim>) {
    let mut interim = interim.lock().unwrap_or_else(PoisonError::into_inner);
    client.push(std::mem::take(&mut interim.bytes));
    if interim.wants_body {
        client.wanted();
    }
}

/// The answer's body on its way to the client.
struct Download {
    body: Option<Incoming>,
    framing: Framing,
    /// Bytes that the length promises and that have not come.
    missing: u64,
}

impl Download {
    /// Fetches one frame; ready when something was queued for the client or the body is over.
    fn poll_frame<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client<'_, S>,
    ) -> Poll<Result<(), Broken>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(())) };
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken::Upstream)),
            Poll::Ready(None) => None,
            Poll::Ready(Some(Ok(frame))) => Some(frame),
        };
        match frame.map(hyper::body::Frame::into_data) {
            Some(Ok(data)) => {
                self.push(client, data);
                if self.missing == 0 && matches!(self.framing, Framing::Exact(_)) {
                    self.body = None;
                }
            }
            Some(Err(frame)) => self.end(client, frame.trailers_ref()),
            None => self.end(client, None),
        }
        Poll::Ready(Ok(()))
    }

    fn push<S: AsyncRead + AsyncWrite + Unpin>(&mut self, client: &mut Client<'_, S>, data: Bytes) {
        if data.is_empty() {
            return;
        }
        match self.framing {
            Framing::None => {}
            Framing::Exact(_) => {
                self.missing = self.missing.saturating_sub(data.len() as u64);
                client.push(data);
            }
            Framing::Close => client.push(data),
            Framing::Chunked => {
                client.push(format!("{:x}\r\n", data.len()).into_bytes());
                client.push(data);
                client.push(Bytes::from_static(b"\r\n"));
            }
        }
    }

    fn end<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut Client<'_, S>,
        trailers: Option<&http::HeaderMap>,
    ) {
        if self.framing == Framing::Chunked {
            let mut end = b"0\r\n".to_vec();
            if let Some(trailers) = trailers {
                head::push_trailers(&mut end, trailers);
            }
            end.extend_from_slice(b"\r\n");
            client.push(end);
        }
        self.body = None;
    }
}

/// The beginning of an answer's body.
pub(super) struct Beginning {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// What follows; `None` where nothing does.
    pub(super) body: Option<Incoming>,
}

/// Reads an answer's body before the client is given any of it, up to its end or until it is over `bytes_max`.
pub(super) async fn beginning<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<'_, S>,
    link: &mut Link,
    body: Incoming,
    bytes_max: usize,
    patience: Duration,
) -> Result<Beginning, Broken> {
    let mut beginning = Beginning { bytes: Vec::new(), body: Some(body) };
    let mut deadline = pin!(sleep_until(Instant::now() + patience));
    poll_fn(|cx| {
        loop {
            link.poll(cx);
            while beginning.bytes.len() <= bytes_max {
                let Some(body) = &mut beginning.body else { return Poll::Ready(Ok(())) };
                match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => beginning.body = None,
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken::Upstream)),
                    Poll::Ready(Some(Ok(frame))) => {
                        beginning.bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                    }
                }
            }
            if beginning.bytes.len() > bytes_max {
                return Poll::Ready(Ok(()));
            }
            match client.poll_upload(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(Err(Broken::Client(end))),
                Poll::Pending => break,
            }
        }
        deadline.as_mut().poll(cx).map(|()| Err(Broken::UpstreamStalled))
    })
    .await?;
    Ok(beginning)
}

/// Gives the client an answer whose head's bytes are `head`, while what is left of the request's body goes
/// up. `patience` is how long the upstream may send nothing; zero: as long as it likes.
pub(super) async fn give<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<'_, S>,
    link: &mut Link,
    head: Vec<u8>,
    beginning: Beginning,
    framing: Framing,
    patience: Duration,
) -> Result<(), Broken> {
    client.push(head);
    let missing = if let Framing::Exact(length) = framing { length } else { 0 };
    let Beginning { bytes, body } = beginning;
    let mut download = Download { body, framing, missing };
    download.push(client, bytes.into());
    if matches!(framing, Framing::None) || (matches!(framing, Framing::Exact(_)) && download.missing == 0) {
        download.body = None;
    } else if download.body.is_none() {
        download.end(client, None);
    }
    let mut stall = Stall { on: None, sleep: None, patience };
    poll_fn(|cx| {
        loop {
            link.poll(cx);
            let mut moved = false;
            while download.body.is_some() && client.has_room() {
                match download.poll_frame(cx, client) {
                    Poll::Ready(Ok(())) => moved = true,
                    Poll::Ready(Err(broken)) => {
                        // What has come is given as far as the client takes it at once: more than nothing.
                        let _ = client.poll_write(cx);
                        return Poll::Ready(Err(broken));
                    }
                    Poll::Pending => break,
                }
            }
            let mut wants = None;
            if client.is_flushed() {
                if download.body.is_none() {
                    return Poll::Ready(Ok(()));
                }
                wants = Some(Side::Upstream);
            } else {
                match client.poll_write(cx) {
                    Poll::Ready(Ok(())) => moved = true,
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(Broken::Client(end))),
                    Poll::Pending => wants = Some(Side::Client),
                }
            }
            match client.poll_upload(cx) {
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Ready(Err(end)) => return Poll::Ready(Err(Broken::Client(end))),
                Poll::Pending => {}
            }
            if moved {
                stall.forget();
                continue;
            }
            if let Some(side) = wants
                && stall.poll(cx, side).is_ready()
            {
                return Poll::Ready(Err(match side {
                    Side::Client => Broken::ClientStalled,
                    Side::Upstream => Broken::UpstreamStalled,
                }));
            }
            return Poll::Pending;
        }
    })
    .await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// How long one side has been waited for.
struct Stall {
    on: Option<Side>,
    sleep: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

impl Stall {
    fn forget(&mut self) {
        self.on = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<()> {
        let patience = if side == Side::Client { CLIENT_STALL } else { self.patience };
        if patience.is_zero() {
            return Poll::Pending;
        }
        let until = Instant::now() + patience;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if self.on != Some(side) {
            self.on = Some(side);
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}
