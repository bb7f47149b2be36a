//! `cargo xtask test`: runs every test against real servers, once or several times, alone or beside busy loops.
//!
//! The busy loops are threads that share one flag. `Loops` sets it when it drops, and then they end. There is no lock.

use std::env;
use std::error::Error;
use std::hint::spin_loop;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::cargo;
use crate::child::Child;
use crate::servers::{self, Servers};
use crate::tally::Tally;

const EXPECTED: &str = "expected `--busy N`, `--times N`, and then what `cargo test` takes";

/// Runs the tests once, or `--times N`, each round with servers of its own. `--busy N` adds so many busy loops.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let (mut busy, mut times, mut rest) = (0, 1, arguments);
    while let [flag, number, others @ ..] = rest {
        let amount = match flag.as_str() {
            "--busy" => &mut busy,
            "--times" => &mut times,
            _ => break,
        };
        *amount = number.parse().map_err(|_| format!("{flag} {number:?}: {EXPECTED}"))?;
        rest = others;
    }
    if times == 0 {
        return Err(format!("--times 0: {EXPECTED}").into());
    }
    let child = Child::catching_signals()?;
    servers::set_up()?;
    let mut tally = Tally::default();
    let mut outcome = ExitCode::SUCCESS;
    for round in 1..=times {
        if times > 1 {
            println!("== round {round} of {times}, beside {busy} busy loops");
        }
        let servers = Servers::for_tests()?;
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]);
        if !rest.iter().any(|argument| argument == "-p" || argument.starts_with("--package")) {
            // The command asks for features that the other tests are to do without. `.ci/run` tests it by itself.
            command.args(["--workspace", "--exclude", "resource-pool-cli"]);
        }
        command.args(rest).envs(servers.environment());
        // Most tests wait for a server more than they compute.
        if env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", "4");
        }
        let mut loops = None;
        let code = child.run_watched(command, |line| {
            // The loops start with the first test, so that they do not slow down the build.
            if tally.count(line) && loops.is_none() {
                loops = Some(Loops::spin(busy));
            }
        })?;
        drop(loops);
        servers.stop();
        if code != ExitCode::SUCCESS {
            outcome = code;
        }
        if child.was_signalled() {
            break;
        }
    }
    println!("{tally}");
    Ok(outcome)
}

/// Threads that only compute, until this value is dropped.
struct Loops(Arc<AtomicBool>);

impl Loops {
    fn spin(count: usize) -> Loops {
        let is_over = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        Loops(is_over)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
