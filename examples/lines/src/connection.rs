//! A connection that one user at a time has.

use std::fmt;
use std::io;
use std::sync::Arc;

use resource_pool::adapter::Stream;
use resource_pool::{Error, KillSwitch, Lease, Work};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::Lines;

/// A connection of one's own, until it drops.
#[must_use = "the connection goes back when this drops"]
pub struct Connection {
    /// Gone only while it drops.
    pub(crate) open: Option<Open>,
    /// Lists this checkout among the holders.
    pub(crate) lease: Lease<Lines>,
    /// The place of the next one, from its drop on.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// A stream, and the switch that it is under.
pub(crate) struct Open {
    stream: BufStream<Stream>,
    switch: KillSwitch,
    /// Nothing is under way on it.
    is_idle: bool,
}

impl Open {
    pub(crate) fn new(stream: Stream, switch: &KillSwitch) -> Self {
        Open { stream: BufStream::new(stream), switch: switch.clone(), is_idle: true }
    }

    pub(crate) fn is_fit(&self) -> bool {
        self.is_idle && !self.switch.is_cut()
    }

    /// The line that answers this one.
    pub(crate) async fn ask(&mut self, line: &str) -> io::Result<String> {
        self.is_idle = false;
        self.stream.write_all(line.as_bytes()).await?;
        self.stream.write_all(b"\r\n").await?;
        self.stream.flush().await?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.is_idle = true;
        Ok(answer.trim_end().to_owned())
    }
}

impl Connection {
    /// The line that answers this one.
    ///
    /// # Errors
    /// [`Error::Operation`] for a line that is several, and [`Error::Lost`] if the connection ends before the answer.
    ///
    /// # Cancel safety
    /// What is cancelled may have been sent. The connection is closed then, as an answer may still come.
    pub async fn ask(&mut self, line: &str) -> Result<String, Error> {
        let link = self.lease.link().clone();
        let resource = Arc::clone(link.name());
        if line.contains(['\r', '\n']) {
            let source = Arc::new(io::Error::from(io::ErrorKind::InvalidInput));
            return Err(Error::Operation { resource, action: "a line with a line break in it".to_owned(), source });
        }
        let Some(open) = &mut self.open else { return Err(Error::Closed { resource }) };
        let busy = link.busy(Work::Operation);
        let answer = open.ask(line).await.map_err(|error| match Error::behind(&error) {
            Some(why_cut) => why_cut.clone(),
            None => Error::Lost { resource, endpoint: Arc::clone(link.endpoint()), source: Arc::new(error) },
        })?;
        busy.done();
        Ok(answer)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(open) = self.open.take().filter(Open::is_fit) {
            self.lease.give_back(open);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("lease", &self.lease).finish_non_exhaustive()
    }
}
