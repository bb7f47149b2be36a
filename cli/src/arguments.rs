//! The arguments of each verb.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Checks what resource-pool is configured for, and shows the status of a running pool.
///
/// Exit codes: 0 if all is well, 1 if something failed or is not ready, 2 if usage or configuration is wrong.
#[derive(Debug, Parser)]
#[command(name = "resource-pool", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Connects to everything that is configured, pings it, and says what is wrong
    Check(CheckArguments),
    /// Prints the effective configuration, with the place that set each value
    Config(ConfigArguments),
    /// Waits until everything that is configured is ready, for start-up scripts
    Wait(WaitArguments),
    /// Shows the resources of a running pool
    Status(AdminArguments),
    /// Shows who holds leases and checkouts of a running pool
    Holders(AdminArguments),
    /// Shows the events of a running pool, without those that only repeat others unless as JSON
    Events(EventsArguments),
    /// Shows the status page of a running pool in the terminal
    Watch(WatchArguments),
    /// Prints completions for a shell
    Completions(CompletionsArguments),
    /// Prints the manual page, or that of one verb
    Man(ManArguments),
}

/// The configuration to use.
#[derive(Debug, Args)]
pub(crate) struct FileArguments {
    /// The TOML file, instead of the one that RESOURCE_POOL_CONFIG names
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// The arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// The resources to check, instead of all that are configured
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) file: FileArguments,
    /// The longest time that connecting to one resource may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    /// The resources to print, instead of the pool's options and all resources that are configured
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) file: FileArguments,
    /// Prints only the values that are not defaults
    #[arg(long)]
    pub(crate) changed: bool,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `wait`.
#[derive(Debug, Args)]
pub(crate) struct WaitArguments {
    /// The resources to wait for, instead of all that are configured
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) file: FileArguments,
    /// The longest time to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// The running pool to ask.
#[derive(Debug, Args)]
pub(crate) struct AddressArguments {
    /// The address of the pool's admin
    #[arg(
        long,
        value_name = "URL",
        env = "RESOURCE_POOL_ADMIN",
        default_value = "http://127.0.0.1:9099",
        hide_env_values = true
    )]
    pub(crate) admin: String,
    /// The file that has the token, instead of RESOURCE_POOL_ADMIN_TOKEN or the file that RESOURCE_POOL_ADMIN_TOKEN_FILE
    /// names
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The longest time that an answer may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// The arguments of `status` and `holders`.
#[derive(Debug, Args)]
pub(crate) struct AdminArguments {
    #[command(flatten)]
    pub(crate) address: AddressArguments,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    #[command(flatten)]
    pub(crate) address: AddressArguments,
    /// How many past events to print, at most 200
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=200))]
    pub(crate) last: u16,
    /// Goes on with the events to come, until the pool is closed
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Prints each event as one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    #[command(flatten)]
    pub(crate) address: AddressArguments,
}

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// The shell
    pub(crate) shell: Shell,
}

/// The arguments of `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// The verb, instead of the whole command
    pub(crate) verb: Option<String>,
}

/// The longest limit that can be set.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads a limit: `500ms`, `5s`, `2m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(digits.len());
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("the unit is ms, s, m or h".to_owned()),
    };
    let seconds = number.parse::<f64>().map_err(|_| "write 500ms, 5s or 2m".to_owned())? * scale;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && limit <= LONGEST => Ok(limit),
        _ => Err("must be from 1ms to 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::{Arguments, duration};

    #[test]
    fn the_arguments_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn limits_have_units() {
        for (text, millis) in [("500ms", 500), ("5", 5_000), ("1.5s", 1_500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "-1s", "5d", "25h", "nan", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
