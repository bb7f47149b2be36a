//! The state of the checkouts, all of it under the one lock of [`Core`](crate::lifecycle::checkout::core::Core). Its
//! methods return the wakers, which are to be woken outside of that lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::base::error::Source;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::waiter::{QueuedWaiter, Refusal};
use crate::lifecycle::status::ClosedCounts;

pub(super) struct QueueState<M: Manage> {
    /// The idle connections. The one used last is on top, at the end.
    pub(super) idle: Vec<Box<PooledConnection<M>>>,
    /// The waiters. The first one has waited longest. Empty while a connection lies idle.
    pub(super) waiters: VecDeque<Arc<QueuedWaiter<M>>>,
    /// The most connections that there may be, at least 1.
    pub(super) max: usize,
    /// How many connections are idle, checked out or lent.
    pub(super) open: usize,
    /// How many of them the prober has.
    pub(super) lent: usize,
    /// The idle connection that the prober took, while it asks over that.
    pub(super) borrowed: Option<Borrowed>,
    /// The prober's own connection between its pings. It comes on top of `max`.
    pub(super) spare: Option<Box<PooledConnection<M>>>,
    /// When the prober may open its next own one. `Never` in this epoch after a user's connection took its room.
    pub(super) next_spare: NextSpare,
    /// Whether an open connection has not answered a ping, and none has answered since.
    pub(super) is_silent: bool,
    /// The silence that the last opening has met, until the prober has counted it.
    pub(super) unheard: Option<Source>,
    /// The waiter who is given the borrowed connection after the ping. It waits for none that is yet to be opened.
    pub(super) heir: Option<Arc<QueuedWaiter<M>>>,
    /// How many openings are in flight.
    pub(super) opening: usize,
    /// Since when the openings in flight have had no answer. `None` while none asks the server.
    pub(super) unanswered: Option<Instant>,
    /// Goes up when all connections end. A connection of an older epoch is closed as it comes back. An opening of an
    /// older epoch leads to nothing, even if it hangs for ever.
    pub(super) epoch: u64,
    /// How many openings may be in flight at a time.
    pub(super) open_concurrency: usize,
    /// Why the last epoch ended.
    ended_by: CloseCause,
    /// How many connections ever were opened.
    pub(super) opened: usize,
    /// How many of them were closed, by the reason.
    pub(super) closed: ClosedCounts,
    /// How many of them users have detached.
    pub(super) detached: u64,
    /// How many connections users were given.
    pub(super) acquires: u64,
    pub(super) waits: WaitCounts,
    /// How many openings in a row led to nothing.
    pub(super) setbacks: u32,
    /// Until when the next opening pauses.
    pub(super) pausing: Option<Instant>,
    /// Why the last opening failed, or the last unfit connection was given up, as far as that explains the present
    /// waits.
    pub(super) failure: Option<Source>,
    /// The refusal that all users get. `None` while they are served.
    pub(super) refused: Option<Refusal>,
    /// Whether there are no connections yet, or none just now, and waiters go on waiting.
    pub(super) suspended: bool,
    pub(super) is_closed: bool,
    /// Connections to be disconnected, by the pool's own tasks or threads.
    pub(super) leaving: VecDeque<Box<PooledConnection<M>>>,
    /// The number of those tasks or threads. Each has one connection at a time.
    pub(super) parting: usize,
}

/// The reason for which a connection is closed.
#[derive(Clone, Copy)]
pub(super) enum CloseCause {
    Idle,
    Lifetime,
    Broken,
    Discarded,
    Lost,
    Refreshed,
    Surplus,
    Closing,
}

/// The waits of users that have ended.
#[derive(Default)]
pub(super) struct WaitCounts {
    pub(super) count: u64,
    pub(super) time: Duration,
    pub(super) timeouts: u64,
}

/// When the prober may open a connection of its own.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum NextSpare {
    Now,
    /// One is being opened, or could not be. The next attempt may begin from this time on.
    From(Instant),
    Never,
}

/// An idle connection that the prober has taken.
#[derive(Clone, Copy)]
pub(super) struct Borrowed {
    /// Until when waiters reckon with it, and none is opened in its place.
    pub(super) until: Instant,
    /// Whether a user could have had it without a test.
    pub(super) is_free: bool,
}

impl<M: Manage> QueueState<M> {
    /// The state before the first connection. Waiters go on waiting.
    pub(super) fn new(max: usize) -> Self {
        QueueState {
            max,
            idle: Vec::new(),
            waiters: VecDeque::new(),
            open: 0,
            lent: 0,
            borrowed: None,
            spare: None,
            next_spare: NextSpare::Now,
            is_silent: false,
            unheard: None,
            heir: None,
            opening: 0,
            unanswered: None,
            epoch: 0,
            open_concurrency: 1,
            ended_by: CloseCause::Lost,
            opened: 0,
            closed: ClosedCounts::default(),
            detached: 0,
            acquires: 0,
            waits: WaitCounts::default(),
            setbacks: 0,
            pausing: None,
            failure: None,
            refused: None,
            suspended: true,
            is_closed: false,
            leaving: VecDeque::new(),
            parting: 0,
        }
    }

    /// Closes the prober's own connection, because the server may have no room for it beside those that users want.
    pub(super) fn forgo_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.part_with(spare, CloseCause::Surplus);
            self.next_spare = NextSpare::Never;
        }
    }

    /// Has a connection closed, and counts that. One of an older epoch counts for the reason that ended an epoch last.
    pub(super) fn part_with(&mut self, entry: Box<PooledConnection<M>>, cause: CloseCause) {
        let cause = if entry.epoch == self.epoch { cause } else { self.ended_by };
        *match cause {
            CloseCause::Idle => &mut self.closed.idle,
            CloseCause::Lifetime => &mut self.closed.lifetime,
            CloseCause::Broken => &mut self.closed.broken,
            CloseCause::Discarded => &mut self.closed.discarded,
            CloseCause::Lost => &mut self.closed.lost,
            CloseCause::Refreshed => &mut self.closed.refreshed,
            CloseCause::Surplus => &mut self.closed.surplus,
            CloseCause::Closing => &mut self.closed.closing,
        } += 1;
        self.leaving.push_back(entry);
    }

    /// Ends the pauses between openings, because connections can be opened and used.
    #[inline]
    pub(super) fn succeed(&mut self) {
        (self.setbacks, self.pausing) = (0, None);
    }

    pub(super) fn has_no_queue(&self) -> bool {
        self.waiters.is_empty() && self.heir.is_none()
    }

    /// Ends the loan of the borrowed connection. Its heir is told that it does not come.
    #[must_use = "they are to be woken outside of the lock"]
    pub(super) fn let_down(&mut self) -> Option<Waker> {
        self.borrowed = None;
        self.heir.take()?.answer(Err(Refusal::MayNotWait))
    }

    /// Ends the epoch. Openings in flight come too late from here on, and idle connections are closed.
    #[must_use = "they are to be woken outside of the lock"]
    pub(super) fn end(&mut self, cause: CloseCause) -> Option<Waker> {
        self.epoch += 1;
        self.ended_by = cause;
        self.opening = 0;
        self.unanswered = None;
        self.open -= self.idle.len() + std::mem::take(&mut self.lent);
        for entry in std::mem::take(&mut self.idle).into_iter().chain(self.spare.take()) {
            self.part_with(entry, cause);
        }
        (self.next_spare, self.is_silent, self.unheard) = (NextSpare::Now, false, None);
        self.let_down()
    }

    /// Hands a connection to the waiter who has waited longest. Without one it lies idle, on top if it is warm.
    #[must_use = "they are to be woken outside of the lock"]
    #[inline]
    pub(super) fn hand_over(&mut self, entry: Box<PooledConnection<M>>, is_warm: bool) -> Option<Waker> {
        match self.heir.take().or_else(|| self.waiters.pop_front()) {
            Some(waiter) => waiter.answer(Ok(entry)),
            None => {
                self.idle.insert(if is_warm { self.idle.len() } else { 0 }, entry);
                None
            }
        }
    }
}
