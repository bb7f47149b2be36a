//! The methods of AMQP 0-9-1, parsed from the bytes that a [`Proxy`](crate::Proxy) forwards.
//!
//! The parser is written by hand. `amq-protocol` reads whole frames into types of its own, but a proxy skips parts such
//! as the bodies of messages, and tests ask for methods by name, which those types do not offer.

use std::time::Instant;

/// One method frame that passed through a [`Proxy`](crate::Proxy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpFrame {
    /// The proxy's number for the connection.
    pub connection: usize,
    /// Whether the frame goes from the client to the broker.
    pub from_client: bool,
    /// The channel; 0 is the connection itself.
    pub channel: u16,
    /// The class's number.
    pub class: u16,
    /// The method's number.
    pub method: u16,
    /// Class and method by name, such as `Channel.Close`.
    pub name: String,
    /// The delivery tag of `Basic.Deliver`, `GetOk`, `Ack`, `Nack` and `Reject`. In an `Ack` or `Nack` from the broker
    /// it is the number of a publish.
    pub delivery_tag: Option<u64>,
    /// Whether a `Basic.Ack` or `Nack` covers all messages up to the tag.
    pub multiple: bool,
    /// Whether a `Basic.Deliver` or `GetOk` is marked as redelivered.
    pub redelivered: bool,
    /// The time when the frame passed.
    pub at: Instant,
}

/// Splits one direction of one connection into frames.
#[derive(Debug)]
pub(crate) struct Parser {
    connection: usize,
    from_client: bool,
    pending: Vec<u8>,
    /// The number of bytes still to come of a frame that is skipped.
    skip: usize,
}

const HEAD: usize = 7;
const METHOD: u8 = 1;
const PROTOCOL_HEADER: usize = 8;

impl Parser {
    pub(crate) fn new(connection: usize, from_client: bool) -> Parser {
        Parser { connection, from_client, pending: Vec::new(), skip: 0 }
    }

    /// Takes the next bytes, and returns the method frames that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<AmqpFrame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.pending.extend(&bytes[skipped..]);
        let mut frames = Vec::new();
        while let Some(size) = self.next_size() {
            if self.pending.first() == Some(&METHOD) {
                let Some(frame) = self.pending.get(..size) else {
                    break;
                };
                frames.extend(self.method(frame));
            }
            self.skip = size.saturating_sub(self.pending.len());
            self.pending.drain(..size.min(self.pending.len()));
        }
        frames
    }

    /// The size of the frame at the front of `pending`. `None` if too few bytes are there to tell.
    fn next_size(&self) -> Option<usize> {
        if self.pending.starts_with(b"AMQP") {
            return Some(PROTOCOL_HEADER);
        }
        let size = self.pending.get(3..HEAD)?;
        Some(HEAD + u32::from_be_bytes(size.try_into().ok()?) as usize + 1)
    }

    fn method(&self, frame: &[u8]) -> Option<AmqpFrame> {
        let short = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
        let (channel, class, method) = (short(1)?, short(HEAD)?, short(HEAD + 2)?);
        let name = name(class, method);
        let arguments = frame.get(HEAD + 4..)?;
        let arguments = match name.as_str() {
            // The consumer's tag comes first.
            "Basic.Deliver" => arguments.get(1 + usize::from(*arguments.first()?)..)?,
            _ => arguments,
        };
        let tag = arguments.get(..8).and_then(|tag| Some(u64::from_be_bytes(tag.try_into().ok()?)));
        let bit = arguments.get(8).is_some_and(|bits| bits & 1 == 1);
        let has_tag =
            ["Basic.Deliver", "Basic.GetOk", "Basic.Ack", "Basic.Nack", "Basic.Reject"].contains(&name.as_str());
        Some(AmqpFrame {
            connection: self.connection,
            from_client: self.from_client,
            channel,
            class,
            method,
            delivery_tag: tag.filter(|_| has_tag),
            multiple: bit && ["Basic.Ack", "Basic.Nack"].contains(&name.as_str()),
            redelivered: bit && ["Basic.Deliver", "Basic.GetOk"].contains(&name.as_str()),
            name,
            at: Instant::now(),
        })
    }
}

fn name(class: u16, method: u16) -> String {
    let (class, methods): (&str, &[(u16, &str)]) = match class {
        10 => (
            "Connection",
            &[
                (10, "Start"),
                (11, "StartOk"),
                (20, "Secure"),
                (21, "SecureOk"),
                (30, "Tune"),
                (31, "TuneOk"),
                (40, "Open"),
                (41, "OpenOk"),
                (50, "Close"),
                (51, "CloseOk"),
                (60, "Blocked"),
                (61, "Unblocked"),
                (70, "UpdateSecret"),
                (71, "UpdateSecretOk"),
            ],
        ),
        20 => {
            ("Channel", &[(10, "Open"), (11, "OpenOk"), (20, "Flow"), (21, "FlowOk"), (40, "Close"), (41, "CloseOk")])
        }
        40 => (
            "Exchange",
            &[
                (10, "Declare"),
                (11, "DeclareOk"),
                (20, "Delete"),
                (21, "DeleteOk"),
                (30, "Bind"),
                (31, "BindOk"),
                (40, "Unbind"),
                (51, "UnbindOk"),
            ],
        ),
        50 => (
            "Queue",
            &[
                (10, "Declare"),
                (11, "DeclareOk"),
                (20, "Bind"),
                (21, "BindOk"),
                (30, "Purge"),
                (31, "PurgeOk"),
                (40, "Delete"),
                (41, "DeleteOk"),
                (50, "Unbind"),
                (51, "UnbindOk"),
            ],
        ),
        60 => (
            "Basic",
            &[
                (10, "Qos"),
                (11, "QosOk"),
                (20, "Consume"),
                (21, "ConsumeOk"),
                (30, "Cancel"),
                (31, "CancelOk"),
                (40, "Publish"),
                (50, "Return"),
                (60, "Deliver"),
                (70, "Get"),
                (71, "GetOk"),
                (72, "GetEmpty"),
                (80, "Ack"),
                (90, "Reject"),
                (100, "RecoverAsync"),
                (110, "Recover"),
                (111, "RecoverOk"),
                (120, "Nack"),
            ],
        ),
        85 => ("Confirm", &[(10, "Select"), (11, "SelectOk")]),
        90 => (
            "Tx",
            &[(10, "Select"), (11, "SelectOk"), (20, "Commit"), (21, "CommitOk"), (30, "Rollback"), (31, "RollbackOk")],
        ),
        _ => return format!("{class}.{method}"),
    };
    let name = methods.iter().find_map(|(number, name)| (*number == method).then_some(*name));
    name.map_or_else(|| format!("{class}.{method}"), |name| format!("{class}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_whatever_the_pieces_they_come_in() {
        let frame = |kind: u8, payload: &[u8]| {
            [&[kind, 0, 3], &(payload.len() as u32).to_be_bytes()[..], payload, &[0xCE]].concat()
        };
        let deliver = [&[0, 60, 0, 60, 2, b'c', b't'], &7_u64.to_be_bytes()[..], &[1, 0, 0]].concat();
        let ack = [&[0, 60, 0, 80], &9_u64.to_be_bytes()[..], &[1]].concat();
        let wire =
            [b"AMQP\x00\x00\x09\x01".to_vec(), frame(1, &deliver), frame(3, &[1; 500]), frame(8, &[]), frame(1, &ack)]
                .concat();
        for piece in [1, 7, 100, wire.len()] {
            let mut parser = Parser::new(0, true);
            let frames: Vec<AmqpFrame> = wire.chunks(piece).flat_map(|bytes| parser.feed(bytes)).collect();
            let seen: Vec<_> = frames.iter().map(|frame| (frame.name.as_str(), frame.delivery_tag)).collect();
            assert_eq!(seen, [("Basic.Deliver", Some(7)), ("Basic.Ack", Some(9))], "in pieces of {piece}");
            assert!(frames[0].redelivered && frames[1].multiple && frames[0].channel == 3);
        }
    }
}
