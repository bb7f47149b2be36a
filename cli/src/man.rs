//! `man`: prints manual pages.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::arguments::{Arguments, ManArguments};
use crate::error::Problem;

pub(crate) fn run(asked: &ManArguments) -> Result<ExitCode, Problem> {
    let mut command = Arguments::command();
    command.build();
    let page = match &asked.verb {
        None => Man::new(command),
        Some(verb) => {
            let Some(found) = command.find_subcommand(verb) else {
                return Err(Problem::wrong(
                    format!("there is no verb {verb:?}"),
                    "run `resource-pool --help`, which lists the verbs",
                ));
            };
            let title = format!("resource-pool-{verb}");
            Man::new(found.clone()).title(title)
        }
    };
    let mut text = Vec::new();
    page.render(&mut text).map_err(|error| Problem::failed(format!("no page: {error}"), "run it again"))?;
    crate::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
