//! Nothing is left behind, however the process that started the servers ends.

use services::{Kind, Service};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const CHILD: &str = "SERVICES_TEST_CHILD";

/// Not a test of its own: what the others run in a process that they can kill.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    // A thread that ends: the servers must not end with it.
    let services = thread::spawn(|| Service::start_all(&Kind::ALL).unwrap()).join().unwrap();
    thread::sleep(Duration::from_millis(200));
    assert!(services.iter().all(Service::is_running));
    services[0].freeze().unwrap();
    println!("\nSERVICES {}", services[0].dir().parent().unwrap().display());
    thread::sleep(Duration::from_secs(60));
}

/// The child process once its servers run, and the folder that theirs are in.
fn start() -> (Child, PathBuf) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, "1").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let dir = lines.into_iter().find_map(|line| line.strip_prefix("SERVICES ").map(PathBuf::from));
    (child, dir.expect("the child did not start its servers"))
}

/// Processes that work in one of the folders of this owner.
fn processes(dir: &Path, owner: u32) -> Vec<String> {
    let prefix = dir.join(format!("{owner}-")).to_string_lossy().into_owned();
    let lives_there = |process: &PathBuf| {
        let cwd = fs::read_link(process.join("cwd")).unwrap_or_default();
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        cwd.to_string_lossy().starts_with(&prefix) || command.contains(&prefix)
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(lives_there).map(|process| fs::read_to_string(process.join("comm")).unwrap_or_default()).collect()
}

#[test]
fn none_outlive_a_killed_process_nor_does_its_folder() {
    let (mut child, dir) = start();
    let owner = child.id();
    let alive = processes(&dir, owner);
    assert!(alive.len() >= 5, "four servers and Erlang's name server: {alive:?}");

    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !processes(&dir, owner).is_empty() {
        assert!(Instant::now() < end, "left behind: {:?}", processes(&dir, owner));
        thread::sleep(Duration::from_millis(10));
    }

    // The next run clears up the folders, which a killed process cannot.
    let next = Service::start(Kind::Redis).unwrap();
    let left = |owner: u32| {
        let names = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(&format!("{owner}-"))).count()
    };
    assert_eq!(left(owner), 0);
    assert_eq!(left(std::process::id()), 1);
    drop(next);
    assert_eq!(left(std::process::id()), 0);
}
