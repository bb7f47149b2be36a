//! SQLite for threads.

use crate::kinds::sql::blocking::SqlGuard;

/// A connection of one's own to a file of SQLite for a thread, until it drops.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, sqlx};
///
/// let mut sqlite = ResourcePool::global().sqlite()?;
/// let close: f64 = sqlite.wait(async |sqlite| sqlx::query_scalar("SELECT close FROM bars").fetch_one(sqlite).await)??;
/// # Ok(()) }
/// ```
pub type Sqlite = SqlGuard<sqlx::Sqlite>;
