//! All four resources in one pool: connected in parallel, checked, used, and closed in order.

use anyhow::{Result, ensure};
use mongodb::bson::doc;
use redis::AsyncCommands;
use resource_pool::ResourcePool;

fn main() -> Result<()> {
    ResourcePool::global().on_report(|report| print!("\n{report}"));
    resource_pool::run(use_all())?
}

async fn use_all() -> Result<()> {
    let pool = ResourcePool::global();
    println!("before the first use\n{}\n", pool.health_check().await);

    for (_, connected) in pool.warm_up(["mongo", "rabbitmq", "clickhouse", "redis"]).await {
        connected?;
    }
    let health = pool.health_check().await;
    println!("now\n{health}");
    ensure!(health.is_healthy(), "all four are needed");

    let mongo = pool.mongo().await?;
    let ok = mongo.database("admin").run_command(doc! { "ping": 1 }).await?;
    let version: String = pool.clickhouse().await?.query("SELECT version()").fetch_one().await?;
    let redis: String = pool.redis().await?.ping().await?;
    println!("\nMongoDB {ok}, ClickHouse {version}, Redis {redis}");
    for holder in pool.holders() {
        println!("{} is held by {holder}", holder.resource);
    }
    Ok(())
}
