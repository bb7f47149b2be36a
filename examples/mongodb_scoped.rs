//! A MongoDB for as long as a scope lasts. It is closed at the scope's end, also after `?` and a panic.

use anyhow::Result;
use mongodb::bson::{Document, doc};
use mongodb::sync::Database;
use resource_pool::blocking::Mongo;
use resource_pool::config::MongoConfig;

fn main() -> Result<()> {
    let report = {
        let mongo = Mongo::scoped(MongoConfig::from_env()?)?;
        let database = mongo.database(&format!("resource_pool_example_{}", std::process::id()));
        let done = first_bar(&database);
        database.drop().run()?;
        done?;
        // Dropping it would close it in the background. An explicit close also returns a report.
        mongo.close()?
    };
    print!("{report}");
    Ok(())
}

fn first_bar(database: &Database) -> Result<()> {
    let bars = database.collection::<Document>("stock_day");
    bars.insert_one(doc! { "code": "000001", "date": "2024-01-02", "close": 9.21, "vol": 1_158_366.0 }).run()?;
    let bar = bars.find_one(doc! { "code": "000001" }).projection(doc! { "_id": 0 }).run()?;
    println!("{}", bar.unwrap_or_default());
    println!("collections: {:?}", database.list_collection_names().run()?);
    Ok(())
}
