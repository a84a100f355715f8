//! Any bytes to `meshd::fuzz::check_http_body`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_http_body(bytes));
