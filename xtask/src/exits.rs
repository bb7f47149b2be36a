//! Every way a process can end, many times over, and under a sanitizer.

use crate::cargo;
use crate::child::Child;
use std::env;
use std::error::Error;
use std::process::ExitCode;

const ROUNDS: &str = "20";
/// A target folder of its own, because no other build can use code built with the sanitizer's flags.
const TARGET_DIR: &str = "target/sanitize";

/// Runs the table of `tests/exits.rs`, which prints its progress and a summary.
pub(crate) fn exits(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    services::install(&services::Kind::ALL)?;
    services::install(&[services::Kind::Postgres, services::Kind::MySql])?;
    let (rounds, filters) = match arguments {
        [flag, rounds, filters @ ..] if flag == "--rounds" => (rounds.as_str(), filters),
        filters => (ROUNDS, filters),
    };
    rounds.parse::<usize>().map_err(|_| format!("{rounds:?} is no number of rounds"))?;
    let mut command = cargo();
    command
        .args(["test", "--features", "postgres,mysql,sqlite", "--test", "exits", "--"])
        .args(filters)
        .env("EXIT_ROUNDS", rounds);
    Ok(child.run(&mut command)?)
}

/// Runs the same table on Redis alone, under AddressSanitizer. The sanitizer sees the unsafe code of this crate, of the
/// standard library and of the drivers, as far as it is compiled here.
pub(crate) fn sanitize(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    services::install(&[services::Kind::Redis])?;
    let mut command = cargo();
    // Naming the target keeps build scripts and macros free of the sanitizer.
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    command.args(["test", "--test", "exits", "--target", &target, "--target-dir", TARGET_DIR]);
    command.args(["--no-default-features", "--features", "redis", "--"]).args(arguments);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // A process that ends by `exit` still holds memory, some of which is unreachable. That is no leak of interest.
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1:exitcode=99");
    if env::var_os("EXIT_ROUNDS").is_none() {
        command.env("EXIT_ROUNDS", "1");
    }
    Ok(child.run(&mut command)?)
}
