//! The [`Driver`] opens, tests and closes connections for the checkouts.
//!
//! It keeps the kill switch of the current generation under one lock, which is held only to clone or replace the
//! switch. `recover` renews the switch, and `cut` throws it. A connection keeps the switch that it was opened under.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection as _};
use tokio::runtime::Handle;

use crate::base::error::{Error, Failure};
use crate::kinds::postgres::config::PostgresConfig;
use crate::kinds::postgres::connection::PostgresConnection;
use crate::kinds::postgres::handle::RawPool;
use crate::lifecycle::checkout::Manage;
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::link::Link;
use crate::net::kill_switch::KillSwitch;

/// Opens, tests and closes connections, under the kill switch of the current generation.
pub struct Driver {
    pub(super) config: Arc<PostgresConfig>,
    options: PgConnectOptions,
    link: Link,
    /// The switch of the current generation.
    switch: Mutex<KillSwitch>,
    pub(super) raw_pool: RawPool,
    /// The pool's runtime, which a guard's last rollback runs on.
    pub(super) runtime: Handle,
}

impl Driver {
    /// A driver that uses the runtime of the calling task.
    pub(super) fn new(config: &Arc<PostgresConfig>, link: &Link) -> Self {
        let (config, link, switch) = (Arc::clone(config), link.clone(), Mutex::new(KillSwitch::new()));
        let (options, raw_pool, runtime) = (config.options(), RawPool::new(&config), Handle::current());
        Driver { config, options, link, switch, raw_pool, runtime }
    }

    /// Begins a new generation. Connections that are opened from now on get a new switch.
    pub(super) fn renew(&self) {
        *self.switch.lock() = KillSwitch::new();
    }

    /// Throws the switch of the current generation.
    pub(super) fn cut(&self) {
        let switch = self.switch.lock().clone();
        switch.cut_because(self.link.why_cut());
    }
}

impl Manage for Driver {
    type Connection = PostgresConnection;

    async fn connect(&self) -> Result<PostgresConnection, Failure> {
        let switch = self.switch.lock().clone();
        let config = self.config.current().await?;
        let opened = match &config {
            Cow::Borrowed(_) => self.options.connect().await,
            Cow::Owned(config) => config.options().connect().await,
        };
        let mut driver = opened.map_err(|error| self.config.connect_failure(error))?;
        if let Cow::Owned(config) = &config {
            self.raw_pool.set_options(config.options());
        }
        if let Some(hook) = &self.config.on_connect {
            hook.run(&mut driver).await.map_err(|error| match Error::behind(&error) {
                Some(panicked) => Failure::transient(panicked.clone()),
                None => self.config.failure(error).of_hook(),
            })?;
        }
        Ok(PostgresConnection::new(driver, self.link.clone(), switch))
    }

    async fn is_valid(&self, connection: &mut PostgresConnection) -> Result<(), Failure> {
        let PostgresConnection { driver, line } = connection;
        tokio::select! {
            biased; // A reply that has arrived counts, even if the switch is thrown too.
            answer = driver.ping() => answer.map_err(|error| self.config.failure(error)),
            () = line.switch.wait() => Err(Failure::transient("it was cut meanwhile")),
        }
    }

    fn has_broken(&self, connection: &mut PostgresConnection) -> bool {
        !connection.is_fit()
    }

    async fn close(&self, connection: PostgresConnection) {
        if let Err(error) = connection.driver.close().await {
            tracing::debug!(resource = %self.link.name(), %error, "saying goodbye");
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("resource", self.link.name()).finish_non_exhaustive()
    }
}
