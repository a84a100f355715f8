//! Any bytes to `meshd::fuzz::check_query_eio`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_query_eio(bytes));
