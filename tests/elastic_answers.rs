//! Elasticsearch's kind against recorded answers, for what the compatible engine lacks: yellow and red clusters, logins,
//! rows that are answered by 429, whole bulks that fail, and connections that break in the middle of an answer.

#![cfg(feature = "elastic")]
#![allow(missing_docs)]

mod common;
#[path = "common/web.rs"]
mod web;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use common::{Within, eventually, unhurried};
use parking_lot::Mutex;
use resource_pool::config::{ElasticConfig, Options, Repeat};
use resource_pool::{
    BulkOutcome, CloseReport, ElasticError, Error, Health, ResourcePool, RowProblem, State, What, Work, blocking,
};
use serde_json::{Value, json};
use web::{Ending, Gate, WebServer, body};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

/// The next answers of a server, and what it was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    health: Option<(u16, Value)>,
    /// The answers to all but health. Without any left, a bulk is stored, and all else succeeds.
    answers: VecDeque<Recorded>,
    asked: Vec<Asked>,
}

/// A recorded answer.
enum Recorded {
    Json(u16, Value),
    /// With a header `Retry-After`, in seconds.
    Later(u16, &'static str, Value),
    /// 307, with the place to go to.
    Redirect(String),
    /// The connection breaks in the body.
    Broken,
    /// The connection breaks before the answer begins.
    Nothing,
    /// As `Rows`, once the gate lets it through.
    Held(Gate, Vec<(&'static str, u16, &'static str)>),
    /// The answer to a bulk, by the ids of rows that get another status than 201.
    Rows(Vec<(&'static str, u16, &'static str)>),
}

#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    uri: Uri,
    login: Option<String>,
    content_type: Option<String>,
    body: String,
}

impl Asked {
    /// The ids of the rows of a bulk.
    fn ids(&self) -> Vec<String> {
        let actions = self.body.lines().step_by(2).map(|line| serde_json::from_str::<Value>(line).unwrap());
        actions
            .map(|action| {
                let (_, inner) = action.as_object().unwrap().iter().next().unwrap();
                inner["_id"].as_str().unwrap_or("none").to_owned()
            })
            .collect()
    }
}

impl Script {
    fn of(answers: impl IntoIterator<Item = Recorded>) -> Self {
        let script = Script::default();
        script.then(answers);
        script
    }

    fn then(&self, answers: impl IntoIterator<Item = Recorded>) {
        self.0.lock().answers.extend(answers);
    }

    fn health(&self, status: u16, answer: Value) {
        self.0.lock().health = Some((status, answer));
    }

    /// The requests since the last look, those for health apart.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().asked)
    }

    fn serve(&self) -> WebServer {
        WebServer::start(Router::new().fallback(any(answer)).with_state(self.clone()))
    }
}

async fn answer(Shared(script): Shared<Script>, method: Method, uri: Uri, headers: HeaderMap, sent: Bytes) -> Response {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let sent = String::from_utf8(sent.to_vec()).unwrap();
    let asked = Asked {
        method,
        uri: uri.clone(),
        login: text("authorization"),
        content_type: text("content-type"),
        body: sent,
    };
    if uri.path() == "/_cluster/health" {
        let (status, told) = script.0.lock().health.clone().unwrap_or((200, json!({ "status": "green" })));
        return as_json(status, &told);
    }
    let next = {
        let mut lines = script.0.lock();
        lines.asked.push(asked.clone());
        lines.answers.pop_front()
    };
    let bulk = |rows: &[(&str, u16, &str)]| {
        let item = |id: String| match rows.iter().find(|(row, ..)| *row == id) {
            Some((_, status, kind)) => {
                json!({ "index": { "_id": id, "status": status, "error": { "type": kind, "reason": "so it is" } } })
            }
            None => json!({ "index": { "_id": id, "status": 201, "result": "created" } }),
        };
        let items: Vec<_> = asked.ids().into_iter().map(item).collect();
        as_json(200, &json!({ "took": 1, "errors": !rows.is_empty(), "items": items }))
    };
    match next {
        Some(Recorded::Json(status, told)) => as_json(status, &told),
        Some(Recorded::Later(status, seconds, told)) => {
            let mut answer = as_json(status, &told);
            answer.headers_mut().insert("retry-after", seconds.parse().unwrap());
            answer
        }
        Some(Recorded::Redirect(place)) => (StatusCode::TEMPORARY_REDIRECT, [("location", place)]).into_response(),
        Some(Recorded::Broken) => body(&["{\"took\":"], Ending::BrokenOff).into_response(),
        // A handler that panics has its connection closed.
        Some(Recorded::Nothing) => std::panic::resume_unwind(Box::new("on purpose")),
        Some(Recorded::Held(gate, rows)) => {
            gate.pass().await;
            bulk(&rows)
        }
        Some(Recorded::Rows(rows)) => bulk(&rows),
        None if uri.path().ends_with("/_bulk") => bulk(&[]),
        None => as_json(200, &json!({ "acknowledged": true, "result": "deleted", "_shards": { "failed": 0 } })),
    }
}

fn as_json(status: u16, told: &Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), [("content-type", "application/json")], told.to_string()).into_response()
}

fn failed(kind: &str, reason: &str, status: u16) -> Value {
    json!({ "error": { "root_cause": [], "type": kind, "reason": reason }, "status": status })
}

fn pool_of(config: ElasticConfig, options: Options) -> ResourcePool {
    ResourcePool::builder().environment([("", ""); 0]).options(options).resource(config).build().unwrap()
}

fn statuses(outcome: &BulkOutcome) -> Vec<(&str, u16)> {
    let status = |problem: &RowProblem| match problem {
        RowProblem::Refused(told) => told.status.as_u16(),
        other => panic!("{other}"),
    };
    outcome.returned.iter().map(|row| (row.row.id().unwrap(), status(&row.problem))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn green_passes_yellow_warns_and_red_fails() {
    let script = Script::default();
    let server = script.serve();
    let mut options = unhurried();
    options.health.cache = Duration::ZERO;
    options.health.slow = LONG;
    let pool = pool_of(ElasticConfig::url(server.url()), options.clone());
    // A red cluster serves the indices that it has whole, so connecting succeeds.
    script.health(200, json!({ "status": "red", "unassigned_shards": 4 }));
    drop(pool.elastic().within(SOON).await.unwrap());
    let mut told = Vec::new();
    for (status, answer, expected) in [
        (200, json!({ "status": "red", "unassigned_shards": 4 }), Health::Fail),
        (200, json!({ "status": "green", "unassigned_shards": 0 }), Health::Pass),
        (200, json!({ "status": "yellow", "unassigned_shards": 3 }), Health::Warn),
        (503, failed("master_not_discovered_exception", "no master", 503), Health::Fail),
        (408, json!({ "status": "red", "timed_out": true }), Health::Fail),
        (403, failed("security_exception", "action [cluster:monitor/health] is unauthorized", 403), Health::Warn),
        (401, failed("security_exception", "missing authentication", 401), Health::Warn),
        (200, json!("something else"), Health::Fail),
    ] {
        script.health(status, answer);
        let report = pool.health_check().within(SOON).await;
        let entry = report.entry("elastic").unwrap();
        assert_eq!(entry.health, expected, "{status}: {report}");
        told.extend(entry.error.clone());
    }
    assert_eq!(told[0], "the cluster is red, with 4 shards unassigned");
    assert_eq!(told[1], "the cluster is yellow, with 3 shards unassigned");
    // None of these answers has cut it.
    assert_eq!(pool.status().resource("elastic").unwrap().generation, 1);
    // Another sort of server is told at once, as it is of no use to wait.
    let error = pool_of(ElasticConfig::url(server.url()), options).elastic().within(SOON).await.map(drop).unwrap_err();
    let Error::Connect(error) = &error else { panic!("{error:?}") };
    assert!(error.permanent && error.to_string().contains("leads to an Elasticsearch or OpenSearch"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_login_is_told_at_once_and_shown_nowhere() {
    let script = Script::default();
    let server = script.serve();
    let reason = "unable to authenticate user [me] with p4ssw0rd";
    script.health(401, failed("security_exception", reason, 401));
    let url = server.url().replace("http://", "http://me:p4ssw0rd@");
    for config in [ElasticConfig::url(url), ElasticConfig::url(server.url()).api_key("p4ssw0rd")] {
        let began = std::time::Instant::now();
        let pool = pool_of(config.clone(), unhurried());
        let error = pool.elastic().within(SOON).await.map(drop).unwrap_err();
        let Error::Connect(connect) = &error else { panic!("{error:?}") };
        assert!(connect.permanent && connect.to_string().contains("401 Unauthorized"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "no further attempt mends it");
        assert!(!format!("{error} {error:?} {config:?} {pool:?}").contains("p4ssw0rd"), "{error:?}");
    }
    // A login that the server takes away later is an error of each verb, with the remedy, and without its words.
    script.health(200, json!({ "status": "green" }));
    let pool = pool_of(ElasticConfig::url(server.url()).user("me").password("p4ssw0rd"), unhurried());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut shards = failed("search_phase_execution_exception", "all shards failed", 500);
    shards["error"]["root_cause"] = json!([{ "type": "too_complex_to_determinize_exception", "reason": "over 10000" }]);
    script.then([
        Recorded::Json(401, failed("security_exception", "quotes p4ssw", 401)),
        Recorded::Json(400, failed("parsing_exception", reason, 400)),
        Recorded::Json(400, failed("parsing_exception", "near [x]", 400)),
        Recorded::Json(502, json!("no JSON of the server's")),
        Recorded::Json(500, shards),
    ]);
    let search = async || elastic.search::<Value>("bars", &json!({})).within(SOON).await.unwrap_err();
    let error = search().await;
    assert!(error.to_string().contains("set `user` and `password`, or `api_key`"), "{error}");
    assert!(!format!("{error:?}").contains("p4ssw"), "{error:?}");
    assert_eq!(ElasticError::of(&error).unwrap().status, StatusCode::UNAUTHORIZED);
    let error = search().await;
    assert!(!format!("{error} {error:?}").contains("p4ssw0rd") && error.to_string().contains("withheld"), "{error}");
    let error = search().await;
    assert_eq!(
        error.to_string(),
        "elastic: a search of \"bars\": the server answered 400 Bad Request: parsing_exception: near [x]"
    );
    assert!(search().await.to_string().contains("502 Bad Gateway: \"no JSON"));
    let error = search().await;
    assert!(error.to_string().contains("exception: all shards failed: over 10000"), "{error}");
    // A document whose id is a secret may be missing as any other.
    let missing = |told: Value| Recorded::Json(404, told);
    script.then([
        missing(json!({ "_index": "bars", "_id": "p4ssw0rd", "found": false })),
        missing(json!({ "_index": "bars", "_id": "p4ssw0rd", "result": "not_found" })),
    ]);
    assert_eq!(elastic.get::<Value>("bars", "p4ssw0rd").within(SOON).await.unwrap(), None);
    assert!(!elastic.delete("bars", "p4ssw0rd").within(SOON).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_is_that_of_the_fields_the_files_or_the_environment() {
    let script = Script::default();
    let server = script.serve();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = |name: &str, text: &str| {
        let path = folder.join(format!("elastic-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (password, key) = (file("password", "of-a-file\n"), file("key", "key-of-a-file\n"));
    let login = async |pool: &ResourcePool, name: Option<&str>| {
        let elastic = match name {
            Some(name) => pool.elastic_named(name).within(SOON).await.unwrap(),
            None => pool.elastic().within(SOON).await.unwrap(),
        };
        elastic.refresh("bars").within(SOON).await.unwrap();
        script.asked().remove(0).login.unwrap_or_default()
    };
    let url = server.url();
    let config = || ElasticConfig::url(&*url);
    let of = |config| pool_of(config, unhurried());
    assert_eq!(login(&of(config()), None).await, "");
    assert_eq!(login(&of(config().user("me").password("p@ss")), None).await, "Basic bWU6cEBzcw==");
    assert_eq!(login(&of(config().api_key("k3y==")), None).await, "ApiKey k3y==");
    assert_eq!(login(&of(config().user("me").password_file(&*password)), None).await, "Basic bWU6b2YtYS1maWxl");
    let by_file = of(config().api_key_file(&*key));
    assert_eq!(login(&by_file, None).await, "ApiKey key-of-a-file");
    std::fs::write(&key, "renewed").unwrap();
    by_file.refresh("elastic").within(SOON).await.unwrap();
    assert_eq!(login(&by_file, None).await, "ApiKey renewed");
    let with_login = url.replace("http://", "http://me:p%40ss@");
    let environment = |variables: &[(&str, &str)]| -> ResourcePool {
        ResourcePool::builder().environment(variables.iter().copied()).options(unhurried()).build().unwrap()
    };
    for (variables, expected) in [
        (&[("ELASTIC_URL", &*with_login)][..], "Basic bWU6cEBzcw=="),
        (&[("ELASTIC_URL", &url), ("ELASTIC_USER", "me"), ("ELASTIC_PASSWORD", "p@ss")], "Basic bWU6cEBzcw=="),
        (
            &[("ELASTIC_URL", &url), ("ELASTIC_USER", "me"), ("ELASTIC_PASSWORD_FILE", &password)],
            "Basic bWU6b2YtYS1maWxl",
        ),
        (&[("ELASTIC_URL", &url), ("ELASTIC_API_KEY", "k3y==")], "ApiKey k3y=="),
        (&[("ELASTIC_URL", &url), ("ELASTIC_API_KEY_FILE", &key)], "ApiKey renewed"),
    ] {
        assert_eq!(login(&environment(variables), None).await, expected, "{variables:?}");
    }
    let named =
        environment(&[("RESOURCE_POOL_ELASTIC_DESK_URL", &url), ("RESOURCE_POOL_ELASTIC_DESK_API_KEY", "of-the-desk")]);
    assert_eq!(login(&named, Some("desk")).await, "ApiKey of-the-desk");
    // The environment takes the place of TOML's.
    let toml = format!("[elastic]\nurl = '{url}'\napi_key = 'of-toml'");
    let layered = |variables: &[(&str, &str)]| -> ResourcePool {
        let builder = ResourcePool::builder().environment(variables.iter().copied()).options(unhurried());
        builder.config_str(&toml).build().unwrap()
    };
    assert_eq!(login(&layered(&[]), None).await, "ApiKey of-toml");
    assert_eq!(login(&layered(&[("ELASTIC_API_KEY_FILE", &key)]), None).await, "ApiKey renewed");
    for path in [password, key] {
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_answered_by_429_are_sent_again_a_bounded_number_of_times() {
    let crowded = "es_rejected_execution_exception";
    let script = Script::of([
        Recorded::Rows(vec![("2", 429, crowded), ("3", 400, "mapper_parsing_exception"), ("4", 429, crowded)]),
        Recorded::Rows(vec![("4", 429, crowded)]),
    ]);
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()).max_repeats(2), unhurried());
    let mut events = pool.events();
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    let fill = async |bulk: &mut resource_pool::BulkWriter| {
        for id in ["1", "2", "3", "4", "5"] {
            bulk.add(id, &json!({ "id": id })).await.unwrap();
        }
        bulk.flush().within(SOON).await.unwrap()
    };
    let outcome = fill(&mut bulk).await;
    assert_eq!((outcome.stored, statuses(&outcome)), (4, vec![("3", 400)]));
    let asked = script.asked();
    let sent: Vec<_> = asked.iter().map(Asked::ids).collect();
    assert_eq!(sent, [&["1", "2", "3", "4", "5"][..], &["2", "4"], &["4"]]);
    assert!(asked.iter().all(|asked| asked.method == Method::POST && asked.uri.path() == "/bars/_bulk"), "{asked:?}");
    assert_eq!(asked[0].content_type.as_deref(), Some("application/x-ndjson"));
    assert!(asked[1].body.starts_with("{\"index\":{\"_id\":\"2\"}}\n{\"id\":\"2\"}\n"), "{}", asked[1].body);
    let mut repeated = 0;
    while repeated < 2 {
        let event = events.next().within(SOON).await.unwrap();
        repeated += usize::from(matches!(event.what, What::Repeated { .. }));
    }
    // After that they are given back.
    script.then((0..3).map(|_| Recorded::Rows(vec![("2", 429, crowded)])));
    let outcome = fill(&mut bulk).await;
    assert_eq!((outcome.stored, statuses(&outcome)), (4, vec![("2", 429)]));
    assert!(outcome.returned[0].problem.to_string().contains("429 Too Many Requests: es_rejected_execution_exception"));
    assert_eq!(script.asked().len(), 3);
    // A bulk may be refused as a whole, and the server may say for how long.
    script.then([Recorded::Later(429, "0", failed(crowded, "full", 429))]);
    assert_eq!(fill(&mut bulk).await.checked().unwrap(), 5);
    assert_eq!(script.asked().len(), 2);
    script.then([Recorded::Later(429, "3600", failed(crowded, "full", 429))]);
    assert_eq!(fill(&mut bulk).await.returned.len(), 5, "nobody waits for an hour");
    assert_eq!(script.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_that_fails_as_a_whole_gives_all_rows_back_by_what_is_known() {
    let script = Script::default();
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()), unhurried());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    let mut outcome = async |with_ids: bool| {
        bulk.add("1", &json!({})).await.unwrap();
        match with_ids {
            true => bulk.add("2", &json!({})).await.unwrap(),
            false => bulk.add(None, &json!({})).await.unwrap(),
        }
        let BulkOutcome { stored, returned, .. } = bulk.flush().within(SOON).await.unwrap();
        assert_eq!((stored, returned.len()), (0, 2), "{returned:?}");
        returned.into_iter().next().unwrap().problem
    };
    for (status, kind) in [(413, "too_large"), (403, "security_exception"), (404, "index_not_found_exception")] {
        script.then([Recorded::Json(status, failed(kind, "so it is", status))]);
        let problem = outcome(false).await;
        let RowProblem::Refused(told) = &problem else { panic!("{problem:?}") };
        assert_eq!((told.status.as_u16(), &*told.kind), (status, kind));
    }
    // A proxy may answer so after the server has got the rows.
    for is_known in [true, false] {
        script.then([Recorded::Json(503, failed("unavailable", "no master", 503))]);
        let problem = outcome(is_known).await;
        let RowProblem::Failed(error) = &problem else { panic!("{problem:?}") };
        assert_eq!(matches!(error, Error::OutcomeUnknown { .. }), !is_known, "{error:?}");
        assert_eq!(ElasticError::of(error).unwrap().status.as_u16(), 503);
    }
    // An answer that cannot be matched with the rows tells nothing of them.
    for answer in [json!({}), json!({ "items": [] }), json!({ "items": [{}, {}] }), json!("text")] {
        for is_known in [true, false] {
            script.then([Recorded::Json(200, answer.clone())]);
            let problem = outcome(is_known).await;
            let RowProblem::Failed(error) = &problem else { panic!("{problem:?}") };
            assert_eq!(matches!(error, Error::OutcomeUnknown { .. }), !is_known, "{error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_in_flight_holds_the_next_row_back_and_goes_on_if_its_caller_gives_up() {
    let gate = Gate::new();
    let script = Script::of([Recorded::Held(gate.clone(), Vec::new())]);
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()), unhurried());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("bars").with_max_rows(2).with_period(LONG);
    bulk.add("1", &json!({})).await.unwrap();
    let row = json!({});
    tokio::select! {
        _ = bulk.add("2", &row) => panic!("it waits for the answer"),
        () = async { eventually(SOON, async || (gate.arrived() == 1).then_some(())).await } => {}
    }
    // The next row has to wait for it.
    let waits = tokio::time::timeout(Duration::from_millis(50), bulk.add("3", &row)).await;
    assert!(waits.is_err() && script.asked().len() == 1);
    gate.let_through(1);
    bulk.add("4", &row).within(SOON).await.unwrap();
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, outcome.returned.len()), (3, 0), "the third was never taken: {outcome:?}");
    let sent: Vec<_> = script.asked().iter().map(Asked::ids).collect();
    assert_eq!(sent, [["4"]]);
    // A flush that is given up leaves the outcome to the next one.
    script.then([Recorded::Held(gate.clone(), vec![("5", 400, "mapper_parsing_exception")])]);
    bulk.add("5", &row).within(SOON).await.unwrap();
    tokio::select! {
        _ = bulk.flush() => panic!("it waits for the answer"),
        () = async { eventually(SOON, async || (gate.arrived() == 2).then_some(())).await } => {}
    }
    gate.let_through(1);
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, statuses(&outcome)), (0, vec![("5", 400)]));
}

/// The rows that a step of a close has counted as not finished.
fn unstored(report: &CloseReport) -> usize {
    let step = report.step("elastic").unwrap();
    let counts = step.given_up.iter().chain(&step.unfinished);
    counts.filter(|(work, _)| *work == Work::Row).map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_stored_while_the_pool_closes_are_counted_and_can_be_taken_after_it() {
    let script = Script::default();
    let mut server = script.serve();
    let mut options = unhurried();
    options.repeat = Repeat::Idempotent;
    let url = server.url();
    // The limits of flushing and draining end a wait for something that never comes.
    let begin = async |limit: Duration| {
        let config = ElasticConfig::url(&*url).max_repeats(10).max_repeat_wait(LONG).flush_timeout(limit);
        let mut options = options.clone();
        options.close.drain = limit * 2;
        let pool = pool_of(config, options);
        let elastic = pool.elastic().within(SOON).await.unwrap();
        let mut bulk = elastic.bulk("bars").with_period(LONG);
        bulk.add("1", &json!({})).await.unwrap();
        bulk.add("2", &json!({})).await.unwrap();
        drop(elastic);
        (pool, bulk)
    };
    // The server refuses one in the drain.
    let (pool, mut bulk) = begin(Duration::from_secs(5)).await;
    script.then([Recorded::Rows(vec![("2", 400, "mapper_parsing_exception")])]);
    let report = pool.close_all().within(SOON).await;
    assert_eq!(unstored(&report), 1, "{report}");
    let told = "1 rows for \"bars\" were given back, the first because";
    assert!(report.to_string().contains(told), "{report}");
    assert!(bulk.add("3", &json!({})).within(SOON).await.unwrap_err().is_closed());
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, statuses(&outcome)), (1, vec![("2", 400)]));
    assert_eq!(bulk.flush().within(SOON).await.unwrap().checked().unwrap(), 0);
    // The server has no room for them, and they wait for a repeat that never comes.
    let (pool, mut bulk) = begin(Duration::from_secs(1)).await;
    script.then([Recorded::Later(429, "500", failed("es_rejected_execution_exception", "full", 429))]);
    let report = pool.close_all().within(SOON).await;
    assert_eq!(unstored(&report), 2, "{report}");
    assert!(report.to_string().contains("2 rows for \"bars\" were not sent within 1s"), "{report}");
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, statuses(&outcome)), (0, vec![("1", 429), ("2", 429)]));
    // Their connection breaks, and they wait for a server that does not come back.
    let (pool, mut bulk) = begin(Duration::from_secs(1)).await;
    let gate = Gate::new();
    script.then([Recorded::Held(gate.clone(), Vec::new())]);
    tokio::select! {
        _ = bulk.flush() => panic!("it waits for the answer"),
        () = async { eventually(SOON, async || (gate.arrived() == 1).then_some(())).await } => {}
    }
    tokio::task::block_in_place(|| server.kill());
    let report = pool.close_all().within(SOON).await;
    assert_eq!(unstored(&report), 2, "{report}");
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, outcome.returned.len()), (0, 2));
    for returned in outcome.returned {
        let RowProblem::Failed(error) = &returned.problem else { panic!("{returned:?}") };
        assert!(!matches!(error, Error::OutcomeUnknown { .. }), "sending them again does no harm: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_drops_sends_its_rows_and_those_that_are_not_stored_are_told() {
    let script = Script::default();
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()), unhurried());
    let mut events = pool.events();
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut told = async || {
        loop {
            if let What::Warned { message, error } = events.next().within(SOON).await.unwrap().what {
                return format!("{message}: {}", error.unwrap_or_default());
            }
        }
    };
    let refused = || vec![("2", 400, "mapper_parsing_exception")];
    let fill = async |bulk: &mut resource_pool::BulkWriter| {
        bulk.add("1", &json!({})).within(SOON).await.unwrap();
        bulk.add("2", &json!({})).within(SOON).await.unwrap();
    };
    let expected = "1 rows for \"bars\" are not known to be stored: the server answered 400 Bad Request: mapper";
    // It has rows that were not sent.
    script.then([Recorded::Rows(refused())]);
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    fill(&mut bulk).await;
    drop(bulk);
    let event = told().await;
    assert!(event.contains(expected), "{event}");
    assert_eq!(script.asked().iter().map(Asked::ids).collect::<Vec<_>>(), [["1", "2"]]);
    // Its bulk is in flight.
    let gate = Gate::new();
    script.then([Recorded::Held(gate.clone(), refused())]);
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    fill(&mut bulk).await;
    tokio::select! {
        _ = bulk.flush() => panic!("it waits for the answer"),
        () = async { eventually(SOON, async || (gate.arrived() == 1).then_some(())).await } => {}
    }
    drop(bulk);
    gate.let_through(1);
    let event = told().await;
    assert!(event.contains(expected), "{event}");
    // It has rows that were given back.
    script.then([Recorded::Rows(refused())]);
    let mut bulk = elastic.bulk("bars").with_max_rows(2);
    fill(&mut bulk).await;
    drop(bulk);
    let event = told().await;
    assert!(event.contains(expected), "{event}");
    // Closing waits for the rows of one that has dropped, and tells those that are not stored.
    script.then([Recorded::Rows(refused())]);
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    fill(&mut bulk).await;
    drop((elastic, bulk));
    let report = pool.close_all().within(SOON).await;
    let event = told().await;
    assert!(event.contains(expected) || event.contains("rows were not stored"), "{event}");
    assert!(unstored(&report) <= 1, "{report}");
    assert_eq!(pool.status().resource("elastic").unwrap().work, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_proves_nothing_leaves_the_outcome_unknown_unless_a_repeat_does_no_harm() {
    let script = Script::default();
    let server = script.serve();
    let mut options = unhurried();
    options.repeat = Repeat::Idempotent;
    let pool = pool_of(ElasticConfig::url(server.url()).max_body(800), options);
    let mut events = pool.events();
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let is_unknown = |error: &Error| matches!(error, Error::OutcomeUnknown { .. });
    // The answer is longer than `max_body`.
    let long = || Recorded::Json(200, json!({ "items": [{ "index": { "status": 201 } }], "rest": "x".repeat(1000) }));
    for id in [Some("1"), None] {
        let mut bulk = elastic.bulk("bars").with_period(LONG);
        bulk.add(id, &json!({})).await.unwrap();
        script.then([long()]);
        let outcome = bulk.flush().within(SOON).await.unwrap();
        let RowProblem::Failed(error) = &outcome.returned[0].problem else { panic!("{outcome:?}") };
        assert_eq!(is_unknown(error), id.is_none(), "{error:?}");
        assert!(error.to_string().contains("raise `max_body`"), "{error}");
        script.then([long()]);
        let error = elastic.index("bars", id, &json!({})).within(SOON).await.unwrap_err();
        assert_eq!(is_unknown(&error), id.is_none(), "{error:?}");
    }
    assert_eq!(script.asked().len(), 4, "none is sent again");
    // A proxy answers in the server's place, after the server may have got it.
    let gateway = || Recorded::Json(504, json!("late"));
    script.then([gateway(), gateway(), gateway(), gateway()]);
    for (error, expected) in [
        (elastic.index("bars", None, &json!({})).within(SOON).await.map(drop).unwrap_err(), true),
        (elastic.create_index("bars", &json!({})).within(SOON).await.unwrap_err(), true),
        (elastic.delete_index("bars").within(SOON).await.unwrap_err(), true),
        (elastic.index("bars", "1", &json!({})).within(SOON).await.map(drop).unwrap_err(), false),
    ] {
        assert_eq!(is_unknown(&error), expected, "{error:?}");
        assert_eq!(ElasticError::of(&error).unwrap().status, StatusCode::GATEWAY_TIMEOUT, "{error:?}");
    }
    script.asked();
    // One row is answered so, and others are not.
    let unavailable = "unavailable_shards_exception";
    script.then([Recorded::Rows(vec![
        ("none", 503, unavailable),
        ("2", 503, unavailable),
        ("3", 503, unavailable),
        ("4", 409, "version_conflict_engine_exception"),
    ])]);
    while events.try_next().is_some() {}
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    bulk.add(None, &json!({})).await.unwrap();
    bulk.add("2", &json!({})).await.unwrap();
    bulk.create("3", &json!({})).await.unwrap();
    bulk.create("4", &json!({})).await.unwrap();
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!(script.asked().len(), 1, "none is sent again");
    let told: Vec<_> = outcome
        .returned
        .iter()
        .map(|returned| match &returned.problem {
            RowProblem::Refused(told) => (told.status.as_u16(), "refused"),
            RowProblem::Failed(error) => {
                let word = if is_unknown(error) { "unknown" } else { "harmless" };
                (ElasticError::of(error).unwrap().status.as_u16(), word)
            }
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(told, [(503, "unknown"), (503, "harmless"), (503, "unknown"), (409, "refused")]);
    let mut reversed = outcome.clone();
    reversed.returned.reverse();
    let error = reversed.checked().unwrap_err();
    assert!(is_unknown(&error), "the worst of the problems is told: {error:?}");
    loop {
        if let What::OutcomeUnknown { error } = events.next().within(SOON).await.unwrap().what {
            assert!(error.to_string().contains(unavailable), "{error}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_something_else_than_the_server_is_no_answer() {
    let script = Script::default();
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()), unhurried());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let get = async || elastic.get::<Value>("bars", "1").within(SOON).await;
    let delete = async || elastic.delete("bars", "1").within(SOON).await;
    // The body tells a missing document, and not the status.
    for answer in [
        json!("<html>not here</html>"),
        json!({}),
        json!({ "found": false }),
        json!({ "_index": "bars", "_id": "1" }),
        failed("", "no handler", 404),
        failed("index_not_found_exception", "no such index [bars]", 404),
    ] {
        script.then([Recorded::Json(404, answer.clone()), Recorded::Json(404, answer.clone())]);
        for error in [get().await.map(drop).unwrap_err(), delete().await.map(drop).unwrap_err()] {
            assert_eq!(ElasticError::of(&error).unwrap().status, StatusCode::NOT_FOUND, "{answer}: {error:?}");
        }
    }
    script.then([Recorded::Json(404, json!({ "_index": "bars", "_id": "1", "found": false }))]);
    assert_eq!(get().await.unwrap(), None);
    script.then([Recorded::Json(404, json!({ "_index": "bars", "_id": "1", "result": "not_found" }))]);
    assert!(!delete().await.unwrap());
    // A success is one of the server's only in its own form.
    for (status, answer) in [(200, json!("welcome")), (200, json!({})), (302, json!({}))] {
        let other = || Recorded::Json(status, answer.clone());
        script.then([other(), other(), other(), other(), other()]);
        assert!(matches!(get().await.unwrap_err(), Error::Operation { .. }), "{status} {answer}");
        assert!(matches!(delete().await.unwrap_err(), Error::Operation { .. }), "{status} {answer}");
        let refreshed = elastic.refresh("bars").within(SOON).await;
        assert!(matches!(refreshed.unwrap_err(), Error::Operation { .. }), "{status} {answer}");
        let created = elastic.create_index("bars", &json!({})).within(SOON).await;
        assert!(matches!(created.unwrap_err(), Error::OutcomeUnknown { .. }), "{status} {answer}");
        let deleted = elastic.delete_index("bars").within(SOON).await;
        assert!(matches!(deleted.unwrap_err(), Error::OutcomeUnknown { .. }), "{status} {answer}");
    }
    // A redirect is not followed. It may lead to a server that cannot be reached, although the request has left.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    script.then([Recorded::Redirect(format!("http://{nobody}/bars/_search")), Recorded::Redirect(server.url())]);
    for _ in 0..2 {
        let error = elastic.search::<Value>("bars", &json!({})).within(SOON).await.unwrap_err();
        assert!(matches!(error, Error::Operation { .. }) && error.to_string().contains("307"), "{error:?}");
    }
    script.then([Recorded::Json(200, json!({ "acknowledged": false }))]);
    let error = elastic.create_index("bars", &json!({})).within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("not all nodes have acknowledged it"), "{error}");
    script.then([Recorded::Json(200, json!({ "_shards": { "total": 2, "failed": 1 } }))]);
    let error = elastic.refresh("bars").within(SOON).await.unwrap_err();
    assert!(error.to_string().contains("1 shards failed"), "{error}");
    let skipped = json!({ "hits": { "hits": [] }, "_clusters": { "total": 2, "skipped": 1 } });
    script.then([Recorded::Json(200, skipped)]);
    assert!(!elastic.search::<Value>("bars,far:bars", &json!({})).within(SOON).await.unwrap().is_whole());
}

/// The prober finds that the server takes no more connections, while a request awaits its answer on one that lives. The
/// loss cuts the request, which was sent, although the prober's own was not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_sent_is_not_repeated_because_the_prober_was_refused() {
    let gate = Gate::new();
    let script = Script::of([Recorded::Held(gate.clone(), Vec::new())]);
    let serve = |listener: tokio::net::TcpListener| {
        let router = Router::new().fallback(any(answer)).with_state(script.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async move { stopped.await.unwrap_or(()) };
        tokio::spawn(async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await });
        stop
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = serve(listener);
    let mut options = unhurried();
    assert_eq!(options.repeat, Repeat::Unsent, "the default");
    options.probe.interval = Duration::from_millis(20);
    let pool = pool_of(ElasticConfig::url(format!("http://{address}")), options);
    let elastic = pool.elastic().within(SOON).await.unwrap().clone();
    let searching = tokio::spawn({
        let elastic = elastic.clone();
        async move { elastic.search::<Value>("bars", &json!({})).await }
    });
    eventually(SOON, async || (gate.arrived() == 1).then_some(())).await;
    // No new connection is taken, idle ones end, and the one in use goes on.
    stop.send(()).unwrap();
    let state = || pool.status().resource("elastic").unwrap().state;
    eventually(SOON, async || (state() != State::Ready).then_some(())).await;
    let listener = eventually(SOON, async || tokio::net::TcpListener::bind(address).await.ok()).await;
    let _stop = serve(listener);
    let error = searching.within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    eventually(SOON, async || (state() == State::Ready).then_some(())).await;
    elastic.refresh("bars").within(SOON).await.unwrap();
    let paths: Vec<_> = script.asked().iter().map(|asked| asked.uri.path().to_owned()).collect();
    assert_eq!(paths, ["/bars/_search", "/bars/_refresh"]);
}

/// By default a bulk that never left is sent once the server is back, whatever its rows are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_that_never_left_is_sent_once_the_server_is_back() {
    let script = Script::default();
    let mut server = script.serve();
    let mut options = unhurried();
    options.probe.enabled = false;
    let pool = pool_of(ElasticConfig::url(server.url()), options);
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    bulk.add(None, &json!({})).await.unwrap();
    bulk.create("1", &json!({})).await.unwrap();
    tokio::task::block_in_place(|| server.kill());
    let mut flush = Box::pin(bulk.flush());
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut flush).await;
    assert!(waits.is_err(), "it waits for the server");
    tokio::task::block_in_place(|| server.restart());
    assert_eq!(flush.within(SOON).await.unwrap().checked().unwrap(), 2);
    assert_eq!(script.asked().len(), 1);
}

/// The connection ends while a bulk is in flight. Only rows with ids of their own, which may take the place of others, are
/// sent once more, and only if the option says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_whose_answer_is_lost_is_repeated_once_if_that_does_no_harm() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Row {
        Idempotent,
        Create,
        WithoutId,
    }
    let script = Script::default();
    let server = script.serve();
    for (repeat, row, lost, sent, is_stored) in [
        (Repeat::Idempotent, Row::Idempotent, 1, 2, true),
        (Repeat::Idempotent, Row::Idempotent, 2, 2, false),
        (Repeat::Idempotent, Row::Create, 1, 1, false),
        (Repeat::Idempotent, Row::WithoutId, 1, 1, false),
        (Repeat::Unsent, Row::Idempotent, 1, 1, false),
        (Repeat::Never, Row::Idempotent, 1, 1, false),
    ] {
        for breaks in [|| Recorded::Nothing, || Recorded::Broken] {
            let what = format!("{repeat:?} {row:?} {lost}");
            let mut options = unhurried();
            options.repeat = repeat;
            let pool = pool_of(ElasticConfig::url(server.url()), options);
            let elastic = pool.elastic().within(SOON).await.unwrap();
            script.then((0..lost).map(|_| breaks()));
            let mut bulk = elastic.bulk("bars").with_period(LONG);
            bulk.add("1", &json!({})).await.unwrap();
            match row {
                Row::Idempotent => bulk.add("2", &json!({})).await.unwrap(),
                Row::Create => bulk.create("2", &json!({})).await.unwrap(),
                Row::WithoutId => bulk.add(None, &json!({})).await.unwrap(),
            }
            let outcome = bulk.flush().within(SOON).await.unwrap();
            assert_eq!(outcome.stored, if is_stored { 2 } else { 0 }, "{what}");
            assert_eq!(script.asked().len(), sent, "{what}");
            for returned in outcome.returned {
                let RowProblem::Failed(error) = &returned.problem else { panic!("{what}: {returned:?}") };
                assert_eq!(matches!(error, Error::OutcomeUnknown { .. }), row != Row::Idempotent, "{what}: {error:?}");
                assert_eq!(matches!(error, Error::Lost { .. }), row == Row::Idempotent, "{what}: {error:?}");
            }
        }
    }
}

/// The first sending may have stored the row that the second one refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_refused_after_a_lost_answer_is_not_said_to_be_missing() {
    let script = Script::of([Recorded::Nothing, Recorded::Rows(vec![("1", 429, "es_rejected_execution_exception")])]);
    let server = script.serve();
    let mut options = unhurried();
    options.repeat = Repeat::Idempotent;
    let pool = pool_of(ElasticConfig::url(server.url()).max_repeats(0), options);
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let mut bulk = elastic.bulk("bars").with_period(LONG);
    bulk.add("1", &json!({})).await.unwrap();
    bulk.add("2", &json!({})).await.unwrap();
    let outcome = bulk.flush().within(SOON).await.unwrap();
    assert_eq!((outcome.stored, outcome.returned.len()), (1, 1), "{outcome:?}");
    let RowProblem::Failed(error) = &outcome.returned[0].problem else { panic!("{outcome:?}") };
    assert_eq!(ElasticError::of(error).unwrap().status, StatusCode::TOO_MANY_REQUESTS, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verb_is_repeated_once_if_that_does_no_harm() {
    let script = Script::default();
    let server = script.serve();
    let mut options = unhurried();
    options.repeat = Repeat::Idempotent;
    let pool = pool_of(ElasticConfig::url(server.url()), options);
    let elastic = pool.elastic().within(SOON).await.unwrap();
    let put = json!({ "_id": "1", "_version": 1, "result": "created" });
    script.then([Recorded::Nothing, Recorded::Json(200, put.clone())]);
    elastic.index("bars", "1", &json!({})).within(SOON).await.unwrap();
    script.then([Recorded::Nothing, Recorded::Json(200, json!({ "_source": { "a": 1 } }))]);
    assert_eq!(elastic.get::<Value>("bars", "1").within(SOON).await.unwrap(), Some(json!({ "a": 1 })));
    assert_eq!(script.asked().len(), 4);
    // The second answer to a delete would be that there was no such document.
    script.then([Recorded::Broken]);
    let error = elastic.delete("bars", "1").within(SOON).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert_eq!(script.asked().len(), 1);
    script.then([Recorded::Nothing, Recorded::Nothing, Recorded::Nothing]);
    for error in [
        elastic.index("bars", None, &json!({})).within(SOON).await.map(drop).unwrap_err(),
        elastic.create_index("bars", &json!({})).within(SOON).await.unwrap_err(),
        elastic.delete_index("bars").within(SOON).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
    }
    assert_eq!(script.asked().len(), 3);
    // A status is never followed by a repeat of a verb.
    script.then([Recorded::Json(503, failed("unavailable", "no master", 503))]);
    assert!(elastic.get::<Value>("bars", "1").within(SOON).await.is_err());
    assert_eq!(script.asked().len(), 1);
}

/// A page of a scroll, with the scroll's name.
fn page(scroll: &str, ids: &[&str]) -> Recorded {
    let hit = |id: &&str| json!({ "_id": id, "_index": "bars", "_score": 1.0, "_source": { "id": id } });
    let hits: Vec<_> = ids.iter().map(hit).collect();
    Recorded::Json(200, json!({ "_scroll_id": scroll, "hits": { "hits": hits, "total": 4 } }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scroll_is_closed_on_the_server_when_it_ends_or_drops_or_the_pool_closes() {
    let script = Script::default();
    let server = script.serve();
    let pool = pool_of(ElasticConfig::url(server.url()).scroll_size(2), unhurried());
    let elastic = pool.elastic().within(SOON).await.unwrap();
    // The asks of a scroll, once it is closed on the server.
    let closed = async || {
        let mut all = Vec::new();
        eventually(SOON, async || {
            all.extend(script.asked());
            all.iter().any(|asked: &Asked| asked.method == Method::DELETE).then_some(())
        })
        .await;
        let Asked { uri, body, .. } = all.pop().unwrap();
        assert_eq!(uri.path(), "/_search/scroll");
        (all, serde_json::from_str::<Value>(&body).unwrap()["scroll_id"].clone())
    };
    let open =
        async |limit| elastic.scroll::<Value>("bars", &json!({ "query": {} }), limit).within(SOON).await.unwrap();
    // It ends by an empty page. The server may give it another name.
    script.then([page("first", &["1", "2"]), page("second", &["3"]), page("second", &[])]);
    let mut scroll = open(9).await;
    let mut pages = Vec::new();
    while let Some(page) = scroll.next().within(SOON).await {
        pages.push(page.unwrap().into_iter().map(|hit| hit.id).collect::<Vec<_>>());
    }
    assert_eq!(pages, [vec!["1", "2"], vec!["3"]]);
    let (asked, named) = closed().await;
    assert_eq!(named, json!(["second"]));
    let paths: Vec<_> = asked.iter().map(|asked| asked.uri.to_string()).collect();
    assert_eq!(paths, ["/bars/_search?scroll=60000ms", "/_search/scroll", "/_search/scroll"]);
    assert_eq!(serde_json::from_str::<Value>(&asked[0].body).unwrap(), json!({ "query": {}, "size": 2 }));
    assert_eq!(
        serde_json::from_str::<Value>(&asked[1].body).unwrap(),
        json!({ "scroll": "60000ms", "scroll_id": "first" })
    );
    // It ends by its limit, and by a drop.
    script.then([page("limited", &["1", "2"])]);
    let mut scroll = open(1).await;
    assert_eq!(scroll.next().within(SOON).await.unwrap().unwrap().len(), 1);
    assert_eq!(closed().await.1, json!(["limited"]));
    assert!(scroll.next().within(SOON).await.is_none());
    script.then([page("dropped", &["1", "2"])]);
    drop(open(9).await);
    assert_eq!(closed().await.1, json!(["dropped"]));
    // A page on its way may be lost with the connection. Asking for it again would skip one.
    script.then([page("broken", &["1", "2"]), Recorded::Nothing]);
    let mut scroll = open(9).await;
    assert!(scroll.next().within(SOON).await.unwrap().is_ok());
    let error = scroll.next().within(SOON).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert!(scroll.next().within(SOON).await.is_none());
    assert_eq!(closed().await.1, json!(["broken"]));
    // A page that lacks hits is an error.
    let partial = json!({ "_scroll_id": "partial", "_shards": { "total": 2, "failed": 1 }, "hits": { "hits": [] } });
    script.then([Recorded::Json(200, partial)]);
    let error = elastic.scroll::<Value>("bars", &json!({}), 9).within(SOON).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("1 shards failed"), "{error}");
    assert_eq!(closed().await.1, json!(["partial"]));
    let partial = json!({ "timed_out": true, "hits": { "hits": [] } });
    script.then([Recorded::Json(200, partial)]);
    assert!(!elastic.search::<Value>("bars", &json!({})).within(SOON).await.unwrap().is_whole());
    // So is one without the scroll's name, which would be the end of a scroll in silence.
    let nameless = || Recorded::Json(200, json!({ "hits": { "hits": [{ "_id": "9", "_index": "bars" }] } }));
    script.then([nameless()]);
    let error = elastic.scroll::<Value>("bars", &json!({}), 9).within(SOON).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("no `_scroll_id`"), "{error}");
    let late = json!({ "_scroll_id": "late", "timed_out": true, "hits": { "hits": [] } });
    let failed = json!({ "_scroll_id": "failed", "_shards": { "failed": 1 }, "hits": { "hits": [] } });
    let skipped = json!({ "_scroll_id": "skipped", "_clusters": { "skipped": 1 }, "hits": { "hits": [] } });
    let partial = [("late", late), ("failed", failed), ("skipped", skipped)];
    let partial = partial.map(|(name, page)| (name, Recorded::Json(200, page)));
    for (name, second) in partial.into_iter().chain([("whole", nameless())]) {
        script.then([page("whole", &["1", "2"]), second]);
        let mut scroll = open(9).await;
        assert!(scroll.next().within(SOON).await.unwrap().is_ok());
        let error = scroll.next().within(SOON).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Operation { .. }), "{name}: {error:?}");
        assert!(scroll.next().within(SOON).await.is_none());
        assert_eq!(closed().await.1, json!([name]));
    }
    // A page that its caller gave up is lost, which must not be an end in silence either.
    let gate = Gate::new();
    script.then([page("given up", &["1", "2"]), Recorded::Held(gate.clone(), Vec::new())]);
    let mut scroll = open(9).await;
    assert!(scroll.next().within(SOON).await.unwrap().is_ok());
    tokio::select! {
        _ = scroll.next() => panic!("it waits for the answer"),
        () = async { eventually(SOON, async || (gate.arrived() == 1).then_some(())).await } => {}
    }
    let error = scroll.next().within(SOON).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("given up on its way"), "{error}");
    assert!(scroll.next().within(SOON).await.is_none());
    assert_eq!(closed().await.1, json!(["given up"]));
    // One whose documents are no `T` is closed too.
    script.then([page("typed", &["1", "2"])]);
    assert!(elastic.scroll::<u8>("bars", &json!({}), 9).within(SOON).await.is_err());
    assert_eq!(closed().await.1, json!(["typed"]));
    // Closing the pool closes those that are open.
    script.asked();
    script.then([page("one", &["1", "2"]), page("two", &["1", "2"])]);
    let (mut one, two) = (open(9).await, open(9).await);
    let report = pool.close_all().within(SOON).await;
    assert!(report.all_closed(), "{report}");
    assert!(report.step("elastic").unwrap().finished.contains(&(Work::Cursor, 2)), "{report}");
    assert_eq!(closed().await.1, json!(["one", "two"]));
    assert!(one.next().within(SOON).await.unwrap().is_ok(), "its first page had come");
    assert!(one.next().within(SOON).await.unwrap().unwrap_err().is_closed());
    drop(two);
    assert!(script.asked().is_empty());
}

/// The key and the problem of a configuration that cannot be used.
#[track_caller]
fn wrong(config: ElasticConfig) -> (String, String) {
    let built: Result<ResourcePool, _> = ResourcePool::builder().environment([("", ""); 0]).resource(config).build();
    match built {
        Err(Error::Config { key, problem }) => (key, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_value_that_cannot_be_used_is_refused_and_shown_nowhere() {
    let url = || ElasticConfig::url("http://h");
    for (config, key, expected) in [
        (ElasticConfig::url("s3cret"), "elastic.url", "is not a URL"),
        (ElasticConfig::url("ftp://s3cret"), "elastic.url", "expected http:// or https://"),
        (ElasticConfig::url("http://h/?key=s3cret"), "elastic.url", "has a `?` or `#`"),
        (url().user("a:s3cret").password("x"), "elastic.user", "has a colon"),
        (url().password("s3cret"), "elastic.password", "is set without a user"),
        (url().user("me").api_key("s3cret"), "elastic.api_key", "beside a user or a password"),
        (url().api_key("s3cret\n"), "elastic.api_key", "cannot stand in an HTTP header"),
        (url().api_key("s3cret").api_key_file("/nonexistent/f"), "elastic.api_key_file", "beside `api_key`"),
        (url().api_key_file("/nonexistent/f"), "elastic.api_key_file", "cannot be read"),
        (url().password("s3cret").password_file("/nonexistent/f"), "elastic.password_file", "beside a password"),
        (url().connect_timeout(Duration::ZERO), "elastic.connect_timeout_ms", "at least 1 ms"),
        (url().read_timeout(Duration::ZERO), "elastic.read_timeout_ms", "at least 1 ms"),
        (url().bulk_period(Duration::ZERO), "elastic.bulk_period_ms", "at least 1 ms"),
        (url().flush_timeout(Duration::ZERO), "elastic.flush_timeout_ms", "at least 1 ms"),
        (url().scroll_keep(Duration::ZERO), "elastic.scroll_keep_ms", "at least 1 ms"),
        (url().max_requests(0), "elastic.max_requests", "must be from 1"),
        (url().max_body(0), "elastic.max_body", "must be from 1"),
        (url().bulk_rows(0), "elastic.bulk_rows", "must be from 1"),
        (url().bulk_bytes(0), "elastic.bulk_bytes", "must be from 1"),
        (url().scroll_size(0), "elastic.scroll_size", "must be from 1"),
        (url().max_repeats(11), "elastic.max_repeats", "must be from 0 to 10"),
        (url().keepalive(Duration::ZERO), "elastic.keepalive_ms", "whole seconds"),
        (url().proxy("socks5://s3cret"), "elastic.proxy", "expected http:// or https://"),
    ] {
        let (found, problem) = wrong(config);
        assert!(found == key && problem.contains(expected) && !problem.contains("s3cret"), "{found}: {problem}");
    }
    for (text, key) in [
        ("[elastic]\nhost = 'h'", "elastic.host"),
        ("[elastic]\nbulk_rows = -1", "elastic.bulk_rows"),
        ("[named.elastic.market]\nurl = 'x'", "named.elastic.market.url"),
    ] {
        let built: Result<blocking::ResourcePool, _> =
            blocking::ResourcePool::builder().environment([("", ""); 0]).config_str(text).build();
        let Err(Error::Config { key: found, .. }) = built else { panic!("{built:?}") };
        assert_eq!(found, key);
    }
}

#[test]
fn no_secret_is_shown() {
    let secrets = ["p4ssw0rd", "pr0xy", "base-p4th", "k3y"];
    let shown: HashSet<String> = [
        ElasticConfig::url("http://me:p4ssw0rd@127.0.0.1:1/base-p4th").proxy("http://u:pr0xy@127.0.0.1:1"),
        ElasticConfig::url("http://127.0.0.1:1/base-p4th").api_key("k3y"),
    ]
    .into_iter()
    .map(|config| {
        let (said, log) = common::Log::during(|| {
            web::runtime().block_on(async {
                let mut options = Options::default();
                options.retry.attempts = 1;
                let pool = pool_of(config.clone(), options);
                let error = pool.elastic().within(SOON).await.map(drop).unwrap_err();
                format!("{error} {error:?} {config:?} {:?} {pool:?}", pool.status())
            })
        });
        said + &log
    })
    .collect();
    for secret in secrets {
        assert!(shown.iter().all(|shown| !shown.contains(secret)), "{secret} in {shown:?}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_certificate_is_checked_before_the_login_is_sent() {
    use std::net::SocketAddr;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use resource_pool::config::TlsOptions;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::TlsAcceptor;

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

    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("elastic-ca-{}.pem", std::process::id()));
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, private).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let script = Script::default();
    let router = Router::new().fallback(any(answer)).with_state(script.clone());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move { axum::serve(Secured(listener, acceptor), router).await });
    let config = ElasticConfig::url(&*url).user("me").password("p@ss");
    let trusting = config.clone().tls(TlsOptions::default().ca_file(&file));
    let pool = pool_of(trusting, unhurried());
    pool.elastic().within(SOON).await.unwrap().refresh("bars").within(SOON).await.unwrap();
    assert_eq!(script.asked()[0].login.as_deref(), Some("Basic bWU6cEBzcw=="));
    let error = pool_of(config, unhurried()).elastic().within(SOON).await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Connect(error) if error.permanent), "{error:?}");
    assert!(script.asked().is_empty());
    std::fs::remove_file(file).unwrap();
}
