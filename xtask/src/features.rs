//! `cargo xtask features`: lints each feature alone, with TLS and without, and checks whose drivers it brings along.
//! Cargo itself lists the features.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

use crate::cargo;
use crate::child::Child;

const PACKAGE: &str = "resource-pool";
const TLS: &str = "tls";
/// Features that name no driver first. A driver may depend on the crates that these bring along.
const NO_DRIVERS: [&str; 4] = [TLS, "processes", "streams", "tower"];

/// Lints every feature alone, and no feature at all, each with TLS and without. The last run has all features but TLS.
/// That covers any two features in each of their four combinations. Only the run with `_all` counts dead code;
/// `.ci/run` lints that with TLS too. Then this looks for drivers in the dependencies of features that do not ask for
/// them.
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

/// The features of the package except `default` and the internal ones (`_…`), each with the items that it turns on.
type Features = BTreeMap<String, Vec<String>>;

fn features(metadata: &Value) -> Result<Features, Box<dyn Error>> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let package =
        packages.iter().find(|package| package["name"] == PACKAGE).ok_or("cargo metadata lacks the package")?;
    let mut features: Features = serde_json::from_value(package["features"].clone())?;
    features.retain(|name, _| name != "default" && !name.starts_with('_'));
    Ok(features)
}

/// The driver of a feature is the first dependency in its list. `sqlx/mysql` stands for the crate `sqlx-mysql`.
fn driver(features: &Features, feature: &str) -> Option<String> {
    let of_sqlx =
        |item: &str| item.strip_prefix("sqlx/").map(|driver| format!("sqlx-{}", driver.trim_end_matches("-bundled")));
    let own = |item: &String| item.strip_prefix("dep:").map(str::to_owned).or_else(|| of_sqlx(item));
    features.get(feature)?.iter().find_map(own)
}

/// A driver in this dependency tree that neither the feature nor a feature turned on by it asks for.
fn uninvited(features: &Features, feature: &str, tree: &str) -> Option<String> {
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
            "redis": ["dep:redis", "r2d2", "dep:socket2"], "mysql": ["sqlx/mysql", "_sql"], "sqlite": ["sqlx/sqlite-bundled"],
        }}]});
        let features = features(&all).unwrap();
        assert_eq!(features.keys().collect::<Vec<_>>(), ["mongodb", "mysql", "r2d2", "redis", "sqlite", "tls"]);
        let tree = "resource-pool v0.1.0\nredis v1.8.1\nr2d2 v0.8.10\nmongodb-internal v1.0.0\nrustls v0.23.0\n";
        assert_eq!(uninvited(&features, "redis", tree), None);
        assert_eq!(uninvited(&features, "mongodb", tree).as_deref(), Some("r2d2"));
        assert_eq!(uninvited(&features, "redis", &format!("{tree}mongodb v3.9.1\n")).as_deref(), Some("mongodb"));
        let tree = "sqlx v0.9.0\nsqlx-mysql v0.9.0\n";
        assert_eq!(uninvited(&features, "mysql", tree), None);
        assert_eq!(uninvited(&features, "sqlite", tree).as_deref(), Some("sqlx-mysql"));
    }
}
