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
//!   [`Tls::dial_blocking`] opens streams for drivers that know threads alone.
//! - **Errors.** [`redacted`] withholds what a server says with a secret in it, [`Worded`] gives a driver's error words that
//!   say what to do, and [`Chain`] and [`OneLine`] print both. [`tls`] has what TLS adds, for drivers with a client of their own.
//! - **Forked children.** [`ForkGuarded`] keeps what drops in the process alone that made it, and
//!   [`Link::check_process`](crate::Link::check_process) refuses in others.
//!
//! `examples/lines` in the repository is a kind made of these alone.

pub use crate::base::error::{Chain, OneLine, Worded, causes, is_own_trouble, redacted};
pub use crate::base::holder::QuotaId;
pub use crate::base::millis::{self, number};
pub use crate::base::process::ForkGuarded;
pub use crate::base::runtime::{background, block_on, timer};
#[cfg(feature = "checkouts")]
pub use crate::lifecycle::checkout::{Checkout, Checkouts, Limits, Manage};
pub use crate::lifecycle::kind::KindConfig;
pub use crate::lifecycle::lease::{Claim, LeaseAs};
pub use crate::lifecycle::wait::{Lending, Quota, Wait};
pub use crate::net::checks::Checks;
pub use crate::net::parts::{Field, Names, Part, Protection};
#[cfg(feature = "streams")]
pub use crate::net::tls::{Blocking, Stream, Tls};
pub use crate::net::url::{LOGIN, ParsedUrl, host, host_port, one_reading, port};

/// What a kind says of TLS, whose driver has a client of its own.
pub mod tls {
    pub use crate::net::tls::{check, failure, is_permanent, missing, or_wanted};
}
