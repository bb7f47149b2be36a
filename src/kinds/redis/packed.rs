//! Reads the driver's packed commands in place, before they are sent.
//!
//! A command is an array of bulk strings. `redis::Parser` also reads those, but it copies every argument, and a `SET`
//! may carry megabytes. This reader borrows three words of each command and skips the rest.

/// Calls `see` with each command of a packed pipeline: the name and the first two arguments, empty where they are
/// missing. Returns whether all of `packed` was read. An unread rest may contain any command.
pub(super) fn each_command<'a>(mut packed: &'a [u8], mut see: impl FnMut([&'a [u8]; 3])) -> bool {
    while !packed.is_empty() {
        let Some(arguments) = header(&mut packed, b'*') else { return false };
        let mut words: [&[u8]; 3] = [b""; 3];
        for index in 0..arguments {
            let Some(word) = word(&mut packed) else { return false };
            if let Some(place) = words.get_mut(index) {
                *place = word;
            }
        }
        if arguments > 0 {
            see(words);
        }
    }
    true
}

/// Removes a bulk string from the front, and returns its bytes.
fn word<'a>(packed: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = header(packed, b'$')?;
    let word = packed.get(..length)?;
    *packed = packed[length..].strip_prefix(b"\r\n")?;
    Some(word)
}

/// Removes a line such as `*3` or `$5` from the front, and returns its number.
fn header(packed: &mut &[u8], mark: u8) -> Option<usize> {
    let end = packed.windows(2).position(|two| two == b"\r\n")?;
    let number = std::str::from_utf8(packed[..end].strip_prefix(&[mark])?).ok()?.parse().ok()?;
    *packed = &packed[end + 2..];
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::each_command;

    /// The words of each command, and whether all bytes were read.
    fn read(packed: &[u8]) -> (Vec<[&[u8]; 3]>, bool) {
        let mut seen = Vec::new();
        let is_whole = each_command(packed, |words| seen.push(words));
        (seen, is_whole)
    }

    fn packed(words: &[&[u8]]) -> Vec<u8> {
        redis::Cmd::new().arg(words).get_packed_command()
    }

    #[test]
    fn the_first_three_words_of_each_command_are_seen() {
        assert_eq!(read(b""), (vec![], true));
        assert_eq!(read(&packed(&[b"PING"])), (vec![[b"PING" as &[u8], b"", b""]], true));
        assert_eq!(read(&packed(&[b"SET", b"k", b""])), (vec![[b"SET" as &[u8], b"k", b""]], true));
        let long = packed(&[b"MSET", b"a", b"1", b"b", &[0xff; 100_000]]);
        assert_eq!(read(&long), (vec![[b"MSET" as &[u8], b"a", b"1"]], true));
        assert_eq!(read(b"*0\r\n*1\r\n$4\r\nPING\r\n"), (vec![[b"PING" as &[u8], b"", b""]], true));
    }

    #[test]
    fn a_pipeline_is_seen_command_by_command() {
        let mut pipeline = redis::pipe();
        pipeline.atomic().cmd("SELECT").arg(3).ignore().set("k", "v");
        let packed = pipeline.get_packed_pipeline();
        let (seen, is_whole) = read(&packed);
        let names: Vec<_> = seen.iter().map(|[name, first, _]| (*name, *first)).collect();
        let expected: [(&[u8], &[u8]); 4] = [(b"MULTI", b""), (b"SELECT", b"3"), (b"SET", b"k"), (b"EXEC", b"")];
        assert_eq!((&*names, is_whole), (&expected[..], true));
    }

    #[test]
    fn an_argument_may_look_like_a_command() {
        let packed = packed(&[b"SET", b"*1\r\n$4\r\nQUIT\r\n", b"\r\n"]);
        assert_eq!(read(&packed), (vec![[b"SET" as &[u8], b"*1\r\n$4\r\nQUIT\r\n", b"\r\n"]], true));
    }

    /// A pipeline that is cut anywhere shows the commands before the cut, and reports that it was not read to its end.
    #[test]
    fn what_is_cut_short_is_not_whole() {
        let (first, second) = (packed(&[b"GET", b"a"]), packed(&[b"DEL", b"b", b"c"]));
        let both = [first.clone(), second].concat();
        for end in 1..both.len() {
            let (seen, is_whole) = read(&both[..end]);
            assert_eq!((seen.len(), is_whole), (usize::from(end >= first.len()), end == first.len()), "cut at {end}");
        }
    }

    #[test]
    fn what_is_no_packed_command_is_not_whole() {
        for broken in [
            &b"PING\r\n"[..],
            b"\r\n",
            b"*\r\n",
            b"*-1\r\n",
            b"*one\r\n$4\r\nPING\r\n",
            b"*1\r\n$-1\r\n",
            b"*1\r\n:4\r\nPING\r\n",
            b"*1\r\n$3\r\nPING\r\n",
            b"*1\r\n$4\r\nPINGPONG",
            b"*1\r\n$18446744073709551615\r\nPING\r\n",
            b"*1\r\n$18446744073709551613\r\nPING\r\n",
            b"*1\r\n$18446744073709551616\r\nPING\r\n",
            b"*18446744073709551615\r\n$4\r\nPING\r\n",
            b"*1\r\n*1\r\n$4\r\nPING\r\n",
            b"*1\r\n$\xff\r\nPING\r\n",
        ] {
            assert_eq!(read(broken), (vec![], false), "{:?}", broken.escape_ascii().to_string());
        }
    }
}
