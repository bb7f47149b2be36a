//! The parts for a kind of one's own, when [`Resource`](crate::Resource) alone is not enough. The built-in kinds are
//! made of the same parts. **This module is exempt from semantic versioning until 1.0**, and so are
//! [`Builder::kind`](crate::Builder::kind), [`ResourcePool::kind`](crate::ResourcePool::kind) with its siblings, and
//! [`Link::lease`](crate::Link::lease). The rest of the crate is not exempt.
//!
//! - **Configuration.** [`KindConfig`] is a struct whose fields are the keys of a TOML section.
//!   [`kind`](crate::Builder::kind) makes it known to a [`Builder`](crate::Builder). The builder then reads `[KIND]`,
//!   `[named.KIND.NAME]` and the variables of its [`Names`], checks all of it before anything is connected, and names
//!   key, variable and file in errors. [`ResourcePool::kind`](crate::ResourcePool::kind) then leases the default
//!   resource, on both facades.
//! - **Streams.** [`Tls::dial`] opens connections under a [`KillSwitch`](crate::KillSwitch).
//!   [`Resource::cut`](crate::Resource::cut) throws that switch, so that no call waits for a server that has stopped
//!   answering. They need the feature `streams`.
//! - **Checkouts.** [`Checkouts`] hand connections out one by one, in the order of asking, and open them on demand.
//!   [`Manage`] is the driver's part. They need the feature `checkouts`.
//! - **Requests.** [`Requests`] sends requests over HTTP by a client of `reqwest`, with limits, a place for each, and an
//!   end for all of them when the resource is cut or closed. [`RequestProbe`] asks for a server's health. They need the
//!   feature `requests`.
//! - **Quotas.** A [`Quota`] counts any other limited supply. A caller that finds none free registers a
//!   [`wait`](Quota::wait), and a caller that gets one has [`Link::lease`](crate::Link::lease) list it. Timeouts then
//!   name the lines that hold, and leaks and deadlocks are found.
//! - **Work.** [`Link::busy`](crate::Link::busy) counts an operation in flight, which closing waits for.
//!   [`Link::operation`](crate::Link::operation) makes its span, an [`OperationSpan`]. [`attribute`] has
//!   OpenTelemetry's names, and [`addresses`] takes an endpoint apart.
//! - **Threads.** [`block_on`] blocks a thread on a future that runs on the pool's runtime, wherever blocking is legal.
//!   [`Tls::dial_blocking`] opens streams for drivers that support only threads.
//! - **Errors.** [`redacted`] withholds a server's message that contains a secret. [`Worded`] gives a driver's error a
//!   text that says what to do. [`Chain`] and [`OneLine`] print both. [`tls`] has the parts of TLS for drivers with a
//!   client of their own.
//! - **Forked children.** [`ForkGuarded`] drops a value only in the process that made it, and
//!   [`Link::check_process`](crate::Link::check_process) refuses use in other processes.
//!
//! `examples/lines` in the repository is a kind made of these parts alone.

pub use crate::base::attribute;
pub use crate::base::error::{Chain, OneLine, Worded, causes, is_own_trouble, redacted};
pub use crate::base::holder::QuotaId;
pub use crate::base::millis::{self, number};
pub use crate::base::process::ForkGuarded;
pub use crate::base::runtime::{background, block_on, timer};
#[cfg(feature = "checkouts")]
pub use crate::lifecycle::checkout::{Checkout, Checkouts, Limits, Manage};
pub use crate::lifecycle::kind::KindConfig;
pub use crate::lifecycle::lease::{Claim, LeaseAs};
#[cfg(feature = "requests")]
pub use crate::lifecycle::requests::{RequestProbe, RequestSettings, Requests};
pub use crate::lifecycle::spans::OperationSpan;
pub use crate::lifecycle::wait::{Lending, Quota, Wait};
pub use crate::net::base_url::{BaseUrl, HTTP_SCHEMES};
pub use crate::net::checks::Checks;
pub use crate::net::endpoint::{NodeAddress, addresses, without_credentials};
pub use crate::net::parts::{Field, Names, Part, Protection};
#[cfg(feature = "requests")]
pub use crate::net::tls::RequestTls;
#[cfg(feature = "streams")]
pub use crate::net::tls::{Blocking, Stream, Tls};
pub use crate::net::url::{LOGIN, ParsedUrl, host, host_port, name_and_port, one_reading, port};

/// The parts of TLS for kinds whose driver has a TLS client of its own.
pub mod tls {
    pub use crate::net::tls::{check, failure, is_permanent, missing, or_wanted};
}
