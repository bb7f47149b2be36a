//! [`OpenFile`], the resource that is an open file, and its configuration.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::base::error::Failure;
use crate::base::setters::setters;
use crate::kinds::files::turns::Turns;
use crate::kinds::files::writer::FileWriter;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;

/// A file that a program writes to until its end, such as a journal or a log. The pool opens it as it is first asked
/// for. As it closes, it writes what is in the buffer, and syncs the file. An error, as on a full disk, is in the report,
/// with the number of bytes that are lost.
///
/// SIGKILL, `abort`, `_exit` and a second signal lose what is in the buffer. [`FileWriter::sync`] loses nothing.
///
/// A [`reconnect`](crate::ResourcePool::reconnect) writes what is in the buffer, and goes on with the same file. It fails,
/// and so do leases from then on, until that can be written. To open the path anew, as after another program has moved the
/// file, [`close`](crate::ResourcePool::close) it before the reconnect.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
/// use resource_pool::{OpenFile, blocking::ResourcePool};
///
/// let journal = ResourcePool::global().file("journal", OpenFile::append("journal.log").buffer(1 << 20))?;
/// writeln!(&*journal, "begun")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct OpenFile {
    path: PathBuf,
    appends: bool,
    buffer: usize,
    sync: bool,
    phase: Phase,
    /// The calls to the file system. One that was given up ends before the next begins: an open that is late must not
    /// empty a file that is in use, and a late flush must not write into one that was opened again.
    turns: Turns,
}

/// The default of [`OpenFile::buffer`].
const BUFFER: usize = 64 * 1024;

impl OpenFile {
    /// A file that is written to at its end. It is made if it is not there.
    pub fn append(path: impl Into<PathBuf>) -> Self {
        let (path, turns) = (path.into(), Turns::default());
        OpenFile { path, appends: true, buffer: BUFFER, sync: true, phase: Phase::Files, turns }
    }

    /// A file that is made, or emptied if it is there. If the pool is closed and the file is opened again, it is emptied
    /// again.
    pub fn create(path: impl Into<PathBuf>) -> Self {
        OpenFile { appends: false, ..OpenFile::append(path) }
    }

    setters! {
        plain {
            /// Sets how many bytes the buffer has room for. Zero writes each piece at once. Defaults to 64 KiB.
            buffer: usize,
            /// Sets whether closing waits until the file is on its device. Defaults to `true`.
            sync: bool,
            /// Sets the phase in which it closes. Defaults to [`Phase::Files`].
            phase: Phase,
        }
    }

    fn open(&self) -> io::Result<File> {
        File::options().create(true).write(true).append(self.appends).truncate(!self.appends).open(&self.path)
    }
}

impl PartialEq for OpenFile {
    fn eq(&self, other: &OpenFile) -> bool {
        let OpenFile { path, appends, buffer, sync, phase, turns: _ } = self;
        (path, appends, buffer, sync, phase) == (&other.path, &other.appends, &other.buffer, &other.sync, &other.phase)
    }
}

impl Resource for OpenFile {
    type Handle = FileWriter;

    async fn connect(&self, link: &Link) -> Result<FileWriter, Failure> {
        let me = self.clone();
        let file = self.turns.apart(move || me.open()).await?.map_err(|error| match is_permanent(&error) {
            true => Failure::permanent(error),
            false => error.into(),
        })?;
        Ok(FileWriter::new(file, self.buffer, link.name()))
    }

    /// Health fails while the last write has failed, and while a write does not come back. The file is not opened anew for
    /// that.
    async fn ping(&self, file: &FileWriter) -> Result<(), Failure> {
        file.answers().await;
        match file.trouble() {
            Some(trouble) => Err(Failure::refused(trouble)),
            None => Ok(()),
        }
    }

    /// A writer that hangs is no loss.
    async fn probe(&self, _: &FileWriter) -> Result<(), Failure> {
        Ok(())
    }

    async fn flush(&self, file: &FileWriter) -> Result<(), Failure> {
        let file = file.clone();
        // Closing tells the error, if it is still there.
        drop(self.turns.apart(move || file.flush_open()).await?);
        Ok(())
    }

    async fn close(&self, file: FileWriter) -> Result<(), Failure> {
        let sync = self.sync;
        Ok(self.turns.apart(move || file.close(sync)).await??)
    }

    /// Goes on with the same file, since users have clones of its writer.
    async fn recover(&self, _: &Link, file: &FileWriter) -> Result<bool, Failure> {
        let file = file.clone();
        self.turns.apart(move || file.flush_open()).await??;
        Ok(true)
    }

    fn endpoint(&self) -> String {
        self.path.display().to_string()
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn usage(&self, _: &FileWriter) -> Usage {
        Usage { max: Some(1), open: Some(1), ..Usage::default() }
    }
}

/// A path is the same path in the next attempt.
impl From<PathBuf> for OpenFile {
    fn from(path: PathBuf) -> Self {
        OpenFile::append(path)
    }
}

impl From<&str> for OpenFile {
    fn from(path: &str) -> Self {
        OpenFile::append(path)
    }
}

/// Whether no further attempt can mend it.
fn is_permanent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(
        error.kind(),
        NotFound | PermissionDenied | InvalidInput | IsADirectory | NotADirectory | ReadOnlyFilesystem
    )
}
