//! `check`: connects to everything that is configured, pings it, times it, and finds the usual mistakes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use resource_pool::config::Config;
use resource_pool::{Error, Health, ResourcePool};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::arguments::CheckArguments;
use crate::error::Problem;
use crate::finding::{self, Finding, Patient};
use crate::loaded::{self, Kind};
use crate::paint::Paint;
use crate::table::{Cell, Table, millis};
use crate::{clock, progress};

/// How long the diagnosis of one failure, and closing at the end, may take each beyond `--timeout`.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// The result of one resource.
#[derive(Debug, Serialize)]
struct Checked {
    name: String,
    kind: Kind,
    endpoint: String,
    verdict: Health,
    connect_ms: Option<f64>,
    ping_ms: Option<f64>,
    clock_ahead_ms: Option<f64>,
    error: Option<String>,
    findings: Vec<Finding>,
}

pub(crate) async fn run(asked: &CheckArguments) -> Result<ExitCode, Problem> {
    let mut config = loaded::load(&asked.file)?;
    let names = loaded::names(&config, &asked.names)?;
    hurry(&mut config, asked.timeout);
    let config = Arc::new(config);
    let pool = ResourcePool::builder().config(Config::clone(&config)).build();
    let pool = pool.map_err(|error| Problem::of_config(&error))?;
    let checking = check_all(&pool, &config, &names, asked.timeout);
    let checked = progress::during(checking, |passed| {
        format!("checking {} … {}", names.join(", "), millis(passed.as_secs_f64() * 1e3))
    })
    .await;
    let has_failed = checked.iter().any(|one| one.verdict == Health::Fail);
    let text = match asked.json {
        true => format!("{:#}\n", serde_json::json!({ "ok": !has_failed, "resources": checked })),
        false => show(&checked),
    };
    crate::print(&text)?;
    // The servers would tell of connections that break off. The report is of no use here.
    drop(timeout(AFTERWARDS, pool.close_all_within(AFTERWARDS)).await);
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Sets the limits for one quick attempt.
pub(crate) fn hurry(config: &mut Config, limit: Duration) {
    let options = &mut config.pool;
    options.retry.attempts = 1;
    options.retry.budget = limit;
    options.acquire_timeout = limit;
    options.connect_timeout = options.connect_timeout.min(limit);
    options.health.each = limit;
    options.health.all = limit;
    options.close.stderr = false;
    options.close.delay = Duration::ZERO;
    options.signals = false;
}

/// Checks all in parallel. The results are in the order of the names.
async fn check_all(pool: &ResourcePool, config: &Arc<Config>, names: &[String], limit: Duration) -> Vec<Checked> {
    let mut connecting = JoinSet::new();
    for (index, name) in names.iter().enumerate() {
        let (pool, name) = (pool.clone(), name.clone());
        connecting.spawn(async move {
            let started = Instant::now();
            let ready = timeout(limit, pool.warm_up([name.as_str()])).await;
            let ready = match ready {
                Ok(results) => results.into_iter().next().map_or(Ok(()), |(_, ready)| ready),
                Err(_) => return (index, Err((format!("{name}: no answer within {limit:.1?}"), false)), limit),
            };
            let judged = ready.map_err(|error| (error.to_string(), matches!(error, Error::Config { .. })));
            (index, judged, started.elapsed())
        });
    }
    let mut connected = connecting.join_all().await;
    connected.sort_by_key(|(index, ..)| *index);
    // One health check pings everything that is connected, in parallel.
    let health = pool.health_check().await;
    let status = pool.status();
    let mut examining = JoinSet::new();
    for (name, (index, ready, took)) in names.iter().zip(connected) {
        let Some(kind) = loaded::kind(config, name) else { continue };
        let endpoint = status.resource(name).map(|one| one.endpoint.to_string()).unwrap_or_default();
        let entry = health.entry(name).cloned();
        let (pool, config, name) = (pool.clone(), Arc::clone(config), name.clone());
        examining.spawn(async move {
            let mut one = Checked {
                name: name.clone(),
                kind,
                endpoint,
                verdict: Health::Pass,
                connect_ms: None,
                ping_ms: None,
                clock_ahead_ms: None,
                error: None,
                findings: Vec::new(),
            };
            match ready {
                Ok(()) => {
                    one.connect_ms = Some(exact(took));
                    if let Some(entry) = &entry {
                        one.ping_ms = entry.latency.map(exact);
                        one.error.clone_from(&entry.error);
                        one.verdict = match entry.health {
                            known @ (Health::Pass | Health::Fail) => known,
                            _ => Health::Warn,
                        };
                    }
                    let ahead = timeout(limit, clock::ahead(&pool, kind, &name)).await;
                    one.clock_ahead_ms = ahead.ok().flatten().map(f64::round);
                    one.findings.extend(one.clock_ahead_ms.and_then(Finding::of_clock));
                    if !one.findings.is_empty() && one.verdict == Health::Pass {
                        one.verdict = Health::Warn;
                    }
                }
                Err((error, is_config)) => {
                    one.verdict = Health::Fail;
                    let patient =
                        Patient { config: &config, kind, name: &name, endpoint: &one.endpoint, error: &error };
                    if !is_config {
                        one.findings = timeout(AFTERWARDS, finding::diagnose(patient)).await.unwrap_or_default();
                    }
                    one.error = Some(error);
                }
            }
            (index, one)
        });
    }
    let mut checked = examining.join_all().await;
    checked.sort_by_key(|(index, _)| *index);
    checked.into_iter().map(|(_, one)| one).collect()
}

/// Milliseconds, to the microsecond.
fn exact(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn show(checked: &[Checked]) -> String {
    let paint = Paint::for_output();
    let mut table = Table::new(&["resource", "verdict", "connect", "ping", "clock", "endpoint"], &[2, 3, 4]);
    let time = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), millis);
    for one in checked {
        let clock = match one.clock_ahead_ms {
            None => "-".to_owned(),
            Some(0.0) => "same".to_owned(),
            Some(ahead) => format!("{}{}", if ahead > 0.0 { "+" } else { "-" }, millis(ahead.abs())),
        };
        table.row(vec![
            Cell::from(one.name.as_str()),
            Cell::state(one.verdict.code()),
            Cell::from(time(one.connect_ms)),
            Cell::from(time(one.ping_ms)),
            Cell::from(clock),
            Cell::from(one.endpoint.as_str()),
        ]);
        if let Some(error) = &one.error {
            table.note(error);
        }
        for Finding { problem, remedy } in &one.findings {
            table.note(problem);
            table.note(&format!("  remedy: {remedy}"));
        }
    }
    table.show(paint)
}
