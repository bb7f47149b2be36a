//! [`Owner`]: the task, or else the thread, that holds something or waits for it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::thread::{self, Thread};

use tokio::task;

/// The task or thread that acquired something or waits for it. Two are equal if they are the same
/// task, or outside of tasks the same thread.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Owner {
    /// The thread that it ran on at that moment.
    pub thread: Thread,
    /// The task, if it was one of tokio's.
    pub task: Option<task::Id>,
}

impl Owner {
    pub(crate) fn current() -> Self {
        Owner { thread: thread::current(), task: task::try_id() }
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        match (self.task, other.task) {
            (None, None) => self.thread.id() == other.thread.id(),
            (one, other) => one == other,
        }
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<S: Hasher>(&self, state: &mut S) {
        match self.task {
            Some(task) => task.hash(state),
            None => self.thread.id().hash(state),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.task, self.thread.name()) {
            (Some(task), _) => write!(f, "task {task}"),
            (None, Some(name)) => write!(f, "thread {name:?}"),
            (None, None) => write!(f, "{:?}", self.thread.id()),
        }
    }
}
