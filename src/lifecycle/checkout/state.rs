//! The state of the checkouts, all of it under the one lock of [`Core`](crate::lifecycle::checkout::core::Core). Who is
//! to be woken is woken outside of that lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::base::error::Source;
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::Manage;
use crate::lifecycle::checkout::waiter::{Refusal, Waiter};

pub(super) struct State<M: Manage> {
    /// The one used last on top.
    pub(super) idle: Vec<Box<PooledConnection<M>>>,
    /// The first has waited longest. None while there is something idle.
    pub(super) waiters: VecDeque<Arc<Waiter<M>>>,
    /// How many are idle, checked out or lent.
    pub(super) open: usize,
    /// How many of them the prober has.
    pub(super) lent: usize,
    /// The one that it took from the idle ones, while it asks over that.
    pub(super) borrowed: Option<Borrowed>,
    /// The prober's own, beyond those that there may be, between its pings.
    pub(super) spare: Option<Box<PooledConnection<M>>>,
    /// When the next one may be opened; never in this generation, where one took the place of a user's.
    pub(super) next_spare: NextSpare,
    /// A connection that was open has not answered a ping, and nothing has since.
    pub(super) is_silent: bool,
    /// The waiter who is given that one after the ping, and waits for none that is yet to be opened.
    pub(super) heir: Option<Arc<Waiter<M>>>,
    pub(super) opening: usize,
    /// Since when openings that are under way have had no answer.
    pub(super) unanswered: Option<Instant>,
    /// Goes up when all connections end. A connection of an older epoch is closed as it comes back, and an opening of one
    /// leads to nothing, even if it hangs for ever.
    pub(super) epoch: u64,
    /// How many may be opened at a time.
    pub(super) open_concurrency: usize,
    /// How many ever were opened.
    pub(super) opened: usize,
    /// How many openings in a row led to nothing, and until when the next one pauses.
    pub(super) setbacks: u32,
    pub(super) pausing: Option<Instant>,
    /// Why the last one could not be opened, or had to be given up, as far as that explains a wait of now.
    pub(super) failure: Option<Source>,
    /// Why there are no connections.
    pub(super) refused: Option<Refusal>,
    /// There are none yet, or none just now, and whoever waits goes on waiting.
    pub(super) suspended: bool,
    pub(super) is_closed: bool,
    /// Connections to be dropped, by threads of ours.
    pub(super) leaving: VecDeque<Box<PooledConnection<M>>>,
    /// The number of those threads, each with one connection at a time.
    pub(super) parting: usize,
}

/// When the prober may open a connection of its own.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum NextSpare {
    Now,
    /// One is being opened, or could not be.
    From(Instant),
    Never,
}

/// A connection that was free until the prober took it.
#[derive(Clone, Copy)]
pub(super) struct Borrowed {
    /// Until when those who wait reckon with it.
    pub(super) until: Instant,
    /// Whether it could have been had without a test.
    pub(super) is_free: bool,
}

impl<M: Manage> State<M> {
    /// There is nothing yet, and whoever waits goes on waiting.
    pub(super) fn new() -> Self {
        State {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            open: 0,
            lent: 0,
            borrowed: None,
            spare: None,
            next_spare: NextSpare::Now,
            is_silent: false,
            heir: None,
            opening: 0,
            unanswered: None,
            epoch: 0,
            open_concurrency: 1,
            opened: 0,
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

    /// The server may have no room for the prober's own beside those that users want.
    pub(super) fn forgo_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.leaving.push_back(spare);
            self.next_spare = NextSpare::Never;
        }
    }

    /// Connections can be opened, and used.
    #[inline]
    pub(super) fn succeed(&mut self) {
        (self.setbacks, self.pausing) = (0, None);
    }

    pub(super) fn has_no_queue(&self) -> bool {
        self.waiters.is_empty() && self.heir.is_none()
    }

    /// What was borrowed is not given to whoever waits for it.
    #[must_use = "they are to be woken outside of the lock"]
    pub(super) fn let_down(&mut self) -> Option<Waker> {
        self.borrowed = None;
        self.heir.take()?.answer(Err(Refusal::MayNotWait))
    }

    /// What is being opened is nobody's from here on, and what is idle is closed.
    #[must_use = "they are to be woken outside of the lock"]
    pub(super) fn end(&mut self) -> Option<Waker> {
        self.epoch += 1;
        self.opening = 0;
        self.unanswered = None;
        self.open -= self.idle.len() + std::mem::take(&mut self.lent);
        self.leaving.extend(self.idle.drain(..).chain(self.spare.take()));
        (self.next_spare, self.is_silent) = (NextSpare::Now, false);
        self.let_down()
    }

    /// To whoever has waited longest; else to lie idle, on top if it is warm.
    #[must_use = "they are to be woken outside of the lock"]
    #[inline]
    pub(super) fn hand_over(&mut self, mut entry: Box<PooledConnection<M>>, is_warm: bool) -> Option<Waker> {
        match self.heir.take().or_else(|| self.waiters.pop_front()) {
            Some(waiter) => waiter.answer(Ok(entry)),
            None => {
                entry.idle = None;
                self.idle.insert(if is_warm { self.idle.len() } else { 0 }, entry);
                None
            }
        }
    }
}
