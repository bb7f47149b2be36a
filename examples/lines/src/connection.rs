//! A connection that one user at a time has.

use std::fmt;
use std::io;
use std::sync::Arc;

use resource_pool::adapter::Stream;
use resource_pool::{Error, KillSwitch, Lease, Work};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::OwnedSemaphorePermit;

use crate::Lines;

/// A connection of one's own, until it drops.
#[must_use = "the connection goes back when this drops"]
pub struct Connection {
    /// Gone while it asks, so that one whose answer nobody awaited is not asked again.
    pub(crate) open: Option<Open>,
    /// Lists this checkout among the holders.
    pub(crate) lease: Lease<Lines>,
    /// The place of the next one, from its drop on.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// A stream, and the switch that it is under.
pub(crate) struct Open {
    stream: BufReader<Stream>,
    switch: KillSwitch,
}

impl Open {
    pub(crate) fn new(stream: Stream, switch: &KillSwitch) -> Self {
        Open { stream: BufReader::new(stream), switch: switch.clone() }
    }

    /// Nothing is left of an answer that had several lines, and nobody has cut it.
    pub(crate) fn is_fit(&self) -> bool {
        self.stream.buffer().is_empty() && !self.switch.is_cut()
    }

    /// The line that answers this one.
    pub(crate) async fn ask(&mut self, line: &str) -> io::Result<String> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        self.stream.flush().await?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).await?;
        match answer.strip_suffix('\n') {
            Some(answer) => Ok(answer.trim_end_matches('\r').to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Connection {
    /// The line that answers this one.
    ///
    /// # Errors
    /// [`Error::Operation`] for a line that is several, [`Error::Lost`] if the connection ends before the answer, and
    /// [`Error::Closed`] after that, or after an answer that was not awaited.
    ///
    /// # Cancel safety
    /// The server may have been sent a line whose `ask` is cancelled. The connection closes then, as an answer may still come.
    pub async fn ask(&mut self, line: &str) -> Result<String, Error> {
        let link = self.lease.link().clone();
        let resource = Arc::clone(link.name());
        if line.contains(['\r', '\n']) {
            let source = Arc::new(io::Error::from(io::ErrorKind::InvalidInput));
            return Err(Error::Operation { resource, action: "a line with a line break in it".to_owned(), source });
        }
        let Some(mut open) = self.open.take() else { return Err(Error::Closed { resource }) };
        let busy = link.busy(Work::Operation);
        let answer = open.ask(line).await.map_err(|error| match Error::behind(&error) {
            Some(why_cut) => why_cut.clone(),
            None => Error::Lost { resource, endpoint: Arc::clone(link.endpoint()), source: Arc::new(error) },
        })?;
        busy.done();
        self.open = Some(open);
        Ok(answer)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.lease.give_back(open);
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("lease", &self.lease).finish_non_exhaustive()
    }
}
