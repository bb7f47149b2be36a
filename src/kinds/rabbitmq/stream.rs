//! Streams: queues that are read and not emptied. They accept acknowledgements alone. Any other answer to a delivery
//! ends the connection.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::kinds::rabbitmq::in_hand::InHand;

/// The argument from where a consumer reads, and the header with the position of a delivery in its stream.
const OFFSET: &str = "x-stream-offset";

/// Whether a queue that is declared with these arguments is a stream. `None` if they do not say.
pub(super) fn is_stream(arguments: &FieldTable) -> Option<bool> {
    match arguments.inner().get("x-queue-type")? {
        AMQPValue::LongString(kind) => Some(kind.as_bytes() == b"stream"),
        AMQPValue::ShortString(kind) => Some(kind.as_str() == "stream"),
        _ => None,
    }
}

/// The arguments of a consumer that goes on from this offset.
pub(super) fn reading_from(offset: Option<i64>, arguments: &FieldTable) -> FieldTable {
    let mut arguments = arguments.clone();
    if let Some(offset) = offset {
        arguments.insert(OFFSET.into(), AMQPValue::LongLongInt(offset));
    }
    arguments
}

/// The deliveries of a subscription, and how far it has read, if it is one to a stream.
pub(super) struct Reading {
    pub(super) in_hand: Arc<InHand>,
    /// Whether the queue is a stream, by its declaration. `None` if that does not say, and the deliveries have to.
    is_stream: Option<bool>,
    seen: Mutex<SeenOffset>,
    /// Cancelled once a delivery is given up. The consumer then reads again from there.
    pub(super) given_up: CancellationToken,
}

#[derive(Default)]
struct SeenOffset {
    unacked: BTreeSet<i64>,
    /// The offset after the last delivery.
    end: Option<i64>,
}

impl Reading {
    pub(super) fn new(is_stream: Option<bool>) -> Arc<Self> {
        Arc::new(Reading {
            in_hand: Arc::default(),
            is_stream,
            seen: Mutex::default(),
            given_up: CancellationToken::new(),
        })
    }

    /// Notes a delivery, and answers its offset if this is a stream.
    pub(super) fn delivered(self: &Arc<Self>, properties: &BasicProperties) -> Option<Offset> {
        // A message that was moved from a stream into another queue keeps the header, so the declaration comes first.
        if self.is_stream == Some(false) {
            return None;
        }
        let Some(AMQPValue::LongLongInt(offset)) = properties.headers().as_ref()?.inner().get(OFFSET) else {
            return None;
        };
        let mut seen = self.seen.lock();
        seen.unacked.insert(*offset);
        seen.end = Some(offset.saturating_add(1));
        Some(Offset { reading: Arc::clone(self), number: *offset })
    }

    /// The offset to go on from: that of the first delivery that is not acknowledged, or the one after all of them.
    pub(super) fn next(&self) -> Option<i64> {
        let seen = self.seen.lock();
        seen.unacked.first().copied().or(seen.end)
    }
}

/// The offset of a delivery in its stream.
#[derive(Clone)]
pub(super) struct Offset {
    reading: Arc<Reading>,
    number: i64,
}

impl Offset {
    pub(super) fn acked(&self) {
        self.reading.seen.lock().unacked.remove(&self.number);
    }

    pub(super) fn given_up(&self) {
        self.reading.given_up.cancel();
    }

    /// Whether a delivery was given up, so that those after it come again too.
    pub(super) fn is_read_again(&self) -> bool {
        self.reading.given_up.is_cancelled()
    }
}
