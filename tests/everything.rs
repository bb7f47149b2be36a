//! The example with a resource of every sort, beside all of their servers: how it closes is checked line by line.

#![cfg(all(
    feature = "mongodb",
    feature = "rabbitmq",
    feature = "clickhouse",
    feature = "redis",
    feature = "macros",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "llm",
    feature = "chroma",
    feature = "elastic",
    feature = "processes",
    feature = "files"
))]
#![allow(missing_docs)]

mod common;
#[path = "common/example.rs"]
mod example;
#[path = "common/web.rs"]
mod web;

use std::fs;
use std::path::Path;

use axum::Json;
use axum::Router;
use axum::routing::{get, post};
use example::Example;
use serde_json::json;
use services::{Kind, Service};
use web::WebServer;

/// The steps of each phase, in the order of the phases. The steps of one phase end in any order.
const CLOSED: [&[&str]; 11] = [
    &["tasks: sleeper is closed", "tasks: ticker is closed"],
    &["http clients: http is closed", "http clients: llm is closed"],
    &["rabbitmq: rabbitmq is closed"],
    &["redis: redis is closed"],
    &["vector stores: chroma is closed", "vector stores: elastic is closed", "vector stores: hangs is timed out"],
    &["clickhouse: clickhouse is closed"],
    &[
        "databases: mongo is closed",
        "databases: mysql is closed",
        "databases: postgres is closed",
        "databases: sqlite is closed",
    ],
    &["models: client is closed", "models: momentum is closed"],
    &["files: journal is closed"],
    &["temp files: temp is closed"],
    &["telemetry: telemetry is closed"],
];

#[test]
fn everything_closes_in_order_although_one_hangs() {
    let kinds = [
        Kind::Mongo,
        Kind::RabbitMq,
        Kind::ClickHouse,
        Kind::Redis,
        Kind::Postgres,
        Kind::MySql,
        Kind::Chroma,
        Kind::Elastic,
    ];
    let servers = Service::start_all(&kinds).unwrap();
    let answer = json!({
        "id": "1", "model": "small",
        "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "yes" } }]
    });
    let router = Router::new()
        .route("/", get(|| async { "a page" }))
        .route("/v1/chat/completions", post(move || async move { Json(answer) }));
    let web = WebServer::start(router);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("everything");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let (page, model) = (web.url(), format!("{}/v1", web.url()));
    let file = format!("sqlite://{}?mode=rwc", folder.join("orders.sqlite").display());
    let place = folder.to_string_lossy();
    let mut variables: Vec<_> = servers.iter().map(|server| (server.kind().url_variable(), server.url())).collect();
    variables.extend([
        ("HTTPCLIENT_URL", &*page),
        ("OPENAI_BASE_URL", &*model),
        ("SQLITE_URL", &*file),
        ("TMPDIR", &*place),
    ]);
    let everything = Example::start("everything", &variables);
    let said = everything.hear("process Some(");
    let child: u32 = said.split(')').next().unwrap().parse().unwrap();
    for expected in CLOSED {
        let mut steps: Vec<_> = expected.iter().map(|_| everything.hear("")).collect();
        steps.sort_unstable();
        assert_eq!(steps, expected);
    }
    assert_eq!(everything.end().code(), Some(0));
    let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert_eq!(state, "", "the child process has ended");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| name == "orders.sqlite" || name.to_string_lossy().starts_with("resource-pool-")),
        "{left:?}"
    );
    fs::remove_dir_all(folder).unwrap();
}
