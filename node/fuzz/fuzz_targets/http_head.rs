//! Any bytes to `meshd::fuzz::check_http_head`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_http_head(bytes));
