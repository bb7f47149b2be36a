//! [`Holder`]: who holds a lease or a checkout, and since when.

use std::backtrace::Backtrace;
use std::fmt;
use std::num::NonZeroU64;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "serde")]
use crate::base::json;
use crate::base::owner::Owner;

/// Who holds a lease or a checkout.
///
/// ```no_run
/// use resource_pool::blocking::ResourcePool;
///
/// for holder in ResourcePool::global().holders() {
///     println!("{} is held for {:?} by {}", holder.resource, holder.held, holder.site);
/// }
/// ```
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Holder {
    /// The resource's name.
    pub resource: Arc<str>,
    /// The line that acquired it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::text"))]
    pub site: &'static Location<'static>,
    /// How long it has been held.
    #[cfg_attr(feature = "serde", serde(rename = "held_ms", serialize_with = "json::millis"))]
    pub held: Duration,
    /// Whether it is an exclusive checkout, which others may be waiting for.
    pub exclusive: bool,
    /// The generation it was taken from.
    pub generation: u64,
    /// The task or thread that acquired it. Known of checkouts, and of leases that are watched for leaks.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::some_text"))]
    pub owner: Option<Owner>,
    /// Whether it had been held for longer than [`age`](crate::config::LeakOptions::age) when it was last looked at.
    pub suspected: bool,
    /// The backtrace of its acquiring, if [`backtrace`](crate::config::LeakOptions::backtrace) is on.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::some_text"))]
    pub backtrace: Option<Arc<Backtrace>>,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) quota: Option<QuotaId>,
}

impl Holder {
    /// A holder of an exclusive thing that it did not check out. For example, a consumer holds its channel.
    pub fn of(resource: &Arc<str>, site: &'static Location<'static>, held: Duration, generation: u64) -> Self {
        Holder {
            resource: Arc::clone(resource),
            site,
            held,
            exclusive: true,
            generation,
            owner: None,
            suspected: false,
            backtrace: None,
            quota: None,
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.owner.is_some()
    }
}

/// One line. With `{:#}` the backtrace follows, if there is one.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.1?}", self.site, self.held)?;
        if self.exclusive {
            f.write_str(", exclusive")?;
        }
        if let Some(owner) = &self.owner {
            write!(f, ", {owner}")?;
        }
        if self.suspected {
            f.write_str(", a leak?")?;
        }
        f.write_str(")")?;
        match &self.backtrace {
            Some(backtrace) if f.alternate() => write!(f, "\n{backtrace}"),
            _ => Ok(()),
        }
    }
}

/// The id of a quota, which tells one sort of exclusive checkouts from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaId(pub(crate) NonZeroU64);

impl QuotaId {
    /// The bit that marks a checkout that closing does not wait for, in its record of the lease table. A field of its
    /// own would cost every lease.
    const IDLE: u64 = 1 << 63;

    pub(crate) fn is_idle(self) -> bool {
        self.0.get() & Self::IDLE != 0
    }

    pub(crate) fn plain(self) -> Self {
        QuotaId(NonZeroU64::new(self.0.get() & !Self::IDLE).unwrap_or(self.0))
    }

    /// The id for a checkout that closing does not wait for, such as a subscription, which has no work to end.
    pub(crate) fn idle(self) -> Self {
        QuotaId(self.0 | Self::IDLE)
    }
}
