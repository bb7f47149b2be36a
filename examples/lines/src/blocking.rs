//! The facade for threads.

use resource_pool::adapter::{Claim, block_on};
use resource_pool::{Error, blocking};
use tokio::runtime::Handle;

use crate::LinesConfig;

/// The method of this kind, on pools for threads.
pub trait LinesPool {
    /// Checks a connection out of the default resource.
    ///
    /// # Errors
    /// Those of [`Lines::connection`](crate::Lines::connection) and of connecting, and [`Error::InAsyncContext`] if it
    /// would have to wait on a current-thread runtime.
    #[track_caller]
    fn lines(&self) -> Result<Connection, Error>;
}

impl LinesPool for blocking::ResourcePool {
    #[track_caller]
    fn lines(&self) -> Result<Connection, Error> {
        let claim = Claim::shared().blocking();
        let lines = self.kind::<LinesConfig>()?.clone();
        let (name, runtime) = (lines.link().name().clone(), lines.runtime().clone());
        let connection = block_on(&name, &runtime, lines.check_out(claim))??;
        Ok(Connection { connection, runtime })
    }
}

/// A connection of one's own, until it drops.
#[derive(Debug)]
pub struct Connection {
    connection: crate::Connection,
    runtime: Handle,
}

impl Connection {
    /// Sends a line, and returns the line that answers it.
    ///
    /// # Errors
    /// Those of [the async one](crate::Connection::ask), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn ask(&mut self, line: &str) -> Result<String, Error> {
        let name = self.connection.0.link.name().clone();
        block_on(&name, &self.runtime, self.connection.ask(line))?
    }
}
