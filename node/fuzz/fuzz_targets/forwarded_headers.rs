//! Any bytes to `meshd::fuzz::check_forwarded_headers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_forwarded_headers(bytes));
