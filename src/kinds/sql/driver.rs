//! The [`SqlDriver`] opens, tests and closes connections for the checkouts.
//!
//! It keeps the kill switch of the current generation under one lock, which is held only to clone or replace the
//! switch. `recover` renews the switch, and `cut` throws it. A connection keeps the switch that it was opened under.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::base::error::{Error, Failure};
use crate::kinds::sql::connection::SqlConnection;
use crate::kinds::sql::handle::RawPool;
use crate::kinds::sql::kind::{Companion as _, DriverOptions, SqlConfig as _, SqlKind};
use crate::lifecycle::checkout::Manage;
use crate::lifecycle::kind::KindConfig as _;
use crate::lifecycle::link::Link;
use crate::net::kill_switch::KillSwitch;

/// Opens, tests and closes connections, under the kill switch of the current generation.
pub struct SqlDriver<D: SqlKind> {
    pub(super) config: Arc<D::Config>,
    options: DriverOptions<D>,
    link: Link,
    /// The switch of the current generation.
    switch: Mutex<KillSwitch>,
    pub(super) raw_pool: RawPool<D>,
    /// The pool's runtime, which a guard's last rollback runs on.
    pub(super) runtime: Handle,
}

impl<D: SqlKind> SqlDriver<D> {
    /// A driver that uses the runtime of the calling task.
    pub(super) fn new(config: &Arc<D::Config>, link: &Link) -> Self {
        let (config, link, switch) = (Arc::clone(config), link.clone(), Mutex::new(KillSwitch::new()));
        let (options, raw_pool, runtime) = (config.options(), RawPool::new(&config), Handle::current());
        SqlDriver { config, options, link, switch, raw_pool, runtime }
    }

    /// Begins a new generation. Connections that are opened from now on get a new switch.
    pub(super) fn renew(&self) {
        *self.switch.lock() = KillSwitch::new();
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Throws the switch of the current generation.
    pub(super) fn cut(&self) {
        let switch = self.switch.lock().clone();
        switch.cut_because(self.link.why_cut());
    }
}

impl<D: SqlKind> Manage for SqlDriver<D> {
    type Connection = SqlConnection<D>;

    async fn connect(&self) -> Result<SqlConnection<D>, Failure> {
        let switch = self.switch.lock().clone();
        let config = self.config.current().await?;
        let renewed = match &config {
            Cow::Borrowed(_) => None,
            Cow::Owned(config) => Some(config.options()),
        };
        let companion = D::Companion::new(&switch, self.config.operation_timeout());
        let options = renewed.as_ref().unwrap_or(&self.options);
        let mut driver = D::open(&self.config, options, &self.link, &companion).await?;
        // The password may be another one by now, and so may the server.
        self.raw_pool.set_options(config.options());
        if let Some(hook) = self.config.on_connect() {
            hook.run(&mut driver).await.map_err(|error| match Error::behind(&error) {
                Some(panicked) => Failure::transient(panicked.clone()),
                None => self.config.failure(error).of_hook(),
            })?;
        }
        Ok(SqlConnection::new(driver, self.link.clone(), switch, companion))
    }

    async fn is_valid(&self, connection: &mut SqlConnection<D>) -> Result<(), Failure> {
        let switch = connection.line.switch.clone();
        tokio::select! {
            biased; // A reply that has arrived counts, even if the switch is thrown too.
            answer = D::ping(&self.config, connection) => answer,
            () = switch.wait() => Err(Failure::transient("it was cut meanwhile")),
        }
    }

    fn has_broken(&self, connection: &mut SqlConnection<D>) -> bool {
        !connection.is_fit()
    }

    async fn close(&self, connection: SqlConnection<D>) {
        let SqlConnection { driver, line } = connection;
        line.companion.stop();
        if let Err(error) = D::close(&self.config, driver, &line.companion).await {
            tracing::debug!(resource = %self.link.name(), %error, "saying goodbye");
        }
    }
}

impl<D: SqlKind> fmt::Debug for SqlDriver<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlDriver").field("resource", self.link.name()).finish_non_exhaustive()
    }
}
