//! Runs `fuzz/corpus`, the inputs that the fuzzer kept, through the code that the fuzzer runs.

#![cfg(all(feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
#![allow(missing_docs)]

#[path = "../fuzz/body/mod.rs"]
mod body;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};

/// Runs each file of a target's corpus, decoded as the fuzzer does it.
fn replay<C: for<'a> Arbitrary<'a> + std::fmt::Debug>(target: &str, check: fn(&C)) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus in {}", folder.display());
    let check_file = |file: &PathBuf| {
        let bytes = fs::read(file).unwrap();
        check(&C::arbitrary_take_rest(Unstructured::new(&bytes)).expect("bytes that stand for something"));
    };
    let fails = |file: &&PathBuf| catch_unwind(AssertUnwindSafe(|| check_file(file))).is_err();
    let failed: Vec<_> = files.iter().filter(fails).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn fuzz_replay() {
    replay("config", body::config::check);
    replay("redaction", body::redaction::check);
}
