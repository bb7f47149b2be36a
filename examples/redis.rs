//! Redis on threads: a connection of one's own per guard, and a pipeline, which takes one round trip.

use std::time::Duration;

use anyhow::{Result, ensure};
use redis::Commands;
use resource_pool::blocking::ResourcePool;

fn main() -> Result<()> {
    let mut redis = ResourcePool::global().redis()?;
    println!("{}", redis.ping::<String>()?);

    let key = |name: &str| format!("resource_pool_example:{}:{name}", std::process::id());
    // The keys expire in a minute, whatever happens below.
    let minute = Duration::from_secs(60).as_secs();
    let () = redis.set_ex(key("price"), 9.21, minute)?;
    println!("price: {}", redis.get::<_, f64>(key("price"))?);

    let mut pipeline = redis::pipe();
    for (code, price) in [("000001", 9.21), ("000002", 10.38), ("600000", 6.62)] {
        pipeline.set_ex(key(code), price, minute).ignore();
    }
    let keys = ["000001", "000002", "600000"].map(key);
    let (prices,): (Vec<f64>,) = pipeline.mget(&keys).query(&mut redis)?;
    println!("prices: {prices:?}");

    let deleted: usize = redis.del(&keys)?;
    ensure!(deleted == 3 && redis.del::<_, usize>(key("price"))? == 1, "they were there");
    println!("still there: {}", redis.exists::<_, bool>(key("price"))?);
    Ok(())
}
