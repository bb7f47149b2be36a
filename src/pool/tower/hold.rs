//! [`HoldLayer`], which has closing wait for the requests in flight.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::lifecycle::application::Hold;
use crate::pool::resource_pool::ResourcePool;

/// Takes a [`Hold`] for each request, from its head until the end of its response's body. So closing waits for the
/// requests in flight, up to `close.drain`. The report counts them, and names the line that made this layer.
#[derive(Clone)]
pub struct HoldLayer {
    pool: ResourcePool,
    site: &'static Location<'static>,
}

impl HoldLayer {
    /// A layer for the requests of a service that uses this pool.
    #[track_caller]
    pub fn new(pool: &ResourcePool) -> Self {
        let site = Location::caller();
        // The pool is prepared for a signal before the first request.
        drop(pool.registry().hold("request", site));
        HoldLayer { pool: pool.clone(), site }
    }
}

impl<S> Layer<S> for HoldLayer {
    type Service = HoldService<S>;

    fn layer(&self, inner: S) -> HoldService<S> {
        HoldService { inner, layer: self.clone() }
    }
}

/// A service under a [`HoldLayer`].
#[derive(Clone)]
pub struct HoldService<S> {
    inner: S,
    layer: HoldLayer,
}

impl<S, R, B> Service<Request<R>> for HoldService<S>
where
    S: Service<Request<R>, Response = Response<B>>,
{
    type Response = Response<HoldBody<B>>;
    type Error = S::Error;
    type Future = HoldFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let HoldLayer { pool, site } = &self.layer;
        let hold = pool.registry().hold("request", site);
        HoldFuture { future: self.inner.call(request), hold: Some(hold) }
    }
}

pin_project! {
    /// The response to come. It holds closing up until it drops, or until the body of its response does.
    pub struct HoldFuture<F> {
        #[pin]
        future: F,
        hold: Option<Hold>,
    }
}

impl<F, B, E> Future for HoldFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<HoldBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.future.poll(context))?;
        let hold = this.hold.take();
        Poll::Ready(Ok(response.map(|body| HoldBody { body, _hold: hold })))
    }
}

pin_project! {
    /// The body of a response. It holds closing up until it drops.
    pub struct HoldBody<B> {
        #[pin]
        body: B,
        _hold: Option<Hold>,
    }
}

impl<B: Body> Body for HoldBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Default> Default for HoldBody<B> {
    /// A body that holds nothing up.
    fn default() -> Self {
        HoldBody { body: B::default(), _hold: None }
    }
}

macro_rules! opaque {
    ($($type:ident$(<$parameter:ident>)?)*) => {
        $(impl$(<$parameter>)? fmt::Debug for $type$(<$parameter>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type)).finish_non_exhaustive()
            }
        })*
    };
}
opaque!(HoldLayer HoldService<S> HoldFuture<F> HoldBody<B>);
