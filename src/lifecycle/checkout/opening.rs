//! The jobs of the checkouts: opening connections, and disconnecting them. Tasks or threads of the pool's own run them,
//! so that no user does. Each job that has begun is accounted for, even if it drops without having run.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::error::{BoxError, Error, Failure, Proof, Source};
use crate::lifecycle::checkout::core::{Core, JobsBegun};
use crate::lifecycle::checkout::entry::PooledConnection;
use crate::lifecycle::checkout::manage::{Manage, limited};
use crate::lifecycle::checkout::state::QueueState;
use crate::lifecycle::checkout::waiter::wake;

/// How long a disconnect that found no thread pauses before it looks for one again. Closing waits for it until its
/// step's limit.
const AGAIN: Duration = Duration::from_secs(1);

/// A job for a task or thread that is no user's.
pub(crate) enum Job<M: Manage> {
    /// Connects, and so may block.
    Open(PendingOpen<M>),
    /// Disconnects, and so may block as long.
    Part(Disconnects<M>),
}

impl<M: Manage> Job<M> {
    /// Starts each job that has begun, the openings after a pause. It must not be called under the lock, which a job
    /// that cannot be started takes as it drops.
    pub(crate) fn start_all(core: &Arc<Core<M>>, begun: JobsBegun, start: impl Fn(Self, Duration)) {
        for _ in 0..begun.openings {
            start(Job::Open(PendingOpen { core: Arc::clone(core), epoch: begun.epoch, is_over: false }), begun.pause);
        }
        for _ in 0..begun.disconnects {
            start(Job::Part(Disconnects { core: Arc::clone(core), is_over: false }), Duration::ZERO);
        }
    }

    pub(crate) async fn run(self) {
        match self {
            Job::Open(opening) => opening.run().await,
            Job::Part(disconnects) => disconnects.run().await,
        }
    }

    /// Handles a process that can have no more threads. An opening fails. A disconnect is returned, with the pause
    /// after which to start it again, because some threads may have ended by then.
    pub(super) fn find_no_thread(self, error: io::Error) -> Option<(Self, Duration)> {
        match self {
            Job::Open(opening) => {
                let cause = Error::no_threads(&opening.core.resource, error);
                opening.failed(Arc::new(cause), Proof::Unasked);
                None
            }
            Job::Part(disconnects) => {
                let pause = disconnects.core.retry.cap.min(AGAIN);
                Some((Job::Part(disconnects), pause))
            }
        }
    }
}

/// A connection that is being opened. If it never is, because its runtime has ended, the drop accounts for that.
pub(crate) struct PendingOpen<M: Manage> {
    core: Arc<Core<M>>,
    /// The epoch in which the opening was begun.
    epoch: u64,
    /// Whether the opening is accounted for.
    is_over: bool,
}

impl<M: Manage> PendingOpen<M> {
    /// Opens the connection, if it is still wanted.
    async fn run(mut self) {
        if !self.is_wanted() {
            return;
        }
        let core = Arc::clone(&self.core);
        match limited::<M, _>(core.limit, async { core.manager.connect().await }).await {
            Ok(connection) => {
                if let Some(late) = self.opened(connection) {
                    core.disconnect(late).await;
                }
            }
            Err(failure) => {
                let proof = failure.proof();
                let Failure { source, .. } = failure;
                tracing::debug!(resource = %core.resource, error = %source, "a connection could not be opened");
                self.failed(source.into(), proof);
            }
        }
    }

    /// Whether the server is to be asked for the connection. If not, the opening is over.
    fn is_wanted(&mut self) -> bool {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        let is_wanted = self.epoch == state.epoch && core.wanted(&state) > 0;
        if is_wanted {
            state.unanswered.get_or_insert_with(Instant::now);
        } else if self.end(&mut state) {
            state.open_concurrency = 1;
        }
        is_wanted
    }

    /// Hands the connection over. Returns it if it came too late.
    #[must_use = "it is to be closed"]
    fn opened(mut self, connection: M::Connection) -> Option<M::Connection> {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        // There may be fewer by now than when the opening was begun.
        if !self.answered(&mut state) || state.open >= state.max {
            return Some(connection);
        }
        state.open += 1;
        let entry = core.entry(&mut state, connection);
        let woken = state.hand_over(entry, true);
        match core.wanted(&state) {
            // The new connection may fail its first test, as the one before did.
            _ if state.setbacks > 0 => core.pause(&mut state),
            0 => state.open_concurrency = 1,
            wanted if wanted > state.opening => state.open_concurrency = (state.open_concurrency + 1).min(state.max),
            _ => {}
        }
        let replaced = (state.failure.take(), state.unheard.take());
        core.settle(state);
        wake(woken);
        drop(replaced);
        None
    }

    /// Accounts for the failure. Another opening follows for as long as somebody waits. If the server refuses, the
    /// prober's own connection may have taken the room, so that one is closed.
    fn failed(mut self, cause: Source, proof: Proof) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.answered(&mut state) {
            core.set_back(&mut state);
            if proof == Proof::Refused {
                state.forgo_spare();
            }
            state.unheard = (proof == Proof::Silent).then(|| Source::clone(&cause));
            let replaced = state.failure.replace(cause);
            core.settle(state);
            drop(replaced);
        }
    }

    /// Ends the count of this opening. Returns whether its epoch is the present one, so that its connection is wanted.
    fn end(&mut self, state: &mut QueueState<M>) -> bool {
        self.is_over = true;
        let is_present = self.epoch == state.epoch;
        if is_present {
            state.opening -= 1;
            state.unanswered = state.unanswered.filter(|_| state.opening > 0);
        }
        is_present
    }

    /// Does the same when the server has answered. The other openings count as unanswered from here on.
    fn answered(&mut self, state: &mut QueueState<M>) -> bool {
        let is_present = self.end(state);
        if is_present {
            state.unanswered = state.unanswered.map(|_| Instant::now());
        }
        is_present
    }
}

impl<M: Manage> Drop for PendingOpen<M> {
    fn drop(&mut self) {
        if !self.is_over {
            let core = Arc::clone(&self.core);
            let mut state = core.state.lock();
            if self.end(&mut state) {
                state.failure.get_or_insert_with(|| BoxError::from("the pool's runtime has ended").into());
            }
        }
    }
}

/// A thread or task that disconnects connections until none are left.
pub(crate) struct Disconnects<M: Manage> {
    core: Arc<Core<M>>,
    is_over: bool,
}

impl<M: Manage> Disconnects<M> {
    async fn run(mut self) {
        while let Some(entry) = self.next() {
            self.core.disconnect(entry.connection).await;
        }
    }

    /// The next connection to disconnect. The job is over if there is none.
    fn next(&mut self) -> Option<Box<PooledConnection<M>>> {
        let mut state = self.core.state.lock();
        let next = state.leaving.pop_front();
        if next.is_some() {
            // One connection less waits for its disconnect, so there may be room for an opening.
            self.core.settle(state);
        } else {
            self.is_over = true;
            state.parting -= 1;
        }
        next
    }
}

impl<M: Manage> Drop for Disconnects<M> {
    fn drop(&mut self) {
        if !self.is_over {
            let core = Arc::clone(&self.core);
            let mut state = core.state.lock();
            state.parting -= 1;
            // The runtime has ended, so nobody disconnects these, and they are only dropped.
            let gone = std::mem::take(&mut state.leaving);
            drop(state);
            core.let_go(gone);
        }
    }
}
