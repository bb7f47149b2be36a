//! The jobs that threads of the pool do for the checkouts: opening connections, and closing them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use r2d2::ManageConnection;

use crate::base::error::{BoxError, Error, Source};
use crate::lifecycle::checkout::core::{Begun, Core};
use crate::lifecycle::checkout::state::State;
use crate::lifecycle::checkout::waiter::wake;

/// After this, a goodbye that found no thread looks for one again. Closing waits for it until its step's limit.
const AGAIN: Duration = Duration::from_secs(1);

/// What a thread that is no user's has to do.
pub(crate) enum Job<M: ManageConnection> {
    /// May connect, and so block.
    Open(Opening<M>),
    /// May block as long.
    Part(Goodbyes<M>),
}

impl<M: ManageConnection> Job<M> {
    /// Has each job that has begun started after a pause. Not under the lock, which a job that cannot be started takes as
    /// it drops.
    pub(crate) fn start_all(core: &Arc<Core<M>>, begun: Begun, start: impl Fn(Self, Duration)) {
        for _ in 0..begun.openings {
            start(Job::Open(Opening { core: Arc::clone(core), ends: begun.ends, is_over: false }), begun.pause);
        }
        for _ in 0..begun.goodbyes {
            start(Job::Part(Goodbyes { core: Arc::clone(core), is_over: false }), Duration::ZERO);
        }
    }

    pub(crate) fn run(self) {
        match self {
            Job::Open(opening) => opening.run(),
            Job::Part(goodbyes) => goodbyes.run(),
        }
    }

    /// The process can have no more threads. Some may end, so that goodbyes are to be started again after a pause.
    pub(super) fn find_no_thread(self, error: io::Error) -> Option<(Self, Duration)> {
        match self {
            Job::Open(opening) => {
                let cause = Error::no_threads(&opening.core.resource, error);
                opening.finish(Err(Arc::new(cause)));
                None
            }
            Job::Part(goodbyes) => {
                let pause = goodbyes.core.retry.cap.min(AGAIN);
                Some((Job::Part(goodbyes), pause))
            }
        }
    }
}

/// A connection that is being opened, until this is carried out; one that never is, for its runtime has ended, is
/// accounted for as well.
pub(crate) struct Opening<M: ManageConnection> {
    core: Arc<Core<M>>,
    /// How many there were as it was begun.
    ends: u64,
    is_over: bool,
}

impl<M: ManageConnection> Opening<M> {
    /// Opens it, if it is still wanted.
    fn run(mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.ends != state.ends || core.wanted(&state) == 0 {
            state.width = 1;
            return self.end(&mut state);
        }
        state.unanswered.get_or_insert_with(Instant::now);
        drop(state);
        let opened = core.tried(M::connect);
        if let Err(error) = &opened {
            tracing::debug!(resource = %core.resource, %error, "a connection could not be opened");
        }
        self.finish(opened);
    }

    /// Hands it over; if it could not be opened, another one follows for as long as somebody waits.
    fn finish(mut self, opened: Result<M::Connection, Source>) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if self.ends != state.ends {
            self.is_over = true;
            drop(state);
            return core.say_goodbye(opened);
        }
        self.end(&mut state);
        state.unanswered = state.unanswered.map(|_| Instant::now());
        let (replaced, woken) = match opened {
            Ok(connection) => {
                state.open += 1;
                let entry = core.entry(&mut state, connection);
                let woken = state.hand_over(entry, true);
                match core.wanted(&state) {
                    // It may fail its first test, as the one before did.
                    _ if state.setbacks > 0 => core.pause(&mut state),
                    0 => state.width = 1,
                    wanted if wanted > state.opening => state.width = (state.width + 1).min(core.limits.max),
                    _ => {}
                }
                (state.failure.take(), woken)
            }
            Err(cause) => {
                core.set_back(&mut state);
                (state.failure.replace(cause), None)
            }
        };
        core.settle(state);
        wake(woken);
        drop(replaced);
    }

    /// No longer counted.
    fn end(&mut self, state: &mut State<M>) {
        self.is_over = true;
        if self.ends == state.ends {
            state.opening -= 1;
            state.unanswered = state.unanswered.filter(|_| state.opening > 0);
        }
    }
}

impl<M: ManageConnection> Drop for Opening<M> {
    fn drop(&mut self) {
        if !self.is_over {
            let core = Arc::clone(&self.core);
            let mut state = core.state.lock();
            self.end(&mut state);
            state.failure.get_or_insert_with(|| BoxError::from("the pool's runtime has ended").into());
        }
    }
}

/// A thread that says goodbyes until there are none left to say.
pub(crate) struct Goodbyes<M: ManageConnection> {
    core: Arc<Core<M>>,
    is_over: bool,
}

impl<M: ManageConnection> Goodbyes<M> {
    fn run(mut self) {
        let core = Arc::clone(&self.core);
        loop {
            let mut state = core.state.lock();
            let Some(entry) = state.leaving.pop_front() else {
                self.is_over = true;
                state.parting -= 1;
                return;
            };
            // There may be room again.
            core.settle(state);
            core.say_goodbye(entry);
        }
    }
}

impl<M: ManageConnection> Drop for Goodbyes<M> {
    fn drop(&mut self) {
        if !self.is_over {
            self.core.state.lock().parting -= 1;
        }
    }
}
