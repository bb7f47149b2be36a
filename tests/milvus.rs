//! Milvus against the real server, which takes fixed ports on all networks. So these tests need a network namespace of
//! their own, which `cargo xtask vectors` makes. Without it they are skipped, and say so.
//!
//! There can be one server at a time. Each test starts its own, and `ALONE` has the others wait.

#![cfg(feature = "milvus")]
#![allow(missing_docs)]

mod common;
#[path = "common/vectors.rs"]
mod vectors;
#[path = "common/web.rs"]
mod web;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use common::{Stopwatch, Within, eventually, unhurried};
use resource_pool::config::{MilvusConfig, Options};
use resource_pool::{
    Error, Health, MilvusError, MilvusFault, MilvusMetric, MilvusQuery, MilvusRow, MilvusSpec, Phase, ResourcePool,
    State, Usage, Work, blocking,
};
use serde_json::json;
use services::{Kind, Proxy, Service};
use tokio::sync::{Mutex, MutexGuard};
use vectors::{DIMENSIONS, NEIGHBOURS, RECALL, VectorSet, distance};
use web::WebServer;

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);

/// Held while a server runs.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A server that runs alone. `None` without a network of its own.
struct Alone {
    server: Service,
    _alone: MutexGuard<'static, ()>,
}

impl Alone {
    async fn start() -> Option<Alone> {
        if std::env::var_os("RESOURCE_POOL_TEST_MILVUS").is_none() {
            println!("skipped: it needs a network of its own, which `cargo xtask vectors` makes");
            return None;
        }
        let alone = ALONE.lock().await;
        let server = tokio::task::spawn_blocking(|| Service::start(Kind::Milvus).unwrap()).await.unwrap();
        Some(Alone { server, _alone: alone })
    }
}

fn pool_of(config: MilvusConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(server: &Service) -> ResourcePool {
    pool_of(MilvusConfig::url(server.url()), unhurried())
}

fn usage(pool: &ResourcePool) -> Usage {
    pool.status().resource("milvus").unwrap().usage
}

/// The error that the server answered.
fn told(error: &Error) -> MilvusError {
    let Error::Operation { source, .. } = error else { panic!("{error:?}") };
    source.downcast_ref::<MilvusError>().unwrap_or_else(|| panic!("{error:?}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_stored_found_and_deleted() {
    let Some(Alone { server, _alone }) = Alone::start().await else { return };
    let pool = pool(&server);
    let milvus = pool.milvus().within(SOON).await.unwrap();
    let spec = MilvusSpec::new("bars", 2);
    let bars = milvus.create(spec.clone()).within(SOON).await.unwrap();
    let vectors = [[1.0, 0.0], [0.0, 2.0]];
    let rows = [MilvusRow::new(&vectors[0]).field("code", "a").field("year", 2011), MilvusRow::new(&vectors[1])];
    let ids = bars.insert(&rows).within(SOON).await.unwrap();
    assert_eq!(ids.len(), 2);
    let near = [0.9, 0.1];
    let both = async || bars.query(MilvusQuery::new(&near, 9)).await.ok().filter(|found| found.len() == 2);
    let found = eventually(SOON, both).await;
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), ids);
    for (found, vector) in found.iter().zip(vectors) {
        assert!((found.distance - distance(&near, &vector)).abs() < 1e-5 && found.fields.is_empty(), "{found:?}");
    }
    let query = MilvusQuery::new(&near, 9).filter("year > 2000").fields(["code"]);
    let found = bars.query(query).within(SOON).await.unwrap();
    assert_eq!((found.len(), &found[0].fields["code"]), (1, &json!("a")));
    bars.delete(&ids[..1]).within(SOON).await.unwrap();
    let one = async || bars.query(MilvusQuery::new(&near, 9)).await.ok().filter(|found| found.len() == 1);
    assert_eq!(eventually(SOON, one).await[0].id, ids[1]);
    assert!(bars.insert(&[]).await.unwrap().is_empty() && bars.delete(&[]).await.is_ok());
    let cosine = milvus.create(MilvusSpec::new("cosine", 2).metric(MilvusMetric::Cosine)).within(SOON).await.unwrap();
    cosine.insert(&rows).within(SOON).await.unwrap();
    let both = async || cosine.query(MilvusQuery::new(&near, 9)).await.ok().filter(|found| found.len() == 2);
    let found = eventually(SOON, both).await;
    assert!(found[0].distance > 0.99 && found[1].distance < 0.2, "{found:?}");
    // Each answer that is an error tells its fault, and cuts nothing.
    let before = pool.status().resource("milvus").unwrap().generation;
    let other = MilvusRow::new(&[1.0]);
    for (answer, fault, words) in [
        (milvus.delete("nobody").within(SOON).await, MilvusFault::NotFound, "nobody"),
        (milvus.collection("nobody").insert(&rows).within(SOON).await.map(drop), MilvusFault::NotFound, "nobody"),
        (milvus.create(MilvusSpec::new("a-b", 2)).within(SOON).await.map(drop), MilvusFault::Invalid, "letters"),
        (milvus.create(MilvusSpec::new("bars", 3)).within(SOON).await.map(drop), MilvusFault::Other, "different"),
        (bars.insert(&[other]).within(SOON).await.map(drop), MilvusFault::Invalid, "dimension"),
        (bars.upsert(&[rows[0].clone().id(7)]).within(SOON).await.map(drop), MilvusFault::Invalid, "autoID"),
        (
            bars.query(MilvusQuery::new(&near, 9).filter("what is")).within(SOON).await.map(drop),
            MilvusFault::Other,
            "what",
        ),
        (bars.query(MilvusQuery::new(&near, 20_000)).within(SOON).await.map(drop), MilvusFault::Other, "16384"),
    ] {
        let error = answer.expect_err(words);
        assert!(told(&error).fault == fault && error.to_string().contains(words), "{words}: {error}");
    }
    // The same once more changes nothing.
    milvus.create(spec).within(SOON).await.unwrap();
    assert_eq!(pool.status().resource("milvus").unwrap().generation, before);
    milvus.delete("bars").within(SOON).await.unwrap();
    assert_eq!(pool.health_check().within(SOON).await.entry("milvus").unwrap().health, Health::Pass);
    drop(milvus);
    let report = pool.close_all().within(SOON).await;
    assert_eq!(report.step("milvus").unwrap().phase, Phase::VectorStores);
    assert!(report.all_closed(), "{report}");
    assert!(matches!(bars.query(MilvusQuery::new(&near, 9)).await, Err(Error::Closed { .. })));
}

/// A proxy redirects to its own page, or shows it. Neither is an answer of the server's, and neither is one without ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_proves_nothing_is_told() {
    let mode = Arc::new(AtomicUsize::new(0));
    let said = Arc::clone(&mode);
    let front = WebServer::start(Router::new().fallback(move || {
        let answer = match said.load(Ordering::SeqCst) {
            0 => r#"{"code":200,"data":[]}"#.into_response(),
            1 => Redirect::to("/login").into_response(),
            2 => "<html>log in</html>".into_response(),
            3 => (StatusCode::BAD_GATEWAY, r#"{"code":200}"#).into_response(),
            4 => r#"{"code":200}"#.into_response(),
            // The server's own timeout, after which it goes on.
            5 => (StatusCode::REQUEST_TIMEOUT, r#"{"code":408,"message":"request timeout"}"#).into_response(),
            6 => r#"{"code":65535,"message":"context deadline exceeded"}"#.into_response(),
            _ => (StatusCode::NOT_FOUND, "<html>").into_response(),
        };
        async move { answer }
    }));
    let mut options = unhurried();
    options.probe.enabled = false;
    let pool = pool_of(MilvusConfig::url(front.url()), options);
    let milvus = pool.milvus().within(SOON).await.unwrap();
    let bars = milvus.collection("bars");
    let rows = [MilvusRow::new(&[1.0])];
    for said in 1..=6 {
        mode.store(said, Ordering::SeqCst);
        let error = bars.insert(&rows).within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{said}: {error:?}");
        // The same once more does no harm.
        let error = bars.upsert(&rows).within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }), "{said}: {error:?}");
        assert_eq!(bars.delete(&[1]).within(SOON).await.is_ok(), said == 4, "{said}");
    }
    // A report of health is answered again for a while.
    let is =
        async |health| (pool.health_check().within(SOON).await.entry("milvus").unwrap().health == health).then_some(());
    for (said, health) in [(1, Health::Fail), (0, Health::Pass), (2, Health::Fail)] {
        mode.store(said, Ordering::SeqCst);
        eventually(SOON, async || is(health).await).await;
    }
    // A status such as 404 says that nothing was stored.
    mode.store(7, Ordering::SeqCst);
    let error = bars.insert(&rows).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_have_the_same_verbs() {
    let Some(Alone { server, _alone }) = Alone::start().await else { return };
    let work = move || {
        let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
            .environment([("MILVUS_URL", server.url())])
            .options(unhurried())
            .build()
            .unwrap();
        let milvus = pool.milvus().unwrap();
        let bars = milvus.create(MilvusSpec::new("of_threads", 1)).unwrap();
        let ids = bars.insert(&[MilvusRow::new(&[1.0])]).unwrap();
        common::until(SOON, || bars.query(MilvusQuery::new(&[1.0], 1)).is_ok_and(|found| found.len() == 1));
        bars.delete(&ids).unwrap();
        assert_eq!(told(&bars.upsert(&[MilvusRow::new(&[1.0]).id(1)]).unwrap_err()).fault, MilvusFault::Invalid);
        assert_eq!(milvus.collection("of_threads").name(), bars.name());
        milvus.delete("of_threads").unwrap();
        drop(milvus);
        assert!(pool.close_all().unwrap().all_closed());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[test]
fn a_wrong_token_or_database_is_told_at_once_and_shown_nowhere() {
    let runtime = web::runtime();
    let Some(Alone { server, _alone }) = runtime.block_on(Alone::start()) else { return };
    let at = format!("http://127.0.0.1:{}", server.port());
    for (config, words) in [
        (MilvusConfig::url(&*at).token("root:s3cret"), "MILVUS_TOKEN"),
        (MilvusConfig::url(&*at), "MILVUS_TOKEN"),
        (MilvusConfig::url(server.url()).database("nobody"), "MILVUS_DATABASE"),
    ] {
        let (said, log) = common::Log::during(|| {
            runtime.block_on(async {
                let pool = pool_of(config.clone(), unhurried());
                let error = pool.milvus().within(SOON).await.map(drop).unwrap_err();
                let Error::Connect(connect) = &error else { panic!("{error:?}") };
                assert!(connect.permanent && connect.attempts == 1 && error.to_string().contains(words), "{error}");
                format!("{error} {error:?} {config:?} {pool:?} {:?}", pool.status())
            })
        });
        assert!(!said.contains("s3cret") && !log.contains("s3cret"), "{said} {log}");
    }
    runtime.block_on(a_token_of_a_file_is_read_again(&server));
}

async fn a_token_of_a_file_is_read_again(server: &Service) {
    let at = format!("http://127.0.0.1:{}", server.port());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("milvus-token-{}", std::process::id()));
    fs::write(&file, format!("{}:{}\n", server.user(), server.password())).unwrap();
    let pool = pool_of(MilvusConfig::url(&*at).token_file(&*file), unhurried());
    let milvus = pool.milvus().within(SOON).await.unwrap();
    milvus.create(MilvusSpec::new("of_a_file", 1)).within(SOON).await.unwrap();
    fs::write(&file, "root:s3cret").unwrap();
    pool.refresh("milvus").within(SOON).await.unwrap();
    let error = milvus.delete("of_a_file").within(SOON).await.unwrap_err();
    assert!(told(&error).fault == MilvusFault::Denied && !format!("{error:?}").contains("s3cret"), "{error}");
    fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_or_dies_blocks_nobody() {
    let Some(Alone { server, _alone }) = Alone::start().await else { return };
    let pool = pool(&server);
    let milvus = pool.milvus().within(SOON).await.unwrap();
    let bars = milvus.create(MilvusSpec::new("frozen", 1)).within(SOON).await.unwrap();
    bars.insert(&[MilvusRow::new(&[1.0])]).within(SOON).await.unwrap();
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let (query, insert) = (bars.clone(), bars.clone());
    let query = tokio::spawn(async move { query.query(MilvusQuery::new(&[1.0], 1)).await.unwrap_err() });
    let insert = tokio::spawn(async move { insert.insert(&[MilvusRow::new(&[2.0])]).await.unwrap_err() });
    let error = query.within(SOON).await.unwrap();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    let error = insert.within(SOON).await.unwrap();
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    assert_eq!(pool.health_check().within(SOON).await.entry("milvus").unwrap().health, Health::Fail);
    let stopwatch = Stopwatch::start();
    drop(milvus);
    assert!(stopwatch.took() < Duration::from_millis(100), "{:?}", stopwatch.took());
    server.thaw().unwrap();
    // A handle that was taken before goes on, also over a kill.
    let found = async || bars.query(MilvusQuery::new(&[1.0], 1)).await.ok().filter(|found| found.len() == 1);
    eventually(2 * SOON, found).await;
    server.kill().unwrap();
    assert!(bars.query(MilvusQuery::new(&[1.0], 1)).within(SOON).await.is_err());
    tokio::task::block_in_place(|| server.restart()).unwrap();
    let found = async || bars.query(MilvusQuery::new(&[1.0], 1)).await.ok().filter(|found| found.len() == 1);
    eventually(3 * SOON, found).await;
    // It freezes while the pool closes.
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).within(SOON).await;
    assert!(stopwatch.took() < FROZEN && report.step("milvus").is_some(), "{report}");
    // It is frozen while another pool connects.
    let mut options = Options::default();
    options.acquire_timeout = Duration::from_secs(2);
    let other = pool_of(MilvusConfig::url(server.url()), options);
    let stopwatch = Stopwatch::start();
    assert!(other.milvus().within(SOON).await.is_err());
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_cuts_requests_and_they_are_limited_in_number() {
    let Some(Alone { server, _alone }) = Alone::start().await else { return };
    let proxy = Proxy::start(server.port()).unwrap();
    let url = server.url().replace(&format!(":{}", server.port()), &format!(":{}", proxy.port()));
    let mut options = unhurried();
    options.acquire_timeout = Duration::from_millis(500);
    options.probe.enabled = false;
    options.close.drain = Duration::from_millis(200);
    options.close.held = Duration::ZERO;
    let pool = pool_of(MilvusConfig::url(url).max_requests(1), options);
    let milvus = pool.milvus().within(SOON).await.unwrap().clone();
    let bars = milvus.create(MilvusSpec::new("crowded", 1)).within(SOON).await.unwrap();
    assert_eq!(pool.status().resource("milvus").unwrap().state, State::Ready);
    proxy.freeze();
    let query = tokio::spawn({
        let bars = bars.clone();
        async move { bars.query(MilvusQuery::new(&[1.0], 1)).await.unwrap_err() }
    });
    eventually(SOON, async || (usage(&pool).in_use == Some(1)).then_some(())).await;
    let error = bars.query(MilvusQuery::new(&[1.0], 1)).within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("one of 1 requests"), "{error}");
    let report = pool.close_all().within(SOON).await;
    let error = query.within(SOON).await.unwrap();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert_eq!(report.step("milvus").unwrap().unfinished, [(Work::Operation, 1)], "{report}");
}

#[test]
fn every_value_that_cannot_be_used_is_refused_and_shown_nowhere() {
    let url = || MilvusConfig::url("http://h:19530");
    for (config, key, expected) in [
        (MilvusConfig::url("s3cret"), "milvus.url", "is not a URL"),
        (MilvusConfig::url("http://me@h"), "milvus.url", "user without a password"),
        (MilvusConfig::url("http://h/?key=s3cret"), "milvus.url", "has a `?` or `#`"),
        (url().token("s3cret\n"), "milvus.token", "cannot stand in an HTTP header"),
        (url().connect_timeout(Duration::ZERO), "milvus.connect_timeout_ms", "at least 1 ms"),
        (url().read_timeout(Duration::ZERO), "milvus.read_timeout_ms", "at least 1 ms"),
        (url().max_requests(0), "milvus.max_requests", "must be from 1"),
        (url().max_body(0), "milvus.max_body", "must be from 1"),
        (url().keepalive(Duration::ZERO), "milvus.keepalive_ms", "whole seconds"),
        (url().token("x").token_file("/nonexistent/f"), "milvus.token_file", "beside a password"),
    ] {
        let built: Result<ResourcePool, _> =
            ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
        let Err(Error::Config { key: found, problem }) = built else { panic!("{built:?}") };
        assert!(found == key && problem.contains(expected) && !problem.contains("s3cret"), "{found}: {problem}");
    }
}

/// The interface takes no parameters for the index or a search. Among 100,000 vectors of independent numbers it finds 37 %
/// of the neighbours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_finds_the_true_neighbours() {
    let Some(Alone { server, _alone }) = Alone::start().await else { return };
    let set = VectorSet::clustered();
    let config = MilvusConfig::url(server.url()).read_timeout(Duration::from_secs(120));
    let mut options = unhurried();
    // The server is busy with the index and not frozen.
    options.probe.strikes = 20;
    let pool = pool_of(config, options);
    let milvus = pool.milvus().within(SOON).await.unwrap();
    let bars = milvus.create(MilvusSpec::new("neighbours", DIMENSIONS as u32)).within(SOON).await.unwrap();
    let began = Instant::now();
    let mut ids = Vec::new();
    for batch in set.vectors.chunks(2_000) {
        let rows: Vec<_> = batch.iter().map(|vector| MilvusRow::new(vector)).collect();
        ids.extend(bars.insert(&rows).await.unwrap());
    }
    let stored = began.elapsed();
    let places: std::collections::HashMap<i64, usize> = ids.into_iter().zip(0..).collect();
    // The last row is found once all are.
    let last = set.vectors.last().unwrap();
    let is_there = async || {
        let found = bars.query(MilvusQuery::new(last, 1)).await.ok()?;
        (found.first()?.distance < 1e-6).then_some(())
    };
    eventually(4 * SOON, is_there).await;
    let began = Instant::now();
    let mut found = Vec::new();
    for query in &set.queries {
        let matches = bars.query(MilvusQuery::new(query, NEIGHBOURS)).await.unwrap();
        found.push(matches.iter().map(|found| places[&found.id]).collect());
    }
    let asked = began.elapsed();
    let recall = set.recall(&found);
    println!(
        "{} vectors of {DIMENSIONS}: recall@{NEIGHBOURS} {recall:.4} over {} queries; stored in {stored:.1?}, {:.1?} for a \
         query",
        set.vectors.len(),
        set.queries.len(),
        asked / 100,
    );
    assert!(recall >= RECALL, "{recall}");
}
