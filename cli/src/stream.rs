//! A stream of server-sent events, read with limits on size and silence.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

/// How long the server may be silent. It sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// The largest message, with the bytes after it that have arrived.
const LARGEST: usize = 16 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// The events of one connection.
#[derive(Debug)]
pub(crate) struct Stream {
    body: Incoming,
    parser: Parser,
}

impl Stream {
    pub(crate) fn new(body: Incoming) -> Self {
        Stream { body, parser: Parser::default() }
    }

    /// The next event. `None` at the end of the stream.
    ///
    /// # Errors
    /// The words for a stream that broke off, was silent for 45 s, or has a message of over 16 MiB.
    ///
    /// # Cancel safety
    /// Cancel-safe: no byte is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, String> {
        loop {
            if let Some(message) = self.parser.message() {
                return Ok(Some(message));
            }
            let frame = timeout(SILENCE, self.body.frame()).await.map_err(|_| "the stream is silent".to_owned())?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(format!("the stream broke off: {error}")),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.parser.add(&bytes)?;
                    }
                }
            }
        }
    }
}

/// Takes messages out of bytes.
#[derive(Debug, Default)]
struct Parser {
    bytes: Vec<u8>,
    /// How many of the bytes belong to lines that have been read.
    read: usize,
    name: String,
    data: String,
}

impl Parser {
    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.bytes.drain(..self.read);
        self.read = 0;
        if self.bytes.len() + self.data.len() + bytes.len() > LARGEST {
            return Err("a message is larger than 16 MiB".to_owned());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The next message that has arrived whole.
    fn message(&mut self) -> Option<Message> {
        loop {
            let rest = self.bytes.get(self.read..)?;
            let length = rest.iter().position(|byte| *byte == b'\n')?;
            let line = String::from_utf8_lossy(rest.get(..length)?);
            let line = line.strip_suffix('\r').unwrap_or(&line).to_owned();
            self.read += length + 1;
            if line.is_empty() {
                let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
                if !data.is_empty() {
                    return Some(Message { name, data });
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.name = value.to_owned(),
                "data" => {
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(value);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, Parser};

    #[test]
    fn messages_are_whole_however_their_bytes_arrive() {
        let text = ": hello\n\nevent: event\nid: 1\ndata: {\"a\":\ndata: 1}\r\n\r\ndata: é\n\nevent: late\ndata: x\n";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for part in text.as_bytes().chunks(size) {
                parser.add(part).unwrap();
                found.extend(std::iter::from_fn(|| parser.message()).map(|message| (message.name, message.data)));
            }
            assert_eq!(found, [("event".into(), "{\"a\":\n1}".into()), (String::new(), "é".to_owned())], "{size}");
        }
    }

    #[test]
    fn a_message_without_end_is_refused() {
        let mut parser = Parser::default();
        let part = vec![b'x'; LARGEST / 4];
        let added =
            (0..5).map(|_| parser.add(&part).and_then(|()| parser.message().map_or(Ok(()), |_| Err(String::new()))));
        assert!(added.into_iter().any(|added| added.is_err()));
        assert!(parser.bytes.len() <= LARGEST);
    }
}
