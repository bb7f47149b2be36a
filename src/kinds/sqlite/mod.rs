//! SQLite, over the part that all kinds over sqlx share.
//!
//! The file is in this process, so it cannot stop answering as a server does. A statement can still take for ever. Each
//! connection therefore has an [`Interrupt`], which ends its statement when the kill switch is thrown, when the call is
//! dropped, or when its time is up.

pub(crate) mod blocking;
mod config;
mod effect;
mod errors;
pub(crate) mod exports;
mod file;
mod interrupt;
mod threads;

use std::io;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

pub use self::config::SqliteConfig;
use self::errors::is_lock;
use self::file::{FileId, OpenedFile, checkpoint, close, open};
use self::interrupt::Interrupt;
use crate::base::error::Failure;
use crate::kinds::sql::{
    Aborted, SqlConfig as _, SqlConnection, SqlEffect, SqlGuard, SqlHandle, SqlKind, SqlResource, SqlTransaction,
    runs_on_the_driver,
};
use crate::lifecycle::link::Link;

/// A connection of one's own to a file of SQLite, until it drops. `&mut` of it is an [`Executor`](sqlx::Executor), so
/// that [`query`](sqlx::query()), [`query_as`](sqlx::query_as()) and the macros work on it. [`SqlGuard`] has its
/// methods. Nothing more is sent after a call that was dropped while its answer was awaited.
///
/// Many connections read at a time, and one of them writes. Another one that wants to write waits for `busy_timeout`. A
/// transaction that reads and then writes may be refused if the file has changed meanwhile, so
/// [begin it](SqlGuard::begin_with) by `BEGIN IMMEDIATE`.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, sqlx};
///
/// let mut sqlite = ResourcePool::global().sqlite().await?;
/// let close: f64 =
///     sqlx::query_scalar("SELECT close FROM bars WHERE code = ?").bind("000001").fetch_one(&mut sqlite).await?;
/// # Ok(()) }
/// ```
pub type Sqlite = SqlGuard<sqlx::Sqlite>;

/// The handle of a file of SQLite. [`ResourcePool::sqlite`](crate::ResourcePool::sqlite) checks connections out of it.
pub type SqliteHandle = SqlHandle<sqlx::Sqlite>;

/// A file of SQLite, whose connections are checked out one by one.
pub type SqliteResource = SqlResource<sqlx::Sqlite>;

/// A transaction of SQLite, or a savepoint within one.
pub type SqliteTransaction<'a> = SqlTransaction<'a, sqlx::Sqlite>;

impl SqlKind for sqlx::Sqlite {
    type Config = SqliteConfig;
    type Companion = Interrupt;

    const ABORTED: Aborted = Aborted::ByGuard;
    const ENDS_READS: bool = true;

    fn effect(statement: &str) -> SqlEffect {
        effect::effect(statement)
    }

    /// SQLite tells by its handler whether it has undone the transaction.
    fn aborts(_: &sqlx::Error) -> bool {
        false
    }

    fn is_farewell(_: &sqlx::Error) -> bool {
        false
    }

    fn is_last(error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Protocol(_))
    }

    async fn open(
        config: &SqliteConfig,
        options: &SqliteConnectOptions,
        link: &Link,
        interrupt: &Interrupt,
    ) -> Result<SqliteConnection, Failure> {
        let OpenedFile { mut connection, id, awaited } = open(config, options).await?;
        let mut handle = connection.driver().lock_handle().await.map_err(|error| config.failure(error))?;
        interrupt.attach(&mut handle, id, link.generation(), awaited);
        drop(handle);
        read(connection.driver()).await.map_err(|error| config.failure(error))?;
        let (driver, running) = connection.into_parts();
        interrupt.keep_thread(running);
        Ok(driver)
    }

    async fn close(config: &SqliteConfig, driver: SqliteConnection, interrupt: &Interrupt) -> Result<(), Failure> {
        close(config, driver, interrupt.take_thread()).await
    }

    /// Reads the file, and looks whether it is still the one of this path. If it is another one, all connections are lost,
    /// since those that are always in use are not tested.
    async fn ping(config: &SqliteConfig, connection: &mut SqlConnection<Self>) -> Result<(), Failure> {
        let path = config.file.display();
        match (FileId::of(config, &config.file).await, connection.companion().opened()) {
            (Ok(None), _) => return Err(Failure::transient(format!("{path} is gone, or cannot be looked at"))),
            (Ok(Some(here)), Some(opened)) if opened.file != here => {
                let why = || io::Error::other(format!("{path} was replaced by another file"));
                connection.link().lost(opened.generation, why());
                return Err(Failure::transient(why()));
            }
            // Too many threads hang for one more to look. The connection itself may still answer.
            (Ok(Some(_)) | Err(_), _) => {}
        }
        read(&mut connection.driver).await.map_err(|error| config.failure(error))
    }

    /// Moves the log of changes into the file, if a connection that has ended otherwise has left one.
    async fn closed(config: &SqliteConfig, link: &Link) -> Result<(), Failure> {
        if !config.read_only && checkpoint(config).await? {
            link.warn("the log of changes stays beside the file, since a connection to it is still open", None);
        }
        Ok(())
    }

    runs_on_the_driver!();
}

/// Reads the file, without waiting for a lock. A lock shows that another connection uses the file, so it is an answer.
///
/// # Cancel safety
/// If the future is dropped, the connection may wait for no lock any more, so it is closed.
async fn read(driver: &mut SqliteConnection) -> sqlx::Result<()> {
    let limit: i64 = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&mut *driver).await?;
    sqlx::raw_sql("PRAGMA busy_timeout = 0").execute(&mut *driver).await?;
    let read = sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 1").fetch_optional(&mut *driver).await;
    let restore = sqlx::AssertSqlSafe(format!("PRAGMA busy_timeout = {limit}"));
    sqlx::raw_sql(restore).execute(driver).await?;
    match read {
        Err(error) if is_lock(&error) => Ok(()),
        read => read.map(drop),
    }
}
