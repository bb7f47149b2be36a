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

use common::until;
use resource_pool::config::Options;
use resource_pool::{Error, Health, OpenFile, Outcome, Phase, ResourcePool, State, TempFolder, blocking};

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

    let report = pool.close_all().unwrap();
    println!("{report}");
    let Outcome::Failed(why) = &report.step("full").unwrap().outcome else { panic!("{report}") };
    assert!(why.contains("No space left on device"), "{why}");
    let written = usize::try_from(fs::metadata(&full).unwrap().len()).unwrap();
    assert!(written > 0 && why.contains(&format!("{} bytes could not be written", PIECE * PIECES - written)), "{why}");
    for name in ["saved", "small", "temp"] {
        assert_eq!(report.step(name).unwrap().outcome, Outcome::Closed, "{report}");
    }
    assert_eq!(fs::metadata(other.join("saved")).unwrap().len(), u64::try_from(PIECE * PIECES).unwrap());
    assert_eq!(fs::read_to_string(disk.join("small")).unwrap(), "text");
    assert!(!folder.exists());
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
