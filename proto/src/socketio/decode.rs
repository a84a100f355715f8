//! Reading one packet.

use bytes::Bytes;

use super::{ACK_ID_MAX, ACK_ID_UNKNOWN, NAMESPACE_BYTES_MAX, Namespace, SocketError, SocketPacket};
use crate::gate::{self, Placeholders};
use crate::json;
use crate::limits::Limits;

/// Reads the Socket.IO packet `text`: what follows Engine.IO's `4`. Everything it returns is a slice
/// of `text`; the JSON is checked for syntax, depth, shape and the range of its placeholders.
///
/// # Errors
/// [`SocketError`]; close the transport with [`SocketError::close_code`].
pub fn decode(text: &Bytes, limits: &Limits) -> Result<SocketPacket, SocketError> {
    let kind = *text.first().ok_or(SocketError::Empty)?;
    let mut rest = text.slice(1..);
    let attachments = match kind {
        b'0'..=b'3' => 0,
        b'4' => return Err(SocketError::ConnectError),
        b'5' | b'6' => take_attachments(&mut rest, limits)?,
        _ => return Err(SocketError::UnknownType(kind)),
    };
    let namespace = take_namespace(&mut rest)?;
    let id = take_id(&mut rest);
    let json = rest;
    match kind {
        b'0' => Ok(SocketPacket::Connect { namespace, auth: check_auth(json, limits)? }),
        b'1' if json.is_empty() => Ok(SocketPacket::Disconnect { namespace }),
        b'1' => Err(SocketError::DisconnectData),
        b'2' | b'5' => {
            check_array(&json, attachments, limits)?;
            let name = json::first_element(&json).ok_or(SocketError::Event(gate::GateError::NameShape))?;
            gate::check_name(name, None).map_err(SocketError::Event)?;
            let ack = id.filter(|&id| id <= ACK_ID_MAX);
            Ok(SocketPacket::Event { namespace, ack, json, attachments })
        }
        _ => {
            // A stock encoder always writes the array; a bare `3<id>` is an answer without arguments.
            let json = if json.is_empty() { Bytes::from_static(b"[]") } else { json };
            check_array(&json, attachments, limits)?;
            Ok(SocketPacket::Ack { namespace, id: id.unwrap_or(ACK_ID_UNKNOWN), json, attachments })
        }
    }
}

/// Takes `<n>-`, n from 1 to the limit, plain digits.
fn take_attachments(rest: &mut Bytes, limits: &Limits) -> Result<usize, SocketError> {
    let digits = digits(rest);
    let count = parse_saturating(&rest[..digits]);
    if digits == 0 || rest.get(digits) != Some(&b'-') || count == 0 {
        return Err(SocketError::AttachmentCount);
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > limits.attachments_max {
        return Err(SocketError::TooManyAttachments { max: limits.attachments_max });
    }
    *rest = rest.slice(digits + 1..);
    Ok(count)
}

/// Takes `/name,` or `/name` at the end of the packet. A query string is cut off the name: version 4
/// clients put one there by mistake, older ones on purpose.
fn take_namespace(rest: &mut Bytes) -> Result<Namespace, SocketError> {
    if rest.first() != Some(&b'/') {
        return Ok(Namespace::MAIN);
    }
    let end = rest.iter().position(|&byte| byte == b',').unwrap_or(rest.len());
    let name = &rest[..end];
    let name = &name[..name.iter().position(|&byte| byte == b'?').unwrap_or(end)];
    if name.len() > NAMESPACE_BYTES_MAX || std::str::from_utf8(name).is_err() {
        return Err(SocketError::Namespace);
    }
    let namespace = Namespace(rest.slice_ref(name));
    *rest = rest.slice((end + 1).min(rest.len())..);
    Ok(namespace)
}

fn take_id(rest: &mut Bytes) -> Option<u64> {
    let digits = digits(rest);
    let id = (digits > 0).then(|| parse_saturating(&rest[..digits]));
    *rest = rest.slice(digits..);
    id
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn parse_saturating(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

fn check_auth(json: Bytes, limits: &Limits) -> Result<Option<Bytes>, SocketError> {
    if json.is_empty() {
        return Ok(None);
    }
    if json.len() > limits.auth_bytes_max {
        return Err(SocketError::AuthTooBig { max: limits.auth_bytes_max });
    }
    json::check(&json, limits.json_depth_max)?;
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(SocketError::AuthShape);
    }
    Ok(Some(json))
}

/// Checks the whole text and that it is an array. Placeholders count only where attachments follow, as
/// in the stock decoder: elsewhere they are objects like any other.
fn check_array(json: &[u8], attachments: usize, limits: &Limits) -> Result<(), SocketError> {
    if attachments == 0 {
        json::check(json, limits.json_depth_max)?;
    } else {
        let mut placeholders = Placeholders::new(attachments);
        json::check_with(json, limits.json_depth_max, &mut placeholders)?;
        placeholders.finish()?;
    }
    if json.trim_ascii_start().first() == Some(&b'[') {
        Ok(())
    } else {
        Err(SocketError::Json(json::JsonError::NotAnArray))
    }
}
