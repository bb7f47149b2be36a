//! [`FileId`], which tells a file from another one of the same path; opening and closing a connection to it; the
//! checkpoint before it is left.

use std::fs;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::runtime::Handle;

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

/// A connection with the count of its driver's thread. If it drops, a task closes it, and the thread counts until that is
/// done.
pub(super) struct CountedConnection {
    /// `None` only while it drops.
    parts: Option<(SqliteConnection, CountedThread)>,
    runtime: Handle,
}

impl CountedConnection {
    pub(super) fn driver(&mut self) -> &mut SqliteConnection {
        match &mut self.parts {
            Some((driver, _)) => driver,
            None => unreachable!("only its drop takes it"),
        }
    }

    pub(super) fn into_parts(mut self) -> (SqliteConnection, CountedThread) {
        match self.parts.take() {
            Some(parts) => parts,
            None => unreachable!("only its drop takes it"),
        }
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// Those of the driver.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn close(self, config: &SqliteConfig) -> Result<(), Failure> {
        let (driver, running) = self.into_parts();
        close(config, driver, Some(running)).await
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if let Some((driver, running)) = self.parts.take() {
            drop(self.runtime.spawn(closing(driver, Some(running))));
        }
    }
}

/// A connection to a file, of which it is known that it is the one at the path.
pub(super) struct OpenedFile {
    pub(super) connection: CountedConnection,
    pub(super) id: FileId,
    /// Counts the connection as one that is wanted.
    pub(super) awaited: CountedThread,
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
        let (connection, _awaited) = connect(config, options.clone()).await?;
        connection.close(config).await?;
        before = FileId::of(config, &config.file).await?;
    }
    let (connection, awaited) = connect(config, options.clone()).await?;
    match FileId::of(config, &config.file).await? {
        Some(id) if before == Some(id) => Ok(OpenedFile { connection, id, awaited }),
        _ => {
            // The connection leaves no log beside the other file.
            connection.close(config).await?;
            let why = format!("{} was replaced by another file as it was opened", config.file.display());
            Err(Failure::transient(why))
        }
    }
}

/// Connects in a task of its own, so that the driver's thread is counted until its call returns. The second value counts
/// the connection as one that is wanted.
async fn connect(
    config: &SqliteConfig,
    options: SqliteConnectOptions,
) -> Result<(CountedConnection, CountedThread), Failure> {
    let (running, awaited) = config.threads.begin(config.pooling().max())?;
    let runtime = Handle::current();
    let opening = tokio::spawn(async move {
        let driver = options.connect().await?;
        Ok(CountedConnection { parts: Some((driver, running)), runtime })
    });
    let opened = opening.await.map_err(io::Error::other)?;
    Ok((opened.map_err(|error| config.connect_failure(error))?, awaited))
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
    let closed = tokio::spawn(closing(driver, running)).await;
    closed.map_err(io::Error::other)?.map_err(|error| config.failure(error))
}

/// Closes a connection, whose driver's thread counts until that is done.
async fn closing(driver: SqliteConnection, running: Option<CountedThread>) -> sqlx::Result<()> {
    let answer = driver.close().await;
    drop(running);
    answer
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
    let (mut connection, _awaited) = connect(config, config.options().create_if_missing(false)).await?;
    let moved = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection.driver()).await;
    let (is_busy, _, _): (bool, i64, i64) = moved.map_err(|error| config.failure(error))?;
    connection.close(config).await?;
    Ok(is_busy)
}

#[cfg(test)]
mod tests {
    use std::env::temp_dir;
    use std::fs;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use sqlx::{Connection as _, Executor as _, SqliteConnection};

    use super::connect;
    use crate::kinds::sql::SqlConfig as _;
    use crate::kinds::sqlite::SqliteConfig;

    /// The thread of a connection that is given up waits for a lock.
    #[tokio::test]
    async fn the_thread_of_a_connection_that_drops_counts_until_it_ends() {
        let path = temp_dir().join(format!("resource_pool-threads-{}.sqlite", std::process::id()));
        let _ = fs::remove_file(&path);
        let config = SqliteConfig::file(&path).create(true).wal(false).busy_timeout(Duration::from_secs(600));
        let mut holder = SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap();
        holder.execute("CREATE TABLE bars (close real); BEGIN EXCLUSIVE").await.unwrap();
        let (mut connection, awaited) = connect(&config, config.options()).await.unwrap();
        assert!(connection.driver().execute("SELECT count(*) FROM bars").now_or_never().is_none());
        assert_eq!(config.threads.abandoned(), 0);
        drop((connection, awaited));
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(config.threads.abandoned(), 1, "its thread waits for the lock");
        }
        holder.execute("ROLLBACK").await.unwrap();
        while config.threads.abandoned() > 0 {
            tokio::task::yield_now().await;
        }
        holder.close().await.unwrap();
        fs::remove_file(&path).unwrap();
    }
}
