//! [`FileId`], which tells a file from another one of the same path; opening and closing a connection to it; the
//! checkpoint before it is left.

use std::fs;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use crate::base::error::Failure;
use crate::kinds::sql::SqlConfig as _;
use crate::kinds::sqlite::config::SqliteConfig;
use crate::kinds::sqlite::threads::CountedThread;

/// The device and the number of a file. On systems without those, any file counts as the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// The file that is at this path now. `None` if there is none, or it cannot be looked at.
    ///
    /// # Errors
    /// [Too many](super::threads::DiskThreads) threads hang.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(super) async fn of(config: &SqliteConfig, path: &Path) -> Result<Option<Self>, Failure> {
        let (running, _awaited) = config.threads.begin(config.pooling().max())?;
        let path = path.to_path_buf();
        let looking = tokio::task::spawn_blocking(move || {
            let _running = running;
            fs::metadata(path)
        });
        let Ok(file) = looking.await.map_err(io::Error::other)? else { return Ok(None) };
        #[cfg(unix)]
        let id = FileId(file.dev(), file.ino());
        #[cfg(not(unix))]
        let id = {
            drop(file);
            FileId(0, 0)
        };
        Ok(Some(id))
    }
}

/// A connection to a file, of which it is known that it is the one at the path.
pub(super) struct OpenedFile {
    pub(super) driver: SqliteConnection,
    pub(super) id: FileId,
    /// The driver's thread, and that the connection is wanted.
    pub(super) threads: (CountedThread, CountedThread),
}

/// Opens the file. If it is to be made, it is made first, so that the connection that stays is known to have it.
///
/// # Errors
/// Those of the driver, and a failure if another file has taken its place meanwhile.
///
/// # Cancel safety
/// Cancel-safe. The driver's thread counts as abandoned until its call returns.
pub(super) async fn open(config: &SqliteConfig, options: &SqliteConnectOptions) -> Result<OpenedFile, Failure> {
    let mut before = FileId::of(config, &config.file).await?;
    if before.is_none() && config.create && !config.read_only {
        let (driver, (running, _awaited)) = connect(config, options.clone()).await?;
        close(config, driver, Some(running)).await?;
        before = FileId::of(config, &config.file).await?;
    }
    let (driver, threads) = connect(config, options.clone()).await?;
    match FileId::of(config, &config.file).await? {
        Some(id) if before == Some(id) => Ok(OpenedFile { driver, id, threads }),
        _ => {
            // The connection leaves no log beside the other file.
            let (running, _awaited) = threads;
            close(config, driver, Some(running)).await?;
            let why = format!("{} was replaced by another file as it was opened", config.file.display());
            Err(Failure::transient(why))
        }
    }
}

/// Connects in a task of its own, so that the driver's thread is counted until its call returns.
async fn connect(
    config: &SqliteConfig,
    options: SqliteConnectOptions,
) -> Result<(SqliteConnection, (CountedThread, CountedThread)), Failure> {
    let (running, awaited) = config.threads.begin(config.pooling().max())?;
    let opening = tokio::spawn(async move { options.connect().await.map(|driver| (driver, running)) });
    let opened = opening.await.map_err(io::Error::other)?;
    let (driver, running) = opened.map_err(|error| config.connect_failure(error))?;
    Ok((driver, (running, awaited)))
}

/// Closes a connection in a task of its own, so that the driver's thread is counted until its call returns.
///
/// # Errors
/// Those of the driver.
///
/// # Cancel safety
/// As [`open`].
pub(super) async fn close(
    config: &SqliteConfig,
    driver: SqliteConnection,
    running: Option<CountedThread>,
) -> Result<(), Failure> {
    let closing = tokio::spawn(async move {
        let answer = driver.close().await;
        drop(running);
        answer
    });
    closing.await.map_err(io::Error::other)?.map_err(|error| config.failure(error))
}

/// The path of the file's log of changes.
fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Moves the log of changes into the file, if both are there. Answers whether another process has kept that from being
/// done.
///
/// # Errors
/// Those of the driver.
pub(super) async fn checkpoint(config: &SqliteConfig) -> Result<bool, Failure> {
    for path in [&config.file, &log_of(&config.file)] {
        if FileId::of(config, path).await?.is_none() {
            return Ok(false);
        }
    }
    let (mut driver, (running, _awaited)) = connect(config, config.options().create_if_missing(false)).await?;
    let moved = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut driver).await;
    let (is_busy, _, _): (bool, i64, i64) = moved.map_err(|error| config.failure(error))?;
    close(config, driver, Some(running)).await?;
    Ok(is_busy)
}
