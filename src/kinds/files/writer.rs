//! [`FileWriter`], the handle of an open file.
//!
//! Locks: the one of `state` is held for a write, a flush or a sync, so that writers take turns and no piece of one is
//! torn. A file system that hangs keeps it. Closing and health ask on threads of their own, and so have limits.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;

/// The writer of an open file. Clones write to the same file, in turn: what one `write_all` or `writeln!` writes stays in
/// one piece.
///
/// Bytes are in the buffer until it is full, or until [`flush`](Write::flush). Closing flushes and syncs the file. From
/// then on each call answers an error, behind which [`Error::behind`] finds [`Error::Closed`].
#[derive(Clone)]
pub struct FileWriter(Arc<ForkGuarded<Mutex<FileState>>>);

struct FileState {
    /// `None` once it is closed. A forked child does not write what its parent has in the buffer.
    file: Option<BufWriter<File>>,
    /// The error of the last write or flush, until one succeeds.
    trouble: Option<String>,
    resource: Arc<str>,
}

impl FileWriter {
    pub(super) fn new(file: File, buffer: usize, resource: &Arc<str>) -> Self {
        let file = Some(BufWriter::with_capacity(buffer, file));
        let state = FileState { file, trouble: None, resource: Arc::clone(resource) };
        FileWriter(Arc::new(ForkGuarded::new(Mutex::new(state))))
    }

    /// Flushes the buffer, and has the kernel write all of the file to its device. It blocks.
    ///
    /// # Errors
    /// Those of the file, as on a full disk, and those of [`Write`] for this.
    pub fn sync(&self) -> io::Result<()> {
        self.with(|file| {
            file.flush()?;
            synced(file.get_ref())
        })
    }

    /// The error of the last write or flush, unless one has succeeded since.
    pub(super) fn trouble(&self) -> Option<String> {
        self.0.lock().trouble.clone()
    }

    /// Whether it is not closed.
    pub(super) fn is_open(&self) -> bool {
        self.0.lock().file.is_some()
    }

    /// Flushes the buffer if the file is still open.
    pub(super) fn flush_open(&self) -> io::Result<()> {
        if self.is_open() { self.with(Write::flush) } else { Ok(()) }
    }

    /// Flushes, syncs and closes the file.
    ///
    /// # Errors
    /// The file's own, with the number of bytes that are lost.
    pub(super) fn close(&self, syncs: bool) -> io::Result<()> {
        let taken = self.0.lock().file.take();
        let Some(file) = taken else { return Ok(()) };
        let file = file.into_inner().map_err(|error: IntoInnerError<BufWriter<File>>| {
            let (error, writer) = error.into_parts();
            // The parts are taken, since a drop of the writer would try to write once more.
            let (file, lost) = writer.into_parts();
            let lost = lost.map_or(0, |lost| lost.len());
            // The bytes before them may still be saved, and the first error is the one to tell.
            let _ = file.sync_all();
            io::Error::new(error.kind(), format!("{lost} bytes could not be written: {error}"))
        })?;
        if syncs { synced(&file) } else { Ok(()) }
    }

    fn with<T>(&self, call: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> io::Result<T> {
        ForkGuarded::check(&self.0).map_err(io::Error::other)?;
        let mut state = self.0.lock();
        let FileState { file, trouble, resource } = &mut *state;
        let Some(file) = file else { return Err(io::Error::other(Error::closed(resource))) };
        let done = call(file);
        *trouble = done.as_ref().err().map(ToString::to_string);
        done
    }
}

/// Has the kernel write all of a file. A pipe or a terminal has nothing to sync.
fn synced(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

impl Write for &FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|file| file.write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.with(|file| file.write_all(bytes))
    }

    fn write_fmt(&mut self, pieces: fmt::Arguments<'_>) -> io::Result<()> {
        self.with(|file| file.write_fmt(pieces))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(Write::flush)
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&*self).write_all(bytes)
    }

    fn write_fmt(&mut self, pieces: fmt::Arguments<'_>) -> io::Result<()> {
        (&*self).write_fmt(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

// The state is not shown, because its lock may be held by a thread that a forked child does not have.
impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter").finish_non_exhaustive()
    }
}
