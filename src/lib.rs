//! One process-wide pool through which a program reaches MongoDB, RabbitMQ, ClickHouse, Redis, PostgreSQL, MySQL and SQLite,
//! from plain threads and from tokio.
//!
//! The pool connects on first use, leases in nanoseconds, checks health by real round trips, brings lost connections back, and
//! closes everything in order when the process ends. Only SIGKILL, `abort` and the like prevent that.
//!
//! # A program with threads
//!
//! ```no_run
//! # #[cfg(feature = "redis")]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     use resource_pool::blocking::ResourcePool;
//!     use resource_pool::redis::Commands;
//!
//!     let pool = ResourcePool::global();
//!     let () = pool.redis()?.set("signal:AAPL", "long")?; // connects on first use: REDIS_URL, or localhost
//!     println!("{}", pool.health_check()?);
//!     Ok(()) // the exit hook closes everything
//! }
//! # #[cfg(not(feature = "redis"))]
//! # fn main() {}
//! ```
//!
//! # The same with tokio
//!
//! ```no_run
//! # #[cfg(feature = "redis")]
//! #[resource_pool::main] // the pool's own runtime, with signals handled; `#[tokio::main]` works, too
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     use resource_pool::ResourcePool;
//!     use resource_pool::redis::AsyncCommands;
//!
//!     let pool = ResourcePool::global();
//!     let () = pool.redis().await?.set("signal:AAPL", "long").await?;
//!     println!("{}", pool.health_check().await);
//!     Ok(())
//! }
//! # #[cfg(not(feature = "redis"))]
//! # fn main() {}
//! ```
//!
//! # Where to look
//!
//! | to | see |
//! |---|---|
//! | acquire, from tasks or from threads | [`ResourcePool`], [`blocking::ResourcePool`] |
//! | configure | [`config`], [`Builder`] |
//! | handle errors | [`Error`], [`Error::behind`] |
//! | ask how things are | [`PoolStatus`], [`HealthReport`], [`Holder`], [`Event`] |
//! | end in order | [`Closing`], [`CloseReport`], [`run`] |
//! | add resources of your own | [`Resource`], [`adapter`] |
//!
//! [`blocking`] has the types for threads under the same names. The drivers are re-exported, so that a program needs no
//! dependency on them: `resource_pool::mongodb`, `::lapin`, `::clickhouse`, `::redis`, `::sqlx`,
//! `::reqwest` and `::r2d2`.
//!
//! # Features
//!
//! | feature | on by default | |
//! |---|---|---|
//! | `mongodb`, `rabbitmq`, `clickhouse`, `redis` | yes | a kind of resource each |
//! | `postgres`, `mysql`, `sqlite` | no | PostgreSQL, MySQL with MariaDB, SQLite: by sqlx |
//! | `elastic` | no | Elasticsearch, OpenSearch and what is compatible with them |
//! | `http` | no | a client of HTTP, by reqwest |
//! | `llm` | no | a language model behind an OpenAI-compatible server |
//! | `chroma`, `milvus` | no | vector stores |
//! | `macros` | yes | [`#[resource_pool::main]`](macro@main) and [`#[resource_pool::test]`](macro@test) |
//! | `r2d2` | with `redis` | a resource of any adapter for r2d2 |
//! | `tls` | no | TLS for all kinds |
//! | `serde` | no | reports, errors and events implement `serde::Serialize` |
//! | `tower` | no | the probes and the holds of a web service, as [`tower`] services |
//! | `systemd` | no | systemd is told that the service is ready, and that it stops |
//! | `metrics` | no | metrics with the names of OpenTelemetry, for any recorder of the crate `metrics` |
//! | `processes` | no | child processes, each with all that it starts |
//! | `files` | no | open files that are flushed and synced, temporary files and folders |
//! | `admin` | no | the status page, and status, holders, events and verbs over HTTP |
//! | `log` | no | log lines reach loggers of the crate `log`, too |
//! | `checkouts`, `streams`, `requests` | with the kinds that need them | parts for kinds of your own |
//!
//! `RESOURCE_MANAGER.md` in the repository is the guide, and `docs/reference` has every option, variable, error and limit.

#![cfg_attr(
    not(feature = "_all"),
    allow(dead_code, unused_imports, reason = "each kind needs another part of what stands below it")
)]
// How deep the auto traits are looked into, for the documentation: the drivers' types nest deeper than usual.
#![recursion_limit = "256"]

mod base;
mod kinds;
mod lifecycle;
mod net;
mod pool;
#[cfg(any(feature = "metrics", feature = "admin"))]
mod seen;

pub use base::error::{
    BoxError, ConnectError, DeadlockError, Error, Failure, Source, TimeoutError, Waiter, WarmUpError,
};
pub use base::holder::Holder;
pub use base::owner::Owner;
#[cfg(feature = "files")]
pub use kinds::files::{FileWriter, OpenFile, TempDir, TempFile, TempFolder, TempRoot};
pub use kinds::model::{Loaded, Model, ModelLoader};
#[cfg(feature = "processes")]
pub use kinds::processes::{Child, ChildProcess};
#[cfg(feature = "r2d2")]
pub use kinds::r2d2::{Connections, R2d2};
#[cfg(feature = "http")]
pub use kinds::rest::{RestKind, RestResource};
#[cfg(feature = "_sql")]
pub use kinds::sql::{SqlGuard, SqlHandle, SqlKind, SqlResource, SqlTransaction};
pub use lifecycle::application::Hold;
pub use lifecycle::busy::Busy;
pub use lifecycle::close::phase::Phase;
pub use lifecycle::close::report::{CloseReport, Closing, Outcome, Reason, StepReport};
pub use lifecycle::event::{Event, What};
pub use lifecycle::health::{Criticality, Health, HealthEntry, HealthReport, NodeHealth};
#[cfg(feature = "serde")]
pub use lifecycle::health_json::HealthJson;
pub use lifecycle::lease::Lease;
pub use lifecycle::link::Link;
#[cfg(feature = "metrics")]
pub use lifecycle::measured::{Measure, Measured};
pub use lifecycle::observers::Events;
#[cfg(feature = "requests")]
pub use lifecycle::requests::{HttpRequest, HttpResponse, HttpStatusError};
pub use lifecycle::resource::Resource;
pub use lifecycle::status::{ClosedCounts, Counters, NodeStatus, PoolStatus, ResourceStatus, State, Usage};
pub use lifecycle::work::Work;
pub use net::kill_switch::{Guarded, KillSwitch, Killable};
pub use pool::builder::Builder;
pub use pool::global::run;
pub use pool::resource_pool::{ResourcePool, WarmUp};
pub use pool::scoped::Scoped;
pub use pool::{adapter, blocking, config};

#[cfg(model)]
#[doc(hidden)]
pub use lifecycle::model;

#[cfg(feature = "r2d2")]
pub use ::r2d2;
#[cfg(feature = "requests")]
pub use ::reqwest;
#[cfg(feature = "_sql")]
pub use ::sqlx;

/// Runs an `async fn main` on the [global](ResourcePool::global) pool, in the place of `#[tokio::main]`.
///
/// The body runs on the main thread, so it need not be `Send`. Its `tokio::spawn` lands on the pool's own runtime, where
/// the drivers live. A signal sets off [`closing`](ResourcePool::closing), and the body goes on until it ends or the
/// drain does. When the body has ended, or has panicked, the pool closes. `main` then returns the body's value.
///
/// Arguments: `worker_threads = N` is the number of threads of the runtime, as [`Builder::worker_threads`]. `builder =
/// EXPRESSION` is the [`Builder`] of the global pool. If that cannot be built, the process prints the error and exits
/// with status 1.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// use resource_pool::{ResourcePool, redis::AsyncCommands};
///
/// # #[cfg(feature = "redis")]
/// #[resource_pool::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ResourcePool::global();
///     let () = pool.redis().await?.set("signal:AAPL", "long").await?;
///     Ok(())
/// }
/// # #[cfg(not(feature = "redis"))]
/// # fn main() {}
/// ```
///
/// The pool's runtime has worker threads only:
///
/// ```compile_fail
/// #[resource_pool::main(flavor = "current_thread")]
/// async fn main() {}
/// ```
#[cfg(feature = "macros")]
pub use resource_pool_macros::main;

/// Gives an `async` test a pool of its own, which closes at the end. The test fails unless everything closed.
///
/// The function takes the [`ResourcePool`], or nothing. The pool is configured from environment and TOML, or by the
/// argument `builder = EXPRESSION`. The global pool is not touched. `worker_threads = N` is as in [`main`](macro@main).
///
/// ```
/// # #[cfg(feature = "redis")]
/// use resource_pool::{ResourcePool, redis::AsyncCommands};
///
/// # #[cfg(feature = "redis")]
/// #[resource_pool::test]
/// async fn a_signal_is_kept(pool: ResourcePool) -> Result<(), Box<dyn std::error::Error>> {
///     let mut redis = pool.redis().await?.clone();
///     let () = redis.set("signal:AAPL", "long").await?;
///     let signal: String = redis.get("signal:AAPL").await?;
///     assert_eq!(signal, "long");
///     Ok(())
/// }
/// ```
#[cfg(feature = "macros")]
pub use resource_pool_macros::test;

#[cfg(feature = "tower")]
pub use pool::tower;

#[cfg(feature = "admin")]
pub use seen::admin;
#[cfg(feature = "metrics")]
pub use seen::metrics;

#[cfg(feature = "macros")]
#[doc(hidden)]
pub use pool::attributes;

macro_rules! exports {
    ($($feature:literal $what:literal $kind:ident $named:ident $with:ident $type:ident $config:ident $resource:ident $task:ty, $thread:ty, $task_guard:literal $guard:literal;)*) => {
        $(
            #[cfg(feature = $feature)]
            pub use crate::{kinds::$kind::exports::root::*, pool::global::$kind};
        )*
    };
}
kinds::for_each_kind!(exports);

/// The Rust in the guide, its reference and the README compiles.
#[cfg(all(doctest, feature = "mongodb", feature = "rabbitmq", feature = "clickhouse", feature = "redis"))]
mod documents {
    #[doc = include_str!("../RESOURCE_MANAGER.md")]
    mod guide {}
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/reference/closing.md")]
    mod closing {}
    #[doc = include_str!("../docs/reference/events.md")]
    mod events {}
    #[doc = include_str!("../docs/reference/kinds.md")]
    mod kinds {}
    #[doc = include_str!("../docs/reference/own-resources.md")]
    mod own_resources {}
    #[doc = include_str!("../docs/reference/quantaxis.md")]
    mod quantaxis {}
    #[cfg(all(feature = "files", feature = "processes"))]
    #[doc = include_str!("../docs/reference/program.md")]
    mod program {}
    #[cfg(feature = "macros")]
    #[doc = include_str!("../docs/testing.md")]
    mod testing {}
    #[cfg(all(feature = "macros", feature = "admin"))]
    #[doc = include_str!("../docs/admin.md")]
    mod admin {}
    #[cfg(all(feature = "macros", feature = "tower"))]
    #[doc = include_str!("../docs/web-services.md")]
    mod web_services {}
}
