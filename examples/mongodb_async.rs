//! MongoDB in async code: one client for all tasks.

use anyhow::Result;
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use resource_pool::ResourcePool;
use tokio::task::JoinSet;

fn main() -> Result<()> {
    resource_pool::run(async {
        let mongo = ResourcePool::global().mongo().await?;
        let database = mongo.database(&format!("resource_pool_example_{}", std::process::id()));
        let done = side_by_side(&database).await;
        database.drop().await?;
        done
    })?
}

async fn side_by_side(database: &Database) -> Result<()> {
    let mut tasks = JoinSet::new();
    for code in ["000001", "000002", "600000"] {
        tasks.spawn(save_and_read(database.clone(), code));
    }
    while let Some(task) = tasks.join_next().await {
        let (code, closes) = task??;
        println!("{code}: {closes:?}");
    }
    Ok(())
}

async fn save_and_read(database: Database, code: &'static str) -> Result<(&'static str, Vec<f64>)> {
    let bars = database.collection::<Document>("stock_day");
    bars.insert_many(
        (1..=3).map(|day| doc! { "code": code, "date": format!("2024-01-0{day}"), "close": f64::from(day) }),
    )
    .await?;
    let cursor = bars.find(doc! { "code": code }).sort(doc! { "date": 1 }).await?;
    let found: Vec<Document> = cursor.try_collect().await?;
    Ok((code, found.iter().filter_map(|bar| bar.get_f64("close").ok()).collect()))
}
