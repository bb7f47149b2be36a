//! MySQL and MariaDB, over the part that all kinds over sqlx share.

pub(crate) mod blocking;
mod config;
mod effect;
mod errors;
pub(crate) mod exports;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use self::config::MySqlConfig;
use self::errors::number;
use crate::kinds::sql::{
    Aborted, Companion, SqlEffect, SqlGuard, SqlHandle, SqlKind, SqlResource, SqlTransaction, runs_on_the_driver,
};
use crate::net::kill_switch::KillSwitch;

/// A connection of one's own to a MySQL or a MariaDB, until it drops. `&mut` of it is an
/// [`Executor`](sqlx::Executor), so that [`query`](sqlx::query()), [`query_as`](sqlx::query_as()) and the macros work on
/// it. [`SqlGuard`] has its methods. Nothing more is sent after a call that was dropped while its answer was awaited.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, sqlx};
///
/// let mut mysql = ResourcePool::global().mysql().await?;
/// let close: f64 =
///     sqlx::query_scalar("SELECT close FROM bars WHERE code = ?").bind("000001").fetch_one(&mut mysql).await?;
/// # Ok(()) }
/// ```
pub type MySql = SqlGuard<sqlx::MySql>;

/// The handle of a MySQL. [`ResourcePool::mysql`](crate::ResourcePool::mysql) checks connections out of it.
pub type MySqlHandle = SqlHandle<sqlx::MySql>;

/// A MySQL or a MariaDB, whose connections are checked out one by one.
pub type MySqlResource = SqlResource<sqlx::MySql>;

/// A transaction of MySQL, or a savepoint within one. A statement such as `CREATE TABLE` commits it.
pub type MySqlTransaction<'a> = SqlTransaction<'a, sqlx::MySql>;

/// The server ends the connection with one of these errors: it shuts down, an administrator ends the session, or the
/// session was idle for too long.
const FAREWELLS: [u16; 4] = [1053, 1927, 3169, 4031];

/// The whole transaction is undone: it has read a row that has changed since (MariaDB), waited for a lock for too long,
/// found the table of locks full, or was in a deadlock. A wait undoes it only with `innodb_rollback_on_timeout`, which the
/// error does not tell.
const UNDOES: [u16; 5] = [1020, 1205, 1206, 1213, 1614];

/// The statement was larger than the server takes, or the server could not read or write the connection. The server may
/// end the connection after each of these.
const BROKEN: RangeInclusive<u16> = 1153..=1161;

impl SqlKind for sqlx::MySql {
    type Config = MySqlConfig;
    type Companion = AnyDropped;

    const ABORTED: Aborted = Aborted::ByGuard;

    fn effect(statement: &str) -> SqlEffect {
        effect::effect(statement)
    }

    /// Any other error undoes its own statement alone.
    fn aborts(error: &sqlx::Error) -> bool {
        let state = error.as_database_error().and_then(|said| said.code());
        // Class 40: the transaction is rolled back.
        state.is_some_and(|state| state.starts_with("40"))
            || number(error).is_some_and(|number| UNDOES.contains(&number))
    }

    fn is_farewell(error: &sqlx::Error) -> bool {
        number(error).is_some_and(|number| FAREWELLS.contains(&number))
    }

    fn is_last(error: &sqlx::Error) -> bool {
        // An answer of which a part cannot be read is only half read.
        let is_half_read = matches!(error, sqlx::Error::Protocol(_) | sqlx::Error::Decode(_));
        Self::is_farewell(error) || number(error).is_some_and(|number| BROKEN.contains(&number)) || is_half_read
    }

    runs_on_the_driver!();
}

/// Whether a call was dropped while its answer was awaited. The driver would take the rest of that answer for the answer
/// to the next call, if the statement was just being prepared.
#[derive(Debug)]
pub struct AnyDropped(AtomicBool);

impl Companion for AnyDropped {
    fn new(_: &KillSwitch, _: Duration) -> Self {
        AnyDropped(AtomicBool::new(false))
    }

    fn stop(&self) {
        // Relaxed suffices, since the connection has one user at a time.
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
