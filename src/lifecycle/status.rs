//! The status of each resource of a pool.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::base::error::Error;
#[cfg(feature = "serde")]
use crate::base::json;
use crate::lifecycle::work::Work;

/// The state of a resource in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum State {
    /// Never used, or opened again.
    Idle,
    /// A connection is being made.
    Connecting,
    /// Connected.
    Ready,
    /// The connection is lost, or could not be made.
    Broken,
    /// Closing has begun. Work goes on, and nothing new is connected.
    Draining,
    /// Closed.
    Closed,
}

impl State {
    /// The word for it, as in `ready`.
    pub fn code(self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Connecting => "connecting",
            State::Ready => "ready",
            State::Broken => "broken",
            State::Draining => "draining",
            State::Closed => "closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// How full a resource is, as far as its driver can tell. `None` means that this is unknown. No value is a guess.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Usage {
    /// The most connections or channels that it may have.
    pub max: Option<usize>,
    /// How many are open.
    pub open: Option<usize>,
    /// How many of them are in use.
    pub in_use: Option<usize>,
    /// How many of them are idle.
    pub idle: Option<usize>,
    /// How many are open beyond those that are kept.
    pub overflow: Option<usize>,
    /// How many callers wait for one.
    pub waiting: Option<usize>,
    /// How many are being opened for callers.
    pub opening: Option<usize>,
    /// The fewest idle ones that the resource tries to keep.
    pub min_idle: Option<usize>,
    /// The most idle ones that there may be.
    pub max_idle: Option<usize>,
    /// The counts of all that happened to them so far.
    pub counters: Counters,
}

/// The counts of what happened to the connections that [`Usage`] is about, since the resource was first connected. They
/// only grow: neither a loss nor a close resets them. A connection that comes back after its resource was closed is not
/// counted any more. `None` means that the driver does not tell, as by default, that there was no connection yet, or
/// that [`usage`](crate::Resource::usage) has only panicked or hung so far. If it has answered before, the counts stay
/// as they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// How many connections were opened, including those that the prober opened for itself.
    pub opened: Option<u64>,
    /// How many of them were closed, by the reason.
    pub closed: Option<ClosedCounts>,
    /// How many of them were detached, and so are open or closed without the resource.
    pub detached: Option<u64>,
    /// How often a caller was given a connection.
    pub acquires: Option<u64>,
    /// How many callers waited until a connection was free, open or tested, with or without success.
    pub waits: Option<u64>,
    /// The time of all these waits together. A wait counts once it has ended.
    #[cfg_attr(feature = "serde", serde(rename = "wait_time_ms", serialize_with = "json::some_millis"))]
    pub wait_time: Option<Duration>,
    /// How many of these waits reached their limit.
    pub timeouts: Option<u64>,
}

impl Counters {
    /// The counts of both together. A count that only one of them knows is that one's.
    pub(crate) fn plus(self, other: Counters) -> Counters {
        self.joined(other, u64::saturating_add, Duration::saturating_add)
    }

    /// The larger of each count. A count that only one of them knows is that one's.
    pub(crate) fn most(self, other: Counters) -> Counters {
        self.joined(other, u64::max, Duration::max)
    }

    fn joined(self, other: Counters, count: fn(u64, u64) -> u64, time: fn(Duration, Duration) -> Duration) -> Counters {
        fn both<T>(one: Option<T>, other: Option<T>, join: impl FnOnce(T, T) -> T) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(join(one, other)),
                (one, other) => one.or(other),
            }
        }
        Counters {
            opened: both(self.opened, other.opened, count),
            closed: both(self.closed, other.closed, |one, other| one.joined(other, count)),
            detached: both(self.detached, other.detached, count),
            acquires: both(self.acquires, other.acquires, count),
            waits: both(self.waits, other.waits, count),
            wait_time: both(self.wait_time, other.wait_time, time),
            timeouts: both(self.timeouts, other.timeouts, count),
        }
    }
}

/// The counts of closed connections, by the reason. Each reason counts from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClosedCounts {
    /// They were idle for too long, or nobody needed them any more.
    pub idle: u64,
    /// They had reached the end of their lifetime.
    pub lifetime: u64,
    /// They failed a test, or came back in a state that the next user must not find.
    pub broken: u64,
    /// Their users discarded them.
    pub discarded: u64,
    /// The resource was lost, or reconnected.
    pub lost: u64,
    /// They were replaced by new ones while the resource went on.
    pub refreshed: u64,
    /// There were more of them than there may be.
    pub surplus: u64,
    /// The resource was closed.
    pub closing: u64,
}

impl ClosedCounts {
    /// How many connections were closed, for whatever reason.
    pub fn total(&self) -> u64 {
        let ClosedCounts { idle, lifetime, broken, discarded, lost, refreshed, surplus, closing } = self;
        idle + lifetime + broken + discarded + lost + refreshed + surplus + closing
    }

    fn joined(self, other: ClosedCounts, count: fn(u64, u64) -> u64) -> ClosedCounts {
        ClosedCounts {
            idle: count(self.idle, other.idle),
            lifetime: count(self.lifetime, other.lifetime),
            broken: count(self.broken, other.broken),
            discarded: count(self.discarded, other.discarded),
            lost: count(self.lost, other.lost),
            refreshed: count(self.refreshed, other.refreshed),
            surplus: count(self.surplus, other.surplus),
            closing: count(self.closing, other.closing),
        }
    }
}

/// One resource's status.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ResourceStatus {
    /// The resource's name.
    pub name: Arc<str>,
    /// The name of the resource's kind, as in `redis`. `None` for a registered resource.
    pub kind: Option<&'static str>,
    /// The name that OpenTelemetry has for the server's software, as in `postgresql`. `None` for a registered resource.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub system: Option<&'static str>,
    /// Where the resource is, without credentials. [`adapter::addresses`](crate::adapter::addresses) takes it apart.
    pub endpoint: Arc<str>,
    /// Its state.
    pub state: State,
    /// How long it has been in that state.
    #[cfg_attr(feature = "serde", serde(rename = "since_ms", serialize_with = "json::millis"))]
    pub since: Duration,
    /// How often it has been connected.
    pub generation: u64,
    /// Shared leases held.
    pub leases: usize,
    /// Exclusive checkouts held.
    pub checkouts: usize,
    /// How many leaks are suspected now: each checkout that is out for too long, and each threshold that is exceeded.
    pub leaks: usize,
    /// How many leaks were ever suspected, including those that came back.
    pub leaks_total: usize,
    /// Work in flight, by kind. A kind with none is left out.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::counts"))]
    pub work: Vec<(Work, usize)>,
    /// How many acquires wait for the connection.
    pub connecting: usize,
    /// How full it is.
    pub usage: Usage,
    /// The last failure, until it is ready again.
    pub error: Option<Error>,
    /// The servers of the resource, at least one.
    pub nodes: Vec<NodeStatus>,
}

/// One server of a resource.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeStatus {
    /// Where the server is, without credentials.
    pub endpoint: Arc<str>,
    /// The state of the connection to it.
    pub state: State,
}

/// The advice for a pool that is used from another runtime than its own.
pub(crate) const USED_ELSEWHERE: &str = "tasks of another runtime use this pool, so each operation wakes a thread of the other runtime; \
     `#[resource_pool::main]` instead of `#[tokio::main]`, or `builder().runtime(handle)`, avoids that";

/// The status of a whole pool.
///
/// ```no_run
/// use resource_pool::blocking::ResourcePool;
///
/// let status = ResourcePool::global().status();
/// for resource in &status.resources {
///     println!("{} is {}, {:?} connections in use", resource.name, resource.state, resource.usage.in_use);
/// }
/// ```
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolStatus {
    /// Whether closing has begun.
    pub closing: bool,
    /// Every configured or registered resource, by name.
    pub resources: Vec<ResourceStatus>,
    /// How many [holds](crate::Hold) of the application there are.
    pub holds: usize,
    /// The background tasks and threads of the application that run: each name, and how many have it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "json::counts"))]
    pub tasks: Vec<(Arc<str>, usize)>,
    /// Whether tasks of another runtime than the pool's use it, which costs each of their operations a wake-up.
    /// [`#[resource_pool::main]`](macro@crate::main) or [`Builder::runtime`](crate::Builder::runtime) avoids that.
    pub used_elsewhere: bool,
}

impl PoolStatus {
    /// The resource of this name.
    pub fn resource(&self, name: &str) -> Option<&ResourceStatus> {
        self.resources.iter().find(|resource| &*resource.name == name)
    }
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<10} {:>4} {:>6} {:>9} {:>5} {:>5} {:>5} {:>6} {:>5} {:>7}",
            "resource", "state", "gen", "leases", "checkouts", "leaks", "max", "open", "in use", "idle", "waiting"
        )?;
        for one in &self.resources {
            let show = |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            let Usage { max, open, in_use, idle, waiting, .. } = one.usage;
            writeln!(
                f,
                "{:<14} {:<10} {:>4} {:>6} {:>9} {:>5} {:>5} {:>5} {:>6} {:>5} {:>7}",
                one.name,
                one.state,
                one.generation,
                one.leases,
                one.checkouts,
                one.leaks,
                show(max),
                show(open),
                show(in_use),
                show(idle),
                show(waiting)
            )?;
        }
        if self.used_elsewhere {
            writeln!(f, "{USED_ELSEWHERE}")?;
        }
        if self.holds > 0 {
            writeln!(f, "holds: {}", self.holds)?;
        }
        if !self.tasks.is_empty() {
            let tasks: Vec<_> = self.tasks.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "tasks: {}", tasks.join(", "))?;
        }
        Ok(())
    }
}
