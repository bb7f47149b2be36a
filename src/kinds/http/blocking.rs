//! A client of HTTP for threads, which block on the futures of the one for tasks.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use reqwest::Method;
use serde::de::DeserializeOwned;

use crate::base::error::Error;
use crate::kinds::http::handle::Http as AsyncHttp;
use crate::lifecycle::requests::{HttpRequest, HttpResponse as AsyncResponse, Requests};

/// A client of HTTP for threads. Cheap to clone.
///
/// ```no_run
/// # fn main() -> Result<(), resource_pool::Error> {
/// use resource_pool::blocking::ResourcePool;
///
/// let http = ResourcePool::global().http()?;
/// let bars = http.send(http.get("/bars").query(&[("code", "000001")]))?.checked()?;
/// println!("{}", bars.text()?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Http {
    tasks: AsyncHttp,
    requests: Requests,
}

impl Http {
    pub(super) fn new(requests: &Requests) -> Self {
        Http { tasks: AsyncHttp::new(requests), requests: requests.clone() }
    }

    /// A request by this method. `url` is a path below the `url` of the configuration, or a whole URL. Nothing is sent
    /// until [`send`](Self::send), which tells a mistake in the URL as well.
    pub fn request(&self, method: Method, url: &str) -> HttpRequest {
        self.tasks.request(method, url)
    }

    /// A GET, which is not sent yet.
    pub fn get(&self, url: &str) -> HttpRequest {
        self.tasks.get(url)
    }

    /// A POST, which is not sent yet.
    pub fn post(&self, url: &str) -> HttpRequest {
        self.tasks.post(url)
    }

    /// A PUT, which is not sent yet.
    pub fn put(&self, url: &str) -> HttpRequest {
        self.tasks.put(url)
    }

    /// A PATCH, which is not sent yet.
    pub fn patch(&self, url: &str) -> HttpRequest {
        self.tasks.patch(url)
    }

    /// A DELETE, which is not sent yet.
    pub fn delete(&self, url: &str) -> HttpRequest {
        self.tasks.delete(url)
    }

    /// A HEAD, which is not sent yet.
    pub fn head(&self, url: &str) -> HttpRequest {
        self.tasks.head(url)
    }

    /// Sends a request, and blocks this thread until the head of the answer has come, whatever its status.
    ///
    /// # Errors
    /// Those of [the async method](HttpRequest::send), and [`Error::InAsyncContext`] on a current-thread runtime.
    pub fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        let answer = self.requests.wait(request.send())??;
        Ok(HttpResponse { answer, requests: self.requests.clone() })
    }

    /// The driver's own client, as [the one for tasks](crate::Http::raw_client).
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Forked`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.tasks.raw_client()
    }
}

/// The answer to a request, for threads. As an iterator it gives the parts of the body, and blocks for the next one.
/// Everything that is said of the [async one](crate::HttpResponse) holds here as well. On a current-thread runtime each
/// call that waits answers [`Error::InAsyncContext`].
#[derive(Debug)]
#[must_use = "the request is in flight until the body has been read or this drops"]
pub struct HttpResponse {
    answer: AsyncResponse,
    requests: Requests,
}

impl HttpResponse {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.answer.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.answer.headers()
    }

    /// The same answer if its status is no error, which means below 400.
    ///
    /// # Errors
    /// [`Error::Operation`], whose source is an [`HttpStatusError`](crate::HttpStatusError).
    pub fn checked(self) -> Result<Self, Error> {
        let HttpResponse { answer, requests } = self;
        let answer = requests.wait(answer.checked())??;
        Ok(HttpResponse { answer, requests })
    }

    /// The whole body.
    ///
    /// # Errors
    /// Those of [the async method](crate::HttpResponse::bytes).
    pub fn bytes(self) -> Result<Bytes, Error> {
        self.requests.wait(self.answer.bytes())?
    }

    /// The whole body as a text. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// Those of [the async method](crate::HttpResponse::text).
    pub fn text(self) -> Result<String, Error> {
        self.requests.wait(self.answer.text())?
    }

    /// The whole body, which is JSON, as a `T`.
    ///
    /// # Errors
    /// Those of [the async method](crate::HttpResponse::json).
    pub fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        self.requests.wait(self.answer.json())?
    }
}

impl Iterator for HttpResponse {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.requests.wait(self.answer.chunk()) {
            Ok(part) => part.transpose(),
            // The answer ends here, whether a parent has it or this thread must not block. No iterator goes on for ever.
            Err(error) => self.answer.leave().then_some(Err(error)),
        }
    }
}
