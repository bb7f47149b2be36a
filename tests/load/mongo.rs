//! The load on MongoDB: unique rows, written with `w: majority` and read back, and cursors of several batches.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use mongodb::{Client, Collection, sync};
use resource_pool::config::{MongoConfig, ResourceConfig};
use resource_pool::{Error, Lease, ResourcePool, blocking};
use services::{Kind, Service};

use super::ledger::Id;
use super::{Backend, BoxFuture, Call, IDLE, Shared, Told, Trouble, done, there};

#[derive(Default)]
pub(crate) struct Mongo {
    kept: OnceLock<Lease<Client>>,
}

fn rows(client: &Client) -> Collection<Document> {
    client.database("load").collection("rows")
}

fn rows_sync(client: &sync::Client) -> sync::Collection<Document> {
    client.database("load").collection("rows")
}

fn row(id: Id) -> Document {
    // The id is not the key, because the server itself would keep duplicate keys out.
    doc! { "row": id.as_u64() as i64 }
}

impl Backend for Mongo {
    fn kind(&self) -> Kind {
        Kind::Mongo
    }

    fn config(&self, url: &str) -> ResourceConfig {
        // A client that knows the replica set would connect to the member's own address, and so past the proxy.
        let url = url.replace("replicaSet=rs0", "directConnection=true&w=majority");
        let mut config = MongoConfig::uri(url).max_pool_size(16);
        config.max_idle_time = IDLE;
        config.into()
    }

    fn begin<'a>(&'a self, load: &'a Shared) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let client = load.pool.mongo().await?;
            let index = mongodb::IndexModel::builder().keys(doc! { "row": 1 }).build();
            rows(&client).create_index(index).await.expect("an index");
            let _first_time = self.kept.set(client);
            Ok(())
        })
    }

    fn on_thread(&self, pool: &blocking::ResourcePool, call: Call) -> Told {
        let client = pool.mongo().map_err(Trouble::of)?;
        let rows = rows_sync(&client);
        match call {
            Call::Write(id) => done(rows.insert_one(row(id)).run()),
            Call::Read(id) => there(rows.find_one(row(id)).run().map_err(Trouble::of)?.is_some(), id),
            Call::Slow(_) => {
                let cursor = rows.find(doc! {}).batch_size(10).limit(30).run().map_err(Trouble::of)?;
                done(cursor.collect::<Result<Vec<_>, _>>())
            }
        }
    }

    fn on_task<'a>(&'a self, pool: &'a ResourcePool, call: Call) -> BoxFuture<'a, Told> {
        Box::pin(async move {
            let own;
            let client = match self.kept.get() {
                Some(kept) if call.id().keeps_its_lease() => kept,
                _ => {
                    own = pool.mongo().await.map_err(Trouble::of)?;
                    &own
                }
            };
            let rows = rows(client);
            match call {
                Call::Write(id) => done(rows.insert_one(row(id)).await),
                Call::Read(id) => there(rows.find_one(row(id)).await.map_err(Trouble::of)?.is_some(), id),
                Call::Slow(_) => {
                    let cursor = rows.find(doc! {}).batch_size(10).limit(30).await.map_err(Trouble::of)?;
                    done(cursor.try_collect::<Vec<_>>().await)
                }
            }
        })
    }

    fn found(&self, server: &Service, _: &Shared) -> BTreeMap<Id, u32> {
        let client = sync::Client::with_uri_str(server.url()).expect("a client");
        let mut found = BTreeMap::new();
        for row in rows_sync(&client).find(doc! {}).run().expect("rows") {
            let id = row.expect("a row").get_i64("row").expect("a number");
            *found.entry(Id::from_u64(id as u64)).or_default() += 1;
        }
        client.shutdown().immediate(true).run();
        found
    }

    fn version(&self, server: &Service) -> String {
        let client = sync::Client::with_uri_str(server.url()).expect("a client");
        let info = client.database("admin").run_command(doc! { "buildInfo": 1 }).run().expect("its version");
        client.shutdown().immediate(true).run();
        info.get_str("version").expect("a version").to_owned()
    }
}
