//! [`SqlKind`], by which the shared part knows a database.

use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::{ConnectOptions as _, Connection, Database, Describe, SqlStr};

use crate::base::error::{Error, Failure};
use crate::kinds::sql::connection::SqlConnection;
use crate::kinds::sql::effect::SqlEffect;
use crate::kinds::sql::executor::{Query, QueryStep};
use crate::kinds::sql::hook::OnConnect;
use crate::kinds::sql::pooling::Pooling;
use crate::kinds::sql::resource::SqlResource;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::net::kill_switch::KillSwitch;

/// The options that the driver of a database connects with.
pub(crate) type DriverOptions<D> = <<D as Database>::Connection as Connection>::Options;

/// A database that the crate reaches by sqlx. Only the crate implements it.
pub trait SqlKind: Database {
    /// The kind's configuration.
    #[doc(hidden)]
    type Config: SqlConfig<Self>;
    /// The value that the kind keeps beside each connection.
    #[doc(hidden)]
    type Companion: Companion;

    /// How statements in a transaction that an error has aborted are kept from being done.
    #[doc(hidden)]
    const ABORTED: Aborted;

    /// Whether the driver ends a statement that only reads after the first row, and leaves no answer behind.
    #[doc(hidden)]
    const ENDS_READS: bool = false;

    /// The effect of a statement, read from its text.
    #[doc(hidden)]
    fn effect(statement: &str) -> SqlEffect;

    /// Whether a transaction is undone as a whole after its statement answered this error of the database.
    #[doc(hidden)]
    fn aborts(error: &sqlx::Error) -> bool;

    /// Whether the server ends the connection with these words. They may come after a commit, so they tell nothing
    /// about the statement.
    #[doc(hidden)]
    fn is_farewell(error: &sqlx::Error) -> bool;

    /// Whether the connection ends with this answer, or is in an unknown state after it.
    #[doc(hidden)]
    fn is_last(error: &sqlx::Error) -> bool;

    /// Opens a connection, which belongs to the companion.
    #[doc(hidden)]
    fn open(
        config: &Self::Config,
        options: &DriverOptions<Self>,
        _link: &Link,
        _companion: &Self::Companion,
    ) -> impl Future<Output = Result<Self::Connection, Failure>> + Send {
        async { options.connect().await.map_err(|error| config.connect_failure(error)) }
    }

    /// Closes a connection.
    #[doc(hidden)]
    fn close(
        config: &Self::Config,
        driver: Self::Connection,
        _companion: &Self::Companion,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        async { driver.close().await.map_err(|error| config.failure(error)) }
    }

    /// Asks whether the database answers on this connection.
    #[doc(hidden)]
    fn ping(
        config: &Self::Config,
        connection: &mut SqlConnection<Self>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        async { connection.driver.ping().await.map_err(|error| config.failure(error)) }
    }

    /// Runs once all connections of a resource are closed.
    #[doc(hidden)]
    fn closed(_config: &Self::Config, _link: &Link) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }

    /// The driver's `Executor::fetch_many`. The compiler does not find it for the connection of any database.
    #[doc(hidden)]
    fn fetch_many<'e>(
        driver: &'e mut Self::Connection,
        query: Query<Self>,
    ) -> BoxStream<'e, sqlx::Result<QueryStep<Self>>>;

    /// The driver's `Executor::fetch_optional`.
    #[doc(hidden)]
    fn fetch_optional<'e>(
        driver: &'e mut Self::Connection,
        query: Query<Self>,
    ) -> BoxFuture<'e, sqlx::Result<Option<Self::Row>>>;

    /// The driver's `Executor::prepare_with`.
    #[doc(hidden)]
    fn prepare_with<'e>(
        driver: &'e mut Self::Connection,
        sql: SqlStr,
        parameters: &'e [Self::TypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<Self::Statement>>;

    /// The driver's `Executor::describe`.
    #[doc(hidden)]
    fn describe<'e>(driver: &'e mut Self::Connection, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Self>>>;
}

/// How statements in an aborted transaction are kept from being done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aborted {
    /// The server refuses them.
    ByServer,
    /// The guard refuses them until the transaction is over, since the whole transaction is undone.
    ByGuard,
}

/// The configuration of a kind over sqlx, as the shared part reads it.
pub trait SqlConfig<D: SqlKind>: KindConfig<Resource = SqlResource<D>> {
    /// The options that the driver connects with.
    fn options(&self) -> DriverOptions<D>;

    /// How many connections there may be, and for how long.
    fn pooling(&self) -> Pooling;

    /// The hook that runs on each connection once it is open.
    fn on_connect(&self) -> Option<&OnConnect<D>>;

    /// The longest time that a statement may run. Zero is for ever. A kind whose statements have no such limit leaves
    /// it out.
    fn operation_timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// The failure to connect that this error is.
    fn connect_failure(&self, error: sqlx::Error) -> Failure;

    /// Judges an error of connecting or of a ping: whether it is permanent, transient, or a refusal by the server.
    fn failure(&self, error: sqlx::Error) -> Failure;

    /// The address without credentials.
    fn endpoint(&self) -> String;
}

/// A value beside each connection, which is told of its calls. Kinds whose driver ends a call by itself when nobody
/// waits for it have `()`.
pub trait Companion: Send + Sync + 'static {
    /// The companion of a connection under this switch.
    fn new(switch: &KillSwitch, operation_timeout: Duration) -> Self;

    /// A call begins.
    fn begin(&self) {}

    /// The call has ended.
    fn end(&self) {}

    /// Nobody waits for the call any more. Nothing is sent on the connection after it.
    fn stop(&self) {}

    /// Whether a call was [stopped](Companion::stop).
    fn is_stopped(&self) -> bool {
        false
    }

    /// The driver has begun a transaction.
    fn begun(&self) {}

    /// Whether the database has undone that transaction without the driver's knowledge.
    fn is_undone(&self) -> bool {
        false
    }

    /// Leaves the connection alone from here on, since it is its user's.
    fn leave(&self) {}

    /// The crate's error if the call ended because of the companion.
    fn cause(&self, _link: &Link, _error: &sqlx::Error) -> Option<Error> {
        None
    }
}

impl Companion for () {
    fn new(_: &KillSwitch, _: Duration) -> Self {}
}
