//! What a message of the load generator says about itself: who sent it, which one it is, and when.
//!
//! Format: `pppp nnnnnnnn tttttttttttt …` in hexadecimal digits (publisher, number from 0,
//! microseconds since the generator started), padded with `x` to the wanted size. Fixed places, so
//! that a receiver reads it without a JSON parser.

use std::io::Write as _;

/// The stamp at the front of each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Publisher within its room.
    pub(crate) publisher: u16,
    /// Its message, from 0.
    pub(crate) number: u32,
    /// When it was handed to the socket.
    pub(crate) micros: u64,
}

const STAMP_LEN: usize = 4 + 1 + 8 + 1 + 12;

impl Stamp {
    /// Appends the payload: the stamp, padded to `len` bytes.
    pub(crate) fn put(self, out: &mut Vec<u8>, len: usize) {
        let start = out.len();
        let Self { publisher, number, micros } = self;
        // Writing into a Vec does not fail.
        let _ = write!(out, "{publisher:04x} {number:08x} {:012x}", micros & 0xffff_ffff_ffff);
        out.resize(out.len().max(start + len), b'x');
    }

    /// Reads the payload's front.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let stamp = payload.get(..STAMP_LEN)?;
        Some(Self {
            publisher: u16::try_from(hex(&stamp[..4])?).ok()?,
            number: u32::try_from(hex(&stamp[5..13])?).ok()?,
            micros: hex(&stamp[14..26])?,
        })
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_payload() {
        let stamp = Stamp { publisher: 0xabc, number: 70_000, micros: 123_456_789_012 };
        let mut payload = Vec::new();
        stamp.put(&mut payload, 128);
        assert_eq!(payload.len(), 128);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(Stamp::read(b"hello"), None);
    }
}
