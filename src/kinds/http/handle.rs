//! The handle of a client, and its verbs for tasks.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;

use crate::base::error::Error;
use crate::kinds::http::blocking;
use crate::kinds::rest::leased;
use crate::lifecycle::requests::{HttpRequest, RequestProbe, Requests};

/// A client of HTTP. Cheap to clone.
///
/// A request counts as work until the body of its answer has ended. Closing waits for it within the drain, and then ends
/// it with an error. There are limits for connecting, for a silent server, and for the number of requests at a time.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// use resource_pool::ResourcePool;
///
/// let http = ResourcePool::global().http().await?;
/// let answer = http.post("/orders").json(&[("code", "000001")]).send().await?.checked().await?;
/// println!("{}", answer.status());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Http {
    requests: Requests,
}

impl Http {
    pub(super) fn new(requests: &Requests) -> Self {
        Http { requests: requests.clone() }
    }

    /// A request by this method. `url` is a path below the `url` of the configuration, or a whole URL. Nothing is sent
    /// until [`send`](HttpRequest::send), which tells a mistake in the URL as well.
    pub fn request(&self, method: Method, url: &str) -> HttpRequest {
        self.requests.request(method, url)
    }

    /// A GET, which is not sent yet.
    pub fn get(&self, url: &str) -> HttpRequest {
        self.request(Method::GET, url)
    }

    /// A POST, which is not sent yet.
    pub fn post(&self, url: &str) -> HttpRequest {
        self.request(Method::POST, url)
    }

    /// A PUT, which is not sent yet.
    pub fn put(&self, url: &str) -> HttpRequest {
        self.request(Method::PUT, url)
    }

    /// A PATCH, which is not sent yet.
    pub fn patch(&self, url: &str) -> HttpRequest {
        self.request(Method::PATCH, url)
    }

    /// A DELETE, which is not sent yet.
    pub fn delete(&self, url: &str) -> HttpRequest {
        self.request(Method::DELETE, url)
    }

    /// A HEAD, which is not sent yet.
    pub fn head(&self, url: &str) -> HttpRequest {
        self.request(Method::HEAD, url)
    }

    /// Sends a request of the driver's, for libraries that make such ones. Its answer is one of the driver's as well, and
    /// counts as in flight until its body has ended. [`Error::behind`] finds the pool's error in that of a body. Its URL
    /// is a whole one.
    ///
    /// # Errors
    /// Those of [`send`](HttpRequest::send).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may have the request, and may go on with it.
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response, Error> {
        self.requests.execute(request).await
    }

    /// The driver's own client, for libraries that require one. It has the proxy, TLS and the limits of time. It has neither
    /// the login nor the headers, because nothing keeps it at one server. Its requests are not counted, so nothing limits
    /// their number, closing does not wait for them, and no cut ends them. Its URLs are whole ones. Its connections live
    /// on the runtime of the task that sends.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Forked`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.requests.raw_client()
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("resource", self.requests.link().name()).finish_non_exhaustive()
    }
}

/// A client of HTTP as its slot holds it. It is leased as the client of either facade.
#[derive(Clone)]
pub struct HttpHandle {
    pub(super) tasks: Http,
    pub(super) threads: blocking::Http,
    pub(super) requests: Requests,
    /// `None` if the server's health is not asked for.
    pub(super) probe: Option<Arc<RequestProbe>>,
}

leased!(HttpHandle, Http, blocking::Http);
