//! The handle: the checkouts, and the driver's own pool for users who want one.
//!
//! Locks: [`RawPool`] has one, which is held to make the driver's pool or to replace its options. No wait happens under
//! it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use sqlx::Pool;
use sqlx::pool::PoolOptions;
use tokio::runtime::Handle;

use crate::kinds::sql::driver::SqlDriver;
use crate::kinds::sql::guard::short_name;
use crate::kinds::sql::kind::{DriverOptions, SqlConfig as _, SqlKind};
use crate::kinds::sql::pooling::Pooling;
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::lease::LeaseAs;

/// The longest limit of the driver's pool, which adds its limits to the present time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The handle of a database. The verbs of its kind check connections out of it.
pub struct SqlHandle<D: SqlKind> {
    pub(super) checkouts: Arc<Checkouts<SqlDriver<D>>>,
}

/// The driver's own pool, made on demand.
pub(super) struct RawPool<D: SqlKind> {
    config: Arc<D::Config>,
    /// The pool's runtime, since the driver's pool spawns tasks.
    runtime: Handle,
    /// The options of the next connections. They have the password that the server accepted last.
    options: Mutex<DriverOptions<D>>,
    pool: OnceCell<Pool<D>>,
}

impl<D: SqlKind> RawPool<D> {
    pub(super) fn new(config: &Arc<D::Config>) -> Self {
        let options = Mutex::new(config.options());
        RawPool { config: Arc::clone(config), runtime: Handle::current(), options, pool: OnceCell::new() }
    }

    pub(super) fn get(&self) -> Pool<D> {
        let options = self.options.lock();
        let pool = self.pool.get_or_init(|| {
            let _context = self.runtime.enter();
            let pooling = self.config.pooling();
            let Pooling { pool_timeout, pool_recycle, pre_ping, .. } = pooling;
            let hook = self.config.on_connect().cloned();
            PoolOptions::new()
                .after_connect(move |connection, _| {
                    let hook = hook.clone();
                    Box::pin(async move {
                        match hook {
                            Some(hook) => hook.run(connection).await,
                            None => Ok(()),
                        }
                    })
                })
                .max_connections(u32::try_from(pooling.max()).unwrap_or(u32::MAX))
                .acquire_timeout(pool_timeout.min(LONGEST))
                .max_lifetime(Some(pool_recycle.min(LONGEST)).filter(|recycle| !recycle.is_zero()))
                .test_before_acquire(pre_ping)
                .connect_lazy_with(options.clone())
        });
        pool.clone()
    }

    /// Uses these options for the connections from now on.
    pub(super) fn set_options(&self, new: DriverOptions<D>) {
        let mut options = self.options.lock();
        if let Some(pool) = self.pool.get() {
            pool.set_connect_options(new.clone());
        }
        *options = new;
    }

    /// Closes the pool, and waits for the queries that run on it.
    pub(super) async fn close(&self) {
        // A pool that was never made is made and closed, so that later callers get a closed one.
        self.get().close().await;
    }
}

impl<D: SqlKind> Clone for SqlHandle<D> {
    fn clone(&self) -> Self {
        SqlHandle { checkouts: Arc::clone(&self.checkouts) }
    }
}

impl<D: SqlKind> LeaseAs<Checkouts<SqlDriver<D>>> for SqlHandle<D> {
    fn lease_as(&self) -> &Checkouts<SqlDriver<D>> {
        &self.checkouts
    }
}

impl<D: SqlKind> fmt::Debug for SqlHandle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{}Handle", short_name::<D>());
        f.debug_tuple(&name).field(&self.checkouts).finish()
    }
}
