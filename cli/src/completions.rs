//! `completions`: prints a script with which a shell completes the command.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::arguments::{Arguments, CompletionsArguments};
use crate::error::Problem;

pub(crate) fn run(asked: &CompletionsArguments) -> Result<ExitCode, Problem> {
    let mut text = Vec::new();
    clap_complete::generate(asked.shell, &mut Arguments::command(), "resource-pool", &mut text);
    crate::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
