//! The handle: the checkouts, and the driver's own pool for users who want one.
//!
//! Locks: [`RawPool`] has one, which is held to make the driver's pool or to replace its options. No wait happens under
//! it.

use std::fmt;
use std::sync::Arc;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::runtime::Handle;

use crate::kinds::postgres::config::PostgresConfig;
use crate::kinds::postgres::driver::Driver;
use crate::lifecycle::checkout::Checkouts;
use crate::lifecycle::lease::LeaseAs;

/// The handle of a PostgreSQL. [`ResourcePool::postgres`](crate::ResourcePool::postgres) checks connections out of it.
#[derive(Clone)]
pub struct PostgresHandle {
    pub(super) checkouts: Arc<Checkouts<Driver>>,
}

/// The driver's own pool, made on demand.
pub(super) struct RawPool {
    config: Arc<PostgresConfig>,
    /// The pool's runtime, since the driver's pool spawns tasks.
    runtime: Handle,
    /// The options of the next connections. They have the password that the server accepted last.
    options: Mutex<PgConnectOptions>,
    pool: OnceCell<PgPool>,
}

impl RawPool {
    pub(super) fn new(config: &Arc<PostgresConfig>) -> Self {
        let options = Mutex::new(config.options());
        RawPool { config: Arc::clone(config), runtime: Handle::current(), options, pool: OnceCell::new() }
    }

    pub(super) fn get(&self) -> PgPool {
        let options = self.options.lock();
        let pool = self.pool.get_or_init(|| {
            let _context = self.runtime.enter();
            let PostgresConfig { pool_timeout, pool_recycle, pre_ping, .. } = &*self.config;
            let hook = self.config.on_connect.clone();
            PgPoolOptions::new()
                .after_connect(move |connection, _| {
                    let hook = hook.clone();
                    Box::pin(async move {
                        match hook {
                            Some(hook) => hook.run(connection).await,
                            None => Ok(()),
                        }
                    })
                })
                .max_connections(u32::try_from(self.config.max()).unwrap_or(u32::MAX))
                .acquire_timeout(*pool_timeout)
                .max_lifetime(Some(*pool_recycle).filter(|recycle| !recycle.is_zero()))
                .test_before_acquire(*pre_ping)
                .connect_lazy_with(options.clone())
        });
        pool.clone()
    }

    /// Uses these options for the connections from now on.
    pub(super) fn set_options(&self, new: PgConnectOptions) {
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

impl LeaseAs<Checkouts<Driver>> for PostgresHandle {
    fn lease_as(&self) -> &Checkouts<Driver> {
        &self.checkouts
    }
}

impl fmt::Debug for PostgresHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresHandle").field(&self.checkouts).finish()
    }
}
