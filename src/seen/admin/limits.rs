//! The limits of an admin: those that users set, and those that are fixed. Together they bound its memory and its time,
//! whoever asks.

use std::time::Duration;

/// The most that an admin serves at the same time.
///
/// ```
/// use resource_pool::admin::AdminLimits;
///
/// let mut limits = AdminLimits::default();
/// limits.streams = 8;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdminLimits {
    /// The most connections of the admin's own listener. Beyond it, a new one takes the place of the one that has been
    /// quiet for the longest time. It is closed if all are in use, which means that a request of somebody with the token
    /// or a session, or one of a few that log in, is under way on each. Defaults to 256.
    pub connections: usize,
    /// The most open streams of `/events`. A further one gets the status 503. Defaults to 64.
    pub streams: usize,
    /// The most sessions of browsers. A further one ends the oldest. Defaults to 64.
    pub sessions: usize,
    /// How long a session lasts. Defaults to 12 hours.
    pub session: Duration,
    /// The most requests per second of one address without the token, of one address with it, and of one session; twice
    /// as many may come at once. The probes are not counted. A further request gets the status 429. Defaults to 100.
    pub requests: u32,
    /// How long the head of a request, its body, a stall of the one who reads the answer, the pause until the next
    /// request on the same connection, and a call of the program's own code may last. Defaults to 5 s.
    pub patience: Duration,
}

impl Default for AdminLimits {
    fn default() -> Self {
        AdminLimits {
            connections: 256,
            streams: 64,
            sessions: 64,
            session: Duration::from_secs(12 * 3600),
            requests: 100,
            patience: Duration::from_secs(5),
        }
    }
}

/// How many events are kept for a page that is opened later, and for `/events?last=`.
pub(super) const EVENTS: usize = 200;
/// How many events are told in a second. Further ones are counted, and those of closing are always told.
pub(super) const EVENTS_PER_SECOND: u32 = 200;
/// The longest event, in bytes of JSON. A longer one is told without its long details.
pub(super) const EVENT_BYTES: usize = 16 * 1024;
/// How many points of latency are kept for each resource: five minutes of a page that is looked at.
pub(super) const POINTS: usize = 300;
/// How many frames wait for a slow reader. One that has missed some gets everything anew.
pub(super) const FRAMES: usize = 64;
/// How many holders a stream tells, the oldest first.
pub(super) const STREAMED_HOLDERS: usize = 200;
/// How many holders `/holders` tells, the oldest first.
pub(super) const HOLDERS: usize = 10_000;
/// How many bytes of JSON `/holders` tells.
pub(super) const HOLDERS_BYTES: usize = 4 << 20;
/// The largest body of a request, in bytes. The only body is a form with the token.
pub(super) const BODY: usize = 4 * 1024;
/// How many requests to log in keep their places at the same time, and they take a quarter of all places at most.
/// Strangers can log in too, with wrong tokens, and must not keep all places.
pub(super) const LOGINS: usize = 8;
/// The largest head of a request, in bytes.
pub(super) const HEAD: usize = 16 * 1024;
/// How often the status is told while somebody looks.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How soon a change of state is told at the latest.
pub(super) const SOON: Duration = Duration::from_millis(150);
/// How often the health is checked while nobody looks, so that the charts of a page that is opened have a past.
pub(super) const UNWATCHED: Duration = Duration::from_secs(5);
/// How long a stream is silent at most. Then it has a comment, which shows a proxy that it lives.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
/// How long the end of the process waits until the streams have told the close report. Usually this takes no
/// millisecond, and only somebody who does not read takes all of it.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(250);
