//! PostgreSQL, over the part that all kinds over sqlx share.

pub(crate) mod blocking;
mod config;
mod effect;
mod errors;
pub(crate) mod exports;
mod hosts;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};

pub use self::config::PostgresConfig;
pub use self::hosts::PostgresTarget;
use crate::base::error::Failure;
use crate::kinds::sql::{
    Aborted, SqlEffect, SqlGuard, SqlHandle, SqlKind, SqlResource, SqlTransaction, runs_on_the_driver,
};
use crate::lifecycle::link::Link;

/// A PostgreSQL connection of one's own, until it drops. `&mut` of it is an [`Executor`](sqlx::Executor), so that
/// [`query`](sqlx::query()), [`query_as`](sqlx::query_as()) and the macros work on it. [`SqlGuard`] has its methods.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{ResourcePool, sqlx};
///
/// let mut postgres = ResourcePool::global().postgres().await?;
/// let close: f64 = sqlx::query_scalar("SELECT close FROM bars WHERE code = $1")
///     .bind("000001")
///     .fetch_one(&mut postgres)
///     .await?;
/// # Ok(()) }
/// ```
pub type Postgres = SqlGuard<sqlx::Postgres>;

/// The handle of a PostgreSQL. [`ResourcePool::postgres`](crate::ResourcePool::postgres) checks connections out of it.
pub type PostgresHandle = SqlHandle<sqlx::Postgres>;

/// A PostgreSQL, whose connections are checked out one by one.
pub type PostgresResource = SqlResource<sqlx::Postgres>;

/// A transaction of PostgreSQL, or a savepoint within one.
pub type PostgresTransaction<'a> = SqlTransaction<'a, sqlx::Postgres>;

impl SqlKind for sqlx::Postgres {
    type Config = PostgresConfig;
    type Companion = ();

    const ABORTED: Aborted = Aborted::ByServer;

    fn effect(statement: &str) -> SqlEffect {
        effect::effect(statement)
    }

    fn aborts(error: &sqlx::Error) -> bool {
        error.as_database_error().is_some()
    }

    fn is_farewell(error: &sqlx::Error) -> bool {
        // Class 57: the server is shut down, has crashed, or an administrator ends the session.
        let code = error.as_database_error().and_then(|said| said.code());
        Self::is_last(error) && code.is_some_and(|code| code.starts_with("57"))
    }

    fn is_last(error: &sqlx::Error) -> bool {
        let said = error.as_database_error().and_then(|said| said.try_downcast_ref::<PgDatabaseError>());
        let is_fatal = said.is_some_and(|said| matches!(said.severity(), PgSeverity::Fatal | PgSeverity::Panic));
        is_fatal || matches!(error, sqlx::Error::Protocol(_))
    }

    async fn open(
        config: &PostgresConfig,
        options: &PgConnectOptions,
        link: &Link,
        (): &(),
    ) -> Result<PgConnection, Failure> {
        hosts::open(config, options, link.connect_timeout).await
    }

    runs_on_the_driver!();
}
