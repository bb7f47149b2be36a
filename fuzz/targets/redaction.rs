//! Fuzzes the redaction of secrets: `body/redaction.rs`.

#![no_main]

#[path = "../body/mod.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|case: body::redaction::Case| body::redaction::check(&case));
