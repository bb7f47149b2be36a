//! An adapter for r2d2, as a driver for the checkouts.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use r2d2::ManageConnection;

use crate::base::error::{Error, Failure};
use crate::lifecycle::checkout::manage::Manage;

/// A driver made of an adapter for r2d2. Its calls block.
pub struct Adapted<M: ManageConnection> {
    manager: Arc<M>,
    /// Turns the adapter's errors into failures that users may see.
    tell: Box<dyn Fn(M::Error) -> Failure + Send + Sync>,
    /// The user's hook that prepares each new connection.
    on_connect: Option<Arc<AdapterHook<M>>>,
}

/// Code of the user's that prepares a new connection.
pub(crate) type AdapterHook<M> =
    dyn Fn(&mut <M as ManageConnection>::Connection) -> Result<(), <M as ManageConnection>::Error> + Send + Sync;

impl<M: ManageConnection> Adapted<M> {
    pub(crate) fn new(manager: Arc<M>, tell: impl Fn(M::Error) -> Failure + Send + Sync + 'static) -> Self {
        Adapted { manager, tell: Box::new(tell), on_connect: None }
    }

    /// The same driver, with a hook that prepares each new connection.
    pub(crate) fn with_hook(self, on_connect: Option<Arc<AdapterHook<M>>>) -> Self {
        Adapted { on_connect, ..self }
    }
}

impl<M: ManageConnection> Manage for Adapted<M> {
    type Connection = M::Connection;
    const BLOCKS: bool = true;

    async fn connect(&self) -> Result<M::Connection, Failure> {
        let mut connection = self.manager.connect().map_err(&self.tell)?;
        if let Some(hook) = &self.on_connect {
            catch_unwind(AssertUnwindSafe(|| hook(&mut connection)))
                .map_err(|panic| Error::of_hook_that_panicked(&*panic))?
                .map_err(|error| (self.tell)(error).of_hook())?;
        }
        Ok(connection)
    }

    async fn is_valid(&self, connection: &mut M::Connection) -> Result<(), Failure> {
        self.manager.is_valid(connection).map_err(&self.tell)
    }

    fn has_broken(&self, connection: &mut M::Connection) -> bool {
        self.manager.has_broken(connection)
    }
}

impl<M: ManageConnection> fmt::Debug for Adapted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapted").finish_non_exhaustive()
    }
}
