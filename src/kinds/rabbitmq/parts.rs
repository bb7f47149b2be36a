//! The parts of a batch, and its window: how many messages, and how many bytes, may be unconfirmed at a time.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::Arc;

use crate::kinds::rabbitmq::config::RabbitMqConfig;
use crate::kinds::rabbitmq::message::Message;

/// A batch in parts, so that the broker works on other parts while one is settled. A message is taken out of the
/// iterator only when the window has room for it, except for one that is looked at ahead.
pub(super) struct Parts<I: Iterator<Item = Message>> {
    messages: Peekable<I>,
    window: Load,
    /// The parts that are not settled, the oldest first.
    unsettled: VecDeque<Load>,
}

impl<I: Iterator<Item = Message>> Parts<I> {
    pub(super) fn new(messages: I, config: &RabbitMqConfig) -> Self {
        let window = Load { messages: config.confirm_window, bytes: config.confirm_window_bytes };
        Parts { messages: messages.peekable(), window, unsettled: VecDeque::new() }
    }

    /// The next part. It is empty if there is no message left, or no room for one.
    pub(super) fn next(&mut self) -> Arc<Vec<Message>> {
        let Parts { messages, window, unsettled } = self;
        let room = unsettled.iter().fold(*window, |room, part| Load {
            messages: room.messages.saturating_sub(part.messages),
            bytes: room.bytes.saturating_sub(part.bytes),
        });
        let (count, share) = (room.messages.min(window.messages.div_ceil(PARTS)), window.bytes.div_ceil(PARTS));
        let (mut part, mut bytes) = (Vec::new(), 0_usize);
        while part.len() < count
            && let Some(message) = messages.peek()
        {
            let all = bytes.saturating_add(message.bytes());
            // A message larger than the whole window is in flight alone.
            let fits = all <= room.bytes && (part.is_empty() || all <= share);
            let is_alone = part.is_empty() && unsettled.is_empty();
            if !(fits || is_alone) {
                break;
            }
            bytes = all;
            part.extend(messages.next());
        }
        if !part.is_empty() {
            unsettled.push_back(Load { messages: part.len(), bytes });
        }
        Arc::new(part)
    }

    /// Notes that the oldest part is settled.
    pub(super) fn settled(&mut self) {
        self.unsettled.pop_front();
    }

    /// Counts the messages that were not taken, and drops them.
    pub(super) fn left(self) -> usize {
        self.messages.count()
    }
}

/// A number of messages, and the number of their bytes.
#[derive(Clone, Copy)]
struct Load {
    messages: usize,
    bytes: usize,
}

/// The number of parts into which the window of a batch is divided.
const PARTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::Parts;
    use crate::kinds::rabbitmq::config::RabbitMqConfig;
    use crate::kinds::rabbitmq::message::Message;

    fn parts(count: usize, bytes: usize, messages: usize, window: usize) -> Parts<impl Iterator<Item = Message>> {
        let config =
            RabbitMqConfig { confirm_window: messages, confirm_window_bytes: window, ..RabbitMqConfig::default() };
        Parts::new((0..count).map(move |_| Message::new("", "", vec![0; bytes])), &config)
    }

    /// How many messages each part has, until there is no room or no message for another part.
    fn filled(parts: &mut Parts<impl Iterator<Item = Message>>) -> Vec<usize> {
        std::iter::from_fn(|| Some(parts.next().len()).filter(|length| *length > 0)).collect()
    }

    #[test]
    fn no_more_messages_are_on_their_way_than_the_window_has_room_for() {
        let mut parts = parts(20, 1, 16, 1000);
        assert_eq!(filled(&mut parts), [2; 8]);
        parts.settled();
        assert_eq!(filled(&mut parts), [2]);
        assert_eq!(parts.left(), 2);
    }

    #[test]
    fn no_more_bytes_are_on_their_way_than_the_window_has_room_for() {
        let mut parts = parts(20, 10, 1000, 80);
        assert_eq!(filled(&mut parts), [1; 8]);
        parts.settled();
        parts.settled();
        assert_eq!(filled(&mut parts), [1; 2]);
    }

    #[test]
    fn a_message_larger_than_the_window_is_on_its_way_alone() {
        let mut parts = parts(3, 100, 16, 80);
        for left in (0..3).rev() {
            assert_eq!(filled(&mut parts), [1]);
            parts.settled();
            assert_eq!(parts.messages.size_hint().0, left);
        }
        assert_eq!((filled(&mut parts), parts.left()), (vec![], 0));
    }

    #[test]
    fn a_part_has_no_more_than_its_share_of_the_bytes() {
        let mut parts = parts(8, 10, 16, 160);
        assert_eq!(filled(&mut parts), [2; 4]);
        assert_eq!(filled(&mut self::parts(8, 15, 16, 160)), [1; 8]);
    }
}
