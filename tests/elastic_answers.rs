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
use resource_pool::{BulkOutcome, ElasticError, Error, Health, ResourcePool, RowProblem, What, Work, blocking};
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
    /// The answers to all but health. Without any left, a bulk is stored, and all else is `{}`.
    answers: VecDeque<Recorded>,
    asked: Vec<Asked>,
}

/// A recorded answer.
enum Recorded {
    Json(u16, Value),
    /// With a header `Retry-After`, in seconds.
    Later(u16, &'static str, Value),
    /// The connection breaks in the body.
    Broken,
    /// The connection breaks before the answer begins.
    Nothing,
    /// A bulk is stored once the gate lets it through.
    Held(Gate),
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
        Some(Recorded::Broken) => body(&["{\"took\":"], Ending::BrokenOff).into_response(),
        // A handler that panics has its connection closed.
        Some(Recorded::Nothing) => std::panic::resume_unwind(Box::new("on purpose")),
        Some(Recorded::Held(gate)) => {
            gate.pass().await;
            bulk(&[])
        }
        Some(Recorded::Rows(rows)) => bulk(&rows),
        None if uri.path().ends_with("/_bulk") => bulk(&[]),
        None => as_json(200, &json!({})),
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
    let script = Script::of([Recorded::Held(gate.clone())]);
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
    script.then([Recorded::Broken]);
    assert!(elastic.delete("bars", "1").within(SOON).await.unwrap());
    assert_eq!(script.asked().len(), 6);
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
