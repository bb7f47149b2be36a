//! `cargo xtask bench`: runs the duels, and makes the table and the plots of the rows that they write.

use crate::results::{self, Machine, Run};
use crate::{cargo, child::Child, root, servers, size, target};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::process::{Command, ExitCode};

/// The crates whose versions each run records: this one, the drivers and the pools it is compared with.
const CRATES: [&str; 11] =
    ["resource-pool", "mongodb", "lapin", "clickhouse", "redis", "sqlx", "tokio", "r2d2", "deadpool", "bb8", "mobc"];

/// Runs the parts whose names contain one of these words. Without words it runs all parts except the sizes. A part that
/// does not run keeps its earlier figures.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let folder = root().join("benches");
    if arguments == ["--render"] {
        results::write(&folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = arguments.iter().find(|argument| argument.starts_with('-')) {
        return Err(format!("expected names of parts or --render, not {unknown}").into());
    }
    let (sizes, parts): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| *argument == size::NAME);
    let child = Child::catching_signals()?;
    let fresh = target().join("bench");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let run = Run::of_this_machine()?;
    let mut code = ExitCode::SUCCESS;
    if sizes.is_empty() || !parts.is_empty() {
        servers::set_up()?;
        let mut command = cargo();
        command
            .args([
                "bench",
                "--features",
                "postgres,mysql,sqlite,http,metrics",
                "--bench",
                "duels",
                "--bench",
                "allocations",
                "--",
            ])
            .args(parts)
            .env("RESOURCE_POOL_BENCH_FOLDER", &fresh);
        code = child.run(&mut command)?;
    }
    if !sizes.is_empty() {
        size::run(&child, &fresh)?;
    }
    // The bench writes a part down as soon as the part is done. So a failure does not lose the parts before it.
    let mut measured = Vec::new();
    if fresh.exists() {
        for mut part in results::read(&fresh)? {
            part.head.run = Some(run.clone());
            part.keep(&folder.join(results::KEPT))?;
            measured.push(part.head.name);
        }
    }
    if measured.is_empty() {
        println!("no part is done, so nothing is changed");
        return Ok(code);
    }
    if arguments.is_empty() && code == ExitCode::SUCCESS {
        // The sizes run only by request, so their figures stay.
        let kept: Vec<_> = measured.iter().map(String::as_str).chain([size::NAME]).collect();
        results::forget_all_but(&kept, &folder)?;
    }
    results::write(&folder)?;
    println!("measured: {}; {}", measured.join(", "), folder.join(results::TABLE).display());
    Ok(code)
}

impl Run {
    fn of_this_machine() -> Result<Run, Box<dyn Error>> {
        let changes = ["status", "--porcelain", "--", ".", ":!benches/results", ":!benches/plots", ":!benches/*.md"];
        let commit = said("git", &["rev-parse", "--short", "HEAD"])?;
        let is_clean = said("git", &changes)?.is_empty();
        let machine = Machine {
            cpu: field("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory: memory(&field("/proc/meminfo", "MemTotal")?)?,
            // The numbers behind the second dot belong to the distribution's build.
            kernel: said("uname", &["-r"])?.split('.').take(2).collect::<Vec<_>>().join("."),
            rustc: said("rustc", &["--version"])?.split(' ').take(2).collect::<Vec<_>>().join(" "),
        };
        let lock = fs::read_to_string(root().join("Cargo.lock"))?;
        Ok(Run {
            date: said("date", &["-u", "+%Y-%m-%d"])?,
            commit: if is_clean { commit } else { format!("{commit} with changes") },
            machine,
            crates: versions(&lock),
        })
    }
}

/// The standard output of a command, trimmed.
fn said(program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program).args(arguments).current_dir(root()).output()?;
    if !output.status.success() {
        return Err(format!("{program} {}: {}", arguments.join(" "), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The value of the first line `name : value`.
fn field(file: &str, name: &str) -> Result<String, Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    Ok(value.ok_or_else(|| format!("{file} has no {name}"))?.trim().to_owned())
}

fn memory(kibibytes: &str) -> Result<String, Box<dyn Error>> {
    let number: f64 = kibibytes.trim_end_matches(" kB").parse()?;
    Ok(format!("{:.1} GiB", number / 1024.0 / 1024.0))
}

fn versions(lock: &str) -> BTreeMap<String, String> {
    let of = |name: &str| {
        let begin = format!("\nname = \"{name}\"\nversion = \"");
        let found = lock.split(&begin).skip(1).filter_map(|rest| rest.split('"').next());
        found.collect::<Vec<_>>().join(", ")
    };
    let all = CRATES.map(|name| (name.to_owned(), of(name)));
    all.into_iter().filter(|(_, version)| !version.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_the_versions_are_told() {
        let run = Run::of_this_machine().unwrap();
        assert!(run.machine.cores > 0 && run.machine.memory.ends_with(" GiB"), "{run:?}");
        assert!(run.machine.rustc.starts_with("rustc 1.") && run.date.len() == 10, "{run:?}");
        assert!(run.crates.contains_key("resource-pool") && run.crates.contains_key("lapin"), "{run:?}");
    }

    /// Nobody writes a figure by hand, so without rows there is no table either.
    #[test]
    fn the_table_and_the_plots_are_what_the_rows_say() {
        let folder = root().join("benches");
        let kept = folder.join(results::KEPT);
        let parts = if kept.exists() { results::read(&kept).unwrap() } else { Vec::new() };
        let table = fs::read_to_string(folder.join(results::TABLE)).ok();
        assert_eq!(table, (!parts.is_empty()).then(|| results::table(&parts)));
        let plots: BTreeMap<_, _> = results::plots(&parts).collect();
        let there = fs::read_dir(folder.join(results::PLOTS)).into_iter().flatten().map(|file| file.unwrap());
        let text = |file: fs::DirEntry| fs::read_to_string(file.path()).unwrap();
        let there: BTreeMap<_, _> = there.map(|file| (file.file_name().into_string().unwrap(), text(file))).collect();
        assert_eq!(plots, there);
    }
}
