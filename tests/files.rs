//! Open files, temporary files and folders: on real file systems, one of them full.

#![cfg(all(feature = "files", target_os = "linux"))]
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{pool_of, until};
use resource_pool::{Error, FileWriter, Health, OpenFile, Outcome, Phase, ResourcePool, State, TempFolder, blocking};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn pool() -> blocking::ResourcePool {
    pool_of(|_| {})
}

/// An empty folder for a test.
fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("files-{name}"));
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    place
}

#[test]
fn what_is_in_the_buffer_reaches_the_file_as_it_closes() {
    let (pool, place) = (pool(), place("buffer"));
    let path = place.join("journal");
    fs::write(&path, "before\n").unwrap();
    let journal = pool.file("journal", OpenFile::append(&path)).unwrap();
    let same = pool.file("journal", path.clone()).unwrap();
    let other = pool.file("journal", OpenFile::create(&path)).unwrap_err();
    assert!(matches!(other, Error::NameTaken { .. }), "{other}");
    writeln!(&*journal, "one").unwrap();
    writeln!(&*same, "two").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before\n");
    (&*journal).flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before\none\ntwo\n");
    writeln!(&*journal, "three").unwrap();
    let status = pool.status();
    let resource = status.resource("journal").unwrap();
    assert_eq!(
        (resource.kind, &*resource.endpoint, resource.usage.open),
        (Some("file"), path.to_str().unwrap(), Some(1))
    );
    assert_eq!(pool.health_check().unwrap().entry("journal").unwrap().health, Health::Pass);
    let report = pool.close_all().unwrap();
    assert!(report.all_closed(), "{report}");
    assert_eq!(report.step("journal").unwrap().phase, Phase::Files);
    assert_eq!(fs::read_to_string(&path).unwrap(), "before\none\ntwo\nthree\n");
    let late = writeln!(&*journal, "late").unwrap_err();
    assert!(matches!(Error::behind(&late), Some(Error::Closed { .. })), "{late}");
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
}

#[test]
fn writers_take_turns() {
    let (pool, path) = (pool(), place("turns").join("lines"));
    let writer = pool.file("lines", OpenFile::create(&path).buffer(1000)).unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let mut writer = writer.clone();
            scope.spawn(move || {
                for number in 0..1000 {
                    writeln!(writer, "{thread} wrote line {number}").unwrap();
                }
            });
        }
    });
    assert!(pool.close("lines").unwrap().all_closed());
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().filter(|line| line.matches(" wrote line ").count() == 1).count(), 8000);
    assert_eq!(text.lines().count(), 8000);
}

/// A value whose text tells of itself in a log, as a program's own code may.
struct Talks(FileWriter);

impl std::fmt::Display for Talks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(&self.0, "inside").unwrap();
        f.write_str("outside")
    }
}

#[test]
fn a_text_that_writes_to_the_same_file_locks_nobody_out() {
    let (pool, path) = (pool(), place("inside").join("log"));
    let writer = pool.file("log", path.clone()).unwrap().clone();
    let (wrote, written) = mpsc::channel();
    thread::spawn(move || wrote.send(writeln!(&writer, "{}", Talks(writer.clone()))));
    written.recv_timeout(SOON).expect("it hangs").unwrap();
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(fs::read_to_string(path).unwrap(), "inside\noutside\n");
}

#[test]
fn a_reconnect_goes_on_with_the_file() {
    let (pool, place) = (pool(), place("reconnect"));
    for (name, file) in [
        ("append", OpenFile::append(place.join("append"))),
        ("create", OpenFile::create(place.join("create")).sync(false)),
    ] {
        let writer = pool.file(name, file.clone()).unwrap();
        writeln!(&*writer, "before").unwrap();
        pool.reconnect(name).unwrap();
        assert_eq!(fs::read_to_string(place.join(name)).unwrap(), "before\n");
        // A log has a clone of the writer.
        writeln!(&*writer, "after").unwrap();
        assert_eq!(pool.status().resource(name).unwrap().generation, 2);
        writeln!(&*pool.file(name, file.clone()).unwrap(), "again").unwrap();
        writer.sync().unwrap();
        assert_eq!(fs::read_to_string(place.join(name)).unwrap(), "before\nafter\nagain\n");
        // A file that was closed is opened anew.
        assert!(pool.close(name).unwrap().all_closed());
        pool.reconnect(name).unwrap();
        writeln!(&*pool.file(name, file).unwrap(), "anew").unwrap();
        writeln!(&*writer, "late").unwrap_err();
    }
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(fs::read_to_string(place.join("append")).unwrap(), "before\nafter\nagain\nanew\n");
    assert_eq!(fs::read_to_string(place.join("create")).unwrap(), "anew\n");
}

#[test]
fn an_error_stands_until_the_file_takes_bytes() {
    let pool = pool_of(|options| options.health.cache = Duration::ZERO);
    let full = pool.file("full", OpenFile::append("/dev/full").buffer(100)).unwrap();
    let health = || pool.health_check().unwrap().entry("full").unwrap().clone();
    (&*full).write_all(b"text").unwrap();
    assert_eq!(health().health, Health::Pass);
    assert_eq!((&*full).flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
    // The buffer has room.
    (&*full).write_all(b"text").unwrap();
    assert!(health().health == Health::Fail && health().error.unwrap().contains("No space left"), "{:?}", health());
    assert_eq!(full.sync().unwrap_err().kind(), io::ErrorKind::StorageFull);
    let error = pool.reconnect("full").unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    let report = pool.close_all().unwrap();
    let Outcome::Failed(why) = &report.step("full").unwrap().outcome else { panic!("{report}") };
    assert!(why.contains("8 bytes could not be written"), "{why}");
    // Nothing is in the buffer of this one, so that a flush has nothing to write.
    pool.reopen().unwrap();
    let bare = pool.file("bare", OpenFile::append("/dev/full").buffer(0)).unwrap();
    (&*bare).write_all(b"text").unwrap_err();
    (&*bare).flush().unwrap();
    assert_eq!(pool.health_check().unwrap().entry("bare").unwrap().health, Health::Fail);
}

/// A named pipe in an empty folder: a file that hangs.
fn pipe(name: &str) -> PathBuf {
    let path = place(name).join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// How many threads of this process run code that blocks.
fn blocked() -> usize {
    let name = |task: io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("comm"));
    fs::read_dir("/proc/self/task").unwrap().map(name).filter(|name| name.as_deref().is_ok_and(is_blocking)).count()
}

fn is_blocking(name: &str) -> bool {
    "resource-pool-blocking".starts_with(name.trim()) && name.trim().len() > "resource-pool-".len()
}

/// An open that was given up must not come late to a file that is in use, so no other one begins before it is over.
#[test]
fn an_open_that_hangs_is_not_begun_again() {
    if let Some(status) = common::alone("an_open_that_hangs_is_not_begun_again") {
        return assert!(status.success());
    }
    let pool = pool_of(|options| {
        options.connect_timeout = Duration::from_millis(20);
        options.retry.budget = Duration::from_millis(400);
        options.retry.base = Duration::from_millis(10);
        options.circuit = Duration::ZERO;
    });
    let path = pipe("open");
    for _ in 0..3 {
        let error = pool.file("pipe", OpenFile::create(&path)).unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.attempts > 1, "{error}");
        assert_eq!(blocked(), 1, "an open waits for somebody who reads");
    }
    let reads = thread::spawn(move || fs::read_to_string(path).unwrap());
    until(SOON, || blocked() == 0);
    let path = reads.join().unwrap();
    assert_eq!(path, "", "the open that was given up has closed the pipe");
}

/// Health tells of a file system that hangs, and waits for it on no thread.
#[test]
fn a_write_that_hangs_fails_health() {
    if let Some(status) = common::alone("a_write_that_hangs_fails_health") {
        return assert!(status.success());
    }
    let pool = pool_of(|options| {
        options.health.cache = Duration::ZERO;
        options.health.each = Duration::from_millis(50);
    });
    let path = pipe("write");
    let file = thread::spawn({
        let path = path.clone();
        move || fs::File::open(path).unwrap()
    });
    let writer = pool.file("pipe", OpenFile::create(&path).buffer(0)).unwrap().clone();
    let file = file.join().unwrap();
    let health = || pool.health_check().unwrap().entry("pipe").unwrap().clone();
    assert_eq!(health().health, Health::Pass);
    const SIZE: usize = 1 << 20;
    // A pipe has no room for so much.
    let writes = thread::spawn(move || (&writer).write_all(&[b'x'; SIZE]));
    until(SOON, || health().health == Health::Fail);
    for _ in 0..5 {
        assert_eq!(health().health, Health::Fail);
    }
    assert_eq!(blocked(), 0, "{:?}", health());
    let read = io::Read::bytes(io::BufReader::new(file)).take(SIZE).filter(Result::is_ok).count();
    assert_eq!(read, SIZE);
    writes.join().unwrap().unwrap();
    until(SOON, || health().health == Health::Pass);
    assert_eq!(pool.status().resource("pipe").unwrap().generation, 1);
}

#[test]
fn a_file_that_cannot_be_opened_is_told_at_once() {
    let (pool, place) = (pool(), place("refused"));
    for path in [place.join("none").join("file"), place.clone()] {
        let error = pool.file(path.to_str().unwrap(), path.clone()).unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.permanent && connect.attempts == 1, "{error}");
    }
}

/// The writer of a log whose lines a thread writes until its guard drops, as those of `tracing-appender` are.
struct LogGuard {
    lines: Option<mpsc::Sender<String>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl LogGuard {
    fn new(path: PathBuf) -> (mpsc::Sender<String>, Self) {
        let (lines, written) = mpsc::channel::<String>();
        let thread = thread::spawn(move || {
            // A line that says `end` stands for the message that the guard's drop sends.
            let text: Vec<_> = written.iter().take_while(|line| line != "end").collect();
            fs::write(path, text.join("\n")).unwrap();
        });
        (lines.clone(), LogGuard { lines: Some(lines), thread: Some(thread) })
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.lines.take().unwrap().send("end".to_owned()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn the_guard_of_a_log_writer_drops_in_its_phase() {
    let (pool, place) = (pool(), place("guards"));
    let (first, second) = (place.join("handed-over"), place.join("adopted"));
    let (log, guard) = LogGuard::new(first.clone());
    log.send("a line".to_owned()).unwrap();
    pool.on_close("log", Phase::Files, move || {
        drop(guard);
        Ok(())
    })
    .unwrap();
    let (log, guard) = LogGuard::new(second.clone());
    log.send("another line".to_owned()).unwrap();
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Some(guard)));
    let close = |guard: std::sync::Arc<std::sync::Mutex<Option<LogGuard>>>| {
        drop(guard.lock().unwrap().take());
        Ok(())
    };
    pool.adopt("second log", &kept, Phase::Files, close).unwrap();
    let report = pool.close_all().unwrap();
    assert!(report.all_closed() && report.steps.len() == 2, "{report}");
    assert_eq!(fs::read_to_string(first).unwrap(), "a line");
    assert_eq!(fs::read_to_string(second).unwrap(), "another line");
}

const FULL: &str = "FILES_FULL_DISK";

/// The test runs itself in a mount namespace, where a small tmpfs is full soon.
#[test]
fn a_full_disk_is_an_error_in_the_report_and_nothing_else_is_lost() {
    if let Some(disk) = std::env::var_os(FULL) {
        return on_a_full_disk(Path::new(&disk));
    }
    let disk = place("disk");
    let mount = r#"mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@""#;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", mount]).arg(&disk).arg(std::env::current_exe().unwrap());
    unshare.args(["--exact", "--nocapture", "a_full_disk_is_an_error_in_the_report_and_nothing_else_is_lost"]);
    let may = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(&disk).output();
    if !may.as_ref().is_ok_and(|may| may.status.success()) {
        assert_ne!(std::env::var("RESOURCE_POOL_TEST_NAMESPACES").as_deref(), Ok("required"), "{may:?}");
        println!("NOT TESTED on a full disk: this machine grants no mount namespace: {may:?}");
        return;
    }
    assert!(unshare.env(FULL, &disk).status().unwrap().success());
}

fn on_a_full_disk(disk: &Path) {
    let pool = pool_of(|options| options.health.cache = Duration::ZERO);
    let (full, other) = (disk.join("full"), place("beside"));
    let lost = pool.file("full", OpenFile::create(&full).buffer(1 << 20)).unwrap();
    let saved = pool.file("saved", OpenFile::create(other.join("saved")).buffer(1 << 20)).unwrap();
    let scratch = pool.temp_dir().unwrap();
    let folder = scratch.path().to_owned();
    const PIECE: usize = 1000;
    const PIECES: usize = 200;
    for piece in 0..PIECES {
        // The buffer has room for all, so that no write fails.
        (&*lost).write_all(&[b'a' + u8::try_from(piece % 26).unwrap(); PIECE]).unwrap();
        (&*saved).write_all(&[b'x'; PIECE]).unwrap();
    }
    // Health tells of a write that fails, until one succeeds.
    let small = pool.file("small", OpenFile::create(disk.join("small")).buffer(0)).unwrap();
    let filler = disk.join("filler");
    let error = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!((&*small).write_all(b"text").unwrap_err().kind(), io::ErrorKind::StorageFull);
    let health = || pool.health_check().unwrap().entry("small").unwrap().clone();
    assert!(health().health == Health::Fail && health().error.unwrap().contains("No space left"), "{:?}", health());
    fs::remove_file(&filler).unwrap();
    (&*small).write_all(b"text").unwrap();
    assert_eq!(health().health, Health::Pass);
    assert_eq!(pool.status().resource("small").unwrap().generation, 1);

    // A reconnect fails until the buffer can be written, and takes nothing from those who write.
    let kept = pool.file("kept", OpenFile::create(disk.join("kept")).buffer(1 << 20)).unwrap();
    let filler = disk.join("filler");
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    (&*kept).write_all(&[b'x'; 8000]).unwrap();
    let error = pool.reconnect("kept").unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    fs::remove_file(&filler).unwrap();
    until(SOON, || pool.status().resource("kept").unwrap().state == State::Ready);
    (&*kept).write_all(b"text").unwrap();

    let report = pool.close_all().unwrap();
    println!("{report}");
    let Outcome::Failed(why) = &report.step("full").unwrap().outcome else { panic!("{report}") };
    assert!(why.contains("No space left on device"), "{why}");
    let written = usize::try_from(fs::metadata(&full).unwrap().len()).unwrap();
    assert!(written > 0 && why.contains(&format!("{} bytes could not be written", PIECE * PIECES - written)), "{why}");
    for name in ["saved", "small", "kept", "temp"] {
        assert_eq!(report.step(name).unwrap().outcome, Outcome::Closed, "{report}");
    }
    assert_eq!(fs::metadata(other.join("saved")).unwrap().len(), u64::try_from(PIECE * PIECES).unwrap());
    assert_eq!(fs::read_to_string(disk.join("small")).unwrap(), "text");
    assert_eq!(fs::metadata(disk.join("kept")).unwrap().len(), 8004);
    assert!(!folder.exists());
}

#[test]
fn a_reconnect_leaves_temporary_things_alone() {
    let (pool, place) = (pool(), place("temp-reconnect"));
    pool.register(TempFolder::NAME, TempFolder::new().below(&place)).unwrap();
    let (folder, file) = (pool.temp_dir().unwrap(), pool.temp_file().unwrap());
    fs::write(folder.path().join("one"), "text").unwrap();
    pool.reconnect(TempFolder::NAME).unwrap();
    assert_eq!(pool.status().resource(TempFolder::NAME).unwrap().generation, 2);
    assert!(folder.path().join("one").exists() && file.path().exists());
    let later = pool.temp_dir().unwrap();
    assert_eq!(later.path().parent(), folder.path().parent());
    // A file that cannot be kept is told, and gone.
    let at = file.path().to_owned();
    let error = file.persist(place.join("none").join("kept")).unwrap_err();
    assert!(matches!(&error, Error::Operation { action, .. } if action == "keep a temporary file"), "{error}");
    assert!(!at.exists());
    assert!(pool.close_all().unwrap().all_closed());
    assert!(!folder.path().exists() && !later.path().exists());
}

#[test]
fn a_place_that_cannot_be_used_is_told_at_once() {
    let place = place("temp-refused");
    let squatted = place.join("squatted");
    fs::create_dir(&squatted).unwrap();
    let name = {
        let made = pool();
        made.register(TempFolder::NAME, TempFolder::new().below(&place)).unwrap();
        let parent = made.temp_dir().unwrap().path().parent().unwrap().parent().unwrap().to_owned();
        assert!(made.close_all().unwrap().all_closed());
        parent.file_name().unwrap().to_owned()
    };
    fs::write(squatted.join(name), "text").unwrap();
    for (below, why) in [(place.join("none"), "No such file"), (squatted, "only this user may enter")] {
        let pool = pool();
        pool.register(TempFolder::NAME, TempFolder::new().below(below)).unwrap();
        let error = pool.temp_dir().unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error}") };
        assert!(connect.permanent && error.to_string().contains(why), "{error}");
    }
}

#[test]
fn temporary_things_are_gone_with_their_guards() {
    let (pool, place) = (pool(), place("temp"));
    let temp = TempFolder::new().below(&place).prefix("bars-");
    pool.register(TempFolder::NAME, temp).unwrap();
    let (folder, file) = (pool.temp_dir().unwrap(), pool.temp_file().unwrap());
    let line = line!() - 1;
    let (at, file_at) = (folder.path().to_owned(), file.path().to_owned());
    assert!(at.starts_with(&place) && at.file_name().unwrap().to_str().unwrap().starts_with("bars-"), "{at:?}");
    fs::write(folder.path().join("one"), "text").unwrap();
    file.file().write_all(b"text").unwrap();
    assert_eq!(fs::read_to_string(&file_at).unwrap(), "text");
    let holders = pool.holders();
    assert!(holders.iter().filter(|holder| holder.site.line() == line).count() == 2, "{holders:?}");
    let usage = pool.status().resource("temp").unwrap().usage;
    assert_eq!((usage.open, usage.in_use), (Some(2), Some(2)));
    drop((folder, file));
    until(SOON, || !at.exists() && !file_at.exists());
    assert_eq!(pool.status().resource("temp").unwrap().usage.open, Some(0));

    let (folder, file, kept) = (pool.temp_dir().unwrap(), pool.temp_file().unwrap(), pool.temp_file().unwrap());
    let (at, file_at) = (folder.path().to_owned(), file.path().to_owned());
    folder.close().unwrap();
    file.close().unwrap();
    assert!(!at.exists() && !file_at.exists());
    kept.file().write_all(b"kept").unwrap();
    kept.persist(place.join("kept")).unwrap();
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(fs::read_to_string(place.join("kept")).unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_things_are_gone_as_the_pool_closes() {
    let pool: ResourcePool = pool().as_async();
    let (folder, file) = (pool.temp_dir().await.unwrap(), pool.temp_file().await.unwrap());
    let line = line!() - 1;
    fs::write(folder.path().join("one"), "text").unwrap();
    // Others cannot look into the folder of this user.
    let parent = folder.path().parent().unwrap().parent().unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(parent).unwrap().permissions()) & 0o777, 0o700);
    let report = pool.close_all().await;
    assert!(report.all_closed(), "{report}");
    let step = report.step("temp").unwrap();
    assert_eq!(step.phase, Phase::TempFiles);
    assert!(step.held.len() == 2 && step.held.iter().all(|holder| holder.site.line() == line), "{:?}", step.held);
    assert!(!folder.path().parent().unwrap().exists() && !file.path().exists());
    assert!(matches!(pool.temp_dir().await, Err(Error::Closed { .. })));
    pool.reopen().unwrap();
    let again = pool.temp_dir().await.unwrap();
    drop((folder, file));
    assert!(again.path().exists());
    assert!(pool.close_all().await.all_closed());
}

#[test]
fn a_folder_that_somebody_has_removed_is_made_again() {
    let pool = pool_of(|options| options.probe.interval = Duration::from_millis(20));
    let folder = pool.temp_dir().unwrap();
    fs::remove_dir_all(folder.path().parent().unwrap()).unwrap();
    until(SOON, || {
        let status = pool.status();
        let temp = status.resource("temp").unwrap();
        temp.state == State::Ready && temp.generation == 2
    });
    assert!(pool.temp_dir().unwrap().path().exists());
    drop(folder);
    assert!(pool.close_all().unwrap().all_closed());
}
