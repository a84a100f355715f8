//! Any bytes to `mesh_proto::fuzz::check_eio_packet`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_proto::fuzz::check_eio_packet(bytes));
