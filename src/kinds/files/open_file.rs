//! [`OpenFile`], the resource that is an open file, and its configuration.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::base::error::Failure;
use crate::base::runtime::apart;
use crate::base::setters::setters;
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
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::Write;
/// use resource_pool::{OpenFile, blocking::ResourcePool};
///
/// let journal = ResourcePool::global().file("journal", OpenFile::append("journal.log").buffer(1 << 20))?;
/// writeln!(&*journal, "begun")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OpenFile {
    path: PathBuf,
    appends: bool,
    buffer: usize,
    sync: bool,
    phase: Phase,
}

/// The default of [`OpenFile::buffer`].
const BUFFER: usize = 64 * 1024;

impl OpenFile {
    /// A file that is written to at its end. It is made if it is not there.
    pub fn append(path: impl Into<PathBuf>) -> Self {
        OpenFile { path: path.into(), appends: true, buffer: BUFFER, sync: true, phase: Phase::Files }
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

impl Resource for OpenFile {
    type Handle = FileWriter;

    async fn connect(&self, link: &Link) -> Result<FileWriter, Failure> {
        let me = self.clone();
        let file = apart(move || me.open()).await?.map_err(|error| match is_permanent(&error) {
            true => Failure::permanent(error),
            false => error.into(),
        })?;
        Ok(FileWriter::new(file, self.buffer, link.name()))
    }

    /// Health fails while the last write has failed. The file is not opened anew for that.
    async fn ping(&self, file: &FileWriter) -> Result<(), Failure> {
        let file = file.clone();
        match apart(move || file.trouble()).await? {
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
        drop(apart(move || file.flush_open()).await?);
        Ok(())
    }

    async fn close(&self, file: FileWriter) -> Result<(), Failure> {
        let sync = self.sync;
        Ok(apart(move || file.close(sync)).await??)
    }

    fn endpoint(&self) -> String {
        self.path.display().to_string()
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn usage(&self, _: &FileWriter) -> Usage {
        let mut usage = Usage::default();
        (usage.max, usage.open) = (Some(1), Some(1));
        usage
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
