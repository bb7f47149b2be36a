//! Writing to the standard error, from wherever something must be said: a closer's thread, or the end of the process.

use std::time::{Duration, Instant};

/// How many bytes are written at once. A writable pipe takes this many.
#[cfg(unix)]
const WORD: usize = 512;
/// How long a text may take on its way. A pipe that nobody reads never takes it. Comes on top of the close budget.
#[cfg(unix)]
const TELLING: Duration = Duration::from_millis(500);

/// Writes a text to the standard error. It does without the standard library's handle, whose thread-locals may be gone,
/// and whose lock may be held by a thread that waits for a reader. The rest of a text that nobody reads in time is left
/// unsaid.
#[cfg(unix)]
#[allow(unsafe_code, reason = "write has no safe form that needs no thread-local")]
pub(crate) fn tell(text: &str) {
    let until = Instant::now() + TELLING;
    let mut left = text.as_bytes();
    while let Some(word) = left.chunks(WORD).next() {
        let limit = until.saturating_duration_since(Instant::now()).as_millis();
        let mut stderr = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one `pollfd`, and the pointer and length of a live slice.
        let written = unsafe {
            match libc::poll(&mut stderr, 1, i32::try_from(limit).unwrap_or(i32::MAX)) {
                1 => libc::write(2, word.as_ptr().cast(), word.len()),
                // The poll was interrupted, or nobody has read.
                taken => taken as isize,
            }
        };
        match usize::try_from(written) {
            Ok(written) if written > 0 => left = &left[written..],
            Err(_) if was_interrupted() => {}
            _ => return,
        }
    }
}

#[cfg(unix)]
fn was_interrupted() -> bool {
    std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}

#[cfg(not(unix))]
pub(crate) fn tell(text: &str) {
    use std::io::Write;

    let _ = std::io::stderr().write_all(text.as_bytes());
}
