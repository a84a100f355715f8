//! WebSocket frames as a load client needs them: whole text messages in, masked text out.
//!
//! Belongs here: the frame layout of RFC 6455 §5.2. Stays out: sockets, what the text means.
//! Why not tungstenite: a client here must cost a few hundred bytes and almost no CPU, for the
//! generator shares the machine with what it measures.

/// Anything constant does: the generator is no browser, and the server must unmask all the same.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// A frame larger than this is an error of the server: nothing here sends more.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// One frame of a server, without its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A whole text message.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A WebSocket ping, to be answered.
    Ping(&'a [u8]),
    /// A WebSocket pong.
    Pong,
    /// The server closes, with its code (1005 when it gave none).
    Close(u16),
}

/// Takes one frame off the front of `bytes`: the frame and its whole length, `None` when it is not
/// all there yet.
///
/// # Errors
/// A sentence about what no server may send.
pub(super) fn take(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, &'static str> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err("a server frame is masked");
    }
    let (len, head) = match second & 0x7f {
        126 => {
            let Some(len) = bytes.get(2..4) else { return Ok(None) };
            (usize::from(u16::from_be_bytes([len[0], len[1]])), 4)
        }
        127 => {
            let Some(len) = bytes.get(2..10) else { return Ok(None) };
            let len = u64::from_be_bytes(len.try_into().unwrap_or_default());
            (usize::try_from(len).unwrap_or(usize::MAX), 10)
        }
        len => (usize::from(len), 2),
    };
    if len > FRAME_BYTES_MAX {
        return Err("a frame is over 4 MiB");
    }
    let Some(content) = bytes.get(head..head + len) else { return Ok(None) };
    let frame = match first {
        0x81 => Frame::Text(content),
        0x82 => Frame::Binary(content),
        0x88 => Frame::Close(content.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]))),
        0x89 => Frame::Ping(content),
        0x8a => Frame::Pong,
        _ => return Err("a fragment, a reserved bit or an unknown opcode"),
    };
    Ok(Some((frame, head + len)))
}

/// Appends a masked text frame, as a client must send it.
pub(super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_masked(out, 0x81, text);
}

/// Appends the answer to a WebSocket ping.
pub(super) fn put_pong(out: &mut Vec<u8>, content: &[u8]) {
    put_masked(out, 0x8a, content);
}

fn put_masked(out: &mut Vec<u8>, first: u8, content: &[u8]) {
    put_head(out, first, content.len(), 0x80);
    out.extend_from_slice(&MASK);
    out.extend(content.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends an unmasked text frame, as the baseline server sends it.
pub(super) fn put_server_text(out: &mut Vec<u8>, text: &[u8]) {
    put_head(out, 0x81, text.len(), 0);
    out.extend_from_slice(text);
}

fn put_head(out: &mut Vec<u8>, first: u8, len: usize, mask_bit: u8) {
    out.push(first);
    if let Ok(short @ 0..=125) = u8::try_from(len) {
        out.push(mask_bit | short);
    } else if let Ok(medium) = u16::try_from(len) {
        out.push(mask_bit | 126);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(mask_bit | 127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

/// Takes one masked frame of a client off the front of `bytes` into `content`; its whole length and
/// opcode. For the baseline server.
pub(super) fn take_masked(bytes: &[u8], content: &mut Vec<u8>) -> Option<(u8, usize)> {
    let [first, second, ..] = *bytes else { return None };
    let (len, head) = match second & 0x7f {
        126 => {
            let len = bytes.get(2..4)?;
            (usize::from(u16::from_be_bytes([len[0], len[1]])), 4)
        }
        len => (usize::from(len), 2),
    };
    let mask = bytes.get(head..head + 4)?;
    let masked = bytes.get(head + 4..head + 4 + len)?;
    content.clear();
    content.extend(masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Some((first & 0x0f, head + 4 + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_when_it_is_whole() {
        for len in [0, 5, 125, 126, 300, 70_000] {
            let mut bytes = Vec::new();
            put_server_text(&mut bytes, &vec![b'x'; len]);
            let whole = bytes.len();
            for cut in (0..whole).step_by(1 + len / 50) {
                assert_eq!(take(&bytes[..cut]), Ok(None), "{len} cut at {cut}");
            }
            bytes.push(0x81);
            assert_eq!(take(&bytes), Ok(Some((Frame::Text(&vec![b'x'; len]), whole))));
        }
    }

    #[test]
    fn what_a_client_sends_comes_out_unmasked() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, b"42[\"join\",\"r\"]");
        let mut content = Vec::new();
        assert_eq!(take_masked(&bytes[..4], &mut content), None);
        assert_eq!(take_masked(&bytes, &mut content), Some((1, bytes.len())));
        assert_eq!(content, b"42[\"join\",\"r\"]");
    }

    #[test]
    fn a_close_gives_its_code_and_a_fragment_is_an_error() {
        assert_eq!(take(&[0x88, 2, 0x03, 0xf4]), Ok(Some((Frame::Close(1012), 4))));
        assert!(take(&[0x01, 0]).is_err());
    }
}
