//! A strategy that keeps its guard for life, like QUANTAXIS's `QuantStrategy`. It closes nothing, because the pool
//! belongs to the process, which closes it however it ends.

use anyhow::{Context, Result};
use mongodb::bson::{Document, doc};
use mongodb::sync::{Client, Database};
use redis::Commands;
use resource_pool::Lease;
use resource_pool::blocking::ResourcePool;
use serde::{Deserialize, Serialize};

/// The time when 2024-01-02 began in Asia/Shanghai. QUANTAXIS's index is on such stamps, not on the text.
const FIRST_DAY: f64 = 1_704_124_800.0;
const DAY: f64 = 86_400.0;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Signal {
    code: String,
    action: String,
    price: f64,
    volume: u32,
}

struct QuantStrategy {
    mongo: Lease<Client>,
    prefix: String,
}

impl QuantStrategy {
    fn new() -> Result<Self> {
        let prefix = format!("resource_pool_example_{}", std::process::id());
        Ok(QuantStrategy { mongo: ResourcePool::global().mongo()?, prefix })
    }

    fn market_data(&self, code: &str, from: f64, to: f64) -> Result<Vec<Document>> {
        let bars = self.database().collection::<Document>("stock_day");
        let days = doc! { "code": code, "date_stamp": { "$gte": from, "$lte": to } };
        Ok(bars.find(days).sort(doc! { "date_stamp": 1 }).run()?.collect::<Result<_, _>>()?)
    }

    /// Stores a signal. A guard of Redis is a connection, so it is held for one call, not for life.
    fn cache_signal(&self, signal: &Signal) -> Result<()> {
        let json = serde_json::to_string(signal)?;
        Ok(ResourcePool::global().redis()?.set_ex(self.key(&signal.code), json, 300)?)
    }

    fn cached_signal(&self, code: &str) -> Result<Option<Signal>> {
        let json: Option<String> = ResourcePool::global().redis()?.get(self.key(code))?;
        Ok(json.map(|json| serde_json::from_str(&json)).transpose()?)
    }

    fn key(&self, code: &str) -> String {
        format!("{}:signal:{code}", self.prefix)
    }

    fn database(&self) -> Database {
        self.mongo.database(&self.prefix)
    }

    fn remove(&self) -> Result<()> {
        let () = ResourcePool::global().redis()?.del(self.key("000001"))?;
        Ok(self.database().drop().run()?)
    }
}

fn main() -> Result<()> {
    let strategy = QuantStrategy::new()?;
    let done = trade(&strategy);
    strategy.remove()?;
    done
}

fn trade(strategy: &QuantStrategy) -> Result<()> {
    let day =
        |n: u8, close: f64| doc! { "code": "000001", "date_stamp": FIRST_DAY + f64::from(n) * DAY, "close": close };
    strategy.database().collection("stock_day").insert_many([day(0, 9.21), day(1, 9.20), day(2, 9.11)]).run()?;

    let bars = strategy.market_data("000001", FIRST_DAY, FIRST_DAY + 2.0 * DAY)?;
    let last = bars.last().context("no bars")?.get_f64("close")?;
    let signal = Signal { code: "000001".to_owned(), action: "BUY".to_owned(), price: last, volume: 100 };
    strategy.cache_signal(&signal)?;
    println!("{} bars, {:?}", bars.len(), strategy.cached_signal("000001")?);
    Ok(())
}
