//! MySQL and SQLite: many rows in and out, beside sqlx on its own pool.
//!
//! Both write the same rows by statements of a thousand rows within one transaction, over the same driver. So the work of
//! the guard around each call shows. Each contestant checks a connection out first.

use std::hint::black_box;

use futures_util::TryStreamExt as _;
use resource_pool::ResourcePool;
use resource_pool::config::ResourceConfig;
use sqlx::QueryBuilder;
use tokio::runtime::Runtime;

use crate::duel::{Duel, Unit};
use crate::session::{Session, milliseconds};

const BARS: usize = 100_000;
/// The rows of one statement.
const ROWS: usize = 1000;
const TABLE: &str = "CREATE TABLE bars (code varchar(6), date int, open double, high double, low double, close double, \
                     volume double, amount double)";
const SELECT: &str = "SELECT code, date, open, high, low, close, volume, amount FROM bars";

type Bar = (String, i32, f64, f64, f64, f64, f64, f64);

fn bar(number: usize) -> Bar {
    let close = 100.0 + (number % 1000) as f64 / 100.0;
    let (code, date) = (format!("{:06}", number / 5000), (number % 5000) as i32);
    let (volume, amount) = ((number * 7 % 100_000) as f64, (number * 11 % 1_000_000) as f64);
    (code, date, close - 0.5, close + 1.0, close - 1.0, close, volume, amount)
}

/// Inserts so many bars by this executor, in statements of [`ROWS`] each.
macro_rules! insert {
    ($database:ty, $executor:expr, $bars:expr) => {
        for first in (0..$bars).step_by(ROWS) {
            let mut insert = QueryBuilder::<$database>::new("INSERT INTO bars ");
            insert.push_values((first..(first + ROWS).min($bars)).map(bar), |mut row, bar| {
                row.push_bind(bar.0).push_bind(bar.1).push_bind(bar.2).push_bind(bar.3);
                row.push_bind(bar.4).push_bind(bar.5).push_bind(bar.6).push_bind(bar.7);
            });
            insert.build().execute($executor).await.expect("rows");
        }
    };
}

/// Reads all bars as they arrive.
macro_rules! select {
    ($executor:expr, $bars:expr) => {{
        let mut rows = sqlx::query_as::<_, Bar>(SELECT).fetch($executor);
        let mut count = 0;
        while let Some(bar) = rows.try_next().await.expect("a row") {
            black_box(bar);
            count += 1;
        }
        assert_eq!(count, $bars);
    }};
}

/// The two duels of one database, over our pool and over the driver's.
macro_rules! duels {
    ($session:expr, $runtime:expr, $ours:expr, $theirs:expr, $verb:ident, $database:ty, $ids:expr, $name:literal) => {{
        let (runtime, ours, theirs): (&Runtime, &ResourcePool, &sqlx::Pool<$database>) = ($runtime, $ours, $theirs);
        let bars = $session.times(BARS);
        let empty = || {
            runtime.block_on(async {
                sqlx::query("DROP TABLE IF EXISTS bars").execute(theirs).await.expect("no table");
                sqlx::query(TABLE).execute(theirs).await.expect("a table");
            });
        };
        // Its first connection is open, as the driver's own.
        runtime.block_on(async { drop(ours.$verb().await.expect("a connection")) });
        let [insert, select] = $ids;
        Duel::new(insert, concat!("100,000 bars inserted into ", $name), Unit::Milliseconds)
            .contestant("resource_pool", || {
                empty();
                milliseconds(|| {
                    runtime.block_on(async {
                        let mut guard = ours.$verb().await.expect("a connection");
                        let mut transaction = guard.begin().await.expect("a transaction");
                        insert!($database, &mut transaction, bars);
                        transaction.commit().await.expect("all rows");
                    });
                })
            })
            .contestant("sqlx", || {
                empty();
                milliseconds(|| {
                    runtime.block_on(async {
                        let mut transaction = theirs.begin().await.expect("a transaction");
                        insert!($database, &mut *transaction, bars);
                        transaction.commit().await.expect("all rows");
                    });
                })
            })
            .times_faster_than("resource_pool", "sqlx", 0.95, 1.0)
            .run($session);
        Duel::new(select, concat!("100,000 bars read from ", $name, " as they arrive"), Unit::Milliseconds)
            .contestant("resource_pool", || {
                milliseconds(|| {
                    runtime.block_on(async {
                        let mut guard = ours.$verb().await.expect("a connection");
                        select!(&mut guard, bars)
                    })
                })
            })
            .contestant("sqlx", || {
                milliseconds(|| {
                    runtime.block_on(async {
                        let mut connection = theirs.acquire().await.expect("a connection");
                        select!(&mut *connection, bars)
                    })
                })
            })
            .times_faster_than("resource_pool", "sqlx", 0.95, 1.0)
            .run($session);
        runtime.block_on(theirs.close());
        assert!(runtime.block_on(ours.close_all()).all_closed());
    }};
}

/// A pool on this runtime, as the driver's own.
fn pool(runtime: &Runtime, config: impl Into<ResourceConfig>) -> ResourcePool {
    let builder = ResourcePool::builder().environment([("", ""); 0]).resource(config);
    builder.runtime(runtime.handle().clone()).build().expect("a pool")
}

pub(crate) fn run(session: &Session) {
    let runtime = Runtime::new().expect("a runtime");
    #[cfg(feature = "mysql")]
    {
        let server = session.server(services::Kind::MySql);
        let ours = pool(&runtime, resource_pool::config::MySqlConfig::url(server.url()));
        let theirs = runtime.block_on(sqlx::MySqlPool::connect(server.url())).expect("a pool");
        duels!(session, &runtime, &ours, &theirs, mysql, sqlx::MySql, ["mysql_insert", "mysql_select"], "MySQL");
    }
    #[cfg(feature = "sqlite")]
    {
        use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

        let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("duel-sqlite");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("bars.sqlite");
        let ours = pool(&runtime, resource_pool::config::SqliteConfig::file(&file).create(true));
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let theirs = sqlx::SqlitePool::connect_with(options.journal_mode(SqliteJournalMode::Wal));
        let theirs = runtime.block_on(theirs).expect("a pool");
        duels!(session, &runtime, &ours, &theirs, sqlite, sqlx::Sqlite, ["sqlite_insert", "sqlite_select"], "SQLite");
    }
}
