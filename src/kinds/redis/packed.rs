//! Reads the commands of the driver that are packed as the server takes them, in place.

/// Shows each command of a packed pipeline: its name and its first two arguments, where it has them.
pub(super) fn each_command(mut packed: &[u8], mut see: impl FnMut([&[u8]; 3])) {
    while let Some(arguments) = header(&mut packed, b'*') {
        let mut words: [&[u8]; 3] = [b""; 3];
        for index in 0..arguments {
            let Some(length) = header(&mut packed, b'$').filter(|length| length + 2 <= packed.len()) else { return };
            if let Some(word) = words.get_mut(index) {
                *word = &packed[..length];
            }
            packed = &packed[length + 2..];
        }
        if arguments > 0 {
            see(words);
        }
    }
}

/// Takes a line such as `*3` or `$5` off the front.
fn header(packed: &mut &[u8], mark: u8) -> Option<usize> {
    let end = packed.windows(2).position(|two| two == b"\r\n")?;
    let number = std::str::from_utf8(packed[..end].strip_prefix(&[mark])?).ok()?.parse().ok()?;
    *packed = &packed[end + 2..];
    Some(number)
}
