//! What must hold for any bytes that come in from outside, as `mesh_proto::fuzz`: the decoders of the node itself.
//!
//! Belongs here: `check_*(bytes)`, called by the fuzz targets (`node/fuzz`) and by the tests beside this.
//! Stays out: single cases, which stand beside their decoders.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use bytes::Bytes;
use mesh_proto::time::Instant;

use crate::transport::body::BodyReader;
use crate::transport::head::{HeadBuffer, RequestHead};
use crate::transport::proxies::TrustedProxies;
use crate::transport::route::{PollingRequest, Route, RoutePolicy, cors, route};
use crate::transport::websocket::{Event, FrameReader, ReadContext, Violation};
use crate::transport::{percent_decoded, query_values};
use crate::web;

/// The first byte says in how large pieces the rest arrives.
fn split_size(bytes: &[u8]) -> (usize, &[u8]) {
    bytes.split_first().map_or((1, bytes), |(size, rest)| (1 + usize::from(size % 64), rest))
}

/// A request head: the same verdict however it is split, and one way to read it.
pub fn check_http_head(bytes: &[u8]) {
    type Read = Result<Option<(String, String, Vec<u8>)>, u16>;
    fn read(input: &[u8], split: usize) -> Read {
        let mut buffer = HeadBuffer::default();
        for chunk in input.chunks(split) {
            match buffer.push(chunk) {
                Ok(None) => {}
                Ok(Some(len)) => {
                    let head = RequestHead::parse(&buffer.bytes()[..len]).map_err(|e| e.response().status)?;
                    let headers: Vec<(&str, &[u8])> = head.headers().collect();
                    assert!(head.path.starts_with('/') && !head.path.contains(['?', '#', ' ']));
                    assert_eq!(head.values("host").count(), 1);
                    let line = format!("{} {} {} {}", head.method, head.path, head.query, head.http11);
                    return Ok(Some((line, format!("{headers:?}"), input[..len].to_vec())));
                }
                Err(error) => return Err(error.response().status),
            }
        }
        Ok(None)
    }
    let (split, rest) = split_size(bytes);
    // What is no head may be told so at once or at its end.
    let input = [rest, b"\r\n\r\n"].concat();
    assert_eq!(read(&input, split), read(&input, input.len()));
}

/// The query of a request of Engine.IO, the path it asks for, and who is told of what.
pub fn check_query_eio(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for value in query_values(&text, "sid") {
        let decoded = percent_decoded(value);
        assert!(decoded.is_none_or(|decoded| decoded.len() <= value.len()));
    }
    let (method, query) = match bytes.first() {
        Some(0) => ("POST", &bytes[1..]),
        Some(1) => ("OPTIONS", &bytes[1..]),
        _ => ("GET", bytes),
    };
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for headers in ["", "Origin: http://a.example\r\n", upgrade] {
        let text = [
            method.as_bytes(),
            b" /socket.io/?",
            query,
            b" HTTP/1.1\r\nHost: x\r\n",
            headers.as_bytes(),
            b"\r\n",
        ];
        let text = text.concat();
        let Ok(head) = RequestHead::parse(&text) else { return };
        let policy = RoutePolicy { engine_io: true, ..RoutePolicy::default() };
        let sid = || query_values(head.query, "sid").next();
        match route(&head, &policy) {
            Route::Polling(PollingRequest::Poll(named) | PollingRequest::Post(named), _) => {
                assert_eq!(sid(), Some(&*named.expose_text()), "one spelling");
            }
            Route::Polling(_, _) => {}
            Route::WebSocket { upgrades, .. } => assert_eq!(upgrades.is_some(), sid().is_some()),
            Route::Refused(answer) => {
                assert!([204, 400, 403, 405].contains(&answer.status), "{}", answer.status)
            }
            Route::Site => {}
        }
        let _ = cors(&head, &policy);
    }
}

/// The body of a POST: the same however it is split, and within its bound.
pub fn check_http_body(bytes: &[u8]) {
    const BYTES_MAX: usize = 100;
    let (split, input) = split_size(bytes);
    for header in ["Transfer-Encoding: chunked", "Content-Length: 60"] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
        let head = RequestHead::parse(text.as_bytes()).expect("a good head");
        let read = |split: usize| {
            let mut reader = BodyReader::new(&head, BYTES_MAX)?;
            let (mut arrived, mut outcome) = (Vec::new(), None);
            for piece in input.chunks(split) {
                arrived.extend_from_slice(piece);
                if outcome.is_none() {
                    outcome = reader.take(&mut arrived)?;
                }
            }
            Ok(outcome.map(|body| (body, arrived)))
        };
        let whole: Result<Option<(Bytes, Vec<u8>)>, crate::transport::body::BodyError> =
            read(input.len().max(1));
        assert_eq!(whole, read(split));
        assert!(!matches!(whole, Ok(Some((body, _))) if body.len() > BYTES_MAX));
    }
}

/// WebSocket frames of a client: the same messages and the same verdict however they are split.
pub fn check_ws_frame_stream(bytes: &[u8]) {
    const MESSAGE_BYTES_MAX: usize = 300;
    fn read(bytes: &[u8], split: usize) -> (Vec<Event>, Option<Violation>) {
        let mut reader = FrameReader::default();
        let context = ReadContext { now: Instant::ZERO, message_bytes_max: MESSAGE_BYTES_MAX };
        let mut events = Vec::new();
        for chunk in bytes.chunks(split) {
            let (mut chunk, mut at) = (chunk.to_vec(), 0);
            loop {
                match reader.next(context, &mut chunk, &mut at) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(violation) => return (events, Some(violation)),
                }
            }
            assert_eq!(at, chunk.len(), "bytes left unread");
        }
        (events, None)
    }
    let (split, input) = split_size(bytes);
    let whole = read(input, input.len().max(1));
    assert_eq!(whole, read(input, split));
    for event in &whole.0 {
        if let Event::Message(packet) = event {
            assert!(packet.len() <= MESSAGE_BYTES_MAX);
        }
    }
}

/// Headers by which proxies say for whom a request is: whoever is not trusted is not believed.
pub fn check_forwarded_headers(bytes: &[u8]) {
    let proxies =
        TrustedProxies::from_list(&["10.0.0.0/8".into(), "2001:db8::/32".into()]).expect("networks");
    let stranger: IpAddr = [203, 0, 113, 9].into();
    let friend: IpAddr = [10, 0, 0, 1].into();
    for name in ["X-Forwarded-For: ", ""] {
        let text = [b"GET / HTTP/1.1\r\nHost: x\r\n", name.as_bytes(), bytes, b"\r\n\r\n"].concat();
        let Ok(head) = RequestHead::parse(&text) else { continue };
        let told = proxies.origin(stranger, &head, &[]).expect("nobody counts the hops of a stranger");
        assert_eq!(told.ip, stranger);
        let Ok(told) = proxies.origin(friend, &head, &[]) else { continue };
        assert!(!told.ignored);
        assert_eq!(told.ip, told.ip.to_canonical(), "limits count one address once");
        assert!(told.ip == friend || head.header("x-forwarded-for").is_some());
    }
}

/// The text of a configuration file: every fault has its place in it.
pub fn check_config_toml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\n').count();
    for error in crate::config::errors_in(&text) {
        assert!(!error.problem.is_empty());
        if let crate::config::Origin::File(_, line) = error.origin {
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
        }
    }
}

/// Bodies of the HTTP API and queries of the admin listener: read, or refused in JSON.
pub fn check_admin_json(bytes: &[u8]) {
    crate::api::check_bodies(bytes);
    let text = String::from_utf8_lossy(bytes);
    if let Err(refused) = web::query_pairs(Some(&text)) {
        assert!(refused.body().is_object());
    }
    if let Some(segments) = web::path_segments(&text) {
        assert!(segments.iter().all(|segment| segment.len() <= text.len()));
    }
}
