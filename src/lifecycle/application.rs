//! [`Application`]: the application's own work at a pool, which is its holds, its tasks and its background threads.
//!
//! The drain of the whole pool waits for the holds. Each name of tasks and threads is a step of the phase
//! [`Tasks`](crate::Phase::Tasks), which waits for them, and then aborts the tasks.
//! Threads: a task runs on the pool's runtime, and counts as inside of closing in each of its polls. So it may use every
//! resource until it has ended, although others may not any more.
//! Invariant: no task or thread begins once the close of the whole pool has begun, so that close knows all of them.
//! Order of locks: `groups`, then the close state. A group's own lock is taken alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{self, Poll};

use tokio::task::JoinHandle;

use crate::base::error::{Error, panic_message};
use crate::base::sync::Mutex;
use crate::lifecycle::activity::Activity;
use crate::lifecycle::close::state::Role;
use crate::lifecycle::context::Context;
use crate::lifecycle::observers::Observers;
use crate::lifecycle::wait_group::{Member, WaitGroup};
use crate::lifecycle::work::Work;

/// The application's own work at a pool.
pub(crate) struct Application {
    pub(crate) holds: Arc<WaitGroup>,
    groups: Mutex<Groups>,
}

/// The tasks and background threads.
#[derive(Default)]
struct Groups {
    by_name: BTreeMap<Arc<str>, Arc<WaitGroup>>,
    /// How many names were left when those of ended tasks were last removed.
    kept: usize,
}

/// A piece of the application's work, such as a request, which the drain of [`close_all`](crate::ResourcePool::close_all)
/// waits for. It counts until this drops.
///
/// A task that has one and calls `close_all` itself would wait for itself, up to `close.drain`. Drop the hold before, or
/// close from another task.
#[must_use = "the work counts as ended when this drops"]
pub struct Hold {
    /// `None` in a forked child.
    _member: Option<Member>,
}

impl Application {
    pub(crate) fn new(observers: &Arc<Observers>) -> Self {
        let activity = Activity::new("application", None, String::new(), observers);
        Application { holds: WaitGroup::new(activity, Work::Application), groups: Mutex::default() }
    }

    pub(crate) fn hold(
        &self,
        context: &Context,
        name: impl Into<Cow<'static, str>>,
        site: &'static Location<'static>,
    ) -> Hold {
        // In a forked child a thread of the parent may hold the lock for ever.
        Hold { _member: context.process.is_current().then(|| self.holds.join(name.into(), site, true)) }
    }

    /// The group of this name, and a new member of it.
    fn begin(
        &self,
        context: &Context,
        name: &str,
        site: &'static Location<'static>,
    ) -> Result<(Arc<WaitGroup>, Member), Error> {
        context.check_process()?;
        let name: Arc<str> = Arc::from(name);
        let mut groups = self.groups.lock();
        // Checked under the lock, since a close takes the groups once it has begun.
        context.check_open(&name)?;
        // Names of ended tasks must not pile up. They are looked for each time that the number of names has doubled.
        if groups.by_name.len() >= 2 * groups.kept {
            groups.by_name.retain(|_, group| group.len() > 0);
            groups.kept = groups.by_name.len();
        }
        let new = || WaitGroup::new(Activity::new(&name, None, String::new(), &context.observers), Work::Task);
        let group = Arc::clone(groups.by_name.entry(Arc::clone(&name)).or_insert_with(new));
        let member = group.join(Cow::Owned(name.to_string()), site, false);
        Ok((group, member))
    }

    /// Runs a task on the pool's runtime.
    pub(crate) fn spawn<F>(
        &self,
        context: &Arc<Context>,
        name: &str,
        site: &'static Location<'static>,
        task: impl FnOnce() -> F,
    ) -> Result<JoinHandle<F::Output>, Error>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (group, member) = self.begin(context, name, site)?;
        // Asked for now, since no runtime may start once closing has begun.
        let runtime = context.runtime.handle(&group.activity.name)?;
        let number = member.number;
        let inside =
            Inside { future: Box::pin(task()), member, context: Arc::downgrade(context), name: name.to_owned(), site };
        let task = runtime.spawn(inside);
        group.abort_by(number, task.abort_handle());
        Ok(task)
    }

    /// Runs a thread.
    pub(crate) fn spawn_thread<T: Send + 'static>(
        &self,
        context: &Arc<Context>,
        name: &str,
        site: &'static Location<'static>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>, Error> {
        let (_group, mut member) = self.begin(context, name, site)?;
        let (of_thread, context) = (name.to_owned(), Arc::clone(context));
        let run = move || {
            let ended = context.close.run_as(Role::Task(member.number), run);
            // The thread must not keep a closed pool alive, nor may the panic unwind past its count.
            drop(context);
            match ended {
                Ok(output) => {
                    member.done();
                    output
                }
                Err(payload) => {
                    tell_panic(&of_thread, site, &*payload);
                    resume_unwind(payload)
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        thread.map_err(|error| Error::no_threads(&Arc::from(name), error))
    }

    /// Begins to count the work that ends, and to wake those who wait for it.
    pub(crate) fn begin_drain(&self) {
        for group in self.groups().iter().chain([&self.holds]) {
            group.activity.set_draining(true);
        }
    }

    /// The tasks and threads that there were as closing began, by name.
    pub(crate) fn draining(&self) -> Vec<Arc<WaitGroup>> {
        self.groups.lock().by_name.values().filter(|group| group.activity.is_draining()).cloned().collect()
    }

    /// The tasks and threads by name, as far as there are any.
    pub(crate) fn groups(&self) -> Vec<Arc<WaitGroup>> {
        self.groups.lock().by_name.values().filter(|group| group.len() > 0).cloned().collect()
    }

    /// How many holds there are, and how many tasks and threads of each name.
    pub(crate) fn counts(&self, context: &Context) -> (usize, Vec<(Arc<str>, usize)>) {
        if !context.process.is_current() {
            return (0, Vec::new());
        }
        let tasks = self.groups().iter().map(|group| (Arc::clone(&group.activity.name), group.len())).collect();
        (self.holds.len(), tasks)
    }

    /// Counts this task or thread as ended. It does not come back, because the process ends from it.
    pub(crate) fn leave(&self, number: u64) {
        let groups: Vec<_> = self.groups.lock().by_name.values().cloned().collect();
        groups.iter().any(|group| group.leave(number, true));
    }
}

/// A task that counts as inside of closing in each of its polls.
struct Inside<F> {
    future: Pin<Box<F>>,
    member: Member,
    /// Weak, because the runtime that the task lives on belongs to the context.
    context: Weak<Context>,
    name: String,
    site: &'static Location<'static>,
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, waker: &mut task::Context<'_>) -> Poll<F::Output> {
        let Inside { future, member, context, name, site } = &mut *self;
        let poll = || future.as_mut().poll(waker);
        let polled = match context.upgrade() {
            Some(context) => context.close.run_as(Role::Task(member.number), poll),
            None => catch_unwind(AssertUnwindSafe(poll)),
        };
        match polled {
            Ok(polled) => {
                if polled.is_ready() {
                    member.done();
                }
                polled
            }
            Err(payload) => {
                tell_panic(name, site, &*payload);
                resume_unwind(payload)
            }
        }
    }
}

fn tell_panic(name: &str, site: &Location<'_>, payload: &(dyn std::any::Any + Send)) {
    tracing::error!(task = %name, %site, message = %panic_message(payload), "a background task panicked");
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}
