//! `cargo xtask hot`: counts the instructions of the hot paths and compares them with the counts in the repository.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

use crate::child::Child;
use crate::{cargo, root, servers, target};

/// The harness compares nothing with a runner of another version.
const RUNNER: &str = "0.20.0";
/// A path that has grown by more than this many per cent fails.
const GROWTH: f64 = 5.0;
/// How much a lease may grow by the feature `metrics`, in per cent. A lease is not measured.
const NONE: f64 = 0.0;

/// Counts and compares, without the feature `metrics` and with it. With `--keep` it keeps the counts without the feature
/// instead of comparing them.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let keep = match arguments {
        [] => false,
        [flag] if flag == "--keep" => true,
        _ => return Err("expected nothing or `--keep`".into()),
    };
    for (program, remedy) in [
        ("valgrind", "`apt-get install valgrind` installs it".to_owned()),
        ("gungraun-runner", format!("`cargo install --locked gungraun-runner --version {RUNNER}` installs it")),
    ] {
        let is_there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if is_there.is_err() {
            return Err(format!("{program} is missing: {remedy}").into());
        }
    }
    let child = Child::catching_signals()?;
    servers::set_up()?;
    let counted = match count(&child, &[])? {
        Ok(counted) => counted,
        Err(failed) => return Ok(failed),
    };
    let file = root().join("benches/hot/instructions.json");
    if keep {
        fs::write(&file, serde_json::to_string_pretty(&counted)? + "\n")?;
        println!("kept in {}", file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let with_metrics = match count(&child, &["--features", "resource-pool/metrics"])? {
        Ok(counted) => counted,
        Err(failed) => return Ok(failed),
    };
    let kept = serde_json::from_slice(&fs::read(&file)?)?;
    let fine = compare(&kept, &counted, |_| GROWTH);
    println!("with the feature `metrics`:");
    let fine = compare(&counted, &with_metrics, |path| if path.starts_with("lease") { NONE } else { GROWTH }) && fine;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The instructions of each path, of a build with these arguments. Fails with the harness's exit code.
fn count(child: &Child, arguments: &[&str]) -> Result<Result<BTreeMap<String, u64>, ExitCode>, Box<dyn Error>> {
    let folder = target().join("hot");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut command = cargo();
    command.args(["bench", "--package", "hot"]).args(arguments).args(["--", "--save-summary=json"]);
    let code = child.run(command.env("GUNGRAUN_HOME", &folder))?;
    if code != ExitCode::SUCCESS {
        return Ok(Err(code));
    }
    let counted = counts(&folder)?;
    if counted.is_empty() {
        return Err(format!("nothing was counted in {}", folder.display()).into());
    }
    Ok(Ok(counted))
}

/// The instructions of each path, by its name, from the summaries below the folder.
fn counts(folder: &Path) -> Result<BTreeMap<String, u64>, Box<dyn Error>> {
    let mut counted = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            counted.extend(counts(&path)?);
        } else if path.file_name().is_some_and(|name| name == "summary.json") {
            let summary: Value = serde_json::from_slice(&fs::read(&path)?)?;
            let name = summary["function_name"].as_str();
            let metric = &summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"];
            let (Some(name), Some(count)) = (name, metric.as_u64()) else {
                return Err(format!("{} is not as the harness {RUNNER} writes it", path.display()).into());
            };
            counted.insert(name.to_owned(), count);
        }
    }
    Ok(counted)
}

/// Whether no path has grown by more per cent than it may, and each is known.
fn compare(kept: &BTreeMap<String, u64>, counted: &BTreeMap<String, u64>, may_grow: impl Fn(&str) -> f64) -> bool {
    let mut fine = kept.keys().eq(counted.keys());
    if !fine {
        println!("the paths are not those that are kept; `cargo xtask hot --keep` keeps these");
    }
    for (name, count) in counted {
        let Some(before) = kept.get(name) else { continue };
        let growth = (*count as f64 - *before as f64) * 100.0 / *before as f64;
        let is_fine = growth <= may_grow(name);
        let verdict = if is_fine { "fine" } else { "grown by more than is allowed" };
        fine &= is_fine;
        println!("{name:<20} {count:>10} instructions, {growth:+.1} % over {before}: {verdict}");
    }
    fine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_the_limit_and_unknown_paths_fail() {
        let paths = |count| BTreeMap::from([("lease".to_owned(), count)]);
        type Counts = BTreeMap<String, u64>;
        let by_five = |kept: &Counts, counted: &Counts| compare(kept, counted, |_| GROWTH);
        assert!(by_five(&paths(1000), &paths(1050)) && by_five(&paths(1000), &paths(400)));
        assert!(!by_five(&paths(1000), &paths(1051)));
        assert!(!by_five(&paths(1000), &BTreeMap::new()) && !by_five(&BTreeMap::new(), &paths(1000)));
        assert!(!compare(&paths(1000), &paths(1001), |_| NONE));
    }
}
