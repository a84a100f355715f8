//! Any bytes to `mesh_proto::fuzz::check_sio_binary_reassembly`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_proto::fuzz::check_sio_binary_reassembly(bytes));
