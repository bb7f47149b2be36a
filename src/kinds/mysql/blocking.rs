//! MySQL for threads.

use crate::kinds::sql::blocking::SqlGuard;

/// A connection of one's own to a MySQL for a thread, until it drops.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, sqlx};
///
/// let mut mysql = ResourcePool::global().mysql()?;
/// let close: f64 = mysql.wait(async |mysql| sqlx::query_scalar("SELECT close FROM bars").fetch_one(mysql).await)??;
/// # Ok(()) }
/// ```
pub type MySql = SqlGuard<sqlx::MySql>;
