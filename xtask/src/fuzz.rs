//! `cargo xtask fuzz`: runs each fuzz target for some minutes, from the committed corpus.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::cargo;
use crate::child::Child;

const TARGETS: [&str; 2] = ["config", "redaction"];
const MINUTES: u64 = 10;
/// The limits for one input: its time in seconds, the memory in MiB, and its length in bytes.
const LIMITS: [&str; 3] = ["-timeout=60", "-rss_limit_mb=2048", "-max_len=1024"];
const MISSING: &str = "cargo-fuzz is missing: `cargo install --locked cargo-fuzz` installs it; libFuzzer needs a C++ \
                       compiler (`apt-get install g++`)";

/// Runs the targets one after the other and says how it went.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let minutes = match arguments {
        [] => MINUTES,
        [flag, minutes] if flag == "--minutes" => minutes.parse()?,
        _ => return Err("expected nothing or `--minutes N`".into()),
    };
    let is_there = cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !is_there.success() {
        return Err(MISSING.into());
    }
    let child = Child::catching_signals()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("fuzz");
    println!("== building");
    if child.run(&mut fuzz("build", &folder))? != ExitCode::SUCCESS {
        return Err("the targets do not build".into());
    }
    let mut found = Vec::new();
    for (number, target) in (1..).zip(TARGETS) {
        println!("== target {number} of {}: {target}, for {minutes} minutes", TARGETS.len());
        // New inputs go there. The fuzzer only reads the committed corpus.
        let new = folder.join("target/corpus").join(target);
        fs::create_dir_all(&new)?;
        let mut command = fuzz("run", &folder);
        command.arg(target).args([&new, &folder.join("corpus").join(target)]).arg("--").args(LIMITS);
        command.args(["-print_final_stats=1".to_owned(), format!("-max_total_time={}", minutes * 60)]);
        if child.run(&mut command)? != ExitCode::SUCCESS {
            found.push(target);
        }
    }
    if found.is_empty() {
        println!("no finding in {minutes} minutes each: {}", TARGETS.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "findings: {}; the inputs are in fuzz/artifacts, and `cargo fuzz fmt TARGET INPUT` shows one",
        found.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// This crate is all safe Rust, so no sanitizer is needed. The coverage instruments of libFuzzer are part of the
/// compiler. The stable compiler has them too, but `RUSTC_BOOTSTRAP` is needed to use them.
fn fuzz(verb: &str, folder: &Path) -> Command {
    let mut command = cargo();
    command.env("RUSTC_BOOTSTRAP", "1").current_dir(folder);
    // Cargo sets these variables for xtask. With them, it would build the dependencies anew.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name.to_string_lossy().starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command.args(["fuzz", verb, "--fuzz-dir"]).arg(folder).args(["--sanitizer", "none"]);
    command
}
