//! The load on PostgreSQL: unique rows, written one by one and read back, queries that take their time, and
//! transactions.

use std::collections::BTreeMap;

use resource_pool::config::{PostgresConfig, ResourceConfig};
use resource_pool::{Error, Postgres as Connection, ResourcePool, blocking, sqlx};
use services::{Kind, Service};

use super::ledger::Id;
use super::{ACQUIRE, Backend, BoxFuture, Call, IDLE, Shared, Told, Trouble, WORKERS, done, there};

pub(crate) struct Postgres;

// The table has no key, because the server itself would keep duplicates out.
const TABLE: &str = "CREATE TABLE load_rows (id bigint NOT NULL)";
const INSERT: &str = "INSERT INTO load_rows VALUES ($1)";

async fn call(postgres: &mut Connection, call: Call) -> Told {
    let id = call.id().as_u64() as i64;
    match call {
        Call::Write(_) => done(sqlx::query(INSERT).bind(id).execute(postgres).await),
        Call::Read(read) => {
            let query = sqlx::query_scalar("SELECT count(*) FROM load_rows WHERE id = $1").bind(id);
            let times: i64 = query.fetch_one(postgres).await.map_err(Trouble::of)?;
            there(times > 0, read)
        }
        Call::Slow(slow) if slow.number.is_multiple_of(2) => {
            // The transaction is rolled back as it drops, so its row belongs to no id.
            let mut transaction = postgres.begin().await.map_err(Trouble::of)?;
            done(sqlx::query(INSERT).bind(-1_i64).execute(&mut transaction).await)
        }
        Call::Slow(_) => done(sqlx::query("SELECT pg_sleep(0.2)").execute(postgres).await),
    }
}

impl Backend for Postgres {
    fn kind(&self) -> Kind {
        Kind::Postgres
    }

    fn config(&self, url: &str) -> ResourceConfig {
        let mut config = PostgresConfig::url(url).pool_size(WORKERS as u32);
        config.overflow_timeout = IDLE;
        config.pool_timeout = ACQUIRE;
        config.into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut postgres = load.pool.postgres().await?;
            sqlx::query(TABLE).execute(&mut postgres).await.expect("a table");
            Ok(())
        })
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, what: Call) -> Told {
        let mut postgres = pool.postgres().map_err(Trouble::of)?;
        postgres.wait(async |postgres| call(postgres, what).await).map_err(Trouble::of)?
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, what: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move { call(&mut pool.postgres().await.map_err(Trouble::of)?, what).await })
    }

    fn found(&self, server: &Service, _: &Shared) -> BTreeMap<Id, u32> {
        let view = server.postgres().expect("a PostgreSQL");
        let rows = view.query("SELECT id, count(*) FROM load_rows GROUP BY id").expect("rows");
        let row = |line: &str| {
            let (id, times) = line.split_once('|').expect("two columns");
            (Id::from_u64(id.parse().expect("a number")), times.parse().expect("a count"))
        };
        rows.lines().map(row).collect()
    }

    fn version(&self, server: &Service) -> String {
        let version = server.postgres().expect("a PostgreSQL").query("SHOW server_version").expect("its version");
        version.split(' ').next().unwrap_or_default().to_owned()
    }
}
