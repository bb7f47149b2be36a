//! Server-sent events, taken out of the bytes of a stream.
//!
//! The parser is our own, since the crates for it keep an event of any length in memory.

use std::collections::VecDeque;

/// Takes the data of events out of bytes that come in pieces of any size. Lines end in LF, CR or both. Other fields
/// than `data`, and comments, are passed over.
pub(super) struct EventParser {
    /// The most bytes of one event.
    max: usize,
    /// The line so far.
    line: Vec<u8>,
    /// The data of the event so far. `None` before its first `data`.
    data: Option<Vec<u8>>,
    /// Whether the last byte was a CR, so that an LF belongs to it.
    was_return: bool,
    /// Whether the line is the first one, which may begin with a byte order mark.
    is_first: bool,
    events: VecDeque<String>,
}

/// An event of more bytes than it may have.
#[derive(Debug, PartialEq)]
pub(super) struct TooLong;

impl EventParser {
    pub(super) fn new(max: usize) -> Self {
        EventParser { max, line: Vec::new(), data: None, was_return: false, is_first: true, events: VecDeque::new() }
    }

    /// Takes in the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            let is_second = *byte == b'\n' && self.was_return;
            self.was_return = *byte == b'\r';
            match byte {
                b'\n' if is_second => {}
                b'\r' | b'\n' => self.end_line(),
                _ if self.line.len() + self.data.as_ref().map_or(0, Vec::len) >= self.max => return Err(TooLong),
                byte => self.line.push(*byte),
            }
        }
        Ok(())
    }

    /// The data of the next event that is complete.
    pub(super) fn next(&mut self) -> Option<String> {
        self.events.pop_front()
    }

    /// The bytes that are left and are no whole event: its data so far, or the line that it begins with. `None` if all
    /// that is left is a comment.
    pub(super) fn rest(&mut self) -> Option<String> {
        let mut rest = self.line.clone();
        if !rest.is_empty() {
            self.end_line();
        }
        if let Some(data) = self.data.take() {
            rest = data;
        }
        (!rest.is_empty() && !rest.starts_with(b":")).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = match std::mem::take(&mut self.is_first) {
            true => line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line),
            false => &line[..],
        };
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                self.events.push_back(String::from_utf8_lossy(&data).into_owned());
            }
            return;
        }
        let Some(value) = line.strip_prefix(b"data").filter(|rest| rest.first().is_none_or(|first| *first == b':'))
        else {
            return;
        };
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EventParser, TooLong};

    /// The events of a text, which must be the same in pieces of any size.
    fn events(text: &str) -> Vec<String> {
        let in_pieces = |size: usize| {
            let mut parser = EventParser::new(100);
            text.as_bytes().chunks(size).for_each(|piece| parser.feed(piece).unwrap());
            std::iter::from_fn(|| parser.next()).collect::<Vec<_>>()
        };
        let whole = in_pieces(text.len().max(1));
        for size in 1..text.len() {
            assert_eq!(in_pieces(size), whole, "{text:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn an_event_ends_at_an_empty_line() {
        assert_eq!(events("data: one\n\ndata:two\n\n"), ["one", "two"]);
        assert_eq!(events("data: one\r\n\r\ndata: two\r\rdata: three\n\n"), ["one", "two", "three"]);
        assert_eq!(events("data: one\n"), [""; 0], "it may go on");
        assert_eq!(events("data: one"), [""; 0]);
        assert_eq!(events(""), [""; 0]);
    }

    #[test]
    fn lines_of_data_are_joined_and_others_passed_over() {
        assert_eq!(events(": hello\nevent: x\nid: 1\nretry: 5\ndata: a\ndata:\ndata:  b\ndatas: c\n\n"), ["a\n\n b"]);
        assert_eq!(events("data\n\n"), [""], "data without a colon is empty data");
        assert_eq!(events(": only a comment\n\n\n\n"), [""; 0]);
        assert_eq!(events("\u{feff}data: é\n\ndata: \u{feff}\n\n"), ["é", "\u{feff}"]);
    }

    #[test]
    fn bytes_that_are_no_whole_event_are_a_rest() {
        for (text, rest) in [
            ("", None),
            ("data: one\n\n", None),
            ("data: one\n\n: done", None),
            ("data: one\n: done", Some("one")),
            ("data: one\n", Some("one")),
            ("data: one", Some("one")),
            ("data: one\ndat", Some("one")),
            ("\n\ndat", Some("dat")),
        ] {
            let mut parser = EventParser::new(100);
            parser.feed(text.as_bytes()).unwrap();
            while parser.next().is_some() {}
            assert_eq!(parser.rest().as_deref(), rest, "{text:?}");
        }
    }

    #[test]
    fn an_event_of_too_many_bytes_is_refused() {
        let mut parser = EventParser::new(20);
        assert_eq!(parser.feed(b"data: 0123456789\n\ndata: 0123456789\n\n"), Ok(()));
        assert_eq!(parser.feed(b"data: 0123456789\ndata: 0123456789\n\n"), Err(TooLong));
        let mut parser = EventParser::new(20);
        assert_eq!((0..3).try_for_each(|_| parser.feed(b": endless")), Err(TooLong));
    }

    #[test]
    fn bytes_that_are_not_text_are_replaced() {
        let mut parser = EventParser::new(20);
        parser.feed(b"data: \xff!\n\n").unwrap();
        assert_eq!(parser.next().as_deref(), Some("\u{fffd}!"));
    }
}
