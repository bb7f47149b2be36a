//! Child processes: real ones, with their groups, whose ends the kernel's table of processes proves.

#![cfg(all(feature = "processes", target_os = "linux"))]
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::Duration;

use common::until;
use resource_pool::config::Options;
use resource_pool::{Child, ChildProcess, Error, Health, Lease, Outcome, Phase, ResourcePool, State, What, blocking};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool_of(change: impl FnOnce(&mut Options)) -> blocking::ResourcePool {
    let mut options = common::unhurried();
    (options.health.each, options.health.all, options.health.slow) = (SOON, SOON, SOON);
    change(&mut options);
    blocking::ResourcePool::builder().environment([("", ""); 0]).options(options).build().unwrap()
}

fn pool() -> blocking::ResourcePool {
    pool_of(|_| {})
}

fn sleeps() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

/// A shell that runs this script, with its standard output to be read.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(std::process::Stdio::piped());
    command
}

/// Whether the process runs. One that has ended and was not reaped does not.
fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Reads so many lines of the child's output.
fn lines(child: &Lease<Child>, count: usize) -> Vec<String> {
    let output = BufReader::new(child.take_stdout().unwrap().unwrap());
    output.lines().take(count).map(Result::unwrap).collect()
}

fn ids(lines: &[String]) -> Vec<u32> {
    lines.iter().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_child_is_started_once_and_ended_in_its_phase() {
    let pool = pool();
    let child = pool.child("sleeper", sleeps()).unwrap();
    let line = line!() - 1;
    let id = child.id().unwrap().unwrap();
    assert!(runs(id));
    assert_eq!(pool.child("sleeper", sleeps()).unwrap().id().unwrap(), Some(id));
    for other in [Command::new("sleep"), shell("sleep 1000")] {
        let error = pool.child("sleeper", other).unwrap_err();
        assert!(
            matches!(&error, Error::NameTaken { problem, .. } if problem.contains("another configuration")),
            "{error}"
        );
    }
    let status = pool.status();
    let resource = status.resource("sleeper").unwrap();
    assert_eq!((resource.kind, &*resource.endpoint, resource.usage.open), (Some("child"), "sleep", Some(1)));
    assert!(pool.holders().iter().any(|holder| holder.site.line() == line), "{:?}", pool.holders());
    assert_eq!(pool.health_check().unwrap().entry("sleeper").unwrap().health, Health::Pass);
    // It has a group of its own, so that a terminal's signals do not reach it.
    let group = nix_group(id);
    assert_eq!(group, id);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("sleeper").unwrap().phase, Phase::Tasks);
    assert!(!runs(id));
    assert_eq!(child.id().unwrap(), None);
    assert_eq!(child.exit_status().unwrap().unwrap().to_string(), "signal: 15 (SIGTERM)");
    assert!(matches!(pool.child("sleeper", sleeps()), Err(Error::Closed { .. })));
}

fn nix_group(id: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().parse().unwrap()
}

#[test]
fn all_that_a_child_has_started_is_ended() {
    let pool = pool();
    let waits = pool.child("waits", shell("sleep 1000 & echo $!; sh -c 'sleep 1000 & echo $!; wait' & wait")).unwrap();
    let mut all = ids(&lines(&waits, 2));
    // This one ends by itself, and leaves another one to the group.
    let leaves = pool.child("leaves", shell("sleep 1000 >&- & echo $!")).unwrap();
    all.extend(ids(&lines(&leaves, 1)));
    assert!(leaves.wait_blocking().unwrap().unwrap().success());
    assert!(all.len() == 3 && all.iter().all(|id| runs(*id)));
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(!all.iter().any(|id| runs(*id)), "{all:?}");
}

const IGNORES: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";

#[test]
fn a_child_that_ignores_sigterm_is_killed() {
    let pool = pool();
    let deaf = pool.child("deaf", ChildProcess::new(shell(IGNORES)).grace(Duration::from_millis(200))).unwrap();
    assert_eq!(lines(&deaf, 1), ["ready"]);
    let id = deaf.id().unwrap().unwrap();
    let other = pool.child("other", sleeps()).unwrap();
    let report = pool.close_all().unwrap();
    let outcome = &report.step("deaf").unwrap().outcome;
    assert!(matches!(outcome, Outcome::Failed(why) if why.contains("200ms of SIGTERM, and was killed")), "{outcome:?}");
    assert_eq!(report.step("other").unwrap().outcome, Outcome::Closed);
    assert!(!runs(id) && other.id().unwrap().is_none());
}

#[test]
fn a_step_that_is_shorter_than_the_grace_kills() {
    let pool = pool_of(|options| options.close.long_step = Duration::from_millis(300));
    let deaf = pool.child("deaf", ChildProcess::new(shell(IGNORES)).grace(Duration::from_secs(60))).unwrap();
    assert_eq!(lines(&deaf, 1), ["ready"]);
    let id = deaf.id().unwrap().unwrap();
    let report = pool.close_all().unwrap();
    assert_eq!(report.step("deaf").unwrap().outcome, Outcome::Forced, "{report}");
    assert!(!runs(id));
}

#[test]
fn a_child_that_is_stopped_hears_sigterm() {
    let pool = pool();
    let child =
        pool.child("stopped", shell("trap 'echo heard; exit 0' TERM; echo ready; while :; do sleep 0.05; done"));
    let child = child.unwrap();
    let mut output = BufReader::new(child.take_stdout().unwrap().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "ready");
    let id = child.id().unwrap().unwrap();
    assert!(Command::new("kill").args(["-STOP", &id.to_string()]).status().unwrap().success());
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(output.next().unwrap().unwrap(), "heard");
    assert_eq!(child.exit_status().unwrap().unwrap().code(), Some(0));
}

#[test]
fn a_child_that_ends_by_itself_is_told_by_health_and_is_no_loss() {
    let pool = pool_of(|options| options.health.cache = Duration::ZERO);
    let mut events = pool.events();
    let (done, failed) =
        (pool.child("done", Command::new("true")).unwrap(), pool.child("failed", shell("exit 3")).unwrap());
    assert!(done.wait_blocking().unwrap().unwrap().success());
    assert_eq!(failed.wait_blocking().unwrap().unwrap().code(), Some(3));
    let report = pool.health_check().unwrap();
    assert_eq!(report.entry("done").unwrap().health, Health::Pass, "{report}");
    let entry = report.entry("failed").unwrap();
    assert!(entry.health == Health::Fail && entry.error.as_ref().unwrap().contains("exit status: 3"), "{entry:?}");
    let warned = events.find_map(|event| match event.unwrap().what {
        What::Warned { error, .. } => error,
        _ => None,
    });
    assert_eq!(warned.unwrap(), "it ended by itself: exit status: 3");
    let status = pool.status();
    assert_eq!(
        (status.resource("failed").unwrap().state, status.resource("failed").unwrap().generation),
        (State::Ready, 1)
    );
    assert!(pool.close_all().unwrap().all_closed());
}

#[test]
fn a_child_that_is_to_be_restarted_comes_back_under_its_guard() {
    let pool = pool();
    let child = pool.child("feeder", ChildProcess::new(sleeps()).restart(true)).unwrap();
    let first = child.id().unwrap().unwrap();
    assert!(Command::new("kill").args(["-KILL", &first.to_string()]).status().unwrap().success());
    until(SOON, || child.id().unwrap().is_some_and(|id| id != first && runs(id)));
    let second = child.id().unwrap().unwrap();
    until(SOON, || pool.status().resource("feeder").unwrap().state == State::Ready);
    assert_eq!(pool.status().resource("feeder").unwrap().generation, 2);
    // So does one that the user restarts.
    pool.reconnect("feeder").unwrap();
    let third = child.id().unwrap().unwrap();
    assert!(third != second && runs(third) && !runs(second));
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(!runs(third));
}

#[test]
fn a_command_that_cannot_run_is_told_at_once() {
    let pool = pool();
    let error = pool.child("nothing", Command::new("/no/such/program")).unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error}") };
    assert!(connect.permanent && connect.attempts == 1 && error.to_string().contains("No such file"), "{error}");
    // Neither the arguments nor the environment are shown, since they may be secrets.
    let mut command = Command::new("/no/such/program");
    command.arg("hunter2").env("PASSWORD", "hunter2");
    let child = ChildProcess::new(command);
    assert!(!format!("{child:?}").contains("hunter2"), "{child:?}");
    let error = pool.child("secret", child).unwrap_err();
    assert!(!format!("{error} {error:?} {:?} {}", pool.status(), pool.status()).contains("hunter2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_child_is_closed_started_again_and_forgotten() {
    let pool: ResourcePool = pool().as_async();
    let child = pool.child("worker", sleeps()).await.unwrap();
    let first = child.id().unwrap().unwrap();
    let report = pool.close("worker").await.unwrap();
    assert!(report.all_closed() && !runs(first), "{report}");
    assert!(matches!(pool.child("worker", sleeps()).await, Err(Error::Closed { .. })));
    pool.reconnect("worker").await.unwrap();
    let second = pool.child("worker", sleeps()).await.unwrap().id().unwrap().unwrap();
    assert!(runs(second));
    assert!(pool.unregister("worker").await.unwrap().all_closed());
    assert!(!runs(second));
    // The name is free for another command.
    let third = pool.child("worker", shell("sleep 1000")).await.unwrap();
    let waits = tokio::spawn(third.wait());
    assert!(pool.close_all().await.all_closed());
    assert!(waits.await.unwrap().unwrap().is_some());
}
