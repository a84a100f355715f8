//! Any bytes to `meshd::fuzz::check_config_toml`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| meshd::fuzz::check_config_toml(bytes));
