//! The errors of Milvus: what a caller of a verb gets, and what each proves.
//!
//! Every answer with a code proves that the server lives, so it cuts nothing. While the pool connects, a login that the
//! server does not take, and a database that it does not have, cannot be mended by trying again.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use reqwest::StatusCode;
use serde::de::IgnoredAny;

use crate::base::error::{BoxError, Error, Failure, OneLine, Source, Worded};
use crate::kinds::milvus::answer::{DONE, MilvusAnswer, code_of};
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::HttpStatusError;

/// An error that a Milvus server answered. It is the source of the [`Error::Operation`](crate::Error::Operation) that a
/// verb answers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MilvusError {
    /// The fault.
    pub fault: MilvusFault,
    /// The server's code for it.
    pub code: i32,
    /// The server's words. Empty for a login that it does not take, because it may quote parts of the token.
    pub message: String,
}

/// The fault of a request, by the server's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MilvusFault {
    /// There is no such collection or database.
    NotFound,
    /// The request asks for what cannot be, such as a vector of other dimensions, as far as the server has a code for it.
    Invalid,
    /// The server does not take the token, or the token's owner may not do this.
    Denied,
    /// The server takes no more at the moment. The request may be sent again later.
    Busy,
    /// Everything else. The server has one code for much of it, so the words alone say what it is.
    Other,
}

impl MilvusFault {
    fn of(code: i32) -> Self {
        match code {
            NO_COLLECTION | NO_DATABASE => MilvusFault::NotFound,
            // Not ready, unavailable, out of memory, too many requests, a limit on rates, no more writes.
            1..=4 | 8 | 9 => MilvusFault::Busy,
            1100..=1199 | 1801..=1899 => MilvusFault::Invalid,
            1400..=1499 | UNKNOWN_LOGIN => MilvusFault::Denied,
            _ => MilvusFault::Other,
        }
    }
}

const NO_COLLECTION: i32 = 100;
const NO_DATABASE: i32 = 800;
const UNKNOWN_LOGIN: i32 = 1800;

impl MilvusError {
    pub(super) fn new(code: i32, message: impl Into<String>) -> Self {
        let message = if code == UNKNOWN_LOGIN { String::new() } else { message.into() };
        MilvusError { fault: MilvusFault::of(code), code, message }
    }
}

impl fmt::Display for MilvusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered code {}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", OneLine(&self.message))?;
        }
        match self.code {
            UNKNOWN_LOGIN => write!(f, "; {SET_TOKEN}"),
            _ => Ok(()),
        }
    }
}

impl StdError for MilvusError {}

const SET_TOKEN: &str = "set `token`, or MILVUS_TOKEN, to `user:password` or to a key that it takes";
const SET_DATABASE: &str = "set `database`, or MILVUS_DATABASE, to one that it has";

/// The error of a verb, with the server's code as its source if the body of the answer has one.
pub(super) fn answered(error: Error) -> Error {
    let Error::Operation { resource, action, source } = &error else { return error };
    let Some(status) = source.downcast_ref::<HttpStatusError>() else { return error };
    let told = |body: &str| serde_json::from_str::<MilvusAnswer<IgnoredAny>>(body);
    // Something before the server has changed the status of an answer that is none of its errors.
    let Some(code) = told(status.raw.expose()).ok().map(|answer| answer.code).filter(|code| *code != DONE) else {
        return error;
    };
    // Words with a secret in them have left a note in the place of the body.
    let message = told(&status.body).map_or_else(|_withheld| status.body.clone(), |answer| answer.message);
    let source = Arc::new(MilvusError::new(code, message));
    Error::Operation { resource: Arc::clone(resource), action: action.clone(), source }
}

/// Whether this answer proves that nothing was done: it has a code for a request that was not begun, or a status that says
/// so. The server goes on with a request after it has told its own timeout.
pub(super) fn is_refused(error: &Error) -> bool {
    let Error::Operation { source, .. } = error else { return false };
    let is_refusal = |status: StatusCode| status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT;
    match (source.downcast_ref::<MilvusError>(), source.downcast_ref::<HttpStatusError>()) {
        (Some(told), _) => told.fault != MilvusFault::Other,
        (None, told) => told.is_some_and(|told| is_refusal(told.status)),
    }
}

/// The error of a verb that the server answered by a code that is an error, or by something else than its interface has.
pub(super) fn refused(link: &Link, action: &str, problem: impl Into<BoxError>) -> Error {
    Error::Operation {
        resource: Arc::clone(link.name()),
        action: action.to_owned(),
        source: Source::from(problem.into()),
    }
}

/// Judges an answer to the question for all collections, by its beginning.
pub(super) fn judge(beginning: &[u8]) -> Result<(), Failure> {
    let Some(code) = code_of(beginning) else {
        return Err(Failure::refused("the answer is none of Milvus's; see that `url` is that of its REST interface"));
    };
    let error = MilvusError::new(code, "");
    match code {
        DONE => Ok(()),
        NO_DATABASE => {
            let text = format!("{error}, which is for a database that it does not have; {SET_DATABASE}");
            Err(Failure::refused(Worded::new(text, error)).with_permanent(true))
        }
        _ if error.fault == MilvusFault::Denied => Err(Failure::limited(error)),
        _ => Err(Failure::refused(error)),
    }
}

/// The failure of a ping, with the remedy for a login that the server does not take. A token of a file may just be
/// replaced, so then it may pass.
pub(super) fn of_ping(failure: Failure, is_by_file: bool) -> Failure {
    let source = failure.source();
    let status = source.downcast_ref::<HttpStatusError>().map(|error| error.status);
    let code = source.downcast_ref::<MilvusError>().map(|error| error.code);
    let text = match (status, code) {
        (Some(StatusCode::UNAUTHORIZED), _) => format!("{failure}; {SET_TOKEN}"),
        (_, Some(UNKNOWN_LOGIN)) => failure.to_string(),
        _ => return failure,
    };
    Failure::limited(Worded::new(text, failure.into_source())).with_permanent(!is_by_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_proves_that_the_server_lives() {
        assert!(judge(br#"{"code":200,"data":[]}"#).is_ok());
        for (answer, is_permanent, words) in [
            (&br#"{"code":800,"message":"x"}"#[..], true, "MILVUS_DATABASE"),
            (br#"{"code":1800,"message":"x"}"#, false, "MILVUS_TOKEN"),
            (br#"{"code":1,"message":"x"}"#, false, "code 1"),
            (b"hello", false, "REST"),
        ] {
            let failure = judge(answer).unwrap_err();
            assert_eq!(failure.is_permanent(), is_permanent, "{failure}");
            assert!(failure.to_string().contains(words), "{failure}");
        }
        let unknown = || judge(br#"{"code":1800"#).unwrap_err();
        assert!(of_ping(unknown(), false).is_permanent() && !of_ping(unknown(), true).is_permanent());
        assert_eq!(MilvusError::new(100, "").fault, MilvusFault::NotFound);
        assert_eq!(MilvusError::new(65_535, "").fault, MilvusFault::Other);
        let denied = MilvusError::new(1800, "no such token s3cr…");
        assert!(!denied.to_string().contains("s3cr"), "{denied}");
    }

    #[test]
    fn a_404_of_a_proxy_is_no_word_of_the_servers() {
        let told = |body: &str| {
            let source = HttpStatusError::new(StatusCode::NOT_FOUND, body.to_owned(), &["s3cret"]);
            answered(Error::Operation { resource: "m".into(), action: "a".to_owned(), source: Arc::new(source) })
        };
        let Error::Operation { source, .. } = told("<html>no such site</html>") else { panic!("an operation") };
        assert!(source.is::<HttpStatusError>(), "{source}");
        // The code counts although the words are withheld.
        for message in ["no such collection", "s3cret is none"] {
            let body = format!(r#"{{"code":100,"message":"{message}"}}"#);
            let Error::Operation { source, .. } = told(&body) else { panic!("an operation") };
            assert_eq!(source.downcast_ref::<MilvusError>().map(|told| told.fault), Some(MilvusFault::NotFound));
            assert!(!source.to_string().contains("s3cret"), "{source}");
        }
    }
}
