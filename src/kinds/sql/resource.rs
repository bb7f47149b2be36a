//! The resource of a database: connecting, recovering, probing and closing it.

use std::fmt;
use std::sync::Arc;

use crate::base::error::Failure;
use crate::base::holder::QuotaId;
use crate::kinds::sql::driver::SqlDriver;
use crate::kinds::sql::guard::short_name;
use crate::kinds::sql::handle::SqlHandle;
use crate::kinds::sql::kind::{SqlConfig as _, SqlKind};
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::close::phase::Phase;
use crate::lifecycle::link::Link;
use crate::lifecycle::resource::Resource;
use crate::lifecycle::status::Usage;
use crate::lifecycle::wait::Quota;

/// A database, whose connections are checked out one by one.
pub struct SqlResource<D: SqlKind> {
    pub(super) config: Arc<D::Config>,
    /// The quota that counts the checkouts.
    pub(super) quota: QuotaId,
}

impl<D: SqlKind> SqlResource<D> {
    pub(crate) fn new(config: D::Config) -> Self {
        SqlResource { config: Arc::new(config), quota: QuotaId::new() }
    }
}

impl<D: SqlKind> Resource for SqlResource<D> {
    type Handle = SqlHandle<D>;

    async fn connect(&self, link: &Link) -> Result<SqlHandle<D>, Failure> {
        let limits = self.config.pooling().limits();
        let quota = Quota::of(self.quota, link, limits.max, "connections", "pool_size and max_overflow");
        let checkouts = Checkouts::new(link, SqlDriver::new(&self.config, link), limits, quota);
        checkouts.open().await?;
        Ok(SqlHandle { checkouts: Arc::new(checkouts) })
    }

    async fn recover(&self, _: &Link, lost: &SqlHandle<D>) -> Result<bool, Failure> {
        lost.checkouts.manager().renew();
        lost.checkouts.open().await?;
        Ok(true)
    }

    async fn ping(&self, handle: &SqlHandle<D>) -> Result<(), Failure> {
        handle.checkouts.ping().await
    }

    async fn close(&self, handle: SqlHandle<D>) -> Result<(), Failure> {
        let driver = handle.checkouts.manager();
        driver.raw_pool.close().await;
        handle.checkouts.close().await;
        // The drain has waited for checked-out connections. The cut ends the calls on those that are still out.
        driver.cut();
        D::closed(&self.config, driver.link()).await
    }

    async fn refresh(&self, handle: &SqlHandle<D>) -> Result<bool, Failure> {
        handle.checkouts.refresh().await?;
        Ok(true)
    }

    fn resize(&self, handle: &SqlHandle<D>, max: usize) -> bool {
        handle.checkouts.resize(max);
        true
    }

    fn cut(&self, handle: &SqlHandle<D>) {
        // The checkouts are cut first, so that nobody is given a cut connection.
        handle.checkouts.cut();
        handle.checkouts.manager().cut();
    }

    fn endpoint(&self) -> String {
        self.config.endpoint()
    }

    fn phase(&self) -> Phase {
        Phase::Databases
    }

    fn usage(&self, handle: &SqlHandle<D>) -> Usage {
        let usage = handle.checkouts.usage();
        let overflow = usage.open.map(|open| open.saturating_sub(self.config.pooling().pool_size as usize));
        Usage { overflow, ..usage }
    }
}

impl<D: SqlKind> fmt::Debug for SqlResource<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{}Resource", short_name::<D>());
        f.debug_struct(&name).field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}
