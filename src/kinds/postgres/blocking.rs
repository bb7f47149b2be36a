//! PostgreSQL for threads.

use crate::kinds::sql::blocking::SqlGuard;

/// A PostgreSQL connection of one's own for a thread, until it drops.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resource_pool::{blocking::ResourcePool, sqlx};
///
/// let mut postgres = ResourcePool::global().postgres()?;
/// let close: f64 =
///     postgres.wait(async |postgres| sqlx::query_scalar("SELECT close FROM bars").fetch_one(postgres).await)??;
/// # Ok(()) }
/// ```
pub type Postgres = SqlGuard<sqlx::Postgres>;
