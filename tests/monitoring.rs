//! Prometheus itself scrapes `examples/metrics.rs`, answers the queries of the page, and fires and clears the alerts. A
//! receiver takes the messages that `examples/otlp.rs` pushes.

#![cfg(all(feature = "macros", feature = "metrics", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::routing::post;
use common::{eventually, until};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data};
use parking_lot::Mutex;
use prost::Message;
use resource_pool::metrics::Metrics;
use serde_json::Value;
use services::{Kind, Prometheus, Service, promtool};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// The time within which an alert tells of a broken server.
const MINUTE: Duration = Duration::from_secs(60);
/// The wait of the rule `ResourceDown`.
const DOWN: &str = "15s";
const MONITORING: &str = include_str!("../docs/monitoring.md");
const ALERTS: &str = include_str!("../docs/monitoring/alerts.yml");
const CASES: &str = include_str!("monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../docs/monitoring/grafana.json");

/// A running example.
struct Program(Child);

impl Program {
    /// Starts an example, and waits for its first line, of which it returns what follows this beginning.
    fn start(name: &str, redis: &Service, variable: (&str, &str), beginning: &str) -> (Program, String) {
        let tests = env::current_exe().unwrap();
        // Cargo builds the examples with the tests, beside them.
        let example = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
        assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
        let mut command = Command::new(example);
        command.env("REDIS_URL", redis.url()).env(variable.0, variable.1).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let rest = line.strip_prefix(beginning).unwrap_or_else(|| panic!("{line}")).to_owned();
        // The pipe is read on, because a program whose output nobody reads ends.
        std::thread::spawn(move || lines.all(|line| line.is_ok()));
        (Program(child), rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The samples that the answer to a query has.
fn samples(prometheus: &Prometheus, query: &str) -> Vec<Value> {
    let answer = prometheus.query(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// The names of the alerts that fire now.
fn firing(prometheus: &Prometheus) -> BTreeSet<String> {
    let answer: Value = serde_json::from_str(&prometheus.alerts().unwrap()).unwrap();
    let alerts = answer["data"]["alerts"].as_array().unwrap();
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
    firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
}

/// The expressions of the dashboard, with its variables filled in.
fn dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let filled =
        |query: &str| query.replace("$instance", ".*").replace("$resource", ".*").replace("$__rate_interval", "1m");
    targets.map(|target| filled(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn prometheus_scrapes_answers_queries_and_tells_of_a_broken_redis() {
    let redis = Service::start(Kind::Redis).unwrap();
    let (program, address) = Program::start("metrics", &redis, ("LISTEN", "127.0.0.1:0"), "listening on ");
    // The waits of the rules are cut short, but for the one of `ResourceDown`. Its alert is to fire within a minute.
    let short = |line: &str| match line.trim_start().strip_prefix("for: ").is_some_and(|wait| wait != DOWN) {
        true => format!("{}for: 1s", " ".repeat(line.len() - line.trim_start().len())),
        false => line.to_owned(),
    };
    assert!(ALERTS.contains(&format!("for: {DOWN}\n")));
    let rules: Vec<_> = ALERTS.lines().map(short).collect();
    let prometheus = Prometheus::start(&address, &rules.join("\n")).unwrap();

    until(SOON, || {
        !samples(&prometheus, "resource_pool_state{state=\"ready\"} == 1").is_empty()
            && !samples(&prometheus, "rate(db_client_operation_duration_count[1m]) > 0").is_empty()
            && !samples(&prometheus, "resource_pool_health_duration_count > 0").is_empty()
            && !samples(&prometheus, "db_client_connection_count{db_system_name=\"redis\"}").is_empty()
    });
    let rows: Vec<Vec<&str>> = MONITORING
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| row.split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 30, "{}", rows.len());
    for row in rows {
        samples(&prometheus, row[5].trim_matches('`'));
    }
    let queries = dashboard();
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        samples(&prometheus, &query);
    }

    until(SOON, || firing(&prometheus).is_empty());
    redis.kill().unwrap();
    until(MINUTE, || firing(&prometheus).contains("ResourceDown"));
    let port = format!("{{server_port=\"{}\"}}", redis.port());
    assert!(!samples(&prometheus, &format!("resource_pool_losses{port}")).is_empty());
    redis.restart().unwrap();
    until(SOON, || !firing(&prometheus).contains("ResourceDown"));
    assert!(!samples(&prometheus, "resource_pool_reconnects >= 1").is_empty());

    drop(program);
    until(SOON, || firing(&prometheus).contains("ProgramGone"));
}

/// `promtool` takes the rules, and each of them fires and clears.
#[test]
fn each_alert_fires_and_clears() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alerts");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("rules.yml"), ALERTS).unwrap();
    fs::write(folder.join("cases.yml"), CASES).unwrap();
    let checked = promtool(&folder, &["check", "rules", "rules.yml"]).unwrap();
    let names: Vec<&str> = ALERTS.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: ")).collect();
    assert!(checked.contains(&format!("{} rules found", names.len())), "{checked}");
    promtool(&folder, &["test", "rules", "cases.yml"]).unwrap();
    for name in names {
        let case = CASES.split("  - name: ").find(|case| case.lines().next() == Some(name));
        let case = case.unwrap_or_else(|| panic!("{name} has no case"));
        let expected: Vec<bool> = case
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("exp_alerts:"))
            .map(|expected| expected.trim() != "[]")
            .collect();
        assert_eq!(expected, [false, true, false], "{name} must fire and clear");
    }
}

/// The example pushes the same metrics over OTLP, with their own names, units and buckets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_pushed_over_otlp() {
    let redis = Service::start(Kind::Redis).unwrap();
    let received = Arc::new(Mutex::new(Vec::<Metric>::new()));
    let receiving = Arc::clone(&received);
    let receive = move |body: Bytes| async move {
        let request = ExportMetricsServiceRequest::decode(body).unwrap();
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        *receiving.lock() = scopes.flat_map(|scope| scope.metrics).collect();
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/v1/metrics", post(receive));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let start = {
        let redis_of_program = redis;
        move || {
            let program =
                Program::start("otlp", &redis_of_program, ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), "pushed");
            (program, redis_of_program)
        }
    };
    let (_program, redis) = tokio::task::spawn_blocking(start).await.unwrap();
    let named = |name: &str| received.lock().iter().find(|metric| metric.name == name).cloned();
    let duration = eventually(SOON, async || named("db.client.operation.duration")).await;
    assert_eq!(duration.unit, "s");
    let Some(Data::Histogram(histogram)) = duration.data else { panic!("{duration:?}") };
    let point = &histogram.data_points[0];
    assert_eq!(point.explicit_bounds, Metrics::BUCKETS);
    let keys: BTreeSet<_> = point.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert!(keys.is_superset(&["db.client.connection.pool.name", "db.system.name", "server.port"].into()), "{keys:?}");
    let state = eventually(SOON, async || named("resource_pool.state")).await;
    assert!(matches!(state.data, Some(Data::Gauge(_))), "{state:?}");
    let names: Vec<_> = received.lock().iter().map(|metric| metric.name.clone()).collect();
    let once: BTreeSet<_> = names.iter().collect();
    assert!(once.len() > 15 && once.len() == names.len(), "a metric is told twice: {names:?}");
    assert!(!format!("{:?}", received.lock()).contains(redis.password()));
    server.abort();
}
