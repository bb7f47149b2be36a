//! MongoDB for threads: the driver's own blocking client, over the same connections.

/// MongoDB for threads: a [`mongodb::sync::Client`] under a lease, with all that the driver has.
///
/// The driver's blocking calls panic in async code, also on a lease that was taken there. Use
/// [`resource_pool::Mongo`](crate::Mongo)'s client or `spawn_blocking` instead.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mongo;
