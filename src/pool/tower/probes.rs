//! [`Probes`], which answers the probes of an orchestrator.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tower_service::Service;

use crate::base::future::BoxFuture;
use crate::lifecycle::health::Health;
use crate::pool::resource_pool::ResourcePool;

/// Answers `/livez`, `/readyz` and `/startupz` with a status of `application/health+json` and nothing else, so that
/// everybody may see it.
///
/// | path | 200, unless then 503 |
/// |---|---|
/// | `/livez` | always; a database that is down must not restart the process |
/// | `/readyz` | every required resource answers, and the pool is not closing ([`readiness`]) |
/// | `/startupz` | every required resource that was asked for has been connected ([`startup`]) |
///
/// A check takes at most `health.all`, which is 800 ms unless set, and its report is kept for `health.cache`, 1 s. Once
/// closing has begun, or readiness is [lowered](ResourcePool::lower_readiness), `/readyz` answers at once. The last
/// segment of the path counts, so the service may be nested. Other paths answer 404, and other methods than GET and HEAD
/// answer 405.
///
/// [`readiness`]: crate::HealthReport::readiness
/// [`startup`]: crate::HealthReport::startup
#[derive(Clone)]
pub struct Probes {
    pool: ResourcePool,
}

impl Probes {
    /// The probes of this pool.
    pub fn new(pool: &ResourcePool) -> Self {
        Probes { pool: pool.clone() }
    }
}

impl<B> Service<Request<B>> for Probes {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = ProbeFuture;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ProbeFuture {
        let probe = request.uri().path().rsplit('/').next().and_then(Probe::of);
        let is_head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ if probe.is_some() => return ProbeFuture(Box::pin(std::future::ready(Ok(not_allowed())))),
            _ => false,
        };
        let pool = self.pool.clone();
        ProbeFuture(Box::pin(async move {
            let mut response = match probe {
                Some(probe) => verdict(probe.ask(&pool).await),
                None => plain(StatusCode::NOT_FOUND, "the probes are /livez, /readyz and /startupz\n"),
            };
            if is_head {
                response.body_mut().clear();
            }
            Ok(response)
        }))
    }
}

/// The answer of [`Probes`], which comes in time.
///
/// # Cancel safety
/// Dropping the future stops only the waiting, since the check goes on for the next caller.
pub struct ProbeFuture(BoxFuture<Result<Response<String>, Infallible>>);

impl Future for ProbeFuture {
    type Output = Result<Response<String>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

#[derive(Clone, Copy)]
enum Probe {
    Live,
    Ready,
    Startup,
}

impl Probe {
    fn of(name: &str) -> Option<Self> {
        match name {
            "livez" => Some(Probe::Live),
            "readyz" => Some(Probe::Ready),
            "startupz" => Some(Probe::Startup),
            _ => None,
        }
    }

    async fn ask(self, pool: &ResourcePool) -> Health {
        match self {
            Probe::Live => Health::Pass,
            // No round trip is needed to know this, and one may take its time.
            Probe::Ready if pool.is_closing() || pool.registry().context.close.is_lowered() => Health::Fail,
            Probe::Ready => pool.health_check().await.readiness(),
            Probe::Startup => pool.health_check().await.startup(),
        }
    }
}

fn verdict(health: Health) -> Response<String> {
    let status = if health == Health::Fail { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let mut response = plain(status, &format!(r#"{{"status":"{health}"}}"#));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/health+json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn not_allowed() -> Response<String> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "a probe is a GET or a HEAD\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn plain(status: StatusCode, body: &str) -> Response<String> {
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = status;
    response
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

impl fmt::Debug for ProbeFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeFuture").finish_non_exhaustive()
    }
}
