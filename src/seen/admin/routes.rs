//! The paths of an admin, and what each answers.

use std::future;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, NestedPath, Path, Request, State};
use axum::http::header::{CONTENT_TYPE, ORIGIN, SET_COOKIE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_util::sync::DropGuard;
use url::form_urlencoded;

use crate::Error;
use crate::seen::admin::answer::{Denial, json, json_text};
use crate::seen::admin::aside::Aside;
use crate::seen::admin::guard::{self, Admitted, Guard};
use crate::seen::admin::holders;
use crate::seen::admin::hub::Hub;
use crate::seen::admin::limits::BODY;
use crate::seen::admin::page;
use crate::seen::admin::sessions::digits;
use crate::seen::admin::stream::EventStream;
use crate::seen::admin::views::{StatusView, pools};
use crate::tower::Probes;

/// Renders the program's metrics.
pub(super) type Renderer = Arc<dyn Fn() -> String + Send + Sync>;

/// The state of a router.
pub(super) struct Routes {
    pub(super) hub: Arc<Hub>,
    pub(super) guard: Arc<Guard>,
    pub(super) renderer: Option<Renderer>,
    pub(super) rendering: Aside,
    /// The admin's thread ends once the last clone of the router has dropped.
    pub(super) _alive: DropGuard,
}

/// The router of a listener, where every other path is answered, too.
pub(super) fn whole(routes: Routes) -> Router {
    let guard = Arc::clone(&routes.guard);
    let others = Router::new().fallback(unknown).layer(middleware::from_fn_with_state(guard, guard::pass));
    router(routes).merge(others)
}

/// The paths of the admin and no others, so that the router can be merged or nested into one that has a fallback.
pub(super) fn router(routes: Routes) -> Router {
    let probes = Probes::new(&routes.hub.pool);
    let guard = Arc::clone(&routes.guard);
    let files = page::FILES.iter().fold(Router::new(), |router, (path, text, content_type)| {
        router.route(path, get(|| async { page::file(*text, content_type) }))
    });
    files
        .route("/", get(page::index))
        .route("/session", post(begin_session).delete(end_session))
        .route("/status", get(status))
        .route("/holders", get(holders))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/pool-status", get(pool_status))
        .route("/close/{name}", post(close))
        .route("/reconnect/{name}", post(reconnect))
        .route_service("/livez", probes.clone())
        .route_service("/readyz", probes.clone())
        .route_service("/startupz", probes)
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(guard, guard::pass))
        .with_state(Arc::new(routes))
}

async fn unknown() -> Denial {
    Denial::new(StatusCode::NOT_FOUND, "there is nothing at this path", "docs/admin.md has the paths")
}

async fn wrong_method() -> Denial {
    let remedy = "close and reconnect are POST, the session is POST and DELETE, the rest is GET";
    Denial::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method", remedy)
}

async fn status(State(routes): State<Arc<Routes>>) -> Result<Response, Denial> {
    let pool = &routes.hub.pool;
    let health = pool.health_check().await;
    let status = routes.hub.pool_status().await?;
    Ok(json(&StatusView::new(pool.is_closing(), &status, Some(&health))))
}

async fn holders(State(routes): State<Arc<Routes>>) -> Response {
    json_text(holders::list(routes.hub.pool.holders()))
}

async fn pool_status(State(routes): State<Arc<Routes>>) -> Result<Response, Denial> {
    Ok(json(&pools(&routes.hub.pool_status().await?)))
}

/// A stream, or the last events as a list.
async fn events(
    State(routes): State<Arc<Routes>>,
    Extension(admitted): Extension<Admitted>,
    uri: Uri,
) -> Result<Response, Denial> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    if let Some((_, last)) = pairs.find(|(key, _)| key == "last") {
        let bad = |_| Denial::new(StatusCode::BAD_REQUEST, "`last` is no number", "ask for /events?last=20");
        return Ok(json_text(routes.hub.events(last.parse().map_err(bad)?)));
    }
    let stream = EventStream::open(&routes.hub, admitted).await?;
    let mut response = Response::new(Body::new(stream));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

async fn metrics(State(routes): State<Arc<Routes>>) -> Result<Response, Denial> {
    let Some(renderer) = &routes.renderer else {
        let remedy = "give the admin a renderer by `Admin::metrics`";
        return Err(Denial::new(StatusCode::NOT_FOUND, "this program renders no metrics", remedy));
    };
    let render = Arc::clone(renderer);
    let mut response = Response::new(Body::from(routes.rendering.call(move || render()).await?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

async fn close(State(routes): State<Arc<Routes>>, Path(name): Path<String>) -> Result<Response, Denial> {
    check_open(&routes)?;
    Ok(json(&logged("closing", &name, routes.hub.pool.close(&name)).await?))
}

async fn reconnect(State(routes): State<Arc<Routes>>, Path(name): Path<String>) -> Result<Response, Denial> {
    check_open(&routes)?;
    logged("reconnecting", &name, routes.hub.pool.reconnect(&name)).await?;
    Ok(json_text(r#"{"ok":true}"#.to_owned()))
}

fn check_open(routes: &Routes) -> Result<(), Denial> {
    if !routes.hub.pool.is_closing() {
        return Ok(());
    }
    Err(Denial::new(StatusCode::CONFLICT, "the pool is closing", "wait until the program runs again"))
}

/// Runs a verb, and logs it if the pool knows the name. Other names are texts of a stranger, which the log does not repeat.
///
/// A verb refuses an unknown name when it is first polled. The status of the pool has the names too, and would wait for a
/// resource whose usage hangs, which a verb may mend.
async fn logged<T>(doing: &str, name: &str, verb: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut verb = pin!(verb);
    let at_once = tokio::select! {
        biased;
        answer = verb.as_mut() => Some(answer),
        () = future::ready(()) => None,
    };
    if !matches!(at_once, Some(Err(Error::UnknownName { .. }))) {
        tracing::info!(resource = %name, "{doing}, as the admin was asked to");
    }
    match at_once {
        Some(answer) => answer,
        None => verb.await,
    }
}

/// Exchanges the token for a session.
async fn begin_session(
    State(routes): State<Arc<Routes>>,
    Extension(admitted): Extension<Admitted>,
    nested: Option<Extension<NestedPath>>,
    request: Request,
) -> Result<Response, Denial> {
    let guard = &routes.guard;
    let authority = guard::authority(request.headers(), request.uri()).unwrap_or_default();
    let is_tls = request.headers().get(ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let remedy = "send a form with the field `token`";
    let bad = |status, error| Denial::new(status, error, remedy);
    let body = tokio::time::timeout(guard.limits.patience, to_bytes(request.into_body(), BODY)).await;
    let body = body.map_err(|_slow| bad(StatusCode::REQUEST_TIMEOUT, "the form does not come"))?;
    let body = body.map_err(|_large| bad(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large, or broken off"))?;
    let token = form_urlencoded::parse(&body).find(|(key, _)| key == "token");
    let Some((_, token)) = token else { return Err(bad(StatusCode::BAD_REQUEST, "the form has no token")) };
    let session = guard.begin_session(admitted.from, &token)?;
    let cookie = cookie(&authority, nested.as_deref(), &digits(&session), guard.limits.session.as_secs(), is_tls);
    Ok(with_cookie(&cookie))
}

async fn end_session(
    State(routes): State<Arc<Routes>>,
    Extension(admitted): Extension<Admitted>,
    nested: Option<Extension<NestedPath>>,
    request: Request,
) -> Response {
    if let Some(session) = &admitted.session {
        routes.guard.end_session(session);
    }
    let authority = guard::authority(request.headers(), request.uri()).unwrap_or_default();
    with_cookie(&cookie(&authority, nested.as_deref(), "", 0, false))
}

fn cookie(authority: &str, nested: Option<&NestedPath>, value: &str, seconds: u64, is_tls: bool) -> String {
    let name = guard::cookie_name(authority);
    let path = page::base(nested).unwrap_or_else(|| "/".to_owned());
    let secure = if is_tls { "; Secure" } else { "" };
    format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}

fn with_cookie(cookie: &str) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}
