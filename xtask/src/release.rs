//! `cargo xtask package` and `cargo xtask semver`: what has to hold before a release.

use std::error::Error;
use std::process::{Command, ExitCode};

use crate::cargo;

const CRATES: [&str; 4] = ["-p", "resource-pool-macros", "-p", "resource-pool"];
/// The folders that users of the crate do not need.
const NOT_FOR_USERS: [&str; 8] =
    ["benches/", "examples/data/", "fuzz/", "models/", "services/", "tests/", "xtask/", "target/"];

/// Packs both crates, and checks that they have what users need and nothing else. `--verify` compiles them as users
/// would.
pub(crate) fn package(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let verify = match arguments {
        [] => false,
        [flag] if flag == "--verify" => true,
        _ => return Err("expected `--verify`, or nothing".into()),
    };
    let listed = cargo().args(["package", "--list", "--allow-dirty", "-p", "resource-pool"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let files: Vec<_> = listed.lines().collect();
    println!("resource-pool has {} files", files.len());
    for needed in ["Cargo.toml", "README.md", "RESOURCE_MANAGER.md", "CHANGELOG.md", "LICENSE-MIT", "src/lib.rs"] {
        if !files.contains(&needed) {
            return Err(format!("{needed} is not in the package").into());
        }
    }
    if let Some(file) = files.iter().find(|file| NOT_FOR_USERS.iter().any(|folder| file.starts_with(folder))) {
        return Err(format!("{file} is in the package, and no user needs it").into());
    }
    let mut command = cargo();
    command.args(["package", "--allow-dirty"]).args(CRATES);
    if !verify {
        command.arg("--no-verify");
    }
    run(&mut command)
}

/// Compares the public interface with that of a revision, by default the last tag.
pub(crate) fn semver(arguments: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    if !cargo().args(["semver-checks", "--version"]).output()?.status.success() {
        return Err("this needs cargo-semver-checks: cargo install --locked cargo-semver-checks".into());
    }
    let baseline = match arguments {
        [revision] => revision.clone(),
        [] => {
            let tag = Command::new("git").args(["describe", "--tags", "--abbrev=0"]).output()?;
            let tag = String::from_utf8(tag.stdout)?.trim().to_owned();
            if tag.is_empty() {
                return Err("there is no tag to compare with; say a revision: cargo xtask semver REVISION".into());
            }
            tag
        }
        _ => return Err("expected one revision, or nothing".into()),
    };
    run(cargo().args(["semver-checks", "--all-features", "-p", "resource-pool", "--baseline-rev", &baseline]))
}

fn run(command: &mut Command) -> Result<ExitCode, Box<dyn Error>> {
    Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
