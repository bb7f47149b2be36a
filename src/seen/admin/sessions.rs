//! The sessions of browsers, which stand for a token that was typed in once.
//!
//! A session is 256 random bits in a cookie that scripts cannot read. There are so many at most, and each ends in time,
//! or with the token that it was begun with.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::seen::admin::bucket::Bucket;
use crate::seen::admin::limits::AdminLimits;
use crate::seen::admin::token::TokenVersion;

/// The random bits of a session, which its cookie has in hexadecimal digits.
pub(super) type SessionId = [u8; 32];

/// The sessions that are open.
pub(super) struct Sessions {
    most: usize,
    lasts: Duration,
    requests_per_second: u32,
    /// The sessions from the oldest to the newest.
    open: Mutex<Vec<BrowserSession>>,
}

struct BrowserSession {
    id: SessionId,
    began: Instant,
    /// The token that was typed in. `None` if the admin has no token.
    token: Option<TokenVersion>,
    /// The session's own requests, so that strangers behind the same proxy cannot use them up.
    requests: Bucket,
}

impl Sessions {
    pub(super) fn new(limits: &AdminLimits) -> Self {
        let AdminLimits { sessions, session: lasts, requests: requests_per_second, .. } = *limits;
        Sessions { most: sessions.max(1), lasts, requests_per_second, open: Mutex::default() }
    }

    /// Begins a session by this token. The oldest session ends if there would be too many. A token that has changed
    /// since it was typed in begins none, and ends none of the new token.
    ///
    /// # Errors
    /// When the system gives no random bits.
    pub(super) fn begin(&self, token: Option<TokenVersion>) -> Result<SessionId, getrandom::Error> {
        let mut id = [0; 32];
        getrandom::fill(&mut id)?;
        let mut open = self.open.lock();
        let newest = open.iter().map(|session| session.token).fold(token, Option::max);
        open.retain(|session| self.is_open(session, newest));
        if token != newest {
            return Ok(id);
        }
        if open.len() >= self.most {
            open.remove(0);
        }
        let requests = Bucket::of_requests(self.requests_per_second);
        open.push(BrowserSession { id, began: Instant::now(), token, requests });
        Ok(id)
    }

    /// Whether this session is open while the admin has this token.
    pub(super) fn has(&self, id: &SessionId, token: Option<TokenVersion>) -> bool {
        self.find(&mut self.open.lock(), id, token).is_some()
    }

    /// Takes one request off the number that this session may make, and tells whether there was one left. `None` if the
    /// session is not open.
    pub(super) fn request(&self, id: &SessionId, token: Option<TokenVersion>) -> Option<bool> {
        self.find(&mut self.open.lock(), id, token).map(|session| session.requests.take())
    }

    pub(super) fn end(&self, id: &SessionId) {
        self.open.lock().retain(|session| !bool::from(session.id.ct_eq(id)));
    }

    /// The open session with this id. Looks at all of them, so that the time does not tell which one is nearly it.
    fn find<'a>(
        &self,
        open: &'a mut [BrowserSession],
        id: &SessionId,
        token: Option<TokenVersion>,
    ) -> Option<&'a mut BrowserSession> {
        let mut found = None;
        for session in open {
            if bool::from(session.id.ct_eq(id)) {
                found = Some(session);
            }
        }
        found.filter(|session| self.is_open(session, token))
    }

    fn is_open(&self, session: &BrowserSession, token: Option<TokenVersion>) -> bool {
        session.token == token && session.began.elapsed() < self.lasts
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

    fn sessions(most: usize, lasts: Duration) -> Sessions {
        Sessions::new(&AdminLimits { sessions: most, session: lasts, requests: 1, ..AdminLimits::default() })
    }

    #[test]
    fn sessions_are_few_end_in_time_and_are_not_alike() {
        let sessions_of_an_hour = sessions(2, Duration::from_secs(3600));
        let has = |id| sessions_of_an_hour.has(&id, None);
        let ids = [(); 3].map(|()| sessions_of_an_hour.begin(None).unwrap());
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        assert_eq!(ids.map(has), [false, true, true], "the oldest had to go");
        sessions_of_an_hour.end(&ids[1]);
        assert_eq!(ids.map(has), [false, false, true]);
        assert!(!has([0; 32]));
        let short = sessions(2, Duration::ZERO);
        let id = short.begin(None).unwrap();
        assert!(!short.has(&id, None), "its time is over");
    }

    #[test]
    fn a_session_is_open_as_long_as_its_token_is_the_token() {
        let sessions = sessions(2, Duration::from_secs(3600));
        let [old, new] = [Some(TokenVersion::default()), Some(TokenVersion::default().next())];
        let id = sessions.begin(old).unwrap();
        assert!(sessions.has(&id, old) && !sessions.has(&id, new));
        assert_eq!(sessions.request(&id, new), None);
        sessions.begin(new).unwrap();
        assert_eq!(sessions.open.lock().len(), 1, "the session of the old token takes no place");
    }

    #[test]
    fn a_token_that_changed_while_it_was_typed_in_ends_no_session_of_the_new_one() {
        let sessions = sessions(2, Duration::from_secs(3600));
        let [old, new] = [Some(TokenVersion::default()), Some(TokenVersion::default().next())];
        let open = [(); 2].map(|()| sessions.begin(new).unwrap());
        let late = sessions.begin(old).unwrap();
        assert!(open.iter().all(|id| sessions.has(id, new)) && !sessions.has(&late, new));
    }

    #[test]
    fn each_session_has_requests_of_its_own() {
        let sessions = sessions(2, Duration::from_secs(3600));
        let [one, other] = [(); 2].map(|()| sessions.begin(None).unwrap());
        assert_eq!([(); 3].map(|()| sessions.request(&one, None)), [Some(true), Some(true), Some(false)]);
        assert_eq!(sessions.request(&other, None), Some(true));
    }

    #[test]
    fn digits_are_the_session_and_nothing_else_is() {
        let id = sessions(1, Duration::from_secs(1)).begin(None).unwrap();
        let text = digits(&id);
        assert_eq!((text.len(), of_digits(&text)), (64, Some(id)));
        for none in ["", &text[1..], &format!("{text}0"), &"+f".repeat(32), &"ä".repeat(32)] {
            assert_eq!(of_digits(none), None, "{none}");
        }
    }
}
