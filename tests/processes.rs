//! Child processes: real ones, with their groups, whose ends the kernel's table of processes proves.

#![cfg(all(feature = "processes", target_os = "linux"))]
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{pool_of, until};
use resource_pool::{Child, ChildProcess, Error, Failure, Health, Lease, Link, Outcome, Phase, Resource};
use resource_pool::{ResourcePool, State, What, blocking};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

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

/// The first process of the group may have ended long before that.
#[test]
fn the_rest_of_a_group_that_ignores_sigterm_is_killed() {
    let pool = pool();
    let script = format!("sh -c \"echo \\$\\$; {IGNORES}\" & exit 3");
    let leaves = pool.child("leaves", ChildProcess::new(shell(&script)).grace(Duration::from_millis(200))).unwrap();
    let lines = lines(&leaves, 2);
    let rest = ids(&lines[..1])[0];
    assert_eq!(lines[1], "ready");
    assert_eq!(leaves.wait_blocking_within(SOON).unwrap().unwrap().code(), Some(3));
    assert!(runs(rest));
    let report = pool.close_all().unwrap();
    let outcome = &report.step("leaves").unwrap().outcome;
    assert!(matches!(outcome, Outcome::Failed(why) if why.contains("200ms of SIGTERM, and was killed")), "{outcome:?}");
    assert!(!runs(rest));
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

/// Whether the kernel's table still has this process, be it one that has ended.
fn is_listed(id: u32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

fn kill(signal: &str, id: u32) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status().unwrap().success());
}

/// An empty folder for a test.
fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("processes-{name}"));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).unwrap();
    place
}

/// A signal without a name is one too.
#[test]
fn a_child_that_a_real_time_signal_ends_is_known_and_reaped() {
    let pool = pool();
    let child = pool.child("parent", shell("sleep 1000 & echo $!; wait")).unwrap();
    let (id, rest) = (child.id().unwrap().unwrap(), ids(&lines(&child, 1))[0]);
    kill("40", id);
    let status = child.wait_blocking_within(SOON).unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(40), "{status}");
    assert!(runs(rest) && is_listed(id));
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(!runs(rest) && !is_listed(id));
}

#[test]
fn a_child_is_reaped_once_nothing_of_its_group_is_left() {
    let pool = pool();
    let leaves = pool.child("leaves", shell("echo $$; sleep 1000 >&- & echo $!")).unwrap();
    let ids = ids(&lines(&leaves, 2));
    assert!(leaves.wait_blocking().unwrap().unwrap().success());
    // The pool has looked at its group by then.
    for name in ["one", "two", "three"] {
        assert!(pool.child(name, Command::new("true")).unwrap().wait_blocking().unwrap().is_some());
    }
    // Its number must not be another's as long as its group has it.
    assert!(is_listed(ids[0]) && runs(ids[1]));
    kill("KILL", ids[1]);
    until(SOON, || !is_listed(ids[0]));
    assert!(pool.close_all().unwrap().all_closed());
}

/// The test runs itself in a process that ignores SIGCHLD, so that the kernel keeps no status of its children.
#[test]
fn a_program_that_ignores_sigchld_closes() {
    const IGNORES_IT: &str = "PROCESSES_IGNORES_SIGCHLD";
    if std::env::var_os(IGNORES_IT).is_none() {
        let mut ignores = Command::new("env");
        ignores.arg("--ignore-signal=CHLD").arg(std::env::current_exe().unwrap());
        ignores.args(["--exact", "--nocapture", "a_program_that_ignores_sigchld_closes"]).env(IGNORES_IT, "yes");
        return assert!(ignores.status().unwrap().success());
    }
    let pool = pool();
    let (sleeper, done) = (pool.child("sleeper", sleeps()).unwrap(), pool.child("done", Command::new("true")).unwrap());
    let id = sleeper.id().unwrap().unwrap();
    assert_eq!(done.wait_blocking_within(SOON).unwrap(), None);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert!(!runs(id) && sleeper.exit_status().unwrap().is_none());
}

/// A program may wait for all of its children by itself.
#[test]
fn a_child_whose_status_is_taken_away_has_ended() {
    let pool = pool();
    let child = pool.child("taken", sleeps()).unwrap();
    let id = child.id().unwrap().unwrap();
    let waits = thread::spawn(move || fork::waitpid(id.cast_signed()));
    kill("KILL", id);
    let _either_takes_it = waits.join().unwrap();
    // The pool may have seen the status before that.
    let _status = child.wait_blocking_within(SOON).unwrap();
    assert!(!is_listed(id));
    assert!(pool.close_all().unwrap().all_closed());
}

/// The processes that a run has left get SIGTERM, and the grace, before the next run.
#[test]
fn the_rest_of_a_run_is_asked_to_end_before_the_next_one() {
    let pool = pool();
    for (name, heard) in [("hears", true), ("deaf", false)] {
        let place = place(&format!("rest-{name}"));
        let trap = if heard { "echo heard >heard; exit 0" } else { "" };
        let script = format!(
            "[ -e ready ] && exec sleep 1000; \
             sh -c \"trap '{trap}' TERM; echo \\$\\$ >id; mv id ready; while :; do sleep 0.02; done\" & \
             while ! [ -e ready ]; do sleep 0.02; done; exit 1"
        );
        let mut command = shell(&script);
        command.current_dir(&place);
        let child =
            ChildProcess::new(command).restart(true).grace(if heard { SOON } else { Duration::from_millis(100) });
        let child = pool.child(name, child).unwrap();
        let status = || pool.status().resource(name).unwrap().clone();
        until(SOON, || status().state == State::Ready && status().generation == 2);
        let rest = std::fs::read_to_string(place.join("ready")).unwrap().trim().parse().unwrap();
        assert!(!runs(rest) && runs(child.id().unwrap().unwrap()));
        assert_eq!(place.join("heard").exists(), heard);
    }
    assert!(pool.close_all().unwrap().all_closed());
}

/// A supervisor ends the child process together with this program.
#[test]
fn a_child_that_ends_as_the_pool_closes_is_no_loss() {
    for lowered in [false, true] {
        let pool = pool();
        let mut events = pool.events();
        let child = pool.child("feeder", ChildProcess::new(sleeps()).restart(true)).unwrap();
        let id = child.id().unwrap().unwrap();
        let held = pool.hold("request");
        let closes = if lowered {
            pool.lower_readiness();
            None
        } else {
            let pool = pool.clone();
            let closes = thread::spawn(move || pool.close_all().unwrap());
            Some(closes)
        };
        until(SOON, || lowered || pool.status().resource("feeder").unwrap().state == State::Draining);
        kill("TERM", id);
        assert!(child.wait_blocking_within(SOON).unwrap().is_some());
        until(SOON, || !is_listed(id));
        drop(held);
        let report = match closes {
            Some(closes) => closes.join().unwrap(),
            None => pool.close_all().unwrap(),
        };
        assert!(report.all_closed(), "{report}");
        assert_eq!(child.id().unwrap(), None);
        let told = until_closed(&mut events);
        assert!(!told.iter().any(|what| matches!(what, What::Lost { .. })), "{told:?}");
    }
}

/// The events until the pool is closed.
fn until_closed(events: &mut blocking::Events) -> Vec<What> {
    let events = events.map(|event| event.unwrap().what);
    events.take_while(|what| !matches!(what, What::Closed { .. })).collect()
}

/// The processes whose last argument is this.
fn with_argument(argument: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let ids = entries.filter_map(|name| name.to_str()?.parse().ok());
    let is_it = |id: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.trim_end_matches('\0').rsplit('\0').next() == Some(argument)
    };
    ids.filter(is_it).collect()
}

/// How many threads of this process run code that blocks. The kernel keeps 15 bytes of their names.
fn blocking_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
    tasks.filter(|name| std::fs::read_to_string(name).is_ok_and(|name| name.trim() == "resource-pool-b")).count()
}

/// The pool closes while the process is being started. A task keeps the only thread of the runtime meanwhile, so that the
/// attempt is given up before it hears of the process.
#[test]
fn a_child_whose_start_is_given_up_is_killed() {
    if let Some(status) = common::alone("a_child_whose_start_is_given_up_is_killed") {
        return assert!(status.success());
    }
    // The program is looked for in so many places that its start takes a while.
    let path = format!("{}{}", "/0:".repeat(40_000), std::env::var("PATH").unwrap());
    for round in 0..3 {
        until(SOON, || blocking_threads() == 0);
        let pool = pool_of(|options| options.worker_threads = Some(1));
        let argument = format!("1000.{}{round}", std::process::id());
        let ((block, blocked), (release, held)) = (mpsc::channel(), mpsc::channel::<()>());
        let hog = move |_closing| async move {
            while blocking_threads() == 0 {
                tokio::task::yield_now().await;
            }
            block.send(()).unwrap();
            held.recv().unwrap_err();
        };
        drop(pool.as_async().spawn("hog", hog).unwrap());
        let mut command = Command::new("sleep");
        command.arg(&argument).env("PATH", &path);
        let asks = thread::spawn({
            let pool = pool.clone();
            move || drop(pool.child("given up", command))
        });
        blocked.recv_timeout(SOON).unwrap();
        let report = pool.close_all_within(Duration::ZERO).unwrap();
        assert!(report.step("given up").is_some(), "{report}");
        until(SOON, || !with_argument(&argument).is_empty());
        drop(release);
        until(SOON, || with_argument(&argument).is_empty());
        asks.join().unwrap();
    }
}

/// A resource that counts its pings.
struct Counts(Arc<AtomicUsize>);

impl Resource for Counts {
    type Handle = ();

    async fn connect(&self, _: &Link) -> Result<(), Failure> {
        Ok(())
    }

    async fn ping(&self, (): &()) -> Result<(), Failure> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn close(&self, (): ()) -> Result<(), Failure> {
        Ok(())
    }
}

#[test]
fn an_end_is_told_once() {
    let pool = pool_of(|options| options.probe.interval = Duration::from_millis(5));
    let mut events = pool.events();
    let failed = pool.child("failed", shell("exit 3")).unwrap();
    assert_eq!(failed.wait_blocking().unwrap().unwrap().code(), Some(3));
    let pings = Arc::new(AtomicUsize::new(0));
    pool.register("counts", Counts(Arc::clone(&pings))).unwrap();
    drop(pool.get::<Counts>("counts").unwrap());
    until(SOON, || pings.load(Ordering::SeqCst) > 10);
    assert!(pool.close_all().unwrap().all_closed());
    let told = until_closed(&mut events);
    let count = |is: fn(&What) -> bool| told.iter().filter(|what| is(what)).count();
    let warned = count(|what| matches!(what, What::Warned { .. }));
    assert_eq!((warned, count(|what| matches!(what, What::ProbeFailed { .. }))), (1, 0), "{told:?}");
}

#[test]
fn a_wait_has_a_limit_and_blocks_no_task() {
    let pool = pool();
    let child = pool.child("sleeper", sleeps()).unwrap();
    let late = child.wait_blocking_within(Duration::from_millis(10)).unwrap_err();
    assert!(matches!(&late, Error::Timeout(timeout) if timeout.waiting_for == "the end of the process"), "{late}");
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        assert!(matches!(child.wait_blocking(), Err(Error::InAsyncContext { .. })));
    });
    assert!(pool.close_all().unwrap().all_closed());
}
