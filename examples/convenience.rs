//! The crate's own functions, which are short for those of the global pool. They reach the same resources from
//! everywhere.

use anyhow::Result;
use mongodb::bson::doc;
use redis::{AsyncCommands, Commands};

fn main() -> Result<()> {
    on_this_thread()?;
    resource_pool::run(in_tasks())?
}

fn on_this_thread() -> Result<()> {
    let mongo = resource_pool::blocking::mongo()?;
    println!("MongoDB    {}", mongo.database("admin").run_command(doc! { "ping": 1 }).run()?);
    let version: Vec<String> = resource_pool::blocking::clickhouse()?.query_rows("SELECT version()")?;
    println!("ClickHouse {}", version.concat());
    println!("Redis      {}", Commands::ping::<String>(&mut resource_pool::blocking::redis()?)?);
    Ok(())
}

/// Nothing is connected again, because both use one pool.
async fn in_tasks() -> Result<()> {
    let ok = resource_pool::mongo().await?.database("admin").run_command(doc! { "ping": 1 }).await?;
    println!("MongoDB    {ok}");
    let version: String = resource_pool::clickhouse().await?.query("SELECT version()").fetch_one().await?;
    println!("ClickHouse {version}");
    println!("Redis      {}", AsyncCommands::ping::<String>(&mut resource_pool::redis().await?).await?);
    let _rabbitmq = resource_pool::rabbitmq().await?;
    println!("\n{}", resource_pool::ResourcePool::global().status());
    Ok(())
}
