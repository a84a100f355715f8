//! The bytes on a lane: frames, each a batch of envelopes with confirmations on its back.
//!
//! Belongs here: encoding and decoding of frames and of the resume point, their size limits.
//! Stays out: what sequence numbers and epochs mean (`link`), what envelopes say (`wire`).
//! Units: bytes. All numbers are LEB128 varints of at most 64 bits.
//! Invariants: no bytes from outside panic, or make the reader hold more than they weigh; decoding
//! does not depend on how the stream was cut.
//!
//! ```text
//! frame    = length body                      length: bytes of body, at most FRAME_BYTES_MAX
//! body     = epoch mask confirmed* first envelope*
//! mask     = one byte, bit i: a confirmation for lane i follows (ascending)
//! first    = sequence number of the first envelope, from 1; any value when there are none
//! envelope = length bytes                     length at most wire::ENVELOPE_BYTES_MAX
//! ```

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::wire::{ENVELOPE_BYTES_MAX, Lane};

/// Head of a frame at its longest: epoch, mask, five confirmations, first, one envelope's length.
const HEAD_BYTES_MAX: usize = 10 + 1 + 10 * Lane::COUNT + 10 + 10;

/// The largest body a frame may have: one envelope of the largest size.
pub const FRAME_BYTES_MAX: usize = ENVELOPE_BYTES_MAX + HEAD_BYTES_MAX;

/// A varint of 64 bits has at most this many bytes.
const VARINT_BYTES_MAX: usize = 10;

/// Sequence numbers by lane.
pub type PerLane = [u64; Lane::COUNT];

/// Where one end of a link stands, exchanged on each new connection before the first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The sender's link object: another number means that it knows nothing of before.
    pub instance: u64,
    /// The receiver's link object as the sender knows it; 0 when they never met.
    pub peer_instance: u64,
    /// The sender's epoch.
    pub epoch: u64,
    /// The last envelope the sender has taken from each lane in this epoch.
    pub received: PerLane,
}

/// Bytes on a lane that are no frames. The connection they came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A number longer than 64 bits.
    #[error("a number over 64 bits")]
    Varint,
    /// A frame or an envelope over its limit. Nothing of it was stored.
    #[error("{len} bytes announced, at most {max} allowed")]
    TooLong {
        /// What was announced.
        len: u64,
        /// What is allowed.
        max: usize,
    },
    /// The body ends inside a field, or confirms a lane that does not exist.
    #[error("malformed frame")]
    Malformed,
}

/// A frame taken apart, its envelopes checked for length but not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) epoch: u64,
    pub(crate) confirmed: [Option<u64>; Lane::COUNT],
    pub(crate) first: u64,
    /// Length-prefixed envelopes, well-formed.
    envelopes: Bytes,
}

impl Frame {
    fn decode(mut body: Bytes) -> Result<Self, FrameError> {
        let epoch = take_varint(&mut body)?;
        let mask = take_byte(&mut body)?;
        if mask >> Lane::COUNT != 0 {
            return Err(FrameError::Malformed);
        }
        let mut confirmed = [None; Lane::COUNT];
        for (lane, slot) in confirmed.iter_mut().enumerate() {
            if mask >> lane & 1 == 1 {
                *slot = Some(take_varint(&mut body)?);
            }
        }
        let first = take_varint(&mut body)?;
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (len, head) = varint(rest)?.ok_or(FrameError::Malformed)?;
            let len = within(len, ENVELOPE_BYTES_MAX)?;
            rest = rest.get(head + len..).ok_or(FrameError::Malformed)?;
        }
        Ok(Self { epoch, confirmed, first, envelopes: body })
    }

    /// The envelopes in order; slices of the buffer the frame came in.
    pub(crate) fn into_envelopes(self) -> impl Iterator<Item = Bytes> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (len, head) = varint(&self.envelopes[at..]).ok()??;
            let start = at + head;
            at = start + usize::try_from(len).ok()?;
            Some(self.envelopes.slice(start..at))
        })
    }
}

/// Builds one frame: confirmations first, then envelopes. Room for the length is kept in front.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    buffer: BytesMut,
}

/// The length of a frame or an envelope takes at most this many bytes (28 bits).
pub(crate) const LENGTH_BYTES_MAX: usize = 4;

impl FrameBuilder {
    /// A frame of `epoch` with these confirmations whose envelopes start at `first`. `capacity` is
    /// a guess of the envelopes' bytes.
    pub(crate) fn new(
        epoch: u64,
        confirmed: [Option<u64>; Lane::COUNT],
        first: u64,
        capacity: usize,
    ) -> Self {
        let mut buffer = BytesMut::with_capacity(LENGTH_BYTES_MAX + HEAD_BYTES_MAX + capacity);
        buffer.put_bytes(0, LENGTH_BYTES_MAX);
        put_varint(&mut buffer, epoch);
        let mask = confirmed.iter().enumerate().fold(0, |mask, (i, c)| mask | u8::from(c.is_some()) << i);
        buffer.put_u8(mask);
        for number in confirmed.into_iter().flatten() {
            put_varint(&mut buffer, number);
        }
        put_varint(&mut buffer, first);
        Self { buffer }
    }

    /// Appends one envelope.
    pub(crate) fn push(&mut self, envelope: &[u8]) {
        put_varint(&mut self.buffer, envelope.len() as u64);
        self.buffer.put_slice(envelope);
    }

    /// The bytes for the lane.
    pub(crate) fn finish(mut self) -> Bytes {
        let mut length = BytesMut::with_capacity(LENGTH_BYTES_MAX);
        put_varint(&mut length, (self.buffer.len() - LENGTH_BYTES_MAX) as u64);
        let start = LENGTH_BYTES_MAX - length.len();
        self.buffer[start..LENGTH_BYTES_MAX].copy_from_slice(&length);
        let mut bytes = self.buffer.freeze();
        bytes.split_off(start)
    }
}

/// Cuts the byte stream of one lane into frames.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    /// The beginning of a frame whose end has not arrived.
    partial: BytesMut,
    /// Bytes not yet looked at.
    fresh: Bytes,
}

impl FrameReader {
    /// Takes the next bytes of the stream. Call [`Self::next`] until `None` before the next push.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.fresh.is_empty(), "frames are taken out before more bytes come in");
        self.fresh = bytes;
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let body = if self.partial.is_empty() {
            let Some((head, len)) = frame_length(&self.fresh)? else { return Ok(self.keep_rest()) };
            if self.fresh.len() < head + len {
                return Ok(self.keep_rest());
            }
            self.fresh.split_to(head + len).slice(head..)
        } else {
            let Some((head, len)) = self.length_of_partial()? else { return Ok(None) };
            let missing = (head + len).saturating_sub(self.partial.len());
            let taken = self.fresh.split_to(missing.min(self.fresh.len()));
            self.partial.extend_from_slice(&taken);
            if taken.len() < missing {
                return Ok(None);
            }
            self.partial.split().freeze().slice(head..)
        };
        Frame::decode(body).map(Some)
    }

    /// The length of the frame begun, taking bytes one by one until it is whole.
    fn length_of_partial(&mut self) -> Result<Option<(usize, usize)>, FrameError> {
        for _ in 0..=VARINT_BYTES_MAX {
            if let Some(length) = frame_length(&self.partial)? {
                return Ok(Some(length));
            }
            if self.fresh.is_empty() {
                return Ok(None);
            }
            self.partial.extend_from_slice(&self.fresh.split_to(1));
        }
        Err(FrameError::Varint)
    }

    fn keep_rest(&mut self) -> Option<Frame> {
        self.partial.extend_from_slice(&std::mem::take(&mut self.fresh));
        None
    }
}

/// The bytes of a frame's length field and the length; `None` while it is cut.
fn frame_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let Some((len, head)) = varint(bytes)? else { return Ok(None) };
    Ok(Some((head, within(len, FRAME_BYTES_MAX)?)))
}

fn within(len: u64, max: usize) -> Result<usize, FrameError> {
    usize::try_from(len).ok().filter(|&len| len <= max).ok_or(FrameError::TooLong { len, max })
}

fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

/// A number and how many bytes it took; `None` when `bytes` ends inside it.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        if i == VARINT_BYTES_MAX - 1 && byte > 1 {
            return Err(FrameError::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= VARINT_BYTES_MAX { Err(FrameError::Varint) } else { Ok(None) }
}

fn take_varint(bytes: &mut Bytes) -> Result<u64, FrameError> {
    let (value, len) = varint(bytes)?.ok_or(FrameError::Malformed)?;
    let _ = bytes.split_to(len);
    Ok(value)
}

fn take_byte(bytes: &mut Bytes) -> Result<u8, FrameError> {
    let byte = *bytes.first().ok_or(FrameError::Malformed)?;
    let _ = bytes.split_to(1);
    Ok(byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(epoch: u64, first: u64, envelopes: &[Vec<u8>]) -> Bytes {
        let mut builder = FrameBuilder::new(epoch, [Some(7), None, None, None, Some(300)], first, 0);
        for envelope in envelopes {
            builder.push(envelope);
        }
        builder.finish()
    }

    /// Everything a reader makes of `stream` when it arrives in pieces that end at `cuts`.
    fn read(stream: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        let mut from = 0;
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        ends.push(stream.len());
        ends.sort_unstable();
        for to in ends {
            reader.push(Bytes::copy_from_slice(&stream[from..to]));
            from = to;
            while let Some(frame) = reader.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn a_frame_has_these_bytes() {
        let bytes = frame(2, 9, &[b"ab".to_vec(), b"".to_vec()]);
        assert_eq!(&bytes[..], [10, 2, 0b10001, 7, 0xac, 0x02, 9, 2, b'a', b'b', 0]);
        assert_eq!(&FrameBuilder::new(1, [None; 5], 1, 0).finish()[..], [3, 1, 0, 1]);
    }

    #[test]
    fn a_resume_point_has_these_bytes() {
        let resume = Resume { instance: 1, peer_instance: 0, epoch: 3, received: [1, 2, 3, 4, 200] };
        let bytes = crate::wire::encode(&resume);
        assert_eq!(&bytes[..], [1, 0, 3, 1, 2, 3, 4, 200, 1]);
        assert_eq!(crate::wire::decode::<Resume>(&bytes), Ok(resume));
    }

    #[test]
    fn what_is_announced_too_long_is_refused_before_it_arrives() {
        let mut stream = BytesMut::new();
        put_varint(&mut stream, FRAME_BYTES_MAX as u64 + 1);
        let refused = FrameError::TooLong { len: FRAME_BYTES_MAX as u64 + 1, max: FRAME_BYTES_MAX };
        assert_eq!(read(&stream, &[]), Err(refused));
        let long_envelope = [6, 1, 0, 1, 0xff, 0xff, 0x7f];
        assert!(matches!(read(&long_envelope, &[]), Err(FrameError::Malformed)));
        assert_eq!(read(&[0xff; 11], &[]), Err(FrameError::Varint));
        assert_eq!(read(&[3, 1, 0xe0, 1], &[]), Err(FrameError::Malformed));
    }

    #[test]
    fn the_largest_envelope_fits_a_frame() {
        let bytes = frame(u64::MAX, u64::MAX, &[vec![1; ENVELOPE_BYTES_MAX]]);
        let frames = read(&bytes, &[1, 5, 1_000]).unwrap();
        let envelope = frames.into_iter().next().unwrap().into_envelopes().next().unwrap();
        assert_eq!(envelope.len(), ENVELOPE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_frames(
            batches in prop::collection::vec(
                (any::<u64>(), any::<u64>(), prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5)),
                0..6,
            ),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let stream: Vec<u8> =
                batches.iter().flat_map(|(epoch, first, e)| frame(*epoch, *first, e).to_vec()).collect();
            let frames = read(&stream, &cuts).unwrap();
            prop_assert_eq!(frames.len(), batches.len());
            for (frame, (epoch, first, envelopes)) in frames.into_iter().zip(batches) {
                prop_assert_eq!((frame.epoch, frame.first), (epoch, first));
                prop_assert_eq!(frame.confirmed, [Some(7), None, None, None, Some(300)]);
                let read: Vec<Vec<u8>> = frame.into_envelopes().map(|e| e.to_vec()).collect();
                prop_assert_eq!(read, envelopes);
            }
        }

        #[test]
        fn any_bytes_read_or_fail_alike_at_any_split(
            stream in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(any::<usize>(), 0..10),
        ) {
            prop_assert_eq!(read(&stream, &cuts), read(&stream, &[]));
        }
    }
}
