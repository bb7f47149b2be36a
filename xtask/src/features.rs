//! Each feature alone, with TLS and without, and whose drivers it brings along. The list is Cargo's own.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

use crate::cargo;
use crate::child::Child;

const PACKAGE: &str = "resource-pool";
const TLS: &str = "tls";
/// What these bring along, drivers may have of their own.
const NO_DRIVERS: [&str; 2] = [TLS, "streams"];

/// Lints every feature alone and none, each with TLS and without; together with all of them these are any two features
/// in each of their four combinations. Dead code counts where all kinds are, which `_all` says; `.ci/run` lints that with
/// TLS. Then looks for drivers in the dependencies of features that do not ask for them.
pub(crate) fn run() -> Result<ExitCode, Box<dyn Error>> {
    let child = Child::catching_signals()?;
    let metadata = answer(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let features = features(&serde_json::from_str(&metadata)?)?;
    let others: Vec<_> = features.keys().map(String::as_str).filter(|feature| *feature != TLS).collect();
    let alone = others.iter().copied().chain([""]).flat_map(|one| [one.to_owned(), format!("{one} {TLS}")]);
    for chosen in alone.chain([format!("{} _all", others.join(" "))]) {
        println!("features: {chosen}");
        let mut command = cargo();
        command.args(["clippy", "--quiet", "--package", PACKAGE, "--no-default-features", "--features", &chosen]);
        let code = child.run(command.args(["--", "-D", "warnings"]))?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    for feature in features.keys() {
        let mut command = cargo();
        command.args(["tree", "--package", PACKAGE, "--edges", "normal", "--prefix", "none", "--no-default-features"]);
        let tree = answer(command.args(["--features", feature]))?;
        if let Some(driver) = uninvited(&features, feature, &tree) {
            return Err(format!("feature {feature} pulls in {driver}").into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The features of the package, but for the default; each with what it turns on.
type Features = BTreeMap<String, Vec<String>>;

fn features(metadata: &Value) -> Result<Features, Box<dyn Error>> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let package =
        packages.iter().find(|package| package["name"] == PACKAGE).ok_or("cargo metadata lacks the package")?;
    let mut features: Features = serde_json::from_value(package["features"].clone())?;
    features.retain(|name, _| name != "default" && !name.starts_with('_'));
    Ok(features)
}

/// The driver of a feature is the dependency that it names first.
fn driver<'a>(features: &'a Features, feature: &str) -> Option<&'a str> {
    features.get(feature)?.iter().find_map(|item| item.strip_prefix("dep:"))
}

/// A driver in this tree which neither the feature nor one that it turns on asks for.
fn uninvited<'a>(features: &'a Features, feature: &str, tree: &str) -> Option<&'a str> {
    let is_on = |other: &str| other == feature || features[feature].iter().any(|item| item == other);
    let others = features.keys().filter(|other| !is_on(other) && !NO_DRIVERS.contains(&other.as_str()));
    others.filter_map(|other| driver(features, other)).find(|driver| {
        let line = format!("{driver} v");
        tree.lines().any(|package| package.starts_with(&line))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_driver_that_nobody_asked_for_is_named() {
        let all = json!({"packages": [{"name": "other"}, {"name": "resource-pool", "features": {
            "default": ["redis"], "_private": [], "mongodb": ["dep:mongodb"], "r2d2": ["dep:r2d2"], "tls": ["dep:rustls"],
            "redis": ["dep:redis", "r2d2", "dep:socket2"],
        }}]});
        let features = features(&all).unwrap();
        assert_eq!(features.keys().collect::<Vec<_>>(), ["mongodb", "r2d2", "redis", "tls"]);
        let tree = "resource-pool v0.1.0\nredis v1.8.1\nr2d2 v0.8.10\nmongodb-internal v1.0.0\nrustls v0.23.0\n";
        assert_eq!(uninvited(&features, "redis", tree), None);
        assert_eq!(uninvited(&features, "mongodb", tree), Some("r2d2"));
        assert_eq!(uninvited(&features, "redis", &format!("{tree}mongodb v3.9.1\n")), Some("mongodb"));
    }
}
