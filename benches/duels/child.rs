//! Runs a measurement in a process of its own: this program again, in another role.

use std::env;
use std::process::{Command, Stdio};

use crate::drivers::Urls;
use crate::{adopt, footprint, frame, lifecycle, many};

const ROLE: &str = "RESOURCE_POOL_BENCH_ROLE";

type Role = (&'static str, fn(Urls) -> Vec<f64>);

const ROLES: [Role; 18] = [
    ("tasks under the attribute", adopt::attribute),
    ("tasks elsewhere", adopt::elsewhere),
    ("tasks of the driver", adopt::driver),
    ("tasks of deadpool", adopt::deadpool),
    ("cold pool", lifecycle::cold_pool),
    ("cold drivers", lifecycle::cold_drivers),
    ("idle pool", footprint::idle_pool),
    ("idle drivers", footprint::idle_drivers),
    ("many resources", many::pool),
    ("idle frames of the driver", frame::connections::<{ frame::DRIVER }, false>),
    ("idle frames of 0", frame::connections::<0, false>),
    ("frames of the driver", frame::connections::<{ frame::DRIVER }, true>),
    ("frames of 0", frame::connections::<0, true>),
    ("frames of 4096", frame::connections::<4096, true>),
    ("frames of 8192", frame::connections::<8192, true>),
    ("frames of 16384", frame::connections::<16384, true>),
    ("frames of 32768", frame::connections::<32768, true>),
    ("frames of 65536", frame::connections::<65536, true>),
];

/// Plays the role that this process was started for. Returns whether there was one.
pub(crate) fn play() -> bool {
    let Ok(role) = env::var(ROLE) else { return false };
    let (_, play) = ROLES.into_iter().find(|(name, _)| *name == role).expect("a role");
    let figures: Vec<_> = play(Urls::from_environment()).iter().map(f64::to_string).collect();
    println!("{}", figures.join(" "));
    true
}

/// The figures that a fresh process prints in this role.
pub(crate) fn run(role: &str, urls: &Urls) -> Vec<f64> {
    run_with(role, urls, &[])
}

/// The same with further variables.
pub(crate) fn run_with(role: &str, urls: &Urls, variables: &[(&str, &str)]) -> Vec<f64> {
    let mut child = Command::new(env::current_exe().expect("this program"));
    child.env_clear().env(ROLE, role).envs(urls.variables()).envs(variables.iter().copied());
    // The errors are shown and prove nothing. A task of MongoDB's driver panics if its runtime ends while it runs.
    let output = child.stderr(Stdio::inherit()).output().expect("a child");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{role}: {:?}: {said}", output.status);
    said.split_whitespace().map(|figure| figure.parse().expect("a number")).collect()
}
