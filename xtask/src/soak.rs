//! `cargo xtask soak`: mixed load and faults, for as long as you like.

use crate::{cargo, child::Child, servers};
use std::error::Error;
use std::process::ExitCode;

const MINUTES: &str = "20";

/// Takes `--minutes N`, and `--seed N` to repeat the faults of an earlier run.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    let mut command = cargo();
    command.args(["test", "--test", "soak", "--", "--nocapture"]).env("SOAK_MINUTES", MINUTES);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let variable = match word.as_str() {
            "--minutes" => "SOAK_MINUTES",
            "--seed" => "SOAK_SEED",
            other => return Err(format!("unknown argument {other}; known are --minutes N and --seed N").into()),
        };
        let number: u64 = words.next().ok_or(format!("{word} needs a number"))?.parse()?;
        command.env(variable, number.to_string());
    }
    servers::set_up()?;
    Ok(child.run(&mut command)?)
}
