//! Elasticsearch's kind against osmem, a compatible engine, since no package brings Elasticsearch or OpenSearch along. What
//! the engine lacks is tested in `elastic_answers.rs`.

#![cfg(feature = "elastic")]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Stopwatch, Within, eventually, unhurried, until};
use resource_pool::config::{ElasticConfig, Options};
use resource_pool::{
    BulkOutcome, Elastic, ElasticError, Error, Health, Phase, ResourcePool, RowProblem, State, Usage, Work, blocking,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use services::{BlackHole, Kind, Proxy, Service, shared};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(30);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);
/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Bar {
    code: String,
    close: f64,
}

fn bar(code: &str, close: f64) -> Bar {
    Bar { code: code.to_owned(), close }
}

fn pool_of(config: ElasticConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn pool(url: &str) -> ResourcePool {
    pool_of(ElasticConfig::url(url), unhurried())
}

fn by(proxy: &Proxy) -> String {
    format!("http://127.0.0.1:{}", proxy.port())
}

async fn count(elastic: &Elastic, index: &str) -> u64 {
    elastic.refresh(index).within(SOON).await.unwrap();
    let request = elastic.request("GET".parse().unwrap(), &format!("/{index}/_count"));
    let counted: Value = request.send().within(SOON).await.unwrap().json().within(SOON).await.unwrap();
    counted["count"].as_u64().unwrap_or_else(|| panic!("{counted}"))
}

/// The ids of all documents of an index.
async fn ids(elastic: &Elastic, index: &str) -> BTreeSet<String> {
    elastic.refresh(index).within(SOON).await.unwrap();
    let mut scroll = elastic.scroll::<Value>(index, &json!({}), usize::MAX).within(SOON).await.unwrap();
    let mut ids = BTreeSet::new();
    while let Some(page) = scroll.next().within(SOON).await {
        ids.extend(page.unwrap().into_iter().map(|hit| hit.id));
    }
    ids
}

fn kind(error: &Error) -> &str {
    &ElasticError::of(error).unwrap_or_else(|| panic!("{error:?}")).kind
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_put_found_and_deleted() {
    let pool = pool(shared(Kind::Elastic).url());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let index = "documents";
    elastic
        .create_index(index, &json!({ "mappings": { "properties": { "code": { "type": "keyword" } } } }))
        .await
        .unwrap();
    let error = elastic.create_index(index, &json!({})).await.unwrap_err();
    assert_eq!(kind(&error), "resource_already_exists_exception");
    let put = elastic.index(index, "a", &bar("000001", 10.5)).await.unwrap();
    assert_eq!((&*put.id, put.version, &*put.result), ("a", 1, "created"));
    assert_eq!(elastic.index(index, "a", &bar("000001", 11.0)).await.unwrap().result, "updated");
    assert_eq!(elastic.get::<Bar>(index, "a").await.unwrap(), Some(bar("000001", 11.0)));
    assert_eq!(elastic.get::<Bar>(index, "none").await.unwrap(), None);
    // An id may have any character. Those with a meaning in URLs are encoded.
    let odd = "a/b c?d#e%2F\"ü";
    elastic.index(index, odd, &bar("odd", 1.0)).await.unwrap();
    assert_eq!(elastic.get::<Bar>(index, odd).await.unwrap(), Some(bar("odd", 1.0)));
    for unfit in ["", ".", ".."] {
        let error = elastic.get::<Bar>(index, unfit).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("cannot be"), "{error}");
    }
    let made = elastic.index(index, None, &bar("000002", 7.0)).await.unwrap();
    assert_eq!(elastic.get::<Bar>(index, &made.id).await.unwrap(), Some(bar("000002", 7.0)));
    assert!(elastic.delete(index, odd).await.unwrap());
    assert!(!elastic.delete(index, odd).await.unwrap());
    elastic.refresh(index).await.unwrap();
    let search = json!({
        "query": { "term": { "code": "000001" } }, "aggs": { "best": { "max": { "field": "close" } } }
    });
    let found = elastic.search::<Bar>(index, &search).await.unwrap();
    assert_eq!((found.hits.len(), found.total, found.is_whole()), (1, Some(1), true));
    assert_eq!((&*found.hits[0].id, found.hits[0].source.as_ref()), ("a", Some(&bar("000001", 11.0))));
    assert_eq!(found.more["aggregations"]["best"]["value"], 11.0, "{:?}", found.more);
    let bare = elastic.search::<Bar>(index, &json!({ "_source": false, "size": 1 })).await.unwrap();
    assert_eq!((bare.hits.len(), bare.total), (1, Some(2)));
    assert!(bare.hits[0].source.is_none());
    let error = elastic.search::<Bar>(index, &json!({ "query": { "bogus": {} } })).await.unwrap_err();
    assert_eq!(kind(&error), "parsing_exception");
    assert!(error.to_string().contains("unknown query [bogus]"), "{error}");
    let error = elastic.search::<u8>(index, &json!({})).await.unwrap_err();
    assert!(matches!(error, Error::Operation { .. }) && ElasticError::of(&error).is_none(), "{error:?}");
    // A missing index is told apart from a missing document.
    for error in [
        elastic.get::<Bar>("nowhere", "a").await.unwrap_err(),
        elastic.search::<Bar>("nowhere", &json!({})).await.unwrap_err(),
        elastic.delete_index("nowhere").await.unwrap_err(),
    ] {
        assert_eq!(kind(&error), "index_not_found_exception", "{error}");
        assert_eq!(ElasticError::of(&error).unwrap().status.as_u16(), 404);
    }
    for several in ["*", "docu*", "documents,other", "_all", "-documents"] {
        let error = elastic.delete_index(several).await.unwrap_err();
        assert!(error.to_string().contains("several indices"), "{error}");
    }
    assert_eq!(count(&elastic, index).await, 2);
    elastic.delete_index(index).await.unwrap();
    assert_eq!(kind(&elastic.delete_index(index).await.unwrap_err()), "index_not_found_exception");
}

#[test]
fn threads_have_the_same_verbs() {
    let server = shared(Kind::Elastic);
    let pool: blocking::ResourcePool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .named("market", ElasticConfig::url(server.url()))
        .build()
        .unwrap();
    let elastic = pool.elastic_named("market").unwrap();
    elastic.create_index("threads", &json!({})).unwrap();
    elastic.index("threads", "a", &bar("1", 1.0)).unwrap();
    let mut bulk = elastic.bulk("threads").with_max_rows(2).with_max_bytes(1 << 20).with_period(LONG);
    bulk.add("b", &bar("2", 2.0)).unwrap();
    bulk.create("a", &bar("3", 3.0)).unwrap();
    let outcome = bulk.flush().unwrap();
    assert_eq!((outcome.stored, outcome.returned.len()), (1, 1), "{outcome:?}");
    bulk.add_again(outcome.returned[0].row.clone()).unwrap();
    assert_eq!(bulk.flush().unwrap().returned[0].row.id(), Some("a"));
    elastic.refresh("threads").unwrap();
    assert_eq!(elastic.get::<Bar>("threads", "b").unwrap(), Some(bar("2", 2.0)));
    assert_eq!(elastic.search::<Bar>("threads", &json!({})).unwrap().total, Some(2));
    let pages: Result<Vec<_>, Error> = elastic.scroll::<Bar>("threads", &json!({ "size": 1 }), 9).unwrap().collect();
    assert_eq!(pages.unwrap().len(), 2);
    // A thread that must not block is told so once.
    let mut scroll = elastic.scroll::<Bar>("threads", &json!({ "size": 1 }), 9).unwrap();
    let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let told: Vec<_> = alone.block_on(async { scroll.by_ref().take(3).collect() });
    assert!(matches!(told[..], [Err(Error::InAsyncContext { .. })]), "{told:?}");
    let counted: Value = elastic.ask(elastic.request("GET".parse().unwrap(), "/threads/_count")).unwrap();
    assert_eq!(counted["count"], 2);
    assert!(elastic.delete("threads", "a").unwrap());
    let other = pool.elastic_with("other", ElasticConfig::url(server.url())).unwrap();
    other.delete_index("threads").unwrap();
    let scoped = blocking::Elastic::scoped(ElasticConfig::url(server.url())).unwrap();
    assert_eq!(kind(&scoped.get::<Bar>("threads", "a").unwrap_err()), "index_not_found_exception");
    assert!(scoped.close().unwrap().all_closed());
    // A thread that polls a current-thread runtime must not block.
    let error = alone.block_on(async { elastic.refresh("threads").unwrap_err() });
    assert!(matches!(error, Error::InAsyncContext { .. }), "{error}");
    assert!(pool.close_all().unwrap().all_closed());
    assert_eq!(bulk.flush().unwrap().checked().unwrap(), 0);
    assert!(bulk.add("c", &bar("4", 4.0)).unwrap_err().is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scroll_gives_all_hits_page_by_page_up_to_its_limit() {
    let pool = pool(shared(Kind::Elastic).url());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("scrolled");
    for number in 0..25 {
        bulk.add(&*number.to_string(), &json!({ "number": number })).await.unwrap();
    }
    assert_eq!(bulk.flush().await.unwrap().checked().unwrap(), 25);
    elastic.refresh("scrolled").await.unwrap();
    let sorted = json!({ "size": 10, "sort": [{ "number": "asc" }] });
    for (limit, pages) in [(usize::MAX, &[10, 10, 5][..]), (25, &[10, 10, 5]), (12, &[10, 2]), (3, &[3]), (0, &[])] {
        let mut scroll = elastic.scroll::<Value>("scrolled", &sorted, limit).within(SOON).await.unwrap();
        let mut numbers = Vec::new();
        let mut lengths = Vec::new();
        while let Some(page) = scroll.next().within(SOON).await {
            let page = page.unwrap();
            lengths.push(page.len());
            numbers.extend(page.into_iter().map(|hit| hit.source.unwrap()["number"].as_u64().unwrap()));
        }
        assert_eq!(lengths, pages, "{limit}");
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        assert!(scroll.next().within(SOON).await.is_none());
    }
    // A scroll that the server has closed by itself is an error, and not an end.
    let brief = ElasticConfig::url(shared(Kind::Elastic).url()).scroll_keep(Duration::from_millis(1)).scroll_size(5);
    let brief = pool.elastic_with("brief", brief).within(SOON).await.unwrap();
    let mut scroll = brief.scroll::<Value>("scrolled", &json!({}), 25).within(SOON).await.unwrap();
    assert_eq!(scroll.next().within(SOON).await.unwrap().unwrap().len(), 5);
    // The engine looks for scrolls that are too old as it opens another one.
    let error = eventually(SOON, async || {
        drop(brief.scroll::<Value>("scrolled", &json!({}), 1).within(SOON).await.unwrap());
        scroll.next().within(SOON).await.map_or_else(|| panic!("it has ended in silence"), Result::err)
    });
    let error = error.await;
    assert!(error.to_string().contains("No search context found"), "{error}");
    assert!(scroll.next().within(SOON).await.is_none(), "nothing comes after an error");
    elastic.delete_index("scrolled").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_rows_come_back_one_by_one_with_the_reason() {
    let pool = pool(shared(Kind::Elastic).url());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let typed = json!({ "mappings": { "properties": { "close": { "type": "float" } } } });
    elastic.create_index("refused", &typed).await.unwrap();
    let mut bulk = elastic.bulk("refused");
    bulk.add("1", &bar("1", 1.0)).await.unwrap();
    bulk.add("2", &json!({ "close": "no number" })).await.unwrap();
    bulk.create("3", &bar("3", 3.0)).await.unwrap();
    bulk.create("1", &bar("1", 2.0)).await.unwrap();
    bulk.add(None, &bar("4", 4.0)).await.unwrap();
    let BulkOutcome { stored, returned, .. } = bulk.flush().await.unwrap();
    assert_eq!((stored, returned.len()), (3, 2), "{returned:?}");
    let told: Vec<_> = returned
        .iter()
        .map(|returned| match &returned.problem {
            RowProblem::Refused(told) => (returned.row.id().unwrap(), told.status.as_u16(), &*told.kind),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [("2", 400, "mapper_parsing_exception"), ("1", 409, "version_conflict_engine_exception")]);
    assert!(returned[0].problem.to_string().contains("failed to parse field [close]"), "{}", returned[0].problem);
    assert_eq!(returned[0].row.document(), "{\"close\":\"no number\"}");
    assert!(returned[1].row.is_create());
    assert!(!format!("{returned:?}").contains("no number\\\"}"), "a document is not shown: {returned:?}");
    // The outcome as a whole is an error.
    bulk.add_again(returned[1].row.clone()).await.unwrap();
    bulk.add("5", &bar("5", 5.0)).await.unwrap();
    let error = bulk.flush().await.unwrap().checked().unwrap_err();
    assert_eq!(kind(&error), "version_conflict_engine_exception", "{error}");
    assert!(error.to_string().contains("1 rows were given back, the first because"), "{error}");
    assert_eq!(bulk.flush().await.unwrap().checked().unwrap(), 0);
    assert_eq!(count(&elastic, "refused").await, 4);
    // Rows that were given back are not piled up without end.
    let mut bulk = elastic.bulk("refused").with_max_rows(3);
    for number in 0..3 {
        bulk.create("1", &bar("1", f64::from(number))).await.unwrap();
    }
    let error = bulk.add("6", &bar("6", 6.0)).await.unwrap_err();
    assert!(error.to_string().contains("3 rows were given back") && error.to_string().contains("flush"), "{error}");
    assert_eq!(bulk.flush().await.unwrap().returned.len(), 3);
    bulk.add("6", &bar("6", 6.0)).await.unwrap();
    assert_eq!(bulk.flush().await.unwrap().checked().unwrap(), 1);
    // A document that is none is told as it is added.
    let error = bulk.add("7", &7).await.unwrap_err();
    assert!(error.to_string().contains("must be a JSON object"), "{error}");
    let error = elastic.bulk("..").add("7", &json!({})).await.unwrap_err();
    assert!(error.to_string().contains("cannot be the name"), "{error}");
    elastic.delete_index("refused").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_is_sent_at_each_of_its_limits() {
    let pool = pool(shared(Kind::Elastic).url());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    elastic.create_index("limits", &json!({})).await.unwrap();
    let mut by_rows = elastic.bulk("limits").with_max_rows(3).with_period(LONG);
    by_rows.add("r1", &json!({})).await.unwrap();
    by_rows.add("r2", &json!({})).await.unwrap();
    assert_eq!(count(&elastic, "limits").await, 0);
    let rows = || pool.status().resource("elastic").unwrap().work.clone();
    assert_eq!(rows(), [(Work::Row, 2)]);
    by_rows.add("r3", &json!({})).await.unwrap();
    assert_eq!((count(&elastic, "limits").await, rows()), (3, Vec::new()));
    let mut by_bytes = elastic.bulk("limits").with_max_bytes(1000).with_period(LONG);
    by_bytes.add("b1", &json!({ "text": "x".repeat(600) })).await.unwrap();
    assert_eq!(count(&elastic, "limits").await, 3);
    by_bytes.add("b2", &json!({ "text": "x".repeat(600) })).await.unwrap();
    assert_eq!(count(&elastic, "limits").await, 5);
    // The owner is idle.
    let mut by_time = elastic.bulk("limits").with_period(Duration::from_millis(50));
    for id in ["t1", "t2"] {
        by_time.add(id, &json!({})).await.unwrap();
        let before = if id == "t1" { 5 } else { 6 };
        eventually(SOON, async || (count(&elastic, "limits").await > before).then_some(())).await;
    }
    assert_eq!(by_time.flush().await.unwrap().checked().unwrap(), 2, "the outcome waits for its owner");
    // A writer that drops sends the rows that it has.
    let mut dropped = elastic.bulk("limits").with_period(LONG);
    dropped.add("d1", &json!({})).await.unwrap();
    assert_eq!(rows(), [(Work::Row, 1)]);
    drop(dropped);
    eventually(SOON, async || rows().is_empty().then_some(())).await;
    assert_eq!(count(&elastic, "limits").await, 8);
    elastic.delete_index("limits").await.unwrap();
}

/// Adds 10,000 rows, and cuts all connections half-way. Each row is in the index, or given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_rows_none_is_lost_where_the_connection_is() {
    let server = Service::start(Kind::Elastic).unwrap();
    let proxy = Proxy::start(server.port()).unwrap();
    let pool = pool(&by(&proxy));
    let elastic = pool.elastic().within(SOON).await.unwrap();
    elastic.create_index("many", &json!({})).await.unwrap();
    let mut bulk = elastic.bulk("many").with_max_rows(500);
    let mut returned = Vec::new();
    let mut stored = 0;
    for number in 0..10_000 {
        let (id, row) = (number.to_string(), json!({ "number": number }));
        if number == 5_000 {
            // The next bulk is on its way when the connection ends.
            proxy.throttle(60_000);
        }
        let sending = async {
            if number == 5_499 {
                let sent = || proxy.clients().iter().map(|client| client.bytes).sum::<usize>();
                let before = sent();
                let cut = async {
                    eventually(SOON, async || (sent() > before + 5_000).then_some(())).await;
                    proxy.refuse().unwrap();
                    proxy.cut();
                    proxy.throttle(0);
                    let is_lost =
                        async || (pool.status().resource("elastic").unwrap().state != State::Ready).then_some(());
                    eventually(SOON, is_lost).await;
                    proxy.open_up().unwrap();
                };
                tokio::join!(bulk.add(&*id, &row), cut).0
            } else {
                bulk.add(&*id, &row).await
            }
        };
        if sending.within(SOON).await.is_err() {
            let outcome = bulk.flush().within(SOON).await.unwrap();
            stored += outcome.stored;
            returned.extend(outcome.returned);
            bulk.add(&*id, &row).within(SOON).await.unwrap();
        }
    }
    let outcome = bulk.flush().within(SOON).await.unwrap();
    stored += outcome.stored;
    returned.extend(outcome.returned);
    println!("cut: {stored} rows stored, {} given back", returned.len());
    assert_eq!(stored + returned.len(), 10_000);
    assert!((500..=1000).contains(&returned.len()), "{}", returned.len());
    // The default repeats nothing that was sent. As every row has an id, sending it again does no harm.
    assert!(returned.iter().all(|row| matches!(&row.problem, RowProblem::Failed(Error::Lost { .. }))));
    let found = ids(&elastic, "many").await;
    let given_back: BTreeSet<String> = returned.iter().map(|row| row.row.id().unwrap().to_owned()).collect();
    for number in 0..10_000 {
        let id = number.to_string();
        assert!(found.contains(&id) || given_back.contains(&id), "{id} is lost");
    }
    for row in returned {
        bulk.add_again(row.row).within(SOON).await.unwrap();
    }
    bulk.flush().within(SOON).await.unwrap().checked().unwrap();
    assert_eq!(count(&elastic, "many").await, 10_000);
}

/// The engine keeps all in memory, so a kill loses what it had. Every row has an outcome all the same, and those that were
/// stored after the restart are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_goes_on_under_the_same_lease() {
    let server = Service::start(Kind::Elastic).unwrap();
    let pool = pool(server.url());
    let elastic = pool.elastic().within(SOON).await.unwrap().clone();
    let (added, is_back) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (lease, told, back) = (elastic.clone(), Arc::clone(&added), Arc::clone(&is_back));
    let writing = tokio::spawn(async move {
        let mut bulk = lease.bulk("killed").with_max_rows(100);
        let (mut stored, mut returned, mut after) = (0, 0, BTreeSet::new());
        for first in (0..10_000).step_by(100) {
            let was_back = back.load(Ordering::SeqCst);
            for number in first..first + 100 {
                bulk.add(&*number.to_string(), &json!({ "number": number })).within(SOON).await.unwrap();
                told.fetch_add(1, Ordering::SeqCst);
            }
            let outcome = bulk.flush().within(SOON).await.unwrap();
            stored += outcome.stored;
            returned += outcome.returned.len();
            if was_back {
                assert!(outcome.returned.is_empty(), "{outcome:?}");
                after.extend((first..first + 100).map(|number| number.to_string()));
            }
        }
        (stored, returned, after)
    });
    until(SOON, || added.load(Ordering::SeqCst) >= 3_000);
    tokio::task::block_in_place(|| server.kill().unwrap());
    let put = async || elastic.index("killed", "x", &json!({})).within(SOON).await;
    // Until the client sees that its idle connections have ended, a request may be lost on one.
    let restart = async { tokio::task::block_in_place(|| server.restart().unwrap()) };
    let back = eventually(SOON, async || match put().await {
        Err(Error::Lost { .. }) => None,
        put => Some(put.unwrap()),
    });
    tokio::join!(back, restart);
    is_back.store(true, Ordering::SeqCst);
    let (stored, returned, after) = writing.within(SOON).await.unwrap();
    println!("killed: {stored} rows stored, {returned} given back, {} added after the restart", after.len());
    assert_eq!(stored + returned, 10_000);
    assert!(!after.is_empty());
    let found = ids(&elastic, "killed").await;
    assert!(after.is_subset(&found), "{} of {}", found.len(), after.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_of_a_close_sends_the_rows_of_idle_writers() {
    let server = shared(Kind::Elastic);
    let pool = pool(server.url());
    let elastic = pool.elastic().within(SOON).await.unwrap().clone();
    let mut first = elastic.bulk("drained").with_period(LONG);
    let mut second = elastic.bulk("drained").with_period(LONG);
    for number in 0..7 {
        first.add(&*format!("a{number}"), &json!({ "number": number })).await.unwrap();
        second.add(&*format!("b{number}"), &json!({ "number": number })).await.unwrap();
    }
    assert_eq!(pool.status().resource("elastic").unwrap().work, [(Work::Row, 14)]);
    // A hold keeps the drain open, in which a row is sent at once.
    let hold = pool.hold("the writer");
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close_all().await }
    });
    let rows = async || pool.status().resource("elastic").unwrap().work.iter().all(|(work, _)| *work != Work::Row);
    eventually(SOON, async || rows().await.then_some(())).await;
    first.add("late", &json!({ "number": 7 })).within(SOON).await.unwrap();
    assert!(rows().await);
    drop(hold);
    let report = closing.within(SOON).await.unwrap();
    assert!(report.all_closed(), "{report}");
    let step = report.step("elastic").unwrap();
    assert_eq!(step.phase, Phase::VectorStores);
    assert!(step.finished.contains(&(Work::Row, 15)), "{report}");
    let other = self::pool(server.url());
    let seen = other.elastic().within(SOON).await.unwrap();
    assert_eq!(count(&seen, "drained").await, 15);
    assert!(second.add("c", &json!({})).within(SOON).await.unwrap_err().is_closed());
    assert!(elastic.refresh("drained").within(SOON).await.unwrap_err().is_closed());
    // Rows that the server refuses in the drain are told by the report.
    seen.create_index("typed", &json!({ "mappings": { "properties": { "n": { "type": "integer" } } } })).await.unwrap();
    let mut refused = seen.bulk("typed").with_period(LONG);
    refused.add("1", &json!({ "n": 1 })).await.unwrap();
    refused.add("2", &json!({ "n": "none" })).await.unwrap();
    let report = other.close_all().within(SOON).await;
    let told = report.to_string();
    assert!(told.contains("1 rows for \"typed\" were given back, the first because"), "{told}");
    let step = report.step("elastic").unwrap();
    assert!(step.finished.contains(&(Work::Row, 1)) && step.given_up.contains(&(Work::Row, 1)), "{report}");
    let outcome = refused.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, outcome.returned.len(), outcome.returned[0].row.id()), (1, 1, Some("2")));
    let last = self::pool(server.url());
    let last = last.elastic().within(SOON).await.unwrap().clone();
    for index in ["drained", "typed"] {
        last.delete_index(index).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_blocks_nobody() {
    let server = Service::start(Kind::Elastic).unwrap();
    let pool = pool_of(ElasticConfig::url(server.url()).read_timeout(LONG), Options::default());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    elastic.create_index("frozen", &json!({})).await.unwrap();
    elastic.index("frozen", "a", &bar("1", 1.0)).await.unwrap();
    elastic.refresh("frozen").await.unwrap();
    let scroll = elastic.scroll::<Value>("frozen", &json!({ "size": 1 }), 9).within(SOON).await.unwrap();
    let (mut with_ids, mut without) =
        (elastic.bulk("frozen").with_period(LONG), elastic.bulk("frozen").with_period(LONG));
    with_ids.add("b", &bar("2", 2.0)).await.unwrap();
    without.add(None, &bar("3", 3.0)).await.unwrap();
    tokio::task::block_in_place(|| server.freeze().unwrap());
    // In flight.
    let fourth = bar("4", 4.0);
    let stopwatch = Stopwatch::start();
    let (get, put, with_ids_back, without_back) = tokio::join!(
        elastic.get::<Bar>("frozen", "a"),
        elastic.index("frozen", None, &fourth),
        with_ids.flush(),
        without.flush()
    );
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    assert!(matches!(get.unwrap_err(), Error::Lost { .. }));
    assert!(matches!(put.unwrap_err(), Error::OutcomeUnknown { .. }));
    let problem = |outcome: Result<BulkOutcome, Error>| outcome.unwrap().returned.remove(0).problem;
    let known = problem(with_ids_back);
    assert!(matches!(&known, RowProblem::Failed(Error::Lost { .. })), "{known}");
    let unknown = problem(without_back);
    assert!(matches!(&unknown, RowProblem::Failed(Error::OutcomeUnknown { .. })), "{unknown}");
    assert_eq!(pool.health_check().within(SOON).await.entry("elastic").unwrap().health, Health::Fail);
    // A guard, a scroll and a writer with rows that drop.
    let stopwatch = Stopwatch::start();
    let mut dropped = elastic.bulk("frozen");
    dropped.add("c", &bar("5", 5.0)).await.unwrap();
    drop((scroll, dropped));
    assert!(stopwatch.took() < Duration::from_millis(200), "{:?}", stopwatch.took());
    // The lease that was taken before goes on.
    tokio::task::block_in_place(|| server.thaw().unwrap());
    eventually(SOON, async || elastic.get::<Bar>("frozen", "a").await.ok()?).await;
    // It freezes again while the pool closes, with a row to send.
    with_ids.add("d", &bar("6", 6.0)).await.unwrap();
    tokio::task::block_in_place(|| server.freeze().unwrap());
    let stopwatch = Stopwatch::start();
    let report = pool.close_all_within(Duration::from_secs(2)).within(SOON).await;
    assert!(stopwatch.took() < FROZEN && !report.all_closed(), "{report}");
    let stopwatch = Stopwatch::start();
    drop((with_ids, without, elastic));
    assert!(stopwatch.took() < Duration::from_millis(200), "{:?}", stopwatch.took());
    // While it connects.
    let mut options = Options::default();
    options.retry.budget = Duration::from_secs(1);
    options.connect_timeout = Duration::from_millis(500);
    let hole = BlackHole::start().unwrap();
    for url in [server.url().to_owned(), format!("http://127.0.0.1:{}", hole.port())] {
        let pool = pool_of(ElasticConfig::url(url), options.clone());
        let stopwatch = Stopwatch::start();
        let error = pool.elastic().within(SOON).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::Connect(_) | Error::Timeout(_)), "{error:?}");
        assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_holders_and_health_show_the_server() {
    let server = Service::start(Kind::Elastic).unwrap();
    let mut options = unhurried();
    options.health.slow = LONG;
    options.health.cache = Duration::ZERO;
    let pool = pool_of(ElasticConfig::url(server.url()).max_requests(7).max_idle(3), options);
    assert_eq!(pool.status().resource("elastic").map(|elastic| elastic.state), Some(State::Idle));
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let line = line!() - 1;
    let holders = pool.holders();
    assert_eq!((holders.len(), holders[0].site.line(), holders[0].site.file()), (1, line, file!()));
    let status = pool.status();
    let shown = status.resource("elastic").unwrap();
    let Usage { max, in_use, waiting, max_idle, .. } = shown.usage;
    assert_eq!([max, in_use, waiting, max_idle], [7, 0, 0, 3].map(Some));
    assert_eq!((&*shown.endpoint, shown.state), (server.url(), State::Ready));
    // A replica that no second node has makes a cluster yellow.
    for (index, replicas, expected) in [("alone", 0, Health::Pass), ("twice", 1, Health::Warn)] {
        elastic.create_index(index, &json!({ "settings": { "number_of_replicas": replicas } })).await.unwrap();
        let report = pool.health_check().within(SOON).await;
        assert_eq!(report.entry("elastic").unwrap().health, expected, "{index}: {report}");
    }
    pool.refresh("elastic").within(SOON).await.unwrap();
    pool.reconnect("elastic").within(SOON).await.unwrap();
    let anew = pool.elastic().within(SOON).await.unwrap();
    assert!(anew.delete_index("nowhere").within(SOON).await.is_err());
    assert!(pool.close("elastic").within(SOON).await.unwrap().all_closed());
    assert!(anew.get::<Bar>("nowhere", "a").await.unwrap_err().is_closed());
    drop(elastic);
}
