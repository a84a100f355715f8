//! The same functions with bytes of proptest: any at all, and what comes near to what is right.
//!
//! More cases: `PROPTEST_CASES=100000 cargo nextest run -p mesh-proto fuzz`.

use proptest::prelude::*;

use super::*;
use crate::wire;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

macro_rules! checks {
    ($($check:ident: [$($seed:expr),* $(,)?])*) => {
        proptest! {
            $(
                #[test]
                fn $check(any in bytes(), near in near(&[b"", $($seed),*])) {
                    super::$check(&any);
                    super::$check(&near);
                }
            )*
        }
    };
}

checks! {
    check_eio_packet: [b"0{}", b"2probe", b"3probe", b"42[\"a\"]", b"5", b"6"]
    check_polling_payload: [b"4hello", b"\x1e", b"2", b"bAQIDBA==", b"bAQI", "4€".as_bytes(), b"\x1e6\x1e6"]
    check_sio_packet: [
        b"0", b"1", b"2", b"3", b"51-", b"62-", b"/admin,", b"/a?b=c,", b"{\"token\":\"x\"}", b"[\"say\",1]", b"17",
        b"90071992547409931", b"[\"a\",{\"_placeholder\":true,\"num\":0}]", b"[", b"]", b"\"connect\"",
    ]
    check_sio_binary_reassembly: [
        b"\x2a51-[\"a\",{\"_placeholder\":true,\"num\":0}]    ", b"\x83abc", b"\x2c61-7[\"a\",{\"_placeholder\":true,\"num\":0}]     ",
        b"\x4c52-/x,[{\"_placeholder\":true,\"num\":1},{\"_placeholder\":true,\"num\":0}]            ",
        b"\x072[\"say\"", b"\xff", b"\x80",
    ]
    check_offset_pid: [
        b"AAAAAAAASzyoiQ", b"ChrYBA0AAgAAAAAAAAAHBAMBCcaLabXi4XsA", b"C8rngeg", b"1a-ffffffffffffffff-11.7",
        b"\xff\xff\x01\x02\x03", b"\x84\x01\x02\x03\x04", b"\x0f",
    ]
    check_plain_message: [
        b"{\"type\":\"publish\",\"room\":\"r\",\"event\":\"e\",\"args\":[1,{\"a\":\"b\"}]}", b"{\"type\":\"join\",\"room\":\"r\",\"id\":7}",
        b"{\"type\":\"ping\"}", b",\"self\":true", b",\"except\":[\"x\"]", b",\"attachments\":[\"AQI=\"]",
        b"{\"_placeholder\":true,\"num\":0}", b"{", b"}", b",",
    ]
    check_publish: [
        b"\x00[\"publish\",\"r\",\"e\",1]", b"\x01[\"publish\",\"r\",\"e\",{\"_placeholder\":true,\"num\":0}]", b"\x00[\"join\",\"r\"]",
        b"[\"leave\",\"r\"]", b"{\"event\":\"e\",\"self\":true,\"id\":\"x\"}", b"]", b",", b"\"",
    ]
    check_json: [b"{\"a\":[1,-0.5e3,null]}", b"[", b"]", b"{", b"}", b",", b":", b"\"", b"\\u00e9", b"\\ud800", b"true", b" ", "é".as_bytes()]
    check_mesh_frame: [
        b"\0\0\0\0", b"\x03\x01\x00\x01", b"\x0a\x02\x11\x07\xac\x02\x09\x02ab\0", b"\x80", b"\xff\xff\xff\x7f", b"\x01\x05\x09\xff",
    ]
    check_mesh_envelope: [b"\x01\x00\x03\x01\x02\x03\x04\xc8\x01", b"\x00", b"\x01", b"\x02", b"\x05hello", b"\xff\xff\xff\xff\x0f"]
    check_gossip_packet: [
        b"\x8c\x01\x04\x00\x01\x02\x03\x04", b"\x90\x02\x00\x01\x00\x00\x00", b"\x8a\x03\x06\x00abcdef", b"\x20\x01\x01\x01", b"\x7f", b"\xff",
    ]
    check_mesh_state_machine: [
        b"\x88\x00\x01\x01\x02abc", b"\x86\x0a\x01\x01ab", b"\x81\x0f", b"\x85\x14\x01\x0b\x00\x02", b"\x82\x19\x40", b"\x04\x03\x01\x00\x01",
    ]
}

/// What nodes really say, damaged: any bytes hardly ever are an envelope.
mod envelopes {
    use super::*;
    use crate::id::{Address, NodeId, NodeRef, Placement, ShardIx};
    use crate::wire::To;

    proptest! {
        #[test]
        fn damaged_ones_come_back_or_fail(
            tag in 0_u8..12, body in prop::collection::vec(any::<u8>(), 0..120), at: prop::sample::Index, byte: u8,
        ) {
            let from = Address { node: NodeRef { id: NodeId(7), incarnation: 1 }, shard: ShardIx(0) };
            let head = wire::encode(&(from, To::Host(Placement(9))));
            let mut bytes = [&head[..], &[tag], &body].concat();
            crate::fuzz::check_mesh_envelope(&bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            crate::fuzz::check_mesh_envelope(&bytes);
        }
    }
}
