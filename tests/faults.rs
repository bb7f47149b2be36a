//! Every backend under load while its server has a fault: killed, frozen, cut off, slowed down, short of memory, full,
//! loading, out of disk, or without the right.
//!
//! The short form has all backends at once, a few faults each, and then one without descriptors. `cargo xtask faults`
//! runs all faults, backend by backend, and keeps the tables in `docs/reference/faults.md`.

#![allow(missing_docs)]

mod load;

use std::thread;
use std::time::Duration;
use std::{env, fs};

use clickhouse::error::Error as ClickHouseError;
use load::fault::{Fault, RESUME, Row, Target, strike};
use load::ledger::Audit;
use load::meter::{Reading, is_measurable, settled};
use load::{Load, Trouble};
use redis::{ErrorKind, RedisError, ServerErrorKind};
use services::Kind;
use tokio::runtime::Runtime;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All faults. A kill comes between the two that refuse the prober's new connection. After a refusal the prober may have
/// no connection of its own until the next loss.
const FULL: [Fault; 18] = [
    Fault::Kill(Duration::ZERO),
    Fault::Freeze(s(1)),
    Fault::Freeze(s(20)),
    Fault::Reset(1),
    Fault::Reset(10),
    Fault::Collapse(s(20)),
    Fault::BlackHole(s(1)),
    Fault::BlackHole(s(20)),
    Fault::Slow(s(20)),
    Fault::Alarm(s(2)),
    Fault::Alarm(s(12)),
    Fault::Full(LONG),
    Fault::Kill(s(20)),
    Fault::RightGone(LONG),
    Fault::Loading(LONG),
    Fault::DiskFull(LONG),
    Fault::Descriptors(LONG),
    Fault::Failover(LONG),
];

/// The duration of most long faults. The pool cuts a server that does not answer after half of that.
const LONG: Duration = s(8);

/// Most kinds of fault once, spread over the backends. The order is that of [`FULL`] where a prober has to have its
/// connection.
const SHORT: &[(Kind, &[Fault])] = &[
    #[cfg(feature = "postgres")]
    (Kind::Postgres, &[Fault::Freeze(s(5)), Fault::Full(s(4)), Fault::Kill(Duration::ZERO), Fault::RightGone(s(4))]),
    #[cfg(feature = "mysql")]
    (Kind::MySql, &[Fault::Freeze(s(5)), Fault::Full(s(4)), Fault::Kill(Duration::ZERO), Fault::RightGone(s(4))]),
    (Kind::Mongo, &[Fault::Kill(Duration::ZERO), Fault::BlackHole(s(5))]),
    (Kind::RabbitMq, &[Fault::Alarm(s(2)), Fault::Reset(3), Fault::Freeze(s(5)), Fault::Full(s(4))]),
    (Kind::ClickHouse, &[Fault::Collapse(s(5)), Fault::Slow(s(5))]),
    (Kind::Redis, &[Fault::Kill(s(3)), Fault::Reset(2), Fault::BlackHole(s(5)), Fault::Full(s(4))]),
];

/// The results of one backend's load.
struct Outcome {
    kind: Kind,
    version: String,
    rows: Vec<Row>,
    audit: Audit,
    /// The readings before the faults, after them, and after closing.
    held: Option<[Reading; 3]>,
}

/// The pause between a worker's calls.
const PACE: Duration = Duration::from_millis(50);
/// How long the load runs before its descriptors, threads and memory are read.
const CALM: Duration = s(3);

/// Runs one backend's load through these faults. The process's readings mean something only if nothing else runs in it.
fn suffer(kind: Kind, faults: &[Fault], alone: bool, runtime: &Runtime) -> Outcome {
    let target = Target::start(kind);
    let backend = load::backend(kind);
    let version = backend.version(&target.server);
    let pool = load::pool([backend.config(&target.url())]);
    let load = Load::begin(backend, &pool, runtime, PACE);
    thread::sleep(CALM);
    let ports = [target.proxy.port()];
    let before = Reading::take(&ports);
    let mut rows = Vec::new();
    for fault in faults.iter().filter(|fault| fault.fits(kind)) {
        let row = strike(&load, &target, *fault);
        println!("{row}");
        rows.push(row);
    }
    // From now on the load forgives no error, and none may come.
    thread::sleep(RESUME + s(1));
    let after = alone.then(|| settled("under load", &before, &ports));
    let audit = load.end(target.now(), runtime);
    let is_forced = faults.contains(&Fault::Promotion);
    assert!(audit.untold.is_empty() && audit.lost.is_empty() != is_forced, "{kind}: {audit}");
    let version = if is_forced { format!("{version}, failover forced") } else { version };
    let report = runtime.block_on(pool.close_all());
    assert!(report.all_closed(), "{report}");
    let held = after.map(|after| {
        let closed = settled("closed", &before.closed(), &ports);
        [before, after, closed]
    });
    println!("{kind}: {audit}");
    Outcome { kind, version, rows, audit, held }
}

/// The tables for the reference.
fn table(outcomes: &[Outcome]) -> String {
    let mut lines = vec![Row::HEAD.to_owned()];
    lines.extend(outcomes.iter().flat_map(|outcome| &outcome.rows).map(Row::to_string));
    lines.push(String::new());
    lines.push(
        "| server | acknowledged | of unknown outcome | lost | there untold | held before | after | closed |".into(),
    );
    lines.push("|---|---:|---:|---:|---:|---|---|---|".into());
    for Outcome { kind, version, audit, held, .. } in outcomes {
        let Audit { acknowledged, unknown, lost, untold } = audit;
        let held = held.iter().flatten().map(Reading::to_string).collect::<Vec<_>>().join(" | ");
        let (lost, untold) = (lost.len(), untold.len());
        lines.push(format!("| {kind} {version} | {acknowledged} | {unknown} | {lost} | {untold} | {held} |"));
    }
    lines.join("\n") + "\n"
}

/// A server that refuses has not run the call. A server that does not answer may have.
#[test]
fn refusals_are_no_unknown_outcomes() {
    let redis = |kind, words| Trouble::of(RedisError::from((kind, words)));
    let clickhouse = |words: &str| Trouble::of(ClickHouseError::BadResponse(words.to_owned()));
    for refused in [
        redis(ErrorKind::Server(ServerErrorKind::BusyLoading), "Redis is loading the dataset in memory"),
        redis(ErrorKind::Server(ServerErrorKind::NoPerm), "this user has no permissions to run the 'ping' command"),
        redis(ErrorKind::Extension, "MISCONF"),
        clickhouse("Code: 201, e.displayText() = DB::Exception: Quota for user `default` has been exceeded"),
    ] {
        assert!(matches!(refused, Trouble::Refused(_)), "{refused:?}");
    }
    for unknown in [redis(ErrorKind::Io, "broken pipe"), clickhouse("connection closed before message completed")] {
        assert!(matches!(unknown, Trouble::Unknown(_)), "{unknown:?}");
    }
}

#[test]
fn mongo_rabbitmq_clickhouse_redis_under_faults() {
    let runtime = load::users_runtime();
    let Ok(chosen) = env::var("FAULTS") else {
        thread::scope(|scope| {
            for (kind, faults) in SHORT.iter().copied() {
                let runtime = &runtime;
                scope.spawn(move || suffer(kind, faults, false, runtime));
            }
        });
        // The other loads of this process would have no descriptors either.
        suffer(Kind::Redis, &[Fault::Descriptors(s(4))], false, &runtime);
        return;
    };
    if !is_measurable("mongo_rabbitmq_clickhouse_redis_under_faults") {
        return;
    }
    let built = Kind::ALL.into_iter().chain(cfg!(feature = "postgres").then_some(Kind::Postgres));
    let built = built.chain(cfg!(feature = "mysql").then_some(Kind::MySql));
    let kinds = built.filter(|kind| chosen == "all" || chosen == kind.name());
    let mut outcomes: Vec<Outcome> = kinds.map(|kind| suffer(kind, &FULL, true, &runtime)).collect();
    // The promotion loses writes. It runs on a server of its own, so that they cannot be confused with other losses.
    if outcomes.iter().any(|outcome| outcome.kind == Kind::Redis) {
        outcomes.push(suffer(Kind::Redis, &[Fault::Promotion], true, &runtime));
    }
    assert!(!outcomes.is_empty(), "no backend is named {chosen:?}");
    let table = table(&outcomes);
    println!("{} faults\n\n{table}", outcomes.iter().map(|outcome| outcome.rows.len()).sum::<usize>());
    if let Ok(path) = env::var("FAULTS_TABLE") {
        fs::write(path, table).expect("the table");
    }
}
