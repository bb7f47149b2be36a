//! Chroma against the real server.

#![cfg(feature = "chroma")]
#![allow(missing_docs)]

mod common;
#[path = "common/vectors.rs"]
mod vectors;
#[path = "common/web.rs"]
mod web;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use common::{Stopwatch, Within, eventually, unhurried};
use resource_pool::config::{ChromaConfig, HttpConfig, Options};
use resource_pool::{
    ChromaCollection, ChromaError, ChromaFault, ChromaQuery, ChromaRecord, ChromaSpace, ChromaSpec, Error, Health,
    Phase, ResourcePool, State, Usage, Work, blocking,
};
use serde_json::json;
use services::{BlackHole, Kind, Proxy, Service, shared};
use vectors::{NEIGHBOURS, RECALL, VectorSet, distance};
use web::{Gate, WebServer};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);
const TOKEN: &str = "ck-s3cret-0123456789";

fn pool_of(config: ChromaConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(ChromaConfig::url(server.url()), unhurried())
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("chroma").unwrap().usage
}

fn state(pool: &ResourcePool) -> (State, u64) {
    let status = pool.status();
    let status = status.resource("chroma").unwrap();
    (status.state, status.generation)
}

/// The error that the server answered.
fn told(error: &Error) -> ChromaError {
    let Error::Operation { source, .. } = error else { panic!("{error:?}") };
    source.downcast_ref::<ChromaError>().unwrap_or_else(|| panic!("{error:?}")).clone()
}

/// A collection with three records.
async fn three(pool: &ResourcePool, name: &str) -> ChromaCollection {
    let bars = pool.chroma().await.unwrap().create(name).within(SOON).await.unwrap();
    let records = [
        ChromaRecord::new("a", &[1.0, 0.0, 0.0]).document("one").metadata("sector", "banks").metadata("year", 2011),
        ChromaRecord::new("b", &[0.0, 2.0, 0.0]).metadata("sector", "banks").metadata("year", 2012),
        ChromaRecord::new("c", &[0.0, 0.0, 4.0]),
    ];
    bars.upsert(&records).within(SOON).await.unwrap();
    bars
}

/// A proxy as users put one before Chroma: it asks for the token in both headers, holds queries up at a gate, and passes
/// everything else on.
fn front(server: &'static Service, gate: &Gate, token: &'static str) -> WebServer {
    let (gate, token) = (gate.clone(), Arc::<str>::from(token));
    let behind: ResourcePool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(HttpConfig::url(server.url()))
        .build()
        .unwrap();
    WebServer::start(Router::new().fallback(move |request: Request| {
        let (gate, token, behind) = (gate.clone(), Arc::clone(&token), behind.clone());
        async move { passed_on(request, &gate, &token, &behind).await }
    }))
}

async fn passed_on(request: Request, gate: &Gate, token: &str, behind: &ResourcePool) -> Response {
    let header = |name: &str| Some(request.headers().get(name)?.to_str().unwrap().to_owned());
    let [by_proxy, by_cloud] = ["authorization", "x-chroma-token"].map(header);
    if by_proxy != Some(format!("Bearer {token}")) || by_cloud.as_deref() != Some(token) {
        let said = format!("{{\"error\":\"AuthError\",\"message\":\"not {by_cloud:?}\"}}");
        return (StatusCode::UNAUTHORIZED, said).into_response();
    }
    let path = request.uri().path().to_owned();
    if path.ends_with("/query") {
        gate.pass().await;
    }
    let method = request.method().clone();
    let body = axum::body::to_bytes(request.into_body(), 1 << 24).await.unwrap();
    let http = behind.http().await.unwrap();
    let passed = http.request(method, &path).header("content-type", "application/json").body(body);
    let answer = passed.send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap()).into_response()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_stored_found_replaced_and_deleted() {
    let pool = pool(shared(Kind::Chroma));
    let bars = three(&pool, "stored").await;
    assert_eq!((bars.name(), bars.count().within(SOON).await.unwrap()), ("stored", 3));
    let near = [0.9, 0.1, 0.0];
    let found = bars.query(ChromaQuery::new(&near, 2)).within(SOON).await.unwrap();
    assert_eq!(found.iter().map(|found| &*found.id).collect::<Vec<_>>(), ["a", "b"]);
    for (found, vector) in found.iter().zip([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]) {
        assert!((found.distance - distance(&near, &vector)).abs() < 1e-5, "{found:?}");
        assert!(found.document.is_none() && found.metadata.is_empty(), "{found:?}");
    }
    let query = ChromaQuery::new(&near, 9).filter(json!({"year": {"$gte": 2012}})).with_documents().with_metadata();
    let found = bars.query(query).within(SOON).await.unwrap();
    assert_eq!((found.len(), &*found[0].id, &found[0].metadata["year"]), (1, "b", &json!(2012)));
    let found = bars.query(ChromaQuery::new(&near, 1).with_documents()).within(SOON).await.unwrap();
    assert_eq!(found[0].document.as_deref(), Some("one"));
    // A record of the same id takes the place of the old one.
    bars.upsert(&[ChromaRecord::new("c", &[0.9, 0.1, 0.0]).document("three")]).within(SOON).await.unwrap();
    let found = bars.query(ChromaQuery::new(&near, 1).with_documents()).within(SOON).await.unwrap();
    assert_eq!((&*found[0].id, found[0].document.as_deref()), ("c", Some("three")));
    assert!(found[0].distance < 1e-6, "{found:?}");
    bars.delete(&["c", "nobody"]).within(SOON).await.unwrap();
    assert_eq!(bars.count().within(SOON).await.unwrap(), 2);
    // Nothing at all is no error, and asks for nothing.
    bars.upsert(&[]).await.unwrap();
    bars.delete(&[]).await.unwrap();
    assert_eq!(bars.count().within(SOON).await.unwrap(), 2);
    let chroma = pool.chroma().await.unwrap();
    let again = chroma.collection("stored").within(SOON).await.unwrap();
    assert_eq!(again.id(), bars.id());
    assert_eq!(chroma.get_or_create("stored").within(SOON).await.unwrap().id(), bars.id());
    let all =
        chroma.request("GET".parse().unwrap(), "/collections_count").send().await.unwrap().checked().await.unwrap();
    assert!(all.json::<u64>().await.unwrap() >= 1);
    chroma.delete("stored").within(SOON).await.unwrap();
    drop(chroma);
    let report = pool.close_all().within(SOON).await;
    assert_eq!(report.step("chroma").unwrap().phase, Phase::VectorStores);
    assert!(report.all_closed(), "{report}");
    // A clone that was kept answers errors.
    assert!(matches!(again.count().within(SOON).await, Err(Error::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_measures_as_it_was_created() {
    let pool = pool(shared(Kind::Chroma));
    let chroma = pool.chroma().await.unwrap();
    for (space, name, expected) in [
        (ChromaSpace::L2, "by-square", 8.0 + 0.0),
        (ChromaSpace::Cosine, "by-cosine", 1.0),
        (ChromaSpace::InnerProduct, "by-product", 1.0),
    ] {
        let spec =
            ChromaSpec::new(name).space(space).ef_construction(50).ef_search(50).max_neighbors(8).metadata("n", 1);
        let bars = chroma.create(spec).within(SOON).await.unwrap();
        bars.upsert(&[ChromaRecord::new("a", &[2.0, 0.0])]).within(SOON).await.unwrap();
        let found = bars.query(ChromaQuery::new(&[0.0, 2.0], 1)).within(SOON).await.unwrap();
        assert!((found[0].distance - expected).abs() < 1e-6, "{name}: {found:?}");
        let request = chroma.request("GET".parse().unwrap(), &format!("collections/{name}"));
        let told: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        let hnsw = &told["configuration_json"]["hnsw"];
        assert_eq!(
            (&hnsw["ef_search"], &hnsw["max_neighbors"], &told["metadata"]["n"]),
            (&json!(50), &json!(8), &json!(1))
        );
    }
}

#[test]
fn threads_have_the_same_verbs() {
    let server = shared(Kind::Chroma);
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(ChromaConfig::url(server.url()))
        .build()
        .unwrap();
    let chroma = pool.chroma().unwrap();
    let bars = chroma.create("of-threads").unwrap();
    bars.upsert(&[ChromaRecord::new("a", &[1.0, 0.0]), ChromaRecord::new("b", &[0.0, 1.0])]).unwrap();
    assert_eq!(bars.query(ChromaQuery::new(&[0.0, 0.9], 1)).unwrap()[0].id, "b");
    bars.delete(&["b"]).unwrap();
    assert_eq!((bars.count().unwrap(), bars.name()), (1, "of-threads"));
    assert_eq!(chroma.collection("of-threads").unwrap().id(), bars.id());
    assert_eq!(chroma.get_or_create("of-threads").unwrap().id(), bars.id());
    let other = pool.chroma_with("other", ChromaConfig::url(server.url())).unwrap();
    other.delete("of-threads").unwrap();
    assert_eq!(told(&bars.count().unwrap_err()).fault, ChromaFault::NotFound);
    drop((chroma, other));
    assert!(pool.close_all().unwrap().all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_an_error_tells_its_fault_and_cuts_nothing() {
    let pool = pool(shared(Kind::Chroma));
    let bars = three(&pool, "faulty").await;
    let chroma = pool.chroma().await.unwrap();
    let before = state(&pool);
    let vector = [1.0, 0.0, 0.0];
    let errors = [
        (chroma.create("faulty").within(SOON).await.map(drop), ChromaFault::Exists, "already exists"),
        (chroma.collection("nobody").within(SOON).await.map(drop), ChromaFault::NotFound, "nobody"),
        (chroma.delete("nobody").within(SOON).await, ChromaFault::NotFound, "nobody"),
        (chroma.create("x").within(SOON).await.map(drop), ChromaFault::Invalid, "3-512 characters"),
        (
            bars.upsert(&[ChromaRecord::new("d", &[1.0])]).within(SOON).await,
            ChromaFault::Invalid,
            "dimension of 3, got 1",
        ),
        (bars.upsert(&[ChromaRecord::new("d", &[f32::NAN, 0.0, 0.0])]).within(SOON).await, ChromaFault::Invalid, ""),
        (bars.query(ChromaQuery::new(&[1.0], 1)).within(SOON).await.map(drop), ChromaFault::Invalid, "got 1"),
        (
            bars.query(ChromaQuery::new(&vector, 1).filter(json!({"year": {"$near": 1}}))).within(SOON).await.map(drop),
            ChromaFault::Invalid,
            "where",
        ),
    ];
    for (answer, fault, words) in errors {
        let error = answer.expect_err(words);
        assert!(told(&error).fault == fault && error.to_string().contains(words), "{words}: {error}");
        assert!(!error.is_transient(), "{error}");
    }
    // The server does not read a payload that is too large. Its answer may be lost as it closes the connection.
    let long = "x".repeat(41 << 20);
    let error = bars.upsert(&[ChromaRecord::new("d", &vector).document(&long)]).within(SOON).await.unwrap_err();
    if !matches!(error, Error::Lost { .. }) {
        assert_eq!(told(&error).fault, ChromaFault::Invalid, "{error}");
        assert!(error.to_string().contains("Payload too large"), "{error}");
    }
    // A name that would lead elsewhere is not sent.
    for name in ["", ".", ".."] {
        let error = chroma.delete(name).await.unwrap_err();
        assert!(error.to_string().contains("neither be empty"), "{error}");
    }
    let error = chroma.collection("a/../../x?y#z").within(SOON).await.unwrap_err();
    assert_eq!(told(&error).fault, ChromaFault::NotFound, "{error}");
    // Another collection of the same name is not taken for the old one.
    chroma.delete("faulty").within(SOON).await.unwrap();
    chroma.create("faulty").within(SOON).await.unwrap();
    let error = bars.upsert(&[ChromaRecord::new("a", &vector)]).within(SOON).await.unwrap_err();
    assert_eq!(told(&error).fault, ChromaFault::NotFound, "{error}");
    assert_eq!(state(&pool), before);
    assert_eq!(usage(&pool).in_use, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_or_database_that_is_not_there_is_told_at_once() {
    let server = shared(Kind::Chroma);
    let url = || ChromaConfig::url(server.url());
    for config in [url().tenant("nobody"), url().database("nothing"), url().database("x"), url().database("a/../b")] {
        let error = pool_of(config, unhurried()).chroma().within(SOON).await.map(drop).unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error:?}") };
        assert!(connect.permanent && connect.attempts == 1 && error.to_string().contains("set `tenant`"), "{error}");
    }
    // A database that was created is found.
    let pool = pool(server);
    let chroma = pool.chroma().await.unwrap();
    let http = pool.http_with("bare", HttpConfig::url(server.url())).await.unwrap();
    let request = http.post("/api/v2/tenants/default_tenant/databases").json(&json!({"name": "desk-one"}));
    request.send().within(SOON).await.unwrap().checked().await.unwrap().finish();
    let desk = pool.chroma_with("desk", url().database("desk-one")).within(SOON).await.unwrap();
    desk.create("only-here").within(SOON).await.unwrap();
    assert!(chroma.collection("only-here").within(SOON).await.is_err());
}

/// A proxy answers as long as it knows no way to the server. Its 404 says nothing about collections and databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_404_of_a_proxy_is_no_word_of_the_servers() {
    let server = shared(Kind::Chroma);
    let is_closed = Arc::new(AtomicBool::new(true));
    let behind: ResourcePool = ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(HttpConfig::url(server.url()))
        .build()
        .unwrap();
    let closed = Arc::clone(&is_closed);
    let front = WebServer::start(Router::new().fallback(move |request: Request| {
        let (closed, behind) = (Arc::clone(&closed), behind.clone());
        async move {
            if closed.load(Ordering::SeqCst) {
                return (StatusCode::NOT_FOUND, "<html>no such site</html>").into_response();
            }
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let http = behind.http().await.unwrap();
            let passed = http.request(method, &path).header("content-type", "application/json").body(body);
            let answer = passed.send().await.unwrap();
            (answer.status(), answer.bytes().await.unwrap()).into_response()
        }
    }));
    let mut options = unhurried();
    (options.circuit, options.retry.budget) = (Duration::ZERO, Duration::from_secs(1));
    // The heartbeat goes through the proxy too.
    options.probe.enabled = false;
    let pool = pool_of(ChromaConfig::url(front.url()), options);
    let error = pool.chroma().within(SOON).await.map(drop).unwrap_err();
    let Error::Connect(connect) = &error else { panic!("{error:?}") };
    assert!(!connect.permanent && error.to_string().contains("none of Chroma's"), "{error}");
    is_closed.store(false, Ordering::SeqCst);
    let chroma = pool.chroma().within(SOON).await.unwrap();
    let error = chroma.collection("behind-a-proxy").within(SOON).await.map(drop).unwrap_err();
    assert_eq!(told(&error).fault, ChromaFault::NotFound, "{error}");
    is_closed.store(true, Ordering::SeqCst);
    let error = chroma.collection("behind-a-proxy").within(SOON).await.map(drop).unwrap_err();
    assert_eq!(told(&error).fault, ChromaFault::Foreign, "{error}");
}

/// A proxy that wants a login of its own redirects to its page, or shows it. Neither is an answer of the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_proxy_is_no_answer() {
    let is_shown = Arc::new(AtomicBool::new(false));
    for (name, page) in [
        ("redirected", (|| Redirect::to("/login").into_response()) as fn() -> Response),
        ("shown", || "<html>log in</html>".into_response()),
    ] {
        let shown = Arc::clone(&is_shown);
        let front = WebServer::start(Router::new().fallback(move || {
            let answer = match shown.load(Ordering::SeqCst) {
                true => page(),
                false => r#"{"id":"1","name":"bars"}"#.into_response(),
            };
            async move { answer }
        }));
        let mut options = unhurried();
        (options.circuit, options.retry.budget, options.probe.enabled) =
            (Duration::ZERO, Duration::from_secs(1), false);
        let config = ChromaConfig::url(front.url());
        let pool = pool_of(config.clone(), options.clone());
        let chroma = pool.chroma().within(SOON).await.unwrap();
        let bars = chroma.create("bars").within(SOON).await.unwrap();
        is_shown.store(true, Ordering::SeqCst);
        let record = [ChromaRecord::new("a", &[1.0])];
        for answer in [
            bars.upsert(&record).within(SOON).await,
            bars.delete(&["a"]).within(SOON).await,
            bars.query(ChromaQuery::new(&[1.0], 1)).within(SOON).await.map(drop),
            bars.count().within(SOON).await.map(drop),
            chroma.delete("bars").within(SOON).await,
            chroma.collection("bars").within(SOON).await.map(drop),
            chroma.get_or_create("bars").within(SOON).await.map(drop),
        ] {
            let error = answer.expect_err(name);
            assert!(matches!(error, Error::Operation { .. }), "{name}: {error:?}");
        }
        // The request may have come through before.
        let error = chroma.create("others").within(SOON).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{name}: {error:?}");
        assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Fail, "{name}");
        let error = pool_of(config, options).chroma().within(SOON).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::Connect(_)) && error.to_string().contains("see that"), "{name}: {error}");
        is_shown.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_wrong_token_is_told_at_once_and_shown_nowhere() {
    let front = front(shared(Kind::Chroma), &Gate::new(), "another");
    let config = ChromaConfig::url(front.url()).token(TOKEN);
    let (said, log) = common::Log::during(|| {
        web::runtime().block_on(async {
            let pool = pool_of(config.clone(), unhurried());
            let error = pool.chroma().within(SOON).await.map(drop).unwrap_err();
            let Error::Connect(connect) = &error else { panic!("{error:?}") };
            assert!(connect.permanent && connect.attempts == 1, "{error}");
            assert!(error.to_string().contains("CHROMA_TOKEN"), "{error}");
            let report = pool.health_check().within(SOON).await;
            format!("{error} {error:?} {config:?} {pool:?} {:?} {report}", pool.status())
        })
    });
    assert!(!said.contains("s3cret"), "{said}");
    assert!(!log.contains("s3cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_file_is_read_again() {
    static RIGHT: &str = "ck-right";
    let gate = Gate::new();
    let front = front(shared(Kind::Chroma), &gate, RIGHT);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chroma-token-{}", std::process::id()));
    let mut options = unhurried();
    (options.health.cache, options.health.slow) = (Duration::ZERO, SOON);
    (options.health.each, options.health.all) = (Duration::from_secs(3), Duration::from_secs(4));
    (options.circuit, options.retry.budget) = (Duration::ZERO, Duration::from_secs(1));
    // A token that is refused may just be replaced.
    fs::write(&file, "ck-wrong").unwrap();
    let pool = pool_of(ChromaConfig::url(front.url()).token_file(&*file), options);
    let error = pool.chroma().within(SOON).await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Connect(error) if !error.permanent), "{error}");
    fs::write(&file, format!("{RIGHT}\n")).unwrap();
    let chroma = pool.chroma().within(SOON).await.unwrap();
    let bars = chroma.get_or_create("of-a-file").within(SOON).await.unwrap();
    fs::write(&file, "ck-wrong").unwrap();
    pool.refresh("chroma").within(SOON).await.unwrap();
    let error = bars.count().within(SOON).await.unwrap_err();
    assert_eq!(told(&error).fault, ChromaFault::Denied, "{error}");
    assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Warn);
    fs::write(&file, RIGHT).unwrap();
    pool.refresh("chroma").within(SOON).await.unwrap();
    bars.count().within(SOON).await.unwrap();
    assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Pass);
    fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_blocks_nobody() {
    let server = Service::start(Kind::Chroma).unwrap();
    // While the pool connects.
    server.freeze().unwrap();
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(2);
    let pool = pool_of(ChromaConfig::url(server.url()), options.clone());
    let stopwatch = Stopwatch::start();
    let error = pool.chroma().within(SOON).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Connect(_) | Error::Timeout(_)), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    server.thaw().unwrap();
    // While a call is in flight.
    let bars = eventually(SOON, async || pool.chroma().await.ok()?.get_or_create("frozen").await.ok()).await;
    bars.upsert(&[ChromaRecord::new("a", &[1.0])]).within(SOON).await.unwrap();
    let held = pool.chroma().within(SOON).await.unwrap();
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let error = bars.query(ChromaQuery::new(&[1.0], 1)).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    let error = held.create("too-late").within(SOON).await.unwrap_err();
    assert!(stopwatch.took() < 2 * FROZEN, "{:?} {error}", stopwatch.took());
    assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Fail);
    // A guard drops at once.
    let stopwatch = Stopwatch::start();
    drop(held);
    assert!(stopwatch.took() < Duration::from_millis(100), "{:?}", stopwatch.took());
    // A handle that was taken before goes on.
    server.thaw().unwrap();
    let back = async || bars.query(ChromaQuery::new(&[1.0], 1)).await.ok();
    assert_eq!(eventually(SOON, back).await[0].id, "a");
    // While the pool closes.
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).within(SOON).await;
    assert!(stopwatch.took() < FROZEN && report.step("chroma").is_some(), "{report}");
    let hole = BlackHole::start().unwrap();
    let nowhere = pool_of(ChromaConfig::url(format!("http://127.0.0.1:{}", hole.port())), options);
    let stopwatch = Stopwatch::start();
    assert!(nowhere.chroma().within(SOON).await.is_err());
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_keeps_its_records_and_the_handles() {
    let server = Service::start(Kind::Chroma).unwrap();
    let pool = pool(&server);
    let bars = three(&pool, "killed").await;
    server.kill().unwrap();
    let error = bars.count().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    tokio::task::block_in_place(|| server.restart()).unwrap();
    assert_eq!(eventually(SOON, async || bars.count().await.ok()).await, 3);
    assert_eq!(bars.query(ChromaQuery::new(&[0.0, 0.0, 3.0], 1)).within(SOON).await.unwrap()[0].id, "c");
    assert!(pool.close_all().within(SOON).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_so_many_requests_at_a_time() {
    let gate = Gate::new();
    let front = front(shared(Kind::Chroma), &gate, TOKEN);
    let mut options = unhurried();
    options.acquire_timeout = Duration::from_millis(500);
    let pool = pool_of(ChromaConfig::url(front.url()).token(TOKEN).max_requests(1).max_idle(3), options);
    let bars = three(&pool, "crowded").await;
    let first = tokio::spawn({
        let bars = bars.clone();
        async move { bars.query(ChromaQuery::new(&[1.0, 0.0, 0.0], 1)).await }
    });
    eventually(SOON, async || (gate.arrived() == 1).then_some(())).await;
    let Usage { max, in_use, waiting, max_idle, .. } = usage(&pool);
    assert_eq!([max, in_use, waiting, max_idle], [1, 1, 0, 3].map(Some));
    let error = bars.count().within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("one of 1 requests"), "{error}");
    gate.let_through(1);
    assert_eq!(first.within(SOON).await.unwrap().unwrap()[0].id, "a");
    assert_eq!(bars.count().within(SOON).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_requests_and_then_cuts_them() {
    let gate = Gate::new();
    let front = front(shared(Kind::Chroma), &gate, TOKEN);
    let config = ChromaConfig::url(front.url()).token(TOKEN);
    let asked = |bars: &ChromaCollection| {
        let bars = bars.clone();
        tokio::spawn(async move { bars.query(ChromaQuery::new(&[1.0, 0.0, 0.0], 1)).await })
    };
    let pool = pool_of(config.clone(), unhurried());
    let bars = three(&pool, "drained").await;
    let query = asked(&bars);
    eventually(SOON, async || (gate.arrived() == 1).then_some(())).await;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    pool.closing().wait().within(SOON).await;
    gate.let_through(1);
    assert_eq!(query.within(SOON).await.unwrap().unwrap()[0].id, "a");
    let report = closing.within(SOON).await.unwrap();
    assert_eq!(report.step("chroma").unwrap().finished, [(Work::Operation, 1)], "{report}");
    // Another pool has not the time.
    let mut options = unhurried();
    options.close.drain = Duration::from_millis(200);
    options.close.held = Duration::ZERO;
    let pool = pool_of(config, options);
    let bars = pool.chroma().within(SOON).await.unwrap().collection("drained").within(SOON).await.unwrap();
    let query = asked(&bars);
    eventually(SOON, async || (gate.arrived() == 2).then_some(())).await;
    let stopwatch = Stopwatch::start();
    let report = pool.close_all().within(SOON).await;
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    let error = query.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert_eq!(report.step("chroma").unwrap().unfinished, [(Work::Operation, 1)], "{report}");
    assert!(report.all_closed(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_holders_and_health_show_the_store() {
    let server = Service::start(Kind::Chroma).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let mut options = unhurried();
    (options.health.cache, options.health.slow) = (Duration::ZERO, SOON);
    (options.health.each, options.health.all) = (Duration::from_secs(3), Duration::from_secs(4));
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let pool = pool_of(ChromaConfig::url(&*url), options);
    let chroma = pool.chroma().within(SOON).await.unwrap();
    let status = pool.status();
    let shown = status.resource("chroma").unwrap();
    assert_eq!((&*shown.endpoint, shown.state), (&*url, State::Ready));
    assert!(pool.holders().iter().any(|holder| holder.to_string().contains("tests/chroma.rs")), "{:?}", pool.holders());
    assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Pass);
    proxy.freeze();
    assert_eq!(pool.health_check().within(SOON).await.entry("chroma").unwrap().health, Health::Fail);
    proxy.thaw();
    let passes = async || {
        let report = pool.health_check().await;
        (report.entry("chroma")?.health == Health::Pass).then_some(())
    };
    eventually(SOON, passes).await;
    drop(chroma);
    assert!(pool.holders().is_empty());
}

#[test]
fn every_value_that_cannot_be_used_is_refused_and_shown_nowhere() {
    let url = || ChromaConfig::url("http://h:8000");
    for (config, key, expected) in [
        (ChromaConfig::url("s3cret"), "chroma.url", "is not a URL"),
        (ChromaConfig::url("ftp://s3cret"), "chroma.url", "expected http:// or https://"),
        (ChromaConfig::url("http://h/?key=s3cret"), "chroma.url", "has a `?` or `#`"),
        (ChromaConfig::url("http://me:s3cret@h"), "chroma.url", "has a user"),
        (url().token("s3cret\n"), "chroma.token", "cannot stand in an HTTP header"),
        (url().tenant(""), "chroma.tenant", "neither be empty"),
        (url().database(".."), "chroma.database", "neither be empty"),
        (url().connect_timeout(Duration::ZERO), "chroma.connect_timeout_ms", "at least 1 ms"),
        (url().read_timeout(Duration::ZERO), "chroma.read_timeout_ms", "at least 1 ms"),
        (url().max_requests(0), "chroma.max_requests", "must be from 1"),
        (url().max_body(0), "chroma.max_body", "must be from 1"),
        (url().keepalive(Duration::ZERO), "chroma.keepalive_ms", "whole seconds"),
        (url().token("x").token_file("/nonexistent/f"), "chroma.token_file", "beside a password"),
        (url().token_file("/nonexistent/f"), "chroma.token_file", "cannot be read"),
    ] {
        let built: Result<ResourcePool, _> =
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
        let Err(Error::Config { key: found, problem }) = built else { panic!("{built:?}") };
        assert!(found == key && problem.contains(expected) && !problem.contains("s3cret"), "{found}: {problem}");
    }
}

#[test]
fn the_environment_and_toml_fill_the_default_store_and_named_ones() {
    let server = shared(Kind::Chroma);
    let front = front(server, &Gate::new(), TOKEN);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chroma-env-{}", std::process::id()));
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    let by_url = front.url().replace("http://", &format!("http://:{TOKEN}@"));
    let connects = |variables: &[(&str, &str)], name: Option<&str>| {
        let builder = blocking::ResourcePool::builder().environment(variables.iter().copied()).options(unhurried());
        let pool: blocking::ResourcePool = builder.build().unwrap();
        let chroma = name.map_or_else(|| pool.chroma(), |name| pool.chroma_named(name))?;
        chroma.get_or_create("of-the-environment").map(drop)
    };
    let url = front.url();
    connects(&[("CHROMA_URL", &url), ("CHROMA_TOKEN", TOKEN)], None).unwrap();
    connects(&[("CHROMA_URL", &url), ("CHROMA_TOKEN_FILE", file)], None).unwrap();
    connects(&[("CHROMA_URL", &by_url)], None).unwrap();
    let named = [("RESOURCE_POOL_CHROMA_DESK_URL", &*url), ("RESOURCE_POOL_CHROMA_DESK_TOKEN", TOKEN)];
    connects(&named, Some("desk")).unwrap();
    for variable in ["CHROMA_TENANT", "CHROMA_DATABASE"] {
        let error =
            connects(&[("CHROMA_URL", &*url), ("CHROMA_TOKEN", TOKEN), (variable, "nobody")], None).unwrap_err();
        assert!(error.to_string().contains("no such tenant or database"), "{error}");
    }
    let both = [("CHROMA_URL", &*url), ("CHROMA_TOKEN", TOKEN), ("CHROMA_TOKEN_FILE", file)];
    let Err(Error::Config { key, problem }) = connects(&both, None) else { panic!("it is ambiguous") };
    assert!(key == "CHROMA_TOKEN_FILE" && problem.contains("CHROMA_TOKEN"), "{key}: {problem}");
    let toml = format!(
        "[chroma]\nurl = \"{url}\"\ntoken = \"{TOKEN}\"\ntenant = \"default_tenant\"\nread_timeout_ms = 5000\n"
    );
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .config_str(&*toml)
        .options(unhurried())
        .build()
        .unwrap();
    pool.chroma().unwrap().get_or_create("of-toml").unwrap();
    fs::remove_file(file).unwrap();
}

/// With the server's own parameters the index finds 42 % of the neighbours among 100,000 such vectors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_finds_the_true_neighbours() {
    let set = VectorSet::independent();
    let server = Service::start(Kind::Chroma).unwrap();
    let config = ChromaConfig::url(server.url()).read_timeout(Duration::from_secs(120));
    let mut options = unhurried();
    // The server is busy with the index and not frozen.
    options.probe.strikes = 20;
    let pool = pool_of(config, options);
    let chroma = pool.chroma().within(SOON).await.unwrap();
    let spec = ChromaSpec::new("neighbours").ef_construction(200).max_neighbors(32).ef_search(1000);
    let bars = chroma.create(spec).within(SOON).await.unwrap();
    let began = Instant::now();
    let ids: Vec<String> = (0..set.vectors.len()).map(|place| place.to_string()).collect();
    let records: Vec<_> = ids.iter().zip(&set.vectors).map(|(id, vector)| ChromaRecord::new(id, vector)).collect();
    for batch in records.chunks(5_000) {
        bars.upsert(batch).await.unwrap();
    }
    let stored = began.elapsed();
    assert_eq!(bars.count().await.unwrap(), set.vectors.len() as u64);
    // The server takes up into its index what it has stored, before it answers the first query.
    bars.query(ChromaQuery::new(&set.queries[0], 1)).await.unwrap();
    let indexed = began.elapsed();
    let mut found = Vec::new();
    for query in &set.queries {
        let matches = bars.query(ChromaQuery::new(query, NEIGHBOURS)).await.unwrap();
        assert!(matches.is_sorted_by(|one, other| one.distance <= other.distance), "{matches:?}");
        found.push(matches.iter().map(|found| found.id.parse().unwrap()).collect());
    }
    let asked = began.elapsed();
    let recall = set.recall(&found);
    println!(
        "{} vectors of {}: recall@{NEIGHBOURS} {recall:.4} over {} queries; stored in {stored:.1?}, indexed in {:.1?}, \
         {:.1?} for a query",
        set.vectors.len(),
        vectors::DIMENSIONS,
        set.queries.len(),
        indexed - stored,
        (asked - indexed) / 100,
    );
    assert!(recall >= RECALL, "{recall}");
    drop(chroma);
    assert!(pool.close_all().within(SOON).await.all_closed());
}
