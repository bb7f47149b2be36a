//! MongoDB for threads: the driver's own blocking client, over the same connections.

use mongodb::sync::Client;

use crate::base::error::Error;
use crate::kinds::mongo::MongoConfig;
use crate::lifecycle::lease::Lease;
use crate::pool::blocking::Scoped;
use crate::pool::scoped;

/// MongoDB for threads: a [`mongodb::sync::Client`] under a lease, with all that the driver has.
///
/// The driver's blocking calls panic in async code, also on a lease that was got there: use
/// [`resource_pool::Mongo`](crate::Mongo)'s client or `spawn_blocking`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mongo;

impl Mongo {
    /// A MongoDB of one's own, which closes when the guard drops.
    ///
    /// # Errors
    /// Those of [`ResourcePool::mongo`](crate::pool::blocking::ResourcePool::mongo).
    #[track_caller]
    pub fn scoped(config: MongoConfig) -> Result<Scoped<Lease<Client>>, Error> {
        let pool = crate::blocking::ResourcePool::from(scoped::pool(config.into())?);
        Ok(Scoped::new(pool.mongo()?, pool))
    }
}
