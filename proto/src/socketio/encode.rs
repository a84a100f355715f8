//! Writing packets, Engine.IO's `4` included: what the functions return goes out as it is.

use std::sync::Arc;

use crate::json;
use crate::shard::Packet;
use crate::wire::Payload;

/// An event: one text, and each attachment as a binary message after it.
#[must_use]
pub fn encode_event(namespace: &str, payload: &Payload) -> Arc<[Packet]> {
    encode_array([b'2', b'5'], namespace, None, payload)
}

/// An event that the client is to answer under `id`.
#[must_use]
pub fn encode_asking_event(namespace: &str, id: u64, payload: &Payload) -> Arc<[Packet]> {
    encode_array([b'2', b'5'], namespace, Some(id), payload)
}

/// An event whose text is open at its end: a string without a quote and `"]` are to follow.
#[must_use]
pub fn encode_open_event(namespace: &str, payload: &Payload) -> Arc<[Packet]> {
    let json = payload.json.trim_ascii_end();
    let open = json.strip_suffix(b"]").unwrap_or(json);
    let json: Vec<u8> = [open, b",\""].concat();
    encode_event(namespace, &Payload { json: json.into(), attachments: payload.attachments.clone() })
}

/// The answer to the client's event `id`.
#[must_use]
pub fn encode_ack(namespace: &str, id: u64, payload: &Payload) -> Arc<[Packet]> {
    encode_array([b'3', b'6'], namespace, Some(id), payload)
}

/// The answer to a connect: the public id, and the secret for resuming where recovery is on.
#[must_use]
pub fn encode_connect(namespace: &str, sid: &str, pid: Option<&str>) -> Packet {
    let mut out = begin(b'0', namespace, 0);
    out.extend_from_slice(b"{\"sid\":");
    json::push_string(&mut out, sid);
    if let Some(pid) = pid {
        out.extend_from_slice(b",\"pid\":");
        json::push_string(&mut out, pid);
    }
    out.push(b'}');
    Packet::Text(out.into())
}

/// A final refusal of a namespace: the client does not try again. `data_json` is raw JSON.
#[must_use]
pub fn encode_connect_error(namespace: &str, message: &str, data_json: Option<&str>) -> Packet {
    let mut out = begin(b'4', namespace, 0);
    out.extend_from_slice(b"{\"message\":");
    json::push_string(&mut out, message);
    if let Some(data) = data_json {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data.as_bytes());
    }
    out.push(b'}');
    Packet::Text(out.into())
}

/// The server ends a namespace: the client does not come back by itself.
#[must_use]
pub fn encode_disconnect(namespace: &str) -> Packet {
    Packet::Text(begin(b'1', namespace, 0).into())
}

/// `4`, the type, and the namespace unless it is the main one.
fn begin(kind: u8, namespace: &str, attachments: usize) -> Vec<u8> {
    let mut out = vec![b'4', kind];
    if attachments > 0 {
        out.extend_from_slice(format!("{attachments}-").as_bytes());
    }
    if namespace != "/" {
        out.extend_from_slice(namespace.as_bytes());
        out.push(b',');
    }
    out
}

fn encode_array(
    [plain, binary]: [u8; 2],
    namespace: &str,
    id: Option<u64>,
    payload: &Payload,
) -> Arc<[Packet]> {
    let kind = if payload.attachments.is_empty() { plain } else { binary };
    let mut out = begin(kind, namespace, payload.attachments.len());
    if let Some(id) = id {
        out.extend_from_slice(id.to_string().as_bytes());
    }
    out.reserve_exact(payload.json.len());
    out.extend_from_slice(&payload.json);
    let text = Packet::Text(out.into());
    if payload.attachments.is_empty() {
        return Arc::new([text]);
    }
    std::iter::once(text).chain(payload.attachments.iter().cloned().map(Packet::Binary)).collect()
}
