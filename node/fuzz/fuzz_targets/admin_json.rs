//! Any bytes to `meshd::fuzz::check_admin_json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_admin_json(bytes));
