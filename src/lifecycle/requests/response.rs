//! The answer to a request, whose body may still be on its way.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode, response};
use http_body::{Body as _, Frame};
use reqwest::{ResponseBuilderExt as _, Url};
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::time::Sleep;

use crate::base::error::{Error, Worded, redacted};
use crate::base::process::ForkGuarded;
use crate::base::runtime::timer;
use crate::lifecycle::requests::core::{GivenUp, InFlightRequest, RequestClient, RequestCore};
use crate::lifecycle::requests::errors::{HttpCall, HttpStatusError};

/// The answer to a request. Its head has come, and its body is read by one of the methods, or as a
/// [`Stream`] of its parts. The request counts as in flight until the body has ended, or this drops.
///
/// Closing waits for the body within the drain, and then ends it with [`Error::Closed`]. A server that is silent for
/// longer than `read_timeout` ends it with [`Error::Timeout`], and so does a request that takes longer than
/// `operation_timeout` as a whole. In a forked child it answers [`Error::Forked`], and the parent reads on. A body that
/// breaks off ends with an error too, so an end without one is the whole answer. A server that tells neither a length nor
/// sends chunks says that its answer is whole by closing the connection, which a break looks like. For a request that may
/// do harm if it is sent twice, these errors are the cause of an [`Error::OutcomeUnknown`].
#[must_use = "the request is in flight until the body has been read or this drops"]
pub struct HttpResponse {
    head: response::Parts,
    /// The URL that answered, after all redirects.
    url: Url,
    /// `None` once it has ended. A forked child leaves it alone, because its socket is the parent's.
    rest: Option<ForkGuarded<RestOfBody>>,
    core: Arc<RequestCore>,
    client: Arc<RequestClient>,
    call: HttpCall,
}

/// The rest of a body.
struct RestOfBody {
    body: reqwest::Body,
    in_flight: InFlightRequest,
    /// Resolves when the switch is thrown.
    thrown: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Resolves when the server has been silent for too long. `None` while the caller waits for nothing, because the time
    /// that a slow reader takes does not count.
    late: Option<Pin<Box<Sleep>>>,
}

/// The most bytes of an error's body that are read. They are twice as many as its error shows, so that a secret that lies
/// across the end of those is known as one.
const LONGEST_ERROR: usize = 8192;

impl HttpResponse {
    pub(super) fn new(
        core: Arc<RequestCore>,
        client: Arc<RequestClient>,
        call: HttpCall,
        in_flight: InFlightRequest,
        answer: reqwest::Response,
    ) -> Self {
        let url = answer.url().clone();
        let (head, body) = http::Response::from(answer).into_parts();
        let switch = in_flight.switch.clone();
        let thrown = Box::pin(async move { switch.wait().await });
        let rest = Some(ForkGuarded::new(RestOfBody { body, in_flight, thrown, late: None }));
        let mut response = HttpResponse { head, url, rest, core, client, call };
        response.end_if_read();
        response
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The same answer if its status is no error, which means below 400. Otherwise its body is read for the error.
    ///
    /// # Errors
    /// [`Error::Operation`], whose source is a [`HttpStatusError`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn checked(self) -> Result<Self, Error> {
        if self.status().as_u16() < 400 { Ok(self) } else { Err(self.status_error().await) }
    }

    /// The same answer if its status is one of success. A server of the kinds that ask this redirects nobody, so a
    /// redirect is the word of something before it.
    ///
    /// # Errors
    /// Those of [`checked`](Self::checked).
    pub(crate) async fn succeeded(self) -> Result<Self, Error> {
        if self.status().is_success() { Ok(self) } else { Err(self.status_error().await) }
    }

    async fn status_error(mut self) -> Error {
        let text = self.beginning().await;
        let retry_after = self.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        let error = HttpStatusError::new(self.status(), text, &self.client.secrets());
        self.call.refused(&self.core.link, HttpStatusError { retry_after, ..error })
    }

    /// The beginning of the body as a text. A body that breaks off may end within a secret, so it is left out.
    async fn beginning(&mut self) -> String {
        let mut body = Vec::new();
        while body.len() < LONGEST_ERROR {
            match self.part().await {
                Some(Ok(part)) => body.extend_from_slice(&part),
                Some(Err(_told_by_the_status)) => return String::new(),
                None => break,
            }
        }
        body.truncate(LONGEST_ERROR);
        String::from_utf8_lossy(&body).into_owned()
    }

    /// The next part of the body. `None` once the whole body has come.
    ///
    /// # Errors
    /// Those of [the type](HttpResponse). No part comes after an error.
    ///
    /// # Cancel safety
    /// Cancel-safe: no part is lost.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.part().await.transpose()
    }

    /// The whole body.
    ///
    /// # Errors
    /// Those of [the type](HttpResponse), and [`Error::Operation`] if it has more bytes than `max_body`.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn bytes(mut self) -> Result<Bytes, Error> {
        let Some(first) = self.chunk().await? else { return Ok(Bytes::new()) };
        let max = self.client.settings.max_body;
        if self.rest.is_none() && first.len() <= max {
            return Ok(first);
        }
        let mut body = Vec::from(first);
        while body.len() <= max {
            match self.chunk().await? {
                Some(part) => body.extend_from_slice(&part),
                None => return Ok(body.into()),
            }
        }
        Err(self.call.refused(
            &self.core.link,
            format!("the answer has over {max} bytes; raise `max_body`, or read it in parts"),
        ))
    }

    /// The whole body as a text. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// Those of [`bytes`](Self::bytes).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn text(self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes().await?).into_owned())
    }

    /// The whole body, which is JSON, as a `T`.
    ///
    /// # Errors
    /// Those of [`bytes`](Self::bytes), and [`Error::Operation`] if it is no JSON of a `T`.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let (core, client, call) = (Arc::clone(&self.core), Arc::clone(&self.client), self.call.clone());
        let body = self.bytes().await?;
        serde_json::from_slice(&body).map_err(|error| {
            let text = format!("the answer is no JSON of the expected form: {error}");
            call.refused(&core.link, redacted(Worded::new(text, error), true, &client.secrets(), &[]))
        })
    }

    /// Ends the answer here, because its caller needs no more of it. Closing then counts the request as answered, and not
    /// as given up. The connection closes unless the whole body has come.
    pub fn finish(mut self) {
        self.end();
    }

    /// Leaves the answer alone from here on, as a forked child does. Answers whether its body had not ended.
    pub(crate) fn leave(&mut self) -> bool {
        self.rest.take().is_some()
    }

    /// The same answer as one of the driver's.
    pub(super) fn into_driver(mut self) -> reqwest::Response {
        let (empty, ()) = http::Response::new(()).into_parts();
        let mut head = std::mem::replace(&mut self.head, empty);
        // The driver's errors of this answer name its URL.
        if let Ok(with_url) = http::Response::builder().url(self.url.clone()).body(()) {
            head.extensions.extend(with_url.into_parts().0.extensions);
        }
        http::Response::from_parts(head, reqwest::Body::wrap(self)).into()
    }

    async fn part(&mut self) -> Option<Result<Bytes, Error>> {
        poll_fn(|context| self.poll_part(context)).await
    }

    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            if let Err(forked) = ForkGuarded::check(rest) {
                self.rest = None;
                return Poll::Ready(Some(Err(forked)));
            }
            let limit = self.client.settings.read_timeout;
            let polled = match ready!(rest.poll(&self.core.runtime, limit, context)) {
                Ok(polled) => polled,
                Err(given_up) => {
                    let error = match given_up {
                        GivenUp::Cut => self.call.cut(&self.core.link, self.core.why(&rest.in_flight.switch)),
                        GivenUp::Late => self.call.late(&self.core.link),
                    };
                    self.rest = None;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            match polled {
                Some(Ok(frame)) => {
                    // Trailers are no part of the body.
                    let part = frame.into_data().ok().filter(|part| !part.is_empty());
                    self.end_if_read();
                    if let Some(part) = part {
                        return Poll::Ready(Some(Ok(part)));
                    }
                }
                Some(Err(error)) => {
                    self.rest = None;
                    let failed = self.call.failed(&self.core.link, &self.client.settings, error);
                    return Poll::Ready(Some(Err(failed)));
                }
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Frees the place of a request whose body has come to its end, before its caller has asked for more.
    fn end_if_read(&mut self) {
        if self.rest.as_ref().is_some_and(|rest| rest.body.is_end_stream()) {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(mut rest) = self.rest.take().filter(|rest| ForkGuarded::check(rest).is_ok()) {
            rest.in_flight.busy.finish(true);
        }
    }
}

type NextFrame = Option<reqwest::Result<Frame<Bytes>>>;

impl RestOfBody {
    /// Polls for the next frame until it has come, the switch is thrown, the server has been silent for so long, or the
    /// whole request has taken too long. The body is not polled after a cut, because timers of a runtime that has ended
    /// must not be.
    fn poll(
        &mut self,
        runtime: &Handle,
        limit: Duration,
        context: &mut Context<'_>,
    ) -> Poll<Result<NextFrame, GivenUp>> {
        if self.in_flight.switch.is_cut() {
            return Poll::Ready(Err(GivenUp::Cut));
        }
        if self.in_flight.left(limit).is_zero() {
            return Poll::Ready(Err(GivenUp::Late));
        }
        let entered = runtime.enter();
        let polled = Pin::new(&mut self.body).poll_frame(context);
        drop(entered);
        if let Poll::Ready(frame) = polled {
            self.late = None;
            return Poll::Ready(Ok(frame));
        }
        if self.thrown.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(GivenUp::Cut));
        }
        let late = self.late.get_or_insert_with(|| Box::pin(timer(self.in_flight.left(limit))));
        late.as_mut().poll(context).map(|()| Err(GivenUp::Late))
    }
}

impl Stream for HttpResponse {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_part(context)
    }
}

impl http_body::Body for HttpResponse {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_part(context).map(|part| part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.rest.as_ref().map_or_else(|| http_body::SizeHint::with_exact(0), |rest| rest.body.size_hint())
    }
}

impl fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("HttpResponse");
        shown.field("action", &self.call.action).field("status", &self.head.status);
        shown.field("has_ended", &self.rest.is_none()).finish_non_exhaustive()
    }
}

/// The time in a header `Retry-After`: seconds, or until a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 0 "), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(retry_after(&date).is_some_and(|left| (90..=100).contains(&left.as_secs())), "{date}");
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-1"), None);
    }
}
