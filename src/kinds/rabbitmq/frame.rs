//! Frames: how large they may be, and what must fit into one, since AMQP splits nothing but bodies.

use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;
use lapin::types::FieldTable;
use lapin::types::generation::gen_field_table;

use crate::base::error::Error;
use crate::kinds::rabbitmq::errors::operation;
use crate::kinds::rabbitmq::generation::Generation;

/// A byte more than brokers allow unless they are told otherwise. One that agrees to it allows more.
pub(super) const MORE_THAN_USUAL: u32 = (128 << 10) + 1;
/// The largest that can be had, as the driver's buffers take 64 times as much.
pub(super) const LARGEST: u32 = 1 << 20;

/// Type, channel, size and end of a frame.
const ENVELOPE: usize = 8;
/// Class, weight and size of the body, which stand before the properties.
const HEADER: usize = 12;
/// Class, method, a ticket that nobody uses any more, and flags.
const METHOD: usize = 7;

/// How many bytes properties take, headers among them.
pub(super) fn header_bytes(properties: &BasicProperties) -> usize {
    gen_properties(properties)(Vec::new().into()).map_or(usize::MAX, |written| written.write.len())
}

impl Generation {
    /// # Errors
    /// [`Error::Operation`] if the broker would end the connection over the header of such a message. Without a table of
    /// headers, properties fit into the smallest frame.
    pub(super) fn fits_header(&self, action: &str, properties: &BasicProperties) -> Result<(), Error> {
        let bytes = HEADER.saturating_add(header_bytes(properties));
        self.fits(action, "headers", "put what is large into the body", bytes)
    }

    /// # Errors
    /// [`Error::Operation`] if the broker would end the connection over a method with these names and arguments.
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
