//! A running pool with its admin.

use resource_pool::ResourcePool;
use tokio::runtime::Runtime;

/// The token that the admin wants.
pub(crate) const TOKEN: &str = "s3cret-t0ken-of-the-admin";

/// A pool and its admin.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) pool: ResourcePool,
    pub(crate) address: String,
    pub(crate) runtime: Runtime,
}

impl Admin {
    /// Serves this pool on a free port.
    pub(crate) fn of(pool: ResourcePool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let admin = resource_pool::admin::Admin::new(&pool).token(TOKEN);
        let address = admin.listen("127.0.0.1:0").expect("a port");
        Admin { pool, address: format!("http://{address}"), runtime }
    }
}
