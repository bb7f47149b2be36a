//! Follows an HTTP/1.1 answer through the bytes of its connection, as far as it takes to tell whether the answer has
//! begun, and whether it is complete.
//!
//! This is done by hand because hyper tells neither. Its client chooses the connection of a request by itself. The end
//! of an answer is known only to its body, which the driver may drop before that. hyper reads the same bytes, and
//! refuses those that are not HTTP. To this parser, such an answer lasts until the connection closes, as one without a
//! length does. `ResponseLimit` follows requests with it too, to see their ends: a path is where an answer has its status.

/// How far an HTTP/1.1 answer has come.
#[derive(Default)]
pub(super) struct ResponseParser {
    /// Whether the server says that the statement failed.
    pub(super) is_error: bool,
    part: AnswerPart,
}

enum AnswerPart {
    /// The bytes of the head that have come.
    Head(Vec<u8>),
    /// How many bytes of a body with a length are still to come.
    Body(u64),
    /// The bytes that have come of the line with a chunk's size.
    ChunkSize(Vec<u8>),
    /// How many bytes of a chunk, with its line end, are still to come.
    Chunk(u64),
    /// The bytes that have come of a line behind the last chunk.
    Trailer(Vec<u8>),
    UntilClosed,
}

impl Default for AnswerPart {
    fn default() -> Self {
        AnswerPart::Head(Vec::new())
    }
}

impl ResponseParser {
    /// Whether its head is complete.
    pub(super) fn is_begun(&self) -> bool {
        !matches!(self.part, AnswerPart::Head(_))
    }

    /// Whether only the end of the connection can end it.
    pub(super) fn is_until_closed(&self) -> bool {
        matches!(self.part, AnswerPart::UntilClosed)
    }

    /// Follows these bytes, and answers whether the answer ends in them.
    pub(super) fn ends_in(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match &mut self.part {
                AnswerPart::Head(head) => {
                    let Some(head) = read_until(head, &mut bytes, b"\r\n\r\n") else { return false };
                    *self = ResponseParser::after(&String::from_utf8_lossy(&head));
                    if matches!(self.part, AnswerPart::Body(0)) {
                        return true;
                    }
                }
                AnswerPart::ChunkSize(line) => {
                    let Some(line) = read_until(line, &mut bytes, b"\r\n") else { return false };
                    let line = String::from_utf8_lossy(&line);
                    let digits = line.split([';', '\r']).next().unwrap_or_default().trim();
                    self.part = match u64::from_str_radix(digits, 16) {
                        Ok(0) => AnswerPart::Trailer(Vec::new()),
                        Ok(size) => AnswerPart::Chunk(size.saturating_add(2)),
                        Err(_) => AnswerPart::UntilClosed,
                    };
                }
                AnswerPart::Trailer(line) => {
                    let Some(line) = read_until(line, &mut bytes, b"\r\n") else { return false };
                    if line == b"\r\n" {
                        return true;
                    }
                }
                AnswerPart::Body(left) | AnswerPart::Chunk(left) => {
                    let step = (*left).min(bytes.len() as u64);
                    *left -= step;
                    bytes = &bytes[usize::try_from(step).unwrap_or(bytes.len())..];
                    match self.part {
                        AnswerPart::Body(0) => return true,
                        AnswerPart::Chunk(0) => self.part = AnswerPart::ChunkSize(Vec::new()),
                        _ => {}
                    }
                }
                AnswerPart::UntilClosed => return false,
            }
        }
        false
    }

    /// The state after this head. After an interim head the next head follows, and otherwise the body.
    fn after(head: &str) -> Self {
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('1') {
            return ResponseParser::default();
        }
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(key, value)| {
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
            })
        };
        let part = match (field("transfer-encoding"), field("content-length").map(|length| length.parse())) {
            _ if status == "204" || status == "304" => AnswerPart::Body(0),
            (Some(coding), _) if coding.ends_with("chunked") => AnswerPart::ChunkSize(Vec::new()),
            (None, Some(Ok(length))) => AnswerPart::Body(length),
            _ => AnswerPart::UntilClosed,
        };
        ResponseParser { is_error: status != "200" || field("x-clickhouse-exception-code").is_some(), part }
    }
}

/// The most bytes that are kept of a head or line, more than any server sends in front of an answer. The end of a
/// longer one is not found.
const LONGEST: usize = 1 << 20;

/// Moves bytes over until the mark is complete. Then answers the bytes before the mark, and the mark.
fn read_until(taken: &mut Vec<u8>, bytes: &mut &[u8], mark: &[u8]) -> Option<Vec<u8>> {
    while let Some((first, rest)) = bytes.split_first() {
        if taken.len() < LONGEST {
            taken.push(*first);
        }
        *bytes = rest;
        if taken.ends_with(mark) {
            return Some(std::mem::take(taken));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{AnswerPart, LONGEST, ResponseParser};

    /// The number of bytes after which the answer ends, if they come one at a time. In larger pieces it must end in the
    /// same way.
    fn end_of(text: &str) -> Option<usize> {
        let mut answer = ResponseParser::default();
        let end = text.as_bytes().chunks(1).position(|byte| answer.ends_in(byte)).map(|last| last + 1);
        assert_eq!(ResponseParser::default().ends_in(text.as_bytes()), end.is_some(), "{text:?}");
        for size in 2..text.len().min(40) {
            let mut answer = ResponseParser::default();
            let piece = text.as_bytes().chunks(size).position(|piece| answer.ends_in(piece));
            assert_eq!(piece, end.map(|end| (end - 1) / size), "{text:?} in pieces of {size}");
        }
        end
    }

    fn ends_with(text: &str) {
        assert_eq!(end_of(text), Some(text.len()), "{text:?}");
        assert_eq!(end_of(&format!("{text}HTTP/1.1 200 OK\r\n\r\n")), Some(text.len()), "{text:?} and the next");
    }

    fn never_ends(text: &str) -> ResponseParser {
        assert_eq!(end_of(text), None, "{text:?}");
        let mut answer = ResponseParser::default();
        answer.ends_in(text.as_bytes());
        answer
    }

    #[test]
    fn an_answer_with_a_length_ends_with_it() {
        ends_with("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n1\n\n");
        ends_with("HTTP/1.1 200 OK\r\nX: y\r\ncontent-length:12\r\nDate: today\r\n\r\nHTTP\r\n\r\n1234");
        assert!(never_ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n1\n").is_begun());
        assert!(!never_ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r").is_begun());
        assert!(!never_ends("").is_begun());
    }

    #[test]
    fn an_empty_answer_ends_with_its_head() {
        ends_with("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        ends_with("HTTP/1.1 204 No Content\r\n\r\n");
        ends_with("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n");
    }

    #[test]
    fn a_chunked_answer_ends_with_its_last_line() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        ends_with(&format!("{HEAD}0\r\n\r\n"));
        ends_with(&format!("{HEAD}5\r\n0\r\n\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n"));
        ends_with(&format!("{HEAD}3;name=value\r\nabc\r\n2 ; a=\"b\"\r\nde\r\n0;last\r\n\r\n"));
        ends_with(&format!("{HEAD}1\r\na\r\n000\r\nX-Rows: 1\r\nX-More: 0\r\n\r\n"));
        ends_with(
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\ntransfer-encoding: gzip, Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        );
        for unended in ["", "5\r\n01234", "5\r\n01234\r\n0\r\n", "0\r\nX-Rows: 1\r\n", "ffffffffffffffff\r\n0\r\n\r\n"]
        {
            assert!(!never_ends(&format!("{HEAD}{unended}")).is_until_closed(), "{unended:?}");
        }
    }

    #[test]
    fn what_comes_before_an_answer_is_none() {
        ends_with(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
        );
        assert!(!never_ends("HTTP/1.1 100 Continue\r\n\r\n").is_begun());
        assert!(!never_ends("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n").is_begun());
    }

    #[test]
    fn without_a_length_it_lasts_until_the_connection_closes() {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
            // hyper refuses these.
            "HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
            "HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
            "\u{fffd}\0: \r\n\r\n",
        ] {
            assert!(
                never_ends(&format!("{head}0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).is_until_closed()
            );
        }
        let mut answer = ResponseParser::default();
        assert!(!answer.ends_in(b"\xff\xfe\r\n\r\n\xff") && answer.is_until_closed() && answer.is_error);
    }

    #[test]
    fn an_error_is_told_by_status_or_header() {
        let is_error = |head: &str| {
            let mut answer = ResponseParser::default();
            answer.ends_in(format!("{head}\r\nContent-Length: 9\r\n\r\n").as_bytes());
            assert!(answer.is_begun(), "{head:?}");
            answer.is_error
        };
        assert!(!is_error("HTTP/1.1 200 OK"));
        assert!(is_error("HTTP/1.1 500 Internal Server Error"));
        assert!(is_error("HTTP/1.1 200 OK\r\nx-clickhouse-exception-code: 62"));
    }

    #[test]
    fn of_an_endless_head_or_line_little_is_kept() {
        for begin in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1"] {
            let mut answer = ResponseParser::default();
            answer.ends_in(begin.as_bytes());
            for _ in 0..LONGEST / 1024 + 2 {
                assert!(!answer.ends_in(&[b'a'; 1024]));
            }
            assert!(!answer.ends_in(b"\r\n\r\n0\r\n\r\n"), "its end is not looked for");
            let (AnswerPart::Head(kept) | AnswerPart::ChunkSize(kept)) = &answer.part else {
                panic!("{begin:?} has ended")
            };
            assert_eq!(kept.len(), LONGEST);
        }
    }
}
