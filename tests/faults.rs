//! Every backend under load, while its server is killed, frozen, cut off, slowed down and short of memory.
//!
//! In the short form all four at a time, a few faults each; `cargo xtask faults` runs all faults, backend by backend, and keeps the
//! table in the guide.

#![allow(missing_docs)]

mod load;

use std::env;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use load::Load;
use load::fault::{Fault, RESUME, Row, Target, strike};
use load::ledger::Audit;
use load::meter::{Reading, settled};
use services::Kind;
use tokio::runtime::Runtime;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All of them.
const FULL: [Fault; 11] = [
    Fault::Kill(Duration::ZERO),
    Fault::Kill(s(20)),
    Fault::Freeze(s(1)),
    Fault::Freeze(s(20)),
    Fault::Reset(1),
    Fault::Reset(10),
    Fault::BlackHole(s(1)),
    Fault::BlackHole(s(20)),
    Fault::Slow(s(20)),
    Fault::Alarm(s(2)),
    Fault::Alarm(s(12)),
];

/// Every kind of fault once, over all backends.
const SHORT: [(Kind, &[Fault]); 4] = [
    (Kind::Mongo, &[Fault::Kill(Duration::ZERO), Fault::BlackHole(s(5))]),
    (Kind::RabbitMq, &[Fault::Alarm(s(2)), Fault::Reset(3), Fault::Freeze(s(5))]),
    (Kind::ClickHouse, &[Fault::Freeze(s(5)), Fault::Slow(s(5))]),
    (Kind::Redis, &[Fault::Kill(s(3)), Fault::Reset(2), Fault::BlackHole(s(5))]),
];

/// What the load of one backend came to.
struct Outcome {
    kind: Kind,
    version: String,
    rows: Vec<Row>,
    audit: Audit,
}

/// Between a worker's calls.
const PACE: Duration = Duration::from_millis(50);
/// How long the load runs before its descriptors, threads and memory are read.
const CALM: Duration = s(3);
/// One backend's load, and these faults.
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
    // From then on no error is forgiven, and there is none.
    thread::sleep(RESUME + s(1));
    if alone {
        settled("under load", &before, &ports);
    }
    load.check();
    let audit = load.end(&target.server, runtime);
    println!("{kind}: {audit}");
    assert!(audit.is_clean(), "{kind}: {audit}");
    let report = runtime.block_on(pool.close_all());
    assert!(report.all_closed(), "{report}");
    if alone {
        let nothing = settled("closed", &before.closed(), &ports);
        println!("{kind}: under load: {before}; closed: {nothing}");
    }
    Outcome { kind, version, rows, audit }
}

fn head(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for Outcome { kind, version, audit, .. } in outcomes {
        writeln!(
            text,
            "| {kind} {version} | {} | {} | {} | {} |",
            audit.acknowledged,
            audit.unknown,
            audit.lost.len(),
            audit.untold.len()
        )
        .expect("text");
    }
    text
}

#[test]
fn mongo_rabbitmq_clickhouse_redis_under_faults() {
    let runtime = load::users_runtime();
    let chosen = env::var("FAULTS").unwrap_or_default();
    println!("{}", Row::HEAD);
    let outcomes: Vec<Outcome> = if chosen.is_empty() {
        thread::scope(|scope| {
            let running: Vec<_> =
                SHORT.iter().map(|(kind, faults)| scope.spawn(|| suffer(*kind, faults, false, &runtime))).collect();
            running.into_iter().map(|thread| thread.join().expect("a load without trouble")).collect()
        })
    } else {
        let kinds = Kind::ALL.into_iter().filter(|kind| chosen == "all" || chosen == kind.name());
        kinds.map(|kind| suffer(kind, &FULL, true, &runtime)).collect()
    };
    println!("{}", head(&outcomes));
}
