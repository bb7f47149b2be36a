//! What the fuzzer runs, and `tests/fuzz_replay.rs` over the corpus: the same code for both.

#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, clippy::large_enum_variant)]

pub mod config;
pub mod input;
pub mod recorder;
pub mod redaction;

use std::sync::LazyLock;

use tokio::runtime::Runtime;

/// Where all pools run their drivers: a runtime for each would take longer than what is tested.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});
