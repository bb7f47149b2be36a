//! A program with a status page: it uses Redis all the time, and shows how that goes at http://127.0.0.1:9099.
//!
//! `LISTEN` is another address for the page. `RESOURCES` is a number of further resources of the same Redis, for a page
//! with much on it. With the variable `RESOURCE_POOL_ADMIN_TOKEN` the page asks for that token.

use std::time::Duration;

use resource_pool::admin::{ADDRESS, Admin};
use resource_pool::config::RedisConfig;
use resource_pool::redis::AsyncCommands;
use resource_pool::{Closing, ResourcePool};

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let pool = ResourcePool::global();
    let address = Admin::new(pool).listen(std::env::var("LISTEN").unwrap_or(ADDRESS.to_owned()))?;
    println!("the status page is at http://{address}");
    let url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".to_owned());
    let more: usize = std::env::var("RESOURCES").map_or(Ok(0), |number| number.parse())?;
    let mut held = Vec::new();
    for number in 0..more {
        held.push(pool.redis_with(&format!("cache-{number:03}"), RedisConfig::url(&url)).await?);
    }
    println!("working");
    pool.spawn("ticker", tick)?.await?;
    Ok(())
}

/// Counts ticks in Redis until closing begins. A Redis that is gone stops nothing.
async fn tick(closing: Closing) {
    while !closing.is_set() {
        if let Ok(redis) = resource_pool::redis().await {
            let counted: Result<u64, _> = redis.clone().incr("ticks", 1).await;
            if let Err(error) = counted {
                eprintln!("no tick: {error}");
            }
        }
        tokio::select! {
            () = closing.wait() => {}
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}
