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

use std::io;
use std::sync::Arc;

pub use self::config::SqliteConfig;
use self::errors::code;
use self::file::{FileId, checkpoint, log_of};
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

/// How many instructions of SQLite's machine pass between two questions whether a statement may go on. They take some
/// ten microseconds.
const INSTRUCTIONS: i32 = 1000;

/// SQLite undoes the whole transaction after one of these errors: no memory, an interrupt, a failure of the disk, a full
/// disk.
const ABORTS: [i32; 4] = [7, 9, 10, 13];

impl SqlKind for sqlx::Sqlite {
    type Config = SqliteConfig;
    type Companion = Interrupt;

    const ABORTED: Aborted = Aborted::ForGood;

    fn effect(statement: &str) -> SqlEffect {
        effect::effect(statement)
    }

    fn aborts(error: &sqlx::Error) -> bool {
        code(error).is_some_and(|code| ABORTS.contains(&code))
    }

    fn is_farewell(_: &sqlx::Error) -> bool {
        false
    }

    fn is_last(error: &sqlx::Error) -> bool {
        matches!(error, sqlx::Error::Protocol(_))
    }

    async fn opened(
        config: &SqliteConfig,
        link: &Link,
        driver: &mut sqlx::SqliteConnection,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        let signals = Arc::clone(&interrupt.signals);
        let mut handle = driver.lock_handle().await.map_err(|error| config.failure(error))?;
        handle.set_progress_handler(INSTRUCTIONS, move || signals.goes_on());
        drop(handle);
        // Nobody else has set it.
        let _ = interrupt.file.set((FileId::of(&config.file).await?, link.generation()));
        Ok(())
    }

    /// Reads the file, and looks whether it is still the one of this path. If it is another one, all connections are lost,
    /// since those that are always in use are not tested.
    async fn ping(config: &SqliteConfig, connection: &mut SqlConnection<Self>) -> Result<(), Failure> {
        let here = FileId::of(&config.file).await?;
        if let Some((file, generation)) = connection.companion().file.get()
            && *file != here
        {
            let why = || io::Error::other(format!("{} was replaced by another file", config.file.display()));
            connection.link().lost(*generation, why());
            return Err(Failure::transient(why()));
        }
        let read = sqlx::query("SELECT 1 FROM sqlite_schema LIMIT 1").fetch_optional(&mut connection.driver).await;
        read.map(drop).map_err(|error| config.failure(error))
    }

    /// Moves the log of changes into the file, if a connection that has ended otherwise has left one.
    async fn closed(config: &SqliteConfig, link: &Link) -> Result<(), Failure> {
        if config.read_only || FileId::of(&log_of(&config.file)).await.is_err() {
            return Ok(());
        }
        if checkpoint(&config.options()).await.map_err(|error| config.failure(error))? {
            link.warn("the log of changes stays beside the file, since a connection to it is still open", None);
        }
        Ok(())
    }

    runs_on_the_driver!();
}
