//! The sessions of browsers, which stand for a token that was typed in once.
//!
//! A session is 256 random bits in a cookie that scripts cannot read. There are so many at most, and each ends in time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

/// The random bits of a session, which its cookie has in hexadecimal digits.
pub(super) type SessionId = [u8; 32];

/// The sessions that are open.
pub(super) struct Sessions {
    most: usize,
    lasts: Duration,
    /// The oldest first.
    open: Mutex<Vec<(SessionId, Instant)>>,
}

impl Sessions {
    pub(super) fn new(most: usize, lasts: Duration) -> Self {
        Sessions { most: most.max(1), lasts, open: Mutex::default() }
    }

    /// Begins a session. The oldest ends if there would be too many.
    ///
    /// # Errors
    /// When the system gives no random bits.
    pub(super) fn begin(&self) -> Result<SessionId, getrandom::Error> {
        let mut id = [0; 32];
        getrandom::fill(&mut id)?;
        let mut open = self.open.lock();
        open.retain(|(_, began)| began.elapsed() < self.lasts);
        if open.len() >= self.most {
            open.remove(0);
        }
        open.push((id, Instant::now()));
        Ok(id)
    }

    /// Whether this session is open. Looks at all of them, so that the time does not tell which one is nearly it.
    pub(super) fn has(&self, id: &SessionId) -> bool {
        let open = self.open.lock();
        let mut found = false;
        for (one, began) in open.iter() {
            found |= bool::from(one.ct_eq(id)) && began.elapsed() < self.lasts;
        }
        found
    }

    pub(super) fn end(&self, id: &SessionId) {
        self.open.lock().retain(|(one, _)| !bool::from(one.ct_eq(id)));
    }
}

/// The digits of a session, for its cookie.
pub(super) fn digits(id: &SessionId) -> String {
    id.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The session with these digits. `None` if they are none.
pub(super) fn of_digits(text: &str) -> Option<SessionId> {
    let mut id = [0; 32];
    if text.len() != 2 * id.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_few_end_in_time_and_are_not_alike() {
        let sessions = Sessions::new(2, Duration::from_secs(3600));
        let ids = [(); 3].map(|()| sessions.begin().unwrap());
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        assert_eq!(ids.map(|id| sessions.has(&id)), [false, true, true], "the oldest had to go");
        sessions.end(&ids[1]);
        assert_eq!(ids.map(|id| sessions.has(&id)), [false, false, true]);
        assert!(!sessions.has(&[0; 32]));
        let short = Sessions::new(2, Duration::ZERO);
        let id = short.begin().unwrap();
        assert!(!short.has(&id), "its time is over");
    }

    #[test]
    fn digits_are_the_session_and_nothing_else_is() {
        let id = Sessions::new(1, Duration::from_secs(1)).begin().unwrap();
        let text = digits(&id);
        assert_eq!((text.len(), of_digits(&text)), (64, Some(id)));
        for none in ["", &text[1..], &format!("{text}0"), &"+f".repeat(32), &"ä".repeat(32)] {
            assert_eq!(of_digits(none), None, "{none}");
        }
    }
}
