//! [`CommandSender`], which a command takes along, and [`CommandSenders`], where the next command finds it again.
//!
//! Commands of several threads that cloned the shared connection each, and counted by one reference count, would wait
//! for each other's cache lines. So a command takes a sender off the list of its thread, and leaves it in the list of
//! the thread that it ends on. A command that is cancelled, or loses its connection, drops its sender.
//!
//! Invariant: no list keeps a sender of a connection that [is over](SharedConnection::is_over). `put` looks under the
//! list's lock, and a connection is over before `clear` takes that lock.
//! Locks: one for each list. No two are held together, and no sender drops under one.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;

use crate::base::sync::{SpinLock, thread_number};
use crate::kinds::redis::session::SharedConnection;
use crate::lifecycle::busy::Busy;

/// A clone of the shared connection, for one command at a time.
pub(super) struct CommandSender {
    pub(super) connection: MultiplexedConnection,
    pub(super) shared: Arc<SharedConnection>,
    /// Counts the command for closing. Counts nothing in a list.
    pub(super) busy: Busy,
}

/// The senders that no command has.
#[derive(Default)]
pub(super) struct CommandSenders([SenderList; LISTS]);

/// The number of lists: as many as there are threads that can usefully send at once.
const LISTS: usize = 16;

/// How many senders a list keeps, so that a burst of commands leaves no memory behind for ever.
const KEPT: usize = 64;

/// A list on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct SenderList(SpinLock<Vec<CommandSender>>);

impl CommandSenders {
    /// A sender of this thread's list whose connection is not over.
    pub(super) fn take(&self) -> Option<CommandSender> {
        let sender = self.list().0.lock().pop()?;
        (!sender.shared.is_over()).then_some(sender)
    }

    /// Keeps the sender of a command that has ended, in this thread's list.
    pub(super) fn put(&self, sender: CommandSender) {
        let mut list = self.list().0.lock();
        if list.len() < KEPT && !sender.shared.is_over() {
            list.push(sender);
        } else {
            drop(list);
            drop(sender);
        }
    }

    /// Drops all senders, since their connection is over.
    pub(super) fn clear(&self) {
        for list in &self.0 {
            let senders = std::mem::take(&mut *list.0.lock());
            drop(senders);
        }
    }

    fn list(&self) -> &SenderList {
        &self.0[thread_number() % LISTS]
    }
}
