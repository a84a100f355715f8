//! Any bytes to `meshd::fuzz::check_ws_frame_stream`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_ws_frame_stream(bytes));
