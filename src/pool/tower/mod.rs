//! Services for web servers that are built on [tower](https://docs.rs/tower), such as axum, tonic and hyper.
//!
//! [`Probes`] answers the probes of an orchestrator. [`HoldLayer`] has closing wait for the requests in flight.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use resource_pool::ResourcePool;
//! use resource_pool::tower::{HoldLayer, Probes};
//!
//! let pool = ResourcePool::global();
//! let app = axum::Router::<()>::new()
//!     .route("/", axum::routing::get(|| async { "hello" }))
//!     .layer(HoldLayer::new(pool))
//!     .fallback_service(Probes::new(pool));
//! # drop(app);
//! # Ok(()) }
//! ```

mod hold;
mod probes;

pub use hold::{HoldBody, HoldFuture, HoldLayer, HoldService};
pub use probes::{ProbeFuture, Probes};
