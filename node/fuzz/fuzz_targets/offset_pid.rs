//! Any bytes to `mesh_proto::fuzz::check_offset_pid`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_proto::fuzz::check_offset_pid(bytes));
