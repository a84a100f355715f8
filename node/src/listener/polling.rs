//! Requests of polling clients: a question to a shard, and its answer on a connection that is kept.
//!
//! Belongs here: reading bodies in time, waiting for answers while watching the connection.
//! Stays out: where a session is and what it says (`mesh_proto`: any node takes any request).
//! What filling up means: a full shard queue is a 503; a body over its bound a 413 that ends the session.
//! Invariants: a request that is named to a shard is answered, or taken back when its connection breaks.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::id::EngineSid;
use mesh_proto::shard::{RequestIx, Transport};
use mesh_proto::wire::{EngineRefusal, EngineRequest, EngineResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Door, ReadError, read_some};
use crate::admission::Reason;
use crate::handles::{EngineAsked, OpenedPolling, ToShard};
use crate::identity::{Admitted, Deciding, Denied};
use crate::transport::Response;
use crate::transport::body::{BodyError, BodyReader};
use crate::transport::head::RequestHead;
use crate::transport::route::{EngineError, PollingRequest};
use crate::transport::stream::ClientStream;

/// A body may take this long, and longer only while it comes at [`BODY_BYTES_PER_SECOND`].
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Slower bodies are given up.
const BODY_BYTES_PER_SECOND: usize = 1 << 10;

/// An answer that is not taken for so long is for nobody.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);

/// Bytes of further requests kept while one waits for its answer; then they stay in the socket.
const READ_AHEAD_MAX: usize = 16 << 10;

/// What is known of a request once its head is read.
pub(super) struct Asked {
    request: PollingRequest,
    cors: Vec<(&'static str, String)>,
    remote: SocketAddr,
    /// Who it is, for the handshake.
    admitting: Option<Deciding<Admitted>>,
    /// Whether the connection stays open after the answer.
    keeps: bool,
    /// The client waits for a word before it sends the body.
    expects: bool,
    body: Result<BodyReader, BodyError>,
}

/// What becomes of the connection.
pub(super) enum Next {
    Request,
    Linger,
    Nothing,
}

/// What becomes of a question to a shard.
pub(super) enum Answered {
    With(EngineResponse),
    /// Not now.
    Busy(Reason),
    /// Not this one.
    Denied(Denied),
    /// The client is gone.
    Nobody,
}

impl Asked {
    pub(super) fn new(
        head: &RequestHead<'_>,
        request: PollingRequest,
        cors: Vec<(&'static str, String)>,
        remote: SocketAddr,
        admitting: Option<Deciding<Admitted>>,
        body_bytes_max: usize,
    ) -> Self {
        Self {
            request,
            cors,
            remote,
            admitting,
            keeps: head.http11 && !head.has_token("connection", "close"),
            expects: head.http11 && head.has_token("expect", "100-continue"),
            body: BodyReader::new(head, body_bytes_max),
        }
    }
}

/// The reference server's answer in its words.
pub(super) fn response_of(response: EngineResponse) -> Response {
    let text = |content_type, body: Vec<u8>| Response {
        status: 200,
        content_type,
        body: body.into(),
        headers: vec![("Cache-Control", "no-store".to_owned())],
    };
    match response {
        EngineResponse::Packets(payload) => text("text/plain; charset=UTF-8", payload.into()),
        EngineResponse::Taken => text("text/html", b"ok".to_vec()),
        EngineResponse::Refused(EngineRefusal::UnknownSid) => EngineError::SessionUnknown.response(),
        EngineResponse::Refused(EngineRefusal::BadRequest | EngineRefusal::Upgraded) => {
            EngineError::BadRequest.response()
        }
    }
}

/// Takes a request back from its shard unless it was answered.
struct Named<'a> {
    tx: &'a mpsc::Sender<ToShard>,
    ix: RequestIx,
    answered: bool,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // A shard too full to hear of it answers, and nobody takes the answer.
            let _ = self.tx.try_send(ToShard::RequestGone(self.ix));
        }
    }
}

impl Door {
    /// One request of a polling client, from its body to its answer.
    pub(super) async fn polling(&self, stream: &mut ClientStream, rest: &mut Vec<u8>, asked: Asked) -> Next {
        let Asked { request, cors: mut headers, remote, admitting, keeps, expects, body } = asked;
        let ip = remote.ip();
        if expects && rest.is_empty() && stream.write_answer(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
        {
            return Next::Nothing;
        }
        let body = match body {
            Ok(reader) => self.body(stream, rest, reader).await,
            Err(error) => Err(BodyFailed::Body(error)),
        };
        let refused = match &body {
            Ok(_) => None,
            Err(BodyFailed::Gone) => return Next::Nothing,
            Err(BodyFailed::Slow) => Some(Response::json(408, r#"{"code":3,"message":"Bad request"}"#)),
            Err(BodyFailed::Body(BodyError::TooLarge)) => {
                Some(Response::json(413, r#"{"code":3,"message":"Payload too large"}"#))
            }
            Err(BodyFailed::Body(BodyError::Malformed)) => Some(EngineError::BadRequest.response()),
        };
        let answered = match request {
            PollingRequest::Open if refused.is_none() => match admitting {
                Some(admitting) => self.open_polling(stream, rest, ip, admitting, &mut headers).await,
                None => Answered::Nobody,
            },
            PollingRequest::Open => Answered::With(EngineResponse::Refused(EngineRefusal::BadRequest)),
            PollingRequest::Poll(sid) => self.ask(stream, rest, sid, EngineRequest::Poll).await,
            PollingRequest::Post(sid) => {
                // What cannot be taken ends the session: an empty payload says so.
                let body = body.unwrap_or_default();
                self.ask(stream, rest, sid, EngineRequest::Post(body)).await
            }
            PollingRequest::PostBinary(sid) => {
                self.ask(stream, rest, sid, EngineRequest::Post(Bytes::new())).await
            }
        };
        let busy = |reason: Reason| {
            self.count(reason, ip);
            reason.busy_response()
        };
        let (mut response, keeps) = match (refused, answered) {
            (_, Answered::Nobody) => return Next::Nothing,
            (Some(refused), _) => (refused, false),
            (None, Answered::With(response)) => (response_of(response), keeps),
            (None, Answered::Busy(reason)) => (busy(reason), false),
            (None, Answered::Denied(denied)) => {
                self.count(Reason::Denied, ip);
                (denied.response(), false)
            }
        };
        if response.status >= 400 && response.status < 500 {
            self.count(Reason::BadHandshake, ip);
        }
        response.headers.extend(headers);
        // Whoever keeps connections to a node that is about to go learns it by an answer (RFC 9112 §9.6): else the next
        // request, perhaps a POST that nobody may repeat, meets the end of the process.
        let keeps = keeps && !self.port.admission.is_draining();
        let bytes = if keeps { response.to_kept_bytes() } else { response.to_bytes(false) };
        match timeout(ANSWER_TIMEOUT, stream.write_answer(&bytes)).await {
            Ok(Ok(())) if keeps => Next::Request,
            Ok(Ok(())) => Next::Linger,
            _ => Next::Nothing,
        }
    }

    /// A new session, which has a place among the clients as a connection has.
    async fn open_polling(
        &self,
        stream: &mut ClientStream,
        rest: &mut Vec<u8>,
        ip: IpAddr,
        admitting: Deciding<Admitted>,
        headers: &mut Vec<(&'static str, String)>,
    ) -> Answered {
        let admission = &self.port.admission;
        if admission.is_draining() {
            return Answered::Busy(Reason::Draining);
        }
        let mut place = match admission.admit(ip, self.port.clock.now()) {
            Ok(place) => place,
            Err(reason) => return Answered::Busy(reason),
        };
        let Admitted { mut client, set_cookie } = match admitting.await {
            Ok(admitted) => admitted,
            Err(denied) => return Answered::Denied(denied),
        };
        headers.extend(set_cookie.map(|cookie| ("Set-Cookie", cookie)));
        let ix = self.name();
        client.transport = Transport::Polling(ix);
        let shard = admission.emptiest_shard();
        place.enter(shard);
        let (answer, answered) = oneshot::channel();
        let opened = ToShard::Polling(OpenedPolling { client, answer, place });
        let Some(handle) = self.port.shards.0.get(usize::from(shard.0)) else { return Answered::Nobody };
        if handle.tx.try_send(opened).is_err() {
            return Answered::Busy(Reason::ShardBusy);
        }
        self.answered(stream, rest, &handle.tx, ix, answered).await
    }

    /// Asks whoever has the session `sid`, by the shard that has it if it is one of this node.
    pub(super) async fn ask(
        &self,
        stream: &mut ClientStream,
        rest: &mut Vec<u8>,
        sid: EngineSid,
        request: EngineRequest,
    ) -> Answered {
        let shards = &self.port.shards.0;
        let handle = &shards[usize::from(sid.shard().0) % shards.len()];
        let ix = self.name();
        let (answer, answered) = oneshot::channel();
        if handle.tx.try_send(ToShard::Request(EngineAsked { ix, sid, request, answer })).is_err() {
            return Answered::Busy(Reason::ShardBusy);
        }
        self.answered(stream, rest, &handle.tx, ix, answered).await
    }

    fn name(&self) -> RequestIx {
        RequestIx(self.port.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits for the answer, or for the end of the connection.
    async fn answered(
        &self,
        stream: &mut ClientStream,
        rest: &mut Vec<u8>,
        tx: &mpsc::Sender<ToShard>,
        ix: RequestIx,
        answer: oneshot::Receiver<EngineResponse>,
    ) -> Answered {
        let mut named = Named { tx, ix, answered: false };
        tokio::select! {
            biased;
            answer = answer => {
                named.answered = true;
                answer.map_or(Answered::Nobody, Answered::With)
            }
            () = gone(stream, rest) => Answered::Nobody,
        }
    }

    async fn body(
        &self,
        stream: &mut ClientStream,
        rest: &mut Vec<u8>,
        mut reader: BodyReader,
    ) -> Result<Bytes, BodyFailed> {
        let began = tokio::time::Instant::now();
        let mut read = 0;
        loop {
            if let Some(body) = reader.take(rest).map_err(BodyFailed::Body)? {
                return Ok(body);
            }
            let seconds = u64::try_from(read / BODY_BYTES_PER_SECOND).unwrap_or(u64::MAX);
            let until = began + BODY_TIMEOUT + Duration::from_secs(seconds);
            let readable = tokio::time::timeout_at(until, stream.readable()).await;
            readable.map_err(|_| BodyFailed::Slow)?.map_err(|_| BodyFailed::Gone)?;
            match read_some(stream) {
                Ok(Some(bytes)) => {
                    read += bytes.len();
                    rest.extend_from_slice(&bytes);
                }
                Ok(None) => {}
                Err(ReadError::Gone | ReadError::Head(_)) => return Err(BodyFailed::Gone),
            }
        }
    }
}

/// Why there is no body.
enum BodyFailed {
    Gone,
    Slow,
    Body(BodyError),
}

/// Completes when the connection is gone. What comes meanwhile is kept for later, within its bound.
async fn gone(stream: &mut ClientStream, rest: &mut Vec<u8>) {
    while rest.len() < READ_AHEAD_MAX {
        if stream.readable().await.is_err() {
            return;
        }
        match read_some(stream) {
            Ok(Some(bytes)) => rest.extend_from_slice(&bytes),
            Ok(None) => {}
            Err(_) => return,
        }
    }
    std::future::pending().await
}
