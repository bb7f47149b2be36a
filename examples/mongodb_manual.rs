//! MongoDB by hand: connected, asked for its health, closed, and connected again when the program says so.

use anyhow::{Result, ensure};
use mongodb::bson::{Document, doc};
use resource_pool::blocking::ResourcePool;

fn main() -> Result<()> {
    let pool = ResourcePool::global();
    for (name, connected) in pool.warm_up(["mongo"])? {
        connected?;
        println!("{name} is connected");
    }
    ensure!(pool.is_healthy("mongo")?, "it was connected a moment ago");

    let mongo = pool.mongo()?;
    let database = mongo.database(&format!("resource_pool_example_{}", std::process::id()));
    let stocks = database.collection::<Document>("stock_list");
    let counted = stocks
        .insert_many([doc! { "code": "000001", "sse": "sz" }, doc! { "code": "600000", "sse": "sh" }])
        .run()
        .and_then(|_| stocks.count_documents(doc! {}).run());
    database.drop().run()?;
    println!("stock_list has {} stocks", counted?);
    drop((stocks, database, mongo));

    print!("{}", pool.close("mongo")?);
    if let Err(closed) = pool.mongo() {
        println!("it does not come back by itself: {closed}");
    }
    pool.reconnect("mongo")?;
    println!("healthy again: {}", pool.is_healthy("mongo")?);
    Ok(())
}
