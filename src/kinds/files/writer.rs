//! [`FileWriter`], the handle of an open file.
//!
//! Locks: `file` is held for a write, a flush or a sync, so that writers take turns and no piece of one is torn. A file
//! system that hangs keeps it. Closing asks on a thread of its own, and so has a limit. `trouble` is taken under `file`
//! or alone, and never kept. No code of users runs under either.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;

/// Between two looks whether a call has come back.
const LOOK: Duration = Duration::from_millis(5);

/// The writer of an open file. Clones write to the same file, in turn: what one `write_all` or `writeln!` writes stays in
/// one piece.
///
/// Bytes are in the buffer until it is full, or until [`flush`](Write::flush). Closing flushes and syncs the file. From
/// then on each call answers an error, behind which [`Error::behind`] finds [`Error::Closed`].
#[derive(Clone)]
pub struct FileWriter(Arc<ForkGuarded<FileState>>);

struct FileState {
    /// `None` once it is closed. A forked child does not write what its parent has in the buffer.
    file: Mutex<Option<BufWriter<ProvedFile>>>,
    /// The error of the last call, until the file proves that it takes bytes.
    trouble: Mutex<Option<String>>,
    /// How many calls have come back.
    calls: AtomicUsize,
    resource: Arc<str>,
}

/// A file below its buffer.
struct ProvedFile {
    file: File,
    /// How many writes and syncs the file has taken. A write into the buffer proves nothing of it.
    proofs: usize,
    /// The error of the first sync that failed. The kernel forgets the bytes then, so that a later one succeeds.
    sync_error: Option<String>,
}

impl ProvedFile {
    /// Has the kernel write all of the file. A pipe or a terminal has nothing to sync.
    fn sync(&mut self) -> io::Result<()> {
        match self.file.sync_all() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            Err(error) => {
                self.sync_error.get_or_insert_with(|| error.to_string());
                return Err(error);
            }
            Ok(()) => self.proofs += 1,
        }
        Ok(())
    }
}

impl Write for ProvedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.proofs += 1;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl FileWriter {
    pub(super) fn new(file: File, buffer: usize, resource: &Arc<str>) -> Self {
        let file = ProvedFile { file, proofs: 0, sync_error: None };
        let file = Mutex::new(Some(BufWriter::with_capacity(buffer, file)));
        let (trouble, calls) = (Mutex::default(), AtomicUsize::new(0));
        FileWriter(Arc::new(ForkGuarded::new(FileState { file, trouble, calls, resource: Arc::clone(resource) })))
    }

    /// Flushes the buffer, and has the kernel write all of the file to its device. It blocks.
    ///
    /// # Errors
    /// Those of the file, as on a full disk, and those of [`Write`] for this. Closing tells the error of a sync once more,
    /// since a later one that succeeds does not bring the bytes back.
    pub fn sync(&self) -> io::Result<()> {
        self.with(|file| {
            file.flush()?;
            file.get_mut().sync()
        })
    }

    /// The error of the last call, unless the file has taken all that is in the buffer since.
    pub(super) fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().clone()
    }

    /// Waits until no call is under way, or one has come back.
    pub(super) async fn answers(&self) {
        let FileState { file, calls, .. } = &**self.0;
        // Relaxed, because the number alone counts.
        let before = calls.load(Ordering::Relaxed);
        while file.is_locked() && calls.load(Ordering::Relaxed) == before {
            sleep(LOOK).await;
        }
    }

    /// Flushes the buffer if the file is still open.
    pub(super) fn flush_open(&self) -> io::Result<()> {
        match self.with(Write::flush) {
            Err(error) if matches!(Error::behind(&error), Some(Error::Closed { .. })) => Ok(()),
            flushed => flushed,
        }
    }

    /// Flushes, syncs and closes the file.
    ///
    /// # Errors
    /// The file's own, with the number of bytes that are lost, or that of an earlier sync.
    pub(super) fn close(&self, syncs: bool) -> io::Result<()> {
        let taken = self.0.file.lock().take();
        let Some(file) = taken else { return Ok(()) };
        let mut file = file.into_inner().map_err(|error: IntoInnerError<BufWriter<ProvedFile>>| {
            let (error, writer) = error.into_parts();
            // The parts are taken, since a drop of the writer would try to write once more.
            let (mut file, lost) = writer.into_parts();
            let lost = lost.map_or(0, |lost| lost.len());
            // The bytes before them may still be saved, and the first error is the one to tell.
            let _ = file.sync();
            io::Error::new(error.kind(), format!("{lost} bytes could not be written: {error}"))
        })?;
        if syncs {
            file.sync()?;
        }
        match file.sync_error {
            Some(error) => Err(io::Error::other(format!("an earlier sync failed, so that bytes may be lost: {error}"))),
            None => Ok(()),
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut BufWriter<ProvedFile>) -> io::Result<T>) -> io::Result<T> {
        ForkGuarded::check(&self.0).map_err(io::Error::other)?;
        let FileState { file, trouble, calls, resource } = &**self.0;
        let mut open = file.lock();
        let Some(file) = &mut *open else { return Err(io::Error::other(Error::closed(resource))) };
        let before = file.get_ref().proofs;
        let done = call(file);
        match &done {
            Err(error) => *trouble.lock() = Some(error.to_string()),
            Ok(_) if file.get_ref().proofs > before && file.buffer().is_empty() => *trouble.lock() = None,
            Ok(_) => {}
        }
        calls.fetch_add(1, Ordering::Relaxed);
        done
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
        // The code of users that formats runs before the lock is taken, since it may write here itself.
        let mut text = String::new();
        fmt::write(&mut text, pieces).map_err(io::Error::other)?;
        self.write_all(text.as_bytes())
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_sync_that_failed_is_told_again_as_the_file_closes() {
        // Such a descriptor names a file, and can neither be written nor synced.
        let named = || File::options().read(true).custom_flags(libc::O_PATH).open("/").unwrap();
        let writer = FileWriter::new(named(), 100, &Arc::from("journal"));
        writer.sync().unwrap_err();
        let trouble = writer.trouble().unwrap();
        (&writer).write_all(b"text").unwrap();
        assert_eq!(writer.trouble().as_ref(), Some(&trouble), "a write into the buffer proves nothing");
        *writer.0.trouble.lock() = None;
        // As if the bytes had reached the file after all.
        let file = writer.0.file.lock().take().unwrap().into_parts().0;
        *writer.0.file.lock() = Some(BufWriter::new(file));
        let told = writer.close(false).unwrap_err();
        assert!(told.to_string().contains("an earlier sync failed"), "{told}");
        writer.close(false).unwrap();
    }
}
