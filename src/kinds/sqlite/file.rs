//! [`FileId`], which tells a file from another one of the same path, and the checkpoint before a file is left.

use std::fs;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

/// The device and the number of a file. On systems without those, any file counts as the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// The file that is at this path now.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(super) async fn of(path: &Path) -> io::Result<Self> {
        let path = path.to_path_buf();
        let file = tokio::task::spawn_blocking(|| fs::metadata(path)).await.map_err(io::Error::other)??;
        #[cfg(unix)]
        let id = FileId(file.dev(), file.ino());
        #[cfg(not(unix))]
        let id = {
            drop(file);
            FileId(0, 0)
        };
        Ok(id)
    }
}

/// The path of the file's log of changes.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Moves the log of changes into the file. Answers whether another process has kept that from being done.
///
/// # Errors
/// Those of the driver.
pub(super) async fn checkpoint(options: &SqliteConnectOptions) -> sqlx::Result<bool> {
    let mut driver = options.connect().await?;
    let (is_busy, _, _): (bool, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut driver).await?;
    driver.close().await?;
    Ok(is_busy)
}
