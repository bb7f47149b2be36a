//! Mutants: the core with one defect at a time put in, and whether a test of the core's own finds it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::child::Child;
use crate::{cargo, root, target};

const FILES: [&str; 6] = ["life", "lease", "close", "probe", "checkout", "wait"];
/// None of these needs a server.
const TESTS: [&str; 4] = ["cancellation", "checkout", "lifecycle", "state_machine"];
/// The kill switch cuts sockets, so the backends' tests are what finds its defects.
const EXCLUDED: &str = "KillSwitch|Killable|Guarded|in check$|was_cut";
const MINUTES: u64 = 60;
/// The tests of one mutant, in seconds. A defect that has them wait for ever counts as found.
const TIMEOUT: &str = "180";
const MISSING: &str = "cargo-mutants is missing: `cargo install --locked cargo-mutants` installs it";

/// Goes on where the last run of the same folder ended, for so many minutes, and prints what there is until then.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let (minutes, files) = match arguments {
        [flag, minutes, files @ ..] if flag == "--minutes" => (minutes.parse()?, files),
        files => (MINUTES, files),
    };
    if let Some(unknown) = files.iter().find(|file| !FILES.contains(&file.as_str())) {
        return Err(format!("no file {unknown:?}; expected `--minutes N`, and some of {}", FILES.join(", ")).into());
    }
    let is_there = cargo().args(["mutants", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !is_there.success() {
        return Err(MISSING.into());
    }
    let child = Child::catching_signals()?;
    let output = target().join("mutants");
    fs::create_dir_all(&output)?;
    let plain = cargo();
    // It ends by itself once interrupted, and keeps what it knows.
    let mut command = Command::new("timeout");
    command.args(["--signal=INT", "--kill-after=60s", &format!("{minutes}m")]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(root());
    // What it builds is kept, though each run builds in a folder of its own.
    command.env("CARGO_TARGET_DIR", output.join("target"));
    command.args(["mutants", "--package", "resource-pool", "--no-default-features", "--features", "r2d2"]);
    command
        .args(["--iterate", "--no-shuffle", "--timeout", TIMEOUT, "--exclude-re", EXCLUDED, "--output"])
        .arg(&output);
    for file in FILES.iter().filter(|file| files.is_empty() || files.iter().any(|one| one == *file)) {
        command.args(["--file", &format!("src/{file}.rs")]);
    }
    command.arg("--").args(TESTS.iter().flat_map(|test| ["--test", test]));
    child.run(&mut command)?;
    println!("{}", table(&output.join("mutants.out"))?);
    Ok(ExitCode::SUCCESS)
}

/// How many of each file were found, survived, hung, and did not compile; and the survivors.
fn table(results: &Path) -> Result<String, Box<dyn Error>> {
    const COLUMNS: [(&str, &[&str]); 4] = [
        ("found", &["caught.txt", "previously_caught.txt"]),
        ("survived", &["missed.txt"]),
        ("hung", &["timeout.txt"]),
        ("no program", &["unviable.txt"]),
    ];
    let mut counts: BTreeMap<String, [usize; 4]> = BTreeMap::new();
    let mut survivors = String::new();
    for (column, (name, files)) in COLUMNS.iter().enumerate() {
        for file in *files {
            for mutant in fs::read_to_string(results.join(file)).unwrap_or_default().lines() {
                let file = mutant.split(':').next().unwrap_or_default();
                counts.entry(file.to_owned()).or_default()[column] += 1;
                if *name == "survived" {
                    survivors += &format!("{mutant}\n");
                }
            }
        }
    }
    let mut text = String::from("\n| file |");
    COLUMNS.iter().for_each(|(name, _)| text += &format!(" {name} |"));
    text += "\n|---|---|---|---|---|\n";
    for (file, counts) in counts {
        text += &format!("| `{file}` |");
        counts.iter().for_each(|count| text += &format!(" {count} |"));
        text.push('\n');
    }
    Ok(format!("{text}\n{survivors}"))
}
