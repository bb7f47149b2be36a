//! The errors of the command. Each is two lines on the standard error: the problem and the remedy.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::paint::Paint;
use crate::table::clean;

/// An error with its remedy.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    what: String,
    remedy: String,
    code: u8,
}

impl Problem {
    /// Something failed, or is not ready. The exit code is 1.
    pub(crate) fn failed(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Problem { what: what.into(), remedy: remedy.into(), code: 1 }
    }

    /// The usage or the configuration is wrong. The exit code is 2.
    pub(crate) fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Problem { what: what.into(), remedy: remedy.into(), code: 2 }
    }

    /// The error of a configuration, which names the key to mend.
    pub(crate) fn of_config(error: &resource_pool::Error) -> Self {
        Problem::wrong(
            error.to_string(),
            "correct that key or variable; `resource-pool config` shows where values are set",
        )
    }

    /// Nobody reads the output any more, which is nobody's mistake. Nothing is told, and the exit code is 0.
    pub(crate) fn unread() -> Self {
        Problem { what: String::new(), remedy: String::new(), code: 0 }
    }

    /// The problem without its remedy.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Writes both lines, and returns the exit code.
    pub(crate) fn tell(&self) -> ExitCode {
        if self.code == 0 {
            return ExitCode::SUCCESS;
        }
        let mut err = std::io::stderr().lock();
        let paint = Paint::for_terminal(err.is_terminal());
        // Where nobody can read the error, the exit code still tells of it.
        let _ = writeln!(err, "{} {}", paint.bad("error:"), clean(&self.what));
        let _ = writeln!(err, "{} {}", paint.bold("remedy:"), clean(&self.remedy));
        ExitCode::from(self.code)
    }
}

/// Answers wrong usage in two lines, and prints help and version as clap does.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Problem::wrong("no verb is given", "run `resource-pool --help`, which lists the verbs").tell()
        }
        _ => {
            let text = error.render().to_string();
            let paragraph: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
            let what = paragraph.join(" ");
            let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
            let remedy = tip.unwrap_or("run `resource-pool --help`, or --help after the verb");
            Problem::wrong(what.strip_prefix("error: ").unwrap_or(&what), remedy).tell()
        }
    }
}
