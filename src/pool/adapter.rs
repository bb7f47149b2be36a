//! What a kind of one's own is made of, when [`Resource`](crate::Resource) alone is not enough: what the built-in kinds are
//! made of. **This module is exempt from semantic versioning until 1.0**, and
//! with it [`Builder::kind`](crate::Builder::kind), [`ResourcePool::kind`](crate::ResourcePool::kind) with its siblings, and
//! [`Link::lease`](crate::Link::lease); the rest of the crate is not.
//!
//! - **Configuration.** [`KindConfig`] is a struct whose fields are the keys of a TOML section. A
//!   [`Builder`](crate::Builder) that is told of it by [`kind`](crate::Builder::kind) reads `[KIND]`, `[named.KIND.NAME]` and the
//!   variables of its [`Names`], checks all of it before anything is connected, and names key, variable and file in errors.
//!   [`ResourcePool::kind`](crate::ResourcePool::kind) then leases the default resource, on both facades.
//! - **Streams.** [`Tls::dial`] opens connections under a [`KillSwitch`](crate::KillSwitch), which
//!   [`Resource::cut`](crate::Resource::cut) throws, so that no call waits for a server that has stopped answering. It needs the
//!   feature `streams`.
//! - **Checkouts.** [`Checkouts`] hand connections out one by one, in the order of asking, and open them on demand. What a
//!   driver does is [`Manage`]. It needs the feature `checkouts`.
//! - **Quotas.** A [`Quota`] counts what else there are only so many of. Whoever finds none free registers a
//!   [`wait`](Quota::wait), and whoever gets one has [`Link::lease`](crate::Link::lease) list it, so that timeouts name the lines
//!   that hold, leaks are found and deadlocks told.
//! - **Work.** [`Link::busy`](crate::Link::busy) has closing wait for what is under way.
//! - **Threads.** [`block_on`] waits on a thread, from wherever that is legal, for what runs on the pool's runtime.
//!
//! `examples/lines` in the repository is a kind made of these alone.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::base::error::Error;
use crate::base::runtime;
#[cfg(feature = "checkouts")]
pub use crate::lifecycle::checkout::{Checkout, Checkouts, Limits, Manage};
pub use crate::lifecycle::kind::KindConfig;
pub use crate::lifecycle::lease::{Claim, Provide};
pub use crate::lifecycle::wait::{Lending, Quota, Wait};
pub use crate::net::checks::Checks;
pub use crate::net::parts::{Field, Names, Part, Protection};
use crate::net::tls::TlsOptions;
#[cfg(feature = "streams")]
pub use crate::net::tls::{Stream, Tls};
pub use crate::net::url::{ParsedUrl, host, host_port, port};

/// Takes what a URL's scheme says of TLS, be it the plain one or the other, into the options.
///
/// # Errors
/// [`Error::Config`] of this key, where the plain one stands beside options for TLS.
pub fn tls_by_scheme(
    tls: &mut Option<TlsOptions>,
    key: &str,
    scheme: &str,
    plain_and_secure: [&str; 2],
) -> Result<(), Error> {
    TlsOptions::agree(tls, key, scheme, plain_and_secure)
}

/// Blocks this thread on a future that runs on the pool's runtime, which [`Handle::current`] is in
/// [`Resource::connect`](crate::Resource::connect). It may block plain threads, `spawn_blocking`, and workers of a multi-thread
/// runtime.
///
/// # Errors
/// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime.
pub fn block_on<F: Future>(resource: &Arc<str>, runtime: &Handle, future: F) -> Result<F::Output, Error> {
    runtime::block_on(resource, runtime, future)
}
