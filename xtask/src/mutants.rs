//! `cargo xtask mutants`: puts one defect at a time into the core, and checks whether a test of the core finds it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::child::Child;
use crate::{cargo, root, target};

/// The files and folders of `src/lifecycle` that get defects.
const FILES: [&str; 7] = ["life", "transition", "lease", "close", "probe", "checkout", "wait"];
/// The integration tests of the core. None of them needs a server.
const TESTS: [&str; 6] = ["cancellation", "checkout", "checkout_tasks", "events", "lifecycle", "state_machine"];
/// Excluded items: those that only the models or the unit tests use, `Debug`, which is for people, and `Serialize`,
/// which is not built here.
const EXCLUDED: &str = r"open_for|open_inside_for|same_in_every_shard|check_idle|::spoil|Life<H>::check( with|$)|tests(::|\.rs)|fmt::Debug|serde::";
const MINUTES: u64 = 60;
const COPIES: &str = "copies";
/// The time limits for the tests of one mutant, in seconds: for the unit tests alone, and for all tests. A defect that
/// makes them wait for ever counts as found.
const TIMEOUTS: [&str; 2] = ["10", "90"];
/// The tests wait more than they compute. So two cores are enough for this many jobs with this many test threads each.
const JOBS: &str = "5";
const THREADS: &str = "16";
/// The exit codes of a run that tried all mutants. Some mutants may have survived or hung.
const WHOLE: [u8; 3] = [0, 2, 3];
const MISSING: &str = "cargo-mutants is missing: `cargo install --locked cargo-mutants` installs it";

/// Continues where the last run of the same folder ended, for so many minutes. Then it prints the results so far.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let (minutes, files): (u64, _) = match arguments {
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
    // A run that was interrupted leaves its copies behind.
    let copies = output.join(COPIES);
    if copies.exists() {
        fs::remove_dir_all(&copies)?;
    }
    fs::create_dir_all(&copies)?;
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    // The unit tests alone find most defects, and they build and run within a second.
    for (tests, timeout) in [&[][..], &TESTS].into_iter().zip(TIMEOUTS) {
        let left = end.saturating_duration_since(Instant::now());
        let code = child.run(&mut pass(tests, timeout, files, &output, left))?;
        known(&output)?;
        if !WHOLE.map(ExitCode::from).contains(&code) {
            break;
        }
    }
    println!("{}", table(&known(&output)?));
    Ok(ExitCode::SUCCESS)
}

/// Tries the mutants that are not known to be found, with the unit tests and these tests, for so long.
fn pass(tests: &[&str], timeout: &str, files: &[String], output: &Path, limit: Duration) -> Command {
    let plain = cargo();
    // SIGINT makes cargo-mutants end in an orderly way and keep its results.
    let mut command = Command::new("timeout");
    command.args(["--signal=INT", "--kill-after=60s", &format!("{}s", limit.as_secs().max(1))]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(root());
    // Each job builds in a copy of its own.
    command.env("TMPDIR", output.join(COPIES)).env_remove("CARGO_TARGET_DIR").env("RUST_TEST_THREADS", THREADS);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.args(["mutants", "--package", "resource-pool", "--no-default-features", "--features", "r2d2"]);
    command
        .args(["--iterate", "--no-shuffle", "--jobs", JOBS, "--timeout", timeout, "--exclude-re", EXCLUDED, "--output"])
        .arg(output);
    for file in FILES.iter().filter(|file| files.is_empty() || files.iter().any(|one| one == *file)) {
        command.args(["--file", &format!("src/lifecycle/{file}.rs"), "--file", &format!("src/lifecycle/{file}/**")]);
    }
    // The tests are named for the build too. Otherwise cargo would build every test there is.
    command.arg("--cargo-arg=--lib").args(tests.iter().map(|test| format!("--cargo-arg=--test={test}")));
    command
}

const OUTCOMES: [(&str, &str); 4] =
    [("found", "caught.txt"), ("survived", "missed.txt"), ("hung", "timeout.txt"), ("no program", "unviable.txt")];

/// The outcome of each mutant's last trial, from this run and all runs before it.
fn known(output: &Path) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let ledger = output.join("ledger.txt");
    let lines = fs::read_to_string(&ledger).unwrap_or_default();
    let pair = |line: &str| line.split_once('\t').map(|(mutant, outcome)| (mutant.to_owned(), outcome.to_owned()));
    let mut known: BTreeMap<String, String> = lines.lines().filter_map(pair).collect();
    for (outcome, file) in OUTCOMES {
        let mutants = fs::read_to_string(output.join("mutants.out").join(file)).unwrap_or_default();
        known.extend(mutants.lines().map(|mutant| (mutant.to_owned(), outcome.to_owned())));
    }
    fs::write(ledger, known.iter().map(|(mutant, outcome)| format!("{mutant}\t{outcome}\n")).collect::<String>())?;
    Ok(known)
}

/// A table of the outcomes per file, and the list of the survivors.
fn table(known: &BTreeMap<String, String>) -> String {
    let mut counts: BTreeMap<&str, [usize; OUTCOMES.len()]> = BTreeMap::new();
    for (mutant, outcome) in known {
        let column = OUTCOMES.iter().position(|(name, _)| name == outcome).unwrap_or_default();
        counts.entry(mutant.split(':').next().unwrap_or_default()).or_default()[column] += 1;
    }
    let mut text = format!("\n| file | {} |\n|---|---|---|---|---|\n", OUTCOMES.map(|(name, _)| name).join(" | "));
    for (file, counts) in counts {
        text += &format!("| `{file}` | {} |\n", counts.map(|count| count.to_string()).join(" | "));
    }
    let survivors = known.iter().filter(|(_, outcome)| *outcome == "survived").map(|(mutant, _)| format!("\n{mutant}"));
    text + &survivors.collect::<String>()
}
