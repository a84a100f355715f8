//! Decoders of what nodes tell each other.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pieces;
use crate::id::NodeId;
use crate::keys::ClusterKey;
use crate::link::frame::{Frame, FrameBuilder, FrameError, FrameReader};
use crate::link::{self, Link, LinkLimits, Resume};
use crate::membership::seal::{PLAIN_BYTES_MAX, Sealer, Terms};
use crate::membership::{self, Membership, MembershipConfig};
use crate::time::Instant;
use crate::view::NodeRecord;
use crate::wire::{self, Envelope, Hello, Lane, ProtocolRange, Refused};

/// The byte stream of one lane: the same frames wherever it is cut, and the same once more when they are written again.
/// The first four bytes say where it is cut.
pub fn check_mesh_frame(bytes: &[u8]) {
    let (cuts, stream) = bytes.split_at(bytes.len().min(4));
    let read = |stream: &[u8], cuts: &[u8]| -> Result<Vec<Frame>, FrameError> {
        let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
        let mut ends: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut) % (stream.len() + 1)).collect();
        ends.push(stream.len());
        ends.sort_unstable();
        let mut from = 0;
        for to in ends {
            reader.push(Bytes::copy_from_slice(&stream[from..to]));
            from = to;
            while let Some(frame) = reader.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    };
    let frames = read(stream, &[]);
    assert_eq!(frames, read(stream, cuts));
    let Ok(frames) = frames else { return };
    let contents = |frames: Vec<Frame>| -> Vec<_> {
        frames
            .into_iter()
            .map(|f| (f.epoch, f.confirmed, f.first, f.into_envelopes().collect::<Vec<_>>()))
            .collect()
    };
    let contents_of = contents(frames);
    let mut again = Vec::new();
    for (epoch, confirmed, first, envelopes) in &contents_of {
        let mut builder = FrameBuilder::new(*epoch, *confirmed, *first, 0);
        envelopes.iter().for_each(|envelope| builder.push(envelope));
        again.extend_from_slice(&builder.finish());
    }
    assert_eq!(contents(read(&again, &[]).expect("frames of our own")), contents_of);
}

/// Everything that travels as postcard.
pub fn check_mesh_envelope(bytes: &[u8]) {
    fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
        if let Ok(value) = wire::decode::<T>(bytes) {
            assert_eq!(wire::decode(&wire::encode(&value)), Ok(value));
        }
    }
    comes_back::<Envelope>(bytes);
    comes_back::<Hello>(bytes);
    comes_back::<Refused>(bytes);
    comes_back::<Resume>(bytes);
    comes_back::<NodeRecord>(bytes);
}

/// Datagrams ([`pieces`]): as they are, or sealed by somebody who has the key. The machine keeps its invariants, and
/// from outside it learns of nobody.
pub fn check_gossip_packet(bytes: &[u8]) {
    let at = |n: u8| SocketAddr::from(([10, 0, 0, n], 7_400));
    let key = ClusterKey::new([7; 32]);
    let config =
        MembershipConfig { vnodes: 4, seed: 1, ..MembershipConfig::new("n1", at(1), key.clone(), 0) };
    let terms = Terms {
        fingerprint: key.fingerprint(),
        cluster_id: config.cluster_id,
        protocol: ProtocolRange::OURS,
    };
    let mut sealer = Sealer::new(&key, terms, NodeId::of_name("n2"), 77);
    let mut now = Instant::from_micros(1_000_000);
    let mut machine = Membership::new(now, config);
    let mut from_outside_alone = true;
    for (is_sealed, piece) in pieces(bytes) {
        let mut datagram = piece.to_vec();
        if is_sealed {
            let mut plain = 5_u64.to_le_bytes().to_vec();
            plain.extend_from_slice(piece);
            plain.truncate(PLAIN_BYTES_MAX);
            datagram = sealer.seal(&plain).to_vec();
            from_outside_alone = false;
        }
        machine.handle(now, membership::Input::Datagram { from: at(2), bytes: &mut datagram });
        machine.check_invariants();
        now = now + Duration::from_millis(piece.len() as u64 * 10);
        machine.handle(now, membership::Input::Timer);
        machine.check_invariants();
        while machine.poll().is_some() {}
    }
    assert!(!from_outside_alone || machine.view().nodes.len() == 1);
}

/// One end of a link whose peer says anything at all: bytes, frames that are none of its turn, other epochs, new
/// connections. It keeps its invariants.
pub fn check_mesh_state_machine(bytes: &[u8]) {
    let mut link = Link::new(11, LinkLimits { unconfirmed_bytes_max: 300, unconfirmed_len_max: 8 });
    let mut now = Instant::from_micros(1_000_000);
    let mut handle = |now: Instant, input: link::Input| {
        link.handle(now, input);
        link.check_invariants();
        while link.poll().is_some() {}
        link.check_invariants();
    };
    let mut connected = Resume { instance: 22, peer_instance: 0, epoch: 1, received: Default::default() };
    handle(now, link::Input::Connected(connected));
    for (is_whole, piece) in pieces(bytes) {
        let Some((&head, rest)) = piece.split_first() else { continue };
        let lane = Lane(head % Lane::COUNT as u8);
        let small = |at: usize| rest.get(at).map_or(0, |byte| u64::from(*byte));
        let input = match (is_whole, head / Lane::COUNT as u8 % 6) {
            (false, _) => link::Input::Received { lane, bytes: Bytes::copy_from_slice(rest) },
            (true, 0 | 1) => {
                let mut confirmed = [None; Lane::COUNT];
                confirmed[usize::from(lane.0)] = rest.get(2).map(|byte| u64::from(byte % 16));
                let mut frame = FrameBuilder::new(small(0) % 4, confirmed, small(1), 0);
                rest.get(3..).unwrap_or_default().chunks(5).for_each(|envelope| frame.push(envelope));
                link::Input::Received { lane, bytes: frame.finish() }
            }
            (true, 2) => link::Input::Send { lane, envelope: Bytes::copy_from_slice(rest) },
            (true, 3) => link::Input::Disconnected,
            (true, 4) => {
                connected.epoch = small(0) % 4;
                connected.peer_instance = if small(1) % 2 == 0 { 11 } else { small(1) };
                connected.instance = 22 + small(2) % 2;
                connected.received = [small(3) % 16; Lane::COUNT];
                handle(now, link::Input::Disconnected);
                link::Input::Connected(connected)
            }
            (true, _) => {
                now = now + Duration::from_millis(small(0) * 20);
                link::Input::Timer
            }
        };
        handle(now, input);
    }
}
