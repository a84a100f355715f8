//! Sessions of Engine.IO servers behind the mesh: whose a request is, and what a handshake's answer calls it.
//!
//! Belongs here: reading `sid` out of queries and out of the answer's body, also where that is compressed.
//! Stays out: where a session is bound (`bindings`).
//! Units: at most [`ANSWER_BYTES_MAX`] of an answer, compressed and not, are looked at: handshakes have some
//! hundred.
//! Source: Engine.IO protocol 3 and 4, "Handshake": an open packet is `0` and a JSON object; version 3 may have
//! a length before it.

use std::borrow::Cow;
use std::io::Read as _;

use http::{HeaderMap, header};

use crate::transport::head::RequestHead;
use crate::transport::{percent_decoded, query_values};

/// A handshake's answer is shorter.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 10;

/// A sid is shorter.
const SID_BYTES_MAX: usize = 128;

/// What a request is to an Engine.IO server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EngineRequest<'h> {
    /// Not for one, or a WebSocket that nobody will ask about again.
    Other,
    /// A polling handshake: its answer names the session.
    Opens,
    /// Of this session.
    Of(Cow<'h, str>),
}

/// What a request is.
pub(super) fn engine_request<'h>(head: &RequestHead<'h>) -> EngineRequest<'h> {
    if query_values(head.query, "EIO").next().is_none() {
        return EngineRequest::Other;
    }
    let sid = query_values(head.query, "sid").next().filter(|sid| !sid.is_empty());
    match sid.map(|sid| percent_decoded(sid).filter(|sid| sid.len() <= SID_BYTES_MAX)) {
        Some(Some(sid)) => EngineRequest::Of(sid),
        // No server has given it.
        Some(None) => EngineRequest::Of(Cow::Borrowed("")),
        None if query_values(head.query, "transport").next() == Some("polling") && head.method == "GET" => {
            EngineRequest::Opens
        }
        None => EngineRequest::Other,
    }
}

/// The sid in a handshake's answer.
pub(super) fn of_answer(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let coding = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], |coding| coding.as_bytes());
    let plain = match coding.to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Cow::Borrowed(body),
        b"gzip" | b"x-gzip" => Cow::Owned(inflated(flate2::read::GzDecoder::new(body))?),
        // Some send the bare stream under that name.
        b"deflate" => Cow::Owned(
            inflated(flate2::read::ZlibDecoder::new(body))
                .or_else(|| inflated(flate2::read::DeflateDecoder::new(body)))?,
        ),
        _ => return None,
    };
    sid_of(&plain)
}

fn inflated(from: impl std::io::Read) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    from.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut plain).ok()?;
    Some(plain)
}

fn sid_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Open {
        sid: String,
    }
    // `0{…}`, `96:0{…}`, or with binary lengths before it in version 3; other packets may follow.
    let at = body.windows(2).position(|two| two == b"0{")?;
    if at > 16 {
        return None;
    }
    let open = serde_json::Deserializer::from_slice(&body[at + 1..]).into_iter::<Open>().next()?.ok()?;
    (!open.sid.is_empty() && open.sid.len() <= SID_BYTES_MAX).then_some(open.sid)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const OPEN: &[u8] = br#"0{"sid":"Ab-_9","upgrades":["websocket"],"pingInterval":25000}"#;

    #[test]
    fn the_sid_is_found_in_every_form_of_an_answer() {
        let gzip = {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(OPEN).unwrap();
            writer.finish().unwrap()
        };
        let zlib = {
            let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(OPEN).unwrap();
            writer.finish().unwrap()
        };
        let bare = {
            let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(OPEN).unwrap();
            writer.finish().unwrap()
        };
        let v3 = [b"62:", OPEN, b"2:40"].concat();
        let bomb = {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            writer.write_all(&vec![b'a'; 50_000_000]).unwrap();
            writer.finish().unwrap()
        };
        for (coding, body, expected) in [
            ("", OPEN, Some("Ab-_9")),
            ("identity", OPEN, Some("Ab-_9")),
            ("gzip", &gzip, Some("Ab-_9")),
            ("deflate", &zlib, Some("Ab-_9")),
            ("deflate", &bare, Some("Ab-_9")),
            ("", &v3, Some("Ab-_9")),
            ("br", OPEN, None),
            ("gzip", OPEN, None),
            ("gzip", &bomb, None),
            ("", b"ok", None),
            ("", br#"0{"sid":""}"#, None),
            ("", br#"0{"sid":7}"#, None),
            ("", br#"<html>a page with 0{"sid":"x"} in it</html>"#, None),
        ] {
            let mut headers = HeaderMap::new();
            if !coding.is_empty() {
                headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            }
            assert_eq!(of_answer(&headers, body).as_deref(), expected, "{coding}");
        }
    }

    #[test]
    fn requests_of_engine_io_are_told_from_others() {
        let of = |line: &str| {
            let text = format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n");
            match engine_request(&RequestHead::parse(text.as_bytes()).unwrap()) {
                EngineRequest::Other => "other".to_owned(),
                EngineRequest::Opens => "opens".to_owned(),
                EngineRequest::Of(sid) => format!("of {sid}"),
            }
        };
        for (line, expected) in [
            ("GET /?sid=x", "other"),
            ("GET /socket.io/?EIO=4&transport=polling", "opens"),
            ("GET /socket.io/?EIO=4&transport=websocket", "other"),
            ("OPTIONS /socket.io/?EIO=4&transport=polling", "other"),
            ("GET /socket.io/?EIO=4&transport=polling&sid=a%2Db", "of a-b"),
            ("POST /any/?EIO=3&sid=ab&transport=polling", "of ab"),
            ("GET /socket.io/?EIO=4&transport=polling&sid=", "opens"),
            ("GET /socket.io/?EIO=4&transport=polling&sid=%ff", "of "),
        ] {
            assert_eq!(of(line), expected, "{line}");
        }
        let long = format!("GET /?EIO=4&sid={}", "x".repeat(200));
        assert_eq!(of(&long), "of ");
    }
}
