//! Fuzzes the configuration: `body/config.rs`.

#![no_main]

#[path = "../body/mod.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|case: body::config::Case| body::config::check(&case));
