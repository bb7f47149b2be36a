//! Frames: their largest size, and the parts that must fit into one, because AMQP splits only bodies.

use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;
use lapin::types::FieldTable;
use lapin::types::generation::gen_field_table;

use crate::base::error::Error;
use crate::kinds::rabbitmq::errors::operation;
use crate::kinds::rabbitmq::generation::Generation;

/// A byte more than brokers allow by default. A broker that agrees to it allows more than usual.
pub(super) const MORE_THAN_USUAL: u32 = (128 << 10) + 1;
/// The largest frame that can be configured. The driver's buffers take 64 times as much.
pub(super) const LARGEST: u32 = 1 << 20;

/// The bytes around a frame's payload: type, channel, size and end.
const ENVELOPE: usize = 8;
/// The bytes before the properties: class, weight and size of the body.
const HEADER: usize = 12;
/// The bytes before a method's names: class, method, a ticket that nobody uses any more, and flags.
const METHOD: usize = 7;

/// How many bytes the properties take, including the headers.
pub(super) fn header_bytes(properties: &BasicProperties) -> usize {
    gen_properties(properties)(Vec::new().into()).map_or(usize::MAX, |written| written.write.len())
}

impl Generation {
    /// Checks that the header of a message fits into one frame. Without a table of headers, properties fit into the
    /// smallest frame.
    ///
    /// # Errors [`Error::Operation`] if the broker would end the connection over the header of such a message.
    pub(super) fn fits_header(&self, action: &str, properties: &BasicProperties) -> Result<(), Error> {
        let bytes = HEADER.saturating_add(header_bytes(properties));
        self.fits(action, "headers", "put what is large into the body", bytes)
    }

    /// Checks that a method with these names and arguments fits into one frame.
    ///
    /// # Errors [`Error::Operation`] if the broker would end the connection over such a method.
    pub(super) fn fits_method(&self, action: &str, names: &[&str], arguments: &FieldTable) -> Result<(), Error> {
        if arguments.inner().is_empty() {
            return Ok(());
        }
        let bytes = gen_field_table(arguments)(Vec::new().into()).map_or(usize::MAX, |written| written.write.len());
        let names: usize = names.iter().map(|name| 1 + name.len()).sum();
        self.fits(action, "arguments", "say less in them", (METHOD + names).saturating_add(bytes))
    }

    fn fits(&self, action: &str, what: &str, remedy: &str, bytes: usize) -> Result<(), Error> {
        let (frame, limit) = (bytes.saturating_add(ENVELOPE), self.connection.configuration().frame_max());
        if u32::try_from(frame).is_ok_and(|frame| frame <= limit) {
            return Ok(());
        }
        let problem = format!(
            "its {what} make a frame of {frame} bytes, and one may have {limit}: {remedy}, or raise `frame_max` at the \
             broker and here"
        );
        Err(operation(&self.link, action, problem))
    }
}
