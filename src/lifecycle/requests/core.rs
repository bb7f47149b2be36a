//! The shared state of a client's requests: the client itself, the places, the counts and the kill switch.
//!
//! A request takes a place, and an `InFlightRequest` stands for it until the body of its answer has ended. The resource's
//! life calls `cut`, `restore` and `end`.
//!
//! Locks: `client` and `switch` are held to read or replace them, never both. Nothing is awaited and nobody is woken
//! under them.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use reqwest::Url;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::base::error::{BoxError, Error, Failure, TimeoutError, redacted};
use crate::base::process::ForkGuarded;
use crate::base::runtime::{block_on, timer, within};
use crate::base::secret::Secret;
use crate::lifecycle::busy::Busy;
use crate::lifecycle::link::Link;
use crate::lifecycle::requests::settings::RequestSettings;
use crate::lifecycle::status::Usage;
use crate::lifecycle::work::Work;
use crate::net::count::Counted;
use crate::net::kill_switch::KillSwitch;

/// The requests of one resource: how they are sent, limited, counted and cut. Clones share all of that.
#[derive(Clone)]
pub struct Requests(pub(super) Arc<RequestCore>);

/// The state that all requests and answers of a resource share.
pub(super) struct RequestCore {
    pub(super) link: Link,
    pub(super) runtime: Handle,
    /// The client that requests are sent by from now on. `None` once closed.
    client: RwLock<Option<Arc<RequestClient>>>,
    /// Cuts every request of the current generation. `None` once closed.
    switch: RwLock<Option<KillSwitch>>,
    max: usize,
    places: Arc<Semaphore>,
    waiting: watch::Sender<usize>,
}

/// A client, and the settings that it was made of. A forked child leaves its connections alone.
pub(super) struct RequestClient {
    pub(super) http: ForkGuarded<reqwest::Client>,
    /// The one for libraries, which measures a server's silence itself.
    raw: ForkGuarded<reqwest::Client>,
    pub(super) settings: RequestSettings,
}

impl Requests {
    /// Makes the client. Its connections live on the runtime of this task.
    /// [`Resource::connect`](crate::Resource::connect) calls this with its own link.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(link: &Link, settings: RequestSettings) -> Result<Self, Failure> {
        let max = settings.max_requests;
        let client = RequestClient::new(settings)?;
        Ok(Requests(Arc::new(RequestCore {
            link: link.clone(),
            runtime: Handle::current(),
            client: RwLock::new(Some(Arc::new(client))),
            switch: RwLock::new(Some(KillSwitch::new())),
            max,
            places: Arc::new(Semaphore::new(max)),
            waiting: watch::Sender::default(),
        })))
    }

    /// Sends requests by a new client from now on, which has these settings. Those in flight go on. The number of
    /// places stays.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn replace(&self, settings: RequestSettings) -> Result<(), Failure> {
        let mut client = Arc::new(RequestClient::new(settings)?);
        if let Some(current) = &mut *self.0.client.write() {
            std::mem::swap(current, &mut client);
        }
        Ok(())
    }

    /// Ends all requests and bodies in flight with an error, which is the loss.
    pub fn cut(&self) {
        let switch = self.0.switch.read().clone();
        if let Some(switch) = switch {
            switch.cut_because(self.0.link.why_cut());
        }
    }

    /// Lets requests be sent again after a cut.
    pub fn restore(&self) {
        if let Some(switch) = &mut *self.0.switch.write() {
            *switch = KillSwitch::new();
        }
    }

    /// Ends all requests and bodies in flight with an error, and lets none be sent again. It waits for at most a second
    /// until their callers have seen that.
    ///
    /// # Errors
    /// Answers are still held by callers that do not read them.
    ///
    /// # Cancel safety
    /// Cancel-safe: the cut comes before the wait.
    pub async fn end(&self) -> Result<(), Failure> {
        let (switch, client) = (self.0.switch.write().take(), self.0.client.write().take());
        drop(client);
        if let Some(switch) = switch {
            switch.cut_because(self.0.link.why_cut());
        }
        // All places are free once no request is in flight any more.
        let all = u32::try_from(self.0.max).unwrap_or(u32::MAX);
        match within(LINGER, self.0.places.acquire_many(all)).await {
            Ok(_) => Ok(()),
            Err(_elapsed) => {
                let left = self.0.in_flight();
                Err(Failure::transient(format!("{left} requests are held by callers that nobody polls any more")))
            }
        }
    }

    /// Waits so long, unless the requests are cut meanwhile. The wait alone is no work that closing waits for.
    ///
    /// # Errors
    /// Why they were cut; [`Error::Closed`]; [`Error::Forked`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn pause(&self, time: Duration) -> Result<(), Error> {
        self.0.link.check_process()?;
        let switch = self.0.live_switch().await?;
        tokio::select! {
            () = timer(time) => Ok(()),
            () = switch.wait() => Err(self.0.why(&switch)),
        }
    }

    /// The places for requests, how many are taken, and how many callers wait for one.
    pub fn usage(&self) -> Usage {
        Usage {
            max: Some(self.0.max),
            in_use: Some(self.0.in_flight()),
            waiting: Some(*self.0.waiting.borrow()),
            ..Usage::default()
        }
    }

    /// The error itself, or a note in its place if a secret of the settings is in it.
    pub fn withheld(&self, error: impl Into<BoxError>) -> BoxError {
        match self.0.client() {
            Ok(client) => redacted(error, true, &client.secrets(), &[]),
            Err(closed) => closed.into(),
        }
    }

    /// The link of the resource.
    pub fn link(&self) -> &Link {
        &self.0.link
    }

    /// The runtime that the connections live on.
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Blocks this thread until a future of these requests is done.
    ///
    /// # Errors
    /// [`Error::InAsyncContext`] on a thread that polls a current-thread runtime, and [`Error::Forked`].
    pub fn wait<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        self.0.link.check_process()?;
        block_on(self.0.link.name(), &self.0.runtime, future)
    }

    /// The driver's own client, which has the proxy, TLS and the limits of time. It has neither the login nor the
    /// headers, because nothing keeps it at one server.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Forked`].
    pub fn raw_client(&self) -> Result<reqwest::Client, Error> {
        self.0.client().map(|client| reqwest::Client::clone(&client.raw))
    }
}

impl RequestCore {
    /// How many places are taken.
    fn in_flight(&self) -> usize {
        self.max.saturating_sub(self.places.available_permits())
    }

    pub(super) fn client(&self) -> Result<Arc<RequestClient>, Error> {
        // In a forked child a thread of the parent may hold the lock for ever.
        self.link.check_process()?;
        self.client.read().clone().ok_or_else(|| Error::closed(self.link.name()))
    }

    /// Takes a place for a request, which must end within the limit from then on. It waits for a place if all are taken,
    /// and while a lost server is being brought back. Work that has begun already goes on.
    pub(super) async fn begin(&self, limit: Option<Duration>, busy: Option<Busy>) -> Result<InFlightRequest, Error> {
        self.link.check_process()?;
        let switch = self.live_switch().await?;
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_all_taken) => self.wait_for_place(&switch).await?,
        };
        let busy = busy.unwrap_or_else(|| self.link.busy(Work::Operation));
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(InFlightRequest { busy, switch, deadline, _place: place })
    }

    async fn wait_for_place(&self, switch: &KillSwitch) -> Result<OwnedSemaphorePermit, Error> {
        let _waiting = Counted::new(&self.waiting);
        let limit = self.link.acquire_timeout();
        tokio::select! {
            // A place that is free counts even if the limit has passed in the same moment.
            biased;
            () = switch.wait() => Err(self.why(switch)),
            place = Arc::clone(&self.places).acquire_owned() => place.map_err(|_closed| self.why(switch)),
            () = timer(limit) => {
                let waiting_for = format!("one of {} requests at a time", self.max);
                let timeout = TimeoutError::new(self.link.name(), self.link.endpoint(), waiting_for, limit);
                let holders = self.link.holders();
                Err(self.link.told(Error::Timeout(Arc::new(TimeoutError { holders, ..timeout }))))
            }
        }
    }

    /// The switch of the current generation. Waits while the server is being brought back.
    async fn live_switch(&self) -> Result<KillSwitch, Error> {
        if let Some(switch) = self.live() {
            return Ok(switch);
        }
        if self.switch.read().is_some() {
            self.link.ready().await?;
        }
        self.live().ok_or_else(|| Error::closed(self.link.name()))
    }

    fn live(&self) -> Option<KillSwitch> {
        self.switch.read().clone().filter(|switch| !switch.is_cut())
    }

    /// Why this switch was thrown.
    pub(super) fn why(&self, switch: &KillSwitch) -> Error {
        switch.cause().cloned().unwrap_or_else(|| self.link.why_cut())
    }
}

impl RequestClient {
    pub(super) fn new(mut settings: RequestSettings) -> Result<Self, Failure> {
        if settings.base.is_none() && !settings.headers.is_empty() {
            return Err(Failure::permanent("headers go along to the server of `base` alone, but there is no `base`"));
        }
        settings.withhold_proxies();
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map(ForkGuarded::new).map_err(|error| Failure::permanent(error.without_url()))
        };
        let (http, raw) = (build(settings.builder()?)?, build(settings.raw_builder()?)?);
        Ok(RequestClient { http, raw, settings })
    }

    /// The URL of this path below the base, or this URL itself.
    pub(super) fn url(&self, text: &str) -> Result<Url, &'static str> {
        let base = &self.settings.base;
        let is_http = |scheme: &str| ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
        let is_whole = text.split_once("://").is_some_and(|(scheme, _)| is_http(scheme));
        let url = match base {
            _ if is_whole => Url::parse(text),
            Some(base) if text.is_empty() => Ok(base.clone()),
            Some(base) if text.starts_with('?') => Url::parse(&format!("{base}{text}")),
            Some(base) => {
                let (base, path) = (base.as_str().trim_end_matches('/'), text.trim_start_matches('/'));
                Url::parse(&format!("{base}/{path}"))
            }
            None => return Err("a path alone needs a `url` to be below: set that, or give a whole URL"),
        };
        let url = url.map_err(|_may_have_a_secret| "the URL cannot be parsed")?;
        self.check(&url)?;
        Ok(url)
    }

    /// Checks that this client may send to this URL.
    pub(super) fn check(&self, url: &Url) -> Result<(), &'static str> {
        let RequestSettings { base, headers, .. } = &self.settings;
        if cfg!(not(feature = "tls")) && url.scheme() == "https" {
            return Err("https:// needs TLS: enable the feature `tls` of resource-pool");
        }
        let is_elsewhere = base.as_ref().is_some_and(|base| base.origin() != url.origin());
        if is_elsewhere && !headers.is_empty() {
            return Err("this URL is of another server than `url`, which alone may get the login and the headers; \
                        give the other server a client of its own");
        }
        Ok(())
    }

    /// The texts that no error may show.
    pub(super) fn secrets(&self) -> Vec<&str> {
        self.settings.secrets.iter().map(Secret::expose).collect()
    }
}

/// A request in flight, until the body of its answer has ended.
pub(super) struct InFlightRequest {
    pub(super) busy: Busy,
    pub(super) switch: KillSwitch,
    /// When the request must have ended. `None` without a limit.
    deadline: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

/// How a wait for the server ended without its answer.
pub(super) enum GivenUp {
    /// The switch was thrown.
    Cut,
    /// The server was silent for too long, or the whole request has taken too long.
    Late,
}

impl InFlightRequest {
    /// The part of this limit that is left to the request.
    pub(super) fn left(&self, limit: Duration) -> Duration {
        self.deadline.map_or(limit, |deadline| limit.min(deadline.saturating_duration_since(Instant::now())))
    }

    /// Polls this future until it is done, the switch is thrown, or the limit has passed. The future is not polled
    /// after a cut, because timers of a runtime that has ended must not be.
    pub(super) async fn within<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, GivenUp> {
        let (mut future, mut thrown, mut late) =
            (pin!(future), pin!(self.switch.wait()), pin!(timer(self.left(limit))));
        poll_fn(|context| {
            if self.switch.is_cut() {
                return Poll::Ready(Err(GivenUp::Cut));
            }
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            match thrown.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Err(GivenUp::Cut)),
                Poll::Pending => late.as_mut().poll(context).map(|()| Err(GivenUp::Late)),
            }
        })
        .await
    }
}

/// How long the callers of requests get to see that these are cut, which takes microseconds.
const LINGER: Duration = Duration::from_secs(1);

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("resource", self.0.link.name()).finish_non_exhaustive()
    }
}
