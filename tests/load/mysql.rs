//! The load on MySQL: unique rows, written one by one and read back, queries that take their time, and
//! transactions.

use std::collections::BTreeMap;

use resource_pool::config::{MySqlConfig, ResourceConfig};
use resource_pool::{Error, MySql as Connection, ResourcePool, blocking, sqlx};
use services::{Kind, Service};

use super::ledger::Id;
use super::{ACQUIRE, Backend, BoxFuture, Call, IDLE, Shared, Told, Trouble, WORKERS, done, there};

pub(crate) struct MySql;

// The table has no key, because the server itself would keep duplicates out.
const TABLE: &str = "CREATE TABLE load_rows (id bigint NOT NULL)";
const INSERT: &str = "INSERT INTO load_rows VALUES (?)";

async fn call(mysql: &mut Connection, call: Call) -> Told {
    let id = call.id().as_u64() as i64;
    match call {
        Call::Write(_) => done(sqlx::query(INSERT).bind(id).execute(mysql).await),
        Call::Read(read) => {
            let query = sqlx::query_scalar("SELECT count(*) FROM load_rows WHERE id = ?").bind(id);
            let times: i64 = query.fetch_one(mysql).await.map_err(Trouble::of)?;
            there(times > 0, read)
        }
        Call::Slow(slow) if slow.number.is_multiple_of(2) => {
            // The transaction is rolled back as it drops, so its row belongs to no id.
            let mut transaction = mysql.begin().await.map_err(Trouble::of)?;
            done(sqlx::query(INSERT).bind(-1_i64).execute(&mut transaction).await)
        }
        Call::Slow(_) => done(sqlx::query("SELECT sleep(0.2)").execute(mysql).await),
    }
}

impl Backend for MySql {
    fn kind(&self) -> Kind {
        Kind::MySql
    }

    fn config(&self, url: &str) -> ResourceConfig {
        let mut config = MySqlConfig::url(url).pool_size(WORKERS as u32);
        config.overflow_timeout = IDLE;
        config.pool_timeout = ACQUIRE;
        config.into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut mysql = load.pool.mysql().await?;
            sqlx::query(TABLE).execute(&mut mysql).await.expect("a table");
            Ok(())
        })
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, what: Call) -> Told {
        let mut mysql = pool.mysql().map_err(Trouble::of)?;
        mysql.wait(async |mysql| call(mysql, what).await).map_err(Trouble::of)?
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, what: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move { call(&mut pool.mysql().await.map_err(Trouble::of)?, what).await })
    }

    fn found(&self, server: &Service, _: &Shared) -> BTreeMap<Id, u32> {
        let view = server.mysql().expect("a MySQL");
        let rows = view.query("SELECT id, count(*) FROM load_rows GROUP BY id").expect("rows");
        let row = |line: &str| {
            let (id, times) = line.split_once('\t').expect("two columns");
            (Id::from_u64(id.parse().expect("a number")), times.parse().expect("a count"))
        };
        rows.lines().map(row).collect()
    }

    fn version(&self, server: &Service) -> String {
        let version = server.mysql().expect("a MySQL").query("SELECT version()").expect("its version");
        version.split('-').next().unwrap_or_default().to_owned()
    }
}
