//! [`RunFolder`], a folder of this process for things that a hard end may leave behind, and the sweep of such folders.
//!
//! All folders of a user are in one parent, `resource-pool-UID`, which nobody else can enter. The name of a folder has
//! the number of its process and the moment at which that began, and the process holds a lock on the folder. The kernel
//! ends the lock with the process. A sweep removes a folder once no such process runs and nobody has the lock: the lock
//! tells of processes in other containers, whose numbers mean nothing here, and the number tells of a folder that was
//! just made and is not locked yet.
//! A sweep has a thread of its own, which nobody waits for but the removal of the folder, and that not for long. It
//! follows no link, and leaves a folder alone in which a file system is mounted. A forked child shares the locks of its
//! parent, and removes nothing of it. A folder that has the note of a child process stays for as long as any process of
//! its group runs, so that each later process is told.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::process::ForkGuarded;
use crate::base::process_table::{began, boot, is_running, runs_in_group_of};
use crate::base::runtime::thread;

/// The file with the note of a child process.
const NOTE: &str = "child";
/// How many names are tried, since a name may be taken by a folder that a sweep had to leave.
const NAMES: u32 = 1000;
/// How long a removal waits for the sweep, so that the end of the process does not cut short what it has to tell.
const SWEPT: Duration = Duration::from_secs(1);
/// How often a folder is emptied in which other threads still make files.
const REMOVALS: u32 = 10;

/// A folder of this process. It is removed by [`remove`](RunFolder::remove), or else by the sweep of a later process.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// The open folder, which is locked.
    lock: ForkGuarded<File>,
    /// Disconnected once the sweep is over.
    sweeping: Mutex<mpsc::Receiver<Infallible>>,
}

/// A child process that an earlier process has left behind. Any process of its group still runs.
#[derive(Debug, PartialEq)]
pub(crate) struct LeftBehind {
    pub(crate) id: u32,
    began: u64,
    /// The boot of the machine that `began` counts from.
    boot: String,
    /// The name of its resource.
    pub(crate) resource: String,
    /// The program that had started it, as [`program`] names it.
    owner: String,
}

impl RunFolder {
    /// Makes a folder of this process below this one. A thread then sweeps those that earlier processes have left there,
    /// and calls `tell` with each child process of an earlier run of this program that still runs. It blocks.
    ///
    /// # Errors
    /// When no folder can be made, or the parent is not this user's alone.
    pub(crate) fn new(below: &Path, tell: impl Fn(LeftBehind) + Send + 'static) -> io::Result<Self> {
        // The program may change its own folder meanwhile.
        let parent = parent(&std::path::absolute(below)?)?;
        for _ in 0..NAMES {
            let path = parent.join(next_name()?);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created?,
            }
            let Some(lock) = locked(&path)? else { continue };
            if is_same(&path, &lock)? {
                let sweeping = Mutex::new(sweep_apart(parent, tell));
                return Ok(RunFolder { path, lock: ForkGuarded::new(lock), sweeping });
            }
        }
        Err(io::Error::other(format!("no name is free in {}", parent.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is still there, and no other one in its place.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        is_same(&self.path, &self.lock)
    }

    /// Notes a child process of this program, for the sweeps of later processes. It blocks.
    pub(crate) fn note(&self, id: u32, resource: &str) -> io::Result<()> {
        let (began, resource) = (began(id)?.unwrap_or(0), resource.to_owned());
        let note = LeftBehind { id, began, boot: boot()?, resource, owner: program().to_owned() };
        // Renamed, so that nobody reads one half of it.
        let new = self.path.join("new");
        fs::write(&new, note.text())?;
        fs::rename(new, self.path.join(NOTE))
    }

    /// Removes the folder with all that is in it. One that is gone already is no error. Another one in its place stays,
    /// and a forked child removes nothing. It blocks.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if !ForkGuarded::is_current(&self.lock) {
            return Ok(());
        }
        let _hangs = self.sweeping.lock().recv_timeout(SWEPT);
        if !self.is_there()? {
            return Ok(());
        }
        // Threads that still write in it find it by its name. Where it cannot have another one, they are outrun.
        let other = self.path.with_file_name(next_name()?);
        let path = if fs::rename(&self.path, &other).is_ok() { other } else { self.path.clone() };
        for _ in 1..REMOVALS {
            match removed(&path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
                removed => return removed,
            }
        }
        removed(&path)
    }
}

/// The name of the next folder of this process.
fn next_name() -> io::Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = std::process::id();
    // Relaxed, because only the uniqueness of the number counts.
    Ok(format!("{id}-{}-{}", began(id)?.unwrap_or(0), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The file of this program, in a form that fits into one line. It is asked for once, since an upgrade may put another
/// file in its place.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let file = std::env::current_exe().unwrap_or_default().into_os_string();
        format!("{:?}", without_deleted(file))
    })
}

/// The name without the mark that Linux gives to the file of a program that was replaced.
fn without_deleted(file: OsString) -> OsString {
    match file.to_str().and_then(|file| file.strip_suffix(" (deleted)")) {
        Some(file) => file.into(),
        None => file,
    }
}

impl LeftBehind {
    fn text(&self) -> String {
        let LeftBehind { id, began, boot, resource, owner } = self;
        format!("{id}\n{began}\n{boot}\n{resource}\n{owner}")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.splitn(5, '\n');
        let mut line = || lines.next();
        let (id, began) = (line()?.parse().ok()?, line()?.parse().ok()?);
        let (boot, resource, owner) = (line()?.to_owned(), line()?.to_owned(), line()?.to_owned());
        Some(LeftBehind { id, began, boot, resource, owner })
    }

    /// Reads the note in a folder. `None` if there is none, or none that can be understood.
    fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(folder.join(NOTE)) {
            Ok(text) => Ok(LeftBehind::parse(&text)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn runs(&self) -> io::Result<bool> {
        Ok(self.boot == boot()? && runs_in_group_of(self.id, self.began)?)
    }
}

/// Sweeps on a thread of its own, and tells of the child processes of this program. The answer is disconnected once that
/// is over.
fn sweep_apart(parent: PathBuf, tell: impl Fn(LeftBehind) + Send + 'static) -> mpsc::Receiver<Infallible> {
    let (sweeps, sweeping) = mpsc::channel();
    let sweep = move |_sweeps: mpsc::Sender<Infallible>| match sweep(&parent) {
        Ok(left) => left.into_iter().filter(|child| child.owner == program()).for_each(tell),
        Err(error) => tracing::warn!(folder = %parent.display(), %error, "what is in it is left to a later process"),
    };
    // Without a thread it is left to a later process.
    if let Ok(thread) = thread(sweep) {
        let _ = thread.send(sweeps);
    }
    sweeping
}

/// Removes the folders of processes that are gone. Returns the child processes that still run. A folder that cannot be
/// removed, or of which nothing can be told, is left to the next sweep.
fn sweep(parent: &Path) -> io::Result<Vec<LeftBehind>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let path = entry.path();
        // The type is that of the entry itself, so a link is none of them.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !is_left(&entry.file_name()) {
            continue;
        }
        match swept(&path) {
            Ok(child) => left.extend(child),
            Err(error) => tracing::warn!(folder = %path.display(), %error, "an earlier process has left this"),
        }
    }
    Ok(left)
}

/// Removes the folder of a process that is gone, unless its child process still runs, which is returned.
fn swept(path: &Path) -> io::Result<Option<LeftBehind>> {
    // Read without the lock, which another sweep of this moment may have.
    if let Some(child) = LeftBehind::read(path)?
        && child.runs()?
    {
        return Ok(Some(child));
    }
    if let Some(_lock) = locked(path)? {
        removed(path)?;
        tracing::info!(folder = %path.display(), "removed what an earlier process has left");
    }
    Ok(None)
}

/// Whether this is the name of a folder whose process does not run.
fn is_left(name: &OsStr) -> bool {
    let mut parts = name.to_str().unwrap_or_default().split('-');
    let (Some(id), Some(began), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    match (id.parse(), began.parse(), number.parse::<u32>()) {
        (Ok(id), Ok(began), Ok(_)) => is_running(id, began).is_ok_and(|runs| !runs),
        _ => false,
    }
}

/// Removes a folder with all that is in it, unless a file system is mounted there, whose files are none of ours.
fn removed(path: &Path) -> io::Result<()> {
    if has_mount(path)? {
        return Err(io::Error::new(ErrorKind::ResourceBusy, "a file system is mounted in it"));
    }
    gone(fs::remove_dir_all(path))
}

/// Whether a file system is mounted in this folder. Linux alone tells.
fn has_mount(path: &Path) -> io::Result<bool> {
    let table = match fs::read_to_string("/proc/self/mountinfo") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        table => table?,
    };
    // The table has paths without links.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        path => path?,
    };
    let is_there = |line: &str| {
        let place = line.split(' ').nth(4).unwrap_or_default();
        // It writes these four as octal numbers.
        let place = place.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        Path::new(&place).starts_with(&path)
    };
    Ok(table.lines().any(is_there))
}

/// The parent of all folders of this user. It is made if it is not there.
#[cfg(unix)]
fn parent(below: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let user = nix::unistd::Uid::effective().as_raw();
    let parent = below.join(format!("resource-pool-{user}"));
    match fs::DirBuilder::new().mode(0o700).create(&parent) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => created?,
    }
    let found = fs::symlink_metadata(&parent)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let problem = format!("{} is not a folder that only this user may enter", parent.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
    }
    Ok(parent)
}

/// The parent of all folders. The temporary folder is the user's own there.
#[cfg(not(unix))]
fn parent(below: &Path) -> io::Result<PathBuf> {
    let parent = below.join("resource-pool");
    fs::create_dir_all(&parent)?;
    Ok(parent)
}

/// The lock on this folder. `None` if somebody else has it, or the folder is gone.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let lock = match opened(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Opens the folder itself, since those who clean up `/tmp` leave locked folders alone.
#[cfg(unix)]
fn opened(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// Opens a file in the folder, since a folder cannot be locked there.
#[cfg(not(unix))]
fn opened(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path.join("lock"))
}

/// Whether the open folder still is at this path.
///
/// # Errors
/// When that cannot be told. A file system that fails is no proof that the folder is gone.
fn is_same(path: &Path, lock: &File) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;

        let open = lock.metadata()?;
        Ok((there.dev(), there.ino()) == (open.dev(), open.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = lock;
        Ok(there.is_dir())
    }
}

/// The result of a removal. One of something that is gone already has succeeded.
pub(crate) fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder of the test's own, which is empty.
    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("run-folder-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&place);
        fs::create_dir(&place).unwrap();
        place
    }

    /// A number that no process has: it is above the kernel's limit.
    const NOBODY: u32 = 1 << 30;

    fn folder(place: &Path) -> RunFolder {
        RunFolder::new(place, |_| ()).unwrap()
    }

    /// A folder that a process of this number, which is gone, has left.
    fn left(parent: &Path, name: &str) -> PathBuf {
        let left = parent.join(format!("{NOBODY}-{name}"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "text").unwrap();
        left
    }

    #[test]
    fn only_folders_of_processes_that_are_gone_are_swept() {
        let place = place("swept");
        let mine = folder(&place);
        assert!(mine.is_there().unwrap());
        let parent = mine.path().parent().unwrap().to_owned();
        let (gone, held, other) = (left(&parent, "1-0"), left(&parent, "1-1"), parent.join("notes"));
        fs::create_dir(&other).unwrap();
        // A process in another container has a lock, and no number here.
        let lock = locked(&held).unwrap().unwrap();
        let began = began(std::process::id()).unwrap().unwrap();
        let unlocked = parent.join(format!("{}-{began}-77", std::process::id()));
        fs::create_dir(&unlocked).unwrap();
        assert_eq!(sweep(&parent).unwrap(), []);
        assert!(!gone.exists(), "nobody has it");
        for folder in [&held, &other, &unlocked, &mine.path] {
            assert!(folder.exists(), "{folder:?}");
        }
        drop(lock);
        // A child that another test is just starting has a copy of the lock until it runs its program.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while held.exists() && std::time::Instant::now() < end {
            sweep(&parent).unwrap();
        }
        assert!(!held.exists() && mine.is_there().unwrap());
        // The next one of this process sweeps by itself, and a removal waits for that.
        let gone = left(&parent, "1-2");
        let second = folder(&place);
        for folder in [second, mine] {
            folder.remove().unwrap();
            assert!(!folder.is_there().unwrap() && !gone.exists());
            folder.remove().unwrap();
        }
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn no_link_is_followed() {
        let (place, outside) = (place("links"), place("outside"));
        fs::write(outside.join("precious"), "text").unwrap();
        let mine = folder(&place);
        let parent = mine.path().parent().unwrap().to_owned();
        // The one link stands in the place of a folder, the other one is in a folder that is swept.
        let link = parent.join(format!("{NOBODY}-1-0"));
        symlink(&outside, &link).unwrap();
        let gone = left(&parent, "2-0");
        symlink(&outside, gone.join("link")).unwrap();
        sweep(&parent).unwrap();
        assert!(!gone.exists() && outside.join("precious").exists());
        assert!(link.is_symlink(), "it is no folder, so nobody removes it");
        // A parent that is a link, or that others may enter, is refused.
        let (second, third) = (self::place("parent"), self::place("open"));
        symlink(&outside, second.join(parent.file_name().unwrap())).unwrap();
        fs::create_dir(third.join(parent.file_name().unwrap())).unwrap();
        for place in [&second, &third] {
            let error = RunFolder::new(place, |_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        for place in [place, outside, second, third] {
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn only_the_own_folder_is_removed() {
        let place = place("own");
        let mine = folder(&place);
        let path = mine.path().to_owned();
        fs::remove_dir(&path).unwrap();
        assert!(!mine.is_there().unwrap());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
        assert!(!mine.is_there().unwrap(), "it is another one");
        mine.remove().unwrap();
        assert!(path.join("file").exists());
        // Nobody can look behind a file, which proves nothing about the folder.
        let parent = path.parent().unwrap();
        let away = place.join("away");
        fs::rename(parent, &away).unwrap();
        fs::write(parent, "text").unwrap();
        assert!(mine.is_there().is_err() && mine.remove().is_err());
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_folder_is_removed_although_a_thread_still_writes_in_it() {
        let place = place("writing");
        let mine = folder(&place);
        let path = mine.path().to_owned();
        let writes = std::thread::spawn({
            let path = path.clone();
            // It ends as the folder does.
            move || (0_u64..).take_while(|number| fs::write(path.join(number.to_string()), "text").is_ok()).count()
        });
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while fs::read_dir(&path).unwrap().count() < 1000 {
            assert!(std::time::Instant::now() < until, "it does not write");
        }
        mine.remove().unwrap();
        assert!(writes.join().unwrap() >= 1000 && !path.exists());
        fs::remove_dir(path.parent().unwrap()).unwrap();
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_mount_is_seen() {
        let place = place("mount");
        assert!(has_mount(Path::new("/proc")).unwrap() && has_mount(Path::new("/")).unwrap());
        assert!(!has_mount(&place).unwrap() && !has_mount(&place.join("gone")).unwrap());
        assert_eq!(removed(Path::new("/proc")).unwrap_err().kind(), ErrorKind::ResourceBusy);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_program_that_was_replaced_is_the_same() {
        assert_eq!(without_deleted("/bin/program (deleted)".into()), "/bin/program");
        assert_eq!(without_deleted("/bin/program".into()), "/bin/program");
    }

    /// The first process of the group may be gone, and another one of the group run on.
    #[test]
    fn a_child_process_that_still_runs_is_told_each_time() {
        use std::io::{BufRead, BufReader};
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};

        let place = place("told");
        let mine = folder(&place);
        let parent = mine.path().parent().unwrap().to_owned();
        let shell = |script| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]).process_group(0).stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut leads = shell("sleep 60 & echo; wait");
        let mut leaves = shell("sleep 60 & echo");
        for (child, name, resource) in [(&mut leads, "1-0", "leads"), (&mut leaves, "1-1", "leaves")] {
            BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
            mine.note(child.id(), resource).unwrap();
            fs::rename(mine.path().join(NOTE), left(&parent, name).join(NOTE)).unwrap();
        }
        leaves.wait().unwrap();
        for _ in 0..2 {
            let mut told = sweep(&parent).unwrap();
            told.sort_by(|one, two| one.resource.cmp(&two.resource));
            assert!(told.iter().all(|told| told.owner == program()));
            let told: Vec<_> = told.iter().map(|told| (told.id, &*told.resource)).collect();
            assert_eq!(told, [(leads.id(), "leads"), (leaves.id(), "leaves")]);
        }
        // A folder tells of them as well, once its sweep is over.
        let (tell, told) = mpsc::channel();
        let second = RunFolder::new(&place, move |child| tell.send(child.id).unwrap()).unwrap();
        second.remove().unwrap();
        assert_eq!(told.iter().count(), 2);
        for child in [&leads, &leaves] {
            let group = format!("-{}", child.id());
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
        }
        leads.wait().unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !sweep(&parent).unwrap().is_empty() {
            assert!(std::time::Instant::now() < until, "they do not end");
        }
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
        fs::remove_dir_all(place).unwrap();
    }
}
