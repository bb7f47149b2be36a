//! The code that the fuzzer runs. `tests/fuzz_replay.rs` runs the same code over the corpus.

#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, clippy::large_enum_variant)]

pub mod config;
pub mod input;
pub mod recorder;
pub mod redaction;

use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// The runtime of all pools. A runtime for each case would take longer than the case itself.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});
