//! `cargo xtask faults`: the fault suite in full, and its tables in the reference.

use crate::{cargo, child::Child, root, servers, target};
use services::Kind;
use std::error::Error;
use std::fs;
use std::process::ExitCode;

const BEGIN: &str = "<!-- written by `cargo xtask faults` -->\n";
const END: &str = "<!-- end -->\n";

/// Runs all backends, or the one that is named. Only a run of all backends replaces the tables in the page.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let known: Vec<_> = Kind::ALL.into_iter().chain([Kind::Postgres, Kind::MySql]).map(Kind::name).collect();
    let chosen = match arguments {
        [] => "all",
        [name] if known.contains(&name.as_str()) => name,
        _ => return Err(format!("expected nothing or one of {}", known.join(", ")).into()),
    };
    let child = Child::catching_signals()?;
    servers::set_up()?;
    let table = target().join("faults.md");
    let mut command = cargo();
    command
        .args(["test", "--features", "postgres,mysql", "--test", "faults", "--", "--nocapture"])
        .env("FAULTS", chosen);
    if chosen != "all" {
        return Ok(child.run(&mut command)?);
    }
    let code = child.run(command.env("FAULTS_TABLE", &table))?;
    if code == ExitCode::SUCCESS {
        let page = root().join("docs/reference/faults.md");
        fs::write(&page, replaced(&fs::read_to_string(&page)?, &fs::read_to_string(&table)?)?)?;
        println!("the table in {} is this run's", page.display());
    }
    Ok(code)
}

/// The text of the page, with this table between the marks.
fn replaced(text: &str, table: &str) -> Result<String, String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or(format!("the page has no {BEGIN}… {END}"))?;
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_place_of_the_last_one() {
        let first = replaced(&format!("a\n{BEGIN}{END}b\n"), "| 1 |\n").unwrap();
        let second = replaced(&first, "| 2 |\n").unwrap();
        assert_eq!(second, format!("a\n{BEGIN}\n| 2 |\n\n{END}b\n"));
        assert!(replaced("a\n", "").is_err());
    }
}
