//! One request, from its URL until the head of the answer has come.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::{Body, RequestBuilder};
use serde::Serialize;

use crate::base::error::Error;
use crate::base::process::ForkGuarded;
use crate::base::runtime::inside;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::requests::core::{GivenUp, RequestClient, RequestCore, Requests};
use crate::lifecycle::requests::errors::HttpCall;
use crate::lifecycle::requests::response::HttpResponse;

impl Requests {
    /// A request. `url` is a path below the base URL, or a whole `http://` or `https://` URL. A mistake in it is told by
    /// [`send`](HttpRequest::send).
    pub fn request(&self, method: Method, url: &str) -> HttpRequest {
        let call = HttpCall::by(&method);
        let refused = |problem| call.refused(&self.0.link, problem);
        let built = self.0.client().and_then(|client| {
            let url = client.url(url).map_err(refused)?;
            let builder = client.http.request(method, url);
            Ok((client, builder))
        });
        HttpRequest { requests: self.clone(), built, call, busy: None }
    }
}

/// A request that is not sent yet. It is sent by [`send`](HttpRequest::send) alone, once, and never repeated.
///
/// ```no_run
/// # async fn example() -> Result<(), resource_pool::Error> {
/// let http = resource_pool::http().await?;
/// let bars = http.get("/bars").query(&[("code", "000001")]).send().await?.checked().await?;
/// println!("{}", bars.text().await?);
/// # Ok(()) }
/// ```
#[must_use = "a request does nothing until it is sent"]
pub struct HttpRequest {
    requests: Requests,
    built: Result<(Arc<RequestClient>, RequestBuilder), Error>,
    call: HttpCall,
    /// The work that goes on with it. `None` if its own begins as it is sent.
    busy: Option<Busy>,
}

impl HttpRequest {
    /// Names the request in errors. Defaults to its method. The URL is not shown, because it may have a secret in it.
    pub fn action(mut self, action: &str) -> Self {
        self.call.action = action.to_owned().into();
        self
    }

    /// Says that sending the request twice does no harm, as a search by POST. Its loss is then an [`Error::Lost`] instead
    /// of an [`Error::OutcomeUnknown`]. Defaults to what HTTP says of the method: all but POST, PATCH and CONNECT.
    pub fn idempotent(mut self, is_idempotent: bool) -> Self {
        self.call.is_idempotent = is_idempotent;
        self
    }

    /// Counts the request as a part of work that has begun before it.
    pub fn continuing(self, busy: Busy) -> Self {
        HttpRequest { busy: Some(busy), ..self }
    }

    /// Adds a header. A value that no header can have is told by [`send`](Self::send).
    pub fn header<N, V>(self, name: N, value: V) -> Self
    where
        HeaderName: TryFrom<N, Error: Into<http::Error>>,
        HeaderValue: TryFrom<V, Error: Into<http::Error>>,
    {
        self.with(|builder| builder.header(name, value))
    }

    /// Sets these headers, in the place of those of the same name.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|builder| builder.headers(headers))
    }

    /// Adds parameters to the URL, from pairs or from a struct.
    pub fn query<T: Serialize + ?Sized>(self, query: &T) -> Self {
        self.with(|builder| builder.query(query))
    }

    /// Sends this as JSON.
    pub fn json<T: Serialize + ?Sized>(self, json: &T) -> Self {
        self.with(|builder| builder.json(json))
    }

    /// Sends this as a form.
    pub fn form<T: Serialize + ?Sized>(self, form: &T) -> Self {
        self.with(|builder| builder.form(form))
    }

    /// Sends this body.
    pub fn body(self, body: impl Into<Body>) -> Self {
        self.with(|builder| builder.body(body))
    }

    /// Sets a limit for the whole request, from sending it until its body has ended, with the time that the caller takes
    /// to read that. The wait for a place does not count. Defaults to none. The limits of the configuration hold besides.
    pub fn timeout(self, limit: Duration) -> Self {
        self.with(|builder| builder.timeout(limit))
    }

    /// Changes the driver's own builder, for all that has no method here.
    pub fn with(mut self, change: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        self.built = self.built.map(|(client, builder)| (client, change(builder)));
        self
    }

    /// Sends the request, and answers once the head of the answer has come, whatever its status. The request counts as
    /// in flight until the body has ended. It works on any executor.
    ///
    /// # Errors
    /// [`Error::Timeout`] if no place is free within the acquire timeout, the server is silent for too long, or the
    /// whole request takes too long. [`Error::Lost`] if no connection can be made, or it breaks and sending twice does
    /// no harm. [`Error::OutcomeUnknown`] if sending twice may do harm, and a server may have the request.
    /// [`Error::Operation`] for a URL, header or body that cannot be sent, for TLS that no further attempt mends, and
    /// for too many redirects. [`Error::Closed`] once closing has cut it, and [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may have the request, and may go on with it.
    pub async fn send(self) -> Result<HttpResponse, Error> {
        let HttpRequest { requests: Requests(core), built, call, busy } = self;
        let (client, builder) = built?;
        let (_, request) = builder.build_split();
        let request = request.map_err(|error| call.failed(&core.link, &client.settings, error))?;
        send(core, client, call, request, busy).await
    }
}

impl Requests {
    /// Sends a request of the driver's, for libraries that make such ones. Its answer is one of the driver's as well,
    /// and counts as in flight until its body has ended, as an [`HttpResponse`] does. [`Error::behind`] finds the
    /// pool's error in that of a body.
    ///
    /// # Errors
    /// Those of [`send`](HttpRequest::send).
    ///
    /// # Cancel safety
    /// Cancelling closes the connection. The server may have the request, and may go on with it.
    pub async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response, Error> {
        let client = self.0.client()?;
        let call = HttpCall::by(request.method());
        send(Arc::clone(&self.0), client, call, request, None).await.map(HttpResponse::into_driver)
    }
}

/// Sends a request. A forked child neither polls nor drops what its parent has begun.
async fn send(
    core: Arc<RequestCore>,
    client: Arc<RequestClient>,
    call: HttpCall,
    request: reqwest::Request,
    busy: Option<Busy>,
) -> Result<HttpResponse, Error> {
    core.link.check_process()?;
    let mut sending = ForkGuarded::new(Box::pin(exchange(core, client, call, request, busy)));
    poll_fn(|context| match ForkGuarded::check(&sending) {
        Ok(()) => sending.as_mut().poll(context),
        Err(forked) => Poll::Ready(Err(forked)),
    })
    .await
}

async fn exchange(
    core: Arc<RequestCore>,
    client: Arc<RequestClient>,
    mut call: HttpCall,
    mut request: reqwest::Request,
    busy: Option<Busy>,
) -> Result<HttpResponse, Error> {
    let limits =
        [Some(client.settings.operation_timeout).filter(|limit| !limit.is_zero()), request.timeout_mut().take()];
    let in_flight = core.begin(limits.into_iter().flatten().min(), busy).await?;
    call.began = Some(Instant::now());
    // The client makes its timers as it is called.
    let sent = inside(&core.runtime, client.execute(request));
    let answer = match in_flight.within(client.settings.read_timeout, sent).await {
        Ok(answer) => answer,
        Err(GivenUp::Cut) => return Err(call.cut(&core.link, core.why(&in_flight.switch))),
        Err(GivenUp::Late) => return Err(call.late(&core.link)),
    };
    match answer {
        Ok(answer) => Ok(HttpResponse::new(core, client, call, in_flight, answer)),
        Err(error) => Err(call.not_answered(&core.link, &client.settings, error)),
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest").field("action", &self.call.action).finish_non_exhaustive()
    }
}
