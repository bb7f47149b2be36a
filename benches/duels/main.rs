//! Side by side: this pool, other pools on the same work, and the bare drivers.
//!
//! `cargo xtask bench` runs all of it and makes `benches/RESULTS.md` from it; `cargo bench --bench duels -- lease` one
//! part. As a test (`cargo test --bench duels`) each part runs for a moment, which shows that it works.

mod adopt;
mod checkout;
mod child;
mod clickhouse;
mod drivers;
mod duel;
mod footprint;
mod frame;
#[cfg(feature = "http")]
mod http;
mod jobs;
mod lease;
mod lifecycle;
mod many;
#[cfg(feature = "metrics")]
mod metrics;
mod operations;
mod peers;
mod publish;
mod redis;
mod session;
mod spike;
#[cfg(any(feature = "mysql", feature = "sqlite"))]
mod sql;

use session::Session;

type Part = (&'static str, &'static str, fn(&Session));

/// The parts in the order of the table: the argument that selects a part, its heading, and the function that runs it.
const PARTS: &[Part] = &[
    ("lease", "Shared leases", lease::run),
    ("checkout", "Checkouts", checkout::run),
    ("spike", "A spike", spike::run),
    ("redis", "Redis for threads", redis::run),
    ("operations", "One operation after the other", operations::run),
    ("adopt", "Programs that differ in one line", adopt::run),
    ("publish", "Many messages with confirms", publish::run),
    ("jobs", "Jobs from a queue", jobs::run),
    ("frame", "The frames of RabbitMQ", frame::run),
    ("clickhouse", "Many rows, and one at a time", clickhouse::run),
    #[cfg(any(feature = "mysql", feature = "sqlite"))]
    ("sql", "Many rows over sqlx", sql::run),
    ("lifecycle", "Connecting, starting cold, closing", lifecycle::run),
    #[cfg(feature = "http")]
    ("http", "Requests over HTTP", http::run),
    #[cfg(feature = "metrics")]
    ("metrics", "With metrics and without", metrics::run),
    ("footprint", "Idle", footprint::run),
    ("many", "Up to 1,000 resources in one pool", many::run),
];

fn main() {
    if child::play() {
        return;
    }
    let session = Session::from_args(std::env::args().skip(1));
    for (place, (name, title, run)) in PARTS.iter().enumerate() {
        session.part(place, name, title, run);
    }
}
