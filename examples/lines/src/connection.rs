//! A connection, which has one user at a time.

use std::fmt;
use std::io;
use std::sync::Arc;

use resource_pool::adapter::{Checkout, Stream};
use resource_pool::{Error, KillSwitch, Link, Work};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::resource::Opener;

/// A connection of one's own, until it drops.
#[must_use = "the connection goes back when this drops"]
pub struct Connection(pub(crate) Checkout<Opener>);

/// A stream, the kill switch that it is under, and whether it may be asked.
pub struct Open {
    /// `None` from a question until its answer has been read. A connection whose answer nobody read is therefore not
    /// asked again.
    stream: Option<BufReader<Stream>>,
    switch: KillSwitch,
    pub(crate) link: Link,
}

impl Open {
    pub(crate) fn new(stream: Stream, switch: KillSwitch, link: Link) -> Self {
        Open { stream: Some(BufReader::new(stream)), switch, link }
    }

    /// Whether the next user can have it: no rest of an answer is left, none is to come, and the switch is not cut.
    pub(crate) fn is_fit(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.buffer().is_empty()) && !self.switch.is_cut()
    }

    /// Sends a line, and returns the line that answers it.
    pub(crate) async fn ask(&mut self, line: &str) -> io::Result<String> {
        let mut stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        stream.flush().await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        let answer = answer.strip_suffix('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
        self.stream = Some(stream);
        Ok(answer.trim_end_matches('\r').to_owned())
    }
}

impl Connection {
    /// Sends a line, and returns the line that answers it.
    ///
    /// # Errors
    /// [`Error::Operation`] for a text with a line break, [`Error::Lost`] if the connection ends before the answer, and
    /// [`Error::Closed`] after that, or after an answer that was not awaited.
    ///
    /// # Cancel safety
    /// The line may have been sent to the server if `ask` is cancelled. The connection then closes, as an answer may
    /// still come.
    pub async fn ask(&mut self, line: &str) -> Result<String, Error> {
        let link = self.0.link.clone();
        let resource = Arc::clone(link.name());
        if line.contains(['\r', '\n']) {
            let source = Arc::new(io::Error::from(io::ErrorKind::InvalidInput));
            return Err(Error::Operation { resource, action: "a line with a line break in it".to_owned(), source });
        }
        if self.0.stream.is_none() {
            return Err(Error::Closed { resource });
        }
        let busy = link.busy(Work::Operation);
        let answer = self.0.ask(line).await.map_err(|error| match Error::behind(&error) {
            Some(why_cut) => why_cut.clone(),
            None => Error::Lost { resource, endpoint: Arc::clone(link.endpoint()), source: Arc::new(error) },
        })?;
        busy.done();
        Ok(answer)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.0).finish()
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Open").field(&self.switch).finish()
    }
}
