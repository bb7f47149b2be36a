//! The resource of a PostgreSQL: connecting, recovering, probing and closing it.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::base::holder::QuotaId;
use crate::kinds::postgres::config::PostgresConfig;
use crate::kinds::postgres::driver::Driver;
use crate::kinds::postgres::handle::PostgresHandle;
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;
use crate::net::url::host_port;

/// A PostgreSQL, whose connections are checked out one by one.
pub struct PostgresResource {
    pub(super) config: Arc<PostgresConfig>,
    /// The quota that counts the checkouts.
    pub(super) quota: QuotaId,
}

impl PostgresResource {
    pub(super) fn new(config: PostgresConfig) -> Self {
        PostgresResource { config: Arc::new(config), quota: QuotaId::new() }
    }
}

impl Resource for PostgresResource {
    type Handle = PostgresHandle;

    async fn connect(&self, link: &Link) -> Result<PostgresHandle, Failure> {
        let limits = self.config.limits();
        let quota = Quota::of(self.quota, link, limits.max, "connections", "pool_size and max_overflow");
        let checkouts = Checkouts::new(link, Driver::new(&self.config, link), limits, quota);
        checkouts.open().await?;
        Ok(PostgresHandle { checkouts: Arc::new(checkouts) })
    }

    async fn recover(&self, _: &Link, lost: &PostgresHandle) -> Result<bool, Failure> {
        lost.checkouts.manager().renew();
        lost.checkouts.open().await?;
        Ok(true)
    }

    async fn ping(&self, handle: &PostgresHandle) -> Result<(), Failure> {
        handle.checkouts.ping().await
    }

    async fn close(&self, handle: PostgresHandle) -> Result<(), Failure> {
        let driver = handle.checkouts.manager();
        driver.raw_pool.close().await;
        handle.checkouts.close().await;
        // The drain has waited for checked-out connections. The cut ends the calls on those that are still out.
        driver.cut();
        Ok(())
    }

    async fn refresh(&self, handle: &PostgresHandle) -> Result<bool, Failure> {
        handle.checkouts.refresh().await?;
        Ok(true)
    }

    fn resize(&self, handle: &PostgresHandle, max: usize) -> bool {
        handle.checkouts.resize(max);
        true
    }

    fn cut(&self, handle: &PostgresHandle) {
        // The checkouts are cut first, so that nobody is given a cut connection.
        handle.checkouts.cut();
        handle.checkouts.manager().cut();
    }

    fn endpoint(&self) -> String {
        let PostgresConfig { host, port, database, .. } = &*self.config;
        let database = percent_encoding::utf8_percent_encode(database, percent_encoding::NON_ALPHANUMERIC);
        format!("postgres://{}/{database}", host_port(host, *port))
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, handle: &PostgresHandle) -> Usage {
        let usage = handle.checkouts.usage();
        let overflow = usage.open.map(|open| open.saturating_sub(self.config.pool_size as usize));
        Usage { overflow, ..usage }
    }
}

impl fmt::Debug for PostgresResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresResource").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
