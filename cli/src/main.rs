//! The command `resource-pool`: checks what is configured, and shows the status of a running pool.

mod arguments;
mod check;
mod client;
mod clock;
mod completions;
mod config;
mod error;
mod events;
mod finding;
mod holders;
mod loaded;
mod man;
mod model;
mod paint;
mod port;
mod progress;
mod status;
mod stream;
mod table;
mod wait;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Verb};
use crate::error::Problem;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return error::usage(&error),
    };
    let done = match arguments.verb {
        Verb::Completions(asked) => completions::run(&asked),
        Verb::Man(asked) => man::run(&asked),
        Verb::Config(asked) => config::run(&asked),
        verb => in_runtime(verb),
    };
    match done {
        Ok(code) => code,
        Err(problem) => problem.tell(),
    }
}

/// Runs a verb that talks to servers.
fn in_runtime(verb: Verb) -> Result<ExitCode, Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| {
        Problem::failed(format!("no threads to work with: {error}"), "raise the limit on processes (ulimit -u)")
    })?;
    runtime.block_on(async {
        match verb {
            Verb::Check(asked) => check::run(&asked).await,
            Verb::Wait(asked) => wait::run(&asked).await,
            Verb::Status(asked) => status::run(&asked).await,
            Verb::Holders(asked) => holders::run(&asked).await,
            Verb::Events(asked) => events::run(&asked).await,
            Verb::Watch(asked) => watch::run(&asked).await,
            Verb::Config(_) | Verb::Completions(_) | Verb::Man(_) => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Writes to the standard output. If its reader has gone, such as `head`, the command ends without a word.
fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Problem::unread(),
        _ => Problem::failed(format!("the output cannot be written: {error}"), "see where it is redirected to"),
    })
}
