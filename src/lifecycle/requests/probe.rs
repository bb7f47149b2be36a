//! The question whether a server of HTTP is healthy, asked over connections of its own.
//!
//! Health checks and the prober ask it. It takes no place of the users' requests, and no drain waits for it. Its client
//! lives on the prober's runtime, so that user code that hogs the workers does not delay it.
//!
//! Locks: `client` is held to read or replace it, and nothing is awaited under it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::Method;
use parking_lot::RwLock;
use reqwest::{Request, StatusCode, Url};

use crate::base::error::{Failure, redacted};
use crate::base::runtime::{background, inside};
use crate::lifecycle::requests::core::RequestClient;
use crate::lifecycle::requests::errors::{HttpStatusError, tls_failure};
use crate::lifecycle::requests::redirect::{SendError, SendFault};
use crate::lifecycle::requests::settings::RequestSettings;

/// Asks a server whether it is healthy, by HEAD, or by GET if it does not take that.
pub struct RequestProbe {
    client: RwLock<Arc<RequestClient>>,
    url: Url,
    /// Whether the server takes no HEAD. Relaxed suffices, because a question that misses it only costs one more.
    by_get: AtomicBool,
    /// Whether a redirect is no health either.
    is_strict: bool,
}

/// The most bytes of an answer that are read, so that its connection can be used again.
const LONGEST: usize = 64 * 1024;

impl RequestProbe {
    /// Asks this URL, which is a path below the settings' base or a whole URL.
    ///
    /// # Errors
    /// The URL or the settings cannot be used.
    pub fn new(settings: RequestSettings, url: &str) -> Result<Self, Failure> {
        let client = RequestClient::new(RequestSettings { max_idle: 1, ..settings })?;
        let url = client.url(url).map_err(Failure::permanent)?;
        let client = RwLock::new(Arc::new(client));
        Ok(RequestProbe { client, url, by_get: AtomicBool::new(false), is_strict: false })
    }

    /// Asks with these settings from now on, as after a password has changed. The URL stays.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn replace(&self, settings: RequestSettings) -> Result<(), Failure> {
        let client = Arc::new(RequestClient::new(RequestSettings { max_idle: 1, ..settings })?);
        let replaced = std::mem::replace(&mut *self.client.write(), client);
        drop(replaced);
        Ok(())
    }

    /// Asks by GET from now on.
    pub fn by_get(self) -> Self {
        self.by_get.store(true, Ordering::Relaxed);
        self
    }

    /// Counts a redirect that is not followed as an answer of something else than the server, which is no health.
    pub fn strictly(self) -> Self {
        RequestProbe { is_strict: true, ..self }
    }

    /// Asks, and judges the answer. A status below 400 is health. 401, 403 and 429 prove that the server lives and
    /// withholds the answer from this user, and any other one that it cannot serve. The source of these failures is an
    /// [`HttpStatusError`]. No answer is a transient failure. A HEAD that the server does not know is followed by a GET.
    ///
    /// # Errors
    /// The server is not healthy, or did not answer.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn ask(&self) -> Result<(), Failure> {
        if !self.by_get.load(Ordering::Relaxed) {
            let (status, _no_body) = self.exchange(Method::HEAD).await?;
            let takes_none = matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED);
            // Many servers route GET alone, and answer 404 to HEAD.
            if !takes_none && status != StatusCode::NOT_FOUND {
                return self.judge(status, &[]);
            }
            let answered = self.read().await;
            if takes_none || answered.is_ok() {
                self.by_get.store(true, Ordering::Relaxed);
            }
            return answered.map(drop);
        }
        self.read().await.map(drop)
    }

    /// Asks by GET, judges the status as [`ask`](Self::ask) does, and gives the body, at most 64 KiB of it.
    ///
    /// # Errors
    /// Those of [`ask`](Self::ask).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn read(&self) -> Result<Bytes, Failure> {
        let (status, body) = self.exchange(Method::GET).await?;
        // A server may quote parts of a login that it does not know.
        let told = if status == StatusCode::UNAUTHORIZED { &[] } else { &*body };
        self.judge(status, told).map(|()| body)
    }

    fn judge(&self, status: StatusCode, body: &[u8]) -> Result<(), Failure> {
        if status.is_success() || status.as_u16() < 400 && !self.is_strict {
            return Ok(());
        }
        let client = Arc::clone(&self.client.read());
        let error = HttpStatusError::new(status, String::from_utf8_lossy(body).into_owned(), &client.secrets());
        Err(match status {
            StatusCode::UNAUTHORIZED => Failure::limited(error).with_permanent(true),
            StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Failure::limited(error),
            _ => Failure::refused(error),
        })
    }

    async fn exchange(&self, method: Method) -> Result<(StatusCode, Bytes), Failure> {
        let client = Arc::clone(&self.client.read());
        let asked = async {
            let mut answer = client.execute(Request::new(method, self.url.clone())).await?;
            let mut body = Vec::new();
            while body.len() < LONGEST
                && let Some(part) = answer.chunk().await.map_err(broken_off)?
            {
                body.extend_from_slice(&part);
            }
            body.truncate(LONGEST);
            Ok((answer.status(), body.into()))
        };
        inside(background()?, asked).await.map_err(|SendError { cause, .. }| match cause {
            SendFault::Refused { problem, .. } => Failure::refused(problem),
            SendFault::Driver(error) => {
                let error = error.without_url();
                tls_failure(&error).unwrap_or_else(|| Failure::transient(redacted(error, true, &client.secrets(), &[])))
            }
        })
    }
}

fn broken_off(error: reqwest::Error) -> SendError {
    SendError { cause: SendFault::Driver(error), was_sent: true }
}

impl fmt::Debug for RequestProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestProbe").finish_non_exhaustive()
    }
}
