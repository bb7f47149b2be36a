//! Prometheus itself scrapes `examples/metrics.rs`, answers the queries of the page, and fires and clears the alerts.

#![cfg(all(feature = "macros", feature = "metrics", feature = "redis"))]
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::until;
use serde_json::Value;
use services::{Kind, Prometheus, Service, promtool};

/// The limit for an expected change, also on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const MONITORING: &str = include_str!("../docs/monitoring.md");
const ALERTS: &str = include_str!("../docs/monitoring/alerts.yml");
const CASES: &str = include_str!("monitoring/alerts.yml");
const DASHBOARD: &str = include_str!("../docs/monitoring/grafana.json");

/// The running example, and where it listens.
struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start(redis: &Service) -> Program {
        let tests = env::current_exe().unwrap();
        // Cargo builds the examples with the tests, beside them.
        let example = tests.parent().and_then(Path::parent).unwrap().join("examples/metrics");
        assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
        let mut command = Command::new(example);
        command.env("REDIS_URL", redis.url()).env("LISTEN", "127.0.0.1:0").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap().to_owned();
        Program { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    let program = Program::start(&redis);
    // The waits of the rules are cut short.
    let short = |line: &str| match line.trim_start().starts_with("for: ") {
        true => format!("{}for: 1s", " ".repeat(line.len() - line.trim_start().len())),
        false => line.to_owned(),
    };
    let rules: Vec<_> = ALERTS.lines().map(short).collect();
    let prometheus = Prometheus::start(&program.address, &rules.join("\n")).unwrap();

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
    until(SOON, || firing(&prometheus).contains("ResourceDown"));
    let address = format!("{{server_port=\"{}\"}}", redis.port());
    assert!(!samples(&prometheus, &format!("resource_pool_losses{address}")).is_empty());
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
