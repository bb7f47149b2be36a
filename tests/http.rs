//! The client of HTTP against a real server.

#![cfg(feature = "http")]
#![allow(missing_docs)]

mod common;
#[path = "common/web.rs"]
mod web;

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect};
use axum::routing::{any, get, post};
use common::{Stopwatch, Within, eventually, unhurried, until};
use futures_util::StreamExt as _;
use resource_pool::adapter::{RequestSettings, RequestTls, Requests};
use resource_pool::config::{HttpConfig, Options, Repeat};
use resource_pool::{
    Error, Failure, Health, Http, HttpRequest, HttpStatusError, Link, Phase, Resource, ResourcePool, State, Usage,
    Work, blocking,
};
use serde_json::{Value, json};
use services::{BlackHole, Proxy};
use web::{Ending, Gate, WebServer, body, hang, runtime};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);
/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

fn pool_of(config: HttpConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(config: HttpConfig) -> ResourcePool {
    pool_of(config, unhurried())
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("http").unwrap().usage
}

async fn until_used(pool: &ResourcePool, in_use: usize, waiting: usize) {
    let is_so = || async {
        let Usage { in_use: used, waiting: waits, .. } = usage(pool);
        (used, waits) == (Some(in_use), Some(waiting))
    };
    eventually(SOON, async || is_so().await.then_some(())).await;
}

/// Tells all that it was sent.
async fn echo(request: Request) -> axum::Json<Value> {
    let (head, body) = request.into_parts();
    let headers: HashMap<_, _> =
        head.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&body).into_owned();
    axum::Json(json!({
        "method": head.method.as_str(), "uri": head.uri.to_string(), "headers": headers, "body": text
    }))
}

fn echoing() -> WebServer {
    WebServer::start(Router::new().fallback(any(echo)))
}

/// A server of bodies that end in every way, and of handlers that wait at the gate.
fn held(gate: &Gate) -> WebServer {
    let (one, two) = (gate.clone(), gate.clone());
    let waits = move || {
        let gate = one.clone();
        async move {
            gate.pass().await;
            "passed"
        }
    };
    let goes_on = move || {
        let gate = two.clone();
        async move { body(&["one,"], Ending::After(gate, "two")) }
    };
    WebServer::start(
        Router::new()
            .route("/gate", any(waits))
            .route("/goes-on", any(goes_on))
            .route("/whole", any(async || body(&["one,", "two"], Ending::Whole)))
            .route("/stalls", any(async || body(&["one,"], Ending::Stalled)))
            .route("/breaks-off", any(async || body(&["one,"], Ending::BrokenOff)))
            .route("/hangs", any(hang))
            .route("/health", any(async || "fine")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_below_the_url_with_login_and_headers() {
    let server = echoing();
    let place = server.url().replace("http://", "http://me:p%40ss@") + "/api/";
    let pool = pool(HttpConfig::url(place).header("X-Key", "k3y").user_agent("desk/1"));
    let http = pool.http().await.unwrap();
    let said: Value = http.get("/bars").query(&[("code", "000001")]).send().await.unwrap().json().await.unwrap();
    assert_eq!((&said["method"], &said["uri"]), (&json!("GET"), &json!("/api/bars?code=000001")));
    assert_eq!(said["headers"]["authorization"], "Basic bWU6cEBzcw==");
    assert_eq!((&said["headers"]["x-key"], &said["headers"]["user-agent"]), (&json!("k3y"), &json!("desk/1")));
    let said: Value = http.post("bars").json(&json!({"a": 1})).send().await.unwrap().json().await.unwrap();
    assert_eq!((&said["uri"], &said["body"]), (&json!("/api/bars"), &json!("{\"a\":1}")));
    assert_eq!(said["headers"]["content-type"], "application/json");
    let said: Value = http.put("").form(&[("a", "b c")]).send().await.unwrap().json().await.unwrap();
    assert_eq!((&said["uri"], &said["body"]), (&json!("/api/"), &json!("a=b+c")));
    let request = http.request("PATCH".parse().unwrap(), &format!("{}/whole", server.url())).body("text");
    let said: Value = request.header("X-Own", "1").send().await.unwrap().json().await.unwrap();
    assert_eq!((&said["method"], &said["uri"], &said["body"]), (&json!("PATCH"), &json!("/whole"), &json!("text")));
    assert_eq!(said["headers"]["x-own"], "1");
    let head = http.head("x").send().await.unwrap();
    assert_eq!((head.status(), &*head.bytes().await.unwrap()), (StatusCode::OK, &b""[..]));
    // A connection is free again a moment after its body was read.
    assert!(server.accepted() < 6, "connections are used again");
    let status = pool.status();
    let http = status.resource("http").unwrap();
    assert_eq!((&*http.endpoint, http.state), (&*server.url(), State::Ready));
    let report = pool.close_all().within(SOON).await;
    assert_eq!(report.step("http").unwrap().phase, Phase::HttpClients);
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_without_a_user_is_a_token_and_may_be_of_a_file() {
    let server = echoing();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("http-token-{}", std::process::id()));
    std::fs::write(&path, "first\n").unwrap();
    let pool = pool(HttpConfig::url(server.url()).password_file(&path));
    let http = pool.http().await.unwrap();
    let token = async || {
        let said: Value = http.get("").send().await.unwrap().json().await.unwrap();
        said["headers"]["authorization"].as_str().unwrap().to_owned()
    };
    assert_eq!(token().await, "Bearer first");
    std::fs::write(&path, "second").unwrap();
    assert_eq!(token().await, "Bearer first", "nothing has read the file again");
    pool.refresh("http").within(SOON).await.unwrap();
    assert_eq!(token().await, "Bearer second");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn threads_have_the_same_verbs() {
    let server = echoing();
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .named("market", HttpConfig::url(server.url()))
        .build()
        .unwrap();
    let http = pool.http_named("market").unwrap();
    let said: Value = http.send(http.get("/a")).unwrap().checked().unwrap().json().unwrap();
    assert_eq!(said["uri"], "/a");
    let parts: Result<Vec<_>, Error> = http.send(http.delete("/b")).unwrap().collect();
    assert!(String::from_utf8(parts.unwrap().concat()).unwrap().contains("\"DELETE\""));
    assert!(http.send(http.post("/c").body("text")).unwrap().text().unwrap().contains("text"));
    let other = pool.http_with("other", HttpConfig::url(server.url() + "/x")).unwrap();
    assert!(other.send(other.head("y")).unwrap().status().is_success());
    let scoped = blocking::Http::scoped(HttpConfig::url(server.url())).unwrap();
    assert_eq!(scoped.send(scoped.get("")).unwrap().status(), StatusCode::OK);
    assert!(scoped.close().unwrap().all_closed());
    // A thread that polls a current-thread runtime must not block.
    let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = alone.block_on(async { http.send(http.get("/a")).map(drop).unwrap_err() });
    assert!(matches!(error, Error::InAsyncContext { .. }), "{error}");
    // An answer tells it once, and ends.
    let mut answer = http.send(http.get("/a")).unwrap();
    let told: Vec<_> = alone.block_on(async { answer.by_ref().collect() });
    assert!(matches!(told[..], [Err(Error::InAsyncContext { .. })]), "{told:?}");
    assert!(pool.close_all().unwrap().all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_an_answer_and_checked_makes_an_error_of_it() {
    let secret = "s3cret-k3y";
    let told = format!("no such bar, says the one with {secret}");
    let server = WebServer::start(
        Router::new()
            .route("/missing", any(async || (StatusCode::NOT_FOUND, "no such bar")))
            .route("/tells", any(async move || (StatusCode::FORBIDDEN, told)))
            .route("/busy", any(async || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], "later")))
            .route("/long", any(async || (StatusCode::BAD_GATEWAY, "x".repeat(100_000)))),
    );
    let pool = pool(HttpConfig::url(server.url()).header("X-Key", secret));
    let http = pool.http().await.unwrap();
    let answer = http.get("/missing").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(answer.text().await.unwrap(), "no such bar");
    let failed =
        async |path: &str| http.get(path).action("the bars").send().await.unwrap().checked().await.unwrap_err();
    let status = |error: &Error| {
        let Error::Operation { source, .. } = error else { panic!("{error}") };
        source.downcast_ref::<HttpStatusError>().unwrap().clone()
    };
    let error = failed("/missing").await;
    assert_eq!(error.to_string(), "http: the bars: the server answered 404 Not Found: no such bar");
    assert_eq!(status(&failed("/busy").await).retry_after, Some(Duration::from_secs(7)));
    let error = failed("/tells").await;
    assert!(error.to_string().contains("withheld") && !format!("{error:?}").contains(secret), "{error:?}");
    let error = failed("/long").await;
    assert!(status(&error).body.len() == 4096 && error.to_string().len() < 700, "{error}");
    // An answer that is an error cuts nothing.
    assert_eq!(pool.status().resource("http").unwrap().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_an_error_is_withheld_wherever_it_stands() {
    let told = |headers: &HeaderMap| {
        let login = headers["authorization"].to_str().unwrap();
        login.trim_start_matches("Basic ").trim_end_matches('=').to_owned()
    };
    let bare = async move |headers: HeaderMap| (StatusCode::BAD_REQUEST, format!("cannot read {}", told(&headers)));
    let long = |before: usize| async move || (StatusCode::BAD_REQUEST, "x".repeat(before) + "s3cret-p4ssword" + "tail");
    let server = WebServer::start(
        Router::new()
            .route("/bare", any(bare))
            // The end of what is kept lies before the secret, in it and behind it.
            .route("/before", any(long(4096)))
            .route("/within", any(long(4096 - 7)))
            .route("/behind", any(long(4096 - 15)))
            .route("/broken-off", any(async || (StatusCode::BAD_REQUEST, body(&["no s3cret-"], Ending::BrokenOff)))),
    );
    let pool = pool(HttpConfig::url(server.url()).user("me").password("s3cret-p4ssword"));
    let http = pool.http().await.unwrap();
    for path in ["/bare", "/before", "/within", "/behind", "/broken-off"] {
        let error = http.get(path).send().within(SOON).await.unwrap().checked().within(SOON).await.unwrap_err();
        let Error::Operation { source, .. } = &error else { panic!("{error:?}") };
        let status: &HttpStatusError = source.downcast_ref().unwrap();
        assert_eq!(status.status, StatusCode::BAD_REQUEST);
        for part in ["s3cret", "bWU6czNjcmV0LXA0c3N3b3Jk"] {
            assert!(!format!("{error:?}").contains(part), "{path}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxys_login_is_shown_nowhere() {
    let quoting = async |headers: HeaderMap| {
        let login = headers["proxy-authorization"].to_str().unwrap().trim_start_matches("Basic ").to_owned();
        (StatusCode::BAD_GATEWAY, format!("no way for {login}"))
    };
    let proxy = WebServer::start(Router::new().fallback(any(quoting)));
    let by = proxy.url().replace("http://", "http://u:p%40ss-word@");
    let pool = pool(HttpConfig::url("http://127.0.0.1:1").proxy(by));
    let http = pool.http().await.unwrap();
    let error = http.get("/").send().within(SOON).await.unwrap().checked().within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("502") && error.to_string().contains("withheld"), "{error}");
    assert!(!format!("{error:?}").contains("dTpwQHNzLXdvcmQ"), "{error:?}");
}

/// A body whose parts come one by one for ever, so that the server is never silent.
fn dripping() -> axum::body::Body {
    let drip = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, std::io::Error>("x"), ()))
    });
    axum::body::Body::from_stream(drip)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_as_a_whole_ends_by_the_operation_timeout() {
    let server = WebServer::start(Router::new().route("/drips", any(async || dripping())).route("/hangs", any(hang)));
    let config = HttpConfig::url(server.url()).read_timeout(LONG).operation_timeout(Duration::from_millis(300));
    let pool = pool(config);
    let http = pool.http().await.unwrap();
    let unlimited = pool.http_with("unlimited", HttpConfig::url(server.url())).await.unwrap();
    let stopwatch = Stopwatch::start();
    let failed =
        async |request: HttpRequest| async { request.send().await?.bytes().await }.within(SOON).await.unwrap_err();
    let error = failed(http.get("/drips")).await;
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    let error = failed(http.post("/drips")).await;
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    let error = failed(http.get("/hangs")).await;
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    // A request may have a shorter limit of its own, and the bare client has the same one.
    let error = failed(unlimited.get("/drips").timeout(Duration::from_millis(50))).await;
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    let bare = http.raw_client().unwrap().get(server.url() + "/drips");
    let error = async { bare.send().await?.bytes().await }.within(SOON).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    until_used(&pool, 0, 0).await;
    // Without a limit the body goes on.
    let mut body = unlimited.get("/drips").send().within(SOON).await.unwrap();
    let stopwatch = Stopwatch::start();
    while stopwatch.took() < Duration::from_millis(600) {
        assert!(body.chunk().within(SOON).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_so_many_requests_at_a_time_and_the_others_wait() {
    let gate = Gate::new();
    let server = held(&gate);
    let mut options = unhurried();
    options.acquire_timeout = SOON;
    let pool = pool_of(HttpConfig::url(server.url()).max_requests(2), options);
    let http = pool.http().await.unwrap().clone();
    let ask = || {
        tokio::spawn({
            let http = http.clone();
            async move { http.get("/gate").send().await?.text().await }
        })
    };
    let asked = [ask(), ask(), ask(), ask()];
    until_used(&pool, 2, 2).await;
    eventually(SOON, async || (gate.arrived() == 2).then_some(())).await;
    assert_eq!(usage(&pool).max, Some(2));
    gate.let_through(4);
    for asked in asked {
        assert_eq!(asked.within(SOON).await.unwrap().unwrap(), "passed");
    }
    until_used(&pool, 0, 0).await;
    // A body counts until it has been read, or drops.
    let answers = [http.get("/stalls").send().await.unwrap(), http.get("/stalls").send().await.unwrap()];
    assert_eq!(usage(&pool).in_use, Some(2));
    let third = ask();
    until_used(&pool, 2, 1).await;
    drop(answers);
    gate.let_through(1);
    third.within(SOON).await.unwrap().unwrap();
    // A body that is complete frees its place before its end is asked for.
    let mut whole = http.get("/health").send().await.unwrap();
    assert_eq!(&*whole.chunk().await.unwrap().unwrap(), b"fine");
    until_used(&pool, 0, 0).await;
    assert!(whole.chunk().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_place_has_a_limit_and_names_the_holders() {
    let gate = Gate::new();
    let server = held(&gate);
    let mut options = unhurried();
    options.acquire_timeout = Duration::from_millis(200);
    let pool = pool_of(HttpConfig::url(server.url()).max_requests(1), options);
    let http = pool.http().await.unwrap();
    let line = line!() - 1;
    let first = http.get("/stalls").send().within(SOON).await.unwrap();
    let error = http.get("/health").send().within(SOON).await.unwrap_err();
    let Error::Timeout(timeout) = &error else { panic!("{error}") };
    assert!(error.to_string().contains("one of 1 requests at a time"), "{error}");
    assert_eq!((timeout.holders.len(), timeout.holders[0].site.line()), (1, line));
    // A wait that is cancelled takes no place.
    let cancelled = tokio::time::timeout(Duration::from_millis(50), http.get("/health").send()).await;
    assert!(cancelled.is_err());
    assert_eq!(usage(&pool).waiting, Some(0));
    drop(first);
    assert_eq!(http.get("/health").send().within(SOON).await.unwrap().text().await.unwrap(), "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_bodies() {
    let gate = Gate::new();
    let server = held(&gate);
    let pool = pool(HttpConfig::url(server.url()));
    let http = pool.http().await.unwrap();
    let mut answer = http.get("/goes-on").send().await.unwrap();
    assert_eq!(&*answer.chunk().await.unwrap().unwrap(), b"one,");
    let asked = tokio::spawn({
        let http = http.clone();
        async move { http.post("/gate").send().await?.text().await }
    });
    eventually(SOON, async || (gate.arrived() == 2).then_some(())).await;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    let is_draining = async || pool.status().resource("http").filter(|http| http.state == State::Draining).map(drop);
    eventually(SOON, is_draining).await;
    gate.let_through(2);
    assert_eq!(&*answer.bytes().within(SOON).await.unwrap(), b"two");
    assert_eq!(asked.within(SOON).await.unwrap().unwrap(), "passed");
    drop(http);
    let report = closing.within(SOON).await.unwrap();
    let step = report.step("http").unwrap();
    assert_eq!((&step.finished[..], &step.unfinished[..]), (&[(Work::Operation, 2)][..], &[][..]), "{report}");
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_cuts_all_that_is_left_and_names_it() {
    let gate = Gate::new();
    let server = held(&gate);
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(200);
    options.close.held = Duration::ZERO;
    let pool = pool_of(HttpConfig::url(server.url()).max_requests(4), options);
    let http = pool.http().await.unwrap().clone();
    let mut read = http.get("/stalls").send().await.unwrap();
    assert_eq!(&*read.chunk().await.unwrap().unwrap(), b"one,");
    let reads = tokio::spawn(async move { read.chunk().await.unwrap_err() });
    let mut written = http.post("/stalls").send().await.unwrap();
    let writes = tokio::spawn(async move {
        while let Some(part) = written.next().await {
            if let Err(error) = part {
                assert!(written.next().await.is_none(), "nothing comes after an error");
                return error;
            }
        }
        panic!("it has ended in silence");
    });
    let ask = |method: &str| {
        let request = http.request(method.parse().unwrap(), "/gate");
        tokio::spawn(async move { request.send().await.map(drop).unwrap_err() })
    };
    let (get, post) = (ask("GET"), ask("POST"));
    until_used(&pool, 4, 0).await;
    let waits = ask("GET");
    until_used(&pool, 4, 1).await;
    let stopwatch = Stopwatch::start();
    let report = pool.close_all().within(SOON).await;
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    for cut in [reads, get, waits] {
        let error = cut.within(SOON).await.unwrap();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    }
    for unknown in [writes, post] {
        let error = unknown.within(SOON).await.unwrap();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
        assert!(error.to_string().contains("http is closed"), "{error}");
    }
    let step = report.step("http").unwrap();
    assert_eq!(step.unfinished, [(Work::Operation, 4)], "{report}");
    assert!(report.all_closed(), "{report}");
    // A clone that was kept answers errors.
    let error = http.get("/health").send().await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert!(http.raw_client().unwrap_err().is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_is_named_by_the_report() {
    let gate = Gate::new();
    let server = held(&gate);
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(50);
    let pool = pool_of(HttpConfig::url(server.url()), options);
    let mut kept = pool.http().await.unwrap().get("/stalls").send().await.unwrap();
    let report = pool.close_all().within(SOON).await;
    assert!(report.to_string().contains("1 requests are held by callers"), "{report}");
    // Reading it after its runtime has ended is an error, and no panic.
    let error = kept.chunk().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    drop(kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_ends_requests_and_bodies_by_the_read_timeout() {
    let gate = Gate::new();
    let server = held(&gate);
    let pool = pool(HttpConfig::url(server.url()).read_timeout(Duration::from_secs(1)));
    let http = pool.http().await.unwrap();
    let error = http.get("/hangs").send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    let error = http.post("/hangs").send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    // A search by POST does no harm twice.
    let error = http.post("/hangs").idempotent(true).send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    let stalled = async { http.get("/stalls").send().await?.bytes().await };
    let error = stalled.within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    let error = http.get("/hangs").timeout(Duration::from_millis(20)).send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    until_used(&pool, 0, 0).await;
    // The time that the caller takes does not count, unlike with the bare client.
    let slowly = Duration::from_millis(1200);
    let mut whole = http.get("/whole").send().await.unwrap();
    let mut parts = Vec::new();
    while let Some(part) = whole.chunk().within(SOON).await.unwrap() {
        parts.extend_from_slice(&part);
        tokio::time::sleep(slowly).await;
    }
    assert_eq!(parts, b"one,two");
    let mut bare = http.raw_client().unwrap().get(server.url() + "/whole").send().await.unwrap();
    while let Ok(Some(_)) = bare.chunk().within(SOON).await {
        tokio::time::sleep(slowly).await;
    }
    assert!(bare.chunk().within(SOON).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_an_error() {
    let server = held(&Gate::new());
    let pool = pool(HttpConfig::url(server.url()));
    let http = pool.http().await.unwrap();
    let mut answer = http.get("/breaks-off").send().await.unwrap();
    assert_eq!(&*answer.chunk().await.unwrap().unwrap(), b"one,");
    let error = answer.chunk().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert!(answer.chunk().await.unwrap().is_none());
    let error = http.post("/breaks-off").send().await.unwrap().text().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    until_used(&pool, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_is_told_in_time() {
    let hole = BlackHole::start().unwrap();
    let config = HttpConfig::url(format!("http://127.0.0.1:{}", hole.port()));
    let pool = pool(config.clone().connect_timeout(Duration::from_millis(300)));
    // The client needs no server.
    let http = pool.http().within(SOON).await.unwrap();
    for error in [http.get("").send().within(SOON).await, http.post("").send().within(SOON).await] {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }) && error.is_transient(), "nothing was sent: {error:?}");
        assert!(error.to_string().contains("no connection within 300ms"), "{error}");
        assert_eq!(error.error_type(), "timeout");
    }
    let refused = pool.http_with("refused", HttpConfig::url("http://127.0.0.1:1")).await.unwrap();
    let error = refused.post("").send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert_eq!(error.error_type(), "connection_refused");
    // With `health_url`, connecting asks the server.
    let mut options = Options::default();
    options.retry.budget = Duration::from_secs(1);
    options.connect_timeout = Duration::from_millis(500);
    let pool = pool_of(config.health_url("/health"), options);
    let stopwatch = Stopwatch::start();
    let error = pool.http().within(SOON).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Connect(_) | Error::Timeout(_)), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_is_noticed_by_its_health_url() {
    let gate = Gate::new();
    let server = held(&gate);
    let proxy = Proxy::start(server.port()).unwrap();
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let pool = pool_of(HttpConfig::url(url).health_url("/health").read_timeout(LONG), Options::default());
    let http = pool.http().within(SOON).await.unwrap();
    let mut body = http.get("/stalls").send().within(SOON).await.unwrap();
    assert_eq!(&*body.chunk().within(SOON).await.unwrap().unwrap(), b"one,");
    let ask = |method: &str| {
        let request = http.request(method.parse().unwrap(), "/gate");
        tokio::spawn(async move { request.send().await.map(drop).unwrap_err() })
    };
    let (get, post) = (ask("GET"), ask("POST"));
    eventually(SOON, async || (gate.arrived() == 2).then_some(())).await;
    proxy.freeze();
    let stopwatch = Stopwatch::start();
    let lost = [get.within(SOON).await.unwrap(), body.chunk().within(SOON).await.unwrap_err()];
    let unknown = post.within(SOON).await.unwrap();
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    assert!(lost.iter().all(|error| matches!(error, Error::Lost { .. })), "{lost:?}");
    assert!(matches!(unknown, Error::OutcomeUnknown { .. }), "{unknown:?}");
    assert_eq!(pool.health_check().within(SOON).await.entry("http").unwrap().health, Health::Fail);
    // A lease that was taken before goes on.
    proxy.thaw();
    let back = async || http.get("/health").send().await.ok()?.text().await.ok();
    assert_eq!(eventually(SOON, back).await, "fine");
    // It freezes again while the pool closes.
    let mut body = http.get("/stalls").send().within(SOON).await.unwrap();
    proxy.freeze();
    let stopwatch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).within(SOON).await;
    assert!(stopwatch.took() < FROZEN && report.step("http").is_some(), "{report}");
    assert!(body.chunk().within(SOON).await.is_err());
    let stopwatch = Stopwatch::start();
    drop((body, http));
    assert!(stopwatch.took() < Duration::from_millis(100), "{:?}", stopwatch.took());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_goes_on() {
    let gate = Gate::new();
    let mut server = held(&gate);
    let mut options = unhurried();
    // Even so nothing is sent again.
    options.repeat = Repeat::Idempotent;
    let pool = pool_of(HttpConfig::url(server.url()), options);
    let http = pool.http().await.unwrap();
    assert_eq!(http.get("/health").send().await.unwrap().text().await.unwrap(), "fine");
    let ask = |method: &str| {
        let request = http.request(method.parse().unwrap(), "/gate");
        tokio::spawn(async move { request.send().await.map(drop).unwrap_err() })
    };
    let (get, post) = (ask("GET"), ask("POST"));
    let mut body = http.get("/stalls").send().await.unwrap();
    assert_eq!(&*body.chunk().await.unwrap().unwrap(), b"one,");
    eventually(SOON, async || (gate.arrived() == 2).then_some(())).await;
    tokio::task::block_in_place(|| server.kill());
    let error = get.within(SOON).await.unwrap();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    let error = post.within(SOON).await.unwrap();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    let error = body.chunk().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    // Nothing is sent again by itself, and nothing was sent that found nobody.
    let error = http.post("/health").send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert_eq!(gate.arrived(), 2);
    tokio::task::block_in_place(|| server.restart());
    let back = async || http.get("/health").send().await.ok()?.text().await.ok();
    assert_eq!(eventually(SOON, back).await, "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_unknown_unless_a_url_tells_it() {
    let status = Arc::new(AtomicUsize::new(200));
    let (heads, gets) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (answered, headed, got) = (Arc::clone(&status), Arc::clone(&heads), Arc::clone(&gets));
    let told = move || StatusCode::from_u16(u16::try_from(answered.load(Ordering::SeqCst)).unwrap()).unwrap();
    let by_get = move || {
        got.fetch_add(1, Ordering::SeqCst);
        let status = told();
        async move { status }
    };
    let by_head = move || {
        headed.fetch_add(1, Ordering::SeqCst);
        async { StatusCode::METHOD_NOT_ALLOWED }
    };
    let server = WebServer::start(Router::new().route("/health", get(by_get).head(by_head)));
    let mut options = unhurried();
    options.health.cache = Duration::ZERO;
    options.health.slow = LONG;
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool: ResourcePool = builder
        .resource(HttpConfig::url("http://127.0.0.1:1"))
        .named("market", HttpConfig::url(server.url()).health_url("health"))
        .build()
        .unwrap();
    // A client whose server is down neither fails health nor readiness.
    drop(pool.http().await.unwrap());
    let report = pool.health_check().within(SOON).await;
    let entry = report.entry("http").unwrap();
    assert_eq!((entry.health, report.readiness()), (Health::Unknown, Health::Pass), "{report}");
    assert!(entry.error.as_deref().unwrap().contains("`health_url`"), "{report}");
    drop(pool.http_named("market").within(SOON).await.unwrap());
    for (answer, expected) in [
        (200, Health::Pass),
        (204, Health::Pass),
        (503, Health::Fail),
        (404, Health::Fail),
        (429, Health::Warn),
        (401, Health::Warn),
    ] {
        status.store(answer, Ordering::SeqCst);
        let report = pool.health_check().within(SOON).await;
        assert_eq!(report.entry("market").unwrap().health, expected, "{answer}: {report}");
    }
    assert_eq!(heads.load(Ordering::SeqCst), 1, "the server takes no HEAD");
    assert!(gets.load(Ordering::SeqCst) >= 7);
    // None of these answers has cut it.
    assert_eq!(pool.status().resource("market").unwrap().generation, 1);
    assert_eq!(pool.status().resource("market").unwrap().usage.in_use, Some(0), "the question takes no place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_url_that_knows_get_alone_is_asked_by_get() {
    let (heads, gets) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (headed, got) = (Arc::clone(&heads), Arc::clone(&gets));
    let by_head = move || {
        headed.fetch_add(1, Ordering::SeqCst);
        async { StatusCode::NOT_FOUND }
    };
    let by_get = move || {
        got.fetch_add(1, Ordering::SeqCst);
        async { "fine" }
    };
    let server = WebServer::start(Router::new().route("/health", get(by_get).head(by_head)));
    let mut options = unhurried();
    (options.health.cache, options.health.slow) = (Duration::ZERO, LONG);
    let pool = pool_of(HttpConfig::url(server.url()).health_url("/health"), options);
    drop(pool.http().within(SOON).await.unwrap());
    assert_eq!(pool.health_check().within(SOON).await.entry("http").unwrap().health, Health::Pass);
    assert_eq!(heads.load(Ordering::SeqCst), 1, "it is not asked by HEAD again");
    assert!(gets.load(Ordering::SeqCst) >= 2);
}

/// A server whose health takes this many answers: 0 hangs.
fn of_health(status: &Arc<AtomicUsize>) -> WebServer {
    let status = Arc::clone(status);
    let health = move || {
        let status = status.load(Ordering::SeqCst);
        async move {
            match u16::try_from(status).unwrap() {
                0 => hang().await.into_response(),
                status => StatusCode::from_u16(status).unwrap().into_response(),
            }
        }
    };
    WebServer::start(Router::new().route("/health", any(health)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_is_refused_ends_the_recovery_unless_a_file_has_it() {
    let status = Arc::new(AtomicUsize::new(200));
    let server = of_health(&status);
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("http-refused-{}", std::process::id()));
    std::fs::write(&file, "t0ken").unwrap();
    let config = || HttpConfig::url(server.url()).health_url("/health");
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(3);
    let pool: ResourcePool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(options)
        .named("fixed", config().password("t0ken"))
        .named("by-file", config().password_file(&file))
        .build()
        .unwrap();
    drop((
        pool.http_named("fixed").within(SOON).await.unwrap(),
        pool.http_named("by-file").within(SOON).await.unwrap(),
    ));
    let state = |name: &str| pool.status().resource(name).unwrap().state;
    status.store(0, Ordering::SeqCst);
    eventually(SOON, async || ["fixed", "by-file"].iter().all(|name| state(name) != State::Ready).then_some(())).await;
    status.store(401, Ordering::SeqCst);
    // An acquire tries again, and the login is still refused.
    let is_permanent = async |name: &'static str| {
        let error = pool.http_named(name).within(SOON).await.map(drop).err()?;
        error.to_string().contains("401").then(|| matches!(&error, Error::Connect(connect) if connect.permanent))
    };
    eventually(SOON, async || is_permanent("fixed").await.filter(|permanent| *permanent)).await;
    let by_file = eventually(SOON, async || is_permanent("by-file").await).await;
    assert!(!by_file, "the file may just be replaced");
    status.store(200, Ordering::SeqCst);
    eventually(SOON, async || pool.http_named("by-file").await.ok().map(drop)).await;
    std::fs::remove_file(file).unwrap();
}

/// A forked child reads nothing of an answer that its parent has, and ends none.
#[cfg(unix)]
#[test]
fn a_forked_child_leaves_answers_alone() {
    if let Some(status) = common::alone("a_forked_child_leaves_answers_alone") {
        assert!(status.success(), "{status}");
        return;
    }
    let gate = Gate::new();
    let server = held(&gate);
    let pool = pool(HttpConfig::url(server.url()));
    let threads = blocking::ResourcePool::from(pool.clone());
    let http = threads.http().unwrap();
    let mut read = http.send(http.get("/goes-on")).unwrap();
    assert_eq!(&*read.next().unwrap().unwrap(), b"one,");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = runtime.block_on(pool.http()).unwrap();
    let mut awaited = runtime.block_on(tasks.get("/goes-on").send()).unwrap();
    assert_eq!(&*runtime.block_on(awaited.chunk()).unwrap().unwrap(), b"one,");
    match fork::fork().expect("a child") {
        fork::Fork::Child => {
            let is_refused = matches!(read.next(), Some(Err(Error::Forked)))
                && read.next().is_none()
                && matches!(futures_util::FutureExt::now_or_never(awaited.chunk()), Some(Err(Error::Forked)))
                && matches!(futures_util::FutureExt::now_or_never(awaited.chunk()), Some(Ok(None)))
                && matches!(futures_util::FutureExt::now_or_never(tasks.get("/").send()), Some(Err(Error::Forked)))
                && matches!(tasks.raw_client(), Err(Error::Forked));
            drop((read, awaited));
            std::process::exit(if is_refused { 0 } else { 1 });
        }
        fork::Fork::Parent(child) => {
            assert_eq!(fork::waitpid(child).expect("its status"), 0, "the child was refused");
            assert_eq!(usage(&pool).in_use, Some(2));
            gate.let_through(2);
            assert_eq!(&*read.next().unwrap().unwrap(), b"two");
            assert!(read.next().is_none());
            assert_eq!(&*runtime.block_on(awaited.bytes()).unwrap(), b"two");
            assert_eq!(usage(&pool).in_use, Some(0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_bounded_and_secrets_stay_at_their_server() {
    let elsewhere = echoing();
    let away = elsewhere.url();
    let hop = async |uri: Uri| match uri.query().and_then(|query| query.strip_prefix("left=")?.parse::<u32>().ok()) {
        Some(left @ 1..) => Redirect::temporary(&format!("/hop?left={}", left - 1)).into_response(),
        _ => "arrived".into_response(),
    };
    let server = WebServer::start(
        Router::new()
            .route("/hop", get(hop))
            .route("/loop", get(async || Redirect::temporary("/loop")))
            .route("/away", get(async move || Redirect::temporary(&away))),
    );
    let pool = pool(HttpConfig::url(server.url()).max_redirects(3));
    let http = pool.http().await.unwrap();
    assert_eq!(http.get("/hop?left=3").send().await.unwrap().text().await.unwrap(), "arrived");
    for path in ["/hop?left=4", "/loop"] {
        let error = http.get(path).send().within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }), "{error:?}");
        assert!(error.to_string().contains("redirect"), "{error}");
    }
    let said: Value = http.get("/away").send().await.unwrap().json().await.unwrap();
    assert_eq!((&said["uri"], &said["headers"]["referer"]), (&json!("/"), &Value::Null));
    let with = |name: &'static str, config: HttpConfig| pool.http_with(name, config);
    let none = with("none", HttpConfig::url(server.url()).max_redirects(0)).await.unwrap();
    assert_eq!(none.get("/hop?left=1").send().await.unwrap().status(), StatusCode::TEMPORARY_REDIRECT);
    // The header would go along to the other server.
    let keyed = with("keyed", HttpConfig::url(server.url()).header("X-Key", "k3y")).await.unwrap();
    let error = keyed.get("/away").send().within(SOON).await.unwrap_err();
    assert!(
        matches!(error, Error::Operation { .. }) && error.to_string().contains("leads to another server"),
        "{error}"
    );
    assert_eq!(keyed.get("/hop?left=2").send().await.unwrap().text().await.unwrap(), "arrived");
    let error = keyed.get(&elsewhere.url()).send().await.unwrap_err();
    assert!(error.to_string().contains("another server") && !error.to_string().contains("k3y"), "{error}");
    // The driver's own builder may lead elsewhere too.
    let swapped = keyed.get("/hop").with(|_| keyed.raw_client().unwrap().get(elsewhere.url()));
    let error = swapped.send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("another server"), "{error:?}");
    let plain = keyed.raw_client().unwrap().get(elsewhere.url()).build().unwrap();
    assert!(matches!(keyed.execute(plain).await.unwrap_err(), Error::Operation { .. }));
    // Nothing keeps the bare client at its server, so it has no secret at all. `execute` adds them.
    let raw = keyed.raw_client().unwrap();
    let said: Value = raw.get(elsewhere.url()).send().await.unwrap().json().await.unwrap();
    assert_eq!(said["headers"]["x-key"], Value::Null);
    let here = with("here", HttpConfig::url(elsewhere.url()).header("X-Key", "k3y")).await.unwrap();
    let plain = raw.get(elsewhere.url() + "/here").build().unwrap();
    let said: Value = here.execute(plain).await.unwrap().json().await.unwrap();
    assert_eq!(said["headers"]["x-key"], "k3y");
    assert_eq!(http.get(&elsewhere.url()).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requests_own_headers_stay_at_its_server() {
    let elsewhere = echoing();
    let away = elsewhere.url();
    let server = WebServer::start(
        Router::new()
            .route("/away", any(async move || Redirect::temporary(&away)))
            .route("/here", any(async || Redirect::temporary("/echo")))
            .route("/echo", any(echo)),
    );
    let pool = pool(HttpConfig::url(server.url()));
    let http = pool.http().await.unwrap();
    let ask = async |path: &str| -> Value {
        let request =
            http.post(path).header("X-Key", "s3cret").header("Authorization", "s3cret").json(&json!({"a": 1}));
        request.send().within(SOON).await.unwrap().json().within(SOON).await.unwrap()
    };
    let said = ask("/here").await;
    assert_eq!((&said["headers"]["x-key"], &said["headers"]["authorization"]), (&json!("s3cret"), &json!("s3cret")));
    let said = ask("/away").await;
    assert!(!said.to_string().contains("s3cret"), "{said}");
    assert_eq!((&said["headers"]["content-type"], &said["body"]), (&json!("application/json"), &json!("{\"a\":1}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_that_a_redirect_led_nowhere_may_have_been_done() {
    let nowhere = || "http://127.0.0.1:1/";
    let server = WebServer::start(
        Router::new()
            .route("/again", any(async move || Redirect::temporary(nowhere())))
            .route("/done", any(async move || Redirect::to(nowhere())))
            .route("/done-and-refused", any(async || Redirect::to("ftp://127.0.0.1/")))
            .route("/refused", any(async || Redirect::temporary("ftp://127.0.0.1/"))),
    );
    let pool = pool(HttpConfig::url(server.url()));
    let http = pool.http().await.unwrap();
    for path in ["/again", "/done"] {
        let error = http.post(path).send().within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{path}: {error:?}");
        let error = http.get(path).send().within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Lost { .. }), "{path}: {error:?}");
    }
    // A redirect that is not followed tells as much.
    let error = http.post("/done-and-refused").send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    for request in [http.post("/refused"), http.get("/done-and-refused"), http.put("/done-and-refused")] {
        let error = request.send().within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("none of HTTP"), "{error:?}");
    }
    // Without a redirect nothing was sent.
    let error = http.post(nowhere()).send().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheme_may_be_in_capitals() {
    let server = echoing();
    let capitals = server.url().replace("http://", "HTTP://");
    let pool = pool(HttpConfig::url(&*capitals).password("t0ken"));
    let http = pool.http().await.unwrap();
    for url in [capitals + "/x", "/x".to_owned()] {
        let said: Value = http.get(&url).send().within(SOON).await.unwrap().json().await.unwrap();
        assert_eq!((&said["uri"], &said["headers"]["authorization"]), (&json!("/x"), &json!("Bearer t0ken")), "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_a_request_is_told_without_its_url() {
    let server = echoing();
    let pool = pool(HttpConfig::default());
    let http = pool.http().await.unwrap();
    for url in ["/s3cret", "s3cret", "http://", "http://h:s3cret", "ftp://h/s3cret", "https://[s3cret"] {
        let error = http.get(url).send().await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
    let error = http.get("http://127.0.0.1:1/s3cret?key=s3cret").send().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    let error = http.get(&server.url()).header("X", "a\nb").send().await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }), "{error:?}");
    #[cfg(not(feature = "tls"))]
    assert!(http.get("https://h").send().await.unwrap_err().to_string().contains("feature `tls`"));
    assert_eq!(http.get(&server.url()).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_as_a_whole_has_a_limit_and_must_be_what_it_is_taken_for() {
    let server = WebServer::start(
        Router::new()
            .route("/large", any(async || body(&["0123456789"; 10], Ending::Whole)))
            .route("/one", any(async || "x".repeat(60)))
            .route("/json", any(async || "{\"a\": 1}")),
    );
    let pool = pool(HttpConfig::url(server.url()).max_body(50));
    let http = pool.http().await.unwrap();
    for path in ["/large", "/one"] {
        let error = http.get(path).send().await.unwrap().bytes().await.unwrap_err();
        assert!(error.to_string().contains("over 50 bytes; raise `max_body`"), "{error}");
    }
    let parts: Vec<_> = http.get("/large").send().await.unwrap().collect().within(SOON).await;
    assert_eq!(parts.into_iter().map(|part| part.unwrap().len()).sum::<usize>(), 100);
    let error = http.get("/json").send().await.unwrap().json::<Vec<u8>>().await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }), "{error:?}");
    until_used(&pool, 0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_driver_are_counted_and_cut_too() {
    let server = held(&Gate::new());
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(50);
    options.close.held = Duration::ZERO;
    let pool = pool_of(HttpConfig::url(server.url()), options);
    let http = pool.http().await.unwrap();
    let raw = http.raw_client().unwrap();
    let request = |path: &str| raw.get(server.url() + path).build().unwrap();
    assert_eq!(http.execute(request("/whole")).await.unwrap().text().await.unwrap(), "one,two");
    // The driver's errors of such an answer name its URL.
    let missing = http.execute(request("/nowhere")).await.unwrap();
    assert_eq!(missing.url().as_str(), server.url() + "/nowhere");
    let error = missing.error_for_status().unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    let mut answer = http.execute(request("/stalls")).await.unwrap();
    assert_eq!(&*answer.chunk().await.unwrap().unwrap(), b"one,");
    assert_eq!(usage(&pool).in_use, Some(1));
    // The bare client is neither counted nor cut.
    let mut bare = raw.execute(request("/stalls")).await.unwrap();
    assert_eq!(&*bare.chunk().await.unwrap().unwrap(), b"one,");
    assert_eq!(usage(&pool).in_use, Some(1));
    let rest = tokio::spawn(async move { answer.chunk().await.unwrap_err() });
    pool.close_all().within(SOON).await;
    let error = rest.within(SOON).await.unwrap();
    assert!(matches!(Error::behind(&error), Some(Error::Closed { .. })), "{error:?}");
}

/// A client's connections end with the runtime that they were made on. The pool's are made on its own.
#[test]
fn a_connection_outlives_the_runtime_of_its_caller() {
    let server = echoing();
    let (mut options, url) = (unhurried(), server.url());
    options.worker_threads = Some(2);
    let pool = pool_of(HttpConfig::url(url.clone()), options);
    for _ in 0..5 {
        let answer =
            runtime().block_on(async { pool.http().await.unwrap().get("").send().await.unwrap().text().await });
        assert!(answer.unwrap().contains("GET"));
    }
    let ours = server.accepted();
    // A connection is free again a moment after its body was read.
    assert!(ours < 5, "{ours}");
    // The bare client, as a control.
    let bare = resource_pool::reqwest::Client::builder().no_proxy();
    #[cfg(feature = "tls")]
    let bare = bare.tls_backend_preconfigured(tls::untrusting());
    let bare = bare.build().unwrap();
    for _ in 0..5 {
        let answer = runtime().block_on(async { bare.get(&url).send().await.unwrap().text().await });
        assert!(answer.unwrap().contains("GET"));
    }
    assert_eq!(server.accepted(), ours + 5);
}

/// Runs the test of this name alone, with a proxy in its environment.
fn alone_behind_a_proxy(test: &str, proxy: &str) -> bool {
    const ALONE: &str = "RESOURCE_POOL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", test, "--nocapture"]).env(ALONE, "yes").env_remove("NO_PROXY").env_remove("no_proxy");
    assert!(child.env("HTTP_PROXY", proxy).env("http_proxy", proxy).status().expect("a child").success());
    false
}

#[test]
fn a_proxy_is_used_only_if_it_is_asked_for() {
    let proxy = WebServer::start(Router::new().fallback(any(async |uri: Uri, headers: HeaderMap| {
        let login = headers.get("proxy-authorization").map_or("none", |value| value.to_str().unwrap());
        format!("{uri} by {login}")
    })));
    if !alone_behind_a_proxy("a_proxy_is_used_only_if_it_is_asked_for", &proxy.url()) {
        return;
    }
    let by_environment = std::env::var("HTTP_PROXY").unwrap();
    let server = WebServer::start(Router::new().fallback(any(async || "the server itself")));
    let config = || HttpConfig::url(server.url());
    runtime().block_on(async {
        let asked = async |config: HttpConfig| {
            let pool = pool(config);
            let http: Http = pool.http().await.unwrap().clone();
            http.get("/x").send().within(SOON).await.unwrap().text().await.unwrap()
        };
        assert_eq!(asked(config()).await, "the server itself");
        let through = format!("{}/x by none", server.url());
        assert_eq!(asked(config().environment_proxies(true)).await, through);
        assert_eq!(asked(config().proxy(by_environment.clone())).await, through);
        let with_login = proxy.url().replace("http://", "http://u:p4ss@");
        assert_eq!(asked(config().proxy(with_login)).await, format!("{}/x by Basic dTpwNHNz", server.url()));
    });
}

/// The key and the problem of a configuration that cannot be used.
#[track_caller]
fn wrong(config: HttpConfig) -> (String, String) {
    match ResourcePool::builder().environment([("", ""); 0]).resource(config).build() {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_value_that_cannot_be_used_is_refused_and_shown_nowhere() {
    let url = || HttpConfig::url("http://h");
    let long = Duration::from_secs(40_000);
    for (config, key, expected) in [
        (HttpConfig::url("s3cret"), "http.url", "is not a URL"),
        (HttpConfig::url("ftp://s3cret"), "http.url", "expected http:// or https://"),
        (HttpConfig::url("http://h/?key=s3cret"), "http.url", "has a `?` or `#`"),
        (HttpConfig::url("http://h/#s3cret"), "http.url", "has a `?` or `#`"),
        (HttpConfig::url("http://me:s3/cret@h"), "http.url", "contains `@` after the host"),
        (HttpConfig::url("http:///s3cret"), "http.url", "names no host"),
        (url().user("a:s3cret").password("x"), "http.user", "has a colon"),
        (url().password("s3cret\n"), "http.password", "cannot stand in an HTTP header"),
        (url().header("a b", "s3cret"), "http.headers.a b", "is no name"),
        (url().header("x-key", "s3cret\0"), "http.headers.x-key", "cannot stand in an HTTP header"),
        (url().password("x").header("Authorization", "s3cret"), "http.headers.Authorization", "beside a login"),
        (url().user_agent("a\nb"), "http.user_agent", "cannot stand in an HTTP header"),
        (url().connect_timeout(Duration::ZERO), "http.connect_timeout_ms", "at least 1 ms"),
        (url().read_timeout(Duration::ZERO), "http.read_timeout_ms", "at least 1 ms"),
        (url().max_requests(0), "http.max_requests", "must be from 1"),
        (url().max_body(0), "http.max_body", "must be from 1"),
        (url().keepalive(long), "http.keepalive_ms", "whole seconds"),
        (url().proxy("socks5://s3cret"), "http.proxy", "expected http:// or https://"),
        (url().health_url("ftp://s3cret"), "http.health_url", "expected http:// or https://"),
        (HttpConfig::default().health_url("/health"), "http.health_url", "there is no `url`"),
        // Nothing says which server may have the login and the headers.
        (HttpConfig::default().user("me"), "http.url", "go to its server alone"),
        (HttpConfig::default().password("s3cret"), "http.url", "go to its server alone"),
        (HttpConfig::default().header("x-key", "s3cret"), "http.url", "go to its server alone"),
        (url().password("x").health_url("http://other/s3cret"), "http.health_url", "of another server"),
        (url().password("x").password_file("/nonexistent/f"), "http.password_file", "beside a password"),
        (url().password_file("/nonexistent/f"), "http.password_file", "cannot be read"),
    ] {
        let (found, problem) = wrong(config);
        assert!(found == key && problem.contains(expected) && !problem.contains("s3cret"), "{found}: {problem}");
    }
    for (text, key) in [
        ("[http]\nhost = 'h'", "http"),
        ("[http]\nmax_requests = -1", "http.max_requests"),
        ("[named.http.market]\nurl = 'x'", "market.url"),
    ] {
        let built: Result<ResourcePool, _> =
            ResourcePool::builder().environment([("", ""); 0]).config_str(text).build();
        let Err(Error::Config { key: found, .. }) = built else { panic!("{built:?}") };
        assert!(found.contains(key), "{found}");
    }
}

#[test]
fn the_environment_fills_the_default_client_and_named_ones() {
    let server = echoing();
    let (url, place) = (server.url(), server.url().replace("http://", "http://me:p4ss@"));
    let variables = [
        ("HTTPCLIENT_URL", &*place),
        ("RESOURCE_POOL_HTTP_MARKET_URL", &*url),
        ("RESOURCE_POOL_HTTP_MARKET_PASSWORD", "t0ken"),
    ];
    let pool: blocking::ResourcePool =
        blocking::ResourcePool::builder().environment(variables).options(unhurried()).build().unwrap();
    let login = |http: &blocking::Http| {
        let said: Value = http.send(http.get("")).unwrap().json().unwrap();
        said["headers"]["authorization"].as_str().unwrap().to_owned()
    };
    assert_eq!(login(&pool.http().unwrap()), "Basic bWU6cDRzcw==");
    assert_eq!(login(&pool.http_named("market").unwrap()), "Bearer t0ken");
    // The login and the headers of the file are those of its own server.
    let text = "[http]\nurl = 'http://127.0.0.1:1'\nuser = 'me'\npassword = 'p4ss'\nheaders = { X-Key = 'k3y' }";
    let builder = blocking::ResourcePool::builder().environment([("HTTPCLIENT_URL", &*url)]).config_str(text);
    let pool: blocking::ResourcePool = builder.options(unhurried()).build().unwrap();
    let http = pool.http().unwrap();
    let said: Value = http.send(http.get("")).unwrap().json().unwrap();
    assert_eq!((&said["headers"]["authorization"], &said["headers"]["x-key"]), (&Value::Null, &Value::Null), "{said}");
    // A CGI server sets such variables to the headers of a request, so they count for nothing.
    let variables = [("HTTP_URL", "http://evil"), ("HTTP_CLIENT_URL", "http://evil"), ("HTTP_PROXY", "http://evil")];
    let pool: ResourcePool = ResourcePool::builder().environment(variables).build().unwrap();
    assert_eq!(pool.status().resource("http").map_or("", |http| &*http.endpoint), "");
}

#[test]
fn no_secret_is_shown() {
    let secrets = ["p4ssw0rd", "t0ken", "k3y", "pr0xy", "h3alth", "base-p4th"];
    let config = HttpConfig::url("http://me:p4ssw0rd@127.0.0.1:1/base-p4th")
        .header("X-Key", "k3y")
        .proxy("http://u:pr0xy@127.0.0.1:1")
        .health_url("http://127.0.0.1:1/h3alth");
    let (said, log) = common::Log::during(|| {
        runtime().block_on(async {
            let mut options = Options::default();
            options.retry.attempts = 1;
            let pool = pool_of(config.clone(), options.clone());
            let error = pool.http().within(SOON).await.map(drop).unwrap_err();
            let mut without = config.clone();
            without.health_url = None;
            let open = pool_of(without, options);
            let http = open.http().within(SOON).await.unwrap();
            let sent = http.get("/t0ken?key=t0ken").send().within(SOON).await.unwrap_err();
            let (status, holders) = (format!("{:?}", open.status()), format!("{:?}", open.holders()));
            let request = format!("{:?}", http.get("/t0ken"));
            format!("{error} {error:?} {sent} {sent:?} {config:?} {http:?} {request} {status} {holders} {pool:?}")
        })
    });
    for secret in secrets {
        assert!(!said.contains(secret), "{secret} in {said}");
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_holders_show_the_client() {
    let server = echoing();
    let pool = pool(HttpConfig::url(server.url()).max_requests(7).max_idle(3));
    assert_eq!(pool.status().resource("http").map(|http| http.state), Some(State::Idle));
    let http = pool.http().await.unwrap();
    let line = line!() - 1;
    let holders = pool.holders();
    assert_eq!((holders.len(), holders[0].site.line(), holders[0].site.file()), (1, line, file!()));
    let Usage { max, in_use, waiting, max_idle, .. } = usage(&pool);
    assert_eq!([max, in_use, waiting, max_idle], [7, 0, 0, 3].map(Some));
    pool.reconnect("http").within(SOON).await.unwrap();
    assert_eq!(http.get("").send().within(SOON).await.unwrap().status(), StatusCode::OK);
    assert!(pool.close("http").within(SOON).await.unwrap().all_closed());
    assert!(http.get("").send().await.unwrap_err().is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_end_well() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let hit = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { "ok" }
    };
    let server = WebServer::start(Router::new().route("/", post(hit)));
    let pool = pool(HttpConfig::url(server.url()).max_requests(8));
    let http = pool.http().await.unwrap().clone();
    let began = Instant::now();
    let all = (0..400).map(|_| {
        let http = http.clone();
        tokio::spawn(async move { http.post("").send().await?.text().await })
    });
    for one in futures_util::future::join_all(all).within(SOON).await {
        assert_eq!(one.unwrap().unwrap(), "ok");
    }
    assert!(began.elapsed() < SOON);
    assert_eq!(hits.load(Ordering::SeqCst), 400, "none is sent twice");
    until(SOON, || usage(&pool).in_use == Some(0));
}

/// A kind of one's own whose server speaks HTTP.
struct Feed(String);

impl Resource for Feed {
    type Handle = Requests;

    async fn connect(&self, link: &Link) -> Result<Requests, Failure> {
        let mut settings = RequestSettings::new(RequestTls::new(link.name(), None)?);
        settings.base = Some(self.0.parse()?);
        settings.max_requests = 3;
        Requests::new(link, settings)
    }

    async fn ping(&self, requests: &Requests) -> Result<(), Failure> {
        requests.request("GET".parse()?, "/health").send().await?.checked().await?.finish();
        Ok(())
    }

    async fn close(&self, requests: Requests) -> Result<(), Failure> {
        requests.end().await
    }

    fn usage(&self, requests: &Requests) -> Usage {
        requests.usage()
    }

    fn phase(&self) -> Phase {
        Phase::HttpClients
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_ones_own_is_made_of_the_same_parts() {
    let server = held(&Gate::new());
    let pool = pool(HttpConfig::default());
    pool.register("feed", Feed(server.url())).unwrap();
    let feed = pool.get::<Feed>("feed").within(SOON).await.unwrap();
    let answer = feed.request("GET".parse().unwrap(), "whole").send().within(SOON).await.unwrap();
    assert_eq!(answer.text().within(SOON).await.unwrap(), "one,two");
    assert_eq!(pool.status().resource("feed").unwrap().usage.max, Some(3));
    assert_eq!(pool.health_check().within(SOON).await.entry("feed").unwrap().health, Health::Pass);
    drop(feed);
    assert!(pool.close_all().within(SOON).await.all_closed());
}

#[cfg(feature = "tls")]
mod tls {
    use std::fs;
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    use resource_pool::config::TlsOptions;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A client's configuration that trusts nobody.
    pub(super) fn untrusting() -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
    }

    /// An authority, with its certificate and those of a server, in a folder.
    struct Authority {
        folder: PathBuf,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("http-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            Authority { folder, issuer: Issuer::new(params, key) }
        }

        /// The acceptor of a server of this name.
        fn acceptor(&self, host: &str) -> TlsAcceptor {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([host.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, private).unwrap();
            TlsAcceptor::from(Arc::new(config))
        }

        fn trusting(&self) -> TlsOptions {
            TlsOptions::default().ca_file(self.folder.join("ca.pem"))
        }
    }

    impl Drop for Authority {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    struct Secured(tokio::net::TcpListener, TlsAcceptor);

    impl axum::serve::Listener for Secured {
        type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (Self::Io, SocketAddr) {
            loop {
                let Ok((stream, address)) = self.0.accept().await else { continue };
                if let Ok(stream) = self.1.accept(stream).await {
                    return (stream, address);
                }
            }
        }

        fn local_addr(&self) -> std::io::Result<SocketAddr> {
            self.0.local_addr()
        }
    }

    /// Serves the text until the test ends, and answers the port.
    async fn serve(acceptor: TlsAcceptor, text: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(any(async move || text));
        tokio::spawn(async move { axum::serve(Secured(listener, acceptor), router).await });
        port
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn https_is_checked_against_the_own_authority_or_the_machines() {
        let (ours, other) = (Authority::new("ours"), Authority::new("other"));
        let port = serve(ours.acceptor("localhost"), "secured").await;
        let secure = format!("https://localhost:{port}");
        let pool = pool(HttpConfig::url(&*secure).tls(ours.trusting()));
        let http = pool.http().await.unwrap();
        assert_eq!(http.get("").send().within(SOON).await.unwrap().text().await.unwrap(), "secured");
        let error = |name: &'static str, config: HttpConfig| {
            let pool = pool.clone();
            async move { pool.http_with(name, config).await.unwrap().post("").send().within(SOON).await.unwrap_err() }
        };
        // No further attempt mends these, so they are no losses.
        let wrong = error("wrong", HttpConfig::url(&*secure).tls(other.trusting())).await;
        assert!(matches!(wrong, Error::Operation { .. }) && !wrong.is_transient(), "{wrong:?}");
        assert!(wrong.to_string().contains("set tls.ca_file"), "{wrong}");
        let machine = error("machine", HttpConfig::url(&*secure)).await;
        assert!(matches!(machine, Error::Operation { .. }), "{machine:?}");
        let by_address = HttpConfig::url(format!("https://127.0.0.1:{port}")).tls(ours.trusting());
        let nameless = error("nameless", by_address).await;
        assert!(nameless.to_string().contains("certificate's names"), "{nameless}");
        let plain = echoing();
        let by_tls = HttpConfig::url(format!("https://127.0.0.1:{}", plain.port())).tls(ours.trusting());
        let foreign = error("foreign", by_tls).await;
        assert!(matches!(foreign, Error::Lost { .. }), "{foreign:?}");
        assert!(foreign.to_string().contains("speaks no TLS"), "{foreign}");
        // The process's default provider plays no part, since there is none.
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn refresh_reads_the_files_of_tls_anew() {
        let (ours, other) = (Authority::new("turning"), Authority::new("next"));
        let old = serve(ours.acceptor("localhost"), "old").await;
        let new = serve(other.acceptor("localhost"), "new").await;
        let pool = pool(HttpConfig::default().tls(ours.trusting()));
        let http = pool.http().await.unwrap();
        let ask =
            async |port: u16| http.get(&format!("https://localhost:{port}")).send().within(SOON).await?.text().await;
        assert_eq!(ask(old).await.unwrap(), "old");
        assert!(ask(new).await.is_err());
        fs::copy(other.folder.join("ca.pem"), ours.folder.join("ca.pem")).unwrap();
        pool.refresh("http").within(SOON).await.unwrap();
        assert_eq!(ask(new).await.unwrap(), "new");
    }

    #[test]
    fn tls_that_cannot_be_is_refused() {
        let url = |url: &str| HttpConfig::url(url).tls(TlsOptions::default());
        let (key, problem) = wrong(url("http://h"));
        assert!(key == "http.url" && problem.contains("use https://"), "{key}: {problem}");
        let mut named = url("https://h");
        named.tls = Some(TlsOptions::default().server_name("x"));
        assert_eq!(wrong(named).0, "http.tls.server_name");
        let missing = HttpConfig::url("https://h").tls(TlsOptions::default().ca_file("/nonexistent/ca.pem"));
        let (key, problem) = wrong(missing);
        assert!(key == "http.tls.ca_file" && problem.contains("cannot be read"), "{key}: {problem}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn without_the_feature_tls_https_is_refused_with_the_remedy() {
    let (key, problem) = wrong(HttpConfig::url("https://h"));
    assert!(key.starts_with("http") && problem.contains("feature `tls`"), "{key}: {problem}");
}
