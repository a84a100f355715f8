//! What must hold for any bytes that come in from outside: one function for each decoder.
//!
//! Belongs here: `check_*(bytes)`, which panics where a promise is broken. The fuzz targets (`node/fuzz`) and the tests
//! beside this call the same functions, these with bytes of proptest.
//! Stays out: single cases, which stand beside their decoders; decoders of `node` (`meshd::fuzz`).
//! Promises: no panic; what is read and written again is read the same; how a stream is split makes no difference;
//! bounds hold.

mod clients;
mod mesh;
#[cfg(any(test, feature = "fuzz-near"))]
mod near;
#[cfg(test)]
mod tests;

pub use clients::{
    check_eio_packet, check_json, check_offset_pid, check_plain_message, check_polling_payload,
    check_publish, check_sio_binary_reassembly, check_sio_packet,
};
pub use mesh::{check_gossip_packet, check_mesh_envelope, check_mesh_frame, check_mesh_state_machine};
#[cfg(any(test, feature = "fuzz-near"))]
pub use near::near;

/// Takes `bytes` apart: the first byte of each piece says how long it is and, by its highest bit, of which of two
/// kinds.
pub fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    std::iter::from_fn(move || {
        let (&head, rest) = bytes.split_first()?;
        let (piece, rest) = rest.split_at(usize::from(head & 0x7f).min(rest.len()));
        bytes = rest;
        Some((head & 0x80 != 0, piece))
    })
}
