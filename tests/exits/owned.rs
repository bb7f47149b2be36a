//! A program that has a child process, an open file and a temporary folder, and how they end with it.
//!
//! The way `owned` is that of threads, `owned-tasks` that of tasks. The variable `OWNED` names the folder of the test,
//! which is the program's `TMPDIR` too.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fork::Fork;
use resource_pool::{Child, Error, FileWriter, Lease, OpenFile, ResourcePool, TempDir, blocking};

use super::child::{end, end_async, keep, told, wait_for_ever};
use super::tools::{By, Running};
use super::{APART, Suite, until};

const NAMES: [&str; 3] = ["sleeper", "journal", "temp"];

/// The things of the program.
struct Owned {
    child: Lease<Child>,
    journal: Lease<FileWriter>,
    temp: TempDir,
}

pub(crate) fn main(way: &str, ending: &str) {
    let pool = ResourcePool::global();
    pool.on_report(told);
    if way == "owned-tasks" {
        return tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let child = pool.child("sleeper", sleeper()).await.expect("a child");
            let journal = pool.file("journal", journal()).await.expect("a file");
            let temp = pool.temp_dir().await.expect("a folder");
            keep(Owned { child, journal, temp }.used());
            end_async(ending).await;
        });
    }
    let pool = blocking::ResourcePool::global();
    let child = pool.child("sleeper", sleeper()).expect("a child");
    let journal = pool.file("journal", journal()).expect("a file");
    let owned = Owned { child, journal, temp: pool.temp_dir().expect("a folder") }.used();
    match ending {
        "abort" => {
            println!("READY");
            std::process::abort();
        }
        "_exit" => {
            println!("READY");
            signal_hook::low_level::exit(3);
        }
        // Closing outlives its deadline by a second, after all phases.
        "forced" => {
            ResourcePool::global().on_report(|_| wait_for_ever());
            keep(owned);
            end("return");
        }
        // The drain waits, so that nothing is closed when the second signal comes.
        "held" => {
            keep((owned, pool.hold("request")));
            end("wait");
        }
        "fork" => {
            forks(owned);
            end("return");
        }
        ending => {
            keep(owned);
            end(ending);
        }
    }
}

/// A child process that starts another one. It must not keep the standard error open, which the suite reads to its end.
fn sleeper() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn journal() -> OpenFile {
    OpenFile::create(place().join("journal"))
}

fn place() -> PathBuf {
    std::env::var_os("OWNED").expect("a folder").into()
}

impl Owned {
    fn used(self) -> Self {
        let mut grandchild = String::new();
        let output = self.child.take_stdout().expect("its own").expect("piped");
        BufReader::new(output).read_line(&mut grandchild).expect("a line");
        writeln!(&*self.journal, "a line").expect("it is in the buffer");
        fs::write(self.temp.path().join("file"), "text").expect("a file");
        let child = self.child.id().expect("its own").expect("it runs");
        println!("OWNED {child} {} {}", grandchild.trim(), self.temp.path().display());
        self
    }
}

/// A forked child is refused, and neither its drops nor its end touch what its parent has.
fn forks(owned: Owned) {
    let at = owned.temp.path().to_owned();
    match fork::fork().expect("a child") {
        Fork::Child => {
            assert!(matches!(owned.child.id(), Err(Error::Forked)));
            let refused = writeln!(&*owned.journal, "a line of the child").expect_err("it is the parent's");
            assert!(matches!(Error::behind(&refused), Some(Error::Forked)), "{refused}");
            assert!(matches!(blocking::ResourcePool::global().temp_dir(), Err(Error::Forked)));
            drop(owned);
            std::process::exit(0);
        }
        Fork::Parent(forked) => {
            assert_eq!(fork::waitpid(forked).expect("its status"), 0);
            assert!(owned.child.id().expect("its own").is_some() && at.join("file").exists());
            assert_eq!(fs::read_to_string(place().join("journal")).expect("a file"), "");
            keep(owned);
        }
    }
}

/// A running program with its things, as the suite sees it.
struct Program {
    running: Running,
    child: u32,
    grandchild: u32,
    temp: PathBuf,
}

impl Program {
    fn start(Suite { servers, limits, .. }: &Suite, place: &Path, part: &str) -> Self {
        let mut command = servers.child(&format!("{part} -"), limits);
        command.env("OWNED", place).env("TMPDIR", place);
        let mut running = Running::start(command);
        let words = running.hear("OWNED");
        let words: Vec<_> = words.split(' ').collect();
        let id = |word: &str| word.parse().expect("a number");
        let (child, grandchild) = (id(words[0]), id(words[1]));
        Program { running, child, grandchild, temp: words[2].into() }
    }
}

/// Whether the process runs. One that has ended and was not reaped does not.
fn runs(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn new_place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "owned-{}-{name}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let _ = fs::remove_dir_all(&place);
    fs::create_dir(&place).expect("a folder");
    place
}

/// The folders of processes in this place.
fn folders(place: &Path) -> Vec<PathBuf> {
    let parents = fs::read_dir(place).expect("a folder").map(|entry| entry.expect("an entry").path());
    let parents = parents.filter(|path| path.is_dir());
    parents.flat_map(|parent| fs::read_dir(parent).expect("a folder")).map(|entry| entry.expect("one").path()).collect()
}

/// Each end that the pool closes by ends all of them.
pub(crate) fn ended(suite: &Suite) {
    let endings = [
        ("return", None, By::Exit(0)),
        ("exit", None, By::Exit(3)),
        ("exit-thread", None, By::Exit(3)),
        ("exit-task", None, By::Exit(3)),
        ("panic", None, By::Exit(101)),
        ("wait", Some("INT"), By::Signal(2)),
        ("wait", Some("TERM"), By::Signal(15)),
        ("wait", Some("HUP"), By::Signal(1)),
        ("closing", Some("TERM"), By::Signal(15)),
        ("forced", None, By::Exit(70)),
    ];
    let place = new_place("ended");
    for (ending, signal, by) in endings {
        // The forced end is that of a pool, and no task has a part in it.
        let ways: &[_] = if ending == "forced" { &["owned"] } else { &["owned", "owned-tasks"] };
        for way in ways {
            let mut program = Program::start(suite, &place, &format!("{way} - {ending}"));
            program.running = program.running.ready();
            if let Some(signal) = signal {
                assert!(runs(program.child) && runs(program.grandchild));
                program.running.send(signal);
            }
            let Program { running, child, grandchild, temp } = program;
            let ended = running.end();
            ended.assert_by(by);
            ended.assert_calm();
            if ending == "forced" {
                assert!(ended.stderr.contains("still running: a listener"), "{ended}");
            } else {
                ended.assert_all_closed(&NAMES);
            }
            assert!(!runs(child) && !runs(grandchild), "{ending} {way}: {ended}");
            assert!(!temp.exists() && folders(&place).is_empty(), "{ending} {way}: {:?}", folders(&place));
            assert_eq!(fs::read_to_string(place.join("journal")).expect("a file"), "a line\n", "{ending} {way}");
        }
    }
    fs::remove_dir_all(place).expect("it is the test's own");
}

/// An end that runs no code of the pool leaves them behind. The next start tells of the child process, and removes the
/// temporary folder.
pub(crate) fn left_behind(suite: &Suite) {
    for (ending, signals, by) in [
        ("wait", &["KILL"][..], By::Signal(9)),
        ("abort", &[], By::Signal(6)),
        ("_exit", &[], By::Exit(3)),
        ("held", &["TERM", "TERM"], By::Signal(15)),
    ] {
        let place = new_place("left");
        let mut program = Program::start(suite, &place, &format!("owned - {ending}"));
        program.running = program.running.ready();
        for (number, signal) in signals.iter().enumerate() {
            if number > 0 {
                program.running.hear("CLOSING");
                std::thread::sleep(APART);
            }
            program.running.send(signal);
        }
        let Program { running, child, grandchild, temp } = program;
        running.end().assert_by(by);
        assert!(runs(child) && runs(grandchild) && temp.exists(), "{ending}: {child} {grandchild} {temp:?}");

        // Each later start is told of the child process for as long as it runs.
        let told = format!("child process {child} (sleeper) of an earlier run of this program still runs");
        for _ in 0..2 {
            let next = Program::start(suite, &place, "owned - return");
            until(|| !temp.exists(), || format!("{ending}: the next start has not removed {temp:?}"));
            let (running, gone) = (next.running, (next.child, next.grandchild));
            let ended = running.end();
            ended.assert_by(By::Exit(0));
            assert_eq!(ended.stderr.matches(&told).count(), 1, "{told}: {ended}");
            assert!(!runs(gone.0) && !runs(gone.1) && runs(child), "{ended}");
        }
        assert_eq!(folders(&place).len(), 1, "the note of the child process: {:?}", folders(&place));
        let group = format!("-{child}");
        assert!(Command::new("kill").args(["-KILL", "--", &group]).status().expect("kill").success());
        until(|| !runs(child) && !runs(grandchild), || format!("{child} or {grandchild} still runs"));
        let last = Program::start(suite, &place, "owned - return");
        let gone = last.temp.clone();
        let ended = last.running.end();
        ended.assert_all_closed(&NAMES);
        assert!(!gone.exists() && folders(&place).is_empty(), "{:?}", folders(&place));
        fs::remove_dir_all(place).expect("it is the test's own");
    }
}

/// A forked child touches none of them.
pub(crate) fn forked(suite: &Suite) {
    let place = new_place("forked");
    let program = Program::start(suite, &place, "owned - fork");
    let Program { running, child, grandchild, temp } = program;
    let ended = running.end();
    ended.assert_by(By::Exit(0));
    ended.assert_calm();
    ended.assert_all_closed(&NAMES);
    assert!(!runs(child) && !runs(grandchild) && !temp.exists(), "{ended}");
    assert_eq!(fs::read_to_string(place.join("journal")).expect("a file"), "a line\n");
    fs::remove_dir_all(place).expect("it is the test's own");
}
