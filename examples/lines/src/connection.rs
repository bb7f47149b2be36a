//! A connection that one user at a time has.

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

/// A stream, the switch that it is under, and whether it may be asked.
pub struct Open {
    /// Gone from a question on until it is answered, so that one whose answer nobody read is not asked again.
    stream: Option<BufReader<Stream>>,
    switch: KillSwitch,
    pub(crate) link: Link,
}

impl Open {
    pub(crate) fn new(stream: Stream, switch: KillSwitch, link: Link) -> Self {
        Open { stream: Some(BufReader::new(stream)), switch, link }
    }

    /// Nothing is left of an answer that had several lines, none is to come, and nobody has cut it.
    pub(crate) fn is_fit(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.buffer().is_empty()) && !self.switch.is_cut()
    }

    /// The line that answers this one.
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
    /// The line that answers this one.
    ///
    /// # Errors
    /// [`Error::Operation`] for a line that is several, [`Error::Lost`] if the connection ends before the answer, and
    /// [`Error::Closed`] after that, or after an answer that was not awaited.
    ///
    /// # Cancel safety
    /// The server may have been sent a line whose `ask` is cancelled. The connection closes then, as an answer may still come.
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
