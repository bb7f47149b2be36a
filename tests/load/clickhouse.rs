//! The load on ClickHouse: unique rows, inserted one by one and read back, and queries that take their time.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use clickhouse::{Client, Row};
use resource_pool::config::{ClickHouseConfig, ResourceConfig};
use resource_pool::{Error, Lease, ResourcePool, blocking};
use serde::{Deserialize, Serialize};
use services::{Kind, Service};

use super::ledger::Id;
use super::{Backend, BoxFuture, Call, Shared, Told, Trouble, done, there};

#[derive(Default)]
pub(crate) struct ClickHouse {
    kept: OnceLock<Lease<Client>>,
}

#[derive(Row, Serialize, Deserialize)]
struct One {
    id: u64,
}

/// Each insert makes a part. By default a table may have few of them, and it keeps merged parts for minutes.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS load_rows (id UInt64) ENGINE = MergeTree ORDER BY id SETTINGS \
                     parts_to_delay_insert = 10000, parts_to_throw_insert = 10000, old_parts_lifetime = 5";
const READ: &str = "SELECT count() FROM load_rows WHERE id = ?";
const SLOW: &str = "SELECT sleep(0.2)";

impl Backend for ClickHouse {
    fn kind(&self) -> Kind {
        Kind::ClickHouse
    }

    fn config(&self, url: &str) -> ResourceConfig {
        ClickHouseConfig::url(url).into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let client = load.pool.clickhouse().await?;
            client.query(TABLE).execute().await.expect("a table");
            let _first_time = self.kept.set(client);
            Ok(())
        })
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, call: Call) -> Told {
        let clickhouse = pool.clickhouse().map_err(Trouble::of)?;
        match call {
            Call::Write(id) => done(clickhouse.insert_rows("load_rows", [One { id: id.as_u64() }])),
            Call::Read(id) => {
                let query = clickhouse.client().query(READ).bind(id.as_u64());
                let count = clickhouse.query_rows::<u64>(query).map_err(Trouble::of)?;
                there(count.first().is_some_and(|count| *count > 0), id)
            }
            Call::Slow(_) => done(clickhouse.execute(SLOW)),
        }
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, call: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move {
            let own;
            let client = match self.kept.get() {
                Some(kept) if call.id().keeps_its_lease() => kept,
                _ => {
                    own = pool.clickhouse().await.map_err(Trouble::of)?;
                    &own
                }
            };
            match call {
                Call::Write(id) => {
                    let insert = async {
                        let mut insert = client.insert::<One>("load_rows").await?;
                        insert.write(&One { id: id.as_u64() }).await?;
                        insert.end().await
                    };
                    done(insert.await)
                }
                Call::Read(id) => {
                    let count = client.query(READ).bind(id.as_u64()).fetch_one::<u64>().await;
                    there(count.map_err(Trouble::of)? > 0, id)
                }
                Call::Slow(_) => done(client.query(SLOW).execute().await),
            }
        })
    }

    fn found(&self, server: &Service, _: &Shared) -> BTreeMap<Id, u32> {
        let sql = "SELECT id, count() FROM load_rows GROUP BY id";
        let rows = server.clickhouse().expect("a ClickHouse").query(sql).expect("rows");
        let row = |line: &str| {
            let (id, times) = line.split_once('\t').expect("two columns");
            (Id::from_u64(id.parse().expect("an id")), times.parse().expect("a count"))
        };
        rows.lines().map(row).collect()
    }

    fn version(&self, server: &Service) -> String {
        let version = server.clickhouse().expect("a ClickHouse").query("SELECT version()");
        version.expect("its version").trim().to_owned()
    }
}
